"""Zoo scenes keep their promises; every sort of picture file is read rightly or refused by name."""

import contextlib
import dataclasses
import itertools
import os
import socket
import struct

import numpy as np
import pytest
from fixtures import Samples
from hypothesis import given as tried_with
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from mdlib.core.files import StoreError, read_json, write_json
from mdlib.core.mask import mask_to_box
from mdlib.data import Cached, Instances, NoLabels, Sample, Subset, open_dataset
from mdlib.data.checks import check_sample, try_sample
from mdlib.data.compose import COMPOSITIONS, MIXTURE
from mdlib.data.images import ImageError, image_size, lies_turned, read_image, read_true_labels
from mdlib.data.roles import labelled_roles, mapped_roles, open_role, open_split

SPLITS = ("train", "dev", "val")


def zoo(root, split="val", count=None):
    return open_dataset("zoo", root=root, split=split, count=count)


def assert_same(a, b):
    assert a.id == b.id and a.instances.names == b.instances.names
    for x, y in (
        (a.image, b.image),
        (a.semantic, b.semantic),
        (a.instances.masks, b.instances.masks),
    ):
        np.testing.assert_array_equal(x, y)


# ---------------------------------------------------------------- zoo


@pytest.fixture(scope="module")
def scenes(zoo_root):
    """Thirty scenes of each split: enough for one, two and three subjects, and for held-out
    cut-outs.
    """
    return {split: list(zoo(zoo_root, split, 30)) for split in SPLITS}


@pytest.fixture(scope="module")
def all_scenes(scenes):
    return list(itertools.chain(*scenes.values()))


def test_scenes_hold_one_to_three_subjects(all_scenes):
    assert {len(s.instances.labels) for s in all_scenes} == {1, 2, 3}


def test_a_scene_is_the_same_whatever_the_count_and_the_instance(zoo_root, scenes):
    for index in (0, 7):
        assert_same(zoo(zoo_root, count=index + 1)[index], scenes["val"][index])
        assert_same(zoo(zoo_root, count=1000)[index], scenes["val"][index])


def test_splits_and_indices_show_different_scenes(all_scenes):
    assert len({s.image.tobytes() for s in all_scenes}) == len(all_scenes)


def test_masks_do_not_overlap_and_none_is_empty(all_scenes):
    for sample in all_scenes:
        masks = sample.instances.masks
        assert masks.dtype == bool and masks.sum(0).max() == 1
        assert masks.any((1, 2)).all()


def test_the_semantic_map_is_the_instances_painted(all_scenes):
    for sample in all_scenes:
        painted = (sample.instances.masks * sample.instances.labels[:, None, None]).sum(0)
        np.testing.assert_array_equal(sample.semantic, painted)


def test_boxes_are_tight(all_scenes):
    for sample in all_scenes[::4]:
        for mask, (x0, y0, x1, y1) in zip(
            sample.instances.masks, sample.instances.boxes, strict=True
        ):
            ys, xs = np.nonzero(mask)
            assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_held_out_cutouts_stand_in_their_split_alone(zoo_root, scenes):
    offered = {split: {c.name: c.split for c in zoo(zoo_root, split).cutouts} for split in SPLITS}
    for split in SPLITS:
        # "train" alone for train; never another's
        assert set(offered[split].values()) == {"train", split}
        assert {name for s in scenes[split] for name in s.instances.names} <= offered[split].keys()


def test_some_held_out_cutouts_are_shown(zoo_root, scenes):
    for split in ("dev", "val"):
        shown = {name for s in scenes[split] for name in s.instances.names}
        assert shown - zoo(zoo_root, split).seen


def test_every_held_out_class_was_seen_in_training(zoo_root):
    train = {c.label for c in zoo(zoo_root, "train").cutouts}
    assert all({c.label for c in zoo(zoo_root, split).cutouts} == train for split in SPLITS)


def test_a_name_says_its_class(zoo_root, all_scenes):
    classes = zoo(zoo_root).classes
    assert classes[0] == "background"
    for sample in all_scenes:
        of_names = [name.rpartition("_")[0] for name in sample.instances.names]
        assert of_names == [classes[label] for label in sample.instances.labels]


def test_scenes_pass_the_check(zoo_root, all_scenes):
    assert {check_sample(s, num_classes=len(zoo(zoo_root).classes)) for s in all_scenes} == {None}


def test_a_data_set_ends(zoo_root):
    data = zoo(zoo_root, count=2)
    assert tuple(s.id for s in data) == data.ids and len(data) == 2
    for index in (2, -1):
        with pytest.raises(IndexError):
            data[index]


def test_every_picture_is_a_source_and_a_count_is_one_or_more(zoo_root):
    stored = {
        path for folder in ("cutouts", "backgrounds") for path in (zoo_root / folder).iterdir()
    }
    tables = {zoo_root / "cutouts.csv", zoo_root / "backgrounds.csv"}
    assert {*zoo(zoo_root).sources()} == stored | tables
    for count in (0, -5):
        with pytest.raises(ValueError, match=f"a zoo of {count} scenes"):
            zoo(zoo_root, count=count)


def test_unknown_names_are_refused_with_the_known_ones(zoo_root, tmp_path):
    with pytest.raises(ValueError, match=r"'test'.*val"):
        zoo(zoo_root, "test")
    with pytest.raises(ValueError, match=r"'cityscapes'.*zoo"):
        open_dataset("cityscapes", root=zoo_root, split="val")
    with pytest.raises(ValueError, match="only the zoo is composed: voc2012"):
        open_dataset("voc2012", root=zoo_root, split="val", composition=MIXTURE)
    with pytest.raises(FileNotFoundError, match="no zoo at"):
        zoo(tmp_path)


# ---------------------------------------------------------------- samples


@pytest.fixture
def sample():
    masks = np.zeros((2, 10, 12), bool)
    masks[0, 1:4, 1:4], masks[1, 5:9, 5:12] = True, True
    semantic = (masks * np.array([2, 1])[:, None, None]).sum(0).astype(np.uint8)
    return Sample(
        "one", np.zeros((10, 12, 3), np.uint8), semantic, Instances(masks, np.array([2, 1]))
    )


def test_a_good_sample_passes(sample):
    assert check_sample(sample, num_classes=3) is None
    sample.semantic[0, 0] = 255  # void is allowed
    assert check_sample(sample, num_classes=3) is None
    assert check_sample(Sample("bare", sample.image), num_classes=3) is None


def test_faults_are_named(sample):
    assert "unknown values [2]" in check_sample(sample, num_classes=2)
    masks, labels = sample.instances.masks, sample.instances.labels
    faults = {
        "instance labels": Instances(masks, np.array([3, 1])),
        "1 labels for 2": Instances(masks, labels[:1]),
        "empty": Instances(masks & (np.arange(2) > 0)[:, None, None], labels),
    }
    for words, instances in faults.items():
        assert words in check_sample(
            dataclasses.replace(sample, instances=instances), num_classes=3
        )
    assert "too small" in check_sample(
        Sample("tiny", np.zeros((7, 12, 3), np.uint8)), num_classes=3
    )


def test_a_picture_without_objects_passes(sample):
    nothing = Instances(np.zeros((0, 10, 12), bool), np.zeros(0, np.int64))
    assert check_sample(dataclasses.replace(sample, instances=nothing), num_classes=3) is None
    assert nothing.boxes.shape == (0, 4) and nothing.crowds.shape == (0, 10, 12)


def test_a_sample_refuses_shapes_and_types_that_do_not_fit(sample):
    wrong = [
        {"image": sample.image.astype(np.float32)},
        {"image": sample.image[..., 0]},
        {"semantic": sample.semantic[:-1]},
        {"semantic": sample.semantic.astype(np.int64)},
        {"instances": Instances(sample.instances.masks[:, :-1], sample.instances.labels)},
        {
            "instances": Instances(
                sample.instances.masks, sample.instances.labels, crowds=np.zeros((1, 12, 10), bool)
            )
        },
    ]
    for change in wrong:
        with pytest.raises(ValueError, match="one"):
            dataclasses.replace(sample, **change)


def test_objects_may_be_known_by_their_drawn_boxes_alone(sample):
    def boxed(*boxes):
        instances = Instances(
            None,
            np.ones(len(boxes), np.int64),
            drawn_boxes=np.array(boxes, np.float64).reshape(-1, 4),
        )
        return dataclasses.replace(sample, instances=instances)

    whole = boxed([0, 0, 12, 10], [1.5, 2, 3, 4])
    assert (
        check_sample(whole, num_classes=3) is None and check_sample(boxed(), num_classes=3) is None
    )
    assert not whole.instances.has_masks and not len(whole.instances.crowds)
    assert whole.instances.boxes.tolist() == [[0, 0, 12, 10], [1.5, 2, 3, 4]]
    with pytest.raises(ValueError, match="boxes alone"):
        _ = whole.instances.masks
    for wrong in ([3, 3, 3, 5], [0, 0, 13, 10], [0, -1, 4, 4]):
        assert "a box is empty or leaves the image" in check_sample(boxed(wrong), num_classes=3)
    fewer = Instances(None, np.ones(1, np.int64), drawn_boxes=whole.instances.boxes)
    assert "1 labels for 2" in check_sample(
        dataclasses.replace(sample, instances=fewer), num_classes=3
    )


def test_instances_are_given_by_masks_or_by_boxes(sample):
    masks, boxes = sample.instances.masks, sample.instances.boxes
    for given in ((None, None), (masks, boxes)):
        with pytest.raises(ValueError, match="by masks, or by drawn boxes"):
            Instances(given[0], np.array([1, 2]), drawn_boxes=given[1])


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        mask_to_box(np.zeros((3, 3), bool))


# ---------------------------------------------------------------- picture files


def saved(folder, image, name="picture.png", **options):
    image.save(folder / name, **options)
    return folder / name


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)


def test_plain_rgb_comes_back(tmp_path, picture):
    np.testing.assert_array_equal(read_image(saved(tmp_path, Image.fromarray(picture))), picture)


def test_grey_becomes_three_equal_channels(tmp_path, picture):
    read = read_image(saved(tmp_path, Image.fromarray(picture[..., 0])))
    np.testing.assert_array_equal(read, picture[..., :1].repeat(3, 2))


def test_sixteen_bit_keeps_its_tones(tmp_path, picture):
    deep = picture[..., 0].astype(np.uint16) * 257  # 255 * 257 = 65535
    np.testing.assert_array_equal(
        read_image(saved(tmp_path, Image.fromarray(deep)))[..., 0], picture[..., 0]
    )


def test_cmyk_becomes_rgb(tmp_path):
    # magenta and yellow: red
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "ink.tiff")
    assert (read_image(path) == [255, 0, 0]).all()


def test_transparent_pixels_show_white_and_not_their_hidden_colour(tmp_path):
    pixels = np.full((10, 10, 4), (200, 0, 0, 255), np.uint8)
    pixels[:5, :, 3] = 0
    pixels[5, :, 3] = 128
    read = read_image(saved(tmp_path, Image.fromarray(pixels)))
    assert (read[:5] == 255).all() and (read[6:] == [200, 0, 0]).all()
    np.testing.assert_allclose(read[5], np.tile([227, 127, 127], (10, 1)), atol=1)


def test_a_palette_is_read_by_colour_and_its_transparent_entry_is_white(tmp_path):
    image = Image.fromarray(np.tile([0, 1], (10, 5)).astype(np.uint8)).convert("L")
    image.putpalette([10, 20, 30, 40, 50, 60])
    read = read_image(saved(tmp_path, image, "plain.png"))
    assert (read[:, ::2] == [10, 20, 30]).all() and (read[:, 1::2] == [40, 50, 60]).all()
    read = read_image(saved(tmp_path, image, "clear.png", transparency=0))
    assert (read[:, ::2] == 255).all() and (read[:, 1::2] == [40, 50, 60]).all()


# quarter turns to the left
@pytest.mark.parametrize(("tag", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_pictures_stand_upright(tmp_path, picture, tag, turns):
    exif = Image.Exif()
    exif[0x0112] = tag
    read = read_image(saved(tmp_path, Image.fromarray(picture), exif=exif))
    np.testing.assert_array_equal(read, np.rot90(picture, turns))
    assert image_size(tmp_path / "picture.png") == read.shape[:2]


@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_a_picture_is_turned_or_read_as_it_is_stored(tmp_path, tag, ending):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8], stored[:8, 24:] = 255, 128  # no turn and no mirror leaves it as it is
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path, Image.fromarray(stored), f"a.{ending}", exif=exif, **options)
    mirrored = np.fliplr(stored) if tag in (2, 4, 5, 7) else stored
    upright = np.rot90(mirrored, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[tag])
    for turned, expected in ((True, upright), (False, stored)):
        read = read_image(path, turned=turned)
        assert image_size(path, turned=turned) == read.shape[:2]
        np.testing.assert_allclose(read.astype(int), expected, atol=6)
    assert not lies_turned(path, (16, 32))
    assert lies_turned(path, (32, 16)) == (tag > 4)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "cut.gif"])
def test_truncated_files_are_refused(tmp_path, rng, name):
    path = saved(tmp_path, Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=name):
        read_image(path)


def test_files_that_are_no_pictures_are_refused_by_name(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("empty.jpg", "text.jpg", "folder.jpg", "absent.jpg"):
        for read in (read_image, image_size):
            with pytest.raises(ImageError, match=name):
                read(tmp_path / name)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"a.png: no regular file"):
            read(path)
    with pytest.raises(ImageError, match=r"a.png is no regular file"):
        read_true_labels(path, image_hw=(8, 8), num_classes=2)


def test_postscript_that_is_named_as_a_photo_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", None)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n%%EOF\n"
    (tmp_path / "photo.jpg").write_text(text)
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"photo.jpg: not a"):
            read(tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    "error", [struct.error, SyntaxError, KeyError, OverflowError, MemoryError, RecursionError]
)
def test_whatever_a_decoder_raises_names_the_file(tmp_path, picture, monkeypatch, error):
    def fail(*_):
        raise error("damaged\nhere")

    path = saved(tmp_path, Image.fromarray(picture))
    for name in ("PIL.Image.Image.getexif", "PIL.PngImagePlugin.PngImageFile._open"):
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            for read in (read_image, image_size):
                with pytest.raises(ImageError, match=r"picture.png: not a .*picture \(.+\)$"):
                    read(path)


@settings(max_examples=60, deadline=None)
@tried_with(
    ending=st.sampled_from(["jpg", "png", "gif", "tiff", "webp", "bmp", "jp2", "tga", "ppm"]),
    flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 255)), min_size=1, max_size=9),
    cut=st.integers(0, 3000),
)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, ending, flips, cut):
    path = tmp_path_factory.mktemp("damaged") / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **({"exif": exif} if ending in ("jpg", "png") else {}))
    damaged = bytearray(path.read_bytes())
    for place, change in flips:
        damaged[place % len(damaged)] ^= change
    path.write_bytes(damaged[: len(damaged) - (cut if cut % 2 else 0)])
    with contextlib.suppress(ImageError):
        assert read_image(path).dtype == np.uint8


def test_too_small_pictures_are_refused(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (1, 1)))
    with pytest.raises(ImageError, match="1 x 1"):
        read_image(path)
    assert read_image(path, min_side=1).shape == (1, 1, 3)


def test_too_large_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    # by the memory that they take, which hangs on their mode
    monkeypatch.setattr("mdlib.data.images.MAX_BYTES", 1200)
    assert read_image(saved(tmp_path, Image.new("RGB", (11, 10)))).shape == (10, 11, 3)
    for mode in ("RGBA", "I;16"):
        with pytest.raises(ImageError, match=r"11 x 10 pixels of mode .* more than .* GB: shrink"):
            read_image(saved(tmp_path, Image.new(mode, (11, 10))))


def test_a_picture_of_numbers_that_are_not_finite_is_refused(tmp_path):
    pixels = np.zeros((10, 10), np.float32)
    pixels[0, 0] = np.nan
    with pytest.raises(ImageError, match="finite"):
        read_image(saved(tmp_path, Image.fromarray(pixels), "deep.tiff"))


# ---------------------------------------------------------------- label maps


@pytest.fixture
def labels(rng):
    return rng.choice([0, 1, 2, 255], (10, 14)).astype(np.uint8)


@pytest.mark.parametrize("palette", [False, True])
def test_label_maps_are_read_by_index(tmp_path, labels, palette):
    image = Image.fromarray(labels)
    if palette:
        # all colours equal: read by colour, nothing would be left
        image.putpalette([7, 7, 7] * 256)
    read = read_true_labels(saved(tmp_path, image), image_hw=(10, 14), num_classes=3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)


def test_label_maps_that_do_not_fit_are_refused(tmp_path, labels):
    path = saved(tmp_path, Image.fromarray(labels), "map.png")
    with pytest.raises(ImageError, match=r"map.png.*\(10, 14\).*\(14, 10\)"):
        read_true_labels(path, image_hw=(14, 10), num_classes=3)
    with pytest.raises(ImageError, match=r"map.png.*unknown labels \[2\]"):
        read_true_labels(path, image_hw=(10, 14), num_classes=2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_colour_and_deep_label_maps_are_refused(tmp_path, mode):
    with pytest.raises(ImageError, match="palette or grey"):
        read_true_labels(
            saved(tmp_path, Image.new(mode, (14, 10))), image_hw=(10, 14), num_classes=3
        )


# ---------------------------------------------------------------- parts, and images kept


def sized(index, *, labelled=False):
    """A sample with an image of 300 bytes, with or without labels."""
    image = np.full((10, 10, 3), index, np.uint8)
    if not labelled:
        return Sample(f"s{index}", image)
    instances = Instances(np.ones((2, 10, 10), bool), np.array([1, 1]))
    return Sample(f"s{index}", image, np.zeros((10, 10), np.uint8), instances)


@pytest.mark.parametrize("view", [Cached, Subset])
def test_a_view_of_a_data_set_gives_what_the_data_set_gives(zoo_root, view):
    plain = zoo(zoo_root, count=3)
    other = view(plain)
    for attribute in ("ids", "classes", "name", "labels"):
        assert getattr(other, attribute) == getattr(plain, attribute)
    for _ in range(2):
        for i in (2, 0, 1):
            assert_same(other[i], plain[i])
            assert other.size(i) == plain.size(i)
            np.testing.assert_array_equal(other.image(i), plain[i].image)
            np.testing.assert_array_equal(other.semantic(i), plain[i].semantic)
            np.testing.assert_array_equal(other.instances(i).masks, plain[i].instances.masks)
    assert len(list(other)) == len(other) == 3
    with pytest.raises(IndexError):
        other[3]


@pytest.mark.parametrize(("budget", "times"), [(1200, 1), (1199, 3)])
def test_images_are_kept_where_all_of_them_fit(budget, times):
    plain = Samples([sized(i) for i in range(4)])
    cached = Cached(plain, budget=budget)
    for _ in range(3):
        assert [cached.image(i)[0, 0, 0] for i in range(4)] == [0, 1, 2, 3]
    assert plain.asked == {("image", i): times for i in range(4)}


def test_images_that_are_kept_never_take_more_than_the_budget():
    small = Sample("small", np.zeros((5, 10, 3), np.uint8))
    plain = Samples([sized(0), small, sized(2), small])  # 300, 150, 300 and 150 bytes
    cached = Cached(plain, budget=800)
    for _ in range(2):
        list(cached)
    assert [plain.asked["image", i] for i in range(4)] == [2, 1, 2, 1]
    assert sum(image.nbytes for image in cached.kept.values()) <= 800


def test_what_is_asked_for_is_decoded_and_nothing_else():
    plain = Samples([sized(i, labelled=True) for i in range(3)])
    part = Cached(Subset(plain, without={"s0"}))
    part.image(0)
    assert plain.asked == {("image", 1): 1}
    part.semantic(1)
    assert plain.asked == {("image", 1): 1, ("semantic", 2): 1}


def test_labels_that_are_not_there_are_an_error_that_names_the_image(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "sea.png")
    data = open_dataset("folder", root=tmp_path, split="train")
    assert data.labels == "none" and data[0].semantic is data[0].instances is None
    for asked in (data.semantic, Cached(data).instances, Subset(data).semantic):
        with pytest.raises(NoLabels, match="sea"):
            asked(0)


def test_a_subset_leaves_out_first_and_counts_then():
    data = Subset(Samples([sized(i) for i in range(5)]), without=["s1"], first=3)
    assert data.ids == ("s0", "s2", "s3") == tuple(sample.id for sample in data)
    part = Subset(data, part=range(1, 3))
    assert part.ids == ("s2", "s3") == tuple(sample.id for sample in part)


# ---------------------------------------------------------------- roles


def prepare(folder, zoo_root, *, composition=MIXTURE, **splits):
    """What 00 writes, for a zoo: role -> {"split", "count", "ids", "left_out", "labels"}."""
    roles = {
        role: {
            "left_out": [],
            "labels": "masks",
            "ids": [f"{entry['split']}_{i:05d}" for i in range(entry["count"])],
            **entry,
        }
        for role, entry in splits.items()
    }
    index = {"dataset": "zoo", "root": str(zoo_root), "classes": [], "splits": roles}
    write_json(folder / "index.json", index | {"composition": dataclasses.asdict(composition)})


def test_a_role_is_opened_without_the_images_that_were_left_out(tmp_path, zoo_root):
    prepare(
        tmp_path,
        zoo_root,
        train={"split": "dev", "count": 4, "left_out": ["dev_00001"]},
        val={"split": "val", "count": 2, "labels": "none"},
    )
    train = open_role(tmp_path, "train")
    assert train.ids == ("dev_00000", "dev_00002", "dev_00003")
    assert open_role(tmp_path, "train", first=2).ids == ("dev_00000", "dev_00002")
    assert len(open_role(tmp_path, "val")) == 2


def test_a_role_and_a_split_are_composed_as_00_composed_them(tmp_path, zoo_root):
    crowd = COMPOSITIONS["crowd"]
    prepare(tmp_path, zoo_root, composition=crowd, train={"split": "train", "count": 2})
    expected = open_dataset("zoo", root=zoo_root, split="train", composition=crowd)
    for data in (open_role(tmp_path, "train"), open_split(tmp_path, "train")):
        assert_same(data[1], expected[1])
    assert open_split(tmp_path, "sealed").composition == crowd
    with pytest.raises(ValueError, match="'test'"):
        open_split(tmp_path, "test")


def test_a_support_set_that_is_not_composed_is_opened_beside_the_zoo(tmp_path, zoo_root):
    photos = tmp_path / "photos"
    photos.mkdir()
    saved(photos, Image.new("RGB", (9, 9)), "a.png")
    prepare(tmp_path, zoo_root, train={"split": "train", "count": 1})
    index = read_json(tmp_path / "index.json")
    support = {"dataset": "folder", "root": str(photos), "split": "train", "count": None}
    support |= {"ids": ["a"], "left_out": [], "composition": None}
    write_json(tmp_path / "index.json", index | {"support": support})
    assert open_role(tmp_path, "support").ids == ("a",)


def test_a_role_that_a_run_does_not_have_is_named(tmp_path, zoo_root):
    prepare(tmp_path, zoo_root, train={"split": "train", "count": 2})
    with pytest.raises(StoreError, match="no val images, only train: see val_split"):
        open_role(tmp_path, "val")


@pytest.mark.parametrize(
    ("now", "count", "why"),
    [
        (["0", "a", "b", "z"], None, "1 new: 0"),
        (["0", "a", "b", "z"], 3, "1 new: 0; 1 gone: z"),
        (["a", "b", "z", "z2"], None, "1 new: z2"),
        (["a", "b"], None, "1 gone: z"),
        (["a", "b"], 3, "has 2 images, 3 were asked for"),
        ([], None, "no picture in"),
    ],
)
def test_a_data_set_that_lists_others_than_00_saw_is_refused(tmp_path, now, count, why):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in now:
        saved(photos, Image.new("RGB", (9, 9)), f"{name}.png")
    role = {"split": "train", "count": count, "ids": ["a", "b", "z"], "left_out": []}
    index = {"dataset": "folder", "root": str(photos), "splits": {"train": role}}
    write_json(tmp_path / "index.json", index)
    with pytest.raises(StoreError, match=f"train: .*{why}.*00_prepare_data"):
        open_role(tmp_path, "train")
    for name in now:
        (photos / f"{name}.png").unlink()
    for name in "abz":
        saved(photos, Image.new("RGB", (9, 9)), f"{name}.png")
    assert open_role(tmp_path, "train").ids == ("a", "b", "z")


def test_roles_without_masks_are_named_and_not_labelled(tmp_path, zoo_root, capsys):
    prepare(
        tmp_path,
        zoo_root,
        train={"split": "train", "count": 2},
        val={"split": "val", "count": 2, "labels": "boxes"},
    )
    assert labelled_roles(tmp_path) == {"train"}
    assert capsys.readouterr().out == (
        "val: drawn boxes alone: no masks of objects, so what needs them is left out\n"
    )
    assert mapped_roles(tmp_path) == {"train"}
    assert capsys.readouterr().out == "val: no label maps, so what needs them is left out\n"


def test_maps_alone_are_maps_and_no_objects(tmp_path, zoo_root, capsys):
    prepare(
        tmp_path,
        zoo_root,
        train={"split": "train", "count": 2, "labels": "maps"},
        val={"split": "val", "count": 2, "labels": "none"},
    )
    assert mapped_roles(tmp_path) == {"train"}
    assert capsys.readouterr().out == "val: no label maps, so what needs them is left out\n"
    assert labelled_roles(tmp_path) == set()
    assert capsys.readouterr().out.splitlines() == [
        "train: semantic maps alone: no objects, so what needs objects is left out",
        "val: no labels, so what needs them is left out",
    ]


def test_a_sample_that_cannot_be_used_is_a_sentence():
    class Broken(Samples):
        def image(self, i):
            if i == 1:
                raise ImageError("b.jpg: empty")
            return super().image(i)

    data = Broken([sized(0), sized(1), Sample("s2", np.zeros((4, 10, 3), np.uint8))])
    data.classes = ("background",)
    assert try_sample(data, 0)[0].id == "s0" and try_sample(data, 0)[1] is None
    assert try_sample(data, 1) == (None, "b.jpg: empty")
    sample, problem = try_sample(data, 2)
    assert sample is None and "too small" in problem
