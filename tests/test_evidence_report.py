"""The committed evidence: within its bands, and shown in the README as it was measured."""

import pytest

from mdlib import evidence, presets, report, store
from mdlib.presets import ROOT

FOLDER = ROOT / "reports" / "evidence"
CONTENT, CLAIMS = store.read_json(FOLDER / "metrics.json"), store.read_json(FOLDER / "claims.json")
BANDS = presets.load_preset("evidence").bands


@pytest.mark.parametrize("name", sorted(BANDS))
def test_the_committed_metrics_lie_in_their_bands(name):
    low, high = BANDS[name]
    assert low <= CONTENT["metrics"][name] <= high


def test_every_claim_of_the_paper_is_decided():
    decided = {record["number"] for record in CLAIMS if record["verdict"] in (evidence.HOLDS, evidence.FAILS)}
    assert set(evidence.PAPER_CLAIMS) <= decided
    for record in CLAIMS:
        low, high = record["interval"]
        assert low <= record["effect"] <= high and (record["verdict"] == evidence.HOLDS) == (low > 0)


def test_the_readme_shows_exactly_these_claims():
    begin, end = report.README_MARKS["claims"]
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip()
    assert shown == report.readme_claims(CONTENT, CLAIMS)
