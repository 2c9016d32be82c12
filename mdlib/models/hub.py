"""The published self-supervised ViTs of `load_encoder`, and how their files fit timm's models.

  name               D    heads prefix tokens    arXiv       timm's model
  dino_vits16        384  6     CLS              2104.14294  vit_small_patch16_224.dino
  dino_vits8         384  6     CLS              "           vit_small_patch8_224.dino
  dino_vitb16        768  12    CLS              "           vit_base_patch16_224.dino
  dino_vitb8         768  12    CLS              "           vit_base_patch8_224.dino
  dinov2_vits14      384  6     CLS              2304.07193  vit_small_patch14_dinov2.lvd142m
  dinov2_vits14_reg  384  6     CLS, 4 registers 2309.16588  vit_small_patch14_reg4_dinov2.lvd142m
  dinov3_vits16      384  6     CLS, 4 registers 2508.10104  vit_small_patch16_dinov3.lvd1689m
  mocov3_vits16      384  12    CLS              2104.02057  none: its ViT-S has 12 heads, timm's 6

The number at a name's end is the patch in pixels. Images of any size are taken: timm resamples the
position embedding. DINOv3 has none and rotates queries and keys instead, so that products of its
keys also see how far apart two patches are. A file may have timm's names or those of the authors'
repository; it must fit to the last tensor, and no size is adapted (timm itself would resample
another patch). Terms are the authors': MoCo's weights are CC BY-NC 4.0, DINOv3's have a licence of
their own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.layers import build_sincos2d_pos_embed
from timm.models import PretrainedCfg
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mdlib.core.weights import WeightsError, fit_weights
from mdlib.models.checkpoints import cached_checkpoint, fetch_checkpoint, read_checkpoint

TIMM_NAMES = {
    "dino_vits16": "vit_small_patch16_224.dino",
    "dino_vits8": "vit_small_patch8_224.dino",
    "dino_vitb16": "vit_base_patch16_224.dino",
    "dino_vitb8": "vit_base_patch8_224.dino",
    "dinov2_vits14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov3_vits16": "vit_small_patch16_dinov3.lvd1689m",
}
MOCOV3 = "mocov3_vits16"
# MoCo v3's CONFIG.md
MOCOV3_URL = "https://dl.fbaipublicfiles.com/moco-v3/vit-s-300ep/vit-s-300ep.pth.tar"
PUBLISHED = (*TIMM_NAMES, MOCOV3)

ViT = VisionTransformer | Eva  # Eva: DINOv3


def load_published_vit(name: str, *, weights: str | Path | None) -> ViT:
    """Build one of PUBLISHED with its weights.

    Args:
        name: of PUBLISHED.
        weights: a file; None: the published ones, fetched once into the user's cache; "random":
            none.

    Raises:
        WeightsError: for weights that are missing, broken or unfitting, or cannot be fetched.
    """
    if weights is None and name != MOCOV3:
        return _from_timms_hub(name)
    model = build_published_vit(name)
    if weights != "random":
        _fit(model, name, Path(weights or fetch_checkpoint(MOCOV3_URL)))
    return model


def build_published_vit(name: str) -> ViT:
    """Build the architecture of one of PUBLISHED with random weights; nothing is fetched."""
    if name != MOCOV3:
        return _create(TIMM_NAMES[name], pretrained=False)
    # DINO's ViT-S/16 but for its heads; both were trained on pixels normalised with ImageNet's mean
    # and std.
    model = _create(TIMM_NAMES["dino_vits16"], pretrained=False, num_heads=12)
    model.get_parameter("pos_embed").data.copy_(mocov3_positions())
    return model


def _create(timms: str, *, pretrained: bool, **options: Any) -> ViT:
    """A ViT of timm by timm's name that takes images of any size."""
    model = timm.create_model(timms, pretrained=pretrained, dynamic_img_size=True, **options)
    if not isinstance(model, ViT):
        raise TypeError(f"{timms} of timm is a {type(model).__name__}, expected a ViT")
    return model


def cached_vit(name: str) -> Path | None:
    """Find the published weights of one of PUBLISHED in the user's cache; None before a fetch."""
    if name == MOCOV3:
        return path if (path := cached_checkpoint(MOCOV3_URL)).is_file() else None
    config = _config(name)
    if config.hf_hub_id is None:
        return None
    found = try_to_load_from_cache(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def fetch_vit(name: str) -> Path | None:
    """Fetch the published weights of one of PUBLISHED into the user's cache.

    Returns:
        The file; None where timm keeps it elsewhere.

    Raises:
        WeightsError: they cannot be fetched.
    """
    if name == MOCOV3:
        return fetch_checkpoint(MOCOV3_URL)
    if cached_vit(name) is None:
        _from_timms_hub(name)
    return cached_vit(name)


def _config(name: str) -> PretrainedCfg:
    """What timm says of the weights of one of TIMM_NAMES."""
    config = timm.get_pretrained_cfg(TIMM_NAMES[name])
    if config is None:
        raise WeightsError(f"this version of timm has no weights of {TIMM_NAMES[name]}")
    return config


def mocov3_positions() -> Tensor:
    """Compute MoCo v3's position embedding, which is not learned.

    Returns:
        (1, 1 + 14 * 14, 384) float32: zero for CLS, then for each patch sin and cos of its row,
        sin and cos of its column, at 96 frequencies.
    """
    patches = build_sincos2d_pos_embed([14, 14], dim=384, interleave_sin_cos=True)
    return torch.cat([torch.zeros(1, 384), patches])[None]


def _from_timms_hub(name: str) -> ViT:
    """A ViT with the weights that timm's hub publishes."""
    try:
        return _create(TIMM_NAMES[name], pretrained=True)
    except Exception as error:  # the hub's client, its network and its files fail in many ways
        original = _config(name).url or "its authors"
        raise WeightsError(
            f"timm's hub gave no weights for {name} ({type(error).__name__}: {error}). "
            f"Without a network, give a local file as `weights`: {TIMM_NAMES[name]} of timm, "
            f"or that of {original}"
        ) from error


def _fit(model: ViT, name: str, path: Path) -> None:
    """Load a file of timm's or of the authors' into a model, or WeightsError."""
    family = name.partition("_")[0]
    if family == "mocov3":
        # not its momentum_encoder: as its authors do
        state = read_checkpoint(path, networks=("module.base_encoder.",), head="head.")
    else:
        state = read_checkpoint(path, networks=("module.backbone.", "backbone.", "module."))
    state = RENAMING.get(family, dict)(state)
    fit_weights(model, state, source=path)
    # the same shapes, but 6 heads and 12: nothing else tells a file of one from the other
    if name in ("dino_vits16", MOCOV3):
        fixed = torch.allclose(model.get_parameter("pos_embed"), mocov3_positions(), atol=1e-3)
        if fixed != (name == MOCOV3):
            kind = (
                "fixed (MoCo v3's, of 12 heads)"
                if fixed
                else "learned (those of a ViT-S of 6 heads)"
            )
            raise WeightsError(
                f"{path} is not of {name}: its shapes fit, but its position embedding is {kind}"
            )


def _from_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With registers, timm adds positions to patches alone: CLS gets its own once and for all."""
    # for its pretraining only
    state = {key: value for key, value in state.items() if key != "mask_token"}
    if {"register_tokens", "pos_embed", "cls_token"} <= state.keys():
        positions = state["pos_embed"]
        state["reg_token"] = state.pop("register_tokens")
        state |= {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return state


def _from_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of timm, which computes the rotation and has no qkv bias: it must be zero."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("attn.qkv.bias"):
            query, _, value_bias = value.chunk(3)  # the key's is masked out
            if query.any() or value_bias.any():
                raise WeightsError(f"{key} is not zero, as it is in the published DINOv3 ViT-S/16")
        elif not key.endswith(("mask_token", ".bias_mask", "rope_embed.periods")):
            key = key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
            renamed[key.replace("storage_tokens", "reg_token")] = value
    return renamed


# the others have timm's names
RENAMING: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "dinov2": _from_dinov2,
    "dinov3": _from_dinov3,
}
