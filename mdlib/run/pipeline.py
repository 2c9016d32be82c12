"""Runs the notebooks of a preset in order through papermill, and leaves a report.

A stage whose manifest still matches is skipped; the log says why one is stale. Success is: no
exception, and the stage's manifest is there; a stage that skipped itself (StageSkipped) has one
too. cost.csv is written after every notebook, also when one fails.
"""

import csv
import io
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import papermill
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from mdlib.core.files import write_json, write_text
from mdlib.core.lock import utc_now
from mdlib.core.paths import NOTEBOOKS, ROOT
from mdlib.run import report
from mdlib.run.exit_codes import DIED, DONE, FAILED, INTERRUPTED
from mdlib.run.place import check_place, data_roots
from mdlib.run.presets import Preset, PresetError, load_preset, resolve
from mdlib.run.stage import (
    RUN_DIR,
    StageSkipped,
    has_run,
    manifest_path,
    publish,
    run_lock,
    run_preset,
    stale_reason,
)

# The kernels have this. Plain progress lines (mdlib.core.progress); figures in the executed
# notebooks, whatever MPLBACKEND a server or container sets; and glibc's malloc keeps its memory
# instead of returning it to the system at every training step, which costs up to half the time on
# small steps.
KERNEL_ENVIRONMENT = {
    "MDLIB_BATCH": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
}
KERNEL_SECONDS = 600  # a kernel may take to start: imports from a cold network disk, a busy machine
COST_COLUMNS = ("notebook", "status", "seconds", "peak_memory_mb")


def run(
    preset_name: str, *, out: Path | None, overrides: dict, start: str | None, only: str | None
) -> int:
    """Run the notebooks of a preset, skip those that are up to date, and write the report.

    Args:
        preset_name: a file in presets/.
        out: folder of the run; None: reports/PRESET.
        overrides: {notebook: {parameter: value}}, as `parse_sets` gives them.
        start: run this stage and all after it, even where they are up to date.
        only: run this stage alone, and write no report; `start` must be None.

    Returns:
        One of mdlib.run.exit_codes.

    Raises:
        PresetError: an unknown preset, notebook, stage or parameter, or a value of a wrong type.
        StoreError: another run works in the folder, or a file of the run is broken.
    """
    preset = load_preset(preset_name)
    parameters = resolve(preset, overrides)
    notebooks = _chosen(preset, start, only)
    if unused := sorted(overrides.keys() - set(notebooks)):
        raise PresetError(f"--set of {', '.join(unused)} has no effect with --only {only}")
    run_dir = check_place(out or ROOT / "reports" / preset_name, roots=data_roots(parameters))
    with run_lock(run_dir).held(busy=busy(run_dir)):
        _write_run_info(run_dir, preset_name)
        if only is not None:
            _warn_of_stale(run_dir, preset, parameters, before=only)
        code = _run_all(
            preset,
            notebooks,
            parameters,
            run_dir,
            forced=set(notebooks[notebooks.index(start) :] if start else [only] if only else []),
        )
        if code == DONE and only is None:
            report.write(run_dir, preset)
            print(f"report: {_shown(run_dir / 'index.html')}")
    return code


def fill(run_dir: Path, stage: str) -> int:
    """Run at smoke size what a run lacks up to a stage, so that a notebook can be opened alone.

    What has run stays as it is, stale or not. The run keeps its name, there is no report, and the
    manifests say "smoke_size". `Stage.read` calls this.

    Args:
        run_dir: folder of the run.
        stage: the last one to run; it must be in the preset `smoke`.

    Returns:
        One of mdlib.run.exit_codes.

    Raises:
        PresetError: an unknown stage.
        StoreError: another run works in the folder.
    """
    preset = load_preset("smoke")
    _chosen(preset, stage, None)
    run_dir = check_place(run_dir, roots=())
    # the numbers of notebooks are their order
    before = [name for name in preset.notebooks if name <= stage]
    with run_lock(run_dir).held(busy=busy(run_dir), fill=True):
        lacking = [name for name in before if not has_run(run_dir, name)]
        return _run_all(preset, lacking, resolve(preset, {}), run_dir, forced=set())


def busy(run_dir: Path) -> str:
    """What a second run in a folder is told, see `Lock.acquire`."""
    return f"another run ({{who}}) works in {run_dir}: wait for it, or choose another --out"


def _chosen(preset: Preset, start: str | None, only: str | None) -> list[str]:
    """The notebooks to go through; PresetError where `start` or `only` is none of them."""
    for name in (start, only):
        if name is not None and name not in preset.notebooks:
            raise PresetError(
                f"stage {name!r} is not in this preset; expected one of {preset.notebooks}"
            )
    return [only] if only else preset.notebooks


def _run_all(
    preset: Preset, notebooks: list[str], parameters: dict, run_dir: Path, *, forced: set[str]
) -> int:
    """Run the notebooks that are stale or forced, up to the first failure; gives the exit code."""
    for folder in ("figures", "notebooks"):
        (run_dir / folder).mkdir(exist_ok=True)
    place = str(run_dir.relative_to(ROOT) if run_dir.is_relative_to(ROOT) else run_dir)
    expected = {name: preset.seconds.get(name, 30.0) for name in notebooks}
    spent, planned = 0.0, 0.0
    for number, name in enumerate(notebooks, 1):
        values = {**parameters[name], RUN_DIR: place}
        reason = stale_reason(run_dir, name, values)
        if name in forced and reason is None:
            reason = "asked for"
        head = f"[{number}/{len(notebooks)}] {name}"
        if reason is None:
            _make_good(run_dir, name)
            print(f"{head}: up to date, skipped", flush=True)
            continue
        pace = spent / planned if planned else 1.0
        left = sum(expected[later] for later in notebooks[number - 1 :]) * pace
        print(f"{head}: {reason}; running, about {left:.0f} s left for all", flush=True)
        code, row = _run_one(name, values, run_dir)
        _add_cost(run_dir, row)
        if code != DONE:
            return code
        spent, planned = spent + row["seconds"], planned + expected[name]
        print(
            f"{head}: {row['status']} in {row['seconds']:.0f} s, "
            f"peak memory {row['peak_memory_mb']} MB",
            flush=True,
        )
    return DONE


def _run_one(name: str, values: dict, run_dir: Path) -> tuple[int, dict]:
    """Execute one notebook. Returns (exit code, its row of cost.csv)."""
    executed = run_dir / "notebooks" / f"{name}.ipynb"
    partial = executed.with_suffix(".partial.ipynb")
    began, status, code = time.monotonic(), "done", DONE
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with _peak_memory() as peak:
        try:
            _execute(name, values, partial)
        except PapermillExecutionError as error:
            if error.ename == StageSkipped.__name__:
                status = f"skipped: {error.evalue}"
            else:
                status, code = f"failed: {error.ename}: {error.evalue}".splitlines()[0], FAILED
                print(
                    f"cell {error.exec_count} of {name} failed:\n{error.source}\n"
                    f"{error.ename}: {error.evalue}"
                )
        except (DeadKernelError, CellTimeoutError) as error:
            status, code = f"died: {type(error).__name__}", DIED
            print(f"the kernel of {name} died or timed out: {error}. Was there enough memory?")
        except KeyboardInterrupt:
            status, code = "interrupted", INTERRUPTED
            print(f"interrupted in {name}; the next run goes on here")
        except RuntimeError as error:  # nbclient: the kernel never came up
            status, code = f"died: {error}".splitlines()[0], DIED
            print(f"the kernel of {name} did not start: {error}")
    if code == DONE and (reason := stale_reason(run_dir, name, values)) is not None:
        wrote = manifest_path(run_dir, name).is_file() and reason != "has not run"
        what = f"while it ran, {reason}" if wrote else f"it ended without its manifest ({reason})"
        status, code = f"failed: {what}", FAILED
        print(f"{name} {status}")
    if code == DONE:
        os.replace(partial, executed)
        _render(executed)
    elif partial.is_file():
        print(f"partial notebook: {_shown(partial)}")
    seconds = round(time.monotonic() - began, 1)
    row = (name, status, seconds, round(peak["bytes"] / 1e6))
    return code, dict(zip(COST_COLUMNS, row, strict=True))


def _execute(name: str, values: dict, target: Path) -> None:
    """A notebook through papermill; a kernel that does not come up gets one more try."""
    for last in (False, True):
        try:
            papermill.execute_notebook(
                _literal(NOTEBOOKS / f"{name}.ipynb"),
                _literal(target),
                parameters=values,
                cwd=str(NOTEBOOKS),
                kernel_name=NATIVE_KERNEL_NAME,
                kernel_manager_class=_OwnKernel,
                progress_bar=False,
                log_output=False,
                start_timeout=KERNEL_SECONDS,
                extra_arguments=["--log-level=ERROR"],
            )
            return
        except RuntimeError as error:  # nbclient: the kernel never came up
            if last or isinstance(error, DeadKernelError):
                raise
            print(f"the kernel of {name} did not start ({error}); one more try", flush=True)


def _literal(path: Path) -> str:
    """A path for papermill, which takes braces for names of parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


class _OwnKernel(AsyncKernelManager):
    """Starts the Python of this process, whatever kernel is installed under the name python3.

    Its environment is KERNEL_ENVIRONMENT beside this process's own.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        """What `python -m ipykernel_launcher` of this Python is."""
        spec = KernelSpecManager(kernel_dirs=[]).get_kernel_spec(NATIVE_KERNEL_NAME)
        spec.env = {**spec.env, **KERNEL_ENVIRONMENT, "PYTHONPATH": _path_of_kernels()}
        return spec


def _path_of_kernels() -> str:
    """PYTHONPATH with this checkout first: kernels start elsewhere, with what is installed."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(ROOT), *(path for path in known if path not in ("", str(ROOT)))])


def _make_good(run_dir: Path, name: str) -> None:
    """What a run that was stopped after a stage's commit left to do: figures, notebook, page."""
    publish(run_dir, name)
    executed = run_dir / "notebooks" / f"{name}.ipynb"
    partial = executed.with_suffix(".partial.ipynb")
    done = manifest_path(run_dir, name).stat().st_mtime
    if partial.is_file() and partial.stat().st_mtime >= done and _ran_to_the_end(partial):
        os.replace(partial, executed)
        executed.with_suffix(".html").unlink(missing_ok=True)
    if executed.is_file() and not executed.with_suffix(".html").is_file():
        _render(executed)


def _ran_to_the_end(path: Path) -> bool:
    """Whether all cells of an executed notebook ran, none of them with an error."""
    try:
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    except Exception:  # a file whose writing was killed: nbformat's errors have no common class
        return False
    failed = any(out.output_type == "error" for cell in cells for out in cell.outputs)
    return bool(cells) and not failed and all(c.execution_count for c in cells if c.source.strip())


def _render(executed: Path) -> None:
    """The page of a notebook; one that cannot be drawn is a warning, since the stage is whole."""
    try:
        report.render_notebook(executed)
    except Exception as error:  # nbconvert's errors have no common class
        print(f"warning: no page of {executed.stem} ({type(error).__name__}: {error})", flush=True)


def _warn_of_stale(run_dir: Path, preset: Preset, parameters: dict, *, before: str) -> None:
    """Say which stages before one that runs alone are out of date: it reads them as they are."""
    for name in preset.notebooks[: preset.notebooks.index(before)]:
        if has_run(run_dir, name) and (reason := stale_reason(run_dir, name, parameters[name])):
            print(f"{name} is out of date ({reason}), and --only {before} does not run it again")


def _write_run_info(run_dir: Path, preset_name: str) -> None:
    """Note which preset lives in a folder; PresetError where another one does, or a person."""
    path, known = run_dir / "artifacts" / "run.json", run_preset(run_dir)
    if known not in (None, preset_name):
        raise PresetError(
            f"{run_dir} holds a run of the preset {known!r}: give another --out for {preset_name!r}"
        )
    if not path.is_file() and any(path.parent.glob("*/manifest.json")):
        raise PresetError(
            f"{run_dir} holds stages of notebooks that were run by hand: give another --out"
        )
    write_json(path, {"preset": preset_name, "started": utc_now()})


@contextmanager
def _peak_memory() -> Iterator[dict[str, int]]:
    """Yields {"bytes": the most memory that this process's kernels held together}."""
    peak, stop = {"bytes": 0}, threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not stop.wait(0.25):
            total = 0
            for child in me.children(recursive=True):
                with suppress(psutil.Error):  # it has just ended
                    total += child.memory_info().rss
            peak["bytes"] = max(peak["bytes"], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _add_cost(run_dir: Path, row: dict) -> None:
    """cost.csv holds the last execution of each notebook; rows of another form are dropped."""
    path = run_dir / "cost.csv"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    try:
        known = [r for r in csv.DictReader(io.StringIO(text)) if list(r) == list(COST_COLUMNS)]
    except csv.Error:
        known = []
    row = row | {"status": row["status"][:500]}
    rows = [r for r in known if r["notebook"] != row["notebook"]] + [row]
    table = io.StringIO()
    writer = csv.DictWriter(table, COST_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda r: r["notebook"]))
    write_text(path, table.getvalue())


def _shown(path: Path) -> str:
    """A path as a user of this shell would write it; as it is on another drive of Windows."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)
