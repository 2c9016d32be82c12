"""Every notebook through the runner on `smoke`, once; then what a run promises: report, skipping,
resuming.
"""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_site
import yaml
from cells import STAGES

from mdlib.core.files import read_json, write_json
from mdlib.core.paths import ROOT
from mdlib.method import clusters
from mdlib.run import presets
from mdlib.run.artifacts import RunArtifacts
from mdlib.run.stage import stale_reason
from mdlib.show import site, slides
from mdlib.show.outcome import read_outcome
from mdlib.studies import individuals

COMMAND = [sys.executable, "-m", "mdlib", "run", "smoke", "--out"]
SMOKE = presets.load_preset("smoke").notebooks


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """A finished smoke run: its folder."""
    folder = tmp_path_factory.mktemp("smoke")
    done = subprocess.run([*COMMAND, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_smoke_holds_every_notebook():
    assert sorted(SMOKE) == [path.stem for path in STAGES]


def test_every_stage_left_its_manifest_and_page(smoke):
    for name in SMOKE:
        manifest = read_json(smoke / "artifacts" / name / "manifest.json")
        assert manifest["stage"] == name
        assert (smoke / "notebooks" / f"{name}.html").stat().st_size > 10_000
        for figure in manifest["figures"]:
            assert (smoke / "figures" / figure["file"]).is_file()
            assert len(figure["caption"]) > 20  # it is the alt text


def test_the_report_shows_every_metric_and_figure(smoke):
    content = read_json(smoke / "metrics.json")
    page = (smoke / "index.html").read_text()
    assert all(f"<code>{name}</code>" in page for name in content["metrics"])
    assert all(f"figures/{path.name}" in page for path in (smoke / "figures").glob("*.png"))
    assert content["run"]["preset"] == "smoke"


def test_the_site_of_the_run_is_whole(smoke, tmp_path):
    pages = site.build(smoke, tmp_path)
    assert [page.stem for page in pages] == [
        "index",
        "quickstart",
        *sorted(set(SMOKE) - {"quickstart"}),
    ]
    test_site.test_no_link_or_picture_is_broken(pages)
    test_site.test_pages_fetch_nothing_and_are_light(pages)
    assert (tmp_path / "figures" / "method.svg").is_file()


def test_the_methods_figure_has_a_picture_for_each_step(smoke):
    panels = slides.panels_of(read_outcome(RunArtifacts(smoke)))
    assert panels.keys() == {key for key, _, _ in slides.STEPS}
    assert all(image.ndim in (2, 3) and image.size for image in panels.values())


def test_clusters_are_those_of_the_seed_with_the_middle_inertia(smoke):
    run = RunArtifacts(smoke)
    fitted, by_seed = run.clusters(), run.centres_by_seed()
    z = clusters.whiten(run.features(), fitted.deviation)
    inertia = [((z[:, None] - centres[None]) ** 2).sum(-1).min(1).sum() for centres in by_seed]
    assert len(by_seed) == run.settings("02")["kmeans_seeds"] and inertia == sorted(inertia)
    np.testing.assert_array_equal(fitted.centres, by_seed[len(by_seed) // 2])


def test_scenes_with_strangers_and_without_make_up_val(smoke):
    run, metrics = RunArtifacts(smoke), read_json(smoke / "metrics.json")["metrics"]
    val = run.dataset("val")
    familiar = individuals.familiar_scenes(val, run.dataset("train"))
    holding = np.array([len(val.instances(i).labels) > 0 for i in range(len(val))])
    share = familiar[holding].mean()
    assert 0 < share < 1
    for name in ("mask_iou", "corloc", "detector_mask_iou_val"):
        whole = share * metrics[f"{name}_seen"] + (1 - share) * metrics[f"{name}_unseen"]
        assert whole == pytest.approx(metrics[name], abs=2e-6)  # rounded


def test_cost_has_a_row_for_each_notebook(smoke):
    rows = list(csv.DictReader((smoke / "cost.csv").open()))
    assert [row["notebook"] for row in rows] == sorted(SMOKE)
    assert all(row["status"] == "done" and int(row["peak_memory_mb"]) > 100 for row in rows)


def test_a_finished_run_is_skipped(smoke):
    again = subprocess.run([*COMMAND, smoke], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stdout.count("up to date, skipped") == len(SMOKE)


def test_a_changed_parameter_makes_its_stage_and_the_later_ones_run(smoke, tmp_path):
    copy = shutil.copytree(smoke, tmp_path / "run")
    values = presets.resolve(presets.load_preset("smoke"), {})
    assert stale_reason(copy, "07_evaluate_clusters", values["07_evaluate_clusters"]) is None
    assert "seed" in stale_reason(
        copy, "02_cluster_masks", {**values["02_cluster_masks"], "seed": 5}
    )
    manifest = copy / "artifacts" / "02_cluster_masks" / "manifest.json"
    write_json(manifest, {**read_json(manifest), "parameters": {"seed": 5}})
    assert "02_cluster_masks" in stale_reason(
        copy, "07_evaluate_clusters", values["07_evaluate_clusters"]
    )


# ---------------------------------------------------------------- killed runs

# The first stages of `smoke` as a preset of their own, for the runner in a process of its own.
CHAIN = ["00_prepare_data", "01_distill_masks", "02_cluster_masks"]
RUN_CHAIN = """
import sys
from pathlib import Path
from mdlib.__main__ import main
from mdlib.run import presets
presets.PRESETS = Path(sys.argv[1])
sys.exit(main(["run", "chain", "--out", sys.argv[2]]))
"""


@pytest.fixture
def chain(smoke, tmp_path):
    """(command that runs the preset `chain`, its folder: 00 is there, from `smoke`)."""
    parameters = presets.load_preset("smoke").parameters
    content = {
        "description": "the first stages of smoke",
        "notebooks": CHAIN,
        "parameters": {name: parameters.get(name, {}) for name in CHAIN},
    }
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "run"
    shutil.copytree(smoke / "artifacts" / CHAIN[0], out / "artifacts" / CHAIN[0])
    write_json(out / "artifacts" / "run.json", {"preset": "chain"})
    return [sys.executable, "-c", RUN_CHAIN, tmp_path, out], out


def kill_in(stage_name: str, command: list, out: Path) -> None:
    """Start the runner and kill it in a stage, once that has begun."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((out / "artifacts").glob(f".{stage_name}.draft-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "artifacts" / stage_name).exists()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_goes_on_and_ends_with_the_same_metrics(smoke, chain):
    """Killed in a stage on the way, then in the last one."""
    command, out = chain
    for name in CHAIN[1:]:
        kill_in(name, command, out)
        assert not (out / "metrics.json").exists()
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stdout[-2000:] + resumed.stderr[-2000:]
    assert resumed.stdout.count("up to date, skipped") == len(CHAIN) - 1
    whole = [read_json(smoke / "artifacts" / name / "manifest.json") for name in CHAIN]
    expected = {metric: v for manifest in whole for metric, v in manifest["metrics"].items()}
    assert "cluster_nmi" in expected
    assert read_json(out / "metrics.json")["metrics"] == expected
    # nothing half-written is left
    left = {p.name for p in (out / "artifacts").iterdir()} - {"lock", "checkpoints"}
    hidden = {f".{name}.lock" for name in CHAIN[1:]}
    hidden |= {f".{name}.published.json" for name in CHAIN}
    assert left == {*CHAIN, "run.json", *hidden}
    assert {path.name for path in out.rglob(".*")} == hidden
    assert sorted(p.stem for p in (out / "notebooks").glob("*.ipynb")) == CHAIN[1:]
