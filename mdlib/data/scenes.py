"""Composed scenes, stored once by stage 00: composing a scene takes longer than reading it.

A file scenes_<role>.npz holds

    images   (N, H, W, 3) uint8
    counts   (N,) objects of each scene; the arrays below hold all M objects in order
    masks    (M, H, ceil(W / 8)) uint8, packed bits
    labels   (M,) int64
    names    (M,) of the cut-outs
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mdlib.core.files import StoreError, atomic
from mdlib.data.dataset import Dataset, Labels
from mdlib.data.sample import Instances, Sample
from mdlib.data.zoo import paint_exact


def write_scenes(path: Path, samples: list[Sample]) -> None:
    """Store scenes of one size whose objects do not overlap; all labels are exact, none is void.

    A scene may be empty: then it has no masks, which is known.

    Raises:
        ValueError: for a sample whose objects are not known.
    """
    found = [sample.instances for sample in samples if sample.instances is not None]
    if len(found) < len(samples):
        raise ValueError("a scene whose objects are not known cannot be stored")
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            images=np.stack([sample.image for sample in samples]),
            counts=np.array([len(instances.labels) for instances in found]),
            masks=np.packbits(np.concatenate([instances.masks for instances in found]), axis=-1),
            labels=np.concatenate([instances.labels for instances in found]),
            names=np.array([name for instances in found for name in instances.names], str),
        )


class StoredScenes(Dataset):
    """What `write_scenes` wrote, as the data set it came from: the same samples, to the bit."""

    labels: Labels = "masks"

    def __init__(self, path: Path, *, name: str, classes: tuple[str, ...], ids: tuple[str, ...]):
        """Read a whole file.

        Args:
            path: of the file.
            name: of the data set that the scenes came from.
            classes: of that data set.
            ids: of the scenes, in order.

        Raises:
            StoreError: for a file that is missing, broken, or holds another number of scenes.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {
                    key: file[key] for key in ("images", "counts", "masks", "labels", "names")
                }
        except FileNotFoundError:
            raise StoreError(f"{path} is missing") from None
        except (ValueError, EOFError, KeyError, OSError, BadZipFile) as error:
            raise StoreError(f"{path} holds no scenes: {error}") from None
        self.name, self.classes, self.ids = name, classes, ids
        self.images, self.ends = arrays["images"], arrays["counts"].cumsum()
        self.packed, self.classes_of, self.names = (
            arrays["masks"],
            arrays["labels"],
            arrays["names"],
        )
        if len(ids) != len(self.images):
            raise StoreError(f"{path} holds {len(self.images)} scenes, expected {len(ids)}")

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of scene i."""
        height, width, _ = self.images[i].shape
        return height, width

    def image(self, i: int) -> np.ndarray:
        """Scene i, (H, W, 3) uint8 RGB."""
        return self.images[i]

    def semantic(self, i: int) -> np.ndarray:
        """Class indices of scene i, (H, W) uint8; no pixel is void."""
        return paint_exact(self.instances(i))

    def instances(self, i: int) -> Instances:
        """Objects of scene i, with masks and the names of their cut-outs."""
        own = slice(self.ends[i - 1] if i else 0, self.ends[i])
        masks = np.unpackbits(self.packed[own], axis=-1, count=self.images.shape[2]).astype(bool)
        names = tuple(str(name) for name in self.names[own])
        return Instances(masks, self.classes_of[own], names)
