"""Which masks show the same thing? Crop, describe by a CLS token, whiten, k-means, name.

crop      the mask's bounding box, all that is in it, its longer side resized
describe  the CLS token after the final norm of a frozen ViT
whiten    each dimension divided by its standard deviation (no centring), then L2 (the reference's recipe)
cluster   MiniBatchKMeans
name      by counts of masks, a mask's class being that of the best-overlapping true box
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from mdlib.core.mask import Mask
from mdlib.core.progress import track
from mdlib.data import Dataset
from mdlib.data.loading import load
from mdlib.models.encoder import Encoder


def crop_boxes(image: np.ndarray, boxes: np.ndarray, *, size: int) -> Tensor:
    """(H, W, 3) uint8 and (n, 4) x0, y0, x1, y1 -> (n, 3, size, size) uint8 crops.

    A crop keeps its aspect ratio: its longer side becomes `size`, the rest is zero, at the right or
    the bottom. The reference keeps each crop's own size; one size lets the demo describe many crops
    in one batch.
    """
    crops = torch.zeros(len(boxes), 3, size, size, dtype=torch.uint8)
    for crop, (x0, y0, x1, y1) in zip(crops, np.asarray(boxes, np.int64)):
        if min(x0, y0) < 0 or x1 > image.shape[1] or y1 > image.shape[0]:
            raise ValueError(
                f"box {(x0, y0, x1, y1)} is outside the image of {image.shape[1]} x {image.shape[0]} pixels"
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
    """The boxes of n masks, cropped from their images: (n, 3, size, size) uint8, in their order.

    Raises ValueError for an empty mask.
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
    encoder: Encoder, dataset: Dataset, masks: Sequence[Mask], *, size: int, batch: int
) -> np.ndarray:
    """The CLS token of each mask's crop, (n, D) float32: `crop_masks` and `embed_crops`, of
    which a few batches are held.
    """
    parts = [masks[start : start + batch] for start in range(0, len(masks), batch)]
    features = [np.zeros((0, encoder.width), np.float32)]
    crops = load(partial(crop_masks, dataset, size=size), parts, device=encoder.device)
    for part in track(crops, total=len(parts), what="batches of crops"):
        features.append(embed_crops(encoder, part, batch=batch))
    return np.concatenate(features)


def embed_crops(encoder: Encoder, crops: Tensor, *, batch: int) -> np.ndarray:
    """(n, 3, S, S) uint8 -> (n, D) float32 CLS tokens."""
    if not len(crops):
        return np.zeros((0, encoder.width), np.float32)
    return torch.cat([encoder.tokens(part).cls.cpu() for part in crops.split(batch)]).numpy()


def feature_deviation(features: np.ndarray) -> np.ndarray:
    """Standard deviation of each dimension, (n, D) -> (D,); 1 where a dimension never changes."""
    deviation = features.std(0)
    return np.where(deviation > 1e-8, deviation, 1.0).astype(np.float32)


def whiten(features: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Every dimension divided by its deviation, no centring, then every row by its norm.

    (n, D), (D,) -> (n, D).

    deviation: from the training masks (`feature_deviation`), also when other masks are whitened.
    """
    scaled = features / deviation
    return (scaled / np.linalg.norm(scaled, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)


def fit_kmeans(
    features: np.ndarray, *, k: int, seed: int, batch_size: int, restarts: int
) -> MiniBatchKMeans:
    """k-means on (n, D) features. restarts: how many initialisations, of which the best inertia is
    kept.

    The result hangs on the seed: report a spread. Raises ValueError where there are fewer masks
    than clusters.
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
    """The nearest centre of each feature: (n, D), (k, D) -> (n,) int64, the first on a tie.

    In float64: the difference of squares cancels. n may be 0.
    """
    if not len(features):
        return np.zeros(0, np.int64)
    return pairwise_distances_argmin(features.astype(np.float64), centres.astype(np.float64))
