"""How the zoo encoder learns without a label: from animals in tracking shots.

InfoNCE in the manner of MoCo v3 (arXiv 2104.02057): from the CLS token of a crop, the network must
find, among all clips of the batch, the other frame of its own clip as a momentum encoder encodes
it. The two frames of a clip share the subject and not the place, so the CLS token learns to attend
to subjects. The momentum encoder (the teacher: a running mean of the student) is kept.

It learns in two parts. First an ordinary ViT on invented landscapes without a detail, where a
subject is easily found: so recognition begins. Then class attention on photographs, where it is not
easily found: so attention learns to lie on the subject.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdlib.data.compose import GRAIN
from mdlib.models.encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
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

    def forward(self, images: Tensor) -> Tensor:
        """Project images: (B, 3, H, W) normalised -> (B, dim) unit vectors."""
        return F.normalize(self.head(self.vit.class_tokens(images)).float(), dim=-1)


def build_models(
    *, seed: int, begun: ClassAttentionViT | None = None
) -> tuple[ProjectionModel, ProjectionModel]:
    """Build (student, teacher): the teacher starts as a copy and never gets a gradient.

    Args:
        seed: of random weights; it is set as the global seed.
        begun: None: an ordinary ViT of random weights, for the first part. Otherwise a ViT that has
            been trained so: a copy of it goes on, with class attention and a new head. The keys of
            its last block start at zero: CLS begins by looking at all patches alike, and turns to
            some of them only because the loss wants it.
    """
    torch.manual_seed(seed)
    vit = build_zoo_vit()
    vit.joins_last = begun is not None
    if begun is not None:
        vit.load_state_dict(begun.state_dict())
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
    crops: dict[str, Tensor],
    *,
    temperature: float,
) -> Tensor:
    """Compute InfoNCE of all crops against the teacher's large crop of the other frame.

    Args:
        student: learns.
        teacher: gets no gradient.
        crops: of B clips, one of each frame, normalised: "large" (2, B, 3, S, S) and "small"
            (2, B, 3, s, s).
        temperature: see `info_nce`.

    Returns:
        The scalar mean over crop sizes and frames.
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


class ClipBatches:
    """batch(step) -> two crops of each frame of `batch` clips, a pure function of (seed, step).

    Every frame has a place of its own. Every `wide_every`-th step shows larger crops of a third of
    the clips, because the encoder is used on whole scenes, at a resolution that a cheap 64-pixel
    crop never shows it.

    Args:
        layers: (P, 2, H, W, 4) uint8 premultiplied, the subject in both frames of each clip.
        places: (G, H, W, 3) uint8 RGB.
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
        places: np.ndarray,
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
        self.layers, self.places, self.batch, self.seed = layers, places, batch, seed
        self.wide_every, self.device = wide_every, device

    def frames(self, *, count: int, generator: torch.Generator) -> Tensor:
        """Compose the frames of `count` clips, (2 * count, 3, H, W) in [0, 1], first ones first."""
        chosen = torch.randperm(len(self.layers), generator=generator)[:count].numpy()
        layers = self.layers[chosen].swapaxes(0, 1).reshape(-1, *self.layers.shape[2:])
        drawn = torch.randint(len(self.places), (2 * count,), generator=generator).numpy()
        above, below = (
            torch.from_numpy(part).to(self.device).permute(0, 3, 1, 2).float() / 255
            for part in (layers, self.places[drawn])
        )
        frames = below * (1 - above[:, 3:]) + above[:, :3]
        grain = torch.randn(len(frames), 1, *frames.shape[-2:], generator=generator)
        return (frames + grain.to(self.device) * (GRAIN / 255)).clamp(0, 1)

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The crops that `tracking_loss` takes, of B clips; on `device`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        wide = self.wide_every > 0 and step % self.wide_every == self.wide_every - 1
        large, small, count = (112, 48, self.batch // 3) if wide else (64, 32, self.batch)
        frames = self.frames(count=count, generator=generator)
        views = {
            "large": crop_views(
                frames, size=large, scale=(0.5, 1.0) if wide else (0.3, 1.0), generator=generator
            ),
            "small": crop_views(frames, size=small, scale=(0.15, 0.5), generator=generator),
        }
        return {name: view.unflatten(0, (2, count)) for name, view in views.items()}


# ---------------------------------------------------------------- monitoring


def encoder_of(learner: ProjectionModel, *, device: str | torch.device) -> Encoder:
    """Copy a learner's ViT as a frozen encoder, to examine it while the learner goes on.

    Args:
        learner: not changed.
        device: of the copy.
    """
    return Encoder(copy.deepcopy(learner.vit), name="zoo", device=device)
