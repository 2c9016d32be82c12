"""The tokens are what the model itself attends with; weights that do not fit are refused."""

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from mdlib.core.files import read_json
from mdlib.core.weights import WeightsError, read_weights, save_weights
from mdlib.models.encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ZOO_ARCHITECTURE,
    build_zoo_vit,
    capture_qkv,
    fold_key_mean,
    load_encoder,
    split_heads,
)
from mdlib.run.presets import load_preset, resolve


def test_tokens_have_the_promised_shapes(random_encoder, pictures):
    tokens = random_encoder.tokens(pictures)
    assert tokens.grid_hw == (3, 4)  # 20 x 27 pixels, patch 8
    assert tokens.cls.shape == (2, 144) and tokens.patches.shape == (2, 12, 144)
    assert tokens.cls_query.shape == (2, 3, 48)
    assert tokens.queries.shape == tokens.keys.shape == tokens.values.shape == (2, 3, 12, 48)
    assert {t.dtype for t in (tokens.cls, tokens.patches, tokens.cls_query, tokens.keys)} == {
        torch.float32
    }


def test_captured_qkv_reproduce_the_attention_of_the_model(random_encoder, pictures):
    """softmax(q k / sqrt d) v, projected, is what the last attention puts out; and tokens() gives
    these q, k, v.
    """
    attention = random_encoder.model.blocks[-1].attn
    outputs = []
    handle = attention.register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.no_grad(), capture_qkv(random_encoder.model) as captured:
        tokens = random_encoder.tokens(pictures)
        handle.remove()
        q, k, v = split_heads(captured[0], heads=random_encoder.heads)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        ours = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, outputs[0])
    assert torch.equal(tokens.cls_query, q[:, :, 0])
    assert all(
        torch.equal(a, b[:, :, 1:])
        for a, b in ((tokens.queries, q), (tokens.keys, k), (tokens.values, v))
    )


def test_tokens_end_with_the_models_own_output(random_encoder, pictures):
    tokens = random_encoder.tokens(pictures)
    with torch.no_grad():
        out = random_encoder.model.forward_features(random_encoder.preprocess(pictures))
    torch.testing.assert_close(torch.cat([tokens.cls[:, None], tokens.patches], 1), out)


def test_cls_joins_before_the_last_block_and_is_the_same_without_the_patches(pictures):
    """Patches before the last block do not depend on CLS; `class_tokens` is CLS of the whole."""
    torch.manual_seed(0)
    vit = build_zoo_vit().eval()
    pixels = torch.randn(2, 3, 40, 24)
    entering = []
    vit.blocks[-1].register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    with torch.no_grad():
        whole = vit.forward_features(pixels)
        torch.testing.assert_close(vit.class_tokens(pixels), whole[:, 0])
        vit.cls_token.add_(1.0)
        other = vit.forward_features(pixels)
    assert torch.equal(entering[0][:, 1:], entering[1][:, 1:])
    torch.testing.assert_close(entering[1][:, 0], entering[0][:, 0] + 1)
    assert not torch.allclose(whole[:, 0], other[:, 0])


def test_without_joins_last_it_is_timms_vit():
    """By the definition: CLS and patches go through all blocks together."""
    torch.manual_seed(0)
    vit = build_zoo_vit().eval()
    vit.joins_last = False
    pixels = torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        expected = VisionTransformer.forward_features(vit, pixels)
        torch.testing.assert_close(vit.forward_features(pixels), expected)
        torch.testing.assert_close(vit.class_tokens(pixels), expected[:, 0])


def test_a_batch_says_the_same_as_its_pictures_alone(random_encoder, pictures):
    together = random_encoder.tokens(pictures)
    alone = [random_encoder.tokens(picture[None]) for picture in pictures]
    torch.testing.assert_close(
        together.keys, torch.cat([t.keys for t in alone]), atol=1e-5, rtol=1e-4
    )


def test_the_encoder_is_frozen(random_encoder):
    assert not random_encoder.model.training
    assert not any(p.requires_grad for p in random_encoder.model.parameters())


def test_tokens_can_feed_a_probe_that_learns(random_encoder, pictures):
    torch.nn.Linear(144, 2)(random_encoder.tokens(pictures).cls).sum().backward()


def test_hooks_are_gone_afterwards_even_after_an_error(random_encoder, pictures):
    pixels = random_encoder.preprocess(pictures)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        capture_qkv(random_encoder.model) as captured,
    ):
        raise RuntimeError("on purpose")
    random_encoder.model.forward_features(pixels)
    assert captured == []


# ---------------------------------------------------------------- preprocessing


def test_preprocess_normalises_and_pads_right_and_bottom(random_encoder, pictures):
    pixels = random_encoder.preprocess(pictures)
    assert pixels.shape == (2, 3, 24, 32)
    assert (pixels[:, :, 20:] == pixels[:, :, 19:20]).all() and (
        pixels[..., 27:] == pixels[..., 26:27]
    ).all()
    mean, std = (
        torch.tensor(IMAGENET_MEAN)[:, None, None],
        torch.tensor(IMAGENET_STD)[:, None, None],
    )
    torch.testing.assert_close(
        pixels[:, :, :20, :27] * std + mean, pictures / 255, atol=1e-6, rtol=1e-5
    )


def test_preprocess_does_not_pad_whole_patches(random_encoder):
    assert random_encoder.preprocess(torch.zeros(1, 3, 16, 24, dtype=torch.uint8)).shape == (
        1,
        3,
        16,
        24,
    )


@pytest.mark.parametrize(
    "wrong",
    [torch.rand(1, 3, 16, 16), torch.ones(1, 16, 16, 3).byte(), torch.ones(3, 16, 16).byte()],
)
def test_preprocess_refuses_other_layouts_and_types(random_encoder, wrong):
    with pytest.raises(ValueError, match="uint8"):
        random_encoder.preprocess(wrong)


# ---------------------------------------------------------------- the keys' origin


def test_folding_the_mean_key_moves_keys_and_nothing_else(random_encoder, pictures):
    folded = copy.deepcopy(random_encoder)
    before = folded.tokens(pictures)
    mean_key = before.keys.mean((0, 2)) + 1  # a shift that is not small
    fold_key_mean(folded.model, mean_key)
    after = folded.tokens(pictures)
    torch.testing.assert_close(after.cls, before.cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.patches, before.patches, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.keys, before.keys - mean_key[:, None], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.queries, before.queries)


@pytest.mark.parametrize("attention", [{"qkv_bias": False}, {"qk_norm": True}])
def test_folding_is_refused_where_attention_would_see_it(attention):
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=3, num_classes=0, **attention
    )
    with pytest.raises(ValueError, match="centre"):
        fold_key_mean(model, torch.zeros(3, 4))


def test_folding_refuses_a_mean_of_another_shape(random_encoder):
    with pytest.raises(ValueError):
        # one head alone: would land in the middle of the queries
        fold_key_mean(copy.deepcopy(random_encoder.model), torch.ones(48))


# ---------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_weights(path, build_zoo_vit().state_dict(), header={"architecture": ZOO_ARCHITECTURE})
    return path


def test_saved_weights_give_the_same_tokens(weights, pictures):
    first, second = (load_encoder("zoo", weights=weights, device="cpu") for _ in range(2))
    assert torch.equal(first.tokens(pictures).cls, second.tokens(pictures).cls)


def test_random_weights_are_drawn_anew(pictures):
    first, second = (load_encoder("zoo", weights="random", device="cpu") for _ in range(2))
    assert not torch.equal(first.tokens(pictures).keys, second.tokens(pictures).keys)


def test_the_embedded_weights_load_and_are_not_random(pictures):
    embedded, again = (load_encoder("zoo", device="cpu") for _ in range(2))
    assert torch.equal(embedded.tokens(pictures).cls, again.tokens(pictures).cls)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no weights at"):
        load_encoder("zoo", weights=tmp_path / "absent.safetensors", device="cpu")


@pytest.mark.parametrize("cut", [0, 5, 1000, -1])
def test_truncated_weights_are_refused(weights, tmp_path, cut):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(WeightsError, match="not a whole"):
        load_encoder("zoo", weights=broken, device="cpu")


def test_weights_of_another_architecture_are_refused(tmp_path):
    other = tmp_path / "other.safetensors"
    save_weights(
        other,
        build_zoo_vit().state_dict(),
        header={"architecture": ZOO_ARCHITECTURE | {"depth": 12}},
    )
    with pytest.raises(WeightsError, match="expected"):
        load_encoder("zoo", weights=other, device="cpu")


@pytest.mark.parametrize("fault", ["shape", "missing", "left over"])
def test_weights_that_do_not_fit_are_refused(tmp_path, fault):
    state = build_zoo_vit().state_dict()
    if fault == "shape":
        state["norm.weight"] = torch.ones(7)
    elif fault == "missing":
        del state["norm.weight"]
    else:
        state["surplus"] = torch.ones(1)
    path = tmp_path / "unfit.safetensors"
    save_weights(path, state, header={"architecture": ZOO_ARCHITECTURE})
    with pytest.raises(WeightsError, match="does not fit"):
        load_encoder("zoo", weights=path, device="cpu")


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="zoo"):
        load_encoder("resnet", device="cpu")


def test_the_embedded_encoder_was_made_with_the_parameters_of_a1(zoo_root):
    """And its history is that of these updates."""
    _, header = read_weights(zoo_root / "encoder.safetensors")
    given = resolve(load_preset("pretrain"), {})["A1_pretrain_encoder"]
    looks = ("run_dir", "look_every", "gallery_scenes", "query_scenes")
    assert header["settings"] == {key: value for key, value in given.items() if key not in looks}
    history = read_json(zoo_root / "encoder_history.json")
    assert history["settings"] == header["settings"]
    assert history["history"][-1]["step"] == given["easy_steps"] + given["steps"]
