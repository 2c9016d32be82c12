"""The method's figures: every step needed, print size, alternative text in both files, readable
without colour.
"""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from mdlib.core.files import StoreError
from mdlib.run.artifacts import RunArtifacts
from mdlib.show import slides
from mdlib.show.outcome import read_outcome

CLASSES, LABEL = ["background", "cat", "dog"], "demo preset · zoo (composited)"
FIGURES = {
    "method": (slides.method_figure, slides.ALT, 8),
    "life": (slides.life_figure, slides.LIFE_ALT, 9),
}
each_figure = pytest.mark.parametrize("name", FIGURES)


@pytest.fixture(scope="module")
def panels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    panels = {key: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for key, _, _ in slides.STEPS}
    labels = np.zeros((32, 32), np.uint8)
    labels[4:20, 2:18], labels[0, 0], labels[-1] = 1, 2, 255  # a cat, a speck of dog, void
    refined = labels.copy()
    refined[4] = 0
    maps = {"filter": labels, "segmenter": labels, "crf": refined, "truth": labels}
    return (
        panels
        | maps
        | {
            "attention": rng.random((7, 9)),
            "mask": (labels == 1).astype(np.uint8),
            "detector": np.zeros((32, 32), np.uint8),
        }
    )


@each_figure
def test_a_class_may_be_called_anything(panels, name, tmp_path):
    draw, _, _ = FIGURES[name]
    odd = r"$\frac{1}$ <b> %"
    figure = draw(panels, ["background", odd, "_"])
    assert odd in {text.get_text() for text in figure.findobj(plt.Text)}
    png, svg = slides.save(figure, tmp_path / name, alt=odd, label=r"$\bad$ preset")
    assert png.stat().st_size and "<b>" not in svg.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def saved(panels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return {
        name: slides.save(draw(panels, CLASSES), folder / name, alt=alt, label=LABEL)
        for name, (draw, alt, _) in FIGURES.items()
    }


@each_figure
def test_a_missing_step_is_named(panels, name):
    with pytest.raises(ValueError, match="crf"):
        FIGURES[name][0]({key: image for key, image in panels.items() if key != "crf"}, CLASSES)


@each_figure
def test_the_png_has_print_size(saved, name):
    with Image.open(saved[name][0]) as image:
        assert image.info["dpi"][0] >= 200 and image.width > 2000
        assert image.info["Description"] == FIGURES[name][1]


def test_the_life_is_a_strip_as_wide_as_a_slide(saved):
    with Image.open(saved["life"][0]) as image:
        assert image.width > 4 * image.height
        assert image.width == pytest.approx(slides.SLIDE * slides.DPI, rel=0.05)


@each_figure
def test_the_svg_says_what_it_shows(saved, name):
    text = saved[name][1].read_text(encoding="utf-8")
    assert FIGURES[name][1].partition(".")[0] in text
    assert len(text) < 2e6


@each_figure
def test_every_step_is_written_out(panels, name):
    draw, _, count = FIGURES[name]
    figure = draw(panels, CLASSES)
    said = [(ax.get_title(loc="left"), ax.get_xlabel()) for ax in figure.axes]
    assert [tuple(" ".join(words.split()) for words in pair) for pair in said] == [
        (" ".join(heading.split()), text) for _, heading, text in slides.STEPS[:count]
    ]
    for ax in figure.axes:  # dark on white, large enough for a slide
        around = [
            words
            for words in ax.findobj(slides.plt.Text)
            if words.get_text() and words not in ax.texts
        ]
        assert len(around) == 2  # the heading and what happens
        for words in around:
            assert (
                np.mean(slides.plt.matplotlib.colors.to_rgb(words.get_color())) < 0.4
                and words.get_fontsize() >= 12
            )
    slides.plt.close(figure)


@each_figure
def test_classes_are_written_into_their_regions(panels, name):
    draw, _, count = FIGURES[name]
    figure = draw(panels, CLASSES)
    written = {
        key: [text.get_text() for text in ax.texts if text.get_text()]
        for (key, _, _), ax in zip(slides.STEPS[:count], figure.axes, strict=True)
    }
    maps = {"filter", "segmenter", "crf", "truth"}
    # no word for a speck or void
    assert written == {key: ["cat"] * (key in maps) for key, _, _ in slides.STEPS[:count]}
    slides.plt.close(figure)


@each_figure
def test_objects_have_a_border_that_is_seen_in_grey(panels, name):
    draw, _, count = FIGURES[name]
    figure = draw(panels, CLASSES)
    drawn = {
        key: {tuple(c) for lines in ax.collections for c in lines.get_edgecolor()}
        for (key, _, _), ax in zip(slides.STEPS[:count], figure.axes, strict=True)
    }
    assert {(0, 0, 0, 1), (1, 1, 1, 1)} <= drawn["mask"]
    assert not drawn["detector"]  # it saw nothing
    slides.plt.close(figure)


def test_a_crf_that_was_left_out_is_not_praised(panels):
    figure = slides.life_figure(panels | {"crf": panels["segmenter"]}, CLASSES)
    assert " ".join(figure.axes[7].get_xlabel().split()) == "left out, or no change"
    slides.plt.close(figure)


def test_the_same_panels_give_the_same_files(panels, saved, tmp_path):
    for name, (draw, alt, _) in FIGURES.items():
        for first, second in zip(
            saved[name],
            slides.save(draw(panels, CLASSES), tmp_path / name, alt=alt, label=LABEL),
            strict=True,
        ):
            assert first.read_bytes() == second.read_bytes()


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(StoreError, match="00_prepare_data has not run"):
        read_outcome(RunArtifacts(tmp_path))
