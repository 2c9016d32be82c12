"""Names and sentences of others (a class, a file, a reason, an error) on pages and in Markdown.

They are text wherever they are shown: `markdown_text` at the border to Markdown, Jinja's autoescape
and `html.escape` at that to HTML. `clean_html` is the second wall, on pages made from notebooks: a
tag that could run something is shown as text.
"""

import bleach

# what would begin a tag, an entity, code, emphasis, a cell, a heading or a strike-through
SPECIAL = "&<>`*_{}|~#"
# what would begin a formula: MathJax looks for these in the finished page, so an entity is not
# enough, but it looks in one element at a time
FORMULA = "$\\"
ESCAPES = {ord(c): f"&#{ord(c)};" for c in SPECIAL} | {
    ord(c): f"<span>&#{ord(c)};</span>" for c in FORMULA
}
# what would make a link of brackets or of an address
LINKS = {"](": "]&#40;", "][": "]&#91;", "://": "&#58;//"}

# fmt: off
TAGS = frozenset((
    "a", "abbr", "b", "blockquote", "br", "code", "del", "details", "div", "em", "h1", "h2",
    "h3", "h4", "h5", "h6", "hr", "i", "img", "li", "ol", "p", "pre", "span", "strong", "sub",
    "summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
    # MathML, as latex2mathml writes it
    "math", "menclose", "merror", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mphantom",
    "mroot", "mrow", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd",
    "mtext", "mtr", "munder", "munderover",
))
# fmt: on
ATTRIBUTES = {
    "*": ["class", "id"],
    "a": ["href", "title"],
    "img": ["src", "alt", "title", "loading"],
    "math": ["display", "xmlns"],
    "mi": ["mathvariant"],
    "mo": ["fence", "form", "stretchy", "separator", "minsize", "maxsize"],
    "mspace": ["width"],
    "mstyle": ["displaystyle", "scriptlevel"],
    "mtd": ["columnalign"],
}


def markdown_text(text: str) -> str:
    """Write a text so that Markdown shows it as it is, also in the cell of a table.

    Args:
        text: anything; line breaks and runs of spaces become one space.

    Returns:
        One line of Markdown in which nothing of the text is a tag, a link, a formula, emphasis or
        the border of a cell.
    """
    line = " ".join(text.split()).translate(ESCAPES)
    for link, shown in LINKS.items():
        line = line.replace(link, shown)
    return line


def clean_html(text: str) -> str:
    """Keep the tags and attributes that notebooks of the course use; show all others as text.

    Args:
        text: HTML of a cell or of an output.

    Returns:
        HTML without scripts, styles, event handlers and addresses other than files, http and mail.
    """
    return bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES)
