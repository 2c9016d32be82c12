"""Explorers: what they show is what the library computes, they draw under the runner, and sliders
redraw.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mdlib.data import open_dataset
from mdlib.method import clusters, crf, proposals, pseudo_labels
from mdlib.method.masks import MaskRule
from mdlib.show import explore


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    plt.switch_backend("Agg")
    monkeypatch.delenv("MDLIB_BATCH", raising=False)
    yield
    plt.close("all")


@pytest.fixture
def tokens(random_encoder, pictures):
    return random_encoder.tokens(pictures[:1].repeat_interleave(2, 3).repeat_interleave(2, 2))


RULE = MaskRule(top_k=0.4, cls_heads=3, mass=None, center="balanced")


@pytest.mark.parametrize(
    "changed",
    [{"center": "none"}, {}, {"affinity": "values", "whiten": True}, {"affinity": "patches"}],
)
def test_without_a_choice_the_patch_view_is_stage_one(tokens, changed):
    rule = replace(RULE, **changed)
    view = explore.patch_view(tokens, rule, patch=None, head=None)
    expected, _ = proposals.tokens_to_masks(tokens, rule)
    np.testing.assert_array_equal(view["mask"], expected[0, 0].numpy())
    assert {values.shape for values in view.values()} == {tokens.grid_hw}
    assert view["G_CLS"].argmax() == view["candidates"].argmax()


def test_a_chosen_patch_is_the_seed(tokens):
    view = explore.patch_view(tokens, RULE, patch=5, head=None)
    assert view["candidates"].ravel()[5] == 3 and view["mask"].ravel()[5]
    assert (view["affinity"][view["candidates"] == 2] > 0).all()


def test_one_head_sees_its_own_keys(tokens):
    views = [
        explore.patch_view(tokens, replace(RULE, top_k=1.0, center="none"), patch=5, head=head)
        for head in (0, 1)
    ]
    for head, view in enumerate(views):
        keys = tokens.keys[0, head]
        np.testing.assert_allclose(
            view["affinity"].ravel(), (keys @ keys[5]).numpy(), rtol=1e-4, atol=1e-5
        )


def test_the_cluster_view_ranks_members(rng):
    z, centres = rng.normal(size=(40, 3)), np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 99]])
    assigned = clusters.assign_clusters(z, centres)
    near, far = explore.cluster_view(z, centres, cluster=0, count=5)
    distance = np.linalg.norm(z - centres[0], axis=1)
    assert len(near) == len(far) == 5 and (assigned[[*near, *far]] == 0).all()
    assert (
        distance[near[0]] == distance[assigned == 0].min()
        and distance[far[0]] == distance[assigned == 0].max()
    )
    assert not any(map(len, explore.cluster_view(z, centres, cluster=2, count=5)))


@pytest.fixture
def predictions(zoo_root):
    """Two scenes: their true masks with scores 0.9 and 0.2, cluster = class - 1, the first one's
    doubled by a wrong mask.
    """
    data = open_dataset("zoo", root=zoo_root, split="dev", count=2)
    samples = [data[0], data[1]]
    found = [
        (s.instances.masks, s.instances.labels - 1, np.full(len(s.instances.labels), score))
        for s, score in zip(samples, (0.9, 0.2), strict=True)
    ]
    masks, labels, scores = found[0]
    found[0] = (
        np.concatenate([masks, ~masks.any(0)[None]]),
        np.append(labels, 0),
        np.append(scores, 0.3),
    )
    return found, samples, np.arange(len(data.classes)), len(data.classes)


def test_the_threshold_view_is_the_librarys_map_and_score(predictions):
    found, samples, names, classes = predictions
    maps, miou = explore.threshold_view(
        found, [s.semantic for s in samples], names, threshold=0.5, classes=classes
    )
    for labels, one in zip(maps, found, strict=True):
        np.testing.assert_array_equal(
            labels, pseudo_labels.label_map(*one, threshold=0.5, overlap="skip")
        )
    assert miou == pytest.approx(1.0)  # only what is right is left
    _, everything = explore.threshold_view(
        found, [s.semantic for s in samples], names, threshold=0.0, classes=classes
    )
    assert everything < 0.9


CRF = crf.CrfSettings(
    steps=3,
    gaussian_sxy=1.0,
    gaussian_compat=3.0,
    bilateral_sxy=9.0,
    bilateral_srgb=13.0,
    bilateral_compat=6.0,
)
needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is not installed")


@needs_crf
def test_the_crf_view_is_the_librarys_where_few_classes_take_part(predictions, rng):
    sample = predictions[1][0]
    p = rng.dirichlet(np.ones(3), size=sample.image.shape[:2]).transpose(2, 0, 1).astype(np.float32)
    expected = crf.dense_crf(sample.image, p, CRF).argmax(0)
    assert (explore.crf_view(sample.image, p, CRF) == expected).mean() > 0.999
    # classes that nothing speaks for
    padded = np.concatenate([np.full((4, *p.shape[1:]), 1e-7, np.float32), p])
    assert (explore.crf_view(sample.image, padded, CRF, most=3) == expected + 4).mean() > 0.999


def every_explorer(tokens, predictions, rng):
    found, samples, names, classes = predictions
    image, z = samples[0].image, rng.normal(size=(30, 4)).astype(np.float32)
    yield lambda: explore.patches(tokens, image, RULE)
    yield lambda: explore.members(z, torch.zeros(30, 3, 8, 8, dtype=torch.uint8), z[:5], seed=0)
    yield lambda: explore.thresholds(found, samples, names, threshold=0.5, classes=classes)
    if crf.available():
        p = (
            rng.dirichlet(np.ones(classes), size=image.shape[:2])
            .transpose(2, 0, 1)
            .astype(np.float32)
        )
        yield lambda: explore.borders(
            image, p, samples[0].semantic, names, classes=classes, settings=CRF
        )


def test_under_the_runner_each_draws_once(tokens, predictions, rng, monkeypatch):
    monkeypatch.setenv("MDLIB_BATCH", "1")
    for show in every_explorer(tokens, predictions, rng):
        plt.close("all")
        assert show() is None
        assert len(plt.get_fignums()) == 1


def test_a_moved_slider_draws_again(tokens, predictions, rng):
    for show in every_explorer(tokens, predictions, rng):
        *controls, output = show().children
        assert not [o for o in output.outputs if o.get("output_type") == "error"]
        for control in controls:
            plt.close("all")
            options = getattr(control, "options", None) or (control.min, control.max)
            control.value = next(value for value in options if value != control.value)
            assert plt.get_fignums(), control.description
