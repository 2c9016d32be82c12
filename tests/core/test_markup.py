"""Text is text: in Markdown, in tables, and on pages made from notebooks."""

import re
from html.parser import HTMLParser

import pytest
from cells import SOLUTIONS, STAGES, cells_of
from hypothesis import given, settings
from hypothesis import strategies as st
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from mdlib.core.markup import ATTRIBUTES, TAGS, clean_html, markdown_text
from mdlib.show.site import _markdown

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "a | b",
    "a\nb\r\nc",
    r"$\frac{1}$ and \(x\) and \begin{x}",
    "`code` **bold** __x__ *y* ~~z~~",
    "&lt;b&gt; &amp; &#36;",
    "{{ 7 * 7 }} {% raw %}",
    "http://evil/ <http://evil>",
    "# heading",
    "\u2028a\x00b",
]


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


# the renderers of the notebooks' pages and of the site
@pytest.mark.parametrize(
    "render", [markdown2html_mistune, lambda text: _markdown(text, set())], ids=["pages", "site"]
)
@pytest.mark.parametrize("text", NASTY)
def test_a_name_in_a_table_is_shown_as_it_is(render, text):
    page = Page(render(f"| name | n |\n|---|---|\n| {markdown_text(text)} | 1 |"))
    assert {tag for tag, _ in page.tags} <= {"div", "table", "thead", "tbody", "tr", "th", "td"} | {
        "span"
    }
    assert [tag for tag, _ in page.tags].count("td") == 2
    shown = " ".join(text.split()).replace("\x00", "\N{REPLACEMENT CHARACTER}")
    assert page.text.replace("\x00", "\N{REPLACEMENT CHARACTER}").split() == (
        f"name n {shown} 1".split()
    )


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab <>&`*_[]()|~#$\\!-:/\"'{}\n"), max_size=24))
def test_any_name_in_a_sentence_is_shown_as_it_is(text):
    page = Page(markdown2html_mistune(f"begin {markdown_text(text)} end"))
    assert {tag for tag, _ in page.tags} <= {"p", "span"}
    assert page.text.split() == f"begin {text} end".split()
    assert "\n" not in markdown_text(text)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab $\\()[]"), max_size=24))
def test_no_element_holds_what_mathjax_would_take_for_a_formula(text):
    html = markdown2html_mistune(markdown_text(text))
    for part in re.split("<[^>]*>", html):
        text_of_it = Page(part).text
        assert text_of_it in ("$", "\\") or not {"$", "\\"} & set(text_of_it)


def test_plain_words_are_not_touched():
    text = 'no labels on val: a "probe" learns (from train), 50 % of it - it\'s 1.5, not more!'
    assert markdown_text(text) == text


@pytest.mark.parametrize(
    "html",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        '<a href="javascript:alert(1)">x</a>',
        '<a href=" java&#10;script:alert(1)">x</a>',
        "<svg onload=alert(1)></svg>",
        "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></table></math>",
        '<iframe src="data:text/html,<script>alert(1)</script>"></iframe>',
        '<p style="background:url(javascript:alert(1))" onclick="alert(1)">x</p>',
    ],
)
def test_what_could_run_does_not_survive(html):
    page = Page(clean_html(html))
    for tag, attributes in page.tags:
        assert tag not in ("script", "svg", "style", "iframe")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert not any("script:" in (value or "") for value in attributes.values())


@pytest.mark.parametrize(
    "path", STAGES + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_all_that_the_course_is_made_of_is_kept(path):
    prose = [cell.source for cell in cells_of(path) if cell.cell_type == "markdown"]
    pages = [_markdown(text, set()) for text in prose] + list(map(markdown2html_mistune, prose))
    for html in pages:
        for tag, attributes in Page(html).tags:
            assert tag in TAGS
            assert attributes.keys() <= {*ATTRIBUTES["*"], *ATTRIBUTES.get(tag, ())}, tag
