"""Explorers: figures with sliders, for 01, 02, 04 and 06.

Under the runner each draws once, with the notebook's values.

Every explorer is a pure function from settings to arrays (`*_view`), and a few lines that draw
them.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch

from mdlib.core.colours import class_colours, colorize, overlay
from mdlib.evaluate import metrics
from mdlib.method import clusters, crf, masks, pseudo_labels
from mdlib.method.masks import MaskRule
from mdlib.models.encoder import Tokens
from mdlib.show import figures


def patch_view(
    tokens: Tokens, rule: MaskRule, *, patch: int | None, head: int | None
) -> dict[str, np.ndarray]:
    """Stage 1 of one image, from any patch and in any head.

    Args:
        tokens: of the image, the first of its batch.
        rule: the settings of stage 1; those of several masks are not used.
        patch: row-major index that serves as the seed; None: the best candidate.
        head: this one alone, and its part of the features; None: all.

    Returns:
        Maps (h, w): "G_CLS", "candidates", "affinity", "G_diff" and "mask". "candidates" is 1 at
        candidates, 2 at sources, 3 at the seed, 0 elsewhere.
    """
    heads = slice(None) if head is None else slice(head, head + 1)
    query, keys = tokens.cls_query[:1, heads], tokens.keys[:1, heads]
    features = tokens.features(rule.affinity)[:1, heads]
    rule = replace(rule, cls_heads=min(rule.cls_heads, keys.shape[1]))
    _, _, features = masks.prepare_tokens(query, keys, features, grid_hw=tokens.grid_hw, rule=rule)
    trace = masks.trace_mask(
        query,
        keys,
        grid_hw=tokens.grid_hw,
        rule=replace(rule, center="none", whiten=False),
        features=features,
        seed=None if patch is None else torch.tensor([patch], device=keys.device),
    )
    candidates = trace.candidates[0]
    seed = candidates[0] if patch is None else patch
    flat = features[0].transpose(0, 1).flatten(1)  # (N, D)
    chosen = torch.zeros_like(trace.scores[0])
    chosen[candidates], chosen[candidates[trace.sources[0]]], chosen[seed] = 1.0, 2.0, 3.0
    maps = {
        "G_CLS": trace.scores,
        "candidates": chosen,
        "affinity": flat @ flat[seed],
        "G_diff": trace.g_diff,
        "mask": trace.mask,
    }
    return {name: values.reshape(tokens.grid_hw).cpu().numpy() for name, values in maps.items()}


def cluster_view(
    z: np.ndarray, centres: np.ndarray, *, cluster: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Members of a cluster nearest to its centre, and farthest from it.

    Args:
        z: (n, D) features, whitened.
        centres: (k, D).
        cluster: in 0..k - 1.
        count: how many of each, at most.

    Returns:
        Two arrays of indices into z: the nearest first, and the farthest first.
    """
    members = np.flatnonzero(clusters.assign_clusters(z, centres) == cluster)
    ranked = members[((z[members] - centres[cluster]) ** 2).sum(1).argsort(kind="stable")]
    return ranked[:count], ranked[::-1][:count]


def threshold_view(
    predictions: list[tuple],
    true: list[np.ndarray],
    names: np.ndarray,
    *,
    threshold: float,
    classes: int,
) -> tuple[list[np.ndarray], float]:
    """Label maps at a threshold, and their mIoU.

    Args:
        predictions: (masks, clusters, scores) of each image, as `pseudo_labels.stack_masks` gives
            and `pseudo_labels.label_map` takes them.
        true: (H, W) true class of each pixel, of each image.
        names: (1 + k,) the class of each value in a label map, -1 where it has none.
        threshold: of `pseudo_labels.label_map`, in [0, 1].
        classes: number of classes, background among them.

    Returns:
        The label map of each image, (H, W) integers, and the mIoU of them all.
    """
    maps = [
        pseudo_labels.label_map(*found, threshold=threshold, overlap="skip")
        for found in predictions
    ]
    counts = (
        metrics.confusion(*pair, num_preds=len(names), num_targets=classes)
        for pair in zip(maps, true, strict=True)
    )
    total = sum(counts, np.zeros((len(names), classes), np.int64))
    return maps, metrics.mean_iou(total, names)


def crf_view(
    image: np.ndarray, probabilities: np.ndarray, settings: crf.CrfSettings, *, most: int = 6
) -> np.ndarray:
    """Label one picture with the CRF.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (C, H, W), the network's.
        settings: of the CRF.
        most: only so many classes with the largest mass take part: a slider must not wait for
            sixty.

    Returns:
        (H, W) integers, the class of each pixel.
    """
    kept = np.sort(np.argsort(-probabilities.sum((1, 2)), kind="stable")[:most])
    p = probabilities[kept] + 1e-6
    return kept[crf.dense_crf(image, p / p.sum(0), settings).argmax(0)]


# ---------------------------------------------------------------- what the notebooks show


def patches(tokens: Tokens, image: np.ndarray, rule: MaskRule) -> widgets.VBox | None:
    """For 01: choose a patch as the seed, a head, and settings of the rule.

    Args:
        tokens: of the image, the first of its batch.
        image: (H, W, 3) uint8 RGB.
        rule: the settings of stage 1, which the controls start from.

    Returns:
        The controls with their figure; None under the runner.
    """
    height, width = tokens.grid_hw

    def draw(row: int, column: int, head: int, **changed: Any) -> None:
        patch = None if row < 0 or column < 0 else row * width + column
        of_head = None if head < 0 else head
        maps = patch_view(tokens, replace(rule, **changed), patch=patch, head=of_head)
        figures.image_grid([image, *maps.values()], ["image", *maps], columns=6, size=1.7)

    def choice(name: str, options: tuple) -> widgets.Dropdown:
        return widgets.Dropdown(options=options, value=getattr(rule, name), description=name)

    return _live(
        draw,
        row=widgets.IntSlider(-1, -1, height - 1, description="row (-1: seed)"),
        column=widgets.IntSlider(-1, -1, width - 1, description="column"),
        head=widgets.IntSlider(-1, -1, tokens.keys.shape[1] - 1, description="head (-1: all)"),
        top_k=widgets.FloatSlider(rule.top_k, min=0.05, max=1.0, step=0.05, description="top_k"),
        affinity=choice("affinity", masks.AFFINITIES),
        center=choice("center", masks.CENTERS if rule.mass is None else ("none",)),
        whiten=choice("whiten", (False, True)),
    )


def members(
    z: np.ndarray, crops: torch.Tensor, centres: np.ndarray, *, seed: int
) -> widgets.VBox | None:
    """For 02: choose a cluster and k; its nearest and its farthest masks are shown.

    Args:
        z: (n, D) features of the masks, whitened.
        crops: (n, 3, S, S) uint8 of the masks, as `clusters.crop_masks` gives them.
        centres: (k, D) of the notebook's clusters.
        seed: of k-means where another k is chosen.

    Returns:
        The sliders with their figure; None under the runner.
    """
    pictures = crops.permute(0, 2, 3, 1).numpy()
    fitted, most = {len(centres): centres}, max(len(centres), min(100, len(z)))

    def draw(k: int, cluster: int) -> None:
        if k not in fitted:
            fitted[k] = clusters.fit_kmeans(
                z, k=k, seed=seed, batch_size=1000, restarts=1
            ).cluster_centers_
        near, far = cluster_view(z, fitted[k], cluster=cluster % k, count=8)
        _mosaic(
            [[pictures[i] for i in part] for part in (near, far)],
            columns=8,
            title="above nearest to the centre, below farthest from it",
        )

    largest = int(np.bincount(clusters.assign_clusters(z, centres)).argmax())
    return _live(
        draw,
        k=widgets.IntSlider(len(centres), 2, most, description="k", continuous_update=False),
        cluster=widgets.IntSlider(largest, 0, most - 1, description="cluster"),
    )


def thresholds(
    predictions: list[tuple], samples: list, names: np.ndarray, *, threshold: float, classes: int
) -> widgets.VBox | None:
    """For 04: move the threshold; masks, label maps and their mIoU on these samples are shown.

    Args:
        predictions: (masks, clusters, scores) of each sample, see `threshold_view`.
        samples: of the data set, with semantic labels; the first eight are drawn.
        names: (1 + k,) the class of each value in a label map, -1 where it has none.
        threshold: the slider's first value, in [0, 1].
        classes: number of classes, background among them.

    Returns:
        The slider with its figure; None under the runner.
    """
    colours, true = class_colours(classes), [sample.semantic for sample in samples]

    def draw(threshold: float) -> None:
        maps, miou = threshold_view(predictions, true, names, threshold=threshold, classes=classes)
        kept = [
            found[0][pseudo_labels.confident(found[2], threshold=threshold)]
            for found in predictions[:8]
        ]
        painted = [overlay(s.image, k) for s, k in zip(samples[:8], kept, strict=True)]
        named = [colorize(np.maximum(names[m], 0), colours) for m in maps[:8]]
        _mosaic(
            [painted, named],
            columns=8,
            title=f"kept masks, and the label maps: mIoU {miou:.2f} on {len(samples)} pictures",
        )

    return _live(
        draw,
        threshold=widgets.FloatSlider(
            threshold, min=0.0, max=1.0, step=0.05, description="threshold"
        ),
    )


def borders(
    image: np.ndarray,
    probabilities: np.ndarray,
    true: np.ndarray,
    names: np.ndarray,
    *,
    classes: int,
    settings: crf.CrfSettings,
) -> widgets.VBox | None:
    """For 06: move the CRF's parameters on one picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (1 + k, H, W), the network's.
        true: (H, W) true class of each pixel.
        names: (1 + k,) the class of each of the network's outputs, -1 where it has none.
        classes: number of classes, background among them.
        settings: the sliders' first values.

    Returns:
        The sliders with their figure; None under the runner.
    """
    colours = class_colours(classes)

    def draw(**moved: Any) -> None:
        found = crf_view(image, probabilities, replace(settings, **moved))
        maps = [
            colorize(np.maximum(names[m], 0), colours) for m in (probabilities.argmax(0), found)
        ]
        _mosaic(
            [[image, *maps, colorize(true, colours)]],
            columns=4,
            title="image, network, CRF, true",
        )

    ranges = {
        "steps": (0, 10, 1),
        "bilateral_sxy": (1, 60, 1),
        "bilateral_srgb": (1, 60, 1),
        "bilateral_compat": (0, 20, 1),
        "gaussian_compat": (0, 10, 1),
    }
    slider = {int: widgets.IntSlider, float: widgets.FloatSlider}
    controls = {}
    for name, (least, most, step) in ranges.items():
        value = getattr(settings, name)
        options = dict(min=least, max=max(most, value), step=step, description=name)
        controls[name] = slider[type(value)](value, **options)
    return _live(draw, **controls)


def _mosaic(rows: list[list[np.ndarray]], *, columns: int, title: str, side: int = 160) -> None:
    """Rows of pictures as one: a slider must not wait until sixteen axes are laid out."""
    canvas = np.ones((len(rows) * side, columns * side, 3))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            # nearest neighbours
            high, wide = ((np.arange(side - 4) * n // (side - 4)) for n in image.shape[:2])
            shown = image[high][:, wide] / (255 if image.dtype == np.uint8 else 1)
            canvas[y * side : y * side + side - 4, x * side : x * side + side - 4] = shown
    _, ax = plt.subplots(
        figsize=(1.15 * columns, 1.15 * len(rows) + 0.3) if columns > 4 else (8, 2.3)
    )
    figures.image_row(ax, canvas, title)


def _live(draw: Callable, **controls: widgets.ValueWidget) -> widgets.VBox | None:
    """Sliders above the figure that `draw` makes; under the runner (MDLIB_BATCH) drawn once."""

    def redraw(**values: Any) -> None:
        draw(**values)
        plt.show()

    if "MDLIB_BATCH" in os.environ:
        redraw(**{name: control.value for name, control in controls.items()})
        return None
    for control in controls.values():
        control.style.description_width = "8em"
    return widgets.VBox([*controls.values(), widgets.interactive_output(redraw, controls)])
