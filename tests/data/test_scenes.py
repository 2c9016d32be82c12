"""Stored scenes: the same samples to the bit, and a clear word where the file is missing, torn or
another's.
"""

import numpy as np
import pytest

from mdlib.core.files import StoreError
from mdlib.core.paths import ROOT
from mdlib.data import Instances, Sample, open_dataset
from mdlib.data.compose import COMPOSITIONS
from mdlib.data.scenes import StoredScenes, write_scenes
from mdlib.data.zoo import ZooDataset


@pytest.fixture(scope="module")
def zoo():
    return open_dataset("zoo", root=ROOT / "data" / "zoo", split="dev", count=12)


def opened(path, zoo):
    return StoredScenes(path, name=zoo.name, classes=zoo.classes, ids=zoo.ids)


def test_stored_scenes_are_those_that_were_composed(tmp_path, zoo):
    write_scenes(tmp_path / "scenes.npz", [zoo[i] for i in range(len(zoo))])
    stored = opened(tmp_path / "scenes.npz", zoo)
    assert len(stored) == len(zoo) == 12 and stored.ids == zoo.ids and stored.classes == zoo.classes
    # scenes of one animal and of more
    assert {len(zoo[i].instances.labels) for i in range(12)} > {1}
    for i in range(12):
        kept, fresh = stored[i], zoo[i]
        assert kept.id == fresh.id and kept.instances.names == fresh.instances.names
        for one, other in ((kept.image, fresh.image), (kept.semantic, fresh.semantic)):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        np.testing.assert_array_equal(kept.instances.masks, fresh.instances.masks)
        np.testing.assert_array_equal(kept.instances.labels, fresh.instances.labels)
    for outside in (-1, 12):
        with pytest.raises(IndexError):
            stored[outside]


def test_a_width_that_is_no_multiple_of_eight_comes_back(tmp_path, zoo):
    mask = np.zeros((1, 5, 11), bool)
    mask[0, 1:3, 9:] = True
    sample = Sample(
        "a",
        np.zeros((5, 11, 3), np.uint8),
        mask[0].astype(np.uint8),
        Instances(mask, np.array([1]), ("x",)),
    )
    write_scenes(tmp_path / "s.npz", [sample])
    stored = StoredScenes(tmp_path / "s.npz", name="s", classes=("background", "thing"), ids=["a"])
    np.testing.assert_array_equal(stored[0].instances.masks, mask)


def test_scenes_without_objects_come_back(tmp_path):
    empty = ZooDataset(ROOT / "data" / "zoo", "dev", 3, composition=COMPOSITIONS["empty"])
    write_scenes(tmp_path / "scenes.npz", list(empty))
    stored = opened(tmp_path / "scenes.npz", empty)
    for kept, fresh in zip(stored, empty, strict=True):
        np.testing.assert_array_equal(kept.image, fresh.image)
        assert not kept.semantic.any() and kept.instances.masks.shape == (0, 128, 128)
        assert kept.instances.names == () and kept.instances.labels.dtype == np.int64


def test_a_scene_whose_objects_are_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not known"):
        write_scenes(tmp_path / "s.npz", [Sample("a", np.zeros((8, 8, 3), np.uint8))])


def test_a_missing_torn_or_foreign_file_is_refused(tmp_path, zoo):
    path = tmp_path / "scenes.npz"
    with pytest.raises(StoreError, match="missing"):
        opened(path, zoo)
    write_scenes(path, [zoo[0]])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(StoreError, match="no scenes"):
        opened(path, zoo)
    np.savez(path, images=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(StoreError, match="no scenes"):
        opened(path, zoo)
