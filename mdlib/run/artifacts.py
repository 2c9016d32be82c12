"""The read side of a run: what its stages wrote, by role and by name.

    run = stage.run  # in a notebook; elsewhere RunArtifacts(run_dir)
    train = run.dataset("train")
    masks = run.masks("train").by_image(train.ids)  # stage 1's masks of each image
    k = run.clusters().k  # stage 2's

In a notebook each stage that is read is recorded as an input of the notebook's own stage, and is
run first where it has not run. `predict`, the slides and the site read a finished run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN

from mdlib.core.files import StoreError, read_array, read_json
from mdlib.core.label_map import read_label_map
from mdlib.core.mask import Masks, read_masks
from mdlib.core.paths import ROOT
from mdlib.core.weights import read_weights
from mdlib.data import Dataset, roles
from mdlib.method.crf import CrfSettings
from mdlib.method.detector import load_detector
from mdlib.method.segmenter import Segmenter, label_map, load_segmenter
from mdlib.models.backbones import FeatureCache
from mdlib.models.encoder import Encoder, load_encoder
from mdlib.run.identity import device
from mdlib.run.stage import has_run, manifest_path, read_manifest, unfit

if TYPE_CHECKING:
    from mdlib.run.stage import Stage

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
# of the last round; of stage 5; the first one's twin that learned from true labels
Network = Literal["segmenter", "first segmenter", "supervised", "probe"]


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
    """The label maps of a folder, (H, W) uint8 or uint16, each read when it is asked for.

    Attributes:
        folder: holds ID.png for each image.
        ids: of the images, in order.
    """

    def __init__(self, folder: Path, ids: Sequence[str]):
        self.folder, self.ids = folder, tuple(ids)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, i: slice) -> "LabelMaps": ...
    def __getitem__(self, i: int | slice) -> "np.ndarray | LabelMaps":
        if isinstance(i, slice):
            return LabelMaps(self.folder, self.ids[i])
        return read_label_map(self.folder / f"{self.ids[i]}.png")


class RunArtifacts:
    """What the stages of a run wrote. Stages are named by their number, such as "01".

    Nothing is read before it is asked for. Each method raises StoreError where the stage that it
    reads has not run.

    Attributes:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path, *, stage: "Stage | None" = None):
        """Read the run in `run_dir`.

        Args:
            run_dir: the run's folder, such as reports/demo.
            stage: of the notebook that reads. It records what is read, and runs what has not run;
                None: the run is finished.
        """
        self.run_dir = run_dir
        self._stage = stage
        self._datasets: dict[str, Dataset] = {}  # by role, opened once

    def folder(self, stage: str) -> Path:
        """Where a stage wrote its artifacts.

        Raises:
            StoreError: it has not run, or does not fit to the stages that it was made from.
        """
        name = STAGES[stage]
        if self._stage is not None:
            return self._stage.read(name)
        if problem := unfit(self.run_dir, name):
            raise StoreError(problem)
        return manifest_path(self.run_dir, name).parent

    def has(self, stage: str) -> bool:
        """Whether a stage has run."""
        if self._stage is not None:
            return self._stage.has(STAGES[stage])
        return has_run(self.run_dir, STAGES[stage])

    def settings(self, stage: str) -> Mapping[str, Any]:
        """The parameters that a stage ran with."""
        self.folder(stage)  # which checks it, and makes it an input
        return read_manifest(self.run_dir, STAGES[stage])["parameters"]

    def metrics(self, stage: str) -> Mapping[str, float]:
        """The numbers that a stage measured."""
        self.folder(stage)
        return read_manifest(self.run_dir, STAGES[stage])["metrics"]

    def seconds(self, stage: str) -> float:
        """How long a stage ran, for plans; where it was resumed, since then."""
        self.folder(stage)
        return read_manifest(self.run_dir, STAGES[stage])["seconds"]

    # ---------------------------------------------------------------- 00: data

    @cached_property
    def index(self) -> Mapping[str, Any]:
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
        """The images of a role; only the `first` of them where a number is given.

        Raises StoreError where the run has no such role.
        """
        if first is not None:
            return roles.open_role(self.folder("00"), role, first=first)
        if role not in self._datasets:
            self._datasets[role] = roles.open_role(self.folder("00"), role)
        return self._datasets[role]

    def split(self, name: str) -> Dataset:
        """All of a split of the run's data set, such as VOC's "instances", whatever its role.

        Raises ValueError for an unknown split.
        """
        return roles.open_split(self.folder("00"), name)

    @property
    def has_support(self) -> bool:
        """Whether masks of a second data set, role "support", join those of train in k-means."""
        return "support" in self.index

    def labelled_roles(self) -> set[str]:
        """The roles whose images have objects with masks; a line names the others.

        A role whose images could have objects, and have none at all, is one of the others.
        """
        found = roles.labelled_roles(self.folder("00"))
        without = [role for role in sorted(found) if not roles.has_objects(self.dataset(role))]
        if without:
            lacking = ", ".join(without)
            print(f"{lacking}: no picture holds an object, so what needs one is left out")
        return found - set(without)

    def mapped_roles(self) -> set[str]:
        """The roles whose images have semantic maps; a line names the others."""
        return roles.mapped_roles(self.folder("00"))

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
            cluster_to_class=np.array([0, *found["names"]], np.int64),
            mask_classes=np.array(found["classes"], np.int64) if "classes" in found else None,
        )

    def centres_by_seed(self) -> np.ndarray:
        """The centres that each seed of k-means found, (seeds, k, D), by rising inertia.

        Those of `clusters` are the middle ones.
        """
        return read_array(self.folder("02") / "centres_by_seed.npy")

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

    # ---------------------------------------------------------------- 05, 06: maps

    def segmenter_folder(self) -> Path:
        """Where the run's last segmenter and its logits are: stage 6's if it trained one."""
        refined = self._refined_folder
        if refined is not None and (refined / "segmenter.safetensors").is_file():
            return refined
        return self.folder("05")

    def logits(self, role: str, network: Network = "segmenter") -> np.ndarray:
        """Logits at stride 8 of each image of a role.

        Args:
            role: "dev" or "val"; "train" where val has no labels.
            network: "segmenter" of the last round; of stage 5 the "first segmenter" and
                "supervised", its twin on true labels; or stage 8's "probe".

        Returns:
            (images, outputs, h, w) float16.
        """
        return read_array(self._logits_file(role, network))

    def has_logits(self, role: str, network: Network) -> bool:
        """Whether there are `logits` of such a network."""
        return (network != "probe" or self.has("08")) and self._logits_file(role, network).is_file()

    def logit_roles(self) -> tuple[str, ...]:
        """The roles for which stage 5 kept logits."""
        folder = self.folder("05")
        return tuple(r for r in self.roles if (folder / f"segmenter_{r}.npy").is_file())

    def predicted_maps(self, role: str, network: Network = "segmenter") -> Iterator[np.ndarray]:
        """The label map of each image of a role before the CRF; for the arguments see `logits`.

        Returns:
            (H, W) uint8 maps, each made when it is asked for: 0 background and 1 + cluster, or
            class indices of the network "supervised".
        """
        dataset = self.dataset(role)
        return (
            label_map(torch.from_numpy(one.astype(np.float32)), image_hw=dataset.size(i))
            for i, one in enumerate(self.logits(role, network))
        )

    def crf(self) -> CrfSettings | None:
        """The settings of the run's CRF, or None in a run without one."""
        folder = self._refined_folder
        found = None if folder is None else read_json(folder / "crf.json")["parameters"]
        return None if found is None else CrfSettings.of(found)

    def refined_maps(
        self, role: str, network: Literal["segmenter", "supervised"] = "segmenter"
    ) -> LabelMaps | None:
        """The label maps after the CRF, or None in a run without one, or without such a network.

        Args:
            role: as in `logits`; "val" where the network is "supervised".
            network: whose maps were refined.
        """
        folder = self._refined_folder
        if folder is None or self.crf() is None:
            return None
        maps = folder / (role if network == "segmenter" else f"{role}-{network}")
        return LabelMaps(maps, self.dataset(role).ids) if maps.is_dir() else None

    # ---------------------------------------------------------------- networks

    def encoder(self, stage: str) -> Encoder:
        """The frozen ViT of stage "01" (masks) or "02" (clusters), with its weights."""
        settings = self.settings(stage)
        weights = settings["weights"]
        file = weights if weights in (None, "random") else ROOT / weights
        return load_encoder(settings["encoder_name"], weights=file, device=device())

    def detector(self) -> MaskRCNN:
        """Stage 3's Mask R-CNN, in eval mode."""
        return load_detector(self.folder("03") / "detector.safetensors", device=device())

    def segmenter(self, *, cache: FeatureCache | None = None) -> tuple[Segmenter, int]:
        """The run's last DeepLab in eval mode, and the side in pixels at which it sees an image.

        Args:
            cache: where a frozen body keeps what it says of each picture.
        """
        path = self.segmenter_folder() / "segmenter.safetensors"
        side = read_weights(path)[1]["architecture"]["side"]
        return load_segmenter(path, device=device(), cache=cache), side

    # ---------------------------------------------------------------- helpers

    def _logits_file(self, role: str, network: Network) -> Path:
        folders = {"segmenter": self.segmenter_folder, "probe": lambda: self.folder("08")}
        folder = folders.get(network, lambda: self.folder("05"))()
        return folder / f"{network.removeprefix('first ')}_{role}.npy"

    @cached_property
    def _refined_folder(self) -> Path | None:
        """Stage 6's folder, or None in a finished run without it."""
        return None if self._stage is None and not self.has("06") else self.folder("06")
