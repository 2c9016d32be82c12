"""Label maps survive their file, whatever their depth."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mdlib.core.files import StoreError
from mdlib.core.label_map import read_label_map, void_of, write_label_map


def test_void_is_the_largest_label_of_a_depth():
    assert void_of(np.uint8) == 255 and void_of("uint16") == 65535
    with pytest.raises(ValueError, match="uint8 or uint16, got int64"):
        void_of(np.int64)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))
    )
)
def test_labels_and_void_survive_the_file(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("maps") / "map.png"
    write_label_map(path, labels)
    again = read_label_map(path)
    np.testing.assert_array_equal(again, labels)
    np.testing.assert_array_equal(again == void_of(again.dtype), labels == void_of(labels.dtype))


@pytest.mark.parametrize(("largest", "bits"), [(254, 8), (255, 16), (300, 16), (65535, 16)])
def test_labels_of_300_clusters_need_16_bits(tmp_path, largest, bits):
    labels = np.array([[0, 1], [254, largest]], np.uint16)
    write_label_map(tmp_path / "map.png", labels)
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == {8: "P", 16: "I;16"}[bits]
    again = read_label_map(tmp_path / "map.png")
    assert again.dtype == f"uint{bits}"
    np.testing.assert_array_equal(again, labels)


def test_label_maps_come_back_by_index_with_vocs_colours(rng, tmp_path):
    labels = rng.choice([0, 1, 15, 255], (9, 11))
    write_label_map(tmp_path / "map.png", labels)
    image = Image.open(tmp_path / "map.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    # Colours of VOC's devkit: aeroplane, person, void.
    colours = {1: (128, 0, 0), 15: (192, 128, 128), 255: (224, 224, 192), 0: (0, 0, 0)}
    np.testing.assert_array_equal(
        np.asarray(image.convert("RGB")), [[colours[v] for v in row] for row in labels]
    )


@pytest.mark.parametrize("labels", [[[65536]], [[-1]], [[0.5]]])
def test_label_maps_refuse_what_16_bits_cannot_hold(tmp_path, labels):
    with pytest.raises(ValueError):
        write_label_map(tmp_path / "map.png", np.array(labels))
    assert not list(tmp_path.iterdir())


def test_label_maps_are_read_as_they_were_written(rng, tmp_path):
    labels = rng.choice([0, 1, 15, 254, 255], (9, 11)).astype(np.uint8)
    write_label_map(tmp_path / "map.png", labels)
    read = read_label_map(tmp_path / "map.png")
    assert read.dtype == np.uint8 and read.flags.writeable
    np.testing.assert_array_equal(read, labels)
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "grey.png"), labels)
    Image.fromarray(labels == 15).save(tmp_path / "two.png")
    read = read_label_map(tmp_path / "two.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels == 15)


def png_of(labels, *, bits, palette):
    """A PNG of (H, W) labels as its standard says, in any depth."""
    texts = ["".join(f"{label:0{bits}b}" for label in row) for row in labels]
    texts = [text.ljust(-(-len(text) // 8) * 8, "0") for text in texts]
    rows = b"".join(b"\0" + int(text, 2).to_bytes(len(text) // 8, "big") for text in texts)
    head = struct.pack(">IIBBBBB", *labels.shape[::-1], bits, 3 if palette else 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if palette:
        chunks.insert(1, (b"PLTE", bytes(3 * 2**bits)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("bits", "palette"), [(b, p) for p in (False, True) for b in (1, 2, 4, 8)] + [(16, False)]
)
def test_labels_of_any_depth_are_what_stands_in_the_file(rng, tmp_path, bits, palette):
    labels = rng.integers(0, 2**bits, (7, 11))
    labels[0, :2] = 0, 2**bits - 1
    (tmp_path / "map.png").write_bytes(png_of(labels, bits=bits, palette=palette))
    read = read_label_map(tmp_path / "map.png")
    assert read.dtype == (np.uint16 if bits == 16 else np.uint8)
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_picture_is_no_label_map(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "picture.png")
    with pytest.raises(
        StoreError, match=f"picture.png: .* palette or grey PNG, this one is {mode}"
    ):
        read_label_map(tmp_path / "picture.png")


def test_missing_and_truncated_label_maps_name_the_file(rng, tmp_path):
    with pytest.raises(StoreError, match=r"absent.png is missing"):
        read_label_map(tmp_path / "absent.png")
    write_label_map(tmp_path / "map.png", rng.integers(0, 256, (40, 40)))
    whole = (tmp_path / "map.png").read_bytes()
    assert len(whole) > 1500
    for cut in (0, 4, 20, 60, 1000, len(whole) - 30):
        (tmp_path / "map.png").write_bytes(whole[:cut])
        with pytest.raises(StoreError, match=r"map.png is not a whole PNG"):
            read_label_map(tmp_path / "map.png")


def test_a_damaged_label_map_is_refused(rng, tmp_path):
    write_label_map(tmp_path / "map.png", rng.integers(0, 256, (40, 40)))
    damaged = bytearray((tmp_path / "map.png").read_bytes())
    damaged[1200] ^= 0xFF
    (tmp_path / "map.png").write_bytes(damaged)
    with pytest.raises(StoreError, match=r"map.png is not a whole PNG"):
        read_label_map(tmp_path / "map.png")
