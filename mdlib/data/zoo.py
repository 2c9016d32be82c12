"""The embedded zoo: photographs of animals, cars and a balloon, pasted on photographs of places.

Nothing is stored but the photographs (data/zoo); a scene or a tracking shot is a pure function of
(seed, index), see `compose`. Labels come for free, because whoever pastes a picture knows where it
was pasted. They name clusters and evaluate; nothing is trained on them.

`zoo` is a teaching set: its scenes are composited, not photographed as a whole.
"""

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from mdlib.data import compose
from mdlib.data.compose import SIDE, Composition, Cutout, Parts
from mdlib.data.dataset import Dataset, Labels
from mdlib.data.sample import Instances, Sample

# A seed of its own for each split. "sealed" is another draw of val's world, for releases alone:
# nobody looks at it in between, so nobody can have chosen anything on it.
SPLIT_SEEDS = {"train": 11, "dev": 22, "val": 33, "sealed": 55}
OWN_PICTURES = {"train": "train", "dev": "dev", "val": "val", "sealed": "val"}
DEFAULT_COUNTS = {"train": 1000, "dev": 150, "val": 300, "sealed": 300}  # the demo's scenes


def _rows(root: Path, table: str) -> list[dict[str, str]]:
    """The rows of a table of data/zoo."""
    path = Path(root) / f"{table}.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"no zoo at {root}: expected {path} (is this the repository's data/zoo?)"
        )
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@lru_cache(maxsize=2)
def load_cutouts(root: Path) -> tuple[tuple[str, ...], tuple[Cutout, ...]]:
    """Read the classes and cut-outs of data/zoo; those of two roots are kept in memory.

    Returns:
        Classes, the first of them "background"; and cut-outs, whose labels index the classes.

    Raises:
        FileNotFoundError: where there is no zoo.
    """
    rows = _rows(root, "cutouts")
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


@lru_cache(maxsize=2)
def load_subjects(root: Path) -> tuple[Cutout, ...]:
    """Read the other photographs with alpha, which stand in tracking shots alone.

    Raises:
        FileNotFoundError: where there is no zoo.
    """
    return tuple(
        Cutout(
            row["file"].removesuffix(".webp"),
            0,
            "train",
            Image.open(Path(root) / "subjects" / row["file"]).convert("RGBA"),
        )
        for row in _rows(root, "subjects")
    )


@lru_cache(maxsize=2)
def load_photographs(root: Path) -> dict[str, list[Image.Image]]:
    """Read the photographs of places, by the split that they are for.

    Raises:
        FileNotFoundError: where there is no zoo.
    """
    photographs: dict[str, list[Image.Image]] = {}
    for row in _rows(root, "backgrounds"):
        image = Image.open(Path(root) / "backgrounds" / row["file"]).convert("RGB")
        photographs.setdefault(row["split"], []).append(image)
    return photographs


class ZooDataset(Dataset):
    """`count` composed scenes of one split.

    Scene i is the same on every machine, whatever `count` is. Each method composes the whole scene;
    notebook 00 does that once and stores them (`scenes`). Scenes of dev and val stand on
    photographs of their own, and some of their animals are nowhere else.
    """

    name = "zoo (composited)"
    labels: Labels = "masks"

    def __init__(
        self,
        root: str | Path,
        split: str,
        count: int | None = None,
        *,
        composition: Composition = compose.MIXTURE,
    ):
        """Open a split.

        Args:
            root: the repository's data/zoo.
            split: one of SPLIT_SEEDS.
            count: number of scenes; None for DEFAULT_COUNTS.
            composition: how they are composed, such as one of COMPOSITIONS.

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
        self.composition = composition
        own = OWN_PICTURES[split]
        self.classes, everything = load_cutouts(self.root)
        self.cutouts = [c for c in everything if c.split in ("train", own)]
        self.photographs = load_photographs(self.root)[own]
        self.seen = {c.name for c in everything if c.split == "train"}  # in the encoder's shots too

    def parts(self, i: int) -> Parts:
        """What scene i is composed of; `Parts.render` gives its image."""
        if not 0 <= i < len(self):
            raise IndexError(f"scene {i} of {len(self)}")
        return compose.scene_parts(
            self.cutouts,
            self.photographs,
            self.composition,
            seed=SPLIT_SEEDS[self.split],
            index=i,
        )

    def _compose(self, i: int) -> tuple[np.ndarray, Instances]:
        """Image and objects of scene i."""
        parts = self.parts(i)
        return parts.render(), Instances(parts.masks, parts.labels, parts.names)

    def sources(self) -> list[Path]:
        """The tables and all their pictures: their number decides which of them a scene draws."""
        return [
            path
            for table in ("cutouts", "backgrounds")
            for path in (
                self.root / f"{table}.csv",
                *(self.root / table / row["file"] for row in _rows(self.root, table)),
            )
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


# ---------------------------------------------------------------- what pretraining sees


class TrackingShots:
    """Endless tracking shots: a camera follows a subject, so the subject stays, the place changes.

    Shot i is a pure function of (seed, i). It is a layer for each of two frames, without a ground:
    one subject on the same side, size +-15 %, turn +-12 degrees, moved by up to 20 % of the side.

    Args:
        root: the repository's data/zoo.
        seed: of the shots.
        zoo_share: share of the shots that follow a train cut-out of the zoo, in [0, 1]; the others
            follow one of `load_subjects`.
    """

    def __init__(self, root: str | Path, *, seed: int, zoo_share: float):
        self.seed, self.zoo_share = seed, zoo_share
        self.cutouts = [c for c in load_cutouts(Path(root))[1] if c.split == "train"]
        self.subjects = load_subjects(Path(root))

    def __getitem__(self, index: int) -> np.ndarray:
        """The two layers of shot `index`, (2, SIDE, SIDE, 4) uint8, premultiplied."""
        rng = np.random.default_rng([self.seed, index])
        mine = self.cutouts if rng.random() < self.zoo_share else self.subjects
        cutout = mine[rng.integers(len(mine))]
        longer, flip = rng.uniform(0.45, 0.95) * SIDE, bool(rng.random() < 0.5)
        centre = rng.uniform(0.35, 0.65, 2)
        frames = []
        for _ in range(2):
            image = compose.transform(
                cutout.image,
                longer=longer * rng.uniform(0.85, 1.15),
                flip=flip,
                degrees=rng.uniform(-12, 12),
            )
            x, y = (centre + rng.uniform(-0.1, 0.1, 2)) * SIDE
            layer = compose.lay(image, (x, y), rng.uniform(0.75, 1.2), side=SIDE)
            layer[..., :3] = layer[..., :3].clip(0, layer[..., 3:])
            frames.append(layer.astype(np.uint8))
        return np.stack(frames)


class Places:
    """Endless grounds for the frames of tracking shots: ground i is a pure function of (seed, i).

    Args:
        root: the repository's data/zoo; photographs of the train split.
        seed: of the grounds.
        composition: "ground", "sharp" and "blur" are followed.
    """

    def __init__(self, root: str | Path, *, seed: int, composition: Composition):
        self.seed, self.composition = seed, composition
        self.photographs = load_photographs(Path(root))["train"]

    def __getitem__(self, index: int) -> np.ndarray:
        """Ground `index`, (SIDE, SIDE, 3) uint8 RGB."""
        rng = np.random.default_rng([self.seed, index])
        if self.composition.ground == "invented":
            ground = compose.paint_landscape(rng)
            ground = compose.turn_hue(ground, rng.normal(0, compose.HUE_SPREAD))
        else:
            is_sharp = rng.random() < self.composition.sharp
            blur = rng.uniform(*self.composition.blur)
            ground = compose.take_ground(self.photographs, rng, blur=0 if is_sharp else blur)
        return ground.clip(0, 255).astype(np.uint8)
