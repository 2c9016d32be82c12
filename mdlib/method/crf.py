"""Sharper borders: a fully connected CRF over the pixels of one image, solved by mean field (stage
6).

Every pair of pixels pays for taking different classes, more the closer the two are (Gaussian
kernel) and the closer and the more alike in colour (bilateral kernel). With p a pixel's position, I
its colour, U = -log(probability), each step is

    Q_i(c) ~ exp(-U_i(c) + sum over j of K(i, j) Q_j(c))
    K = gaussian_compat  * norm(exp(-|p_i - p_j|^2 / (2 gaussian_sxy^2)))
      + bilateral_compat * norm(exp(-|p_i - p_j|^2 / (2 bilateral_sxy^2) - |I_i - I_j|^2 / (2
      bilateral_srgb^2)))

norm(k)_ij = k_ij / sqrt(k_i k_j), k_i the sum of row i. The sum holds j = i too: the paper leaves
it out, the authors' code does not. The filter is the permutohedral lattice: O(N) for N pixels
instead of O(N^2), and only about equal.

Sources: Kraehenbuehl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NIPS 2011; their code through pydensecrf (package pydensecrf2, an optional extra).
Workers import this module: keep it light.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import ModuleType

import numpy as np

FLOOR = 1e-5  # the least probability in the unary term, as in pydensecrf.utils.unary_from_softmax
SUM_TOLERANCE = 1e-3  # a softmax in half precision still passes
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


def dense_crf(
    image: np.ndarray,
    probabilities: np.ndarray,
    *,
    steps: int,
    gaussian_sxy: float,
    gaussian_compat: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_compat: float,
) -> np.ndarray:
    """Refine one image's class probabilities: (C, H, W) -> (C, H, W) float32 that sum to 1 over C.

    image (H, W, 3) uint8 RGB; probabilities (C, H, W) float, a softmax's output at the image's
    size, no logits. steps: mean-field steps; 0 gives the probabilities back. sxy: standard
    deviation in pixels, srgb: in grey levels 0-255, both > 0; compat: weight >= 0 of a kernel, 0
    leaves it out. A single class has probability 1 everywhere. Raises ValueError for input that
    does not fit, CRFMissing without pydensecrf.
    """
    image, probabilities = np.asarray(image), np.asarray(probabilities)
    _check(image, probabilities)
    _check_settings(
        steps, (gaussian_sxy, bilateral_sxy, bilateral_srgb), (gaussian_compat, bilateral_compat)
    )
    classes, height, width = probabilities.shape
    if classes == 1:
        return np.ones(probabilities.shape, np.float32)
    field = _pydensecrf().DenseCRF2D(width, height, classes)  # (width, height), in this order
    unary = -np.log(probabilities.astype(np.float32).clip(FLOOR, 1.0))
    field.setUnaryEnergy(np.ascontiguousarray(unary.reshape(classes, -1)))
    if gaussian_compat:
        field.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_compat)
    if bilateral_compat:
        rgb = np.require(image, requirements=("C", "W"))  # the binding refuses read-only memory
        field.addPairwiseBilateral(
            sxy=bilateral_sxy, srgb=bilateral_srgb, rgbim=rgb, compat=bilateral_compat
        )
    return np.array(field.inference(steps), np.float32, order="C").reshape(classes, height, width)


def refine_all(
    images: Iterable[np.ndarray], probabilities: Iterable[np.ndarray], *, workers: int, **settings
) -> Iterator[np.ndarray]:
    """`dense_crf` over many images, in order: yields (C, H, W) float32 for each. settings: its
    keywords.

    workers: processes; 1 stays in this one. Both iterables are read as the work proceeds, at most 2
    * workers + 1 images ahead, so a data set need not fit in memory. Processes are spawned, never
    forked: safe after CUDA has started and inside a Jupyter kernel; a plain script needs `if
    __name__ == "__main__":` around its call. Raises ValueError for workers < 1 or iterables of
    different length, CRFMissing at once, else as dense_crf.
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    _pydensecrf()
    pairs = zip(images, probabilities, strict=True)
    if workers == 1:
        return (dense_crf(image, probability, **settings) for image, probability in pairs)
    return _refine_in_processes(pairs, workers, settings)


def _refine_in_processes(
    pairs: Iterable[tuple], workers: int, settings: dict
) -> Iterator[np.ndarray]:
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    waiting: deque = deque()
    try:
        for image, probability in pairs:
            waiting.append(pool.submit(dense_crf, image, probability, **settings))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the reader stops early
        pool.shutdown(cancel_futures=True)


def _pydensecrf() -> ModuleType:
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise CRFMissing(HOW_TO_INSTALL) from error
    return densecrf


def _check(image: np.ndarray, probabilities: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if (
        probabilities.ndim != 3
        or probabilities.shape[1:] != image.shape[:2]
        or not len(probabilities)
    ):
        raise ValueError(
            f"probabilities must be (C, {image.shape[0]}, {image.shape[1]}) as the image, got {probabilities.shape}"
        )
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise ValueError(f"probabilities must be floating point, got {probabilities.dtype}")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        raise ValueError(
            f"probabilities must be finite and >= 0, got {probabilities.min()}..{probabilities.max()}: softmax first"
        )
    sums = probabilities.sum(0, dtype=np.float64)
    if np.abs(sums - 1).max() > SUM_TOLERANCE:
        raise ValueError(
            f"probabilities must sum to 1 over the classes, got sums {sums.min():.4g}..{sums.max():.4g}: softmax first"
        )


def _check_settings(steps: int, deviations: tuple, weights: tuple) -> None:
    # A NaN here would crash the process inside pydensecrf.
    if not (
        steps >= 0
        and all(0 < d < np.inf for d in deviations)
        and all(0 <= w < np.inf for w in weights)
    ):
        raise ValueError(
            f"steps {steps} must be >= 0; sxy, sxy, srgb {deviations} > 0; compat {weights} >= 0; all finite"
        )
