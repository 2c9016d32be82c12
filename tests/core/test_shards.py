"""Finished parts of a long computation: a run that was killed and goes on is the run that was not."""

import numpy as np
import pytest

from mdlib.core import shards
from mdlib.core.files import write_array
from mdlib.core.mask import Mask
from mdlib.core.shards import ARRAYS, MASKS, in_shards, write_rows

COUNT = 7


@pytest.fixture(autouse=True)
def three_a_part(monkeypatch):
    monkeypatch.setattr(shards, "SIZE", 3)


def array(i):
    """Of another shape each; the second has no value at all."""
    return np.random.default_rng(i).normal(size=(int(i != 1), i + 1)).astype(np.float32)


def masks(i):
    """No mask, one or two; those of cluster None and of a cluster."""
    drawn = np.random.default_rng(i).random((i % 3, 5, 4 + i)) < 0.5
    cluster = None if i < 4 else 280
    return [
        Mask.from_pixels(pixels, image_id=f"ä{i}", score=1 / (3 + i), cluster=cluster)
        for pixels in drawn
    ]


def arrays_of(part):
    return map(array, part)


def masks_of(part):
    return (mask for i in part for mask in masks(i))


CASES = pytest.mark.parametrize(("make", "form"), [(arrays_of, ARRAYS), (masks_of, MASKS)])


def same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == b if isinstance(a, Mask) else (a.dtype == b.dtype and np.array_equal(a, b))


class Asked:
    """`make` that notes the parts it was asked for."""

    def __init__(self, make):
        self.make, self.parts = make, []

    def __call__(self, part):
        self.parts.append((part.start, part.stop))
        return self.make(part)


@CASES
def test_what_is_kept_in_parts_is_what_is_made_at_once(tmp_path, make, form):
    same(in_shards(tmp_path, COUNT, make, form=form), make(range(COUNT)))
    never = Asked(None)
    same(in_shards(tmp_path, COUNT, never, form=form), make(range(COUNT)))
    assert not never.parts


@CASES
@pytest.mark.parametrize("stopped_after", [1, 3, 4, 6])
def test_a_killed_computation_goes_on_at_the_part_it_was_in(
    tmp_path, capsys, make, form, stopped_after
):
    def dies(part):
        for i in part:
            if i == stopped_after:
                raise KeyboardInterrupt
            yield from make(range(i, i + 1))

    with pytest.raises(KeyboardInterrupt):
        list(in_shards(tmp_path, COUNT, dies, form=form))
    asked, whole = Asked(make), stopped_after // 3
    same(in_shards(tmp_path, COUNT, asked, form=form), make(range(COUNT)))
    assert asked.parts == [(0, 3), (3, 6), (6, 7)][whole:]
    said = f"{whole} of 3 parts were kept before: {tmp_path.name}\n" if whole else ""
    assert capsys.readouterr().out == said
    assert len(list(tmp_path.iterdir())) == 3  # and nothing half-written


def torn(path):
    path.write_bytes(path.read_bytes()[:-30])


def zeros_in_the_middle(path):
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(60) + content[160:])


def nothing_but_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


@CASES
@pytest.mark.parametrize("damage", [torn, zeros_in_the_middle, nothing_but_zeros, empty])
def test_a_broken_part_is_made_again_with_a_line(tmp_path, capsys, make, form, damage):
    list(in_shards(tmp_path, COUNT, make, form=form))
    broken = sorted(tmp_path.iterdir())[1]
    damage(broken)
    asked = Asked(make)
    same(in_shards(tmp_path, COUNT, asked, form=form), make(range(COUNT)))
    assert asked.parts == [(3, 6)]
    assert f"made again: {broken} is not" in capsys.readouterr().out
    same(in_shards(tmp_path, COUNT, Asked(None), form=form), make(range(COUNT)))


def test_a_part_is_a_whole_number_of_batches(tmp_path):
    asked = Asked(arrays_of)
    list(in_shards(tmp_path, 17, asked, form=ARRAYS, batch=4))
    assert asked.parts == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 17)]
    asked = Asked(arrays_of)
    list(in_shards(tmp_path / "larger", 17, asked, form=ARRAYS, batch=2))
    assert asked.parts == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 17)]


def test_parts_of_another_size_are_not_mistaken(tmp_path, monkeypatch):
    list(in_shards(tmp_path, COUNT, arrays_of, form=ARRAYS))
    monkeypatch.setattr(shards, "SIZE", 2)
    same(in_shards(tmp_path, COUNT, arrays_of, form=ARRAYS), arrays_of(range(COUNT)))


def test_without_a_folder_nothing_is_kept_and_items_come_one_by_one():
    made = []
    found = in_shards(
        None, COUNT, lambda part: (made.append(i) or array(i) for i in part), form=ARRAYS
    )
    next(found), next(found)
    assert made == [0, 1]


@pytest.mark.parametrize("folder", [True, False])
def test_nothing_has_no_parts(tmp_path, folder):
    assert not list(in_shards(tmp_path if folder else None, 0, arrays_of, form=ARRAYS))


# ---------------------------------------------------------------- rows


def test_rows_written_one_by_one_are_the_file_of_their_stack(tmp_path, rng):
    rows = rng.normal(size=(4, 3, 5)).astype(np.float16)
    turned = (np.asfortranarray(row) for row in rows)  # whatever their order in memory
    write_rows(tmp_path / "rows.npy", turned, count=4)
    write_array(tmp_path / "stack.npy", rows)
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "stack.npy").read_bytes()


@pytest.mark.parametrize(
    "rows", [[np.zeros(3)], [np.zeros(3), np.zeros(2)], [np.zeros(3), np.zeros(3, np.float32)], []]
)
def test_rows_that_do_not_fit_leave_no_file(tmp_path, rows):
    with pytest.raises(ValueError, match="row"):
        write_rows(tmp_path / "rows.npy", rows, count=2)
    assert not list(tmp_path.iterdir())
