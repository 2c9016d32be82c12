"""Which class does a cluster stand for?

The field's ways to name clusters, side by side, and what needs no names.

Row 0 of a confusion matrix is background, row 1 + j is cluster j (as in a label map). A mapping
gives the class of each row.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from mdlib.core.mask import Mask
from mdlib.data import VOID, Dataset, Instances
from mdlib.evaluate.metrics import UNMATCHED, box_iou, iou, match_hungarian, match_majority

PROTOCOLS = {  # name: where the names come from, and how
    "train, one-to-one": "counts of training masks, Hungarian (the paper); background is pinned",
    "train, majority": (
        "counts of training masks, each cluster its most frequent class "
        "(the reference, where k is larger)"
    ),
    "val, one-to-one": "pixel IoU on val, Hungarian, background free as well (most peers)",
    "val, majority": (
        "pixels of val, each row its most frequent class: "
        "more names than peers allow, chosen on val"
    ),
}


def all_mappings(counts: np.ndarray, confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The mapping of every protocol.

    Args:
        counts: (k, C) training masks by cluster and class.
        confusion: (1 + k, C) pixels of val by row and class.

    Returns:
        {name in PROTOCOLS: (1 + k,) int64 class of each row, -1 where it has no name}.

    Raises:
        ValueError: where the two are not of the same clusters and classes.
    """
    if len(confusion) != 1 + len(counts) or confusion.shape[1] != counts.shape[1]:
        raise ValueError(
            f"counts {counts.shape} and confusion {confusion.shape} "
            "are not of the same clusters and classes"
        )
    return {
        "train, one-to-one": name_on_train(counts, "one-to-one"),
        "train, majority": name_on_train(counts, "majority"),
        "val, one-to-one": match_hungarian(confusion, score="iou"),
        "val, majority": match_majority(confusion),
    }


def name_on_train(counts: np.ndarray, rule: str) -> np.ndarray:
    """Name clusters by the classes of their training masks, background pinned.

    Args:
        counts: (k, C) training masks by cluster and class.
        rule: "one-to-one" or "majority".

    Returns:
        (1 + k,) int64 class of each row, 0 for the first, -1 where it has no name.
    """
    match = (
        match_majority(counts[:, 1:])
        if rule == "majority"
        else match_hungarian(counts[:, 1:], score="count")
    )
    return np.concatenate([[0], np.where(match >= 0, match + 1, UNMATCHED)])


def score_mapping(confusion: np.ndarray, mapping: np.ndarray) -> dict:
    """The mIoU under a mapping, and what classes that no row stands for take from it.

    The cost is an account of this mapping: a row that took a missing class's name would lose its
    own.

    Args:
        confusion: (1 + k, C) pixels by row and class.
        mapping: (1 + k,) the class of each row, -1 where it has none.

    Returns:
        "miou" as `metrics.mean_iou`; "missing", the classes that occur and have no row, each with
        IoU 0; "miou_named", the mean over the others; "cost", "miou_named" minus "miou".
    """
    values = iou(confusion, mapping)
    occurs = confusion.sum(0) > 0
    missing = np.flatnonzero(occurs & ~np.isin(np.arange(len(values)), mapping))
    named = np.delete(values, missing)
    miou = float(np.nanmean(values))
    named_miou = float(np.nanmean(named)) if np.isfinite(named).any() else 0.0
    return {
        "miou": miou,
        "missing": missing.tolist(),
        "miou_named": named_miou,
        "cost": named_miou - miou,
    }


def clustering_scores(clusters: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """How well the clusters and classes of masks agree, without a name.

    Args:
        clusters: (n,) integers, the cluster of each mask.
        classes: (n,) integers, its class.

    Returns:
        "nmi" in [0, 1]: normalised mutual information (arithmetic mean); "ari" in [-0.5, 1]: Rand
        index above chance, 0 for random clusters; "purity" in (0, 1]: share of masks in their
        cluster's most frequent class, which grows with k.

    Raises:
        ValueError: without a mask.
    """
    clusters, classes = np.asarray(clusters), np.asarray(classes)
    if not len(clusters):
        raise ValueError("there is no mask to judge clusters by")
    counts = contingency_matrix(classes, clusters)  # a row for each class, a column a cluster
    return {
        "nmi": float(normalized_mutual_info_score(classes, clusters)),
        "ari": float(adjusted_rand_score(classes, clusters)),
        "purity": float(counts.max(0).sum() / len(clusters)),
    }


def mask_class(mask: Mask, instances: Instances) -> int:
    """The class of the true box that overlaps the mask's box best; 0 where none overlaps."""
    if mask.box is None or not len(instances.labels):
        return 0
    overlaps = box_iou(np.array(mask.box), instances.boxes)[0]
    return int(instances.labels[overlaps.argmax()]) if overlaps.max() > 0 else 0


def mask_class_of_map(mask: Mask, semantic: np.ndarray) -> int:
    """The class that most of a mask's pixels have in a semantic map (H, W) uint8.

    Background and void do not count; 0 where there is nothing else.
    """
    counts = np.bincount(semantic[mask.pixels()], minlength=VOID + 1)
    counts[[0, VOID]] = 0
    return int(counts.argmax())


def mask_classes(masks: Sequence[Mask], dataset: Dataset) -> np.ndarray:
    """The class of each mask: as `mask_class`, where there are maps alone as `mask_class_of_map`.

    Args:
        masks: n masks; those of an image follow each other.
        dataset: their images.

    Returns:
        (n,) int64, 0 for background.

    Raises:
        NoLabels: where the data set has no labels.
    """
    found: list[int] = []
    for image_id, of_image in groupby(masks, key=lambda mask: mask.image_id):
        i = dataset.index_of(image_id)
        if dataset.labels == "maps":
            semantic = dataset.semantic(i)
            found += [mask_class_of_map(mask, semantic) for mask in of_image]
        else:
            instances = dataset.instances(i)
            found += [mask_class(mask, instances) for mask in of_image]
    return np.array(found, np.int64)


def count_matrix(
    clusters: np.ndarray, classes: np.ndarray, *, k: int, num_classes: int
) -> np.ndarray:
    """Count masks by cluster and class.

    Args:
        clusters: (n,) integers in 0..k - 1, the cluster of each mask.
        classes: (n,) integers in 0..num_classes - 1, its class; 0 is background.
        k: number of clusters.
        num_classes: number of classes, background among them.

    Returns:
        (k, num_classes) int64.

    Raises:
        ValueError: for a negative cluster or class.
    """
    if len(clusters) and (min(clusters) < 0 or min(classes) < 0):
        raise ValueError("clusters and classes count from 0: leave masks without one out")
    counts = np.zeros((k, num_classes), np.int64)
    np.add.at(counts, (clusters, classes), 1)
    return counts


def name_clusters(counts: np.ndarray) -> np.ndarray:
    """The class of each cluster, from the classes of its masks; never background.

    One-to-one by the Hungarian method; with more clusters than classes each takes its majority.

    Args:
        counts: (k, num_classes) masks by cluster and class, as `count_matrix`.

    Returns:
        (k,) int64, -1 where nothing is left to name.
    """
    return name_on_train(counts, "one-to-one" if len(counts) < counts.shape[1] else "majority")[1:]
