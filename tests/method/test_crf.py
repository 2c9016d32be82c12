"""The dense CRF against explicit O(N^2) kernels, limits, a colour edge, and processes against the
serial result.
"""

import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mdlib.core.paths import ROOT
from mdlib.method import crf

PAPER = crf.CrfSettings(  # stage 6
    steps=10,
    gaussian_sxy=1,
    gaussian_compat=3,
    bilateral_sxy=67,
    bilateral_srgb=3,
    bilateral_compat=4,
)
SOFT = crf.CrfSettings(  # weights at which ten steps amplify the lattice's error little
    steps=10,
    gaussian_sxy=2,
    gaussian_compat=1,
    bilateral_sxy=4,
    bilateral_srgb=20,
    bilateral_compat=1,
)


@pytest.fixture
def lattice():
    pytest.importorskip("pydensecrf", reason='pip install -e ".[crf]"')


needs_crf = pytest.mark.usefixtures("lattice")


def random_pair(rng, *, classes=3, size=(6, 8)):
    """An image of two noisy halves, (H, W, 3) uint8, and random probabilities (C, H, W) float32."""
    half = np.where(np.arange(size[1]) < size[1] // 2, 60, 180)
    image = half[None, :, None] + rng.integers(-8, 9, (*size, 3))
    return image.astype(np.uint8), rng.dirichlet(np.ones(classes), size).transpose(2, 0, 1).astype(
        np.float32
    )


# ---------------------------------------------------------------- against the formula


def normalised(kernel):
    sums = kernel.sum(1)
    return kernel / np.sqrt(np.outer(sums, sums))


def dense_crf_spec(
    image,
    probabilities,
    *,
    steps,
    gaussian_sxy,
    gaussian_compat,
    bilateral_sxy,
    bilateral_srgb,
    bilateral_compat,
    itself=True,
):
    """Mean field with both N x N kernels written out, in float64. itself=False leaves a pixel's own
    term out.
    """
    height, width = image.shape[:2]
    place = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2).astype(float)
    colour = image.reshape(-1, 3).astype(float)
    far = ((place[:, None] - place) ** 2).sum(-1)
    unlike = ((colour[:, None] - colour) ** 2).sum(-1)
    kernel = gaussian_compat * normalised(np.exp(-far / (2 * gaussian_sxy**2)))
    kernel += bilateral_compat * normalised(
        np.exp(-far / (2 * bilateral_sxy**2) - unlike / (2 * bilateral_srgb**2))
    )
    if not itself:
        np.fill_diagonal(kernel, 0)
    start = probabilities.reshape(len(probabilities), -1).astype(float).clip(1e-5, 1)
    q = start / start.sum(0)
    for _ in range(steps):
        q = start * np.exp(q @ kernel.T)
        q /= q.sum(0)
    return q.reshape(probabilities.shape)


def differences(rng, settings, *, spec=dense_crf_spec, images=10, **variant):
    """(images, C, H, W) |library - formula|."""
    pairs = [random_pair(rng) for _ in range(images)]
    return np.abs(
        [
            crf.dense_crf(*pair, settings) - spec(*pair, **asdict(settings), **variant)
            for pair in pairs
        ]
    )


@needs_crf
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_equals_explicit_kernels_up_to_the_lattice(rng, steps):
    off = differences(rng, replace(SOFT, steps=steps))
    assert off.max() < 0.02 and off.mean(axis=(1, 2, 3)).max() < 0.0035


@needs_crf
def test_that_tolerance_sees_a_missing_self_term(rng):
    off = differences(rng, SOFT, itself=False)
    assert off.max() > 0.025 and off.mean(axis=(1, 2, 3)).min() > 0.0035


@needs_crf
def test_one_step_of_the_papers_weights(rng):
    # More steps at these weights tip single pixels of a random map over, so only one step can be
    # compared tightly.
    off = differences(rng, replace(PAPER, steps=1))
    assert off.max() < 0.12 and off.mean() < 0.015


@needs_crf
@pytest.mark.parametrize("alone", ["gaussian_compat", "bilateral_compat"])
def test_each_kernel_alone(rng, alone):
    other = {"gaussian_compat": "bilateral_compat", "bilateral_compat": "gaussian_compat"}[alone]
    assert differences(rng, replace(SOFT, **{other: 0})).max() < 0.015


# ---------------------------------------------------------------- limits


@needs_crf
@pytest.mark.parametrize("change", [{"gaussian_compat": 0, "bilateral_compat": 0}, {"steps": 0}])
def test_nothing_to_smooth_gives_the_probabilities_back(rng, change):
    image, probabilities = random_pair(rng)
    np.testing.assert_allclose(
        crf.dense_crf(image, probabilities, replace(PAPER, **change)), probabilities, atol=5e-5
    )


@needs_crf
def test_confident_map_on_a_plain_image_stays():
    probabilities = np.full((3, 9, 7), 0.01, np.float32)
    probabilities[1] = 0.98
    refined = crf.dense_crf(np.full((9, 7, 3), 90, np.uint8), probabilities, PAPER)
    assert refined[1].min() > 0.98


@needs_crf
def test_undecided_map_stays_undecided(rng):
    refined = crf.dense_crf(random_pair(rng)[0], np.full((4, 6, 8), 0.25, np.float32), PAPER)
    np.testing.assert_allclose(refined, 0.25, atol=1e-4)


@needs_crf
def test_lone_pixel_is_overruled():
    probabilities = np.full((2, 9, 11), 0.2, np.float32)
    probabilities[0] = 0.8
    probabilities[:, 4, 5] = 0.4, 0.6
    assert (
        crf.dense_crf(np.full((9, 11, 3), 90, np.uint8), probabilities, PAPER).argmax(0) == 0
    ).all()


@needs_crf
def test_zero_probabilities_are_no_infinity(rng):
    image, probabilities = random_pair(rng)
    hard = (probabilities == probabilities.max(0)).astype(np.float32)
    refined = crf.dense_crf(image, hard, PAPER)
    assert np.isfinite(refined).all()
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_single_class_is_certain():
    assert (
        crf.dense_crf(np.zeros((4, 5, 3), np.uint8), np.ones((1, 4, 5), np.float32), PAPER) == 1
    ).all()


# ---------------------------------------------------------------- what it is for


@needs_crf
@pytest.mark.parametrize("upright", [True, False])
def test_border_snaps_to_the_colour_edge(upright):
    """Colours change at 16; a soft border drawn three pixels too late moves there.

    Both axes: neither is swapped.
    """
    along = np.arange(32)
    image = (
        np.where(along[None, :, None] < 16, (60, 60, 60), (180, 120, 60))
        .repeat(24, 0)
        .astype(np.uint8)
    )
    right = 1 / (1 + np.exp(-(along - 19) / 3))
    probabilities = np.stack([1 - right, right])[:, None].repeat(24, 1)
    if upright:
        image, probabilities = image.transpose(1, 0, 2), probabilities.transpose(0, 2, 1)
    refined = crf.dense_crf(image, probabilities, PAPER)
    refined = refined.transpose(0, 2, 1) if upright else refined
    assert probabilities.argmax(0).sum() == 24 * 12  # before: 12 of 32 columns
    assert (refined.argmax(0) == (along >= 16)).all()


@needs_crf
def test_output_is_a_distribution(rng):
    refined = crf.dense_crf(*random_pair(rng, classes=5), PAPER)
    assert refined.shape == (5, 6, 8) and refined.dtype == np.float32 and refined.flags.c_contiguous
    assert refined.min() >= 0
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


@needs_crf
def test_classes_are_only_names(rng):
    image, probabilities = random_pair(rng)
    order = [2, 0, 1]
    refined = crf.dense_crf(image, probabilities, SOFT)
    np.testing.assert_allclose(
        crf.dense_crf(image, probabilities[order], SOFT), refined[order], atol=1e-5
    )


@needs_crf
def test_layout_and_precision_of_the_input_do_not_matter(rng):
    image, probabilities = random_pair(rng)
    expected = crf.dense_crf(image, probabilities, SOFT)
    channels_last = np.ascontiguousarray(probabilities.transpose(1, 2, 0)).transpose(2, 0, 1)
    strided = np.repeat(image, 2, axis=1)[:, ::2]
    assert not channels_last.flags.c_contiguous and not strided.flags.c_contiguous
    np.testing.assert_array_equal(crf.dense_crf(strided, channels_last, SOFT), expected)
    np.testing.assert_array_equal(
        crf.dense_crf(np.asfortranarray(image), probabilities.astype(np.float64), SOFT), expected
    )
    np.testing.assert_allclose(
        crf.dense_crf(image, probabilities.astype(np.float16), SOFT), expected, atol=5e-3
    )


@needs_crf
def test_input_is_left_alone(rng):
    image, probabilities = random_pair(rng)
    before = image.copy(), probabilities.copy()
    crf.dense_crf(image, probabilities, PAPER)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(probabilities, before[1])


# ---------------------------------------------------------------- bad input

IMAGE, GOOD = np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), 0.5, np.float32)


@pytest.mark.parametrize(
    ("image", "probabilities", "message"),
    [
        (IMAGE.astype(np.float32), GOOD, "uint8 RGB, got .* float32"),
        (IMAGE[..., 0], GOOD, r"\(H, W, 3\)"),
        (np.zeros((4, 5, 4), np.uint8), GOOD, r"got \(4, 5, 4\)"),
        (IMAGE[:0], GOOD[:, :0], r"got \(0, 5, 3\)"),
        (IMAGE, GOOD.transpose(0, 2, 1), r"\(C, 4, 5\) as the image, got \(2, 5, 4\)"),
        (IMAGE, GOOD[0], "as the image"),
        (IMAGE, GOOD[:0], "as the image"),
        (IMAGE, np.ones((1, 4, 5), np.int64), "floating point, got int64"),
        (IMAGE, GOOD * np.nan, "finite"),
        (IMAGE, np.stack([GOOD[0] * 3, GOOD[0] * -1]), "softmax first"),  # sums to 1
        (IMAGE, GOOD * 2, "sum to 1 .* got sums 2"),
    ],
)
def test_bad_input_is_named(image, probabilities, message):
    with pytest.raises(ValueError, match=message):
        crf.dense_crf(image, probabilities, PAPER)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1},
        {"gaussian_sxy": 0},
        {"bilateral_srgb": -3},
        {"bilateral_compat": -1},
        {"gaussian_compat": np.inf},
        {"bilateral_sxy": np.nan},  # would crash the process
    ],
)
def test_bad_settings_are_named(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be"):
        replace(PAPER, **change)


# ---------------------------------------------------------------- many images


@needs_crf
def test_two_processes_equal_one_in_order(rng):
    pairs = [random_pair(rng, size=(6 + i, 8)) for i in range(7)]
    serial = list(crf.refine_all(*zip(*pairs, strict=True), PAPER, workers=1))
    parallel = list(crf.refine_all(*zip(*pairs, strict=True), PAPER, workers=2))
    assert [r.shape for r in parallel] == [p.shape for _, p in pairs]
    for one, two, pair in zip(serial, parallel, pairs, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, crf.dense_crf(*pair, PAPER))


@needs_crf
@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (2, 2 * crf.CHUNK)])
def test_images_are_read_as_they_are_needed(rng, workers, chunk):
    image, probabilities = random_pair(rng)
    read = []

    def images():
        for i in range(1000):
            read.append(i)
            yield image

    results = crf.refine_all(images(), (probabilities for _ in range(1000)), PAPER, workers=workers)
    for done in range(3 * chunk):
        next(results)
        assert len(read) == (done // chunk + 1) * chunk
    results.close()  # does not work through the rest
    assert len(read) == 3 * chunk


@needs_crf
@pytest.mark.parametrize("workers", [1, 2])
def test_error_in_one_image_reaches_the_reader(rng, workers):
    (image, good), bad = random_pair(rng), np.zeros((3, 6, 8), np.float32)
    results = crf.refine_all([image] * 2, [good, bad], PAPER, workers=workers)
    with pytest.raises(ValueError, match="sum to 1"):
        list(results)


REFINE_FOR_EVER = """
import itertools
import numpy as np
from mdlib.core.paths import ROOT
from mdlib.method import crf

settings = crf.CrfSettings(5, 1.0, 3.0, 9.0, 13.0, 4.0)
pair = np.zeros((64, 64, 3), np.uint8), np.full((3, 64, 64), 1 / 3, np.float32)
many = itertools.repeat(pair[0]), itertools.repeat(pair[1])
for number, _ in enumerate(crf.refine_all(*many, settings, workers=2)):
    if number == 20:
        print("refining", flush=True)
"""


def children_of(pid):
    """Processes below a process, by /proc."""
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [below for child in own for below in children_of(child)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@needs_crf
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_worker_processes_end_when_their_parent_is_killed():
    command = [sys.executable, "-c", REFINE_FOR_EVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout.readline() == "refining\n"
        workers = children_of(parent.pid)
        parent.kill()
    assert len(workers) >= 2
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(alive, workers))


@needs_crf
def test_refine_all_refuses_uneven_lists_and_no_workers(rng):
    image, probabilities = random_pair(rng)
    with pytest.raises(ValueError):
        list(crf.refine_all([image] * 2, [probabilities], PAPER, workers=1))
    with pytest.raises(ValueError, match="workers"):
        crf.refine_all([], [], PAPER, workers=0)


# ---------------------------------------------------------------- without pydensecrf


@needs_crf
def test_available():
    assert crf.available()


def test_missing_package_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    assert not crf.available()
    with pytest.raises(crf.CRFMissing, match=r"README\.md, 'Without make'") as caught:
        crf.dense_crf(IMAGE, GOOD, PAPER)
    assert "C++ compiler" in str(caught.value)
    with pytest.raises(ImportError):  # at once, before any image is read
        crf.refine_all([], [], PAPER, workers=2)
