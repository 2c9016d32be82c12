"""Is anything lost, or half-written and trusted, when a run is killed, doubled, or out of disk?

    python benchmarks/faults.py                  all parts, over an hour on two CPU cores
    python benchmarks/faults.py runs --kills 20  one part

writes benchmarks/results/faults.json after every part. Each part breaks something at random points
(the seed is in the result), looks at what is left, starts again, and compares the end with that of
an undisturbed run:

    runs         SIGKILL of the runner, of its kernel, or of both, during whole runs of `smoke`
    checkpoints  SIGKILL of a training that writes a checkpoint every other step
    predict      SIGKILL of `python -m mdlib predict`
    fetch        SIGKILL of a download and its unpacking, from a server on this machine
    writers      two at once: run and run, run and notebook, notebook and notebook, two fetches
    disk         a file system that is full (a small tmpfs: Linux, as root)

"lost": a stage that was finished before a kill and is not after it. "trusted": a stage that is
called finished although its metrics or files differ from the undisturbed run's.
"""

import argparse
import functools
import hashlib
import http.server
import platform
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from mdlib.core.files import digest_file, read_json, write_json
from mdlib.core.paths import ROOT
from mdlib.data.zoo import ZooDataset
from mdlib.run.identity import versions
from mdlib.run.presets import load_preset
from mdlib.run.stage import has_run, read_manifest

RESULT = ROOT / "benchmarks" / "results" / "faults.json"
STAGES = load_preset("smoke").notebooks
FIRST = "00_prepare_data"
TIMED = ("history.json", "comparison.json", "-time.png", ".html")
MDLIB = [sys.executable, "-m", "mdlib"]


# ---------------------------------------------------------------- starting and killing


def start(*words: str | Path) -> subprocess.Popen:
    """`python` with these words, in a process group of its own; its lines can be read."""
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def kill(process: subprocess.Popen, whom: str) -> None:
    """SIGKILL: "runner" the process alone, "kernel" one of its children, "all" every one."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return
    chosen = {"runner": [], "kernel": children[:1], "all": children}[whom]
    for each in chosen:
        if each.is_running():
            each.send_signal(signal.SIGKILL)
    if whom != "kernel" or not children:
        process.kill()


def end_of(process: subprocess.Popen, *, within: float) -> tuple[int | None, str]:
    """Exit code (None: still running) and last line of a process after at most so many seconds."""
    try:
        said, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        return None, ""
    lines = said.strip().splitlines()
    return process.returncode, lines[-1] if lines else ""


def killed_until_done(
    words: list, *, draw: random.Random, mean: float, whom: list[str], look: Callable[[], None]
) -> tuple[int, int]:
    """Start a command again and again, killing it after a random time, until it ends by itself.

    Args:
        words: the command.
        draw: where times come from: exponential ones of this mean, in seconds.
        mean: see `draw`.
        whom: see `kill`.
        look: called after each kill.

    Returns:
        Numbers of kills, and of starts that ended with an error of their own.
    """
    kills, errors = 0, 0
    process = start(*words)
    while True:
        code, said = end_of(process, within=draw.expovariate(1 / mean))
        if code == 0:
            return kills, errors
        if code is None:
            kill(process, draw.choice(whom))
            kills += 1
            look()
            code, said = end_of(process, within=15)
            if code is None:
                continue  # a kernel that was killed while it started gets one more try
        if code > 0 and not said.startswith(("the kernel of", "partial notebook")):
            errors += 1
            print(f"exit code {code}: {said}", flush=True)
        process = start(*words)


# ---------------------------------------------------------------- what a run holds


def contents(run_dir: Path) -> dict[str, tuple]:
    """{finished stage: (metrics, {file: digest})}; files that hold seconds (TIMED) are left out."""
    found = {}
    for name in STAGES:
        if has_run(run_dir, name):
            manifest = read_manifest(run_dir, name)
            kept = {
                file: digest_file(run_dir / "artifacts" / name / file)
                for file in manifest["outputs"]
                if not file.endswith(TIMED)
            }
            found[name] = (manifest["metrics"], kept)
    return found


def differences(run_dir: Path, reference: dict[str, tuple]) -> list[str]:
    """The finished stages that are not as in the undisturbed run."""
    found = contents(run_dir)
    return [name for name, content in found.items() if content != reference[name]]


def undisturbed(work: Path) -> Path:
    """A whole run of `smoke`, made once."""
    run_dir = work / "undisturbed"
    if (run_dir / "metrics.json").is_file():
        return run_dir
    code, said = end_of(start(*MDLIB, "run", "smoke", "--out", run_dir), within=3600)
    assert code == 0, said
    return run_dir


# ---------------------------------------------------------------- the parts


def runs(work: Path, draw: random.Random, kills: int) -> dict:
    """Whole runs of smoke, killed at random until there were `kills` kills."""
    reference = contents(undisturbed(work))
    counts: Counter = Counter()
    where: Counter = Counter()
    while counts["kills"] < kills:
        run_dir = Path(tempfile.mkdtemp(prefix="killed-", dir=work)) / "run"
        finished: set[str] = set()

        def look(run_dir: Path = run_dir, finished: set[str] = finished) -> None:
            now = {name for name in STAGES if has_run(run_dir, name)}
            counts["lost"] += len(finished - now)
            finished |= now
            wrong = differences(run_dir, reference)
            counts["trusted"] += len(wrong)
            where[next((name for name in STAGES if name not in now), "report")] += 1
            if wrong:
                print(f"differ: {wrong}", flush=True)

        command = [*MDLIB, "run", "smoke", "--out", run_dir]
        whom = ["runner", "kernel", "all"]
        done, errors = killed_until_done(command, draw=draw, mean=16, whom=whom, look=look)
        counts.update(kills=done, errors=errors, runs=1)
        counts["runs equal to the undisturbed one"] += contents(run_dir) == reference
        counts["left over"] += sum(
            ".draft-" in path.name or ".old-" in path.name
            for path in (run_dir / "artifacts").iterdir()
        )
        print(dict(counts), flush=True)
    return {**counts, "kills while this stage was next": dict(where)}


TRAINING = """
import sys, torch
from pathlib import Path
from torch import nn
from mdlib.core.weights import save_weights
from mdlib.training import loop
loop.CHECKPOINT_EVERY = 2
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Dropout2d(), nn.Conv2d(64, 3, 3))
def batches(step):
    return torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(step))
def loss(model, batch):
    return model(batch).square().mean(), {}
recipe = loop.Recipe(steps=150, optimizer="adamw", peak_lr=0.01, lr_milestones=(), warmup=5,
                     weight_decay=0.01, backbone_lr_scale=1.0, accumulation_steps=1, seed=0)
folder = Path(sys.argv[1])
loop.fit(model, batches, loss, recipe, checkpoint=folder / "c.safetensors", identity={})
save_weights(folder / "end.safetensors", model.state_dict(), header={})
"""


def checkpoints(work: Path, draw: random.Random, kills: int) -> dict:
    """A training, killed at random; its end must be bit-equal."""
    counts: Counter = Counter()
    ends = set()
    while counts["kills"] < kills or not ends:
        folder = Path(tempfile.mkdtemp(prefix="training-", dir=work))
        command = [sys.executable, "-c", TRAINING, folder]
        mean = 8 if counts["trainings"] else 1e5  # the first one is not disturbed
        done, errors = killed_until_done(
            command, draw=draw, mean=mean, whom=["all"], look=lambda: None
        )
        counts.update(kills=done, errors=errors, trainings=1)
        ends.add(digest_file(folder / "end.safetensors"))
    return {**counts, "different ends": len(ends) - 1}


def predict(work: Path, draw: random.Random, kills: int) -> dict:
    """New pictures through a finished run, killed at random."""
    photos = Path(tempfile.mkdtemp(prefix="photos-", dir=work))
    scenes = ZooDataset(ROOT / "data" / "zoo", "val", 40)
    for i, image_id in enumerate(scenes.ids):
        Image.fromarray(scenes.image(i)).resize((640, 480)).save(photos / f"{image_id}.png")
    counts: Counter = Counter()
    ends = []
    while counts["kills"] < kills or not ends:
        out = photos.with_name(f"{photos.name} predicted {counts['predictions']}")
        command = [*MDLIB, "predict", photos, "--run", work / "undisturbed", "--out", out]
        mean = 25 if ends else 1e5
        done, errors = killed_until_done(
            command, draw=draw, mean=mean, whom=["all"], look=lambda: None
        )
        counts.update(kills=done, errors=errors, predictions=1)
        ends.append(_tree(out))
    return {**counts, "different ends": sum(end != ends[0] for end in ends)}


FETCH = """
import sys
from pathlib import Path
from mdlib.data.download import fetch
from mdlib.data.sources import Source
url, md5, root = sys.argv[1:]
fetch(Source(file="set.tar", urls=(url,), md5=md5, gigabytes=0.01, folder="set"), Path(root))
"""


def fetch(work: Path, draw: random.Random, kills: int) -> dict:
    """A download and its unpacking, killed at random."""
    counts: Counter = Counter()
    ends = []
    with _server(work) as (url, md5):
        while counts["kills"] < kills or not ends:
            root = Path(tempfile.mkdtemp(prefix="fetched-", dir=work))
            command = [sys.executable, "-c", FETCH, url, md5, root]
            mean = 2 if ends else 1e5
            done, errors = killed_until_done(
                command, draw=draw, mean=mean, whom=["all"], look=lambda: None
            )
            counts.update(kills=done, errors=errors, fetches=1)
            ends.append(_tree(root / "set"))
    return {**counts, "different ends": sum(end != ends[0] for end in ends)}


NOTEBOOK = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from stages import opened, write_outputs
stage = opened(Path(sys.argv[1]), "00_prepare_data")
print("open", flush=True)
sys.stdin.readline()
write_outputs(stage)
stage.finish({"number": 1.0})
"""


def writers(work: Path, _: random.Random, times: int) -> dict:
    """Two at once: one works, the other is told who does; two fetches both end whole."""
    counts: Counter = Counter()
    only_00 = ["run", "smoke", "--only", FIRST, "--out"]
    for _ in range(times):
        run_dir = Path(tempfile.mkdtemp(dir=work)) / "two runs"
        both = [start(*MDLIB, *only_00, run_dir) for _ in range(2)]
        ends = sorted(end_of(each, within=600) for each in both)
        good = [code for code, _ in ends] == [0, 2] and "another run (process" in ends[1][1]
        counts["run and run"] += good and has_run(run_dir, FIRST)

        run_dir = Path(tempfile.mkdtemp(dir=work)) / "notebook and run"
        with _notebook(run_dir) as (notebook, first):
            assert "open" in first
            code, _ = end_of(start(*MDLIB, *only_00, run_dir), within=600)
            notebook.communicate("finish\n", timeout=60)
            kept = read_manifest(run_dir, FIRST)["metrics"] == {"number": 1.0}
            counts["notebook and run"] += code == 3 and kept

        run_dir = Path(tempfile.mkdtemp(dir=work)) / "two notebooks"
        with _notebook(run_dir) as (one, first), _notebook(run_dir) as (two, second):
            refused = "is open in another kernel" in second
            counts["notebook and notebook"] += first == "open\n" and refused
            for each in (one, two):
                each.kill()
    with _server(work) as (url, md5):
        for _ in range(times):
            root = Path(tempfile.mkdtemp(dir=work)) / "two fetches"
            both = [start(sys.executable, "-c", FETCH, url, md5, root) for _ in range(2)]
            codes = [end_of(each, within=600)[0] for each in both]
            again, _ = end_of(start(sys.executable, "-c", FETCH, url, md5, root), within=600)
            counts["fetch and fetch"] += (
                0 in codes and again == 0 and len(_tree(root / "set")) == 40
            )
    return {"times": times, **counts}


def disk(work: Path, draw: random.Random, times: int) -> dict:
    """Stages 00 and 01 on a file system that is full, and again with room."""
    reference = contents(work / "undisturbed")
    counts: Counter = Counter()
    place = Path(tempfile.mkdtemp(prefix="small-", dir=work))
    for _ in range(times):
        size = draw.randint(200, 6000)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], check=True)
        try:
            for name in (FIRST, "01_distill_masks"):
                command = [*MDLIB, "run", "smoke", "--only", name, "--out", place / "run"]
                code, said = end_of(start(*command), within=600)
                counts["full"] += code != 0
                counts["trusted"] += len(differences(place / "run", reference))
                if code != 0:
                    subprocess.run(["mount", "-o", "remount,size=500m", place], check=True)
                    code, said = end_of(start(*command), within=600)
                assert code == 0, said
            counts["ends equal"] += not differences(place / "run", reference)
        finally:
            subprocess.run(["umount", place], check=True)
    return {"times": times, **counts}


# ---------------------------------------------------------------- helpers


def _tree(folder: Path) -> dict[str, str]:
    """{path: digest} of the visible files below a folder."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path) for path in found)
    return {name: digest_file(path) for name, path in named if "/." not in f"/{name}"}


@contextmanager
def _server(work: Path) -> Iterator[tuple[str, str]]:
    """A slow server on this machine with an archive of 40 files: (address, md5)."""
    source = work / "served" / "set"
    if not source.is_dir():
        source.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for number in range(40):
            (source / f"{number}.bin").write_bytes(rng.bytes(200_000))
        with tarfile.open(work / "served" / "set.tar", "w") as archive:
            archive.add(source, "set")

    class Slow(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source, outputfile) -> None:
            with suppress(ConnectionError):  # whoever reads was killed
                while block := source.read(1 << 17):
                    outputfile.write(block)
                    time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Slow, directory=work / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    md5 = hashlib.md5((work / "served" / "set.tar").read_bytes()).hexdigest()
    try:
        yield f"http://127.0.0.1:{server.server_port}/set.tar", md5
    finally:
        server.shutdown()


@contextmanager
def _notebook(run_dir: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that has stage 00 open, or what it said instead; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", NOTEBOOK, str(run_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert process.stdout
    lines = iter(process.stdout.readline, "")
    said = next((line for line in lines if line == "open\n" or "Error: " in line), "")
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


PARTS = {
    "runs": (runs, 100),
    "checkpoints": (checkpoints, 20),
    "predict": (predict, 20),
    "fetch": (fetch, 20),
    "writers": (writers, 5),
    "disk": (disk, 8),
}


def main() -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--kills", type=int, help="how many; default: as in the committed result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where; its undisturbed run is used again")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="faults-"))
    result = read_json(RESULT) if RESULT.is_file() else {}
    for name in given.parts or PARTS:
        part, times = PARTS[name]
        if name in ("predict", "disk"):
            undisturbed(work)
        began = time.monotonic()
        found = part(work, random.Random(given.seed), given.kills or times)
        seconds = round(time.monotonic() - began)
        result[name] = {**found, "seed": given.seed, "seconds": seconds}
        result["machine"] = f"{psutil.cpu_count()} CPU cores, {platform.system()}"
        result["versions"] = versions()
        write_json(RESULT, result)
        print(name, result[name], flush=True)
    if not given.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
