"""The checks of the exercises: a right function passes, a wrong one is shown the small input on
which it differs.
"""

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco

from mdlib import exercises
from mdlib.exercises.compare import Mismatch, compare
from mdlib.training.pretrain import info_nce

CHECKS = {name: check for name, check in vars(exercises).items() if name.startswith("check_")}


# ---------------------------------------------------------------- right ones, as a student would write them


def mask_to_box(mask):
    y, x = np.nonzero(mask)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def diffuse(keys, candidates):
    chosen = keys[candidates]
    return keys @ chosen[chosen @ chosen[0] > 0].sum(0)


def kmeans_step(z, centres):
    nearest = ((z[:, None] - centres) ** 2).sum(-1).argmin(1)
    return np.stack(
        [
            z[nearest == j].mean(0) if (nearest == j).any() else centres[j]
            for j in range(len(centres))
        ]
    )


def mirror_boxes(boxes, width):
    x0, y0, x1, y1 = boxes.T
    return np.stack([width - x1, y0, width - x0, y1], 1)


def calibration_error(scores, right, bins):
    which = np.minimum((scores * bins).astype(int), bins - 1)
    return sum(
        (which == b).mean() * abs(right[which == b].mean() - scores[which == b].mean())
        for b in np.unique(which)
    )


def hardest_loss(logits, labels, share):
    losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")[labels != -1]
    return losses.sort(descending=True).values[: max(1, int(share * len(losses)))].mean()


def mean_field_step(unary, kernel, q):
    q = np.exp(-unary + kernel @ q)
    return q / q.sum(1, keepdims=True)


def class_iou(confusion, names):
    classes = confusion.shape[1]
    named = np.stack([confusion[names == c].sum(0) for c in range(classes)])
    hits = named.diagonal()
    union = named.sum(1) + confusion.sum(0) - hits
    return np.array([h / u if u else np.nan for h, u in zip(hits, union, strict=True)])


def probe_gradient(features, weight, bias, labels):
    error = (features @ weight.T + bias).softmax(1) - F.one_hot(labels, len(weight))
    return error.T @ features / len(features)


def average_precision(scores, hits, positives):
    hits = hits[np.argsort(-scores, kind="stable")]
    recall, precision = hits.cumsum() / positives, hits.cumsum() / np.arange(1, len(hits) + 1)
    return np.mean([max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)])


def interaction(prior_dev, prior_val, ours_dev, ours_val):
    def drop(dev, val):
        return (val[dev.mean(1).argmax()] - val[dev.mean(1).argmin()]).mean()

    return drop(prior_dev, prior_val) - drop(ours_dev, ours_val)


def resampled_gains(a, b, drawn):
    def mious(areas):
        summed = areas[drawn].sum(1)  # (R, 3, C)
        return np.array([np.mean(h[t > 0] / u[t > 0]) for h, u, t in summed])

    return mious(a) - mious(b)


def object_agreement(named, target):
    seen = (np.maximum(named, target) > 0) & (target < 255)
    return np.mean(named[seen] == target[seen]) if seen.any() else 1


def crossed_error(difference):
    parts = [
        (means.var(ddof=1) / len(means), len(means) - 1)
        for means in (difference.mean(1), difference.mean(0))
    ]
    variance = sum(part for part, _ in parts)
    return variance**0.5, variance**2 / sum(part**2 / free for part, free in parts)


def loss_without_twins(q, k, names, temperature):
    twins = torch.tensor(
        [[a == b and i != j for j, b in enumerate(names)] for i, a in enumerate(names)]
    )
    logits = (q @ k.T / temperature).masked_fill(twins, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(q)))


def run_lengths(mask):
    lengths, full = [0], False
    for pixel in mask.flatten(order="F"):
        if pixel != full:
            lengths, full = [*lengths, 0], pixel
        lengths[-1] += 1
    return lengths


RIGHT = {
    f"check_{f.__name__}": f
    for f in (
        mask_to_box,
        diffuse,
        kmeans_step,
        mirror_boxes,
        calibration_error,
        hardest_loss,
        mean_field_step,
        class_iou,
        probe_gradient,
        average_precision,
        interaction,
        resampled_gains,
        object_agreement,
        crossed_error,
        loss_without_twins,
        run_lengths,
    )
}

# Each a mistake that a student really makes: (check, the wrong function, the title of the input
# that must show it).
WRONG = [
    # inclusive
    (
        "check_mask_to_box",
        lambda m: tuple(v - d for v, d in zip(mask_to_box(m), (0, 0, 1, 1), strict=True)),
        "the whole picture",
    ),
    ("check_mask_to_box", lambda m: mask_to_box(m.T), "the whole picture"),  # rows for columns
    # every candidate a source
    ("check_diffuse", lambda k, c: k @ k[c].sum(0), "a candidate that does not look like the seed"),
    # the seed alone
    ("check_diffuse", lambda k, c: k @ k[c[0]], "a candidate that does not look like the seed"),
    (
        "check_kmeans_step",
        lambda z, c: np.stack(
            [z[((z[:, None] - c) ** 2).sum(-1).argmin(1) == j].mean(0) for j in range(len(c))]
        ),
        "a centre without a point",
    ),
    # ends swapped
    (
        "check_mirror_boxes",
        lambda b, w: np.stack([w - b[:, 0], b[:, 1], w - b[:, 2], b[:, 3]], 1),
        "a box at the left",
    ),
    # inclusive ends
    ("check_mirror_boxes", lambda b, w: mirror_boxes(b, w - 1), "a box at the left"),
    # no bins
    (
        "check_calibration_error",
        lambda s, r, b: abs(s.mean() - r.mean()),
        "errors that would cancel",
    ),
    (
        "check_calibration_error",
        lambda s, r, b: calibration_error(s, r, b) * 2,
        "surer than it should be",
    ),
    # plain cross-entropy
    (
        "check_hardest_loss",
        lambda x, y, s: F.cross_entropy(x, y, ignore_index=255),
        "two void pixels",
    ),
    (
        "check_hardest_loss",
        lambda x, y, s: (
            F.cross_entropy(x, y, reduction="none", ignore_index=255)
            .flatten()
            .topk(max(1, int(s * y.numel())))
            .values.mean()
        ),
        "two void pixels",
    ),
    # not normalised
    ("check_mean_field_step", lambda u, k, q: np.exp(-u + k @ q), "four pixels in a row"),
    (
        "check_mean_field_step",
        lambda u, k, q: mean_field_step(u, k, np.exp(-u)),
        "another q than the network's",
    ),
    # names unread
    (
        "check_class_iou",
        lambda m, n: np.diagonal(m) / (m.sum(0) + m.sum(1) - np.diagonal(m)),
        "two rows with one name",
    ),
    ("check_class_iou", lambda m, n: np.nan_to_num(class_iou(m, n)), "a class that never occurs"),
    # sum for mean
    ("check_probe_gradient", lambda f, w, b, y: probe_gradient(f, w, b, y) * len(f), "five cells"),
    # not sorted
    (
        "check_average_precision",
        lambda s, h, p: average_precision(-np.arange(len(s)), h, p),
        "a miss on top",
    ),
    (
        "check_average_precision",
        lambda s, h, p: average_precision(s, h, max(1, h.sum())),
        "objects never found",
    ),
    # chosen on val
    (
        "check_interaction",
        lambda _, prior, __, ours: np.ptp(prior.mean(1)) - np.ptp(ours.mean(1)),
        "val has another best and another worst",
    ),
    # without ours
    (
        "check_interaction",
        lambda dev, val, *_: (val[dev.mean(1).argmax()] - val[dev.mean(1).argmin()]).mean(),
        "a prior that falls further",
    ),
    # divides first
    (
        "check_resampled_gains",
        lambda a, b, d: np.diff(
            [(x[:, 0] / x[:, 1].clip(1))[d].mean((1, 2)) for x in (b, a)], axis=0
        )[0],
        "each picture once",
    ),
    (
        "check_resampled_gains",
        lambda a, b, d: np.concatenate([resampled_gains(a, b, np.unique(row)[None]) for row in d]),
        "a picture drawn twice",
    ),
    # each arm over the classes that it or the truth has
    (
        "check_resampled_gains",
        lambda a, b, d: np.diff(
            [
                [np.mean(h[u > 0] / u[u > 0]) for h, u, _ in x[d].sum(1).astype(float)]
                for x in (b, a)
            ],
            axis=0,
        )[0],
        "a stray pixel of a class that was not drawn",
    ),
    # accuracy of all pixels
    ("check_object_agreement", lambda n, t: np.mean(n == t), "half of the cat"),
    ("check_object_agreement", lambda n, t: np.mean((n == t)[t > 0]), "a dog where nothing is"),
    ("check_object_agreement", lambda n, t: np.mean((n == t)[(n > 0) | (t > 0)]), "a void border"),
    (
        "check_object_agreement",
        lambda n, t: object_agreement(n, t) if n.any() else 0,
        "nothing to see",
    ),
    # all entries as if they were independent
    (
        "check_crossed_error",
        lambda d: (d.std(ddof=1) / d.size**0.5, d.size - 1),
        "luck of seeds and of pictures",
    ),
    # pictures alone
    (
        "check_crossed_error",
        lambda d: (d.mean(0).std(ddof=1) / d.shape[1] ** 0.5, d.shape[1] - 1),
        "luck of seeds and of pictures",
    ),
    # the smaller of the two degrees of freedom
    (
        "check_crossed_error",
        lambda d: (crossed_error(d)[0], min(d.shape) - 1),
        "luck of seeds and of pictures",
    ),
    (
        "check_loss_without_twins",
        lambda q, k, n, t: info_nce(q, k, temperature=t),
        "one animal twice",
    ),
    ("check_run_lengths", lambda m: run_lengths(m.T), "a line"),  # row after row
    # starts with the full ones
    ("check_run_lengths", lambda m: [n for n in run_lengths(m) if n], "everything"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_a_right_function_passes(name, capsys):
    CHECKS[name](RIGHT[name])
    assert capsys.readouterr().out.endswith("small inputs agree\n")


@pytest.mark.parametrize(("name", "function", "title"), WRONG)
def test_a_wrong_function_is_shown_where_it_differs(name, function, title):
    with pytest.raises(Mismatch) as caught:
        CHECKS[name](function)
    message = str(caught.value)
    assert f'Small input "{title}"' in message
    assert "expected" in message or "it raised" in message
    assert "Hint: " in message


def test_run_lengths_are_those_of_coco():
    mask = np.random.default_rng(5).random((6, 4)) < 0.4
    packed = coco.frPyObjects({"size": [6, 4], "counts": run_lengths(mask)}, 6, 4)
    np.testing.assert_array_equal(coco.decode(packed), mask)


def test_every_check_has_a_wrong_function():
    assert {name for name, _, _ in WRONG} == CHECKS.keys()


@pytest.mark.parametrize("name", CHECKS)
def test_a_function_that_is_not_written_is_no_error(name, capsys):
    def unwritten(*arguments):
        raise NotImplementedError

    CHECKS[name](unwritten)
    assert capsys.readouterr().out == "unwritten: not written yet\n"


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_says_what_the_function_is_given(name):
    assert inspect.getdoc(CHECKS[name]).startswith("Notebook ")
    assert "function(" in inspect.getdoc(CHECKS[name])


# ---------------------------------------------------------------- the comparison itself


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: None, "it returned nothing"),
        (lambda x: (2 * x)[:1], "shape (1,), expected (2,)"),
        (lambda x: 2 * x + [0, 1], "1 of 2 values differ"),
        (lambda x: x + "a", "it raised"),
        (lambda x: ["a", {}], "cannot be compared"),
        (lambda x: np.multiply(x, 2.0, out=x), "it changed its input"),
    ],
)
def test_the_message_says_what_is_wrong(function, said):
    with pytest.raises(Mismatch) as caught:
        compare(function, double, {"a pair": {"x": np.array([1.0, 2.0])}}, hint="twice")
    assert said in str(caught.value)
    assert "x = [1. 2.]" in str(caught.value)


def test_a_function_cannot_pass_by_changing_what_is_expected():
    def cheat(x):
        x[:] = 0
        return x

    with pytest.raises(Mismatch):
        compare(cheat, double, {"a pair": {"x": np.array([1.0, 2.0])}}, hint="twice")
