"""The pictures of data/zoo, who may see which of them, and what pretraining sees."""

import csv
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from mdlib.core.paths import PRESETS
from mdlib.data import compose, zoo
from mdlib.data.compose import COMPOSITIONS, MIXTURE
from mdlib.data.zoo import Places, TrackingShots, ZooDataset
from mdlib.run.presets import load_preset, resolve

FOLDERS = {"cutouts": 43, "subjects": 208, "backgrounds": 16}
SPLITS = ("train", "dev", "val", "sealed")


def rows(zoo_root, folder):
    with open(zoo_root / f"{folder}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_holds_what_its_table_says(zoo_root, folder):
    table = rows(zoo_root, folder)
    files = [row["file"] for row in table]
    assert sorted(files) == sorted(path.name for path in (zoo_root / folder).iterdir())
    assert len(files) == FOLDERS[folder]
    assert len({row["source"] for row in table}) == len(files)


def test_no_picture_is_in_two_folders(zoo_root):
    sources = {folder: {row["source"] for row in rows(zoo_root, folder)} for folder in FOLDERS}
    assert not any(sources[a] & sources[b] for a, b in combinations(FOLDERS, 2))


def test_the_licence_names_each_folder_with_its_number(zoo_root):
    licence = (zoo_root / "LICENSE.md").read_text(encoding="utf-8")
    readme = (zoo_root.parent / "README.md").read_text(encoding="utf-8")
    for folder, count in FOLDERS.items():
        assert f"| `{folder}/` | {count} " in licence and f"{folder}.csv" in licence
        assert f"| `{folder}/` | {count} " in readme


def test_pictures_are_as_small_as_the_licence_says(zoo_root):
    for folder, largest in (("cutouts", 192), ("subjects", 144), ("backgrounds", 720)):
        sizes = [Image.open(path).size for path in (zoo_root / folder).iterdir()]
        assert max(map(max, sizes)) == largest


# ---------------------------------------------------------------- splits


def test_a_photograph_of_a_place_is_of_one_split(zoo_root):
    photographs = zoo.load_photographs(zoo_root)
    assert set(photographs) == {"train", "dev", "val"}
    contents = {split: {p.tobytes() for p in each} for split, each in photographs.items()}
    assert sum(map(len, contents.values())) == len(set().union(*contents.values())) == 16
    assert all(len(each) >= 3 for each in contents.values())


def test_a_split_opens_its_own_pictures(zoo_root):
    photographs = zoo.load_photographs(zoo_root)
    for split in SPLITS:
        data, own = ZooDataset(zoo_root, split), zoo.OWN_PICTURES[split]
        assert data.photographs is photographs[own]
        assert {c.split for c in data.cutouts} == {"train", own}


def test_sealed_draws_other_scenes_than_val_from_the_same_pictures(zoo_root):
    val, sealed = (ZooDataset(zoo_root, split, 40) for split in ("val", "sealed"))
    assert val.cutouts == sealed.cutouts and val.photographs is sealed.photographs
    assert not {val.image(i).tobytes() for i in range(40)} & {
        sealed.image(i).tobytes() for i in range(40)
    }
    assert len(set(zoo.SPLIT_SEEDS.values())) == len(zoo.SPLIT_SEEDS)


def test_no_preset_but_that_of_a_release_opens_the_sealed_split():
    opened = {
        path.stem
        for path in PRESETS.glob("*.yaml")
        for values in resolve(load_preset(path.stem), {}).values()
        if "sealed" in values.values()
    }
    assert opened == {"release"}


def test_a_data_set_has_the_composition_that_it_is_given(zoo_root):
    plain, crowd = (
        ZooDataset(zoo_root, "dev", 3, composition=COMPOSITIONS[name])
        for name in ("mixture", "crowd")
    )
    assert ZooDataset(zoo_root, "dev").composition == MIXTURE
    assert all(len(sample.instances.labels) == 3 for sample in crowd)
    assert any((a.image != b.image).any() for a, b in zip(plain, crowd, strict=True))


def test_an_empty_scene_has_a_map_of_background_and_no_objects(zoo_root):
    sample = ZooDataset(zoo_root, "dev", 1, composition=COMPOSITIONS["empty"])[0]
    assert not sample.semantic.any() and sample.semantic.shape == (128, 128)
    assert sample.instances.masks.shape == (0, 128, 128) and sample.instances.names == ()


# ---------------------------------------------------------------- what pretraining sees


def shots(zoo_root, **changed):
    return TrackingShots(zoo_root, **{"seed": 5, "zoo_share": 0.5} | changed)


def test_a_shot_is_pure(zoo_root):
    for i in (0, 3):
        np.testing.assert_array_equal(shots(zoo_root)[i], shots(zoo_root)[i])
        assert (shots(zoo_root)[i] != shots(zoo_root, seed=6)[i]).any()
    assert (shots(zoo_root)[0] != shots(zoo_root)[3]).any()


def test_shots_show_train_cutouts_and_subjects_alone(zoo_root):
    made = shots(zoo_root)
    assert {c.split for c in made.cutouts} == {"train"} and len(made.subjects) == 208
    classes, _ = zoo.load_cutouts(zoo_root)
    assert {c.label for c in made.cutouts} == set(range(1, len(classes)))
    assert {c.label for c in made.subjects} == {0}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_zoo_shots_is_that_of_the_parameter(zoo_root, share, monkeypatch):
    shown = []
    plain = compose.transform

    def watched(image, **options):
        shown.append(image)
        return plain(image, **options)

    monkeypatch.setattr(compose, "transform", watched)
    made = shots(zoo_root, zoo_share=share)
    for i in range(12):
        made[i]
    known = made.cutouts if share else made.subjects
    assert {id(image) for image in shown} <= {id(c.image) for c in known}


def test_frames_share_the_subject_and_are_premultiplied(zoo_root):
    made = shots(zoo_root)
    for i in range(12):
        frames = made[i]
        assert frames.shape == (2, 128, 128, 4) and frames.dtype == np.uint8
        assert (frames[..., :3] <= frames[..., 3:]).all()
        first, second = (frame[..., 3] > 127 for frame in frames)
        assert first.any() and second.any() and (first != second).any()
        areas = sorted((first.sum(), second.sum()))
        assert areas[1] < 3 * areas[0]


def places(zoo_root, name="mixture", *, seed=5):
    return Places(zoo_root, seed=seed, composition=COMPOSITIONS[name])


def test_places_are_pure_and_from_train_photographs_alone(zoo_root):
    one = places(zoo_root)
    for i in (0, 3):
        np.testing.assert_array_equal(one[i], places(zoo_root)[i])
        assert (one[i] != places(zoo_root, seed=6)[i]).any()
    assert one[0].shape == (128, 128, 3) and one[0].dtype == np.uint8
    assert one.photographs is zoo.load_photographs(zoo_root)["train"]


def test_places_follow_the_composition(zoo_root):
    detail = {
        name: np.mean(
            [
                np.abs(np.diff(places(zoo_root, name)[i].astype(int), axis=0)).mean()
                for i in range(9)
            ]
        )
        for name in ("sharp", "soft", "invented")
    }
    assert detail["sharp"] > 1.5 * detail["soft"] > detail["invented"]
