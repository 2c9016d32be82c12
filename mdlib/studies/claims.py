"""The paper's claims in its authors' words, and the records of what was measured of them.

Each claim of PAPER_CLAIMS has one confirmatory effect: it alone gives the claim a verdict. These
effects are one family, so their p-values are adjusted for each other, by Holm's step-down (1): the
chance that any of the claims gets a wrong verdict stays below 5 %. Everything else that is
measured is a finding: exploratory, with an effect and an interval, and without a verdict.

1. Holm, A simple sequentially rejective multiple test procedure, 1979.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdlib.core.files import read_json, write_json
from mdlib.core.markup import markdown_text
from mdlib.evaluate.bootstrap import CONFIDENCE, Effect


@dataclass(frozen=True)
class PaperClaim:
    """What the paper's abstract says.

    Attributes:
        title: a few words of ours.
        quote: the authors' words; "..." stands where some are left out.
    """

    title: str
    quote: str


# Van Gansbeke, Vandenhende, Van Gool, arXiv 2206.06363, abstract
PAPER_CLAIMS = {
    "priors": PaperClaim(
        "Handcrafted priors",
        "This approach omits handcrafted priors, which are often designed for specific scene "
        "compositions and limit the applicability of competing frameworks.",
    ),
    "cues": PaperClaim(
        "Low-level image cues",
        "as opposed to existing approaches, our framework does not latch onto low-level image cues",
    ),
    "filter": PaperClaim(
        "Filtering the masks",
        "we leverage this model to filter out low-quality object masks. This strategy mitigates "
        "the noise in our pixel grouping prior and results in a clean collection of masks which "
        "we use to train a final segmentation model.",
    ),
    "composition": PaperClaim(
        "Datasets that are not object-centric",
        "as opposed to existing approaches, our framework ... is not limited to object-centric "
        "datasets.",
    ),
    "model": PaperClaim(
        "A model trained on clusters of masks",
        "MaskDistill clusters the object masks to obtain pseudo-ground-truth for training an "
        "initial object segmentation model.",
    ),
}

HOLDS, OPPOSITE, UNDECIDED = "holds", "the opposite was measured", "not decided"
NOT_RUN = "not run"
PENDING = "not yet judged"

Record = dict[str, Any]


def claim(
    key: str, *, experiment: str, effect: Effect | None, animals: Effect | None = None
) -> Record:
    """The confirmatory record of a claim of the paper.

    Args:
        key: of PAPER_CLAIMS.
        experiment: what was compared on what, with the unit, the seeds and the pictures.
        effect: the difference, positive where it speaks for the claim; its interval is over
            pictures, and over seeds where there are several. None: it was not run.
        animals: the same difference with its interval over animals, see `groups` of
            `bootstrap.mean_difference`.

    Returns:
        "key"; "text", the authors' words; "confirmatory"; "experiment"; "effect", "interval"
        (two numbers) and "p", None where it was not run; "interval_animals", None without
        `animals`; "p_holm" None and "verdict" PENDING until `judge` sets them, or NOT_RUN.

    Raises:
        ValueError: for an unknown key.
    """
    if key not in PAPER_CLAIMS:
        raise ValueError(f"a claim must be one of {list(PAPER_CLAIMS)}, got {key!r}")
    verdict = NOT_RUN if effect is None else PENDING
    return {
        **_record(key, PAPER_CLAIMS[key].quote, experiment, effect, animals),
        "confirmatory": True,
        "verdict": verdict,
    }


def finding(
    text: str,
    *,
    experiment: str,
    effect: Effect,
    animals: Effect | None = None,
    key: str = "",
) -> Record:
    """The record of an exploratory finding, which has no verdict.

    Args:
        text: what was looked at, in our words.
        experiment: as in `claim`.
        effect: as in `claim`.
        animals: as in `claim`.
        key: the claim of PAPER_CLAIMS that it is another look at, or "".

    Returns:
        As `claim`, with our text; "verdict" is "" and stays so.

    Raises:
        ValueError: for an unknown key.
    """
    if key and key not in PAPER_CLAIMS:
        raise ValueError(f"a claim must be one of {list(PAPER_CLAIMS)} or empty, got {key!r}")
    return {
        **_record(key, text, experiment, effect, animals),
        "confirmatory": False,
        "verdict": "",
    }


def judge(records: list[Record]) -> list[Record]:
    """Give the confirmatory records their verdicts, as one family.

    Args:
        records: of `claim` and `finding`, of all stages of a run.

    Returns:
        The records in the same order; "p_holm" and "verdict" are set in those that were run.

    Raises:
        ValueError: a claim has two confirmatory records.
    """
    keys = [record["key"] for record in records if record["confirmatory"]]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"a claim is decided by one effect, but there are several of {twice}")
    run = [record for record in records if record["confirmatory"] and record["p"] is not None]
    adjusted = holm([record["p"] for record in run]).tolist()
    p_of = {record["key"]: p for record, p in zip(run, adjusted, strict=True)}

    def judged(record: Record) -> Record:
        if not record["confirmatory"] or record["key"] not in p_of:
            return record
        p, side = p_of[record["key"]], HOLDS if record["effect"] > 0 else OPPOSITE
        return {**record, "p_holm": p, "verdict": side if p < 1 - CONFIDENCE else UNDECIDED}

    return [judged(record) for record in records]


def holm(p_values: list[float]) -> np.ndarray:
    """Holm's step-down: p-values adjusted for their number.

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on; none gets smaller
    than the one before it.

    Args:
        p_values: m numbers in [0, 1].

    Returns:
        (m,) float64 in [0, 1], in the same order.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def write_claims(folder: Path, records: list[Record]) -> None:
    """Write claims.json of a stage, or of a run.

    Args:
        folder: of the stage or the run.
        records: as `claim` and `finding` make them.
    """
    write_json(Path(folder) / "claims.json", records)


def gather_claims(folders: list[Path]) -> list[Record]:
    """The records of several stages, judged, and the claims of the paper that nobody tested.

    Args:
        folders: of the stages; one without claims.json adds none.

    Returns:
        The confirmatory records in the order of PAPER_CLAIMS; then the findings about these claims,
        in the same order; then other findings.

    Raises:
        ValueError: two stages decide the same claim.
    """
    files = [Path(folder) / "claims.json" for folder in folders]
    records = [record for file in files if file.is_file() for record in read_json(file)]
    run = {record["key"] for record in records if record["confirmatory"]}
    records += [claim(key, experiment="", effect=None) for key in PAPER_CLAIMS if key not in run]
    place = {key: number for number, key in enumerate([*PAPER_CLAIMS, ""])}
    return sorted(judge(records), key=lambda r: (not r["confirmatory"], place[r["key"]]))


def record_name(record: Record) -> str:
    """A short name for a figure: the title of the claim, for a finding with our text."""
    title = PAPER_CLAIMS[record["key"]].title if record["key"] else ""
    return title if record["confirmatory"] else ": ".join(filter(None, (title, record["text"])))


def claims_rows(records: list[Record]) -> list[list[tuple[str, ...]]]:
    """Draw up two tables as text: the claims, and the exploratory findings.

    Args:
        records: as `claim`, `finding` or `gather_claims` make them.

    Returns:
        Of each table its rows, the first of them its head; a table without records is left out.
    """
    claims: list[tuple[str, ...]] = [
        ("the authors' words", "how it was looked at", "effect and 95 % interval", "outcome")
    ]
    findings: list[tuple[str, ...]] = [
        ("exploratory, without a verdict", "how it was looked at", "effect and 95 % interval")
    ]
    for record in records:
        looked = (record["experiment"], _effect_text(record))
        if record["confirmatory"]:
            claims.append((f'"{record["text"]}"', *looked, _outcome(record)))
        else:
            findings.append((record_name(record), *looked))
    return [table for table in (claims, findings) if len(table) > 1]


def claims_table(records: list[Record]) -> str:
    """Draw up the tables of `claims_rows` in Markdown.

    Args:
        records: as `claim`, `finding` or `gather_claims` make them.

    Returns:
        The tables, an empty line between them.
    """
    tables = []
    for head, *rows in claims_rows(records):
        lines = [head, ("---",) * len(head), *(map(markdown_text, row) for row in rows)]
        tables.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(tables)


def _record(
    key: str, text: str, experiment: str, effect: Effect | None, animals: Effect | None
) -> Record:
    """What every record keeps."""
    return {
        "key": key,
        "text": text,
        "experiment": experiment,
        "effect": None if effect is None else effect.value,
        "interval": None if effect is None else [effect.low, effect.high],
        "interval_animals": None if animals is None else [animals.low, animals.high],
        "p": None if effect is None else effect.p,
        "p_holm": None,
    }


def _effect_text(record: Record) -> str:
    """The effect with its intervals, "" where it was not run."""
    if record["effect"] is None:
        return ""
    text = "{:+.3f} ({:+.3f} to {:+.3f})".format(record["effect"], *record["interval"])
    if record["interval_animals"] is None:
        return text
    return text + "; over animals {:+.3f} to {:+.3f}".format(*record["interval_animals"])


def _outcome(record: Record) -> str:
    """The verdict with the p-value that it rests on."""
    if record["p"] is None:
        return record["verdict"]
    name, p = ("p", record["p"]) if record["p_holm"] is None else ("adjusted p", record["p_holm"])
    return f"{record['verdict']} ({name} {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"
