"""Which pictures play which role in a run, as notebook 00 wrote it down, and subsets of them.

"train": clusters are made and named, networks learn; "dev": choices; "val": the report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlib.core.files import StoreError, read_json
from mdlib.core.paths import ROOT
from mdlib.data import Cached, Dataset, Subset, open_dataset
from mdlib.data.compose import Composition
from mdlib.data.listing import preview
from mdlib.data.scenes import StoredScenes


def open_role(prepared: Path, role: str, *, first: int | None = None) -> Dataset:
    """Open the images that play a role in a run: those that notebook 00 saw, by their ids.

    Args:
        prepared: what notebook 00 wrote: index.json, and scenes_<role>.npz of a composed set.
        role: "train", "dev", "val", or "support" where the run has such a set.
        first: no more than so many images; None for all.

    Raises:
        StoreError: where the run has no such role, and where the data set now lists other images.
    """
    index = read_json(prepared / "index.json")
    entries = index["splits"] | ({"support": index["support"]} if "support" in index else {})
    if role not in entries:
        raise StoreError(
            f"this run has no {role} images, only {', '.join(entries)}: "
            f"see {role}_split of 00_prepare_data"
        )
    # the support set is of another data set
    entry, scenes = {**index, **entries[role]}, prepared / f"scenes_{role}.npz"
    try:
        data = _open(entry, entry["split"], count=entry["count"])
    except (OSError, ValueError) as error:
        raise StoreError(f"{role}: {error}. It could be opened by 00_prepare_data") from None
    _check_listing(data.ids, entry["ids"], role=role)
    if scenes.is_file():  # composed by 00, once for all
        data = StoredScenes(scenes, name=data.name, classes=data.classes, ids=data.ids)
    return Cached(Subset(data, without=entry["left_out"], first=first))


def open_split(prepared: Path, split: str) -> Dataset:
    """Open all of a split of the run's own data set, whether it plays a role or not.

    Args:
        prepared: what notebook 00 wrote.
        split: one of the data set's own.

    Raises:
        ValueError: for an unknown split.
        FileNotFoundError: where the data is missing.
    """
    return _open(read_json(prepared / "index.json"), split)


def _open(entry: Mapping[str, Any], split: str, *, count: int | None = None) -> Dataset:
    """A split of the data set that an entry of index.json names, composed as it was for 00."""
    dials = entry.get("composition")
    return open_dataset(
        entry["dataset"],
        root=ROOT / entry["root"],
        split=split,
        count=count,
        composition=None if dials is None else Composition(**dials),
    )


def _check_listing(now: Sequence[str], then: Sequence[str], *, role: str) -> None:
    """Refuse a data set that lists other images than when 00 looked at it."""
    if list(now) == list(then):
        return
    new, gone = sorted(set(now) - set(then)), sorted(set(then) - set(now))
    changes = [
        f"{len(names)} {what}: {preview(names)}"
        for what, names in (("new", new), ("gone", gone))
        if names
    ]
    raise StoreError(
        f"{role}: the data set has changed since 00_prepare_data looked at it "
        f"({'; '.join(changes) or 'its order is another'}): run 00_prepare_data again"
    )


# what is printed of roles whose images lack what is asked for, by the kind of their labels
WITHOUT_MAPS = "no label maps, so what needs them is left out"
WITHOUT_OBJECTS: dict[str, str] = {
    "maps": "semantic maps alone: no objects, so what needs objects is left out",
    "boxes": "drawn boxes alone: no masks of objects, so what needs them is left out",
    "none": "no labels, so what needs them is left out",
}


def labelled_roles(prepared: Path) -> set[str]:
    """List the roles whose images have objects with masks, and so semantic maps too.

    A line is printed that names the others, because nothing that needs objects is scored there.

    Args:
        prepared: what notebook 00 wrote.
    """
    return _roles_with(prepared, ("masks",), lacking=WITHOUT_OBJECTS)


def mapped_roles(prepared: Path) -> set[str]:
    """List the roles whose images have semantic maps, with or without objects.

    A line is printed that names the others, because no map is scored there.

    Args:
        prepared: what notebook 00 wrote.
    """
    return _roles_with(
        prepared, ("masks", "maps"), lacking={"boxes": WITHOUT_MAPS, "none": WITHOUT_MAPS}
    )


def _roles_with(prepared: Path, kinds: tuple[str, ...], *, lacking: dict[str, str]) -> set[str]:
    """The roles whose labels are of one of these kinds; the others are printed."""
    splits = read_json(prepared / "index.json")["splits"]
    bare: dict[str, list[str]] = {}
    for role, entry in splits.items():
        if entry["labels"] not in kinds:
            bare.setdefault(lacking[entry["labels"]], []).append(role)
    for what, names in bare.items():
        print(f"{', '.join(names)}: {what}")
    return {role for role, entry in splits.items() if entry["labels"] in kinds}


def has_objects(dataset: Dataset) -> bool:
    """Whether an image of a data set with objects has one; crowds do not count."""
    return any(len(dataset.instances(i).labels) for i in range(len(dataset)))


def some_pictures(dataset: Dataset, share: float, *, seed: int) -> Dataset:
    """Draw a random share of a data set's pictures, at least one, in their order.

    Args:
        dataset: the whole.
        share: of its pictures, in (0, 1].
        seed: the same seed gives nested draws: what is among 1 % is among 10 %.

    Raises:
        ValueError: for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    ids = np.array(dataset.ids)
    drawn = np.random.default_rng(seed).permutation(ids)
    return Subset(dataset, without=drawn[max(1, round(share * len(ids))) :].tolist())
