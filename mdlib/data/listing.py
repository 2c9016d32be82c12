"""Which files a data set needs, which of them are there, and what their list must hold."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdlib.data.names import same_everywhere, shown


def read_list(path: Path) -> list[str]:
    """Read the first word of each line of a text file, in its order; empty lines are skipped.

    Raises:
        FileNotFoundError: with the path.
        ValueError: for a file that is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the list {path} is missing")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"the list {path} is not text in UTF-8") from None
    return [line.split()[0] for line in lines if line.strip()]


def preview(names: Iterable[str], *, limit: int = 5) -> str:
    """Name the first `limit` and how many more there are: "a, b, c and 12 more"."""
    known = [shown(name) for name in names]
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return ", ".join(known[:limit]) + more


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Find those of the paths that are no files.

    Each folder is listed once: thousands of single look-ups are slow on a network disk.
    """
    listed: dict[Path, set[str]] = {}
    gone = []
    for path in paths:
        if path.parent not in listed:
            listed[path.parent] = (
                {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
            )
        if path.name not in listed[path.parent]:
            gone.append(path)
    return gone


def check_exist(paths: list[Path], *, what: str) -> None:
    """Refuse a data set whose files are not all there.

    Args:
        paths: all its files.
        what: the data set and its split, for the message.

    Raises:
        FileNotFoundError: with some of the absent files, if there are any.
    """
    gone = missing_files(paths)
    if gone:
        folders = preview(sorted({str(path.parent) for path in gone}))
        raise FileNotFoundError(
            f"{what}: {len(gone)} of {len(paths)} files are missing in {folders}: "
            f"{preview(path.name for path in gone)}. "
            "Was the data set copied or unpacked as a whole?"
        )


def check_unique(ids: Sequence[str], *, what: str) -> None:
    """Refuse a list with an id twice: one picture would get what belongs to the other.

    Ids that some file system takes for one, such as `Cat` and `cat`, count as equal.

    Args:
        ids: of all images of a split.
        what: the data set and its split, for the message.

    Raises:
        ValueError: with some of the ids that stand there twice, if there are any.
    """
    by_key = {same_everywhere(name): name for name in ids}
    times = Counter(map(same_everywhere, ids))
    twice = [by_key[key] for key, number in times.items() if number > 1]
    if twice:
        raise ValueError(f"{what}: {len(twice)} images are listed twice: {preview(twice)}")


def check_count(count: int | None, have: int, *, what: str) -> None:
    """Refuse a count of images that is below 1, or that a split does not have; None is all.

    Args:
        count: how many are asked for.
        have: how many there are.
        what: the data set and its split, for the message.

    Raises:
        ValueError: for such a count.
    """
    if count is not None and not 1 <= count <= have:
        raise ValueError(f"{what} has {have} images, {count} were asked for")
