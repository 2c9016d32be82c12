"""Composed scenes, stored once by stage 00: composing one again takes longer than anything else in
reading it.

    scenes_<role>.npz   images (N, H, W, 3) uint8; counts (N,): objects of each scene; and for all M objects in order
                        masks (M, H, ceil(W / 8)) uint8, packed bits; labels (M,) int64; names (M,):
                        cut-outs
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mdlib.core.files import StoreError, atomic
from mdlib.data.sample import Instances, Sample


def write_scenes(path: Path, samples: list[Sample]) -> None:
    """Store scenes of one size whose objects do not overlap; all labels are exact, none is void."""
    found = [sample.instances for sample in samples]
    arrays = {
        "images": np.stack([sample.image for sample in samples]),
        "counts": np.array([len(instances.labels) for instances in found]),
        "masks": np.packbits(np.concatenate([instances.masks for instances in found]), axis=-1),
        "labels": np.concatenate([instances.labels for instances in found]),
        "names": np.array([name for instances in found for name in instances.names]),
    }
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


class StoredScenes:
    """What `write_scenes` wrote, as the data set it came from: the same samples, to the bit."""

    def __init__(self, path: Path, *, name: str, classes: tuple[str, ...], ids: list[str]):
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {
                    key: file[key] for key in ("images", "counts", "masks", "labels", "names")
                }
        except FileNotFoundError:
            raise StoreError(f"{path} is missing") from None
        except (ValueError, EOFError, KeyError, OSError, BadZipFile) as error:
            raise StoreError(f"{path} holds no scenes: {error}") from None
        self.name, self.classes, self.images = name, classes, arrays["images"]
        self.ends = arrays["counts"].cumsum()
        self.packed, self.labels, self.names = arrays["masks"], arrays["labels"], arrays["names"]
        self._ids = ids

    def __len__(self) -> int:
        return len(self.images)

    def ids(self) -> list[str]:
        return self._ids

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        image = self.images[index]
        own = slice(self.ends[index - 1] if index else 0, self.ends[index])
        masks = np.unpackbits(self.packed[own], axis=-1, count=image.shape[1]).astype(bool)
        labels = self.labels[own]
        semantic = np.zeros(image.shape[:2], np.uint8)
        for mask, label in zip(masks, labels):
            semantic[mask] = label
        names = tuple(str(name) for name in self.names[own])
        return Sample(self._ids[index], image, semantic, Instances(masks, labels, names))
