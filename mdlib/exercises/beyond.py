"""Checks for the exercises of notebooks 10 to 13, A1 and A2, which compare and use the method.

`mdlib.exercises` says how a check works.
"""

from collections.abc import Callable
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F

from mdlib.evaluate import bootstrap, metrics
from mdlib.exercises.compare import compare


def check_interaction(function: Callable) -> None:
    """Notebook 10: the interaction of rule and composition.

    function(prior_dev, prior_val, ours_dev, ours_val, each (compositions, scenes) of IoU) -> a
    float: the prior's mean drop minus ours.
    """

    def drop(dev: np.ndarray, val: np.ndarray) -> float:
        means = [sum(row) / len(row) for row in dev]
        best, worst = means.index(max(means)), means.index(min(means))
        return sum(val[best] - val[worst]) / val.shape[1]

    def expected(
        prior_dev: np.ndarray, prior_val: np.ndarray, ours_dev: np.ndarray, ours_val: np.ndarray
    ) -> float:
        return drop(prior_dev, prior_val) - drop(ours_dev, ours_val)

    soft_best = np.array([[0.9, 0.7], [0.2, 0.4], [0.5, 0.5]])
    even = np.array([[0.5, 0.6], [0.5, 0.4], [0.4, 0.4]])
    other = np.array([[0.1, 0.3, 0.2], [0.6, 0.8, 0.4], [0.9, 0.7, 0.8]])
    known = {"prior_dev": soft_best, "prior_val": soft_best}
    ours = {"ours_dev": even, "ours_val": even}
    cases = {
        "a prior that falls further": {**known, **ours},
        "val has another best and another worst": {**known, **ours, "prior_val": other},
        "ours falls, the prior does not": {
            "prior_dev": even[[1, 1]],
            "prior_val": even[[1, 1]],
            "ours_dev": soft_best[:2],
            "ours_val": other[:2],
        },
    }
    compare(
        function,
        expected,
        cases,
        hint="Each rule has its own best and worst row, by the means on dev; its drop is the mean "
        "difference of these two rows of val.",
    )


def check_resampled_gains(function: Callable) -> None:
    """Notebook 11: the difference in mIoU of resampled pictures.

    function(a, b (images, 3, C) intersections, unions and true areas, drawn (R, m) picture numbers)
    -> mIoU of a minus that of b (R,).
    """

    def expected(a: np.ndarray, b: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return np.array([bootstrap.miou(a[row]) - bootstrap.miou(b[row]) for row in drawn])

    # the last picture has no animal, but b draws one pixel of it there
    a = np.array([[[9, 3], [10, 4], [10, 3]], [[8, 0], [12, 2], [9, 2]], [[5, 0], [6, 0], [6, 0]]])
    b = np.array([[[8, 2], [10, 5], [10, 3]], [[9, 1], [10, 4], [9, 2]], [[3, 0], [6, 1], [6, 0]]])
    a, b = a.astype(float), b.astype(float)
    cases = {
        "each picture once": {"a": a, "b": b, "drawn": np.array([[0, 1, 2]])},
        "a picture drawn twice": {"a": a, "b": b, "drawn": np.array([[0, 1, 1], [2, 0, 2]])},
        "a stray pixel of a class that was not drawn": {
            "a": a,
            "b": b,
            "drawn": np.array([[2, 2]]),
        },
    }
    compare(
        function,
        expected,
        cases,
        hint="Add the areas of the drawn pictures, then divide, then take the mean over the "
        "classes with a true area: the same classes for both arms.",
    )


def check_object_agreement(function: Callable) -> None:
    """Notebook 12: the share of object pixels that are right.

    function(named (H, W), target (H, W) with 255 void; 0 is background) -> a float.
    """
    cat = np.array([[0, 3, 3], [0, 3, 3]])
    cases = {
        "half of the cat": {"named": np.array([[0, 0, 3], [0, 0, 3]]), "target": cat},
        "a dog where nothing is": {"named": np.array([[5, 3, 3], [0, 3, 3]]), "target": cat},
        "a void border": {"named": cat, "target": np.array([[0, 255, 3], [0, 255, 0]])},
        "nothing to see": {"named": np.zeros((2, 2), int), "target": np.zeros((2, 2), int)},
    }
    compare(
        function,
        metrics.object_agreement,
        cases,
        hint="Count the pixels that map or truth calls an object, without void; where there are "
        "none, all is right: 1.",
    )


def check_crossed_error(function: Callable) -> None:
    """Notebook 13: standard error of a mean over seeds and pictures, with degrees of freedom.

    function(difference (S, n)) -> (standard error, degrees of freedom), two floats.
    """

    def expected(difference: np.ndarray) -> tuple[float, float]:
        seeds, images = difference.shape
        of_seeds = difference.mean(1).var(ddof=1) / seeds
        of_images = difference.mean(0).var(ddof=1) / images
        freedom = (of_seeds + of_images) ** 2 / (
            of_seeds**2 / (seeds - 1) + of_images**2 / (images - 1)
        )
        return float(np.sqrt(of_seeds + of_images)), float(freedom)

    cases = {
        "luck of seeds and of pictures": {
            "difference": np.array([[0.1, 0.2, -0.1], [0.4, 0.0, 0.3]])
        },
        "luck of seeds alone": {"difference": np.array([[0.1] * 4, [0.3] * 4, [0.2] * 4])},
        "luck of pictures alone": {"difference": np.array([[0.1, 0.3, 0.2, 0.0]] * 2)},
    }
    compare(
        function,
        expected,
        cases,
        hint="The variance of the seeds' means over S, plus that of the pictures' means over n, "
        "each with ddof=1; Satterthwaite divides the square of the sum by the sum of the squares, "
        "each over its own degrees of freedom.",
    )


def check_loss_without_twins(function: Callable) -> None:
    """Notebook A1: InfoNCE that does not push a clip's twins away.

    function(q (B, d), k (B, d), names: B strings, temperature) -> scalar loss.
    """

    def expected(
        q: torch.Tensor, k: torch.Tensor, names: list[str], temperature: float
    ) -> torch.Tensor:
        losses = []
        for i in range(len(q)):
            kept = [j for j in range(len(k)) if j == i or names[j] != names[i]]
            scores = torch.stack([q[i] @ k[j] for j in kept]) / temperature
            losses.append(-torch.log_softmax(scores, 0)[kept.index(i)])
        return torch.stack(losses).mean()

    draw = torch.Generator().manual_seed(4)
    q, k = (F.normalize(torch.randn(4, 3, generator=draw), dim=-1) for _ in range(2))
    strangers = {"q": q, "k": k, "names": ["cat", "owl", "seal", "tiger"], "temperature": 0.15}
    cases = {
        "four strangers": strangers,
        "one animal twice": {**strangers, "names": ["cat", "owl", "cat", "tiger"]},
        "one animal only": {**strangers, "names": ["owl"] * 4},
    }
    compare(
        function,
        expected,
        cases,
        hint="Leave a twin out of the sum below the fraction; a clip's own frame stays in.",
    )


def check_run_lengths(function: Callable) -> None:
    """Notebook A2: COCO's run lengths.

    function(mask (H, W) bool) -> a list: empty, full, empty, ..., column after column.
    """

    def expected(mask: np.ndarray) -> list[int]:
        runs = [(full, len(list(run))) for full, run in groupby(mask.T.ravel())]
        return [0] * bool(runs[0][0]) + [length for _, length in runs]

    box, line = np.zeros((4, 4), bool), np.zeros((3, 2), bool)
    box[1:3, 1:3], line[1] = True, True
    cases = {
        "nothing": {"mask": np.zeros((2, 3), bool)},
        "a line": {"mask": line},
        "a box": {"mask": box},
        "everything": {"mask": np.ones((2, 2), bool)},
    }
    compare(
        function,
        expected,
        cases,
        hint="Go down the first column, then the second; the first number counts empty pixels, "
        "also if there are 0.",
    )
