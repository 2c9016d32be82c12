"""No backbone has seen a label: nothing is fetched, what is frozen stays, and weights that do not
fit are refused.
"""

import copy
import pathlib
import shutil
import socket

import pytest
import torch
from torchvision.models import _api, resnet50

from mdlib.core.weights import WeightsError, read_weights, save_weights
from mdlib.method.detector import build_detector
from mdlib.method.segmenter import build_segmenter
from mdlib.models import backbones
from mdlib.models.backbones import (
    BACKBONES,
    FeatureCache,
    ViTMap,
    ViTPyramid,
    build_map,
    build_pyramid,
)
from mdlib.models.encoder import ZOO_ARCHITECTURE, ZOO_WEIGHTS, build_zoo_vit

BUILDERS = {"map": build_map, "pyramid": build_pyramid}
PARTS = {"vit": 5, "resnet50": 4}  # how many blocks or layers each can train
each_backbone = pytest.mark.parametrize("name", BACKBONES)
each_kind = pytest.mark.parametrize("kind", BUILDERS)


@pytest.fixture
def tmp_path(tmp_path):
    """Weights are large: pytest would keep those of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def networks():
    """{options: a ResNet-50 as torchvision builds it}."""
    return {}


@pytest.fixture(autouse=True)
def copied(request, monkeypatch, networks):
    """A ResNet-50 is a copy of one, which is quicker, where a test is not about how it is built
    (`sealed`).
    """
    if "sealed" not in request.fixturenames:

        def copied_resnet50(**options):
            key = repr(sorted(options.items()))
            if key not in networks:
                networks[key] = resnet50(**options)
            return copy.deepcopy(networks[key])

        monkeypatch.setattr(backbones, "resnet50", copied_resnet50)


@pytest.fixture
def sealed(monkeypatch):
    """No network, and no supervised weights from torch's cache either."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was to be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)  # torchvision's own name for it


def build(kind, name, trainable=2, weights=None):
    return BUILDERS[kind](name, weights=weights, trainable_blocks=trainable)


def images(batch=2, height=40, width=48):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def train_one_step(body):
    body.train()
    maps = body(images()).values()
    optimizer = torch.optim.AdamW([p for p in body.parameters() if p.requires_grad], lr=0.01)
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    optimizer.step()


# ---------------------------------------------------------------- nothing supervised


def test_the_seal_holds_where_supervised_weights_are_named(sealed):
    with pytest.raises(AssertionError, match="fetched"):
        resnet50(weights="DEFAULT")


@each_kind
@each_backbone
def test_a_backbone_is_built_without_network_or_supervised_weights(sealed, kind, name):
    body = build(kind, name).eval()
    with torch.no_grad():
        maps = body(images(1))
    assert {m.shape[1] for m in maps.values()} == {body.out_channels}
    assert tuple(maps["out" if kind == "map" else "0"].shape[-2:]) == (
        (5, 6) if name == "vit" or kind == "map" else (10, 12)
    )


@each_backbone
def test_detector_and_segmenter_are_built_without_network_or_supervised_weights(sealed, name):
    build_detector(name, weights=None, trainable_blocks=1, num_clusters=3, shorter_sides=(64,))
    build_segmenter(name, weights=None, trainable_blocks=1, outputs=4)


@each_backbone
def test_without_weights_the_seed_alone_decides(sealed, name):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in build("map", name).parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_no_head_for_imagenets_classes_is_left():
    for kind in BUILDERS:
        assert not [key for key in build(kind, "resnet50").state_dict() if "fc." in key]


# ---------------------------------------------------------------- what learns


@each_kind
@each_backbone
def test_one_step_moves_what_learns_and_nothing_that_is_frozen(kind, name):
    body = build(kind, name)
    before = copy.deepcopy(dict(body.named_parameters()))
    train_one_step(body)
    for key, parameter in body.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key
        assert torch.equal(parameter, before[key]) != parameter.requires_grad, key
    assert 0 < sum(p.requires_grad for p in body.parameters()) < len(before)


@pytest.mark.parametrize(
    ("trainable", "learning"), [(0, set()), (1, {"layer4"}), (3, {"layer2", "layer3", "layer4"})]
)
def test_the_last_layers_of_a_resnet_learn(trainable, learning):
    body = build("map", "resnet50", trainable)
    assert {key.split(".")[0] for key, p in body.named_parameters() if p.requires_grad} == learning


def test_a_resnet_with_all_four_layers_lets_its_stem_learn():
    assert all(p.requires_grad for p in build("map", "resnet50", 4).parameters())


@pytest.mark.parametrize("trainable", [0, 1, 5])
def test_the_last_blocks_of_a_vit_learn_and_its_embedding_never(trainable):
    vit = build("map", "vit", trainable).vit
    learning = {
        ".".join(key.split(".")[:3]) for key, p in vit.named_parameters() if p.requires_grad
    }
    last = range(5 - trainable, 5)
    blocks = {
        ".".join(key.split(".")[:3])
        for key, _ in vit.named_parameters()
        if key.startswith(tuple(f"blocks.{i}." for i in last))
    }
    assert learning == (blocks | {"blocks.5.norm1"} if trainable else set())


def buffers_of(*parts):
    return {
        (i, key): value.clone()
        for i, part in enumerate(parts)
        for key, value in part.named_buffers()
    }


def test_the_frozen_stem_keeps_its_statistics_in_train_mode_and_whitening_follows():
    body = build("map", "vit")
    stem, whiten = buffers_of(body.vit.patch_embed), buffers_of(body.whiten)
    assert any("running_mean" in key for _, key in stem)
    train_one_step(body)
    after = buffers_of(body.vit.patch_embed)
    assert all(torch.equal(after[key], stem[key]) for key in stem)
    assert not torch.equal(buffers_of(body.whiten)[0, "running_mean"], whiten[0, "running_mean"])


@each_kind
def test_frozen_layers_of_a_resnet_keep_their_statistics_in_train_mode(kind):
    body = build(kind, "resnet50", 2)
    network = body.body if kind == "pyramid" else body
    frozen, learning = (
        (network["bn1"], network["layer1"], network["layer2"]),
        (network["layer3"], network["layer4"]),
    )
    kept, moved = buffers_of(*frozen), buffers_of(*learning)
    train_one_step(body)
    assert all(torch.equal(value, kept[key]) for key, value in buffers_of(*frozen).items())
    assert not any(torch.equal(value, moved[key]) for key, value in buffers_of(*learning).items())


@each_backbone
def test_a_backbone_without_anything_to_learn_keeps_all_its_statistics_even_if_nobody_calls_train(
    name,
):
    body = build("map", name, 0)
    assert body.training
    kept = buffers_of(body)
    body(images())
    changed = {key for key, value in buffers_of(body).items() if not torch.equal(value, kept[key])}
    assert {key.split(".")[0] for _, key in changed} == ({"whiten"} if name == "vit" else set())


# ---------------------------------------------------------------- the map


def test_the_map_is_what_the_encoders_last_block_attends_to(random_encoder, pictures):
    """Fresh running statistics (0, 1) whiten nothing, so the map is the input of the last
    attention, pads included, without CLS.
    """
    body = ViTMap(copy.deepcopy(random_encoder.model), trainable_blocks=2).eval()
    entering = []
    handle = random_encoder.model.blocks[-1].norm1.register_forward_hook(
        lambda module, args, out: entering.append(out)
    )
    tokens = random_encoder.tokens(pictures)
    handle.remove()
    # ViTMap itself pads 20 x 27 to 24 x 32
    pixels = (pictures.float() / 255 - random_encoder._mean) / random_encoder._std
    with torch.no_grad():
        ours = body(pixels)["out"]
    assert ours.shape[-2:] == tokens.grid_hw
    theirs = entering[0][:, 1:].transpose(1, 2).unflatten(2, tokens.grid_hw)
    torch.testing.assert_close(ours, theirs / (1 + body.whiten.eps) ** 0.5, atol=1e-5, rtol=1e-4)


def test_in_train_mode_every_channel_of_the_map_is_white():
    out = build("map", "vit", weights=ZOO_WEIGHTS).train()(images(4, 64, 64))["out"]
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(144), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(144), atol=0.1, rtol=0)


def test_the_coarse_level_is_the_mean_of_four_cells_and_of_fewer_at_the_border():
    body = ViTPyramid(ViTMap(build_zoo_vit(), trainable_blocks=0)).eval()
    with torch.no_grad():
        levels = body(images(1, 40, 48))  # 5 x 6 cells: the last row stands alone
    fine, coarse = levels["0"], levels["1"]
    assert coarse.shape[-2:] == (3, 3)
    torch.testing.assert_close(coarse[..., 0, 1], fine[..., 0:2, 2:4].mean((2, 3)))
    torch.testing.assert_close(coarse[..., 2, 1], fine[..., 4, 2:4].mean(2))


def test_zoo_weights_are_really_loaded():
    body = build("pyramid", "vit", weights=ZOO_WEIGHTS).body
    state, _ = read_weights(ZOO_WEIGHTS)
    assert all(torch.equal(value, state[key]) for key, value in body.vit.state_dict().items())


@pytest.fixture(scope="module")
def resnet_state():
    network = resnet50(weights=None)
    network.fc = torch.nn.Identity()
    return network.state_dict()


def mocov2(state):
    """As MoCo v2's published checkpoint: the wanted encoder with its projection head, and what
    trained it.
    """
    networks = {"module.encoder_q." + key: value for key, value in state.items()}
    for layer in ("fc.0", "fc.2"):
        networks |= {
            f"module.encoder_q.{layer}.weight": torch.ones(2, 2),
            f"module.encoder_q.{layer}.bias": torch.ones(2),
        }
    networks |= {
        "module.encoder_k.conv1.weight": torch.ones(1),
        "module.queue": torch.ones(1),
        "module.queue_ptr": torch.ones(1),
    }
    return {
        "epoch": 800,
        "arch": "resnet50",
        "state_dict": networks,
        "optimizer": {"state": {}, "param_groups": []},
    }


def assert_loaded(kind, weights, state):
    body = build(kind, "resnet50", weights=weights)
    body = body.body if kind == "pyramid" else body
    ours = body.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[key], state[key]) for key in state)


@each_kind
@pytest.mark.parametrize("maker", ["safetensors", "dino", "mocov2"])
def test_self_supervised_weights_of_a_resnet_are_really_loaded_and_nothing_is_fetched(
    sealed, tmp_path, resnet_state, kind, maker
):
    path = tmp_path / "weights"
    if maker == "safetensors":
        save_weights(path, resnet_state, header={})
    else:
        torch.save(resnet_state if maker == "dino" else mocov2(resnet_state), path)
    assert_loaded(kind, path, resnet_state)


@each_kind
@pytest.mark.parametrize(
    ("name", "end", "md5"),
    [
        ("dino_resnet50", "/dino_resnet50_pretrain.pth", ""),
        ("mocov2_resnet50", "/moco_v2_800ep_pretrain.pth.tar", "a04e12f8"),
    ],
)
def test_published_weights_are_fetched_by_name_and_no_others(
    sealed, monkeypatch, tmp_path, resnet_state, kind, name, end, md5
):
    asked = []
    torch.save(mocov2(resnet_state) if "moco" in name else resnet_state, tmp_path / "cached")
    monkeypatch.setattr(
        backbones,
        "fetch_checkpoint",
        lambda url, md5: asked.append((url, md5)) or tmp_path / "cached",
    )
    assert_loaded(kind, name, resnet_state)
    ((url, digits),) = asked
    assert url.startswith(
        "https://dl.fbaipublicfiles.com/mo"
        if "moco" in name
        else "https://dl.fbaipublicfiles.com/dino/"
    )
    assert url.endswith(end) and digits == md5


# ---------------------------------------------------------------- what is refused


@each_kind
def test_an_unknown_backbone_names_the_known_ones(kind):
    with pytest.raises(ValueError, match="resnet50"):
        build(kind, "resnet18")


@each_kind
@each_backbone
@pytest.mark.parametrize("wrong", [-1, "one too many"])
def test_a_wrong_number_of_trainable_blocks_is_refused(kind, name, wrong):
    with pytest.raises(ValueError, match=str(PARTS[name])):
        build(kind, name, PARTS[name] + 1 if wrong != -1 else -1)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "deeper.safetensors"
    save_weights(
        path,
        build_zoo_vit().state_dict(),
        header={"architecture": {**ZOO_ARCHITECTURE, "depth": 12}},
    )
    with pytest.raises(WeightsError, match="12"):
        build("map", "vit", weights=path)
    with pytest.raises(WeightsError, match="does not fit"):
        build("map", "resnet50", weights=path)


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_a_supervised_resnet_is_refused_for_its_head(tmp_path, form):
    state = resnet50(weights=None).state_dict()
    if form == "torch":
        torch.save(state, tmp_path / "supervised")
    else:
        save_weights(tmp_path / "supervised", state, header={})
    with pytest.raises(WeightsError, match=r"left over \['fc"):
        build("map", "resnet50", weights=tmp_path / "supervised")


def test_a_checkpoint_without_all_weights_is_refused(tmp_path, resnet_state):
    checkpoint = mocov2(
        {key: value for key, value in resnet_state.items() if key != "bn1.running_mean"}
    )
    torch.save(checkpoint, tmp_path / "weights")
    with pytest.raises(WeightsError, match=r"missing \['bn1\.running_mean'\], left over \[\]"):
        build("map", "resnet50", weights=tmp_path / "weights")


def test_a_name_that_is_not_known_is_taken_for_a_file():
    with pytest.raises(WeightsError, match="no weights at mocov9_resnet50"):
        build("map", "resnet50", weights="mocov9_resnet50")


class Malicious:
    """Unpickling it creates a file: what a stranger's .pth may do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def written(kind, folder):
    path = folder / f"{kind}.pth"  # torch.load would unpickle this one
    if kind == "pickle":
        torch.save(Malicious(folder / "the code ran"), path)
    elif kind == "truncated":
        path.write_bytes(ZOO_WEIGHTS.read_bytes()[:100_000])
    elif kind == "empty":
        path.touch()
    return path


@each_kind
@each_backbone
@pytest.mark.parametrize("file", ["missing", "empty", "truncated", "pickle"])
def test_files_that_are_no_weights_are_refused_and_never_run(tmp_path, kind, name, file):
    path = written(file, tmp_path)
    with pytest.raises(WeightsError, match=path.name):
        build(kind, name, weights=path)
    assert not (tmp_path / "the code ran").exists()


def test_the_malicious_file_would_have_run_if_unpickled(tmp_path):
    torch.load(written("pickle", tmp_path), weights_only=False)
    assert (tmp_path / "the code ran").exists()


# ---------------------------------------------------------------- cache


@pytest.fixture
def looks(monkeypatch):
    """How many pictures a ViT has looked at, at each call."""
    seen, extract = [], ViTMap._extract
    monkeypatch.setattr(
        ViTMap, "_extract", lambda self, images: seen.append(len(images)) or extract(self, images)
    )
    return seen


def frozen(cache=None, seed=0):
    torch.manual_seed(seed)
    return build_map("vit", weights=None, trainable_blocks=0, cache=cache).eval()


def test_a_frozen_body_looks_at_each_picture_once_and_bodies_may_share_what_it_saw(looks):
    cache, images = FeatureCache(10**9), torch.rand(3, 3, 32, 40)
    plain, first = frozen()(images)["out"], frozen(cache)(images)["out"]
    torch.testing.assert_close(first, plain, rtol=1e-2, atol=1e-2)  # half precision
    assert looks == [3, 1, 1, 1]
    assert torch.equal(frozen(cache, seed=1)(images.flip(0))["out"], first.flip(0))
    assert looks == [3, 1, 1, 1]


def test_a_full_cache_keeps_no_more_and_the_numbers_stay(looks):
    cache, images = FeatureCache(10**9), torch.rand(3, 3, 32, 40)
    expected = frozen(cache)(images)["out"]
    small = FeatureCache(cache.bytes // 3 * 2)  # two of three maps
    body = frozen(small)
    for _ in range(2):
        assert torch.equal(body(images)["out"], expected)
    assert len(small.maps) == 2 and small.bytes <= small.max_bytes
    assert looks == [1] * 3 + [1] * 3 + [1]  # the third is looked at again


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("build", [build_map, build_pyramid])
def test_a_body_that_learns_uses_no_cache(build, name):
    cache = FeatureCache(10**9)
    body = build(name, weights=None, trainable_blocks=1, cache=cache)
    sum(level.sum() for level in body(torch.rand(2, 3, 32, 32)).values()).backward()
    assert not cache.maps and any(p.grad is not None for p in body.parameters())
