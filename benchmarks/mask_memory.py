"""Does the memory of the mask stage grow with the data set?

Stage 1 on 200, 2,000 and 20,000 images, each in a process of its own.

    python benchmarks/mask_memory.py       about 6 minutes

writes benchmarks/results/mask_memory.json.

Measured: the peak resident memory of the whole process, with Python and PyTorch in it and malloc
set as for the runner's kernels, of what notebook 01 does: images of 375 x 500 pixels, every third
upright and every fiftieth a little narrower, through `proposals.propose_masks`, `write_masks`,
`read_masks`, `Masks.by_image`. "dense" keeps the pixels of every mask instead.
A stand-in takes the encoder's place: it averages colours over patches of 16 pixels, so that what is
measured is what the stage keeps, not the network. Pictures are made as they are asked for;
`data.Cached`, through which the notebook asks, keeps no more than 1 GB of them, and none of a
larger set.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mdlib.core.files import write_json
from mdlib.core.mask import read_masks, write_masks
from mdlib.core.paths import ROOT
from mdlib.data import Dataset
from mdlib.method import proposals
from mdlib.method.masks import MaskRule
from mdlib.models.encoder import Tokens
from mdlib.run.identity import versions
from mdlib.run.pipeline import KERNEL_ENVIRONMENT

HEIGHT, WIDTH = 375, 500
RUNS = [("rle", 200), ("rle", 2_000), ("rle", 20_000), ("dense", 200), ("dense", 2_000)]
RULE = MaskRule(top_k=0.4, cls_heads=1, mass=None, center="none")


class Blobs(Dataset):
    """`count` pictures of one bright ellipse on a dark ground; the i-th is a function of i."""

    name, classes, labels = "blobs", ("background", "blob"), "none"

    def __init__(self, count: int):
        self.ids = tuple(f"{i:06d}" for i in range(count))

    def size(self, i: int) -> tuple[int, int]:
        """Height and width: every third upright, every fiftieth a little narrower."""
        height, width = (WIDTH, HEIGHT) if i % 3 == 2 else (HEIGHT, WIDTH)
        # rare sizes, which wait for others of their kind
        return height, width - (i // 50 % 100 if i % 50 == 0 else 0)

    def image(self, i: int) -> np.ndarray:
        """Draw the i-th picture."""
        rng, (height, width) = np.random.default_rng(i), self.size(i)
        y, x = np.ogrid[:height, :width]
        centre, radii = rng.uniform(0.3, 0.7, 2) * (height, width), rng.uniform(40, 120, 2)
        inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
        return np.repeat(np.where(inside, 220, 60).astype(np.uint8)[..., None], 3, axis=2)


class MeanColours:
    """A stand-in encoder: a key is a patch's mean colour minus grey, CLS looks for brightness."""

    patch, device = 16, "cpu"

    def tokens(self, images: torch.Tensor) -> Tokens:
        """One head of three dimensions, the colours."""
        rest = (0, -images.shape[-1] % self.patch, 0, -images.shape[-2] % self.patch)
        each = (F.pad(image.float() / 255 - 0.5, rest, value=-0.25) for image in images)
        # one by one: floats of a batch are the network's
        pooled = torch.stack([F.avg_pool2d(image, self.patch) for image in each])
        keys = pooled.flatten(2).transpose(1, 2)[:, None]  # (B, 1 head, N, 3)
        query = torch.ones(len(images), 1, 3)
        return Tokens(query[:, 0], keys[:, 0], query, keys, keys, keys, tuple(pooled.shape[-2:]))


def distill_all(kept: str, count: int) -> int:
    """Run the stage once in this process; returns its peak resident memory in bytes."""
    torch.set_num_threads(1)
    data = Blobs(count)
    masks = proposals.propose_masks(data, MeanColours(), RULE, input_side=HEIGHT, batch_size=16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.json"
        if kept == "dense":
            masks = list(masks)
            pixels = [mask.pixels() for mask in masks]
        write_masks(path, masks, images=data.sizes())
        gathered = read_masks(path).by_image(data.ids)
    if kept != "dense":
        pixels = [found[0].pixels() for found in gathered[:: max(1, count // 100)]]
    assert len(gathered) == count and all(each.any() for each in pixels)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def main() -> None:
    """Run each case in a process of its own and write the peaks."""
    peaks = {}
    for kept, count in RUNS:
        command, environment = (
            [sys.executable, __file__, kept, str(count)],
            {**os.environ, **KERNEL_ENVIRONMENT},
        )
        done = subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8", env=environment
        )
        peaks[f"{kept}_{count}"] = round(int(done.stdout) / 1e6, 1)
        print(kept, count, peaks[f"{kept}_{count}"], "MB", flush=True)
    result = {
        "what": f"peak resident memory of stage 1 on images of {HEIGHT} x {WIDTH} pixels "
        "and some other sizes with a stand-in encoder, MB",
        "peak_mb": peaks,
        "rle_20000_over_200": round(peaks["rle_20000"] / peaks["rle_200"], 4),
        "versions": versions(),
    }
    write_json(ROOT / "benchmarks" / "results" / "mask_memory.json", result)
    print(result)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(distill_all(sys.argv[1], int(sys.argv[2])))
    else:
        main()
