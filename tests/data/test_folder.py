"""Folders as people have them: nested, mixed, linked, half broken, labelled or not."""

import os
import re
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdlib.core.files import StoreError
from mdlib.core.label_map import write_label_map
from mdlib.data import VOID, Cached, Subset, open_dataset
from mdlib.data.checks import check_dataset, try_sample
from mdlib.data.folder import FolderDataset, open_pictures
from mdlib.data.images import ImageError
from mdlib.data.names import LONGEST, make_ids, same_everywhere, shown


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (12, 10), (200, 30, 10))).save(path, **options)
    return path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def opened(root, **options):
    return FolderDataset(root, "train", **options)


# ---------------------------------------------------------------- what is a picture


def test_all_modes_sizes_and_endings_are_read(tmp_path, rng):
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {
        "rgb.JPG": (Image.new("RGB", (12, 10)), {}),
        "rgba.webp": (Image.new("RGBA", (30, 9)), {"lossless": True}),
        "grey.png": (Image.new("L", (8, 8)), {}),
        "grey_alpha.png": (Image.new("LA", (8, 8)), {}),
        "palette.gif": (Image.new("P", (9, 8)), {}),
        "bits.bmp": (Image.new("1", (16, 8)), {}),
        "ink.tiff": (Image.new("CMYK", (12, 10)), {}),
        "deep.png": (Image.fromarray(rng.integers(0, 2**16, (10, 12), dtype=np.uint16)), {}),
        "turned.jpg": (Image.new("RGB", (12, 10)), {"exif": turned}),
        "net.ppm": (Image.new("RGB", (12, 10)), {}),
    }
    for name, (image, options) in pictures.items():
        save(tmp_path / name, image, **options)
    data = opened(tmp_path)
    assert data.files == sorted(pictures) and data.classes == ("background",)
    for index, name in enumerate(data.files):
        sample, (width, height) = data[index], pictures[name][0].size
        assert sample.image.shape[:2] == (
            (width, height) if name == "turned.jpg" else (height, width)
        )
        assert sample.semantic is None and sample.instances is None


def test_nested_and_foreign_names_have_ids_that_name_files(tmp_path):
    for name in (
        "b.jpg",
        "2024/Sommer in Köln/海.png",
        "2024/a.b.jpeg",
        "Screenshot 10\u202fAM.png",
    ):
        save(tmp_path / name)
    data = opened(tmp_path)
    assert data.ids == ("2024__Sommer in Köln__海", "2024__a.b", "Screenshot 10\u202fAM", "b")
    for index, id_ in enumerate(data.ids):
        assert data[index].id == id_
        write_label_map(tmp_path / "maps" / f"{id_}.png", np.zeros((3, 3), np.uint8))
    assert len(list((tmp_path / "maps").iterdir())) == 4


def test_what_is_no_picture_is_skipped_and_reported(tmp_path, capsys):
    save(tmp_path / "a.jpg")
    for name in (
        ".hidden.jpg",
        ".cache/b.jpg",
        "__MACOSX/._a.jpg",
        "notes.txt",
        "film.mpg",
        "IMG_1.HEIC",
        "no ending",
    ):
        touch(tmp_path / name)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    data = opened(tmp_path)
    assert data.files == ["a.jpg"]
    assert data.skipped == {
        "links lead nowhere": ["gone.jpg", "self.jpg"],
        "files are no pictures": ["IMG_1.HEIC", "film.mpg", "no ending", "notes.txt"],
    }
    said = capsys.readouterr().out
    assert (
        "2 links lead nowhere" in said
        and "4 files are no pictures" in said
        and "and 1 more" in said
    )


def test_nothing_is_said_where_nothing_is_skipped(tmp_path, capsys):
    save(tmp_path / "a.jpg")
    assert opened(tmp_path).skipped == {} and not capsys.readouterr().out


def test_a_name_that_is_no_utf8_has_an_id_and_a_name_that_can_be_shown(tmp_path, capsys):
    try:
        (save(tmp_path / "a.jpg")).rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    except OSError:
        pytest.skip("this file system refuses such names")
    data = opened(tmp_path)
    assert data[0].image.shape == (10, 12, 3) and data.file_name(0) == "caf\\udce9.jpg"
    assert data.ids[0].startswith("caf_~")


def test_a_pipe_is_no_picture(tmp_path):
    save(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.png")
    data = opened(tmp_path)
    assert data.files == ["a.jpg"] and data.skipped == {"are no regular files": ["b.png"]}


def test_links_are_followed_and_loops_end(tmp_path):
    save(tmp_path / "photos" / "deep" / "a.jpg")
    save(tmp_path / "elsewhere" / "b.jpg")
    (tmp_path / "photos" / "aaa").symlink_to(tmp_path / "photos")  # sorts before `deep`
    (tmp_path / "photos" / "deep" / "up").symlink_to(tmp_path)  # a folder that holds this one
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "c.jpg").symlink_to(tmp_path / "photos" / "deep" / "a.jpg")
    assert opened(tmp_path / "photos").files == ["c.jpg", "deep/a.jpg", "more/b.jpg"]


def test_a_broken_picture_is_named_when_it_is_read(tmp_path):
    save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("not a picture")
    data = opened(tmp_path)
    assert data[0].id == "a"
    with pytest.raises(ImageError, match=r"b.jpg"):
        data[1]


# ---------------------------------------------------------------- ids


def test_ids_never_collide():
    files = [
        "a.jpg",
        "a.png",
        "A.JPG",
        "a/b.jpg",
        "a__b.jpg",
        "c.jpg",
        "x/" * 90 + "y.jpg",
        "x/" * 90 + "z.jpg",
        "海" * 80 + ".png",
    ]
    ids = make_ids(files)
    assert len({id_.casefold() for id_ in ids}) == len(files)
    assert [id_.partition("~")[0] for id_ in ids[:6]] == [
        "a",
        "a",
        "A",
        "a__b",
        "a__b",
        "c",
    ] and ids[5] == "c"
    assert all(len(id_.encode()) <= LONGEST and "/" not in id_ for id_ in ids)
    forged = f"{ids[0]}.jpg"  # a file that is named as the id of another
    assert len(set(make_ids([*files, forged]))) == len(files) + 1


def test_an_id_hangs_on_its_own_path_alone_unless_it_is_shared():
    assert make_ids(["sea.jpg", "sky.jpg"])[1] == make_ids(["sky.jpg"])[0] == "sky"
    assert make_ids(["sea.jpg", "sea.png"])[0] == make_ids(["sea.gif", "sea.jpg"])[1]


def test_an_id_does_not_hang_on_the_count(tmp_path):
    for name in ("sea.jpg", "sea.png"):
        save(tmp_path / name)
    assert opened(tmp_path, count=1).ids == opened(tmp_path).ids[:1]


strange = st.text(
    st.one_of(
        st.sampled_from('abAB.~ _:*?"<>|\\\n\x00\udce9é\u0301ß\u017f\u212a/'),
        st.characters(codec=None),
    ),
    min_size=1,
    max_size=40,
)
devices = st.sampled_from(["con", "NUL", "aux.b", "com1", "Lpt9.x", "prn ", "CONIN$", "x" * 300])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(strange, devices).map(lambda name: f"{name}.jpg"), unique=True))
def test_ids_hold_on_every_file_system(files):
    ids = make_ids(files)
    for form in ("NFC", "NFD", "NFKC"):
        folded = {unicodedata.normalize(form, id_).casefold() for id_ in ids}
        assert form == "NFKC" or len(folded) == len(files)
    assert len({same_everywhere(id_) for id_ in ids}) == len(files)
    for id_ in ids:
        assert 0 < len(id_.encode()) <= LONGEST  # no lone surrogate either
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029]', id_)
        assert not id_.startswith(".") and not id_.endswith((".", " "))
        assert not re.fullmatch(
            r"(?i)con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9]", id_.partition(".")[0].strip()
        )
    assert make_ids(files) == ids
    assert sorted(make_ids(files[::-1])) == sorted(ids)


@settings(max_examples=60, deadline=None)
@given(st.from_regex(r"x[A-Za-z0-9 ._-]{0,40}[a-z0-9]", fullmatch=True))
def test_an_ordinary_name_is_its_id(name):
    assert make_ids([f"{name}.jpg", f"sub/{name}.png"]) == [name, f"sub__{name}"]


def test_a_name_in_a_message_is_one_line_that_can_be_printed():
    assert shown("zoë\n\udce9.png\u2028") == "zoë\\n\\udce9.png\\u2028"
    shown("".join(map(chr, range(0x11000)))).encode()


# ---------------------------------------------------------------- wrong folders


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder at .*absent"):
        opened(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"a.jpg is a file; give the folder"):
        opened(save(tmp_path / "a.jpg"))
    touch(tmp_path / "texts" / "notes.txt")
    with pytest.raises(
        FileNotFoundError, match=r"no picture in .*texts: known endings are .*\.jpg"
    ):
        opened(tmp_path / "texts")
    with pytest.raises(ValueError, match="unknown folder split 'val'"):
        open_dataset("folder", root=tmp_path, split="val")


def test_one_picture_is_a_data_set_and_more_than_there_are_is_refused(tmp_path):
    save(tmp_path / "only.jpg")
    data = open_dataset("folder", root=tmp_path, split="train", count=1)
    assert len(data) == 1 and data[0].id == "only"
    with pytest.raises(IndexError):
        data[1]
    with pytest.raises(ValueError, match="has 1 images, 2 were asked for"):
        opened(tmp_path, count=2)


def test_a_folder_that_may_not_be_read_is_reported(tmp_path, monkeypatch):
    save(tmp_path / "a.jpg")
    save(tmp_path / "closed" / "b.jpg")
    listing = os.scandir

    def refuse(place):
        if str(place).endswith("closed"):
            raise PermissionError(place)
        return listing(place)

    monkeypatch.setattr(os, "scandir", refuse)
    data = opened(tmp_path)
    assert data.files == ["a.jpg"] and data.skipped == {"folders cannot be read": ["closed/"]}


def test_a_hundred_thousand_names_open_in_seconds_without_opening_one(tmp_path, monkeypatch):
    for part in range(100):
        (tmp_path / f"{part:03d}").mkdir()
        for number in range(1000):
            (tmp_path / f"{part:03d}" / f"IMG_{number:04d}.jpg").touch()
    monkeypatch.setattr(Image, "open", None)
    began = time.process_time()
    data = opened(tmp_path)
    assert time.process_time() - began < 10  # of this process: the machine may be busy
    assert len(data) == len(set(data.ids)) == 100_000 and data.ids[1000] == "001__IMG_0000"


# ---------------------------------------------------------------- label maps


@pytest.fixture
def labelled(tmp_path):
    """ROOT with images, masks and classes.txt: two pictures, one in a sub-folder."""
    for name in ("a", "sub/b"):
        save(tmp_path / "images" / f"{name}.jpg")
        labels = np.zeros((10, 12), np.uint8)
        labels[2:5], labels[5:7], labels[9] = 1, 2, VOID
        (tmp_path / "masks" / "sub").mkdir(parents=True, exist_ok=True)
        write_label_map(tmp_path / "masks" / f"{name}.png", labels)
    (tmp_path / "classes.txt").write_text("cat\ntraffic light\n")
    return tmp_path


@pytest.mark.parametrize("given", [".", "images"])
def test_label_maps_stand_beside_the_images(labelled, given):
    data = opened(labelled / given)
    assert data.classes == ("background", "cat", "traffic light") and data.ids == ("a", "sub__b")
    for sample in (data[0], data[1]):
        assert np.unique(sample.semantic).tolist() == [0, 1, 2, VOID] and sample.instances is None
    assert data.skipped == {}
    assert check_dataset("folder", labelled / given, splits=["train"]) == []


def test_label_maps_stand_in_the_folder_of_the_images(labelled):
    (labelled / "images" / "a.jpg").rename(labelled / "a.jpg")
    (labelled / "images" / "sub").rename(labelled / "sub")
    (labelled / "images").rmdir()
    data = opened(labelled)
    assert (
        data.ids == ("a", "sub__b") and (data[1].semantic == 2).sum() == 24 and data.skipped == {}
    )


def test_a_first_line_may_name_the_background(labelled):
    (labelled / "classes.txt").write_text("\ufeff_background_\ncat\n\ndog\n", encoding="utf-8")
    assert opened(labelled).classes == ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("names", "why"),
    [("", "it has 0"), ("background\n", "it has 0"), ("cat\ndog\ncat\n", "cat twice")],
)
def test_names_that_cannot_be_are_refused(labelled, names, why):
    (labelled / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match=f"classes.txt must hold 1 to 254 names.*{why}"):
        opened(labelled)


def test_names_that_are_not_utf_8_name_their_file(labelled):
    (labelled / "classes.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes.txt is not text in UTF-8"):
        open_dataset("folder", root=labelled, split="train")
    with pytest.raises(StoreError, match=r"classes.txt is not text in UTF-8"):
        open_pictures([labelled])


def test_label_maps_without_names_are_refused_and_never_taken_for_photos(labelled):
    (labelled / "classes.txt").unlink()
    with pytest.raises(
        ValueError, match=r"classes.txt is missing: one name a line. If it holds photos, rename it"
    ):
        opened(labelled)


def test_images_without_maps_and_maps_without_images_are_refused(labelled):
    save(labelled / "images" / "sub" / "c.jpg")
    with pytest.raises(ValueError, match=r"1 images have no label map: sub/c \(.png\)"):
        opened(labelled)
    (labelled / "images" / "sub" / "c.jpg").unlink()
    (labelled / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="1 label maps have no image: a"):
        opened(labelled)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (Image.new("RGB", (12, 10)), "a label map is a palette or grey PNG, this one is RGB"),
        (Image.new("L", (10, 12)), r"the label map is \(12, 10\), its image \(10, 12\)"),
        (Image.new("L", (12, 10), 3), r"unknown labels \[3\]; expected 0..2 or 255"),
    ],
)
def test_label_maps_that_do_not_fit_are_named(labelled, wrong, why):
    wrong.save(labelled / "masks" / "a.png")
    with pytest.raises(ImageError, match=why):
        opened(labelled)[0]
    (problem,) = check_dataset("folder", labelled, splits=["train"])
    assert "a.png" in problem


def test_the_check_lists_every_picture_that_is_none(tmp_path):
    save(tmp_path / "good.jpg")
    for number in range(7):
        (tmp_path / f"bad{number}.jpg").write_text("not a picture")
    problems = check_dataset("folder", tmp_path, splits=["train"])
    assert (
        len(problems) == 6
        and problems[0].count("bad0.jpg")
        and problems[-1] == "and 2 more pictures or label maps are wrong"
    )
    assert check_dataset("folder", tmp_path / "absent", splits=["train"]) == [
        f"no folder at {tmp_path / 'absent'}"
    ]


def test_maps_of_black_and_white_are_refused_and_one_right_map_is_enough(labelled):
    for name in ("a", "sub/b"):
        Image.fromarray(np.tile(np.uint8([0, 255]), (10, 6))).save(labelled / f"masks/{name}.png")
    problem = f"{labelled / 'masks'}: every object pixel is 255, which is void: write 1"
    assert check_dataset("folder", labelled, splits=["train"]) == [problem]
    write_label_map(labelled / "masks" / "a.png", np.ones((10, 12), np.uint8))
    assert check_dataset("folder", labelled, splits=["train"]) == []


@pytest.mark.parametrize("turned", [3, 6])
def test_a_labelled_picture_lies_as_its_label_map(labelled, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    pixels = np.zeros((10, 12, 3), np.uint8)
    pixels[2:5] = 255
    save(labelled / "images" / "a.png", Image.fromarray(pixels), exif=exif)
    (labelled / "images" / "a.jpg").unlink()
    sample = opened(labelled)[0]
    np.testing.assert_array_equal(sample.image, pixels)
    if turned == 6:  # a map of the turned picture
        write_label_map(labelled / "masks" / "a.png", np.rot90(sample.semantic, 3))
        data = opened(labelled)
        assert data.size(0) == (12, 10) and (data[0].image[data[0].semantic == 1] == 255).all()


def test_sources_are_the_folders_and_the_names_beside_them(labelled, tmp_path_factory):
    expected = [labelled / "images", labelled / "masks", labelled / "classes.txt"]
    for root in (labelled, labelled / "images"):
        data = opened(root)
        assert data.sources() == Subset(data).sources() == Cached(data).sources() == expected
    plain = tmp_path_factory.mktemp("plain")
    save(plain / "a.jpg")
    assert opened(plain).sources() == [plain]


# ---------------------------------------------------------------- pictures anywhere


def test_pictures_of_one_name_in_two_folders_have_two_ids(tmp_path):
    first, second = (save(tmp_path / folder / "a.png") for folder in ("one", "two"))
    data = open_pictures([first, second])
    assert len(set(data.ids)) == 2 and data.paths == [first, second]
    for image_id in data.ids:
        assert image_id.startswith("a~") and len(image_id) == len("a~") + 12
    # neither hangs on the order in which they are given, nor on the rest
    other = save(tmp_path / "b.png")
    again = open_pictures([other, second, first])
    assert again.ids == ("b", data.ids[1], data.ids[0])
    # two folders, each of which has a picture of that name
    assert open_pictures([tmp_path / "one", tmp_path / "two"]).ids == data.ids


def test_the_pictures_of_a_folder_have_the_ids_of_its_data_set(tmp_path):
    for name in (
        "images/a.png",
        "images/a.bmp",
        "images/sub/b.png",
        "masks/a.png",
        "masks/sub/b.png",
    ):
        save(tmp_path / name)
    with pytest.raises(StoreError, match=r"classes\.txt is missing"):
        open_pictures([tmp_path])
    (tmp_path / "classes.txt").write_text("cat\n")
    data = open_pictures([tmp_path])
    assert data.ids == tuple(make_ids(["a.bmp", "a.png", "sub/b.png"]))
    assert all(path.parts[-2:] != ("masks", "a.png") for path in data.paths) and len(data) == 3


def test_pictures_are_files_as_given_and_all_below_a_folder(tmp_path):
    moving, still = save(tmp_path / "x.gif"), save(tmp_path / "y.png")
    touch(tmp_path / "notes.txt")
    save(tmp_path / "deep" / "z.jpg", Image.new("RGB", (20, 9)))
    data = open_pictures([tmp_path])
    assert data.ids == ("deep__z", "x", "y") and data.labels == "none"
    assert data.size(0) == (9, 20) == data.image(0).shape[:2]
    assert [data.file_name(i) for i in (1, 2)] == [str(moving), str(still)]
    assert open_pictures([still, tmp_path / "deep"]).ids == ("y", "z")
    sample = data[1]
    assert sample.id == "x" and sample.semantic is None and sample.instances is None


def test_a_missing_path_and_a_folder_without_pictures_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="absent does not exist"):
        open_pictures([save(tmp_path / "a.png"), tmp_path / "absent"])
    with pytest.raises(StoreError, match=r"no picture in .*empty: known endings are .*png"):
        open_pictures([tmp_path / "empty"])


def test_a_picture_that_is_given_twice_is_opened_once(tmp_path):
    path = save(tmp_path / "a.png")
    (tmp_path / "link").symlink_to(tmp_path)
    assert open_pictures([tmp_path, path, tmp_path / "link"]).ids == ("a",)


def test_three_pictures_of_nearly_one_name_have_three_ids(tmp_path):
    for name in ("one/photo.jpg", "one/photo__2.jpg", "two/photo.jpg", "two/PHOTO.png"):
        save(tmp_path / name)
    ids = open_pictures([tmp_path / "one", tmp_path / "two"]).ids
    assert len({same_everywhere(id_) for id_ in ids}) == 4


def test_what_programs_leave_beside_pictures_is_no_picture(tmp_path):
    for name in ("a.png", "._a.png", "__MACOSX/b.png", ".ipynb_checkpoints/a-checkpoint.png"):
        save(tmp_path / name)
    assert open_pictures([tmp_path]).ids == opened(tmp_path).ids == ("a",)


def test_folders_are_left_out_but_where_they_are_asked_for(tmp_path):
    for name in ("a.png", "out/b.png"):
        save(tmp_path / name)
    out = tmp_path / "out"
    assert open_pictures([tmp_path], without=[out]).ids == ("a",)
    assert open_pictures([out], without=[out, tmp_path / "absent"]).ids == ("b",)


@pytest.mark.parametrize("count", [0, -5])
def test_a_count_below_one_is_refused(tmp_path, count):
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"has 1 images, {count} were asked for"):
        opened(tmp_path, count=count)


def test_a_strip_that_is_too_long_is_left_out_and_another_is_not(tmp_path):
    for name, size in (("long", (801, 8)), ("high", (8, 900)), ("strip", (3000, 32))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    data = FolderDataset(tmp_path, "train")
    assert data.ids == ("high", "long", "strip")
    for i, sides in ((0, "8 x 900"), (1, "801 x 8")):
        sample, problem = try_sample(data, i)
        assert sample is None and f"{sides} pixels, a strip of more than 100 to 1" in problem
    assert try_sample(data, 2)[1] is None
