"""Which masks show the same kind of object: stage 2.

crop      the bounding box of a mask, with all that is in it; its longer side is resized
describe  the CLS token after the final norm of a frozen ViT
whiten    each dimension divided by its standard deviation (no centring), then L2 normalisation
          (the reference's recipe)
cluster   MiniBatchKMeans of scikit-learn
name      by counts of masks; a mask has the class of the true box that overlaps it best
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from mdlib.core.mask import Mask
from mdlib.core.progress import track
from mdlib.core.shards import ARRAYS, in_shards
from mdlib.data import Dataset
from mdlib.data.loading import load
from mdlib.models.encoder import Encoder


def crop_boxes(image: np.ndarray, boxes: np.ndarray, *, size: int) -> Tensor:
    """Crop boxes from an image and resize each crop to one size.

    A crop keeps its aspect ratio: its longer side becomes `size`, and the rest is zero, at the
    right or at the bottom. The reference keeps the size of each crop; with one size the demo can
    describe many crops in one batch.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) integers x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
        size: pixels of a crop's side.

    Returns:
        (n, 3, size, size) uint8.

    Raises:
        ValueError: for a box that is empty or not inside the image.
    """
    crops = torch.zeros(len(boxes), 3, size, size, dtype=torch.uint8)
    for crop, (x0, y0, x1, y1) in zip(crops, np.asarray(boxes, np.int64), strict=True):
        if min(x0, y0) < 0 or x1 > image.shape[1] or y1 > image.shape[0]:
            raise ValueError(
                f"box {(x0, y0, x1, y1)} is outside the image of "
                f"{image.shape[1]} x {image.shape[0]} pixels"
            )
        if x1 <= x0 or y1 <= y0:
            raise ValueError(f"box {(x0, y0, x1, y1)} is empty")
        part = torch.from_numpy(image[y0:y1, x0:x1].copy()).permute(2, 0, 1)[None].float()
        scale = size / max(part.shape[-2:])
        height, width = (max(1, round(s * scale)) for s in part.shape[-2:])
        part = F.interpolate(part, size=(height, width), mode="bilinear", antialias=True)
        crop[:, :height, :width] = part[0].round().clamp(0, 255).to(torch.uint8)
    return crops


def crop_masks(dataset: Dataset, masks: Sequence[Mask], *, size: int) -> Tensor:
    """Crop the boxes of masks from their images, see `crop_boxes`.

    Args:
        dataset: the images.
        masks: n masks. An image is read once where its masks follow each other.
        size: pixels of a crop's side.

    Returns:
        (n, 3, size, size) uint8, in the order of the masks.

    Raises:
        ValueError: for an empty mask.
    """
    crops = torch.zeros(len(masks), 3, size, size, dtype=torch.uint8)
    done = 0
    for image_id, of_image in groupby(masks, key=lambda mask: mask.image_id):
        boxes = [mask.box for mask in of_image]  # the masks of one image follow each other
        if None in boxes:
            raise ValueError(f"an empty mask of {image_id} has no box")
        image = dataset.image(dataset.index_of(image_id))
        crops[done : done + len(boxes)] = crop_boxes(image, np.array(boxes), size=size)
        done += len(boxes)
    return crops


def embed_masks(
    encoder: Encoder,
    dataset: Dataset,
    masks: Sequence[Mask],
    *,
    size: int,
    batch: int,
    shards: Path | None = None,
) -> np.ndarray:
    """Describe each mask by the CLS token of its crop.

    This is `crop_masks` and `embed_crops`, with the crops of only a few batches in memory.

    Args:
        encoder: the frozen ViT.
        dataset: the images.
        masks: n masks, those of one image next to each other.
        size: pixels of a crop's side.
        batch: crops in a batch.
        shards: a folder in which finished parts are kept, see `shards.in_shards`; None: nowhere.

    Returns:
        (n, D) float32.

    Raises:
        ValueError: for an empty mask.
    """
    crop = partial(crop_masks, dataset, size=size)

    def make(part: range) -> Iterator[np.ndarray]:
        batches = [masks[i : min(i + batch, part.stop)] for i in part[::batch]]
        for crops in load(crop, batches, device=encoder.device):
            yield from embed_crops(encoder, crops, batch=batch)

    rows = in_shards(shards, len(masks), make, form=ARRAYS, batch=batch)
    features = np.zeros((len(masks), encoder.width), np.float32)
    for i, row in enumerate(track(rows, total=len(masks), what="crops")):
        features[i] = row
    return features


def embed_crops(encoder: Encoder, crops: Tensor, *, batch: int) -> np.ndarray:
    """Compute the CLS token of each crop.

    Args:
        encoder: the frozen ViT.
        crops: (n, 3, S, S) uint8; n may be 0.
        batch: crops in a batch.

    Returns:
        (n, D) float32.
    """
    if not len(crops):
        return np.zeros((0, encoder.width), np.float32)
    return torch.cat([encoder.tokens(part).cls.cpu() for part in crops.split(batch)]).numpy()


def feature_deviation(features: np.ndarray) -> np.ndarray:
    """Compute the standard deviation of each dimension.

    Args:
        features: (n, D).

    Returns:
        (D,) float32; 1 where a dimension is constant.
    """
    deviation = features.std(0)
    return np.where(deviation > 1e-8, deviation, 1.0).astype(np.float32)


def whiten(features: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Divide every dimension by its deviation, without centring, then every row by its L2 norm.

    Args:
        features: (n, D).
        deviation: (D,), `feature_deviation` of the training masks, also for other masks.

    Returns:
        (n, D) float32.
    """
    scaled = features / deviation
    return (scaled / np.linalg.norm(scaled, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)


def fit_kmeans(
    features: np.ndarray, *, k: int, seed: int, batch_size: int, restarts: int
) -> MiniBatchKMeans:
    """Fit k-means by mini-batches.

    The result depends on the seed: report the spread over several.

    Args:
        features: (n, D).
        k: number of clusters.
        seed: of the initialisation and the mini-batches.
        batch_size: features in a mini-batch.
        restarts: number of initialisations; the one with the best inertia is kept.

    Returns:
        The fitted model of scikit-learn; its `cluster_centers_` are (k, D).

    Raises:
        ValueError: for fewer features than clusters, or features that are not finite.
    """
    if len(features) < k:
        raise ValueError(
            f"{len(features)} masks cannot make {k} clusters: lower k or give more images"
        )
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    model = MiniBatchKMeans(
        k, random_state=seed, batch_size=batch_size, n_init=restarts, max_iter=300
    )
    return model.fit(features)


def assign_clusters(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Find the nearest centre of each feature.

    Computed in float64, because a difference of squares loses digits.

    Args:
        features: (n, D); n may be 0.
        centres: (k, D).

    Returns:
        (n,) int64, from 0; the lower index on a tie.
    """
    if not len(features):
        return np.zeros(0, np.int64)
    return pairwise_distances_argmin(features.astype(np.float64), centres.astype(np.float64))
