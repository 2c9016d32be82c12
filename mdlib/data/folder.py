"""A folder of your own pictures, with or without label maps.

Without labels: every picture below ROOT is an image of the one split, "train".

    ROOT/**/photo.jpg

With labels, ROOT has label maps in `masks` and their names in `classes.txt`; each image has a map
of the same path:

    ROOT/images/**/photo.jpg     (or ROOT/**/photo.jpg, where ROOT has no folder `images`)
    ROOT/masks/**/photo.png      palette or grey: 0 background, 255 void
    ROOT/classes.txt             line i names label i; a first line "background" names label 0

ROOT may also be that folder `images` itself. A folder `masks` in ROOT is never taken for photos.

Every ending that Pillow reads counts as a picture. Names that begin with a dot are ignored. Links
are followed, a folder is read once. What is no picture by its name, and links that lead nowhere,
are skipped and reported. Opening looks at names only: a broken picture is an ImageError when it is
read; its id can then be left out.

A sample's id is the path below ROOT without its ending, "/" as "__": `2024/sea.jpg` is `2024__sea`,
and may name a file. Where two paths would share an id (`sea.jpg` and `sea.png`, or names that
differ in case alone), or it is too long for a file name, it ends in "~" and a digest of the path.
"""

import os
from collections import Counter, deque
from pathlib import Path

import numpy as np
from PIL import Image

from mdlib.core.files import StoreError, digest_bytes
from mdlib.data.dataset import Dataset, Labels, NoLabels
from mdlib.data.images import image_size, read_image, read_true_labels
from mdlib.data.listing import preview
from mdlib.data.sample import VOID

SPLITS = ("train",)
# formats that Pillow names but cannot read by itself
STUBS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
LONGEST = 150  # bytes of an id: file systems end at 255, and artifacts add to it


class FolderDataset(Dataset):
    """The pictures of a folder, sorted by path.

    Samples carry an image alone where there are no labels; with them a semantic map, but no
    instances.

    Attributes:
        folder: of the pictures.
        masks: the folder of the label maps; None where there are none.
        files: paths of the pictures below `folder`, with "/".
        skipped: {why: paths that are no pictures}.
        classes: ("background",) where there are no labels.
    """

    name = "folder"

    def __init__(self, root: str | Path, split: str, count: int | None = None):
        """Open a folder; what was skipped is printed.

        Args:
            root: as the head of this module tells.
            split: "train".
            count: only the first `count` pictures; None for all.

        Raises:
            FileNotFoundError: where there is no folder, or no picture in it.
            ValueError: for all else that does not fit.
        """
        if split not in SPLITS:
            raise ValueError(
                f"unknown folder split {split!r}; a folder has the split {SPLITS[0]!r} alone"
            )
        root = Path(root).absolute()
        if not root.is_dir():
            if root.exists():
                raise ValueError(f"{root} is a file; give the folder that holds the pictures")
            raise FileNotFoundError(f"no folder at {root}")
        self.split, self.folder, self.masks, self.classes = split, *find_labels(root)
        self.files, self.skipped = list_pictures(self.folder, masks=self.masks)
        if self.skipped:
            print(
                f"{self.folder}: "
                + "; ".join(
                    f"{len(names)} {why}: {preview(names, limit=3)}"
                    for why, names in self.skipped.items()
                )
            )
        if not self.files:
            endings = ", ".join(sorted(picture_endings()))
            raise FileNotFoundError(f"no picture in {self.folder}: known endings are {endings}")
        if self.masks is not None:
            check_pairs(self.files, list_pictures(self.masks)[0], masks=self.masks)
        if count is not None and count > len(self.files):
            raise ValueError(
                f"{self.folder} has {len(self.files)} pictures, {count} were asked for"
            )
        # The ids are made of all files, so that they do not depend on the count.
        self.ids, self.files = tuple(make_ids(self.files)[:count]), self.files[:count]
        self.labels = "none" if self.masks is None else "maps"

    def file_name(self, i: int) -> str:
        """The path of picture i: below the folder, or as it was given."""
        return self.files[i]

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of picture i, from its header."""
        return image_size(self.folder / self.files[i])

    def image(self, i: int) -> np.ndarray:
        """Picture i, (H, W, 3) uint8 RGB."""
        return read_image(self.folder / self.files[i])

    def semantic(self, i: int) -> np.ndarray:
        """Class indices of picture i, (H, W) uint8; NoLabels in a folder without label maps."""
        path = self.mask_path(i)
        return read_true_labels(path, image_hw=self.size(i), num_classes=len(self.classes))

    def mask_path(self, index: int) -> Path:
        """The label map of an image.

        Raises:
            NoLabels: in a folder without label maps.
        """
        if self.masks is None:
            raise NoLabels(f"{self.name} has no semantic map of {self.ids[index]}")
        return self.masks / f"{without_ending(self.files[index])}.png"


class PictureFiles(Dataset):
    """Picture files anywhere, without labels."""

    name = "pictures"
    classes = ("background",)
    labels: Labels = "none"

    def __init__(self, paths: list[Path], ids: list[str]):
        """Take the files at `paths`, one for each id."""
        self.paths, self.ids = paths, tuple(ids)

    def file_name(self, i: int) -> str:
        """The path of picture i: below the folder, or as it was given."""
        return str(self.paths[i])

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of picture i, from its header."""
        return image_size(self.paths[i])

    def image(self, i: int) -> np.ndarray:
        """Picture i, (H, W, 3) uint8 RGB."""
        return read_image(self.paths[i])


def open_pictures(paths: list[Path]) -> PictureFiles:
    """Open files as they are given, and folders with all pictures below them, as one data set.

    What is a picture, and its id, is as in `FolderDataset`: the pictures of one folder have the ids
    that stage 0 gives them, and label maps in `masks` are no pictures.

    Raises:
        StoreError: for a path that does not exist, a folder that `FolderDataset` refuses, or where
            there is no picture at all.
    """
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            try:
                folder, masks, _ = find_labels(path.absolute())
            except ValueError as error:
                raise StoreError(str(error)) from None
            found += [(file, folder / file) for file in list_pictures(folder, masks=masks)[0]]
        elif path.exists():
            found.append((path.name, path))
        else:
            raise StoreError(f"{path} does not exist")
    if not found:
        where, endings = ", ".join(map(str, paths)), ", ".join(sorted(picture_endings()))
        raise StoreError(f"no picture in {where}: known endings are {endings}")
    times = Counter(name for name, _ in found)
    names, files = [name for name, _ in found], [path for _, path in found]
    places = [name if times[name] == 1 else str(path.absolute()) for name, path in found]
    return PictureFiles(files, make_ids(names, places=places))


def find_labels(root: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Look for label maps beside the pictures of a folder.

    Returns:
        Folder of the pictures, folder of the label maps or None, classes from "background".

    Raises:
        ValueError: for maps without names.
    """
    inside = root.parent if root.name == "images" and (root.parent / "masks").is_dir() else root
    masks, names = inside / "masks", inside / "classes.txt"
    if not masks.is_dir():
        return root, None, ("background",)
    if not names.is_file():
        raise ValueError(
            f"{masks} holds label maps, but {names} is missing: one name a line. "
            "If it holds photos, rename it"
        )
    images = inside / "images"
    return images if images.is_dir() else inside, masks, read_classes(names)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the names of the labels 1, 2, ..., one a line; "background" is put before them.

    Raises:
        ValueError: for no name, too many, or one given twice.
    """
    names = [
        line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
    ]
    names = names[1:] if names and names[0].strip("_").lower() == "background" else names
    twice = [name for name, times in Counter(["background", *names]).items() if times > 1]
    if twice or not 0 < len(names) < VOID:
        raise ValueError(
            f"{path} must hold 1 to {VOID - 1} names, each once; it has {len(names)}"
            + (f", {preview(twice)} twice" if twice else "")
        )
    return "background", *names


def picture_endings() -> set[str]:
    """Endings such as ".jpg" of the formats that Pillow can read."""
    return {
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in STUBS
    }


def list_pictures(
    folder: Path, *, masks: Path | None = None
) -> tuple[list[str], dict[str, list[str]]]:
    """List all pictures below a folder; no file is opened.

    A real folder is read before the links to it.

    Args:
        folder: where to look.
        masks: a folder that is not looked into.

    Returns:
        Paths of the pictures below the folder, sorted, with "/"; and {why: paths that were
        skipped}.
    """
    endings = picture_endings()
    files: list[str] = []
    skipped: dict[str, list[str]] = {}
    visited = {_identity(masks)} if masks else set()
    waiting: deque[tuple[str, str]] = deque([("", str(folder))])  # path below folder, place
    links: deque[tuple[str, str]] = deque()
    while waiting or links:
        prefix, place = (waiting or links).popleft()
        try:
            if (identity := _identity(place)) in visited:
                continue
            visited.add(identity)
            entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
        except OSError:
            skipped.setdefault("folders cannot be read", []).append(prefix)
            continue
        for entry in entries:
            path, kind = prefix + entry.name, _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else waiting).append((f"{path}/", entry.path))
            elif kind != "file":
                skipped.setdefault(kind, []).append(ascii(path))
            elif os.path.splitext(entry.name)[1].lower() in endings:
                files.append(path)
            elif path != "classes.txt":
                skipped.setdefault("files are no pictures", []).append(path)
    return sorted(files), {why: sorted(names) for why, names in skipped.items()}


def _kind(entry: os.DirEntry) -> str:
    """Whether an entry is a "folder" or a "file", or why it is neither."""
    try:
        entry.name.encode()
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "links lead nowhere"
    except UnicodeEncodeError:
        return "names are not UTF-8"
    except OSError:  # a link to itself
        return "links lead nowhere"


def _identity(path: str | Path) -> tuple[int, int]:
    """What two paths to one folder have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def without_ending(file: str) -> str:
    """A path without the ending of its file name."""
    return os.path.splitext(file)[0]


def make_ids(files: list[str], *, places: list[str] | None = None) -> list[str]:
    """Make an id of each path: no two are equal, and each may name a file.

    Args:
        files: paths with "/"; the ids are as the head of this module tells.
        places: what tells two files of one path apart; None where all paths differ.
    """
    plain = [without_ending(file).replace("/", "__") for file in files]
    claims = Counter(name.casefold() for name in plain)
    unclear = [
        claims[name.casefold()] > 1 or "~" in name or len(name.encode()) > LONGEST for name in plain
    ]
    return [
        f"{name.encode()[:LONGEST].decode(errors='ignore')}~{digest_bytes(place.encode())[:12]}"
        if lacking
        else name
        for name, place, lacking in zip(plain, places or files, unclear, strict=True)
    ]


def check_pairs(images: list[str], maps: list[str], *, masks: Path) -> None:
    """Ask whether every image has a label map, and every label map an image.

    Args:
        images: their paths with "/".
        maps: paths of the pictures among the label maps; PNG files alone count.
        masks: the folder of the label maps, for the message.

    Raises:
        ValueError: where one lacks the other.
    """
    wanted = {without_ending(file) for file in images}
    there = {without_ending(file) for file in maps if file.endswith(".png")}
    if bare := sorted(wanted - there):
        raise ValueError(f"{masks}: {len(bare)} images have no label map: {preview(bare)} (.png)")
    if strays := sorted(there - wanted):
        raise ValueError(f"{masks}: {len(strays)} label maps have no image: {preview(strays)}")
