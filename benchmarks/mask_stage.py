"""Time of stage 1: the ViT's forward, and what MaskDistill adds to it, in one run.

    python benchmarks/mask_stage.py        writes benchmarks/results/mask_stage.json

Timed: `Encoder.tokens` (forward), and `proposals.tokens_to_masks` with `masks.mask_to_pixels` on
the same batch. Not timed: composing the pictures, run-length encoding, writing.
"""

import os
import platform
import statistics
import time

import numpy as np
import torch

from mdlib.core.files import write_json
from mdlib.core.paths import ROOT
from mdlib.data import open_dataset
from mdlib.method import masks, proposals
from mdlib.models.encoder import load_encoder
from mdlib.run.identity import device, versions

SIDE, BATCH, REPEATS = 224, 16, 15


def main() -> None:
    """Time both and write the medians."""
    data = open_dataset("zoo", root=ROOT / "data" / "zoo", split="dev", count=BATCH)
    images = torch.from_numpy(np.stack([data.image(i) for i in range(BATCH)])).permute(0, 3, 1, 2)
    resized = proposals.resize_images(images, input_side=SIDE).to(device())
    encoder = load_encoder("zoo", device=device())
    rule = masks.MaskRule(top_k=0.4, cls_heads=3, mass=None, center="balanced")
    forward, extra = [], []
    for _ in range(REPEATS):
        start = clock()
        tokens = encoder.tokens(resized)
        middle = clock()
        found, _ = proposals.tokens_to_masks(tokens, rule)
        masks.mask_to_pixels(found[:, 0], padded_hw=(SIDE, SIDE), image_hw=tuple(images.shape[-2:]))
        forward.append(middle - start)
        extra.append(clock() - middle)
    result = {
        "what": f"zoo encoder, {BATCH} images of {SIDE} px, median of {REPEATS}, "
        "milliseconds an image",
        "forward_ms": round(statistics.median(forward) / BATCH * 1e3, 3),
        "masks_ms": round(statistics.median(extra) / BATCH * 1e3, 3),
        "masks_share_of_forward": round(statistics.median(extra) / statistics.median(forward), 4),
        "machine": f"{device()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"{torch.get_num_threads()} threads",
        "versions": versions(),
    }
    write_json(ROOT / "benchmarks" / "results" / "mask_stage.json", result)
    print(result)


def clock() -> float:
    """Seconds, after the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
