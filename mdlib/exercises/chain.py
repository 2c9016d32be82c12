"""Checks for the exercises of notebooks 00 to 09, the stages of the method and their metrics.

`mdlib.exercises` says how a check works.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from mdlib.core.mask import mask_to_box
from mdlib.evaluate import coco_ap, metrics
from mdlib.exercises.compare import compare
from mdlib.method import masks, segmenter


def check_mask_to_box(function: Callable) -> None:
    """Notebook 00: the tight box around a mask.

    function(mask (H, W) bool) -> (x0, y0, x1, y1) in pixels, ends exclusive.
    """
    whole, dot, shape = np.ones((2, 3), bool), np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    dot[3, 4] = True
    shape[1, 1:4], shape[2, 2] = True, True
    cases = {
        "the whole picture": {"mask": whole},
        "one pixel": {"mask": dot},
        "a T": {"mask": shape},
    }
    compare(
        function,
        mask_to_box,
        cases,
        hint="x counts columns, y counts rows; x1 and y1 are one past the last pixel.",
    )


def check_diffuse(function: Callable) -> None:
    """Notebook 01: how similar each patch is to the seed and what looks like it.

    function(keys (N, D) float, candidates (P,) int64, best first) -> G_diff (N,).
    """

    def expected(keys: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        return masks.diffuse(keys[None, None], candidates[None], candidates[:1])[0][0]

    line = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.5], [0.0, -1.0]])
    noise = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    cases = {
        "one candidate, the seed": {"keys": line, "candidates": torch.tensor([1])},
        "a candidate that does not look like the seed": {
            "keys": line,
            "candidates": torch.tensor([0, 2, 1]),
        },
        "nine patches, four candidates": {"keys": noise, "candidates": torch.tensor([7, 0, 3, 4])},
    }
    compare(
        function,
        expected,
        cases,
        hint="Sources are the candidates with k_seed . k_p > 0; the others add nothing.",
    )


def check_kmeans_step(function: Callable) -> None:
    """Notebook 02: one step of k-means; an empty cluster stays where it is.

    function(z (n, D), centres (k, D)) -> the moved centres (k, D).
    """

    def expected(z: np.ndarray, centres: np.ndarray) -> np.ndarray:
        members: list[list[np.ndarray]] = [[] for _ in centres]
        for point in z:
            members[np.argmin([((point - centre) ** 2).sum() for centre in centres])].append(point)
        return np.array(
            [
                np.mean(points, axis=0) if points else centre
                for points, centre in zip(members, centres, strict=True)
            ]
        )

    rng = np.random.default_rng(0)
    corners = np.array([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
    cases = {
        "two clear groups": {"z": corners, "centres": np.array([[0.0, 2.0], [4.0, 3.0]])},
        "a centre without a point": {
            "z": corners,
            "centres": np.array([[0.0, 0.0], [9.0, 9.0], [4.0, 4.0]]),
        },
        "noise": {"z": rng.normal(size=(12, 3)), "centres": rng.normal(size=(3, 3))},
    }
    compare(
        function,
        expected,
        cases,
        hint="Each point goes to its nearest centre; an empty cluster keeps its centre.",
    )


def check_mirror_boxes(function: Callable) -> None:
    """Notebook 03: boxes in the mirrored picture.

    function(boxes (n, 4) as x0, y0, x1, y1 in pixels, ends exclusive, width of the picture)
    -> the mirrored boxes (n, 4).
    """

    def expected(boxes: np.ndarray, width: int) -> np.ndarray:
        pictures = np.zeros((len(boxes), 10, width), bool)
        for picture, (x0, y0, x1, y1) in zip(pictures, boxes.astype(int), strict=True):
            picture[y0:y1, x0:x1] = True
        mirrored = [mask_to_box(picture[:, ::-1]) for picture in pictures]
        return np.array(mirrored, float).reshape(-1, 4)

    cases = {
        "a box at the left": {"boxes": np.array([[0.0, 1.0, 3.0, 5.0]]), "width": 8},
        "two boxes": {"boxes": np.array([[2.0, 0.0, 4.0, 9.0], [5.0, 3.0, 7.0, 4.0]]), "width": 9},
        "no box": {"boxes": np.zeros((0, 4)), "width": 6},
    }
    compare(
        function,
        expected,
        cases,
        hint="The old right end becomes the new left one, width - x1; ends are exclusive.",
    )


def check_calibration_error(function: Callable) -> None:
    """Notebook 04: the expected calibration error.

    function(scores (n,) in [0, 1], right (n,) bool, bins: how many of equal width)
    -> a float.
    """

    def expected(scores: np.ndarray, right: np.ndarray, bins: int) -> float:
        error = 0.0
        for b in range(bins):
            inside = [
                i
                for i, s in enumerate(scores)
                if b / bins <= s < (b + 1) / bins or (b == bins - 1 and s == 1)
            ]
            if inside:
                gap = abs(np.mean(right[inside]) - np.mean(scores[inside]))
                error += gap * len(inside) / len(scores)
        return error

    cases = {
        "surer than it should be": {
            "scores": np.array([0.9, 0.9, 0.9, 0.9]),
            "right": np.array([1, 0, 1, 0], bool),
            "bins": 10,
        },
        "honest": {
            "scores": np.array([1.0, 1.0, 0.0]),
            "right": np.array([1, 1, 0], bool),
            "bins": 5,
        },
        "errors that would cancel": {
            "scores": np.array([0.9, 0.8, 0.3, 0.2, 0.1]),
            "right": np.array([1, 1, 0, 0, 0], bool),
            "bins": 2,
        },
    }
    compare(
        function,
        expected,
        cases,
        hint="A bin counts by its share of the predictions; score 1 is in the last bin.",
    )


def check_hardest_loss(function: Callable) -> None:
    """Notebook 05: cross-entropy over the hardest pixels.

    function(logits (B, C, H, W), labels (B, H, W) with -1 void, share in (0, 1])
    -> scalar loss.
    """

    def expected(logits: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
        return segmenter.ohem_loss(logits, labels, share=share)

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, generator=generator)
    labels = torch.tensor([[[0, 1], [2, -1]], [[1, -1], [0, 2]]])
    full = torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 2]]])
    cases = {
        "no void, all pixels": {"logits": logits, "labels": full, "share": 1.0},
        "two void pixels": {"logits": logits, "labels": labels, "share": 0.5},
        "less than one pixel": {"logits": logits, "labels": labels, "share": 0.01},
    }
    compare(
        function,
        expected,
        cases,
        hint="The share is of the labelled pixels, rounded down, and at least one pixel.",
    )


def check_mean_field_step(function: Callable) -> None:
    """Notebook 06: one step of mean field.

    function(unary (N, C), kernel (N, N), q (N, C)) -> the next q (N, C), rows sum to 1.
    """

    def expected(unary: np.ndarray, kernel: np.ndarray, q: np.ndarray) -> np.ndarray:
        out = np.zeros_like(q)
        for i in range(len(q)):
            for c in range(q.shape[1]):
                neighbours = sum(kernel[i, j] * q[j, c] for j in range(len(q)))
                out[i, c] = np.exp(-unary[i, c] + neighbours)
            out[i] /= out[i].sum()
        return out

    rng = np.random.default_rng(2)
    p = rng.dirichlet((1, 1, 1), size=4)
    near = np.exp(-0.5 * (np.arange(4)[:, None] - np.arange(4)) ** 2)
    cases = {
        "no neighbours: the softmax comes back": {
            "unary": -np.log(p),
            "kernel": np.zeros((4, 4)),
            "q": p,
        },
        "four pixels in a row": {"unary": -np.log(p), "kernel": near, "q": p},
        "another q than the network's": {
            "unary": -np.log(p),
            "kernel": 2 * near,
            "q": rng.dirichlet((1, 1, 1), size=4),
        },
    }
    compare(
        function,
        expected,
        cases,
        hint="What the neighbours think is kernel @ q; then exp(-unary + ...), each row to sum 1.",
    )


def check_class_iou(function: Callable) -> None:
    """Notebook 07: the IoU of each class.

    function(confusion (rows, C), names (rows,) class of each row, -1 unnamed)
    -> IoU (C,), NaN for a class that is absent.
    """
    one = np.array([[8, 1, 0], [1, 4, 0], [0, 2, 6]])
    cases = {
        "one row a class": {"confusion": one, "names": np.array([0, 1, 2])},
        "two rows with one name": {"confusion": one, "names": np.array([0, 1, 1])},
        "a row without a name": {"confusion": one, "names": np.array([0, -1, 2])},
        "a class that never occurs": {
            "confusion": np.array([[5, 2, 0], [1, 3, 0]]),
            "names": np.array([0, 1]),
        },
    }
    compare(
        function,
        metrics.iou,
        cases,
        hint="Rows with one name are added first; an unnamed row is missed, never predicted.",
    )


def check_probe_gradient(function: Callable) -> None:
    """Notebook 08: the gradient of a linear probe.

    function(features (n, D), weight (C, D), bias (C,), labels (n,))
    -> dL/dW (C, D), where L is the mean cross-entropy.
    """

    def expected(
        features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        weight = weight.clone().requires_grad_()
        loss = F.cross_entropy(features @ weight.T + bias, labels)
        return torch.autograd.grad(loss, weight)[0]

    draw = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(3, 2, generator=draw), torch.randn(3, generator=draw)
    cases = {
        "one cell": {
            "features": torch.tensor([[1.0, 2.0]]),
            "weight": weight,
            "bias": bias,
            "labels": torch.tensor([1]),
        },
        "five cells": {
            "features": torch.randn(5, 2, generator=draw),
            "weight": weight,
            "bias": bias,
            "labels": torch.tensor([0, 2, 2, 1, 0]),
        },
    }
    compare(
        function,
        expected,
        cases,
        hint="(softmax - one-hot), times the features, mean over the cells.",
    )


def check_average_precision(function: Callable) -> None:
    """Notebook 09: average precision.

    function(scores (n,), hits (n,) bool, positives: number of objects) -> AP at 101 recalls.
    """
    cases = {
        "all right": {
            "scores": np.array([0.9, 0.8]),
            "hits": np.array([1, 1], bool),
            "positives": 2,
        },
        "a miss on top": {
            "scores": np.array([0.2, 0.9, 0.5]),
            "hits": np.array([1, 0, 1], bool),
            "positives": 2,
        },
        "objects never found": {
            "scores": np.array([0.9, 0.8, 0.7]),
            "hits": np.array([1, 0, 1], bool),
            "positives": 5,
        },
        "no prediction": {"scores": np.zeros(0), "hits": np.zeros(0, bool), "positives": 3},
    }
    compare(
        function,
        coco_ap.average_precision,
        cases,
        hint="Sort by score, best first; at each recall take the best precision at that recall or "
        "a higher one, 0 beyond the last.",
    )
