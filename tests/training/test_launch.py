"""A batch in parts and several processes: the same training as in one, and one result.

On the CPU, with two processes.
"""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from fixtures import blobs, tiny_detector
from in_processes import fail, network, numbers, recipe, train, train_with_a_break

from mdlib.core.files import read_json
from mdlib.core.mask import Masks
from mdlib.core.paths import ROOT
from mdlib.core.weights import read_weights
from mdlib.method import detector
from mdlib.training import launch, loop


def losses(history):
    return [
        (row["step"], pytest.approx(row["loss"], rel=1e-4), pytest.approx(row["twice"], rel=1e-4))
        for row in history
    ]


def seen(history):
    return [(row["step"], row["loss"], row["twice"]) for row in history]


def test_parts_of_a_batch_are_equal_and_make_the_whole():
    assert [list(range(12))[launch.share(12, part, 3)] for part in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    with pytest.raises(ValueError, match=r"batch of 12 has no 5 equal parts.*accumulate"):
        launch.share(12, 0, 5)


@pytest.mark.parametrize("accumulation_steps", [2, 8])
def test_accumulated_parts_are_the_full_batch(accumulation_steps):
    full, parts = network(), network()
    expected = train(full)
    assert seen(train(parts, accumulation_steps=accumulation_steps)) == losses(expected)
    for a, b in zip(full.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert expected[-1]["loss"] < 0.9 * expected[0]["loss"]


def test_each_part_draws_its_own_randomness():
    drawn = []

    def loss_of(model, batch):
        drawn.append(torch.rand(()).item())
        return model[3].weight.square().sum(), {}

    options = dict(checkpoint=None, identity={})
    loop.fit(network(), numbers, loss_of, recipe(steps=3, accumulation_steps=4), **options)
    assert len(set(drawn)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_processes_train_as_one_resume_and_hand_their_weights_over(
    accumulation_steps, tmp_path, capfd
):
    model, alone = network(), network()
    expected = train(alone)
    capfd.readouterr()
    options = dict(
        checkpoint=tmp_path / "run", folder=str(tmp_path), accumulation_steps=accumulation_steps
    )
    history = launch.launch(train_with_a_break, model, processes=2, **options)
    first, second = (read_json(tmp_path / f"{rank}.json") for rank in range(2))
    assert seen(first["whole"]) == seen(first["broken"]) == losses(expected)
    assert seen(second["broken"]) == seen(first["broken"]) == seen(history)
    weights = [read_weights(tmp_path / f"{rank}.safetensors")[0] for rank in range(2)]
    for name, value in model.state_dict().items():  # what the notebook goes on with
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-4, atol=1e-6)
        assert torch.equal(weights[0][name], weights[1][name]) and torch.equal(
            weights[0][name], value
        )
    # only the first process speaks
    assert capfd.readouterr().out.count("resumed at step 2 of 5") == 1


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path):
    train(network(), checkpoint=tmp_path / "run", steps=1)
    with pytest.raises(
        launch.ProcessError,
        match=r"of 2 failed.*checkpoint belongs|of 2 failed.*other settings",
    ):
        launch.launch(fail, network(), processes=2, checkpoint=tmp_path / "run")


def test_several_processes_need_a_checkpoint():
    with pytest.raises(ValueError, match="checkpoint"):
        launch.launch(train, network(), processes=2)


def test_one_process_is_the_function_itself():
    a, b = network(dropout=0.5), network(dropout=0.5)
    assert seen(launch.launch(train, a, processes=1)) == seen(train(b))


def test_a_detector_learns_from_parts_as_two_processes_would(tmp_path):
    scenes, masks = blobs(4)
    batches = detector.DetectionBatches(scenes, Masks(masks), batch=4, seed=0, device="cpu")
    whole = batches(3)
    assert [pair[1]["id"] for part in range(2) for pair in batches(3, part, 2)] == whole.ids
    short = recipe(steps=2, peak_lr=1e-3, warmup=1, optimizer="sgd", clip_norm=5.0)
    options = dict(identity={}, log_every=1)
    together, apart = tiny_detector(), tiny_detector()
    expected = loop.fit(
        together,
        batches,
        detector.detector_loss,
        replace(short, accumulation_steps=2),
        checkpoint=None,
        **options,
    )
    assert expected[-1]["step"] == 2 and 0 < expected[-1]["loss"] < 20 and expected[-1]["mask"] > 0
    checkpoint = tmp_path / "run"  # two processes; a part without a region leaves a head unused
    history = launch.launch(
        loop.fit,
        apart,
        batches,
        detector.detector_loss,
        short,
        processes=2,
        checkpoint=checkpoint,
        **options,
    )
    assert [row["loss"] for row in history] == pytest.approx(
        [r["loss"] for r in expected], rel=1e-4
    )
    for name, value in apart.state_dict().items():
        if "running" not in name and "num_batches" not in name:  # each process sees its own part
            torch.testing.assert_close(value, together.state_dict()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_script_that_torchrun_starts_takes_part(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom mdlib.training import launch\nfrom in_processes import network, train_with_a_break\n"
        "folder = Path(sys.argv[1])\n"
        "launch.launch(train_with_a_break, network(), processes=1, checkpoint=folder / 'run', folder=str(folder))\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(script),
        str(tmp_path),
    ]
    paths = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "training"), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert seen(read_json(tmp_path / "1.json")["whole"]) == losses(train(network()))
