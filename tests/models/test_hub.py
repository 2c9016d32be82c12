"""Published ViTs, each in its true architecture with random weights: their tokens are what they
attend with, and only their own files fit.
"""

import inspect
import math
import re
import shutil
import socket
from contextlib import contextmanager
from functools import partial

import huggingface_hub
import pytest
import timm
import torch
from timm.models import eva, vision_transformer

from mdlib.core.weights import WeightsError, save_weights
from mdlib.models import hub
from mdlib.models.encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Encoder,
    capture_qkv,
    fold_key_mean,
    load_encoder,
    split_heads,
)
from mdlib.models.hub import MOCOV3, PUBLISHED, build_published_vit, mocov3_positions

REGISTERS = {"dinov2_vits14_reg": 4, "dinov3_vits16": 4}
SMALL = [name for name in PUBLISHED if "vitb" not in name]
each_encoder = pytest.mark.parametrize("name", PUBLISHED)


@pytest.fixture(scope="module")
def built():
    """A getter of random encoders in their true architecture, each built once, and changed by no
    test.
    """
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = load_encoder(name, weights="random", device="cpu")
            # far from uniform attention, which would hide wrong keys
            made[name].model.blocks[-1].attn.qkv.weight.data.mul_(5)
        return made[name]

    return get


@pytest.fixture
def shallow(monkeypatch):
    """Of twelve equal blocks only one is built from here on: files of 8 MB, not 88.

    Gives a getter of random states.
    """
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=1))

    def get(name):
        torch.manual_seed(0)
        state = build_published_vit(name).state_dict()
        torch.manual_seed(1)  # what is loaded must not be drawn like it
        return state

    return get


@pytest.fixture
def tmp_path(tmp_path):
    """Weights are large: pytest would keep those of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def sealed(monkeypatch, tmp_path):
    """No network, and an empty cache of the hub."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was to be fetched")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def written(checkpoint, folder):
    torch.save(checkpoint, folder / "weights.pth")
    return folder / "weights.pth"


def loaded(name, weights=None):
    return load_encoder(name, weights=weights, device="cpu").model.state_dict()


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


# ---------------------------------------------------------------- tokens


def attention_output(attention, qkv, heads):
    q, k, v = split_heads(qkv, heads=heads)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


@contextmanager
def outputs_of(module):
    outputs = []
    handle = module.register_forward_hook(lambda module, args, out: outputs.append(out))
    yield outputs
    handle.remove()


@each_encoder
def test_queries_keys_and_values_reproduce_the_attention_of_the_model(built, pictures, name):
    """softmax(q k / sqrt d) v, projected, is what the last attention puts out; and tokens() gives
    these q, k, v.
    """
    encoder = built(name)
    attention = encoder.model.blocks[-1].attn
    with torch.no_grad(), capture_qkv(encoder.model) as captured, outputs_of(attention) as outputs:
        tokens = encoder.tokens(pictures)
        (qkv,), (theirs,) = captured, outputs
        torch.testing.assert_close(
            attention_output(attention, qkv, encoder.heads), theirs, atol=1e-4, rtol=1e-4
        )
        # heads matter
        assert (attention_output(attention, qkv, encoder.heads // 2) - theirs).abs().max() > 0.01

    first = 1 + REGISTERS.get(name, 0)
    q, k, v = split_heads(qkv, heads=encoder.heads)
    assert torch.equal(tokens.cls_query, q[:, :, 0])
    for ours, whole in ((tokens.queries, q), (tokens.keys, k), (tokens.values, v)):
        assert torch.equal(ours, whole[:, :, first:])


def test_dinov3s_keys_are_the_rotated_ones(built, pictures):
    """Its qkv layer alone would give keys that its attention never compares: as long, but turned
    otherwise.
    """
    encoder = built("dinov3_vits16")
    with outputs_of(encoder.model.blocks[-1].attn.qkv) as bare:
        keys = encoder.tokens(pictures).keys
    unrotated = split_heads(bare[-1], heads=encoder.heads)[1][:, :, 5:]
    torch.testing.assert_close(keys.norm(dim=-1), unrotated.norm(dim=-1))
    assert (keys - unrotated).abs().max() > 0.1


@each_encoder
def test_tokens_end_with_the_models_own_output_and_leave_registers_out(built, pictures, name):
    encoder = built(name)
    tokens = encoder.tokens(pictures)
    # not square, and padded
    height, width = math.ceil(20 / encoder.patch), math.ceil(27 / encoder.patch)
    assert tokens.grid_hw == (height, width)
    with torch.no_grad():
        out = encoder.model.forward_features(encoder.preprocess(pictures))
    assert out.shape == (2, 1 + REGISTERS.get(name, 0) + height * width, encoder.width)
    torch.testing.assert_close(tokens.cls, out[:, 0])
    torch.testing.assert_close(tokens.patches, out[:, -height * width :])
    assert tokens.keys.shape == (2, encoder.heads, height * width, encoder.width // encoder.heads)


@pytest.mark.parametrize("name", SMALL)
def test_keys_stand_where_their_patches_are(built, name):
    """With one bright patch, the key that moves most, from those of a dark image, is that patch's:
    row-major, registers left out.
    """
    encoder = built(name)
    dark = torch.zeros(1, 3, 3 * encoder.patch, 4 * encoder.patch, dtype=torch.uint8)
    bright = dark.clone()
    bright[:, :, encoder.patch : 2 * encoder.patch, 2 * encoder.patch : 3 * encoder.patch] = 255
    moved = (encoder.tokens(bright).keys - encoder.tokens(dark).keys).norm(dim=-1).sum(1)[0]
    assert moved.argmax() == 1 * 4 + 2


def test_the_table_of_names_is_true(built):
    """The docstring's rows against the models: width, heads, registers, timm's name; and the patch
    at the name's end.
    """
    text = inspect.getdoc(hub)
    for name in PUBLISHED:
        (row,) = re.findall(
            rf"^ *{name}  +(\d+)  +(\d+) +(CLS\S*(?: 4 registers)?) +.*?(\S+)$", text, re.MULTILINE
        )
        encoder = built(name)
        width, heads, prefix, timms = row
        assert (int(width), int(heads)) == (encoder.width, encoder.heads)
        assert ("4 registers" in prefix) == (encoder.model.num_prefix_tokens == 5)
        assert name == MOCOV3 or timms == hub.TIMM_NAMES[name]
        assert encoder.patch == int(re.search(r"vit[sb](\d+)", name)[1])


@each_encoder
def test_pixels_are_normalised_as_the_models_were_trained(built, name):
    grey = torch.full((1, 3, 16, 16), 51, dtype=torch.uint8)  # 0.2
    expected = (0.2 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(built(name).preprocess(grey)[0, :, 0, 0], expected)


def test_the_models_configuration_decides_how_pixels_are_normalised():
    # trained with mean and std 0.5
    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k", dynamic_img_size=True)
    encoder = Encoder(model, name="other", device="cpu")
    torch.testing.assert_close(
        encoder.preprocess(torch.full((1, 3, 16, 16), 51, dtype=torch.uint8)),
        torch.full((1, 3, 16, 16), -0.6),
    )


def test_the_keys_origin_is_not_moved_where_keys_are_rotated(built):
    with pytest.raises(ValueError, match="centre"):
        fold_key_mean(built("dinov3_vits16").model, torch.zeros(6, 64))


def test_random_weights_are_the_seeds(shallow):
    state = shallow("dino_vits16")
    assert not torch.equal(loaded("dino_vits16", "random")["pos_embed"], state["pos_embed"])
    torch.manual_seed(0)
    assert_same(loaded("dino_vits16", "random"), state)


def test_mocov3s_positions_are_sines_and_cosines_of_row_and_column(built):
    """Its vits.py: omega_i = 10000^(-i / 96); sin, cos of the row, then sin, cos of the column;
    nothing for CLS.
    """
    position = built(MOCOV3).model.pos_embed[0]
    assert torch.equal(mocov3_positions()[0], position) and not position[0].any()
    for row, column, i in ((0, 0, 0), (0, 13, 95), (13, 0, 5), (7, 3, 40)):
        omega = 10000 ** (-i / 96)
        patch = position[1 + 14 * row + column].view(4, 96)[:, i]
        expected = [
            math.sin(row * omega),
            math.cos(row * omega),
            math.sin(column * omega),
            math.cos(column * omega),
        ]
        torch.testing.assert_close(patch, torch.tensor(expected), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- weights: nothing is fetched


def test_the_seal_holds_where_the_hub_is_asked_and_the_message_says_how_to_do_without(sealed):
    with pytest.raises(WeightsError) as caught:
        load_encoder("dino_vits16", device="cpu")
    for told in (
        "local file",
        "vit_small_patch16_224.dino",
        "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16",
    ):
        assert told in str(caught.value)


def test_mocov3_is_asked_of_its_authors(monkeypatch, sealed, tmp_path, shallow):
    state, asked = shallow(MOCOV3), []
    path = written(state, tmp_path)
    monkeypatch.setattr(hub, "fetch_checkpoint", lambda url: asked.append(url) or path)
    assert_same(loaded(MOCOV3), state)
    assert asked == ["https://dl.fbaipublicfiles.com/moco-v3/vit-s-300ep/vit-s-300ep.pth.tar"]


@each_encoder
def test_random_weights_fetch_nothing(sealed, shallow, name):
    loaded(name, "random")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@each_encoder
def test_a_local_file_with_timms_names_is_loaded_and_nothing_is_fetched(
    sealed, shallow, tmp_path, name, suffix
):
    state, path = shallow(name), tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_weights(path, state, header={"format": "pt"})
    assert_same(loaded(name, path), state)


@pytest.mark.parametrize("name", hub.TIMM_NAMES)
def test_without_a_file_timms_hub_is_asked_for_this_very_model(monkeypatch, shallow, name):
    state, asked = shallow(name), []
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda hub_id, **_: asked.append(hub_id) or dict(state),
    )
    assert_same(loaded(name), state)
    assert asked == [f"timm/{hub.TIMM_NAMES[name]}"]


# ---------------------------------------------------------------- weights: the authors' names


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_dinos_own_names_are_timms_with_or_without_what_wraps_them(shallow, tmp_path, prefix):
    state = shallow("dino_vits16")
    original = {prefix + key: value for key, value in state.items()}
    if "backbone" in prefix:  # its head stands beside it
        original[prefix.replace("backbone.", "head.") + "last_layer.weight"] = torch.ones(1)
    assert_same(loaded("dino_vits16", written(original, tmp_path)), state)


def original_dinov2(state):
    """As the DINOv2 repository keeps it: CLS's position in pos_embed, registers under another name,
    a mask token.
    """
    state = {**state, "mask_token": torch.zeros(1, 384)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.25), state["pos_embed"]], 1)
    return state


def original_dinov3(state):
    """As the DINOv3 repository keeps it: with the rotation's periods, and a qkv bias of zeros, that
    of keys masked out.
    """
    names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}
    original = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for key, value in state.items():
        original[".".join(names.get(part, part) for part in key.split("."))] = value
        if key.endswith("qkv.weight"):
            original[key.replace("weight", "bias")] = torch.zeros(1152)
            original[key.replace("weight", "bias_mask")] = torch.ones(1152)
    return original


@pytest.mark.parametrize(
    ("name", "rename", "judge"),
    [
        ("dinov2_vits14", original_dinov2, vision_transformer.checkpoint_filter_fn),
        ("dinov2_vits14_reg", original_dinov2, vision_transformer.checkpoint_filter_fn),
        ("dinov3_vits16", original_dinov3, eva.checkpoint_filter_fn),
    ],
)
def test_the_authors_names_become_timms_as_timm_itself_would_have_it(
    shallow, tmp_path, name, rename, judge
):
    state = shallow(name)
    original = rename(state)
    assert original.keys() != state.keys()
    ours = loaded(name, written(original, tmp_path))
    assert_same(ours, judge(dict(original), build_published_vit(name)))
    if name == "dinov2_vits14_reg":  # CLS has its position added
        state = {**state, "cls_token": state["cls_token"] + 0.25}
    assert_same(ours, state)


def test_mocov3s_base_encoder_is_taken_from_its_checkpoint(shallow, tmp_path):
    state = shallow(MOCOV3)
    networks = {"module.base_encoder." + key: value for key, value in state.items()}
    networks |= {"module.momentum_encoder." + key: value + 1 for key, value in state.items()}
    for key in ("base_encoder.head.0", "momentum_encoder.head.0", "predictor.0"):
        networks[f"module.{key}.weight"] = torch.ones(2, 2)
    path = written(
        {"epoch": 300, "arch": "vit_small", "state_dict": networks, "optimizer": {"state": {}}},
        tmp_path,
    )
    assert_same(loaded(MOCOV3, path), state)


# ---------------------------------------------------------------- weights: what is refused


def test_a_file_of_six_heads_is_refused_for_twelve_and_the_other_way_round(shallow, tmp_path):
    """Same keys, same shapes: only the position embedding tells."""
    states = {name: shallow(name) for name in ("dino_vits16", MOCOV3)}
    assert {k: v.shape for k, v in states[MOCOV3].items()} == {
        k: v.shape for k, v in states["dino_vits16"].items()
    }
    for name, other, told in (
        (MOCOV3, "dino_vits16", "6 heads"),
        ("dino_vits16", MOCOV3, "12 heads"),
    ):
        with pytest.raises(WeightsError, match=rf"weights\.pth is not of {name}.*{told}"):
            loaded(name, written(states[other], tmp_path))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("dino_vits16", "dino_vits8"),
        ("dino_vits8", "dino_vits16"),
        ("dino_vitb16", "dino_vits16"),
        ("dino_vits16", "dinov2_vits14"),
        ("dinov2_vits14", "dinov2_vits14_reg"),
        ("dinov2_vits14_reg", "dinov2_vits14"),
        ("dinov3_vits16", "dino_vits16"),
        (MOCOV3, "dino_vits8"),
    ],
)
def test_a_file_of_another_encoder_is_refused_not_adapted(shallow, tmp_path, name, other):
    with pytest.raises(WeightsError, match="does not fit"):
        loaded(name, written(shallow(other), tmp_path))


def test_a_file_of_another_depth_is_refused(shallow, tmp_path, monkeypatch):
    path = written(shallow("dino_vits16"), tmp_path)
    monkeypatch.undo()
    with pytest.raises(WeightsError, match=r"missing \['blocks\.1\."):
        loaded("dino_vits16", path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_supervised_vit_is_refused_for_its_head(shallow, tmp_path, prefix):
    state = {
        **shallow("dino_vits16"),
        "head.weight": torch.ones(1000, 384),
        "head.bias": torch.ones(1000),
    }
    path = written({prefix + key: value for key, value in state.items()}, tmp_path)
    with pytest.raises(WeightsError, match=r"left over \['head"):
        loaded("dino_vits16", path)


@pytest.mark.parametrize("name", SMALL)
def test_a_file_without_all_weights_is_refused(shallow, tmp_path, name):
    state = {key: value for key, value in shallow(name).items() if key != "cls_token"}
    with pytest.raises(WeightsError, match=r"missing \['cls_token"):
        loaded(name, written(state, tmp_path))


def test_dinov3_with_a_query_bias_is_refused_since_timms_model_has_none(shallow, tmp_path):
    original = original_dinov3(shallow("dinov3_vits16"))
    original["blocks.0.attn.qkv.bias"][0] = 0.1
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.qkv\.bias is not zero"):
        loaded("dinov3_vits16", written(original, tmp_path))


def test_missing_and_truncated_files_are_refused(shallow, tmp_path):
    with pytest.raises(WeightsError, match="no weights at"):
        loaded("dino_vits16", tmp_path / "absent.pth")
    path = written(shallow("dino_vits16"), tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"weights\.pth is not a whole checkpoint"):
        loaded("dino_vits16", path)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(ValueError, match=r"'dino_vits17'.*'zoo', 'dino_vits16'.*'mocov3_vits16'"):
        loaded("dino_vits17")
