"""The training loop: a resumed run is the run that was never stopped, and a run that cannot go on
says where.
"""

import copy
import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from mdlib.core.weights import read_weights, save_weights
from mdlib.data import loading
from mdlib.training import loop

STEPS = 6


def recipe(**changed):
    """A short training, whose schedule is as long for fewer steps."""
    given = dict(optimizer="adamw", peak_lr=0.1, lr_milestones=[], warmup=2, weight_decay=0.01)
    rest = dict(steps=STEPS, schedule=STEPS, backbone_lr_scale=1.0, accumulation_steps=1, seed=1)
    return loop.Recipe(**{**given, **rest, **changed})


class Run:
    """A tiny network with dropout, so that the random state of every step matters, on random
    batches by step.
    """

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def loss_of(self, model, batch):
        return ((model(batch) - 1) ** 2).mean(), {}

    def batch_of(self, step):
        return torch.randn(5, 4, generator=torch.Generator().manual_seed(step))

    def fit(self, steps=STEPS, *, accumulation_steps=1, **changed):
        options = {
            "checkpoint": None,
            # a tuple becomes a list in JSON: must still be the same
            "identity": {"width": 8, "shape": (4, 8)},
        }
        batch_of = changed.pop("batch_of", self.batch_of)
        loss_of = changed.pop("loss_of", self.loss_of)
        short = recipe(steps=steps, accumulation_steps=accumulation_steps)
        return loop.fit(self.model, batch_of, loss_of, short, **options | changed)

    def weights(self):
        return copy.deepcopy(self.model.state_dict())


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- schedule


def test_the_rate_at_the_ends_of_its_cosine_and_in_the_middle():
    rate = recipe(steps=110, schedule=None, warmup=10, peak_lr=2.0).learning_rate
    assert rate(0) == pytest.approx(0.2)  # one tenth of the way up: the first step learns
    assert rate(9) == rate(10) == 2.0
    assert rate(60) == pytest.approx(1.0)
    assert rate(110) == pytest.approx(0.0)
    assert all(rate(s) > rate(s + 1) for s in range(10, 110))


def test_a_longer_schedule_is_cut_off_where_the_training_ends():
    long, cut = (recipe(steps=n, schedule=110, warmup=10).learning_rate for n in (110, 60))
    assert [cut(s) for s in range(60)] == [long(s) for s in range(60)]


def test_without_a_warm_up_the_rate_starts_at_the_peak():
    assert recipe(warmup=0, peak_lr=1.0).learning_rate(0) == 1.0


def test_the_rate_falls_to_a_tenth_at_each_drop_and_nowhere_else():
    drops = recipe(steps=12, schedule=None, peak_lr=2.0, lr_milestones=[5, 9])
    rates = [drops.learning_rate(step) for step in range(12)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.2, 0.2, 0.02, 0.02, 0.02])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"optimizer": "adam"}, "optimizer must be .adamw. or .sgd., got 'adam'"),
        ({"peak_lr": 0.0}, "peak_lr must be above 0"),
        ({"peak_lr": math.nan}, "peak_lr"),
        ({"lr_milestones": [3, -1]}, "lr_milestones"),
        ({"warmup": -1}, "warmup"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"backbone_lr_scale": math.inf}, "backbone_lr_scale"),
        ({"accumulation_steps": 0}, "accumulation_steps must be 1 or more"),
        ({"seed": -1}, "seed"),
        ({"schedule": STEPS - 1}, "schedule must be `steps` or more"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_a_recipe_out_of_range_is_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        recipe(**changed)


def test_a_recipe_of_json_is_the_recipe():
    given = recipe(lr_milestones=(2, 4))
    values = json.loads(json.dumps(asdict(given)))
    assert loop.Recipe.of(values | {"batch": 8}) == given and hash(given)
    with pytest.raises(ValueError, match="Recipe is missing warmup"):
        loop.Recipe.of({name: value for name, value in values.items() if name != "warmup"})


# ---------------------------------------------------------------- optimizer


class WithBody(nn.Module):
    """A body that starts trained, half of it frozen, and a new head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)
        self.body[0].requires_grad_(False)


def groups_of(model, **changed):
    """{names of the parameters: (share of the rate, decay)}, a group each."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = loop.make_optimizer(
        model, recipe(weight_decay=0.1, backbone_lr_scale=0.3, **changed)
    )
    return {
        frozenset(names[id(p)] for p in g["params"]): (g["lr_scale"], g["weight_decay"])
        for g in optimizer.param_groups
    }


def test_adamw_decays_matrices_alone_and_the_body_learns_more_slowly():
    assert groups_of(WithBody()) == {
        frozenset({"body.2.weight"}): (0.3, 0.1),
        frozenset({"body.1.weight", "body.1.bias", "body.2.bias"}): (0.3, 0.0),
        frozenset({"head.weight"}): (1.0, 0.1),
        frozenset({"head.bias"}): (1.0, 0.0),
    }


def test_sgd_decays_all_that_learns_as_the_reference_does():
    assert groups_of(WithBody(), optimizer="sgd") == {
        frozenset({"body.2.weight", "body.1.weight", "body.1.bias", "body.2.bias"}): (0.3, 0.1),
        frozenset({"head.weight", "head.bias"}): (1.0, 0.1),
    }
    (group, *_) = loop.make_optimizer(WithBody(), recipe(optimizer="sgd")).param_groups
    assert group["momentum"] == 0.9


def test_the_body_of_a_detectors_backbone_is_a_body_too_and_what_stands_beside_it_is_not():
    model = nn.ModuleDict(
        {"backbone": nn.ModuleDict({"body": nn.Linear(2, 2), "fpn": nn.Linear(2, 2)})}
    )
    scales = {name: scale for names, (scale, _) in groups_of(model).items() for name in names}
    assert scales == {
        "backbone.body.weight": 0.3,
        "backbone.body.bias": 0.3,
        "backbone.fpn.weight": 1.0,
        "backbone.fpn.bias": 1.0,
    }


def test_an_optimizer_takes_steps_of_its_rate_in_fit():
    model = WithBody()
    before = copy.deepcopy(model.state_dict())
    one = recipe(steps=1, warmup=0, peak_lr=0.01, weight_decay=0.0, backbone_lr_scale=0.1)
    loop.fit(
        model,
        lambda step: torch.randn(5, 3),
        lambda model, x: (model.head(model.body(x)).square().sum(), {}),
        one,
        checkpoint=None,
        identity={},
    )
    moved = {
        name: (value - before[name]).abs().max().item()
        for name, value in model.state_dict().items()
    }
    assert moved["body.0.weight"] == moved["body.0.bias"] == 0
    # AdamW's first step is the rate itself
    assert moved["head.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["body.2.weight"] == pytest.approx(0.001, rel=1e-3)


def test_the_positions_of_a_vit_are_not_decayed():
    vit = nn.Module()
    vit.pos_embed, vit.cls_token = (nn.Parameter(torch.zeros(1, n, 2)) for n in (4, 1))
    assert groups_of(vit) == {
        frozenset({"pos_embed"}): (1.0, 0.0),
        frozenset({"cls_token"}): (1.0, 0.1),
    }


# ---------------------------------------------------------------- resume


def test_a_resumed_run_is_bit_equal_to_one_that_was_not_stopped(tmp_path):
    whole = Run()
    whole.fit()
    first, second = Run(), Run()
    first.fit(steps=3, checkpoint=tmp_path / "run")
    second.fit(checkpoint=tmp_path / "run")
    assert_bit_equal(second.weights(), whole.weights())
    # and something was learnt
    assert not torch.equal(whole.weights()["0.weight"], Run().weights()["0.weight"])


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    whole, killed, resumed = Run(), Run(), Run()
    expected = whole.fit(log_every=1)
    seen = []

    def dies_at_step_five(step):
        if step == 5:
            raise KeyboardInterrupt
        return killed.batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        killed.fit(batch_of=dies_at_step_five, checkpoint=tmp_path / "run", log_every=1)
    history = resumed.fit(
        batch_of=lambda step: seen.append(step) or resumed.batch_of(step),
        checkpoint=tmp_path / "run",
        log_every=1,
    )
    assert seen == [4, 5]
    assert [(row["step"], row["loss"]) for row in history] == [
        (row["step"], row["loss"]) for row in expected
    ]
    assert_bit_equal(resumed.weights(), whole.weights())


def test_a_finished_run_is_not_run_again(tmp_path):
    done = Run()
    history = done.fit(checkpoint=tmp_path / "run")
    again = Run()
    assert (
        again.fit(checkpoint=tmp_path / "run", batch_of=lambda step: pytest.fail("trained again"))
        == history
    )
    assert_bit_equal(again.weights(), done.weights())


def test_a_checkpoint_with_other_settings_is_refused(tmp_path):
    Run().fit(steps=3, checkpoint=tmp_path / "run")
    with pytest.raises(loop.TrainingError, match="other settings"):
        Run().fit(checkpoint=tmp_path / "run", identity={"width": 16})


def torn(path):
    path.write_bytes(path.read_bytes()[:-9])


def zeros_at_the_end(path):
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))


def nothing_but_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


def without_a_header(path):
    save_weights(path, read_weights(path)[0], header={})


def with_half_its_tensors(path):
    tensors, header = read_weights(path)
    half = {name: value for name, value in tensors.items() if "0.weight" not in name}
    del header["digest"]
    save_weights(path, half, header=header | {"digest": loop._digest(half, header)})


def with_another_step(path):
    tensors, header = read_weights(path)
    save_weights(path, tensors, header=header | {"step": 1})


@pytest.mark.parametrize(
    "damage",
    [
        torn,
        zeros_at_the_end,
        nothing_but_zeros,
        empty,
        without_a_header,
        with_half_its_tensors,
        with_another_step,
    ],
)
def test_a_broken_checkpoint_is_left_out_for_the_one_before(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    path, whole = tmp_path / "run", Run()
    whole.fit()
    Run().fit(steps=4, checkpoint=path)
    damage(path)
    resumed = Run()
    resumed.fit(steps=5, checkpoint=path)  # killed here, as it were
    said = capsys.readouterr().out
    assert "left out: " in said and str(path) in said and "resumed at step 2 of 5" in said
    resumed.fit(checkpoint=path)
    assert "resumed at step 5" in capsys.readouterr().out
    assert_bit_equal(resumed.weights(), whole.weights())


def test_two_broken_checkpoints_are_a_fresh_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    whole, anew = Run(), Run()
    whole.fit()
    Run().fit(steps=4, checkpoint=tmp_path / "run")
    for path in tmp_path.iterdir():
        torn(path)
    anew.fit(checkpoint=tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("left out: ") == 2 and "resumed" not in said
    assert_bit_equal(anew.weights(), whole.weights())


def test_a_kill_between_the_two_files_of_a_checkpoint_loses_neither(tmp_path, monkeypatch):
    """The last one has become the one before, and the new one is not written yet."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    whole, resumed, seen = Run(), Run(), []
    whole.fit()
    Run().fit(steps=2, checkpoint=tmp_path / "run")
    (last,) = tmp_path.iterdir()
    last.replace(loop._kept(last)[1])
    resumed.fit(
        checkpoint=tmp_path / "run",
        batch_of=lambda step: seen.append(step) or resumed.batch_of(step),
    )
    assert seen == [2, 3, 4, 5]
    assert_bit_equal(resumed.weights(), whole.weights())


class Prepared:
    """Batches that worker processes may prepare."""

    def on_cpu(self, step, part=0, parts=1):
        return torch.randn(5, 4, generator=torch.Generator().manual_seed(100 * step + part))


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_batches_made_ahead_change_nothing_and_neither_does_a_resume_among_them(
    accumulation_steps, tmp_path, monkeypatch
):
    batch_of, whole, first, second = Prepared(), Run(), Run(), Run()
    expected = whole.fit(batch_of=batch_of, accumulation_steps=accumulation_steps, log_every=1)
    monkeypatch.setitem(loading.WORKERS, "cpu", 2)
    first.fit(
        batch_of=batch_of,
        accumulation_steps=accumulation_steps,
        log_every=1,
        steps=3,
        checkpoint=tmp_path / "run",
    )
    found = second.fit(
        batch_of=batch_of,
        accumulation_steps=accumulation_steps,
        log_every=1,
        checkpoint=tmp_path / "run",
    )
    assert_bit_equal(second.weights(), whole.weights())
    assert [(row["step"], row["loss"]) for row in found] == [
        (row["step"], row["loss"]) for row in expected
    ]


# ---------------------------------------------------------------- stops


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    run = Run()
    before, calls = [], []

    def loss_of(model, batch):
        calls.append(batch)
        if len(calls) == 5:
            before.append(run.weights())
        return run.loss_of(model, batch)[0] * (math.nan if len(calls) == 5 else 1.0), {}

    with pytest.raises(loop.TrainingError, match=r"loss is nan at step 4 .*batch ids"):
        run.fit(loss_of=loss_of, checkpoint=tmp_path / "run")
    assert torch.equal(run.weights()["0.weight"], before[0]["0.weight"])  # no step was made with it
    assert read_weights(tmp_path / "run")[1]["step"] == 4  # the last good checkpoint stays


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    # The loss is 0 and finite, but the root's slope at 0 is not: the weights would turn to NaN
    # unseen.
    run = Run()

    def loss_of(model, batch):
        return (0 * model(batch)).sum().sqrt(), {}

    with pytest.raises(loop.TrainingError, match=r"gradient is not finite at step 0.*loss is 0"):
        run.fit(steps=1, loss_of=loss_of, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what a step does


def test_the_loss_goes_down():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    target = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    history = loop.fit(
        model,
        lambda step: torch.randn(32, 4, generator=torch.Generator().manual_seed(step)),
        lambda model, x: (((model(x) - x @ target.T) ** 2).mean(), {}),
        recipe(steps=200, schedule=None, weight_decay=0.0, lr_milestones=[200]),
        checkpoint=None,
        identity={},
    )
    assert history[-1]["loss"] < 0.01 * history[0]["loss"]


def test_a_step_begins_with_its_rate_scaled_by_group_and_its_seed():
    given, drawn = recipe(warmup=4, peak_lr=4.0, backbone_lr_scale=0.1), []
    optimizer = loop.make_optimizer(WithBody(), given)
    for step in (0, 1, 0):
        loop.begin_step(optimizer, given, step=step)
        assert {g["lr_scale"]: g["lr"] for g in optimizer.param_groups} == pytest.approx(
            {0.1: (step + 1) / 10, 1.0: step + 1.0}
        )
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[2] != drawn[1]


def test_one_step_is_an_update_by_hand():
    by_hand, by_loop, one = Run(), Run(), recipe(steps=1)
    by_loop.fit(steps=1)
    optimizer = loop.make_optimizer(by_hand.model, one)
    loop.begin_step(optimizer, one, step=0)
    optimizer.zero_grad()
    by_hand.loss_of(by_hand.model, by_hand.batch_of(0))[0].backward()
    nn.utils.clip_grad_norm_(by_hand.model.parameters(), one.clip_norm)
    optimizer.step()
    assert_bit_equal(by_hand.weights(), by_loop.weights())


def test_clipping_bounds_the_step():
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    one = recipe(steps=1, warmup=0, optimizer="sgd", peak_lr=1.0, weight_decay=0.0, clip_norm=0.5)
    batches, loss = (lambda step: torch.ones(2, 3)), (lambda m, x: (1e6 * m(x).sum(), {}))
    loop.fit(model, batches, loss, one, checkpoint=None, identity={})
    assert (model.weight - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_history_has_a_row_every_log_every_steps_and_the_last(capsys):
    run, calls = Run(), []

    def loss_of(model, batch):
        calls.append(batch)
        return run.loss_of(model, batch)[0], {"part": len(calls) - 1}

    history = run.fit(
        loss_of=loss_of, after_step=lambda step: {"knn": 0.5} if step == 1 else None, log_every=4
    )
    assert [row["step"] for row in history] == [4, 6]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 4/6", "step 6/6"]
    assert [row["part"] for row in history] == [3, 5]
    assert [row.get("knn") for row in history] == [0.5, None]
    assert list(history[0]) == ["step", "loss", "lr", "seconds", "part", "knn"]


def test_a_gpu_without_memory_is_named_with_the_way_out():
    def loss_of(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(loop.TrainingError, match="memory at step 0: raise `accumulation_steps`"):
        Run().fit(loss_of=loss_of)
