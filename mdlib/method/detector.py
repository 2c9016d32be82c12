"""Mask R-CNN on clustered masks: stage 3.

It trains on one or a few masks an image, each with its cluster, and predicts many.

The network is torchvision's (He et al., arXiv 1703.06870). On the ViT backbone its heads are small:
two levels, 64 channels in the mask head, 16 regions an image in training. torchvision counts
classes from 1, because 0 is background: label = 1 + cluster.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from mdlib.core.mask import Mask, Masks, mask_to_box
from mdlib.core.shards import MASKS, in_shards
from mdlib.core.weights import check_architecture, fit_weights, read_weights
from mdlib.data import Dataset
from mdlib.data.images import MAX_ASPECT
from mdlib.data.loading import load
from mdlib.method.pseudo_labels import stack_masks
from mdlib.models.backbones import FeatureCache, ViTPyramid, build_pyramid
from mdlib.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from mdlib.training import launch


def build_detector(
    backbone: str,
    *,
    weights: Path | None,
    trainable_blocks: int,
    num_clusters: int,
    shorter_sides: tuple[int, ...],
    cache: FeatureCache | None = None,
) -> MaskRCNN:
    """Build Mask R-CNN for `num_clusters` clusters.

    Args:
        backbone: see `backbones.build_pyramid`.
        weights: see `backbones.build_pyramid`.
        trainable_blocks: see `backbones.build_pyramid`.
        num_clusters: number of clusters, without background.
        shorter_sides: images are resized so that their shorter side has one of these numbers of
            pixels: one drawn at random in training, the last one in prediction.
        cache: see `backbones.build_pyramid`.

    Returns:
        The network in train mode, on the CPU.

    Raises:
        WeightsError: for weights that are missing, broken or unfitting.
    """
    body = build_pyramid(backbone, weights=weights, trainable_blocks=trainable_blocks, cache=cache)
    options: dict[str, Any] = dict(
        num_classes=1 + num_clusters,
        min_size=tuple(shorter_sides),
        # enough that the shorter side of the longest strip is not 0
        max_size=2 * max(*shorter_sides, MAX_ASPECT),
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )
    if isinstance(body, ViTPyramid):
        options = {
            **options,
            "num_classes": None,
            **_small_heads(1 + num_clusters, body.out_channels),
        }
    return MaskRCNN(body, **options)


def load_detector(path: Path, *, device: str) -> MaskRCNN:
    """Load the detector that stage 03 wrote.

    Args:
        path: its file.
        device: where it is put.

    Returns:
        The network in eval mode.

    Raises:
        WeightsError: for a file that is missing or broken, or of another network.
    """
    state, header = read_weights(path)
    made = check_architecture(
        header, network="mask_rcnn", keys=("backbone", "num_clusters", "shorter_side"), source=path
    )
    model = build_detector(
        made["backbone"],
        weights=None,
        trainable_blocks=0,
        num_clusters=made["num_clusters"],
        shorter_sides=(made["shorter_side"],),
    )
    fit_weights(model, state, source=path)
    return model.eval().to(device)


class RegionHead(nn.Module):
    """The box head: the mean over a region's cells, and a small layer on all of them.

    (R, C, 7, 7) -> (R, C + hidden). The mean passes on what the frozen features already encode of
    the object, so that a few hundred steps are enough to learn the clusters.

    Args:
        channels: C of the features.
        hidden: outputs of the small layer.
    """

    def __init__(self, channels: int, *, hidden: int = 128):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * 49, hidden), nn.ReLU(inplace=True)
        )
        self.out_channels = channels + hidden

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, 7, 7) -> (R, C + hidden)."""
        return torch.cat([regions.mean((2, 3)), self.layer(regions)], 1)


def _small_heads(num_classes: int, channels: int) -> dict:
    """Options of MaskRCNN for heads that train on two CPU cores."""
    levels, head = ["0", "1"], RegionHead(channels)
    return dict(
        rpn_anchor_generator=AnchorGenerator(((32, 48), (72, 104)), ((0.5, 1.0, 2.0),) * 2),
        rpn_pre_nms_top_n_train=128,
        rpn_pre_nms_top_n_test=64,
        rpn_post_nms_top_n_train=64,
        rpn_post_nms_top_n_test=24,
        rpn_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        box_head=head,
        box_predictor=FastRCNNPredictor(head.out_channels, num_classes),
        rpn_nms_thresh=0.8,
        box_batch_size_per_image=16,
        box_positive_fraction=0.5,
        box_detections_per_img=10,
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(channels, (64, 64), 1),
        mask_predictor=MaskRCNNPredictor(64, 64, num_classes),
    )


class DetectionBatch(list):
    """A list of (image (3, H, W) float in [0, 1], target) pairs that knows its images' ids."""

    @property
    def ids(self) -> list[str]:
        """Ids of the images."""
        return [target["id"] for _, target in self]

    def to(self, device: str | torch.device) -> "DetectionBatch":
        """The same batch on a device."""
        return DetectionBatch((image.to(device), _moved(target, device)) for image, target in self)


def target_of(masks: np.ndarray, clusters: Iterable[int], *, image_id: str) -> dict:
    """Make an image's pseudo objects a target of torchvision.

    Args:
        masks: (n, H, W) bool.
        clusters: (n,) cluster of each mask, from 0.
        image_id: of the image, for the batch and for errors.

    Returns:
        "boxes" (n, 4) float32 x0, y0, x1, y1 in pixels, "labels" (n,) int64 from 1, "masks"
        (n, H, W) uint8, and "id", the image's.

    Raises:
        ValueError: for a mask that is empty, or less than two pixels wide or high: its box would be
            degenerate.
    """
    boxes = []
    for x0, y0, x1, y1 in map(mask_to_box, masks):
        if x1 - x0 < 2 or y1 - y0 < 2:
            raise ValueError(
                f"{image_id}: a mask of {x1 - x0} x {y1 - y0} pixels has a degenerate box"
            )
        boxes.append((x0, y0, x1, y1))
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor([1 + int(cluster) for cluster in clusters]),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
        "id": image_id,
    }


class DetectionBatches:
    """batch(step) -> DetectionBatch, a pure function of (seed, step).

    batch(step, part, parts) gives a part of it. Images are mirrored half the time.

    Args:
        dataset: the pictures.
        masks: pseudo objects with their clusters, any number an image.
        batch: pictures in a batch.
        seed: of pictures and mirroring.
        device: where batches are put.

    Attributes:
        kept: indices of the images with a mask that is large enough for a box; the others are left
            out.

    Raises:
        ValueError: where no image is kept.
    """

    def __init__(self, dataset: Dataset, masks: Masks, *, batch: int, seed: int, device: str):
        self.dataset, self.batch, self.seed, self.device = dataset, batch, seed, device
        self.objects = [
            [mask for mask in found if _has_box(mask)] for found in masks.by_image(dataset.ids)
        ]
        self.kept = [i for i, found in enumerate(self.objects) if found]
        if not self.kept:
            raise ValueError("no mask is large enough to train on")

    def __call__(self, step: int, part: int = 0, parts: int = 1) -> DetectionBatch:
        """A batch, or a part of it, on `device`."""
        return self.on_cpu(step, part, parts).to(self.device)

    def on_cpu(self, step: int, part: int = 0, parts: int = 1) -> DetectionBatch:
        """The same on the CPU, for the worker processes of `loop.fit`."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(self.kept, self.batch, replace=len(self.kept) < self.batch)
        flips = rng.random(self.batch) < 0.5
        own = launch.share(self.batch, part, parts)
        pairs = zip(chosen[own], flips[own], strict=True)
        return DetectionBatch(self._pair(int(i), bool(flip)) for i, flip in pairs)

    def _pair(self, index: int, flip: bool) -> tuple[Tensor, dict]:
        """An image and its target, mirrored or not."""
        image, own = self.dataset.image(index), self.objects[index]
        masks, clusters, _ = stack_masks(own, own[0].size)
        if flip:
            image, masks = image[:, ::-1], masks[:, :, ::-1]
        target = target_of(masks, clusters, image_id=self.dataset.ids[index])
        return to_tensor(image, "cpu"), target


def _moved(target: dict, device: str | torch.device) -> dict:
    """A target on a device; its id is no tensor."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()}


def detector_loss(model: nn.Module, batch: DetectionBatch) -> tuple[Tensor, dict[str, float]]:
    """Sum Mask R-CNN's five losses.

    Returns:
        The scalar sum, and each of them by its name without "loss_", as `loop.fit` asks.
    """
    losses = model([image for image, _ in batch], [target for _, target in batch])
    return sum(losses.values()), {
        name.removeprefix("loss_"): value.item() for name, value in losses.items()
    }


def predict(
    model: MaskRCNN, dataset: Dataset, *, batch: int, device: str, shards: Path | None = None
) -> Iterator[list[Mask]]:
    """Yield the predictions of each image, in order.

    Args:
        model: it is put into eval mode.
        dataset: the images.
        batch: images in a batch.
        device: the model's.
        shards: a folder in which finished parts are kept, see `shards.in_shards`; None: nowhere.

    Yields:
        The masks of an image that are not empty, with cluster and score, best first; an empty list
        where there is none.
    """

    def make(part: range) -> Iterator[Mask]:
        ids = iter(dataset.ids[part.start : part.stop])
        for images in load(dataset.image, part, device=device, batch=batch):
            for found in _detections(model, images, device):
                yield from _masks(next(ids), *found)

    masks = in_shards(shards, len(dataset), make, form=MASKS, batch=batch)
    following = next(masks, None)
    for image_id in dataset.ids:
        own = []
        while following is not None and following.image_id == image_id:
            own.append(following)
            following = next(masks, None)
        yield own


@torch.no_grad()
def _detections(
    model: MaskRCNN, images: list[np.ndarray], device: str
) -> list[tuple[dict[str, Tensor], tuple[int, int]]]:
    """What torchvision's forward gives for each image, and (H, W) of the image.

    Its boxes are in pixels of the image, and its masks not yet pasted into it: (n, 1, 28, 28).
    Pictures are made small one by one, before they are a batch.
    """
    model.eval()
    seen = model.transform
    small = [seen.resize(seen.normalize(to_tensor(image, device)), None)[0] for image in images]
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in small]
    batch = ImageList(seen.batch_images(small, size_divisible=seen.size_divisible), sizes)
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features)
    found, _ = model.roi_heads(features, proposals, sizes)
    results = []
    for output, size, image in zip(found, sizes, images, strict=True):
        image_hw = (image.shape[0], image.shape[1])
        output["boxes"] = resize_boxes(output["boxes"], size, image_hw)
        results.append((output, image_hw))
    return results


def _masks(image_id: str, output: dict[str, Tensor], image_hw: tuple[int, int]) -> Iterator[Mask]:
    """An image's masks; inside is above a probability of 0.5.

    Each is pasted alone: all at once, in float32, they take 4 bytes a pixel and mask.
    """
    labels, scores = output["labels"].tolist(), output["scores"].tolist()
    for i, (label, score) in enumerate(zip(labels, scores, strict=True)):
        one = slice(i, i + 1)
        pasted = paste_masks_in_image(output["masks"][one], output["boxes"][one], image_hw)
        pixels = (pasted[0, 0] > 0.5).cpu().numpy()
        if pixels.any():
            yield Mask.from_pixels(pixels, image_id=image_id, score=score, cluster=label - 1)


def to_tensor(image: np.ndarray, device: str) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255


def _has_box(mask: Mask) -> bool:
    """Whether a mask is at least two pixels wide and high, so that its box is not degenerate."""
    x0, y0, x1, y1 = mask.box or (0, 0, 0, 0)
    return min(x1 - x0, y1 - y0) >= 2
