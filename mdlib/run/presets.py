"""Presets: which notebooks run, and the parameters that differ from the notebooks' own.

Reads notebooks for both.

The `parameters` cell of a notebook owns names, types and the demo's values; a preset or `--set`
overrides them. A misspelt name or a value of the wrong type is refused here, because papermill
would only warn.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union

import nbformat
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FiniteFloat,
    Strict,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)

from mdlib.core.paths import NOTEBOOKS, PRESETS

# What had another name before: an old name is an error that says the new one.
RENAMED: dict[tuple[str, str], str] = {  # (notebook, old parameter): new parameter
    ("01_distill_masks", "max_seam"): "max_ncut",
    ("01_distill_masks", "min_contrast"): "min_objectness",
    ("03_train_mask_rcnn", "lr_drops"): "lr_milestones",
    ("03_train_mask_rcnn", "body_scale"): "backbone_lr_scale",
    ("03_train_mask_rcnn", "accumulate"): "accumulation_steps",
    ("05_train_deeplab", "lr_drops"): "lr_milestones",
    ("05_train_deeplab", "body_scale"): "backbone_lr_scale",
    ("05_train_deeplab", "ohem_share"): "hard_fraction",
    ("05_train_deeplab", "accumulate"): "accumulation_steps",
    ("05_train_deeplab", "zoom"): "scale",
    ("05_train_deeplab", "turn"): "rotation",
    ("08_probe_linearly", "lr_drops"): "lr_milestones",
}
RENAMED_PRESETS: dict[str, str] = {}  # old preset: new preset


class PresetError(ValueError):
    """A preset, notebook or parameter is unknown or has a wrong value."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = value  # comment`."""

    type: str
    value: object
    comment: str


class Preset(BaseModel):
    """A YAML file in presets/, with what it inherits.

    Attributes:
        description: one line for `python -m mdlib check`.
        notebooks: names of the notebooks, in the order in which they run.
        parameters: {notebook: {parameter: value}}, where they differ from the notebook's own.
        seconds: {notebook: seconds that it took, measured}, for the time left.
        bands: {metric: (lowest, highest)} that a run is expected to reach.
    """

    model_config = ConfigDict(extra="forbid")
    description: str
    notebooks: list[str]
    parameters: dict[str, dict[str, object]] = {}
    seconds: dict[str, float] = {}
    bands: dict[str, tuple[float, float]] = {}


def load_preset(name: str) -> Preset:
    """Read presets/NAME.yaml.

    With a line `extends: PARENT` the file says only what differs from another preset: parameters,
    seconds and bands are merged value by value, description and notebooks are inherited where the
    file has none. What the parent says of notebooks that the file leaves out is dropped.

    Args:
        name: the file's name without its ending.

    Returns:
        The preset, complete.

    Raises:
        PresetError: no such file, a wrong or unknown key in it, or presets that extend one another
            in a circle.
    """
    return _load(name, children=())


def _load(name: str, *, children: tuple[str, ...]) -> Preset:
    """`load_preset`; children: the presets that extend this one, the first one first."""
    if name in children:
        raise PresetError(f"presets extend one another: {' -> '.join([*children, name])}")
    path = PRESETS / f"{name}.yaml"
    if name in RENAMED_PRESETS:
        raise PresetError(f"preset {name!r} is called {RENAMED_PRESETS[name]!r} now")
    if not path.is_file():
        wanted = f"{children[-1]}.yaml extends the " if children else ""
        raise PresetError(f"{wanted}unknown preset {name!r}; expected one of {_stems(PRESETS)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise PresetError(f"{path.name} must hold keys and values, it holds {content!r:.80}")
        if "extends" not in content:
            return Preset(**content)
        parent = _load(str(content.pop("extends")), children=(*children, name))
        inherited = parent.model_dump(include={"description", "notebooks"})
        return _merge(parent, Preset(**inherited | content))
    except (ValidationError, yaml.YAMLError) as error:
        raise PresetError(f"{path.name}: {error}") from None


def _merge(parent: Preset, own: Preset) -> Preset:
    """`own` with the values of `parent` that it does not give itself."""
    parameters = {n: values for n, values in parent.parameters.items() if n in own.notebooks}
    for name, values in own.parameters.items():
        parameters[name] = parameters.get(name, {}) | values
    seconds = {n: value for n, value in parent.seconds.items() if n in own.notebooks}
    merged = {
        "parameters": parameters,
        "seconds": seconds | own.seconds,
        "bands": parent.bands | own.bands,
    }
    return own.model_copy(update=merged)


def _stems(folder: Path) -> list[str]:
    """The names of a folder's presets or notebooks."""
    return sorted(path.stem for path in folder.iterdir() if path.suffix in (".yaml", ".ipynb"))


def read_parameters(notebook: str) -> dict[str, Parameter]:
    """Read the parameters cell of a notebook.

    Args:
        notebook: the name of a file in notebooks/, without its ending.

    Returns:
        {name: its type, value and comment}, in the order of the cell.

    Raises:
        PresetError: no such notebook, or its parameters cell is not one list of
            `name: type = value`.
    """
    path = NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        raise PresetError(f"unknown notebook {notebook!r}; expected one of {_stems(NOTEBOOKS)}")
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise PresetError(f"{notebook}: expected one cell tagged `parameters`, found {len(tagged)}")
    parameters = {}
    lines = tagged[0].splitlines()
    for node in ast.parse(tagged[0]).body:
        if not (
            isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
        ):
            raise PresetError(
                f"{notebook}: a parameters cell holds lines `name: type = value`, "
                f"got {ast.unparse(node)!r}"
            )
        comment = lines[(node.end_lineno or node.lineno) - 1].partition("#")[2].strip()
        parameters[node.target.id] = Parameter(
            ast.unparse(node.annotation), ast.literal_eval(node.value), comment
        )
    return parameters


def resolve(
    preset: Preset, overrides: dict[str, dict[str, object]]
) -> dict[str, dict[str, object]]:
    """All parameters of each notebook of a preset.

    Args:
        preset: its values come after the notebooks' own.
        overrides: {notebook: {parameter: value}}, the last word.

    Returns:
        {notebook: {parameter: value}}, complete, in the order of the preset.

    Raises:
        PresetError: a notebook or parameter that does not exist, or a value of another type.
    """
    for source in (preset.parameters, overrides):
        for notebook in source:
            if notebook not in preset.notebooks:
                raise PresetError(
                    f"notebook {notebook!r} is not in this preset; "
                    f"expected one of {preset.notebooks}"
                )
    resolved = {}
    for notebook in preset.notebooks:
        known = read_parameters(notebook)
        values = {name: parameter.value for name, parameter in known.items()}
        for name, value in {
            **preset.parameters.get(notebook, {}),
            **overrides.get(notebook, {}),
        }.items():
            if name not in known and (notebook, name) in RENAMED:
                raise PresetError(
                    f"{notebook}: parameter {name!r} is called {RENAMED[notebook, name]!r} now"
                )
            if name not in known:
                raise PresetError(
                    f"{notebook} has no parameter {name!r}; expected one of {sorted(known)}"
                )
            values[name] = check_value(f"{notebook}.{name}", value, known[name].type)
        resolved[notebook] = values
    return resolved


def check_value(name: str, value: object, declared: str) -> object:
    """Check a parameter's value against its declared type.

    Args:
        name: how the message calls the parameter.
        value: as YAML or a notebook gives it. Where a float is declared, text such as "1e-3" is
            one, which YAML reads as a string; everything else must have its type already.
        declared: the type in the parameters cell, a key of TYPES or several with "|" between.

    Returns:
        The value in its declared type.

    Raises:
        PresetError: the value has another type, or the type is not one of TYPES.
    """
    try:
        return _adapter(declared).validate_python(value)
    except ValidationError:
        raise PresetError(f"{name} must be {declared}, got {value!r}") from None
    except KeyError as unknown:
        raise PresetError(
            f"{name} is declared as {declared}; expected types out of {list(TYPES)}, "
            f"not {unknown.args[0]}"
        ) from None


@cache
def _adapter(declared: str) -> TypeAdapter:
    """Checks values of a declared type, such as "float | None"."""
    types = tuple(TYPES[part.strip()] for part in declared.split("|"))
    union: Any = Union[types]  # noqa: UP007, they are known at run time only
    return TypeAdapter(union)


def _refuse_bool(value: object) -> object:
    """A bool counts as 0 or 1 in Python, but as a parameter it is a mistake."""
    if isinstance(value, bool):
        raise ValueError("a bool is not a number")
    return value


# What a parameters cell may declare. Only a float is read from text, and it must be finite.
TYPES: dict[str, object] = {
    "int": StrictInt,
    "float": Annotated[FiniteFloat, BeforeValidator(_refuse_bool)],
    "str": StrictStr,
    "bool": StrictBool,
    "list[int]": Annotated[list[StrictInt], Strict()],
    "None": None,
}


def parse_sets(items: list[str]) -> dict[str, dict[str, object]]:
    """Read the values of `--set` on the command line.

    Args:
        items: such as "01_distill_masks.top_k=0.3"; what follows "=" is YAML.

    Returns:
        {notebook: {parameter: value}}, such as {"01_distill_masks": {"top_k": 0.3}}.

    Raises:
        PresetError: an item of another form.
    """
    overrides: dict[str, dict[str, object]] = {}
    for item in items:
        target, equals, text = item.partition("=")
        notebook, dot, name = target.partition(".")
        if not (equals and dot and name):
            raise PresetError(f"--set takes NOTEBOOK.PARAMETER=VALUE, got {item!r}")
        try:
            overrides.setdefault(notebook, {})[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise PresetError(f"--set {item!r}: the value is not YAML") from None
    return overrides
