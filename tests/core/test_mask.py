"""The one type of a mask, and its files: against pycocotools, and against its own pixels."""

import json
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mdlib.core.files import StoreError
from mdlib.core.mask import Mask, Masks, encode_mask, mask_to_box, read_masks, write_masks


def some_masks(rng, count=3):
    """Masks of images a, b, ... of 9 x 11 pixels, in the clusters 0, 1, ..."""
    return [
        Mask.from_pixels(rng.random((9, 11)) < 0.4, image_id=name, score=i / 7, cluster=i)
        for i, name in enumerate("abcdef"[:count])
    ]


SIZES = {"a": (9, 11), "b": (9, 11), "c": (9, 11), "without": (4, 5)}

# ---------------------------------------------------------------- one mask


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_run_lengths_equal_pycocotools_and_come_back(rng, density):
    pixels = rng.random((13, 17)) < density
    mask = Mask.from_pixels(pixels, image_id="a")
    theirs = coco_mask.encode(np.asfortranarray(pixels, np.uint8))
    assert (
        mask.rle == {"size": [13, 17], "counts": theirs["counts"].decode()} == encode_mask(pixels)
    )
    assert mask.pixels().dtype == bool and mask.size == (13, 17)
    np.testing.assert_array_equal(mask.pixels(), pixels)


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_box_and_area_are_those_of_the_pixels(rng, density):
    pixels = rng.random((13, 17)) < density
    pixels[4, 6] = True
    mask = Mask.from_pixels(pixels, image_id="a")
    assert mask.area == pixels.sum() and mask.box == mask_to_box(pixels)


def test_an_empty_mask_has_no_box():
    mask = Mask.from_pixels(np.zeros((3, 4), bool), image_id="a")
    assert mask.box is None and mask.area == 0
    with pytest.raises(ValueError, match="no box"):
        mask_to_box(mask.pixels())


@pytest.mark.parametrize("pixels", [np.zeros((2, 3), np.uint8), np.zeros((1, 2, 3), bool)])
def test_pixels_of_another_form_are_refused(pixels):
    with pytest.raises(ValueError, match=r"a mask is \(H, W\) bool, got"):
        Mask.from_pixels(pixels, image_id="a")


def test_outlines_of_coco_become_run_lengths():
    square = [1, 1, 4, 1, 4, 4, 1, 4]
    expected = np.zeros((6, 12), bool)
    expected[1:4, 1:4] = expected[1:4, 7:10] = True
    shifted = [value + 6 * (i % 2 == 0) for i, value in enumerate(square)]

    def pixels(outline, image_hw=(6, 12)):
        annotation = {"segmentation": outline}
        return Mask.from_coco(annotation, image_id="a", image_hw=image_hw).pixels()

    np.testing.assert_array_equal(pixels([square, shifted]), expected)
    assert not pixels([]).any()
    # run lengths go down the columns and begin with zeros: 0 1, 1 1, 1 0
    mask = np.array([[0, 1, 1], [1, 1, 0]], bool)
    np.testing.assert_array_equal(pixels({"size": [2, 3], "counts": [1, 4, 1]}, (2, 3)), mask)
    np.testing.assert_array_equal(pixels(encode_mask(mask), (2, 3)), mask)
    with pytest.raises(ValueError, match="three points"):
        pixels([[1, 1, 2, 2]])
    with pytest.raises(ValueError, match="an RLE of size"):
        pixels({"size": [2, 3], "counts": [1, 4, 1]})


def test_a_mask_comes_back_from_its_annotation(rng):
    for mask in (*some_masks(rng), Mask.from_pixels(np.ones((2, 3), bool), image_id="x")):
        entry = mask.to_coco(number=4, image_number=7)
        assert entry["id"] == 4 and entry["image_id"] == 7
        again = Mask.from_coco(entry, image_id=mask.image_id, image_hw=mask.size)
        assert again == mask


# ---------------------------------------------------------------- the masks of a data set


def test_masks_are_gathered_by_image_in_their_order(rng):
    a, b, c = some_masks(rng)
    masks = Masks([b, a, c, b])
    assert masks.by_image(["a", "without", "b", "c"]) == [[a], [], [b, b], [c]]
    with pytest.raises(ValueError, match="a mask of 'c', which the data set does not hold"):
        masks.by_image(["a", "b"])
    with pytest.raises(ValueError, match="an id stands there twice"):
        masks.by_image(["a", "b", "c", "a"])
    assert list(masks[1:3]) == [a, c] and masks[0] is b and len(masks) == 4


def test_clusters_are_given_once_for_each_mask(rng):
    masks = Masks(some_masks(rng))
    assert [m.cluster for m in masks.with_clusters(np.array([5, 0, 2]))] == [5, 0, 2]
    with pytest.raises(ValueError):
        masks.with_clusters([1, 2])


# ---------------------------------------------------------------- files


def test_masks_come_back_from_their_file(rng, tmp_path):
    masks = some_masks(rng)
    named = [f"cluster {i}" for i in range(3)]
    written = write_masks(tmp_path / "masks.json", masks, images=SIZES, categories=named)
    assert list(written) == masks == list(read_masks(tmp_path / "masks.json"))
    write_masks(tmp_path / "again.json", written, images=SIZES, categories=named)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "masks.json").read_bytes()


@pytest.mark.parametrize("clustered", [True, False])
def test_pycocotools_opens_a_file_of_masks(rng, tmp_path, clustered, capsys):
    masks = some_masks(rng)
    if not clustered:
        masks = [Mask(m.image_id, m.rle, m.score) for m in masks]
    path, titles = tmp_path / "masks.json", ["x", "y", "z"] if clustered else []
    write_masks(path, masks, images=SIZES, categories=titles, more={"b": {"file_name": "b.jpg"}})
    coco = COCO(str(path))
    assert [entry["name"] for entry in coco.loadImgs(coco.getImgIds())] == list(SIZES)
    assert coco.imgs[2]["file_name"] == "b.jpg" and coco.imgs[4]["height"] == 4
    names = [entry["name"] for entry in coco.loadCats(coco.getCatIds())]
    assert names == (titles or ["object"])
    for mask, entry in zip(masks, coco.loadAnns(coco.getAnnIds()), strict=True):
        np.testing.assert_array_equal(coco.annToMask(entry).astype(bool), mask.pixels())
        x0, y0, x1, y1 = mask.box
        assert entry["bbox"] == [x0, y0, x1 - x0, y1 - y0] and entry["area"] == mask.area
        assert coco_mask.area(entry["segmentation"]) == mask.area and entry["iscrowd"] == 0
        assert coco.cats[entry["category_id"]]["name"] in names
    assert [m.cluster for m in read_masks(path)] == [m.cluster for m in masks]


def test_masks_are_written_one_by_one_and_read_without_their_pixels(tmp_path):
    alive, most = weakref.WeakSet(), 0

    class Pixels(np.ndarray):  # a plain array cannot be in a WeakSet
        __hash__ = object.__hash__

    def made(count=40, side=512):
        nonlocal most
        for i in range(count):
            pixels = np.zeros((side, side), bool).view(Pixels)
            pixels[i : 3 * i, 5 : 5 + i] = True
            alive.add(pixels)
            most = max(most, len(alive))
            yield Mask.from_pixels(pixels, image_id=str(i), score=0.5)

    images = {str(i): (512, 512) for i in range(40)}
    write_masks(tmp_path / "masks.json", made(), images=images)
    assert most <= 3  # the one that is written, and the one that is made
    tracemalloc.start()
    read = read_masks(tmp_path / "masks.json").with_clusters([1] * 40)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read) == 40 and held < 0.05 * 40 * 512 * 512
    assert read[7].pixels().sum() == 14 * 7 and read[7].cluster == 1


def test_a_mask_of_another_image_or_size_is_refused_and_no_file_is_left(rng, tmp_path):
    for images in ({"b": (9, 11)}, {"a": (9, 12)}):
        with pytest.raises(ValueError, match="a mask of 'a'"):
            write_masks(tmp_path / "masks.json", some_masks(rng, 1), images=images)
    assert not list(tmp_path.iterdir())


def test_a_file_of_masks_that_breaks_off_is_refused(rng, tmp_path):
    path = tmp_path / "masks.json"
    (mask,) = some_masks(rng, 1)
    with pytest.raises(ValueError):
        write_masks(path, [Mask("a", mask.rle, float("nan"))], images=SIZES)
    assert not list(tmp_path.iterdir())
    write_masks(path, [mask], images=SIZES)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoreError, match="not JSON"):
        read_masks(path)
    path.write_text(json.dumps({"annotations": [{"mask": 1}]}))
    with pytest.raises(StoreError, match="no file of masks"):
        read_masks(path)


# ---------------------------------------------------------------- any mask

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
ANY_MASK = SHAPES.flatmap(
    lambda hw: st.one_of(
        arrays(bool, hw),  # mostly background, as hypothesis draws
        arrays(bool, hw, elements=st.booleans(), fill=st.booleans()),
        st.sampled_from([np.zeros(hw, bool), np.ones(hw, bool), np.indices(hw).sum(0) % 2 == 1]),
    )
)
any_mask = given(pixels=ANY_MASK)
some = settings(max_examples=60, deadline=None)


@some
@any_mask
def test_any_mask_comes_back_from_its_run_lengths(pixels):
    mask = Mask.from_pixels(pixels, image_id="a")
    np.testing.assert_array_equal(mask.pixels(), pixels)
    assert mask.pixels().dtype == bool and mask.size == pixels.shape


@some
@any_mask
def test_box_and_area_of_any_mask_are_those_of_its_pixels(pixels):
    mask = Mask.from_pixels(pixels, image_id="a")
    assert mask.area == pixels.sum()
    assert mask.box == (mask_to_box(pixels) if pixels.any() else None)
    if mask.box is not None:
        x0, y0, x1, y1 = mask.box
        assert pixels[y0:y1, x0:x1].sum() == mask.area


@some
@given(
    pixels=ANY_MASK,
    score=st.floats(0, 1),
    cluster=st.one_of(st.none(), st.integers(0, 65533)),
    image_id=st.text(min_size=1),
)
def test_any_mask_comes_back_from_coco_and_from_a_file(
    tmp_path_factory, pixels, score, cluster, image_id
):
    mask = Mask.from_pixels(pixels, image_id=image_id, score=score, cluster=cluster)
    annotation = json.loads(json.dumps(mask.to_coco(number=1, image_number=1)))
    assert Mask.from_coco(annotation, image_id=image_id, image_hw=pixels.shape) == mask
    path = tmp_path_factory.mktemp("masks") / "masks.json"
    write_masks(path, [mask], images={image_id: mask.size})
    assert list(read_masks(path)) == [mask]


@some
@any_mask
def test_run_lengths_of_any_mask_as_a_list_are_the_same_mask(pixels):
    """As COCO stores crowds: counts uncompressed, column by column, background first."""
    flat = np.concatenate([[False], pixels.ravel("F"), [not pixels.ravel("F")[-1]]])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], starts])).tolist()
    outline = {"size": list(pixels.shape), "counts": counts}
    found = Mask.from_coco({"segmentation": outline}, image_id="a", image_hw=pixels.shape)
    np.testing.assert_array_equal(found.pixels(), pixels)
