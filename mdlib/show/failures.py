"""The clearest case of each kind of failure that a run has on val, for slides.

A rule yields the failures of one kind in one picture, each with a measure; the one with the largest
measure is shown. Nothing is chosen by hand, and no picture is shown twice. The headings name the
stage in which it goes wrong.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import binary_opening

from mdlib.core.colours import ORANGE, SKY
from mdlib.core.mask import Mask
from mdlib.data import Instances
from mdlib.evaluate import metrics
from mdlib.method import pseudo_labels
from mdlib.show import figures
from mdlib.show.outcome import Outcome
from mdlib.show.slides import SLIDE

IOU_RIGHT = 0.5  # IoU from which on a mask counts as right, as in COCO
THIN_SHARE = 0.06  # of the picture's shorter side: a part narrower than this is thin
MIN_LOST = 0.01  # share of an object that must be lost to be seen
COLUMNS = 3


class Look(TypedDict, total=False):
    """How a mark is drawn: keywords of `figures.outline`."""

    colour: str
    strength: float
    dashed: bool


STYLES: dict[str, Look] = {
    "found": {"colour": ORANGE},
    "true": {"colour": SKY},
    "dropped": {"dashed": True},
    "lost": {"colour": "black", "strength": 1.0},
}


@dataclass(frozen=True)
class Region:
    """A region of a picture that is drawn over it.

    Attributes:
        mask: (H, W) bool.
        text: what is written into it.
        look: a key of LOOKS.
    """

    mask: np.ndarray
    text: str = ""
    look: str = "found"


@dataclass(frozen=True)
class Failure:
    """A picture in which something went wrong.

    Attributes:
        measure: the larger, the clearer.
        heading: number of the stage, and the kind.
        words: the cause, with its numbers.
        image: (H, W, 3) uint8 RGB.
        said: what the stage says.
        true: the objects.
    """

    measure: float
    heading: str
    words: str
    image: np.ndarray
    said: list[Region]
    true: list[Region]


@dataclass(frozen=True)
class FoundMasks:
    """The decoded masks of one picture.

    Attributes:
        pixels: (n, H, W) bool.
        clusters: (n,) int64.
        scores: (n,) float64.
    """

    pixels: np.ndarray
    clusters: np.ndarray
    scores: np.ndarray

    @classmethod
    def decode(cls, masks: list[Mask], image_hw: tuple[int, int]) -> "FoundMasks":
        """The masks of a picture of (H, W) pixels; each has a cluster."""
        return cls(*pseudo_labels.stack_masks(masks, image_hw))

    def __iter__(self) -> Iterator[tuple[np.ndarray, int, float]]:
        """(pixels, cluster, score) of each mask."""
        return zip(self.pixels, self.clusters.tolist(), self.scores.tolist(), strict=True)


@dataclass(frozen=True)
class Picture:
    """A val picture of a run, as the rules see it: each part is decoded once, when it is needed.

    Attributes:
        run: what the stages of the run say of val.
        index: of the picture in val.
    """

    run: Outcome
    index: int

    @cached_property
    def objects(self) -> Instances:
        """The true objects."""
        return self.run.val.instances(self.index)

    @cached_property
    def masks(self) -> FoundMasks:
        """Stage 1's masks."""
        return FoundMasks.decode(self.run.masks[self.index], self.run.val.size(self.index))

    @cached_property
    def predictions(self) -> FoundMasks:
        """The detector's masks."""
        return FoundMasks.decode(self.run.predictions[self.index], self.run.val.size(self.index))

    def class_of(self, cluster: int) -> int:
        """The class that a cluster is named after; -1 without one."""
        return int(self.run.cluster_to_class[1 + cluster])

    def failure(self, measure: float, heading: str, words: str, said: list[Region]) -> Failure:
        """A failure in this picture; for the arguments see `Failure`."""
        true = [
            Region(mask, self.run.classes[label], "true")
            for mask, label in zip(self.objects.masks, self.objects.labels, strict=True)
        ]
        image = self.run.val.image(self.index)
        return Failure(float(measure), heading, words, image, said, true)

    def regions(self, labels: np.ndarray) -> list[Region]:
        """A mark for each class in a (H, W) map of classes."""
        return [Region(labels == c, self.run.classes[c]) for c in np.setdiff1d(labels, [0])]


# ---------------------------------------------------------------- rules


def _poor(picture: Picture) -> Iterator[Failure]:
    """01: even the best mask fits no object, nor those mostly inside it together; by 1 - IoU."""
    objects, found = picture.objects, picture.masks.pixels
    if not len(found) or not len(objects.labels):
        return
    fits = []
    for mask in found:
        meant = _share_inside(objects.masks, mask) > IOU_RIGHT
        meant[metrics.best_overlap(mask, objects.masks)[1]] = True
        region = np.any(objects.masks[meant], axis=0)
        iou = metrics.mask_iou(mask[None], region[None]).item()
        held = (mask & region).sum() / region.sum()
        fits.append((iou, held, (mask & ~region).sum() / mask.sum()))
    iou, held, outside = max(fits)
    if iou >= IOU_RIGHT:
        return
    if outside > IOU_RIGHT:
        heading = "01  a mask off the object"
        words = (
            f"{outside:.0%} of the best mask is off the object (IoU {iou:.2f}): "
            "to the keys, that is object, too."
        )
    else:
        heading = "01  a mask of a part"
        words = (
            f"The best mask holds {held:.0%} of its object (IoU {iou:.2f}): "
            "to the keys, the rest is something else."
        )
    yield picture.failure(1 - iou, heading, words, [Region(mask) for mask in found])


def _merged(picture: Picture) -> Iterator[Failure]:
    """01: a mask with more than half of two objects; by its IoU with both together."""
    objects, classes = picture.objects, picture.run.classes
    if len(objects.labels) < 2:
        return
    for mask in picture.masks.pixels:
        held = _share_inside(objects.masks, mask)
        a, b = np.argsort(-held, kind="stable")[:2]
        both = objects.masks[a] | objects.masks[b]
        iou = metrics.mask_iou(mask[None], both[None]).item()
        if held[b] > IOU_RIGHT and iou > IOU_RIGHT:
            first, second = classes[objects.labels[a]], classes[objects.labels[b]]
            words = (
                f"One mask holds {held[a]:.0%} of the {first}, {held[b]:.0%} of the {second}: "
                "their keys agree, and no seam was cut."
            )
            yield picture.failure(iou, "01  two in one mask", words, [Region(mask)])


def _misnamed(picture: Picture) -> Iterator[Failure]:
    """02: a mask that fits its object, in a cluster named after another class; by IoU."""
    objects, classes = picture.objects, picture.run.classes
    for mask, cluster, _ in picture.masks:
        iou, which = metrics.best_overlap(mask, objects.masks)
        named = picture.class_of(cluster)
        if iou >= IOU_RIGHT and named > 0 and named != objects.labels[which]:
            words = (
                f"The {classes[objects.labels[which]]}'s mask is good (IoU {iou:.2f}), "
                f"but nearest to cluster {cluster}, named {classes[named]}."
            )
            marks = [Region(mask, classes[named])]
            yield picture.failure(iou, "02  a wrong name", words, marks)


def _sure(picture: Picture) -> Iterator[Failure]:
    """03: a prediction that the filter believes and that fits no object; by its score."""
    threshold = picture.run.filter_rule["threshold"]
    for mask, cluster, score in picture.predictions:
        iou, _ = metrics.best_overlap(mask, picture.objects.masks)
        if iou < IOU_RIGHT and score >= threshold:
            named = picture.class_of(cluster)
            name = picture.run.classes[named] if named > 0 else f"cluster {cluster}"
            words = (
                f"Score {score:.2f}, but no object fits (best IoU {iou:.2f}): "
                "the masks it learned from have such errors."
            )
            yield picture.failure(score, "03  sure and wrong", words, [Region(mask, name)])


def _dropped(picture: Picture) -> Iterator[Failure]:
    """04: a right prediction that the filter drops, with most of its object; by IoU."""
    objects, found, rule = picture.objects, picture.predictions, picture.run.filter_rule
    kept = picture.run.named(
        pseudo_labels.label_map(found.pixels, found.clusters, found.scores, **rule)
    )
    for mask, cluster, score in found:
        iou, which = metrics.best_overlap(mask, objects.masks)
        label = objects.labels[which] if iou >= IOU_RIGHT else -1
        if (
            label == picture.class_of(cluster)
            and (kept == label)[objects.masks[which]].mean() < IOU_RIGHT
        ):
            why = "another mask overlaps it"
            if score < rule["threshold"]:
                why = f"its score, {score:.2f}, is below {rule['threshold']:g}"
            words = (
                f"The {picture.run.classes[label]} was found (IoU {iou:.2f}) and left out: {why}."
            )
            marks = [*picture.regions(kept), Region(mask, "dropped", "dropped")]
            yield picture.failure(iou, "04  a true object dropped", words, marks)


def _smoothed(picture: Picture) -> Iterator[Failure]:
    """06: an object stays and loses thin parts that were right before the CRF; by their share."""
    run, objects, refined = picture.run, picture.objects, picture.run.refined(picture.index)
    if refined is None:
        return
    before, after = run.named(run.final(picture.index)), run.named(refined)
    for mask, label in zip(objects.masks, objects.labels, strict=True):
        width = max(1, round(THIN_SHARE / 2 * min(mask.shape)))
        thin = mask & ~binary_opening(mask, np.ones((3, 3)), iterations=width)
        had = thin & (before == label)
        lost = had & (after != label)
        if lost.sum() > MIN_LOST * mask.sum() and (after == label)[mask & ~thin].mean() > IOU_RIGHT:
            words = (
                f"{lost.sum() / had.sum():.0%} of the {run.classes[label]}'s thin parts go "
                "(black): few pixels lose against many neighbours."
            )
            marks = [*picture.regions(after), Region(lost, "", "lost")]
            share = lost.sum() / mask.sum()
            yield picture.failure(share, "06  a thin part smoothed away", words, marks)


RULES: dict[str, Callable[[Picture], Iterator[Failure]]] = {
    "a poor mask": _poor,
    "two in one mask": _merged,
    "a wrong name": _misnamed,
    "sure and wrong": _sure,
    "a true object dropped": _dropped,
    "a thin part smoothed away": _smoothed,
}


def find(run: Outcome) -> dict[str, Failure | None]:
    """The clearest failure of each kind.

    The kinds choose one after the other, in the order of RULES, and a picture is shown once. Only
    the measures are kept on the way; the failures that were chosen are then made again.

    Returns:
        {kind: failure}; None where val has none in a picture that is still free.
    """
    measures: dict[str, dict[int, float]] = {kind: {} for kind in RULES}
    for i in range(len(run.val)):
        picture = Picture(run, i)
        for kind, rule in RULES.items():
            cases = [failure.measure for failure in rule(picture)]
            if cases:
                measures[kind][i] = max(cases)
    found: dict[str, Failure | None] = {}
    taken: set[int] = set()
    for kind, rule in RULES.items():
        free = [i for i in measures[kind] if i not in taken]
        if not free:
            found[kind] = None
            continue
        clearest = max(free, key=measures[kind].__getitem__)
        taken.add(clearest)
        found[kind] = max(rule(Picture(run, clearest)), key=lambda failure: failure.measure)
    return found


def _share_inside(masks: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(n,): the share of each mask (n, H, W) bool in a region (H, W); 0 for an empty mask."""
    return (masks & region).sum((1, 2)) / masks.sum((1, 2)).clip(1)


# ---------------------------------------------------------------- figure


@figures.plain_text()
def failures_figure(found: Mapping[str, Failure | None]) -> Figure:
    """A block for each failure: the picture, what the stage says, the truth.

    The heading stands above a block, the cause below it.

    Args:
        found: {kind: failure, or None where the run has none}.

    Raises:
        ValueError: where there is no failure at all.
    """
    shown = [failure for failure in found.values() if failure]
    if not shown:
        raise ValueError("there is no failure to show")
    rows = -(-len(shown) // COLUMNS)
    figure = plt.figure(figsize=(SLIDE, 2.65 * rows))
    blocks = figure.add_gridspec(
        rows,
        COLUMNS,
        left=0.005,
        right=0.995,
        top=1 - 0.24 / rows,
        bottom=0.27 / rows,
        wspace=0.07,
        hspace=0.85,
    )
    for number, failure in enumerate(shown):
        block = blocks[divmod(number, COLUMNS)].subgridspec(1, 3, wspace=0.05)
        axes = [figure.add_subplot(block[0, column]) for column in range(3)]
        _draw(axes[0], failure.image, [], title="picture")
        _draw(axes[1], failure.image, failure.said, title="the stage says")
        _draw(axes[2], failure.image, failure.true, title="true")
        _annotate(axes[0], failure)
    none = [kind for kind, failure in found.items() if failure is None]
    if none:
        figure.text(0.005, 0, f"Not found in this run: {', '.join(none)}.", fontsize=12, va="top")
    return figure


def describe(found: Mapping[str, Failure | None]) -> str:
    """The figure in words, for those who do not see it."""
    shown = [f"{failure.heading}. {failure.words}" for failure in found.values() if failure]
    none = "".join(f" Not found: {kind}." for kind, failure in found.items() if failure is None)
    return (
        f"{len(shown)} failures of a run, each as picture, what the stage says, and truth. "
        f"{' '.join(shown)}{none}"
    )


def _draw(ax: Axes, image: np.ndarray, marks: list[Region], *, title: str) -> None:
    """A picture with marks over it."""
    ax.imshow(image, interpolation="none")  # the SVG holds its own pixels
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, fontsize=11, loc="left", pad=3)
    for mark in marks:
        figures.outline(ax, mark.mask, **STYLES[mark.look])
    for mark in marks:  # above all borders
        figures.label_region(ax, mark.mask, mark.text, size=10)


def _annotate(ax: Axes, failure: Failure) -> None:
    """The heading above an axis, the cause below it."""
    ax.annotate(
        failure.heading,
        (0, 1),
        xytext=(0, 20),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=15,
        fontweight="bold",
    )
    ax.annotate(
        textwrap.fill(failure.words, 47),
        (0, 0),
        xytext=(0, -6),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=12,
    )
