"""Baselines for stage 1: where is the object?

Other rules find it from the same tokens, or from the picture alone.

Symbols: k_p, the key of patch p, all heads concatenated; N = h * w patches, row-major. Masks are
bool. Keys have no origin of their own (`masks.center_features`), and all rules but the attention's
depend on it: say which one was used.

                   one object all over
                   the image, or none:                                      can say
                   keys are all equal    a tie                              "no object"
    attention_mask the whole image       all patches of the tied value      no
    lost           the whole image       the seed with the lower index      no
    token_cut      the whole image       see `second_eigenvector`           no
    salient_mask   nothing               the component of the first maximum yes

`second_eigenvector` is that of method/normalized_cut.py.

1. Caron et al., DINO, arXiv 2104.14294.
2. Siméoni et al., LOST, arXiv 2109.14279.
3. Wang et al., TokenCut, arXiv 2202.11539.
4. Achanta et al., Frequency-tuned salient region detection, CVPR 2009.
5. Wei et al., Geodesic saliency using background priors, ECCV 2012.
6. Pertuz et al., Analysis of focus measure operators, Pattern Recognition 2013.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from mdlib.method import normalized_cut
from mdlib.method.masks import check_keys, seed_component

EPSILON = 1e-5  # the weight of patches that are not alike (3): it keeps the graph in one piece


# ---------------------------------------------------------------- from tokens


def attention_mask(attention: Tensor, *, grid_hw: tuple[int, int], mass: float) -> Tensor:
    """DINO-seg (1): the patches that hold the upper `mass` of the attention.

    A patch is kept while the patches above it hold less than `mass`; equal patches stay together.
    Of those kept, the component of the best one is the mask.

    Args:
        attention: (..., N), non-negative, of one head or a mean of heads (`masks.cls_attention`).
        grid_hw: rows and columns of the patches.
        mass: share of the attention, in (0, 1].

    Returns:
        (..., h, w) bool.

    Raises:
        ValueError: for attention of another shape or below zero, or a mass out of its range.
    """
    if attention.shape[-1] != grid_hw[0] * grid_hw[1] or not (attention >= 0).all():
        raise ValueError(
            f"attention must be (..., {grid_hw[0]} * {grid_hw[1]}) and non-negative, "
            f"got {tuple(attention.shape)}"
        )
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be in (0, 1], got {mass}")
    flat = attention.reshape(-1, attention.shape[-1]).double()
    best_first, order = flat.sort(dim=1, descending=True, stable=True)
    above = best_first.cumsum(1) - best_first
    # how many are kept, before ties
    enough = (above < mass * best_first.sum(1, keepdim=True)).sum(1, keepdim=True)
    kept = flat >= best_first.gather(1, enough.clamp(min=1) - 1)
    return seed_component(kept.view(-1, *grid_hw), order[:, 0]).view(
        *attention.shape[:-1], *grid_hw
    )


def lost(keys: Tensor, *, grid_hw: tuple[int, int], expansion: int) -> Tensor:
    """LOST (2): an object is small, so its patches are like few others.

    Patches are alike where k_p . k_r >= 0. Seed: the patch that is like the fewest. The patches
    among the `expansion` such with the fewest that are like the seed join it, S. Mask: where
    k_p . (sum of S) >= 0, the component of the seed.

    Args:
        keys: (..., heads, N, d).
        grid_hw: rows and columns of the patches.
        expansion: number of patches that may join the seed, 1 or more; 100 in the paper.

    Returns:
        (..., h, w) bool.

    Raises:
        ValueError: for keys of another shape, or an expansion below 1.
    """
    if expansion < 1:
        raise ValueError(f"expansion must be 1 or more, got {expansion}")
    flat = _flat(keys, grid_hw)
    alike = flat @ flat.transpose(1, 2) >= 0  # (B, N, N)
    order = alike.sum(2).sort(dim=1, stable=True).indices[:, :expansion]  # fewest first
    images = torch.arange(len(flat), device=keys.device)
    joined = alike[images, order[:, 0]].gather(1, order)  # (B, expansion)
    total = torch.einsum("be,bed->bd", joined.to(flat), flat[images[:, None], order])
    mask = seed_component(
        (torch.einsum("bnd,bd->bn", flat, total) >= 0).view(-1, *grid_hw), order[:, 0]
    )
    return mask.view(*keys.shape[:-3], *grid_hw)


def token_cut(keys: Tensor, *, grid_hw: tuple[int, int], tau: float) -> Tensor:
    """TokenCut (3): one normalised cut of the patches.

    Weight 1 where the cosine of two keys reaches tau, EPSILON elsewhere. The second eigenvector y
    is cut at its mean; the object is the side of the entry of largest magnitude, the component of
    that entry. Cost: an eigenproblem an image, see `normalized_cut`.

    Args:
        keys: (..., heads, N, d).
        grid_hw: rows and columns of the patches.
        tau: the lowest cosine of patches that are alike, in [-1, 1]; 0.2 in the paper.

    Returns:
        (..., h, w) bool.

    Raises:
        ValueError: for keys of another shape.
    """
    found = []
    for image in _flat(keys, grid_hw):
        y = _eigenvector(image, tau)
        if y.any():
            found.append(
                seed_component((y > y.mean()).view(1, *grid_hw), normalized_cut.first_peak(y)[None])
            )
        else:
            found.append(torch.ones(1, *grid_hw, dtype=torch.bool, device=y.device))
    return torch.cat(found).view(*keys.shape[:-3], *grid_hw)


def _flat(keys: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """(..., heads, N, d) -> (B, N, D) float64, all heads of a patch in a row."""
    check_keys(keys, grid_hw)
    return keys.reshape(-1, *keys.shape[-3:]).transpose(1, 2).flatten(2).double()


def _eigenvector(keys: Tensor, tau: float) -> Tensor:
    """(n, D) keys -> (n,) second eigenvector of their graph; zeros where no cut is the best."""
    unit = F.normalize(keys, dim=1)
    return normalized_cut.second_eigenvector(torch.where(unit @ unit.T >= tau, 1.0, EPSILON))


# ---------------------------------------------------------------- from the picture


def frequency_tuned_saliency(image: np.ndarray) -> np.ndarray:
    """How far a pixel's colour is from the picture's mean colour (4).

    The picture is smoothed by a binomial filter of 5 x 5 first.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) float64, in Lab units.

    Raises:
        ValueError: for an image of another shape or dtype.
    """
    lab = to_lab(image)
    binomial = np.array([1, 4, 6, 4, 1]) / 16
    smooth = ndimage.convolve1d(ndimage.convolve1d(lab, binomial, axis=0), binomial, axis=1)
    return np.linalg.norm(smooth - lab.mean((0, 1)), axis=2)


def geodesic_saliency(image: np.ndarray) -> np.ndarray:
    """How hard it is to leave the picture (5).

    The border is taken for background. A step between two neighbours costs the difference of their
    colours in Lab, or nothing where that is below what is normal, the mean over pixels of the step
    to the most similar neighbour. The saliency of a pixel is the cost of its cheapest path to the
    border. Nodes are pixels here (patches in the paper).

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) float64, in Lab units; 0 on the border.

    Raises:
        ValueError: for an image of another shape or dtype.
    """
    lab = to_lab(image)
    nodes = np.arange(lab.shape[0] * lab.shape[1]).reshape(lab.shape[:2])
    start = np.concatenate([nodes[:, :-1].ravel(), nodes[:-1].ravel()])
    end = np.concatenate([nodes[:, 1:].ravel(), nodes[1:].ravel()])
    colours = lab.reshape(-1, 3)
    cost = np.linalg.norm(colours[start] - colours[end], axis=1)
    smallest = np.full(nodes.size, np.inf)
    np.minimum.at(smallest, start, cost)
    np.minimum.at(smallest, end, cost)
    cost[cost < smallest.mean()] = 0
    graph = coo_array((cost, (start, end)), shape=(nodes.size, nodes.size)).tocsr()
    border = np.concatenate([nodes[0], nodes[-1], nodes[:, 0], nodes[:, -1]])
    return dijkstra(graph, directed=False, indices=np.unique(border), min_only=True).reshape(
        nodes.shape
    )


def local_sharpness(image: np.ndarray, *, radius: float) -> np.ndarray:
    """How much detail there is around a pixel (ours).

    The energy of the Laplacian, a measure of focus (6), averaged by a Gaussian: what is in focus
    has more of it than what is not.

    Args:
        image: (H, W, 3) uint8 RGB.
        radius: standard deviation of the Gaussian, in pixels; above 0.

    Returns:
        (H, W) float64, squared Lab units.

    Raises:
        ValueError: for an image of another shape or dtype.
    """
    detail = ndimage.laplace(to_lab(image)[..., 0], mode="nearest")
    return ndimage.gaussian_filter(detail**2, radius, mode="nearest")


def sharp_mask(sharpness: np.ndarray, *, factor: float) -> np.ndarray:
    """The largest sharp region, filled (ours): an object has smooth parts inside its outline.

    Args:
        sharpness: (H, W), as `local_sharpness` gives it.
        factor: pixels above `factor` times the mean are sharp; 1 or more.

    Returns:
        (H, W) bool: the largest 4-connected component, the first on a tie, with its holes; empty
        where sharpness is the same everywhere.
    """
    regions, _ = ndimage.label(sharpness > factor * sharpness.mean())
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0  # what is not sharp
    return ndimage.binary_fill_holes((regions == sizes.argmax()) & (regions > 0))


def salient_mask(saliency: np.ndarray, *, factor: float) -> np.ndarray:
    """The pixels of high saliency: the 4-connected component of the maximum.

    Args:
        saliency: (H, W), any unit.
        factor: pixels above `factor` times the mean are kept; 2 in (4).

    Returns:
        (H, W) bool; empty where saliency is the same everywhere, if factor >= 1.
    """
    regions, _ = ndimage.label(saliency > factor * saliency.mean())
    return (regions == regions.flat[saliency.argmax()]) & (regions > 0)


def to_lab(image: np.ndarray) -> np.ndarray:
    """Turn sRGB into CIE Lab, white point D65.

    Args:
        image: (H, W, 3) uint8 sRGB.

    Returns:
        (H, W, 3) float64, L in [0, 100].

    Raises:
        ValueError: for an image of another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    rgb = image / 255
    rgb = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    xyz = rgb @ (to_xyz / to_xyz.sum(1, keepdims=True)).T  # white is (1, 1, 1)
    x, y, z = np.moveaxis(np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * 841 / 108 + 4 / 29), 2, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 2)


# ---------------------------------------------------------------- from nothing


def centre_box(image_hw: tuple[int, int], *, side: float) -> np.ndarray:
    """A box in the centre.

    Args:
        image_hw: height and width of the picture, in pixels.
        side: share of both that the box has, in (0, 1]; 1 is the whole image.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: for a side out of its range.
    """
    if not 0 < side <= 1:
        raise ValueError(f"side must be in (0, 1], got {side}")
    mask = np.zeros(image_hw, bool)
    margins = [round(length * (1 - side) / 2) for length in image_hw]
    (top, left), (height, width) = margins, image_hw
    mask[top : height - top, left : width - left] = True
    return mask
