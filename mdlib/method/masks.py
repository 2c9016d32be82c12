"""From the tokens of a frozen ViT to one object mask an image. Pure tensor code.

The CLS token attends to the object. We take the patches that it scores highest, choose the best
one as the seed, and add up the affinities to those candidates that are similar to the seed. The
mask is the connected region around the seed where the sum is positive.

Symbols (MaskDistill, arXiv 2206.06363, section 3.1):
    q_cls  query of the CLS token in the last block      k_p  key of patch p, all heads concatenated
    G_CLS(p) = q_cls . k_p, averaged over heads          P    the top_k share of patches by G_CLS
    s      the seed: the best patch of P                 G_I(p, r) = k_p . k_r
    G_diff(r) = sum of G_I(p, r) over the p in P that are similar to the seed: G_I(s, p) > 0

Cost: no N x N affinity is ever built. Dot products are linear, so with K (N, D) all keys,
G_diff = K (sum of the sources' keys), where the sources are the p of that sum. This takes O(N D)
instead of O(N^2 D).
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlib.core.settings import Settings

AFFINITIES = ("keys", "values", "queries", "patches")  # what G_I may compare
CENTERS = ("none", "mean", "balanced")  # where their origin may lie, see `center_features`


@dataclass(frozen=True)
class MaskRule(Settings):
    """The settings of stage 1: which patches make a mask, and how many masks an image gets.

    Attributes:
        top_k: share of the patches that are candidates, in (0, 1]; at least one is.
        cls_heads: number of heads, from the first, that are averaged for G_CLS; 1 or more.
        mass: the reference's mass rule (`apply_mass`), in (0, 1], for keys as trained; or None.
        center: where the origin of what G_I compares is put (`center_features`), one of CENTERS.
        affinity: what G_I compares, one of AFFINITIES: keys in the paper.
        whiten: whether directions in which the ground varies count less (`whiten_features`); not
            in the paper.
        max_masks: most masks of an image, 1 or more; 1 in the paper.
        min_objectness: a mask with less `several_masks.objectness` is refused; None: never.
        max_ncut: a mask is cut in two where that costs less than this
            (`several_masks.split_at_cut`); None: never.

    Raises:
        ValueError: where a setting is outside its range, or `mass` is set for centred keys.
    """

    top_k: float
    cls_heads: int
    mass: float | None
    center: str
    affinity: str = "keys"
    whiten: bool = False
    max_masks: int = 1
    min_objectness: float | None = None
    max_ncut: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of its range."""
        self.check("top_k", 0 < self.top_k <= 1, "in (0, 1]")
        self.check("cls_heads", self.cls_heads >= 1, "1 or more")
        self.check("mass", self.mass is None or 0 < self.mass <= 1, "None or in (0, 1]")
        self.check("center", self.center in CENTERS, f"one of {CENTERS}")
        self.check("affinity", self.affinity in AFFINITIES, f"one of {AFFINITIES}")
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
    """Compute the MaskDistill object mask of each image, in float32.

    Args:
        cls_query: (..., heads, d) float, the CLS token's queries.
        keys: (..., heads, N, d) float as trained, without CLS; N = h * w patches, row-major.
        grid_hw: (h, w) of the grid of patches.
        top_k: share of the patches that are candidates, in (0, 1]; at least one is. Ties go to the
            lower index.
        cls_heads: number of heads, from the first, that are averaged for G_CLS.
        mass: the reference's mass rule (`apply_mass`), in (0, 1]; or None.

    Returns:
        (..., h, w) bool: the 4-connected region of G_diff > 0 that holds the seed. It is never
        empty unless the seed's key is zero, so it cannot say that an image has no object.

    Raises:
        ValueError: where a setting is out of its range, or the tokens do not fit or are not finite.
    """
    rule = MaskRule(top_k=top_k, cls_heads=cls_heads, mass=mass, center="none")
    return trace_mask(cls_query, keys, grid_hw=grid_hw, rule=rule).mask


@dataclass(frozen=True)
class MaskTrace:
    """The steps of stage 1 for each image, from scores to mask; P candidates among N patches.

    Attributes:
        scores: (..., N) float32, G_CLS.
        candidates: (..., P) int64, row-major indices of patches, best first.
        sources: (..., P) bool, the candidates that are similar to the seed.
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
    """Compute one mask of each image, and keep every step: score, choose, diffuse, component.

    Args:
        cls_query: (..., heads, d) float, the CLS token's queries.
        keys: (..., heads, N, d) float as trained, without CLS; N = h * w patches, row-major.
        grid_hw: (h, w) of the grid of patches.
        rule: the settings; those of several masks are not used.
        features: (..., heads, N, d) float, what G_I compares (`rule.affinity`); None: the keys.
        seed: (...) int64, the patch to start from; None: the best candidate.

    Returns:
        The trace, with the batch dimensions of the keys.

    Raises:
        ValueError: where the tokens do not fit the grid or the rule, or are not finite.
    """
    batch = keys.shape[:-3]
    cls_query, keys, features = prepare_tokens(
        cls_query, keys, features, grid_hw=grid_hw, rule=rule
    )
    scores = cls_scores(cls_query, keys, cls_heads=rule.cls_heads)
    candidates = candidate_patches(scores, rule)
    seed = candidates[:, 0] if seed is None else seed.reshape(-1)
    g_diff, sources = diffuse(features, candidates, seed)
    mask = seed_component((g_diff > 0).view(-1, *grid_hw), seed)
    parts = (scores, candidates, sources, g_diff, mask)
    return MaskTrace(*(part.view(*batch, *part.shape[1:]) for part in parts))


def candidate_patches(scores: Tensor, rule: MaskRule) -> Tensor:
    """Choose P of each image, best first.

    Args:
        scores: (B, N), G_CLS.
        rule: the settings.

    Returns:
        (B, P) int64 indices of patches.
    """
    kept = scores if rule.mass is None else apply_mass(scores, mass=rule.mass)
    return top_patches(kept, top_k=rule.top_k)


def cls_scores(cls_query: Tensor, keys: Tensor, *, cls_heads: int) -> Tensor:
    """Compute G_CLS, the mean over the first heads. There is no softmax.

    Args:
        cls_query: (B, heads, d).
        keys: (B, heads, N, d).
        cls_heads: number of heads, from the first, that are averaged.

    Returns:
        (B, N).
    """
    return torch.einsum("bhd,bhnd->bhn", cls_query, keys)[:, :cls_heads].mean(1)


def apply_mass(scores: Tensor, *, mass: float) -> Tensor:
    """Set low scores to 0 by the reference's mass rule.

    The scores in ascending order are divided by their sum and cumulated; a patch keeps its score
    where the cumulative value exceeds 1 - mass. The rule is meant for attention, which is not
    negative; raw scores may be negative, and then "mass" has no clear meaning. The scores of
    centred keys sum to about zero: use None there.

    Args:
        scores: (B, N).
        mass: in (0, 1].

    Returns:
        (B, N).
    """
    ascending, order = scores.sort(dim=-1, stable=True)
    cumulative = (ascending / ascending.sum(-1, keepdim=True)).cumsum(-1)
    kept = torch.where(cumulative > 1 - mass, ascending, torch.zeros_like(ascending))
    return torch.empty_like(scores).scatter_(-1, order, kept)


def top_patches(scores: Tensor, *, top_k: float) -> Tensor:
    """Choose the first max(1, int(top_k * N)) patches, best first; ties go to the lower index.

    Args:
        scores: (B, N).
        top_k: share of the patches, in (0, 1].

    Returns:
        (B, P) int64 indices of patches.
    """
    count = max(1, int(top_k * scores.shape[-1]))
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def diffuse(keys: Tensor, candidates: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Compute G_diff, the summed affinity to the candidates that are similar to the seed.

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
    """Find the 4-connected component that holds the seed.

    Args:
        foreground: (B, h, w) bool.
        seed: (B,) int64, row-major index of a patch.

    Returns:
        (B, h, w) bool; all False where the seed is not foreground.
    """
    reached = torch.zeros_like(foreground).flatten(1)
    reached[torch.arange(len(reached), device=seed.device), seed] = True
    reached = reached.view_as(foreground) & foreground
    while True:
        before = reached
        for _ in range(8):  # several steps between two comparisons, because each makes a GPU wait
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


def center_features(features: Tensor, scores: Tensor, *, center: str) -> Tensor:
    """Move the origin of what G_I compares, image by image.

    softmax(q . (k + c)) = softmax(q . k) for every constant c. Attention does not depend on the
    keys' origin, so training leaves it free (a gauge); the sign test k_p . k_r > 0 does depend on
    it. Nothing says where the zero of values or patch tokens is, either.

    Args:
        features: (B, heads, N, d).
        scores: (B, N), G_CLS, by which "balanced" ranks the patches.
        center: "none": as trained (the paper). "mean": at the mean; the mask of a small object then
            leaks, because the mean lies close to the background. "balanced": half-way between the
            mean of the patches with the highest scores (TOP_SHARE of them) and that of those with
            the lowest (BOTTOM_SHARE), however small the object is.

    Returns:
        (B, heads, N, d).

    Raises:
        ValueError: for another `center`.
    """
    if center not in CENTERS:
        raise ValueError(f"center must be one of {CENTERS}, got {center!r}")
    if center == "none":
        return features
    if center == "mean":
        return features - features.mean(-2, keepdim=True)
    order = top_patches(scores, top_k=1.0)  # (B, N), best first
    ranked = features.gather(2, order[:, None, :, None].expand_as(features))
    count = features.shape[-2]
    liked = ranked[:, :, : max(1, int(TOP_SHARE * count))].mean(2, keepdim=True)
    disliked = ranked[:, :, -max(1, int(BOTTOM_SHARE * count)) :].mean(2, keepdim=True)
    return features - (liked + disliked) / 2


def whiten_features(features: Tensor, scores: Tensor) -> Tensor:
    """Make directions in which the ground varies count less, image by image.

    With C the covariance of the patches that CLS likes least (BOTTOM_SHARE of them), affinities
    become f_p . (C + c I)^-1 f_r with c the mean variance: what differs among patches of the ground
    does not tell an object from it. This is the metric of Fisher's linear discriminant; c keeps it
    from trusting directions that so few patches cannot measure.

    Args:
        features: (B, heads, N, d), centred.
        scores: (B, N), G_CLS, by which the patches are ranked.

    Returns:
        (B, heads, N, d); heads are mixed, so only sums over all heads mean something.
    """
    flat = features.transpose(1, 2).flatten(2)  # (B, N, D)
    count = flat.shape[1]
    lowest = scores.sort(dim=1, stable=True).indices[:, : max(1, int(BOTTOM_SHARE * count))]
    ground = flat.gather(1, lowest[..., None].expand(-1, -1, flat.shape[-1]))
    ground = ground - ground.mean(1, keepdim=True)
    covariance = ground.transpose(1, 2) @ ground / ground.shape[1]
    ridge = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    identity = torch.eye(flat.shape[-1], device=flat.device)
    root = torch.linalg.cholesky(covariance + ridge[:, None, None] * identity)
    white = torch.linalg.solve_triangular(root, flat.transpose(1, 2), upper=False)  # (B, D, N)
    return white.unflatten(1, (features.shape[1], -1)).transpose(2, 3)


def cls_attention(cls_query: Tensor, keys: Tensor) -> Tensor:
    """Compute the CLS token's attention to the patches alone.

    Args:
        cls_query: (B, heads, d).
        keys: (B, heads, N, d).

    Returns:
        (B, heads, N), with sum 1 over N.
    """
    scale = cls_query.shape[-1] ** -0.5
    return (torch.einsum("bhd,bhnd->bhn", cls_query, keys) * scale).softmax(-1)


def attention_share(cls_query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Compute the share of the CLS token's attention that falls inside a mask.

    It is a share of the attention to patches, averaged over heads. As attention itself, it does not
    depend on the keys' origin.

    Args:
        cls_query: (B, heads, d).
        keys: (B, heads, N, d).
        mask: (B, h, w) bool.

    Returns:
        (B,) in [0, 1].
    """
    return (cls_attention(cls_query, keys).mean(1) * mask.flatten(1)).sum(-1)


def mask_to_pixels(
    mask: Tensor,
    *,
    padded_hw: tuple[int, int],
    image_hw: tuple[int, int],
    crop_hw: tuple[int, int] | None = None,
) -> Tensor:
    """Enlarge grid masks to image masks by nearest neighbour.

    Args:
        mask: (B, h, w) bool.
        padded_hw: (H, W) in pixels of the padded encoder input, which the grid covers.
        image_hw: (H, W) of the original image, to which the cropped part is resized.
        crop_hw: (H, W) of the part of the input that shows the image; None: all of it.

    Returns:
        (B, H, W) bool at the size of the original image.
    """
    pixels = F.interpolate(mask[:, None].float(), size=padded_hw, mode="nearest-exact")
    height, width = crop_hw or padded_hw
    pixels = F.interpolate(pixels[..., :height, :width], size=image_hw, mode="nearest-exact")
    return pixels[:, 0] > 0.5


def prepare_tokens(
    cls_query: Tensor,
    keys: Tensor,
    features: Tensor | None,
    *,
    grid_hw: tuple[int, int],
    rule: MaskRule,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check tokens and make them one batch in float32, with the features centred by the rule.

    Args:
        cls_query: (..., heads, d) float.
        keys: (..., heads, N, d) float as trained, without CLS; N = h * w patches, row-major.
        features: (..., heads, N, d) float, what G_I compares; None: the keys.
        grid_hw: (h, w) of the grid of patches.
        rule: the settings.

    Returns:
        cls_query: (B, heads, d) float32.
        keys: (B, heads, N, d) float32, as trained.
        features: (B, heads, N, d) float32, centred.

    Raises:
        ValueError: where the tokens do not fit the grid or the rule, or are not finite.
    """
    features = keys if features is None else features
    for tokens in (keys, features):
        _check_grid(tokens, grid_hw)
    if cls_query.shape != keys.shape[:-2] + keys.shape[-1:]:
        raise ValueError(
            f"cls_query {tuple(cls_query.shape)} does not fit keys {tuple(keys.shape)}"
        )
    if rule.cls_heads > keys.shape[-3]:
        raise ValueError(f"cls_heads must be in 1..{keys.shape[-3]}, got {rule.cls_heads}")
    cls_query = cls_query.reshape(-1, *cls_query.shape[-2:]).float()
    keys = keys.reshape(-1, *keys.shape[-3:]).float()
    features = features.reshape(-1, *features.shape[-3:]).float()
    _check_finite(cls_query, "queries")
    scores = cls_scores(cls_query, keys, cls_heads=rule.cls_heads)
    _check_finite(scores, "keys")
    features = center_features(features, scores, center=rule.center)
    if rule.whiten:
        features = whiten_features(features, scores)
    _check_finite(features, rule.affinity)  # after centring: there they are dense, twice as fast
    return cls_query, keys, features


def check_keys(keys: Tensor, grid_hw: tuple[int, int]) -> None:
    """Raise ValueError for keys (..., heads, N, d) that do not fill the grid, or are not finite."""
    _check_grid(keys, grid_hw)
    _check_finite(keys, "keys")


def _check_grid(keys: Tensor, grid_hw: tuple[int, int]) -> None:
    """Raise ValueError for keys that are not (..., heads, N, d) with N = h * w."""
    if keys.ndim < 3 or keys.shape[-2] != grid_hw[0] * grid_hw[1]:
        raise ValueError(
            f"keys must be (..., heads, N, d) with N = {grid_hw[0]} * {grid_hw[1]}, "
            f"got {tuple(keys.shape)}"
        )


def _check_finite(values: Tensor, what: str) -> None:
    """Raise ValueError for an infinite value or a NaN."""
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} are not finite: was the encoder run in too low a precision?")
