"""VOC 2012, SBD and VOC 2007 on miniatures in their true formats; torchvision's readers are the
judges.
"""

import random
import shutil
from xml.etree import ElementTree

import fixtures
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from torchvision.datasets import SBDataset, VOCDetection, VOCSegmentation
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

from mdlib.core.label_map import write_label_map
from mdlib.data import open_dataset, voc
from mdlib.data.checks import check_dataset, check_sample
from mdlib.data.images import ImageError
from mdlib.data.voc import CLASSES, COUNTS, read_boxes, split_objects

SPLITS_2012 = ("train", "val", "instances", "trainaug", "dev", "fit", "boxes")


@pytest.fixture(scope="module")
def kit(zoo_root, tmp_path_factory):
    """Miniatures of VOC 2012, SBD and VOC 2007 under one root; for reading only."""
    root = tmp_path_factory.mktemp("voc")
    fixtures.make_voc2012(root, zoo_root)
    return fixtures.make_voc2007(root, zoo_root)


@pytest.fixture
def broken(kit, tmp_path):
    """A copy to be spoilt: its root."""
    return shutil.copytree(kit, tmp_path / "kit")


def ids(root, split, name="voc2012"):
    return open_dataset(name, root=root, split=split).ids


def folder(root, year=2012):
    return root / "VOCdevkit" / f"VOC{year}"


def rewrite(path, change):
    path.write_text(change(path.read_text()))


# ---------------------------------------------------------------- splits


def test_the_classes_are_those_of_the_challenge():
    published = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert CLASSES[1:] == tuple(published[1:])


def test_the_published_counts_fit_together():
    counts = COUNTS[2012]
    assert counts["instances"] == counts["train"] + counts["val"]
    assert (
        counts["dev"] == len(range(0, counts["train"], voc.DEV_EVERY))
        and counts["fit"] == counts["trainaug"] - counts["dev"]
    )
    assert COUNTS[2007]["trainval"] == COUNTS[2007]["train"] + COUNTS[2007]["val"]


def test_trainaug_is_train_and_sbd_without_val(kit):
    train, val, trainaug = (set(ids(kit, split)) for split in ("train", "val", "trainaug"))
    in_sbd = {path.stem for path in (kit / "benchmark_RELEASE" / "dataset" / "cls").iterdir()}
    # the miniature overlaps as the real ones do
    assert in_sbd & train and in_sbd & val and in_sbd - train - val
    assert trainaug == (train | in_sbd) - val
    assert set(ids(kit, "instances")) == train | val


def test_dev_is_a_tenth_of_train_and_not_in_fit_or_val(kit):
    dev = set(ids(kit, "dev"))
    assert len(dev) == 2 and dev < set(ids(kit, "train"))  # 11 images: the first and the eleventh
    assert set(ids(kit, "fit")) == set(ids(kit, "trainaug")) - dev
    assert not dev & set(ids(kit, "val"))


def test_splits_do_not_depend_on_the_order_of_a_list(kit, broken):
    for path in [
        *broken.rglob("ImageSets/*/*.txt"),
        *broken.glob("benchmark_RELEASE/dataset/*.txt"),
    ]:
        lines = path.read_text().splitlines()
        random.Random(3).shuffle(lines)
        path.write_text("\n".join(lines))
    for split in SPLITS_2012:
        assert ids(broken, split) == ids(kit, split) == tuple(sorted(ids(kit, split)))


def test_every_sample_passes_the_check(kit):
    for name, splits in (("voc2012", SPLITS_2012), ("voc2007", COUNTS[2007])):
        for split in splits:
            data = open_dataset(name, root=kit, split=split)
            samples = list(data)
            assert tuple(s.id for s in samples) == data.ids and len(samples) == len(data) > 0
            assert {check_sample(s, num_classes=len(data.classes)) for s in samples} == {None}


def test_count_takes_the_first_and_no_more_than_there_are(kit):
    assert open_dataset("voc2012", root=kit, split="val", count=2).ids == ids(kit, "val")[:2]
    with pytest.raises(ValueError, match="voc2012 val has 4 images, 5 were asked for"):
        open_dataset("voc2012", root=kit, split="val", count=5)
    with pytest.raises(IndexError):
        open_dataset("voc2012", root=kit, split="val", count=2)[2]


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_root_may_be_any_folder_down_to_the_year(kit, below, monkeypatch):
    for split in SPLITS_2012:
        assert ids(kit / below, split) == ids(kit, split)
    monkeypatch.chdir(kit / below)
    assert ids(".", "trainaug") == ids(kit, "trainaug")


# ---------------------------------------------------------------- labels


def test_pictures_and_maps_are_what_torchvision_reads(kit):
    data = open_dataset("voc2012", root=kit, split="val")
    judge = VOCSegmentation(kit, year="2012", image_set="val")
    for sample, (image, labels) in zip(data, judge, strict=True):
        np.testing.assert_array_equal(sample.image, np.asarray(image))
        np.testing.assert_array_equal(sample.semantic, np.asarray(labels))
        assert (sample.semantic == 255).any()  # VOC's void borders are in the miniature


def test_the_maps_of_sbd_are_what_torchvision_reads(kit):
    sbd = kit / "benchmark_RELEASE" / "dataset"
    judge = SBDataset(sbd, image_set="train", mode="segmentation")
    data = open_dataset("voc2012", root=kit, split="trainaug")
    assert data.by_sbd == set(ids(kit, "trainaug")) - set(ids(kit, "train")) != set()
    for sample in data:
        if sample.id in data.by_sbd:
            np.testing.assert_array_equal(
                sample.semantic, np.asarray(judge._get_target(sbd / "cls" / f"{sample.id}.mat"))
            )
            assert not (sample.semantic == 255).any()


def test_objects_of_sbd_have_the_categories_of_its_file(kit):
    data = open_dataset("voc2012", root=kit, split="trainaug")
    for sample in data:
        if sample.id in data.by_sbd:
            truth = loadmat(kit / "benchmark_RELEASE" / "dataset" / "inst" / f"{sample.id}.mat")[
                "GTinst"
            ][0, 0]
            assert sample.instances.labels.tolist() == truth["Categories"].ravel().tolist()
            for number, mask in enumerate(sample.instances.masks, 1):
                np.testing.assert_array_equal(mask, truth["Segmentation"] == number)


def test_an_image_that_both_have_is_labelled_by_voc(kit):
    train, trainaug = (
        open_dataset("voc2012", root=kit, split=split) for split in ("train", "trainaug")
    )
    shared = train.ids[0]
    assert (kit / "benchmark_RELEASE" / "dataset" / "cls" / f"{shared}.mat").is_file()
    ours = next(s for s in trainaug if s.id == shared)
    np.testing.assert_array_equal(ours.semantic, train[0].semantic)
    assert (ours.semantic == 255).any()


def test_objects_are_those_of_the_scene_inside_their_borders(kit, zoo_root):
    scenes = list(fixtures.scenes(zoo_root, "val", 4))
    for sample, (_, masks, labels) in zip(
        open_dataset("voc2012", root=kit, split="val"), scenes, strict=True
    ):
        assert sample.instances.labels.tolist() == labels.tolist()
        for ours, scene in zip(sample.instances.masks, masks, strict=True):
            assert not (ours & ~scene).any() and ours.sum() > 0.5 * scene.sum()


def test_boxes_are_what_torchvision_reads_counted_from_zero(kit):
    for name, year, split, image_set in (
        ("voc2012", "2012", "boxes", "trainval"),
        ("voc2007", "2007", "test", "test"),
    ):
        data = open_dataset(name, root=kit, split=split)
        for sample, (_, target) in zip(
            data, VOCDetection(kit, year=year, image_set=image_set), strict=True
        ):
            objects = target["annotation"]["object"]
            boxes = [
                [int(o["bndbox"][end]) for end in ("xmin", "ymin", "xmax", "ymax")] for o in objects
            ]
            np.testing.assert_array_equal(
                sample.instances.boxes, np.array(boxes).reshape(-1, 4) - [1, 1, 0, 0]
            )
            assert [CLASSES[label] for label in sample.instances.labels] == [
                o["name"] for o in objects
            ]
            assert sample.semantic is None and not sample.instances.has_masks


def test_drawn_boxes_are_tight_around_the_scenes_objects(kit, zoo_root):
    scenes = list(fixtures.scenes(zoo_root, "train", 6, start=50))[4:]
    for sample, (_, masks, _) in zip(
        open_dataset("voc2007", root=kit, split="test"), scenes, strict=True
    ):
        for box, mask in zip(sample.instances.boxes, masks, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def xml(path, *objects):
    text = "".join(
        f"<object><name>{name}</name><bndbox><xmax>{x1}</xmax><xmin>{x0}</xmin><ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in objects
    )
    path.write_text(f"<annotation>{text}</annotation>")
    return path


def test_boxes_with_decimals_and_beyond_the_border(tmp_path):
    """VOC 2012 has a few of both."""
    path = xml(tmp_path / "a.xml", ("dog", 45.5, 1, 60.25, 30), ("cat", 0, 0, 105, 20))
    found = read_boxes(path, (50, 100))
    np.testing.assert_array_equal(found.boxes, [[44.5, 0, 60.25, 30], [0, 0, 100, 20]])
    assert found.labels.tolist() == [CLASSES.index("dog"), CLASSES.index("cat")]
    assert read_boxes(xml(tmp_path / "none.xml"), (50, 100)).boxes.shape == (0, 4)


def test_an_object_has_the_class_of_most_of_its_pixels():
    objects = np.array([[1, 1, 1, 0], [2, 2, 255, 255]], np.uint8)
    semantic = np.array([[5, 5, 7, 0], [255, 3, 255, 255]], np.uint8)
    found = split_objects(semantic, objects, source="map.png")
    assert found.labels.tolist() == [5, 3]
    np.testing.assert_array_equal(found.masks, [objects == 1, objects == 2])
    empty = split_objects(semantic, np.zeros_like(objects), source="map.png")
    assert empty.masks.shape == (0, 2, 4) and empty.boxes.shape == (0, 4)
    semantic[1, 1] = 255
    with pytest.raises(ImageError, match=r"map.png: object 2 has no class"):
        split_objects(semantic, objects, source="map.png")


# ---------------------------------------------------------------- bad input


def test_unknown_splits_are_refused_with_the_known_ones(kit):
    with pytest.raises(ValueError, match=r"voc2012 split 'test'.*trainaug"):
        ids(kit, "test")
    with pytest.raises(ValueError, match=r"voc2007 split 'trainaug'.*trainval"):
        ids(kit, "trainaug", "voc2007")


def test_a_missing_or_another_year_is_named(kit, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no VOC2012 at .*VOCdevkit/VOC2012.*fetch_dataset\(\"voc2012\""
    ):
        ids(tmp_path, "val")
    shutil.copytree(folder(kit, 2007), folder(tmp_path, 2007))
    for root in (tmp_path, tmp_path / "VOCdevkit", folder(tmp_path, 2007)):
        with pytest.raises(FileNotFoundError, match="found another year: VOC2007"):
            ids(root, "val")
    shutil.copytree(folder(kit, 2007), folder(tmp_path, 2012))  # and under the wrong name
    with pytest.raises(ValueError, match=r"'000001', which is no name of VOC 2012"):
        ids(tmp_path, "boxes")


def test_without_sbd_only_the_splits_that_need_it_are_refused(broken):
    shutil.rmtree(broken / "benchmark_RELEASE")
    assert ids(broken, "train") and ids(broken, "val")
    for split in ("trainaug", "fit"):
        with pytest.raises(
            FileNotFoundError, match=r"benchmark_RELEASE/dataset/train.txt is missing"
        ):
            ids(broken, split)


def test_an_image_that_is_listed_twice_and_a_count_below_one_are_refused(broken):
    path = folder(broken) / "ImageSets" / "Segmentation" / "val.txt"
    name = ids(broken, "val")[0]
    with pytest.raises(ValueError, match="voc2012 val has 4 images, 0 were asked for"):
        open_dataset("voc2012", root=broken, split="val", count=0)
    with open(path, "a") as file:
        file.write(f"{name}\n")
    for split in ("val", "instances"):
        with pytest.raises(ValueError, match=f"{split}: 1 images are listed twice: {name}"):
            ids(broken, split)


def test_all_that_is_read_is_a_source(kit):
    for split in ("val", "trainaug", "dev", "boxes"):
        data = open_dataset("voc2012", root=kit, split=split)
        paths = data.sources()
        assert all(path.is_file() for path in paths) and len(paths) == len(set(paths))
        for i, name in enumerate(data.ids):
            assert {data.image_path(name), *data.label_paths(data.ids[i])} <= set(paths)
    lists = [p.relative_to(kit).as_posix() for p in paths if p.suffix == ".txt"]
    assert lists == ["VOCdevkit/VOC2012/ImageSets/Main/trainval.txt"]
    everything = open_dataset("voc2012", root=kit, split="trainaug").sources()
    assert {p.suffix for p in everything} == {".txt", ".jpg", ".png", ".mat"}


def test_a_half_downloaded_set_does_not_open(broken):
    names = ids(broken, "val")
    (folder(broken) / "JPEGImages" / f"{names[1]}.jpg").unlink()
    (folder(broken) / "SegmentationObject" / f"{names[2]}.png").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=rf"voc2012 val: 2 of 12 files are missing.*{names[1]}.jpg, {names[2]}.png",
    ):
        ids(broken, "val")
    # what is asked for is whole
    assert open_dataset("voc2012", root=broken, split="val", count=1)[0].id == names[0]
    (folder(broken) / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val.txt is missing"):
        ids(broken, "val")


def spoil_rgb(path):
    Image.open(path).convert("RGB").save(path)


def spoil_size(path):
    write_label_map(path, np.zeros((30, 40), np.uint8))


def spoil_value(path):
    labels = np.array(Image.open(path))
    labels[0, 0] = 21
    write_label_map(path, labels)


def spoil_cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


LABEL_FAULTS = {
    "palette or grey PNG, this one is RGB": spoil_rgb,
    r"\(30, 40\), its image": spoil_size,
    r"unknown labels \[21\]": spoil_value,
    "not a whole PNG": spoil_cut,
}


@pytest.mark.parametrize("message", LABEL_FAULTS)
def test_wrong_label_maps_are_refused_by_name(broken, message):
    data = open_dataset("voc2012", root=broken, split="val")
    LABEL_FAULTS[message](data.label_paths(data.ids[0])[0])
    with pytest.raises(ImageError, match=rf"{data.ids[0]}.png.*{message}"):
        data[0]


def other_key(path):
    savemat(path, {"other": 1})


def other_size(path):
    savemat(
        path,
        {
            path.parent.name.replace("cls", "GTcls").replace("inst", "GTinst"): {
                "Segmentation": np.ones((3, 4), np.uint8)
            }
        },
    )


def as_text(path):
    path.write_text("<html>not found</html>")


def unknown_class(path):
    segmentation = loadmat(path)["GTcls"]["Segmentation"][0, 0]
    savemat(path, {"GTcls": {"Segmentation": np.full_like(segmentation, 21)}})


MAT_FAULTS = {
    "whole SBD file": (as_text, spoil_cut, other_key),
    r"\(3, 4\), its image": (other_size,),
    "unknown label 21": (unknown_class,),
}


@pytest.mark.parametrize(
    ("message", "spoil"), [(m, spoil) for m, spoils in MAT_FAULTS.items() for spoil in spoils]
)
def test_wrong_files_of_sbd_are_refused_by_name(broken, message, spoil):
    data = open_dataset("voc2012", root=broken, split="trainaug")
    index = data.ids.index(min(data.by_sbd))
    spoil(data.label_paths(data.ids[index])[0])
    with pytest.raises(ImageError, match=rf"cls/{data.ids[index]}.mat.*{message}"):
        data[index]


def test_wrong_annotations_are_refused_by_name(tmp_path):
    whole = xml(tmp_path / "whole.xml", ("dog", 1, 1, 5, 5)).read_text()
    faults = {
        "cut.xml": whole[:-30],
        "class.xml": whole.replace("dog", "unicorn"),
        "box.xml": whole.replace("bndbox", "box"),
        "end.xml": whole.replace("<xmin>1</xmin>", ""),
        "number.xml": whole.replace("<xmin>1<", "<xmin>left<"),
    }
    for name, text in faults.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ImageError, match=f"{name}: not an annotation of VOC"):
            read_boxes(tmp_path / name, (50, 100))
    for box in ((10, 10, 9, 20), (101, 1, 120, 20)):
        with pytest.raises(
            ImageError, match=r"empty.xml: a box is empty or outside its image of 100 x 50"
        ):
            read_boxes(xml(tmp_path / "empty.xml", ("dog", *box)), (50, 100))


# ---------------------------------------------------------------- the check


@pytest.fixture
def published(kit, monkeypatch):
    """The miniature's counts stand for the published ones."""
    for year, splits in ((2012, SPLITS_2012), (2007, COUNTS[2007])):
        counts = {split: len(ids(kit, split, f"voc{year}")) for split in splits}
        monkeypatch.setitem(voc.COUNTS, year, counts)


def test_a_whole_set_has_no_problem(kit, published):
    assert check_dataset("voc2012", kit, splits=SPLITS_2012) == []
    assert check_dataset("voc2007", kit, splits=["trainval", "test"]) == []


def test_a_miniature_is_told_from_the_published_set(kit):
    problems = check_dataset("voc2012", kit, splits=["train", "val"])
    assert (
        len(problems) == 2
        and "voc2012 train: 11 images are listed, 1,464 are published" in problems[0]
    )


def test_all_problems_are_listed_at_once(broken, published):
    train, val = ids(broken, "train"), ids(broken, "val")
    data = open_dataset("voc2012", root=broken, split="trainaug")
    sbd = sorted(data.by_sbd)
    images, maps = folder(broken) / "JPEGImages", folder(broken) / "SegmentationClass"
    (images / f"{train[0]}.jpg").unlink()
    (images / f"{train[1]}.jpg").unlink()
    (maps / f"{train[2]}.png").unlink()
    (broken / "benchmark_RELEASE" / "dataset" / "inst" / f"{sbd[0]}.mat").unlink()
    spoil_rgb(maps / f"{val[0]}.png")
    spoil_size(maps / f"{val[1]}.png")
    as_text(broken / "benchmark_RELEASE" / "dataset" / "cls" / f"{sbd[1]}.mat")
    (images / f"{val[2]}.jpg").write_bytes(b"")
    write_label_map(maps / "2012_000999.png", np.zeros((9, 9), np.uint8))
    rewrite(
        folder(broken) / "ImageSets" / "Segmentation" / "train.txt",
        lambda text: text.replace(f"{train[3]}\n", ""),
    )
    problems = check_dataset("voc2012", broken, splits=["train", "val", "trainaug"])
    expected = [
        ("voc2012 train: 10 images are listed, 11",),
        ("JPEGImages: 2 images are missing", train[0], train[1]),
        ("SegmentationClass: 1 label files are missing", train[2]),
        ("inst: 1 label files are missing", sbd[0]),
        ("SegmentationClass: 3 label files have no image", train[0], train[1], "2012_000999"),
        (val[0], "this one is RGB"),
        (val[1], "(30, 40), its image"),
        (sbd[1], "not a whole SBD file"),
        (f"{val[2]}.jpg", "not a picture"),
    ]
    for words in expected:
        assert any(all(word in problem for word in words) for problem in problems), (
            words,
            problems,
        )


def test_a_hundred_faults_are_told_as_five_and_a_number(broken, published):
    for path in (folder(broken) / "SegmentationClass").glob("*.png"):
        spoil_rgb(path)
    problems = check_dataset("voc2012", broken, splits=["instances", "train"])
    assert len(problems) == 6 and problems[-1] == "and 10 more images or label files are wrong"


def test_a_missing_set_is_one_problem_however_many_splits_are_asked_for(kit, tmp_path):
    (problem,) = check_dataset("voc2012", tmp_path, splits=SPLITS_2012)
    assert "no VOC2012" in problem
    assert "found another year" in check_dataset("voc2012", folder(kit, 2007), splits=["val"])[0]
    with pytest.raises(ValueError, match="imagenet"):
        check_dataset("imagenet", kit, splits=["val"])


def test_other_sets_are_checked_by_opening_them(zoo_root, tmp_path):
    assert check_dataset("zoo", zoo_root, splits=["train", "val"]) == []
    assert "no zoo at" in check_dataset("zoo", tmp_path, splits=["train"])[0]


def test_the_miniature_has_the_parts_that_real_files_have(kit):
    """Else the tests above would pass without them: nested part boxes, difficult objects, three
    formats.
    """
    tree = ElementTree.parse(next((folder(kit) / "Annotations").iterdir()))
    assert tree.findall("object/part/bndbox")
    sizes = {s.image.shape[:2] for s in open_dataset("voc2012", root=kit, split="train")}
    assert len(sizes) == 3
