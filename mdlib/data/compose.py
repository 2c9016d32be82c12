"""How a picture of the zoo is composed: a ground, in focus or not, and objects pasted on it.

What is composed is a pure function of (seed, index). Grounds, objects and places are drawn from
streams of their own, so that scene i of two compositions shows the same animals in the same poses
on the same ground: what differs is what the composition changes.

Colours are float32 in 0-255 until a picture is finished; alpha is premultiplied, so that a turned
and scaled border shows no fringe.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mdlib.core.settings import Settings

SIDE = 128  # pixels; pictures are square
MIN_VISIBLE = 0.55  # share of an object inside the picture
MAX_HIDDEN = 0.2  # share that each object in front may take from it
GRAIN = 2.5  # grey levels: standard deviation of a camera's noise
LEAST_PIXELS = 24  # of an object
MOST_ATTEMPTS = 1000  # to find places where the objects of a scene do not hide one another
HUE_SPREAD = 0.35  # radians: standard deviation of the turn of a photograph's hue
GROUNDS = ("photograph", "invented")
SHRUNK = (1.0, 1.0, 0.75, 0.6)  # how large none, one, two, three objects are beside a single one
_COUNT, _GROUND, _FOCUS, _GRAIN, _OBJECT, _PLACE = range(6)  # one stream of random numbers each

# Invented grounds as (upper, lower) colours, 0-255 RGB: meadow, savanna, sea, dusk, wood, snow,
# sand, heath.
LANDSCAPES = (
    ((170, 200, 225), (105, 140, 60)),
    ((215, 205, 170), (175, 145, 85)),
    ((160, 195, 220), (50, 105, 140)),
    ((225, 165, 130), (85, 70, 95)),
    ((85, 115, 70), (50, 70, 40)),
    ((200, 215, 230), (225, 230, 235)),
    ((190, 210, 225), (205, 180, 140)),
    ((175, 165, 190), (115, 85, 105)),
)


@dataclass(frozen=True)
class Cutout:
    """One photograph with alpha.

    Attributes:
        name: its file without the ending.
        label: its class index, from 1; 0 for a subject of pretraining, which has no class.
        split: where it may stand: "train" cut-outs stand everywhere, others in that split alone.
        image: RGBA.
    """

    name: str
    label: int
    split: str
    image: Image.Image


@dataclass(frozen=True)
class Composition(Settings):
    """How scenes are composed: the dials of notebook 00.

    Attributes:
        ground: one of GROUNDS.
        sharp: share of the scenes whose ground is in focus, in [0, 1].
        blur: least and largest standard deviation of the Gaussian that blurs the others' grounds,
            in pixels of SIDE, in [0, 64]; an invented ground is always out of focus.
        object_counts: shares of the scenes with no, one, two and three objects; they sum to 1, and
            the last ones may be left out.
        object_size: least and largest longer side of an object where it is alone, as a share of
            SIDE, in [0.1, 1.5]; two are 0.75 and three 0.6 times as large.
        object_place: least and largest distance of an object's centre from the middle, as a share
            of SIDE, in [0, 0.5]; distance is the larger one of those along x and y.
        likeness: in [0, 1]: how far the ground takes on the mean colour and contrast of the
            largest object.
    """

    ground: str = "photograph"
    sharp: float = 0.4
    blur: tuple[float, float] = (0.5, 2.0)
    object_counts: tuple[float, ...] = (0.0, 0.6, 0.3, 0.1)
    object_size: tuple[float, float] = (0.5, 0.95)
    object_place: tuple[float, float] = (0.0, 0.28)
    likeness: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of its range."""
        for name in ("blur", "object_counts", "object_size", "object_place"):
            # JSON and presets have lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        counts, pair = self.object_counts, "two numbers in {}, the least first"
        self.check("ground", self.ground in GROUNDS, f"one of {GROUNDS}")
        self.check("sharp", 0 <= self.sharp <= 1, "in [0, 1]")
        self.check("blur", _ordered(self.blur, 0, 64), pair.format("[0, 64]"))
        shares = 1 <= len(counts) <= len(SHRUNK) and min(counts) >= 0
        self.check(
            "object_counts",
            shares and math.isclose(math.fsum(counts), 1, abs_tol=1e-9),
            f"up to {len(SHRUNK)} shares that sum to 1",
        )
        self.check("object_size", _ordered(self.object_size, 0.1, 1.5), pair.format("[0.1, 1.5]"))
        self.check("object_place", _ordered(self.object_place, 0, 0.5), pair.format("[0, 0.5]"))
        self.check("likeness", 0 <= self.likeness <= 1, "in [0, 1]")

    def changed(self, dials: Mapping[str, Any]) -> "Composition":
        """This composition with other values for some of its dials.

        Args:
            dials: such as a notebook's `globals()`: values by the names of the attributes; None
                leaves a dial as it is, and other names are ignored.

        Raises:
            ValueError: for a value out of its range, or a focus that is set for a ground that has
                none.
        """
        names = [field.name for field in fields(self)]
        given = {name: dials[name] for name in names if dials.get(name) is not None}
        new = replace(self, **given)
        if new.ground == "invented" and given.keys() & {"sharp", "blur"}:
            raise ValueError("an invented ground has no focus: leave sharp and blur unset")
        return new


def _ordered(pair: tuple[float, ...], low: float, high: float) -> bool:
    """Whether a pair is two numbers in [low, high], the smaller first."""
    return len(pair) == 2 and low <= pair[0] <= pair[1] <= high


MIXTURE = Composition()
COMPOSITIONS = {
    "mixture": MIXTURE,  # the demo's world
    "sharp": replace(MIXTURE, sharp=1.0),  # everything in focus
    "soft": replace(MIXTURE, sharp=0.0, blur=(2.0, 2.0)),  # every ground out of focus
    "portrait": replace(  # one large object in the middle, the ground far out of focus
        MIXTURE,
        sharp=0.0,
        blur=(4.0, 4.0),
        object_counts=(0, 1),
        object_size=(0.7, 0.95),
        object_place=(0.0, 0.08),
    ),
    "crowd": replace(  # three small ones
        MIXTURE,
        object_counts=(0, 0, 0, 1),
        object_size=(0.42, 0.6),
        object_place=(0.0, 0.38),
    ),
    "edge": replace(MIXTURE, object_counts=(0, 1), object_place=(0.32, 0.46)),  # cut by the border
    "camouflage": replace(MIXTURE, object_counts=(0, 1), likeness=1.0),  # ground in its colours
    "empty": replace(MIXTURE, object_counts=(1,)),
    "invented": replace(MIXTURE, ground="invented"),  # landscapes without a detail
}


# ---------------------------------------------------------------- grounds


def take_ground(
    photographs: list[Image.Image],
    rng: np.random.Generator,
    *,
    blur: float,
    side: int = SIDE,
) -> np.ndarray:
    """Take a square of a photograph as a ground: mirrored half the time, its hue and light changed.

    The square is between `side` pixels and all of the photograph, log-uniform.

    Args:
        photographs: RGB; one of them is drawn.
        rng: chooses all else.
        blur: standard deviation of a Gaussian, in pixels of `side`; 0: in focus.
        side: of the ground in pixels.

    Returns:
        (side, side, 3) float32 RGB in 0-255.
    """
    image = photographs[rng.integers(len(photographs))]
    most = min(image.size)
    window = round(math.exp(rng.uniform(math.log(min(side, most)), math.log(most))))
    left, top = (int(rng.integers(0, extent - window + 1)) for extent in image.size)
    flip, angle, light = rng.random() < 0.5, rng.normal(0, HUE_SPREAD), rng.uniform(0.75, 1.15)
    box = (left, top, left + window, top + window)
    ground = image.resize((side, side), Image.Resampling.LANCZOS, box=box)
    if flip:
        ground = ground.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if blur > 0:
        ground = ground.filter(ImageFilter.GaussianBlur(blur))
    return (turn_hue(np.asarray(ground, np.float32), angle) * light).clip(0, 255)


def turn_hue(colours: np.ndarray, angle: float) -> np.ndarray:
    """Turn colours about the grey axis (Rodrigues' formula); their mean and saturation stay.

    Linear, so premultiplied colours may be turned as well.

    Args:
        colours: (..., 3) float32 RGB.
        angle: in radians.

    Returns:
        (..., 3) float32.
    """
    luma = (colours @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    chroma = colours - luma
    crossed = (np.roll(chroma, 1, -1) - np.roll(chroma, -1, -1)) / math.sqrt(3)
    along = chroma.mean(-1, keepdims=True) * (1 - math.cos(angle))
    return luma + chroma * math.cos(angle) + crossed * math.sin(angle) + along


def paint_landscape(rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Paint an invented landscape out of focus, at half the resolution: nothing in it is sharp.

    Args:
        rng: chooses it.
        side: of the picture in pixels.

    Returns:
        (side, side, 3) float32 RGB, about 0-255.
    """
    full, side = side, side // 2
    upper, lower = (np.array(c, np.float32) for c in LANDSCAPES[rng.integers(len(LANDSCAPES))])
    tint = rng.normal(0, 12, 3).astype(np.float32)
    horizon, softness = rng.uniform(0.25, 0.75), rng.uniform(0.03, 0.15)
    y = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    ground = 1 / (1 + np.exp(-(y - horizon) / softness))
    canvas = np.broadcast_to(upper * (1 - ground) + lower * ground + tint, (side, side, 3)).copy()
    for cells, strength in ((2, 14), (4, 12), (8, 9)):  # octaves of smooth light and colour
        light = _smooth_noise(rng, cells, side) * strength
        hue = np.stack([_smooth_noise(rng, cells, side) for _ in range(3)], -1) * strength * 0.5
        canvas += light[..., None] + hue
    yy, xx = np.mgrid[:side, :side].astype(np.float32) / side
    for _ in range(rng.integers(3, 12)):  # bokeh: soft discs of light
        cy, cx, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.03, 0.14)
        disc = 0.5 - 0.5 * np.tanh((np.hypot(yy - cy, xx - cx) - radius) / 0.024)
        canvas += disc[..., None] * (rng.normal(4, 14) + rng.normal(0, 5, 3)).astype(np.float32)
    bands = (Image.fromarray(np.ascontiguousarray(canvas[..., band])) for band in range(3))
    cubic = Image.Resampling.BICUBIC
    return np.stack([np.asarray(band.resize((full, full), cubic)) for band in bands], -1)


def _smooth_noise(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """(side, side) float32, interpolated between cells x cells normal values."""
    coarse = Image.fromarray(rng.normal(size=(cells + 2, cells + 2)).astype(np.float32))
    inner = (0.5, 0.5, cells + 1.5, cells + 1.5)  # a margin, so that the border is not flat
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC, box=inner))


def take_on_colours(ground: np.ndarray, layer: np.ndarray, *, likeness: float) -> np.ndarray:
    """Give a ground the mean and the standard deviation of an object's colours, band by band.

    Args:
        ground: (H, W, 3) float32.
        layer: (H, W, 4) float32 premultiplied, the object.
        likeness: in [0, 1]: how far.

    Returns:
        (H, W, 3) float32 in 0-255.
    """
    inside = layer[..., 3] > 127
    colours = layer[inside][:, :3]
    spread = colours.std(0) / np.maximum(ground.std((0, 1)), 1)
    alike = (ground - ground.mean((0, 1))) * spread + colours.mean(0)
    return ((1 - likeness) * ground + likeness * alike).clip(0, 255)


# ---------------------------------------------------------------- objects


def transform(cutout: Image.Image, *, longer: float, flip: bool, degrees: float) -> Image.Image:
    """Flip, turn and scale a cut-out.

    Args:
        cutout: RGBA.
        longer: longer side of the result, in pixels.
        flip: whether it is mirrored, left and right.
        degrees: turn to the left.

    Returns:
        RGBa, which is RGBA with colours premultiplied by alpha; as tight as the object.
    """
    image = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cutout
    image = image.convert("RGBa")
    image = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.getbbox())
    scale = longer / max(image.size)
    size = max(2, round(image.width * scale)), max(2, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=None)


def lay(
    image: Image.Image, centre: tuple[float, float], brightness: float, *, side: int
) -> np.ndarray:
    """Put an object on an empty layer, its edge softened as by a lens.

    Args:
        image: premultiplied, as `transform` gives it.
        centre: x, y of its centre, in pixels.
        brightness: factor of its colours.
        side: of the layer in pixels.

    Returns:
        (side, side, 4) float32, colours in 0-255 times brightness, premultiplied by alpha in 0-255.
    """
    layer = Image.new("RGBa", (side, side))
    layer.paste(image, (round(centre[0] - image.width / 2), round(centre[1] - image.height / 2)))
    pixels = np.array(layer.filter(ImageFilter.GaussianBlur(0.4)), np.float32)
    pixels[..., :3] *= brightness
    return pixels


def paste(canvas: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Paste a layer on a canvas: alpha compositing, I <- (1 - alpha) I + alpha F.

    Args:
        canvas: (H, W, 3) float32, I.
        layer: (H, W, 4) float32 premultiplied, alpha F and alpha.

    Returns:
        (H, W, 3) float32.
    """
    return canvas * (1 - layer[..., 3:] / 255) + layer[..., :3]


def finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn a canvas (H, W, 3) in 0-255 into a picture, uint8, with the grain of a camera."""
    grain = GRAIN * rng.standard_normal(canvas.shape[:2], dtype=np.float32)  # one camera, one grain
    return np.clip(canvas + grain[..., None], 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- scenes


def draw_ground(
    photographs: list[Image.Image], composition: Composition, *, seed: int, index: int, side: int
) -> np.ndarray:
    """Draw the ground of scene `index`, before it takes on colours.

    Args:
        photographs: RGB, what it may be taken from.
        composition: "ground", "sharp" and "blur" are followed.
        seed: of the split.
        index: of the scene.
        side: of the picture in pixels.

    Returns:
        (side, side, 3) float32 RGB, about 0-255.
    """
    rng = np.random.default_rng([seed, index, _GROUND])
    if composition.ground == "invented":
        return paint_landscape(rng, side)
    focus = np.random.default_rng([seed, index, _FOCUS])
    is_sharp, blur = focus.random() < composition.sharp, focus.uniform(*composition.blur)
    return take_ground(photographs, rng, blur=0 if is_sharp else blur * side / SIDE, side=side)


@dataclass(frozen=True)
class Parts:
    """What a scene is composed of, n objects: an experiment can change a part and render it again.

    Attributes:
        ground: (side, side, 3) float32 RGB, about 0-255, without objects.
        layers: (n, side, side, 4) float32, the objects as `lay` gives them; later ones in front.
        masks: (n, side, side) bool of what is visible; they do not overlap and none is empty.
        labels: (n,) int64 class indices.
        names: of the n cut-outs.
        photograph: number of the photograph that the ground is taken from; -1: it is invented.
        grain: seeds of the camera's grain.
    """

    ground: np.ndarray
    layers: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    photograph: int
    grain: tuple[int, ...]

    def render(self) -> np.ndarray:
        """Paste the objects on the ground, in order, and add the grain: (side, side, 3) uint8."""
        canvas = self.ground
        for layer in self.layers:
            canvas = paste(canvas, layer)
        return finish(canvas, np.random.default_rng(self.grain))


def scene_parts(
    cutouts: list[Cutout],
    photographs: list[Image.Image],
    composition: Composition,
    *,
    seed: int,
    index: int,
    side: int = SIDE,
) -> Parts:
    """Draw the parts of scene `index`: a ground and objects on it, later ones in front.

    Args:
        cutouts: what may be pasted; a class is drawn evenly first, then one of its cut-outs.
        photographs: what the ground may be taken from.
        composition: the dials.
        seed: of the split.
        index: of the scene.
        side: of the picture in pixels.

    Raises:
        ValueError: where objects of this size have no room at these places.
    """
    shares = composition.object_counts
    count = np.random.default_rng([seed, index, _COUNT]).choice(len(shares), p=shares)
    chosen, layers, masks = _place_objects(
        cutouts, composition, count, seed=seed, index=index, side=side
    )
    ground = draw_ground(photographs, composition, seed=seed, index=index, side=side)
    if composition.likeness > 0 and count:
        largest = layers[int(np.argmax([mask.sum() for mask in masks]))]
        ground = take_on_colours(ground, largest, likeness=composition.likeness)
    photograph = -1
    if composition.ground == "photograph":  # the first number of the stream, see `take_ground`
        rng = np.random.default_rng([seed, index, _GROUND])
        photograph = int(rng.integers(len(photographs)))
    return Parts(
        ground=ground,
        layers=np.stack(layers) if layers else np.zeros((0, side, side, 4), np.float32),
        masks=np.stack(masks) if masks else np.zeros((0, side, side), bool),
        labels=np.array([c.label for c in chosen], np.int64),
        names=tuple(c.name for c in chosen),
        photograph=photograph,
        grain=(seed, index, _GRAIN),
    )


def _place_objects(
    cutouts: list[Cutout],
    composition: Composition,
    count: int,
    *,
    seed: int,
    index: int,
    side: int,
) -> tuple[list[Cutout], list[np.ndarray], list[np.ndarray]]:
    """The cut-outs of a scene, their layers and their visible masks."""
    chosen, poses = [], []
    labels = sorted({c.label for c in cutouts})
    for number in range(count):
        rng = np.random.default_rng([seed, index, _OBJECT, number])
        label = labels[rng.integers(len(labels))]
        mine = [c for c in cutouts if c.label == label]
        chosen.append(mine[rng.integers(len(mine))])
        poses.append((bool(rng.random() < 0.5), rng.uniform(-15, 15), rng.uniform(0.75, 1.2)))
    for attempt in range(MOST_ATTEMPTS):
        layers: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        kept = True
        for number, (cutout, (flip, degrees, light)) in enumerate(zip(chosen, poses, strict=True)):
            rng = np.random.default_rng([seed, index, _PLACE, attempt, number])
            longer = rng.uniform(*composition.object_size) * SHRUNK[count] * side
            image = transform(cutout.image, longer=longer, flip=flip, degrees=degrees)
            centre = _centre(rng, composition.object_place, side)
            layers.append(lay(image, centre, light, side=side))
            front = layers[-1][..., 3] > 127.5
            whole = (np.asarray(image)[..., 3] > 127).sum()
            behind = [mask & ~front for mask in masks]
            hidden = any(
                left.sum() < (1 - MAX_HIDDEN) * mask.sum()
                for left, mask in zip(behind, masks, strict=True)
            )
            kept = kept and not hidden and front.sum() >= max(MIN_VISIBLE * whole, LEAST_PIXELS)
            masks = [*behind, front]
        if kept:  # else again: something is hidden behind another object or the border
            return chosen, layers, masks
    raise ValueError(
        f"scene {index} finds no room for its {count} objects in {MOST_ATTEMPTS} attempts: "
        f"object_size={composition.object_size}, object_place={composition.object_place}"
    )


def _centre(rng: np.random.Generator, place: tuple[float, float], side: int) -> tuple[float, float]:
    """A point (x, y), uniform in the square ring whose distances from the middle are `place`."""
    reach = math.sqrt(rng.uniform(place[0] ** 2, place[1] ** 2))
    along = rng.uniform(-reach, reach)
    edge = reach if rng.random() < 0.5 else -reach
    x, y = (edge, along) if rng.random() < 0.5 else (along, edge)
    return (0.5 + x) * side, (0.5 + y) * side
