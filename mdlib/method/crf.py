"""Sharper borders by a fully connected CRF over the pixels of one image: stage 6.

Every pair of pixels pays for taking different classes: more if they are close (Gaussian kernel),
and more if they are both close and similar in colour (bilateral kernel). Mean field solves it. With
p the position of a pixel, I its colour and U = -log(probability), each step is

    Q_i(c) ~ exp(-U_i(c) + sum over j of K(i, j) Q_j(c))
    K = gaussian_compat  * norm(exp(-|p_i - p_j|^2 / (2 gaussian_sxy^2)))
      + bilateral_compat * norm(exp(-|p_i - p_j|^2 / (2 bilateral_sxy^2)
                                    - |I_i - I_j|^2 / (2 bilateral_srgb^2)))

norm(k)_ij = k_ij / sqrt(k_i k_j), with k_i the sum of row i. The sum includes j = i: the paper
leaves it out, the authors' code does not. The filter is the permutohedral lattice: O(N) for N
pixels instead of O(N^2), and an approximation.

Sources: Kraehenbuehl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NIPS 2011; their code through pydensecrf (package pydensecrf2, an optional extra).
Worker processes import this module: keep its imports light.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from types import ModuleType

import numpy as np
from joblib import Parallel, delayed

from mdlib.core.settings import Settings

FLOOR = 1e-5  # the least probability in the unary term, as in pydensecrf.utils.unary_from_softmax
SUM_TOLERANCE = 1e-3  # a softmax in half precision still passes
CHUNK = 4  # images a process gets before all wait for the last of them
HOW_TO_INSTALL = (
    "The dense CRF needs pydensecrf2, which is not installed: README.md, 'Without make', has the "
    "lines for it. It is built from source, so a C++ compiler is needed (apt install g++, "
    "xcode-select --install). Every other stage works without it."
)


class CRFMissing(ImportError):
    """pydensecrf cannot be imported; the message says how to install it."""


def available() -> bool:
    """Whether the dense CRF can run here."""
    try:
        _pydensecrf()
    except CRFMissing:
        return False
    return True


@dataclass(frozen=True)
class CrfSettings(Settings):
    """The settings of the CRF.

    Attributes:
        steps: steps of mean field; 0 gives the probabilities back.
        gaussian_sxy: standard deviation of the Gaussian kernel in pixels, above 0.
        gaussian_compat: weight of the Gaussian kernel, 0 or more; 0 leaves it out.
        bilateral_sxy: standard deviation of the bilateral kernel in pixels, above 0.
        bilateral_srgb: its standard deviation in grey levels 0-255, above 0.
        bilateral_compat: weight of the bilateral kernel, 0 or more; 0 leaves it out.
    """

    steps: int
    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of its range; a NaN would crash pydensecrf."""
        self.check("steps", self.steps >= 0, "0 or more")
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            self.check(name, 0 < getattr(self, name) < np.inf, "above 0 and finite")
        for name in ("gaussian_compat", "bilateral_compat"):
            self.check(name, 0 <= getattr(self, name) < np.inf, "0 or more and finite")


def dense_crf(image: np.ndarray, probabilities: np.ndarray, settings: CrfSettings) -> np.ndarray:
    """Refine one image's class probabilities.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (C, H, W) float, the output of a softmax at the image's size, not logits.
        settings: of the CRF.

    Returns:
        (C, H, W) float32 that sum to 1 over C. A single class has probability 1 everywhere.

    Raises:
        ValueError: for an image or probabilities of another form.
        CRFMissing: without pydensecrf.
    """
    image, probabilities = np.asarray(image), np.asarray(probabilities)
    _check(image, probabilities)
    classes, height, width = probabilities.shape
    if classes == 1:
        return np.ones(probabilities.shape, np.float32)
    field = _pydensecrf().DenseCRF2D(width, height, classes)  # (width, height), in this order
    unary = -np.log(probabilities.astype(np.float32).clip(FLOOR, 1.0))
    field.setUnaryEnergy(np.ascontiguousarray(unary.reshape(classes, -1)))
    if settings.gaussian_compat:
        field.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    if settings.bilateral_compat:
        rgb = np.require(image, requirements=("C", "W"))  # the binding refuses read-only memory
        field.addPairwiseBilateral(
            sxy=settings.bilateral_sxy,
            srgb=settings.bilateral_srgb,
            rgbim=rgb,
            compat=settings.bilateral_compat,
        )
    return np.array(field.inference(settings.steps), np.float32, order="C").reshape(
        classes, height, width
    )


def refine_all(
    images: Iterable[np.ndarray],
    probabilities: Iterable[np.ndarray],
    settings: CrfSettings,
    *,
    workers: int,
) -> Iterator[np.ndarray]:
    """Refine many images in order, each by `dense_crf`.

    Args:
        images: (H, W, 3) uint8 RGB each, any iterable.
        probabilities: (C, H, W) float each, any iterable of as many.
        settings: of the CRF.
        workers: processes; 1 stays in this one. They are started anew and not forked, so this is
            safe after CUDA has started and inside a Jupyter kernel.

    Returns:
        (C, H, W) float32 for each image. With several workers CHUNK * workers images are read, and
        their results held, at a time, so a data set need not fit in memory.

    Raises:
        ValueError: for workers < 1, iterables of different length, or as `dense_crf`.
        CRFMissing: at once, without pydensecrf.
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    _pydensecrf()
    pairs = zip(images, probabilities, strict=True)
    if workers == 1:
        return (dense_crf(image, probability, settings) for image, probability in pairs)
    return _refine_in_processes(pairs, settings, workers)


def _refine_in_processes(
    pairs: Iterator[tuple], settings: CrfSettings, workers: int
) -> Iterator[np.ndarray]:
    """Refine in processes, chunk by chunk.

    `pre_dispatch` only bounds the tasks at the start: then Parallel goes on reading as tasks end,
    whether their results have been taken or not.
    """
    ending = dict(initializer=_end_with, initargs=(os.getpid(),))
    with Parallel(workers, return_as="generator", batch_size=1, **ending) as pool:
        while chunk := list(islice(pairs, CHUNK * workers)):
            yield from pool(delayed(dense_crf)(*pair, settings) for pair in chunk)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: killed, it cannot end what it started."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":  # elsewhere a process keeps the number of a parent that is gone
        threading.Thread(target=watch, daemon=True).start()


def _pydensecrf() -> ModuleType:
    """The module pydensecrf.densecrf, or CRFMissing."""
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise CRFMissing(HOW_TO_INSTALL) from error
    return densecrf


def _check(image: np.ndarray, probabilities: np.ndarray) -> None:
    """Raise ValueError for input of `dense_crf` that does not fit."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if (
        probabilities.ndim != 3
        or probabilities.shape[1:] != image.shape[:2]
        or not len(probabilities)
    ):
        raise ValueError(
            f"probabilities must be (C, {image.shape[0]}, {image.shape[1]}) as the image, "
            f"got {probabilities.shape}"
        )
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise ValueError(f"probabilities must be floating point, got {probabilities.dtype}")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        raise ValueError(
            f"probabilities must be finite and >= 0, "
            f"got {probabilities.min()}..{probabilities.max()}: softmax first"
        )
    sums = probabilities.sum(0, dtype=np.float64)
    if np.abs(sums - 1).max() > SUM_TOLERANCE:
        raise ValueError(
            f"probabilities must sum to 1 over the classes, "
            f"got sums {sums.min():.4g}..{sums.max():.4g}: softmax first"
        )
