"""The grammar of ranges, and how values of parameters are read and checked."""

import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlib.data import OPENERS
from mdlib.data.compose import COMPOSITIONS, GROUNDS, Composition
from mdlib.method.masks import AFFINITIES, CENTERS
from mdlib.method.pseudo_labels import OVERLAPS
from mdlib.models.backbones import BACKBONES, build_map
from mdlib.models.encoder import ZOO_ARCHITECTURE
from mdlib.models.hub import PUBLISHED
from mdlib.run.presets import read_parameters
from mdlib.run.values import (
    BLOCKS,
    DIALS,
    LISTS,
    Parameter,
    PresetError,
    check_together,
    check_value,
    read_rule,
    read_value,
)
from mdlib.training.loop import Recipe

quick = settings(max_examples=50, deadline=None)
numbers = st.decimals(-1000, 1000, places=2).map(float)

# ---------------------------------------------------------------- tables of the library


def words_of(notebook, name):
    return read_parameters(notebook)[name].rule.words


def test_the_words_of_the_notebooks_are_those_of_the_library():
    assert {*LISTS["DATASETS"]} == {*OPENERS}
    assert LISTS["COMPOSITIONS"] == (*COMPOSITIONS,)
    assert tuple(field.name for field in fields(Composition)) == DIALS
    assert {*words_of("00_prepare_data", "ground")} == {*GROUNDS}
    assert LISTS["ENCODERS"] == ("zoo", *PUBLISHED)
    assert {*words_of("01_distill_masks", "center")} == {*CENTERS}
    assert {*words_of("01_distill_masks", "affinity")} == {*AFFINITIES}
    assert {*words_of("04_filter_masks", "overlap")} == {*OVERLAPS}
    for notebook in ("03_train_mask_rcnn", "05_train_deeplab"):
        assert {*words_of(notebook, "backbone")} == {*BACKBONES} == {*BLOCKS}
        recipe = {name: p.value for name, p in read_parameters(notebook).items()}
        for word in words_of(notebook, "optimizer"):
            assert Recipe.of(recipe, optimizer=word).optimizer == word
        with pytest.raises(ValueError, match=" or ".join(f'"{w}"' for w in ("adamw", "sgd"))):
            Recipe.of(recipe, optimizer="adam")


def test_blocks_are_those_that_the_backbones_have():
    assert BLOCKS["vit"] == ZOO_ARCHITECTURE["depth"] - 1  # the last one is of CLS alone
    with pytest.raises(ValueError, match=f"{BLOCKS['resnet50']} layers that can learn"):
        build_map("resnet50", weights=None, trainable_blocks=BLOCKS["resnet50"] + 1)


# ---------------------------------------------------------------- rules


@quick
@given(
    low=numbers, high=numbers, left=st.sampled_from("(["), right=st.sampled_from(")]"), x=numbers
)
def test_an_interval_holds_what_its_brackets_say(low, high, left, right, x):
    rule = read_rule(f"in {left}{low}, {high}{right}")
    for value in (low, x, high, (low + high) / 2):
        above = value > low or (left == "[" and value == low)
        below = value < high or (right == "]" and value == high)
        assert rule.allows(value) == (above and below) == rule.allows([value])
    assert rule.allows(None) and rule.allows([])


@quick
@given(low=numbers, x=numbers)
def test_a_lower_end_is_in_the_range_or_not(low, x):
    assert read_rule(f"{low} or more").allows(x) == (x >= low)
    assert read_rule(f"above {low}").allows(x) == (x > low)
    assert read_rule(f"{low} or more").allows(low) and not read_rule(f"above {low}").allows(low)


@pytest.mark.parametrize(
    "clause",
    [
        "",
        "1",
        "in (0; 1]",
        "in 0, 1",
        "in (a, 1]",
        "1 or less",
        "one of ",
        "above",
        "one or more",
        "1 or more so",
    ],
)
def test_prose_is_no_rule(clause):
    assert read_rule(clause) is None


def test_a_named_list_stands_for_its_words():
    rule = read_rule("one of DATASETS")
    assert rule.allows("folder") and not rule.allows("DATASETS") and "voc2007" in rule.text


@pytest.mark.parametrize(
    ("declared", "comment"),
    [
        ("int", "1 or more; in [0, 5]"),
        ("int", "one of a, b"),
        ("str", "1 or more"),
        ("bool", "one of a, b"),
    ],
)
def test_a_comment_has_one_rule_of_its_type(declared, comment):
    with pytest.raises(PresetError, match="one rule that fits it"):
        Parameter(declared, 1, comment).rule  # noqa: B018, it is computed here


def test_a_message_says_the_rule_and_the_value():
    share = Parameter("float | None", 0.4, "share of patches; in (0, 1]; reference value")
    with pytest.raises(PresetError) as refused:
        check_value("01.top_k", 1.5, share)
    assert str(refused.value) == "01.top_k must be in (0, 1], or null for None, got 1.5"


# ---------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("int", 3),
        ("int", -1),
        ("bool", True),
        ("str", "cat"),
        ("str | None", None),
        ("int | None", None),
        ("float | None", None),
        ("float", 0.5),
        ("list[int]", []),
        ("list[int]", [1, 2]),
        ("list[float] | None", [0.5, 2.0]),
        ("list[float] | None", None),
    ],
)
def test_a_value_of_the_declared_type_stays_as_it_is(declared, value):
    checked = check_value("x", value, Parameter(declared, value))
    assert checked == value and type(checked) is type(value)


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("int", True),
        ("int", 2.0),
        ("int", "2"),
        ("int", None),
        ("int | None", False),
        ("float", True),
        ("float", "0.5"),
        ("float", math.nan),
        ("float", -math.inf),
        ("float", None),
        ("float | None", True),
        ("float", [1.0]),
        ("bool", 1),
        ("bool", "true"),
        ("str", 3),
        ("str", None),
        ("str | None", False),
        ("list[int]", 4),
        ("list[int]", (1, 2)),
        ("list[int]", [True]),
        ("list[int]", ["1"]),
        ("list[int]", [1.0]),
    ],
)
def test_a_value_of_another_type_is_refused_with_both_named(declared, value):
    with pytest.raises(PresetError) as refused:
        check_value("05.side", value, Parameter(declared, value))
    assert str(refused.value) == f"05.side must be {declared}, got {value!r}"


def test_a_whole_number_is_a_float():
    checked = check_value("x", 2, Parameter("float", 1.0))
    assert checked == 2.0 and type(checked) is float


def test_a_type_that_no_parameter_may_have_is_named():
    with pytest.raises(PresetError, match=r"declared as dict \| None; .*, not dict"):
        check_value("x", {}, Parameter("dict | None", {}))


# ---------------------------------------------------------------- text


@quick
@given(number=st.integers(-(10**17), 10**17))
def test_whole_numbers_are_read_as_they_are_written(number):
    for declared, kind in (("int", int), ("int | None", int), ("float", float)):
        assert read_value("x", str(number), Parameter(declared, 0)) == kind(number)
    assert read_value("x", f"[{number}, 1]", Parameter("list[int]", [])) == [number, 1]
    assert read_value("x", [str(number)], Parameter("list[int]", [])) == [number]


@quick
@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_finite_floats_are_read_as_they_are_written(number):
    assert read_value("x", repr(number), Parameter("float | None", 0.0)) == number


@quick
@given(text=st.text(min_size=1))
def test_text_is_kept_or_refused_and_never_another(text):
    """Whatever is typed: a path as it stands, a number by its decimal digits, or an error."""
    if (
        text.strip()
        and text.strip().lower() not in ("none", "null", "~")
        and text[:2] not in ("~/", "~\\")
    ):
        assert read_value("x", text, Parameter("str | None", None)) == text
    for declared in ("int", "float", "bool", "list[int]", "int | None"):
        try:
            value = read_value("x", text, Parameter(declared, None))
        except PresetError:
            continue
        assert value is None or isinstance(value, bool | list) or value == float(text)


@pytest.mark.parametrize(
    "text",
    [
        "010",
        "1:30",
        "1_0",
        "0x10",
        "0o7",
        "nan",
        "inf",
        "-.inf",
        ".nan",
        "1e999",
        "٣",
        "9" * 5000,
        "",
        " ",
        "1 2",
        "1,5",
    ],
)
@pytest.mark.parametrize("declared", ["int", "float", "float | None", "list[int]", "bool"])
def test_what_another_reader_would_take_for_a_number_is_refused(text, declared):
    with pytest.raises(PresetError, match=r"^x must be "):
        read_value("x", text, Parameter(declared, None))


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("On", True), ("false", False), ("no", False)]
)
def test_yes_and_no_are_bools_and_nothing_else(text, value):
    assert read_value("x", text, Parameter("bool", True)) is value
    assert read_value("x", text, Parameter("str", "")) == text
    for declared in ("int", "float", "list[int]"):
        with pytest.raises(PresetError, match="x must be"):
            read_value("x", text, Parameter(declared, 0))


def test_a_word_of_a_choice_may_be_none():
    center = Parameter("str", "balanced", "one of none, mean, balanced")
    assert read_value("x", "none", center) == "none"
    with pytest.raises(PresetError, match="must be str"):
        read_value("x", "null", center)


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_text_is_refused(text):
    for declared in ("str", "str | None"):
        with pytest.raises(PresetError, match="x must not be empty"):
            read_value("x", text, Parameter(declared, "a"))


# ---------------------------------------------------------------- together


@quick
@given(
    batch=st.integers(1, 20), parts=st.integers(1, 5), gpus=st.integers(1, 3), deeplab=st.booleans()
)
def test_a_batch_has_equal_parts_and_deeplab_two_images_in_each(batch, parts, gpus, deeplab):
    values = {"batch": batch, "accumulation_steps": parts, "gpus": gpus}
    values |= {"label_side": 48} if deeplab else {}
    each, left = divmod(batch, parts * gpus)
    if not left and each >= (2 if deeplab else 1):
        check_together("05", values)
    else:
        with pytest.raises(PresetError, match="05: `batch` must"):
            check_together("05", values)


UNSET = dict.fromkeys(DIALS)


@pytest.mark.parametrize(
    "values",
    [
        {"mass": 0.5, "center": "mean"},
        {"trainable_blocks": 5, "backbone": "resnet50"},
        {"batch": 9, "clips": 8},
        {"batch": 2, "wide_every": 4},
        {"schedule": 5, "steps": 6},
        {"example": 120, "train_scenes": 120},
        UNSET | {"dataset": "voc2012", "composition": "sharp"},
        UNSET | {"dataset": "folder", "composition": "mixture", "likeness": 0.5},
    ],
)
def test_values_that_do_not_fit_one_another_are_both_named(values):
    with pytest.raises(PresetError) as refused:
        check_together("own", values)
    assert all(f"{name}={value!r}" in str(refused.value) for name, value in values.items())


@pytest.mark.parametrize(
    ("dials", "why"),
    [
        ({"blur": [2.0, 1.0]}, "blur must be two numbers in .*, the least first, got"),
        ({"object_counts": [0.5, 0.4]}, "object_counts must be up to 4 shares that sum to 1"),
        ({"ground": "invented", "sharp": 0.5}, "no focus"),
    ],
)
def test_dials_that_make_no_composition_are_refused_before_a_run(dials, why):
    values = UNSET | {"dataset": "zoo", "composition": "mixture"}
    check_together("00", values)
    with pytest.raises(PresetError, match=f"^00: .*{why}"):
        check_together("00", values | dials)
    check_together("00", UNSET | {"dataset": "voc2012", "composition": "mixture"})


def test_a_list_of_numbers_is_read_from_text():
    blur = Parameter("list[float] | None", None, "least and largest; in [0, 64]")
    for text, value in (
        ("[0.5, 2]", [0.5, 2]),
        ("[]", []),
        ("null", None),
        (["1", "1.5"], [1, 1.5]),
    ):
        assert read_value("blur", text, blur) == value
    for text in ("0.5, 2", "[a, 2]", "[0.5, 65]", "[nan]"):
        with pytest.raises(PresetError, match="blur must be"):
            read_value("blur", text, blur)
    with pytest.raises(PresetError, match=r"written as \[400, 600\]"):
        read_value("sides", "[0.5]", Parameter("list[int]", []))
