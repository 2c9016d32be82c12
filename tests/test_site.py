"""The site of a tiny executed notebook: no broken link, no missing picture, nothing fetched, nothing inlined."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from mdlib import site, store
from mdlib.presets import NOTEBOOKS


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
    """The site of two notebooks: one made here with every kind of cell, and a stripped one of the course."""
    run = tmp_path_factory.mktemp("run")
    drawn = new_code_cell(
        'stage.figure(figure, "x", caption="A red \\"square\\".")\nplt.show()',
        outputs=[new_output("display_data", {"image/png": picture(), "text/plain": "<Figure>"}), new_output("stream", name="stderr", text="warning\n")],
    )
    text = "# First page\n\n$$ a < b_{p} $$ and $x^2$, [next](01_distill_masks.ipynb#the-idea), [gone](../LICENSE), [out](https://arxiv.org)"
    made = new_notebook(cells=[new_markdown_cell(text), drawn])
    (run / "notebooks").mkdir()
    nbformat.write(made, run / "notebooks" / "00_prepare_data.ipynb")
    nbformat.write(made, run / "notebooks" / "05_train_deeplab.partial.ipynb")
    (run / "notebooks" / "01_distill_masks.ipynb").write_bytes((NOTEBOOKS / "01_distill_masks.ipynb").read_bytes())
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
    (found,) = Reader(pages[1].read_text(encoding="utf-8")).pictures
    assert found == ("figures/00_prepare_data-1-0.png", 'A red "square".')
    assert (pages[1].parent / found[0]).read_bytes() == base64.b64decode(picture())


def test_pages_fetch_nothing_and_are_light(pages):
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "base64" not in text and "@import" not in text
        assert len(text) < 5e6
    assert "http" not in (pages[0].parent / "style.css").read_text()


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
    with pytest.raises(store.StoreError, match="no executed notebooks"):
        site.build(tmp_path, tmp_path / "site")
