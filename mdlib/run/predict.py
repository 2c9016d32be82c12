"""Maps, instances and overlays for new pictures, from a finished run.

    model = MaskDistill.from_run(RunArtifacts(Path("reports/demo")))
    labels, masks = model.predict(image)

or `python -m mdlib predict IMAGES --run RUN`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.models.detection import MaskRCNN

from mdlib.core.colours import WHITE, class_colours, overlay
from mdlib.core.files import atomic
from mdlib.core.label_map import write_label_map
from mdlib.core.mask import Mask, write_masks
from mdlib.data import VOID, InMemory
from mdlib.data.folder import open_pictures
from mdlib.data.images import ImageError
from mdlib.method import crf, detector, segmenter
from mdlib.method.segmenter import Segmenter
from mdlib.run.artifacts import RunArtifacts
from mdlib.run.identity import device

SURE = 0.3  # detections from this score on are drawn; all are in instances.json


@dataclass(frozen=True)
class MaskDistill:
    """What a run has learned, for new pictures.

    Attributes:
        detector: Mask R-CNN, in eval mode.
        segmenter: DeepLab, in eval mode.
        side: pixels of the square in which the segmenter sees a picture.
        classes: names of the class indices.
        cluster_to_class: (1 + k,) int64 class of background and of each cluster, -1 without one.
        crf: settings of the CRF, keywords of `dense_crf`, or None to leave it out.
    """

    detector: MaskRCNN
    segmenter: Segmenter
    side: int
    classes: tuple[str, ...]
    cluster_to_class: np.ndarray
    crf: crf.CrfSettings | None

    @classmethod
    def from_run(cls, run: RunArtifacts) -> "MaskDistill":
        """The trained networks of a run.

        Raises:
            StoreError: where stage 02, 03 or 05 has not run.
            WeightsError: for broken weights.
        """
        clusters, crf_settings = run.clusters(), run.crf()
        if crf_settings is not None and not crf.available():
            print("the run used a CRF, which is not installed here: maps are the network's own")
            crf_settings = None
        mask_rcnn = run.detector()
        deeplab, side = run.segmenter()
        return cls(
            detector=mask_rcnn,
            segmenter=deeplab,
            side=side,
            classes=clusters.classes,
            cluster_to_class=clusters.cluster_to_class,
            crf=crf_settings,
        )

    def predict(
        self, image: np.ndarray, *, image_id: str = "image"
    ) -> tuple[np.ndarray, list[Mask]]:
        """Segment a new picture and find its objects.

        Args:
            image: (H, W, 3) uint8 RGB.
            image_id: what its masks name it.

        Returns:
            The map as `labels` gives it, and the detector's masks with clusters, best first.
        """
        one = InMemory({image_id: image})
        (masks,) = detector.predict(self.detector, one, batch=1, device=device())
        return self.labels(image), masks

    def labels(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) clusters, 0 background and 1 + cluster; see label_map."""
        one = InMemory({"image": image})
        (logits,) = segmenter.predict_logits(
            self.segmenter, one, side=self.side, batch=1, device=device()
        )
        if self.crf is None:
            return segmenter.label_map(logits, image_hw=image.shape[:2])
        (labels,) = segmenter.refined_maps([logits.numpy()], one, self.crf, workers=1)
        return labels


def run(paths: list[Path], *, run_dir: Path, out: Path | None) -> int:
    """Predict all pictures into a folder; a picture that cannot be read is skipped with a line.

    Written: clusters/ID.png (0 background, 1 + cluster), maps/ID.png (class indices; a cluster
    without a class is void, 255), overlays/ID.png, and instances.json in COCO's format.

    Args:
        paths: files, and folders with all pictures below them; see `data.folder` for the ids.
        run_dir: the finished run.
        out: where to; None: the run's own predictions/.

    Returns:
        How many pictures could not be read.

    Raises:
        StoreError: where there is no picture, or a stage that is needed has not run.
        WeightsError: for broken weights.
    """
    pictures = open_pictures(paths)  # before the networks: a wrong path is told at once
    model, out = MaskDistill.from_run(RunArtifacts(run_dir)), out or run_dir / "predictions"
    colours = class_colours(len(model.cluster_to_class))
    found: list[Mask] = []
    sizes: dict[str, tuple[int, int]] = {}
    files: dict[str, dict[str, str]] = {}
    for i, image_id in enumerate(pictures.ids):
        try:
            image = pictures.image(i)
        except ImageError as error:
            print(f"skipped: {error}")
            continue
        labels, masks = model.predict(image, image_id=image_id)
        named = model.cluster_to_class[labels]
        write_label_map(out / "clusters" / f"{image_id}.png", labels)
        write_label_map(out / "maps" / f"{image_id}.png", np.where(named < 0, VOID, named))
        _write_overlay(out / "overlays" / f"{image_id}.png", image, labels, masks, colours)
        found += masks
        sizes[image_id] = image.shape[:2]
        files[image_id] = {"file_name": pictures.file_name(i)}
        sure = sum(mask.score >= SURE for mask in masks)
        print(f"{image_id}: {len(np.setdiff1d(labels, [0]))} clusters, {sure} objects")
    titles = _category_names(model)
    write_masks(out / "instances.json", found, images=sizes, categories=titles, more=files)
    print(f"{len(sizes)} of {len(pictures)} pictures: {out}")
    return len(pictures) - len(sizes)


def _category_names(model: MaskDistill) -> list[str]:
    """The name of each cluster in instances.json."""
    names = (model.classes[c] if c > 0 else "unnamed" for c in model.cluster_to_class[1:])
    return [f"{name} (cluster {j})" for j, name in enumerate(names)]


def _write_overlay(
    path: Path, image: np.ndarray, labels: np.ndarray, masks: list[Mask], colours: np.ndarray
) -> None:
    """The map painted over the picture, and the sure objects as white outlines above it."""
    present = np.setdiff1d(labels, [0])
    painted = image / 255
    if present.size:
        regions = np.stack([labels == c for c in present])
        painted = overlay(image, regions, colours=[tuple(colours[c]) for c in present])
    sure = [mask.pixels() for mask in masks if mask.score >= SURE]
    if sure:
        flat = (painted * 255).round().astype(np.uint8)
        painted = overlay(flat, np.stack(sure), colours=(WHITE,), strength=0.0)
    with atomic(path) as temporary:
        Image.fromarray((painted * 255).round().astype(np.uint8)).save(temporary, format="PNG")
