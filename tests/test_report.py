"""The page of a run: what stands in it, and where it leads."""

import pytest

from mdlib import report, store
from mdlib.meanings import MEANINGS
from mdlib.presets import Preset
from mdlib.stage import Stage


@pytest.fixture
def run(tmp_path):
    """(folder, preset) of a run of one stage with two metrics, one of them unknown."""
    folder = tmp_path / "artifacts" / ".00_prepare_data.test"
    folder.mkdir(parents=True)
    Stage("00_prepare_data", {"seed": 3, "dataset": "folder"}, tmp_path, "test", folder).finish({"zz_new": 2.0, "mask_iou": 0.5})
    store.write_json(tmp_path / "artifacts" / "run.json", {"preset": "tiny"})
    return tmp_path, Preset(description="a test", notebooks=["00_prepare_data"], bands={"mask_iou": (0.6, 0.9)})


def test_metrics_stand_in_the_order_of_their_meanings_and_unknown_ones_last(run):
    folder, preset = run
    report.write(folder, preset)
    rows = report.metric_rows(store.read_json(folder / "metrics.json"))
    assert rows == [("mask_iou", "0.500", "0.6 to 0.9", "OUTSIDE", MEANINGS["mask_iou"]), ("zz_new", "2.000", "", "", "")]


def test_the_page_leads_to_the_contact_sheet_where_there_is_one(run):
    folder, preset = run
    report.write(folder, preset)
    assert "contact_sheet" not in (folder / "index.html").read_text(encoding="utf-8")
    store.write_text(folder / "export" / "contact_sheet.html", "clusters")
    report.write(folder, preset)
    assert '<a href="export/contact_sheet.html">' in (folder / "index.html").read_text(encoding="utf-8")
