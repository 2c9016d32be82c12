"""Pieces of the chain that a claim runs many times: on other training sets, masks and seeds.

Where a segmenter for every seed would take too long, a linear one stands in for it: one linear
layer on the same frozen map, fitted in closed form (linear discriminant analysis, 1) instead of by
steps. It learns from the masks of the training set, as a segmenter does, within a second.

1. Hastie, Tibshirani, Friedman, The elements of statistical learning, 2009, section 4.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from mdlib.core.mask import Mask
from mdlib.core.shards import MASKS, in_shards
from mdlib.data import Cached, Dataset
from mdlib.data.compose import COMPOSITIONS, Composition
from mdlib.data.zoo import ZooDataset
from mdlib.evaluate import naming
from mdlib.method import clusters
from mdlib.method.segmenter import Segmenter, label_map, predict_logits
from mdlib.studies import priors

ABSENT = -1e9  # the logit of a cluster without a cell to learn from

# How the pictures of a training set are composed, from object-centric to not.
TRAINING_SETS = {
    "one centred": COMPOSITIONS["portrait"],
    "one to three": COMPOSITIONS["mixture"],
    "three small, or none": replace(COMPOSITIONS["crowd"], object_counts=(0.2, 0, 0, 0.8)),
}


def training_set(root: Path, composition: Composition, *, objects: int) -> Dataset:
    """Open a training set of the zoo that has about so many objects.

    Args:
        root: the repository's data/zoo.
        composition: how its scenes are composed.
        objects: how many there are on average over draws; the number of scenes follows.

    Returns:
        Scenes of the split "train", whose pictures are kept in memory.
    """
    each = sum(count * share for count, share in enumerate(composition.object_counts))
    return Cached(ZooDataset(root, "train", round(objects / each), composition=composition))


def salient_masks(dataset: Dataset, *, factor: float, shards: Path | None = None) -> Iterator[Mask]:
    """Yield the geodesic prior's mask of each picture, in order.

    Args:
        dataset: the pictures.
        factor: of `priors.salient_mask`.
        shards: a folder in which finished parts are kept, see `shards.in_shards`; None: nowhere.

    Yields:
        Masks of a pixel or more with score 1; a picture of one colour has none.
    """

    def make(part: range) -> Iterator[Mask]:
        for i in part:
            saliency = priors.geodesic_saliency(dataset.image(i))
            pixels = priors.salient_mask(saliency, factor=factor)
            if pixels.any():
                yield Mask.from_pixels(pixels, image_id=dataset.ids[i])

    return in_shards(shards, len(dataset), make, form=MASKS)


# ---------------------------------------------------------------- clusters


@dataclass(frozen=True)
class Clustering:
    """One draw of stage 2.

    Attributes:
        centres: (k, D) float, of whitened features.
        deviation: (D,) float32, what features are divided by to be whitened.
        clusters: (n,) int64, the cluster of each training mask.
        names: (1 + k,) int64 class of background and of each cluster; -1 without one.
    """

    centres: np.ndarray
    deviation: np.ndarray
    clusters: np.ndarray
    names: np.ndarray

    def assign(self, features: np.ndarray) -> np.ndarray:
        """The nearest centre of other masks; features (m, D), not whitened -> (m,) int64."""
        return clusters.assign_clusters(clusters.whiten(features, self.deviation), self.centres)


def draw_clusters(
    features: np.ndarray,
    classes: np.ndarray,
    *,
    k: int,
    num_classes: int,
    seed: int,
    batch_size: int,
    restarts: int,
) -> Clustering:
    """Cluster and name masks as stage 2 does.

    Args:
        features: (n, D) of the training masks, not whitened.
        classes: (n,) their true classes, 0 for background: they name clusters and nothing else.
        k: number of clusters.
        num_classes: number of classes, background among them.
        seed: of k-means.
        batch_size: as in `clusters.fit_kmeans`.
        restarts: as in `clusters.fit_kmeans`.

    Raises:
        ValueError: as `clusters.fit_kmeans`.
    """
    deviation = clusters.feature_deviation(features)
    white = clusters.whiten(features, deviation)
    recipe = {"k": k, "seed": seed, "batch_size": batch_size, "restarts": restarts}
    centres = clusters.fit_kmeans(white, **recipe).cluster_centers_
    found = clusters.assign_clusters(white, centres)
    counts = naming.count_matrix(found, classes, k=k, num_classes=num_classes)
    return Clustering(centres, deviation, found, np.array([0, *naming.name_clusters(counts)]))


# ---------------------------------------------------------------- a segmenter in closed form


def frozen_maps(
    model: Segmenter, dataset: Dataset, *, side: int, batch: int, device: str
) -> np.ndarray:
    """What the body of a segmenter says of each picture.

    Args:
        model: its pyramid and its classifier are taken off, in place.
        dataset: the pictures.
        side: pixels of the square that the network sees.
        batch: pictures at once.
        device: the model's.

    Returns:
        (images, D, h, w) float16, at stride 8.
    """
    for part in ("pyramid", "classifier"):
        model.add_module(part, nn.Identity())
    maps = predict_logits(model, dataset, side=side, batch=batch, device=device)
    return np.stack([each.numpy().astype(np.float16) for each in maps])


def cell_labels(labels: np.ndarray, *, grid_hw: tuple[int, int]) -> np.ndarray:
    """The label in the middle of each cell of a grid that covers a map.

    Args:
        labels: (H, W).
        grid_hw: rows and columns of the grid.

    Returns:
        (h, w), of the map's dtype.
    """
    middles = [
        ((np.arange(cells) + 0.5) * pixels / cells).astype(np.int64)
        for cells, pixels in zip(grid_hw, labels.shape, strict=True)
    ]
    return labels[np.ix_(*middles)]


def fit_linear(
    features: np.ndarray, labels: np.ndarray, *, outputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a linear classifier of cells by linear discriminant analysis.

    Args:
        features: (m, D) of cells.
        labels: (m,) integers below `outputs`, of two kinds or more.
        outputs: logits a cell.

    Returns:
        weights (outputs, D) and bias (outputs,), float64; a label that no cell has is never
        predicted.

    Raises:
        ValueError: for labels of one kind alone.
    """
    # Tokens share one large vector, beside which their differences are small: without it, and in
    # float64, these keep their digits.
    exact = features.astype(np.float64)
    middle = exact.mean(0)
    fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(exact - middle, labels)
    weights, bias = np.zeros((outputs, exact.shape[1])), np.full(outputs, ABSENT)
    bias[fitted.classes_] = 0
    learned = fitted.classes_[-len(fitted.coef_) :]  # of two, scikit-learn fits the second alone
    weights[learned], bias[learned] = fitted.coef_, fitted.intercept_ - fitted.coef_ @ middle
    return weights, bias


def linear_maps(
    maps: np.ndarray, weights: np.ndarray, bias: np.ndarray, dataset: Dataset
) -> Iterator[np.ndarray]:
    """Yield the label map of each picture by a linear classifier of its cells.

    Args:
        maps: (images, D, h, w), of `frozen_maps`.
        weights: (outputs, D), of `fit_linear`.
        bias: (outputs,).
        dataset: the pictures.

    Yields:
        (H, W) integers, as `segmenter.label_map` makes them.
    """
    for i, each in enumerate(maps):
        logits = np.tensordot(weights, each.astype(np.float64), 1) + bias[:, None, None]
        logits -= logits.max(0)  # which changes no winner, and float32 then keeps the differences
        yield label_map(torch.from_numpy(logits.astype(np.float32)), image_hw=dataset.size(i))
