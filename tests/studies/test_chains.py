"""Pieces of the chain: training sets, clusters with names, and the segmenter in closed form."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mdlib.data.dataset import InMemory
from mdlib.evaluate import naming
from mdlib.method import clusters, segmenter
from mdlib.models.backbones import FeatureCache
from mdlib.studies import chains, priors

# ---------------------------------------------------------------- training sets


def test_training_sets_hold_about_as_many_objects_each(zoo_root):
    counts = {}
    for name, composition in chains.TRAINING_SETS.items():
        data = chains.training_set(zoo_root, composition, objects=120)
        found = [len(data.instances(i).labels) for i in range(len(data))]
        assert abs(sum(found) - 120) <= 25, name
        counts[name] = np.bincount(found, minlength=4) / len(found)
    centred, mixed, small = counts.values()
    assert centred.tolist() == [0, 1, 0, 0] and not mixed[0] and (mixed[1:] > 0).all()
    assert small[0] > 0.05 and small[3] > 0.6 and small[1] == small[2] == 0


def test_scene_i_shows_the_same_first_animal_in_each_set(zoo_root):
    sets = [
        chains.training_set(zoo_root, each, objects=40) for each in chains.TRAINING_SETS.values()
    ]
    for i in range(10):
        names = [data.instances(i).names[:1] for data in sets]
        assert len({name for name in names if name}) == 1


def test_salient_masks_are_the_geodesic_priors(tmp_path, rng):
    image = np.full((30, 40, 3), 90, np.uint8)
    image[8:20, 10:25] = (200, 40, 40)
    data = InMemory({"plain": np.zeros((20, 20, 3), np.uint8), "square": image})
    (found,) = chains.salient_masks(data, factor=2.0)
    assert found.image_id == "square"
    expected = priors.salient_mask(priors.geodesic_saliency(image), factor=2.0)
    np.testing.assert_array_equal(found.pixels(), expected)
    kept = list(chains.salient_masks(data, factor=2.0, shards=tmp_path / "kept"))
    again = list(chains.salient_masks(data, factor=9.0, shards=tmp_path / "kept"))
    assert kept == again == [found]


# ---------------------------------------------------------------- clusters


def test_clusters_are_those_of_stage_2_and_have_their_names(rng):
    middles = rng.normal(0, 10, (4, 6))
    classes = rng.integers(1, 5, 120)
    features = (middles[classes - 1] + rng.normal(0, 0.1, (120, 6))).astype(np.float32)
    recipe = {"k": 4, "seed": 3, "batch_size": 200, "restarts": 5}
    drawn = chains.draw_clusters(features, classes, num_classes=5, **recipe)
    assert (drawn.names[1 + drawn.clusters] == classes).all() and drawn.names[0] == 0
    white = clusters.whiten(features, clusters.feature_deviation(features))
    np.testing.assert_array_equal(
        drawn.centres, clusters.fit_kmeans(white, **recipe).cluster_centers_
    )
    counts = naming.count_matrix(drawn.clusters, classes, k=4, num_classes=5)
    np.testing.assert_array_equal(drawn.names[1:], naming.name_clusters(counts))
    others = (middles + rng.normal(0, 0.1, (4, 6))).astype(np.float32)
    assert (drawn.names[1 + drawn.assign(others)] == [1, 2, 3, 4]).all()


def test_masks_of_no_object_name_no_cluster(rng):
    features = rng.normal(size=(40, 3)).astype(np.float32)
    recipe = {"k": 3, "seed": 0, "batch_size": 100, "restarts": 1, "num_classes": 5}
    drawn = chains.draw_clusters(features, np.zeros(40, int), **recipe)
    assert (drawn.names[1:] != 0).all()


# ---------------------------------------------------------------- a segmenter in closed form


def test_the_label_of_a_cell_is_the_one_in_its_middle():
    labels = np.arange(24).reshape(4, 6)
    assert chains.cell_labels(labels, grid_hw=(2, 3)).tolist() == [[7, 9, 11], [19, 21, 23]]
    assert chains.cell_labels(labels, grid_hw=(4, 6)).tolist() == labels.tolist()
    assert chains.cell_labels(labels, grid_hw=(8, 6))[:2].tolist() == [labels[0].tolist()] * 2


@pytest.mark.parametrize("kinds", [[0, 2, 3], [0, 3], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("shared", [0, 1e6])
def test_the_linear_classifier_is_the_discriminant_of_scikit_learn(rng, kinds, shared):
    """Also where all cells share one large vector."""
    labels = rng.choice(kinds, 400)
    features = rng.normal(0, 1, (5, 8))[labels] + rng.normal(0, 1, (400, 8)) + shared
    weights, bias = chains.fit_linear(features, labels, outputs=5)
    assert weights.shape == (5, 8) and bias.shape == (5,)
    predicted = (features @ weights.T + bias).argmax(1)
    judge = LinearDiscriminantAnalysis(solver="svd").fit(features, labels)
    assert (predicted == judge.predict(features)).mean() > 0.995
    assert set(predicted) <= set(kinds)


def test_maps_are_those_of_the_same_layer_in_a_segmenter(rng):
    data = InMemory({n: rng.integers(0, 256, (40, 48, 3)).astype(np.uint8) for n in "ab"})
    model = segmenter.build_segmenter(
        "vit", weights=None, trainable_blocks=0, outputs=3, cache=FeatureCache(10**8)
    )
    maps = chains.frozen_maps(model, data, side=48, batch=2, device="cpu")
    assert maps.dtype == np.float16 and maps.shape[::2] == (2, 6)
    weights = rng.normal(size=(3, maps.shape[1])).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    for i, found in enumerate(chains.linear_maps(maps, weights, bias, data)):
        logits = np.einsum("od,dhw->ohw", weights, maps[i].astype(np.float32))
        assert found.shape == (40, 48)
        cells = chains.cell_labels(found, grid_hw=(6, 6))
        # enlarged bilinearly, so the middle of a cell has nearly that cell's logits
        assert (cells == (logits + bias[:, None, None]).argmax(0)).mean() > 0.8
