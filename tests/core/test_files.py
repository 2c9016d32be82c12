"""Whole or absent: what is written, what is left after a failure, and what is refused on reading."""

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from mdlib.core.files import (
    StoreError,
    atomic,
    digest_bytes,
    digest_file,
    read_array,
    read_json,
    write_array,
    write_json,
    write_text,
)
from mdlib.core.paths import ROOT
from mdlib.core.weights import (
    WeightsError,
    check_architecture,
    load_weights,
    read_weights,
    save_weights,
)

# ---------------------------------------------------------------- files


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "artifact.txt"
    write_text(path, "old")

    def write_half():
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_write_replaces_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "new folder" / "artifact.txt"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_at_the_path_before_the_write_is_whole(tmp_path):
    with atomic(tmp_path / "artifact") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "artifact").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_oserror(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError):
            write_text(tmp_path / "artifact", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_a_folder_should_be_is_an_oserror(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        write_text(tmp_path / "file" / "artifact", "x")


WRITE = """
import sys
from pathlib import Path
import numpy as np
import torch
from mdlib.core.files import write_array, write_text
from mdlib.core.weights import save_weights
folder = Path(sys.argv[1])
write_text(folder / "text", "x")
save_weights(folder / "weights", {"w": torch.zeros(1)}, header={})
write_array(folder / "array", np.zeros(1))
"""


@pytest.mark.skipif(os.name != "posix", reason="file modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_what_is_written_is_the_users_choice(tmp_path, umask, mode):
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, umask=umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


# ---------------------------------------------------------------- JSON and digests


def test_json_comes_back_and_is_byte_stable(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ä"})
    write_json(tmp_path / "b.json", {"a": "ä", "b": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"a": "ä", "b": [1, 2.5, None]}
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_and_the_old_file_stays(tmp_path, value):
    write_json(tmp_path / "metrics.json", {"miou": 0.5})
    with pytest.raises(ValueError):
        write_json(tmp_path / "metrics.json", {"miou": value})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"miou": 0.5}


def test_missing_and_broken_json_name_the_file(tmp_path):
    with pytest.raises(StoreError, match=r"absent.json is missing"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(StoreError, match=r"half.json is not JSON"):
        read_json(tmp_path / "half.json")


def test_digests_see_content_and_the_borders_between_parts(tmp_path):
    assert digest_bytes(b"ab", b"c") == digest_bytes(b"ab", b"c") != digest_bytes(b"a", b"bc")
    (tmp_path / "file").write_bytes(b"abc")
    assert digest_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


# ---------------------------------------------------------------- weights


def test_weights_and_header_come_back(tmp_path):
    state = {"a": torch.randn(3, 4).T, "b": torch.tensor(7)}  # one not contiguous, one a scalar
    save_weights(tmp_path / "w", state, header={"architecture": {"depth": 6}, "step": 3})
    tensors, header = read_weights(tmp_path / "w")
    assert header == {"architecture": {"depth": 6}, "step": 3}
    assert (
        all(torch.equal(tensors[name], state[name]) for name in state)
        and tensors.keys() == state.keys()
    )


def test_load_weights_looks_at_the_architecture(tmp_path):
    save_weights(tmp_path / "w", {"a": torch.zeros(1)}, header={"architecture": {"depth": 6}})
    assert load_weights(tmp_path / "w", architecture={"depth": 6}).keys() == {"a"}
    with pytest.raises(WeightsError, match="12"):
        load_weights(tmp_path / "w", architecture={"depth": 12})


def test_a_pickle_is_not_weights(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_weights(tmp_path / "w.pt")


def test_safetensors_of_others_are_not_called_broken(tmp_path):
    # Hugging Face and timm write {"format": "pt"} into the header, which is no JSON; the file is
    # whole.
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "w", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="expected"):
        load_weights(tmp_path / "w", architecture={"depth": 6})


def test_the_architecture_of_a_header_is_given_back():
    made = {"network": "mask_rcnn", "backbone": "vit", "num_clusters": 8, "note": "more is allowed"}
    assert (
        check_architecture(
            {"architecture": made},
            network="mask_rcnn",
            keys=("backbone", "num_clusters"),
            source="w",
        )
        == made
    )


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"architecture": None},
        {"architecture": "mask_rcnn"},
        {"architecture": {"network": "deeplab_v3", "backbone": "vit"}},
        {"architecture": {"network": "mask_rcnn"}},
        {"architecture": {"backbone": "vit"}},
    ],
)
def test_a_header_of_another_network_or_without_its_keys_is_refused(header):
    with pytest.raises(
        WeightsError, match=r"w.safetensors holds .*, expected a mask_rcnn with backbone"
    ):
        check_architecture(header, network="mask_rcnn", keys=("backbone",), source="w.safetensors")


# ---------------------------------------------------------------- arrays


def test_arrays_come_back_under_any_name(rng, tmp_path):
    array = rng.normal(size=(3, 4)).astype(np.float32)
    write_array(tmp_path / "features.bin", array)  # numpy alone would append .npy
    np.testing.assert_array_equal(read_array(tmp_path / "features.bin"), array)


def test_pickled_objects_are_neither_written_nor_read(tmp_path):
    objects = np.array([{"a": 1}, None], object)
    with pytest.raises(ValueError):
        write_array(tmp_path / "a.npy", objects)
    np.save(tmp_path / "b.npy", objects, allow_pickle=True)
    (tmp_path / "c.npy").write_bytes(pickle.dumps([1, 2]))
    for name in ("b.npy", "c.npy"):
        with pytest.raises(StoreError, match=name):
            read_array(tmp_path / name)


def test_missing_and_truncated_arrays_name_the_file(tmp_path):
    with pytest.raises(StoreError, match=r"absent.npy is missing"):
        read_array(tmp_path / "absent.npy")
    write_array(tmp_path / "a.npy", np.zeros(100))
    whole = (tmp_path / "a.npy").read_bytes()
    for cut in (0, 20, 300):
        (tmp_path / "a.npy").write_bytes(whole[:cut])
        with pytest.raises(StoreError, match="not a whole"):
            read_array(tmp_path / "a.npy")
