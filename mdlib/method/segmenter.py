"""DeepLab-v3 on pseudo label maps: stage 5. Its features are also probed linearly: stage 8.

The head is torchvision's (Chen et al., arXiv 1706.05587): atrous spatial pyramid pooling, a 3x3 and
a 1x1 convolution. The loss is computed on the hardest pixels alone (OHEM, Shrivastava et al., arXiv
1604.03540).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF
from torchvision.tv_tensors import Mask

from mdlib.core.label_map import void_of
from mdlib.core.settings import Settings
from mdlib.core.shards import ARRAYS, in_shards
from mdlib.core.weights import check_architecture, fit_weights, read_weights
from mdlib.data import Dataset
from mdlib.data.loading import load
from mdlib.method import crf
from mdlib.method.linear_probe import TokenProbe, linear_classifier
from mdlib.models.backbones import FeatureCache, build_map
from mdlib.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from mdlib.training import launch

VOID = -1  # a pixel of a batch that never counts; in maps it is the largest label, see `void_of`
BAND = 16_000_000  # logits that are held at the size of a picture at once: 64 MB
# (dilation rates, channels): the paper's for its ResNet-50; for the ViT, what fits the demo's map
# of 24 x 24 cells
ASPP_SHAPE = {"resnet50": ((12, 24, 36), 256), "vit": ((2, 4, 6), 96)}


class Segmenter(nn.Module):
    """DeepLab-v3: images (B, 3, H, W) float in [0, 1] -> logits (B, outputs, H, W).

    Args:
        body: images, normalised -> {"out": map of stride 8} with `out_channels`, see
            `backbones.build_map`.
        outputs: logits a pixel.
        rates: dilation rates of the pyramid.
        channels: of the pyramid and the layers after it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, *, outputs: int, rates: tuple[int, ...], channels: int):
        super().__init__()
        self.body = body
        self.pyramid = nn.Sequential(
            ASPP(body.out_channels, rates, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(channels, outputs, 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Compute the classifier's input.

        Args:
            images: (B, 3, H, W) float in [0, 1].

        Returns:
            (B, channels, h, w) at stride 8.

        Raises:
            ValueError: for a single image in train mode.
        """
        if self.training and len(images) < 2:
            raise ValueError(
                "DeepLab's pooled branch normalises over the batch: train with two images or more"
            )
        return self.pyramid(self.body((images - self.mean) / self.std)["out"])

    def forward(self, images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """Compute the logits, enlarged bilinearly from stride 8.

        Args:
            images: (B, 3, H, W) float in [0, 1].
            size: (H, W) of the logits; None: that of the images.

        Returns:
            (B, outputs, H, W) float.

        Raises:
            ValueError: for a single image in train mode.
        """
        logits = self.classifier(self.features(images))
        return F.interpolate(
            logits, size=size or images.shape[-2:], mode="bilinear", align_corners=False
        )


def build_segmenter(
    backbone: str,
    *,
    weights: Path | None,
    trainable_blocks: int,
    outputs: int,
    cache: FeatureCache | None = None,
) -> Segmenter:
    """Build DeepLab-v3.

    Args:
        backbone: see `backbones.build_map`.
        weights: see `backbones.build_map`.
        trainable_blocks: see `backbones.build_map`.
        outputs: logits a pixel: background and one a cluster.
        cache: see `backbones.build_map`.

    Returns:
        The network in train mode, on the CPU.

    Raises:
        WeightsError: for weights that are missing, broken or unfitting.
    """
    body = build_map(backbone, weights=weights, trainable_blocks=trainable_blocks, cache=cache)
    rates, channels = ASPP_SHAPE[backbone]
    return Segmenter(body, outputs=outputs, rates=rates, channels=channels)


def load_segmenter(path: Path, *, device: str, cache: FeatureCache | None = None) -> Segmenter:
    """Load a segmenter that stage 05 or 06 wrote.

    Args:
        path: its file.
        device: where it is put.
        cache: see `backbones.build_map`.

    Returns:
        The network in eval mode.

    Raises:
        WeightsError: for a file that is missing or broken, or of another network.
    """
    state, header = read_weights(path)
    made = check_architecture(
        header, network="deeplab_v3", keys=("backbone", "outputs", "side"), source=path
    )
    model = build_segmenter(
        made["backbone"], weights=None, trainable_blocks=0, outputs=made["outputs"], cache=cache
    )
    fit_weights(model, state, source=path)
    return model.eval().to(device)


def reset_classifier(model: Segmenter, *, outputs: int) -> Segmenter:
    """Turn a segmenter into a linear probe, in place.

    All is frozen and in eval mode but a new 1x1 convolution, see `linear_probe.linear_classifier`.

    Args:
        model: the segmenter.
        outputs: logits a pixel of the new layer.

    Returns:
        The same network.
    """
    model.requires_grad_(False).eval()
    channels, device = model.classifier.in_channels, model.mean.device
    model.classifier = linear_classifier(channels, outputs, device=device)
    return model


# ---------------------------------------------------------------- loss


def ohem_loss(logits: Tensor, labels: Tensor, *, share: float) -> Tensor:
    """Compute the cross-entropy over the hardest `share` of the labelled pixels of a batch.

    Args:
        logits: (B, outputs, H, W) float.
        labels: (B, H, W) int64 with -1 void.
        share: in (0, 1], of all labelled pixels, at least one; 1 is plain cross-entropy.

    Returns:
        The scalar mean; 0, with zero gradients, where all is void.

    Raises:
        ValueError: for a share out of its range, or a label without a logit.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    counted = labels != VOID
    if counted.any() and int(labels[counted].max()) >= logits.shape[1]:
        raise ValueError(f"label {int(labels[counted].max())} for {logits.shape[1]} logits a pixel")
    losses = F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="none")[counted]
    if not losses.numel():
        return logits.sum() * 0
    return losses.topk(max(1, int(share * losses.numel()))).values.mean()


def batch_loss(
    model: nn.Module, batch: "SegmentationBatch", *, share: float
) -> tuple[Tensor, dict[str, float]]:
    """Compute `ohem_loss` of a batch, at the size of its labels.

    Args:
        model: a Segmenter, or a network with its arguments.
        batch: images and labels.
        share: see `ohem_loss`.

    Returns:
        The scalar loss, and no parts of it, as `loop.fit` asks.

    Raises:
        ValueError: as `ohem_loss`.
    """
    logits = model(batch.images, size=batch.labels.shape[-2:])
    return ohem_loss(logits, batch.labels, share=share), {}


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class SegmentationBatch:
    """Images and label maps of the same squares.

    Attributes:
        images: (B, 3, S, S) float in [0, 1].
        labels: (B, L, L) int64, -1 void.
        ids: of the images.
    """

    images: Tensor
    labels: Tensor
    ids: list[str]

    def to(self, device: str | torch.device) -> "SegmentationBatch":
        """The same batch on a device."""
        return SegmentationBatch(self.images.to(device), self.labels.to(device), self.ids)


@dataclass(frozen=True)
class Augment(Settings):
    """How pictures and their labels are shown in training.

    Attributes:
        side: pixels of the square in which a picture is shown; its longer side fills it.
        label_side: pixels of the square in which its labels are shown.
        scale: pictures are up to this share larger or smaller; in [0, 1).
        rotation: degrees by which they are turned at most, either way; in 0..180.
        mirror: whether half of them are mirrored.
    """

    side: int
    label_side: int
    scale: float
    rotation: float
    mirror: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of its range."""
        self.check("side", self.side >= 1, "1 pixel or more")
        self.check("label_side", self.label_side >= 1, "1 pixel or more")
        self.check("scale", 0 <= self.scale < 1, "in [0, 1)")
        self.check("rotation", 0 <= self.rotation <= 180, "in 0..180 degrees")

    @property
    def repeats(self) -> bool:
        """Whether views come again, so that the features of a frozen body may be kept."""
        return not (self.scale or self.rotation)

    def draw(self, rng: np.random.Generator) -> "View":
        """Draw a random view; it takes as many numbers from `rng` whatever the settings."""
        scale = rng.uniform(1 - self.scale, 1 + self.scale)
        rotation = rng.uniform(-self.rotation, self.rotation)
        mirrored = rng.random() < 0.5
        across, down = rng.uniform(-1, 1, 2) * abs(scale - 1)
        return View(scale, rotation, mirrored and self.mirror, (across, down))


@dataclass(frozen=True)
class View:
    """One way to show a picture.

    Attributes:
        scale: factor by which it is larger.
        rotation: degrees clockwise.
        mirrored: whether left and right are swapped, after all else.
        shift: of its middle, right and down, in halves of the square. So a zoomed picture is not
            always cut, or placed, about its middle.
    """

    scale: float = 1.0
    rotation: float = 0.0
    mirrored: bool = False
    shift: tuple[float, float] = (0.0, 0.0)


def show(
    image: np.ndarray, labels: np.ndarray, view: View, *, side: int, label_side: int
) -> tuple[Tensor, Tensor]:
    """Show a picture and its labels in squares.

    Beside a picture that is not square its border is repeated. What a zoom or a turn uncovers has
    ImageNet's mean colour, which is 0 after normalisation.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 with 255 void, or uint16 with 65535 void.
        view: how it is shown.
        side: pixels of the picture's square.
        label_side: pixels of the labels' square.

    Returns:
        image: (3, side, side) float32 in [0, 1].
        labels: (label_side, label_side) int64, -1 where they are void and outside of the picture.
    """
    height, width = labels.shape
    across, down = max(0, height - width), max(0, width - height)  # what a square lacks
    margins = [across // 2, down // 2, across - across // 2, down - down // 2]
    picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()
    picture = TF.pad(picture.float() / 255, margins, padding_mode="edge")
    known = np.where(labels == void_of(labels.dtype), VOID, labels.astype(np.int64))
    drawn = TF.pad(torch.from_numpy(known)[None], margins, fill=VOID)
    if view.scale != 1 or view.rotation:
        picture = _move(picture, view, interpolation=InterpolationMode.BILINEAR, fill=IMAGENET_MEAN)
        drawn = _move(Mask(drawn), view, fill=VOID).as_subclass(Tensor)
    picture = TF.resize(picture, [side, side], antialias=False)
    # a plain tensor: a Mask would be resized by "nearest", which takes the upper left pixel
    exact = InterpolationMode.NEAREST_EXACT
    drawn = TF.resize(drawn, [label_side, label_side], interpolation=exact)
    if view.mirrored:
        picture, drawn = TF.hflip(picture), TF.hflip(drawn)
    return picture, drawn[0]


def _move(square: Tensor, view: View, **options: Any) -> Tensor:
    """Zoom, turn and shift a (C, n, n) tensor."""
    shift = [part * square.shape[-1] / 2 for part in view.shift]
    moves = dict(angle=view.rotation, translate=shift, scale=view.scale, shear=[0.0, 0.0])
    return TF.affine(square, **moves, **options)


class SegmentationBatches:
    """batch(step) -> SegmentationBatch, a pure function of (seed, step).

    batch(step, part, parts) gives a part of it. `augment` says how pictures are shown; where its
    views repeat, a frozen body may have a FeatureCache.

    Args:
        dataset: the pictures.
        label_maps: one (H, W) map a picture, in the order of `dataset`; see `show`.
        batch: pictures in a batch, two or more.
        augment: how they are shown. Views are drawn here, and not by the classes of torchvision,
            which draw from the global random state.
        seed: of pictures and views.
        device: where batches are put.

    Raises:
        ValueError: for another number of label maps than of pictures, or a batch of less than two.
    """

    def __init__(
        self,
        dataset: Dataset,
        label_maps: Sequence[np.ndarray],
        *,
        batch: int,
        augment: Augment,
        seed: int,
        device: str,
    ):
        if len(label_maps) != len(dataset):
            raise ValueError(f"{len(label_maps)} label maps for {len(dataset)} images")
        if batch < 2:
            raise ValueError(
                f"a batch of {batch}: DeepLab's pooled branch needs two images or more"
            )
        self.dataset, self.label_maps, self.batch = dataset, label_maps, batch
        self.augment, self.seed, self.device = augment, seed, device

    def __call__(self, step: int, part: int = 0, parts: int = 1) -> SegmentationBatch:
        """A batch, or a part of it, on `device`."""
        return self.on_cpu(step, part, parts).to(self.device)

    def on_cpu(self, step: int, part: int = 0, parts: int = 1) -> SegmentationBatch:
        """The same on the CPU, for the worker processes of `loop.fit`."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.dataset), self.batch, replace=len(self.dataset) < self.batch)
        views = [self.augment.draw(rng) for _ in chosen]
        own = launch.share(self.batch, part, parts)
        sides = {"side": self.augment.side, "label_side": self.augment.label_side}
        pairs = [
            show(self.dataset.image(int(i)), self.label_maps[int(i)], view, **sides)
            for i, view in zip(chosen[own], views[own], strict=True)
        ]
        images, labels = (torch.stack(each) for each in zip(*pairs, strict=True))
        return SegmentationBatch(images, labels, [self.dataset.ids[i] for i in chosen[own]])


# ---------------------------------------------------------------- prediction


def predict_logits(
    model: Segmenter | TokenProbe,
    dataset: Dataset,
    *,
    side: int,
    batch: int,
    device: str,
    shards: Path | None = None,
) -> Iterator[Tensor]:
    """Yield the logits of each image, in order.

    The picture is resized to `side` x `side` pixels, as the reference does at 512.

    Args:
        model: a Segmenter, or a TokenProbe, whose logits are those of its patches; it is put into
            eval mode.
        dataset: the images.
        side: pixels.
        batch: images in a batch.
        device: the model's.
        shards: a folder in which finished parts are kept, see `shards.in_shards`; None: nowhere.

    Yields:
        (outputs, h, w) float32 on the CPU, at stride 8.
    """

    def make(part: range) -> Iterator[np.ndarray]:
        images = load(dataset.image, part, device=device, batch=batch)
        return (logits.numpy() for each in images for logits in _logits(model, each, side, device))

    rows = in_shards(shards, len(dataset), make, form=ARRAYS, batch=batch)
    return (torch.from_numpy(row) for row in rows)


@torch.no_grad()
def _logits(
    model: Segmenter | TokenProbe, images: list[np.ndarray], side: int, device: str
) -> Tensor:
    """The logits of a batch of images, float32 on the CPU."""
    model.eval()
    resized = [
        F.interpolate(
            torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float(),
            size=(side, side),
            mode="bilinear",
            antialias=True,
        )
        for image in images
    ]
    return model.classifier(model.features(torch.cat(resized) / 255)).float().cpu()


def probabilities(logits: Tensor, *, image_hw: tuple[int, int]) -> Tensor:
    """Enlarge logits bilinearly to the image first, and take the softmax then.

    Args:
        logits: (outputs, h, w).
        image_hw: (H, W).

    Returns:
        (outputs, H, W) that sum to 1 over the outputs.
    """
    return _enlarge(logits, image_hw).softmax(0)


def label_map(logits: Tensor, *, image_hw: tuple[int, int]) -> np.ndarray:
    """Take the output with the largest logit in each pixel, after bilinear enlargement.

    Only a few outputs are held at the size of the image at once.

    Args:
        logits: (outputs, h, w).
        image_hw: (H, W) of the image, to which they are enlarged.

    Returns:
        (H, W) uint8; uint16 for more than 255 outputs. The lower output on a tie.
    """
    height, width = image_hw
    at_once = max(8, BAND // (height * width))  # torch rounds three, as of a picture, otherwise
    labels = _smallest_type(np.zeros(image_hw, np.int64), outputs=len(logits))
    best, first = np.full(image_hw, -np.inf, np.float32), 0
    for some in logits.tensor_split(-(-len(logits) // at_once)):
        values, which = (found.numpy() for found in _enlarge(some, image_hw).max(0))
        better = values > best
        best[better], labels[better] = values[better], first + which[better]
        first += len(some)
    return labels


def _enlarge(logits: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """(outputs, h, w) -> (outputs, H, W), bilinear."""
    return F.interpolate(logits[None], size=image_hw, mode="bilinear", align_corners=False)[0]


def _smallest_type(labels: np.ndarray, *, outputs: int) -> np.ndarray:
    """Labels as uint8; as uint16 for more than 255 outputs."""
    return labels.astype(np.uint8 if outputs <= 255 else np.uint16)


def refined_maps(
    logits: Iterable[np.ndarray],
    dataset: Dataset,
    settings: crf.CrfSettings,
    *,
    workers: int,
    shards: Path | None = None,
) -> Iterator[np.ndarray]:
    """Compute the label map of each image after the CRF.

    Args:
        logits: (outputs, h, w) of each image, any iterable.
        dataset: the images, in the same order.
        settings: of the CRF.
        workers: processes, see `crf.refine_all`.
        shards: a folder in which finished parts are kept, see `shards.in_shards`; None: nowhere.

    Returns:
        Maps as those of `label_map`, one by one.

    Raises:
        ValueError: as `crf.refine_all`.
        CRFMissing: at once, without pydensecrf.
    """
    if not crf.available():
        raise crf.CRFMissing(crf.HOW_TO_INSTALL)
    numbered = enumerate(logits)

    def make(part: range) -> Iterator[np.ndarray]:
        images = map(dataset.image, part)
        soft = (
            probabilities(torch.from_numpy(row), image_hw=dataset.size(i)).numpy()
            for i, row in _rows(numbered, part)
        )
        refined = crf.refine_all(images, soft, settings, workers=workers)
        return (_smallest_type(p.argmax(0), outputs=len(p)) for p in refined)

    return in_shards(shards, len(dataset), make, form=ARRAYS)


def _rows(
    numbered: Iterator[tuple[int, np.ndarray]], part: range
) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of a range as float32, with their numbers; those before it are passed over."""
    for i, row in numbered:
        if i in part:
            yield i, np.asarray(row, np.float32)
        if i + 1 >= part.stop:
            return
