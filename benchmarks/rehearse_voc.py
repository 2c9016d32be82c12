"""How long will a run of `voc2012` take, and how much memory?

Every stage at its true size, for a bounded time.

    python benchmarks/rehearse_voc.py [--device cuda] [--budget 60] [--preset voc2012]

writes benchmarks/results/rehearse_<preset>_<device>.json, which `python -m mdlib check <preset>`
reads.

The preset's own parameters, the true architectures with random weights, and a data set as long as
VOC's splits: 48 zoo scenes composed at VOC's sizes, over and over, each read from its JPEG file
every time. A stage works for about --budget seconds after a first look; images in the whole run
over images a second give hours. On a GPU networks run in bfloat16, as in a run. On a CPU batches
are smaller and there is no warm-up: those hours say what a CPU takes, and that the script works.
Reading the files and all the rest of a stage is timed, but not the notebooks' figures and scores
(minutes), and not downloads. With trained weights k-means and the detector's predictions may take
longer or shorter.
"""

import argparse
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mdlib.core.files import write_json
from mdlib.core.label_map import write_label_map
from mdlib.core.mask import Mask, Masks, write_masks
from mdlib.core.paths import ROOT
from mdlib.data import Dataset, Instances, compose, zoo
from mdlib.data.images import image_size, read_image
from mdlib.data.voc import CLASSES
from mdlib.data.zoo import paint_exact
from mdlib.method import clusters, crf, detector, proposals, pseudo_labels, segmenter
from mdlib.method.masks import MaskRule
from mdlib.models.encoder import load_encoder
from mdlib.run.identity import versions
from mdlib.run.preflight import images_of
from mdlib.run.presets import load_preset, resolve
from mdlib.training import loop

# Height, width. Of VOC's val 40 % are 375 x 500, 12 % 333 x 500, 8 % 500 x 375, the rest of many
# sizes; 1.25 neighbours in the list have one size, here 1.5: such neighbours share a batch in stage
# 1.
SIZES = [(375, 500), (375, 500), (333, 500), (375, 500), (500, 375), (375, 500)]
DISTINCT = 48


class VocShaped(Dataset):
    """`count` pictures of VOC's sizes.

    `DISTINCT` composed scenes, over and over, from JPEG files in `folder`.
    """

    name, classes, labels = "voc-shaped", CLASSES, "masks"

    def __init__(self, folder: Path, count: int):
        self.folder, self.objects = folder, []
        self.ids = tuple(f"{i:06d}" for i in range(count))
        root = ROOT / "data" / "zoo"
        cutouts = list(zoo.load_cutouts(root)[1])
        photographs = zoo.load_photographs(root)["train"]
        for i in range(DISTINCT):
            parts = compose.scene_parts(
                cutouts, photographs, compose.MIXTURE, seed=0, index=i, side=500
            )
            height, width = SIZES[i % len(SIZES)]
            window = np.s_[
                (500 - height) // 2 : (500 + height) // 2, (500 - width) // 2 : (500 + width) // 2
            ]
            Image.fromarray(parts.render()[window]).save(folder / f"{i}.jpg", quality=90)
            masks = parts.masks[(slice(None), *window)]
            kept = masks.sum((1, 2)) >= 400
            self.objects.append(Instances(masks[kept], parts.labels[kept]))

    def first(self, count: int) -> "VocShaped":
        """The same pictures, fewer or more of them."""
        other = object.__new__(VocShaped)
        other.folder, other.objects = self.folder, self.objects
        other.ids = tuple(f"{i:06d}" for i in range(count))
        return other

    def path(self, i: int) -> Path:
        """The JPEG file of a picture."""
        return self.folder / f"{i % DISTINCT}.jpg"

    def size(self, i: int) -> tuple[int, int]:
        """Height and width, from the file."""
        return image_size(self.path(i))

    def image(self, i: int) -> np.ndarray:
        """Decode the file."""
        return read_image(self.path(i))

    def semantic(self, i: int) -> np.ndarray:
        """The true label map."""
        return paint_exact(self.instances(i))

    def instances(self, i: int) -> Instances:
        """The true objects."""
        return self.objects[i % DISTINCT]


class Rehearsal:
    """Times stages on a device, each for about `budget` seconds, and keeps their rows."""

    def __init__(self, device: str, budget: float):
        self.device, self.budget, self.rows = device, budget, {}

    def seconds(self, run: Callable[[int], object], images: int) -> float:
        """How long run(images) takes."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        run(images)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def rate(self, run: Callable[[int], object], unit: int) -> float:
        """Images a second of run(images), for a multiple of `unit` within the budget."""
        if self.device == "cuda":
            run(unit)  # kernels are chosen, memory is taken
        first = self.seconds(run, unit)
        images = unit * int(self.budget / first)
        return unit / first if images <= unit else images / self.seconds(run, images)

    def stage(self, name: str, run: Callable[[int], object], *, unit: int, images: int) -> None:
        """Time a stage that handles `images` images in the whole run, and print its row."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rate = self.rate(run, unit)
        row = {
            "images_per_second": rate,
            "images": images,
            "hours": images / rate / 3600,
            "peak_gb": peak_gb(self.device),
        }
        self.rows[name] = {
            key: value if key == "images" else digits(value) for key, value in row.items()
        }
        print(f"{name}: {self.rows[name]}", flush=True)


def peak_gb(device: str) -> float:
    """Of the GPU since the last reset, or of this process since its start."""
    return (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ) / 1e9


def digits(value: float) -> float:
    """Round to four significant digits; more were not measured."""
    return float(f"{value:.4g}")


def consume(items) -> None:
    """Iterate to the end and keep nothing."""
    for _ in items:
        pass


def train(network, batches, loss, parameters: dict, *, unit: int) -> Callable[[int], list]:
    """A function that trains on so many images, at a rate that changes little."""
    given = {"peak_lr": 1e-5, "lr_milestones": (), "warmup": 1, "accumulation_steps": 1, "seed": 0}

    def on(images: int) -> list:
        recipe = loop.Recipe.of(parameters, **given, steps=images // unit)
        return loop.fit(network, batches, loss, recipe, checkpoint=None, identity={})

    return on


def rehearse(go: Rehearsal, p: dict[str, dict], counts: dict[str, int], folder: Path) -> dict:
    """All stages in their order; returns what is known of the mask stage alone."""
    device, small = go.device, go.device == "cpu"
    support, data = counts.get("support", 0), VocShaped(folder, counts["train"])
    everything = sum(counts.values()) - support
    seen = {image_id: data.objects[i % DISTINCT] for i, image_id in enumerate(data.ids)}
    p1, p2, p3, p5 = (
        p[name]
        for name in (
            "01_distill_masks",
            "02_cluster_masks",
            "03_train_mask_rcnn",
            "05_train_deeplab",
        )
    )

    # 01: masks, and beside them what they cannot do without
    encoder = load_encoder(p1["encoder_name"], weights="random", device=device)
    rule = MaskRule.of({**p1, "cls_heads": min(p1["cls_heads"], encoder.heads)})
    seen_as = {name: p1[name] for name in ("input_side", "batch_size")}

    def masks(images: int) -> None:
        part = data.first(images)
        found = proposals.propose_masks(part, encoder, rule, **seen_as)
        write_masks(folder / "masks.json", found, images=part.sizes())

    unit = 2 if small else p1["batch_size"]
    go.stage("01 masks", masks, unit=unit, images=everything + support)
    # of one size
    pictures = torch.from_numpy(np.stack([data.image(i) for i in (0, 1)])).permute(0, 3, 1, 2)
    pictures = (
        proposals.resize_images(pictures, input_side=p1["input_side"])
        .repeat(unit // 2 or 1, 1, 1, 1)
        .to(device)
    )
    alone = {
        "stage_images_per_second": go.rows["01 masks"]["images_per_second"],
        "decoding_images_per_second": go.rate(
            lambda images: consume(data.image(i) for i in range(images)), 4
        ),
        "forward_images_per_second": go.rate(
            lambda images: [forward(encoder, pictures) for _ in range(images // len(pictures))],
            len(pictures),
        ),
    }
    alone["stage_over_forward"] = (
        alone["forward_images_per_second"] / alone["stage_images_per_second"]
    )

    # 02 and 07: crops, k-means
    found = Masks(
        Mask.from_pixels(pixels, image_id=image_id, cluster=int(label) - 1)
        for image_id, objects in seen.items()
        for pixels, label in islice(
            zip(objects.masks, objects.labels, strict=True), p1["max_masks"]
        )
    )
    describer = load_encoder(p2["encoder_name"], weights="random", device=device)
    crops = dict(size=p2["crop_side"], batch=p2["batch_size"])
    unit = 1 if small else p2["batch_size"]
    each = round(len(found) / len(data) * (counts["train"] + counts["val"] + support))
    go.stage(
        "02, 07 crops",
        lambda images: clusters.embed_masks(describer, data, found[:images], **crops),
        unit=unit,
        images=each,
    )
    features = (
        np.random.default_rng(0).standard_normal((len(found), describer.width)).astype(np.float32)
    )
    fit = dict(k=p2["k"], seed=0, batch_size=p2["kmeans_batch"], restarts=1)

    def k_means(images: int) -> None:
        for _ in range(images // len(features)):
            clusters.fit_kmeans(features, **fit)

    unit = len(features)
    go.stage("02 k-means", k_means, unit=unit, images=unit * p2["restarts"] * p2["kmeans_seeds"])

    # 03 and 04: the detector
    network = detector.build_detector(
        p3["backbone"],
        weights=None,
        trainable_blocks=p3["trainable_blocks"],
        num_clusters=p2["k"],
        shorter_sides=(p3["shorter_side"],),
    ).to(device)
    unit = 1 if small else p3["batch"]
    batches = detector.DetectionBatches(data, found, batch=unit, seed=0, device=device)
    go.stage(
        "03 training",
        train(network, batches, detector.detector_loss, p3, unit=unit),
        unit=unit,
        images=p3["steps"] * p3["batch"],
    )
    detect = partial(detector.predict, network, batch=unit, device=device)
    go.stage(
        "03 predictions",
        lambda images: consume(detect(data.first(images))),
        unit=unit,
        images=everything,
    )

    def label_maps(images: int) -> None:
        for index in range(images):
            objects = data.objects[index % DISTINCT]
            labels = pseudo_labels.label_map(
                objects.masks,
                objects.labels,
                np.ones(len(objects.labels)),
                threshold=0.9,
                overlap="skip",
            )
            write_label_map(folder / "map.png", labels)

    go.stage("04 label maps", label_maps, unit=8, images=counts["train"])

    # 05, 06 and 08: the segmenter and its twin
    maps = [data.semantic(i) for i in range(DISTINCT)]
    maps = [maps[i % DISTINCT] for i in range(len(data))]
    network = segmenter.build_segmenter(
        p5["backbone"], weights=None, trainable_blocks=p5["trainable_blocks"], outputs=1 + p2["k"]
    ).to(device)
    unit = 2 if small else p5["batch"]
    augment = segmenter.Augment.of(p5)
    batches = segmenter.SegmentationBatches(
        data, maps, batch=unit, augment=augment, seed=0, device=device
    )
    go.stage(
        "05 training, two networks",
        train(
            network,
            batches,
            partial(segmenter.batch_loss, share=p5["hard_fraction"]),
            p5,
            unit=unit,
        ),
        unit=unit,
        images=2 * p5["steps"] * p5["batch"],
    )
    segment = partial(segmenter.predict_logits, network, side=p5["side"], batch=unit, device=device)
    go.stage(
        "05 logits",
        lambda images: consume(segment(data.first(images))),
        unit=unit,
        images=2 * (everything - counts["train"]),
    )
    if crf.available() and "06_refine_with_crf" in p:
        p6, image = p["06_refine_with_crf"], data.image(0)
        settings = crf.CrfSettings.of(p6, steps=p6["mean_field_steps"])
        (logits,) = segment(data.first(1))
        soft = segmenter.probabilities(logits, image_hw=image.shape[:2]).numpy()
        refined = everything - counts["train"] + (p6["rounds"] - 1) * counts["train"]

        def refine(images: int) -> None:
            for _ in range(images):
                crf.dense_crf(image, soft, settings)

        go.stage("06 CRF, one worker's share", refine, unit=1, images=refined // p6["workers"])
        if p6["rounds"] > 1:
            again = go.rows["05 training, two networks"]
            more = (p6["rounds"] - 1) * again["images"] // 2
            go.rows["06 training again"] = {
                **again,
                "images": more,
                "hours": digits(more / again["images_per_second"] / 3600),
            }
    if "08_probe_linearly" in p:
        p8 = p["08_probe_linearly"]
        probe = segmenter.reset_classifier(network, outputs=len(CLASSES))
        plain_sgd = {
            "optimizer": "sgd",
            "weight_decay": 0.0,
            "backbone_lr_scale": 1.0,
            "bf16": False,
        }
        go.stage(
            "08 training",
            train(
                probe,
                batches,
                partial(segmenter.batch_loss, share=1.0),
                plain_sgd,
                unit=unit,
            ),
            unit=unit,
            images=p8["steps"] * p8["batch"],
        )
    return {key: digits(value) for key, value in alone.items()}


@torch.no_grad()
def forward(encoder, pictures: torch.Tensor) -> None:
    """Run the network on a batch, in bfloat16 on a GPU."""
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=encoder.device.type == "cuda"):
        encoder.model.forward_features(encoder.preprocess(pictures))


def main() -> None:
    """Rehearse a preset and write its hours and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda")
    )
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a stage, about")
    parser.add_argument("--preset", default="voc2012")
    given = parser.parse_args()
    parameters = resolve(load_preset(given.preset), {})
    counts, go = images_of(parameters["00_prepare_data"]), Rehearsal(given.device, given.budget)
    with tempfile.TemporaryDirectory() as folder:
        alone = rehearse(go, parameters, counts, Path(folder))
    on_gpu = given.device == "cuda"
    card = f"{torch.cuda.get_device_name()}, " if on_gpu else ""
    result = {
        "what": f"{given.preset} at its true size, random weights, {given.budget:g} s a stage, "
        f"projected to {counts} images",
        "preset": given.preset,
        "hours": round(sum(row["hours"] for row in go.rows.values()), 2),
        "peak_gb": max(row["peak_gb"] for row in go.rows.values()),
        "memory_of": "GPU" if on_gpu else "process",
        "stages": go.rows,
        "mask_stage": alone,
        "machine": f"{card}{os.cpu_count()} cores, {platform.machine()}, "
        f"{torch.get_num_threads()} threads",
        "versions": versions(),
    }
    path = ROOT / "benchmarks" / "results" / f"rehearse_{given.preset}_{given.device}.json"
    write_json(path, result)
    print(f"about {result['hours']} hours; {path}")


if __name__ == "__main__":
    main()
