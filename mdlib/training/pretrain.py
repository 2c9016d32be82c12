"""How the zoo encoder learns, without a label: by following animals through tracking shots.

InfoNCE in the manner of MoCo v3 (arXiv 2104.02057): the CLS token of a crop must pick, among all
clips of the batch, the other frame of its own clip, as a momentum encoder sees it. The two frames
of a clip share the subject and not the background, so the CLS token learns to attend to subjects.
The momentum encoder (the teacher: a running mean of the student) is what is kept.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mdlib.models.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder, build_zoo_vit


class ProjectionModel(nn.Module):
    """A ViT with the projection head it needs while it learns.

    Student and teacher are both one of these.
    """

    def __init__(self, vit: VisionTransformer, *, dim: int = 64):
        super().__init__()
        self.vit = vit
        layers, width = [], vit.embed_dim
        for wider in (384, 384):
            layers += [
                nn.Linear(width, wider, bias=False),
                nn.BatchNorm1d(wider),
                nn.ReLU(inplace=True),
            ]
            width = wider
        self.head = nn.Sequential(
            *layers, nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim, affine=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, dim) unit vectors."""
        return F.normalize(self.head(self.vit(images)), dim=-1)


def build_models(*, seed: int) -> tuple[ProjectionModel, ProjectionModel]:
    """(student, teacher): the teacher starts as a copy and never sees a gradient."""
    torch.manual_seed(seed)
    student = ProjectionModel(build_zoo_vit())
    return student, copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: ProjectionModel, student: ProjectionModel, *, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameter by parameter."""
    for slow, fast in zip(teacher.parameters(), student.parameters()):
        slow.lerp_(fast, 1 - momentum)


def momentum_schedule(step: int, *, steps: int, base: float) -> float:
    """From `base` to 1 along half a cosine: the teacher slows down until it stands still."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / steps))


# ---------------------------------------------------------------- losses


def info_nce(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """(B, d), (B, d) unit vectors; row i of both belongs to clip i.

    Cross-entropy of finding one's own clip.
    """
    logits = queries @ keys.T / temperature
    return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))


def tracking_loss(
    student: ProjectionModel,
    teacher: ProjectionModel,
    crops: dict[str, Tensor],
    *,
    temperature: float,
) -> Tensor:
    """InfoNCE of all crops of a batch of B clips against the teacher's view of the other frame.

    crops: "large" (2, B, 3, S, S) and "small" (2, B, 3, s, s): one crop of each frame, normalised.
    """
    with torch.no_grad():
        first, second = teacher(crops["large"].flatten(0, 1)).chunk(2)
    losses = []
    for views in crops.values():
        of_first, of_second = student(views.flatten(0, 1)).chunk(2)
        losses += [info_nce(of_first, second, temperature=temperature)]
        losses += [info_nce(of_second, first, temperature=temperature)]
    return torch.stack(losses).mean()


# ---------------------------------------------------------------- views


def crop_views(
    frames: Tensor, *, size: int, scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """One random square crop of each frame, colour-jittered, mirrored half the time, normalised.

    By batched tensors: torchvision's ColorJitter draws once a call, and a loop over the clips is
    slower.

    frames (B, 3, H, W) float in [0, 1]; scale: smallest and largest share of the area. Returns (B,
    3, size, size).
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
    mean, std = (
        torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (crops - mean) / std


def jitter_colour(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation x 0.6-1.4, hue +-0.6 rad, grey for every fifth.

    (B, 3, H, W) in [0, 1].
    """
    batch = len(images)

    def between(low, high):
        return (
            (low + (high - low) * torch.rand(batch, generator=generator))
            .view(-1, 1, 1, 1)
            .to(images.device)
        )

    images = images * between(0.6, 1.4)
    centre = images.mean((1, 2, 3), keepdim=True)
    images = centre + (images - centre) * between(0.6, 1.4)
    luma = (images * torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)).sum(
        1, keepdim=True
    )
    # Hue: turn the colour difference about the grey axis (Rodrigues' formula for the axis (1, 1,
    # 1)).
    colour, angle = (images - luma) * between(0.6, 1.4), between(-0.6, 0.6)
    crossed = (colour.roll(1, dims=1) - colour.roll(-1, dims=1)) / math.sqrt(3)
    colour = (
        colour * angle.cos()
        + crossed * angle.sin()
        + colour.mean(1, keepdim=True) * (1 - angle.cos())
    )
    kept = (between(0, 1) > 0.2).float()
    return (luma + colour * kept).clamp(0, 1)


class ClipBatches:
    """batch(step) -> two crops of each frame of `batch` clips, a pure function of (seed, step).

    clips (P, 2, H, W, 3) uint8 array. Every `wide_every`-th step shows larger crops of fewer clips:
    the encoder is used on whole scenes, at a resolution that a cheap 64-pixel crop never shows it.
    """

    def __init__(
        self,
        clips: np.ndarray,
        *,
        batch: int,
        seed: int,
        wide_every: int,
        device: str | torch.device,
    ):
        if not 1 <= batch <= len(clips):
            raise ValueError(f"a batch of {batch} cannot be drawn from {len(clips)} clips")
        if wide_every > 0 and batch < 3:
            raise ValueError(f"wide steps show a third of the batch: {batch} is too small")
        self.clips, self.batch, self.seed, self.wide_every, self.device = (
            clips,
            batch,
            seed,
            wide_every,
            device,
        )

    def __call__(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        wide = self.wide_every > 0 and step % self.wide_every == self.wide_every - 1
        large, small, count = (112, 48, self.batch // 3) if wide else (64, 32, self.batch)
        chosen = torch.randperm(len(self.clips), generator=generator)[:count].numpy()
        frames = torch.from_numpy(self.clips[chosen]).to(self.device)  # (B, 2, H, W, 3)
        frames = frames.permute(1, 0, 4, 2, 3).flatten(0, 1).float() / 255
        views = {
            "large": crop_views(
                frames, size=large, scale=(0.5, 1.0) if wide else (0.3, 1.0), generator=generator
            ),
            "small": crop_views(frames, size=small, scale=(0.15, 0.5), generator=generator),
        }
        return {name: view.unflatten(0, (2, count)) for name, view in views.items()}


# ---------------------------------------------------------------- monitoring


def encoder_of(learner: ProjectionModel, *, device: str | torch.device) -> Encoder:
    """A frozen copy of a learner's ViT, to look at while it goes on learning."""
    return Encoder(copy.deepcopy(learner.vit), name="zoo", device=device)
