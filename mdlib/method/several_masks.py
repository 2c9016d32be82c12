"""Several objects an image: beyond the paper, which keeps one mask and names that as its limit.

Three things are added to `masks.object_mask`: seed again among what is left; a score that says
whether there is an object at all, so that an empty scene gets no mask; and a cut between two
objects that touch. Symbols as in `masks`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlib.method import normalized_cut
from mdlib.method.masks import (
    candidate_patches,
    check_tokens,
    cls_attention,
    diffuse,
    seed_component,
)

# What makes two neighbouring patches one object; chosen on the zoo's dev with its grid of 28 x 28.
REACH = 1.5  # patches: how far neighbourhood goes
LIKENESS = 3.0  # how much the likeness of keys counts beside it
LEAST_PART = 0.015  # share of the patches that a part has at least


def object_masks(
    cls_query: Tensor,
    keys: Tensor,
    *,
    grid_hw: tuple[int, int],
    top_k: float,
    cls_heads: int,
    mass: float | None,
    max_masks: int,
    min_contrast: float | None,
    max_seam: float | None,
) -> tuple[Tensor, Tensor]:
    """Up to max_masks object masks of each image, none of them overlapping: take the mask away,
    seed again.

    The first five as in `object_mask`. A patch that is taken has a zero key from then on, so that
    it is neither seed nor source nor mask; the next seed is the best candidate that is left.
    min_contrast: a mask with less `contrast` is refused, and its image is done; so an empty scene
    has no mask at all. None: every mask is kept. max_seam: masks that are two objects side by side
    are cut, see `seed_part`; None: never, as in the paper. Returns masks (..., max_masks, h, w)
    bool, found ones first and all False where there was none, and their contrasts (..., max_masks)
    float32, 0 where there was none. With max_masks 1 and None for the last two: `object_mask`.
    """
    check_tokens(cls_query, keys, grid_hw, top_k, cls_heads, mass)
    if max_masks < 1:
        raise ValueError(f"max_masks must be 1 or more, got {max_masks}")
    batch = keys.shape[:-3]
    cls_query = cls_query.reshape(-1, *cls_query.shape[-2:]).float()
    keys = keys.reshape(-1, *keys.shape[-3:]).float()

    candidates = candidate_patches(cls_query, keys, top_k=top_k, cls_heads=cls_heads, mass=mass)
    taken = torch.zeros_like(keys[:, 0, :, 0], dtype=torch.bool)  # (B, N)
    floor = -math.inf if min_contrast is None else min_contrast
    found, contrasts = [], []
    for _ in range(max_masks):
        left_first = taken.gather(1, candidates).int().sort(dim=1, stable=True).indices
        left = keys.masked_fill(taken[:, None, :, None], 0)
        g_diff, seed = diffuse(left, candidates.gather(1, left_first))
        mask = seed_component((g_diff > 0).view(-1, *grid_hw), seed)
        score = contrast(cls_query, keys, mask.flatten(1), ~taken)
        if max_seam is not None:
            for i in (score >= floor).nonzero()[:, 0]:  # what is refused whole is not worth a cut
                mask[i] = seed_part(keys[i], mask[i], seed[i], max_seam=max_seam)
            score = contrast(cls_query, keys, mask.flatten(1), ~taken)
        # refused here, and the same again in the rounds to come
        mask = mask.flatten(1) & (score >= floor)[:, None]
        taken = taken | mask
        found.append(mask)
        contrasts.append(score * mask.any(1))
    return torch.stack(found, 1).view(*batch, max_masks, *grid_hw), torch.stack(contrasts, 1).view(
        *batch, max_masks
    )


def seed_part(keys: Tensor, mask: Tensor, seed: Tensor, *, max_seam: float) -> Tensor:
    """Cut a mask at its seams and keep the part with the seed: (heads, N, d), (h, w) bool, () index
    -> (h, w) bool.

    Objects that touch are one component. A seam between two is short, and the keys change there:
    the graph of the mask's patches, with weights exp(LIKENESS cos(k_p, k_r) - |p - r|^2 / (2
    REACH^2)) of keys about the mask's mean, has a cheap normalised cut (`cuts.cheapest_cut`). As
    long as one costs less than max_seam, the mask is cut there. The other part is not lost: it is
    free for the next seed. O(n^3) for the n patches of the mask.
    """
    least = max(1, int(LEAST_PART * mask.numel()))
    while True:
        inside = mask.flatten().nonzero()[:, 0]  # (n,) row-major
        if len(inside) < 2 * least:
            return mask
        likeness = keys[:, inside].transpose(0, 1).flatten(1)  # (n, D)
        likeness = F.normalize(likeness - likeness.mean(0), dim=1)
        places = torch.stack([inside // mask.shape[1], inside % mask.shape[1]], 1).float()
        distances = (places[:, None] - places).square().sum(-1)
        weights = torch.exp(LIKENESS * likeness @ likeness.T - distances / (2 * REACH**2))
        cost, side = normalized_cut.cheapest_cut(weights, least=least)
        if cost >= max_seam:
            return mask
        own = inside[side == side[inside == seed]]
        part = torch.zeros_like(mask.flatten()).index_fill_(0, own, True).view(1, *mask.shape)
        mask = seed_component(part, seed[None])[0]


def contrast(cls_query: Tensor, keys: Tensor, inside: Tensor, among: Tensor) -> Tensor:
    """Is this an object?

    The CLS token must look at it, and it must be one thing, apart from what is around it.

    cls_query (B, heads, d), keys (B, heads, N, d), inside and among (B, N) bool -> (B,) float32;
    outside is what is among and not inside. A product: the logarithm of how many times more
    attention a patch gets inside than outside, which is absolute, so an empty scene, where
    attention is even, scores low; and in [0, 1] the share of the keys' variance that the mask
    explains (Otsu's criterion for two classes of one size), B / (B + W) with B = |m_in - m_out|^2 /
    4 and W = (v_in + v_out) / 2 for means m and variances v, so keys that are noise score low. 0
    where a side has fewer than two patches, or the keys do not vary. Blind to the keys' origin, as
    attention is.
    """
    attention = cls_attention(cls_query, keys).mean(1)
    keys = keys.transpose(1, 2).flatten(2)
    keys = keys - keys.mean(1, keepdim=True)  # (B, N, D)

    def moments(side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        side = side.to(keys)
        count = side.sum(1)
        mean = torch.einsum("bn,bnd->bd", side, keys) / count[:, None]
        variance = ((side * keys.square().sum(2)).sum(1) - count * mean.square().sum(1)) / (
            count - 1
        )
        return (side * attention).sum(1) / count, mean, variance

    (a_in, m_in, v_in), (a_out, m_out, v_out) = moments(inside), moments(among & ~inside)
    between = (m_in - m_out).square().sum(1) / 4
    explained = between / (between + (v_in + v_out) / 2)
    # a side of one patch or none has no variance: 0 / 0
    return ((a_in / a_out).log() * explained).nan_to_num(nan=0.0)
