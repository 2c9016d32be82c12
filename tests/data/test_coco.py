"""COCO and COCO20k on a miniature in the true format; pycocotools is the judge of every mask."""

import json
import shutil

import fixtures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
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
    with pytest.raises(ImageError, match=f"{data.ids[1]}.jpg: annotation 1000 cannot be read"):
        data[1]


def test_an_unknown_category_and_another_size_are_refused_by_name(broken):
    def spoil(content):
        content["annotations"][0]["category_id"] = 91
        content["images"][3]["width"] += 1

    change(broken, spoil)
    data = opened(broken, "val2017")
    with pytest.raises(ImageError, match=r"annotation 1000 has the unknown category 91"):
        data[0]
    with pytest.raises(ImageError, match=rf"{data.ids[3]}.jpg: .* its annotation says"):
        data[3]


# ---------------------------------------------------------------- files as people write them


def write(root, annotations, *, images=(7,), categories=(1,), turned=1):
    """val2017 of one picture an image, 40 high and 60 wide, and its annotations."""
    exif = Image.Exif()
    exif[0x0112] = turned
    for number in images:
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[5:15, 10:30] = 255
        path = root / "val2017" / f"{number:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, exif=exif)
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": 40, "width": 60} for n in images
        ],
        "categories": [{"id": n, "name": f"thing {n}"} for n in categories],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": 1, "iscrowd": 0, **each}
            for i, each in enumerate(annotations, 1)
        ],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


BOX = {"segmentation": [[10, 5, 30, 5, 30, 15, 10, 15]]}
ZEROS = {"size": [40, 60], "counts": [2400]}


def test_numbers_may_be_text_and_a_crowd_need_not_be_told(tmp_path):
    number = {"image_id": "7", "category_id": "1", "iscrowd": "0", **BOX}
    data = opened(write(tmp_path, [number, {**BOX, "iscrowd": True}]), "val2017")
    change(
        tmp_path,
        lambda content: content["annotations"].append(
            {"id": 3, "image_id": 7.0, "category_id": 1, **BOX}
        ),
    )
    change(tmp_path, lambda content: content["images"][0].update(id="7", height="40"))
    data = opened(tmp_path, "val2017")
    assert len(data[0].instances.masks) == 2 and len(data[0].instances.crowds) == 1


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"iscrowd": "no"}, "iscrowd of annotation 2 is 'no', expected a whole number"),
        ({"iscrowd": 2}, "iscrowd of annotation 2 is 2, neither 0 nor 1"),
        ({"image_id": "a.jpg"}, "image_id of annotation 2 is 'a.jpg'"),
        ({"category_id": 1.5}, "category_id of annotation 2 is 1.5"),
        ({"category_id": None}, "category_id of annotation 2 is None"),
    ],
)
def test_numbers_that_are_none_are_refused_by_the_annotation(tmp_path, value, why):
    write(tmp_path, [BOX, {**BOX, **value}])
    with pytest.raises(ValueError, match=f"instances_val2017.json: {why}"):
        opened(tmp_path, "val2017")
    assert any(why in problem for problem in check_dataset("coco", tmp_path, splits=["val2017"]))


def test_what_cannot_be_used_is_counted_and_named(tmp_path, capsys):
    bare = [{"bbox": [5, 5, 20, 20]}, {"segmentation": []}, {"segmentation": [], "iscrowd": 1}]
    odd = [{**BOX, "image_id": 8}, {**BOX, "image_id": 8}, {**BOX, "category_id": 9}]
    write(tmp_path, [BOX, *bare, *odd])
    problems = [
        "instances_val2017.json: 3 annotations have no outline and are left out: id 2, 3, 4",
        "instances_val2017.json: 2 annotations are of no image: image_id 8",
        "instances_val2017.json: 1 annotations are of no known category: id 7",
    ]
    data = opened(tmp_path, "val2017")
    assert data.problems == problems == capsys.readouterr().out.splitlines()
    assert set(problems) <= set(check_dataset("coco", tmp_path, splits=["val2017"]))
    with pytest.raises(ImageError, match="annotation 7 has the unknown category 9"):
        data[0]


def test_annotations_that_lack_a_key_or_share_an_id_are_counted_and_named(tmp_path, capsys):
    write(tmp_path, [BOX, BOX, BOX, BOX])

    def edit(content):
        del content["annotations"][1]["category_id"]
        del content["annotations"][2]["image_id"]
        content["annotations"][3]["id"] = 1
        content["annotations"].append(None)

    change(tmp_path, edit)
    data = opened(tmp_path, "val2017")
    problems = [
        "instances_val2017.json: 3 annotations lack image_id or category_id and are left out: "
        "id 2, 3, without an id",
        "instances_val2017.json: 2 annotations have the id of another one, all count: id 1",
    ]
    assert data.problems == problems == capsys.readouterr().out.splitlines()
    assert len(data[0].instances.masks) == 2


SEGMENTS = {"image_id": 7, "file_name": "7.png", "segments_info": [{"id": 1, "category_id": 1}]}
OTHER_FILES = {
    "panoptic": (lambda c: c.update(annotations=[SEGMENTS]), "not panoptic"),
    "captions": (lambda c: c.update(annotations=[{"image_id": 7, "caption": "a"}]), "or captions"),
    "none": (lambda c: c.pop("annotations"), "KeyError"),
    "null": (lambda c: c.update(annotations=None), "annotations are None, no list"),
    "a dictionary": (lambda c: c.update(annotations={}), "annotations are {}, no list"),
    "one name": (
        lambda c: c.update(categories=[{"id": i, "name": "cat"} for i in (1, 2)]),
        "1 categories are there twice: name cat",
    ),
}


@pytest.mark.parametrize("which", OTHER_FILES)
def test_a_file_of_another_kind_is_refused(tmp_path, which):
    write(tmp_path, [BOX])
    edit, why = OTHER_FILES[which]
    change(tmp_path, edit)
    with pytest.raises(ValueError, match=f"instances_val2017.json: .*{why}"):
        opened(tmp_path, "val2017")


def test_a_byte_order_mark_and_names_that_are_no_text_stop_nothing(tmp_path):
    write(tmp_path, [BOX])
    names = ("\ud800cat", "a\nb")
    change(
        tmp_path,
        lambda c: c.update(categories=[{"id": i, "name": n} for i, n in enumerate(names, 1)]),
    )
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert opened(tmp_path, "val2017").classes == ("background", "\\ud800cat", "a\\nb")


def test_boxes_alone_are_refused(tmp_path):
    write(tmp_path, [{"bbox": [5, 5, 20, 20]}, {"bbox": [5, 5, 9, 9], "segmentation": []}])
    with pytest.raises(ValueError, match="not one of 2 annotations has an outline"):
        opened(tmp_path, "val2017")
    assert "boxes alone" in " ".join(check_dataset("coco", tmp_path, splits=["val2017"]))


def test_an_empty_crowd_is_left_out_as_an_empty_object_is(tmp_path):
    empty = {"segmentation": ZEROS}
    data = opened(write(tmp_path, [BOX, empty, {**empty, "iscrowd": 1}]), "val2017")
    assert data[0].instances.masks.shape == (1, 40, 60) == data[0].instances.masks.shape
    assert data[0].instances.crowds.shape == (0, 40, 60)


@pytest.mark.parametrize("turned", [1, 3, 6, 8])
def test_a_picture_lies_under_its_outlines_whatever_its_exif_says(tmp_path, turned):
    sample = opened(write(tmp_path, [BOX], turned=turned), "val2017")[0]
    mask = sample.instances.masks[0]
    assert sample.image[mask].mean() > 240 and sample.image[~mask].mean() < 15


def test_a_picture_is_turned_where_the_json_has_the_sides_of_the_turned_one(tmp_path):
    write(tmp_path, [{"segmentation": [[25, 10, 35, 10, 35, 30, 25, 30]]}], turned=6)
    change(tmp_path, lambda content: content["images"][0].update(height=60, width=40))
    sample = opened(tmp_path, "val2017")[0]
    assert sample.image.shape == (60, 40, 3)
    mask = sample.instances.masks[0]
    assert sample.image[mask].mean() > 240 and sample.image[~mask].mean() < 15
    problems = check_dataset("coco", tmp_path, splits=["val2017"])
    assert not any("its annotation says" in problem for problem in problems)


def test_an_image_or_a_category_that_is_there_twice_is_refused(tmp_path):
    write(tmp_path, [BOX], images=(7, 8))
    for edit, why in (
        (lambda c: c["images"].append(c["images"][0]), "1 images are there twice: id 7"),
        (lambda c: c["images"][2].update(id=9), "coco val2017: 1 images are listed twice: 0*7"),
        (lambda c: c["images"][2].update(file_name="x/000000000007.jpg"), "twice: 0*7"),
        (lambda c: c["categories"].extend(c["categories"]), "1 categories are there twice: id 1"),
    ):
        change(tmp_path, edit)
        with pytest.raises(ValueError, match=why):
            opened(tmp_path, "val2017")


@pytest.mark.parametrize(
    "name", ["../../etc/hostname", "/etc/hostname", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg", ""]
)
def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path, name):
    write(tmp_path, [BOX])
    change(tmp_path, lambda content: content["images"][0].update(file_name=name))
    with pytest.raises(ValueError, match="of image 7 leaves the folder of the images"):
        opened(tmp_path, "val2017")


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_refused(kit, count):
    with pytest.raises(ValueError, match=f"has 4 images, {count} were asked for"):
        opened(kit, "val2017", count=count)


def test_more_categories_than_a_byte_holds_are_refused(tmp_path):
    write(tmp_path, [BOX], categories=range(1, 300))
    with pytest.raises(ValueError, match="299 categories, 254 are the most"):
        opened(tmp_path, "val2017")
    assert len(open_dataset("coco_agnostic", root=tmp_path, split="val2017").classes) == 2


def test_all_that_is_read_is_a_source(kit):
    data = opened(kit, "coco20k")
    names = [path.relative_to(kit).as_posix() for path in data.sources()]
    assert names[:2] == ["annotations/instances_train2014.json", "coco_20k_filenames.txt"]
    assert names[2:] == [f"train2014/{name}.jpg" for name in data.ids]


annotations = st.fixed_dictionaries(
    {},
    optional={
        "segmentation": st.sampled_from(
            [BOX["segmentation"], ZEROS, [], None, {}, 7, "x", [[]], [[1, 2]], [["a"] * 6]]
        ),
        "iscrowd": st.sampled_from([0, 1, "0", "1", True, None, 2, "no", 0.5]),
        "image_id": st.sampled_from([7, "7", 7.0, 8, "a", None, []]),
        "category_id": st.sampled_from([1, "1", 2, "b", None]),
        "id": st.one_of(st.integers(), st.text(max_size=3), st.none()),
        "bbox": st.just([1, 2, 3, 4]),
    },
)


@settings(max_examples=60, deadline=None)
@given(entries=st.lists(annotations, max_size=4))
def test_no_annotation_is_dropped_in_silence(tmp_path_factory, entries):
    """Each is an object, a crowd, empty, counted in a sentence, or refuses its image or the set."""
    root = write(tmp_path_factory.mktemp("coco"), [BOX, *entries])
    try:
        data = opened(root, "val2017")
        instances = data[0].instances
    except ValueError as error:  # an ImageError is one
        refused = error
    else:
        refused = None
    if refused is not None:
        assert "annotation " in str(refused)
        return
    found = len(instances.masks) + len(instances.crowds)
    empty = sum(entry.get("segmentation") == ZEROS for entry in entries)
    told = sum(int(problem.split()[1]) for problem in data.problems)
    assert found + empty + told >= len(entries) + 1


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
