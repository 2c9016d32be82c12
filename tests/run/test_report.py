"""The page of a run: what stands in it, and where it leads."""

import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from stages import made, opened, write_outputs

from mdlib.core.files import StoreError, read_json, write_json, write_text
from mdlib.core.paths import ROOT
from mdlib.evaluate.bootstrap import Effect
from mdlib.run import report
from mdlib.run.identity import device
from mdlib.run.metric_names import MEANINGS
from mdlib.run.presets import Preset
from mdlib.run.stage import StageSkipped, manifest_path
from mdlib.studies.claims import claim, finding, write_claims


def one_stage(run_dir, *claims):
    """The stage of the run, which tested `claims`."""
    stage = opened(run_dir, "00_prepare_data", seed=3, dataset="folder")
    write_outputs(stage)
    if claims:
        write_claims(stage.folder, list(claims))
    stage.finish({"zz_new": 2.0, "mask_iou": 0.5})


@pytest.fixture
def run(tmp_path):
    """(folder, preset) of a run of one stage with two metrics, one of them unknown."""
    one_stage(tmp_path)
    write_json(tmp_path / "artifacts" / "run.json", {"preset": "tiny"})
    return tmp_path, Preset(
        description="a test", notebooks=["00_prepare_data"], bands={"mask_iou": (0.6, 0.9)}
    )


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [("cpu", "cpu, "), ("cuda", "cuda, ")],
)
def test_the_device_is_the_one_that_the_stages_ran_on(run, recorded, shown):
    folder, preset = run
    path = manifest_path(folder, "00_prepare_data")
    manifest = read_json(path)
    assert manifest.pop("device") == device()
    write_json(path, manifest | {"device": recorded})
    assert report.collect(folder, preset)["run"]["device"].startswith(shown)


def test_the_report_is_written_without_torch(run):
    folder, _ = run
    code = (
        "import sys; from pathlib import Path; from mdlib.run import report; "
        "from mdlib.run.presets import Preset; "
        "preset = Preset(description='a test', notebooks=['00_prepare_data']); "
        f"report.write(Path({str(folder)!r}), preset); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert (folder / "index.html").is_file()


def test_metrics_stand_in_the_order_of_their_meanings_and_unknown_ones_last(run):
    folder, preset = run
    report.write(folder, preset)
    rows = report.metric_rows(read_json(folder / "metrics.json"))
    assert rows == [
        ("mask_iou", "0.500", "0.6 to 0.9", "OUTSIDE", MEANINGS["mask_iou"]),
        ("zz_new", "2.000", "", "", ""),
    ]


def test_the_page_leads_to_the_contact_sheet_where_there_is_one(run):
    folder, preset = run
    report.write(folder, preset)
    assert "contact_sheet" not in (folder / "index.html").read_text(encoding="utf-8")
    write_text(folder / "export" / "contact_sheet.html", "clusters")
    report.write(folder, preset)
    assert '<a href="export/contact_sheet.html">' in (folder / "index.html").read_text(
        encoding="utf-8"
    )


def test_a_band_without_its_metric_is_not_left_out():
    content = {"metrics": {"a": 1.0}, "bands": {"miou_clustering": [0.3, 0.5]}}
    rows = report.metric_rows(content)
    assert [row[:4] for row in rows][1] == ("miou_clustering", "not measured", "0.3 to 0.5", "")


def test_claims_stand_on_the_page_where_some_were_tested(run):
    folder, preset = run
    report.write(folder, preset)
    pages = [folder / name for name in ("summary.md", "index.html")]
    assert not any("Claims" in page.read_text(encoding="utf-8") for page in pages)
    effect = Effect(0.02, -0.01, 0.05, 0.2)
    one_stage(
        folder,
        claim("filter", experiment="a < b", effect=effect),
        finding("c < d", experiment="mIoU", effect=effect),
    )
    report.write(folder, preset)
    summary, index = (page.read_text(encoding="utf-8") for page in pages)
    shown = "+0.020 (-0.010 to +0.050)"
    assert f"| a &#60; b | {shown} | not decided (adjusted p = 0.200) |" in summary
    assert f"| c &#60; d | mIoU | {shown} |" in summary
    assert f"<td>a &lt; b</td><td>{shown}</td><td>not decided (adjusted p = 0.200)</td>" in index
    assert f"<td>c &lt; d</td><td>mIoU</td><td>{shown}</td></tr>" in index
    assert summary.count("not run") == index.count("not run") == 4  # the other claims
    assert "**" not in summary


def test_a_stages_section_has_its_page_its_figures_and_why_it_was_skipped(run):
    folder, preset = run
    stage = opened(folder, "01_distill_masks")
    figure = plt.figure()
    stage.figure(figure, "x", caption='the "best" & <worst>')
    plt.close(figure)
    with pytest.raises(StageSkipped):
        stage.skip("no labels <here>")
    write_text(folder / "notebooks" / "01_distill_masks.html", "executed")
    report.write(folder, preset.model_copy(update={"notebooks": ["00_prepare_data", stage.name]}))
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert '<h2><a href="notebooks/01_distill_masks.html">01_distill_masks</a></h2>' in page
    assert "<h2>00_prepare_data</h2>" in page  # no page, no link
    assert "Skipped: no labels &lt;here&gt;</p>" in page and page.count("Skipped") == 1
    assert (
        'src="figures/01_distill_masks-x.png" alt="the &#34;best&#34; &amp; &lt;worst&gt;"' in page
    )


def test_the_readme_takes_claims_from_a_run_that_tested_some_and_results_from_another(
    run, tmp_path, monkeypatch
):
    folder, preset = run
    readme = "head\n<!-- results:begin -->\n<!-- results:end -->\nbetween\n<!-- claims:begin -->\n<!-- claims:end -->\ntail\n"
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    report.write(folder, preset)
    report.write_readme(folder)
    results, claims = (tmp_path / "README.md").read_text(encoding="utf-8").split("between")
    assert (
        "`mask_iou`" in results and claims == "\n<!-- claims:begin -->\n<!-- claims:end -->\ntail\n"
    )
    one_stage(folder, claim("cues", experiment="hues", effect=Effect(0.2, 0.1, 0.3, 0.001)))
    report.write(folder, preset)
    report.write_readme(folder)
    again, claims = (tmp_path / "README.md").read_text(encoding="utf-8").split("between")
    assert (
        again == results
        and "| hues | +0.200" in claims
        and claims.endswith("<!-- claims:end -->\ntail\n")
    )


def test_a_run_whose_stages_do_not_fit_has_no_report_and_keeps_the_earlier_one(run):
    folder, preset = run
    made(folder, "01_distill_masks", "00_prepare_data")
    both = preset.model_copy(update={"notebooks": ["00_prepare_data", "01_distill_masks"]})
    report.write(folder, both)
    before = (folder / "index.html").read_bytes()
    made(folder, "00_prepare_data", text="other")
    for refused in (report.collect, report.write):
        with pytest.raises(StoreError, match="01_distill_masks was made from another 00_prepare_"):
            refused(folder, both)
    with pytest.raises(StoreError, match="02_cluster_masks has not run"):
        report.write(folder, preset.model_copy(update={"notebooks": ["02_cluster_masks"]}))
    assert (folder / "index.html").read_bytes() == before
    made(folder, "01_distill_masks", "00_prepare_data")
    report.write(folder, both)


BEGIN, END = report.README_MARKS["results"]


@pytest.mark.parametrize(
    "readme",
    [
        f"head\n{BEGIN}\ntail",
        f"head\n{END}\ntail",
        f"head\n{END}\n{BEGIN}\ntail",
        f"head\n{BEGIN}\n{BEGIN}\n{END}\ntail",
        f"head\n{BEGIN}\n{END}\n{END}\ntail",
        f"head\n{BEGIN}\n{END}\ntail {BEGIN} {END}",
        "nothing",
    ],
)
def test_a_readme_without_its_two_marks_is_left_as_it_is(run, tmp_path, monkeypatch, readme):
    folder, preset = run
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    report.write(folder, preset)
    with pytest.raises(StoreError, match="must hold the marks"):
        report.write_readme(folder)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == readme


def test_a_notebook_without_its_pictures_is_told(run, capsys):
    folder, preset = run
    stage = opened(folder, "00_prepare_data", seed=3, dataset="folder")
    write_outputs(stage)
    for name in ("x", "y"):
        stage.figure(plt.figure(figsize=(1, 1)), name, caption="A figure.")
    stage.finish({})
    picture = new_output("display_data", {"image/png": ""})
    path = folder / "notebooks" / "00_prepare_data.ipynb"
    path.parent.mkdir()
    for pictures in (0, 1, 2):
        cells = [new_code_cell("1", outputs=[picture] * pictures)]
        nbformat.write(new_notebook(cells=cells), path)
        report.write(folder, preset)
        said = capsys.readouterr().out
        assert said.startswith(
            f"00_prepare_data: its executed notebook holds {pictures} pictures, its stage 2 figures"
        ) == (pictures < 2)
