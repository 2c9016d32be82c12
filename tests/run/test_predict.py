"""`python -m mdlib predict`: new pictures through a run's networks, and what it says of a bad
picture or run.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from stages import write_manifest

from mdlib import __main__
from mdlib.core.files import read_json, write_array, write_json
from mdlib.core.label_map import read_label_map
from mdlib.core.mask import Mask, read_masks
from mdlib.core.weights import save_weights
from mdlib.data.images import read_image
from mdlib.method import detector, segmenter
from mdlib.run import predict
from mdlib.run.artifacts import RunArtifacts

# of three clusters; the second has no name
CLASSES, NAMES = ["background", "cat", "dog"], [2, -1, 1]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose networks have random weights: enough for every contract."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    artifacts = folder / "artifacts"
    for name in ("02_cluster_masks", "03_train_mask_rcnn", "05_train_deeplab"):
        write_manifest(folder, name)
    clusters = {"k": 3, "crop_side": 16, "names": NAMES, "class_names": CLASSES}
    write_json(artifacts / "02_cluster_masks" / "clusters.json", clusters)
    write_array(artifacts / "02_cluster_masks" / "centres.npy", np.zeros((3, 4), np.float32))
    write_array(artifacts / "02_cluster_masks" / "deviation.npy", np.ones(4, np.float32))
    found = detector.build_detector(
        "vit", weights=None, trainable_blocks=0, num_clusters=3, shorter_sides=(64,)
    )
    header = {
        "architecture": {
            "network": "mask_rcnn",
            "backbone": "vit",
            "num_clusters": 3,
            "shorter_side": 64,
        }
    }
    save_weights(
        artifacts / "03_train_mask_rcnn" / "detector.safetensors", found.state_dict(), header=header
    )
    drawn = segmenter.build_segmenter("vit", weights=None, trainable_blocks=0, outputs=4)
    header = {
        "architecture": {"network": "deeplab_v3", "backbone": "vit", "outputs": 4, "side": 64}
    }
    save_weights(
        artifacts / "05_train_deeplab" / "segmenter.safetensors", drawn.state_dict(), header=header
    )
    return folder


@pytest.fixture
def pictures(tmp_path, rng):
    """A folder with a nested picture of the same name, a non-ASCII name, a grey one, and a text
    file that is none.
    """
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for path, shape in (("a.png", (40, 60, 3)), ("more/a.png", (64, 48, 3)), ("zoë.png", (50, 50))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / path)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_every_picture_gets_maps_an_overlay_and_its_instances(run_dir, pictures, tmp_path):
    out = tmp_path / "out"
    assert __main__.main(["predict", str(pictures), "--run", str(run_dir), "--out", str(out)]) == 0
    names = {"a", "more__a", "zoë"}
    for kind in ("clusters", "maps", "overlays"):
        assert {path.stem for path in (out / kind).iterdir()} == names
    clusters, named = (read_label_map(out / kind / "a.png") for kind in ("clusters", "maps"))
    assert clusters.shape == (40, 60) and clusters.max() <= 3
    # the cluster without a name is void
    np.testing.assert_array_equal(named, np.array([0, 2, 255, 1])[clusters])
    assert Image.open(out / "overlays" / "more__a.png").size == (48, 64)


def test_a_model_in_memory_predicts_what_is_written(run_dir, pictures, tmp_path):
    out = tmp_path / "out"
    predict.run([pictures], run_dir=run_dir, out=out)
    model = predict.MaskDistill.from_run(RunArtifacts(run_dir))
    ids = ["a", "more__a", "zoë"]
    written = read_masks(out / "instances.json").by_image(ids)
    assert any(written)
    for image_id, file, expected in zip(ids, ("a", "more/a", "zoë"), written, strict=True):
        image = read_image(pictures / f"{file}.png")
        labels, masks = model.predict(image, image_id=image_id)
        assert masks == expected
        stored = read_label_map(out / "clusters" / f"{image_id}.png")
        np.testing.assert_array_equal(labels, stored)
        np.testing.assert_array_equal(model.labels(image), stored)


def test_instances_are_coco(run_dir, pictures, tmp_path):
    predict.run([pictures], run_dir=run_dir, out=tmp_path / "out")
    content = read_json(tmp_path / "out" / "instances.json")
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert [image["file_name"] for image in content["images"]] == [
        str(pictures / name) for name in ("a.png", "more/a.png", "zoë.png")
    ]
    assert [c["name"] for c in content["categories"]] == [
        "dog (cluster 0)",
        "unnamed (cluster 1)",
        "cat (cluster 2)",
    ]
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    for annotation in content["annotations"]:
        mask = Mask("", annotation["segmentation"]).pixels()
        x, y, width, height = annotation["bbox"]
        assert mask.sum() == annotation["area"] == mask[y : y + height, x : x + width].sum()
        assert 1 <= annotation["category_id"] <= 3 and 0 <= annotation["score"] <= 1


def test_a_broken_picture_is_reported_and_the_rest_is_done(run_dir, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:200])
    assert (
        __main__.main(
            ["predict", str(pictures), "--run", str(run_dir), "--out", str(tmp_path / "out")]
        )
        == 2
    )
    assert "broken.png" in capsys.readouterr().out
    assert len(read_json(tmp_path / "out" / "instances.json")["images"]) == 3


@pytest.mark.parametrize("given", ["nowhere", "empty"])
def test_no_picture_is_an_error(run_dir, tmp_path, given, capsys):
    (tmp_path / "empty").mkdir()
    assert __main__.main(["predict", str(tmp_path / given), "--run", str(run_dir)]) == 2
    assert given in capsys.readouterr().err


def test_a_run_without_a_segmenter_says_what_to_run(tmp_path, pictures, capsys):
    (tmp_path / "artifacts").mkdir()
    assert __main__.main(["predict", str(pictures), "--run", str(tmp_path)]) == 2
    assert "02_cluster_masks has not run" in capsys.readouterr().err


def test_two_files_of_one_name_do_not_overwrite_each_other(run_dir, pictures, tmp_path):
    out = tmp_path / "out"
    predict.run([pictures / "a.png", pictures / "more" / "a.png"], run_dir=run_dir, out=out)
    names = [path.stem for path in (out / "maps").iterdir()]
    assert len(names) == 2 and all(name.startswith("a~") for name in names)
