"""Every plot, one style, one palette.

Colours are from Wong's colour-blind-safe set; line and order say the same.

Functions take arrays and return a matplotlib Figure; `Stage.figure` saves it.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.ndimage import distance_transform_edt

from mdlib.core.colours import BLUE, GREEN, ORANGE, RED


def set_style() -> None:
    """Call once in a notebook's setup cell."""
    sns.set_theme(context="notebook", style="white", font_scale=0.85)
    plt.rcParams.update(
        {
            "axes.titlesize": 9,
            "figure.dpi": 90,
            "image.interpolation": "nearest",
            "svg.hashsalt": "mdlib",
        }
    )


def outline(
    ax, mask: np.ndarray, *, colour: str = "none", strength: float = 0.45, dashed: bool = False
) -> None:
    """Draw the border of a (H, W) bool mask into an axis that shows its picture: white beside
    black, so it is seen in grey.

    colour, strength: of a tint for the inside.
    """
    # a mask that ends at the picture's edge has a border there too
    around = np.pad(mask.astype(float), 1)
    x, y = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
    if colour != "none":
        ax.contourf(x, y, around, levels=[0.5, 1.5], colors=[colour], alpha=strength)
    for width, shade, dash in ((3.0, "white", "-"), (1.2, "black", "--" if dashed else "-")):
        ax.contour(x, y, around, levels=[0.5], colors=shade, linewidths=width, linestyles=dash)


def write_inside(ax, mask: np.ndarray, text: str, *, size: float) -> None:
    """Write into an axis where a (H, W) bool mask is thickest, moved so that it stays in the
    picture and below earlier words.

    size: of the letters, in points. White with a black border: read on any ground. Nothing is
    written for an empty mask.
    """
    if not mask.any():
        return
    y, x = np.unravel_index(distance_transform_edt(np.pad(mask, 1)).argmax(), np.add(mask.shape, 2))
    # in pixels of the picture
    point = mask.shape[1] / (ax.get_position().width * ax.figure.get_figwidth() * 72)
    half, line = min(0.34 * size * len(text) * point, mask.shape[1] / 2), 1.3 * size * point
    x, y = (
        np.clip(x - 1, half, mask.shape[1] - half),
        np.clip(y - 1, line / 2, mask.shape[0] - line / 2),
    )
    for other in sorted(ax.texts, key=lambda other: other.get_position()[1]):
        (there, above), wide = other.get_position(), 0.34 * size * len(other.get_text()) * point
        if abs(there - x) < half + wide and abs(above - y) < line:
            y = above + line
    ax.text(
        x,
        y,
        text,
        size=size,
        color="white",
        ha="center",
        va="center",
        weight="bold",
        path_effects=[withStroke(linewidth=2.2, foreground="black")],
    )


def image_row(ax, image: np.ndarray, title: str = "", **kwargs) -> None:
    """One picture in one axis: no ticks, no frame."""
    ax.imshow(image, **kwargs)
    ax.set_title(title, pad=3)
    ax.set_xticks([])
    ax.set_yticks([])
    sns.despine(ax=ax, left=True, bottom=True)


def image_grid(
    images: list[np.ndarray], titles: list[str] | None = None, *, columns: int, size: float = 1.25
) -> Figure:
    """Pictures in a grid, each `size` inches."""
    rows = -(-len(images) // columns)
    height = size + (0.22 if titles else 0.04)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, rows * height), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for ax in axes.flat:
        ax.axis("off")
    for index, image in enumerate(images):
        image_row(axes.flat[index], image, titles[index] if titles else "")
        axes.flat[index].axis("on")
    return figure


def image_table(
    rows: list[list[np.ndarray]], *, columns: list[str], labels: list[str], size: float = 1.35
) -> Figure:
    """Rows of pictures with a heading for each column and a label for each row."""
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(len(columns) * size + 0.8, len(rows) * size + 0.3),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for line, (images, label) in enumerate(zip(rows, labels)):
        for ax, image, heading in zip(axes[line], images, columns):
            image_row(ax, image, heading if line == 0 else "")
        axes[line, 0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


def cases(
    values: Sequence[float] | np.ndarray,
    count: int,
    *,
    labels: tuple[str, str, str] = ("best", "median", "worst"),
) -> dict[str, list[int]]:
    """Which images to show: the best, those around the median, and the worst.

    Args:
        values: (n,), the larger the better; what is NaN is left out.
        count: Images of each kind; fewer where there are fewer.
        labels: Names of the three kinds.

    Returns:
        Label -> indices into `values`, each list from good to bad, ties in the given order.
    """
    values = np.asarray(values, np.float64)
    ranked = np.argsort(-values, kind="stable")[: np.isfinite(values).sum()]  # NaN comes last
    start = max(0, len(ranked) // 2 - count // 2)
    parts = (ranked[:count], ranked[start : start + count], ranked[max(0, len(ranked) - count) :])
    return {label: part.tolist() for label, part in zip(labels, parts, strict=True)}


def bars(
    values: dict[str, float],
    *,
    xlabel: str,
    highlight: str | None = None,
    xlim: float | None = None,
) -> Figure:
    """Horizontal bars with their values written at the end; `highlight` is drawn strong, the others
    pale.
    """
    figure, ax = plt.subplots(figsize=(6.2, 0.34 * len(values) + 0.8), layout="constrained")
    colours = [BLUE if name == highlight or highlight is None else "#9BB8C9" for name in values]
    drawn = ax.barh(list(values), list(values.values()), color=colours)
    ax.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
    ax.margins(y=0.5 / len(values))
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.set_xlim(0, xlim or max(values.values()) * 1.15)
    sns.despine(ax=ax)
    return figure


def dots(values: dict[str, list[float]], *, xlabel: str) -> Figure:
    """One row a name, one dot a value (a seed, say), and a bar at their mean."""
    figure, ax = plt.subplots(figsize=(6.2, 0.4 * len(values) + 0.9), layout="constrained")
    for row, points in enumerate(values.values()):
        ax.plot(points, np.full(len(points), row), "o", color=BLUE, alpha=0.5, markeredgewidth=0)
        ax.plot(np.mean(points), row, "|", color=RED, markersize=16, markeredgewidth=2)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    sns.despine(ax=ax)
    return figure


def intervals(effects: dict[str, tuple[float, float, float]], *, xlabel: str) -> Figure:
    """One row a name: (value, low, high) as a dot and a line; blue above zero, red below, grey
    across it.
    """
    figure, ax = plt.subplots(figsize=(6.2, 0.34 * len(effects) + 0.9), layout="constrained")
    for row, (value, low, high) in enumerate(effects.values()):
        colour = BLUE if low > 0 else RED if high < 0 else "0.5"
        ax.plot([low, high], [row, row], color=colour, lw=3, solid_capstyle="butt")
        ax.plot(value, row, "o", color=colour)
        ax.annotate(
            f"{value:+.3f}",
            (high, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.axvline(0, color="0.3", lw=1)
    ax.set_yticks(range(len(effects)), list(effects))
    ax.set_ylim(len(effects) - 0.5, -0.5)
    ax.margins(x=0.15)
    ax.set_xlabel(xlabel)
    sns.despine(ax=ax)
    return figure


def histogram(values: dict[str, np.ndarray], *, xlabel: str, ylabel: str, bins: int = 20) -> Figure:
    """Step histograms on [0, 1], one line a name, told apart by colour and by dash."""
    figure, ax = plt.subplots(figsize=(6.2, 2.8), layout="constrained")
    for (name, data), colour, dash in zip(
        values.items(), (BLUE, ORANGE, GREEN, RED), ("-", "--", ":", "-.")
    ):
        ax.hist(
            data,
            bins=np.linspace(0, 1, bins + 1),
            histtype="step",
            lw=2,
            color=colour,
            ls=dash,
            label=name,
        )
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    return figure


def count_heatmap(
    counts: np.ndarray, *, rows: list[str], columns: list[str], xlabel: str, ylabel: str
) -> Figure:
    """Row-normalised counts as a heat map; cells from 5 % are written out in per cent."""
    share = counts / counts.sum(1, keepdims=True).clip(1)
    size = (0.36 * len(columns) + 2.2, 0.27 * len(rows) + 1.4)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    text = np.where(share >= 0.05, np.char.mod("%.0f", share * 100), "")
    sns.heatmap(
        share,
        ax=ax,
        cmap="cividis",
        vmin=0,
        vmax=1,
        annot=text,
        fmt="",
        annot_kws={"size": 6.5},
        cbar=False,
        linewidths=0.3,
    )
    ax.set_xticklabels(columns, rotation=60, ha="right", fontsize=8)
    ax.set_yticklabels(rows, rotation=0, fontsize=8)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return figure


def curves(history: list[dict], panels: dict[str, list[str]], *, xlabel: str = "step") -> Figure:
    """Training curves: one panel for each {title: [keys of the history]}."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels), 2.6), squeeze=False, layout="constrained"
    )
    for ax, (title, keys) in zip(axes[0], panels.items()):
        for key, colour, dash in zip(keys, (BLUE, ORANGE, GREEN), ("-", "--", ":")):
            points = [(row["step"], row[key]) for row in history if key in row]
            ax.plot(*zip(*points), color=colour, ls=dash, lw=2, label=key.replace("_", " "))
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        if len(keys) > 1:
            ax.legend(frameon=False)
        sns.despine(ax=ax)
    return figure
