"""Evaluation at the true size: the 1,449 label maps of VOC 2012 val, on one core.

    python benchmarks/evaluate_voc_labels.py MAPS

writes benchmarks/results/evaluate_voc_labels.json.

MAPS: a folder or a zip file with palette PNGs, such as VOCdevkit/VOC2012/SegmentationClass. Two
predictions are evaluated, the map itself and the map with its labels shuffled. Timed, for each:
decoding and checking the maps, the confusion matrix, matching, mean IoU. Not timed: unzipping.
A perfect prediction must give exactly 1.0, and so must a relabelled one after matching, whatever is
predicted at void pixels. Evaluation needs no torch, so none is loaded until the memory was read.
"""

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mdlib.core.files import write_json
from mdlib.data.images import image_size, read_true_labels
from mdlib.data.sample import VOID
from mdlib.data.voc import CLASSES
from mdlib.evaluate import metrics

NUM = len(CLASSES)


def main() -> None:
    """Evaluate the maps and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("maps", type=Path, help="folder or zip file of palette PNGs")
    maps = parser.parse_args().maps
    with tempfile.TemporaryDirectory() as folder:
        if not maps.is_dir():
            with zipfile.ZipFile(maps) as archive:
                archive.extractall(folder)
        result = evaluate(sorted((maps if maps.is_dir() else Path(folder)).rglob("*.png")))
    from mdlib.core.paths import ROOT
    from mdlib.run.identity import versions

    write_json(
        ROOT / "benchmarks" / "results" / "evaluate_voc_labels.json",
        result | {"versions": versions()},
    )
    print(result)


def evaluate(paths: list[Path]) -> dict:
    """Evaluate a perfect prediction and a relabelled one; returns what is written."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    shuffled = np.random.default_rng(0).permutation(NUM)
    before = peak_mb()
    perfect = timed(paths, lambda target: np.where(target == VOID, 0, target))
    # other than above at void pixels
    relabelled = timed(paths, lambda target: shuffled[np.where(target == VOID, NUM - 1, target)])
    assert (
        perfect["unmatched"] == perfect["matched"] == relabelled["matched"] == 1.0
        and perfect["pixels"] == relabelled["pixels"]
    )
    return {
        "what": f"{len(paths)} label maps, decoded and evaluated, on one core",
        "miou_perfect": perfect["unmatched"],
        "miou_relabelled_unmatched": round(relabelled["unmatched"], 4),
        "miou_relabelled_matched": relabelled["matched"],
        "pixels_counted": perfect["pixels"],
        "seconds": max(perfect["seconds"], relabelled["seconds"]),
        "cpu_seconds": max(perfect["cpu_seconds"], relabelled["cpu_seconds"]),
        "peak_mb": round(peak_mb()),
        "peak_mb_before_the_first_map": round(before),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }


def timed(paths: list[Path], predict: Callable[[np.ndarray], np.ndarray]) -> dict:
    """Evaluate predict(target) against each map.

    Asserts that every pixel that is not void counts, and no other.
    """
    began, cpu = time.perf_counter(), time.process_time()
    counts, real = np.zeros((NUM, NUM), np.int64), 0
    for path in paths:
        target = read_true_labels(path, image_hw=image_size(path), num_classes=NUM)
        counts += metrics.confusion(predict(target), target, num_preds=NUM, num_targets=NUM)
        real += int((target != VOID).sum())
    unmatched = metrics.mean_iou(counts, np.arange(NUM))
    matched = metrics.mean_iou(counts, metrics.match_hungarian(counts))
    assert counts.sum() == real
    seconds, cpu_seconds = (
        round(time.perf_counter() - began, 2),
        round(time.process_time() - cpu, 2),
    )
    return {
        "unmatched": unmatched,
        "matched": matched,
        "pixels": real,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def peak_mb() -> float:
    """Largest memory of this process so far; ru_maxrss: kilobytes on Linux, bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e3
    )


if __name__ == "__main__":
    main()
