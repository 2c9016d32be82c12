"""No number of another data set or split stands beside a published one."""

import pytest

from mdlib.run import published, report

EVERY = {row.metric: 0.123 for row in published.ROWS}


def table(dataset, split):
    return published.beside_published({(dataset, split): EVERY}, profile="tiny")


@pytest.mark.parametrize(
    ("dataset", "split"),
    [("zoo", "val"), ("voc2007", "val"), ("voc2012", "train"), ("coco", "val"), ("folder", "val")],
)
def test_a_number_of_another_data_set_stands_nowhere(dataset, split):
    shown = table(dataset, split)
    assert "12.3" not in shown and "tiny" not in shown
    assert shown.count("not run") == len(published.ROWS)


def test_a_number_stands_in_the_rows_of_its_own_data_set_with_its_profile():
    rows = table("voc2012", "val").splitlines()[2:]
    for row, line in zip(published.ROWS, rows, strict=True):
        assert line.endswith("| 12.3 | tiny |" if row.data == published.VAL else "| not run |  |")


def test_a_metric_that_was_not_measured_is_not_run():
    shown = published.beside_published({published.VAL: {}}, profile="tiny")
    assert shown.count("not run") == len(published.ROWS)


def test_every_published_number_has_a_metric_of_ours():
    assert {row.metric for row in published.ROWS} <= report.MEANINGS.keys()
    assert {row.data for row in published.ROWS} == published.DATA_SETS.keys()
