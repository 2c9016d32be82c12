"""Maps, instances and overlays for new pictures, from a finished run: `python -m mdlib predict
IMAGES --run RUN`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mdlib.core.colours import class_colours, overlay
from mdlib.core.files import StoreError, atomic, read_json, write_json
from mdlib.core.label_map import write_label_map
from mdlib.core.mask import encode_mask
from mdlib.core.weights import read_weights
from mdlib.data import Sample
from mdlib.data.images import ImageError, read_image
from mdlib.method import crf, detector, segmenter
from mdlib.run import stage

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
SURE = 0.3  # detections from this score on are drawn; all are in instances.json


@dataclass(frozen=True)
class Models:
    """What a run has learned. names: class index of background and of each cluster, -1 unnamed."""

    segmenter: segmenter.Segmenter
    detector: detector.MaskRCNN
    side: int
    classes: list[str]
    names: np.ndarray
    crf: crf.CrfSettings | None


def find_images(paths: list[Path]) -> list[tuple[str, Path]]:
    """(name, path) of every picture: files as they are given, folders with all that is in them, in
    order.

    The name is the path within the folder without its suffix, parts joined by "__"; equal names are
    numbered. Raises StoreError where a path does not exist or no picture is found.
    """
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            found += [("__".join(p.relative_to(path).with_suffix("").parts), p) for p in inside]
        elif path.exists():
            found.append((path.stem, path))
        else:
            raise StoreError(f"{path} does not exist")
    if not found:
        raise StoreError(
            f"no picture in {', '.join(map(str, paths))}; known are {', '.join(sorted(SUFFIXES))}"
        )
    taken: dict[str, int] = {}
    unique = []
    for name, path in found:
        taken[name] = taken.get(name, 0) + 1
        unique.append((name if taken[name] == 1 else f"{name}__{taken[name]}", path))
    return unique


def load_models(run_dir: Path) -> Models:
    """The trained networks of a run.

    Raises StoreError where a stage has not run, WeightsError for broken weights.
    """
    needed = ("02_cluster_masks", "03_train_mask_rcnn", "05_train_deeplab")
    for name in needed:
        stage.read_manifest(run_dir, name)  # says which notebook to run
    artifacts = run_dir / "artifacts"
    deeplab = (
        segmenter.last_round(artifacts / "05_train_deeplab", artifacts / "06_refine_with_crf")
        / "segmenter.safetensors"
    )
    record = artifacts / "06_refine_with_crf" / "crf.json"
    fitted = read_json(artifacts / "02_cluster_masks" / "clusters.json")
    tuned = read_json(record)["parameters"] if record.is_file() else None
    refining = crf.CrfSettings.of(tuned) if tuned else None
    if refining and not crf.available():
        print("the run used a CRF, which is not installed here: maps are the network's own")
        refining = None
    return Models(
        segmenter.load_segmenter(deeplab, device=stage.device()),
        detector.load_detector(
            artifacts / "03_train_mask_rcnn" / "detector.safetensors", device=stage.device()
        ),
        read_weights(deeplab)[1]["architecture"]["side"],
        fitted["class_names"],
        np.array([0, *fitted["names"]]),
        refining,
    )


def predict_map(models: Models, sample: Sample) -> np.ndarray:
    """One picture -> its cluster map (H, W), 0 background and 1 + cluster; see label_map."""
    (logits,) = segmenter.predict_logits(
        models.segmenter, [sample], side=models.side, batch=1, device=stage.device()
    )
    if not models.crf:
        return segmenter.label_map(logits, image_hw=sample.image.shape[:2])
    (labels,) = segmenter.refined_maps([logits.numpy()], [sample], models.crf, workers=1)
    return labels


def predict_image(models: Models, sample: Sample) -> tuple[np.ndarray, list[dict]]:
    """One picture -> its cluster map as predict_map's, and the detector's records, best first."""
    (records,) = detector.predict(models.detector, [sample], batch=1, device=stage.device())
    return predict_map(models, sample), records


def run(paths: list[Path], *, run_dir: Path, out: Path | None) -> int:
    """Predict all pictures into `out` (default: the run's predictions/).

    Returns how many could not be read.

    Written: clusters/NAME.png (0 background, 1 + cluster), maps/NAME.png (class indices; a cluster
    without a name is void, 255), overlays/NAME.png, and instances.json in COCO's format.
    """
    found = find_images(paths)
    models, out = load_models(run_dir), out or run_dir / "predictions"
    colours = class_colours(len(models.names))
    images, annotations, failed = [], [], 0
    for name, path in found:
        try:
            sample = Sample(name, read_image(path))
        except ImageError as error:
            print(f"skipped: {error}")
            failed += 1
            continue
        labels, records = predict_image(models, sample)
        named = models.names[labels]
        write_label_map(out / "clusters" / f"{name}.png", labels)
        write_label_map(out / "maps" / f"{name}.png", np.where(named < 0, 255, named))
        _write_overlay(out / "overlays" / f"{name}.png", sample.image, labels, records, colours)
        height, width = labels.shape
        images.append(
            {"id": len(images) + 1, "file_name": str(path), "height": height, "width": width}
        )
        annotations += [
            coco_annotation(record, len(images), len(annotations) + i + 1)
            for i, record in enumerate(records)
        ]
        print(
            f"{name}: {len(np.setdiff1d(labels, [0]))} clusters, {sum(r['score'] >= SURE for r in records)} objects"
        )
    coco = {"images": images, "annotations": annotations, "categories": _categories(models)}
    write_json(out / "instances.json", coco)
    print(f"{len(images)} of {len(found)} pictures: {out}")
    return failed


def _categories(models: Models) -> list[dict]:
    names = (models.classes[c] if c > 0 else "unnamed" for c in models.names[1:])
    return [{"id": 1 + j, "name": f"{name} (cluster {j})"} for j, name in enumerate(names)]


def coco_annotation(record: dict, image_id: int, number: int) -> dict:
    """A record {"mask" (H, W) bool, "cluster", "score"} as an annotation of COCO; category ids are
    1 + cluster.
    """
    rows, columns = np.flatnonzero(record["mask"].any(1)), np.flatnonzero(record["mask"].any(0))
    box = [
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    ]
    return {
        "id": number, "image_id": image_id, "category_id": 1 + record["cluster"], "score": round(record["score"], 6),
        "segmentation": encode_mask(record["mask"]), "bbox": box, "area": int(record["mask"].sum()), "iscrowd": 0,
    }  # fmt: skip


def _write_overlay(
    path: Path, image: np.ndarray, labels: np.ndarray, records: list[dict], colours: np.ndarray
) -> None:
    present = np.setdiff1d(labels, [0])
    painted = image / 255
    if present.size:
        painted = overlay(
            image,
            np.stack([labels == c for c in present]),
            colours=[tuple(colours[c]) for c in present],
        )
    sure = [r["mask"] for r in records if r["score"] >= SURE]
    if sure:  # objects as outlines over the map
        painted = overlay(
            (painted * 255).round().astype(np.uint8),
            np.stack(sure),
            colours=("white",),
            strength=0.0,
        )
    with atomic(path) as temporary:
        Image.fromarray((painted * 255).round().astype(np.uint8)).save(temporary, format="PNG")
