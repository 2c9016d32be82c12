"""A folder of your own pictures, with or without label maps.

Without labels: every picture below ROOT is an image of the one split, "train".

    ROOT/**/photo.jpg

With labels, ROOT has label maps in `masks` and their names in `classes.txt`; each image has a map
of the same path:

    ROOT/images/**/photo.jpg     (or ROOT/**/photo.jpg, where ROOT has no folder `images`)
    ROOT/masks/**/photo.png      palette or grey: 0 background, 255 void
    ROOT/classes.txt             line i names label i; a first line "background" names label 0

ROOT may also be that folder `images` itself. A folder `masks` in ROOT is never taken for photos.

Every ending of a format in `images.FORMATS` counts as a picture. Names that begin with a dot are
ignored. Links are followed, a folder is read once. What is no picture by its name, links that lead
nowhere, and the folders beside the instances.json of a prediction are skipped and reported.
Opening looks at names only: a broken picture is an ImageError when it is read; its id can then be
left out.

A sample's id is the path below ROOT without its ending, "/" as "__": `2024/sea.jpg` is `2024__sea`,
and may name a file anywhere; see `names.make_ids` for paths that would share one.

Pictures with label maps are read as they are stored, not turned by EXIF, so that they lie under
their labels; see `images.lies_turned`.
"""

import os
from collections import Counter, deque
from collections.abc import Collection
from pathlib import Path

import numpy as np

from mdlib.core.files import StoreError
from mdlib.core.mask import is_file_of_masks
from mdlib.data.dataset import Dataset, Labels, NoLabels
from mdlib.data.images import (
    image_size,
    lies_turned,
    picture_endings,
    read_image,
    read_true_labels,
)
from mdlib.data.listing import check_count, preview
from mdlib.data.names import make_ids, shown, without_ending
from mdlib.data.sample import VOID

SPLITS = ("train",)
FOREIGN = {"__MACOSX"}  # folders that programs leave beside pictures
INSTANCES = "instances.json"  # of a prediction, and beside it the folders of its other results:
RESULTS = ("clusters", "maps", "overlays")


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
            ValueError: for all else that does not fit, such as a count that it does not have.
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
        self.files, self.skipped = list_pictures(self.folder, without=_one_or_none(self.masks))
        _tell_skipped(self.folder, self.skipped)
        if not self.files:
            endings = ", ".join(sorted(picture_endings()))
            raise FileNotFoundError(f"no picture in {self.folder}: known endings are {endings}")
        if self.masks is not None:
            check_pairs(self.files, list_pictures(self.masks)[0], masks=self.masks)
        check_count(count, len(self.files), what=str(self.folder))
        # The ids are made of all files, so that they do not depend on the count.
        self.ids, self.files = tuple(make_ids(self.files)[:count]), self.files[:count]
        self.labels = "none" if self.masks is None else "maps"

    def file_name(self, i: int) -> str:
        """The path of picture i: below the folder, or as it was given."""
        return shown(self.files[i])

    def sources(self) -> list[Path]:
        """The folder of the pictures; that of the label maps and their names, where there are."""
        labels = [] if self.masks is None else [self.masks, self.masks.parent / "classes.txt"]
        return [self.folder, *labels]

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of picture i, from its header."""
        return image_size(self.folder / self.files[i], turned=self._is_turned(i))

    def image(self, i: int) -> np.ndarray:
        """Picture i, (H, W, 3) uint8 RGB: upright, or as its label map lies."""
        return read_image(self.folder / self.files[i], turned=self._is_turned(i))

    def _is_turned(self, i: int) -> bool:
        """Whether picture i is turned by its EXIF tag."""
        if self.masks is None:
            return True
        labels_hw = image_size(self.mask_path(i), turned=False)
        return lies_turned(self.folder / self.files[i], labels_hw)

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
        return shown(self.paths[i])

    def sources(self) -> list[Path]:
        """The files."""
        return [path.absolute() for path in self.paths]

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of picture i, from its header."""
        return image_size(self.paths[i])

    def image(self, i: int) -> np.ndarray:
        """Picture i, (H, W, 3) uint8 RGB."""
        return read_image(self.paths[i])


def open_pictures(paths: list[Path], *, without: Collection[Path] = ()) -> PictureFiles:
    """Open files as they are given, and folders with all pictures below them, as one data set.

    What is a picture, and its id, is as in `FolderDataset`: the pictures of one folder have the ids
    that stage 0 gives them, and label maps in `masks` are no pictures. What was skipped is printed.
    A picture that is given twice is opened once.

    Args:
        paths: files and folders.
        without: folders below those that are not looked into, if there are such.

    Raises:
        StoreError: for a path that does not exist, a folder that `FolderDataset` refuses, or where
            there is no picture at all.
    """
    found: dict[Path, tuple[str, Path]] = {}  # by the real place of the file, or of the link to it
    for path in paths:
        if os.path.isdir(path):
            inside = _pictures_in(path, without)
        elif _may_exist(path):
            inside = [(path.name, path)]
        else:
            raise StoreError(f"{shown(path)} does not exist")
        for name, file in inside:
            found.setdefault(file.parent.resolve() / file.name, (name, file))
    if not found:
        where, endings = preview(map(str, paths)), ", ".join(sorted(picture_endings()))
        raise StoreError(f"no picture in {where}: known endings are {endings}")
    times = Counter(name for name, _ in found.values())
    places = [name if times[name] == 1 else str(file.absolute()) for name, file in found.values()]
    ids = make_ids([name for name, _ in found.values()], places=places)
    return PictureFiles([file for _, file in found.values()], ids)


def _pictures_in(path: Path, without: Collection[Path]) -> list[tuple[str, Path]]:
    """The pictures of a folder: path below it, and file; a locked one stands for a picture."""
    try:
        folder, masks, _ = find_labels(path.absolute())
    except PermissionError:
        print(f"{shown(path)}: the folder cannot be read")
        return [(path.name, path)]
    except ValueError as error:
        raise StoreError(str(error)) from None
    files, skipped = list_pictures(folder, without=[*without, *_one_or_none(masks)])
    _tell_skipped(folder, skipped)
    return [(file, folder / file) for file in files]


def _may_exist(path: Path) -> bool:
    """Whether there is a file; one in a locked folder is told of when it is read."""
    try:
        return path.exists()
    except PermissionError:
        return True


def _one_or_none(path: Path | None) -> list[Path]:
    """A list of a path that may be None."""
    return [] if path is None else [path]


def _tell_skipped(folder: Path, skipped: dict[str, list[str]]) -> None:
    """Print what is below a folder and is no picture, if there is such."""
    if skipped:
        found = (f"{len(names)} {why}: {preview(names, limit=3)}" for why, names in skipped.items())
        print(f"{shown(folder)}: " + "; ".join(found))


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
        ValueError: for no name, too many, one given twice, or a file that is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8: save it as such") from None
    names = [line.strip() for line in lines if line.strip()]
    names = names[1:] if names and names[0].strip("_").lower() == "background" else names
    twice = [name for name, times in Counter(["background", *names]).items() if times > 1]
    if twice or not 0 < len(names) < VOID:
        raise ValueError(
            f"{path} must hold 1 to {VOID - 1} names, each once; it has {len(names)}"
            + (f", {preview(twice)} twice" if twice else "")
        )
    return "background", *names


def list_pictures(
    folder: Path, *, without: Collection[Path] = ()
) -> tuple[list[str], dict[str, list[str]]]:
    """List all pictures below a folder; no file is opened.

    A real folder is read before the links to it.

    Args:
        folder: where to look.
        without: folders below it that are not looked into, if there are such.

    Returns:
        Paths of the pictures below the folder, sorted, with "/"; and {why: paths that were
        skipped}.
    """
    endings = picture_endings()
    files: list[str] = []
    skipped: dict[str, list[str]] = {}
    visited = {identity(path) for path in without if path.exists()} - {identity(folder)}
    waiting: deque[tuple[str, str]] = deque([("", str(folder))])  # path below folder, place
    links: deque[tuple[str, str]] = deque()
    while waiting or links:
        prefix, place = (waiting or links).popleft()
        try:
            if (own := identity(place)) in visited:
                continue
            visited.add(own)
            entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
        except OSError:
            skipped.setdefault("folders cannot be read", []).append(prefix)
            continue
        is_prediction = is_file_of_masks(Path(place, INSTANCES))
        for entry in entries:
            path, kind = prefix + entry.name, _kind(entry)
            if kind == "folder" and entry.name in FOREIGN:
                continue
            if kind == "folder" and is_prediction and entry.name in RESULTS:
                skipped.setdefault("folders hold the results of a prediction", []).append(path)
            elif kind == "folder":
                (links if entry.is_symlink() else waiting).append((f"{path}/", entry.path))
            elif kind != "file":
                skipped.setdefault(kind, []).append(path)
            elif os.path.splitext(entry.name)[1].lower() in endings:
                files.append(path)
            elif path != "classes.txt":
                skipped.setdefault("files are no pictures", []).append(path)
    return sorted(files), {why: sorted(names) for why, names in skipped.items()}


def _kind(entry: os.DirEntry) -> str:
    """Whether an entry is a "folder" or a "file", or why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "links lead nowhere" if entry.is_symlink() else "are no regular files"
    except OSError:  # a link to itself
        return "links lead nowhere"


def identity(path: str | Path) -> tuple[int, int]:
    """What two paths to one file or folder have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


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
