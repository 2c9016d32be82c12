"""Figures: which images are shown."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mdlib.show import figures


def test_cases_are_the_ends_and_the_middle_from_good_to_bad(rng):
    values = rng.permutation(21).astype(float)
    best, median, worst = (values[rows].tolist() for rows in figures.cases(values, 3).values())
    assert best == [20, 19, 18] and median == [11, 10, 9] and worst == [2, 1, 0]


def test_cases_leave_out_what_has_no_value_and_keep_the_order_of_ties():
    picked = figures.cases([np.nan, 0.5, 0.5, np.nan, 0.9, 0.5], 2, labels=("up", "same", "down"))
    assert picked == {"up": [4, 1], "same": [1, 2], "down": [2, 5]}


@pytest.mark.parametrize("count", [0, 1, 4])
def test_cases_of_fewer_images_than_asked_for(count):
    picked = figures.cases(np.arange(count), 6)
    assert set(map(tuple, picked.values())) == {tuple(range(count))[::-1]}


def test_a_table_has_room_for_more_pictures_than_a_small_data_set_gives():
    picture = np.zeros((4, 5, 3), np.uint8)
    rows = [[picture] * 3, [picture]]
    figure = figures.image_table(rows, columns=["a", "b", "c"], labels=["best", "worst"])
    shown = [[bool(ax.images) for ax in line] for line in np.reshape(figure.axes, (2, 3))]
    assert shown == [[True, True, True], [True, False, False]]
    assert not figure.axes[4].axison and figure.axes[3].get_ylabel() == "worst"
    plt.close(figure)


def test_notes_stand_in_the_pictures_they_belong_to():
    picture = np.zeros((4, 5, 3), np.uint8)
    figure = figures.image_table(
        [[picture] * 2, [picture]],
        columns=["a", "b"],
        labels=["x", "y"],
        notes=[["0.1", "0.2"], ["0.3"]],
    )
    assert [[t.get_text() for t in ax.texts] for ax in figure.axes] == [
        ["0.1"],
        ["0.2"],
        ["0.3"],
        [],
    ]
    plt.close(figure)


def test_panels_share_their_rows_and_their_scale():
    panels = {
        "one": {"a": (0.2, 0.1, 0.3), "b": (-0.2, -0.4, 0.0)},
        "two": {"a": (0.0, -0.1, 0.1), "b": (2.0, 1.0, 3.0)},
    }
    figure = figures.interval_panels(panels, xlabel="x")
    left, right = figure.axes
    assert [ax.get_title() for ax in (left, right)] == ["one", "two"]
    assert [text.get_text() for text in left.get_yticklabels()] == ["a", "b"]
    assert {text.get_text() for text in right.get_yticklabels()} == {""}
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert [text.get_text() for text in right.texts] == ["+0.000", "+2.000"]
    plt.close(figure)


def test_a_heat_table_writes_each_number_in_its_place():
    values = np.array([[0.1, 0.25, 1.0], [0.0, 0.5, 0.75]])
    figure = figures.heat_table(values, rows=["a", "b"], columns=["x", "y", "z"], xlabel="")
    (ax,) = figure.axes
    found = {text.get_position(): text.get_text() for text in ax.texts}
    for row, column in np.ndindex(2, 3):
        assert found[column + 0.5, row + 0.5] == f"{values[row, column]:.2f}"
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["x", "y", "z"]
    plt.close(figure)


@pytest.mark.parametrize(("pictures", "labels"), [(2, ["one"]), (1, ["one", "two"])])
def test_a_table_refuses_more_pictures_than_columns_and_another_number_of_labels(pictures, labels):
    rows = [[np.zeros((4, 5, 3), np.uint8)] * pictures]
    with pytest.raises(ValueError, match="labels and 1 columns for 1 rows"):
        figures.image_table(rows, columns=[""], labels=labels)


@pytest.mark.parametrize("values", [{}, {"a": np.nan}, {"a": 0.0}, {"a": np.nan, "b": 0.5}])
def test_a_figure_of_what_is_not_there_is_drawn_without_it(values, tmp_path):
    drawn = [
        figures.bar_plot(values, xlabel="x"),
        figures.bar_plot(values, xlabel="x", highlight="c", xlim=1),
        figures.dot_plot({name: [value, value] for name, value in values.items()}, xlabel="x"),
        figures.interval_plot({name: (value,) * 3 for name, value in values.items()}, xlabel="x"),
        figures.histogram({n: np.array([v]) for n, v in values.items()}, xlabel="x", ylabel="y"),
    ]
    for figure in drawn:
        figure.savefig(tmp_path / "figure.png")
        shown = {text.get_text() for text in figure.axes[0].get_yticklabels()}
        assert ("b" in shown) == (0.5 in values.values()) or figure is drawn[-1]
    plt.close("all")


def test_pictures_and_counts_may_be_none_at_all(tmp_path):
    drawn = [
        figures.image_grid([], columns=4),
        figures.image_grid([], [], columns=0),
        figures.image_table([], columns=["a"], labels=[]),
        figures.image_table([[]], columns=[], labels=["a"]),
        figures.count_heatmap(np.zeros((0, 2)), rows=[], columns=["a", "b"], xlabel="", ylabel=""),
        figures.count_heatmap(np.zeros((2, 0)), rows=["a", "b"], columns=[], xlabel="", ylabel=""),
        figures.interval_panels({}, xlabel=""),
        figures.interval_panels({"a": {}}, xlabel=""),
        figures.interval_panels({"a": {"b": (np.nan,) * 3}}, xlabel=""),
        figures.heat_table(np.zeros((0, 2)), rows=[], columns=["a", "b"], xlabel=""),
    ]
    for figure in drawn:
        figure.savefig(tmp_path / "figure.png")
    plt.close("all")
