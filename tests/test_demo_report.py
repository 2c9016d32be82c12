"""The committed demo report: within its bands, and the bands mean something."""

import pytest

from mdlib import presets, report, store
from mdlib.presets import ROOT

CONTENT = store.read_json(ROOT / "reports" / "demo" / "metrics.json")
BANDS = presets.load_preset("demo").bands

# (metric, what a broken run would score there: a baseline that the same run measured)
DEGENERATE = [
    ("mask_iou", "mask_iou_random_encoder"),
    ("mask_iou", "mask_iou_centre_box"),
    ("cluster_accuracy", "cluster_accuracy_shuffled"),
    ("masks_miou_clustering", "masks_miou_background"),
    ("masks_miou_clustering", "masks_miou_shuffled"),
]


@pytest.mark.parametrize("name", sorted(BANDS))
def test_the_committed_metrics_lie_in_their_bands(name):
    low, high = BANDS[name]
    assert low <= CONTENT["metrics"][name] <= high


@pytest.mark.parametrize(("name", "baseline"), DEGENERATE)
def test_a_degenerate_run_falls_out_of_the_bands(name, baseline):
    low, high = BANDS[name]
    assert not low <= CONTENT["metrics"][baseline] <= high
    assert low > 0  # empty masks score 0


def test_the_report_is_of_the_demo_preset():
    assert CONTENT["run"]["preset"] == "demo"
    assert CONTENT["bands"] == {name: list(band) for name, band in BANDS.items()}


def test_the_readme_shows_exactly_these_numbers():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = report.README_MARKS["results"]
    shown = text.split(begin)[1].split(end)[0].strip()
    assert shown == report.readme_table(CONTENT)
