"""The training loop: a resumed run is the run that was never stopped, and a run that cannot go on says where."""

import copy
import math

import pytest
import torch
from torch import nn

from mdlib import store, training

STEPS = 6


class Run:
    """A tiny network with dropout, so that the random state of every step matters, on random batches by step."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0)

    def loss_of(self, batch, step):
        return ((self.model(batch) - 1) ** 2).mean(), {}

    def batch_of(self, step):
        return torch.randn(5, 4, generator=torch.Generator().manual_seed(step))

    def fit(self, steps=STEPS, **changed):
        settings = {
            "steps": steps,
            "lr_of": lambda step: training.cosine_schedule(step, steps=STEPS, warmup=2, peak=0.1),
            "seed": 1,
            "settings": {"width": 8, "shape": (4, 8)},  # a tuple becomes a list in JSON: must still be the same
            "log": lambda line: None,
        }
        batch_of = changed.pop("batch_of", self.batch_of)
        loss_of = changed.pop("loss_of", self.loss_of)
        return training.fit({"model": self.model}, self.optimizer, loss_of, batch_of, **settings | changed)

    def weights(self):
        return copy.deepcopy(self.model.state_dict())


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- schedule


def test_cosine_schedule_at_its_ends_and_in_the_middle():
    def rate(step):
        return training.cosine_schedule(step, steps=110, warmup=10, peak=2.0, final=0.5)

    assert rate(0) == pytest.approx(0.2)  # one tenth of the way up: the first step learns
    assert rate(9) == rate(10) == 2.0
    assert rate(60) == pytest.approx((2.0 + 0.5) / 2)
    assert rate(110) == pytest.approx(0.5)
    assert all(rate(s) > rate(s + 1) for s in range(10, 110))


def test_cosine_schedule_without_warmup_starts_at_the_peak():
    assert training.cosine_schedule(0, steps=10, warmup=0, peak=1.0) == 1.0


# ---------------------------------------------------------------- resume


def test_a_resumed_run_is_bit_equal_to_one_that_was_not_stopped(tmp_path):
    whole = Run()
    whole.fit()
    first, second = Run(), Run()
    first.fit(steps=3, checkpoint=tmp_path / "run")
    second.fit(checkpoint=tmp_path / "run")
    assert_bit_equal(second.weights(), whole.weights())
    assert not torch.equal(whole.weights()["0.weight"], Run().weights()["0.weight"])  # and something was learnt


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    whole, killed, resumed = Run(), Run(), Run()
    expected = whole.fit(log_every=1)
    seen = []

    def dies_at_step_five(step):
        if step == 5:
            raise KeyboardInterrupt
        return killed.batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        killed.fit(batch_of=dies_at_step_five, checkpoint=tmp_path / "run", checkpoint_every=2, log_every=1)
    history = resumed.fit(
        batch_of=lambda step: seen.append(step) or resumed.batch_of(step),
        checkpoint=tmp_path / "run",
        log_every=1,
    )
    assert seen == [4, 5]
    assert [(row["step"], row["loss"]) for row in history] == [(row["step"], row["loss"]) for row in expected]
    assert_bit_equal(resumed.weights(), whole.weights())


def test_a_finished_run_is_not_run_again(tmp_path):
    done = Run()
    history = done.fit(checkpoint=tmp_path / "run")
    again = Run()
    assert again.fit(checkpoint=tmp_path / "run", batch_of=lambda step: pytest.fail("trained again")) == history
    assert_bit_equal(again.weights(), done.weights())


def test_a_checkpoint_with_other_settings_is_refused(tmp_path):
    Run().fit(steps=3, checkpoint=tmp_path / "run")
    with pytest.raises(training.TrainingError, match="other settings"):
        Run().fit(checkpoint=tmp_path / "run", settings={"width": 16})


def test_a_truncated_checkpoint_is_refused(tmp_path):
    Run().fit(steps=3, checkpoint=tmp_path / "run")
    (tmp_path / "run").write_bytes((tmp_path / "run").read_bytes()[:-9])
    with pytest.raises(store.WeightsError, match="not a whole"):
        Run().fit(checkpoint=tmp_path / "run")


def test_weights_that_are_no_checkpoint_are_refused(tmp_path):
    store.save_weights(tmp_path / "run", Run().weights(), header={"architecture": "tiny"})
    with pytest.raises(training.TrainingError):
        Run().fit(checkpoint=tmp_path / "run")


# ---------------------------------------------------------------- stops


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path):
    run = Run()
    before = []

    def loss_of(batch, step):
        if step == 4:
            before.append(run.weights())
        return run.loss_of(batch, step)[0] * (math.nan if step == 4 else 1.0), {}

    with pytest.raises(training.TrainingError, match="step 4"):
        run.fit(loss_of=loss_of, checkpoint=tmp_path / "run", checkpoint_every=2)
    assert torch.equal(run.weights()["0.weight"], before[0]["0.weight"])  # no step was made with it
    assert store.read_weights(tmp_path / "run")[1]["step"] == 4  # the last good checkpoint stays


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    # The loss is 0 and finite, but the root's slope at 0 is not: the weights would turn to NaN unseen.
    run = Run()

    def loss_of(batch, step):
        return (0 * run.model(batch)).sum().sqrt(), {}

    with pytest.raises(training.TrainingError, match="step 0"):
        run.fit(steps=1, loss_of=loss_of, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what a step does


def test_the_loss_goes_down():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    target = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    history = training.fit(
        {"model": model},
        torch.optim.AdamW(model.parameters(), weight_decay=0.0),
        lambda x, step: (((model(x) - x @ target.T) ** 2).mean(), {}),
        lambda step: torch.randn(32, 4),  # the loop seeds every step, so this too is a function of the step
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
    training.fit(
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
