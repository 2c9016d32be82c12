"""Stage 1 over a whole data set: images through the frozen encoder, one object mask an image, or several."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mdlib import masks, objects
from mdlib.datasets import Dataset, Sample
from mdlib.encoder import Encoder, Tokens


@dataclass(frozen=True)
class Distilled:
    """One mask of an image. mask (H, W) bool; score in [0, 1]: share of the CLS token's attention inside it."""

    id: str
    mask: np.ndarray
    score: float


def distill_masks(
    dataset: Dataset,
    encoder: Encoder,
    *,
    input_side: int,
    batch_size: int,
    top_k: float,
    cls_heads: int,
    mass: float | None,
    center: str,
    max_masks: int = 1,  # the last three: the paper's one mask an image, or objects.object_masks
    min_contrast: float | None = None,
    max_seam: float | None = None,
) -> Iterator[Distilled]:
    """Yield the masks of each image of a data set, in order; neighbours of one size share a batch.

    input_side: images are resized so that their shorter side has this many pixels. See masks.object_mask,
    masks.center_keys and objects.object_masks for the rest. Without min_contrast every image has at least one mask;
    with it some have none.
    """
    rule = dict(top_k=top_k, cls_heads=cls_heads, mass=mass, center=center, max_masks=max_masks, min_contrast=min_contrast, max_seam=max_seam)
    batch: list[Sample] = []
    for index in range(len(dataset) + 1):
        sample = dataset[index] if index < len(dataset) else None
        if batch and (sample is None or len(batch) == batch_size or sample.image.shape != batch[0].image.shape):
            yield from _distill_batch(batch, encoder, input_side=input_side, **rule)
            batch = []
        batch.append(sample)


def _distill_batch(batch: list[Sample], encoder: Encoder, *, input_side: int, **rule) -> list[Distilled]:
    """The masks of images of one size. Its tensors end with it: the next batch finds their memory free."""
    images = torch.from_numpy(np.stack([sample.image for sample in batch])).to(encoder.device).permute(0, 3, 1, 2)
    resized = resize_images(images, input_side=input_side)
    found, scores = several_tokens(encoder.tokens(resized), **rule)
    image_hw, crop_hw = tuple(images.shape[-2:]), tuple(resized.shape[-2:])
    padded_hw = tuple(-(-side // encoder.patch) * encoder.patch for side in crop_hw)
    pixels = masks.mask_to_pixels(found.flatten(0, 1), padded_hw=padded_hw, crop_hw=crop_hw, image_hw=image_hw)
    pixels = pixels.view(*found.shape[:2], *image_hw).cpu().numpy()
    return [
        Distilled(sample.id, mask, score)
        for sample, own, its_scores in zip(batch, pixels, scores.tolist())
        for number, (mask, score) in enumerate(zip(own, its_scores))
        if mask.any() or (number == 0 and rule["min_contrast"] is None)
    ]


def resize_images(images: torch.Tensor, *, input_side: int) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> uint8 with the shorter side at `input_side` pixels, bicubic, aspect kept."""
    height, width = images.shape[-2:]
    scale = input_side / min(height, width)
    size = (round(height * scale), round(width * scale))
    if size == (height, width):
        return images
    resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def mask_tokens(tokens: Tokens, *, top_k: float, cls_heads: int, mass: float | None, center: str) -> tuple:
    """Tokens -> masks (B, h, w) bool and scores (B,): what stage 1 does after the ViT."""
    keys = _centred_keys(tokens, cls_heads=cls_heads, mass=mass, center=center)
    found = masks.object_mask(tokens.cls_query, keys, grid_hw=tokens.grid_hw, top_k=top_k, cls_heads=cls_heads, mass=mass)
    return found, masks.attention_inside(tokens.cls_query, tokens.keys, found)


def several_tokens(tokens: Tokens, *, cls_heads: int, mass: float | None, center: str, **settings) -> tuple:
    """Tokens -> masks (B, max_masks, h, w) bool and scores (B, max_masks). settings: the rest of objects.object_masks'."""
    keys = _centred_keys(tokens, cls_heads=cls_heads, mass=mass, center=center)
    found, _ = objects.object_masks(tokens.cls_query, keys, grid_hw=tokens.grid_hw, cls_heads=cls_heads, mass=mass, **settings)
    shares = [masks.attention_inside(tokens.cls_query, tokens.keys, each) for each in found.unbind(1)]
    return found, torch.stack(shares, 1)


def _centred_keys(tokens: Tokens, *, cls_heads: int, mass: float | None, center: str) -> torch.Tensor:
    if center != "none" and mass is not None:
        raise ValueError("centred scores sum to about zero, so the mass rule means nothing: set mass to None")
    return masks.center_keys(tokens.cls_query, tokens.keys, cls_heads=cls_heads, center=center)
