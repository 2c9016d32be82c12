"""What a finished run says of its val pictures, one stage beside the other: for slides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mdlib.core.mask import Mask
from mdlib.data import Dataset
from mdlib.method import pseudo_labels, segmenter
from mdlib.run.artifacts import RunArtifacts


@dataclass(frozen=True)
class Outcome:
    """What the stages of a run say of its val pictures, by index.

    Attributes:
        run: the run itself.
        val: its val pictures.
        cluster_to_class: (1 + k,) class of background and of each cluster, -1 without one.
        masks: stage 1's masks of each picture, with clusters.
        predictions: the detector's.
        logits: (images, outputs, h, w) of the last segmenter.
        refined_maps: the label maps after the CRF, or None in a run without one.
        filter_rule: "threshold" and "overlap" of stage 4.
    """

    run: RunArtifacts
    val: Dataset
    cluster_to_class: np.ndarray
    masks: list[list[Mask]]
    predictions: list[list[Mask]]
    logits: np.ndarray
    refined_maps: Sequence[np.ndarray] | None
    filter_rule: Mapping

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class indices."""
        return self.val.classes

    def named(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) 0 or 1 + cluster -> (H, W) uint8 classes; a cluster without one is background."""
        return np.maximum(self.cluster_to_class[labels], 0).astype(np.uint8)

    def filtered(self, i: int) -> np.ndarray:
        """Picture i: the detector's confident masks, (H, W), 0 background and 1 + cluster."""
        hw = self.val.size(i)
        return pseudo_labels.filtered_map(self.predictions[i], image_hw=hw, **self.filter_rule)

    def final(self, i: int) -> np.ndarray:
        """Picture i: the segmenter's map, (H, W), 0 background and 1 + cluster."""
        logits = torch.from_numpy(self.logits[i].astype(np.float32))
        return segmenter.label_map(logits, image_hw=self.val.size(i))

    def refined(self, i: int) -> np.ndarray | None:
        """Picture i: its map after the CRF, or None in a run without one."""
        return None if self.refined_maps is None else self.refined_maps[i]


def read_outcome(run: RunArtifacts) -> Outcome:
    """The outcome of a run. Raises StoreError where one of its stages 00 to 07 has not run, or val
    has no label maps.
    """
    val = run.dataset("val")
    return Outcome(
        run=run,
        val=val,
        cluster_to_class=run.clusters().cluster_to_class,
        masks=run.clustered_masks("val").by_image(val.ids),
        predictions=run.predictions("val").by_image(val.ids),
        logits=run.logits("val"),
        refined_maps=run.refined_maps("val"),
        filter_rule={name: run.settings("04")[name] for name in ("threshold", "overlap")},
    )
