"""Presets: what they inherit, what they may say, and the values that a parameter takes."""

import nbformat
import pytest
import yaml

from mdlib.core.paths import NOTEBOOKS, PRESETS
from mdlib.run import presets
from mdlib.run.presets import PresetError, load_preset, resolve
from mdlib.run.stage import open_stage
from mdlib.run.values import Parameter

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


# ---------------------------------------------------------------- values of presets and of --set


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("0.5", 0.5), ("null", None), ("1", 1.0)]
)
def test_numbers_of_a_set_become_the_declared_type(text, value):
    overrides = presets.parse_sets([f"01_distill_masks.max_ncut={text}"])
    resolved = resolve(load_preset("demo"), overrides)
    assert resolved["01_distill_masks"]["max_ncut"] == value


def test_a_set_takes_a_list():
    resolved = resolve(
        load_preset("demo"), presets.parse_sets(["03_train_mask_rcnn.lr_milestones=[400, 600]"])
    )
    assert resolved["03_train_mask_rcnn"]["lr_milestones"] == [400, 600]


@pytest.mark.parametrize(
    "line",
    [
        "  02_cluster_masks: {k: 9, seed: 1, k: 8}",
        "  02_cluster_masks: {k: 9}\n  02_cluster_masks: {seed: 1}",
        "  02_cluster_masks: {k: 9}\n  '02_cluster_masks': {seed: 1}",
        "  02_cluster_masks: {k: 9}\nparameters: {}",
    ],
)
def test_a_key_that_comes_twice_is_refused(folder, line):
    folder("odd", f"description: x\nnotebooks: [02_cluster_masks]\nparameters:\n{line}")
    with pytest.raises(PresetError, match=r"odd\.yaml: .*more than once\s.*line"):
        load_preset("odd")


@pytest.mark.parametrize(
    ("notebooks", "message"),
    [("[quickstart, quickstart]", "quickstart more"), ("[]", "at least 1")],
)
def test_a_preset_runs_each_of_its_notebooks_once(folder, notebooks, message):
    folder("odd", f"description: x\nnotebooks: {notebooks}")
    with pytest.raises(PresetError, match=message):
        load_preset("odd")


@pytest.mark.parametrize(
    "value", ["010", "1_0", "1:30", "0x1F", "6e1", "9.0", "nan", "1", "~", "yes"]
)
def test_a_preset_says_numbers_in_decimal(folder, value):
    folder("odd", PARENT.replace("{k: 9}", f"{{k: {value}}}"))
    with pytest.raises(PresetError, match=r"02_cluster_masks\.k must be"):
        load_preset("odd")


@pytest.mark.parametrize("part", ["seconds: {quickstart: nan}", "bands: {corloc: [0.1, .inf]}"])
def test_measured_values_are_finite(folder, part):
    folder("odd", f"description: x\nnotebooks: [quickstart]\n{part}")
    with pytest.raises(PresetError, match=r"finite|valid number"):
        load_preset("odd")


def test_the_words_of_a_preset_mean_what_they_say(folder):
    folder(
        "own",
        """
        description: x
        notebooks: [00_prepare_data, 01_distill_masks, 08_probe_linearly]
        parameters:
          00_prepare_data: {train_images: Null, dev_split: none, data_root: 2024, val_split: no}
          01_distill_masks: {center: none, weights: ~, min_objectness: 1e-3}
          08_probe_linearly: {few_labels: on, lr_milestones: [2, 3]}
        """,
    )
    assert load_preset("own").parameters == {
        "00_prepare_data": {
            "train_images": None,
            "dev_split": None,
            "data_root": "2024",
            "val_split": "no",
        },
        "01_distill_masks": {"center": "none", "weights": None, "min_objectness": 0.001},
        "08_probe_linearly": {"few_labels": True, "lr_milestones": [2, 3]},
    }


def test_a_preset_that_is_not_utf8_or_lies_elsewhere_is_refused(folder, tmp_path):
    (tmp_path / "odd.yaml").write_bytes("description: caf\u00e9".encode("latin-1"))
    with pytest.raises(PresetError, match=r"odd\.yaml"):
        load_preset("odd")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "own.yaml").write_text(PARENT)
    for name in ("below/own", "../odd", ""):
        with pytest.raises(PresetError, match="unknown preset"):
            load_preset(name)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_number_of_a_notebook_has_a_range_and_its_own_value_lies_in_it(path):
    parameters = presets.read_parameters(path.stem)
    numbers = {n for n, p in parameters.items() if {"int", "float", "list[int]"} & {*p.types}}
    assert not [name for name in numbers if parameters[name].rule is None]
    own = {name: parameter.value for name, parameter in parameters.items()}
    assert presets.check_values(path.stem, own) == own


CHOICES = {
    "dataset",
    "composition",
    "ground",
    "support_dataset",
    "encoder_name",
    "center",
    "affinity",
    "backbone",
    "optimizer",
    "overlap",
}


def test_every_choice_has_its_words():
    found = {
        name
        for path in NOTEBOOKS.glob("*.ipynb")
        for name, parameter in presets.read_parameters(path.stem).items()
        if "str" in parameter.types and parameter.rule
    }
    assert found == CHOICES


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """How to write a notebook with a parameters cell into an empty folder of notebooks."""
    monkeypatch.setattr(presets, "NOTEBOOKS", tmp_path)

    def write(source):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "own.ipynb")

    return write


def test_a_comment_begins_behind_the_value(notebook):
    notebook('a: str = "é #1; 2 or more"  # where\nb: list[int] = [\n    3,\n]  # steps; 0 or more')
    found = presets.read_parameters("own")
    assert found["a"] == Parameter("str", "é #1; 2 or more", "where") and found["a"].rule is None
    assert found["b"].value == [3] and not found["b"].rule.allows([-1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a: int = 1\na: int = 2", "more than once"),
        ("a: int = 2 *", "SyntaxError"),
        ("%matplotlib inline", "SyntaxError"),
        ("a: int = 2 * 30", "must be written out, got '2 \\* 30'"),
    ],
)
def test_a_parameters_cell_that_cannot_be_read_is_refused(notebook, source, message):
    notebook(source)
    with pytest.raises(PresetError, match=f"own: .*{message}"):
        presets.read_parameters("own")


def test_a_file_that_is_no_notebook_is_refused(notebook, tmp_path):
    (tmp_path / "own.ipynb").write_text("<<<<<<< mine\n{}")
    with pytest.raises(PresetError, match="own: "):
        presets.read_parameters("own")


def test_a_notebook_whose_parameters_have_no_values_says_so(notebook):
    notebook("a: int = 1\nb: int = 2")
    with pytest.raises(PresetError, match="own: b must have a value: run the cell"):
        presets.check_values("own", {"a": 1})


def test_a_notebook_with_a_value_out_of_its_range_opens_no_stage(tmp_path):
    own = {
        n: parameter.value for n, parameter in presets.read_parameters("04_filter_masks").items()
    }
    wrong = own | {"run_dir": str(tmp_path / "run"), "threshold": float("nan")}
    with pytest.raises(PresetError, match=r"04_filter_masks\.threshold must be float, got nan"):
        open_stage("04_filter_masks", wrong)
    assert not (tmp_path / "run").exists()


def set_one(notebook, item):
    """The value that a notebook's parameter has after `--set`."""
    alone = presets.Preset(description="alone", notebooks=[notebook])
    resolved = resolve(alone, presets.parse_sets([f"{notebook}.{item}"]))
    return resolved[notebook][item.partition("=")[0]]


def test_text_after_set_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("USERPROFILE", "/home/ada")
    for text in ("/photos/a #1", "2024", "a: b", "[1", "x=y", " a ", "no", "'q'", "~ada"):
        assert set_one("00_prepare_data", f"data_root={text}") == text
        assert set_one("01_distill_masks", f"weights={text}") == text
    assert set_one("00_prepare_data", "data_root=~/photos") == "/home/ada/photos"


@pytest.mark.parametrize("word", ["null", "None", "none", "~", "NULL"])
def test_none_is_none_where_the_type_allows_it(word):
    assert set_one("00_prepare_data", f"train_images={word}") is None
    assert set_one("00_prepare_data", f"dev_split={word}") is None
    assert set_one("01_distill_masks", f"weights={word}") is None
    for notebook, name in (
        ("00_prepare_data", "data_root"),
        ("00_prepare_data", "dataset"),
        ("02_cluster_masks", "k"),
        ("04_filter_masks", "threshold"),
        ("08_probe_linearly", "few_labels"),
        ("08_probe_linearly", "lr_milestones"),
    ):
        with pytest.raises(PresetError, match=f"{name} must be "):
            set_one(notebook, f"{name}={word}")


# What the audit found accepted, and its kind
@pytest.mark.parametrize(
    "item",
    [
        *(f"00_prepare_data.train_images={x}" for x in ("-5", "0", "1e3", "05", "")),
        *(f"01_distill_masks.min_objectness={x}" for x in ("-.inf", "nan", ".nan", "inf", "-1")),
        *(f"01_distill_masks.top_k={x}" for x in ("nan", "0", "1.01", "1_0", "")),
        "01_distill_masks.mass=0.5",  # with balanced keys
        "01_distill_masks.center=median",
        "01_distill_masks.encoder_name=dino",
        *(f"02_cluster_masks.k={x}" for x in ("1", "0", "65535", "010", "1:30", "6_0", "3.0")),
        "02_cluster_masks.seed=4294967296",
        *(f"03_train_mask_rcnn.steps={x}" for x in ("0", "-1", "null")),
        "03_train_mask_rcnn.backbone=resnet18",
        "03_train_mask_rcnn.optimizer=adam",
        "03_train_mask_rcnn.accumulation_steps=3",  # of a batch of 8
        "03_train_mask_rcnn.trainable_blocks=7",
        *(f"03_train_mask_rcnn.lr_milestones={x}" for x in ("[-1]", "[1,]", "[010]", "[a]", "5")),
        *(f"04_filter_masks.threshold={x}" for x in ("5", "-0.1", "nan", "0x1")),
        "04_filter_masks.overlap=merge",
        "05_train_deeplab.batch=1",
        "05_train_deeplab.accumulation_steps=16",  # one image a part
        *(f"05_train_deeplab.gpus={x}" for x in ("0", "true")),
        *(f"06_refine_with_crf.{name}=0" for name in ("workers", "rounds", "bilateral_sxy")),
        "08_probe_linearly.few_labels=1",
        "09_evaluate_instances.iou_threshold=0",
        "00_prepare_data.dataset=imagenet",
        "00_prepare_data.support_dataset=imagenet",
        "00_prepare_data.run_dir=reports/else",
    ],
)
def test_a_value_that_would_spoil_a_run_is_refused_at_its_start(item):
    notebook, _, name = item.partition("=")[0].partition(".")
    with pytest.raises(PresetError, match=f"^{notebook}.*{name}"):
        set_one(notebook, item.partition(".")[2])


def test_a_parameter_that_is_set_twice_is_refused():
    with pytest.raises(PresetError, match=r"02_cluster_masks\.k more than once"):
        presets.parse_sets(["02_cluster_masks.k=5", "02_cluster_masks.k=6"])
