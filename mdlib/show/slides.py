"""The method in figures for slides: one picture of a finished run on its way through all stages, in
two rows or one.

Told apart by place, number and words, so it can be read in grey and by the colour-blind. PNG for
print, SVG to edit.
"""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from mdlib.core.colours import MASK_COLOURS, class_colours, colour_map
from mdlib.core.files import atomic
from mdlib.core.mask import Mask
from mdlib.evaluate import metrics
from mdlib.method import clusters, masks, proposals
from mdlib.run.artifacts import RunArtifacts
from mdlib.show import figures
from mdlib.show.outcome import Outcome

# (key, heading, what happens); the headings name the notebooks
STEPS = (
    ("picture", "00  a picture", "no label"),
    ("attention", "01  a frozen ViT", "where its CLS token looks"),
    ("mask", "01  object masks", "patches whose keys agree"),
    ("cluster", "02  clusters", "masks that look alike"),
    ("detector", "03  Mask R-CNN", "learns from clustered masks"),
    ("filter", "04  filter", "sure masks become labels"),
    ("segmenter", "05  DeepLab", "learns from these labels"),
    ("crf", "06  CRF", "follows the picture's edges"),
    ("truth", "the truth", "for names and scores alone"),
)
# panels (H, W) integer: 0, or the number of a mask, drawn over the picture
OBJECTS = ("mask", "detector")
# panels (H, W) integer: classes, written into their regions
MAPS = ("filter", "segmenter", "crf", "truth")
SEEN = (
    "A picture; where the CLS token of a frozen vision transformer looks; the object masks; masks of one cluster; what Mask R-CNN "
    "predicts; its confident masks as a label map; DeepLab's map; the same map after a CRF"
)
ALT = f"MaskDistill in eight steps, two rows of four panels joined by arrows. {SEEN}. Class names are written into the maps."
LIFE_ALT = f"One picture on its way through all stages, one row of nine panels joined by arrows. {SEEN}; last the true map. Class names are written into the maps."
GREY = "0.25"
DPI = 220  # of the PNG: 2,600 pixels wide
SLIDE = 13.33  # inches: the width of a slide


# ---------------------------------------------------------------- figures


def method_figure(panels: dict[str, np.ndarray], classes: list[str]) -> Figure:
    """Two rows of four, without the truth; from one panel for each key of STEPS.

    Raises ValueError if one is missing.

    See OBJECTS and MAPS; another panel is a picture (H, W, 3) or a map of numbers (h, w) float.
    """
    _check(panels)
    figure, axes = plt.subplots(
        2, 4, figsize=(12, 7.2), gridspec_kw={"wspace": 0.28, "hspace": 0.42}
    )
    for number, (ax, (key, heading, text)) in enumerate(zip(axes.flat, STEPS)):
        _draw(ax, key, panels, classes, size=12)
        ax.set_title(heading, fontsize=15, fontweight="bold", loc="left", pad=6)
        ax.set_xlabel(_what(key, text, panels), fontsize=12, labelpad=6)
        if number:
            _arrow(ax, start=-0.25 if number % 4 else -0.175)
    # from the end of the first row to the second
    above, below = axes[0, 3].get_position(), axes[1, 0].get_position()
    right, left, between = above.x1 + 0.02, below.x0 - 0.028, (below.y1 + above.y0) / 2 - 0.005
    x, y = (
        [above.x1 + 0.006, right, right, left, left],
        [(above.y0 + above.y1) / 2] * 2 + [between] * 2 + [(below.y0 + below.y1) / 2],
    )
    figure.add_artist(plt.Line2D(x, y, color=GREY, lw=2.2, transform=figure.transFigure))
    return figure


def life_figure(panels: dict[str, np.ndarray], classes: list[str]) -> Figure:
    """The same panels and the truth in one row as wide as a slide.

    Raises ValueError if one is missing.
    """
    _check(panels)
    figure, axes = plt.subplots(
        1,
        len(STEPS),
        figsize=(SLIDE, 2.9),
        gridspec_kw={"wspace": 0.24, "left": 0.01, "right": 0.99},
    )
    for number, (ax, (key, heading, text)) in enumerate(zip(axes, STEPS)):
        _draw(ax, key, panels, classes, size=10)
        place, _, name = heading.rpartition("  ")
        ax.set_title(f"{place}\n{name}", fontsize=12, fontweight="bold", loc="left", pad=5)
        ax.set_xlabel(textwrap.fill(_what(key, text, panels), 14), fontsize=12, labelpad=5)
        if number and key != "truth":
            _arrow(ax, start=-0.21)
    return figure


def save(figure: Figure, path: Path, *, alt: str, label: str) -> tuple[Path, Path]:
    """Write a figure as `path`.png and `path`.svg with the alternative text in both; label: where
    its pictures come from, below it.
    """
    # in inches: the label goes below all words
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    figure.text(
        drawn.x1 / width,
        (drawn.y0 - 0.05) / height,
        label,
        ha="right",
        va="top",
        fontsize=9,
        color="0.35",
    )
    paths = path.with_suffix(".png"), path.with_suffix(".svg")
    about = (
        {"Description": alt, "Software": None},
        {"Title": f"MaskDistill: {path.name}", "Description": alt, "Date": None},
    )
    for each, metadata in zip(paths, about):
        # else no two SVGs are alike
        with atomic(each) as temporary, plt.rc_context({"svg.hashsalt": "mdlib"}):
            figure.savefig(
                temporary, format=each.suffix[1:], dpi=DPI, bbox_inches="tight", metadata=metadata
            )
    plt.close(figure)
    return paths


def _check(panels: dict) -> None:
    missing = [key for key, _, _ in STEPS if key not in panels]
    if missing:
        raise ValueError(f"the overview needs a picture for each step, without: {missing}")


def _draw(ax, key: str, panels: dict[str, np.ndarray], classes: list[str], *, size: float) -> None:
    panel, present = panels[key], np.setdiff1d(panels[key], (0, 255))
    ax.set_xticks([])
    ax.set_yticks([])
    if key in OBJECTS:
        ax.imshow(panels["picture"], interpolation="none")  # the SVG holds its own pixels
        for number in present:
            figures.outline(
                ax,
                panel == number,
                colour=MASK_COLOURS[(number - 1) % len(MASK_COLOURS)],
            )
    elif key in MAPS:
        ax.imshow(colour_map(panel, class_colours(len(classes))), interpolation="none")
        for label in present:
            if (panel == label).mean() > 0.01:  # no word for a speck
                figures.write_inside(ax, panel == label, classes[label], size=size)
    else:
        ax.imshow(panel, cmap="cividis", interpolation="none")


def _what(key: str, text: str, panels: dict[str, np.ndarray]) -> str:
    unchanged = key == "crf" and np.array_equal(panels["crf"], panels["segmenter"])
    return "left out, or no change" if unchanged else text


def _arrow(ax, *, start: float) -> None:
    style = {
        "arrowstyle": "-|>",
        "lw": 2.2,
        "color": GREY,
        "mutation_scale": 20,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate(
        "", xy=(-0.03, 0.5), xytext=(start, 0.5), xycoords="axes fraction", arrowprops=style
    )


# ---------------------------------------------------------------- panels


def panels_of(outcome: Outcome) -> dict[str, np.ndarray]:
    """The panels of both figures: the run's best picture with several classes."""
    val = outcome.val

    def agreement(i: int) -> float:
        true = val.semantic(i)
        predicted = outcome.cluster_to_class[outcome.final(i)]
        return min(2, len(np.setdiff1d(true, (0, 255)))) * metrics.object_agreement(predicted, true)

    best = max(range(len(val)), key=agreement)
    image, final, refined = val.image(best), outcome.final(best), outcome.refined(best)

    def numbered(found: list[Mask]) -> np.ndarray:
        labels = np.zeros(final.shape, np.uint8)
        for number, mask in enumerate((each.pixels() for each in found), 1):
            free = mask & (labels == 0)
            if free.sum() > mask.sum() / 2:  # else it repeats an earlier one
                labels[free] = number
        return labels

    return {
        "picture": image,
        "attention": _attention(image, outcome.run),
        "mask": numbered(outcome.masks[best]),
        "cluster": _members(outcome.run, most_common=final),
        "detector": numbered([m for m in outcome.predictions[best] if m.score >= 0.3]),
        "filter": outcome.named(outcome.filtered(best)),
        "segmenter": outcome.named(final),
        "crf": outcome.named(final if refined is None else refined),
        "truth": val.semantic(best),
    }


def _attention(image: np.ndarray, run: RunArtifacts) -> np.ndarray:
    """(h, w) float: where the CLS token looks, mean over heads, square root for the eye."""
    side = run.settings("01")["input_side"]
    images = torch.from_numpy(image).permute(2, 0, 1)[None]
    tokens = run.encoder("01").tokens(proposals.resize_images(images, input_side=side))
    weights = masks.cls_attention(tokens.cls_query, tokens.keys)[0].mean(0)
    return weights.sqrt().view(tokens.grid_hw).cpu().numpy()


def _members(run: RunArtifacts, *, most_common: np.ndarray) -> np.ndarray:
    """3 x 3 crops of 64 pixels, of the training masks nearest to the centre of the map's largest
    cluster: one (192, 192, 3) picture.
    """
    found = run.clusters()
    largest = max(0, int(np.bincount(most_common[most_common > 0], minlength=2).argmax()) - 1)
    features = clusters.whiten(run.features(), found.deviation)
    distance = ((features - found.centres[largest]) ** 2).sum(1)
    train_masks = run.masks("train")
    nearest = [train_masks[i] for i in distance.argsort(kind="stable")[:9]]
    crops = clusters.crop_masks(run.dataset("train"), nearest, size=64)
    return crops.view(3, 3, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(192, 192, 3).numpy()
