"""Normalised cuts of a small graph, with defined results where eigenvalues coincide.

Symbols (1):
    W (n, n)  symmetric weights, non-negative
    D         diagonal of the degrees d_p = sum of W_pq over q
    y (n,)    second smallest solution of (D - W) y = lambda D y: one part of the graph is where y
              is high, the other where it is low
    cost      ncut(A, B) = w(A, B) / w(A, all) + w(A, B) / w(B, all), where w is the sum of the
              weights between two parts

Cost: a dense solver on the CPU in float64, O(n^3): about 0.03 s for a grid of 28 x 28 on one core,
1 s for 40 x 60.

1. Shi and Malik, Normalized cuts and image segmentation, PAMI 2000.
"""

import torch
from scipy.linalg import eigh
from torch import Tensor

# eigenvalues, which lie in [0, 2], count as equal below this distance; rounding is about 1e-14
TIE = 1e-9


def second_eigenvector(weights: Tensor) -> Tensor:
    """Compute y of a graph, with a defined sign and direction.

    An eigenvector has no sign of its own, and where eigenvalues coincide no direction of its own.
    Among the vectors that belong to the second eigenvalue (y' D y fixed), y is the one with the
    largest single entry. For a simple eigenvalue that is the eigenvector whose entry of largest
    magnitude is positive. Ties go to the lower index. Where all eigenvalues but the first coincide,
    no cut is better than another, and y is zero.

    Args:
        weights: (n, n) symmetric, every degree positive.

    Returns:
        (n,) float64 on the weights' device.

    Raises:
        ValueError: for a degree that is not positive.
    """
    degree = weights.double().sum(1)
    if not (degree > 0).all():
        raise ValueError("every patch needs a positive degree: a weight to itself is enough")
    n, root = len(degree), degree.rsqrt()
    laplacian = (
        torch.eye(n, dtype=torch.float64, device=root.device)
        - root[:, None] * weights.double() * root
    )
    matrix = laplacian.cpu().numpy()
    values, vectors = eigh(matrix, subset_by_index=[0, min(2, n - 1)])
    # the mean of all eigenvalues but the first, which is 0
    if n < 3 or values[1] > matrix.trace() / (n - 1) - TIE:
        return torch.zeros_like(degree)
    tied = abs(values - values[1]) < TIE
    space = (
        eigh(matrix, subset_by_value=(values[1] - TIE, values[1] + TIE))[1]
        if tied[2]
        else vectors[:, tied]
    )
    # (n, m): the same space in the coordinates of y
    space = root[:, None] * torch.from_numpy(space).to(root)
    # the largest entry that a unit vector of the space can have at each patch
    reach = space.norm(dim=1)
    return space @ space[first_peak(reach)]


def first_peak(values: Tensor) -> Tensor:
    """Find the first entry that equals the maximum, up to rounding.

    Args:
        values: (n,) with a positive maximum.

    Returns:
        () int64, its index.
    """
    return (values > values.max() * (1 - 1e-6)).int().argmax()


def cheapest_cut(weights: Tensor, *, least: int) -> tuple[float, Tensor]:
    """Find the cheapest of the cuts along y: the n - 1 ways to split the patches sorted by y.

    Args:
        weights: (n, n) symmetric, every degree positive.
        least: number of patches that each part must have, 1 or more.

    Returns:
        cost: in [0, 2]; infinite where there is no such cut.
        side: (n,) bool, the part where y is high; all False where there is no such cut.
    """
    y, n = second_eigenvector(weights), len(weights)
    if n < 2 * least or not y.any():
        return float("inf"), torch.zeros(n, dtype=torch.bool, device=weights.device)
    order = y.sort(stable=True).indices
    ranked = weights.double()[order][:, order]
    volume = ranked.sum(1).cumsum(0)  # of the first 1, 2, ... n patches
    within = ranked.cumsum(0).cumsum(1).diagonal()
    across = (volume - within)[least - 1 : n - least]
    cost = across / volume[least - 1 : n - least] + across / (
        volume[-1] - volume[least - 1 : n - least]
    )
    best = cost.argmin()
    side = torch.zeros(n, dtype=torch.bool, device=weights.device)
    side[order[best + least :]] = True
    return cost[best].item(), side
