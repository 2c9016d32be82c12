"""Notebook 00 on data as it comes: one picture, a broken one, labels that mean nothing."""

from dataclasses import replace

import numpy as np
import pytest
from cells import run_cells
from PIL import Image

from mdlib.core.files import StoreError, read_json
from mdlib.core.paths import ROOT
from mdlib.data import open_dataset
from mdlib.data.compose import COMPOSITIONS, Composition
from mdlib.data.roles import open_role
from mdlib.run.artifacts import RunArtifacts
from mdlib.run.metric_names import MEANINGS
from mdlib.run.values import PresetError

ZOO = ROOT / "data" / "zoo"


def photos(folder, *names, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (24, 18), (90, 160, 40)).save(folder / name, **options)
    return folder


def prepare(root, run_dir):
    """Run 00 on a folder; gives its index.json."""
    values = {"dataset": "folder", "data_root": str(root), "train_images": None}
    run_cells("00_prepare_data", run_dir, **values, dev_split=None, val_split=None)
    return read_json(run_dir / "artifacts" / "00_prepare_data" / "index.json")


def test_one_picture_is_enough(tmp_path):
    index = prepare(photos(tmp_path / "photos", "a.jpg"), tmp_path / "run")
    assert index["splits"]["train"]["ids"] == ["a"]
    few = {"train_images": 1, "dev_images": 1, "val_images": 1}
    run_cells("00_prepare_data", tmp_path / "zoo", **few)
    assert open_role(tmp_path / "zoo/artifacts/00_prepare_data", "train").ids == ("train_00000",)


def test_a_picture_that_cannot_be_read_is_left_out_with_its_reason(tmp_path, capsys):
    root = photos(tmp_path / "photos", "a.jpg", "z.jpg")
    (root / "m.jpg").write_bytes((root / "a.jpg").read_bytes()[:150])
    Image.new("RGB", (600, 20)).save(root / "strip.png")
    train = prepare(root, tmp_path / "run")["splits"]["train"]
    assert train["left_out"] == ["m"] and train["ids"] == ["a", "m", "strip", "z"]
    said = capsys.readouterr().out
    assert "left out: " in said and "m.jpg: not a whole picture" in said
    assert "unusual: strip.png 600 x 20 pixels: a strip" in said
    prepared = tmp_path / "run" / "artifacts" / "00_prepare_data"
    assert open_role(prepared, "train").ids == ("a", "strip", "z")
    photos(root, "0.jpg")
    with pytest.raises(StoreError, match=r"1 new: 0.*run 00_prepare_data again"):
        open_role(prepared, "train")


def test_maps_of_black_and_white_are_refused(tmp_path):
    root = tmp_path / "set"
    photos(root / "images", "a.jpg")
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("cat\n")
    Image.fromarray(np.tile(np.uint8([0, 255]), (18, 12))).save(root / "masks" / "a.png")
    with pytest.raises(StoreError, match="every object pixel is 255, which is void: write 1"):
        prepare(root, tmp_path / "run")
    assert not (tmp_path / "run/artifacts/00_prepare_data/manifest.json").exists()


def test_what_is_read_is_written_down(tmp_path, zoo_root):
    few = {"train_images": 2, "dev_images": 1, "val_images": 1}
    manifest = run_cells("00_prepare_data", tmp_path, **few)
    read = {path.rpartition("/")[2] for path in manifest["files"]}
    pictures = {
        path.name for part in ("cutouts", "backgrounds") for path in zoo_root.glob(f"{part}/*")
    }
    assert read == {"cutouts.csv", "backgrounds.csv", *pictures}


def test_the_composition_of_the_zoo_is_chosen_and_written_down(tmp_path):
    few = {"train_images": 2, "dev_images": 3, "val_images": 2}
    dials = {"composition": "crowd", "sharp": 1.0, "object_place": [0.1, 0.2]}
    manifest = run_cells("00_prepare_data", tmp_path, **few, **dials, val_split="sealed")
    run = RunArtifacts(tmp_path)
    composed = replace(COMPOSITIONS["crowd"], sharp=1.0, object_place=(0.1, 0.2))
    assert Composition(**run.index["composition"]) == composed == run.split("train").composition
    fresh = open_dataset("zoo", root=ZOO, split="sealed", count=2, composition=composed)
    assert run.dataset("val").ids == fresh.ids
    np.testing.assert_array_equal(run.dataset("val").image(1), fresh.image(1))
    assert {*manifest["metrics"]} == {
        f"mask_iou_{rule}_dev" for rule in ("sharpness", "geodesic", "centre_box")
    }
    assert {*manifest["metrics"]} <= {*MEANINGS}


def test_scenes_without_objects_are_prepared_and_measured_by_nothing(tmp_path):
    few = {"train_images": 2, "dev_images": 2, "val_images": 1}
    manifest = run_cells("00_prepare_data", tmp_path, **few, composition="empty")
    assert manifest["metrics"] == {}
    assert not RunArtifacts(tmp_path).dataset("dev").semantic(1).any()


def test_another_data_set_takes_no_dials(tmp_path):
    root = photos(tmp_path / "photos", "a.jpg")
    values = {"dataset": "folder", "data_root": str(root), "likeness": 0.5}
    with pytest.raises(PresetError, match="only the zoo is composed"):
        run_cells("00_prepare_data", tmp_path / "run", **values, dev_split=None, val_split=None)
    assert prepare(root, tmp_path / "run")["composition"] is None
