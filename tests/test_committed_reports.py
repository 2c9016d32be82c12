"""The committed reports of demo and evidence: within their bands, the bands mean something, and the
README shows these numbers.
"""

import pytest

from mdlib.core.files import read_json
from mdlib.core.paths import ROOT
from mdlib.run import presets, report
from mdlib.studies import claims

CONTENTS = {
    name: read_json(ROOT / "reports" / name / "metrics.json") for name in ("demo", "evidence")
}
CLAIMS = read_json(ROOT / "reports" / "evidence" / "claims.json")
with_verdicts = pytest.mark.skipif(
    not all("confirmatory" in record for record in CLAIMS),
    reason="reports/evidence is of a run in the earlier world, before the claims had their authors' "
    "words; run it again",
)
ALL_BANDS = {name: presets.load_preset(name).bands for name in CONTENTS}
CONTENT, BANDS = CONTENTS["demo"], ALL_BANDS["demo"]

# (metric, what a broken run would score there: a baseline that the same run measured)
DEGENERATE = [
    ("mask_iou", "mask_iou_random_encoder"),
    ("mask_iou", "mask_iou_centre_box"),
    ("cluster_accuracy", "cluster_accuracy_shuffled"),
    ("masks_miou_clustering", "masks_miou_background"),
    ("masks_miou_clustering", "masks_miou_shuffled"),
]


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        pytest.param(preset, name, marks=with_verdicts if preset == "evidence" else ())
        for preset, bands in ALL_BANDS.items()
        for name in sorted(bands)
    ],
)
def test_the_committed_metrics_lie_in_their_bands(preset, name):
    low, high = ALL_BANDS[preset][name]
    assert low <= CONTENTS[preset]["metrics"][name] <= high


@pytest.mark.parametrize(("name", "baseline"), DEGENERATE)
def test_a_degenerate_run_falls_out_of_the_bands(name, baseline):
    low, high = BANDS[name]
    assert not low <= CONTENT["metrics"][baseline] <= high
    assert low > 0  # empty masks score 0


@pytest.mark.parametrize("preset", ["demo", pytest.param("evidence", marks=with_verdicts)])
def test_the_report_is_of_its_preset(preset):
    assert CONTENTS[preset]["run"]["preset"] == preset
    assert CONTENTS[preset]["bands"] == {
        name: list(band) for name, band in ALL_BANDS[preset].items()
    }


@with_verdicts
def test_every_claim_of_the_paper_has_its_verdict():
    confirmatory = [record for record in CLAIMS if record["confirmatory"]]
    assert [record["key"] for record in confirmatory] == list(claims.PAPER_CLAIMS)
    for record in confirmatory:
        assert record["text"] == claims.PAPER_CLAIMS[record["key"]].quote
        assert record["verdict"] in (claims.HOLDS, claims.OPPOSITE, claims.UNDECIDED)
    assert claims.judge(CLAIMS) == CLAIMS


@with_verdicts
def test_an_effect_lies_in_its_interval_and_only_claims_are_decided():
    for record in CLAIMS:
        low, high = record["interval"]
        assert low <= record["effect"] <= high
        assert bool(record["verdict"]) == record["confirmatory"]
        if record["verdict"] in (claims.HOLDS, claims.OPPOSITE):
            assert (low > 0) == (record["verdict"] == claims.HOLDS) and low * high > 0


def shown_in_the_readme(mark: str) -> str:
    begin, end = report.README_MARKS[mark]
    return (ROOT / "README.md").read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip()


def test_the_readme_shows_exactly_these_numbers():
    assert shown_in_the_readme("results") == report.readme_table(CONTENT)


@with_verdicts
def test_the_readme_shows_exactly_these_claims():
    assert shown_in_the_readme("claims") == report.readme_claims(CONTENTS["evidence"], CLAIMS)
