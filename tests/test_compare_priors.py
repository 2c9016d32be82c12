"""Notebook 10 on a few scenes of the zoo, and on a data set that nobody composes."""

import contextlib
import io

import fixtures
import numpy as np
import pytest
from cells import run_cells
from stages import made

from mdlib.core.files import read_json
from mdlib.run import presets
from mdlib.run.metric_names import MEANINGS
from mdlib.studies import claims

NAME = "10_compare_priors"
TINY = {"images": 6, "dev_images": 2, "cue_images": 4, "draws": 2, "crops": 24, "restarts": 1}
ALL = {"train_images": None, "dev_images": None, "val_images": None}


def run(out, *, prepare, **values):
    """(manifest of 10, what it printed, its claims)."""
    settings = {
        key: each.value for key, each in presets.read_parameters("01_distill_masks").items()
    }
    settings |= {"input_side": 96, "weights": "random"}
    del settings["run_dir"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_cells("00_prepare_data", out, **prepare)
        made(out, "01_distill_masks", "00_prepare_data", **settings)  # 10 reads its settings alone
        printed.truncate(printed.seek(0))
        manifest = run_cells(NAME, out, **values)
    return manifest, printed.getvalue(), read_json(out / "artifacts" / NAME / "claims.json")


@pytest.fixture(scope="module")
def zoo_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo")
    few = {"train_images": 4, "dev_images": 3, "val_images": 3}
    return out, *run(out, prepare=few, **TINY)


def test_two_claims_have_their_confirmatory_effect(zoo_run):
    *_, records = zoo_run
    decided = [record for record in records if record["confirmatory"]]
    assert [record["key"] for record in decided] == ["priors", "cues"]
    for record in decided:
        low, high = record["interval"]
        assert low <= record["effect"] <= high and record["verdict"] == claims.PENDING
    priors, cues = decided
    assert priors["interval_animals"] is not None
    assert "highest mean on dev" in priors["experiment"] and "2 draws of 24" in cues["experiment"]
    findings = [record["text"] for record in records if not record["confirmatory"]]
    assert len(findings) == 3 + 3 + 2 + 8 and len(set(findings)) == len(findings)


def test_the_claim_is_about_the_strongest_prior_of_dev_and_its_drop_on_val(zoo_run):
    out, manifest, said, records = zoo_run
    found = read_json(out / "artifacts" / NAME / "comparison.json")
    name = said.partition("the strongest handcrafted prior on dev: ")[2].split("\n")[0]
    own, ours = found["drops"][name], found["drops"]["MaskDistill"]
    assert records[0]["effect"] == pytest.approx(own["value"] - ours["value"])
    for rule in (name, "MaskDistill"):
        drop, val = found["drops"][rule], found["iou"][rule]
        assert drop["value"] == pytest.approx(val[drop["best"]] - val[drop["worst"]])
    assert manifest["metrics"][f"prior_{name.replace(' ', '_')}_drop"] == pytest.approx(
        own["value"]
    )


def test_a_box_does_not_notice_a_cue(zoo_run):
    found = read_json(zoo_run[0] / "artifacts" / NAME / "comparison.json")
    assert [found["cues"][cue]["centre box"]["value"] for cue in found["cues"]] == [0] * 4
    box = found["iou"]["centre box"]
    assert box["sharp"] == box["soft"] == box["mixture"] > 0


def test_its_numbers_have_a_meaning_and_its_figures_are_drawn(zoo_run):
    _, manifest, _, _ = zoo_run
    assert manifest["metrics"].keys() <= MEANINGS.keys()
    assert all(np.isfinite(value) for value in manifest["metrics"].values())
    shown = [name.rpartition("-")[2] for name in map(str, manifest["figures"])]
    assert len(shown) == 8


def test_what_nobody_composes_is_compared_as_it_is_and_decides_nothing(tmp_path, zoo_root):
    root = fixtures.make_voc2012(tmp_path / "voc", zoo_root, train=8, val=4, extra=2)
    splits = {"train_split": "train", "dev_split": "val", "val_split": "val"}
    data = {"dataset": "voc2012", "data_root": str(root), **splits, **ALL}
    manifest, said, records = run(tmp_path / "run", prepare=data, **TINY)
    assert "only the zoo can be composed" in said and records == []
    assert "skipped" not in manifest
    rules = ("maskdistill", "geodesic", "contrast", "sharpness", "centre_box")
    assert manifest["metrics"].keys() == {f"prior_{rule}_own_iou" for rule in rules}
    assert manifest["metrics"].keys() <= MEANINGS.keys()
