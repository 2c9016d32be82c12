"""Normalised cuts against scipy's generalised solver, exhaustive search and graphs whose answer is
known.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from mdlib.method import normalized_cut


def random_graph(n):
    weights = torch.rand(n, n, dtype=torch.float64)
    return weights + weights.T


def cliques(sizes, *, between=1e-5):
    """Complete graphs side by side, tied to each other by weak edges."""
    group = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])
    return torch.where(group[:, None] == group, 1.0, between), group


def ncut(weights, side):
    """The definition: side (n,) bool."""
    weights, side = np.asarray(weights), np.asarray(side)
    across = weights[side][:, ~side].sum()
    return across / weights[side].sum() + across / weights[~side].sum()


# ---------------------------------------------------------------- the eigenvector


def test_second_eigenvector_solves_the_generalised_problem():
    for _ in range(5):
        weights = random_graph(12)
        y = normalized_cut.second_eigenvector(weights).numpy()
        degree = np.diag(weights.numpy().sum(1))
        values, vectors = eigh(degree - weights.numpy(), degree)
        np.testing.assert_allclose(
            (degree - weights.numpy()) @ y, values[1] * degree @ y, atol=1e-10
        )
        assert abs(np.corrcoef(y, vectors[:, 1])[0, 1]) == pytest.approx(1)


def test_second_eigenvector_of_a_path_is_known():
    """A path of n patches whose ends hold themselves: y_p = cos(pi (p + 1/2) / n), up to scale."""
    n = 9
    weights = torch.diag(torch.ones(n - 1), 1) + torch.diag(torch.ones(n - 1), -1)
    weights[0, 0] = weights[-1, -1] = 1.0  # every degree is 2
    y = normalized_cut.second_eigenvector(weights)
    expected = torch.cos(torch.pi * (torch.arange(n) + 0.5) / n).double()
    torch.testing.assert_close(y / y[0], expected / expected[0], rtol=0, atol=1e-6)


def test_the_largest_entry_is_positive_whatever_the_order_of_the_patches():
    for _ in range(10):
        weights, order = random_graph(10), torch.randperm(10)
        y = normalized_cut.second_eigenvector(weights)
        assert y[y.abs().argmax()] > 0
        torch.testing.assert_close(
            normalized_cut.second_eigenvector(weights[order][:, order]), y[order]
        )


def test_coinciding_eigenvalues_single_out_the_first_of_equal_groups():
    weights, group = cliques([4, 4, 4])
    for order in (torch.arange(12), torch.randperm(12), torch.randperm(12)):
        y = normalized_cut.second_eigenvector(weights[order][:, order])
        assert torch.equal(y > y.mean(), group[order] == group[order][0])


def test_between_two_entries_of_one_magnitude_the_first_is_positive():
    """A small clique between two large ones: y is antisymmetric in the large ones, so its sign is a
    tie.
    """
    weights, group = cliques([6, 3, 6])
    for order in (torch.arange(15), torch.randperm(15), torch.randperm(15)):
        y, own = normalized_cut.second_eigenvector(weights[order][:, order]), group[order]
        first = own[own != 1][0]
        assert (
            (y[own == first] > 0.01).all()
            and (y[own == 2 - first] < -0.01).all()
            and (y[own == 1].abs() < 1e-9).all()
        )


@pytest.mark.parametrize(
    "weights",
    [
        torch.ones(5, 5),
        torch.full((5, 5), 1e-5),
        torch.ones(5, 5) + 3 * torch.eye(5),
        torch.ones(2, 2),
        torch.ones(1, 1),
    ],
)
def test_no_cut_is_better_than_another_in_a_graph_of_equals(weights):
    assert not normalized_cut.second_eigenvector(weights).any()
    assert normalized_cut.cheapest_cut(weights, least=1)[0] == float("inf")


def test_a_graph_in_two_pieces_is_cut_between_them():
    weights, group = cliques([5, 3], between=0.0)
    y = normalized_cut.second_eigenvector(weights)
    assert torch.equal(y > y.mean(), group == 1)
    assert normalized_cut.cheapest_cut(weights, least=1)[0] == pytest.approx(0, abs=1e-12)


def test_a_patch_without_any_weight_is_refused():
    with pytest.raises(ValueError, match="positive degree"):
        normalized_cut.second_eigenvector(torch.diag(torch.tensor([1.0, 1.0, 0.0])))


# ---------------------------------------------------------------- the cut


def test_cheapest_cut_is_the_best_of_the_thresholds():
    for least in (1, 3):
        weights = random_graph(11)
        cost, side = normalized_cut.cheapest_cut(weights, least=least)
        y = normalized_cut.second_eigenvector(weights)
        sides = [y > threshold for threshold in y.tolist()]
        costs = [ncut(weights, s) for s in sides if least <= s.sum() <= 11 - least]
        assert cost == pytest.approx(min(costs)) == pytest.approx(ncut(weights, side))
        assert least <= side.sum() <= 11 - least


def test_cheapest_cut_of_two_groups_is_the_best_of_all_cuts():
    weights = cliques([4, 5], between=0.1)[0]
    cost, side = normalized_cut.cheapest_cut(weights, least=1)
    every = [
        np.array(bits, bool) for bits in itertools.product([0, 1], repeat=9) if 0 < sum(bits) < 9
    ]
    assert cost == pytest.approx(min(ncut(weights, s) for s in every))
    assert side.tolist() in ([True] * 4 + [False] * 5, [False] * 4 + [True] * 5)


def test_too_few_patches_for_two_parts():
    assert normalized_cut.cheapest_cut(random_graph(7), least=4)[0] == float("inf")
