"""Stage 1 over a whole data set: the object masks of each image, by a frozen encoder."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mdlib.core.mask import Mask
from mdlib.data import Dataset
from mdlib.data.loading import load
from mdlib.method import masks, several_masks
from mdlib.method.masks import MaskRule
from mdlib.models.encoder import Encoder, Tokens

WINDOW = 100e6  # bytes of images among which batches are gathered: about 180 of VOC's


def propose_masks(
    dataset: Dataset, encoder: Encoder, rule: MaskRule, *, input_side: int, batch_size: int
) -> Iterator[Mask]:
    """Yield the masks of each image of a data set, in order.

    Images of one size share a batch, as `batches_by_size` gathers them.

    Args:
        dataset: the images.
        encoder: the frozen ViT.
        rule: the settings of stage 1.
        input_side: pixels of an image's shorter side in the encoder's input.
        batch_size: most images in a batch.

    Yields:
        Masks whose score is the share of the CLS token's attention inside, in [0, 1]. Without
        `rule.min_objectness` every image has at least one mask; with it some have none.
    """
    found: dict[int, list[Mask]] = {}  # of images that wait for one before them
    following = 0
    images = load(dataset.image, range(len(dataset)), device=encoder.device)
    for batch in batches_by_size(images, batch_size=batch_size, window=WINDOW):
        named = {dataset.ids[i]: image for i, image in batch.items()}
        proposed = _propose_batch(named, encoder, rule, input_side=input_side)
        found |= zip(batch, proposed, strict=True)
        while following in found:
            yield from found.pop(following)
            following += 1
        del batch, named  # its images, before those of the next are read


def batches_by_size(
    images: Iterable[np.ndarray], *, batch_size: int, window: float
) -> Iterator[dict[int, np.ndarray]]:
    """Gather images of one size in batches, so that images of mixed sizes fill batches too.

    A batch is given when it is full, at the end, and when the images since its first one take more
    than `window` bytes. So a caller that brings the results back into order never keeps more than
    those of a window and a batch.

    Args:
        images: (H, W, 3) uint8 each, of any sizes.
        batch_size: images of a full batch.
        window: bytes.

    Yields:
        {index of an image: image}, each index once.
    """
    waiting: dict[tuple, dict[int, np.ndarray]] = {}  # by size, the longest waiting first
    seen, before = 0, {}  # bytes so far, and before the first of each batch
    for i, image in enumerate(images):
        size = image.shape
        if size not in waiting:
            waiting[size], before[size] = {}, seen
        waiting[size][i] = image
        seen += image.nbytes
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
        while (
            waiting and (oldest := next(iter(waiting))) != size and seen - before[oldest] > window
        ):
            yield waiting.pop(oldest)
    yield from waiting.values()


def _propose_batch(
    batch: dict[str, np.ndarray], encoder: Encoder, rule: MaskRule, *, input_side: int
) -> list[list[Mask]]:
    """The masks of each image of a batch of one size; `batch` is {image id: image}.

    A function of its own so that its tensors are freed before the next batch.
    """
    images = torch.from_numpy(np.stack(list(batch.values()))).to(encoder.device)
    images = images.permute(0, 3, 1, 2)
    resized = resize_images(images, input_side=input_side)
    # Held until the masks are encoded. Else their run lengths, which stay, are put into the memory
    # that the tokens left, and those of the next batch no longer fit there: after 300 pictures of
    # the demo the process held 0.7 GB more.
    tokens = encoder.tokens(resized)
    found, scores = tokens_to_masks(tokens, rule)
    grid_h, grid_w = found.shape[-2:]
    image_hw = (images.shape[-2], images.shape[-1])
    enlarged = masks.mask_to_pixels(
        found.flatten(0, 1),
        padded_hw=(grid_h * encoder.patch, grid_w * encoder.patch),
        crop_hw=(resized.shape[-2], resized.shape[-1]),
        image_hw=image_hw,
    )
    pixels = enlarged.view(*found.shape[:2], *image_hw).cpu().numpy()
    return [
        [
            Mask.from_pixels(mask, image_id=image_id, score=score)
            for number, (mask, score) in enumerate(zip(own, its_scores, strict=True))
            if mask.any() or (number == 0 and rule.min_objectness is None)
        ]
        for image_id, own, its_scores in zip(batch, pixels, scores.tolist(), strict=True)
    ]


def resize_images(images: Tensor, *, input_side: int) -> Tensor:
    """Resize images to a shorter side of `input_side` pixels, bicubic, with the aspect ratio kept.

    Args:
        images: (B, 3, H, W) uint8.
        input_side: pixels.

    Returns:
        (B, 3, H', W') uint8; the images themselves where nothing is to be done.
    """
    height, width = images.shape[-2:]
    scale = input_side / min(height, width)
    size = (round(height * scale), round(width * scale))
    if size == (height, width):
        return images
    resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def tokens_to_masks(tokens: Tokens, rule: MaskRule) -> tuple[Tensor, Tensor]:
    """Compute the masks and their scores from the ViT's tokens.

    Args:
        tokens: of B images with a grid of h * w patches.
        rule: the settings of stage 1.

    Returns:
        masks: (B, max_masks, h, w) bool, found ones first, all False where there was none.
        scores: (B, max_masks) float32 in [0, 1], the share of the CLS token's attention inside.
    """
    found, _ = several_masks.object_masks(
        tokens.cls_query, tokens.keys, grid_hw=tokens.grid_hw, rule=rule
    )
    shares = [
        masks.attention_share(tokens.cls_query, tokens.keys, each) for each in found.unbind(1)
    ]
    return found, torch.stack(shares, 1)
