"""The gallery of failures: each rule finds what was planted, takes the clearest, and nothing where
nothing went wrong.
"""

import numpy as np
import pytest
from fixtures import Samples
from PIL import Image

from mdlib.core.mask import Mask
from mdlib.data import Instances, Sample
from mdlib.run.artifacts import RunArtifacts
from mdlib.show import failures, slides
from mdlib.show.outcome import Outcome

# the clusters 0, 1 and 2: cat, dog, without a name
CLASSES, NAMES = ["background", "cat", "dog"], np.array([0, 1, 2, -1])
CAT, DOG, NOBODY = 0, 1, 2
SIDE = 32


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[rows, columns] = True
    return mask


LEFT, RIGHT, CORNER = (
    box(np.s_[8:24], np.s_[2:16]),
    box(np.s_[8:24], np.s_[16:30]),
    box(np.s_[:5], np.s_[:5]),
)
TAIL = box(np.s_[15:16], np.s_[16:30])  # one pixel high


def found_mask(mask: np.ndarray, cluster: int, score: float = 0.9) -> Mask:
    return Mask.from_pixels(mask, image_id="p", score=score, cluster=cluster)


def run_of(folder, *pictures: dict) -> Outcome:
    """Pictures as {"true": [(mask, class)], "masks", "said": [Mask], "final", "refined":
    {cluster: mask}}; by default all is right. The run has a CRF if a picture has "refined".
    """
    samples, logits, refined = [], [], []
    for i, given in enumerate(pictures):
        true = given["true"]
        masks = np.array([mask for mask, _ in true], bool).reshape(-1, SIDE, SIDE)
        instances = Instances(masks, np.array([label for _, label in true], np.int64))
        image = np.full((SIDE, SIDE, 3), 90, np.uint8)
        samples.append(Sample(f"p{i}", image, np.zeros((SIDE, SIDE), np.uint8), instances))
        final = given.get("final", {label - 1: mask for mask, label in true})
        logits.append(np.stack([painted(final) == c for c in range(4)]) * 9.0)
        refined.append(painted(given.get("refined", final)))
    right = [[found_mask(mask, label - 1) for mask, label in given["true"]] for given in pictures]
    return Outcome(
        run=RunArtifacts(folder),
        val=Samples(samples, classes=CLASSES),
        cluster_to_class=NAMES,
        masks=[given.get("masks", r) for given, r in zip(pictures, right, strict=True)],
        predictions=[given.get("said", r) for given, r in zip(pictures, right, strict=True)],
        logits=np.array(logits),
        refined_maps=refined if any("refined" in given for given in pictures) else None,
        filter_rule={"threshold": 0.5, "overlap": "skip"},
    )


def painted(regions: dict[int, np.ndarray]) -> np.ndarray:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for cluster, mask in regions.items():
        labels[mask] = 1 + cluster
    return labels


BOTH = [(LEFT, 1), (RIGHT, 2)]
PLANTED = {  # one picture each; the words that name its cause
    "a poor mask": (
        {"true": [(LEFT, 1)], "masks": [found_mask(CORNER, CAT)]},
        "100% of the best mask is off the object (IoU 0.00)",
    ),
    "two in one mask": (
        {"true": BOTH, "masks": [found_mask(LEFT | RIGHT, NOBODY)]},
        "100% of the cat, 100% of the dog",
    ),
    "a wrong name": (
        {"true": [(LEFT, 1)], "masks": [found_mask(LEFT, DOG)]},
        "cat's mask is good (IoU 1.00), but nearest to cluster 1, named dog",
    ),
    "sure and wrong": (
        {"true": [(LEFT, 1)], "said": [found_mask(LEFT, CAT), found_mask(CORNER, DOG, 0.8)]},
        "Score 0.80",
    ),
    "a true object dropped": (
        {"true": [(LEFT, 1)], "said": [found_mask(LEFT, CAT, 0.4), found_mask(RIGHT, DOG, 0.45)]},
        "0.40, is below 0.5",
    ),
    "a thin part smoothed away": (
        {"true": [(LEFT | TAIL, 1)], "refined": {CAT: LEFT}},
        "100% of the cat's thin parts",
    ),
}


def test_a_run_in_which_all_is_right_has_no_failure(tmp_path):
    run = run_of(
        tmp_path,
        {"true": BOTH, "refined": {CAT: LEFT, DOG: RIGHT}},
        {"true": []},
        {"true": [(LEFT | TAIL, 1)]},
    )
    found = failures.find(run)
    assert list(found) == list(failures.RULES) and set(found.values()) == {None}
    assert failures.describe(found).startswith("0 failures")
    with pytest.raises(ValueError, match="no failure"):
        failures.failures_figure(found)


@pytest.mark.parametrize("kind", PLANTED)
def test_each_rule_finds_its_kind_alone_and_says_why(tmp_path, kind):
    planted, words = PLANTED[kind]
    run = run_of(tmp_path, {"true": BOTH}, planted)
    found = {other: list(rule(failures.Picture(run, 1))) for other, rule in failures.RULES.items()}
    assert {other for other in found if found[other]} == {kind}
    (failure,) = found[kind]
    assert words in failure.words
    assert not any(list(rule(failures.Picture(run, 0))) for rule in failures.RULES.values())


def test_a_mask_of_a_part_is_told_from_one_of_the_background(tmp_path):
    half = box(np.s_[8:24], np.s_[2:8])
    (failure,) = failures.RULES["a poor mask"](
        failures.Picture(
            run_of(tmp_path, {"true": [(LEFT, 1)], "masks": [found_mask(half, CAT)]}), 0
        )
    )
    assert (
        failure.heading == "01  a mask of a part"
        and "43% of its object (IoU 0.43)" in failure.words
    )


def test_the_best_mask_of_a_picture_is_judged(tmp_path):
    run = run_of(
        tmp_path,
        {"true": BOTH, "masks": [found_mask(CORNER, CAT), found_mask(LEFT | RIGHT, NOBODY)]},
    )
    assert not list(
        failures.RULES["a poor mask"](failures.Picture(run, 0))
    )  # the second fits both objects together


def test_an_object_that_vanishes_is_no_thin_part(tmp_path):
    run = run_of(tmp_path, {"true": [(LEFT | TAIL, 1)], "refined": {}})
    assert not list(failures.RULES["a thin part smoothed away"](failures.Picture(run, 0)))


def test_a_prediction_that_the_filter_does_not_believe_is_not_sure(tmp_path):
    run = run_of(
        tmp_path,
        {"true": [(LEFT, 1)], "said": [found_mask(LEFT, CAT), found_mask(CORNER, DOG, 0.4)]},
    )
    assert not list(failures.RULES["sure and wrong"](failures.Picture(run, 0)))


def test_an_overlapping_mask_can_push_a_true_object_out(tmp_path):
    said = [found_mask(LEFT | RIGHT, NOBODY, 0.9), found_mask(LEFT, CAT, 0.8)]
    (failure,) = failures.RULES["a true object dropped"](
        failures.Picture(run_of(tmp_path, {"true": [(LEFT, 1)], "said": said}), 0)
    )
    assert "another mask overlaps it" in failure.words


def test_an_object_found_twice_is_not_dropped(tmp_path):
    run = run_of(
        tmp_path,
        {"true": [(LEFT, 1)], "said": [found_mask(LEFT, CAT, 0.9), found_mask(LEFT, CAT, 0.3)]},
    )
    assert not list(failures.RULES["a true object dropped"](failures.Picture(run, 0)))


def test_the_clearest_case_is_taken_and_no_picture_twice(tmp_path):
    slight, clear = box(np.s_[8:24], np.s_[8:30]), CORNER
    first = {"true": [(LEFT, 1)], "masks": [found_mask(slight, CAT)]}
    both = {
        "true": [(LEFT, 1)],
        "masks": [found_mask(clear, CAT)],
        "said": [found_mask(LEFT, CAT), found_mask(RIGHT, DOG, 0.95)],
    }
    less = {"true": [(LEFT, 1)], "said": [found_mask(LEFT, CAT), found_mask(RIGHT, DOG, 0.6)]}
    found = failures.find(run_of(tmp_path, first, both, less))
    assert found["a poor mask"].measure == 1.0
    assert found["sure and wrong"].measure == 0.6  # the surer one stands in a picture that is taken


def test_without_a_crf_nothing_is_smoothed(tmp_path):
    planted = {
        key: value
        for key, value in PLANTED["a thin part smoothed away"][0].items()
        if key != "refined"
    }
    assert failures.find(run_of(tmp_path, planted))["a thin part smoothed away"] is None


def test_pictures_without_masks_or_predictions_are_passed_over(tmp_path):
    bare = {"true": BOTH, "masks": [], "said": [], "final": {}, "refined": {}}
    assert set(failures.find(run_of(tmp_path, bare)).values()) == {None}


# ---------------------------------------------------------------- figure


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return failures.find(
        run_of(tmp_path_factory.mktemp("run"), *(picture for picture, _ in PLANTED.values()))
    )


def test_every_failure_stands_in_the_figure_with_stage_and_cause(found):
    assert all(found.values())
    figure = failures.failures_figure(found)
    written = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
    for failure in found.values():
        assert failure.heading in written and failure.words in written.replace("\n", " ")
        assert failure.heading[:2].isdigit()
    assert len(figure.axes) == 3 * len(found)
    slides.plt.close(figure)


def test_it_is_told_apart_without_colour(found):
    figure = failures.failures_figure(found)
    assert all(ax.get_title(loc="left") for ax in figure.axes)
    below = [text for ax in figure.axes for text in ax.texts if text.get_color() != "white"]
    assert min(text.get_fontsize() for text in below) >= 12  # on a slide of 13.33 inches
    for ax in figure.axes[1::3]:  # what the stage says has a border, black beside white
        shades = {tuple(c) for lines in ax.collections for c in lines.get_edgecolor()}
        assert {(0, 0, 0, 1), (1, 1, 1, 1)} <= shades
    slides.plt.close(figure)


def test_what_was_not_found_is_said(found):
    some = found | {"sure and wrong": None}
    figure = failures.failures_figure(some)
    assert [text.get_text() for text in figure.texts] == ["Not found in this run: sure and wrong."]
    slides.plt.close(figure)
    assert "Not found: sure and wrong." in failures.describe(some)


def test_both_files_have_print_size_and_words(found, tmp_path):
    alt = failures.describe(found)
    png, svg = slides.save(
        failures.failures_figure(found), tmp_path / "failures", alt=alt, label="a label"
    )
    with Image.open(png) as image:
        assert (
            image.info["dpi"][0] >= 200 and image.width > 2600 and image.info["Description"] == alt
        )
    text = svg.read_text(encoding="utf-8")
    assert found["sure and wrong"].words[:20] in text and len(text) < 4e6
