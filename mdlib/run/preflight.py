"""What a preset needs before it can run, and what of that is missing.

`python -m mdlib check PRESET` prints it: data, weights, disk, memory and time, all at once, since a
run of hours should not end on a missing file. Every estimate says what it rests on; what nobody has
measured is "not measured".
"""

import os
import shutil
from collections.abc import Iterator

import psutil
import torch

from mdlib.core.files import read_json
from mdlib.core.paths import ROOT
from mdlib.data import coco, voc
from mdlib.data.checks import check_dataset
from mdlib.data.sources import SOURCES
from mdlib.models.backbones import PUBLISHED_WEIGHTS
from mdlib.models.checkpoints import cached_checkpoint
from mdlib.models.hub import PUBLISHED, cached_vit
from mdlib.run.identity import device
from mdlib.run.presets import Preset

RESULTS = ROOT / "benchmarks" / "results"
# On the high side, and rather so: the demo's run fills 0.13 GB, and this says 0.4.
WEIGHTS_GIGABYTES = 0.4  # the largest file that is known by name
IMAGE_GIGABYTES = 1e-4  # an image's masks, predictions and maps
# 44 M parameters in single precision; each of two checkpoints holds three times as many numbers
NETWORK_GIGABYTES = {"vit": 0.05, "resnet50": 1.3}
PUBLISHED_COUNTS = {
    "voc2012": voc.COUNTS[2012],
    "voc2007": voc.COUNTS[2007],
    "coco": coco.COUNTS,
    "coco_agnostic": coco.COUNTS,
}
ALL_IMAGES = 20_000  # of a split whose number is not published: as many as COCO20k has


def check(preset_name: str, preset: Preset, parameters: dict[str, dict]) -> list[str]:
    """Print what a preset needs and what it will take.

    Args:
        preset_name: a file in presets/.
        preset: its content.
        parameters: {notebook: {parameter: value}}, complete, as `resolve` gives them.

    Returns:
        What is missing, one line each; what the run fetches itself is not.
    """
    print(f"{preset_name}: {preset.description}")
    print(f"notebooks: {', '.join(preset.notebooks)}")
    missing = [
        *missing_data(parameters),
        *missing_weights(parameters),
        *_missing_room(parameters),
        *_impossible(parameters),
    ]
    for line in (disk(parameters), *time_and_memory(preset_name, preset)):
        print(line)
    gpu = ""
    if device() == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        gpu = f" ({torch.cuda.get_device_name()}, {memory:.0f} GB)"
    disk_free, memory_free = shutil.disk_usage(ROOT).free, psutil.virtual_memory().available
    print(
        f"here: {device()}{gpu}, {os.cpu_count()} CPU cores; "
        f"free disk {disk_free / 1e9:.0f} GB, free memory {memory_free / 1e9:.0f} GB"
    )
    for line in weights_to_fetch(parameters):
        print(f"to fetch: {line}")
    for line in missing:
        print(f"missing: {line}")
    print("nothing is missing" if not missing else f"{len(missing)} problem(s)")
    return missing


# ---------------------------------------------------------------- data and weights


def missing_data(parameters: dict[str, dict]) -> list[str]:
    """All that is wrong with the data sets that notebook 00 opens, and how to get them.

    Args:
        parameters: {notebook: {parameter: value}}, complete, as `resolve` gives them.

    Returns:
        One line for each problem.
    """
    return [
        problem
        for name, root, splits in datasets_of(parameters)
        for problem in _wrong(name, root, splits)
    ]


def datasets_of(parameters: dict[str, dict]) -> list[tuple[str, str, list[str]]]:
    """The data sets that a run opens: the preset's own, and its support set if it has one.

    Args:
        parameters: {notebook: {parameter: value}}, complete, as `resolve` gives them.

    Returns:
        (name, root, splits) of each; 09 may name one more split than 00. Empty without 00.
    """
    if "00_prepare_data" not in parameters:
        return []
    prepared = parameters["00_prepare_data"]
    named = [prepared[f"{role}_split"] for role in ("train", "dev", "val")] + [
        parameters.get("09_evaluate_instances", {}).get("split")
    ]
    found = [
        (
            prepared["dataset"],
            prepared["data_root"],
            [split for split in named if split is not None],
        )
    ]
    if prepared["support_dataset"] is not None:
        found.append(
            (prepared["support_dataset"], prepared["support_root"], [prepared["support_split"]])
        )
    return found


def _wrong(name: str, root: str, splits: list[str]) -> list[str]:
    """What is wrong with a data set, and how to get it."""
    try:
        problems = check_dataset(name, ROOT / root, splits=splits)
    except Exception as error:  # whatever a broken data set raises is a line here
        return [f"{name} at {root}: {type(error).__name__}: {error}"]
    source = name.removesuffix("_agnostic")
    if problems and source in SOURCES:
        problems.append(f"{name} as a whole: `python -m mdlib fetch {source} --root {root}`")
    elif problems and name == "zoo":
        problems.append(f"{name} is part of the repository: `git checkout {root}`")
    return problems


def missing_weights(parameters: dict[str, dict]) -> list[str]:
    """Files of weights that a parameter names and that are not there, and how to get them.

    Args:
        parameters: {notebook: {parameter: value}}, complete, as `resolve` gives them.

    Returns:
        One line for each file, sorted.
    """
    return sorted(
        {
            line
            for network, weights in _weights(parameters)
            if not _published(network, weights) and (line := _lack(network, weights))
        }
    )


def weights_to_fetch(parameters: dict[str, dict]) -> list[str]:
    """Published weights that are in no cache yet.

    The run fetches them, and stops there where it has no network.

    Args:
        parameters: {notebook: {parameter: value}}, complete, as `resolve` gives them.

    Returns:
        One line for each of the weights, sorted.
    """
    return sorted(
        {
            line
            for network, weights in _weights(parameters)
            if _published(network, weights) and (line := _lack(network, weights))
        }
    )


def _published(network: str, weights: str | None) -> bool:
    """Whether the run fetches these weights itself; those known by a name are of a ResNet."""
    return weights is None or (network == "resnet50" and weights in PUBLISHED_WEIGHTS)


def _weights(parameters: dict[str, dict]) -> Iterator[tuple[str, str | None]]:
    """(network, weights) of each notebook that names weights.

    None as weights: an encoder's published ones, or none at all.
    """
    for values in parameters.values():
        if "encoder_name" in values:
            yield values["encoder_name"], values.get("weights")
        elif values.get("weights") is not None:
            yield values.get("backbone", ""), values["weights"]


def _lack(network: str, weights: str | None) -> str | None:
    """What to do about weights that are not there; None where nothing is missing."""
    if weights == "random":
        return None
    if weights is None:
        if network not in PUBLISHED or cached_vit(network) is not None:
            return None
        fetch = (
            "from mdlib.models.encoder import load_encoder; "
            f"load_encoder('{network}', device='cpu')"
        )
        return (
            f'weights of {network}: the run fetches them, or `python -c "{fetch}"`; '
            "without a network, a file as `weights`"
        )
    if _published(network, weights):
        url, _ = PUBLISHED_WEIGHTS[weights]
        if cached_checkpoint(url).is_file():
            return None
        return f"weights {weights}: the run fetches them, or put {url} at {cached_checkpoint(url)}"
    if (ROOT / weights).is_file():
        return None
    return f"weights: {weights} is missing" + (
        "; it is part of the repository: `git checkout " + weights + "`"
        if weights.startswith("data/zoo/")
        else ""
    )


# ---------------------------------------------------------------- disk, memory, time


def disk(parameters: dict[str, dict]) -> str:
    """How much disk data, weights and artifacts take.

    Args:
        parameters: {notebook: {parameter: value}}, complete, as `resolve` gives them.

    Returns:
        A line to print.
    """
    sizes = ", ".join(f"{what} {size:.1f} GB" for what, size in gigabytes(parameters).items())
    return (
        f"disk: {sizes} "
        "(archives with their content, if still to come; artifacts estimated from the parameters)"
    )


def gigabytes(parameters: dict[str, dict]) -> dict[str, float]:
    """Disk that is still to be filled.

    Args:
        parameters: {notebook: {parameter: value}}, complete, as `resolve` gives them.

    Returns:
        Gigabytes (1e9 bytes) of the "data set" if it is not there (archive and content),
        "weights" and "artifacts".
    """
    sources = [
        (ROOT / root, each)
        for name, root, _ in datasets_of(parameters)
        for each in SOURCES.get(name.removesuffix("_agnostic"), ())
    ]
    fetched = [
        source for root, source in sources if not (root / (source.folder or source.file)).exists()
    ]
    absent = [network for network, weights in set(_weights(parameters)) if _lack(network, weights)]
    return {
        "data set": sum(source.gigabytes * (2 if source.folder else 1) for source in fetched),
        "weights": WEIGHTS_GIGABYTES * len(absent),
        "artifacts": _artifacts(parameters),
    }


def images_of(prepared: dict) -> dict[str, int]:
    """How many images play each role of notebook 00, and how many the support set has.

    Args:
        prepared: the parameters of 00.

    Returns:
        {role: number of images}, "train", "dev", "val" and "support", of those that there are.
        For all of a split: as many as are published, ALL_IMAGES where that is not known.
    """
    parts = {
        role: (prepared["dataset"], prepared[f"{role}_split"], prepared[f"{role}_images"])
        for role in ("train", "dev", "val")
    }
    if prepared["support_dataset"] is not None:
        parts["support"] = (prepared["support_dataset"], prepared["support_split"], None)
    return {
        role: count or PUBLISHED_COUNTS.get(name, {}).get(split, ALL_IMAGES)
        for role, (name, split, count) in parts.items()
        if split is not None
    }


def _artifacts(parameters: dict[str, dict]) -> float:
    """Gigabytes of what the stages write, estimated on the high side."""
    counts = images_of(parameters["00_prepare_data"]) if "00_prepare_data" in parameters else {}
    total = 0.1 + IMAGE_GIGABYTES * sum(counts.values())
    for name, networks in (("03_train_mask_rcnn", 1), ("05_train_deeplab", 2)):
        if name in parameters:
            total += NETWORK_GIGABYTES[parameters[name]["backbone"]] * networks
    # half-precision logits of two networks at stride 8, of dev and val
    if "05_train_deeplab" in parameters:
        cells = (parameters["05_train_deeplab"]["side"] / 8) ** 2
        outputs = 1 + parameters.get("02_cluster_masks", {}).get("k", 0)
        total += 2 * 2e-9 * cells * outputs * (counts.get("dev", 0) + counts.get("val", 0))
    return total


def _missing_room(parameters: dict[str, dict]) -> list[str]:
    """What is wrong with the disk that a run writes to."""
    place = ROOT / "reports" if (ROOT / "reports").exists() else ROOT
    free, needed = shutil.disk_usage(place).free / 1e9, sum(gigabytes(parameters).values())
    lines = [f"disk: {needed:.1f} GB are needed, {free:.1f} GB are free"] if free < needed else []
    if not os.access(place, os.W_OK):
        lines.append("reports/ cannot be written: give --out a folder that can")
    return lines


def _impossible(parameters: dict[str, dict]) -> list[str]:
    """What parameters ask for and cannot get, each of which would end the run after hours."""
    lines = []
    for name, values in parameters.items():
        there = torch.cuda.device_count()
        if 0 < there < values.get("gpus", 1):
            lines.append(f"{name}: gpus={values['gpus']}, and {there} are here")
    names = parameters.get("A2_your_own_images", {}).get("names")
    if names is not None and not (ROOT / names).is_file():
        lines.append(f"A2_your_own_images: no file of names at {ROOT / names}")
    if {"00_prepare_data", "01_distill_masks", "02_cluster_masks"} <= parameters.keys():
        images = images_of(parameters["00_prepare_data"])
        each, k = parameters["01_distill_masks"]["max_masks"], parameters["02_cluster_masks"]["k"]
        most = (images["train"] + images.get("support", 0)) * each
        if most < k:
            lines.append(f"02_cluster_masks: k={k}, and 01 gives {most} masks at most")
    return lines


def time_and_memory(preset_name: str, preset: Preset) -> list[str]:
    """How long a run takes, and how much GPU memory.

    Args:
        preset_name: of the preset, as the results of a rehearsal name it.
        preset: its measured seconds are summed.

    Returns:
        Lines to print: from the results of rehearsals, from the measured seconds, or "not
        measured" without either.
    """
    lines = []
    for path in sorted(RESULTS.glob("rehearse_*.json")):
        found = read_json(path)
        if found["preset"] == preset_name:
            basis = f"{found['machine']}; projected by benchmarks/results/{path.name}"
            lines.append(f"time: about {found['hours']:.1f} hours on {basis}")
            lines.append(
                f"{found['memory_of']} memory: at most {found['peak_gb']:.1f} GB on {basis}"
            )
    measured = [name for name in preset.notebooks if name in preset.seconds]
    if measured:
        minutes = sum(preset.seconds[name] for name in measured) / 60
        rest = len(preset.notebooks) - len(measured)
        lines.append(
            f"time: about {minutes:.0f} minutes on two CPU cores, measured"
            + (f"; {rest} notebooks not measured" if rest else "")
        )
    return lines or ["time: not measured", "GPU memory: not measured"]
