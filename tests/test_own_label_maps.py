"""A folder of pictures with one's own label maps: what needs maps is scored, what needs objects is
left out with a sentence that is true.

The chain runs cell by cell in this process, with networks of three steps: that numbers are there
and where they come from is tested, not how good they are.
"""

import contextlib
import io
import shutil

import fixtures
import numpy as np
import pytest
from cells import run_cells
from test_data_runs import EVERY_IMAGE, TINY

from mdlib.core.files import read_json, write_json
from mdlib.core.label_map import write_label_map
from mdlib.data.voc import CLASSES
from mdlib.run import presets, report, stage
from mdlib.run.artifacts import RunArtifacts
from mdlib.run.metric_names import MEANINGS

NOTEBOOKS = [name for name in presets.load_preset("folder").notebooks if name[0] == "0"]
NOTEBOOKS += ["12_report"]
OBJECTS = "train: semantic maps alone: no objects, so what needs objects is left out"


@pytest.fixture(scope="module")
def run(tmp_path_factory, zoo_root):
    """(folder of the run, {notebook: its manifest}, {notebook: what it printed})."""
    root, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("run")
    for number, (image, masks, labels) in enumerate(fixtures.scenes(zoo_root, "train", 12)):
        fixtures.write_jpeg(root / "images" / f"{number:02}.jpg", image)
        semantic, _ = fixtures.label_maps(masks, labels, void=True)
        write_label_map(root / "masks" / f"{number:02}.png", semantic)
    fixtures.write_lines(root / "classes.txt", list(CLASSES[1:]))
    data = {"dataset": "folder", "data_root": str(root), "dev_split": None, "val_split": None}
    values = {**TINY, "00_prepare_data": {**data, **EVERY_IMAGE}}
    write_json(out / "artifacts" / "run.json", {"preset": "own"})
    manifests, said = {}, {}
    for name in NOTEBOOKS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            manifests[name] = run_cells(name, out, **values.get(name, {}))
        said[name] = printed.getvalue()
    return out, manifests, said


def test_every_number_that_needs_maps_alone_is_there(run):
    _, manifests, _ = run
    wanted = {
        "02_cluster_masks": {"cluster_accuracy", "cluster_accuracy_shuffled", "cluster_nmi"},
        "04_filter_masks": {"pseudo_miou", "pseudo_miou_unfiltered", "pseudo_miou_all_scores"},
        "07_evaluate_clusters": {
            "miou_clustering_train",
            "miou_supervised_train",
            "masks_miou_clustering_train",
        },
    }
    for name, metrics in wanted.items():
        assert metrics <= manifests[name]["metrics"].keys(), name
    everything = {m: v for each in manifests.values() for m, v in each["metrics"].items()}
    assert everything.keys() <= MEANINGS.keys()
    assert 0.3 < everything["cluster_accuracy"] <= 1  # the names are those of the maps


def test_no_number_is_named_after_pictures_that_are_not_there_or_needs_objects(run):
    _, manifests, _ = run
    everything = [name for each in manifests.values() for name in each["metrics"]]
    assert not [name for name in everything if "mask_iou" in name or "ap50" in name]
    evaluated = manifests["07_evaluate_clusters"]["metrics"]
    assert evaluated and all(name.endswith("_train") for name in evaluated)


def test_what_is_printed_is_true(run):
    _, manifests, said = run
    for name in ("01_distill_masks", "03_train_mask_rcnn", "04_filter_masks"):
        assert OBJECTS in said[name]
    assert not [name for name in said if "no label maps" in said[name]]
    assert "clusters are named on the scored pictures" in said["07_evaluate_clusters"]
    assert manifests["08_probe_linearly"]["skipped"].startswith("no labels on val: a probe learns")
    assert manifests["09_evaluate_instances"]["skipped"].startswith("no labels of objects")
    assert [n for n in NOTEBOOKS if "skipped" in manifests[n]] == [
        "08_probe_linearly",
        "09_evaluate_instances",
    ]


def test_clusters_have_the_names_of_the_maps_and_the_report_has_the_numbers(run):
    out, manifests, _ = run
    artifacts = RunArtifacts(out)
    assert artifacts.clusters().classes == CLASSES
    true = artifacts.clusters().mask_classes
    present = {c for s in artifacts.dataset("train") for c in np.unique(s.semantic)} - {0, 255}
    assert true is not None and set(true) - {0} <= present
    report.write(out, presets.Preset(description="own maps", notebooks=NOTEBOOKS))
    stored = read_json(out / "metrics.json")["metrics"]
    assert (
        stored["miou_clustering_train"]
        == (manifests["07_evaluate_clusters"]["metrics"]["miou_clustering_train"])
    )


def test_studies_of_objects_and_of_choices_say_why_they_do_nothing(run, tmp_path):
    out, _, _ = run
    copy = shutil.copytree(out, tmp_path / "run")
    for name in ("10_compare_priors", "11_ablate", "13_test_claims"):
        assert run_cells(name, copy)["skipped"].startswith("no labels ")


def test_the_export_is_the_stages_own_until_it_is_finished_and_names_are_text(run, tmp_path):
    """Names that would be tags, formulas or two lines, two of them alike."""
    out, _, _ = run
    copy = shutil.copytree(out, tmp_path / "run")
    given = {0: "<script>alert(1)</script>", 1: r"$\frac{1}$", 2: "a\nb | c", 3: "a b | c", 4: "_"}
    write_json(tmp_path / "names.json", {str(j): name for j, name in given.items()})
    values = {"names": str(tmp_path / "names.json"), "k_runs": 1, "k_tried": 2}
    manifest = run_cells("A2_your_own_images", copy, **values)
    assert {"export/classes.txt", "export/masks.json"} <= manifest["outputs"].keys()
    assert len(manifest["figures"]) == 4  # each was drawn
    lines = (copy / "export" / "classes.txt").read_text(encoding="utf-8").split("\n")
    assert lines[:-1] == ["background", given[0], given[1], "a b | c", "a b | c (cluster 3)", "_"]
    assert len(list((copy / "export" / "maps").glob("*.png"))) == 12
    sheet = (copy / "export" / "contact_sheet.html").read_text(encoding="utf-8")
    assert "<script" not in sheet and "&lt;script&gt;" in sheet
    notebooks = [*NOTEBOOKS, "A2_your_own_images"]
    report.write(copy, presets.Preset(description="own maps", notebooks=notebooks))
    assert "export/contact_sheet.html" in (copy / "index.html").read_text(encoding="utf-8")


def test_an_export_made_before_the_networks_is_out_of_date_after_them(run, tmp_path):
    out, _, _ = run
    copy = tmp_path / "run"
    for name in NOTEBOOKS[:3]:
        shutil.copytree(out / "artifacts" / name, copy / "artifacts" / name)
    values = {"k_runs": 1, "k_tried": 2}
    run_cells("A2_your_own_images", copy, **values)
    assert stage.unfit(copy, "A2_your_own_images") is None
    for name in NOTEBOOKS[3:7]:
        shutil.copytree(out / "artifacts" / name, copy / "artifacts" / name)
    assert "A2_your_own_images was made before" in stage.unfit(copy, "A2_your_own_images")
