"""What is probed linearly: the encoder's tokens as features, and shares of the labels that are
drawn fairly.
"""

from functools import partial

import numpy as np
import pytest
import torch
from fixtures import Samples

from mdlib.data import Sample
from mdlib.data.roles import some_pictures
from mdlib.method import segmenter
from mdlib.method.linear_probe import TokenProbe
from mdlib.models.encoder import load_encoder
from mdlib.training import loop


def pictures(count):
    """Grey pictures with noise and a bright bar at the left (class 1) or the right (class 2)."""

    def picture(i):
        image = np.random.default_rng(i).integers(90, 110, (32, 32, 3)).astype(np.uint8)
        labels = np.zeros((32, 32), np.uint8)
        bar = np.s_[:, :16] if i % 2 else np.s_[:, 16:]
        image[bar] = (230, 40, 40) if i % 2 else (40, 40, 230)
        labels[bar] = 1 if i % 2 else 2
        return Sample(f"{i:03d}", image, labels)

    return Samples([picture(i) for i in range(count)], classes=("background", "left", "right"))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return load_encoder("zoo", weights="random", device="cpu")


def test_features_are_the_patch_tokens_whitened(encoder):
    probe, images = TokenProbe(encoder, outputs=3).eval(), torch.rand(2, 3, 32, 40)
    tokens = encoder.tokens((images * 255).round().byte())
    expected = tokens.patches.transpose(1, 2).reshape(2, encoder.width, 4, 5)
    # running statistics: mean 0, variance 1
    torch.testing.assert_close(probe.features(images), expected / np.sqrt(1 + 1e-5))
    probe.train()(images)
    assert not torch.allclose(probe.whiten.running_mean, torch.zeros(encoder.width))
    assert probe(images).shape == (2, 3, 32, 40) and probe(images, size=(8, 10)).shape == (
        2,
        3,
        8,
        10,
    )


def test_only_the_layer_learns_and_is_saved(encoder):
    probe = TokenProbe(encoder, outputs=3)
    assert {name for name, p in probe.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert all(name.startswith(("classifier", "whiten")) for name in probe.state_dict())


def test_a_probe_learns_what_tokens_tell(encoder):
    data, probe = pictures(8), TokenProbe(encoder, outputs=3)
    labels = [data[i].semantic for i in range(len(data))]
    augment = segmenter.Augment(side=32, label_side=32, scale=0.0, rotation=0.0)
    batches = segmenter.SegmentationBatches(
        data, labels, batch=4, augment=augment, seed=0, device="cpu"
    )
    given = dict(optimizer="sgd", peak_lr=0.1, lr_milestones=[60], warmup=0, weight_decay=0.0)
    recipe = loop.Recipe(steps=60, backbone_lr_scale=1.0, accumulation_steps=1, seed=0, **given)
    loss = partial(segmenter.batch_loss, share=1.0)
    history = loop.fit(probe, batches, loss, recipe, checkpoint=None, identity={})
    assert history[-1]["loss"] < 0.5 * np.log(3)
    assert all(
        value.equal(before)
        for value, before in zip(
            encoder.model.state_dict().values(), load_again().values(), strict=True
        )
    )


def load_again():
    torch.manual_seed(0)
    return load_encoder("zoo", weights="random", device="cpu").model.state_dict()


def test_shares_are_nested_random_and_in_order():
    data = pictures(200)
    few, some, every = (some_pictures(data, share, seed=3).ids for share in (0.01, 0.1, 1.0))
    assert (len(few), len(some), every) == (2, 20, data.ids)
    assert set(few) <= set(some) and some == tuple(sorted(some)) and some != data.ids[:20]
    assert some_pictures(data, 0.1, seed=4).ids != some
    assert len(some_pictures(data, 0.001, seed=3)) == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match="share must be in"):
        some_pictures(pictures(5), share, seed=0)
