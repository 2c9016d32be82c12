"""What the stages of a finished run say of its val pictures, for the slides and the failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        cluster_to_class: (1 + k,) int64 class of background and of each cluster, -1 without one.
        masks: stage 1's masks of each picture, with clusters.
        predictions: the detector's masks of each picture, with clusters, best first.
        logits: (images, outputs, h, w) float16 of the last segmenter, at stride 8.
        refined_maps: the (H, W) label maps after the CRF, or None in a run without one.
        filter_rule: "threshold" and "overlap" of stage 4, see `pseudo_labels.label_map`.
    """

    run: RunArtifacts
    val: Dataset
    cluster_to_class: np.ndarray
    masks: list[list[Mask]]
    predictions: list[list[Mask]]
    logits: np.ndarray
    refined_maps: Sequence[np.ndarray] | None
    filter_rule: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class indices."""
        return self.val.classes

    def named(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) 0 or 1 + cluster -> (H, W) uint8 classes; a cluster without one is background."""
        return np.maximum(self.cluster_to_class[labels], 0).astype(np.uint8)

    def filtered(self, i: int) -> np.ndarray:
        """Picture i: the detector's masks after stage 4's filter, (H, W) uint16, 1 + cluster."""
        hw = self.val.size(i)
        return pseudo_labels.filtered_map(self.predictions[i], image_hw=hw, **self.filter_rule)

    def final(self, i: int) -> np.ndarray:
        """Picture i: the segmenter's map, (H, W) uint8, 0 background and 1 + cluster."""
        logits = torch.from_numpy(self.logits[i].astype(np.float32))
        return segmenter.label_map(logits, image_hw=self.val.size(i))

    def refined(self, i: int) -> np.ndarray | None:
        """Picture i: that map after the CRF, or None in a run without one."""
        return None if self.refined_maps is None else self.refined_maps[i]


def read_outcome(run: RunArtifacts) -> Outcome:
    """Read what a finished run says of val; a run without a CRF has no refined maps.

    Raises:
        StoreError: where stage 00, 02, 03, 04, 05 or 07 has not run; 07 does not run where val
            has no label maps.
    """
    val, settings = run.dataset("val"), run.settings("04")
    return Outcome(
        run=run,
        val=val,
        cluster_to_class=run.clusters().cluster_to_class,
        masks=run.clustered_masks("val").by_image(val.ids),
        predictions=run.predictions("val").by_image(val.ids),
        logits=run.logits("val"),
        refined_maps=run.refined_maps("val"),
        filter_rule={name: settings[name] for name in ("threshold", "overlap")},
    )
