"""Presets: which notebooks run, and the parameters that differ from the notebooks' own.

Reads notebooks for both.

The `parameters` cell of a notebook owns names, types and the demo's values; a preset or `--set`
overrides them. A misspelt name or a value of the wrong type is refused here, because papermill
would only warn.
"""

import ast
from dataclasses import dataclass

import nbformat
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mdlib.core.paths import NOTEBOOKS, PRESETS


class PresetError(ValueError):
    """A preset, notebook or parameter is unknown or has a wrong value."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = value  # comment`."""

    type: str
    value: object
    comment: str


class Preset(BaseModel):
    """A YAML file in presets/. seconds: what each notebook took, measured, for the time left."""

    model_config = ConfigDict(extra="forbid")
    description: str
    notebooks: list[str]
    parameters: dict[str, dict[str, object]] = {}
    seconds: dict[str, float] = {}
    bands: dict[str, tuple[float, float]] = {}


def load_preset(name: str) -> Preset:
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise PresetError(
            f"unknown preset {name!r}; expected one of {sorted(p.stem for p in PRESETS.glob('*.yaml'))}"
        )
    try:
        return Preset(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise PresetError(f"{path.name}: {error}") from None


def read_parameters(notebook: str) -> dict[str, Parameter]:
    """The parameters cell of notebooks/NAME.ipynb, in order."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        raise PresetError(
            f"unknown notebook {notebook!r}; expected one of {sorted(p.stem for p in NOTEBOOKS.glob('*.ipynb'))}"
        )
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise PresetError(f"{notebook}: expected one cell tagged `parameters`, found {len(tagged)}")
    parameters = {}
    lines = tagged[0].splitlines()
    for node in ast.parse(tagged[0]).body:
        if not isinstance(node, ast.AnnAssign):
            raise PresetError(
                f"{notebook}: a parameters cell holds lines `name: type = value`, got {ast.unparse(node)!r}"
            )
        comment = lines[node.end_lineno - 1].partition("#")[2].strip()
        parameters[node.target.id] = Parameter(
            ast.unparse(node.annotation), ast.literal_eval(node.value), comment
        )
    return parameters


def resolve(
    preset: Preset, overrides: dict[str, dict[str, object]]
) -> dict[str, dict[str, object]]:
    """All parameters of each notebook of a preset: its own values, then the preset's, then
    `overrides`.
    """
    for source in (preset.parameters, overrides):
        for notebook in source:
            if notebook not in preset.notebooks:
                raise PresetError(
                    f"notebook {notebook!r} is not in this preset; expected one of {preset.notebooks}"
                )
    resolved = {}
    for notebook in preset.notebooks:
        known = read_parameters(notebook)
        values = {name: parameter.value for name, parameter in known.items()}
        for name, value in {
            **preset.parameters.get(notebook, {}),
            **overrides.get(notebook, {}),
        }.items():
            if name not in known:
                raise PresetError(
                    f"{notebook} has no parameter {name!r}; expected one of {sorted(known)}"
                )
            values[name] = check_value(f"{notebook}.{name}", value, known[name].type)
        resolved[notebook] = values
    return resolved


def check_value(name: str, value: object, declared: str) -> object:
    """`value` as the declared type ("int", "float | None", "list[int]" ...), or PresetError.

    YAML reads 1e-3 as a string.
    """
    types = [t.strip() for t in declared.split("|")]
    if value is None and "None" in types:
        return None
    if "float" in types and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    accepted = {"int": int, "str": str, "bool": bool}
    for candidate in types:
        if candidate in accepted and type(value) is accepted[candidate]:
            return value
    if (
        "list[int]" in types
        and isinstance(value, list)
        and all(type(each) is int for each in value)
    ):
        return value
    raise PresetError(f"{name} must be {declared}, got {value!r}")


def parse_sets(items: list[str]) -> dict[str, dict[str, object]]:
    """["01_distill_masks.top_k=0.3", ...] -> {"01_distill_masks": {"top_k": 0.3}}."""
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
