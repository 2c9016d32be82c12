"""The course as a site: the map of docs/course.md and a run's executed notebooks, as plain pages.

Nothing is fetched: formulas become MathML, pictures lie beside the pages, so a page opens from a
file, from a server and on a phone. The one script filters titles and headings; a page is whole
without it. A link to a notebook becomes a link to its page; one to a file that the site does not
hold is written as text.
"""

import ast
import html
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from latex2mathml.converter import convert
from matplotlib.figure import Figure
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor, ExtractOutputPreprocessor

from mdlib.core.files import StoreError, atomic, write_text
from mdlib.core.paths import ROOT
from mdlib.run.artifacts import RunArtifacts
from mdlib.run.report import missing_pictures, page_exporter, read_executed
from mdlib.run.stage import has_run, run_label, verify_chain
from mdlib.show import failures, outcome, slides

FIRST = "quickstart"  # the page after the map; the others follow in the order of their names


def build(run_dir: Path, out: Path) -> list[Path]:
    """Write the site of a run.

    Args:
        run_dir: the run's folder, with its executed notebooks.
        out: where to; files of the same names are replaced.

    Returns:
        Its pages, the map first.

    Raises:
        StoreError: for a run without executed notebooks, one that is broken, and stages that do
            not fit together.
    """
    found = (run_dir / "notebooks").glob("*.ipynb")
    executed = sorted(
        (path for path in found if not path.stem.endswith(".partial")),
        key=lambda path: (path.stem != FIRST, path.stem),
    )
    if not executed:
        raise StoreError(f"{run_dir} holds no executed notebooks: run a preset first")
    pages = {path.stem for path in executed}
    if problems := verify_chain(
        run_dir, [name for name in sorted(pages) if has_run(run_dir, name)]
    ):
        raise StoreError(f"no site of {run_dir}: " + "; ".join(problems))
    course = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    titles, bodies = {"index": "The course"}, {"index": _markdown(course, pages)}
    styles = set()
    for path in executed:
        notebook = read_executed(path)
        if lacking := missing_pictures(notebook, run_dir, path.stem):
            print(lacking)
        # the sliders of the explorers: nothing on a page moves them
        notebook.metadata.pop("widgets", None)
        titles[path.stem] = _title(notebook, path.stem)
        bodies[path.stem], pictures, style = _body(notebook, path.stem, pages)
        styles.add(style)
        for name, data in pictures.items():
            with atomic(out / name) as temporary:
                temporary.write_bytes(data)
    method, others = _slides(run_dir, out / "figures")
    # after the first sentences
    bodies["index"] = bodies["index"].replace("</p>", "</p>" + method, 1) + others
    entries = json.dumps(_entries(titles, bodies), ensure_ascii=False)
    write_text(out / "style.css", STYLE + "\n".join(sorted(styles)))
    write_text(out / "search.js", SEARCH.replace("INDEX", entries))
    for name in titles:
        write_text(out / f"{name}.html", _page(name, titles, bodies[name]))
    return [out / f"{name}.html" for name in titles]


def _slides(run_dir: Path, folder: Path) -> tuple[str, str]:
    """Draw the figures for slides: HTML of the method's, and of the other two.

    Nothing for a run that does not hold all its stages on val, or has no label maps there; no
    gallery without a failure.
    """
    try:
        run = outcome.read_outcome(RunArtifacts(run_dir))
    except StoreError:
        return "", ""
    label = run_label(run_dir, {})

    def shown(name: str, figure: Figure, alt: str) -> str:
        files = slides.save(figure, folder / name, alt=alt, label=label)
        png, svg = (f"{folder.name}/{path.name}" for path in files)
        return (
            f'<div class="wide slide"><a href="{png}">'
            f'<img src="{png}" alt="{html.escape(alt)}"></a></div>'
            f'<p>For slides: <a href="{png}">PNG</a>, <a href="{svg}">SVG</a>.</p>'
        )

    panels = slides.panels_of(run)
    method = shown("method", slides.method_figure(panels, run.classes), slides.ALT)
    others = '<h2 id="one-picture-all-stages">One picture, all stages</h2>'
    others += shown("life", slides.life_figure(panels, run.classes), slides.LIFE_ALT)
    found = failures.find(run)
    if any(found.values()):
        others += '<h2 id="what-goes-wrong">What goes wrong</h2>'
        others += shown("failures", failures.failures_figure(found), failures.describe(found))
    return method, others


def _entries(titles: dict[str, str], bodies: dict[str, str]) -> list[tuple[str, str]]:
    """What the search looks through: (address, text) of each page and each heading below it."""
    entries = []
    for name, title in titles.items():
        entries.append((f"{name}.html", title))
        headings = re.findall(r'<h[2-4] id="([^"]*)">(.*?)</h', bodies[name], flags=re.DOTALL)
        for anchor, text in headings:
            plain = html.unescape(re.sub("<[^>]+>", "", text))
            entries.append((f"{name}.html#{anchor}", f"{title}: {plain}"))
    return entries


# ---------------------------------------------------------------- markdown


def _formula(body: str, *, display: str = "inline") -> str:
    """MathML of a formula; what is none, such as two prices, stays as it is written."""
    try:
        return convert(body, display=display)
    except Exception:  # latex2mathml's errors have no common class, and some are IndexErrors
        return html.escape(f"${body}$")


class _Renderer(IPythonRenderer):
    """Formulas as MathML, anchors as GitHub makes them, links to pages of this site."""

    def __init__(self, pages: set[str]):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.pages = pages

    def block_math(self, body: str) -> str:
        return f'<div class="wide">{_formula(body, display="block")}</div>'

    def inline_math(self, body: str) -> str:
        return _formula(body)

    def heading(self, text: str, level: int, **attributes: Any) -> str:
        anchor = re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]+>", "", text).lower()).replace(" ", "-")
        return super().heading(text, level, **attributes | {"id": anchor})

    def table(self, text: str) -> str:
        return f'<div class="wide"><table>{text}</table></div>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        path, _, anchor = url.partition("#")
        if not path or url.startswith("http"):
            return super().link(text, url, title)
        target = PurePosixPath(path)
        is_page = target.suffix == ".ipynb" and target.stem in self.pages
        if is_page and "solutions" not in target.parts:
            return super().link(text, f"{target.stem}.html{'#' * bool(anchor)}{anchor}", title)
        return text


def _markdown(source: str, pages: set[str]) -> str:
    """HTML of a text in Markdown; pages: the notebooks that have a page."""
    return MarkdownWithMath(renderer=_Renderer(pages)).render(source)


# ---------------------------------------------------------------- notebooks

# The picture lies beside the page, with the caption that the notebook gave it; a click shows it in
# full size.
TEMPLATE = """{%- extends 'basic/index.html.j2' -%}
{% block data_png -%}
{% set path = output.metadata.filenames['image/png'] | posix_path -%}
<a href="{{ path }}"
><img src="{{ path }}" alt="{{ output.metadata.alt | escape_html }}" loading="lazy"></a>
{%- endblock %}
"""


def _body(
    notebook: nbformat.NotebookNode, name: str, pages: set[str]
) -> tuple[str, dict[str, bytes], str]:
    """(HTML of the cells, {"figures/...": bytes of its pictures}, style of the code)."""
    for cell in notebook.cells:
        captions = _captions(cell.source) if cell.cell_type == "code" else []
        drawn = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        for number, output in enumerate(drawn):
            output.metadata["alt"] = (
                captions[number] if number < len(captions) else f"a figure of {name}"
            )
            output.data.pop("text/plain", None)
    exporter = page_exporter(raw_template=TEMPLATE)
    files = "{unique_key}-{cell_index}-{index}{extension}"
    exporter.register_preprocessor(
        ExtractOutputPreprocessor(output_filename_template=files, enabled=True)
    )
    exporter.register_preprocessor(CSSHTMLHeaderPreprocessor(style="default", enabled=True))
    exporter.register_filter("markdown2html", lambda source: _markdown(source, pages))
    places = {"unique_key": name, "output_files_dir": "figures"}
    try:
        body, resources = exporter.from_notebook_node(notebook, places)
    except Exception as error:  # nbconvert's errors have no common class
        raise StoreError(f"no page of {name} ({type(error).__name__}: {error})") from None
    # an empty notebook has no outputs at all
    return body, resources["outputs"] or {}, "\n".join(resources["inlining"]["css"])


def _title(notebook: nbformat.NotebookNode, name: str) -> str:
    """The first line of a notebook, or its name where that is empty."""
    first = notebook.cells[0].source.strip() if notebook.cells else ""
    return first.partition("\n")[0].removeprefix("# ") or name


def _captions(source: str) -> list[str]:
    """The captions that a cell gives its figures, in order; none of a cell that is not Python."""
    try:
        tree = ast.parse(TransformerManager().transform_cell(source))  # lines with % and !
    except SyntaxError:
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [
        k.value.value
        for call in calls
        for k in call.keywords
        if k.arg == "caption" and isinstance(k.value, ast.Constant)
    ]
    return [caption for caption in found if isinstance(caption, str)]


# ---------------------------------------------------------------- pages


def _page(name: str, titles: dict[str, str], body: str) -> str:
    """A page with the list of all pages, and links to the one before and the one after."""
    names = list(titles)
    text = {other: html.escape(title) for other, title in titles.items()}
    links = ""
    for other in names:
        current = " aria-current=page" if other == name else ""
        links += f'<li><a href="{other}.html"{current}>{text[other]}</a></li>'
    at = names.index(name)
    before, after = "<span></span>", ""
    if at > 0:
        other = names[at - 1]
        before = f'<a rel="prev" href="{other}.html">← {text[other]}</a>'
    if at + 1 < len(names):
        other = names[at + 1]
        after = f'<a rel="next" href="{other}.html">{text[other]} →</a>'
    return PAGE.format(title=text[name], links=links, body=body, before=before, after=after)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · MaskDistill, step by step</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="style.css"></head><body>
<a class="menu" href="#contents">Contents and search</a>
<main>{body}<p class="rotation">{before}{after}</p></main>
<nav id="contents"><strong>MaskDistill, step by step</strong>
<input id="search" type="search" placeholder="Search titles"
 aria-label="Search titles and headings" hidden>
<ul id="found" aria-live="polite"></ul><ul>{links}</ul></nav>
<script src="search.js"></script>
</body></html>
"""

# A classic script: modules and fetched files are refused where a page is opened from a file.
SEARCH = """const box = document.getElementById("search");
const entries = INDEX;
box.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const matches = ([, text]) => words.every((word) => text.toLowerCase().includes(word));
  const hits = words.length ? entries.filter(matches) : [];
  document.getElementById("found").replaceChildren(...hits.slice(0, 12).map(([address, text]) => {
    const item = document.createElement("li"), link = document.createElement("a");
    link.href = address;
    link.textContent = text;
    item.append(link);
    return item;
  }));
});
"""

STYLE = """:root { --line: #ddd; --soft: #f6f6f4; --link: #005a8f; }
* { box-sizing: border-box; }
body { margin: 0; font: 17px/1.55 system-ui, sans-serif; color: #222; }
a { color: var(--link); }
.menu { display: block; padding: .8rem 1rem 0; }
nav { border-top: 1px solid var(--line); padding: 1.2rem 1rem; }
nav ul { list-style: none; padding: 0; margin: .5rem 0; }
#search { width: 100%; font: inherit; padding: .3rem .5rem; margin: .8rem 0 0; }
#search { border: 1px solid #767676; }
#found:not(:empty) { border-bottom: 1px solid var(--line); padding-bottom: .6rem; }
nav li { margin: .3rem 0; } nav a { text-decoration: none; }
nav [aria-current] { color: #222; font-weight: 600; }
main { max-width: 60rem; padding: 0 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 2.4rem; font-size: 1.25rem; }
img { max-width: 100%; height: auto; display: block; }
.wide, .output_area, .output_subarea { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: 1rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: .35rem .7rem; }
td, th { text-align: left; vertical-align: top; }
code { background: var(--soft); padding: .1em .25em; font-size: .9em; overflow-wrap: anywhere; }
pre { margin: 0; font-size: .82rem; line-height: 1.45; overflow-x: auto; } pre code { padding: 0; }
main > pre, .highlight { background: var(--soft); border-left: 3px solid var(--line); }
main > pre, .highlight { padding: .6rem .8rem; margin: .8rem 0; }
.output pre { color: #444; padding: .2rem .8rem; }
.prompt, .output_stderr { display: none; }
details summary { cursor: pointer; color: var(--link); }
math {
  font: 1.05em math, "STIX Two Math", "Cambria Math", "Latin Modern Math", "TeX Gyre DejaVu Math",
    serif;
}
.turn { display: flex; justify-content: space-between; gap: 1rem; }
.turn { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
@media (max-width: 40rem) { /* rather scroll than one word a line */
  td, th { padding: .35rem .5rem; } .slide img { min-width: 44rem; }
  .wide table:has(th:nth-child(4)) { min-width: 34rem; }
  .wide table:has(th:nth-child(6)) { min-width: 48rem; }
}
@media (min-width: 60rem) {
  body { display: grid; grid-template-columns: 17rem minmax(0, 1fr); }
  .menu { display: none; }
  nav { order: -1; border: 0; border-right: 1px solid var(--line); padding: 1.2rem; }
  nav { height: 100vh; position: sticky; top: 0; overflow-y: auto; }
  main { padding: .5rem 2.5rem 3rem; }
}
"""
