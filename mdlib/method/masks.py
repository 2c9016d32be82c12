"""From the tokens of a frozen ViT to one object mask an image. Pure tensor code.

Symbols (MaskDistill, arXiv 2206.06363, section 3.1):
    q_cls  query of the CLS token in the last block      k_p  key of patch p, all heads concatenated
    G_CLS(p) = q_cls . k_p, averaged over heads          P    the top_k share of patches by G_CLS
    s      the seed: the best patch of P                 G_I(p, r) = k_p . k_r
    G_diff(r) = sum of G_I(p, r) over the p in P that look like the seed: G_I(s, p) > 0

No N x N affinity is ever built: dot products are linear, so with K (N, D) all keys,
G_diff = K (sum of the sources' keys). The cost is O(N D) instead of O(N^2 D).
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlib.core.settings import Settings

CENTERS = ("none", "mean", "balanced")  # where the keys' origin may lie, see `center_keys`


@dataclass(frozen=True)
class MaskRule(Settings):
    """The settings of stage 1: which patches make a mask, and how many masks an image gets.

    Attributes:
        top_k: Share of the patches that are candidates, in (0, 1]; at least one is.
        cls_heads: How many heads, from the first, are averaged for G_CLS.
        mass: The reference's mass rule (`apply_mass`), in (0, 1], for keys as trained; or None.
        center: Where the keys' origin is put (`center_keys`), one of CENTERS.
        max_masks: How many masks an image has at most; 1 in the paper.
        min_objectness: A mask with less `several_masks.objectness` is refused; None: never.
        max_ncut: A mask is cut in two where that costs less than this
            (`several_masks.split_at_cut`); None: never.

    Raises:
        ValueError: A setting is outside its range, or `mass` is set for centred keys.
    """

    top_k: float
    cls_heads: int
    mass: float | None
    center: str
    max_masks: int = 1
    min_objectness: float | None = None
    max_ncut: float | None = None

    def __post_init__(self) -> None:
        self.check("top_k", 0 < self.top_k <= 1, "in (0, 1]")
        self.check("cls_heads", self.cls_heads >= 1, "1 or more")
        self.check("mass", self.mass is None or 0 < self.mass <= 1, "None or in (0, 1]")
        self.check("center", self.center in CENTERS, f"one of {CENTERS}")
        if self.center != "none" and self.mass is not None:
            raise ValueError(
                "centred scores sum to about zero, so the mass rule means nothing: set mass to None"
            )
        self.check("max_masks", self.max_masks >= 1, "1 or more")

    def one_mask(self) -> Self:
        """The same rule with the paper's one mask an image, never refused and never cut."""
        return replace(self, max_masks=1, min_objectness=None, max_ncut=None)


def object_mask(
    cls_query: Tensor,
    keys: Tensor,
    *,
    grid_hw: tuple[int, int],
    top_k: float,
    cls_heads: int,
    mass: float | None,
) -> Tensor:
    """The MaskDistill object mask of each image.

    cls_query (..., heads, d) and keys (..., heads, N, d) float, keys without CLS, N = h * w
    row-major. top_k in (0, 1]: share of patches that are candidates, at least one. cls_heads: how
    many heads, from the first, are averaged for G_CLS. mass in (0, 1] or None: the reference's mass
    rule (`apply_mass`). Returns (..., h, w) bool: the 4-connected region of G_diff > 0 that holds
    the seed. It is never empty unless the seed's key is zero, so it cannot say "no object here".
    """
    rule = MaskRule(top_k=top_k, cls_heads=cls_heads, mass=mass, center="none")
    return trace_mask(cls_query, keys, grid_hw=grid_hw, rule=rule).mask


@dataclass(frozen=True)
class MaskTrace:
    """How stage 1 came to the mask of each image; P candidates among N patches.

    Attributes:
        scores: (..., N) float32, G_CLS.
        candidates: (..., P) int64, row-major indices of patches, best first.
        sources: (..., P) bool, the candidates that look like the seed.
        g_diff: (..., N) float32.
        mask: (..., h, w) bool.
    """

    scores: Tensor
    candidates: Tensor
    sources: Tensor
    g_diff: Tensor
    mask: Tensor


def trace_mask(
    cls_query: Tensor,
    keys: Tensor,
    *,
    grid_hw: tuple[int, int],
    rule: MaskRule,
    features: Tensor | None = None,
    seed: Tensor | None = None,
) -> MaskTrace:
    """One mask of each image with all that led to it: score, choose, diffuse, keep the component.

    Args:
        cls_query: (..., heads, d) float, the CLS token's queries.
        keys: (..., heads, N, d) float as trained, without CLS; N = h * w patches, row-major.
        grid_hw: (h, w) of the grid of patches.
        rule: The settings; of them, those of one mask.
        features: (..., heads, N, d) float, centred: what G_I compares; None: the keys.
        seed: (...) int64, the patch to start from; None: the best candidate.

    Raises:
        ValueError: The tokens do not fit the grid or the rule, or are not finite.
    """
    batch = keys.shape[:-3]
    cls_query, keys = prepare_tokens(cls_query, keys, grid_hw=grid_hw, rule=rule)
    compared = keys if features is None else features.reshape(-1, *features.shape[-3:]).float()

    scores = cls_scores(cls_query, keys, cls_heads=rule.cls_heads)
    candidates = candidate_patches(scores, rule)
    seed = candidates[:, 0] if seed is None else seed.reshape(-1)
    g_diff, sources = diffuse(compared, candidates, seed)
    mask = seed_component((g_diff > 0).view(-1, *grid_hw), seed)
    parts = (scores, candidates, sources, g_diff, mask)
    return MaskTrace(*(part.view(*batch, *part.shape[1:]) for part in parts))


def candidate_patches(scores: Tensor, rule: MaskRule) -> Tensor:
    """P of each image, best first: G_CLS (B, N) -> (B, P) int64."""
    kept = scores if rule.mass is None else apply_mass(scores, mass=rule.mass)
    return top_patches(kept, top_k=rule.top_k)


def cls_scores(cls_query: Tensor, keys: Tensor, *, cls_heads: int) -> Tensor:
    """G_CLS: (B, heads, d), (B, heads, N, d) -> (B, N), the mean over the first cls_heads heads.

    No softmax.
    """
    return torch.einsum("bhd,bhnd->bhn", cls_query, keys)[:, :cls_heads].mean(1)


def apply_mass(scores: Tensor, *, mass: float) -> Tensor:
    """The reference's mass rule: (B, N) -> (B, N) with the low scores set to 0.

    Scores ascending, divided by their sum, cumulated: a patch keeps its score where the cumulative
    value exceeds 1 - mass. Meant for attention (non-negative); raw scores may be negative, and then
    "mass" has no clear meaning. With centred keys they sum to about zero: use None there.
    """
    ascending, order = scores.sort(dim=-1, stable=True)
    cumulative = (ascending / ascending.sum(-1, keepdim=True)).cumsum(-1)
    kept = torch.where(cumulative > 1 - mass, ascending, torch.zeros_like(ascending))
    return torch.empty_like(scores).scatter_(-1, order, kept)


def top_patches(scores: Tensor, *, top_k: float) -> Tensor:
    """P: the first max(1, int(top_k * N)) patches, best first, ties to the lower index.

    (B, N) -> (B, P) int64.
    """
    count = max(1, int(top_k * scores.shape[-1]))
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def diffuse(keys: Tensor, candidates: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """G_diff, the summed affinity to the candidates that look like the seed.

    Args:
        keys: (B, heads, N, d) float.
        candidates: (B, P) int64, indices of patches.
        seed: (B,) int64, an index of a patch.

    Returns:
        g_diff: (B, N) float.
        sources: (B, P) bool, which candidates were summed.
    """
    flat = keys.transpose(1, 2).flatten(2)  # (B, N, heads * d)
    chosen = flat.gather(1, candidates[..., None].expand(-1, -1, flat.shape[-1]))  # (B, P, D)
    start = flat[torch.arange(len(flat), device=flat.device), seed]  # (B, D)
    sources = torch.einsum("bpd,bd->bp", chosen, start) > 0  # G_I(s, p) > 0
    total = torch.einsum("bp,bpd->bd", sources.to(flat.dtype), chosen)
    return torch.einsum("bnd,bd->bn", flat, total), sources


def seed_component(foreground: Tensor, seed: Tensor) -> Tensor:
    """The 4-connected component that holds the seed.

    (B, h, w) bool, (B,) row-major index -> (B, h, w) bool.
    """
    batch, height, width = foreground.shape
    reached = torch.zeros_like(foreground).view(batch, -1)
    reached[torch.arange(batch, device=seed.device), seed] = True
    reached = reached.view_as(foreground) & foreground
    while True:
        before = reached
        for _ in range(8):  # several steps between two looks: a look makes a GPU wait
            grown = F.pad(reached, (1, 1, 1, 1))
            reached = foreground & (
                grown[:, 1:-1, 1:-1]
                | grown[:, :-2, 1:-1]
                | grown[:, 2:, 1:-1]
                | grown[:, 1:-1, :-2]
                | grown[:, 1:-1, 2:]
            )
        if torch.equal(reached, before):
            return reached


# shares of the patches, by G_CLS, whose mean keys "balanced" takes; chosen on the zoo's dev
TOP_SHARE, BOTTOM_SHARE = 0.1, 0.5


def center_keys(cls_query: Tensor, keys: Tensor, *, cls_heads: int, center: str) -> Tensor:
    """Move the keys' origin, image by image: (B, heads, d), (B, heads, N, d) -> (B, heads, N, d).

    softmax(q . (k + c)) = softmax(q . k) for every constant c: attention does not care where keys
    are centred, so training leaves that free (a gauge). The sign test k_p . k_r > 0 does care.

    center: "none", as trained (the paper). "mean": the mean key; a small object then leaks, because
    the mean lies close to the background. "balanced": half-way between the mean key of the tenth of
    the patches that CLS likes best and that of the half it likes least, however small the object
    is.
    """
    if center not in CENTERS:
        raise ValueError(f"center must be one of {CENTERS}, got {center!r}")
    if center == "none":
        return keys
    if center == "mean":
        return keys - keys.mean(-2, keepdim=True)
    # (B, N), best first
    order = top_patches(cls_scores(cls_query, keys, cls_heads=cls_heads), top_k=1.0)
    ranked = keys.gather(2, order[:, None, :, None].expand_as(keys))
    count = keys.shape[-2]
    liked = ranked[:, :, : max(1, int(TOP_SHARE * count))].mean(2, keepdim=True)
    disliked = ranked[:, :, -max(1, int(BOTTOM_SHARE * count)) :].mean(2, keepdim=True)
    return keys - (liked + disliked) / 2


def cls_attention(cls_query: Tensor, keys: Tensor) -> Tensor:
    """The CLS token's attention to the patches alone: (B, heads, d), (B, heads, N, d) -> (B, heads,
    N), sum 1 over N.
    """
    return (torch.einsum("bhd,bhnd->bhn", cls_query, keys) * cls_query.shape[-1] ** -0.5).softmax(
        -1
    )


def attention_share(cls_query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Share of the CLS token's attention to patches that falls inside the mask, mean over heads:
    (B,) in [0, 1].

    cls_query (B, heads, d), keys (B, heads, N, d), mask (B, h, w) bool. Blind to the gauge, as
    attention is.
    """
    return (cls_attention(cls_query, keys).mean(1) * mask.flatten(1)).sum(-1)


def mask_to_pixels(
    mask: Tensor, *, padded_hw: tuple[int, int], image_hw: tuple[int, int], crop_hw=None
) -> Tensor:
    """Grid masks to image masks by nearest neighbour: (B, h, w) bool -> (B, H, W) bool.

    padded_hw: size of the padded encoder input that the grid covers; crop_hw: its part that is
    picture (default: all); image_hw: size of the original image, to which that part is resized.
    """
    pixels = F.interpolate(mask[:, None].float(), size=padded_hw, mode="nearest-exact")
    height, width = crop_hw or padded_hw
    pixels = F.interpolate(pixels[..., :height, :width], size=image_hw, mode="nearest-exact")
    return pixels[:, 0] > 0.5


def prepare_tokens(
    cls_query: Tensor, keys: Tensor, *, grid_hw: tuple[int, int], rule: MaskRule
) -> tuple[Tensor, Tensor]:
    """Checked tokens as one batch in float32, the keys centred by the rule.

    Args:
        cls_query: (..., heads, d) float.
        keys: (..., heads, N, d) float as trained, without CLS; N = h * w patches, row-major.
        grid_hw: (h, w) of the grid of patches.
        rule: The settings.

    Returns:
        cls_query: (B, heads, d) float32.
        keys: (B, heads, N, d) float32.

    Raises:
        ValueError: The tokens do not fit the grid or the rule, or are not finite.
    """
    _check_grid(keys, grid_hw)
    if cls_query.shape != keys.shape[:-2] + keys.shape[-1:]:
        raise ValueError(
            f"cls_query {tuple(cls_query.shape)} does not fit keys {tuple(keys.shape)}"
        )
    if rule.cls_heads > keys.shape[-3]:
        raise ValueError(f"cls_heads must be in 1..{keys.shape[-3]}, got {rule.cls_heads}")
    cls_query = cls_query.reshape(-1, *cls_query.shape[-2:]).float()
    keys = keys.reshape(-1, *keys.shape[-3:]).float()
    keys = center_keys(cls_query, keys, cls_heads=rule.cls_heads, center=rule.center)
    _check_finite(keys, "keys")  # after centring: there they are dense in memory, twice as fast
    _check_finite(cls_query, "queries")
    return cls_query, keys


def check_keys(keys: Tensor, grid_hw: tuple[int, int]) -> None:
    """ValueError for keys that do not fill the grid, or are not finite."""
    _check_grid(keys, grid_hw)
    _check_finite(keys, "keys")


def _check_grid(keys: Tensor, grid_hw: tuple[int, int]) -> None:
    if keys.ndim < 3 or keys.shape[-2] != grid_hw[0] * grid_hw[1]:
        raise ValueError(
            f"keys must be (..., heads, N, d) with N = {grid_hw[0]} * {grid_hw[1]}, "
            f"got {tuple(keys.shape)}"
        )


def _check_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} are not finite: was the encoder run in too low a precision?")
