"""Where a run may write: never over the course, over data, or over files of somebody else."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mdlib.core.paths import ROOT
from mdlib.run.values import PresetError

# the course's own folders; those that begin with a dot are, too
OWN = ("benchmarks", "data", "docs", "mdlib", "notebooks", "presets", "reports", "tests")
_ADVICE = "give a folder of its own, such as reports/mine (--out, or run_dir in a notebook)"


def check_place(run_dir: Path, *, roots: Iterable[Path]) -> Path:
    """Refuse a folder in which a run would harm something. Links are followed.

    Args:
        run_dir: where the run is to write; the folder need not exist.
        roots: the folders of the run's data sets, see `data_roots`.

    Returns:
        The folder, absolute.

    Raises:
        PresetError: the folder is the checkout, holds it, or is one of its own; is a file or lies
            below one, or in another run; holds files but no run; is a data set's folder or lies
            inside it; or has a name that is no text.
    """
    try:
        place, own = run_dir.resolve(), ROOT.resolve()
        str(place).encode()
    except (OSError, RuntimeError):  # the latter before Python 3.13
        raise PresetError(f"{run_dir} is a link that leads back to itself: {_ADVICE}") from None
    except UnicodeEncodeError:
        raise PresetError(f"{str(run_dir)!r} is no name in UTF-8: {_ADVICE}") from None
    if _inside(own, place):
        raise PresetError(f"{run_dir} holds the course itself: {_ADVICE}")
    theirs = [own / name for name in OWN] + [path for path in own.glob(".*") if path.is_dir()]
    for folder in theirs:
        is_free = folder.name == "reports" and place != folder.resolve()
        if _inside(place, folder.resolve()) and not is_free:
            raise PresetError(f"{run_dir} belongs to the course: {_ADVICE}")
    for folder in (place, *place.parents):
        if folder.exists() and not folder.is_dir():
            raise PresetError(f"{folder} is a file, and a run writes a folder: {_ADVICE}")
    for root in roots:
        if _inside(place, root.resolve()):
            raise PresetError(
                f"{run_dir} lies in the data's folder {root}, where the run's own pictures "
                f"would become data: {_ADVICE}"
            )
    if outer := next((folder for folder in place.parents if is_run(folder)), None):
        raise PresetError(f"{run_dir} lies in the run {outer}: {_ADVICE}")
    if place.is_dir() and not is_run(place):
        others = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
        if others:
            raise PresetError(
                f"{run_dir} is no run, and not empty: it holds {', '.join(others[:3])}"
                f"{', ...' if len(others) > 3 else ''}: {_ADVICE}"
            )
    return place


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, of any state; others, too, have artifacts/ or metrics.json."""
    artifacts = folder / "artifacts"
    if artifacts.is_dir():
        stages = [path for path in artifacts.iterdir() if not path.name.startswith(".")]
        own = ("run.json", "lock", "lock.json", "checkpoints")
        return all(path.name in own or (path / "manifest.json").is_file() for path in stages)
    try:
        report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and {"run", "metrics"} <= report.keys()


def data_roots(parameters: Mapping[str, Mapping[str, object]]) -> list[Path]:
    """The folders of a run's data sets.

    Args:
        parameters: {notebook: {parameter: value}}, as `presets.resolve` gives them.

    Returns:
        The absolute paths, of the support set only where there is one.
    """
    prepared = parameters.get("00_prepare_data", {})
    keys = {"dataset": "data_root", "support_dataset": "support_root"}
    return [ROOT / str(prepared[root]) for name, root in keys.items() if prepared.get(name)]


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, both resolved; also where case does not count."""
    return any(
        each == folder or (each.exists() and folder.exists() and os.path.samefile(each, folder))
        for each in (path, *path.parents)
    )
