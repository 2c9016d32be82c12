"""The notebooks on other data than the zoo: a miniature VOC 2012, a folder without labels and a
miniature COCO, cell by cell in this process; two notebooks of the folder go through the runner.
Numbers of networks with a few steps mean nothing; those of stage 1 do.
"""

import contextlib
import csv
import io

import fixtures
import pytest
import yaml
from cells import run_cells

from mdlib.__main__ import main
from mdlib.core.files import read_array, read_json, write_json
from mdlib.core.label_map import read_label_map
from mdlib.core.mask import read_masks
from mdlib.data.roles import open_role
from mdlib.run import pipeline, presets, report, stage

STAGES = presets.load_preset("voc2012").notebooks
TINY = {
    "01_distill_masks": {"input_side": 128},
    "02_cluster_masks": {"k": 5, "restarts": 2, "kmeans_seeds": 2},
    "03_train_mask_rcnn": {"steps": 3, "batch": 2, "shorter_side": 96},
    "05_train_deeplab": {"steps": 3, "batch": 4, "side": 96, "label_side": 48},
    "06_refine_with_crf": {"workers": 1},
    "08_probe_linearly": {"steps": 3, "batch": 4, "lr_milestones": [2]},
}
EVERY_IMAGE = {"train_images": None, "dev_images": None, "val_images": None}


@pytest.fixture(scope="module")
def make_preset(tmp_path_factory):
    """make_preset(name, data, **more): a preset of all stages, tiny, on that data; gives it."""
    folder = tmp_path_factory.mktemp("presets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", folder)

        def make(name: str, data: dict, **more) -> presets.Preset:
            parameters = {"00_prepare_data": {**EVERY_IMAGE, **data}, **TINY, **more}
            content = {"description": name, "notebooks": STAGES, "parameters": parameters}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
            return presets.load_preset(name)

        yield make


def cut_short(path):
    """Leave the first 500 bytes of a file."""
    path.write_bytes(path.read_bytes()[:500])


def status(folder):
    """What the runner says of the notebooks that it has run."""
    return {row["notebook"]: row["status"] for row in csv.DictReader((folder / "cost.csv").open())}


def skipped_stages(folder):
    return {
        name: manifest["skipped"]
        for name in STAGES
        if "skipped" in (manifest := stage.read_manifest(folder, name))
    }


def metrics_of(folder):
    return read_json(folder / "metrics.json")["metrics"]


# ---------------------------------------------------------------- VOC 2012


@pytest.fixture(scope="module")
def voc_run(make_preset, tmp_path_factory, zoo_root):
    """(folder of a run on VOC 2012 with SBD's images, a support set of boxes alone, and one image
    that is cut short; what stage 09 printed).
    """
    root = fixtures.make_voc2007(
        fixtures.make_voc2012(tmp_path_factory.mktemp("voc"), zoo_root, train=20, val=5, extra=4),
        zoo_root,
    )
    cut_short(root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000003.jpg")
    data = {
        "dataset": "voc2012",
        "data_root": str(root),
        "train_split": "trainaug",
        "support_dataset": "voc2007",
        "support_root": str(root),
    }
    preset = make_preset("minivoc", data, **{"09_evaluate_instances": {"split": "instances"}})
    out, printed = tmp_path_factory.mktemp("minivoc"), io.StringIO()
    write_json(out / "artifacts" / "run.json", {"preset": "minivoc"})
    for name, values in presets.resolve(preset, {}).items():
        printed.truncate(printed.seek(0))
        with contextlib.redirect_stdout(printed):
            run_cells(name, out, **values)
        if name == "09_evaluate_instances":
            said = printed.getvalue()
    report.write(out, preset)
    return out, said


@pytest.fixture(scope="module")
def voc(voc_run):
    return voc_run[0]


def test_voc_runs_through_every_stage(voc):
    assert all(stage.read_manifest(voc, name)["stage"] == name for name in STAGES)
    assert not skipped_stages(voc)
    found = metrics_of(voc)
    assert {
        "miou_clustering",
        "miou_linear",
        "miou_supervised",
        "pseudo_miou",
        "mask_rcnn_ap50_single",
        "cluster_accuracy",
    } <= found.keys()
    # what stage 1 reaches on pictures that are not square
    assert found["mask_iou"] > 0.4 > found["mask_iou_centre_box"]
    assert found["corloc"] > 0.5


def test_an_image_that_cannot_be_read_is_left_out_of_the_run(voc_run):
    voc, printed = voc_run
    index = read_json(voc / "artifacts" / "00_prepare_data" / "index.json")
    assert (
        index["splits"]["train"]["left_out"] == ["2007_000003"]
        and index["splits"]["val"]["left_out"] == []
    )
    train = open_role(voc / "artifacts" / "00_prepare_data", "train")
    assert len(train) == 20 + 4 - 1 and "2007_000003" not in train.ids
    assert "24 of the 25 images of instances" in printed


def test_label_maps_have_the_size_of_their_images(voc):
    train, folder = (
        open_role(voc / "artifacts" / "00_prepare_data", "train"),
        voc / "artifacts" / "04_filter_masks" / "train",
    )
    sizes = {sample.image.shape[:2] for sample in train}
    assert len(sizes) == 3 and all(h != w for h, w in sizes if (h, w) != (128, 128))
    assert {path.stem for path in folder.glob("*.png")} == set(train.ids)
    assert all(
        read_label_map(folder / f"{sample.id}.png").shape == sample.image.shape[:2]
        for sample in train
    )


def test_the_support_set_is_clustered_and_then_forgotten(voc):
    prepared, masks_dir = (
        voc / "artifacts" / "00_prepare_data",
        voc / "artifacts" / "01_distill_masks",
    )
    assert open_role(prepared, "support").ids == tuple(f"{i:06d}" for i in range(1, 5))
    assert read_masks(masks_dir / "masks_support.json")
    clustered = read_masks(voc / "artifacts" / "02_cluster_masks" / "masks_train.json")
    assert all(mask.cluster is not None for mask in clustered)
    assert [mask.rle for mask in clustered] == [
        mask.rle for mask in read_masks(masks_dir / "masks_train.json")
    ]
    assert not (voc / "artifacts" / "03_train_mask_rcnn" / "predictions_support.json").exists()


def test_the_report_names_the_data_set(voc):
    summary = (voc / "summary.md").read_text()
    assert (
        summary.startswith("# MaskDistill, minivoc preset, voc2012")
        and "zoo" not in summary.splitlines()[2]
    )
    assert "skipped" not in read_json(voc / "metrics.json")


def test_boxes_alone_give_corloc_and_nothing_that_needs_masks(tmp_path, zoo_root):
    root = fixtures.make_voc2012(tmp_path / "voc", zoo_root, train=6, val=2, extra=2)
    run_cells(
        "00_prepare_data",
        tmp_path / "run",
        dataset="voc2012",
        data_root=str(root),
        dev_split=None,
        val_split="boxes",
        **EVERY_IMAGE,
    )
    found = run_cells("01_distill_masks", tmp_path / "run", **TINY["01_distill_masks"])["metrics"]
    assert found["corloc"] > 0.5 and "mask_iou_train" in found and "mask_iou" not in found


# ---------------------------------------------------------------- a folder without labels


BY_THE_RUNNER = ("00_prepare_data", "07_evaluate_clusters")


@pytest.fixture(scope="module")
def photos(tmp_path_factory, zoo_root):
    """Nested pictures of three sizes, one of them cut short."""
    root = tmp_path_factory.mktemp("photos")
    for number, (image, _, _) in enumerate(fixtures.scenes(zoo_root, "train", 12)):
        fixtures.write_jpeg(root / ("sea" if number % 2 else "wood/ä") / f"{number}.jpg", image)
    cut_short(root / "sea" / "11.jpg")
    return root


@pytest.fixture(scope="module")
def unlabelled(make_preset, photos, tmp_path_factory):
    """A run without labels: 00 and 07, which skips itself, by the runner, the others cell by cell."""
    data = {"dataset": "folder", "data_root": str(photos), "dev_split": None, "val_split": None}
    preset = make_preset("minifolder", data)
    out = tmp_path_factory.mktemp("minifolder")
    for name, values in presets.resolve(preset, {}).items():
        if name in BY_THE_RUNNER:
            command = ["run", "minifolder", "--out", str(out), "--only", name]
            assert main(command) == pipeline.DONE
        else:
            run_cells(name, out, **values)
    return out


def test_stages_that_need_labels_are_skipped_and_the_others_are_not(unlabelled):
    skipped = skipped_stages(unlabelled)
    assert skipped.keys() == {"07_evaluate_clusters", "08_probe_linearly", "09_evaluate_instances"}
    assert all(reason.startswith("no labels") for reason in skipped.values())
    prepared, evaluated = BY_THE_RUNNER
    assert status(unlabelled) == {
        prepared: "done",
        evaluated: f"skipped: {skipped[evaluated]}",
    }


def test_a_run_without_labels_ends_with_clusters_and_maps(unlabelled):
    train = open_role(unlabelled / "artifacts" / "00_prepare_data", "train")
    assert len(train) == 11 and "wood__ä__0" in train.ids
    fitted = read_json(unlabelled / "artifacts" / "02_cluster_masks" / "clusters.json")
    assert fitted["class_names"] == ["background", *(f"cluster {j}" for j in range(5))] and fitted[
        "names"
    ] == [1, 2, 3, 4, 5]
    logits = read_array(unlabelled / "artifacts" / "05_train_deeplab" / "segmenter_train.npy")
    assert logits.shape[:2] == (11, 6)
    assert not (unlabelled / "artifacts" / "05_train_deeplab" / "supervised.safetensors").exists()
    if read_json(unlabelled / "artifacts" / "06_refine_with_crf" / "crf.json")["parameters"]:
        maps = {
            path.stem
            for path in (unlabelled / "artifacts" / "06_refine_with_crf" / "train").glob("*.png")
        }
        assert maps == set(train.ids)


def test_nothing_is_scored_without_labels_and_the_report_says_so(unlabelled, capsys):
    assert main(["run", "minifolder", "--out", str(unlabelled)]) == pipeline.DONE
    assert capsys.readouterr().out.count("up to date, skipped") == len(STAGES)
    skipped = skipped_stages(unlabelled)
    assert read_json(unlabelled / "metrics.json")["skipped"] == skipped
    scored = {"iou", "ap50", "corloc", "accuracy", "nmi"}
    assert not [name for name in metrics_of(unlabelled) if scored & set(name.split("_"))]
    assert "09_evaluate_instances: skipped, no labels" in (unlabelled / "summary.md").read_text()
    page = (unlabelled / "index.html").read_text()
    assert page.count("Skipped: no labels") == 3 and "12_report-overview.png" in page
    said = (unlabelled / "notebooks" / "07_evaluate_clusters.ipynb").read_text()
    # what the reader sees instead of a traceback
    assert "The chain goes on without this stage" in said


def test_a_run_is_up_to_date_until_a_picture_comes_in(unlabelled, photos):
    given = stage.read_manifest(unlabelled, "00_prepare_data")["parameters"]
    assert stage.stale_reason(unlabelled, "00_prepare_data", given) is None
    fixtures.write_jpeg(
        photos / "new.jpg",
        open_role(unlabelled / "artifacts" / "00_prepare_data", "train")[0].image,
    )
    assert stage.stale_reason(unlabelled, "00_prepare_data", given) == f"{photos} changed"


# ---------------------------------------------------------------- COCO


def test_coco_with_crowds_and_images_without_objects(tmp_path, zoo_root):
    root = fixtures.make_coco(tmp_path / "coco", zoo_root, train=14, val=5)
    splits = {"train_split": "coco20k", "dev_split": "dev", "val_split": "val2017"}
    index = run_cells(
        "00_prepare_data",
        tmp_path / "run",
        dataset="coco",
        data_root=str(root),
        **splits,
        **EVERY_IMAGE,
    )
    assert index["stage"] == "00_prepare_data"
    first = run_cells("01_distill_masks", tmp_path / "run", **TINY["01_distill_masks"])["metrics"]
    assert first["mask_iou"] > 0.4
    clustered = run_cells("02_cluster_masks", tmp_path / "run", **TINY["02_cluster_masks"])[
        "metrics"
    ]
    assert 0 <= clustered["cluster_accuracy"] <= 1
    val = open_role(tmp_path / "run" / "artifacts" / "00_prepare_data", "val")
    assert [len(sample.instances.crowds) for sample in val] == [0, 0, 1, 0, 0] and not len(
        val[3].instances.labels
    )
