"""What is in a folder of pictures, for people.

Names for clusters, thumbnails, a contact sheet, files to take away.

Nothing here needs a label. Clusters stand in the order of their size, masks in the order of their
distance to the centre.

[1] Rousseeuw, Silhouettes: a graphical aid to the interpretation and validation of cluster
analysis, 1987.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from sklearn.metrics import silhouette_score

from mdlib.core.colours import overlay
from mdlib.core.files import StoreError, write_text
from mdlib.core.label_map import write_label_map
from mdlib.core.mask import Mask, Masks, mask_to_box, write_masks
from mdlib.core.progress import track
from mdlib.data import Dataset
from mdlib.method.clusters import fit_kmeans

MARGIN = 0.12  # around a mask in its thumbnail, as a share of the mask's longer side
PAPER = 0.96  # grey level of what a thumbnail leaves empty
SAMPLE = 2000  # masks of which the silhouette is the mean; all pairs of them are looked at


@dataclass(frozen=True)
class Cluster:
    """A cluster with its masks.

    Attributes:
        number: from 0, as stage 2 gave it.
        name: that a person gave it, else `unnamed`.
        members: (m,) indices of its masks, nearest to the centre first.
    """

    number: int
    name: str
    members: np.ndarray


def read_names(path: Path, *, k: int) -> dict[int, str]:
    """Read the names that a person gave to clusters.

    Args:
        path: of a YAML or JSON file {number: name}; numbers 0..k - 1, not all need one.
        k: number of clusters.

    Returns:
        {number: name}, names without spaces around them.

    Raises:
        StoreError: for a file that is missing or something else, and for numbers that the run does
            not have.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: the names of clusters") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is neither YAML nor JSON: {error}") from None
    if not isinstance(given, dict):
        raise StoreError(
            f"{path} must hold cluster numbers and names, one `3: cat` a line; "
            f"it holds {given!r:.80}"
        )
    names: dict[int, str] = {}
    for number, name in given.items():
        # keys of JSON are text
        number = int(number) if isinstance(number, str) and number.isdecimal() else number
        if type(number) is not int or not 0 <= number < k:
            raise StoreError(
                f"{path} names cluster {number!r}; this run has the clusters 0..{k - 1}"
            )
        if not isinstance(name, str) or not name.strip():
            raise StoreError(f"{path}: the name of cluster {number} must be text, got {name!r}")
        if number in names:
            raise StoreError(f"{path} names cluster {number} twice")
        names[number] = name.strip()
    return names


def unnamed(number: int) -> str:
    """What a cluster without a name is called."""
    return f"cluster {number}"


def group(
    features: np.ndarray, centres: np.ndarray, assigned: np.ndarray, names: dict[int, str]
) -> list[Cluster]:
    """Gather the masks of each cluster.

    Args:
        features: (n, D) of the masks, whitened.
        centres: (k, D).
        assigned: (n,) integers, the cluster of each mask.
        names: {number: name} of clusters; not all need one.

    Returns:
        Clusters by size, the largest first, empty ones left out.
    """
    distance = ((features - centres[assigned]) ** 2).sum(1)
    nearest = distance.argsort(kind="stable")
    sizes = np.bincount(assigned, minlength=len(centres))
    order = [int(j) for j in np.argsort(-sizes, kind="stable") if sizes[j]]
    return [Cluster(j, names.get(j, unnamed(j)), nearest[assigned[nearest] == j]) for j in order]


def try_k(
    features: np.ndarray, ks: list[int], *, runs: int, seed: int, batch_size: int
) -> list[dict]:
    """Run k-means for several numbers of clusters, each with several seeds.

    Args:
        features: (n, D) of the masks.
        ks: numbers of clusters, in 2..n - 1.
        runs: how many seeds each of them gets.
        seed: the first seed.
        batch_size: of `clusters.fit_kmeans`.

    Returns:
        One {"k", "inertia", "silhouette"} a run. Inertia: sum of the squared distances to the
        centres, as a share of what it is for one cluster. Silhouette [1]: mean over masks of
        (b - a) / max(a, b), where a is the mean distance to the other masks of its cluster and b
        that to those of the next one; in [-1, 1].

    Raises:
        ValueError: for a k outside 2..n - 1, where the silhouette has no meaning.
    """
    if min(ks) < 2 or max(ks) >= len(features):
        raise ValueError(
            f"k must be at least 2 and less than the number of masks, {len(features)}; "
            f"asked for {min(ks)} to {max(ks)}"
        )
    whole = float(((features - features.mean(0)) ** 2).sum())
    rows = []
    for k, run in track(
        [(k, run) for k in ks for run in range(runs)], total=len(ks) * runs, what="k-means"
    ):
        model = fit_kmeans(features, k=k, seed=seed + run, batch_size=batch_size, restarts=1)
        score = silhouette(features, model.labels_, seed=seed)
        rows.append(
            {"k": int(k), "inertia": float(model.inertia_) / max(whole, 1e-12), "silhouette": score}
        )
    return rows


def silhouette(features: np.ndarray, assigned: np.ndarray, *, seed: int) -> float:
    """Mean silhouette of the masks, or of SAMPLE of them where there are more.

    Args:
        features: (n, D) of the masks.
        assigned: (n,) integers, the cluster of each mask.
        seed: draws the sample.

    Returns:
        The mean, in [-1, 1]; 0 where one cluster holds them all, or each its own.
    """
    chosen = np.random.default_rng(seed).permutation(len(features))[:SAMPLE]
    features, assigned = features[chosen], assigned[chosen]
    return (
        float(silhouette_score(features, assigned))
        if 2 <= len(np.unique(assigned)) < len(assigned)
        else 0.0
    )


# ---------------------------------------------------------------- pictures


def thumbnail(image: np.ndarray, mask: np.ndarray, *, side: int) -> np.ndarray:
    """Cut out a mask with a border and its surroundings, which are faded.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool.
        side: pixels of the thumbnail's side.

    Returns:
        (side, side, 3) uint8 RGB.

    Raises:
        ValueError: if the mask is empty.
    """
    height, width = mask.shape
    x0, y0, x1, y1 = mask_to_box(mask)
    margin = round(MARGIN * max(x1 - x0, y1 - y0))
    window = np.s_[
        max(0, y0 - margin) : min(height, y1 + margin),
        max(0, x0 - margin) : min(width, x1 + margin),
    ]
    part, inside = Image.fromarray(image[window]), Image.fromarray(mask[window])
    wide, high = (max(1, round(s * side / max(part.size))) for s in part.size)
    shown = np.asarray(inside.resize((wide, high), Image.Resampling.NEAREST))
    resized = np.asarray(part.resize((wide, high), Image.Resampling.LANCZOS))
    drawn = overlay(resized, shown[None], strength=0.0)
    drawn[~shown] = 0.4 * drawn[~shown] + 0.6 * PAPER
    square = np.full((side, side, 3), PAPER)
    top, left = (side - high) // 2, (side - wide) // 2
    square[top : top + high, left : left + wide] = drawn
    return (square * 255).round().astype(np.uint8)


def thumbnails(
    dataset: Dataset, masks: Sequence[Mask], chosen: list[int], *, side: int
) -> dict[int, np.ndarray]:
    """Draw the thumbnails of some masks; each picture is opened once.

    Args:
        dataset: the pictures.
        masks: of these pictures.
        chosen: indices of the masks.
        side: pixels of a thumbnail's side.

    Returns:
        {index of a mask: (side, side, 3) uint8}.
    """
    wanted: dict[int, list[int]] = {}
    for index in chosen:
        wanted.setdefault(dataset.index_of(masks[index].image_id), []).append(index)
    found: dict[int, np.ndarray] = {}
    for i in track(sorted(wanted), total=len(wanted), what="thumbnails"):
        image = dataset.image(i)
        found |= {index: thumbnail(image, masks[index].pixels(), side=side) for index in wanted[i]}
    return found


def contact_sheet(
    clusters: list[Cluster],
    thumbs: dict[int, np.ndarray],
    captions: list[str],
    *,
    title: str,
    note: str,
) -> str:
    """One HTML page that needs no other file: each cluster with its thumbnails.

    Args:
        clusters: in the order of the page.
        thumbs: {index of a mask: (side, side, 3) uint8}; a mask without one is counted, not shown.
        captions: the file of each mask.
        title: the page's heading.
        note: a line under it.

    Returns:
        The page, HTML.
    """
    return TEMPLATES.get_template("contact_sheet.html.j2").render(
        clusters=clusters, thumbs=thumbs, captions=captions, title=title, note=note, unnamed=unnamed
    )


def _jpeg(image: np.ndarray) -> str:
    """(H, W, 3) uint8 -> the image as a JPEG file, in base64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=82)
    return base64.b64encode(file.getvalue()).decode()


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
)
TEMPLATES.filters["jpeg"] = _jpeg


# ---------------------------------------------------------------- files to take away


def unique_titles(names: Sequence[str]) -> list[str]:
    """Make one line of each name, no two alike and none "background".

    Args:
        names: of clusters 0, 1, ..., as people gave them.

    Returns:
        The names with all white space as single spaces; one that an earlier cluster has, in any
        case of its letters, is followed by its own cluster's number.
    """
    titles: list[str] = []
    taken = {"background"}
    for j, name in enumerate(names):
        title = " ".join(name.split())
        while title.casefold() in taken:
            title += f" ({unnamed(j)})"
        taken.add(title.casefold())
        titles.append(title)
    return titles


def export(
    folder: Path,
    dataset: Dataset,
    masks: Masks,
    *,
    names: dict[int, str],
    k: int,
    draw: Callable[[np.ndarray, list[Mask]], np.ndarray],
) -> None:
    """Write masks.json (COCO, a category for each cluster), maps/ID.png and classes.txt.

    A map holds 0 background, 1 + cluster, see `write_label_map`. Names stand in the file of names
    one a line, each once, so that pictures and maps of up to 254 clusters can be opened as a folder
    with label maps.

    Args:
        folder: where to; it is not there yet, or empty.
        dataset: the pictures.
        masks: their masks, with clusters.
        names: names of clusters; those without one keep their number.
        k: number of clusters.
        draw: a picture (H, W, 3) uint8 and its masks -> its map, (H, W) integers.
    """
    titles = unique_titles([names.get(j, unnamed(j)) for j in range(k)])
    more = {}
    gathered = masks.by_image(dataset.ids)
    for i, found in enumerate(track(gathered, total=len(dataset), what="maps")):
        image_id = dataset.ids[i]
        write_label_map(folder / "maps" / f"{image_id}.png", draw(dataset.image(i), found))
        more[image_id] = {"file_name": dataset.file_name(i), "label_map": f"maps/{image_id}.png"}
    write_masks(
        folder / "masks.json",
        (mask for found in gathered for mask in found),
        images=dataset.sizes(),
        categories=titles,
        more=more,
    )
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in ("background", *titles)))
