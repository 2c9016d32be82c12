"""`check` and `fetch` as a user meets them: all that is missing at once, how to get it, and what a
run takes.
"""

import re
import shutil
import subprocess

import huggingface_hub.constants
import pytest
import torch
import yaml
from fixtures import make_voc2012

from mdlib.__main__ import main
from mdlib.core.files import StoreError, write_json, write_text
from mdlib.core.paths import ROOT
from mdlib.data import download
from mdlib.models.backbones import PUBLISHED_WEIGHTS
from mdlib.models.checkpoints import cached_checkpoint
from mdlib.models.hub import MOCOV3_URL
from mdlib.run import exit_codes, preflight, presets

SELF_SUPERVISED = {"03_train_mask_rcnn": "dino_resnet50", "05_train_deeplab": "mocov2_resnet50"}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches of weights, and no benchmark results but a test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(preflight, "RESULTS", tmp_path / "results")


@pytest.fixture
def mini(tmp_path, zoo_root, monkeypatch):
    """(root of a miniature VOC, how to write the preset `mini` that runs on it)."""
    root = make_voc2012(tmp_path / "voc", zoo_root, train=4, val=2, extra=3)
    (tmp_path / "presets").mkdir()
    monkeypatch.setattr(presets, "PRESETS", tmp_path / "presets")

    def write(**changed):
        stages = {
            "00_prepare_data": {
                "dataset": "voc2012",
                "data_root": str(root),
                "train_images": 4,
                "dev_images": 1,
                "val_images": 2,
            },
            **{
                name: {"backbone": "resnet50", "weights": weights}
                for name, weights in SELF_SUPERVISED.items()
            },
        }
        content = {
            "description": "a miniature",
            "notebooks": ["00_prepare_data", "02_cluster_masks", *SELF_SUPERVISED],
            "parameters": stages,
        }
        (tmp_path / "presets" / "mini.yaml").write_text(yaml.safe_dump(content | changed))

    write()
    return root, write


def test_all_that_is_missing_is_said_at_once_with_how_to_get_it(mini, capsys):
    root, _ = mini
    names = (
        (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt")
        .read_text()
        .split()
    )
    (root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{names[0]}.jpg").unlink()
    (root / "VOCdevkit" / "VOC2012" / "SegmentationObject" / f"{names[1]}.png").unlink()
    assert main(["check", "mini"]) == exit_codes.WRONG
    said = capsys.readouterr().out
    missing = "\n".join(line for line in said.splitlines() if line.startswith("missing: "))
    assert f"1 images are missing: {names[0]}.jpg" in missing and f"{names[1]}.png" in missing
    assert re.search(r"voc2012 val: 2 images are listed, 1,449 are published", missing)
    assert f"python -m mdlib fetch voc2012 --root {root}" in missing
    to_fetch = "\n".join(line for line in said.splitlines() if line.startswith("to fetch: "))
    for weights in SELF_SUPERVISED.values():
        assert f"weights {weights}: " in to_fetch and PUBLISHED_WEIGHTS[weights][0] in to_fetch
    assert f"{len(missing.splitlines())} problem(s)" in said


def test_a_data_set_that_is_not_there_is_one_problem_and_its_size_is_told(mini, tmp_path, capsys):
    _, write = mini
    write(
        parameters={
            "00_prepare_data": {"dataset": "voc2012", "data_root": str(tmp_path / "nowhere")}
        }
    )
    assert main(["check", "mini"]) == exit_codes.WRONG
    said = capsys.readouterr().out
    assert said.count("no VOC2012 at") == 1 and "--root " + str(tmp_path / "nowhere") in said
    assert "data set 6.8 GB" in said  # 2.0 and 1.4 of archives, and as much of content


def test_weights_that_are_in_a_cache_or_a_file_are_not_missing(tmp_path):
    parameters = {
        "01_distill_masks": {"encoder_name": "dino_vits16", "weights": None},
        "02_cluster_masks": {"encoder_name": "mocov3_vits16", "weights": None},
        "03_train_mask_rcnn": {"backbone": "resnet50", "weights": "dino_resnet50"},
        "05_train_deeplab": {"backbone": "vit", "weights": str(tmp_path / "own.safetensors")},
        "08_other": {"encoder_name": "zoo", "weights": "random"},
    }
    found = preflight.weights_to_fetch(parameters)
    assert len(found) == 3
    for name in ("dino_vits16", "mocov3_vits16", "dino_resnet50"):
        assert sum(name in line for line in found) == 1
    (own,) = preflight.missing_weights(parameters)
    assert "own.safetensors" in own

    hub = tmp_path / "hub" / "models--timm--vit_small_patch16_224.dino"
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "snapshots" / "abc" / "model.safetensors").touch()
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    for url in (MOCOV3_URL, PUBLISHED_WEIGHTS["dino_resnet50"][0]):
        assert str(tmp_path) in str(cached_checkpoint(url))
        write_text(cached_checkpoint(url), "weights")
    (tmp_path / "own.safetensors").touch()
    assert preflight.missing_weights(parameters) == preflight.weights_to_fetch(parameters) == []


def test_weights_of_a_resnet_are_no_encoders(tmp_path):
    parameters = {"01_distill_masks": {"encoder_name": "zoo", "weights": "dino_resnet50"}}
    assert preflight.missing_weights(parameters) == ["weights: dino_resnet50 is missing"]
    assert preflight.weights_to_fetch(parameters) == []


def test_weights_that_the_run_fetches_do_not_stop_it(mini, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "missing_data", lambda parameters: [])
    assert main(["check", "mini"]) == exit_codes.DONE
    said = capsys.readouterr().out
    assert (
        said.count("to fetch: ") == 2 and "missing: " not in said and "nothing is missing" in said
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("code", "asked"), [(2, ["check"]), (0, ["check", "run"])])
def test_make_voc2012_runs_after_a_check_that_passes_and_no_other(code, asked, tmp_path):
    python = tmp_path / "python"  # in the place of Python: notes what it is asked for
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$3" != check ] || exit {code}\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "-o", ".venv/.installed", "voc2012", f"PY={python}"],
        cwd=ROOT,
        capture_output=True,
    )
    assert (done.returncode == 0) == (code == 0), done.stderr
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"-m mdlib {command} voc2012" for command in asked
    ]


PREPARED = {
    "dataset": "zoo",
    "data_root": "data/zoo",
    "train_split": "train",
    "dev_split": "dev",
    "val_split": None,
    "train_images": 10,
    "dev_images": 4,
    "val_images": 8,
    "support_dataset": None,
    "support_root": "data/voc",
    "support_split": "trainval",
}


def test_every_split_that_a_notebook_opens_is_looked_at():
    assert preflight.datasets_of({"01_distill_masks": {}}) == []
    assert preflight.datasets_of({"00_prepare_data": PREPARED}) == [
        ("zoo", "data/zoo", ["train", "dev"])
    ]
    voc = PREPARED | {"dataset": "voc2012", "data_root": "data", "support_dataset": "voc2007"}
    found = preflight.datasets_of(
        {"00_prepare_data": voc, "09_evaluate_instances": {"split": "instances"}}
    )
    assert found == [
        ("voc2012", "data", ["train", "dev", "instances"]),
        ("voc2007", "data/voc", ["trainval"]),
    ]


def test_images_are_those_that_are_published_where_a_preset_takes_all():
    assert preflight.images_of(PREPARED) == {"train": 10, "dev": 4}
    voc = PREPARED | {
        "dataset": "voc2012",
        "train_split": "trainaug",
        "val_split": "val",
        "support_dataset": "voc2007",
    }
    everything = voc | dict.fromkeys(("train_images", "dev_images", "val_images"))
    assert preflight.images_of(everything) == {
        "train": 10582,
        "dev": 147,
        "val": 1449,
        "support": 5011,
    }


def test_disk_counts_the_logits_of_two_networks():
    def artifacts(side, val):
        return preflight.gigabytes(
            {
                "00_prepare_data": PREPARED | {"val_split": "val", "val_images": val},
                "02_cluster_masks": {"k": 20},
                "05_train_deeplab": {"backbone": "resnet50", "side": side},
            }
        )["artifacts"]

    per_image = 2 * 64 * 64 * 21 * 2 / 1e9  # two networks, cells of stride 8, outputs, bytes
    assert artifacts(512, 1100) - artifacts(512, 100) == pytest.approx(
        1000 * (per_image + preflight.IMAGE_GIGABYTES)
    )


def test_what_would_end_a_run_after_hours_is_told_before(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    parameters = {
        "00_prepare_data": PREPARED | {"train_images": 10},
        "01_distill_masks": {"max_masks": 3},
        "02_cluster_masks": {"k": 30},
        "03_train_mask_rcnn": {"gpus": 2},
        "A2_your_own_images": {"names": None},
    }
    assert preflight._impossible(parameters) == []
    parameters["02_cluster_masks"]["k"] = 31
    parameters["03_train_mask_rcnn"]["gpus"] = 3
    parameters["A2_your_own_images"]["names"] = str(tmp_path / "names.yaml")
    clusters, gpus, names = sorted(preflight._impossible(parameters))
    assert "k=31, and 01 gives 30 masks at most" in clusters
    assert "gpus=3, and 2 are here" in gpus and "names.yaml" in names


@pytest.mark.parametrize("error", [KeyError("images"), StoreError("no JSON"), TypeError("a list")])
def test_a_broken_data_set_is_a_line(mini, error, monkeypatch, capsys):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(preflight, "check_dataset", fails)
    assert main(["check", "mini"]) == exit_codes.WRONG
    assert f"missing: voc2012 at {mini[0]}: {type(error).__name__}" in capsys.readouterr().out


def test_a_preset_may_train_a_segmenter_on_clusters_of_another_run(mini, capsys):
    _, write = mini
    write(notebooks=["05_train_deeplab"], parameters={})
    assert main(["check", "mini"]) == exit_codes.DONE


def test_time_is_measured_projected_by_a_rehearsal_or_not_known(mini, tmp_path, capsys):
    _, write = mini
    assert main(["check", "mini"]) == exit_codes.WRONG
    assert "time: not measured" in capsys.readouterr().out
    rehearsed = {
        "preset": "mini",
        "hours": 6.25,
        "peak_gb": 31.4,
        "memory_of": "GPU",
        "machine": "one H100",
    }
    write_json(tmp_path / "results" / "rehearse_mini_cuda.json", rehearsed)
    write_json(
        tmp_path / "results" / "rehearse_other_cuda.json",
        rehearsed | {"preset": "other", "hours": 99},
    )
    write(seconds={"00_prepare_data": 60, "02_cluster_masks": 120})
    main(["check", "mini"])
    said = capsys.readouterr().out
    assert (
        "6.2 hours on one H100" in said
        and "GPU memory: at most 31.4 GB" in said
        and "99" not in said
    )
    assert "about 3 minutes on two CPU cores, measured; 2 notebooks not measured" in said


def test_fetch_says_the_terms_first_and_goes_where_it_is_told(tmp_path, monkeypatch, capsys):
    fetched = []
    monkeypatch.setattr(
        download,
        "fetch",
        lambda source, root: fetched.append((source.file, root)) or print("fetching"),
    )
    assert main(["fetch", "voc2007", "--root", str(tmp_path)]) == exit_codes.DONE
    assert fetched == [(source.file, tmp_path) for source in download.SOURCES["voc2007"]]
    said = capsys.readouterr().out
    assert said.index("PASCAL VOC 2007") < said.index("fetching")


def test_fetch_refuses_an_unknown_data_set(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fetch", "imagenet"])
    assert ended.value.code == exit_codes.WRONG and "voc2012" in capsys.readouterr().err


def test_a_failing_download_is_an_exit_code(tmp_path, monkeypatch, capsys):
    def fails(source, root):
        raise download.DownloadError("no mirror answers")

    monkeypatch.setattr(download, "fetch", fails)
    assert main(["fetch", "coco", "--root", str(tmp_path)]) == exit_codes.WRONG
    assert "no mirror answers" in capsys.readouterr().err
