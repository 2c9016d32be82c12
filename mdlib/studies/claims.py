"""The record of a claim that was tested: what was compared on what, the effect, the verdict."""

from pathlib import Path

from mdlib.core.files import read_json, write_json
from mdlib.core.markup import markdown_text
from mdlib.evaluate.bootstrap import Interval

PAPER_CLAIMS = {  # what is to be tested, in the paper's order; the keys are the numbers of claims
    "1": "masks of a self-supervised ViT are better than those of handcrafted priors",
    "2": "a detector trained on clustered masks is a better teacher than the masks themselves",
    "3": "keeping the confident masks alone makes a better segmenter",
}


HOLDS, FAILS, NOT_RUN = "holds", "does not hold", "not run"


def claim(number: str, text: str, *, experiment: str, effect: Interval | None) -> dict:
    """One record of claims.json.

    It holds where the whole interval lies above zero; else it does not: an interval across zero has
    not shown it.

    Args:
        number: a key of PAPER_CLAIMS, or "" for a claim of ours.
        text: the claim.
        experiment: what was compared on what, with the unit.
        effect: the difference with its interval; None: it was not run.

    Returns:
        "number", "claim", "experiment", "effect", "interval" (two numbers; None where it was not
        run) and "verdict".

    Raises:
        ValueError: for an unknown number.
    """
    if number and number not in PAPER_CLAIMS:
        raise ValueError(
            f"claim number must be one of {list(PAPER_CLAIMS)} or empty, got {number!r}"
        )
    verdict = NOT_RUN if effect is None else HOLDS if effect.low > 0 else FAILS
    value, interval = (None, None) if effect is None else (effect.value, [effect.low, effect.high])
    return {
        "number": number,
        "claim": text,
        "experiment": experiment,
        "effect": value,
        "interval": interval,
        "verdict": verdict,
    }


def write_claims(folder: Path, records: list[dict]) -> None:
    """Write claims.json of a stage, or of a run.

    Args:
        folder: of the stage or the run.
        records: as `claim` makes them.
    """
    write_json(Path(folder) / "claims.json", records)


def gather_claims(folders: list[Path]) -> list[dict]:
    """The claims of several stages, and those of the paper that nobody tested.

    Args:
        folders: of the stages; one without claims.json adds none.

    Returns:
        The records, by number; claims of ours come last.
    """
    files = [Path(folder) / "claims.json" for folder in folders]
    records = [record for file in files if file.is_file() for record in read_json(file)]
    tested = {record["number"] for record in records}
    records += [
        claim(n, text, experiment="", effect=None)
        for n, text in PAPER_CLAIMS.items()
        if n not in tested
    ]
    return sorted(records, key=lambda record: (record["number"] == "", record["number"]))


def claims_table(records: list[dict]) -> str:
    """Draw up a table of claims, in Markdown.

    Args:
        records: as `claim` makes them.

    Returns:
        The table, one row a claim.
    """
    rows = ["| claim | experiment | effect | 95 % interval | verdict |", "|---|---|---|---|---|"]
    for record in records:
        effect, interval = "", ""
        if record["effect"] is not None:
            effect, interval = (
                f"{record['effect']:+.3f}",
                "{:+.3f} to {:+.3f}".format(*record["interval"]),
            )
        text = f"{record['number']}. {record['claim']}" if record["number"] else record["claim"]
        cells = (markdown_text(text), markdown_text(record["experiment"]), effect, interval)
        rows.append(f"| {' | '.join(cells)} | **{record['verdict']}** |")
    return "\n".join(rows)
