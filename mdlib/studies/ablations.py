"""What the choices of stages 1, 2 and 4 are worth: arms that need no training.

Tokens, features and predictions are computed once; an arm is another rule on the same ones. Every
arm is judged image by image, so that `bootstrap` can pair it with another.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from mdlib.core.mask import Mask
from mdlib.core.progress import track
from mdlib.data import Dataset
from mdlib.evaluate import naming
from mdlib.method import clusters, masks, proposals, pseudo_labels
from mdlib.models.encoder import Encoder, Tokens

# ---------------------------------------------------------------- stage 1


def image_tokens(dataset: Dataset, encoder: Encoder, *, input_side: int) -> list[Tokens]:
    """The tokens of each image, alone in its batch, seen as in stage 1.

    Args:
        dataset: the images.
        encoder: computes the tokens.
        input_side: pixels of an image's shorter side when the encoder sees it.

    Returns:
        The tokens of each image, B = 1, in the order of the data set.
    """
    images = (
        torch.from_numpy(dataset.image(i)).permute(2, 0, 1)[None] for i in range(len(dataset))
    )
    resized = (proposals.resize_images(image, input_side=input_side) for image in images)
    return [encoder.tokens(image) for image in track(resized, total=len(dataset), what="tokens")]


def masks_by_rule(
    rule: Callable[[Tokens], tuple[Tensor, Tensor]],
    tokens: list[Tokens],
    dataset: Dataset,
    *,
    input_side: int,
    patch: int,
) -> list[list[Mask]]:
    """What a rule finds in each image, as stage 1 writes it.

    Args:
        rule: tokens of one image -> masks (1, h, w) or (1, n, h, w) bool and scores of as many; an
            empty mask is none.
        tokens: of each image, see `image_tokens`.
        dataset: the images.
        input_side: pixels of an image's shorter side when the encoder saw it.
        patch: pixels of a patch's side.

    Returns:
        The masks of each image, in the rule's order.
    """
    found = []
    for i, seen in enumerate(tokens):
        grids, scores = rule(seen)
        grids = grids.reshape(-1, *seen.grid_hw)
        (height, width), (rows, columns) = dataset.size(i), seen.grid_hw
        scale = input_side / min(height, width)
        crop_hw = round(height * scale), round(width * scale)
        padded_hw = rows * patch, columns * patch
        pixels = masks.mask_to_pixels(
            grids, padded_hw=padded_hw, crop_hw=crop_hw, image_hw=(height, width)
        )
        found.append(
            [
                Mask.from_pixels(mask, image_id=dataset.ids[i], score=score)
                for mask, score in zip(
                    pixels.cpu().numpy(), scores.reshape(-1).tolist(), strict=True
                )
                if mask.any()
            ]
        )
    return found


# ---------------------------------------------------------------- stage 2


def embed_three_ways(
    encoder: Encoder, dataset: Dataset, found_masks: Sequence[Mask], *, size: int, batch: int
) -> dict[str, np.ndarray]:
    """Describe masks in three ways.

    Args:
        encoder: computes the tokens.
        dataset: the images.
        found_masks: n masks of these images.
        size: pixels of a crop's side.
        batch: crops that the encoder sees at once.

    Returns:
        Three (n, D) float32: "box crop", the CLS token of the box crop (the paper); "masked crop",
        the CLS token of the crop with all outside the mask black; "masked pooling", the mean of the
        box crop's patch tokens inside the mask.
    """
    crops = clusters.crop_masks(dataset, found_masks, size=size)
    inside = torch.zeros(len(found_masks), size, size, dtype=torch.bool)
    for i, mask in enumerate(found_masks):
        shown = np.repeat(mask.pixels()[..., None], 3, 2).astype(np.uint8) * 255
        inside[i] = clusters.crop_boxes(shown, np.array([mask.box]), size=size)[0, 0] > 127
    found: dict[str, list[Tensor]] = {"box crop": [], "masked crop": [], "masked pooling": []}
    for some, within in zip(crops.split(batch), inside.split(batch), strict=True):
        tokens = encoder.tokens(some)
        found["box crop"].append(tokens.cls)
        found["masked crop"].append(encoder.tokens(some * within[:, None]).cls)
        padded = F.pad(within[:, None].float(), (0, -size % encoder.patch) * 2)
        share = F.avg_pool2d(padded, encoder.patch).flatten(1).to(tokens.patches)  # (b, N)
        pooled = torch.einsum("bn,bnd->bd", share, tokens.patches) / share.sum(
            1, keepdim=True
        ).clip(1e-6)
        found["masked pooling"].append(pooled)
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}


TRANSFORMS = ("as they are", "L2", "deviation", "deviation, L2", "PCA, L2", "PCA, deviation, L2")


def transform(
    name: str, train: np.ndarray, other: np.ndarray, *, components: int
) -> tuple[np.ndarray, np.ndarray]:
    """Transform features by what the first set of them says; its statistics serve both.

    Args:
        name: one of TRANSFORMS; "deviation, L2" is the reference's whitening.
        train: (n, D) features.
        other: (m, D) features.
        components: of the PCA, at most; fewer where n or D is less.

    Returns:
        Both as float32, (n, D') and (m, D'); D' = D without a PCA.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in TRANSFORMS:
        raise ValueError(f"transform must be one of {TRANSFORMS}, got {name!r}")
    for step in name.split(", "):
        if step == "PCA":
            model = PCA(min(components, *train.shape), random_state=0).fit(train)
            train, other = model.transform(train), model.transform(other)
        elif step == "deviation":
            deviation = clusters.feature_deviation(train)
            train, other = train / deviation, other / deviation
        elif step == "L2":
            train, other = (
                each / np.linalg.norm(each, axis=1, keepdims=True).clip(1e-12)
                for each in (train, other)
            )
    return train.astype(np.float32), other.astype(np.float32)


def cluster_scores(
    train: tuple[np.ndarray, np.ndarray],
    dev: tuple[np.ndarray, np.ndarray],
    *,
    k: int,
    num_classes: int,
    seeds: Iterable[int],
    **recipe: int,
) -> dict[str, list[float]]:
    """Run k-means on train's features for each seed, and judge the clusters on dev's.

    Args:
        train: (n, D) features and (n,) classes.
        dev: (m, D) features and (m,) classes.
        k: number of clusters.
        num_classes: number of classes, background among them.
        seeds: one run of k-means each.
        recipe: `batch_size` and `restarts` of `clusters.fit_kmeans`.

    Returns:
        A value for each seed, in [0, 1]: "accuracy" (each cluster named by its majority on train),
        "one to one" (Hungarian on train) and "nmi".
    """
    scores: dict[str, list[float]] = {"accuracy": [], "one to one": [], "nmi": []}
    for seed in seeds:
        centres = clusters.fit_kmeans(train[0], k=k, seed=seed, **recipe).cluster_centers_
        on_train, on_dev = (
            clusters.assign_clusters(features, centres) for features, _ in (train, dev)
        )
        counts = naming.count_matrix(on_train, train[1], k=k, num_classes=num_classes)
        for name, rule in (("accuracy", "majority"), ("one to one", "one-to-one")):
            mapping = naming.name_on_train(counts, rule)[1:]
            scores[name].append(float((mapping[on_dev] == dev[1]).mean()))
        scores["nmi"].append(float(normalized_mutual_info_score(dev[1], on_dev)))
    return scores


# ---------------------------------------------------------------- stage 4


def kept_at_random(scores: np.ndarray, *, threshold: float, rng: np.random.Generator) -> np.ndarray:
    """As many of an image's predictions as `pseudo_labels.confident` keeps, drawn at random.

    Args:
        scores: (n,) of the predictions.
        threshold: of `pseudo_labels.confident`.
        rng: draws them.

    Returns:
        (m,) int64 indices, best first.
    """
    count = len(pseudo_labels.confident(scores, threshold=threshold))
    drawn = rng.choice(len(scores), count, replace=False) if count else np.zeros(0, np.int64)
    return drawn[np.argsort(-np.asarray(scores)[drawn], kind="stable")]
