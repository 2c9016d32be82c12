"""Several objects an image: beyond the paper, which keeps one mask and names that as its limit.

Three things are added to `masks.object_mask`: a new seed among the patches that are left; a score
that says whether there is an object at all, so that an empty scene gets no mask; and a cut between
two objects that touch. Symbols as in `masks`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlib.method import normalized_cut
from mdlib.method.masks import (
    MaskRule,
    candidate_patches,
    cls_attention,
    cls_scores,
    diffuse,
    prepare_tokens,
    seed_component,
)

# The weights of a mask's graph; chosen on the zoo's dev with its grid of 28 x 28.
REACH = 1.5  # patches: standard deviation of the Gaussian of distance
LIKENESS = 3.0  # factor of the cosine of two keys in the exponent
LEAST_PART = 0.015  # least share of the grid's patches in a part


def object_masks(
    cls_query: Tensor,
    keys: Tensor,
    *,
    grid_hw: tuple[int, int],
    rule: MaskRule,
    features: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute up to `rule.max_masks` object masks of each image.

    One mask is taken away, and the next one starts from a new seed. A patch that is taken has
    zero features from then on, so that it is neither seed nor source nor part of a mask; the next
    seed is the best candidate that is left. So no two masks overlap. A mask whose `objectness` is
    below `rule.min_objectness` is refused, and its image is done: an empty scene has no mask at
    all. A rule of one mask with keys as trained gives `masks.object_mask`.

    Args:
        cls_query: (..., heads, d) float, the CLS token's queries.
        keys: (..., heads, N, d) float as trained, without CLS; N = h * w patches, row-major.
        grid_hw: (h, w) of the grid of patches.
        rule: the settings.
        features: (..., heads, N, d) float, what G_I compares (`rule.affinity`); None: the keys.

    Returns:
        masks: (..., max_masks, h, w) bool, found ones first, all False where there was none.
        contrasts: (..., max_masks) float32, `objectness` of each; 0 where there was none.

    Raises:
        ValueError: where the tokens do not fit the grid or the rule, or are not finite.
    """
    batch = keys.shape[:-3]
    cls_query, keys, features = prepare_tokens(
        cls_query, keys, features, grid_hw=grid_hw, rule=rule
    )
    attention = cls_attention(cls_query, keys).mean(1)
    scores = cls_scores(cls_query, keys, cls_heads=rule.cls_heads)
    candidates = candidate_patches(scores, rule)
    taken = torch.zeros_like(keys[:, 0, :, 0], dtype=torch.bool)  # (B, N)
    floor = -math.inf if rule.min_objectness is None else rule.min_objectness
    found, contrasts = [], []
    for _ in range(rule.max_masks):
        left_first = taken.gather(1, candidates).int().sort(dim=1, stable=True).indices
        left = features.masked_fill(taken[:, None, :, None], 0)
        ranked = candidates.gather(1, left_first)
        seed = ranked[:, 0]
        g_diff, _ = diffuse(left, ranked, seed)
        mask = seed_component((g_diff > 0).view(-1, *grid_hw), seed)
        score = objectness(attention, features, mask.flatten(1), ~taken)
        if rule.max_ncut is not None:
            for i in (score >= floor).nonzero()[:, 0]:  # a refused mask needs no cut
                mask[i] = split_at_cut(features[i], mask[i], seed[i], max_ncut=rule.max_ncut)
            score = objectness(attention, features, mask.flatten(1), ~taken)
        # refused here, and the same again in the rounds to come
        mask = mask.flatten(1) & (score >= floor)[:, None]
        taken = taken | mask
        found.append(mask)
        contrasts.append(score * mask.any(1))
    shape = (*batch, rule.max_masks)
    return torch.stack(found, 1).view(*shape, *grid_hw), torch.stack(contrasts, 1).view(shape)


def split_at_cut(features: Tensor, mask: Tensor, seed: Tensor, *, max_ncut: float) -> Tensor:
    """Cut a mask between objects that touch, and keep the part with the seed.

    Objects that touch are one component. The border between two is short, and the features
    change there. So the graph of the mask's patches, with weights

        exp(LIKENESS cos(f_p, f_r) - |p - r|^2 / (2 REACH^2))

    of features f about the mask's mean and positions in patches, has a cheap normalised cut
    (`normalized_cut.cheapest_cut`). As long as one costs less than max_ncut, the mask is cut there.
    The other part stays free for the next seed. O(n^3) for the n patches of the mask.

    Args:
        features: (heads, N, d) of one image.
        mask: (h, w) bool.
        seed: () int64, row-major index of a patch inside the mask.
        max_ncut: the cost, in [0, 2], from which on a mask is not cut.

    Returns:
        (h, w) bool, one 4-connected component.
    """
    least = max(1, int(LEAST_PART * mask.numel()))
    while True:
        inside = mask.flatten().nonzero()[:, 0]  # (n,) row-major
        if len(inside) < 2 * least:
            return mask
        likeness = features[:, inside].transpose(0, 1).flatten(1)  # (n, D)
        likeness = F.normalize(likeness - likeness.mean(0), dim=1)
        places = torch.stack([inside // mask.shape[1], inside % mask.shape[1]], 1).float()
        distances = (places[:, None] - places).square().sum(-1)
        weights = torch.exp(LIKENESS * likeness @ likeness.T - distances / (2 * REACH**2))
        cost, side = normalized_cut.cheapest_cut(weights, least=least)
        if cost >= max_ncut:
            return mask
        own = inside[side == side[inside == seed]]
        part = torch.zeros_like(mask.flatten()).index_fill_(0, own, True).view(1, *mask.shape)
        mask = seed_component(part, seed[None])[0]


def objectness(attention: Tensor, features: Tensor, inside: Tensor, among: Tensor) -> Tensor:
    """Score how much a mask is an object: attended to, and different from its surroundings.

    The CLS token must attend to it, and its features must be alike and differ from those outside.
    Outside is what is in `among` and not inside. The score is a product of two factors:

    1. The logarithm of the ratio of the mean attention of a patch inside to that of a patch
       outside. It is absolute, so an empty scene, where attention is even, scores low.
    2. The share of the features' variance that the mask explains, in [0, 1] (Otsu's criterion for
       two classes of one size): B / (B + W) with B = |m_in - m_out|^2 / 4 and
       W = (v_in + v_out) / 2 for means m and variances v. So features that are noise score low.

    As attention itself, the score does not depend on an origin.

    Args:
        attention: (B, N), the CLS token's, averaged over heads.
        features: (B, heads, N, d), what G_I compares.
        inside: (B, N) bool, the mask.
        among: (B, N) bool, the patches that are compared.

    Returns:
        (B,) float32; 0 where a side has fewer than two patches, or the features do not vary.
    """
    features = features.transpose(1, 2).flatten(2)
    features = features - features.mean(1, keepdim=True)  # (B, N, D)

    def moments(side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean attention (B,), mean feature (B, D) and variance (B,) of a side (B, N)."""
        side = side.to(features)
        count = side.sum(1)
        mean = torch.einsum("bn,bnd->bd", side, features) / count[:, None]
        squares = (side * features.square().sum(2)).sum(1) - count * mean.square().sum(1)
        return (side * attention).sum(1) / count, mean, squares / (count - 1)

    (a_in, m_in, v_in), (a_out, m_out, v_out) = moments(inside), moments(among & ~inside)
    between = (m_in - m_out).square().sum(1) / 4
    explained = between / (between + (v_in + v_out) / 2)
    # a side of one patch or none has no variance: 0 / 0
    return ((a_in / a_out).log() * explained).nan_to_num(nan=0.0)
