"""The training loop: a resumed run is the run that was never stopped, and a run that cannot go on
says where.
"""

import copy
import math

import pytest
import torch
from torch import nn

from mdlib.core import prefetch
from mdlib.core.weights import WeightsError, read_weights, save_weights
from mdlib.training import loop

STEPS = 6


class Run:
    """A tiny network with dropout, so that the random state of every step matters, on random
    batches by step.
    """

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0)

    def loss_of(self, batch, step):
        return ((self.model(batch) - 1) ** 2).mean(), {}

    def batch_of(self, step):
        return torch.randn(5, 4, generator=torch.Generator().manual_seed(step))

    def fit(self, steps=STEPS, **changed):
        settings = {
            "steps": steps,
            "lr_of": lambda step: loop.learning_rate(step, steps=STEPS, warmup=2, peak=0.1),
            "seed": 1,
            # a tuple becomes a list in JSON: must still be the same
            "settings": {"width": 8, "shape": (4, 8)},
            "log": lambda line: None,
        }
        batch_of = changed.pop("batch_of", self.batch_of)
        loss_of = changed.pop("loss_of", self.loss_of)
        return loop.fit(
            {"model": self.model}, self.optimizer, loss_of, batch_of, **settings | changed
        )

    def weights(self):
        return copy.deepcopy(self.model.state_dict())


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- schedule


def test_the_rate_at_the_ends_of_its_cosine_and_in_the_middle():
    def rate(step):
        return loop.learning_rate(step, steps=110, warmup=10, peak=2.0)

    assert rate(0) == pytest.approx(0.2)  # one tenth of the way up: the first step learns
    assert rate(9) == rate(10) == 2.0
    assert rate(60) == pytest.approx(1.0)
    assert rate(110) == pytest.approx(0.0)
    assert all(rate(s) > rate(s + 1) for s in range(10, 110))


def test_without_a_warm_up_the_rate_starts_at_the_peak():
    assert loop.learning_rate(0, steps=10, warmup=0, peak=1.0) == 1.0


def test_the_rate_falls_to_a_tenth_at_each_drop_and_nowhere_else():
    rates = [
        loop.learning_rate(step, steps=12, warmup=2, peak=2.0, drops=[5, 9]) for step in range(12)
    ]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.2, 0.2, 0.02, 0.02, 0.02])


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
        model, **{"kind": "adamw", "weight_decay": 0.1, "body_scale": 0.3} | changed
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
    assert groups_of(WithBody(), kind="sgd") == {
        frozenset({"body.2.weight", "body.1.weight", "body.1.bias", "body.2.bias"}): (0.3, 0.1),
        frozenset({"head.weight", "head.bias"}): (1.0, 0.1),
    }
    assert (
        loop.make_optimizer(WithBody(), kind="sgd", weight_decay=0.1, body_scale=1.0).param_groups[
            0
        ]["momentum"]
        == 0.9
    )


def test_the_body_of_a_detectors_backbone_is_a_body_too_and_what_stands_beside_it_is_not():
    model = nn.ModuleDict(
        {"backbone": nn.ModuleDict({"body": nn.Linear(2, 2), "fpn": nn.Linear(2, 2)})}
    )
    scales = {name: scale for names, (scale, _) in groups_of(model).items() for name in names}
    assert scales == {
        "backbone.body.weight": 0.3, "backbone.body.bias": 0.3, "backbone.fpn.weight": 1.0, "backbone.fpn.bias": 1.0,
    }  # fmt: skip


def test_an_optimizer_takes_steps_of_its_rate_in_fit():
    model = WithBody()
    before = copy.deepcopy(model.state_dict())
    loop.fit(
        {"model": model}, loop.make_optimizer(model, kind="adamw", weight_decay=0.0, body_scale=0.1),
        lambda x, step: (model.head(model.body(x)).square().sum(), {}), lambda step: torch.randn(5, 3),
        steps=1, lr_of=lambda step: 0.01, seed=0, settings={}, log=lambda line: None,
    )  # fmt: skip
    moved = {
        name: (value - before[name]).abs().max().item()
        for name, value in model.state_dict().items()
    }
    assert moved["body.0.weight"] == moved["body.0.bias"] == 0
    # AdamW's first step is the rate itself
    assert moved["head.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["body.2.weight"] == pytest.approx(0.001, rel=1e-3)


def test_an_unknown_optimizer_names_the_known_ones():
    with pytest.raises(ValueError, match="adamw.*sgd.*adam"):
        loop.make_optimizer(WithBody(), kind="adam", weight_decay=0.0, body_scale=1.0)


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


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    whole, killed, resumed = Run(), Run(), Run()
    expected = whole.fit(log_every=1)
    seen = []

    def dies_at_step_five(step):
        if step == 5:
            raise KeyboardInterrupt
        return killed.batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        killed.fit(
            batch_of=dies_at_step_five, checkpoint=tmp_path / "run", checkpoint_every=2, log_every=1
        )
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
        Run().fit(checkpoint=tmp_path / "run", settings={"width": 16})


def test_a_truncated_checkpoint_is_refused(tmp_path):
    Run().fit(steps=3, checkpoint=tmp_path / "run")
    (tmp_path / "run").write_bytes((tmp_path / "run").read_bytes()[:-9])
    with pytest.raises(WeightsError, match="not a whole"):
        Run().fit(checkpoint=tmp_path / "run")


def test_weights_that_are_no_checkpoint_are_refused(tmp_path):
    save_weights(tmp_path / "run", Run().weights(), header={"architecture": "tiny"})
    with pytest.raises(loop.TrainingError):
        Run().fit(checkpoint=tmp_path / "run")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_made_ahead_change_nothing_and_neither_does_a_resume_among_them(
    accumulate, tmp_path, monkeypatch
):
    def batch_of(step, part=0, parts=1):
        return torch.randn(5, 4, generator=torch.Generator().manual_seed(100 * step + part))

    whole, first, second = Run(), Run(), Run()
    expected = whole.fit(batch_of=batch_of, accumulate=accumulate, log_every=1)
    monkeypatch.setitem(prefetch.THREADS, "cpu", 3)
    first.fit(
        batch_of=batch_of, accumulate=accumulate, log_every=1, steps=3, checkpoint=tmp_path / "run"
    )
    found = second.fit(
        batch_of=batch_of, accumulate=accumulate, log_every=1, checkpoint=tmp_path / "run"
    )
    assert_bit_equal(second.weights(), whole.weights())
    assert [(row["step"], row["loss"]) for row in found] == [
        (row["step"], row["loss"]) for row in expected
    ]


# ---------------------------------------------------------------- stops


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path):
    run = Run()
    before = []

    def loss_of(batch, step):
        if step == 4:
            before.append(run.weights())
        return run.loss_of(batch, step)[0] * (math.nan if step == 4 else 1.0), {}

    with pytest.raises(loop.TrainingError, match="step 4"):
        run.fit(loss_of=loss_of, checkpoint=tmp_path / "run", checkpoint_every=2)
    assert torch.equal(run.weights()["0.weight"], before[0]["0.weight"])  # no step was made with it
    assert read_weights(tmp_path / "run")[1]["step"] == 4  # the last good checkpoint stays


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    # The loss is 0 and finite, but the root's slope at 0 is not: the weights would turn to NaN
    # unseen.
    run = Run()

    def loss_of(batch, step):
        return (0 * run.model(batch)).sum().sqrt(), {}

    with pytest.raises(loop.TrainingError, match="step 0"):
        run.fit(steps=1, loss_of=loss_of, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what a step does


def test_the_loss_goes_down():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    target = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    history = loop.fit(
        {"model": model},
        torch.optim.AdamW(model.parameters(), weight_decay=0.0),
        lambda x, step: (((model(x) - x @ target.T) ** 2).mean(), {}),
        lambda step: torch.randn(32, 4, generator=torch.Generator().manual_seed(step)),
        steps=200, lr_of=lambda step: 0.1, seed=0, settings={}, log=lambda line: None,
    )  # fmt: skip
    assert history[-1]["loss"] < 0.01 * history[0]["loss"]


def test_the_rate_is_set_at_every_step_and_scaled_by_group():
    run = Run()
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.1})
    rates = []

    def loss_of(batch, step):
        rates.append([group["lr"] for group in run.optimizer.param_groups])
        return run.loss_of(batch, step)

    run.fit(steps=3, loss_of=loss_of, lr_of=lambda step: step + 1.0)
    assert rates == [pytest.approx([s, s / 10]) for s in (1.0, 2.0, 3.0)]


def test_clipping_bounds_the_step():
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    loop.fit(
        {"model": model}, torch.optim.SGD(model.parameters()), lambda x, step: (1e6 * model(x).sum(), {}),
        lambda step: torch.ones(2, 3), steps=1, lr_of=lambda step: 1.0, seed=0, settings={}, clip_norm=0.5,
        log=lambda line: None,
    )  # fmt: skip
    assert (model.weight - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_history_has_a_row_every_log_every_steps_and_the_last():
    lines = []
    run = Run()
    history = run.fit(
        loss_of=lambda batch, step: (run.loss_of(batch, step)[0], {"part": step}),
        after_step=lambda step: {"knn": 0.5} if step == 1 else None,
        log_every=4, log=lines.append,
    )  # fmt: skip
    assert [row["step"] for row in history] == [4, 6] and len(lines) == 2
    assert [row["part"] for row in history] == [3, 5]
    assert [row.get("knn") for row in history] == [0.5, None]
