"""Presets: which notebooks run, and the parameters that differ from the notebooks' own.

Reads notebooks for both.

The `parameters` cell of a notebook owns names, types, ranges and the demo's values; a preset or
`--set` overrides them. A misspelt name or a wrong value (`values`) is refused here, because
papermill would only warn.
"""

import ast
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any

import nbformat
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
)

from mdlib.core.paths import NOTEBOOKS, PRESETS
from mdlib.run.values import Parameter, PresetError, check_together, check_value, read_value

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
RUN_DIR = "run_dir"  # the one parameter that says where, not what: no part of a stage's identity


def _rising(band: tuple[float, float]) -> tuple[float, float]:
    """A band from its lowest to its highest value."""
    if band[0] > band[1]:
        raise ValueError("a band begins with its lowest value")
    return band


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
    notebooks: Annotated[list[str], Field(min_length=1)]
    parameters: dict[str, dict[str, object]] = {}
    seconds: dict[str, FiniteFloat] = {}
    bands: dict[str, Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_rising)]] = {}


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
        PresetError: no such file, a wrong or unknown key in it, a key twice, a value that its
            notebook refuses, or presets that extend one another in a circle.
    """
    preset = _load(name, children=())
    twice = {each for each in preset.notebooks if preset.notebooks.count(each) > 1}
    if twice:
        raise PresetError(f"{name}.yaml names {', '.join(sorted(twice))} more than once")
    parameters = {each: _read(each, given) for each, given in preset.parameters.items()}
    return preset.model_copy(update={"parameters": parameters})


class _Loader(yaml.BaseLoader):
    """Reads every scalar as the text that stands there, and refuses a key that comes twice.

    What a text means is decided by the type of its parameter: YAML itself takes 010 for 8, 1:30
    for 90 and `no` for false.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, {text: value}."""
        known = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in known:
                problem = f"{key.value} is given more than once"
                raise yaml.constructor.ConstructorError(
                    problem=problem, problem_mark=key.start_mark
                )
            known.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)


def _load(name: str, *, children: tuple[str, ...]) -> Preset:
    """`load_preset`; children: the presets that extend this one, the first one first."""
    if name in children:
        raise PresetError(f"presets extend one another: {' -> '.join([*children, name])}")
    path = PRESETS / f"{name}.yaml"
    if name in RENAMED_PRESETS:
        raise PresetError(f"preset {name!r} is called {RENAMED_PRESETS[name]!r} now")
    if name not in _stems(PRESETS):  # a path to elsewhere is no name
        wanted = f"{children[-1]}.yaml extends the " if children else ""
        raise PresetError(f"{wanted}unknown preset {name!r}; expected one of {_stems(PRESETS)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(content, dict):
            raise PresetError(f"{path.name} must hold keys and values, it holds {content!r:.80}")
        if "extends" not in content:
            return Preset(**content)
        parent = _load(str(content.pop("extends")), children=(*children, name))
        inherited = parent.model_dump(include={"description", "notebooks"})
        return _merge(parent, Preset(**inherited | content))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
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
        PresetError: no such notebook, a file that is none, or a parameters cell that is not one
            list of `name: type = value`, each name once.
    """
    if notebook not in _stems(NOTEBOOKS):
        raise PresetError(f"unknown notebook {notebook!r}; expected one of {_stems(NOTEBOOKS)}")
    try:
        cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
        tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        nodes = [node for source in tagged for node in ast.parse(source).body]
    except (SyntaxError, ValueError) as error:  # nbformat's errors are ValueErrors
        raise PresetError(f"{notebook}: {type(error).__name__}: {error}") from None
    if len(tagged) != 1:
        raise PresetError(f"{notebook}: expected one cell tagged `parameters`, found {len(tagged)}")
    parameters: dict[str, Parameter] = {}
    for node in nodes:
        name, parameter = _declaration(notebook, node, tagged[0].splitlines())
        if name in parameters:
            raise PresetError(f"{notebook}: {name} is declared more than once")
        parameters[name] = parameter
    return parameters


def _declaration(notebook: str, node: ast.stmt, lines: list[str]) -> tuple[str, Parameter]:
    """What a statement of a parameters cell, which consists of `lines`, declares."""
    match node:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as it):
            # the comment begins behind the value, which may hold a "#" itself
            behind = lines[(it.end_lineno or 1) - 1].encode()[it.end_col_offset :].decode()
            try:
                value = ast.literal_eval(it)
            except ValueError:
                raise PresetError(
                    f"{notebook}: the value of {name} must be written out, got {ast.unparse(it)!r}"
                ) from None
            comment = behind.partition("#")[2].strip()
            return name, Parameter(ast.unparse(annotation), value, comment)
    raise PresetError(
        f"{notebook}: a parameters cell holds lines `name: type = value`, got {ast.unparse(node)!r}"
    )


def check_values(notebook: str, values: Mapping[str, object]) -> dict[str, object]:
    """Check all values of a notebook: types, ranges, and what must fit together.

    Args:
        notebook: its name.
        values: holds the notebook's parameters; other names in it do not matter.

    Returns:
        {parameter: value} in its declared type, in the order of the cell.

    Raises:
        PresetError: a parameter that is not there, or has a wrong value.
    """
    known = read_parameters(notebook)
    if missing := [name for name in known if name not in values]:
        raise PresetError(
            f"{notebook}: {', '.join(missing)} must have a value: run the cell of parameters first"
        )
    checked = {
        name: check_value(f"{notebook}.{name}", values[name], parameter)
        for name, parameter in known.items()
    }
    check_together(notebook, checked)
    return checked


def _read(notebook: str, given: dict[str, object]) -> dict[str, object]:
    """Values of a preset or of `--set`, each read as its parameter's type."""
    known = read_parameters(notebook)
    read = {}
    for name, value in given.items():
        if name not in known and (notebook, name) in RENAMED:
            raise PresetError(
                f"{notebook}: parameter {name!r} is called {RENAMED[notebook, name]!r} now"
            )
        if name not in known:
            raise PresetError(
                f"{notebook} has no parameter {name!r}; expected one of {sorted(known)}"
            )
        if name == RUN_DIR:
            raise PresetError(f"{notebook}.{name} is where the run lives: say it with --out")
        read[name] = read_value(f"{notebook}.{name}", value, known[name])
    return read


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
        PresetError: a notebook or parameter that does not exist, or a wrong value.
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
        own = {name: parameter.value for name, parameter in read_parameters(notebook).items()}
        given = [
            _read(notebook, source.get(notebook, {})) for source in (preset.parameters, overrides)
        ]
        resolved[notebook] = check_values(notebook, own | given[0] | given[1])
    return resolved


def parse_sets(items: list[str]) -> dict[str, dict[str, object]]:
    """Take the values of `--set` on the command line apart.

    Args:
        items: such as "01_distill_masks.top_k=0.3".

    Returns:
        {notebook: {parameter: text}}, such as {"01_distill_masks": {"top_k": "0.3"}}; `resolve`
        reads the text as the parameter's type.

    Raises:
        PresetError: an item of another form, or a parameter that is given twice.
    """
    overrides: dict[str, dict[str, object]] = {}
    for item in items:
        target, equals, text = item.partition("=")
        notebook, dot, name = target.partition(".")
        if not (equals and dot and name):
            raise PresetError(f"--set takes NOTEBOOK.PARAMETER=VALUE, got {item!r}")
        if name in overrides.setdefault(notebook, {}):
            raise PresetError(f"--set gives {target} more than once")
        overrides[notebook][name] = text
    return overrides
