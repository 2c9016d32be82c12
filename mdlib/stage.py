"""One stage of a run: a folder that is written under a temporary name and renamed when whole.

`manifest.json` in it is the commit record: parameters, digests of inputs and of the code, versions, seconds, metrics.
A stage whose manifest still matches need not run again; `stale_reason` says what changed.
"""

import ast
import os
import platform
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import nbformat
import numpy as np
import torch

from mdlib import store
from mdlib.presets import NOTEBOOKS, ROOT, check_value, read_parameters

ZOO = "zoo (composited)"  # how the embedded data set is called wherever a number or figure of it is shown
PLACE = "run_dir"  # the one parameter that says where, not what: it is no part of a stage's identity
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "matplotlib")


class StageSkipped(Exception):
    """This stage has nothing to do here, such as scoring without labels; the message says why. Not an error."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows instead of a traceback."""
        return [f"skipped: {self}. The chain goes on without this stage."]


@dataclass
class Stage:
    """What a notebook holds of its own stage. `open_stage` makes it, `finish` commits it."""

    name: str
    parameters: dict[str, object]
    run_dir: Path
    label: str  # preset and data set, for every figure
    folder: Path  # temporary until `finish`
    inputs: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    figures: list[dict] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def read(self, name: str) -> Path:
        """The folder of an earlier stage of this run. Raises StoreError if it has not run, or not since its own inputs did."""
        manifest = read_manifest(self.run_dir, name)
        for earlier, digest in manifest["inputs"].items():
            if identity(read_manifest(self.run_dir, earlier)) != digest:
                raise store.StoreError(f"{name} was made from another {earlier} than this run holds now: run {name} again")
        self.inputs[name] = identity(manifest)
        return self.run_dir / "artifacts" / name

    def read_file(self, path: str | Path) -> Path:
        """A file or folder outside the run (data, weights), by a path from the repository's root or an absolute one.

        Its digest is recorded: of a folder that of the names and sizes in it.
        """
        full = ROOT / path
        if not full.exists():
            raise store.StoreError(f"{full} is missing")
        self.files[str(path)] = _digest(full)
        return full

    def weights(self, value: str | None, *, known: Iterable[str] = ()) -> str | Path | None:
        """A parameter `weights` as encoders and backbones take it: None, "random" and names in `known` as they are, else a file.

        The file is recorded as by `read_file`. Raises StoreError where there is none.
        """
        if value is None or value == "random" or value in known:
            return value
        if not (ROOT / value).is_file():
            raise store.StoreError(f"weights {value!r}: no file {ROOT / value}; expected a file, {', '.join(['random', *known])} or null")
        return self.read_file(value)

    def checkpoint(self, training: str) -> Path:
        """Where a training of this stage keeps its checkpoint: beside the stages, so that it outlives a kill.

        Other parameters or inputs have another file, so a changed run starts anew; `finish` removes them all.
        """
        made_of = repr([sorted(part.items()) for part in (self.parameters, self.inputs, self.files)])
        folder = self.run_dir / "artifacts" / "checkpoints"
        return folder / f"{self.name}-{training}-{store.digest_bytes(made_of.encode())[:8]}.safetensors"

    def figure(self, figure, name: str, *, caption: str) -> None:
        """Save a matplotlib figure as reports/<run>/figures/<stage>-<name>.png; the caption is its alt text."""
        path = self.run_dir / "figures" / f"{self.name}-{name}.png"
        figure.text(1.0, -0.01, self.label, ha="right", va="top", fontsize=7, color="0.45")
        with store.atomic(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        self.figures.append({"file": path.name, "caption": caption})

    def finish(self, metrics: dict[str, float] | None = None) -> dict[str, float]:
        """Write the manifest and give the stage its final name. Returns the metrics, rounded to six digits."""
        metrics = {k: round(float(v), 6) for k, v in (metrics or {}).items()}
        bad = [k for k, v in metrics.items() if not np.isfinite(v)]
        if bad:
            raise ValueError(f"metrics are not finite: {bad}")
        self._commit(metrics)
        return metrics

    def skip(self, reason: str) -> NoReturn:
        """End the notebook here, without results: the manifest says why, and later stages go on. Raises StageSkipped."""
        self._commit({}, skipped=reason)
        raise StageSkipped(reason)

    def _commit(self, metrics: dict[str, float], **more: str) -> None:
        manifest = {
            "stage": self.name,
            "parameters": self.parameters,
            "inputs": self.inputs,
            "files": self.files,
            "code": code_digest(self.name),
            "versions": versions(),
            "seconds": round(time.monotonic() - self.began, 2),
            "metrics": metrics,
            "figures": self.figures,
            **more,
        }
        store.write_json(self.folder / "manifest.json", manifest)
        final = self.run_dir / "artifacts" / self.name
        shutil.rmtree(final, ignore_errors=True)
        os.replace(self.folder, final)
        self.folder = final
        for checkpoint in (self.run_dir / "artifacts" / "checkpoints").glob(f"{self.name}-*"):
            checkpoint.unlink()


def open_stage(name: str, values: dict[str, object]) -> Stage:
    """Open a stage from its notebook: `stage = open_stage("01_distill_masks", globals())`.

    Takes the notebook's parameters out of `values`, checks their types, prints device, versions and paths.
    """
    known = read_parameters(name)
    parameters = {key: check_value(key, values[key], known[key].type) for key in known}
    run_dir = (ROOT / str(parameters.pop(PLACE))).resolve()
    artifacts = run_dir / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    for left_over in artifacts.glob(f".{name}.*"):  # of a killed run
        shutil.rmtree(left_over, ignore_errors=True)
    folder = artifacts / f".{name}.{os.getpid()}"
    folder.mkdir()
    label = run_label(run_dir, parameters)
    print(f"{name} · {label} · {device()} · torch {torch.__version__}")
    return Stage(name, parameters, run_dir, label, folder)


def run_label(run_dir: Path, parameters: dict[str, object]) -> str:
    """What every figure says of itself: the preset ("lab" for interactive use) and the data set."""
    info = run_dir / "artifacts" / "run.json"
    preset = store.read_json(info)["preset"] if info.is_file() else "lab"
    return f"{preset} preset · {data_label(run_dir, parameters)}"


def data_label(run_dir: Path, parameters: dict[str, object] | None = None) -> str:
    """The name of a run's data set, from 00's own parameters while it is made, from its manifest afterwards."""
    path = run_dir / "artifacts" / "00_prepare_data" / "manifest.json"
    stored = store.read_json(path)["parameters"] if path.is_file() else {}
    dataset = (parameters or {}).get("dataset", stored.get("dataset", "zoo"))
    return ZOO if dataset == "zoo" else str(dataset)


def device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{library: metadata.version(library) for library in LIBRARIES}}


def read_manifest(run_dir: Path, name: str) -> dict:
    path = run_dir / "artifacts" / name / "manifest.json"
    if not path.is_file():
        raise store.StoreError(f"stage {name} has not run in {run_dir}: run that notebook first")
    return store.read_json(path)


def _digest(path: Path) -> str:
    return store.digest_folder(path) if path.is_dir() else store.digest_file(path)


def identity(manifest: dict) -> str:
    """What a stage's result depends on, as a digest: the same identity means the same result."""
    parts = (repr(sorted(manifest[key].items())) for key in ("parameters", "inputs", "files"))
    return store.digest_bytes(manifest["stage"].encode(), manifest["code"].encode(), *(p.encode() for p in parts))


def stale_reason(run_dir: Path, name: str, parameters: dict[str, object]) -> str | None:
    """Why a stage must run (again), or None if its manifest still matches."""
    try:
        manifest = read_manifest(run_dir, name)
    except store.StoreError:
        return "has not run"
    wanted = {key: value for key, value in parameters.items() if key != PLACE}
    changed = sorted(k for k in wanted.keys() | manifest["parameters"].keys() if wanted.get(k) != manifest["parameters"].get(k))
    if changed:
        return f"parameters changed: {', '.join(changed)}"
    if manifest["code"] != code_digest(name):
        return "its notebook or the library code it imports changed"
    for path, digest in manifest["files"].items():
        if not (ROOT / path).exists() or _digest(ROOT / path) != digest:
            return f"{path} changed"
    for stage, digest in manifest["inputs"].items():
        try:
            if identity(read_manifest(run_dir, stage)) != digest:
                return f"{stage} changed"
        except store.StoreError:
            return f"{stage} is missing"
    return None


def code_digest(notebook: str) -> str:
    """Digest of a notebook's code and of the mdlib modules it imports, directly or not; comments do not count."""
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    code = [c.source for c in cells if c.cell_type == "code" and not ASIDE & set(c.metadata.get("tags", []))]
    trees = [ast.parse("\n".join(code))]
    seen: set[Path] = set()
    queue = _imports(trees[0])
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            queue |= _imports(ast.parse(path.read_text(encoding="utf-8")))
    trees += [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(seen)]
    return store.digest_bytes(*(ast.dump(tree).encode() for tree in trees))


# Tags of cells that do not change what a stage computes: its values (compared apart), what a reader tries after it.
ASIDE = {"parameters", "exercise", "explorer"}
# What a notebook draws with and how it is run do not change what it computes.
NEUTRAL = {"mdlib.figures", "mdlib.stage", "mdlib.presets", "mdlib.pipeline", "mdlib.report"}


def _imports(tree: ast.AST) -> set[Path]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    paths = set()
    for name in names:
        if name.split(".")[0] == "mdlib" and name not in NEUTRAL:
            base = ROOT / name.replace(".", "/")
            paths |= {p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()}
    return paths
