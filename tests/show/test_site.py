"""The site of a tiny executed notebook: no broken link, no missing picture, nothing fetched,
nothing inlined.

Where Chromium is installed, each page is also opened in it: a quiet console, every picture there,
nothing wider than a phone.
"""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from stages import made

from mdlib.core.files import StoreError
from mdlib.core.paths import NOTEBOOKS
from mdlib.show import site

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here, so nobody opens the pages"
)


class Reader(HTMLParser):
    """What a page links to, shows and names."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.pictures, self.ids, self.open = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values["id"]} if "id" in values else set()
        if tag in ("a", "link") and not values["href"].startswith("data:"):
            self.links.append(values["href"])
        if tag == "script":
            self.links.append(values["src"])
        if tag == "img":
            self.pictures.append((values["src"], values.get("alt", "")))
        if tag not in ("img", "link", "meta", "br", "hr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def picture() -> str:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[Path]:
    """The site of two notebooks: one made here with every kind of cell, and a stripped one of the
    course.
    """
    run = tmp_path_factory.mktemp("run")
    drawn = new_code_cell(
        'stage.figure(figure, "x", caption="A red \\"square\\".")\nplt.show()',
        outputs=[
            new_output("display_data", {"image/png": picture(), "text/plain": "<Figure>"}),
            new_output("stream", name="stderr", text="warning\n"),
        ],
    )
    text = "# First page\n\n$$ a < b_{p} $$ and $x^2$, [next](01_distill_masks.ipynb#the-idea), [gone](../LICENSE), [out](https://arxiv.org)"
    made = new_notebook(cells=[new_markdown_cell(text), drawn])
    (run / "notebooks").mkdir()
    nbformat.write(made, run / "notebooks" / "00_prepare_data.ipynb")
    nbformat.write(made, run / "notebooks" / "05_train_deeplab.partial.ipynb")
    (run / "notebooks" / "01_distill_masks.ipynb").write_bytes(
        (NOTEBOOKS / "01_distill_masks.ipynb").read_bytes()
    )
    return site.build(run, tmp_path_factory.mktemp("site"))


def test_the_map_comes_first_and_half_done_notebooks_are_left_out(pages):
    assert [page.stem for page in pages] == ["index", "00_prepare_data", "01_distill_masks"]


def test_no_link_or_picture_is_broken(pages):
    readers = {page.name: Reader(page.read_text(encoding="utf-8")) for page in pages}
    for name, reader in readers.items():
        assert not reader.open, f"{name}: not closed: {reader.open}"
        for target in reader.links:
            if target.startswith("http"):
                continue
            file, _, anchor = target.partition("#")
            assert not file or (pages[0].parent / file).is_file(), f"{name} links to {target}"
            assert not anchor or anchor in readers[file or name].ids, f"{name} links to {target}"
        for source, alt in reader.pictures:
            assert (pages[0].parent / source).is_file(), f"{name} shows {source}"
            assert alt, f"{name}: {source} has no alternative text"


def test_a_picture_lies_beside_the_page_with_its_caption(pages):
    reader = Reader(pages[1].read_text(encoding="utf-8"))
    (found,) = reader.pictures
    assert found == ("figures/00_prepare_data-1-0.png", 'A red "square".')
    assert found[0] in reader.links  # in full size
    assert (pages[1].parent / found[0]).read_bytes() == base64.b64decode(picture())


def test_pages_fetch_nothing_and_are_light(pages):
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<script[^>]*>[^<]*", text) == ['<script src="search.js">']
        assert "base64" not in text and "@import" not in text
        assert len(text) < 5e6
    assert not any(
        "http" in (pages[0].parent / name).read_text(encoding="utf-8")
        for name in ("style.css", "search.js")
    )


def test_the_search_knows_every_page_and_heading(pages):
    found = re.search(
        r"const entries = (.*);\n", (pages[0].parent / "search.js").read_text(encoding="utf-8")
    )
    entries = dict(json.loads(found[1]))
    readers = {page.name: Reader(page.read_text(encoding="utf-8")) for page in pages}
    assert readers.keys() <= entries.keys()
    assert entries["00_prepare_data.html"] == "First page"
    assert entries["index.html#two-hours-in-a-lab"] == "The course: Two hours in a lab"
    for address in entries:
        name, _, anchor = address.partition("#")
        assert not anchor or anchor in readers[name].ids, address


@pytest.mark.parametrize(
    ("source", "alt"),
    [
        ("%matplotlib inline\n!pip list\nstage.figure(f, 'x', caption='A square.')", "A square."),
        ("if x: (", "a figure of 00_prepare_data"),
        ("<<<<<<< HEAD", "a figure of 00_prepare_data"),
        ("", "a figure of 00_prepare_data"),
    ],
)
def test_a_cell_that_is_not_plain_python_is_a_cell_all_the_same(tmp_path, source, alt):
    cell = new_code_cell(source, outputs=[new_output("display_data", {"image/png": picture()})])
    (tmp_path / "notebooks").mkdir()
    notebook = new_notebook(cells=[new_markdown_cell(""), cell])
    nbformat.write(notebook, tmp_path / "notebooks" / "00_prepare_data.ipynb")
    _, page = site.build(tmp_path, tmp_path / "site")
    text = page.read_text(encoding="utf-8")
    assert Reader(text).pictures == [("figures/00_prepare_data-1-0.png", alt)]
    assert "<title>00_prepare_data" in text  # its first cell has no title


def test_a_notebook_without_its_pasted_picture_is_named(tmp_path):
    (tmp_path / "notebooks").mkdir()
    notebook = new_notebook(cells=[new_markdown_cell("![x](attachment:x)")])
    nbformat.write(notebook, tmp_path / "notebooks" / "00_prepare_data.ipynb")
    with pytest.raises(StoreError, match="no page of 00_prepare_data"):
        site.build(tmp_path, tmp_path / "site")


@pytest.mark.parametrize("text", ["costs $5 and $6", r"$\frac{1$", r"$$ \begin{x} $$", "$}$"])
def test_what_is_no_formula_stays_text(text):
    assert "</p>" in site._markdown(text, set())


def test_a_notebook_that_is_none_and_stages_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_prepare_data.ipynb").write_text("<<<<<<< HEAD\n{}")
    with pytest.raises(StoreError, match=r"00_prepare_data\.ipynb is no notebook"):
        site.build(tmp_path, tmp_path / "site")
    for name in ("00_prepare_data", "01_distill_masks"):
        nbformat.write(new_notebook(), tmp_path / "notebooks" / f"{name}.ipynb")
    made(tmp_path, "00_prepare_data")
    made(tmp_path, "01_distill_masks", "00_prepare_data")
    site.build(tmp_path, tmp_path / "site")  # and an empty notebook has a page
    made(tmp_path, "00_prepare_data", text="other")
    with pytest.raises(StoreError, match="01_distill_masks was made from another"):
        site.build(tmp_path, tmp_path / "site")


# What a page says of itself once it is loaded, written into its title: a search, what is broken,
# what is too wide.
PROBE = """<script>addEventListener("load", () => {
  const box = document.getElementById("search");
  box.value = "lab HOURS";
  box.dispatchEvent(new Event("input"));
  document.title = JSON.stringify({
    hits: [...document.querySelectorAll("#found a")].map((link) => link.textContent),
    broken: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src),
    wide: document.documentElement.scrollWidth > innerWidth,
  });
});</script>"""


def in_chromium(page: Path) -> tuple[str, list[str]]:
    """(title of a page after loading it from its file on a phone's screen, lines of the console)."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--window-size=390,30000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    return re.search(r"<title>(.*?)</title>", done.stdout)[1], [
        line for line in done.stderr.splitlines() if "CONSOLE" in line
    ]


def probe(page: Path) -> tuple[dict, list[str]]:
    copy = page.with_name(f"probe_{page.name}")
    copy.write_text(
        page.read_text(encoding="utf-8").replace(
            "</body>", PROBE.replace('loading="lazy"', "") + "</body>"
        ),
        encoding="utf-8",
    )
    title, console = in_chromium(copy)
    copy.unlink()
    return json.loads(title), console


@needs_chromium
def test_every_page_opens_from_a_file_without_complaint(pages):
    for page in pages:
        said, console = probe(page)
        assert said == {"hits": ["The course: Two hours in a lab"], "broken": [], "wide": False}, (
            page.name
        )
        assert not console, page.name


@needs_chromium
def test_a_missing_picture_and_an_error_would_be_seen(pages):
    page = pages[0].with_name("broken.html")
    page.write_text(
        '<body style="width: 999px"><input id="search"><ul id="found"></ul><img src="gone.png"><script>nobody()</script></body>'
    )
    said, console = probe(page)
    page.unlink()
    assert said["broken"] and said["wide"]
    assert any("nobody is not defined" in line for line in console)


def test_formulas_become_mathml(pages):
    for page in pages:
        prose = re.sub(r"<pre>.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "$" not in prose
    text = pages[1].read_text(encoding="utf-8")
    assert 'display="block"' in text and "<msup><mi>x</mi><mn>2</mn></msup>" in text


def test_links_lead_to_pages_or_become_text(pages):
    links = Reader(pages[1].read_text(encoding="utf-8")).links
    assert "01_distill_masks.html#the-idea" in links and "https://arxiv.org" in links
    assert not any("LICENSE" in target or ".ipynb" in target for target in links)


def test_a_run_without_notebooks_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no executed notebooks"):
        site.build(tmp_path, tmp_path / "site")
