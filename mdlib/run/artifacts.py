"""The read side of a run: what its stages wrote, by role and by name.

A notebook reads through `stage.run`, where each access is recorded as an input of the stage;
`predict`, the report, the slides and the gallery read a finished run with `RunArtifacts(run_dir)`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN

from mdlib.core.files import read_array, read_json
from mdlib.core.label_map import read_label_map
from mdlib.core.mask import Masks, read_masks
from mdlib.core.paths import ROOT
from mdlib.core.weights import read_weights
from mdlib.data import Dataset, roles
from mdlib.method import pseudo_labels
from mdlib.method.crf import CrfSettings
from mdlib.method.detector import load_detector
from mdlib.method.segmenter import Segmenter, label_map, load_segmenter
from mdlib.models.backbones import FeatureCache
from mdlib.models.encoder import Encoder, load_encoder
from mdlib.run.stage import device, manifest_path, read_manifest

STAGES = {
    "00": "00_prepare_data",
    "01": "01_distill_masks",
    "02": "02_cluster_masks",
    "03": "03_train_mask_rcnn",
    "04": "04_filter_masks",
    "05": "05_train_deeplab",
    "06": "06_refine_with_crf",
    "07": "07_evaluate_clusters",
    "08": "08_probe_linearly",
    "09": "09_evaluate_instances",
    "10": "10_compare_priors",
    "11": "11_ablate",
    "13": "13_test_claims",
}


@dataclass(frozen=True)
class Clusters:
    """What stage 2 found in the masks of train.

    Attributes:
        k: number of clusters.
        crop_side: longer side of a crop in pixels when it meets the encoder.
        classes: names of the class indices; without labels one for each cluster.
        centres: (k, D) float32, of whitened features.
        deviation: (D,) float32, what features are divided by to be whitened.
        cluster_to_class: (1 + k,) int64 class of background and of each cluster; -1 without one.
        mask_classes: (n,) int64 true class of each mask of train, or None without labels.
    """

    k: int
    crop_side: int
    classes: tuple[str, ...]
    centres: np.ndarray
    deviation: np.ndarray
    cluster_to_class: np.ndarray
    mask_classes: np.ndarray | None


class LabelMaps(Sequence[np.ndarray]):
    """The label maps of a folder, (H, W) uint8 or uint16, each read when it is asked for."""

    def __init__(self, folder: Path, ids: Sequence[str]):
        self.folder, self.ids = folder, tuple(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i):
        return read_label_map(self.folder / f"{self.ids[i]}.png")


class RunArtifacts:
    """What the stages of a run wrote. Stages are named by their number, such as "01".

    Each method raises StoreError where the stage that it reads has not run.
    """

    def __init__(self, run_dir: Path, *, folder_of: Callable[[str], Path] | None = None):
        """Read the run in `run_dir`.

        Args:
            run_dir: the run's folder, such as reports/demo.
            folder_of: full name of a stage -> its folder; `Stage.read` records what is read.
        """
        self.run_dir = run_dir
        self._runs_what_lacks = folder_of is not None  # in a notebook, stages that have not run
        self._folder_of = folder_of or self._finished_folder

    def _finished_folder(self, name: str) -> Path:
        read_manifest(self.run_dir, name)  # says which notebook to run
        return manifest_path(self.run_dir, name).parent

    def folder(self, stage: str) -> Path:
        """Where a stage wrote its artifacts."""
        return self._folder_of(STAGES[stage])

    def has(self, stage: str) -> bool:
        """Whether a stage has run."""
        return manifest_path(self.run_dir, STAGES[stage]).is_file()

    def settings(self, stage: str) -> Mapping:
        """The parameters that a stage ran with."""
        return read_json(self.folder(stage) / "manifest.json")["parameters"]

    def metrics(self, stage: str) -> Mapping[str, float]:
        """The numbers that a stage measured."""
        return read_json(self.folder(stage) / "manifest.json")["metrics"]

    # ---------------------------------------------------------------- 00: data

    @cached_property
    def index(self) -> Mapping:
        """What stage 0 wrote about the data: data set, classes, and its splits by role."""
        return read_json(self.folder("00") / "index.json")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that images play in this run, "train" first."""
        return tuple(self.index["splits"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class indices; [0] is "background"."""
        return tuple(self.index["classes"])

    def dataset(self, role: str, *, first: int | None = None) -> Dataset:
        """The images of a role; only the `first` of them where a number is given."""
        return roles.open_role(self.folder("00"), role, first=first)

    @property
    def has_support(self) -> bool:
        """Whether a second data set's masks join those of train in k-means; its role is "support"."""
        return "support" in self.index

    def labelled_roles(self) -> set[str]:
        """The roles whose images have semantic maps and instances with masks.

        A line names the others, because nothing is scored there.
        """
        return roles.labelled_roles(self.folder("00"))

    # ---------------------------------------------------------------- 01, 02: masks and clusters

    def masks(self, role: str) -> Masks:
        """Stage 1's masks, without clusters."""
        return read_masks(self.folder("01") / f"masks_{role}.json")

    def clustered_masks(self, role: str) -> Masks:
        """The same masks with their clusters: train's from stage 2, val's from stage 7."""
        return read_masks(self.folder("02" if role == "train" else "07") / f"masks_{role}.json")

    def clusters(self) -> Clusters:
        """Stage 2's clusters."""
        folder = self.folder("02")
        found = read_json(folder / "clusters.json")
        return Clusters(
            k=found["k"],
            crop_side=found["crop_side"],
            classes=tuple(found["class_names"]),
            centres=read_array(folder / "centres.npy"),
            deviation=read_array(folder / "deviation.npy"),
            cluster_to_class=np.array([0, *found["names"]]),
            mask_classes=np.array(found["classes"]) if "classes" in found else None,
        )

    def features(self) -> np.ndarray:
        """CLS tokens of the crops of train's masks, (n, D) float32, not whitened."""
        return read_array(self.folder("02") / "features_train.npy")

    # ---------------------------------------------------------------- 03, 04: detector and labels

    def predictions(self, role: str) -> Masks:
        """The detector's masks with clusters and scores, best first in each image."""
        return read_masks(self.folder("03") / f"predictions_{role}.json")

    def pseudo_maps(self) -> LabelMaps:
        """Stage 4's label maps of train: 0 background, 1 + cluster, 255 void."""
        return LabelMaps(self.folder("04") / "train", self.dataset("train").ids)

    def filtered_maps(self, role: str) -> Iterator[np.ndarray]:
        """The detector's masks of a role, filtered as in stage 4, one (H, W) map an image."""
        dataset, rule = self.dataset(role), self.settings("04")
        for i, masks in enumerate(self.predictions(role).by_image(dataset.ids)):
            yield pseudo_labels.filtered_map(
                masks,
                image_hw=dataset.size(i),
                threshold=rule["threshold"],
                overlap=rule["overlap"],
            )

    # ---------------------------------------------------------------- 05, 06: maps

    @cached_property
    def _refined_folder(self) -> Path | None:
        """Stage 6's folder, or None in a finished run without it."""
        return self.folder("06") if self._runs_what_lacks or self.has("06") else None

    def segmenter_folder(self) -> Path:
        """Where the run's last segmenter and its logits are: stage 6's if it trained one."""
        refined = self._refined_folder
        own = refined is not None and (refined / "segmenter.safetensors").is_file()
        return refined if own else self.folder("05")

    def logits(self, role: str, network: str = "segmenter") -> np.ndarray:
        """Logits at stride 8 of each image of a role, (images, outputs, h, w) float16.

        Args:
            role: "dev" or "val"; "train" where val has no labels.
            network: "segmenter" of the last round, or one of stage 5: "first segmenter",
                "supervised" (its twin on true labels).
        """
        folder = self.segmenter_folder() if network == "segmenter" else self.folder("05")
        return read_array(folder / f"{network.removeprefix('first ')}_{role}.npy")

    def logit_roles(self) -> tuple[str, ...]:
        """The roles for which stage 5 kept logits."""
        folder = self.folder("05")
        return tuple(r for r in self.roles if (folder / f"segmenter_{r}.npy").is_file())

    def predicted_maps(self, role: str, network: str = "segmenter") -> Iterator[np.ndarray]:
        """The label map of each image of a role before the CRF; for the arguments see `logits`."""
        dataset = self.dataset(role)
        for i, logits in enumerate(self.logits(role, network)):
            values = torch.from_numpy(logits.astype(np.float32))
            yield label_map(values, image_hw=dataset.size(i))

    def refined_maps(self, role: str) -> LabelMaps | None:
        """The label maps after the CRF, or None in a run without one."""
        folder = self._refined_folder
        if folder is None or self.crf() is None:
            return None
        return LabelMaps(folder / role, self.dataset(role).ids)

    def crf(self) -> Mapping | None:
        """The settings of the run's CRF, or None in a run without one."""
        folder = self._refined_folder
        found = None if folder is None else read_json(folder / "crf.json")["parameters"]
        return None if found is None else CrfSettings.of(found)

    # ---------------------------------------------------------------- networks

    def encoder(self, stage: str) -> Encoder:
        """The frozen ViT of stage 1 ("01": masks) or 2 ("02": clusters), with its weights."""
        made = self.settings(stage)
        weights = made["weights"]
        file = weights if weights in (None, "random") else ROOT / weights
        return load_encoder(made["encoder_name"], weights=file, device=device())

    def detector(self) -> MaskRCNN:
        """Stage 3's Mask R-CNN, in eval mode."""
        return load_detector(self.folder("03") / "detector.safetensors", device=device())

    def segmenter(self, *, cache: FeatureCache | None = None) -> tuple[Segmenter, int]:
        """The run's last DeepLab in eval mode, and the side in pixels at which it sees a picture.

        cache: where a frozen body keeps what it says of each picture.
        """
        path = self.segmenter_folder() / "segmenter.safetensors"
        side = read_weights(path)[1]["architecture"]["side"]
        return load_segmenter(path, device=device(), cache=cache), side
