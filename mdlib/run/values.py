"""What a parameter may be: the type that its cell declares, and the range that its comment says.

A comment is made of clauses between semicolons. One of them may be the rule of the parameter:

    in (0, 1]                 a number above 0 and up to 1; round brackets leave an end out
    1 or more                 a number from 1 on
    above 0                   a number above 0
    one of skip, overwrite    one of these words; `one of ENCODERS`: of that entry of LISTS

The rule of a list holds for each of its items. None, where the type allows it, needs no rule.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Union

from pydantic import (
    FiniteFloat,
    Strict,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)

# Names that are too many for a comment. The library has its own tables, which need torch; a test
# compares them.
LISTS = {
    "COMPOSITIONS": (
        *("mixture", "sharp", "soft", "portrait", "crowd"),
        *("edge", "camouflage", "empty", "invented"),
    ),
    "DATASETS": ("zoo", "voc2012", "voc2007", "coco", "coco_agnostic", "folder"),
    "ENCODERS": (
        "zoo",
        *("dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8"),
        *("dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "mocov3_vits16"),
    ),
}
# The dials of `data.compose.Composition`, parameters of 00
DIALS = ("ground", "sharp", "blur", "object_counts", "object_size", "object_place", "likeness")
BLOCKS = {"vit": 5, "resnet50": 4}  # how many parts of each backbone can learn

_NUMBER = r"(-?[0-9]+(?:\.[0-9]+)?)"
_INTERVAL = re.compile(rf"in ([\[(]){_NUMBER}, {_NUMBER}([\])])")
_FROM = re.compile(rf"{_NUMBER} or more|above {_NUMBER}")
_WORDS = re.compile(r"one of (\w+(?:, \w+)*)")

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_BOOL = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NONE = ("null", "none", "~")


class PresetError(ValueError):
    """A preset, notebook or parameter is unknown or has a wrong value."""


@dataclass(frozen=True)
class Rule:
    """Which values of its type a parameter may have.

    Attributes:
        text: what a value must be, for a message.
        words: the allowed words; none where the rule is of numbers.
        low: the smallest number.
        high: the largest one.
        without: those of the two that are left out themselves.
    """

    text: str
    words: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    without: tuple[float, ...] = ()

    def allows(self, value: object) -> bool:
        """Whether a value of the parameter's type is allowed; None always is."""
        if value is None:
            return True
        if isinstance(value, list):
            return all(map(self.allows, value))
        if isinstance(value, int | float):
            return self.low <= value <= self.high and value not in self.without
        return value in self.words


def read_rule(clause: str) -> Rule | None:
    """Read a clause of a comment.

    Args:
        clause: such as "in (0, 1]".

    Returns:
        The rule; None where the clause is none.
    """
    if found := _INTERVAL.fullmatch(clause):
        left, low, high, right = found.groups()
        ends = ((float(low), left == "("), (float(high), right == ")"))
        without = tuple(end for end, is_left_out in ends if is_left_out)
        return Rule(clause, low=ends[0][0], high=ends[1][0], without=without)
    if found := _FROM.fullmatch(clause):
        start, above = found.groups()
        low = float(start or above)
        return Rule(clause, low=low, without=(low,) if above else ())
    if found := _WORDS.fullmatch(clause):
        words = LISTS.get(found[1]) or tuple(found[1].split(", "))
        return Rule(f"one of {', '.join(words)}", words)
    return None


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = value  # comment`."""

    type: str
    value: object
    comment: str = ""

    @property
    def types(self) -> list[str]:
        """The declared types, keys of TYPES."""
        return [part.strip() for part in self.type.split("|")]

    @cached_property
    def rule(self) -> Rule | None:
        """What the comment says of the values.

        Raises:
            PresetError: there are several rules, or one that is not of this type.
        """
        rules = [rule for part in self.comment.split(";") if (rule := read_rule(part.strip()))]
        if len(rules) > 1 or any(bool(rule.words) != ("str" in self.types) for rule in rules):
            raise PresetError(
                f"a parameter of type {self.type} has one rule that fits it, got {self.comment!r}"
            )
        return rules[0] if rules else None


# What a parameters cell may declare. A whole number is a float, too, and no float may be infinite.
TYPES: dict[str, object] = {
    "int": StrictInt,
    "float": Annotated[FiniteFloat, Strict()],
    "str": StrictStr,
    "bool": StrictBool,
    "list[int]": Annotated[list[StrictInt], Strict()],
    "list[float]": Annotated[list[Annotated[FiniteFloat, Strict()]], Strict()],
    "None": None,
}
_WRITTEN = {  # how a value of each is written
    "int": "60",
    "float": "0.5 or 1e-3",
    "str": "text",
    "bool": "true or false",
    "list[int]": "[400, 600]",
    "list[float]": "[0.5, 2]",
    "None": "null",
}


@cache
def _adapter(declared: str) -> TypeAdapter:
    """Checks values of a declared type, such as "float | None"."""
    types = tuple(TYPES[part.strip()] for part in declared.split("|"))
    union: Any = Union[types]  # noqa: UP007, they are known at run time only
    return TypeAdapter(union)


def check_value(name: str, value: object, parameter: Parameter) -> object:
    """Check a parameter's value against its declared type and its rule.

    Args:
        name: how the message calls the parameter.
        value: as a notebook gives it.
        parameter: its declaration.

    Returns:
        The value in its declared type.

    Raises:
        PresetError: the value has another type, is out of its range or empty text, or the type is
            not one of TYPES.
    """
    try:
        checked = _adapter(parameter.type).validate_python(value)
    except ValidationError:
        raise PresetError(f"{name} must be {parameter.type}, got {value!r}") from None
    except KeyError as unknown:
        raise PresetError(
            f"{name} is declared as {parameter.type}; expected types out of {list(TYPES)}, "
            f"not {unknown.args[0]}"
        ) from None
    or_none = ", or null for None" if "None" in parameter.types else ""
    if parameter.rule is not None and not parameter.rule.allows(checked):
        raise PresetError(f"{name} must be {parameter.rule.text}{or_none}, got {checked!r}")
    if isinstance(checked, str) and not checked.strip():
        raise PresetError(f"{name} must not be empty{or_none}")
    return checked


def read_value(name: str, given: object, parameter: Parameter) -> object:
    """Read a parameter's value as it is written in a preset or after `--set`, and check it.

    Text is taken as it stands where the type is `str`, but for a `~/` at its beginning, which is
    the home folder. Numbers are decimal. `null`, `none` and `~` mean None where the type allows it.

    Args:
        name: how the message calls the parameter.
        given: text, a list of texts, or a value that has its type already.
        parameter: its declaration.

    Returns:
        The value in its declared type.

    Raises:
        PresetError: as `check_value`, and for text of another form.
    """
    if isinstance(given, str):
        given = _from_text(name, given, parameter)
    elif isinstance(given, list):
        given = [_item(name, each, parameter) if isinstance(each, str) else each for each in given]
    return check_value(name, given, parameter)


def _from_text(name: str, text: str, parameter: Parameter) -> object:
    """The value that a text means for a parameter."""
    word, types = text.strip().lower(), parameter.types
    is_choice = parameter.rule is not None and text in parameter.rule.words
    if word in _NONE and not is_choice:
        if "None" not in types:
            raise PresetError(
                f"{name} must be {parameter.type}; {text!r} means None, which is not allowed"
            )
        return None
    if "str" in types:
        return os.path.expanduser(text) if text.startswith(("~/", "~\\")) else text
    if "bool" in types and word in _BOOL:
        return _BOOL[word]
    if {"list[int]", "list[float]"} & {*types} and word.startswith("[") and word.endswith("]"):
        items = word[1:-1].split(",") if word[1:-1].strip() else []
        return [_item(name, item, parameter) for item in items]
    if "int" in types and _INT.fullmatch(word):
        return int(word)
    if "float" in types and _FLOAT.fullmatch(word):
        return float(word)
    raise _wrongly_written(name, text, parameter)


def _item(name: str, text: str, parameter: Parameter) -> int | float:
    """An item of a list of numbers, which are whole but in a list[float]."""
    if _INT.fullmatch(text.strip()):
        return int(text)
    if "list[float]" in parameter.types and _FLOAT.fullmatch(text.strip()):
        return float(text)
    raise _wrongly_written(name, text, parameter)


def _wrongly_written(name: str, text: str, parameter: Parameter) -> PresetError:
    """Says how the parameter's values are written."""
    forms = ", or ".join(_WRITTEN[each] for each in parameter.types if each in _WRITTEN)
    return PresetError(f"{name} must be {parameter.type}, written as {forms}, got {text!r}")


# ---------------------------------------------------------------- values that belong together

# (names, whether their values fit one another, what is expected), for every notebook that has all
# of these names
TOGETHER: tuple[tuple[str, Callable[..., bool], str], ...] = (
    (
        "mass center",
        lambda mass, center: mass is None or center == "none",
        "`mass` needs keys as trained: center=none, or mass=null",
    ),
    (
        "batch accumulation_steps gpus",
        lambda batch, parts, gpus: batch % (parts * gpus) == 0,
        "`batch` must be a multiple of accumulation_steps * gpus",
    ),
    (
        "batch accumulation_steps gpus label_side",  # DeepLab's: its pooled branch is normalised
        lambda batch, parts, gpus, _: batch >= 2 * parts * gpus,
        "`batch` must give each of accumulation_steps * gpus parts two images or more",
    ),
    (
        "trainable_blocks backbone",
        lambda blocks, backbone: blocks <= BLOCKS[backbone],
        f"`trainable_blocks` must not be more than the backbone has: {BLOCKS}",
    ),
    ("batch clips", lambda batch, clips: batch <= clips, "`batch` must not be more than `clips`"),
    (
        "batch wide_every",
        lambda batch, every: every == 0 or batch >= 3,
        "`batch` must be 3 or more, or wide_every=0: wide steps show a third of it",
    ),
    (
        "schedule steps",
        lambda schedule, steps: schedule >= steps,
        "`schedule` must not be shorter than `steps`",
    ),
    (
        "example train_scenes",
        lambda example, scenes: example < scenes,
        "`example` counts from 0 and must be below `train_scenes`",
    ),
    (
        f"dataset composition {' '.join(DIALS)}",
        lambda dataset, composition, *dials: (
            dataset == "zoo" or (composition == "mixture" and all(dial is None for dial in dials))
        ),
        "only the zoo is composed: for another data set leave `composition` and its dials unset",
    ),
)


def check_together(notebook: str, values: Mapping[str, object]) -> None:
    """Check a notebook's values against one another.

    Args:
        notebook: how the message calls it.
        values: {parameter: value}, each checked by itself.

    Raises:
        PresetError: two that do not fit.
    """
    for names, fits, expected in TOGETHER:
        keys = names.split()
        if all(key in values for key in keys) and not fits(*(values[key] for key in keys)):
            given = ", ".join(f"{key}={values[key]!r}" for key in keys)
            raise PresetError(f"{notebook}: {expected}; got {given}")
    if "composition" in values:
        from mdlib.data.compose import COMPOSITIONS  # half a second, for this notebook alone

        try:
            COMPOSITIONS[str(values["composition"])].changed(values)
        except ValueError as error:
            raise PresetError(f"{notebook}: {error}") from None
