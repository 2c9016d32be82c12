"""COCO and COCO20k on a miniature in the true format; pycocotools is the judge of every mask."""

import json
import shutil

import fixtures
import numpy as np
import pytest
from pycocotools.coco import COCO
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from mdlib.data import coco, open_dataset
from mdlib.data.checks import check_dataset, check_sample
from mdlib.data.coco import paint
from mdlib.data.images import ImageError
from mdlib.data.sample import Instances

SPLITS = ("train2014", "val2017", "coco20k", "dev")


@pytest.fixture(scope="module")
def kit(zoo_root, tmp_path_factory):
    """A miniature COCO; for reading only."""
    return fixtures.make_coco(tmp_path_factory.mktemp("coco"), zoo_root)


@pytest.fixture
def broken(kit, tmp_path):
    """A copy to be spoilt: its root."""
    return shutil.copytree(kit, tmp_path / "kit")


@pytest.fixture(scope="module")
def judge(kit):
    return {
        year: COCO(kit / "annotations" / f"instances_{year}.json")
        for year in ("train2014", "val2017")
    }


def opened(root, split, **options):
    return open_dataset("coco", root=root, split=split, **options)


def number(sample_id):
    return int(sample_id.rpartition("_")[2])


def change(root, edit, year="val2017"):
    """Apply edit(content) to the annotations of a year."""
    path = root / "annotations" / f"instances_{year}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------- splits


def test_the_classes_are_the_eighty_things_in_the_order_of_their_ids(kit):
    published = [
        name
        for name in MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
        if name != "N/A"
    ]
    assert opened(kit, "val2017").classes == ("background", *published) and len(published) == 80


def test_coco20k_is_what_its_list_names_in_any_order(kit, broken):
    listed = (kit / "coco_20k_filenames.txt").read_text().split()
    ids = opened(kit, "coco20k").ids
    names = [name.removeprefix("train2014/").removesuffix(".jpg") for name in listed]
    assert ids == tuple(sorted(names)) and len(ids) == 6
    assert listed != sorted(listed)
    (broken / "coco_20k_filenames.txt").write_text("\n".join(sorted(listed)))
    assert opened(broken, "coco20k").ids == ids


def test_lines_of_the_list_may_lack_folder_and_ending(broken):
    lines = "COCO_train2014_000000000008.jpg\n000000000010\n"
    (broken / "coco_20k_filenames.txt").write_text(lines)
    assert list(map(number, opened(broken, "coco20k").ids)) == [8, 10]


def test_dev_is_of_train2014_and_outside_coco20k(kit, broken):
    assert list(map(number, opened(kit, "dev").ids)) == [500]
    assert not set(opened(kit, "dev").ids) & set(opened(kit, "coco20k").ids)
    with open(broken / "coco_20k_filenames.txt", "a") as file:
        file.write("train2014/COCO_train2014_000000000500.jpg\n")
    assert opened(broken, "dev").ids == ()


def test_images_may_lie_in_a_folder_of_their_own(kit, broken):
    (broken / "images").mkdir()
    for year in ("train2014", "val2017"):
        (broken / year).rename(broken / "images" / year)
    for split in SPLITS:
        assert opened(broken, split).ids == opened(kit, split).ids
    assert opened(broken, "val2017")[0].image.any()


def test_every_sample_passes_the_check(kit):
    for name in ("coco", "coco_agnostic"):
        for split in SPLITS:
            data = open_dataset(name, root=kit, split=split)
            samples = list(data)
            assert tuple(s.id for s in samples) == data.ids and len(samples) == len(data) > 0
            assert {check_sample(s, num_classes=len(data.classes)) for s in samples} == {None}


def test_count_takes_the_first_and_no_more_than_there_are(kit):
    assert opened(kit, "val2017", count=2).ids == opened(kit, "val2017").ids[:2]
    with pytest.raises(ValueError, match="coco val2017 has 4 images, 5 were asked for"):
        opened(kit, "val2017", count=5)
    with pytest.raises(IndexError):
        opened(kit, "val2017", count=2)[2]


def test_only_the_annotations_of_the_split_are_kept(kit):
    data = opened(kit, "coco20k")
    assert set(data.index.annotations) <= set(map(number, data.ids))
    assert set(opened(kit, "train2014").index.annotations) > set(data.index.annotations)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("split", SPLITS)
def test_objects_and_crowds_are_what_pycocotools_decodes(kit, judge, split):
    data, truth = opened(kit, split), judge["val2017" if split == "val2017" else "train2014"]
    for sample in data:
        everything = truth.loadAnns(truth.getAnnIds(number(sample.id)))
        objects = [a for a in everything if not a["iscrowd"]]
        assert len(sample.instances.masks) == len(objects)
        for mask, label, annotation in zip(
            sample.instances.masks, sample.instances.labels, objects, strict=True
        ):
            np.testing.assert_array_equal(mask, truth.annToMask(annotation))
            assert data.classes[label] == truth.cats[annotation["category_id"]]["name"]
        crowds = [truth.annToMask(a) for a in everything if a["iscrowd"]]
        np.testing.assert_array_equal(
            sample.instances.crowds, np.array(crowds).reshape(-1, *sample.image.shape[:2])
        )


def test_the_miniature_has_every_kind_of_outline(kit):
    """Else the test above would pass without them."""
    content = json.loads((kit / "annotations" / "instances_train2014.json").read_text())
    kinds = {(type(a["segmentation"]).__name__, a["iscrowd"]) for a in content["annotations"]}
    assert kinds == {("list", 0), ("dict", 0), ("dict", 1)}
    of_images = {a["image_id"] for a in content["annotations"]}
    assert any(image["id"] not in of_images for image in content["images"])


def test_polygons_cover_the_object_they_outline(kit, zoo_root):
    scenes = list(fixtures.scenes(zoo_root, "val", 4))
    for index in (0, 1, 2):
        for ours, scene in zip(
            opened(kit, "val2017")[index].instances.masks, scenes[index][1], strict=True
        ):
            assert (ours & scene).sum() > 0.9 * (ours | scene).sum()


def test_an_image_without_objects_has_none(kit):
    sample = opened(kit, "val2017")[3]
    assert len(sample.instances.labels) == 0 and sample.instances.masks.shape == (
        0,
        *sample.image.shape[:2],
    )
    assert not sample.semantic.any()


def test_without_classes_every_object_is_an_object(kit):
    aware, agnostic = (
        opened(kit, "train2014"),
        open_dataset("coco_agnostic", root=kit, split="train2014"),
    )
    assert agnostic.classes == ("background", "object")
    for a, b in zip(aware, agnostic, strict=True):
        np.testing.assert_array_equal(a.instances.masks, b.instances.masks)
        assert b.instances.labels.tolist() == [1] * len(a.instances.labels)
        np.testing.assert_array_equal(b.semantic, np.where(a.semantic % 255 > 0, 1, a.semantic))


def paint_spec(instances, height, width):
    """The label of the smallest object at each pixel (the later of two equals); else void in a
    crowd; else 0.
    """
    semantic = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            here = [
                (instances.masks[i].sum(), -i, instances.labels[i])
                for i in range(len(instances.masks))
                if instances.masks[i, y, x]
            ]
            semantic[y, x] = min(here)[2] if here else 255 * instances.crowds[:, y, x].any()
    return semantic


def test_small_objects_stand_in_front_and_crowds_behind(rng):
    for _ in range(20):
        masks = rng.random((4, 6, 7)) < rng.uniform(0.1, 0.6, (4, 1, 1))
        masks[3] = np.roll(masks[2], 1, 1)  # two of the same size
        instances = Instances(masks, rng.integers(1, 81, 4), crowds=rng.random((2, 6, 7)) < 0.3)
        np.testing.assert_array_equal(paint(instances, (6, 7)), paint_spec(instances, 6, 7))


def test_a_crowd_is_void_where_no_object_covers_it(kit):
    sample = opened(kit, "train2014")[2]
    crowd, covered = sample.instances.crowds.any(0), sample.instances.masks.any(0)
    assert (crowd & covered).any() and (crowd & ~covered).any()
    np.testing.assert_array_equal(sample.semantic == 255, crowd & ~covered)


def test_an_outline_thinner_than_a_pixel_is_left_out(broken, kit):
    def thin(content):
        content["annotations"][0]["segmentation"] = [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]
        content["annotations"][0]["image_id"] = content["images"][0]["id"]

    change(broken, thin)
    before, after = opened(kit, "val2017")[0].instances, opened(broken, "val2017")[0].instances
    np.testing.assert_array_equal(after.masks, before.masks[1:])
    np.testing.assert_array_equal(after.labels, before.labels[1:])


# ---------------------------------------------------------------- bad input


def test_what_is_missing_is_named(kit, broken, tmp_path):
    with pytest.raises(ValueError, match=r"coco split 'val'.*coco20k.*val2017"):
        opened(kit, "val")
    with pytest.raises(FileNotFoundError, match=r"no val2017 at .*fetch_dataset\(\"coco\""):
        opened(tmp_path, "val2017")
    names = opened(broken, "val2017").ids
    (broken / "val2017" / f"{names[1]}.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"coco val2017: 1 of 4 files are missing .*{names[1]}.jpg"
    ):
        opened(broken, "val2017")
    (broken / "coco_20k_filenames.txt").unlink()
    assert len(opened(broken, "train2014")) == 8  # which needs no list
    for split in ("coco20k", "dev"):
        with pytest.raises(FileNotFoundError, match=r"coco_20k_filenames.txt is missing"):
            opened(broken, split)
    (broken / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"instances_val2017.json are missing"):
        opened(broken, "val2017")


def test_lists_that_do_not_fit_are_refused(broken):
    path = broken / "coco_20k_filenames.txt"
    for text in ("train2014/COCO_train2014_000000000008.jpg\n<html>\n", "\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"coco_20k_filenames.txt: expected a file name"):
            opened(broken, "coco20k")
    path.write_text(
        "train2014/COCO_train2014_000000000008.jpg\ntrain2014/COCO_train2014_000000004444.jpg\n"
    )
    with pytest.raises(
        ValueError, match=r"1 of its images are not in instances_train2014.json, such as id 4444"
    ):
        opened(broken, "coco20k")


def test_files_that_are_no_instance_annotations_are_refused(broken):
    path = broken / "annotations" / "instances_val2017.json"
    whole = path.read_text()
    captions = json.dumps(
        {
            "images": json.loads(whole)["images"],
            "annotations": [{"image_id": 1, "caption": "a cat"}],
        }
    )
    for text in (
        whole[: len(whole) // 2],
        "<html></html>",
        captions,
        "[]",
        '{"categories": [], "images": [{"id": 1}]}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"instances_val2017.json: not a whole file"):
            opened(broken, "val2017")


OUTLINES = {
    "two-points": [[1, 1, 2, 2]],
    "odd": [[1, 1, 5, 1, 5, 5, 1]],
    "size": {"size": [3, 3], "counts": [9]},
    "short": {"size": None, "counts": [5]},
    "nothing": {},
    "number": 7,
}


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_that_cannot_be_read_are_refused_by_name(broken, name):
    def spoil(content):
        outline, image = OUTLINES[name], content["images"][1]
        if name == "short":
            outline = {**outline, "size": [image["height"], image["width"]]}
        content["annotations"][0] |= {"segmentation": outline, "image_id": image["id"]}

    change(broken, spoil)
    data = opened(broken, "val2017")
    with pytest.raises(ImageError, match=f"{data.ids[1]}.jpg: an annotation cannot be read"):
        data[1]


def test_an_unknown_category_and_another_size_are_refused_by_name(broken):
    def spoil(content):
        content["annotations"][0]["category_id"] = 91
        content["images"][3]["width"] += 1

    change(broken, spoil)
    data = opened(broken, "val2017")
    with pytest.raises(ImageError, match=r"cannot be read \(KeyError\(91\)"):
        data[0]
    with pytest.raises(ImageError, match=rf"{data.ids[3]}.jpg: .* its annotation says"):
        data[3]


# ---------------------------------------------------------------- the check


def test_a_whole_set_has_no_problem_and_a_miniature_is_told_from_it(kit, monkeypatch):
    problems = check_dataset("coco", kit, splits=SPLITS)
    assert [p.partition(" are listed")[0] for p in problems] == [
        "coco train2014: 8 images",
        "coco val2017: 4 images",
        "coco coco20k: 6 images",
    ]
    assert "19,817 are published" in problems[2]
    monkeypatch.setattr(coco, "COUNTS", {"train2014": 8, "val2017": 4, "coco20k": 6})
    assert (
        check_dataset("coco", kit, splits=SPLITS)
        == check_dataset("coco_agnostic", kit, splits=["coco20k"])
        == []
    )


def test_all_problems_are_listed_at_once(broken, monkeypatch):
    monkeypatch.setattr(coco, "COUNTS", {"train2014": 8, "val2017": 4, "coco20k": 5})
    train, val = opened(broken, "train2014").ids, opened(broken, "val2017").ids
    (broken / "train2014" / f"{train[0]}.jpg").unlink()
    (broken / "val2017" / f"{val[0]}.jpg").write_bytes(b"")
    shutil.copy(broken / "val2017" / f"{val[1]}.jpg", broken / "val2017" / "000000999999.jpg")

    def spoil(content):
        content["images"][2]["height"] += 5
        content["categories"].pop()

    change(broken, spoil)
    problems = check_dataset("coco", broken, splits=["coco20k", "val2017"])
    expected = [
        ("coco coco20k: 6 images are listed, 5 are published",),
        ("coco val2017: 79 categories, 80",),
        ("train2014: 1 images are missing", train[0]),
        (f"{val[0]}.jpg", "not a picture"),
        (f"{val[2]}.jpg", "its annotation says"),
        ("1 images are in no annotation file", "000000999999.jpg"),
    ]
    for words in expected:
        assert any(all(word in problem for word in words) for problem in problems), (
            words,
            problems,
        )
    (broken / "annotations" / "instances_train2014.json").unlink()
    assert any(
        "instances_train2014.json are missing" in problem
        for problem in check_dataset("coco", broken, splits=["coco20k"])
    )
