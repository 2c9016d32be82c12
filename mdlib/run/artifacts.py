"""What the stages of a finished run said of its val pictures, one beside the other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mdlib.core.files import read_array, read_json
from mdlib.core.label_map import read_label_map
from mdlib.core.mask import by_image, read_masks
from mdlib.data.roles import Remembered, open_role
from mdlib.method import pseudo_labels, segmenter
from mdlib.run.stage import read_manifest


@dataclass(frozen=True)
class Outcome:
    """What the stages of a finished run said of its val pictures.

    folder, settings: artifacts and parameters of stages "00" to "07". names (1 + k,): the class of
    background and of each cluster, -1 without a name. masks: 01's of each picture, with "cluster";
    said: the detector's; logits: the last segmenter's.
    """

    folder: dict[str, Path]
    settings: dict[str, dict]
    classes: list[str]
    names: np.ndarray
    val: Remembered
    masks: list[list]
    said: list[list]
    logits: np.ndarray

    def named(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) 0 or 1 + cluster -> (H, W) uint8 classes; a cluster without a name becomes
        background.
        """
        return np.maximum(self.names[labels], 0).astype(np.uint8)

    def filtered(self, i: int) -> np.ndarray:
        """Picture i: the detector's confident masks, (H, W) clusters from 1."""
        stacked = pseudo_labels.stack_predictions(self.said[i], self.val[i].image.shape[:2])
        return pseudo_labels.label_map(
            *stacked,
            threshold=self.settings["04"]["threshold"],
            overlap=self.settings["04"]["overlap"],
        )

    def final(self, i: int) -> np.ndarray:
        """Picture i: the segmenter's map, (H, W) clusters from 1."""
        return segmenter.label_map(
            torch.from_numpy(self.logits[i].astype(np.float32)),
            image_hw=self.val[i].image.shape[:2],
        )

    def refined(self, i: int) -> np.ndarray | None:
        """Picture i: its map after the CRF, or None in a run without one."""
        path = self.folder["06"] / "val" / f"{self.val.ids()[i]}.png"
        return read_label_map(path) if path.is_file() else None


_STAGES = (
    "00_prepare_data", "01_distill_masks", "02_cluster_masks", "03_train_mask_rcnn", "04_filter_masks", "05_train_deeplab",
    "06_refine_with_crf", "07_evaluate_clusters",
)  # fmt: skip


def read_outcome(run_dir: Path) -> Outcome:
    """Raises StoreError where one of the stages 00 to 07 has not run, or train or val has no label
    maps.
    """
    settings = {name[:2]: read_manifest(run_dir, name)["parameters"] for name in _STAGES}
    folder = {name[:2]: run_dir / "artifacts" / name for name in _STAGES}
    val, evaluated = (
        open_role(folder["00"], "val"),
        read_json(folder["07"] / "val_clusters.json"),
    )
    first = read_masks(folder["01"] / "masks_val.json")
    first = [
        record | {"cluster": cluster}
        for record, cluster in zip(first, evaluated["clusters"], strict=True)
    ]
    said = read_masks(folder["03"] / "predictions_val.json")
    logits = read_array(segmenter.last_round(folder["05"], folder["06"]) / "segmenter_val.npy")
    return Outcome(
        folder, settings, read_json(folder["00"] / "index.json")["classes"], np.array(evaluated["names"]), val,
        by_image(first, val.ids()), by_image(said, val.ids()), logits,
    )  # fmt: skip
