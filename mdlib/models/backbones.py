"""Backbones of the detector and the segmenter: images in, feature maps out.

None has ever seen a label.

    "vit"       the course's own encoder, for two CPU cores: one map of stride 8, made a pyramid
                where one is needed (Li et al., "Exploring plain ViT backbones", arXiv 2203.16527:
                a plain ViT needs no more than that)
    "resnet50"  the paper's: with an FPN for Mask R-CNN, at stride 8 for DeepLab-v3

Self-supervised weights of a ResNet-50 that are known by name (PUBLISHED_WEIGHTS), fetched once into
the user's cache:

    "dino_resnet50"    DINO (arXiv 2104.14294), for Mask R-CNN as in LOST's recipe
    "mocov2_resnet50"  MoCo v2, 800 epochs (arXiv 2003.04297), for DeepLab-v3 as in the paper;
                       CC BY-NC 4.0

torchvision would load supervised ImageNet weights where none are named; here `weights=None` is
always passed on.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from mdlib.core.weights import fit_weights, load_weights
from mdlib.models.checkpoints import fetch_checkpoint, read_checkpoint
from mdlib.models.encoder import ZOO_ARCHITECTURE, ClassAttentionViT, build_zoo_vit

BACKBONES = ("vit", "resnet50")
# name: address, and the first digits of the file's MD5 where its authors give them (MoCo's README)
PUBLISHED_WEIGHTS = {
    "dino_resnet50": (
        "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
        "",
    ),
    "mocov2_resnet50": (
        "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
        "a04e12f8",
    ),
}


class FeatureCache:
    """Feature maps of pictures that a frozen body has seen, in half precision.

    Bodies of the same weights may share one: a map is found by a hash of the picture's pixels.
    Maps of one picture at a time are computed, and rounded whether they are kept or not, so the
    numbers are the same to the bit with a cache that is empty, filled or full. Worth its memory
    where pictures come again: not where they are zoomed or turned at random.

    Args:
        max_bytes: of all maps together; what comes when they are reached is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self.maps: dict[bytes, Tensor] = {}

    def __call__(self, images: Tensor, extract: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the maps of a batch, or take them from the cache.

        Args:
            images: (B, 3, H, W).
            extract: (1, 3, H, W) -> (1, D, h, w), the body.

        Returns:
            (B, D, h, w) float32, in half precision's accuracy.
        """
        return torch.stack([self._one(image, extract) for image in images]).float()

    def _one(self, image: Tensor, extract: Callable[[Tensor], Tensor]) -> Tensor:
        """(3, H, W) -> (D, h, w) float16."""
        key = hashlib.blake2b(image.cpu().numpy().tobytes(), digest_size=16).digest()
        if (found := self.maps.get(key)) is None:
            found = extract(image[None])[0].half()
            if self.bytes + found.nbytes <= self.max_bytes:
                self.maps[key] = found
                self.bytes += found.nbytes
        return found


class ViTMap(nn.Module):
    """The zoo's ViT as a convolutional body of stride 8, whose map is whitened.

    The map is what enters the last block, after its first norm: that block works for the CLS token
    alone, and nothing trains what it makes of the patches. All tokens share one large vector, and
    what differs between subjects is a hundred times smaller: without whitening (as in stage 2; here
    a running one, channel by channel) heads hardly learn clusters in a few hundred steps.

    H and W are padded to whole patches by repeating the border, as the encoder does.

    Args:
        vit: the network; its `requires_grad` is set here.
        trainable_blocks: how many of the last ones of those blocks learn, and the norm with them;
            what comes before is frozen, as DeepLab's first layers are in the reference.
        cache: where nothing learns, each picture's map is taken from there, so it is computed
            once. On two CPU cores the body is most of a training step.

    Raises:
        ValueError: for more trainable blocks than there are, or fewer than none.
    """

    def __init__(
        self, vit: ClassAttentionViT, *, trainable_blocks: int, cache: FeatureCache | None = None
    ) -> None:
        super().__init__()
        blocks = vit.blocks[:-1]
        if not 0 <= trainable_blocks <= len(blocks):
            raise ValueError(
                f"trainable_blocks must be in 0..{len(blocks)}, got {trainable_blocks}"
            )
        self.vit, self.fixed = vit, len(blocks) - trainable_blocks
        self.out_channels, self.patch = vit.embed_dim, vit.patch_embed.patch_size[0]
        self.cache = None if trainable_blocks else cache
        self.whiten = nn.BatchNorm2d(vit.embed_dim, affine=False)
        vit.requires_grad_(False)
        learning = (*blocks[self.fixed :], vit.last_block.norm1)
        for part in learning if trainable_blocks else ():
            part.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; the stem stays in evaluation mode."""
        super().train(mode)
        self.vit.patch_embed.eval()  # the stem's BatchNorm keeps its statistics
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the whitened map of a batch.

        Args:
            images: (B, 3, H, W) float32, normalised.

        Returns:
            {"out": (B, D, H / 8, W / 8) float32}, sides rounded up.
        """
        maps = self._extract(images) if self.cache is None else self.cache(images, self._extract)
        return {"out": self.whiten(maps)}

    def _extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w), the patch tokens as a map."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch, 0, -height % self.patch), mode="replicate")
        grid_hw = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        with torch.no_grad():
            patches = self.vit.refine(self.vit.embed(images), blocks=slice(self.fixed))
        patches = self.vit.refine(patches, blocks=slice(self.fixed, None))
        patches = self.vit.last_block.norm1(patches)
        return patches.transpose(1, 2).unflatten(2, grid_hw)


class ViTPyramid(nn.Module):
    """The ViT's one map as the two levels that Mask R-CNN looks at.

    Args:
        body: gives the map of stride 8, which is the first level as it is; the second one, of
            stride 16, is made by averaging.
    """

    def __init__(self, body: ViTMap) -> None:
        super().__init__()
        self.body, self.out_channels = body, body.out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute both levels of a batch.

        Args:
            images: (B, 3, H, W) float32, normalised.

        Returns:
            {"0": (B, D, H / 8, W / 8), "1": (B, D, H / 16, W / 16)} float32, sides rounded up.
        """
        fine = self.body(images)["out"]
        return {"0": fine, "1": F.avg_pool2d(fine, 2, ceil_mode=True, count_include_pad=False)}


def build_map(
    name: str,
    *,
    weights: str | Path | None,
    trainable_blocks: int,
    cache: FeatureCache | None = None,
) -> nn.Module:
    """Build a body for DeepLab-v3.

    Args:
        name: one of BACKBONES.
        weights: a file of self-supervised weights; None or "random": none of them. For "vit"
            safetensors as `pretrain` writes them; for "resnet50" also a name in
            PUBLISHED_WEIGHTS, or a file of torch.save or safetensors with torchvision's key names
            and no head, or a checkpoint of MoCo v2.
        trainable_blocks: how many of the ViT's blocks, or of the ResNet's four layers, learn; the
            others are frozen.
        cache: for "vit" where nothing learns; else it is not used.

    Returns:
        A module, (B, 3, H, W) float32 normalised -> {"out": feature map of stride 8}, with its
        number of channels as `out_channels`.

    Raises:
        ValueError: for an unknown name, or a `trainable_blocks` out of its range.
        WeightsError: for weights that are missing, broken or unfitting, or cannot be fetched.
    """
    _check_name(name)
    if name == "vit":
        return ViTMap(_zoo_vit(weights), trainable_blocks=trainable_blocks, cache=cache)
    network = _resnet50(weights, replace_stride_with_dilation=[False, True, True])
    _freeze_layers(network, trainable_blocks)
    body = IntermediateLayerGetter(network, return_layers={"layer4": "out"})
    body.out_channels = 2048
    return body


def build_pyramid(
    name: str,
    *,
    weights: str | Path | None,
    trainable_blocks: int,
    cache: FeatureCache | None = None,
) -> nn.Module:
    """Build a body for Mask R-CNN.

    Args:
        name: one of BACKBONES.
        weights: as in `build_map`.
        trainable_blocks: as in `build_map`.
        cache: as in `build_map`.

    Returns:
        A module, (B, 3, H, W) float32 normalised -> {level: feature map}, all of `out_channels`.

    Raises:
        ValueError: for an unknown name, or a `trainable_blocks` out of its range.
        WeightsError: for weights that are missing, broken or unfitting, or cannot be fetched.
    """
    _check_name(name)
    if name == "vit":
        vit = _zoo_vit(weights)
        return ViTPyramid(ViTMap(vit, trainable_blocks=trainable_blocks, cache=cache))
    network = _resnet50(weights)
    _freeze_layers(network, trainable_blocks)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    return BackboneWithFPN(network, layers, [256, 512, 1024, 2048], 256)


def _zoo_vit(weights: str | Path | None) -> ClassAttentionViT:
    """The course's ViT, with weights from a file where one is given."""
    vit = build_zoo_vit()
    if weights not in (None, "random"):
        fit_weights(vit, load_weights(weights, architecture=ZOO_ARCHITECTURE), source=weights)
    return vit


class _StillNorm(nn.BatchNorm2d):
    """A BatchNorm whose statistics stand still, as its weights do, where it is frozen.

    A batch of few pictures has poor statistics.
    """

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and self.weight.requires_grad)


def _resnet50(weights: str | Path | None, **options: Any) -> nn.Module:
    """A ResNet-50 without a head; options: of torchvision's `resnet50`."""
    network = resnet50(weights=None, norm_layer=_StillNorm, **options)
    network.fc = nn.Identity()  # a head for ImageNet's classes has no place here
    if weights not in (None, "random"):
        path = weights
        if weights in PUBLISHED_WEIGHTS:
            url, md5 = PUBLISHED_WEIGHTS[weights]
            path = fetch_checkpoint(url, md5=md5)
        # MoCo keeps the wanted network beside its slow copy and a queue; its `fc` is a projection
        # head. An `fc` elsewhere is left in, and does not fit: it would be a head for classes, of a
        # network that has seen labels.
        state = read_checkpoint(path, networks=("module.encoder_q.",), head="fc.")
        fit_weights(network, state, source=path)
    return network


def _freeze_layers(network: nn.Module, trainable: int) -> None:
    """The last `trainable` of layer1..layer4 learn; 4 lets the stem learn too."""
    if not 0 <= trainable <= 4:
        raise ValueError(f"a ResNet has 4 layers that can learn, got {trainable}")
    learning = [f"layer{i}" for i in range(4, 4 - trainable, -1)]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trainable == 4 or name.split(".")[0] in learning)
    network.train()  # tells each norm whether it is frozen


def _check_name(name: str) -> None:
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; expected one of {BACKBONES}")
