"""The claims in the authors' words, their verdicts as one family, and the tables of them."""

import numpy as np
import pytest

from mdlib.core.files import read_json
from mdlib.evaluate.bootstrap import Effect
from mdlib.studies.claims import (
    PAPER_CLAIMS,
    claim,
    claims_table,
    finding,
    gather_claims,
    holm,
    judge,
    write_claims,
)

# arXiv 2206.06363, the sentences that claim something
ABSTRACT = (
    "First, we advocate a data-driven strategy to generate object masks that serve as a pixel "
    "grouping prior for semantic segmentation. This approach omits handcrafted priors, which are "
    "often designed for specific scene compositions and limit the applicability of competing "
    "frameworks. Second, MaskDistill clusters the object masks to obtain pseudo-ground-truth for "
    "training an initial object segmentation model. Third, we leverage this model to filter out "
    "low-quality object masks. This strategy mitigates the noise in our pixel grouping prior and "
    "results in a clean collection of masks which we use to train a final segmentation model. By "
    "combining these components, we can considerably outperform previous works for unsupervised "
    "semantic segmentation on PASCAL (+11% mIoU) and COCO (+4% mask AP50). Interestingly, as "
    "opposed to existing approaches, our framework does not latch onto low-level image cues and is "
    "not limited to object-centric datasets."
)


def measured(p: float, value: float = 0.2) -> Effect:
    """An effect with this p-value; its interval excludes zero where it must."""
    reach = abs(value) * (0.5 if p < 0.05 else 1.5)
    return Effect(value, value - reach, value + reach, p)


def verdicts(*effects: Effect | None) -> list[str]:
    """Of the first claims of the paper, with these effects."""
    records = [
        claim(key, experiment="x", effect=effect)
        for key, effect in zip(PAPER_CLAIMS, effects, strict=False)
    ]
    return [record["verdict"] for record in judge(records)]


@pytest.mark.parametrize("key", PAPER_CLAIMS)
def test_a_quote_is_the_abstracts_word_for_word(key):
    parts = PAPER_CLAIMS[key].quote.split(" ... ")
    places = [ABSTRACT.find(part) for part in parts]
    assert min(places) >= 0 and places == sorted(places)


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (measured(0.01), "holds"),
        (measured(0.01, -0.2), "the opposite was measured"),
        (measured(0.2), "not decided"),
        (measured(0.2, -0.2), "not decided"),
        (Effect(0.0, 0.0, 0.0, 1.0), "not decided"),  # a tie shows nothing
        (None, "not run"),
    ],
)
def test_a_verdict_has_three_values_where_the_claim_was_run(effect, verdict):
    assert verdicts(effect) == [verdict]


def test_holm_multiplies_the_smallest_by_their_number_and_never_steps_back():
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.5]), [0.09, 0.04, 0.09, 0.5])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert holm([]).shape == (0,)


def test_holm_is_wrong_in_any_of_five_in_at_most_one_family_in_twenty(rng):
    nulls = rng.random((4000, 5))
    false = np.mean([(holm(p) < 0.05).any() for p in nulls])
    assert 0.035 < false < 0.06
    assert (nulls < 0.05).any(1).mean() > 0.2  # as they are


def test_claims_are_judged_as_one_family_and_findings_are_not_of_it():
    # alone each would hold; 0.04 is above 0.05 / 2
    assert verdicts(measured(0.01), measured(0.03), measured(0.04)) == [
        "holds",
        "not decided",
        "not decided",
    ]
    assert verdicts(measured(0.01), None, measured(0.04)) == ["holds", "not run", "holds"]
    tried = [finding(f"try {i}", experiment="x", effect=measured(0.5)) for i in range(50)]
    judged = judge([*tried, claim("cues", experiment="x", effect=measured(0.04))])
    assert judged[:50] == tried and judged[50]["verdict"] == "holds"
    assert judged[50]["p_holm"] == judged[50]["p"] == 0.04


def test_judging_twice_changes_nothing():
    once = judge(
        [claim(key, experiment="x", effect=measured(0.02)) for key in ("cues", "priors", "model")]
    )
    assert judge(once) == once


def test_a_claim_is_decided_by_one_effect():
    twice = [claim("filter", experiment=x, effect=measured(0.01)) for x in "ab"]
    with pytest.raises(ValueError, match=r"one effect.*filter"):
        judge(twice)
    judge([twice[0], finding("b", experiment="b", effect=measured(0.01), key="filter")])


def test_an_unknown_claim_is_refused():
    with pytest.raises(ValueError, match="must be one of"):
        claim("", experiment="y", effect=None)
    with pytest.raises(ValueError, match="must be one of"):
        finding("x", experiment="y", effect=measured(0.1), key="1")


def test_claims_of_several_stages_are_gathered_and_untested_ones_are_named(tmp_path):
    ours = finding("ours", experiment="mIoU", effect=measured(0.2))
    of_filter = finding("more noise", experiment="mIoU", effect=measured(0.1), key="filter")
    records = [
        claim("composition", experiment="a", effect=measured(0.03)),
        claim("cues", experiment="b", effect=measured(0.04, -0.2)),
    ]
    (tmp_path / "a").mkdir()
    write_claims(tmp_path / "b", [ours, of_filter, records[0]])
    write_claims(tmp_path / "c", [records[1]])
    assert read_json(tmp_path / "c" / "claims.json") == [records[1]]
    gathered = gather_claims([tmp_path / name for name in "abc"])
    assert [(r["key"], r["verdict"], r["p_holm"]) for r in gathered] == [
        ("priors", "not run", None),
        ("cues", "not decided", 0.06),
        ("filter", "not run", None),
        ("composition", "not decided", 0.06),
        ("model", "not run", None),
        ("filter", "", None),
        ("", "", None),
    ]


def test_the_tables_say_what_was_measured_and_decide_claims_alone():
    effect, animals = Effect(0.1, 0.05, 0.15, 0.0004), Effect(0.1, -0.01, 0.21, 0.07)
    records = [
        claim("model", experiment="mIoU, 5 seeds", effect=effect, animals=animals),
        claim("cues", experiment="", effect=None),
        finding("grey", experiment="IoU", effect=effect, key="cues"),
        finding("ours", experiment="IoU | 2", effect=effect),
    ]
    first, second = claims_table(judge(records)).split("\n\n")
    quote = PAPER_CLAIMS["model"].quote
    shown = "+0.100 (+0.050 to +0.150)"
    assert first.splitlines()[2] == (
        f'| "{quote}" | mIoU, 5 seeds | {shown}; over animals -0.010 to +0.210 '
        "| holds (adjusted p &#60; 0.001) |"
    )
    assert first.splitlines()[3] == f'| "{PAPER_CLAIMS["cues"].quote}" |  |  | not run |'
    assert second.splitlines()[2:] == [
        f"| Low-level image cues: grey | IoU | {shown} |",
        f"| ours | IoU &#124; 2 | {shown} |",
    ]
    assert "not yet judged (p &#60; 0.001)" in claims_table(records[:1])
    assert claims_table([]) == "" and "**" not in first + second
