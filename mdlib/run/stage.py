"""One stage of a run: a folder that is written beside its place and swapped in when it is complete.

A stage is open, then finished. Opened, it has a lock and an empty folder; finished, its folder
replaces the one before, and nothing more can be written. `manifest.json` is the commit record:
parameters, digests of all that was read and written, code, versions, device, seconds, metrics.
A stage whose manifest still matches need not run again; `stale_reason` says what changed.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, NotRequired

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # typing's own is too little for pydantic before 3.12

from mdlib.core.draft import Draft, recover
from mdlib.core.files import (
    StoreError,
    atomic,
    digest_bytes,
    digest_file,
    read_json,
    write_json,
)
from mdlib.core.lock import Lock
from mdlib.core.paths import ROOT
from mdlib.run.identity import (
    as_python,
    changed_since_import,
    code_digest,
    device,
    digest_of,
    key_of,
    notebook_cells,
    stage_sources,
    version,
    versions,
)
from mdlib.run.place import check_place
from mdlib.run.presets import RUN_DIR, check_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mdlib.run.artifacts import RunArtifacts

# how the embedded data set is called wherever a number or figure of it is shown
ZOO = "zoo (composited)"
EDITED = "edited: "  # begins the code of a stage whose cells ran otherwise than as they are saved
ABSENT = "absent"  # the digest of a stage that has not run, where another one asked for it
# what a stage that was not skipped must have written
WRITES = {
    "00_prepare_data": ("index.json", "inventory.json"),
    "01_distill_masks": ("masks_train.json",),
    "02_cluster_masks": ("masks_train.json", "features_train.npy", "centres.npy", "clusters.json"),
    "03_train_mask_rcnn": ("predictions_train.json", "detector.safetensors", "history.json"),
    "04_filter_masks": ("train",),
    "05_train_deeplab": ("segmenter.safetensors", "history.json"),
    "06_refine_with_crf": ("crf.json",),
    "08_probe_linearly": ("probe.safetensors",),
    "10_compare_priors": ("comparison.json",),
    "11_ablate": ("ablations.json",),
    "A1_pretrain_encoder": ("encoder.safetensors",),
}


class StageSkipped(Exception):
    """This stage has nothing to do here, such as scoring without labels; the message says why.

    Not an error.
    """

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows instead of a traceback."""
        return [f"skipped: {self}. The chain goes on without this stage."]


def _below(name: str) -> str:
    """A path that stays below its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name} leaves the stage's folder")
    return name


Below = Annotated[str, AfterValidator(_below)]


class SavedFigure(TypedDict):
    """A figure of a stage."""

    file: Below
    caption: str


class Manifest(TypedDict):
    """The commit record of a stage."""

    stage: str
    parameters: dict[str, Any]  # without run_dir
    inputs: dict[str, str]  # earlier stage: digest of its results, or ABSENT
    files: dict[str, str]  # file or folder outside the run: digest
    packages: dict[str, str]  # optional library: version, or "none"
    code: str  # digest of what ran
    versions: dict[str, str]
    device: str
    seconds: float
    metrics: dict[str, float]
    figures: list[SavedFigure]
    outputs: dict[Below, str]  # path in the stage's folder: digest
    smoke_size: bool  # whether it, or a stage that it read, was filled in at smoke size
    skipped: NotRequired[str]  # why


_MANIFEST = TypeAdapter(Manifest)
_open: dict[Path, "Stage"] = {}  # the stages that this process has open, by their place


class Stage:
    """What a notebook holds of its own stage. `open_stage` makes it, `finish` commits it.

    Attributes:
        name: of the notebook, such as "01_distill_masks".
        parameters: {name: value}, without `run_dir`.
        run_dir: the run's folder, absolute.
        label: preset and data set, at the foot of every figure.
        inputs: {earlier stage: digest of its results}, of those that were read.
        files: {path: digest} of what `read_file` gave.
        figures: {"file", "caption"} of each saved figure, in order.
        packages: {optional library: version} of what `package` was asked for.
        smoke_size: whether it, or a stage that it read, was filled in at smoke size.
    """

    _draft: Draft

    def __init__(
        self,
        name: str,
        parameters: dict[str, object],
        run_dir: Path,
        label: str,
        *,
        values: dict[str, Any] | None = None,
    ):
        """Open a stage; one that this process has open already is given up.

        Args:
            name: of the notebook.
            parameters: {name: value}, without `run_dir`.
            run_dir: the run's folder, absolute.
            label: see the attribute.
            values: the notebook's names, which `finish` compares with what it was opened with.

        Raises:
            StoreError: another process has it open, its place cannot be written, or the library
                has changed since this process loaded it.
        """
        if changed := changed_since_import(name):
            raise StoreError(
                f"{', '.join(changed)} changed since this kernel loaded it: restart the kernel"
            )
        self.name, self.parameters, self.run_dir, self.label = name, parameters, run_dir, label
        self.inputs: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.packages: dict[str, str] = {}
        self.figures: list[SavedFigure] = []
        self.smoke_size = filling(run_dir)
        self._began, self._code, self._values = time.monotonic(), code_digest(name), values or {}
        self._first_cell = max(0, len(self._values.get("In", [])) - 1)
        # as they are now: JupyterLab may save an edited cell before the stage is finished
        self._own = [as_python(source) for source in stage_sources(name)]
        self._known = {as_python(cell.source) for cell in notebook_cells(name)}
        self._metrics: dict[str, float] | None = None  # of a finished stage
        self._place = manifest_path(run_dir, name).parent
        if (before := _open.pop(self._place, None)) is not None:
            before._draft.discard()
        busy = f"{name} is open in another kernel ({{who}}) of {run_dir}: shut that down, or wait"
        self._draft = Draft(self._place, is_whole=_is_whole, busy=busy)
        _open[self._place] = self
        for left in self._kept_folder().glob(f".{name}-*"):
            left.unlink()  # of a checkpoint whose writing was killed

    @property
    def folder(self) -> Path:
        """Where the notebook writes; `finish` and `skip` put it into its place.

        Raises:
            StoreError: the stage is finished, or was opened again.
        """
        if self._metrics is not None:
            raise StoreError(
                f"{self.name} is finished and cannot be changed: run the notebook from its first "
                "cell to make it anew"
            )
        if _open.get(self._place) is not self:
            raise StoreError(f"{self.name} was opened again since: go on from that cell")
        if not self._draft.folder.is_dir():
            raise StoreError(
                f"{self._draft.folder} was deleted: run {self.name} again from its first cell"
            )
        return self._draft.folder

    def read(self, name: str) -> Path:
        """Read an earlier stage of this run, which becomes an input of this one.

        In a notebook opened by hand, a stage that has not run is run at smoke size.

        Args:
            name: the earlier stage.

        Returns:
            Its folder.

        Raises:
            StoreError: it has not run (under the runner, MDLIB_BATCH), its files or what it was
                made from (pictures, weights) changed since, or it was made from other versions of
                its own inputs than the run holds now.
        """
        if "MDLIB_BATCH" not in os.environ and not has_run(self.run_dir, name):
            _fill(self.run_dir, name)
        if problem := unfit(self.run_dir, name):
            raise StoreError(problem)
        manifest = read_manifest(self.run_dir, name)
        if changed := _changed_file(manifest):
            raise StoreError(
                f"{changed} has changed since {name} read it: "
                f"run {name} again (nothing overwrites it for you)"
            )
        _note(self.inputs, name, result_digest(manifest))
        if manifest["smoke_size"] and not self.smoke_size:
            self.smoke_size, self.label = True, f"{self.label} · smoke-size inputs"
            print(
                f"{name} is of smoke size: numbers from here on mean nothing, "
                "and the figures say so"
            )
        return manifest_path(self.run_dir, name).parent

    def has(self, name: str) -> bool:
        """Whether another stage of this run has run.

        Where it has not, this one is out of date once it has; where it has, `read` makes it an
        input.
        """
        if has_run(self.run_dir, name):
            return True
        _note(self.inputs, name, ABSENT)
        return False

    @cached_property
    def run(self) -> "RunArtifacts":
        """What the stages of this run wrote; what is read there is an input of this stage."""
        from mdlib.run.artifacts import RunArtifacts  # it imports networks, the runner does not

        return RunArtifacts(self.run_dir, stage=self)

    def read_file(self, path: str | Path) -> Path:
        """Record a file or folder outside the run (data, weights) as an input.

        Args:
            path: from the repository's root, or absolute.

        Returns:
            The absolute path. The digest of a folder is that of the names and bytes in it.

        Raises:
            StoreError: there is no such file or folder.
        """
        full = ROOT / path
        if not full.exists():
            raise StoreError(f"{full} is missing")
        _note(self.files, key_of(full), digest_of(full))
        return full

    def weights(self, value: str | None, *, network: str) -> str | Path | None:
        """Turn a parameter `weights` into what encoders and backbones take.

        The file that will be loaded is recorded, that of published weights among them.

        Args:
            value: None, "random", a name of published weights, or a file.
            network: the encoder or backbone that it is for.

        Returns:
            The value as it is, or the file's absolute path.

        Raises:
            StoreError: there is no such file.
            WeightsError: published weights cannot be fetched.
        """
        from mdlib.models.published import published_file  # it imports torch, the runner does not

        if file := published_file(network, value):
            self.read_file(file)
            return value
        if value is None or value == "random":
            return value
        if not (ROOT / value).is_file():
            raise StoreError(
                f"weights {value!r}: no file {ROOT / value}; expected a file, random, null, or "
                f"a name of published weights of {network}"
            )
        return self.read_file(value)

    def package(self, name: str) -> bool:
        """Whether an optional library is installed; the stage is out of date when that changes."""
        self.packages[name] = version(name)
        return self.packages[name] != "none"

    def checkpoint(self, training: str) -> Path:
        """Name the file in which a training of this stage keeps its checkpoint.

        It lies beside the stages, so that it outlives a kill. Another code, version, device,
        parameter or input has another file, so a changed run starts anew; `finish` removes them
        all.

        Args:
            training: a word for the training, one of its own for each in a stage.

        Returns:
            The path; the file need not exist.
        """
        kept = self._kept(training)
        return kept.with_name(f"{kept.name}.safetensors")  # a word may have a dot, as "share-0.6"

    def shards(self, what: str) -> Path:
        """Name the folder in which this stage keeps finished parts of a long computation.

        It lies beside the checkpoints and lives as long as they do.

        Args:
            what: a word for the computation, one of its own for each in a stage.

        Returns:
            The path; the folder need not exist.
        """
        return self._kept(what)

    def figure(self, figure: "Figure", name: str, *, caption: str, invented: bool = False) -> None:
        """Save a matplotlib figure; when the stage is finished it is RUN/figures/STAGE-NAME.png.

        At its foot stand the run's preset and data. A figure that cannot be saved is a warning, and
        the stage goes on.

        Args:
            figure: a matplotlib Figure; the line at its foot is added to it.
            name: a word for the file; a second figure of that name replaces the first.
            caption: what there is to see; also the picture's alt text.
            invented: the numbers were made up to draw an idea, and the foot says so instead.
        """
        path = self.folder / "figures" / f"{self.name}-{name}.png"
        foot = "invented numbers" if invented else self.label
        figure.text(1.0, -0.01, foot, ha="right", va="top", fontsize=7, color="0.45")
        options: dict[str, Any] = dict(dpi=110, bbox_inches="tight", metadata={"Software": None})
        try:
            with atomic(path) as temporary:
                figure.savefig(temporary, format="png", **options)
        except Exception as error:  # of many kinds: drawing is nothing that work is lost for
            print(f"warning: the figure {name!r} could not be saved ({error})")
            return
        self.figures = [known for known in self.figures if known["file"] != path.name]
        self.figures.append({"file": path.name, "caption": caption})

    def finish(self, metrics: dict[str, float] | None = None) -> dict[str, float]:
        """Write the manifest and put the stage into its place. A second time does nothing.

        Args:
            metrics: {name: number}; one that is not finite is left out, with a line.

        Returns:
            The metrics, rounded to six digits.

        Raises:
            StoreError: an output is missing, a parameter was changed after the stage was opened, or
                it was opened again.
        """
        if self._metrics is not None:
            print(f"{self.name} is finished already; nothing was written")
            return self._metrics
        if self._draft.is_in_place:  # an earlier call was interrupted behind that
            return self._conclude(read_manifest(self.run_dir, self.name)["metrics"])
        folder = self.folder
        lacking = [name for name in WRITES.get(self.name, ()) if not (folder / name).exists()]
        if lacking:
            raise StoreError(
                f"{self.name} has not written {', '.join(lacking)}: "
                "run all cells from the first one, in order"
            )
        for key, value in self.parameters.items():
            if not _same(self._values.get(key, value), value):
                raise StoreError(
                    f"{key} was {value!r} when the stage was opened and is {self._values[key]!r} "
                    "now: write it into the parameters cell, and run all cells from there"
                )
        return self._commit(metrics or {}, code=self._code_that_ran("stage.finish("))

    def skip(self, reason: str) -> NoReturn:
        """End the notebook here, without results; later stages go on.

        Args:
            reason: why; the manifest keeps it.

        Raises:
            StageSkipped: always, so that no later cell runs.
        """
        if self._draft.is_in_place:  # an earlier call was interrupted behind that
            self._conclude({})
        elif self._metrics is None:
            self._commit({}, code=self._code_that_ran("stage.skip("), skipped=reason)
        raise StageSkipped(reason)

    def _commit(self, metrics: dict[str, float], **more: str) -> dict[str, float]:
        """Write the manifest, which makes the folder complete, and conclude."""
        rounded = {name: round(float(value), 6) for name, value in metrics.items()}
        for name in [name for name, value in rounded.items() if not math.isfinite(value)]:
            print(f"metric {name} is {rounded.pop(name)}: left out")
        folder = self.folder
        manifest = {
            "stage": self.name,
            "parameters": self.parameters,
            "inputs": self.inputs,
            "files": self.files,
            "packages": self.packages,
            "versions": versions(),
            "device": device(),
            "seconds": round(time.monotonic() - self._began, 2),
            "metrics": rounded,
            "figures": self.figures,
            "outputs": _outputs(folder),
            "smoke_size": self.smoke_size,
            **more,
        }
        write_json(folder / "manifest.json", manifest)
        return self._conclude(rounded)

    def _conclude(self, metrics: dict[str, float]) -> dict[str, float]:
        """Put the folder into its place, remove the checkpoints, publish."""
        self._draft.commit()
        for kept in self._kept_folder().glob(f"{self.name}-*"):
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        publish(self.run_dir, self.name)
        self._metrics = metrics
        _open.pop(self._place, None)
        return metrics

    def _code_that_ran(self, last: str) -> str:
        """The code's digest when the stage was opened; another one where other cells ran.

        Args:
            last: a part of the cell that ends the stage.
        """
        ran, ends = self._cells_since_opened(), [i for i, s in enumerate(self._own) if last in s]
        ended = not ends or any(self._own[i] in ran for i in ends)
        if not ran or (ended and self._ran_as_saved()):
            return self._code
        print(
            "the cells ran in another order than in the saved notebook, or others did: "
            f"the runner will run {self.name} again"
        )
        return f"{EDITED}{digest_bytes(*(source.encode() for source in ran))}"

    def _ran_as_saved(self) -> bool:
        """Whether a kernel has run the notebook's cells, each once and in order, and no others.

        A kernel lists what it ran as `In`. Where a cell was edited, left out, added, or ran twice
        or in another order, the notebook's file does not say what was computed.
        """
        ran = self._cells_since_opened()
        own = [source for source in ran if source in self._own]
        first = next((i for i, source in enumerate(self._own) if "open_stage(" in source), 0)
        return own == self._own[first : first + len(own)] and set(ran) <= self._known

    def _cells_since_opened(self) -> list[str]:
        """What a kernel has run since the first cell, that one included; [] elsewhere."""
        ran = self._values.get("In", [])[self._first_cell :]
        return [source.strip() for source in ran if source.strip()]

    def _kept(self, what: str) -> Path:
        """A path beside the stages whose name holds the digest of what its content depends on."""
        made_of = [
            self.parameters,
            self.inputs,
            self.files,
            self.packages,
            self._code,
            [] if self._ran_as_saved() else self._cells_since_opened(),
            versions(),
            device(),
        ]
        digest = digest_bytes(json.dumps(made_of, sort_keys=True).encode())
        return self._kept_folder() / f"{self.name}-{what}-{digest[:16]}"

    def _kept_folder(self) -> Path:
        """Where checkpoints and finished parts lie."""
        return self.run_dir / "artifacts" / "checkpoints"


def open_stage(name: str, values: dict[str, Any]) -> Stage:
    """Open a stage from its notebook, and print what runs, on which data, device and torch.

    In a notebook: `stage = open_stage("01_distill_masks", globals())`.

    Args:
        name: of the notebook.
        values: holds the notebook's parameters; other names in it do not matter.

    Returns:
        The stage, with an empty folder to write into.

    Raises:
        PresetError: a parameter has another type or range than its cell declares, or `run_dir`
            is no place for a run.
        StoreError: as `Stage`.
    """
    parameters = check_values(name, values)
    run_dir = (ROOT / str(parameters.pop(RUN_DIR))).resolve()
    check_place(run_dir, roots=())
    label = run_label(run_dir, parameters)
    print(f"{name} · {label} · {device()} · torch {metadata.version('torch')}")
    return Stage(name, parameters, run_dir, label, values=values)


def run_label(run_dir: Path, parameters: dict[str, object]) -> str:
    """What every figure says of itself: the preset and the data set.

    Args:
        run_dir: of a run of any state; without run.json its preset is "lab" (interactive use).
        parameters: of the stage that is open; see `data_label`.

    Returns:
        A line such as "demo preset · zoo (composited)".
    """
    preset = "smoke" if filling(run_dir) else run_preset(run_dir) or "lab"
    return f"{preset} preset · {data_label(run_dir, parameters)}"


def run_preset(run_dir: Path) -> str | None:
    """The preset that lives in a folder; None for notebooks run by hand, and a broken run.json."""
    try:
        found = read_json(run_dir / "artifacts" / "run.json")
    except StoreError:
        return None
    preset = found.get("preset") if isinstance(found, dict) else None
    return preset if isinstance(preset, str) else None


def data_label(run_dir: Path, parameters: dict[str, object] | None = None) -> str:
    """The name of a run's data set.

    Args:
        run_dir: the run's folder.
        parameters: of the stage that is open. Those of 00 name the data set while 00 runs;
            afterwards its manifest does.

    Returns:
        The name that `open_dataset` takes, or ZOO for the embedded one.
    """
    first = "00_prepare_data"
    stored = read_manifest(run_dir, first)["parameters"] if has_run(run_dir, first) else {}
    dataset = (parameters or {}).get("dataset", stored.get("dataset", "zoo"))
    return ZOO if dataset == "zoo" else str(dataset)


def run_lock(run_dir: Path) -> Lock:
    """The lock that the runner holds while it works in a run's folder."""
    return Lock(run_dir / "artifacts" / "lock")


def filling(run_dir: Path) -> bool:
    """Whether this is a kernel of `pipeline.fill`: what it runs is of smoke size."""
    by_runner = "MDLIB_BATCH" in os.environ
    return by_runner and bool((run_lock(run_dir).holder() or {}).get("fill"))


# ---------------------------------------------------------------- finished stages


def manifest_path(run_dir: Path, name: str) -> Path:
    """Where a stage's manifest is, or will be."""
    return run_dir / "artifacts" / name / "manifest.json"


def has_run(run_dir: Path, name: str) -> bool:
    """Whether a stage has run, in this run and with this version of the manifest."""
    try:
        read_manifest(run_dir, name)
    except StoreError:
        return False
    return True


def read_manifest(run_dir: Path, name: str) -> Manifest:
    """Read the manifest of a stage that has run.

    Args:
        run_dir: the run's folder.
        name: of the stage.

    Returns:
        What `Stage.finish` or `Stage.skip` wrote.

    Raises:
        StoreError: the stage has not run, or its manifest has another form.
    """
    path = manifest_path(run_dir, name)
    recover(path.parent, is_whole=_is_whole)
    if not path.is_file():
        raise StoreError(f"stage {name} has not run in {run_dir}: run that notebook first")
    try:
        manifest = _MANIFEST.validate_python(read_json(path))
    except (StoreError, ValidationError):
        manifest = None
    if manifest is None or manifest["stage"] != name:
        raise StoreError(f"stage {name} has not run in {run_dir}: {path} is no manifest of it")
    return manifest


def result_digest(manifest: Manifest) -> str:
    """Digest of what a stage hands on: parameters, files that it read, metrics, outputs.

    A stage that was made from another one is up to date as long as this stays. Figures do not
    count. Files do: later stages open the pictures that 00 read.
    """
    outputs = {k: v for k, v in manifest["outputs"].items() if not k.startswith("figures/")}
    handed_on = [manifest[key] for key in ("parameters", "files", "metrics")]
    parts = [*handed_on, outputs, manifest.get("skipped")]
    return digest_bytes(json.dumps(parts, sort_keys=True).encode())


def _present(run_dir: Path, name: str) -> str:
    """The digest of what a stage of a run hands on now; ABSENT where it has not run."""
    try:
        return result_digest(read_manifest(run_dir, name))
    except StoreError:
        return ABSENT


def unfit(run_dir: Path, name: str) -> str | None:
    """Why a stage that has run must not be read; None where nothing speaks against it.

    Args:
        run_dir: the run's folder.
        name: of the stage.

    Returns:
        A sentence: it has not run, its files changed since, or it, or a stage that it was made
        from, was made from another version of its inputs than the run holds now.
    """
    return next(_problems(run_dir, [name]), None)


def verify_chain(run_dir: Path, names: Iterable[str]) -> list[str]:
    """Say which stages of a run do not fit together.

    Args:
        run_dir: the run's folder.
        names: of the stages.

    Returns:
        A sentence for each, see `unfit`; [] for a whole run.
    """
    return list(_problems(run_dir, list(names)))


def _problems(run_dir: Path, names: list[str]) -> Iterator[str]:
    """What `verify_chain` lists, of the stages and all that they were made from, each once."""
    done: set[str] = set()
    while names:
        name = names.pop(0)
        if name in done:
            continue
        done.add(name)
        try:
            manifest = read_manifest(run_dir, name)
        except StoreError as error:
            yield str(error)
            continue
        again = f"run {name} again (nothing overwrites it for you)"
        if changed := _changed_output(manifest_path(run_dir, name).parent, manifest):
            yield f"{name}: its output {changed} changed or is missing: {again}"
        for earlier, digest in manifest["inputs"].items():
            present = _present(run_dir, earlier)
            if present == digest:
                names += [earlier] if digest != ABSENT else []
            elif digest == ABSENT:
                yield f"{name} was made before {earlier} had run: {again}"
            elif present == ABSENT:
                yield f"{name} was made from {earlier}, which has not run in {run_dir}: {again}"
            else:
                yield f"{name} was made from another {earlier} than this run holds now: {again}"


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
    if changed := _different(wanted, manifest["parameters"]):
        return f"parameters changed: {changed}"
    if manifest["code"].startswith(EDITED):
        return "its cells were edited, or ran in another order than in the notebook"
    if manifest["code"] != code_digest(name):
        return "its notebook or the library code it imports changed"
    packages = {library: version(library) for library in manifest["packages"]}
    here = versions() | packages | {"device": device()}
    there = manifest["versions"] | manifest["packages"] | {"device": manifest["device"]}
    if changed := _different(here, there):
        return f"versions changed: {changed}"
    if file := _changed_file(manifest):
        return f"{file} changed"
    for stage, digest in manifest["inputs"].items():
        present = _present(run_dir, stage)
        if present != digest:
            return f"{stage} is missing" if present == ABSENT else f"{stage} changed"
    if output := _changed_output(manifest_path(run_dir, name).parent, manifest):
        return f"its output {output} changed or is missing"
    return None


def publish(run_dir: Path, name: str) -> None:
    """Copy the figures and the export of a finished stage to where people look for them.

    RUN/figures holds those of all stages; RUN/export what notebook A2 exports. What an earlier call
    copied and is no longer there is deleted. A file of RUN/export that somebody else wrote or
    changed stays, with a line.

    Args:
        run_dir: the run's folder.
        name: of the stage.
    """
    place = manifest_path(run_dir, name).parent
    outputs = read_manifest(run_dir, name)["outputs"]
    shown = {k: v for k, v in outputs.items() if k.startswith(("figures/", "export/"))}
    note = place.parent / f".{name}.published.json"
    before = _published(note)
    for file in before.keys() - shown.keys():
        if (run_dir / file).is_file() and digest_file(run_dir / file) == before[file]:
            (run_dir / file).unlink()
    for file, digest in shown.items():
        target = run_dir / file
        there = digest_file(target) if target.is_file() else None
        if there in (digest, None, before.get(file)) or file.startswith("figures/"):
            if there != digest:
                with atomic(target) as temporary:
                    shutil.copyfile(place / file, temporary)
        else:
            print(f"{target} was changed by hand and is kept; the new one is {place / file}")
    if shown != before:
        write_json(note, shown)


def _published(note: Path) -> dict[str, str]:
    """{path in the run: digest} of what was copied before; {} without a readable note."""
    try:
        return TypeAdapter(dict[Below, str]).validate_python(read_json(note))
    except (StoreError, ValidationError):
        return {}


def _note(known: dict[str, str], name: str, digest: str) -> None:
    """Note what was read; StoreError where it is another than when it was read before."""
    if known.setdefault(name, digest) != digest:
        raise StoreError(f"{name} changed since this stage read it: run from the first cell")


def _same(now: object, then: object) -> bool:
    """Whether a value is equal to a parameter's; an array is not."""
    same = now == then
    return same if isinstance(same, bool) else False


def _different(here: dict[str, Any], there: dict[str, Any]) -> str:
    """The names whose values differ, or that only one of two dictionaries has."""
    names = here.keys() | there.keys()
    return ", ".join(sorted(n for n in names if here.get(n, ABSENT) != there.get(n, ABSENT)))


def _outputs(folder: Path) -> dict[str, str]:
    """{path: digest} of all files in a stage's folder."""
    return {name: digest_file(folder / name) for name in _files_in(folder)}


def _files_in(folder: Path) -> list[str]:
    """The paths of a stage's files: not its manifest, nor names that begin with a dot."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name != "manifest.json" and "/." not in f"/{name}"]


def _changed_file(manifest: Manifest) -> str | None:
    """The first file or folder outside the run that is gone or not as the stage read it."""
    for path, digest in manifest["files"].items():
        if not (ROOT / path).exists() or digest_of(ROOT / path) != digest:
            return path
    return None


def _changed_output(folder: Path, manifest: Manifest) -> str | None:
    """The first file of a stage that is missing, not as it was written, or not its own."""
    for name, digest in manifest["outputs"].items():
        if not (folder / name).is_file() or digest_file(folder / name) != digest:
            return name
    return next((name for name in _files_in(folder) if name not in manifest["outputs"]), None)


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds a manifest and all outputs that it lists."""
    try:
        manifest = _MANIFEST.validate_python(read_json(folder / "manifest.json"))
    except (StoreError, ValidationError):
        return False
    return _changed_output(folder, manifest) is None


def _fill(run_dir: Path, name: str) -> None:
    """`python -m mdlib fill` in a process of its own, its lines shown as they come."""
    print(
        f"{name} has not run in {key_of(run_dir)}: "
        "running it and what it needs at smoke size "
        "(about half a minute a stage); run that notebook for the real thing",
        flush=True,
    )
    command = [sys.executable, "-m", "mdlib", "fill", str(run_dir), name]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as runner:
        for line in runner.stdout or ():
            print(line, end="", flush=True)
    if runner.returncode:
        raise StoreError(
            f"stage {name} has not run in {run_dir}, "
            "nor could it be run at smoke size (why stands above)"
        )
