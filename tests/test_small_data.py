"""Stages 01 to 06 on data that is small or lacks something: what can be computed is, what cannot is
left out or refused in one sentence, and nothing fails after the work is done.

The notebooks run cell by cell in this process, with networks of three steps.
"""

import contextlib
import io
import warnings

import fixtures
import numpy as np
import pytest
from cells import run_cells
from test_data_runs import EVERY_IMAGE, TINY

from mdlib.core import shards
from mdlib.core.files import StoreError, read_array, read_json, write_json
from mdlib.core.mask import read_masks

CHAIN = [
    "01_distill_masks",
    "02_cluster_masks",
    "03_train_mask_rcnn",
    "04_filter_masks",
    "05_train_deeplab",
    "06_refine_with_crf",
]


def prepare(out, root, dataset="folder", **splits):
    given = {"dev_split": None, "val_split": None, **splits}
    run_cells("00_prepare_data", out, dataset=dataset, data_root=str(root), **given, **EVERY_IMAGE)


def run_chain(out, names=CHAIN, **changed):
    """{notebook: (its manifest, what it printed)}."""
    found = {}
    for name in names:
        values = {**TINY.get(name, {}), **changed.get(name, {})}
        with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # means of nothing
            manifest = run_cells(name, out, **values)
        found[name] = manifest, printed.getvalue()
    return found


def photographs(folder, zoo_root, count, *, different=True):
    images = [image for image, _, _ in fixtures.scenes(zoo_root, "train", count)]
    for number in range(count):
        image = images[number if different else 0]
        fixtures.write_jpeg(folder / f"{number:02}.jpg", image)
    return folder


def small(k):
    return {"02_cluster_masks": {"k": k, "restarts": 1}}


@pytest.mark.parametrize("count", [1, 2])
def test_a_handful_of_photographs_goes_through(tmp_path, zoo_root, count):
    prepare(tmp_path / "run", photographs(tmp_path / "photos", zoo_root, count))
    several = {"01_distill_masks": {"input_side": 128, "max_masks": 3, "min_objectness": None}}
    found = run_chain(tmp_path / "run", **several, **small(2))
    clustered = read_masks(tmp_path / "run" / "artifacts" / "02_cluster_masks" / "masks_train.json")
    assert len(clustered) >= 2 and {mask.cluster for mask in clustered} <= {0, 1}
    assert found["05_train_deeplab"][0]["metrics"] == {}


def test_equal_photographs_make_fewer_clusters_and_a_line_says_so(tmp_path, zoo_root):
    """Features that do not vary from picture to picture, and fewer different ones than clusters."""
    root = photographs(tmp_path / "photos", zoo_root, 12, different=False)
    prepare(tmp_path / "run", root)
    values = {"01_distill_masks": {"input_side": 128, "max_masks": 1, "min_objectness": None}}
    found = run_chain(tmp_path / "run", CHAIN[:3], **values, **small(2))
    assert "1 of 2 clusters hold a mask" in found["02_cluster_masks"][1]


def test_one_mask_cannot_make_two_clusters_and_that_is_said_before_the_features(
    tmp_path, zoo_root, monkeypatch
):
    prepare(tmp_path / "run", photographs(tmp_path / "photos", zoo_root, 1))
    one = {"01_distill_masks": {"input_side": 128, "max_masks": 1, "min_objectness": None}}
    run_chain(tmp_path / "run", CHAIN[:1], **one)
    monkeypatch.setattr(
        "mdlib.method.clusters.embed_masks", lambda *a, **k: pytest.fail("features were computed")
    )
    with pytest.raises(StoreError, match=r"2 clusters need as many masks, and 01 found 1: lower k"):
        run_chain(tmp_path / "run", CHAIN[1:2], **small(2))


def test_no_mask_at_all_is_refused_with_the_way_out(tmp_path, zoo_root):
    prepare(tmp_path / "run", photographs(tmp_path / "photos", zoo_root, 3))
    strict = {"01_distill_masks": {"input_side": 128, "min_objectness": 9.0}}
    with pytest.raises(StoreError, match=r"no mask in 3 pictures of train: lower min_objectness"):
        run_chain(tmp_path / "run", CHAIN[:1], **strict)


@pytest.mark.parametrize("bare", [("val",), ("dev", "train"), ("dev", "train", "val")])
def test_a_role_without_an_object_is_not_scored(tmp_path, zoo_root, bare):
    root = fixtures.make_coco(tmp_path / "coco", zoo_root, train=14, val=5)
    splits = {"train_split": "coco20k", "dev_split": "dev", "val_split": "val2017"}
    listed = (root / "coco_20k_filenames.txt").read_text()
    for path in (root / "annotations").glob("instances_*.json"):
        content = read_json(path)
        role_of = {
            image["id"]: "val" if "val" in path.stem else "train" if name in listed else "dev"
            for image in content["images"]
            if (name := image["file_name"])
        }
        kept = [each for each in content["annotations"] if role_of[each["image_id"]] not in bare]
        write_json(path, content | {"annotations": kept})
    prepare(tmp_path / "run", root, "coco", **splits)
    found = run_chain(tmp_path / "run")
    assert f"{', '.join(sorted(bare))}: no picture holds an object" in found["01_distill_masks"][1]
    metrics = found["01_distill_masks"][0]["metrics"]
    assert ("mask_iou" in metrics) == ("corloc" in metrics) == ("val" not in bare)
    assert ("mask_iou_train" in metrics) == ("train" not in bare)
    assert all(np.isfinite(v) for m, _ in found.values() for v in m["metrics"].values())


def test_val_alone_has_labels_and_06_draws_what_there_is(tmp_path, zoo_root):
    root = fixtures.make_voc2012(tmp_path / "voc", zoo_root, train=8, val=3, extra=2)
    prepare(tmp_path / "run", root, "voc2012", train_split="train", val_split="val")
    run_chain(tmp_path / "run")
    folder = tmp_path / "run" / "artifacts" / "05_train_deeplab"
    assert read_array(folder / "segmenter_val.npy").shape[:2] == (3, 6)


class Killed(BaseException):
    """What ends a stage where a SIGKILL would."""


def files_of(folder):
    """{path: bytes} of a stage; histories hold seconds, figures and manifests the time."""
    named = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    left_out = {"manifest.json", "history.json"}
    return {
        name: path.read_bytes()
        for name, path in named.items()
        if name.name not in left_out and name.parts[0] != "figures"
    }


def test_stages_stopped_after_each_part_end_with_the_same_files(tmp_path, zoo_root, monkeypatch):
    root = fixtures.make_voc2012(tmp_path / "voc", zoo_root, train=9, val=6, extra=2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for out in (whole, stopped):
        prepare(out, root, "voc2012", train_split="train", val_split="val")
    changed = {"01_distill_masks": {"input_side": 128, "batch_size": 2}}
    changed["02_cluster_masks"] = {"k": 5, "restarts": 2, "batch_size": 4}
    monkeypatch.setattr(shards, "SIZE", 1)  # parts are as small as batches
    expected = run_chain(whole, **changed)
    make, kills = shards._made, []

    def made_once(path, form, items):
        """The process dies once a part is written."""
        make(path, form, items)
        kills.append(path)
        raise Killed

    for name in CHAIN:
        if name == "04_filter_masks":  # seconds: it keeps no parts
            run_chain(stopped, [name])
            continue
        with monkeypatch.context() as patch:
            patch.setattr(shards, "_made", made_once)
            for _ in range(3):
                with pytest.raises(Killed):
                    run_chain(stopped, [name], **changed)
        manifest, said = run_chain(stopped, [name], **changed)[name]
        assert "parts were kept before" in said
        assert manifest["metrics"] == expected[name][0]["metrics"]
        assert files_of(stopped / "artifacts" / name) == files_of(whole / "artifacts" / name)
    assert len(set(kills)) == len(kills)
