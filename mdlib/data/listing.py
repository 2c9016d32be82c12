"""Which files a data set needs, and which of them are there."""

from collections.abc import Iterable
from pathlib import Path


def read_list(path: Path) -> list[str]:
    """Read the first word of each line of a text file, in its order; empty lines are skipped.

    Raises:
        FileNotFoundError: with the path.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the list {path} is missing")
    return [
        line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def preview(names: Iterable[str], *, limit: int = 5) -> str:
    """Name the first `limit` and how many more there are: "a, b, c and 12 more"."""
    known = list(names)
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
