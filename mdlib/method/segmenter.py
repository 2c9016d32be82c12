"""DeepLab-v3 on pseudo label maps: stage 5. And its linear probe: stage 8.

The head is torchvision's (Chen et al., arXiv 1706.05587): an atrous spatial pyramid, a 3x3 and a
1x1 convolution. The loss looks at the hardest pixels alone (OHEM, Shrivastava et al., arXiv
1604.03540).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from mdlib.core.prefetch import made_ahead
from mdlib.core.weights import check_architecture, fit_weights, read_weights
from mdlib.data import VOID, Dataset
from mdlib.method import crf
from mdlib.models.backbones import ViTMap, build_map
from mdlib.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from mdlib.training import launch, loop

# (dilation rates, channels): the paper's for its ResNet-50, and what fits the demo's map of 24 x 24
# cells.
ASPP_SHAPE = {"resnet50": ((12, 24, 36), 256), "vit": ((2, 4, 6), 96)}


class Segmenter(nn.Module):
    """Images (B, 3, H, W) float in [0, 1] -> logits (B, outputs, H, W), or of another `size`,
    bilinear from stride 8.
    """

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
        """What the classifier sees: (B, channels, h, w)."""
        if self.training and len(images) < 2:
            raise ValueError(
                "DeepLab's pooled branch normalises over the batch: train with two images or more"
            )
        return self.pyramid(self.body((images - self.mean) / self.std)["out"])

    def forward(self, images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        logits = self.classifier(self.features(images))
        return F.interpolate(
            logits, size=size or images.shape[-2:], mode="bilinear", align_corners=False
        )


def build_segmenter(
    backbone: str, *, weights: Path | None, trainable_blocks: int, outputs: int
) -> Segmenter:
    """DeepLab-v3 with `outputs` logits a pixel: background and one a cluster.

    See backbones.build_map for the rest.
    """
    body = build_map(backbone, weights=weights, trainable_blocks=trainable_blocks)
    rates, channels = ASPP_SHAPE[backbone]
    return Segmenter(body, outputs=outputs, rates=rates, channels=channels)


def load_segmenter(path: Path, *, device: str) -> Segmenter:
    """The segmenter that stage 05 wrote.

    Raises WeightsError for a file that is missing, broken or another's.
    """
    state, header = read_weights(path)
    made = check_architecture(
        header, network="deeplab_v3", keys=("backbone", "outputs", "side"), source=path
    )
    model = build_segmenter(
        made["backbone"], weights=None, trainable_blocks=0, outputs=made["outputs"]
    )
    fit_weights(model, state, source=path)
    return model.eval().to(device)


def remember(model: Segmenter, memory: dict, *, zoom: float, turn: float) -> Segmenter:
    """Let a frozen ViT body keep in `memory` what it says of each picture (see ViTMap).

    Returns the model.

    Not where pictures are zoomed or turned: then none is shown twice. Segmenters on the same
    weights may share a memory.
    """
    if isinstance(model.body, ViTMap) and not (zoom or turn):
        model.body.memory = memory
    return model


def reset_classifier(model: Segmenter, *, outputs: int) -> Segmenter:
    """The linear probe: all is frozen and in eval mode but a new 1x1 convolution, drawn from N(0,
    0.01).
    """
    model.requires_grad_(False).eval()
    model.classifier = nn.Conv2d(model.classifier.in_channels, outputs, 1).to(model.mean.device)
    nn.init.normal_(model.classifier.weight, std=0.01)
    nn.init.zeros_(model.classifier.bias)
    return model


# ---------------------------------------------------------------- loss


def ohem_loss(logits: Tensor, labels: Tensor, *, share: float) -> Tensor:
    """Cross-entropy over the hardest `share` of all labelled pixels of a batch, at least one.

    logits (B, outputs, H, W), labels (B, H, W) int64 with 255 void; share in (0, 1], 1 is plain
    cross-entropy. A batch that is all void gives 0, with zero gradients. Raises ValueError for a
    label without a logit.
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


def batch_loss(model: Segmenter, batch: "SegmentationBatch", *, share: float) -> Tensor:
    """`ohem_loss` of a batch, at the size of its labels."""
    return ohem_loss(model(batch.images, size=batch.labels.shape[-2:]), batch.labels, share=share)


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class SegmentationBatch:
    """images (B, 3, S, S) float in [0, 1]; labels (B, L, L) int64 of the same squares, 255 void;
    ids of the images.
    """

    images: Tensor
    labels: Tensor
    ids: list[str]


class SegmentationBatches:
    """batch(step) -> SegmentationBatch, a pure function of (seed, step); batch(step, part, parts)
    -> a part of it.

    labels: one (H, W) map an image, in the order of `dataset`. Each picture is mirrored half the
    time, turned by up to `degrees`, zoomed by a factor within `zoom`, and shown in a square of
    `side` pixels; outside it, labels are void. label_side: pixels of the square in which labels are
    shown. With zoom (1, 1) and no degrees a picture is shown in two ways, which a frozen body can
    remember (backbones.ViTMap).
    """

    def __init__(
        self, dataset: Dataset, labels: list[np.ndarray], *, batch: int, side: int, label_side: int,
        zoom: tuple[float, float], degrees: float, seed: int, device: str,
    ):  # fmt: skip
        if len(labels) != len(dataset):
            raise ValueError(f"{len(labels)} label maps for {len(dataset)} images")
        if batch < 2:
            raise ValueError(
                f"a batch of {batch}: DeepLab's pooled branch needs two images or more"
            )
        if not 0 < zoom[0] <= zoom[1]:
            raise ValueError(f"zoom is a least and a largest factor above 0, got {zoom}")
        self.dataset, self.labels, self.batch, self.side, self.label_side = (
            dataset,
            labels,
            batch,
            side,
            label_side,
        )
        self.zoom, self.degrees, self.seed, self.device = zoom, degrees, seed, device

    def __call__(self, step: int, part: int = 0, parts: int = 1) -> SegmentationBatch:
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.dataset), self.batch, replace=len(self.dataset) < self.batch)
        moves = [self._move(rng) for _ in chosen]
        own = launch.share(self.batch, part, parts)
        pairs = [
            self._view(self.dataset.image(int(i)), self.labels[int(i)], *move)
            for i, move in zip(chosen[own], moves[own])
        ]
        images, labels = (torch.stack(part).to(self.device) for part in zip(*pairs))
        return SegmentationBatch(images, labels, [self.dataset.ids[i] for i in chosen[own]])

    def _move(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """How a picture is shown: a (2, 2) turn, mirror and zoom, and a (2,) shift."""
        zoom, turn = rng.uniform(*self.zoom), np.deg2rad(rng.uniform(-self.degrees, self.degrees))
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        spread = abs(1 - 1 / zoom)  # a zoomed picture is cut, or placed, anywhere
        shift = rng.uniform(-spread, spread, 2)
        return np.array(
            [[np.cos(turn) * mirror, -np.sin(turn)], [np.sin(turn) * mirror, np.cos(turn)]]
        ) / zoom, shift

    def _view(
        self, image: np.ndarray, labels: np.ndarray, turned: np.ndarray, shift: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        height, width = labels.shape
        theta = (
            np.concatenate([turned, shift[:, None]], 1)
            * max(height, width)
            / np.array([[width], [height]])
        )
        theta = torch.tensor(theta, dtype=torch.float32)[None]
        grid, coarse = (
            F.affine_grid(theta, (1, 1, n, n), align_corners=False)
            for n in (self.side, self.label_side)
        )
        picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        picture = F.grid_sample(
            picture, grid, mode="bilinear", padding_mode="border", align_corners=False
        )[0]
        # 255 becomes 0 for the fill of grid_sample, and back again.
        shifted = torch.from_numpy(VOID - labels.astype(np.float32))[None, None]
        shown = (
            VOID
            - F.grid_sample(
                shifted, coarse, mode="nearest", padding_mode="zeros", align_corners=False
            )[0, 0]
        )
        return picture, shown.round().long()


def train(model: Segmenter, batches: SegmentationBatches, *, share: float, **recipe) -> list[dict]:
    """Train in place with OHEM; returns the history. recipe: the keywords of
    training.train_network.
    """
    return loop.train_network(
        "segmenter",
        model,
        lambda batch, step: (batch_loss(model, batch, share=share), {}),
        batches,
        **recipe,
    )


def train_like(
    given: Mapping, dataset: Dataset, labels: list[np.ndarray], *, outputs: int, weights: Path | None, memory: dict, seed: int,
    device: str, settings: dict, checkpoint: Path | None,
) -> Segmenter:  # fmt: skip
    """A new segmenter that learns from other label maps as that of stage 05 did.

    given: the parameters of 05, but for their seed; weights: those that its body starts from;
    memory: see `remember`; settings: what tells this training from others of the run.
    """
    torch.manual_seed(seed)
    model = build_segmenter(
        given["backbone"],
        weights=weights,
        trainable_blocks=given["trainable_blocks"],
        outputs=outputs,
    ).to(device)
    remember(model, memory, zoom=given["zoom"], turn=given["turn"])
    shown = {"zoom": (1 - given["zoom"], 1 + given["zoom"]), "degrees": given["turn"]} | {
        n: given[n] for n in ("batch", "side", "label_side")
    }
    batches = SegmentationBatches(dataset, labels, seed=seed, device=device, **shown)
    settings = {**given, **settings, "seed": seed}
    train(
        model,
        batches,
        share=given["ohem_share"],
        seed=seed,
        settings=settings,
        checkpoint=checkpoint,
        **loop.recipe(given),
    )
    return model


# ---------------------------------------------------------------- prediction


@torch.no_grad()
def predict_logits(
    model: Segmenter, dataset: Dataset, *, side: int, batch: int, device: str
) -> Iterator[Tensor]:
    """Yield, for each image in order, its logits (outputs, h, w) at stride 8, float32 on the CPU.

    The picture is resized to `side` x `side` pixels, as the reference does at 512.
    """
    model.eval()
    with made_ahead(dataset.image, range(len(dataset)), most=batch, device=device) as pictures:
        while decoded := list(islice(pictures, batch)):
            images = [
                torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
                for image in decoded
            ]
            resized = torch.cat(
                [
                    F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
                    for image in images
                ]
            )
            yield from model.classifier(model.features(resized / 255)).float().cpu()


def probabilities(logits: Tensor, *, image_hw: tuple[int, int]) -> Tensor:
    """(outputs, h, w) logits -> (outputs, H, W) that sum to 1: bilinear to the image first, softmax
    then.
    """
    return F.interpolate(logits[None], size=image_hw, mode="bilinear", align_corners=False)[
        0
    ].softmax(0)


def label_map(logits: Tensor, *, image_hw: tuple[int, int]) -> np.ndarray:
    """(outputs, h, w) logits -> (H, W) uint8, the most probable output of each pixel."""
    return probabilities(logits, image_hw=image_hw).argmax(0).numpy().astype(np.uint8)


def refined_maps(
    logits: Iterable[np.ndarray], dataset: Dataset, *, workers: int, **options
) -> Iterator[np.ndarray]:
    """The `label_map` of each image after the CRF: (H, W) uint8, one by one, in the order of
    `dataset`.

    logits: (outputs, h, w) of each image, any iterable. workers and options: those of
    crf.refine_all and crf.dense_crf.
    """
    soft = (
        probabilities(
            torch.from_numpy(np.asarray(one, np.float32)), image_hw=dataset.size(i)
        ).numpy()
        for i, one in enumerate(logits)
    )
    images = map(dataset.image, range(len(dataset)))
    refined = crf.refine_all(images, soft, workers=workers, **options)
    return (p.argmax(0).astype(np.uint8) for p in refined)


# ---------------------------------------------------------------- the last of a run


def last_round(deeplab_dir: Path, crf_dir: Path) -> Path:
    """The folder with a run's last segmenter and its logits: 06's where it trained another round,
    else 05's.
    """
    return crf_dir if (crf_dir / "segmenter.safetensors").is_file() else deeplab_dir
