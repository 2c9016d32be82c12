"""The report of a run: metrics.json, summary.md and index.html, made from its stages' manifests."""

import os
import subprocess
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from nbconvert import HTMLExporter

from mdlib.core.files import StoreError, read_json, write_json, write_text
from mdlib.core.markup import clean_html, markdown_text
from mdlib.core.paths import ROOT
from mdlib.run.identity import versions
from mdlib.run.metric_names import MEANINGS
from mdlib.run.presets import Preset
from mdlib.run.stage import ZOO, data_label, has_run, read_manifest, verify_chain
from mdlib.studies.claims import claims_rows, claims_table, gather_claims, write_claims

OVERVIEW = "12_report"  # the stage whose figures open the page
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
)


def collect(run_dir: Path, preset: Preset) -> dict:
    """Gather what metrics.json holds, from the manifests of a finished run.

    Args:
        run_dir: the run's folder.
        preset: what ran.

    Returns:
        "run": preset, data set, seed, device, versions, commit and seconds; "metrics": {name:
        value}; "bands": {name: [low, high]}; and "skipped": {stage: reason} where stages had
        nothing to do.

    Raises:
        StoreError: a stage of the preset has not run, or does not fit to what it was made from.
    """
    if problems := verify_chain(run_dir, preset.notebooks):
        raise StoreError(f"no report of {run_dir}: " + "; ".join(problems))
    manifests = [read_manifest(run_dir, name) for name in preset.notebooks]
    metrics = {name: value for manifest in manifests for name, value in manifest["metrics"].items()}
    info = read_json(run_dir / "artifacts" / "run.json")
    seeds = {m["parameters"]["seed"] for m in manifests if "seed" in m["parameters"]}
    devices = sorted({manifest["device"] for manifest in manifests})
    run = {
        **info,
        "data": data_label(run_dir),
        "seed": min(seeds) if len(seeds) == 1 else sorted(seeds),
        "device": f"{' and '.join(devices)}, {os.cpu_count()} CPU cores",
        "versions": versions(),
        "commit": _commit(),
        "seconds": round(sum(m["seconds"] for m in manifests), 1),
    }
    skipped = {
        name: manifest["skipped"]
        for name, manifest in zip(preset.notebooks, manifests, strict=True)
        if "skipped" in manifest
    }
    return {
        "run": run,
        "metrics": metrics,
        "bands": {k: list(v) for k, v in preset.bands.items()},
        **({"skipped": skipped} if skipped else {}),
    }


def write(run_dir: Path, preset: Preset) -> None:
    """Write metrics.json, claims.json, summary.md and index.html of a finished run.

    Args:
        run_dir: the run's folder.
        preset: what ran.

    Raises:
        StoreError: a stage of the preset has not run, or does not fit to what it was made from;
            an earlier report is left as it is.
    """
    content = collect(run_dir, preset)
    for name in preset.notebooks:
        path = run_dir / "notebooks" / f"{name}.ipynb"
        if path.is_file() and (lacking := missing_pictures(read_executed(path), run_dir, name)):
            print(lacking)
    write_json(run_dir / "metrics.json", content)
    claims = gather_claims([run_dir / "artifacts" / name for name in preset.notebooks])
    write_claims(run_dir, claims)
    shown = claims if _tested(claims) else []
    title = f"MaskDistill, {content['run']['preset']} preset, {content['run']['data']}"
    table = metric_rows(content)
    write_text(run_dir / "summary.md", _markdown(title, content, table, shown))
    write_text(run_dir / "index.html", _html(title, content, table, shown, run_dir, preset))


def metric_rows(content: dict) -> list[tuple[str, str, str, str, str]]:
    """Draw up the table of metrics, as text.

    Args:
        content: of metrics.json, see `collect`.

    Returns:
        (metric, value, band, verdict, meaning) for every metric, in the order of MEANINGS, unknown
        ones last; then every band whose metric was not measured. The verdict is "within" or
        "OUTSIDE"; empty, as the band, where there is none.
    """
    metrics, bands = content["metrics"], content["bands"]
    order = [m for m in MEANINGS if m in metrics] + sorted(m for m in metrics if m not in MEANINGS)
    rows = []
    for name in order:
        band, verdict = "", ""
        if name in bands:
            low, high = bands[name]
            band = f"{low:g} to {high:g}"
            verdict = "within" if low <= metrics[name] <= high else "OUTSIDE"
        rows.append((name, f"{metrics[name]:.3f}", band, verdict, MEANINGS.get(name, "")))
    for name in sorted(bands.keys() - metrics.keys()):
        low, high = bands[name]
        rows.append((name, "not measured", f"{low:g} to {high:g}", "", MEANINGS.get(name, "")))
    return rows


README_METRICS = (
    "mask_iou",
    "mask_iou_train",
    "detector_mask_iou",
    "corloc",
    "encoder_knn_seen",
    "encoder_knn_unseen",
    "cluster_accuracy",
    "cluster_accuracy_one_to_one",
    "pseudo_miou_unfiltered",
    "pseudo_miou",
    "masks_miou_clustering",
    "miou_clustering",
    "miou_clustering_crf",
    "miou_clustering_valmatch",
    "miou_linear",
    "miou_supervised",
    "miou_supervised_crf",
    "oracle_true_masks",
    "oracle_true_classes",
    "mask_rcnn_ap50_single",
    "mask_rcnn_ap50_multi",
)
README_MARKS = {
    what: (f"<!-- {what}:begin -->", f"<!-- {what}:end -->") for what in ("results", "claims")
}


def readme_table(content: dict) -> str:
    """Draw up the README's table of results, in Markdown.

    Args:
        content: of metrics.json, see `collect`.

    Returns:
        The line about the run, and a row for each of README_METRICS that it has.
    """
    rows = [row for row in metric_rows(content) if row[0] in README_METRICS]
    lines = ["| metric | measured | band | what it is |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {value} | {band} | {meaning} |" for name, value, band, _, meaning in rows
    ]
    return "\n".join([markdown_text(_run_line(content)), "", *lines])


def readme_claims(content: dict, claims: list[dict]) -> str:
    """Draw up the README's tables of claims and findings, in Markdown.

    Args:
        content: of metrics.json, see `collect`.
        claims: the records of claims.json.

    Returns:
        The line about the run, and the tables of `claims.claims_table`.
    """
    return "\n".join([markdown_text(_run_line(content)), "", claims_table(claims)])


def write_readme(run_dir: Path) -> None:
    """Put a run's claims between their marks in README.md, or its results where it tested none.

    Args:
        run_dir: the run's folder, with its report.

    Raises:
        StoreError: there is no report, or README.md does not hold both marks once, in their order;
            it is left as it is.
    """
    content, claims = (read_json(run_dir / name) for name in ("metrics.json", "claims.json"))
    tested = _tested(claims)
    begin, end = README_MARKS["claims" if tested else "results"]
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if text.count(begin) != 1 or text.count(end) != 1 or end not in rest:
        raise StoreError(
            f"{path} must hold the marks {begin} and {end} once, in this order: "
            "the table goes between them, so nothing was written"
        )
    table = readme_claims(content, claims) if tested else readme_table(content)
    write_text(path, f"{before}{begin}\n{table}\n{end}{after}")


def read_executed(path: Path) -> nbformat.NotebookNode:
    """Read an executed notebook.

    Raises:
        StoreError: the file is no notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat's errors have no common class
        raise StoreError(f"{path} is no notebook ({type(error).__name__}: {error})") from None


def missing_pictures(notebook: nbformat.NotebookNode, run_dir: Path, name: str) -> str:
    """Say so where an executed notebook holds fewer pictures than its stage has figures.

    Args:
        notebook: as it was executed.
        run_dir: the run's folder.
        name: of the notebook.

    Returns:
        A line, or "" where all are there or the stage has not run.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    held = sum("image/png" in output.get("data", {}) for output in outputs)
    saved = len(read_manifest(run_dir, name)["figures"]) if has_run(run_dir, name) else 0
    if held >= saved:
        return ""
    return (
        f"{name}: its executed notebook holds {held} pictures, its stage {saved} figures; the page "
        "of the notebook lacks the others"
    )


def page_exporter(**options: str) -> HTMLExporter:
    """Make what turns a notebook into HTML: of its text and outputs, what `clean_html` lets pass.

    Args:
        **options: of nbconvert's HTMLExporter.
    """
    exporter = HTMLExporter(sanitize_html=True, **options)
    exporter.register_filter("clean_html", clean_html)  # nbconvert's own knows no details, no th
    return exporter


def render_notebook(path: Path) -> None:
    """Turn an executed notebook into an HTML page beside it.

    Args:
        path: of the notebook.
    """
    exporter = page_exporter(template_name="lab", theme="light")
    page, _ = exporter.from_filename(str(path))
    write_text(path.with_suffix(".html"), page)


def _markdown(title: str, content: dict, table: list[tuple], claims: list[dict]) -> str:
    """The summary of a run."""
    lines = [
        f"# {markdown_text(title)}",
        "",
        markdown_text(_run_line(content)),
        "",
        "| metric | value | band | | what it is |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {value} | {band} | {verdict} | {meaning} |"
        for name, value, band, verdict, meaning in table
    ]
    lines += (
        [
            "",
            *(
                f"{name}: skipped, {markdown_text(reason)}"
                for name, reason in content["skipped"].items()
            ),
        ]
        if "skipped" in content
        else []
    )
    lines += ["", "## Claims", "", claims_table(claims)] if claims else []
    return "\n".join(lines) + "\n"


def _tested(claims: list[dict]) -> bool:
    """Whether any of the records was measured."""
    return any(record["effect"] is not None for record in claims)


def _run_line(content: dict) -> str:
    """What was run where, as a line."""
    run = content["run"]
    line = (
        f"Measured by this code: preset {run['preset']}, seed {run['seed']}, {run['device']}, "
        f"torch {run['versions']['torch']}, commit {run['commit']}, "
        f"{run['seconds']:.0f} s in notebooks. "
    )
    if run.get("data", ZOO) != ZOO:
        return f"{line}Data set: {run['data']}."
    return (
        f"{line}Bands are for the zoo on this preset; "
        "no number here stands beside one of VOC or COCO."
    )


def _html(
    title: str, content: dict, table: list[tuple], claims: list[dict], run_dir: Path, preset: Preset
) -> str:
    """The page of a run, from templates/report.html.j2."""
    stages = [
        read_manifest(run_dir, name)
        | {"name": name, "has_page": (run_dir / "notebooks" / f"{name}.html").is_file()}
        for name in preset.notebooks
    ]
    return TEMPLATES.get_template("report.html.j2").render(
        title=title,
        run_line=_run_line(content),
        has_contact_sheet=(run_dir / "export" / "contact_sheet.html").is_file(),
        rows=table,
        claims=claims_rows(claims),
        stages=stages,
        overview=OVERVIEW,
    )


def _commit() -> str:
    """The commit that ran, "-dirty" where files other than a run's own reports differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        said = [
            subprocess.run(
                [*git, *arguments], capture_output=True, encoding="utf-8", check=True
            ).stdout.strip()
            for arguments in (
                ["rev-parse", "--short=10", "HEAD"],
                ["status", "--porcelain", "-uno", "--", ".", ":!reports"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said[0] + ("-dirty" if said[1] else "")
