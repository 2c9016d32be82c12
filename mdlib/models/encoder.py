"""A frozen self-supervised ViT: images in, tokens out.

`load_encoder` knows "zoo", the course's own small ViT, and the published ones of `hub`, whose
docstring has the table of their names. `Tokens` holds the last block's queries, keys and values
beside the output tokens, exactly as the model's own attention uses them: a forward hook on
`blocks[-1].attn.qkv` reads them, and where a rotation follows (DINOv3) it is done here as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention, PatchEmbed, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mdlib.core.paths import ROOT
from mdlib.core.weights import fit_weights, load_weights
from mdlib.models.hub import PUBLISHED, ViT, load_published_vit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ZOO_WEIGHTS = ROOT / "data" / "zoo" / "encoder.safetensors"


class ZooArchitecture(TypedDict):
    """What the header of the zoo encoder's weights says; patch in pixels."""

    name: str
    width: int
    depth: int
    heads: int
    patch: int


ZOO_ARCHITECTURE: ZooArchitecture = {
    "name": "zoo",
    "width": 144,
    "depth": 6,
    "heads": 3,
    "patch": 8,
}


@dataclass(frozen=True)
class Tokens:
    """What a ViT says of a batch of B images, all float32.

    The N = h * w patches are in row-major order, without prefix tokens. Queries, keys and values
    are the last block's, before softmax and scaling.

    Attributes:
        cls: (B, D) after the final norm.
        patches: (B, N, D) after the final norm.
        cls_query: (B, heads, d).
        queries: (B, heads, N, d).
        keys: (B, heads, N, d).
        values: (B, heads, N, d).
        grid_hw: (h, w) in patches.
    """

    cls: Tensor
    patches: Tensor
    cls_query: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    grid_hw: tuple[int, int]

    def features(self, name: str) -> Tensor:
        """What stage 1 may compare: "keys", "values", "queries" or "patches", (B, heads, N, d).

        Output tokens, too, are cut into as many parts as there are heads.
        """
        if name == "patches":
            return self.patches.unflatten(2, (self.keys.shape[1], -1)).transpose(1, 2)
        return {"keys": self.keys, "values": self.values, "queries": self.queries}[name]


class ConvStem(PatchEmbed):
    """Patch embedding by three strided 3x3 convolutions instead of one 8x8.

    It trains much faster at this size (Xiao et al., arXiv 2106.14881). Replicate padding, so that
    the border does not look special.
    """

    def __init__(self, *, embed_dim: int, in_chans: int = 3, **kwargs):
        """As timm builds it: `embed_dim` is the width of the tokens."""
        super().__init__(embed_dim=embed_dim, in_chans=in_chans, **kwargs)
        layers: list[nn.Module] = []
        channels = in_chans
        for wider in (24, 48, 96):
            conv = nn.Conv2d(
                channels, wider, 3, stride=2, padding=1, padding_mode="replicate", bias=False
            )
            layers += [conv, nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]
            channels = wider
        # in the place of the one convolution that PatchEmbed has
        self.add_module("proj", nn.Sequential(*layers, nn.Conv2d(channels, embed_dim, 1)))


class ClassAttentionViT(VisionTransformer):
    """A ViT whose CLS token joins the patches before the last block (Touvron et al., 2103.17239).

    So the attention of CLS in the last block is all the pooling there is: what the loss asks of CLS
    it asks of this attention, which stage 1 reads.

    Attributes:
        joins_last: False lets CLS take part in every block, as in an ordinary ViT: so pretraining
            begins.
    """

    joins_last = True

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, N, D), the patches that enter the first block."""
        return self._pos_embed(self.patch_embed(images))[:, 1:]

    def refine(self, patches: Tensor, *, blocks: slice) -> Tensor:
        """Send tokens (B, N, D) through some of the blocks before the last one."""
        for block in self.blocks[:-1][blocks]:
            patches = block(patches)
        return patches

    def _before_last(self, images: Tensor) -> Tensor:
        """The tokens that enter the last block, (B, 1 + N, D), CLS first."""
        patches = self.embed(images)
        if self.joins_last:
            patches = self.refine(patches, blocks=slice(None))
        cls = cast(nn.Parameter, self.cls_token) + cast(nn.Parameter, self.pos_embed)[:, :1]
        tokens = torch.cat([cls.expand(len(patches), -1, -1), patches], 1)
        return tokens if self.joins_last else self.refine(tokens, blocks=slice(None))

    @property
    def last_block(self) -> Block:
        """The block of CLS."""
        return cast(Block, self.blocks[-1])

    def forward_features(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,  # noqa: ARG002 - as in timm
        is_causal: bool = False,  # noqa: ARG002
    ) -> Tensor:
        """(B, 3, H, W) normalised -> (B, 1 + N, D) after the final norm, CLS first."""
        return self.norm(self.last_block(self._before_last(x)))

    def class_tokens(self, images: Tensor) -> Tensor:
        """CLS of `forward_features` alone, without what the last block makes of the patches.

        Args:
            images: (B, 3, H, W) normalised.

        Returns:
            (B, D) after the final norm.
        """
        tokens, block = self._before_last(images), self.last_block
        attention = cast(Attention, block.attn)
        q, k, v = split_heads(attention.qkv(block.norm1(tokens)), heads=attention.num_heads)
        seen = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        cls = tokens[:, :1] + attention.proj(seen.transpose(1, 2).flatten(2))
        return self.norm(cls + block.mlp(block.norm2(cls)))[:, 0]


def build_zoo_vit() -> ClassAttentionViT:
    """Build the demo's encoder with random weights, 1.6 M parameters; see ZOO_ARCHITECTURE."""
    return ClassAttentionViT(
        img_size=64,
        patch_size=ZOO_ARCHITECTURE["patch"],
        embed_dim=ZOO_ARCHITECTURE["width"],
        depth=ZOO_ARCHITECTURE["depth"],
        num_heads=ZOO_ARCHITECTURE["heads"],
        num_classes=0,
        embed_layer=ConvStem,
        dynamic_img_size=True,
    )


class Encoder:
    """A frozen ViT of timm in eval mode.

    Pixels are normalised by the mean and std of the model's own configuration, ImageNet's where it
    has none.

    Attributes:
        model: the ViT.
        name: as `load_encoder` knows it.
        device: of the model and its tokens.
        patch: side of a patch in pixels.
        heads: of the last block's attention.
        width: dimension D of its tokens.
    """

    model: ViT
    patch: int

    def __init__(self, model: ViT, *, name: str, device: str | torch.device):
        """Freeze `model`, in place, and move it to `device`."""
        self.model = model.eval().requires_grad_(False).to(device)
        self.name, self.device = name, torch.device(device)
        self.patch = model.patch_embed.patch_size[0]
        self.heads = last_attention(model).num_heads
        self.width = model.embed_dim
        config = getattr(model, "pretrained_cfg", {"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
        self._mean = torch.tensor(config["mean"], device=device).view(3, 1, 1)
        self._std = torch.tensor(config["std"], device=device).view(3, 1, 1)

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise images and pad them to whole patches.

        The border is repeated to the right and the bottom. The reference pads with zeros: then a
        ViT takes the half-filled patches for an object, and stage 1 makes a mask of them.

        Args:
            images: (B, 3, H, W) uint8 RGB.

        Returns:
            (B, 3, H', W') float32 on the encoder's device.

        Raises:
            ValueError: for another shape or dtype.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must be (B, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
            )
        images = (images.to(self.device).float() / 255 - self._mean) / self._std
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.patch, 0, -height % self.patch), mode="replicate")

    # not inference_mode: a probe that trains on tokens must be allowed to save them for its
    # backward
    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tokens:
        """Run the ViT on images of one size.

        On a GPU it runs in bfloat16. Masks hardly notice: on the zoo's dev they overlap those of
        single precision with a mean IoU of 0.99, and are as good.

        Args:
            images: (B, 3, H, W) uint8 RGB.

        Returns:
            Tokens on the encoder's device.
        """
        pixels = self.preprocess(images)
        grid_hw = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        with (
            capture_qkv(self.model) as captured,
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"),
        ):
            out = self.model.forward_features(pixels)
        first = self.model.num_prefix_tokens  # CLS and whatever follows it before the patches
        q, k, v = split_heads(captured[0].float(), heads=self.heads)
        return Tokens(
            cls=out[:, 0].float(),
            patches=out[:, first:].float(),
            cls_query=q[:, :, 0],
            queries=q[:, :, first:],
            keys=k[:, :, first:],
            values=v[:, :, first:],
            grid_hw=grid_hw,
        )


def last_attention(model: ViT) -> Attention | EvaAttention:
    """Look up the attention of a ViT's last block."""
    attention = model.blocks[-1].attn
    if not isinstance(attention, Attention | EvaAttention):
        raise TypeError(f"the last block has {type(attention).__name__}, expected an attention")
    return attention


@contextmanager
def capture_qkv(model: ViT) -> Iterator[list[Tensor]]:
    """Yield a list that each forward extends by the last block's q, k and v, as they are used.

    They stand side by side, (B, T, 3 * D), with the T tokens of the model, prefix tokens first. The
    hook is removed at the end.
    """
    captured: list[Tensor] = []
    attention = last_attention(model)
    if isinstance(attention, EvaAttention):  # it rotates what its qkv layer gives
        handle = attention.register_forward_pre_hook(
            lambda _, args, options: captured.append(
                _rotated_qkv(attention, args[0], options["rope"])
            ),
            with_kwargs=True,
        )
    else:
        handle = attention.qkv.register_forward_hook(
            lambda _module, _inputs, out: captured.append(out)
        )
    try:
        yield captured
    finally:
        handle.remove()


def split_heads(qkv: Tensor, *, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split (B, T, 3 * D) into queries, keys and values, each (B, heads, T, D / heads)."""
    batch, tokens, triple = qkv.shape
    split = qkv.view(batch, tokens, 3, heads, triple // (3 * heads)).permute(2, 0, 3, 1, 4)
    queries, keys, values = split.unbind(0)
    return queries, keys, values


def _rotated_qkv(attention: EvaAttention, tokens: Tensor, rope: Tensor) -> Tensor:
    """(B, T, 3 * D) as DINOv3 uses it: the patches' queries and keys turned by their position."""
    q, k, v = split_heads(attention.qkv(tokens), heads=attention.num_heads)
    first = attention.num_prefix_tokens

    def rotate(x: Tensor) -> Tensor:
        turned = apply_rot_embed_cat(x[:, :, first:], rope, half=attention.rotate_half)
        return torch.cat([x[:, :, :first], turned], dim=2).type_as(x)

    # (3, B, heads, T, d) -> (B, T, 3 * D)
    return torch.stack([rotate(q), rotate(k), v]).permute(1, 3, 0, 2, 4).flatten(2)


def fold_key_mean(model: ViT, mean_key: Tensor) -> None:
    """Move the origin of the last block's keys by its key bias, in place.

    Changes no output up to rounding, since softmax(q . (k + c)) = softmax(q . k).

    Args:
        model: is changed in place.
        mean_key: (heads, d), what is subtracted from every key.

    Raises:
        ValueError: for another shape, and for an attention where the identity does not hold:
            without bias, with a norm on k, or with rotated k.
    """
    attention = last_attention(model)
    if getattr(attention.qkv, "bias", None) is None:
        raise ValueError("this attention has no qkv bias: centre the extracted keys instead")
    if not isinstance(getattr(attention, "k_norm", None), (nn.Identity, type(None))) or hasattr(
        attention, "rope"
    ):
        raise ValueError(
            "this attention normalises or rotates its keys after the bias: "
            "centre the extracted keys"
        )
    expected = (attention.num_heads, model.embed_dim // attention.num_heads)
    if tuple(mean_key.shape) != expected:
        raise ValueError(f"mean_key must be (heads, d) = {expected}, got {tuple(mean_key.shape)}")
    width = mean_key.numel()
    with torch.no_grad():
        attention.qkv.bias[width : 2 * width] -= mean_key.reshape(-1).to(attention.qkv.bias)


def load_encoder(
    name: str, *, weights: str | Path | None = None, device: str | torch.device
) -> Encoder:
    """Load a frozen encoder by name.

    Args:
        name: "zoo", or one of hub.PUBLISHED.
        weights: a file (zoo: safetensors as pretrain writes them; others: see `hub`); None: the
            embedded ones of "zoo", the published ones of others, fetched into the user's cache;
            "random": none, as a baseline.
        device: of the encoder.

    Raises:
        ValueError: for an unknown name.
        WeightsError: for missing, broken or unfitting weights.
    """
    if name in PUBLISHED:
        return Encoder(load_published_vit(name, weights=weights), name=name, device=device)
    if name != ZOO_ARCHITECTURE["name"]:
        raise ValueError(f"unknown encoder {name!r}; expected one of {['zoo', *PUBLISHED]}")
    model = build_zoo_vit()
    if weights != "random":
        state = load_weights(Path(weights or ZOO_WEIGHTS), architecture=ZOO_ARCHITECTURE)
        fit_weights(model, state, source=weights or ZOO_WEIGHTS)
    return Encoder(model, name=name, device=device)
