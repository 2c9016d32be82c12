"""The course as a reader meets it: short cells, figures that are read, a card in each notebook, one
chain through all.
"""

import re
from statistics import median

import pytest
from cells import STAGES, cells_of
from nbformat.v4 import new_code_cell, new_markdown_cell

from mdlib.run.presets import load_preset

CELLS = {path.stem: cells_of(path) for path in STAGES}
CHAIN = load_preset("evidence").notebooks
# drawn above the table of the same claims, and read before both
READ_BEFORE = {("12_report", "claims")}

each_notebook = pytest.mark.parametrize("name", CELLS)


def lines_of(cell) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def test_most_code_cells_are_short():
    lengths = [
        lines_of(cell) for cells in CELLS.values() for cell in cells if cell.cell_type == "code"
    ]
    assert median(lengths) <= 12


# ---------------------------------------------------------------- figures


def unread(cells: list) -> list[str]:
    """Ids of the cells that draw a figure which no sentence reads before the next figure."""
    found = []
    for number, cell in enumerate(cells):
        if draws(cell):
            following = next(
                (c for c in cells[number + 1 :] if c.cell_type == "markdown" or draws(c)), None
            )
            if following is None or draws(following) or following.source.startswith("#"):
                found.append(cell.id)
    return found


def draws(cell) -> bool:
    return cell.cell_type == "code" and "stage.figure(" in cell.source


@each_notebook
def test_a_sentence_reads_every_figure(name):
    assert not [cell for cell in unread(CELLS[name]) if (name, cell) not in READ_BEFORE]


def test_an_unread_figure_is_found():
    draw, sentence, heading = (
        new_code_cell("stage.figure(f)"),
        new_markdown_cell("It rises."),
        new_markdown_cell("## Next"),
    )
    assert unread([draw, sentence]) == []
    assert unread([draw, new_code_cell("x = 1"), sentence]) == []
    for cells in (
        [draw],
        [draw, heading, sentence],
        [draw, new_code_cell("stage.figure(g)"), sentence],
    ):
        assert draw.id in unread(cells)


# ---------------------------------------------------------------- the card


def card(name: str) -> dict[str, str]:
    """The table of a notebook's card: {column: its one value}."""
    (source,) = [cell.source for cell in CELLS[name] if cell.id == "card"]
    rows = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in source.splitlines()
        if line.startswith("|")
    ]
    assert len(rows) == 3, f"expected heads, a rule and one row, got {rows}"
    return dict(zip(rows[0], rows[2], strict=True))


@each_notebook
def test_the_card_says_what_is_read_written_and_how_long_it_takes(name):
    columns = card(name)
    assert [column.split()[0] for column in columns][:3] == ["reads", "writes", "time"]
    assert all(columns.values())


NUMBER = r"\d*\.\d+"


def exact_numbers(text: str) -> list[str]:
    """Decimal numbers that are neither a band (0.5 to 0.6) nor a bound (above 0.5); names in code
    do not count.
    """
    band = rf"{NUMBER} to {NUMBER}|(?:above|below|within|at least|at most) {NUMBER}"
    return re.findall(NUMBER, re.sub(band, "", re.sub(r"`[^`]*`", "", text)))


@each_notebook
def test_what_is_expected_is_a_band_or_words(name):
    assert not exact_numbers(card(name).get("expect", ""))


def test_an_exact_number_is_found():
    assert exact_numbers("`mask_iou` 0.61, AP50 0.5 to 0.6, above 0.4") == ["0.61"]


def test_cards_expect_no_less_than_the_bands_of_the_demo():
    bands = load_preset("demo").bands
    said = [
        found
        for name in CELLS
        for found in re.findall(rf"`(\w+)` ({NUMBER}) to ({NUMBER})", card(name).get("expect", ""))
    ]
    assert said and {metric for metric, _, _ in said} <= bands.keys()
    for metric, low, high in said:
        assert float(low) <= bands[metric][0] and bands[metric][1] <= float(high), (
            f"{metric}: {bands[metric]} in the preset"
        )


# ---------------------------------------------------------------- the chain


def links(name: str) -> dict[str, str]:
    """{"previous": notebook, "next": notebook} of the line below a notebook's title."""
    title = CELLS[name][0].source
    assert all(
        shown == linked for shown, linked in re.findall(r"\[(\d\d) · [^\]]*\]\((\d\d)_", title)
    ), title
    return dict(re.findall(r"(previous|next): \[[^\]]*\]\((\w+)\.ipynb\)", title))


def test_the_links_at_the_top_make_one_chain():
    assert set(CHAIN) == {name for name in CELLS if name[:2].isdigit()}
    assert {name: links(name).get("next") for name in CHAIN} == dict(
        zip(CHAIN, [*CHAIN[1:], None], strict=True)
    )
    assert {name: links(name).get("previous") for name in CHAIN} == dict(
        zip(CHAIN, [None, *CHAIN[:-1]], strict=True)
    )
