"""The embedded zoo: photographs of animals, pasted on invented defocused landscapes.

A scene or a clip is a pure function of (seed, index): nothing but the 44 cut-outs is stored.
Labels come for free, because whoever pastes a picture knows where it was pasted. They name
clusters and evaluate; nothing is trained on them.

`zoo` is a teaching set: its scenes are composited, not photographed as a whole.
"""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from mdlib.data.dataset import Dataset, Labels
from mdlib.data.sample import Instances, Sample

SIDE = 128  # pixels; scenes are square
SPLIT_SEEDS = {"train": 11, "dev": 22, "val": 33}  # a seed of its own for each split
DEFAULT_COUNTS = {"train": 1000, "dev": 150, "val": 300}  # the demo's scenes
ANIMALS_PER_SCENE = (0.6, 0.3, 0.1)  # probability of one, two, three animals
SIZE_RANGE = {1: (0.50, 0.95), 2: (0.40, 0.65), 3: (0.32, 0.52)}  # longer side of a cut-out / SIDE
MIN_VISIBLE = 0.55  # share of a cut-out inside the picture
MAX_HIDDEN = 0.2  # share that each animal in front may take from it

# Landscapes as (upper, lower) colours, 0-255 RGB: meadow, savanna, sea, dusk, wood, snow, sand,
# heath.
LANDSCAPES = (
    ((170, 200, 225), (105, 140, 60)),
    ((215, 205, 170), (175, 145, 85)),
    ((160, 195, 220), (50, 105, 140)),
    ((225, 165, 130), (85, 70, 95)),
    ((85, 115, 70), (50, 70, 40)),
    ((200, 215, 230), (225, 230, 235)),
    ((190, 210, 225), (205, 180, 140)),
    ((175, 165, 190), (115, 85, 105)),
)


@dataclass(frozen=True)
class Cutout:
    """One photograph with alpha.

    Attributes:
        name: its file without the ending.
        label: its class index, from 1.
        split: where it may stand: "train" cut-outs stand everywhere, "dev" and "val" cut-outs in
            that split alone.
        image: RGBA.
    """

    name: str
    label: int
    split: str
    image: Image.Image


@lru_cache(maxsize=2)
def load_cutouts(root: Path) -> tuple[tuple[str, ...], tuple[Cutout, ...]]:
    """Read the classes and cut-outs of data/zoo; those of two roots are kept in memory.

    Returns:
        Classes, the first of them "background"; and cut-outs, whose labels index the classes.

    Raises:
        FileNotFoundError: where there is no zoo.
    """
    table = Path(root) / "cutouts.csv"
    if not table.is_file():
        raise FileNotFoundError(
            f"no zoo at {root}: expected {table} (is this the repository's data/zoo?)"
        )
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = ("background", *sorted({row["class"] for row in rows}))
    cutouts = tuple(
        Cutout(
            row["file"].removesuffix(".png"),
            classes.index(row["class"]),
            row["split"],
            Image.open(Path(root) / "cutouts" / row["file"]).convert("RGBA"),
        )
        for row in rows
    )
    return classes, cutouts


def paint_background(rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Paint an invented landscape out of focus.

    It is painted at half the resolution: nothing in it is sharp.

    Args:
        rng: chooses it.
        side: of the picture in pixels.

    Returns:
        (side, side, 3) float32 RGB in 0-255.
    """
    full, side = side, side // 2
    upper, lower = (np.array(c, np.float32) for c in LANDSCAPES[rng.integers(len(LANDSCAPES))])
    tint = rng.normal(0, 12, 3).astype(np.float32)
    horizon, softness = rng.uniform(0.25, 0.75), rng.uniform(0.03, 0.15)
    y = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    ground = 1 / (1 + np.exp(-(y - horizon) / softness))
    canvas = np.broadcast_to(upper * (1 - ground) + lower * ground + tint, (side, side, 3)).copy()
    for cells, strength in ((2, 14), (4, 12), (8, 9)):  # octaves of smooth light and colour
        light = _smooth_noise(rng, cells, side) * strength
        hue = np.stack([_smooth_noise(rng, cells, side) for _ in range(3)], -1) * strength * 0.5
        canvas += light[..., None] + hue
    yy, xx = np.mgrid[:side, :side].astype(np.float32) / side
    for _ in range(rng.integers(3, 12)):  # bokeh: soft discs of light
        cy, cx, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.03, 0.14)
        disc = 0.5 - 0.5 * np.tanh((np.hypot(yy - cy, xx - cx) - radius) / 0.024)
        canvas += disc[..., None] * (rng.normal(4, 14) + rng.normal(0, 5, 3)).astype(np.float32)
    bands = (Image.fromarray(np.ascontiguousarray(canvas[..., band])) for band in range(3))
    cubic = Image.Resampling.BICUBIC
    return np.stack([np.asarray(band.resize((full, full), cubic)) for band in bands], -1)


def _smooth_noise(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """(side, side) float32, interpolated between cells x cells normal values."""
    coarse = Image.fromarray(rng.normal(size=(cells + 2, cells + 2)).astype(np.float32))
    inner = (0.5, 0.5, cells + 1.5, cells + 1.5)  # a margin, so that the border is not flat
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC, box=inner))


def _transform(cutout: Image.Image, *, longer: float, flip: bool, degrees: float) -> Image.Image:
    """Flip, turn and scale a cut-out to `longer` pixels; premultiplied alpha leaves no fringe."""
    image = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cutout
    image = image.convert("RGBa")
    image = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.getbbox())
    scale = longer / max(image.size)
    size = max(2, round(image.width * scale)), max(2, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=None)


def _paste(
    canvas: np.ndarray, image: Image.Image, centre: tuple[float, float], brightness: float
) -> np.ndarray:
    """Paste premultiplied `image` at centre (x, y) pixels into `canvas`, in place.

    Returns (H, W) float32 alpha.
    """
    side = canvas.shape[0]
    layer = Image.new("RGBa", (side, side))
    layer.paste(image, (round(centre[0] - image.width / 2), round(centre[1] - image.height / 2)))
    pixels = np.asarray(layer.filter(ImageFilter.GaussianBlur(0.4)), np.float32)
    alpha = pixels[..., 3] / 255
    canvas *= 1 - alpha[..., None]
    canvas += pixels[..., :3] * brightness
    return alpha


def _finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 of a canvas in 0-255, with the grain of a camera."""
    grain = 2.5 * rng.standard_normal(canvas.shape[:2], dtype=np.float32)  # one camera, one grain
    return np.clip(canvas + grain[..., None], 0, 255).astype(np.uint8)


def compose_scene(
    cutouts: list[Cutout], rng: np.random.Generator, *, side: int = SIDE
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Compose a landscape with one to three animals, later ones in front.

    Args:
        cutouts: what may be pasted; a class is drawn evenly first, then one of its cut-outs.
        rng: chooses all else.
        side: of the picture in pixels.

    Returns:
        Image (side, side, 3) uint8; masks (n, side, side) bool of what is visible, which do not
        overlap and of which none is empty; labels (n,) int64; names of the n cut-outs.
    """
    labels = sorted({c.label for c in cutouts})
    count = 1 + rng.choice(3, p=ANIMALS_PER_SCENE)
    while True:
        canvas = paint_background(rng, side)
        masks: list[np.ndarray] = []
        chosen: list[Cutout] = []
        kept = True
        for _ in range(count):
            label = labels[rng.integers(len(labels))]
            mine = [c for c in cutouts if c.label == label]
            cutout = mine[rng.integers(len(mine))]
            image = _transform(
                cutout.image,
                longer=rng.uniform(*SIZE_RANGE[count]) * side,
                flip=rng.random() < 0.5,
                degrees=rng.uniform(-15, 15),
            )
            alpha = _paste(
                canvas, image, tuple(rng.uniform(0.22, 0.78, 2) * side), rng.uniform(0.75, 1.2)
            )
            front = alpha > 0.5
            whole = (np.asarray(image)[..., 3] > 127).sum()
            before = [m.sum() for m in masks]
            masks = [m & ~front for m in masks] + [front]
            chosen.append(cutout)
            hidden = any(
                m.sum() < (1 - MAX_HIDDEN) * b for m, b in zip(masks[:-1], before, strict=True)
            )
            kept = kept and not hidden and front.sum() >= max(MIN_VISIBLE * whole, 24)
        if kept:  # else start again: something is hidden behind another animal or the border
            return (
                _finish(canvas, rng),
                np.stack(masks),
                np.array([c.label for c in chosen], np.int64),
                tuple(c.name for c in chosen),
            )


def compose_clip(
    cutouts: list[Cutout], rng: np.random.Generator, *, side: int = SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """Compose two frames of a tracking shot: one subject, two places.

    A camera that follows a subject keeps the subject and changes everything else: time is the only
    supervision. Same flip, size +-15 %, turn +-12 degrees, moved by up to 20 % of the side.

    Args:
        cutouts: what may be pasted.
        rng: chooses all else.
        side: of the pictures in pixels.

    Returns:
        Two images (side, side, 3) uint8.
    """
    cutout = cutouts[rng.integers(len(cutouts))]
    longer, flip = rng.uniform(0.45, 0.95) * side, bool(rng.random() < 0.5)
    centre = rng.uniform(0.35, 0.65, 2)
    frames = []
    for _ in range(2):
        canvas = paint_background(rng, side)
        image = _transform(
            cutout.image,
            longer=longer * rng.uniform(0.85, 1.15),
            flip=flip,
            degrees=rng.uniform(-12, 12),
        )
        where = tuple((centre + rng.uniform(-0.1, 0.1, 2)) * side)
        _paste(canvas, image, where, rng.uniform(0.75, 1.2))
        frames.append(_finish(canvas, rng))
    return frames[0], frames[1]


class ZooDataset(Dataset):
    """`count` composed scenes of one split.

    Scene i is the same on every machine, whatever `count` is. Each method composes the whole scene;
    notebook 00 does that once and stores them (`scenes`).
    """

    name = "zoo (composited)"
    labels: Labels = "masks"

    def __init__(self, root: str | Path, split: str, count: int | None = None):
        """Open a split.

        Args:
            root: the repository's data/zoo.
            split: one of SPLIT_SEEDS.
            count: number of scenes; None for DEFAULT_COUNTS.

        Raises:
            ValueError: for an unknown split, or a count below 1.
            FileNotFoundError: where there is no zoo.
        """
        if split not in SPLIT_SEEDS:
            raise ValueError(f"unknown zoo split {split!r}; expected one of {sorted(SPLIT_SEEDS)}")
        self.split = split
        count = DEFAULT_COUNTS[split] if count is None else count
        if count < 1:
            raise ValueError(f"a zoo of {count} scenes was asked for; there must be 1 or more")
        self.root = Path(root).absolute()
        self.ids = tuple(f"{split}_{i:05d}" for i in range(count))
        self.classes, everything = load_cutouts(self.root)
        self.cutouts = [c for c in everything if c.split in ("train", split)]
        self.seen = {c.name for c in everything if c.split == "train"}  # in the encoder's clips too

    def _compose(self, i: int) -> tuple[np.ndarray, Instances]:
        """Image and objects of scene i."""
        if not 0 <= i < len(self):
            raise IndexError(f"scene {i} of {len(self)}")
        rng = np.random.default_rng([SPLIT_SEEDS[self.split], i])
        image, masks, labels, names = compose_scene(self.cutouts, rng)
        return image, Instances(masks, labels, names)

    def sources(self) -> list[Path]:
        """The table and all cut-outs: their number decides which of them a scene draws."""
        names = sorted(cutout.name for cutout in load_cutouts(self.root)[1])
        return [self.root / "cutouts.csv"] + [
            self.root / "cutouts" / f"{name}.png" for name in names
        ]

    def __getitem__(self, i: int) -> Sample:
        """Scene i with all its labels."""
        image, instances = self._compose(i)
        return Sample(self.ids[i], image, paint_exact(instances), instances)

    def size(self, i: int) -> tuple[int, int]:  # noqa: ARG002 - all scenes are of one size
        """(H, W) of every scene."""
        return SIDE, SIDE

    def image(self, i: int) -> np.ndarray:
        """Scene i, (H, W, 3) uint8 RGB."""
        return self._compose(i)[0]

    def semantic(self, i: int) -> np.ndarray:
        """Class indices of scene i, (H, W) uint8; no pixel is void."""
        return paint_exact(self._compose(i)[1])

    def instances(self, i: int) -> Instances:
        """Objects of scene i, with masks and the names of their cut-outs."""
        return self._compose(i)[1]


def paint_exact(instances: Instances) -> np.ndarray:
    """Paint the semantic map of objects that do not overlap, (H, W) uint8; no pixel is void."""
    semantic = np.zeros(instances.masks.shape[1:], np.uint8)
    for mask, label in zip(instances.masks, instances.labels, strict=True):
        semantic[mask] = label
    return semantic


class ClipDataset:
    """Endless tracking shots of the train cut-outs: clip i is a pure function of (seed, i)."""

    def __init__(self, root: str | Path, *, seed: int):
        """Read the cut-outs of `root`, the repository's data/zoo."""
        self.seed = seed
        self.cutouts = [c for c in load_cutouts(Path(root))[1] if c.split == "train"]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Two frames (SIDE, SIDE, 3) uint8 of clip `index`, see `compose_clip`."""
        return compose_clip(self.cutouts, np.random.default_rng([self.seed, index]))
