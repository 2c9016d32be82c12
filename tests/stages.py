"""Stages without their notebooks: opened, and made with the outputs that they must have."""

from pathlib import Path

from mdlib.core.files import read_json, write_json, write_text
from mdlib.run.stage import WRITES, Manifest, Stage, _outputs, manifest_path, read_manifest


def opened(run_dir: Path, name: str, **parameters) -> Stage:
    return Stage(name, parameters, run_dir, "test")


def write_outputs(stage: Stage, text: str = "") -> None:
    """What a stage must have written, as files that hold `text`."""
    for output in WRITES.get(stage.name, ()):
        place = stage.folder / output
        write_text(place if place.suffix else place / "one.txt", text)


def made(run_dir: Path, name: str, *inputs: str, text: str = "", **parameters) -> Manifest:
    """Run a stage that reads `inputs` and writes `text`; its manifest."""
    ours = opened(run_dir, name, **parameters)
    for earlier in inputs:
        ours.read(earlier)
    write_outputs(ours, text)
    ours.finish({"number": 1.0})
    return read_manifest(run_dir, name)


def write_manifest(run_dir: Path, name: str, **changes) -> Path:
    """The manifest of a stage of which the test writes the files itself; the stage's folder.

    `seal` takes the files into the manifests of the run.
    """
    empty = {key: {} for key in ("parameters", "inputs", "files", "packages", "versions")}
    empty |= {"metrics": {}, "outputs": {}, "figures": [], "seconds": 1.0, "smoke_size": False}
    path = manifest_path(run_dir, name)
    write_json(path, {"stage": name, "code": "", "device": "cpu"} | empty | changes)
    return path.parent


def seal(run_dir: Path) -> None:
    """Take the files that are in the stages' folders now for those that the stages wrote."""
    for path in run_dir.glob("artifacts/*/manifest.json"):
        write_json(path, read_json(path) | {"outputs": _outputs(path.parent)})
