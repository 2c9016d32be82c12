"""Stage 1 over a whole data set: the object masks of each image, by a frozen encoder.

A picture is resized as soon as it is read, and a mask is enlarged to its picture alone, to be
encoded at once. So a batch takes the memory of what the encoder sees, however large the pictures.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlib.core.mask import Mask
from mdlib.core.shards import MASKS, in_shards
from mdlib.data import Dataset, Subset
from mdlib.data.loading import load
from mdlib.method import masks, several_masks
from mdlib.method.masks import MaskRule
from mdlib.models.encoder import Encoder, Tokens

WINDOW = 100e6  # bytes of resized images among which batches are gathered: about 60 at 640 pixels
MOST_SQUARES = 4  # a picture has at most the pixels of so many squares when it meets the encoder


def propose_masks(
    dataset: Dataset,
    encoder: Encoder,
    rule: MaskRule,
    *,
    input_side: int,
    batch_size: int,
    shards: Path | None = None,
) -> Iterator[Mask]:
    """Yield the masks of each image of a data set, in order.

    Images that the encoder sees at one size share a batch, as `batches_by_size` gathers them.

    Args:
        dataset: the images.
        encoder: the frozen ViT.
        rule: the settings of stage 1.
        input_side: pixels of an image's shorter side in the encoder's input; see `resize_images`.
        batch_size: most images in a batch.
        shards: a folder in which finished parts are kept, see `shards.in_shards`; None: nowhere.

    Yields:
        Masks whose score is the share of the CLS token's attention inside, in [0, 1]. A mask has a
        pixel or more. With `rule.min_objectness` some images have none.
    """

    def make(part: range) -> Iterator[Mask]:
        images = Subset(dataset, part=part)
        return _propose(images, encoder, rule, input_side=input_side, batch_size=batch_size)

    return in_shards(shards, len(dataset), make, form=MASKS, batch=batch_size)


def _propose(
    dataset: Dataset, encoder: Encoder, rule: MaskRule, *, input_side: int, batch_size: int
) -> Iterator[Mask]:
    """The masks of all images, in order."""
    found: dict[int, list[Mask]] = {}  # of images that wait for one before them
    following = 0
    images = load(dataset.image, range(len(dataset)), device=encoder.device)
    resized = (
        resize_images(
            torch.from_numpy(image).to(encoder.device).permute(2, 0, 1)[None],
            input_side=input_side,
        )
        for image in images
    )
    for batch in batches_by_size(resized, batch_size=batch_size, window=WINDOW):
        sizes = {dataset.ids[i]: dataset.size(i) for i in batch}
        pixels = torch.cat(list(batch.values())).contiguous(memory_format=torch.channels_last)
        found |= zip(batch, _propose_batch(pixels, sizes, encoder, rule), strict=True)
        while following in found:
            yield from found.pop(following)
            following += 1
        del batch, pixels  # its images, before those of the next are read


def batches_by_size(
    images: Iterable[Tensor], *, batch_size: int, window: float
) -> Iterator[dict[int, Tensor]]:
    """Gather images of one size in batches, so that images of mixed sizes fill batches too.

    A batch is given when it is full, at the end, and when the images since its first one take more
    than `window` bytes. So a caller that brings the results back into order never keeps more than
    those of a window and a batch.

    Args:
        images: uint8 tensors of any shapes.
        batch_size: images of a full batch.
        window: bytes.

    Yields:
        {index of an image: image}, each index once.
    """
    waiting: dict[tuple, dict[int, Tensor]] = {}  # by size, the longest waiting first
    seen, before = 0, {}  # bytes so far, and before the first of each batch
    for i, image in enumerate(images):
        size = tuple(image.shape)
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
    images: Tensor, sizes: dict[str, tuple[int, int]], encoder: Encoder, rule: MaskRule
) -> list[list[Mask]]:
    """The masks of each image of a batch, (B, 3, H', W') uint8; sizes: their (H, W) by their ids.

    A function of its own so that its tensors are freed before the next batch.
    """
    # Held until the masks are encoded. Else their run lengths, which stay, are put into the memory
    # that the tokens left, and those of the next batch no longer fit there: after 300 pictures of
    # the demo the process held 0.7 GB more.
    tokens = encoder.tokens(images)
    found, scores = tokens_to_masks(tokens, rule)
    grid_h, grid_w = found.shape[-2:]
    seen = dict(
        padded_hw=(grid_h * encoder.patch, grid_w * encoder.patch),
        crop_hw=(images.shape[-2], images.shape[-1]),
    )
    proposed: list[list[Mask]] = []
    for (image_id, image_hw), own, its in zip(sizes.items(), found, scores.tolist(), strict=True):
        enlarged = (
            masks.mask_to_pixels(mask[None], **seen, image_hw=image_hw)[0].cpu().numpy()
            for mask in own
        )
        proposed.append(
            [
                Mask.from_pixels(pixels, image_id=image_id, score=score)
                for pixels, score in zip(enlarged, its, strict=True)
                if pixels.any()
            ]
        )
    return proposed


def resize_images(images: Tensor, *, input_side: int) -> Tensor:
    """Resize images to a shorter side of `input_side` pixels, bicubic, with the aspect ratio kept.

    An image more than MOST_SQUARES times as long as it is wide is made smaller, so that it has the
    pixels of so many squares: the cost of an image grows with the square of its patches.

    Args:
        images: (B, 3, H, W) uint8.
        input_side: pixels.

    Returns:
        (B, 3, H', W') uint8; the images themselves where nothing is to be done.
    """
    height, width = images.shape[-2:]
    most = MOST_SQUARES * input_side**2
    scale = min(input_side / min(height, width), math.sqrt(most / (height * width)))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
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
        tokens.cls_query,
        tokens.keys,
        grid_hw=tokens.grid_hw,
        rule=rule,
        features=tokens.features(rule.affinity),
    )
    shares = [
        masks.attention_share(tokens.cls_query, tokens.keys, each) for each in found.unbind(1)
    ]
    return found, torch.stack(shares, 1)
