"""One stage of a run: a folder that is written under a temporary name and renamed when whole.

`manifest.json` in it is the commit record: parameters, digests of inputs and of the code, versions,
device, seconds, metrics. A stage whose manifest still matches need not run again; `stale_reason`
says what changed.
"""

import ast
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import nbformat
import numpy as np

from mdlib.core.files import (
    StoreError,
    atomic,
    digest_bytes,
    digest_file,
    digest_folder,
    read_json,
    write_json,
)
from mdlib.core.paths import NOTEBOOKS, ROOT
from mdlib.run.presets import RUN_DIR, check_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mdlib.run.artifacts import RunArtifacts

# how the embedded data set is called wherever a number or figure of it is shown
ZOO = "zoo (composited)"
# set for the kernels of `pipeline.fill`, which runs stages that a notebook lacks
SMOKE_SIZE = "MDLIB_SMOKE_SIZE"
LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "matplotlib",
)


class StageSkipped(Exception):
    """This stage has nothing to do here, such as scoring without labels; the message says why.

    Not an error.
    """

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows instead of a traceback."""
        return [f"skipped: {self}. The chain goes on without this stage."]


@dataclass
class Stage:
    """What a notebook holds of its own stage. `open_stage` makes it, `finish` commits it.

    Attributes:
        name: of the notebook, such as "01_distill_masks".
        parameters: {name: value}, without `run_dir`.
        run_dir: the run's folder, absolute.
        label: preset and data set, at the foot of every figure.
        folder: where the notebook writes; temporary until `finish` or `skip` renames it.
        inputs: {earlier stage: its identity}, of those that `read` gave.
        files: {path: digest} of what `read_file` gave.
        figures: {"file", "caption"} of each saved figure, in order.
        began: when the stage was opened, seconds of the monotonic clock.
        smoke_size: whether it, or a stage that it read, was filled in at smoke size.
    """

    name: str
    parameters: dict[str, object]
    run_dir: Path
    label: str
    folder: Path
    inputs: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    figures: list[dict] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    smoke_size: bool = field(default_factory=lambda: SMOKE_SIZE in os.environ)

    def read(self, name: str) -> Path:
        """Read an earlier stage of this run, which becomes an input of this one.

        In a notebook opened by hand, a stage that has not run is run at smoke size.

        Args:
            name: the earlier stage.

        Returns:
            Its folder.

        Raises:
            StoreError: it has not run (under the runner, MDLIB_BATCH), failed to, or ran before
                its own inputs did.
        """
        if "MDLIB_BATCH" not in os.environ and not manifest_path(self.run_dir, name).is_file():
            _fill(self.run_dir, name)
        manifest = read_manifest(self.run_dir, name)
        for earlier, digest in manifest["inputs"].items():
            if identity(read_manifest(self.run_dir, earlier)) != digest:
                raise StoreError(
                    f"{name} was made from another {earlier} than this run holds now: "
                    f"run {name} again (nothing overwrites it for you)"
                )
        self.inputs[name] = identity(manifest)
        if manifest.get("smoke_size") and not self.smoke_size:
            self.smoke_size, self.label = True, f"{self.label} · smoke-size inputs"
            print(
                f"{name} is of smoke size: numbers from here on mean nothing, "
                "and the figures say so"
            )
        return self.run_dir / "artifacts" / name

    @cached_property
    def run(self) -> "RunArtifacts":
        """What the stages of this run wrote; what is read there is an input of this stage."""
        from mdlib.run.artifacts import RunArtifacts  # it imports networks, the runner does not

        return RunArtifacts(self.run_dir, folder_of=self.read)

    def read_file(self, path: str | Path) -> Path:
        """Record a file or folder outside the run (data, weights) as an input.

        Args:
            path: from the repository's root, or absolute.

        Returns:
            The absolute path. The digest of a folder is that of the names and sizes in it.

        Raises:
            StoreError: there is no such file or folder.
        """
        full = ROOT / path
        if not full.exists():
            raise StoreError(f"{full} is missing")
        self.files[str(path)] = _digest(full)
        return full

    def weights(self, value: str | None, *, known: Iterable[str] = ()) -> str | Path | None:
        """Turn a parameter `weights` into what encoders and backbones take.

        Args:
            value: None, "random", a name in `known`, or a file, which `read_file` then records.
            known: names of published weights.

        Returns:
            The value as it is, or the file's absolute path.

        Raises:
            StoreError: it is none of these.
        """
        if value is None or value == "random" or value in known:
            return value
        if not (ROOT / value).is_file():
            raise StoreError(
                f"weights {value!r}: no file {ROOT / value}; "
                f"expected a file, {', '.join(['random', *known])} or null"
            )
        return self.read_file(value)

    def checkpoint(self, training: str) -> Path:
        """Name the file in which a training of this stage keeps its checkpoint.

        It lies beside the stages, so that it outlives a kill. Other parameters or inputs have
        another file, so a changed run starts anew; `finish` removes them all.

        Args:
            training: a word for the training, one of its own for each in a stage.

        Returns:
            The path; the file need not exist.
        """
        return self._kept(training).with_suffix(".safetensors")

    def shards(self, what: str) -> Path:
        """Name the folder in which this stage keeps finished parts of a long computation.

        It lies beside the checkpoints and lives as long as they do.

        Args:
            what: a word for the computation, one of its own for each in a stage.

        Returns:
            The path; the folder need not exist.
        """
        return self._kept(what)

    def _kept(self, what: str) -> Path:
        """A path beside the stages whose name holds the digest of what its content depends on."""
        made_of = repr(
            [sorted(part.items()) for part in (self.parameters, self.inputs, self.files)]
        )
        folder = self.run_dir / "artifacts" / "checkpoints"
        return folder / f"{self.name}-{what}-{digest_bytes(made_of.encode())[:8]}"

    def figure(self, figure: "Figure", name: str, *, caption: str, invented: bool = False) -> None:
        """Save a matplotlib figure as RUN/figures/STAGE-NAME.png.

        At its foot stand the run's preset and data.

        Args:
            figure: a matplotlib Figure; the line at its foot is added to it.
            name: a word for the file.
            caption: what there is to see; also the picture's alt text.
            invented: the numbers were made up to draw an idea, and the foot says so instead.
        """
        path = self.run_dir / "figures" / f"{self.name}-{name}.png"
        figure.text(
            1.0,
            -0.01,
            "invented numbers" if invented else self.label,
            ha="right",
            va="top",
            fontsize=7,
            color="0.45",
        )
        with atomic(path) as temporary:
            figure.savefig(
                temporary, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None}
            )
        self.figures.append({"file": path.name, "caption": caption})

    def finish(self, metrics: dict[str, float] | None = None) -> dict[str, float]:
        """Write the manifest and give the stage its final name.

        Args:
            metrics: {name: finite number}, none if left out.

        Returns:
            The metrics, rounded to six digits.

        Raises:
            ValueError: a metric is not finite.
        """
        metrics = {k: round(float(v), 6) for k, v in (metrics or {}).items()}
        bad = [k for k, v in metrics.items() if not np.isfinite(v)]
        if bad:
            raise ValueError(f"metrics are not finite: {bad}")
        self._commit(metrics)
        return metrics

    def skip(self, reason: str) -> NoReturn:
        """End the notebook here, without results; later stages go on.

        Args:
            reason: why; the manifest keeps it.

        Raises:
            StageSkipped: always, so that no later cell runs.
        """
        self._commit({}, skipped=reason)
        raise StageSkipped(reason)

    def _commit(self, metrics: dict[str, float], **more: str) -> None:
        """Write the manifest, rename the folder, remove the checkpoints."""
        manifest = {
            "stage": self.name,
            "parameters": self.parameters,
            "inputs": self.inputs,
            "files": self.files,
            "code": code_digest(self.name),
            "versions": versions(),
            "device": device(),
            "seconds": round(time.monotonic() - self.began, 2),
            "metrics": metrics,
            "figures": self.figures,
            "smoke_size": self.smoke_size,
            **more,
        }
        write_json(self.folder / "manifest.json", manifest)
        final = self.run_dir / "artifacts" / self.name
        shutil.rmtree(final, ignore_errors=True)
        os.replace(self.folder, final)
        self.folder = final
        for kept in (self.run_dir / "artifacts" / "checkpoints").glob(f"{self.name}-*"):
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()


def open_stage(name: str, values: dict[str, object]) -> Stage:
    """Open a stage from its notebook, and print what runs, on which data, device and torch.

    In a notebook: `stage = open_stage("01_distill_masks", globals())`.

    Args:
        name: of the notebook.
        values: holds the notebook's parameters; other names in it do not matter.

    Returns:
        The stage, with an empty folder to write into.

    Raises:
        PresetError: a parameter has another type or range than its cell declares.
    """
    parameters = check_values(name, values)
    run_dir = (ROOT / str(parameters.pop(RUN_DIR))).resolve()
    artifacts = run_dir / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    for left_over in artifacts.glob(f".{name}.*"):  # of a killed run
        shutil.rmtree(left_over, ignore_errors=True)
    folder = artifacts / f".{name}.{os.getpid()}"
    folder.mkdir()
    label = run_label(run_dir, parameters)
    print(f"{name} · {label} · {device()} · torch {metadata.version('torch')}")
    return Stage(name, parameters, run_dir, label, folder)


def run_label(run_dir: Path, parameters: dict[str, object]) -> str:
    """What every figure says of itself: the preset and the data set.

    Args:
        run_dir: of a run of any state; without run.json its preset is "lab" (interactive use).
        parameters: of the stage that is open; see `data_label`.

    Returns:
        A line such as "demo preset · zoo (composited)".
    """
    info = run_dir / "artifacts" / "run.json"
    own = read_json(info)["preset"] if info.is_file() else "lab"
    preset = "smoke" if SMOKE_SIZE in os.environ else own
    return f"{preset} preset · {data_label(run_dir, parameters)}"


def data_label(run_dir: Path, parameters: dict[str, object] | None = None) -> str:
    """The name of a run's data set.

    Args:
        run_dir: the run's folder.
        parameters: of the stage that is open. Those of 00 name the data set while 00 runs;
            afterwards its manifest does.

    Returns:
        The name that `open_dataset` takes, or ZOO for the embedded one.
    """
    path = manifest_path(run_dir, "00_prepare_data")
    stored = read_json(path)["parameters"] if path.is_file() else {}
    dataset = (parameters or {}).get("dataset", stored.get("dataset", "zoo"))
    return ZOO if dataset == "zoo" else str(dataset)


def device() -> str:
    """Where networks run: "cuda" where there is one, else "cpu"."""
    import torch  # here, so that the runner does without it while kernels work

    return "cuda" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    """{"python" or a package of LIBRARIES: the version that is installed}."""
    return {
        "python": platform.python_version(),
        **{library: metadata.version(library) for library in LIBRARIES},
    }


def manifest_path(run_dir: Path, name: str) -> Path:
    """Where a stage's manifest is, or will be."""
    return run_dir / "artifacts" / name / "manifest.json"


def read_manifest(run_dir: Path, name: str) -> dict:
    """Read the manifest of a stage that has run.

    Args:
        run_dir: the run's folder.
        name: of the stage.

    Returns:
        What `Stage.finish` or `Stage.skip` wrote.

    Raises:
        StoreError: the stage has not run.
    """
    path = manifest_path(run_dir, name)
    if not path.is_file():
        raise StoreError(f"stage {name} has not run in {run_dir}: run that notebook first")
    return read_json(path)


def _fill(run_dir: Path, name: str) -> None:
    """`python -m mdlib fill` in a process of its own, its lines shown as they come."""
    print(
        f"{name} has not run in {os.path.relpath(run_dir, ROOT)}: "
        "running it and what it needs at smoke size "
        "(about half a minute a stage); run that notebook for the real thing",
        flush=True,
    )
    command = [sys.executable, "-m", "mdlib", "fill", str(run_dir), name]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as runner:
        for line in runner.stdout or ():
            print(line, end="", flush=True)
    if runner.returncode:
        raise StoreError(
            f"stage {name} has not run in {run_dir}, "
            "nor could it be run at smoke size (why stands above)"
        )


def _digest(path: Path) -> str:
    """Digest of a file's content, or of the names and sizes in a folder."""
    return digest_folder(path) if path.is_dir() else digest_file(path)


def identity(manifest: dict) -> str:
    """What a stage's result depends on, as a digest: the same identity means the same result.

    Args:
        manifest: as `read_manifest` gives it.

    Returns:
        Digest of name, code, parameters, inputs and files.
    """
    parts = (repr(sorted(manifest[key].items())) for key in ("parameters", "inputs", "files"))
    return digest_bytes(
        manifest["stage"].encode(), manifest["code"].encode(), *(p.encode() for p in parts)
    )


def stale_reason(run_dir: Path, name: str, parameters: dict[str, object]) -> str | None:
    """Why a stage must run (again).

    Args:
        run_dir: the run's folder.
        name: of the stage.
        parameters: all that it would run with; `run_dir` does not count.

    Returns:
        The first reason found, or None if the stage's manifest still matches.
    """
    try:
        manifest = read_manifest(run_dir, name)
    except StoreError:
        return "has not run"
    wanted = {key: value for key, value in parameters.items() if key != RUN_DIR}
    changed = sorted(
        k
        for k in wanted.keys() | manifest["parameters"].keys()
        if wanted.get(k) != manifest["parameters"].get(k)
    )
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
        except StoreError:
            return f"{stage} is missing"
    return None


def code_digest(notebook: str) -> str:
    """Digest of a notebook's code and of the mdlib modules it imports, directly or not.

    Comments and docstrings do not count, nor do the modules of IGNORED_CODE and what they import.

    Args:
        notebook: its name; cells with a tag in IGNORED_TAGS do not count.

    Returns:
        The digest of the syntax trees.
    """
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    code = [
        cell.source
        for cell in cells
        if cell.cell_type == "code" and not IGNORED_TAGS & set(cell.metadata.get("tags", []))
    ]
    own = ast.parse("\n".join(code))
    found: dict[Path, ast.Module] = {}
    queue = _imports(own)
    while queue:
        path = queue.pop()
        if path not in found:
            found[path] = ast.parse(path.read_text(encoding="utf-8"))
            queue |= _imports(found[path])
    trees = [own, *(found[path] for path in sorted(found))]
    return digest_bytes(*(ast.dump(_without_docstrings(tree)).encode() for tree in trees))


def _imports(tree: ast.Module) -> set[Path]:
    """The files of the mdlib modules that a module imports anywhere, but for IGNORED_CODE."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    paths = set()
    for name in names:
        counted = not any(f"{name}.".startswith(f"{neutral}.") for neutral in IGNORED_CODE)
        if name.split(".")[0] == "mdlib" and counted:
            base = ROOT / name.replace(".", "/")
            paths |= {p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()}
    return paths


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree itself, every docstring in it emptied."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str()) as docstring), *_]:
                    docstring.value = ""
    return tree


# Tags of cells that do not change what a stage computes: its values (compared apart), and what a
# reader tries after it.
IGNORED_TAGS = {"parameters", "exercise", "explorer"}
# What a notebook draws with and how it is run do not change what it computes.
IGNORED_CODE = ("mdlib.run", "mdlib.show", "mdlib.core.colours", "mdlib.core.progress")
