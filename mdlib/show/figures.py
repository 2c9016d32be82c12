"""Every plot, one style, one palette.

Colours are from Wong's colour-blind-safe set; line and order say the same.

Functions take arrays and return a matplotlib Figure; `Stage.figure` saves it. What there is none of
(pictures, rows, finite numbers) is left out of a figure, which is empty where nothing is left: a
drawing is never what a stage fails for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from scipy.ndimage import distance_transform_edt

from mdlib.core.colours import BLUE, GREEN, ORANGE, RED

# colour and dash of the first, second, third, fourth line of a plot
LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"), (RED, "-."))


@contextmanager
def plain_text() -> Iterator[None]:
    """Draw a name such as "$x$" as it is written; serves `with` and as a decorator."""
    with plt.rc_context({"text.parse_math": False}):
        yield


def set_style() -> None:
    """Set the one style of all figures; call once in a notebook's setup cell."""
    sns.set_theme(context="notebook", style="white", font_scale=0.85)
    plt.rcParams.update(
        {
            "axes.titlesize": 9,
            "figure.dpi": 90,
            "image.interpolation": "nearest",
            "svg.hashsalt": "mdlib",
            "text.parse_math": False,  # as in `plain_text`: no figure has a formula
        }
    )


def outline(
    ax: Axes,
    mask: np.ndarray,
    *,
    colour: str = "none",
    strength: float = 0.45,
    dashed: bool = False,
) -> None:
    """Draw the border of a mask into an axis that shows its picture.

    The border is white beside black, so it is seen in grey.

    Args:
        ax: shows the picture of the mask, in pixels.
        mask: (H, W) bool.
        colour: tint of the inside; "none" leaves it as it is.
        strength: opacity of the tint, in [0, 1].
        dashed: draw the black line dashed.
    """
    # a mask that ends at the picture's edge has a border there too
    around = np.pad(mask.astype(float), 1)
    x, y = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
    if colour != "none":
        ax.contourf(x, y, around, levels=[0.5, 1.5], colors=[colour], alpha=strength)
    for width, shade, dash in ((3.0, "white", "-"), (1.2, "black", "--" if dashed else "-")):
        ax.contour(x, y, around, levels=[0.5], colors=shade, linewidths=width, linestyles=dash)


def label_region(ax: Axes, mask: np.ndarray, text: str, *, size: float) -> None:
    """Write into an axis where a mask is thickest; an empty mask gets no text.

    The text is moved so that it stays in the picture and below earlier texts. It is white with a
    black border, so it can be read on any ground.

    Args:
        ax: shows the picture of the mask, in pixels.
        mask: (H, W) bool.
        text: one line.
        size: of the letters, in points.
    """
    if not mask.any():
        return
    height, width = mask.shape
    thickness = distance_transform_edt(np.pad(mask, 1))
    row, column = np.unravel_index(thickness.argmax(), thickness.shape)
    # one point (1/72 inch) in pixels of the picture
    point = width / (ax.get_position().width * _width_in_inches(ax) * 72)
    half, line = min(_half_width(text, size) * point, width / 2), 1.3 * size * point
    x = np.clip(column - 1, half, width - half)
    y = np.clip(row - 1, line / 2, height - line / 2)
    for other in sorted(ax.texts, key=lambda other: other.get_position()[1]):
        other_x, other_y = other.get_position()
        apart = half + _half_width(other.get_text(), size) * point
        if abs(other_x - x) < apart and abs(other_y - y) < line:
            y = other_y + line
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


def _width_in_inches(ax: Axes) -> float:
    """Width of the whole figure."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # an axis that is drawn has one
    return figure.get_figwidth()


def _half_width(text: str, size: float) -> float:
    """About half the width of bold text, in points."""
    return 0.34 * size * len(text)


def image_row(ax: Axes, image: np.ndarray, title: str = "", **kwargs: Any) -> None:
    """Show one picture in one axis, without ticks and frame.

    Args:
        ax: where to.
        image: as `Axes.imshow` takes it, such as (H, W, 3) uint8 or (H, W) float.
        title: above the picture.
        **kwargs: of `Axes.imshow`.
    """
    ax.imshow(image, **kwargs)
    ax.set_title(title, pad=3)
    ax.set_xticks([])
    ax.set_yticks([])
    sns.despine(ax=ax, left=True, bottom=True)


def image_grid(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    columns: int,
    size: float = 1.25,
) -> Figure:
    """Pictures in a grid, row by row.

    Args:
        images: each as `image_row` takes it.
        titles: one for each picture, or None.
        columns: pictures in a row.
        size: side of a picture, in inches.
    """
    columns = max(1, columns)
    rows = max(1, -(-len(images) // columns))
    height = size + (0.22 if titles else 0.04)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(columns * size, rows * height),
        squeeze=False,
        layout=_narrow_margins(),
    )
    for ax in axes.flat[len(images) :]:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles or [""] * len(images), strict=False):
        image_row(ax, image, title)
    return figure


def image_table(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    columns: Sequence[str],
    labels: Sequence[str],
    notes: Sequence[Sequence[str]] = (),
    size: float = 1.35,
) -> Figure:
    """Rows of pictures with a heading for each column and a label for each row.

    Args:
        rows: pictures, each as `image_row` takes it; a row may have fewer than there are columns,
            where a small data set has no more cases to show.
        columns: the headings.
        labels: one for each row.
        notes: a few letters for each picture of each row, written into its upper left corner; none:
            no picture has one.
        size: side of a picture, in inches.

    Raises:
        ValueError: for a row with more pictures than columns, or another number of labels.
    """
    if len(labels) != len(rows) or any(len(images) > len(columns) for images in rows):
        given = f"{len(rows)} rows of {[len(images) for images in rows]} pictures"
        raise ValueError(f"{len(labels)} labels and {len(columns)} columns for {given}")
    high, wide = max(1, len(rows)), max(1, len(columns))
    figure, axes = plt.subplots(
        high,
        wide,
        figsize=(wide * size + 0.8, high * size + 0.3),
        squeeze=False,
        layout=_narrow_margins(),
    )
    for ax in axes[len(rows) :].flat:
        ax.set_axis_off()
    for i, (images, label) in enumerate(zip(rows, labels, strict=True)):
        for j, image in enumerate(images):
            image_row(axes[i, j], image, columns[j] if i == 0 else "")
            if notes:
                _write_in_corner(axes[i, j], notes[i][j])
        for ax in axes[i, len(images) :]:
            ax.set_axis_off()
        axes[i, 0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


def _write_in_corner(ax: Axes, text: str) -> None:
    """White letters with a black border, so they can be read on any picture."""
    ax.text(
        0.04,
        0.95,
        text,
        transform=ax.transAxes,
        size=8,
        color="white",
        va="top",
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )


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


def _narrow_margins() -> ConstrainedLayoutEngine:
    """Pictures close beside each other."""
    return ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)


def bar_plot(
    values: dict[str, float],
    *,
    xlabel: str,
    highlight: str | None = None,
    xlim: float | None = None,
) -> Figure:
    """Horizontal bars, each with its value at the end.

    Args:
        values: {name: length}, from the top; a bar without a finite length is left out.
        xlabel: below the axis.
        highlight: name of the bar that is drawn strong, the others pale; None: all strong.
        xlim: end of the axis; None: a little more than the largest value.
    """
    values = {name: value for name, value in values.items() if np.isfinite(value)}
    figure, ax = plt.subplots(figsize=(6.2, 0.34 * len(values) + 0.8), layout="constrained")
    colours = [BLUE if name == highlight or highlight is None else "#9BB8C9" for name in values]
    drawn = ax.barh(list(values), list(values.values()), color=colours)
    ax.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
    ax.margins(y=0.5 / max(1, len(values)))
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.set_xlim(0, xlim or max(values.values(), default=0) * 1.15 or 1)
    sns.despine(ax=ax)
    return figure


def dot_plot(values: dict[str, list[float]], *, xlabel: str) -> Figure:
    """One row a name, one dot a value, and a bar at their mean.

    Args:
        values: {name: its values, such as one for each seed}, from the top; those that are not
            finite are left out.
        xlabel: below the axis.
    """
    figure, ax = plt.subplots(figsize=(6.2, 0.4 * len(values) + 0.9), layout="constrained")
    for row, each in enumerate(values.values()):
        points = [value for value in each if np.isfinite(value)]
        if not points:
            continue
        ax.plot(points, np.full(len(points), row), "o", color=BLUE, alpha=0.5, markeredgewidth=0)
        ax.plot(np.mean(points), row, "|", color=RED, markersize=16, markeredgewidth=2)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    sns.despine(ax=ax)
    return figure


def interval_plot(effects: dict[str, tuple[float, float, float]], *, xlabel: str) -> Figure:
    """One row a name: a value as a dot and its interval as a line.

    Intervals above zero are blue, those below red, those across it grey.

    Args:
        effects: {name: (value, low end, high end)}, from the top; one that is not finite is left
            out.
        xlabel: below the axis.
    """
    effects = {name: effect for name, effect in effects.items() if np.isfinite(effect).all()}
    figure, ax = plt.subplots(figsize=(6.2, 0.34 * len(effects) + 0.9), layout="constrained")
    _draw_intervals(ax, effects)
    ax.set_yticks(range(len(effects)), list(effects))
    ax.set_xlabel(xlabel)
    return figure


def interval_panels(
    panels: dict[str, dict[str, tuple[float, float, float]]], *, xlabel: str
) -> Figure:
    """As `interval_plot`, with a panel beside the other for each of several questions.

    Args:
        panels: {title: effects as of `interval_plot`}, with the same names in each.
        xlabel: below the panels.
    """
    names = list(next(iter(panels.values()), {}))
    size = (1.9 * max(1, len(panels)) + 1.4, 0.34 * len(names) + 1.1)
    figure, axes = plt.subplots(
        1, max(1, len(panels)), figsize=size, squeeze=False, sharex=True, layout="constrained"
    )
    for ax, (title, effects) in zip(axes[0], panels.items(), strict=False):
        _draw_intervals(ax, effects)
        ax.set_yticks(range(len(names)), names if ax is axes[0, 0] else [""] * len(names))
        ax.set_title(title)
    figure.supxlabel(xlabel, size="medium")
    return figure


def _draw_intervals(ax: Axes, effects: dict[str, tuple[float, float, float]]) -> None:
    """The rows of `interval_plot`; one that is not finite stays empty."""
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
    ax.set_ylim(len(effects) - 0.5, -0.5)
    ax.margins(x=0.15)
    sns.despine(ax=ax)


def heat_table(
    values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], xlabel: str
) -> Figure:
    """Numbers in [0, 1] as a shaded table, each written out.

    Args:
        values: (len(rows), len(columns)) in [0, 1].
        rows: names beside the table.
        columns: names below it.
        xlabel: below the column names.
    """
    size = (0.75 * len(columns) + 2.2, 0.32 * len(rows) + 0.9)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    if values.size:
        sns.heatmap(
            values,
            ax=ax,
            cmap="cividis",
            vmin=0,
            vmax=1,
            annot=True,
            fmt=".2f",
            cbar=False,
            linewidths=0.5,
            xticklabels=list(columns),
            yticklabels=list(rows),
        )
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=0)
    ax.set_xlabel(xlabel)
    return figure


def histogram(values: dict[str, np.ndarray], *, xlabel: str, ylabel: str, bins: int = 20) -> Figure:
    """Step histograms on [0, 1], one line a name, told apart by colour and by dash.

    Args:
        values: {name: (n,) values in [0, 1]}, at most four names.
        xlabel: below the axis.
        ylabel: beside the axis.
        bins: how many of equal width.
    """
    figure, ax = plt.subplots(figsize=(6.2, 2.8), layout="constrained")
    for (name, data), (colour, dash) in zip(values.items(), LINES, strict=False):
        ax.hist(
            data,
            bins=np.linspace(0, 1, bins + 1).tolist(),
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
    """Row-normalised counts as a heat map; cells from 5 % are written out in per cent.

    Args:
        counts: (len(rows), len(columns)) counts, at least 0.
        rows: names beside the map.
        columns: names below the map.
        xlabel: below the column names.
        ylabel: beside the row names.
    """
    share = (counts / counts.sum(1, keepdims=True).clip(1)).reshape(len(rows), len(columns))
    size = (0.36 * len(columns) + 2.2, 0.27 * len(rows) + 1.4)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    text = np.where(share >= 0.05, np.char.mod("%.0f", share * 100), "")
    if share.size:
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


def training_curves(
    history: list[dict], panels: dict[str, list[str]], *, xlabel: str = "step"
) -> Figure:
    """Training curves, one panel beside the other.

    Args:
        history: one {"step": number, key: value, ...} for each step that was logged; a key need
            not stand in every one.
        panels: {title: keys of the history that are drawn there}, at most four keys each.
        xlabel: below each panel.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels), 2.6), squeeze=False, layout="constrained"
    )
    for ax, (title, keys) in zip(axes[0], panels.items(), strict=True):
        for key, (colour, dash) in zip(keys, LINES, strict=False):
            rows = [row for row in history if key in row]
            steps, values = [row["step"] for row in rows], [row[key] for row in rows]
            ax.plot(steps, values, color=colour, ls=dash, lw=2, label=key.replace("_", " "))
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        if len(keys) > 1:
            ax.legend(frameon=False)
        sns.despine(ax=ax)
    return figure
