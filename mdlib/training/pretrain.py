"""How the zoo encoder learns without a label: from animals in tracking shots.

InfoNCE in the manner of MoCo v3 (arXiv 2104.02057): from the CLS token of a crop, the network must
find, among all clips of the batch, the other frame of its own clip as a momentum encoder encodes
it. The two frames of a clip share the subject and not the place, so the CLS token learns to attend
to subjects. The momentum encoder (the teacher: a running mean of the student) is kept.

Places come as a curriculum: first invented landscapes without a detail, where a subject is easily
found, then more and more photographs, where it is not.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdlib.core.weights import fit_weights, load_weights
from mdlib.data.compose import GRAIN
from mdlib.models.encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ZOO_ARCHITECTURE,
    ClassAttentionViT,
    Encoder,
    build_zoo_vit,
    last_attention,
)


class ProjectionModel(nn.Module):
    """A ViT with the projection head that it needs while it learns.

    Student and teacher are both one of these.

    Args:
        vit: without a classifier: images -> CLS tokens.
        dim: dimension of the projection.
    """

    def __init__(self, vit: ClassAttentionViT, *, dim: int = 64):
        super().__init__()
        self.vit = vit
        layers: list[nn.Module] = []
        width = vit.embed_dim
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

    def forward(self, images: Tensor, *, hidden: float = 0.0) -> Tensor:
        """Project images: (B, 3, H, W) normalised -> (B, dim) unit vectors.

        `hidden` is the share of the patches that CLS does not see.
        """
        return F.normalize(self.head(self.vit.class_tokens(images, hidden=hidden)).float(), dim=-1)


def build_models(
    *, seed: int, start: Path | None = None
) -> tuple[ProjectionModel, ProjectionModel]:
    """Build (student, teacher): the teacher starts as a copy and never gets a gradient.

    The keys of the last block start at zero: CLS begins by looking at all patches alike, and turns
    to some of them only because the loss wants it.

    Args:
        seed: of the weights; it is set as the global seed.
        start: weights of a zoo encoder to go on from; its keys are forgotten. None: random ones.

    Raises:
        WeightsError: for weights that do not fit.
    """
    torch.manual_seed(seed)
    vit = build_zoo_vit()
    if start is not None:
        fit_weights(vit, load_weights(start, architecture=ZOO_ARCHITECTURE), source=start)
    nn.init.zeros_(last_attention(vit).qkv.weight[vit.embed_dim : 2 * vit.embed_dim])
    student = ProjectionModel(vit)
    return student, copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: ProjectionModel, student: ProjectionModel, *, momentum: float) -> None:
    """Update the teacher in place, parameter by parameter.

    teacher = momentum * teacher + (1 - momentum) * student.

    Args:
        teacher: changed.
        student: read.
        momentum: in [0, 1].
    """
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


# ---------------------------------------------------------------- losses


def info_nce(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """Compute the cross-entropy of finding the own clip among those of the batch.

    Args:
        queries: (B, d) unit vectors.
        keys: (B, d) unit vectors; row i of both belongs to clip i.
        temperature: by which similarities are divided, above 0.

    Returns:
        The scalar mean.
    """
    logits = queries @ keys.T / temperature
    return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))


def tracking_loss(
    student: ProjectionModel,
    teacher: ProjectionModel,
    crops: Tensor,
    *,
    temperature: float,
    hidden: float,
) -> Tensor:
    """Compute InfoNCE of each frame's crop against the teacher's crop of the other frame.

    Args:
        student: learns.
        teacher: gets no gradient.
        crops: (2, B, 3, S, S) normalised, one crop of each frame of B clips.
        temperature: see `info_nce`.
        hidden: share of the patches that the student's CLS does not see; the teacher's sees all.

    Returns:
        The scalar mean over both frames.
    """
    both = crops.flatten(0, 1)
    with torch.no_grad():
        first, second = teacher(both).chunk(2)
    of_first, of_second = student(both, hidden=hidden).chunk(2)
    return (
        info_nce(of_first, second, temperature=temperature)
        + info_nce(of_second, first, temperature=temperature)
    ) / 2


# ---------------------------------------------------------------- views


def crop_views(
    frames: Tensor, *, size: int, scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw one random square crop of each frame: colour jitter, mirrored half the time, normalised.

    By batched tensors: torchvision's ColorJitter draws once a call, and a loop over the clips is
    slower.

    Args:
        frames: (B, 3, H, W) float in [0, 1].
        size: pixels of a crop's side.
        scale: smallest and largest share of the area.
        generator: on the CPU; everything is drawn from it.

    Returns:
        (B, 3, size, size) float, normalised by ImageNet's mean and standard deviation.
    """
    batch = len(frames)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    side = (scale[0] + (scale[1] - scale[0]) * rand(batch)).sqrt()
    centre = (2 * rand(batch, 2) - 1) * (1 - side)[:, None]
    flip = torch.where(rand(batch) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, centre
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False).to(frames.device)
    crops = F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)
    crops = jitter_colour(crops, generator=generator)
    mean, std = (
        torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (crops - mean) / std


def jitter_colour(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Jitter colours, each image by its own draws.

    Brightness, contrast and saturation x 0.6-1.4, hue +-0.6 rad, grey for every fifth on average.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        generator: on the CPU.

    Returns:
        (B, 3, H, W) float in [0, 1].
    """
    batch = len(images)

    def between(low: float, high: float) -> Tensor:
        drawn = low + (high - low) * torch.rand(batch, generator=generator)
        return drawn.view(-1, 1, 1, 1).to(images.device)

    images = images * between(0.6, 1.4)
    centre = images.mean((1, 2, 3), keepdim=True)
    images = centre + (images - centre) * between(0.6, 1.4)
    luma_weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)
    luma = (images * luma_weights).sum(1, keepdim=True)
    # hue: turn the colour difference about the grey axis (1, 1, 1), by Rodrigues' formula
    colour, angle = (images - luma) * between(0.6, 1.4), between(-0.6, 0.6)
    crossed = (colour.roll(1, dims=1) - colour.roll(-1, dims=1)) / math.sqrt(3)
    colour = (
        colour * angle.cos()
        + crossed * angle.sin()
        + colour.mean(1, keepdim=True) * (1 - angle.cos())
    )
    kept = (between(0, 1) > 0.2).float()
    return (luma + colour * kept).clamp(0, 1)


@dataclass(frozen=True)
class Curriculum:
    """Which places a step shows: easy ones first.

    Attributes:
        easy_steps: the first steps, with invented landscapes alone.
        mixing_steps: the steps after them, over which the share of photographs rises from 0 to 1.
    """

    easy_steps: int
    mixing_steps: int

    def photographs(self, step: int) -> float:
        """The expected share of photographs among the places of a step, in [0, 1]."""
        return min(1.0, max(0.0, (step + 1 - self.easy_steps) / max(1, self.mixing_steps)))


class ClipBatches:
    """batch(step) -> a crop of each frame of `batch` clips, a pure function of (seed, step).

    Every frame has a place of its own. Every `wide_every`-th step shows larger crops of a third of
    the clips, because the encoder is used on whole scenes, at a resolution that a cheap 64-pixel
    crop never shows it.

    Args:
        layers: (P, 2, H, W, 4) uint8 premultiplied, the subject in both frames of each clip.
        invented: (G, H, W, 3) uint8 RGB, places without detail.
        photographs: (G', H, W, 3) uint8 RGB.
        curriculum: how many of the frames of a step have the one or the other.
        batch: clips in a batch.
        seed: of clips, places and views.
        wide_every: steps from one wide step to the next; 0: none.
        device: where batches are put.

    Raises:
        ValueError: where the batch is larger than the clips, or too small for a wide step.
    """

    def __init__(
        self,
        layers: np.ndarray,
        invented: np.ndarray,
        photographs: np.ndarray,
        curriculum: Curriculum,
        *,
        batch: int,
        seed: int,
        wide_every: int,
        device: str | torch.device,
    ):
        if not 1 <= batch <= len(layers):
            raise ValueError(f"a batch of {batch} cannot be drawn from {len(layers)} clips")
        if wide_every > 0 and batch < 3:
            raise ValueError(f"wide steps show a third of the batch: {batch} is too small")
        self.layers, self.invented, self.photographs = layers, invented, photographs
        self.curriculum, self.batch, self.seed = curriculum, batch, seed
        self.wide_every, self.device = wide_every, device

    def frames(self, step: int, *, count: int, generator: torch.Generator) -> Tensor:
        """Compose the frames of `count` clips, (2 * count, 3, H, W) in [0, 1], first ones first."""

        def draw(places: np.ndarray) -> np.ndarray:
            return places[torch.randint(len(places), (2 * count,), generator=generator).numpy()]

        chosen = torch.randperm(len(self.layers), generator=generator)[:count].numpy()
        layers = self.layers[chosen].swapaxes(0, 1).reshape(-1, *self.layers.shape[2:])
        real = torch.rand(2 * count, generator=generator) < self.curriculum.photographs(step)
        grounds = np.where(
            real.numpy()[:, None, None, None], draw(self.photographs), draw(self.invented)
        )
        above, below = (
            torch.from_numpy(part).to(self.device).permute(0, 3, 1, 2).float() / 255
            for part in (layers, grounds)
        )
        frames = below * (1 - above[:, 3:]) + above[:, :3]
        grain = torch.randn(len(frames), 1, *frames.shape[-2:], generator=generator)
        return (frames + grain.to(self.device) * (GRAIN / 255)).clamp(0, 1)

    def __call__(self, step: int) -> Tensor:
        """The crops that `tracking_loss` takes, (2, B, 3, S, S) on `device`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        wide = self.wide_every > 0 and step % self.wide_every == self.wide_every - 1
        size, scale, count = (
            (112, (0.5, 1.0), self.batch // 3) if wide else (64, (0.3, 1.0), self.batch)
        )
        frames = self.frames(step, count=count, generator=generator)
        crops = crop_views(frames, size=size, scale=scale, generator=generator)
        return crops.unflatten(0, (2, count))


# ---------------------------------------------------------------- monitoring


def encoder_of(learner: ProjectionModel, *, device: str | torch.device) -> Encoder:
    """Copy a learner's ViT as a frozen encoder, to examine it while the learner goes on.

    Args:
        learner: not changed.
        device: of the copy.
    """
    return Encoder(copy.deepcopy(learner.vit), name="zoo", device=device)
