"""Names under four protocols, and what agrees without names, against closed forms."""

import numpy as np
import pytest
from fixtures import Samples

from mdlib.core.mask import Mask
from mdlib.data import Sample
from mdlib.evaluate import metrics, naming

# Two classes beside background, three clusters; the third cluster is a second one of class 1.
COUNTS = np.array([[0, 9, 1], [0, 2, 8], [1, 6, 0]])
CONFUSION = np.array([[90, 5, 5], [0, 40, 10], [0, 0, 30], [10, 20, 0]])


def test_each_protocol_names_as_it_says():
    names = naming.all_mappings(COUNTS, CONFUSION)
    assert list(names) == list(naming.PROTOCOLS)
    assert names["train, one-to-one"].tolist() == [0, 1, 2, -1]
    assert names["train, majority"].tolist() == [0, 1, 2, 1]
    assert names["val, one-to-one"].tolist() == [0, 1, 2, -1]
    assert names["val, majority"].tolist() == [0, 1, 2, 1]


def test_names_chosen_on_val_are_never_worse_there(rng):
    # as many rows as classes: one-to-one names, all free, are then the best of all one-to-one names
    for _ in range(20):
        counts, confusion = rng.integers(0, 20, (4, 5)), rng.integers(1, 50, (5, 5))
        names = naming.all_mappings(counts, confusion)
        mious = {name: metrics.mean_iou(confusion, mapping) for name, mapping in names.items()}
        assert mious["val, one-to-one"] >= mious["train, one-to-one"] - 1e-9


def test_relabelling_clusters_changes_no_score(rng):
    counts, confusion = rng.integers(0, 1000, (6, 4)), rng.integers(0, 1000, (7, 4))
    order = rng.permutation(6)
    moved = naming.all_mappings(counts[order], confusion[[0, *(1 + order)]])
    for name, mapping in naming.all_mappings(counts, confusion).items():
        np.testing.assert_array_equal(moved[name], mapping[[0, *(1 + order)]])


def test_a_cluster_without_a_training_mask_has_no_name_by_majority():
    counts = np.array([[0, 3, 0], [0, 0, 0], [0, 0, 2]])
    assert naming.all_mappings(counts, CONFUSION)["train, majority"].tolist() == [0, 1, -1, 2]


def test_counts_of_other_clusters_are_refused():
    with pytest.raises(ValueError, match="same clusters"):
        naming.all_mappings(COUNTS, CONFUSION[:3])


def test_missing_classes_cost_their_share():
    confusion = np.diag([10, 10, 10, 10])
    found = naming.score_mapping(confusion, np.array([0, 1, 2, -1]))
    assert found == {"miou": 0.75, "missing": [3], "miou_named": 1.0, "cost": 0.25}
    assert naming.score_mapping(confusion, np.arange(4)) == {
        "miou": 1.0,
        "missing": [],
        "miou_named": 1.0,
        "cost": 0.0,
    }


def test_a_class_that_does_not_occur_is_not_missing():
    assert naming.score_mapping(np.array([[5, 0, 0], [0, 5, 0]]), np.array([0, 1]))["missing"] == []


def test_where_nothing_has_a_name_all_is_missing():
    assert naming.score_mapping(np.diag([5, 5]), np.array([-1, -1])) == {
        "miou": 0.0,
        "missing": [0, 1],
        "miou_named": 0.0,
        "cost": 0.0,
    }


def test_agreement_at_its_limits(rng):
    classes = rng.integers(0, 5, 2000)
    assert naming.clustering_scores(classes + 7, classes) == pytest.approx(
        {"nmi": 1, "ari": 1, "purity": 1}
    )
    # a cluster a mask: pure, and no cluster at all
    alone = naming.clustering_scores(np.arange(2000), classes)
    assert alone["purity"] == 1 and alone["ari"] == pytest.approx(0) and alone["nmi"] < 0.5
    together = naming.clustering_scores(np.zeros(2000, int), classes)
    assert (
        together["nmi"] == pytest.approx(0, abs=1e-9)
        and together["purity"] == np.bincount(classes).max() / 2000
    )
    shuffled = naming.clustering_scores(rng.permutation(classes), classes)
    assert abs(shuffled["ari"]) < 0.02 and shuffled["nmi"] < 0.02


def test_purity_by_hand():
    assert naming.clustering_scores([0, 0, 0, 4, 4], [1, 1, 2, 2, 3])["purity"] == pytest.approx(
        3 / 5
    )


def test_agreement_of_one_class_alone_is_defined_and_of_no_mask_refused():
    assert naming.clustering_scores([0, 1], [2, 2])["purity"] == 1
    with pytest.raises(ValueError, match="no mask"):
        naming.clustering_scores([], [])


def test_maps_alone_name_a_mask_by_most_of_its_pixels_that_are_of_a_class():
    semantic = np.zeros((4, 6), np.uint8)
    semantic[:2, :2], semantic[2:, :1], semantic[:, 3] = 2, 1, 255
    data = Samples([Sample("a", np.zeros((4, 6, 3), np.uint8), semantic)], classes=("", "x", "y"))
    assert data.labels == "maps"

    def mask(rows, columns):
        pixels = np.zeros((4, 6), bool)
        pixels[rows, columns] = True
        return Mask.from_pixels(pixels, image_id="a")

    everything, below, void, nothing = (
        mask(slice(None), slice(None)),  # background is most of it
        mask(slice(2, 4), slice(None)),
        mask(slice(None), 3),
        mask(slice(0, 0), 0),
    )
    found = naming.mask_classes([everything, below, void, nothing], data)
    assert found.tolist() == [2, 1, 0, 0]
