"""Presets: what they inherit, what they may say, and the values that a parameter takes."""

import nbformat
import pytest
import yaml

from mdlib.core.paths import PRESETS
from mdlib.run import presets
from mdlib.run.presets import PresetError, load_preset, resolve

FILES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(PRESETS.glob("*.yaml"))
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """How to write a preset into an empty folder of presets."""
    monkeypatch.setattr(presets, "PRESETS", tmp_path)
    return lambda name, text: (tmp_path / f"{name}.yaml").write_text(text)


PARENT = """
description: the parent
notebooks: [00_prepare_data, 01_distill_masks, 02_cluster_masks]
parameters:
  00_prepare_data: {train_images: 7, val_images: 8}
  02_cluster_masks: {k: 9}
seconds: {00_prepare_data: 1, 02_cluster_masks: 2}
bands: {corloc: [0.1, 0.2], mask_iou: [0.3, 0.4]}
"""


# ---------------------------------------------------------------- files


def test_a_preset_with_an_unknown_key_is_refused(folder):
    folder("odd", "description: x\nnotebooks: []\nnotebook: [typo]\n")
    with pytest.raises(PresetError, match="notebook"):
        load_preset("odd")


@pytest.mark.parametrize("name", FILES)
def test_every_preset_fits_its_notebooks(name):
    preset = load_preset(name)
    assert list(resolve(preset, {})) == preset.notebooks


@pytest.mark.parametrize("text", ["", "[a, b]", "extends", "a: ["])
def test_a_file_that_is_no_preset_is_refused(folder, text):
    folder("odd", text)
    with pytest.raises(PresetError, match=r"odd\.yaml"):
        load_preset("odd")


@pytest.mark.parametrize("line", ["seed = 1", "seed: int", "a.seed: int = 1"])
def test_a_parameters_cell_with_another_kind_of_line_is_refused(tmp_path, monkeypatch, line):
    cell = nbformat.v4.new_code_cell(f"k: int = 2\n{line}", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "odd.ipynb")
    monkeypatch.setattr(presets, "NOTEBOOKS", tmp_path)
    with pytest.raises(PresetError, match="name: type = value"):
        presets.read_parameters("odd")


# ---------------------------------------------------------------- extends


def test_a_preset_inherits_what_it_does_not_say(folder):
    folder("parent", PARENT)
    folder("child", "extends: parent")
    assert load_preset("child") == load_preset("parent")


def test_a_presets_own_values_come_before_the_inherited_ones(folder):
    folder("parent", PARENT)
    folder(
        "child",
        """
        extends: parent
        description: the child
        parameters: {00_prepare_data: {val_images: null}, 01_distill_masks: {top_k: 0.5}}
        seconds: {02_cluster_masks: 3}
        bands: {corloc: [0.5, 0.6]}
        """,
    )
    child = load_preset("child")
    assert child.description == "the child"
    assert child.parameters == {
        "00_prepare_data": {"train_images": 7, "val_images": None},
        "01_distill_masks": {"top_k": 0.5},
        "02_cluster_masks": {"k": 9},
    }
    assert child.seconds == {"00_prepare_data": 1, "02_cluster_masks": 3}
    assert child.bands == {"corloc": (0.5, 0.6), "mask_iou": (0.3, 0.4)}
    resolved = resolve(child, {"00_prepare_data": {"train_images": 5}})
    assert resolved["00_prepare_data"]["train_images"] == 5
    assert resolved["02_cluster_masks"]["k"] == 9


def test_what_is_inherited_for_a_notebook_that_is_left_out_is_dropped(folder):
    folder("parent", PARENT)
    folder("child", "extends: parent\nnotebooks: [00_prepare_data, 01_distill_masks]")
    folder("grandchild", "extends: child\nparameters: {02_cluster_masks: {k: 3}}")
    child = load_preset("child")
    assert child.parameters.keys() == child.seconds.keys() == {"00_prepare_data"}
    assert list(resolve(child, {})) == ["00_prepare_data", "01_distill_masks"]
    with pytest.raises(PresetError, match="'02_cluster_masks' is not in this preset"):
        resolve(load_preset("grandchild"), {})  # its own word is not dropped


def test_an_unknown_parent_is_named_with_the_file_that_asks_for_it(folder):
    folder("child", "extends: parent")
    with pytest.raises(PresetError, match=r"child\.yaml .* unknown preset 'parent'"):
        load_preset("child")


def test_presets_that_extend_one_another_in_a_circle_are_refused(folder):
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
        folder(name, f"extends: {parent}")
    with pytest.raises(PresetError, match="a -> b -> c -> a"):
        load_preset("a")


@pytest.mark.parametrize("name", [name for name, own in FILES.items() if "extends" in own])
def test_a_preset_repeats_nothing_of_its_parent(name):
    own = FILES[name]
    parent = load_preset(own["extends"])
    inherited = resolve(parent, {})
    repeated = [
        (notebook, key)
        for notebook, values in own.get("parameters", {}).items()
        for key, value in values.items()
        if key in inherited.get(notebook, {}) and inherited[notebook][key] == value
    ]
    for part in ("seconds", "bands"):
        known = parent.model_dump(mode="json")[part]
        repeated += [(part, k) for k, v in own.get(part, {}).items() if known.get(k) == v]
    repeated += [
        key for key in ("description", "notebooks") if own.get(key) == getattr(parent, key)
    ]
    assert not repeated


# ---------------------------------------------------------------- old names


def test_the_old_name_of_a_parameter_is_an_error_that_says_the_new_one(folder, monkeypatch):
    monkeypatch.setitem(presets.RENAMED, ("01_distill_masks", "share"), "top_k")
    message = "01_distill_masks: parameter 'share' is called 'top_k' now"
    folder("parent", PARENT)
    with pytest.raises(PresetError, match=message):
        resolve(load_preset("parent"), {"01_distill_masks": {"share": 0.4}})
    folder("old", "extends: parent\nparameters: {01_distill_masks: {share: 0.4}}")
    with pytest.raises(PresetError, match=message):
        resolve(load_preset("old"), {})
    with pytest.raises(PresetError, match="no parameter 'share'"):  # another notebook's
        resolve(load_preset("parent"), {"02_cluster_masks": {"share": 0.4}})


def test_the_old_name_of_a_preset_is_an_error_that_says_the_new_one(folder, monkeypatch):
    monkeypatch.setitem(presets.RENAMED_PRESETS, "photos", "folder")
    folder("mine", "extends: photos")
    for name in ("photos", "mine"):
        with pytest.raises(PresetError, match="preset 'photos' is called 'folder' now"):
            load_preset(name)


def test_what_was_renamed_exists_under_its_new_name_alone():
    for (notebook, old), new in presets.RENAMED.items():
        known = presets.read_parameters(notebook)
        assert new in known and old not in known
    for old, new in presets.RENAMED_PRESETS.items():
        assert new in FILES and old not in FILES


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("0.5", 0.5), ("null", None), ("1", 1.0)]
)
def test_numbers_of_a_set_become_the_declared_type(text, value):
    overrides = presets.parse_sets([f"01_distill_masks.mass={text}"])
    resolved = resolve(load_preset("demo"), overrides)
    assert resolved["01_distill_masks"]["mass"] == value


def test_a_set_takes_a_list():
    resolved = resolve(
        load_preset("demo"), presets.parse_sets(["03_train_mask_rcnn.lr_milestones=[400, 600]"])
    )
    assert resolved["03_train_mask_rcnn"]["lr_milestones"] == [400, 600]


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
        ("list[int]", []),
        ("list[int]", [1, 2]),
    ],
)
def test_a_value_of_the_declared_type_stays_as_it_is(declared, value):
    checked = presets.check_value("x", value, declared)
    assert checked == value and type(checked) is type(value)


@pytest.mark.parametrize(
    ("value", "number"), [("1e-3", 0.001), (2, 2.0), (0.5, 0.5), ("-1E4", -1e4)]
)
@pytest.mark.parametrize("declared", ["float", "float | None"])
def test_a_float_is_read_from_whole_numbers_and_text(declared, value, number):
    checked = presets.check_value("x", value, declared)
    assert checked == number and type(checked) is float


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("int", True),
        ("int", 2.0),
        ("int", "2"),
        ("int", None),
        ("int | None", False),
        ("float", True),
        ("float", "many"),
        ("float", "nan"),
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
        presets.check_value("05.side", value, declared)
    assert str(refused.value) == f"05.side must be {declared}, got {value!r}"


def test_a_type_that_no_parameter_may_have_is_named():
    with pytest.raises(PresetError, match=r"declared as dict \| None; .*, not dict"):
        presets.check_value("x", {}, "dict | None")
