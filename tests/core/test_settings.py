"""Settings picked out of a notebook's values."""

from dataclasses import dataclass

import pytest

from mdlib.core.settings import Settings


@dataclass(frozen=True)
class Rule(Settings):
    steps: int
    rate: float
    kind: str = "plain"

    def __post_init__(self):
        self.check("steps", self.steps >= 1, "1 or more")


def test_settings_are_picked_by_name_and_the_rest_is_ignored():
    assert Rule.of({"steps": 3, "rate": 0.1, "seed": 4, "np": object()}) == Rule(3, 0.1)
    assert Rule.of({"steps": 3, "rate": 0.1, "kind": "other"}).kind == "other"


def test_a_field_may_have_another_value_or_another_name_in_the_notebook():
    given = {"mean_field_steps": 3, "steps": 9, "rate": 0.1}
    assert Rule.of(given, steps=given["mean_field_steps"]) == Rule(3, 0.1)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="Rule is missing steps, rate"):
        Rule.of({"kind": "other"})


def test_a_changed_field_that_is_none_is_refused():
    with pytest.raises(TypeError, match="Rule has no rates"):
        Rule.of({"steps": 3, "rate": 0.1}, rates=2)


def test_a_value_out_of_range_is_named_with_what_was_expected():
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        Rule.of({"steps": 0, "rate": 0.1})
