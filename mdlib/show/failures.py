"""What goes wrong, and in which stage: the clearest case of each kind of failure that a run has on
val, for slides.

A rule yields the failures of one kind in one picture, each with a measure; the one with the largest
measure is shown. Nothing is chosen by hand, and no picture stands there twice.
"""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import binary_opening

from mdlib.core.colours import ORANGE, SKY
from mdlib.evaluate import metrics
from mdlib.show import figures
from mdlib.show.outcome import Outcome
from mdlib.show.slides import SLIDE

HALF = 0.5  # IoU from which on a mask counts as right, as in COCO
THIN = 0.06  # of the picture's shorter side: a part narrower than this is thin
LEAST = 0.01  # share of an object that must be lost to be seen
COLUMNS = 3
LOOKS = {
    "found": {"colour": ORANGE},
    "true": {"colour": SKY},
    "dropped": {"dashed": True},
    "lost": {"colour": "black", "strength": 1.0},
}


@dataclass(frozen=True)
class Mark:
    """A region (H, W) bool of the picture and what is written into it; how it looks: a key of
    LOOKS.
    """

    mask: np.ndarray
    text: str = ""
    look: str = "found"


@dataclass(frozen=True)
class Failure:
    """A picture where something went wrong. measure: the larger, the clearer; words: the cause,
    with its numbers.
    """

    measure: float
    heading: str
    words: str
    image: np.ndarray
    said: list[Mark]
    true: list[Mark]


# ---------------------------------------------------------------- rules


def _poor(run: Outcome, i: int) -> Iterator[Failure]:
    """01: even the best mask fits neither an object nor those that are mostly inside it. measure: 1
    - IoU.
    """
    true = run.val.instances(i)
    if not run.masks[i] or not len(true.labels):
        return
    fits = []
    for mask in (found.pixels() for found in run.masks[i]):
        meant = _share_inside(true.masks, mask) > HALF
        meant[metrics.best_overlap(mask, true.masks)[1]] = True
        region = true.masks[meant].any(0)
        fits.append(
            (
                metrics.mask_iou(mask[None], region[None]).item(),
                (mask & region).sum() / region.sum(),
                (mask & ~region).sum() / mask.sum(),
            )
        )
    iou, held, outside = max(fits)
    if iou < HALF:
        heading, words = (
            "01  a mask of a part",
            f"The best mask holds {held:.0%} of its object (IoU {iou:.2f}): to the keys, the rest is something else.",
        )
        if outside > HALF:
            heading, words = (
                "01  a mask off the object",
                f"{outside:.0%} of the best mask is off the object (IoU {iou:.2f}): to the keys, that is object, too.",
            )
        yield _failure(
            run, i, 1 - iou, heading, words, [Mark(found.pixels()) for found in run.masks[i]]
        )


def _merged(run: Outcome, i: int) -> Iterator[Failure]:
    """01: a mask with more than half of two objects. measure: IoU with both together."""
    true = run.val.instances(i)
    for found in run.masks[i] if len(true.labels) > 1 else ():
        held = _share_inside(true.masks, found.pixels())
        a, b = np.argsort(-held, kind="stable")[:2]
        iou = metrics.mask_iou(found.pixels()[None], (true.masks[a] | true.masks[b])[None]).item()
        if held[b] > HALF and iou > HALF:
            first, second = run.classes[true.labels[a]], run.classes[true.labels[b]]
            words = f"One mask holds {held[a]:.0%} of the {first}, {held[b]:.0%} of the {second}: their keys agree, and no seam was cut."
            yield _failure(run, i, iou, "01  two in one mask", words, [Mark(found.pixels())])


def _misnamed(run: Outcome, i: int) -> Iterator[Failure]:
    """02: a mask that fits its object, in a cluster of another name. measure: IoU."""
    true = run.val.instances(i)
    for found in run.masks[i]:
        (iou, which), name = (
            metrics.best_overlap(found.pixels(), true.masks),
            run.cluster_to_class[1 + found.cluster],
        )
        if iou >= HALF and name > 0 and name != true.labels[which]:
            words = f"The {run.classes[true.labels[which]]}'s mask is good (IoU {iou:.2f}), but nearest to cluster {found.cluster}, named {run.classes[name]}."
            yield _failure(
                run, i, iou, "02  a wrong name", words, [Mark(found.pixels(), run.classes[name])]
            )


def _sure(run: Outcome, i: int) -> Iterator[Failure]:
    """03: a prediction that the filter believes and that fits no object. measure: its score."""
    for found in run.predictions[i]:
        iou, _ = metrics.best_overlap(found.pixels(), run.val.instances(i).masks)
        if iou < HALF and found.score >= run.filter_rule["threshold"]:
            name = run.cluster_to_class[1 + found.cluster]
            said = run.classes[name] if name > 0 else f"cluster {found.cluster}"
            words = f"Score {found.score:.2f}, but no object fits (best IoU {iou:.2f}): the masks it learned from have such errors."
            yield _failure(
                run, i, found.score, "03  sure and wrong", words, [Mark(found.pixels(), said)]
            )


def _dropped(run: Outcome, i: int) -> Iterator[Failure]:
    """04: a right prediction that the filter leaves out, and most of its object with it. measure:
    IoU.
    """
    true, kept, threshold = (
        run.val.instances(i),
        run.named(run.filtered(i)),
        run.filter_rule["threshold"],
    )
    for found in run.predictions[i]:
        iou, which = metrics.best_overlap(found.pixels(), true.masks)
        label = true.labels[which] if iou >= HALF else -1
        if (
            label == run.cluster_to_class[1 + found.cluster]
            and (kept == label)[true.masks[which]].mean() < HALF
        ):
            why = (
                f"its score, {found.score:.2f}, is below {threshold:g}"
                if found.score < threshold
                else "another mask overlaps it"
            )
            words = f"The {run.classes[label]} was found (IoU {iou:.2f}) and left out: {why}."
            yield _failure(
                run,
                i,
                iou,
                "04  a true object dropped",
                words,
                [*_regions(run, kept), Mark(found.pixels(), "dropped", "dropped")],
            )


def _smoothed(run: Outcome, i: int) -> Iterator[Failure]:
    """06: an object that stays, with thin parts that were right before the CRF and are not after
    it. measure: their share of it.
    """
    true, refined = run.val.instances(i), run.refined(i)
    if refined is None:
        return
    before, after = run.named(run.final(i)), run.named(refined)
    for mask, label in zip(true.masks, true.labels):
        thin = mask & ~binary_opening(
            mask, np.ones((3, 3)), iterations=max(1, round(THIN / 2 * min(mask.shape)))
        )
        had = thin & (before == label)
        lost = had & (after != label)
        if lost.sum() > LEAST * mask.sum() and (after == label)[mask & ~thin].mean() > HALF:
            words = f"{lost.sum() / had.sum():.0%} of the {run.classes[label]}'s thin parts go (black): few pixels lose against many neighbours."
            yield _failure(
                run,
                i,
                lost.sum() / mask.sum(),
                "06  a thin part smoothed away",
                words,
                [*_regions(run, after), Mark(lost, "", "lost")],
            )


RULES: dict[str, Callable[[Outcome, int], Iterator[Failure]]] = {
    "a poor mask": _poor,
    "two in one mask": _merged,
    "a wrong name": _misnamed,
    "sure and wrong": _sure,
    "a true object dropped": _dropped,
    "a thin part smoothed away": _smoothed,
}


def find(run: Outcome) -> dict[str, Failure | None]:
    """The clearest failure of each kind in RULES; None where val has none in a picture that is not
    taken yet.
    """
    found, taken = {}, set()
    for kind, rule in RULES.items():
        cases = (
            (failure, i) for i in range(len(run.val)) if i not in taken for failure in rule(run, i)
        )
        found[kind], where = max(cases, key=lambda case: case[0].measure, default=(None, None))
        taken.add(where)
    return found


def _failure(
    run: Outcome, i: int, measure: float, heading: str, words: str, said: list[Mark]
) -> Failure:
    true = run.val.instances(i)
    truth = [Mark(mask, run.classes[label], "true") for mask, label in zip(true.masks, true.labels)]
    return Failure(float(measure), heading, words, run.val.image(i), said, truth)


def _share_inside(masks: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The share of each mask (n, H, W) bool that lies in a region (H, W): (n,), 0 for an empty one."""
    return (masks & region).sum((1, 2)) / masks.sum((1, 2)).clip(1)


def _regions(run: Outcome, labels: np.ndarray) -> list[Mark]:
    return [Mark(labels == c, run.classes[c]) for c in np.setdiff1d(labels, [0])]


# ---------------------------------------------------------------- figure


def failures_figure(found: dict[str, Failure | None]) -> Figure:
    """A block for each failure: the picture, what the stage said, the truth; a heading above, the
    cause below.

    Raises ValueError where there is no failure at all.
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
    for block, failure in zip(blocks, shown):
        axes = [figure.add_subplot(cell) for cell in block.subgridspec(1, 3, wspace=0.05)]
        for ax, title, marks in zip(
            axes, ("picture", "the stage says", "true"), ([], failure.said, failure.true)
        ):
            ax.imshow(failure.image, interpolation="none")  # the SVG holds its own pixels
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(title, fontsize=11, loc="left", pad=3)
            for mark in marks:
                figures.outline(ax, mark.mask, **LOOKS[mark.look])
            for mark in marks:  # above all borders
                figures.write_inside(ax, mark.mask, mark.text, size=10)
        axes[0].annotate(
            failure.heading,
            (0, 1),
            xytext=(0, 20),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=15,
            fontweight="bold",
        )
        words = textwrap.fill(failure.words, 47)
        axes[0].annotate(
            words,
            (0, 0),
            xytext=(0, -6),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=12,
        )
    none = [kind for kind, failure in found.items() if failure is None]
    if none:
        figure.text(0.005, 0, f"Not found in this run: {', '.join(none)}.", fontsize=12, va="top")
    return figure


def describe(found: dict[str, Failure | None]) -> str:
    """The figure in words, for those who do not see it."""
    shown = [f"{failure.heading}. {failure.words}" for failure in found.values() if failure]
    none = "".join(f" Not found: {kind}." for kind, failure in found.items() if failure is None)
    return f"{len(shown)} failures of a run, each as picture, what the stage says, and truth. {' '.join(shown)}{none}"
