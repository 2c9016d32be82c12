"""A notebook opened alone, without the runner: the stages that it lacks are run at the size of
`smoke`, and it says so.
"""

import nbformat
import papermill

from mdlib.core.files import read_json
from mdlib.core.paths import NOTEBOOKS
from mdlib.run import presets

NAME, LACKED = "01_distill_masks", ["00_prepare_data"]


def test_a_notebook_opened_alone_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MDLIB_BATCH", raising=False)
    values = {
        **presets.resolve(presets.load_preset("smoke"), {})[NAME],
        "run_dir": str(tmp_path / "lab"),
    }
    notebook = nbformat.read(NOTEBOOKS / f"{NAME}.ipynb", as_version=4)
    # Without the runner the explorer is live, and nbclient may wait for ever on a live widget
    # (nbclient's issue 312).
    notebook.cells = [
        cell for cell in notebook.cells if "explorer" not in cell.metadata.get("tags", [])
    ]
    opened, executed = tmp_path / "opened.ipynb", tmp_path / "executed.ipynb"
    nbformat.write(notebook, opened)
    papermill.execute_notebook(
        opened,
        executed,
        parameters=values,
        cwd=str(NOTEBOOKS),
        kernel_name="python3",
        progress_bar=False,
    )

    cells = nbformat.read(executed, as_version=4).cells
    said = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    manifests = {
        name: read_json(tmp_path / "lab" / "artifacts" / name / "manifest.json")
        for name in [*LACKED, NAME]
    }
    for name in LACKED:
        assert f"{name} has not run in" in said and f"{name}: done in" in said
        assert (
            manifests[name]["parameters"].items()
            >= presets.load_preset("smoke").parameters[name].items()
        )
    assert all(manifest["smoke_size"] for manifest in manifests.values())
    assert manifests[NAME]["inputs"].keys() == set(LACKED) and manifests[NAME]["metrics"]
    assert not (tmp_path / "lab" / "artifacts" / "run.json").exists()
