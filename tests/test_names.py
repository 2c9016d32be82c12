"""A name is text on every page: class, cluster, file, caption, reason of skipping, error.

The pages are made as a run makes them, and read by a parser; where Chromium is installed they are
opened in it too, and the script in each name would change the page's title.
"""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from stages import opened, write_outputs

from mdlib.core.files import write_json, write_text
from mdlib.core.markup import markdown_text
from mdlib.evaluate.bootstrap import Effect
from mdlib.run import report
from mdlib.run.presets import Preset
from mdlib.run.stage import StageSkipped
from mdlib.show import figures, gallery, site
from mdlib.studies.claims import finding, write_claims

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
RUN_IT = "document.title='RAN'"
NAMES = [
    f"<script>{RUN_IT}</script>",
    f'"><img src=x onerror="{RUN_IT}">',
    f"<svg onload={RUN_IT}>",
    f"[x](javascript:{RUN_IT})",
    f"</title><script>{RUN_IT}</script>",
    "a | b\nc",
    r"$\frac{1}$",
]


class Danger(HTMLParser):
    """What of a page could run, but for the scripts that the page brings itself."""

    def __init__(self, html: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.found += [
            (tag, name, value)
            for name, value in values.items()
            if name.startswith("on") or (name in ("href", "src") and "script:" in value.lower())
        ]
        if tag == "svg":
            self.found.append((tag, "", ""))

    def handle_data(self, data):
        self.text += data
        if self.cdata_elem == "script" and RUN_IT in data:
            self.found.append(("script", "", data))


def executed(path: Path, text: str) -> None:
    """A notebook whose outputs hold a name, as Markdown that was escaped and as HTML that was not."""
    outputs = [
        new_output("display_data", {"text/markdown": f"| a |\n|---|\n| {markdown_text(text)} |"}),
        new_output("display_data", {"text/markdown": text, "text/html": f"<b>{text}</b>"}),
        new_output("stream", name="stdout", text=text),
        new_output("error", ename="ValueError", evalue=text, traceback=[f"ValueError: {text}"]),
    ]
    cells = [new_markdown_cell(f"# {path.stem}\n\nwords"), new_code_cell("1", outputs=outputs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[Path]:
    """Report, notebooks' pages, site and contact sheet of a run where every name is in NAMES."""
    run = tmp_path_factory.mktemp("run")
    write_json(run / "artifacts" / "run.json", {"preset": NAMES[0]})
    every = "\n".join(NAMES)
    names = ["00_prepare_data", "01_distill_masks"]
    for name in names:
        stage = opened(run, name, dataset=every)
        write_outputs(stage)
        stage.figure(plt.figure(figsize=(1, 1)), "x", caption=every)
        effect = Effect(0.2, 0.1, 0.3, 0.01)
        write_claims(stage.folder, [finding(every, experiment=every, effect=effect)])
        executed(run / "notebooks" / f"{name}.ipynb", every)
        report.render_notebook(run / "notebooks" / f"{name}.ipynb")
        if name == names[0]:
            stage.finish({"mask_iou": 0.5})
        else:
            with pytest.raises(StageSkipped):
                stage.skip(every)
    report.write(run, Preset(description=every, notebooks=names))
    members = [gallery.Cluster(i, name, np.array([i])) for i, name in enumerate(NAMES)]
    thumbs = {i: np.zeros((4, 4, 3), np.uint8) for i in range(len(NAMES))}
    sheet = gallery.contact_sheet(members, thumbs, NAMES, title=every, note=every)
    write_text(run / "contact_sheet.html", sheet)
    made = [run / "index.html", run / "contact_sheet.html", *(run / "notebooks").glob("*.html")]
    return made + site.build(run, tmp_path_factory.mktemp("site"))


def test_nothing_of_a_name_could_run(pages):
    assert len(pages) == 7
    for page in pages:
        assert not Danger(page.read_text(encoding="utf-8")).found, page


def test_the_name_is_there_as_text(pages):
    for page in pages:
        if page.stem != "index" or (page.parent / "artifacts").is_dir():
            text = Danger(page.read_text(encoding="utf-8")).text
            assert NAMES[0] in text and NAMES[1] in text, page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here, so nobody opens the pages")
def test_nothing_of_a_name_runs_in_a_browser(pages):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    for page in pages:
        done = subprocess.run(
            [CHROMIUM, *options, "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        assert "<title>RAN</title>" not in done.stdout, page


def test_a_table_of_the_summary_has_its_cells_and_no_more(pages):
    summary = (pages[0].parent / "summary.md").read_text(encoding="utf-8")
    tables = [part.splitlines() for part in summary.split("\n\n") if part.startswith("|")]
    assert [{line.count("|") for line in table} for table in tables] == [{6}, {5}, {4}]
    assert not [line for line in summary.splitlines() if line == "c" or line.startswith("<")]
    (skipped,) = [line for line in summary.splitlines() if ": skipped, " in line]
    assert skipped.startswith("01_distill_masks: skipped, &#60;script&#62;")


@pytest.mark.parametrize("name", [r"$\frac{1}$", r"$\bad$", "$", "_", "%", "{}", "a\nb", "", "<b>"])
def test_a_figure_draws_a_name_as_it_is(name, tmp_path):
    figures.set_style()
    values = {name: 0.5, "other": 0.2}
    picture = np.zeros((4, 4, 3), np.uint8)
    drawn = [
        figures.bar_plot(values, xlabel=name),
        figures.dot_plot({n: [v] for n, v in values.items()}, xlabel=name),
        figures.interval_plot({n: (v, 0.1, 0.6) for n, v in values.items()}, xlabel=name),
        figures.histogram({n: np.array([v]) for n, v in values.items()}, xlabel=name, ylabel=name),
        figures.count_heatmap(
            np.eye(2), rows=list(values), columns=list(values), xlabel=name, ylabel=name
        ),
        figures.image_grid([picture] * 2, [name, "x"], columns=2),
        figures.image_table([[picture]], columns=[name], labels=[name]),
    ]
    for number, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{number}.png")
        texts = [text.get_text() for text in figure.findobj(plt.Text)]
        assert name in texts
    plt.close("all")
