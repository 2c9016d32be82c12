"""How the zoo encoder learns, without a label: contrast between frames, prediction inside a frame.

    InfoNCE   the CLS token of a crop must pick, among all clips of the batch, the other frame of its own
              clip (MoCo v3, arXiv 2104.02057). The two frames share the subject and not the background.
    iBOT      a masked patch must say what a momentum encoder, which sees the patch, says of it
              (arXiv 2111.07832); targets are balanced over prototypes by Sinkhorn-Knopp (arXiv 2006.09882).

The momentum encoder (the teacher: a running mean of the student) is what is kept.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mdlib.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder, build_zoo_vit
from mdlib.training import cosine_schedule


class Learner(nn.Module):
    """A ViT with the two heads it needs while it learns. Student and teacher are both one of these."""

    def __init__(self, vit: VisionTransformer, *, prototypes: int, dim: int = 64):
        super().__init__()
        width = vit.embed_dim
        self.vit = vit
        self.mask_token = nn.Parameter(torch.zeros(width))
        hidden = [nn.Linear(width, 384, bias=False), nn.BatchNorm1d(384), nn.ReLU(inplace=True)]
        hidden += [nn.Linear(384, 384, bias=False), nn.BatchNorm1d(384), nn.ReLU(inplace=True)]
        self.cls_head = nn.Sequential(*hidden, nn.Linear(384, dim, bias=False), nn.BatchNorm1d(dim, affine=False))
        self.patch_head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, dim))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=-1))

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised, hidden (B, h, w) bool patches to mask -> cls (B, D), patches (B, N, D)."""
        x = self.vit.patch_embed(images)  # (B, h, w, D)
        if hidden is not None:
            x = torch.where(hidden[..., None], self.mask_token, x)
        x = self.vit.norm(self.vit.blocks(self.vit.norm_pre(self.vit._pos_embed(x))))
        return x[:, 0], x[:, 1:]

    def embed(self, cls: Tensor) -> Tensor:
        return F.normalize(self.cls_head(cls), dim=-1)

    def assign(self, patches: Tensor) -> Tensor:
        """(M, D) patch tokens -> (M, prototypes) cosine similarities."""
        return F.normalize(self.patch_head(patches), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def build_learners(*, prototypes: int, seed: int) -> tuple[Learner, Learner]:
    """(student, teacher): the teacher starts as a copy and never sees a gradient."""
    torch.manual_seed(seed)
    student = Learner(build_zoo_vit(), prototypes=prototypes)
    return student, copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: Learner, student: Learner, *, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameter by parameter."""
    for slow, fast in zip(teacher.parameters(), student.parameters()):
        slow.lerp_(fast, 1 - momentum)


def momentum_schedule(step: int, *, steps: int, base: float) -> float:
    """From `base` to 1 along half a cosine: the teacher slows down until it stands still."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / steps))


# ---------------------------------------------------------------- losses


def info_nce(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """(B, d), (B, d) unit vectors; row i of both belongs to clip i. Cross-entropy of finding one's own clip."""
    logits = queries @ keys.T / temperature
    return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))


@torch.no_grad()
def sinkhorn(scores: Tensor, *, temperature: float, rounds: int = 3) -> Tensor:
    """(M, K) similarities -> (M, K) soft targets: rows sum to 1, every prototype is used about equally."""
    plan = torch.exp((scores - scores.max()).float() / temperature)
    for _ in range(rounds):
        plan = plan / plan.sum(0, keepdim=True).clamp_min(1e-9)
        plan = plan / plan.sum(1, keepdim=True).clamp_min(1e-9)
    return plan


def patch_loss(student_scores: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of (M, K) scores against (M, K) soft targets, mean over the M masked patches."""
    return -(targets * F.log_softmax(student_scores / temperature, dim=-1)).sum(-1).mean()


def tracking_loss(
    student: Learner,
    teacher: Learner,
    crops: dict[str, Tensor],
    *,
    temperature: float,
    patch_weight: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The whole objective on one batch of clips.

    crops: "large" (2, B, 3, S, S) and "small" (2, B, 3, s, s), one crop of each frame, normalised.
    Half of the large crops lose 10-50 % of their patches before the student sees them.
    """
    large, small = crops["large"].flatten(0, 1), crops["small"].flatten(0, 1)
    count = len(large) // 2
    with torch.no_grad():
        cls, clean = teacher(large)
        keys = teacher.embed(cls)
    grid = large.shape[-1] // student.vit.patch_embed.patch_size[0]
    hidden = random_patches(len(large), grid, generator=generator).to(large.device)
    cls, patches = student(large, hidden)
    queries = [student.embed(cls), student.embed(student(small)[0])]
    other = torch.cat([keys[count:], keys[:count]])  # the other frame of the same clip
    contrast = sum(
        info_nce(q[part], other[part], temperature=temperature)
        for q in queries
        for part in (slice(0, count), slice(count, None))
    ) / 4
    chosen = hidden.flatten(1)
    targets = sinkhorn(teacher.assign(clean[chosen]), temperature=0.06)
    patch = patch_loss(student.assign(patches[chosen]), targets, temperature=0.1)
    return contrast + patch_weight * patch, {"contrast": contrast.item(), "patch": patch.item()}


def random_patches(batch: int, grid: int, *, generator: torch.Generator) -> Tensor:
    """(B, grid, grid) bool: in every second image 10-50 % of the patches, in the others none."""
    share = 0.1 + 0.4 * torch.rand(batch, 1, generator=generator)
    share[::2] = 0
    return (torch.rand(batch, grid * grid, generator=generator) < share).view(batch, grid, grid)


# ---------------------------------------------------------------- views


def crop_views(frames: Tensor, *, size: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """One random square crop of each frame, colour-jittered, mirrored half the time, normalised.

    frames (B, 3, H, W) float in [0, 1]; scale: smallest and largest share of the area. Returns (B, 3, size, size).
    """
    batch = len(frames)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    side = (scale[0] + (scale[1] - scale[0]) * rand(batch)).sqrt()
    centre = (2 * rand(batch, 2) - 1) * (1 - side)[:, None]
    flip = torch.where(rand(batch) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, centre
    grid = F.affine_grid(theta, (batch, 3, size, size), align_corners=False).to(frames.device)
    crops = F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)
    crops = jitter_colour(crops, generator=generator)
    mean, std = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (crops - mean) / std


def jitter_colour(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation x 0.6-1.4, hue +-0.6 rad, grey for every fifth. (B, 3, H, W) in [0, 1]."""
    batch = len(images)

    def between(low, high):
        return (low + (high - low) * torch.rand(batch, generator=generator)).view(-1, 1, 1, 1).to(images.device)

    images = images * between(0.6, 1.4)
    centre = images.mean((1, 2, 3), keepdim=True)
    images = centre + (images - centre) * between(0.6, 1.4)
    luma = (images * torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)).sum(1, keepdim=True)
    # Hue: turn the colour difference about the grey axis (Rodrigues' formula for the axis (1, 1, 1)).
    colour, angle = (images - luma) * between(0.6, 1.4), between(-0.6, 0.6)
    crossed = (colour.roll(1, dims=1) - colour.roll(-1, dims=1)) / math.sqrt(3)
    colour = colour * angle.cos() + crossed * angle.sin() + colour.mean(1, keepdim=True) * (1 - angle.cos())
    kept = (between(0, 1) > 0.2).float()
    return (luma + colour * kept).clamp(0, 1)


class ClipBatches:
    """batch(step) -> two crops of each frame of `batch` clips, a pure function of (seed, step).

    clips (P, 2, H, W, 3) uint8 array. Every `wide_every`-th step shows larger crops of fewer clips: the encoder is
    used on whole scenes, at a resolution that a cheap 64-pixel crop never shows it.
    """

    def __init__(self, clips: np.ndarray, *, batch: int, seed: int, wide_every: int, device: str | torch.device):
        self.clips, self.batch, self.seed, self.wide_every, self.device = clips, batch, seed, wide_every, device

    def __call__(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        wide = self.wide_every > 0 and step % self.wide_every == self.wide_every - 1
        large, small, count = (112, 48, self.batch // 3) if wide else (64, 32, self.batch)
        chosen = torch.randperm(len(self.clips), generator=generator)[:count].numpy()
        frames = torch.from_numpy(self.clips[chosen]).to(self.device)  # (B, 2, H, W, 3)
        frames = frames.permute(1, 0, 4, 2, 3).flatten(0, 1).float() / 255
        views = {
            "large": crop_views(frames, size=large, scale=(0.5, 1.0) if wide else (0.3, 1.0), generator=generator),
            "small": crop_views(frames, size=small, scale=(0.15, 0.5), generator=generator),
        }
        return {name: view.unflatten(0, (2, count)) for name, view in views.items()}


# ---------------------------------------------------------------- monitoring


def nearest_neighbour_accuracy(gallery: np.ndarray, labels: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> float:
    """Share of queries (M, D) whose most similar gallery row (N, D), by cosine, has the same class."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (queries, gallery)]
    return float((labels[(unit[0] @ unit[1].T).argmax(1)] == truth).mean())


def encoder_of(learner: Learner, *, device: str | torch.device) -> Encoder:
    """A frozen copy of a learner's ViT, to look at while it goes on learning."""
    return Encoder(copy.deepcopy(learner.vit), name="zoo", device=device)


def learning_rate(step: int, *, steps: int) -> float:
    """Warm-up over 60 steps to 1e-3, then half a cosine to zero."""
    return cosine_schedule(step, steps=steps, warmup=60, peak=1e-3)
