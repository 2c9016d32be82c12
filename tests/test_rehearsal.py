"""benchmarks/rehearse_voc.py: every stage is timed, and hours follow from images and rates."""

import importlib.util

import pytest

from mdlib.core.files import read_json
from mdlib.core.paths import ROOT
from mdlib.run import preflight, presets


@pytest.fixture
def rehearsal(monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "rehearse_voc", ROOT / "benchmarks" / "rehearse_voc.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DISTINCT", 4)
    return module


def test_all_stages_are_timed_and_projected(rehearsal, tmp_path):
    parameters = presets.resolve(presets.load_preset("smoke"), {})
    go = rehearsal.Rehearsal("cpu", budget=0.0)
    alone = rehearsal.rehearse(go, parameters, {"train": 40, "dev": 4, "val": 8}, tmp_path)
    assert {name[:2] for name in go.rows} == {"01", "02", "03", "04", "05", "08"} | (
        {"06"} if rehearsal.crf.available() else set()
    )
    for row in go.rows.values():
        assert (
            row["hours"] == pytest.approx(row["images"] / row["images_per_second"] / 3600, rel=2e-3)
            and row["peak_gb"] > 0.1
        )
    assert (
        go.rows["01 masks"]["images"] == 52
        and go.rows["05 training, two networks"]["images"] == 2 * 4 * 4
    )
    assert alone["stage_over_forward"] == pytest.approx(
        alone["forward_images_per_second"] / alone["stage_images_per_second"], rel=2e-3
    )


def test_check_reads_what_a_rehearsal_writes(rehearsal, tmp_path, monkeypatch):
    def rehearse(go, *_):
        go.stage("01 masks", lambda images: None, unit=1, images=10)
        return {}

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)
    monkeypatch.setattr(rehearsal, "ROOT", tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["rehearse_voc.py", "--device", "cpu", "--budget", "0", "--preset", "smoke"]
    )
    rehearsal.main()
    written = read_json(tmp_path / "benchmarks" / "results" / "rehearse_smoke_cpu.json")
    monkeypatch.setattr(preflight, "RESULTS", tmp_path / "benchmarks" / "results")
    lines = preflight.time_and_memory("smoke", presets.load_preset("smoke"))
    assert (
        f"about {written['hours']:.1f} hours" in lines[0]
        and f"at most {written['peak_gb']:.1f} GB" in lines[1]
    )
