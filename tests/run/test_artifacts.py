"""The read side of a run, on a small run folder that is written by hand."""

import shutil

import numpy as np
import pytest
import torch
from stages import opened, seal, write_manifest

from mdlib.core.files import StoreError, read_json, write_array, write_json
from mdlib.core.label_map import write_label_map
from mdlib.core.mask import Mask, Masks, write_masks
from mdlib.core.weights import save_weights
from mdlib.method import segmenter
from mdlib.method.crf import CrfSettings
from mdlib.run.artifacts import STAGES, RunArtifacts

# two images of train and one of val, of two clusters; the second has no class
IDS = {"train": ("train_00000", "train_00001"), "val": ("val_00000",)}
SIDE = 128
SIZES = {role: dict.fromkeys(ids, (SIDE, SIDE)) for role, ids in IDS.items()}
RULE = {"threshold": 0.5, "overlap": "skip"}
CRF = {
    "steps": 3,
    "gaussian_sxy": 1.0,
    "gaussian_compat": 3.0,
    "bilateral_sxy": 17.0,
    "bilateral_srgb": 13.0,
    "bilateral_compat": 6.0,
}


def mask(image_id, start, *, score=1.0, cluster=None):
    pixels = np.zeros((SIDE, SIDE), bool)
    pixels[start : start + 20, start : start + 30] = True
    return Mask.from_pixels(pixels, image_id=image_id, score=score, cluster=cluster)


FOUND = {
    "train": [mask("train_00000", 0), mask("train_00000", 50), mask("train_00001", 9)],
    "val": [mask("val_00000", 30)],
}
CLUSTERS = {"train": [1, 0, 1], "val": [0]}
CLUSTERED = {role: Masks(FOUND[role]).with_clusters(CLUSTERS[role]) for role in FOUND}
PREDICTED = {
    "train": [
        mask("train_00000", 5, score=0.9, cluster=1),
        mask("train_00000", 60, score=0.2, cluster=0),
    ],
    "val": [mask("val_00000", 40, score=0.3, cluster=0)],
}


def write_stage(run_dir, number, **parameters):
    """The folder of a stage that has run."""
    return write_manifest(run_dir, STAGES[number], parameters=parameters)


def write_segmenter(folder, *, side, value):
    """A DeepLab whose first bias is `value`, and its logits of val, all `value`."""
    torch.manual_seed(0)
    model = segmenter.build_segmenter("vit", weights=None, trainable_blocks=0, outputs=3)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("bias"))[0] = value
    architecture = {"network": "deeplab_v3", "backbone": "vit", "outputs": 3, "side": side}
    header = {"architecture": architecture}
    save_weights(folder / "segmenter.safetensors", model.state_dict(), header=header)
    logits = np.zeros((1, 3, 4, 4), np.float16)
    logits[:, 2] = value
    write_array(folder / "segmenter_val.npy", logits)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run without stage 06."""
    run_dir = tmp_path_factory.mktemp("run")
    folder = write_stage(run_dir, "00", dataset="zoo")
    role = {"labels": "masks", "left_out": []}
    splits = {
        "train": role | {"split": "train", "count": 2, "ids": ["train_00000", "train_00001"]},
        "val": role | {"split": "val", "count": 1, "ids": ["val_00000"], "labels": "none"},
    }
    index = {"dataset": "zoo", "root": "data/zoo", "classes": ["background", "cat"]}
    write_json(folder / "index.json", index | {"splits": splits})
    folder = write_stage(run_dir, "01", encoder_name="zoo", weights="random", input_side=64)
    for name, masks in FOUND.items():
        write_masks(folder / f"masks_{name}.json", masks, images=SIZES[name])
    folder = write_stage(run_dir, "02")
    write_json(
        folder / "clusters.json",
        {"k": 2, "crop_side": 32, "class_names": ["background", "cat"], "names": [1, -1]}
        | {"classes": [1, 0, 1]},
    )
    write_array(folder / "centres.npy", np.eye(2, 4, dtype=np.float32))
    write_array(folder / "centres_by_seed.npy", np.zeros((3, 2, 4), np.float32))
    write_array(folder / "deviation.npy", np.full(4, 2, np.float32))
    write_array(folder / "features_train.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    folders = {"train": folder, "val": write_stage(run_dir, "07")}
    for name, masks in CLUSTERED.items():
        path = folders[name] / f"masks_{name}.json"
        write_masks(path, masks, images=SIZES[name], categories=("a", "b"))
    folder = write_stage(run_dir, "03")
    for name, masks in PREDICTED.items():
        path = folder / f"predictions_{name}.json"
        write_masks(path, masks, images=SIZES[name], categories=("a", "b"))
    folder = write_stage(run_dir, "04", **RULE)
    for i, image_id in enumerate(IDS["train"]):
        write_label_map(folder / "train" / f"{image_id}.png", np.full((SIDE, SIDE), i, np.uint8))
    folder = write_stage(run_dir, "05")
    write_segmenter(folder, side=64, value=1)
    twin = np.zeros((1, 3, 4, 4), np.float16)
    twin[:, 1] = 1
    write_array(folder / "supervised_val.npy", twin)
    seal(run_dir)
    return run_dir


def probe(run_dir):
    """Add a stage 08 to a run, with the logits of its probe."""
    logits = np.zeros((1, 3, 4, 4), np.float16)
    logits[:, 0] = 1
    write_array(write_stage(run_dir, "08") / "probe_val.npy", logits)
    seal(run_dir)


def refine(run_dir, *, options=CRF, trained=False):
    """Add a stage 06 to a run, with a further segmenter if it trained one."""
    folder = write_stage(run_dir, "06")
    write_json(folder / "crf.json", {"parameters": options, "rounds": 1})
    write_label_map(folder / "val" / "val_00000.png", np.full((SIDE, SIDE), 2, np.uint8))
    if trained:
        write_segmenter(folder, side=96, value=5)
    seal(run_dir)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


# name of a reader: (how it is called, the stages that it reads)
READERS = {
    "index": (lambda run: run.index, ["00"]),
    "roles": (lambda run: run.roles, ["00"]),
    "classes": (lambda run: run.classes, ["00"]),
    "dataset": (lambda run: run.dataset("train"), ["00"]),
    "labelled": (lambda run: run.labelled_roles(), ["00"]),
    "mapped": (lambda run: run.mapped_roles(), ["00"]),
    "settings": (lambda run: run.settings("04"), ["04"]),
    "seconds": (lambda run: run.seconds("03"), ["03"]),
    "masks": (lambda run: run.masks("train"), ["01"]),
    "train's clustered masks": (lambda run: run.clustered_masks("train"), ["02"]),
    "val's clustered masks": (lambda run: run.clustered_masks("val"), ["07"]),
    "clusters": (lambda run: run.clusters(), ["02"]),
    "centres by seed": (lambda run: run.centres_by_seed(), ["02"]),
    "features": (lambda run: run.features(), ["02"]),
    "predictions": (lambda run: run.predictions("val"), ["03"]),
    "pseudo maps": (lambda run: run.pseudo_maps(), ["00", "04"]),
    "segmenter's folder": (lambda run: run.segmenter_folder(), ["05", "06"]),
    "logits": (lambda run: run.logits("val"), ["05", "06"]),
    "the twin's logits": (lambda run: run.logits("val", "supervised"), ["05"]),
    "are there logits": (lambda run: run.has_logits("val", "supervised"), ["05"]),
    "predicted maps": (lambda run: list(run.predicted_maps("val")), ["00", "05", "06"]),
    "refined maps": (lambda run: run.refined_maps("val"), ["00", "06"]),
    "crf": (lambda run: run.crf(), ["06"]),
    "encoder": (lambda run: run.encoder("01"), ["01"]),
    "segmenter": (lambda run: run.segmenter(), ["05", "06"]),
}


@pytest.mark.parametrize("name", READERS)
def test_each_reader_asks_for_each_stage_that_it_reads_and_no_other(copied, name):
    refine(copied)
    read, stages = READERS[name]
    stage = opened(copied, "11_ablate")
    read(RunArtifacts(copied, stage=stage))
    assert sorted(stage.inputs) == [STAGES[number] for number in stages]


# a finished run may lack stage 06
@pytest.mark.parametrize("name", sorted(READERS.keys() - {"crf", "refined maps"}))
def test_a_stage_that_has_not_run_is_named(tmp_path, name):
    read, stages = READERS[name]
    with pytest.raises(StoreError, match=r"stage (\w+) has not run") as raised:
        read(RunArtifacts(tmp_path))
    assert any(STAGES[number] in str(raised.value) for number in stages)


def test_what_is_read_through_a_stage_is_its_input(copied, monkeypatch):
    monkeypatch.setenv("MDLIB_BATCH", "1")
    stage = opened(copied, "11_ablate")
    assert stage.inputs == {} and len(stage.run.predictions("val")) == 1
    stage.run.clusters()
    assert stage.inputs.keys() == {STAGES["03"], STAGES["02"]}
    with pytest.raises(StoreError, match="06_refine_with_crf has not run"):  # no silent default
        stage.run.crf()


# ---------------------------------------------------------------- what they read


@pytest.fixture(scope="module")
def run(finished):
    return RunArtifacts(finished)


def test_data(run, zoo_root):
    assert run.roles == ("train", "val") and run.classes == ("background", "cat")
    train = run.dataset("train")
    assert train.ids == IDS["train"] and run.dataset("train", first=1).ids == IDS["train"][:1]
    assert run.labelled_roles() == run.mapped_roles() == {"train"}
    assert run.split("dev").ids[0] == "dev_00000"
    with pytest.raises(StoreError, match="no dev images"):
        run.dataset("dev")


def test_masks_and_clusters(run):
    for role, masks in FOUND.items():
        assert list(run.masks(role)) == masks
        assert list(run.clustered_masks(role)) == list(CLUSTERED[role])
    found = run.clusters()
    assert (found.k, found.crop_side, found.classes) == (2, 32, ("background", "cat"))
    assert found.centres.shape == (2, 4) and found.deviation.tolist() == [2] * 4
    assert found.cluster_to_class.tolist() == [0, 1, -1]
    assert found.mask_classes.tolist() == [1, 0, 1]
    assert run.centres_by_seed().shape == (3, 2, 4)
    assert run.features().tolist() == np.arange(12).reshape(3, 4).tolist()


def test_clusters_of_a_run_without_labels_have_no_true_classes(copied):
    path = copied / "artifacts" / STAGES["02"] / "clusters.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "classes"})
    seal(copied)
    assert RunArtifacts(copied).clusters().mask_classes is None


def test_a_mask_keeps_its_cluster_whatever_the_order_of_its_file(copied):
    path = copied / "artifacts" / STAGES["02"] / "masks_train.json"
    content = read_json(path)
    content["annotations"].reverse()
    content["images"].reverse()
    write_json(path, content)
    seal(copied)
    run = RunArtifacts(copied)
    assert list(run.clustered_masks("train")) == list(CLUSTERED["train"])[::-1]
    clustered = {(m.image_id, m.box): m.cluster for m in run.clustered_masks("train")}
    assert [clustered[m.image_id, m.box] for m in run.masks("train")] == CLUSTERS["train"]


def test_predictions_and_label_maps(run):
    assert list(run.predictions("train")) == PREDICTED["train"]
    stored = run.pseudo_maps()
    assert len(stored) == 2 and [int(labels.max()) for labels in stored] == [0, 1]


def test_a_finished_run_without_a_crf(run, finished):
    assert RunArtifacts(finished).refined_maps("val") is None  # nothing was read before
    assert not run.has("06") and run.has("05")
    assert run.refined_maps("val") is None and run.crf() is None
    assert run.segmenter_folder() == finished / "artifacts" / STAGES["05"]
    assert run.logits("val")[0, 2].max() == 1 and run.logits("val", "supervised")[0, 1].max() == 1
    ours, twins = (next(run.predicted_maps("val", name)) for name in ("segmenter", "supervised"))
    assert ours.shape == (SIDE, SIDE) and (ours == 2).all() and (twins == 1).all()
    model, side = run.segmenter()
    assert side == 64 and not model.training


def test_a_run_with_a_crf_has_its_maps_and_the_segmenter_of_stage_05(copied):
    refine(copied)
    run = RunArtifacts(copied)
    assert run.crf() == CrfSettings(**CRF)
    (refined,) = run.refined_maps("val")
    assert (refined == 2).all() and refined.shape == (SIDE, SIDE)
    assert run.segmenter_folder().name == STAGES["05"]


def test_the_twin_is_refined_where_stage_06_refined_it(copied):
    refine(copied)
    assert RunArtifacts(copied).refined_maps("val", "supervised") is None
    folder = copied / "artifacts" / STAGES["06"]
    write_label_map(folder / "val-supervised" / "val_00000.png", np.full((SIDE, SIDE), 1, np.uint8))
    seal(copied)
    (refined,) = RunArtifacts(copied).refined_maps("val", "supervised")
    assert (refined == 1).all()


def test_the_probe_is_stage_08s_where_it_ran(copied):
    assert not RunArtifacts(copied).has_logits("val", "probe")
    assert not RunArtifacts(copied).has_logits("train", "supervised")
    probe(copied)
    run = RunArtifacts(copied)
    assert run.has_logits("val", "probe") and run.logits("val", "probe")[0, 0].max() == 1
    (labels,) = run.predicted_maps("val", "probe")
    assert not labels.any()


def test_a_stage_06_that_left_its_crf_out_has_no_refined_maps(copied):
    refine(copied, options=None)
    run = RunArtifacts(copied)
    assert run.crf() is None and run.refined_maps("val") is None


def test_the_last_segmenter_is_that_of_stage_06_where_it_trained_one(copied):
    refine(copied, trained=True)
    run = RunArtifacts(copied)
    assert run.segmenter_folder().name == STAGES["06"]
    assert run.logits("val")[0, 2].max() == 5 and run.segmenter()[1] == 96
    assert run.logits("val", "supervised")[0, 1].max() == 1  # the twin is always 05's


def test_the_seconds_are_those_of_the_manifest(copied):
    write_manifest(copied, STAGES["03"], seconds=12.5)
    seal(copied)
    assert RunArtifacts(copied).seconds("03") == 12.5


def test_the_encoder_is_the_one_that_the_stage_ran_with(run):
    assert run.settings("01")["input_side"] == 64
    assert run.encoder("01").patch > 0
