"""The method in figures for slides: one picture of a finished run on its way through all stages.

There are two figures: the method in two rows, and the same with the truth in one row. Panels are
told apart by place, number and words, so they can be read in grey and by the colour-blind. PNG for
print, SVG to edit.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdlib.core.colours import MASK_COLOURS, class_colours, colorize
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
    "A picture; where the CLS token of a frozen vision transformer looks; the object masks; "
    "masks of one cluster; what Mask R-CNN predicts; its confident masks as a label map; "
    "DeepLab's map; the same map after a CRF"
)
ALT = (
    "MaskDistill in eight steps, two rows of four panels joined by arrows. "
    f"{SEEN}. Class names are written into the maps."
)
LIFE_ALT = (
    "One picture on its way through all stages, one row of nine panels joined by arrows. "
    f"{SEEN}; last the true map. Class names are written into the maps."
)
GREY = "0.25"
DPI = 220  # of the PNG: 2,600 pixels wide
SLIDE = 13.33  # inches: the width of a slide

Panels = Mapping[str, np.ndarray]


# ---------------------------------------------------------------- figures


@figures.plain_text()
def method_figure(panels: Panels, classes: Sequence[str]) -> Figure:
    """The steps without the truth, in two rows of four joined by arrows.

    Args:
        panels: {key of STEPS: panel}, all of them. See OBJECTS and MAPS; another panel is a
            picture (H, W, 3) uint8 or a map of numbers (h, w) float.
        classes: names of the class indices.

    Raises:
        ValueError: where a panel is missing.
    """
    figure, axes = plt.subplots(
        2, 4, figsize=(12, 7.2), gridspec_kw={"wspace": 0.28, "hspace": 0.42}
    )
    _draw_steps(axes.flat, panels, classes, one_row=False)
    for number, ax in enumerate(axes.flat[1:], 1):
        _arrow(ax, start=-0.25 if number % 4 else -0.175)
    # from the end of the first row to the second
    above, below = axes[0, 3].get_position(), axes[1, 0].get_position()
    right, left, between = above.x1 + 0.02, below.x0 - 0.028, (below.y1 + above.y0) / 2 - 0.005
    x = [above.x1 + 0.006, right, right, left, left]
    y = [(above.y0 + above.y1) / 2] * 2 + [between] * 2 + [(below.y0 + below.y1) / 2]
    figure.add_artist(plt.Line2D(x, y, color=GREY, lw=2.2, transform=figure.transFigure))
    return figure


@figures.plain_text()
def life_figure(panels: Panels, classes: Sequence[str]) -> Figure:
    """All steps and the truth in one row as wide as a slide; see `method_figure`.

    Raises:
        ValueError: where a panel is missing.
    """
    figure, axes = plt.subplots(
        1,
        len(STEPS),
        figsize=(SLIDE, 2.9),
        gridspec_kw={"wspace": 0.24, "left": 0.01, "right": 0.99},
    )
    _draw_steps(axes, panels, classes, one_row=True)
    for ax in axes[1:-1]:  # no arrow leads to the truth
        _arrow(ax, start=-0.21)
    return figure


@figures.plain_text()
def save(figure: Figure, path: Path, *, alt: str, label: str) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG with the alternative text in both, and close it.

    Args:
        figure: as one of this package's functions draws it.
        path: where to, without an ending.
        alt: the figure in words.
        label: where its pictures come from; written below it.

    Returns:
        The paths of the PNG and of the SVG.
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
    for each, metadata in zip(paths, about, strict=True):
        # else no two SVGs are alike
        with atomic(each) as temporary, plt.rc_context({"svg.hashsalt": "mdlib"}):
            figure.savefig(
                temporary, format=each.suffix[1:], dpi=DPI, bbox_inches="tight", metadata=metadata
            )
    plt.close(figure)
    return paths


def _draw_steps(
    axes: Iterable[Axes], panels: Panels, classes: Sequence[str], *, one_row: bool
) -> None:
    """Draw a step with its words into each axis; in one row in smaller letters on more lines."""
    missing = [key for key, _, _ in STEPS if key not in panels]
    if missing:
        raise ValueError(f"the overview needs a picture for each step, without: {missing}")
    for ax, (key, heading, text) in zip(axes, STEPS, strict=False):
        _draw_panel(ax, key, panels, classes, letters=10 if one_row else 12)
        if key == "crf" and np.array_equal(panels["crf"], panels["segmenter"]):
            text = "left out, or no change"
        if one_row:
            stage, _, name = heading.rpartition("  ")
            heading, text = f"{stage}\n{name}", textwrap.fill(text, 14)
        size, pad = (12, 5) if one_row else (15, 6)
        ax.set_title(heading, fontsize=size, fontweight="bold", loc="left", pad=pad)
        ax.set_xlabel(text, fontsize=12, labelpad=pad)


def _draw_panel(
    ax: Axes, key: str, panels: Panels, classes: Sequence[str], *, letters: float
) -> None:
    """Draw the panel of a step; letters: size of the class names in points."""
    panel = panels[key]
    present = np.setdiff1d(panel, (0, 255))
    ax.set_xticks([])
    ax.set_yticks([])
    if key in OBJECTS:
        ax.imshow(panels["picture"], interpolation="none")  # the SVG holds its own pixels
        for number in present:
            colour = MASK_COLOURS[(number - 1) % len(MASK_COLOURS)]
            figures.outline(ax, panel == number, colour=colour)
    elif key in MAPS:
        ax.imshow(colorize(panel, class_colours(len(classes))), interpolation="none")
        for label in present:
            if (panel == label).mean() > 0.01:  # no word for a speck
                figures.label_region(ax, panel == label, classes[label], size=letters)
    else:
        ax.imshow(panel, cmap="cividis", interpolation="none")


def _arrow(ax: Axes, *, start: float) -> None:
    """An arrow from the panel before; start: in widths of the axis, from its left side."""
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
    """The panels of both figures, of the picture whose final map is best.

    Best is the agreement with the truth (`metrics.object_agreement`), counted double where the
    picture has two classes or more.

    Returns:
        {key of STEPS: panel}, see `method_figure`.
    """
    val = outcome.val

    def agreement(i: int) -> float:
        true = val.semantic(i)
        predicted = outcome.cluster_to_class[outcome.final(i)]
        return min(2, len(np.setdiff1d(true, (0, 255)))) * metrics.object_agreement(predicted, true)

    best = max(range(len(val)), key=agreement)
    image, final, refined = val.image(best), outcome.final(best), outcome.refined(best)
    shown = [mask for mask in outcome.predictions[best] if mask.score >= 0.3]
    return {
        "picture": image,
        "attention": _attention(image, outcome.run),
        "mask": _numbered(outcome.masks[best], image_hw=final.shape),
        "cluster": _members(outcome.run, most_common=final),
        "detector": _numbered(shown, image_hw=final.shape),
        "filter": outcome.named(outcome.filtered(best)),
        "segmenter": outcome.named(final),
        "crf": outcome.named(final if refined is None else refined),
        "truth": val.semantic(best),
    }


def _numbered(found: Sequence[Mask], *, image_hw: tuple[int, ...]) -> np.ndarray:
    """(H, W) uint8: 0, or the number of a mask from 1; masks mostly covered by earlier ones go."""
    labels = np.zeros(image_hw, np.uint8)
    for number, mask in enumerate(found, 1):
        pixels = mask.pixels()
        free = pixels & (labels == 0)
        if free.sum() > pixels.sum() / 2:
            labels[free] = number
    return labels


def _attention(image: np.ndarray, run: RunArtifacts) -> np.ndarray:
    """(h, w) float: where the CLS token looks, mean over heads, square root for the eye."""
    side = run.settings("01")["input_side"]
    images = torch.from_numpy(image).permute(2, 0, 1)[None]
    tokens = run.encoder("01").tokens(proposals.resize_images(images, input_side=side))
    weights = masks.cls_attention(tokens.cls_query, tokens.keys)[0].mean(0)
    return weights.sqrt().view(tokens.grid_hw).cpu().numpy()


def _members(run: RunArtifacts, *, most_common: np.ndarray) -> np.ndarray:
    """(192, 192, 3): the nine training masks nearest to the centre of a map's largest cluster."""
    found = run.clusters()
    largest = max(0, int(np.bincount(most_common[most_common > 0], minlength=2).argmax()) - 1)
    features = clusters.whiten(run.features(), found.deviation)
    distance = ((features - found.centres[largest]) ** 2).sum(1)
    train_masks = run.masks("train")
    nearest = [train_masks[i] for i in distance.argsort(kind="stable")[:9]]
    crops = clusters.crop_masks(run.dataset("train"), nearest, size=64)
    return crops.view(3, 3, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(192, 192, 3).numpy()
