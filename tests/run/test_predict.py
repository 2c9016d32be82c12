"""`python -m mdlib predict`: new pictures through a run's networks, and what it says of a bad
picture or run.
"""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from stages import seal, write_manifest

from mdlib import __main__
from mdlib.core.files import StoreError, read_json, write_array, write_json
from mdlib.core.label_map import read_label_map
from mdlib.core.lock import Lock
from mdlib.core.mask import Mask, read_masks
from mdlib.core.paths import ROOT
from mdlib.core.weights import save_weights
from mdlib.data.images import read_image
from mdlib.method import detector, segmenter
from mdlib.run import identity, predict
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
    seal(folder)
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


# ---------------------------------------------------------------- one bad picture


def images_of(out):
    """The names of instances.json's images."""
    return [image["name"] for image in read_json(out / "instances.json")["images"]]


def test_whatever_is_wrong_with_a_picture_is_one_line(run_dir, pictures, tmp_path, capsys):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff"
    image = Image.fromarray(np.zeros((20, 20, 3), np.uint8))
    image.save(pictures / "exif.jpg", exif=exif)
    (pictures / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(pictures / "pipe.png")
    image.save(pictures / f"{'n' * 240}.png")
    image.save(pictures / "two\nlines.png")
    bad = [pictures / "script.jpg", pictures / "pipe.png"]  # the pipe as a file that is given
    failed = predict.run([pictures, *bad], run_dir=run_dir, out=tmp_path / "out")
    said = capsys.readouterr().out
    assert failed == said.count("skipped: ") and failed in (2, 3)  # Pillow may read such an EXIF
    assert "pipe.png: no regular file" in said and "script.jpg: not a whole picture" in said
    names = images_of(tmp_path / "out")
    assert len(names) == 8 - failed and {"a", "more__a", "zoë"} < set(names)
    kept = {path.stem for path in (tmp_path / "out" / ".parts").iterdir()}
    assert kept == set(names)  # only the others are predicted once they are mended


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EACCES, "not allowed")])
def test_a_picture_that_fails_alone_does_not_stop_the_others(
    run_dir, pictures, tmp_path, monkeypatch, capsys, error
):
    def write(path, labels, write=predict.write_label_map):
        if path.stem == "a":
            raise error
        write(path, labels)

    monkeypatch.setattr(predict, "write_label_map", write)
    assert predict.run([pictures], run_dir=run_dir, out=tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert f"skipped: {pictures / 'a.png'}: {type(error).__name__}" in said
    assert images_of(tmp_path / "out") == ["more__a", "zoë"]


def test_a_full_disk_stops_and_a_second_start_goes_on(
    run_dir, pictures, tmp_path, monkeypatch, capsys
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict.run([pictures], run_dir=run_dir, out=whole)

    def write(path, labels, write=predict.write_label_map):
        if path.stem == "zoë":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, labels)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "write_label_map", write)
        with pytest.raises(StoreError, match=r"No space .* 2 of 3 pictures are kept"):
            predict.run([pictures], run_dir=run_dir, out=out)
    assert not (out / "instances.json").exists()
    capsys.readouterr()
    seen = []
    image = predict.PictureFiles.image
    with monkeypatch.context() as patch:
        patch.setattr(
            predict.PictureFiles,
            "image",
            lambda self, i: seen.append(self.ids[i]) or image(self, i),
        )
        assert predict.run([pictures], run_dir=run_dir, out=out) == 0
    assert seen == ["zoë"] and "2 of 3 are there already" in capsys.readouterr().out
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert not (out / ".parts").exists()


def killed(run_dir, pictures, out, monkeypatch):
    """A prediction that is killed when all pictures are done, before instances.json."""
    with monkeypatch.context() as patch:
        patch.setattr(predict, "write_masks", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict.run([pictures], run_dir=run_dir, out=out)


def edited(path, **values):
    """A part with other values."""
    write_json(path, read_json(path) | values)


PART_CHANGES = {
    "torn": lambda path: path.write_text("{"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("7"),
    "no size": lambda path: write_json(path, {"digest": read_json(path)["digest"]}),
    "size": lambda path: edited(path, size=[1, 1]),
    "masks": lambda path: edited(path, masks=[{"foo": 1}]),
    "no masks": lambda path: edited(path, masks=None),
    "another's": lambda path: shutil.copy(path.with_name("zoë.json"), path),
}


@pytest.mark.parametrize("change", PART_CHANGES)
def test_a_part_that_was_edited_is_made_again(
    run_dir, pictures, tmp_path, monkeypatch, capsys, change
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict.run([pictures], run_dir=run_dir, out=whole)
    killed(run_dir, pictures, out, monkeypatch)
    PART_CHANGES[change](out / ".parts" / "a.json")
    capsys.readouterr()
    assert predict.run([pictures], run_dir=run_dir, out=out) == 0
    assert "2 of 3 are there already" in capsys.readouterr().out
    assert (out / "instances.json").read_bytes() == (whole / "instances.json").read_bytes()


def test_a_picture_that_is_replaced_while_it_is_predicted_is_predicted_again(
    run_dir, pictures, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"

    def write(path, labels, write=predict.write_label_map):
        Image.fromarray(np.full((50, 50, 3), 9, np.uint8)).save(pictures / "a.png")
        write(path, labels)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "write_label_map", write)
        killed(run_dir, pictures, out, monkeypatch)
    capsys.readouterr()
    assert predict.run([pictures], run_dir=run_dir, out=out) == 0
    assert "2 of 3 are there already" in capsys.readouterr().out
    assert read_label_map(out / "maps" / "a.png").shape == (50, 50)


@pytest.mark.parametrize("change", ["picture", "run", "code", "versions", "map", "torn map"])
def test_what_has_changed_is_predicted_again(
    run_dir, pictures, tmp_path, monkeypatch, capsys, change
):
    out = tmp_path / "out"
    killed(run_dir, pictures, out, monkeypatch)
    if change == "picture":
        Image.fromarray(np.full((40, 60, 3), 9, np.uint8)).save(pictures / "a.png")
    elif change == "run":
        monkeypatch.setattr(predict.MaskDistill, "digest", lambda _: "another")
    elif change == "map":
        (out / "maps" / "a.png").unlink()
    elif change == "torn map":
        (out / "maps" / "a.png").write_bytes(b"")
    elif change == "code":
        monkeypatch.setattr(predict, "library_digest", lambda _: "another")
    else:
        monkeypatch.setattr(predict, "versions", lambda: {"torch": "another"})
    capsys.readouterr()
    assert predict.run([pictures], run_dir=run_dir, out=out) == 0
    said = capsys.readouterr().out
    assert ("2 of 3 are there already" in said) == (change not in ("run", "code", "versions"))
    assert images_of(out) == ["a", "more__a", "zoë"]
    assert "\na: " in f"\n{said}"


def test_the_code_of_a_prediction_is_all_that_it_computes_with(monkeypatch):
    asked, module = [], identity._module
    monkeypatch.setattr(
        identity, "_module", lambda path, time: asked.append(path) or module(path, time)
    )
    before = identity.library_digest("mdlib.run.predict")
    files = {path.relative_to(ROOT / "mdlib").with_suffix("").as_posix() for path in asked}
    computing = {"method/detector", "method/segmenter", "method/crf", "data/images", "run/predict"}
    assert computing < files
    for name in computing:  # another code of each is another digest
        path = ROOT / "mdlib" / f"{name}.py"
        monkeypatch.setattr(
            identity,
            "_module",
            lambda p, time, path=path: (
                ("changed", module(p, time)[1]) if p == path else module(p, time)
            ),
        )
        assert identity.library_digest("mdlib.run.predict") != before


def test_networks_of_other_weights_are_another_run(run_dir):
    model = predict.MaskDistill.from_run(RunArtifacts(run_dir))
    before = model.digest()
    assert before == predict.MaskDistill.from_run(RunArtifacts(run_dir)).digest()
    with torch.no_grad():
        next(model.segmenter.parameters()).flatten()[0] += 1
    assert model.digest() != before


# ---------------------------------------------------------------- inputs and outputs


def test_results_are_no_pictures(run_dir, pictures):
    for _ in range(2):  # the second time they lie among the pictures
        assert predict.run([pictures], run_dir=run_dir, out=pictures / "out") == 0
        assert images_of(pictures / "out") == ["a", "more__a", "zoë"]
    shutil.rmtree(pictures / "out")
    for _ in range(2):
        assert predict.run([pictures], run_dir=run_dir, out=pictures) == 0
        assert images_of(pictures) == ["a", "more__a", "zoë"]


def test_the_files_of_the_run_are_no_pictures(run_dir, tmp_path):
    own = shutil.copytree(run_dir, tmp_path / "run")
    (own / "figures").mkdir()
    for path in (own / "figures" / "00-gallery.png", tmp_path / "photo.png", own / "b.png"):
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path)
    for given, names in ((tmp_path, ["photo"]), (own, ["b"])):
        predict.run([given], run_dir=own, out=None)
        assert images_of(own / "predictions") == names
        shutil.rmtree(own / "predictions")


@pytest.mark.parametrize("given", ["maps", "maps/a.png", "link"])
def test_no_picture_is_replaced_by_its_map(run_dir, pictures, given):
    (pictures / "maps").mkdir()
    (pictures / "a.png").rename(pictures / "maps" / "a.png")
    (pictures / "link").symlink_to(pictures / "maps")
    before = (pictures / "maps" / "a.png").read_bytes()
    with pytest.raises(StoreError, match=r"a.png is one of the pictures.*choose another --out"):
        predict.run([pictures / given], run_dir=run_dir, out=pictures)
    assert (pictures / "maps" / "a.png").read_bytes() == before
    assert not (pictures / "clusters").exists()
    with pytest.raises(StoreError, match="holds maps that no prediction wrote"):
        predict.run([pictures / "zoë.png"], run_dir=run_dir, out=pictures)


EDITED = '{"info": {"description": "masks by MaskDistill"}, "images": [{"id": 1}]}'


@pytest.mark.parametrize(
    "content", ['{"my": "annotations"}', "[]", "no JSON", '{"info": []}', EDITED]
)
def test_a_file_of_instances_of_somebody_else_is_not_replaced(run_dir, pictures, content):
    (pictures / "instances.json").write_text(content)
    for _ in range(2):
        with pytest.raises(
            StoreError, match=r"instances.json was not written by `predict`: choose another"
        ):
            predict.run([pictures / "a.png"], run_dir=run_dir, out=pictures)
        (pictures / "maps").mkdir(exist_ok=True)
    assert (pictures / "instances.json").read_text() == content


def test_two_predictions_into_one_folder_do_not_meet(run_dir, pictures, tmp_path):
    with (
        Lock(tmp_path / "out" / ".predict.lock").held(busy="{who}"),
        pytest.raises(StoreError, match=r"another prediction \(process \d+.*\) works in"),
    ):
        predict.run([pictures], run_dir=run_dir, out=tmp_path / "out")
    assert predict.run([pictures], run_dir=run_dir, out=tmp_path / "out") == 0


@pytest.fixture
def others(tmp_path):
    """Pictures of another folder, one with the name of one of `pictures`."""
    folder = tmp_path / "others"
    folder.mkdir()
    for name in ("a", "z"):
        Image.fromarray(np.full((30, 30, 3), 99, np.uint8)).save(folder / f"{name}.png")
    return folder


def test_results_of_other_pictures_stay(run_dir, pictures, others, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict.run([pictures], run_dir=run_dir, out=out)
    before = (out / "maps" / "a.png").read_bytes()
    for given in ([others], [others / "z.png"], [pictures / "a.png"], [pictures, others]):
        with pytest.raises(StoreError, match=r"results of \d other pictures.*another --out"):
            predict.run(given, run_dir=run_dir, out=out)
    assert (out / "maps" / "a.png").read_bytes() == before and len(images_of(out)) == 3
    monkeypatch.chdir(tmp_path)  # the same pictures in other words, and one more
    given = [pictures.relative_to(tmp_path), others / "z.png"]
    assert predict.run(given, run_dir=run_dir, out=out) == 0
    assert images_of(out) == ["a", "more__a", "zoë", "z"]


def test_parts_of_other_pictures_stay(run_dir, pictures, others, tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed(run_dir, pictures, out, monkeypatch)
    assert predict.run([others / "z.png"], run_dir=run_dir, out=out) == 0
    assert {path.stem for path in (out / ".parts").iterdir()} == {"a", "more__a", "zoë"}
    assert images_of(out) == ["z"]


def test_where_nothing_can_be_predicted_the_earlier_results_stay(run_dir, pictures, tmp_path):
    out = tmp_path / "out"
    predict.run([pictures / "a.png"], run_dir=run_dir, out=out)
    (pictures / "a.png").write_bytes(b"broken")
    assert predict.run([pictures / "a.png"], run_dir=run_dir, out=out) == 1
    assert images_of(out) == ["a"] and not (out / ".parts").exists()


def test_results_of_an_earlier_prediction_are_no_pictures(run_dir, pictures, capsys):
    predict.run([pictures], run_dir=run_dir, out=pictures / "one")
    (pictures / "maps").mkdir()
    shutil.copy(pictures / "a.png", pictures / "maps" / "b.png")  # a folder that is only called so
    capsys.readouterr()
    predict.run([pictures], run_dir=run_dir, out=pictures / "two")
    assert images_of(pictures / "two") == ["a", "maps__b", "more__a", "zoë"]
    said = capsys.readouterr().out
    assert "3 folders hold the results of a prediction: one/clusters, one/maps, one/over" in said


def test_a_strip_that_is_too_long_is_one_line(run_dir, pictures, tmp_path, capsys):
    for name, shape in (("too_long", (8, 801)), ("strip", (3000, 32))):
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(pictures / f"{name}.png")
    assert predict.run([pictures], run_dir=run_dir, out=tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert said.count("skipped: ") == 1 and "801 x 8 pixels, a strip of more than 100 to" in said
    assert images_of(tmp_path / "out") == ["a", "more__a", "strip", "zoë"]


def test_a_picture_in_a_locked_folder_is_one_line(run_dir, pictures, tmp_path, monkeypatch, capsys):
    locked, folder, stat = pictures / "locked" / "b.png", tmp_path / "folder", os.stat
    folder.mkdir()

    def status(path, *args, **options):
        if str(path) in (str(locked), str(folder / "masks")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", status)  # also where root runs this, who may read all
    assert predict.run([locked, folder, pictures], run_dir=run_dir, out=tmp_path / "out") == 2
    said = capsys.readouterr().out
    assert said.count(f"skipped: {locked}: PermissionError") == 1
    assert f"{folder}: the folder cannot be read" in said
    assert len(images_of(tmp_path / "out")) == 3


def test_a_class_name_that_is_no_text_is_written_with_escapes(run_dir, pictures, tmp_path):
    own = shutil.copytree(run_dir, tmp_path / "run")
    path = own / "artifacts" / "02_cluster_masks" / "clusters.json"
    write_json(path, read_json(path) | {"class_names": ["background", "\ud800cat", "a\nb"]})
    seal(own)
    assert predict.run([pictures], run_dir=own, out=tmp_path / "out") == 0
    names = [c["name"] for c in read_json(tmp_path / "out" / "instances.json")["categories"]]
    assert names[0] == "a\\nb (cluster 0)" and names[2] == "\\ud800cat (cluster 2)"


def test_a_name_that_the_output_cannot_hold_stops_nothing(run_dir, pictures, tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(pictures / "море.png")
    try:
        (pictures / "a.png").rename(os.fsdecode(os.fsencode(pictures) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system refuses such names")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mdlib", "predict", pictures, "--run", run_dir, "--out", out]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252:strict"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"4 of 4 pictures" in done.stdout and b"\\u043c" in done.stdout
    images = read_json(out / "instances.json")["images"]
    assert f"{pictures}/caf\\udce9.png" in [image["file_name"] for image in images]


# ---------------------------------------------------------------- large photographs


def test_a_large_photograph_has_maps_and_masks_of_its_own_size(
    run_dir, tmp_path, monkeypatch, rng, capsys
):
    monkeypatch.setattr(predict, "LARGEST", 2000)
    (tmp_path / "photos").mkdir()
    image = rng.integers(0, 256, (90, 121, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    out = tmp_path / "out"
    assert predict.run([tmp_path / "photos"], run_dir=run_dir, out=out) == 0
    assert "(seen in 52 x 39 of its 121 x 90 pixels)" in capsys.readouterr().out
    for kind in ("clusters", "maps"):
        assert read_label_map(out / kind / "a.png").shape == (90, 121)
    (masks,) = read_masks(out / "instances.json").by_image(["a"])
    assert masks and {mask.size for mask in masks} == {(90, 121)}
    assert Image.open(out / "overlays" / "a.png").size == (52, 39)


def test_the_nearest_label_is_taken_and_none_is_made(rng):
    labels = rng.integers(0, 300, (7, 5)).astype(np.uint16)
    again = predict.resize_nearest(labels, (21, 15))
    np.testing.assert_array_equal(again, labels.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(predict.resize_nearest(again, (7, 5)), labels)
    assert again.dtype == np.uint16 and predict.resize_nearest(labels, (7, 5)) is labels


TWENTY_MEGAPIXELS = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from mdlib.method.crf import CrfSettings, available
from mdlib.method.segmenter import build_segmenter
from mdlib.run import predict
photos, run_dir, out = map(Path, sys.argv[1:])
model = predict.MaskDistill.from_run(predict.RunArtifacts(run_dir))
model = replace(  # as many clusters as are dear, and a CRF as the presets'; one step takes as much
    model,
    segmenter=build_segmenter("vit", weights=None, trainable_blocks=0, outputs=25).eval(),
    cluster_to_class=np.zeros(25, np.int64),
    crf=CrfSettings(1, 1.0, 3.0, 67.0, 3.0, 4.0) if available() else None,
)
predict.MaskDistill.from_run = lambda run: model
assert predict.run([photos], run_dir=run_dir, out=out) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_twenty_noisy_megapixels_take_less_than_three_gigabytes(run_dir, tmp_path, rng):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    # noise of 10 pixels, which is still noise where it is made small
    noise = rng.integers(0, 256, (400, 500, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    Image.fromarray(noise).save(photos / "large.jpg")
    done = subprocess.run(
        [sys.executable, "-c", TWENTY_MEGAPIXELS, photos, run_dir, out],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[-1]) < 3000  # megabytes
    assert read_label_map(out / "maps" / "large.png").shape == (4000, 5000)
