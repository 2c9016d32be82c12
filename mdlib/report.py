"""The report of a run: metrics.json, summary.md and index.html, made from its stages' manifests."""

import html
import os
import subprocess
from pathlib import Path

from nbconvert import HTMLExporter

from mdlib import store
from mdlib.presets import ROOT, Preset
from mdlib.stage import device, read_manifest, versions

# What each metric means, in the order of the tables.
MEANINGS = {
    "mask_iou": "stage 1: IoU of the mask with the object it overlaps best, mean over val images",
    "mask_iou_train": "the same over train images",
    "masks_per_image": "stage 1: masks an image, train",
    "mask_iou_centre_box": "the same for a centred box (a baseline)",
    "mask_iou_random_encoder": "the same with random weights, first 100 val images (a baseline)",
    "mask_ap50": "stage 1: mask AP50 on val, class-agnostic, one prediction an image",
    "corloc": "stage 1: share of val images whose box has IoU >= 0.5 with a true one",
    "encoder_knn_seen": "1-NN class accuracy of the CLS token on val scenes of one animal, seen in pretraining",
    "encoder_knn_unseen": "the same for animals the encoder never saw",
    "cluster_accuracy": "stage 2: share of train masks in a cluster named as their class",
    "cluster_accuracy_one_to_one": "the same with as many clusters as classes, named one-to-one (the paper's k)",
    "cluster_accuracy_shuffled": "the same after shuffling the clusters (a baseline)",
    "cluster_nmi": "stage 2: normalised mutual information of clusters and classes, train",
    "cluster_silhouette": "A2: mean silhouette of the train masks in their clusters; needs no label",
    "detector_mask_iou": "stage 3: IoU of the detector's most confident mask, mean over train images",
    "detector_mask_iou_val": "the same over val images",
    "detector_empty_images": "stage 3: share of train images without a prediction",
    "pseudo_miou_unfiltered": "mIoU of the clustered masks themselves, train",
    "pseudo_miou_all_scores": "mIoU of the detector's label maps without a threshold, train",
    "pseudo_miou": "stage 4: mIoU of the detector's confident masks as label maps, train",
    "pseudo_miou_dev": "the same, dev",
    "pseudo_miou_val": "the same, val",
    "pseudo_kept": "stage 4: share of the detector's masks that the filter keeps, train",
    "miou_clustering_dev": "stage 5: mIoU of DeepLab, dev; clusters named on train by mask counts",
    "miou_supervised_dev": "SUPERVISED: the same network and schedule on true labels, dev",
    "crf_gain_dev": "stage 6: what the CRF adds to DeepLab's mIoU, dev",
    "miou_clustering": "mIoU of DeepLab, val; clusters named on train by mask counts (the paper's protocol)",
    "miou_clustering_crf": "the same with the CRF",
    "miou_clustering_valmatch": "mIoU of DeepLab, val; one cluster a class, named on val by pixel IoU (most peers' protocol)",
    "miou_clustering_valmatch_crf": "the same with the CRF",
    "miou_linear": "SUPERVISED: linear probe on the frozen segmenter, val",
    "miou_linear_crf": "SUPERVISED: the same with the CRF",
    "miou_supervised": "SUPERVISED: the same network and schedule on true labels, val (the ceiling)",
    "mask_rcnn_ap50_single": "mask AP50 of the detector on val, class-agnostic, one prediction an image",
    "mask_rcnn_ap50_multi": "mask AP50 of the detector on val, class-agnostic, all predictions",
    "mask_ap50_multi": "mask AP50 of stage 1 on val against all objects",
    "mask_rcnn_corloc": "share of val images whose most confident detection has box IoU >= 0.5 with a true one",
    "masks_miou_clustering": "mIoU of the clustered masks, val; clusters named on train by mask counts",
    "masks_miou_clustering_valmatch": "the same; clusters named on val by pixel IoU (most peers' protocol)",
    "masks_miou_shuffled": "mIoU on val after shuffling the clusters, names as on train (a baseline)",
    "masks_miou_background": "mIoU of predicting background everywhere, val (a baseline)",
}


PRIORS = {
    "maskdistill": "MaskDistill, one mask", "several": "MaskDistill, several masks", "geodesic": "geodesic saliency",
    "tokencut": "TokenCut", "maskcut": "MaskCut", "lost": "LOST", "attention": "attention threshold",
    "frequency_tuned": "frequency-tuned saliency", "centre_box": "centred box", "whole_image": "whole image",
}  # fmt: skip
PRIOR_MEASURES = {
    "mask_iou": "mask IoU", "corloc": "CorLoc", "ap50": "mask AP50, single", "ap50_multi": "mask AP50, multi",
    "gain_low": "mask IoU of MaskDistill minus this, lower end of the 95 % interval",
    "gain_high": "the same, upper end", "empty_refused": "share of empty scenes without a mask",
}  # fmt: skip
MEANINGS |= {
    f"prior_{prior}_{measure}": f"{name} on the first val images: {meaning}"
    for prior, name in PRIORS.items()
    for measure, meaning in PRIOR_MEASURES.items()
}


def collect(run_dir: Path, preset: Preset) -> dict:
    """The content of metrics.json: {"run": ..., "metrics": {name: value}, "bands": {name: [low, high]}}."""
    manifests = [read_manifest(run_dir, name) for name in preset.notebooks]
    metrics = {name: value for manifest in manifests for name, value in manifest["metrics"].items()}
    info = store.read_json(run_dir / "artifacts" / "run.json")
    seeds = {m["parameters"]["seed"] for m in manifests if "seed" in m["parameters"]}
    run = {
        **info,
        "seed": min(seeds) if len(seeds) == 1 else sorted(seeds),
        "device": f"{device()}, {os.cpu_count()} CPU cores",
        "versions": versions(),
        "commit": _commit(),
        "seconds": round(sum(m["seconds"] for m in manifests), 1),
    }
    return {"run": run, "metrics": metrics, "bands": {k: list(v) for k, v in preset.bands.items()}}


def write(run_dir: Path, preset: Preset) -> None:
    """Write metrics.json, summary.md and index.html of a finished run."""
    content = collect(run_dir, preset)
    store.write_json(run_dir / "metrics.json", content)
    title = f"MaskDistill, {content['run']['preset']} preset, zoo (composited)"
    table = metric_rows(content)
    store.write_text(run_dir / "summary.md", _markdown(title, content, table))
    store.write_text(run_dir / "index.html", _html(title, content, table, run_dir, preset))


def metric_rows(content: dict) -> list[tuple[str, str, str, str, str]]:
    """(metric, value, band, verdict, meaning) for every metric, in the order of MEANINGS, unknown ones last."""
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
    return rows


README_METRICS = (
    "mask_iou", "mask_iou_train", "detector_mask_iou", "corloc", "cluster_accuracy", "cluster_accuracy_one_to_one",
    "pseudo_miou_unfiltered", "pseudo_miou", "masks_miou_clustering", "miou_clustering", "miou_clustering_crf",
    "miou_clustering_valmatch", "miou_linear", "miou_supervised", "mask_rcnn_ap50_single", "mask_rcnn_ap50_multi",
)  # fmt: skip
README_MARKS = ("<!-- results:begin -->", "<!-- results:end -->")


def readme_table(content: dict) -> str:
    """The README's results table, from the content of a metrics.json."""
    rows = [row for row in metric_rows(content) if row[0] in README_METRICS]
    lines = ["| metric | measured | band | what it is |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {value} | {band} | {meaning} |" for name, value, band, _, meaning in rows]
    return "\n".join([_run_line(content), "", *lines])


def write_readme(run_dir: Path) -> None:
    """Put a run's results between the marks of README.md."""
    path = ROOT / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(README_MARKS[0])
    _, _, after = rest.partition(README_MARKS[1])
    table = readme_table(store.read_json(run_dir / "metrics.json"))
    store.write_text(path, f"{before}{README_MARKS[0]}\n{table}\n{README_MARKS[1]}{after}")


def render_notebook(path: Path) -> None:
    """Executed notebook -> HTML page beside it."""
    exporter = HTMLExporter(template_name="lab", theme="light")
    page, _ = exporter.from_filename(str(path))
    store.write_text(path.with_suffix(".html"), page)


def _markdown(title: str, content: dict, table: list[tuple]) -> str:
    lines = [f"# {title}", "", _run_line(content), "", "| metric | value | band | | what it is |", "|---|---|---|---|---|"]
    lines += [f"| `{name}` | {value} | {band} | {verdict} | {meaning} |" for name, value, band, verdict, meaning in table]
    return "\n".join(lines) + "\n"


def _run_line(content: dict) -> str:
    run = content["run"]
    return (
        f"Measured by this code: preset {run['preset']}, seed {run['seed']}, {run['device']}, torch {run['versions']['torch']}, "
        f"commit {run['commit']}, {run['seconds']:.0f} s in notebooks. Bands are for the zoo on this preset; "
        "no number here stands beside one of VOC or COCO."
    )


def _html(title: str, content: dict, table: list[tuple], run_dir: Path, preset: Preset) -> str:
    rows = "".join(
        f'<tr class="{verdict.lower()}"><td><code>{name}</code></td><td class="n">{value}</td><td class="n">{band}</td>'
        f"<td>{verdict}</td><td>{html.escape(meaning)}</td></tr>"
        for name, value, band, verdict, meaning in table
    )
    sections, costs = [], []
    for name in preset.notebooks:
        manifest = read_manifest(run_dir, name)
        page = run_dir / "notebooks" / f"{name}.html"
        link = f'<a href="notebooks/{name}.html">{name}</a>' if page.is_file() else name
        costs.append(f'<tr><td>{link}</td><td class="n">{manifest["seconds"]:.0f} s</td></tr>')
        figures = "".join(
            f'<figure><img src="figures/{f["file"]}" alt="{html.escape(f["caption"])}" loading="lazy">'
            f"<figcaption>{html.escape(f['caption'])}</figcaption></figure>"
            for f in manifest["figures"]
        )
        sections.append(f"<section><h2>{link}</h2>{figures}</section>")
    first = sections.pop() if preset.notebooks[-1] == "12_report" else ""  # the overview opens the page
    return PAGE.format(
        title=html.escape(title), run=html.escape(_run_line(content)), rows=rows, first=first, sections="".join(sections), costs="".join(costs)
    )


def _commit() -> str:
    try:
        args = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(args, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; font-size: .9rem; }} td, th {{ padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #eee; }}
.n {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }} .outside td {{ background: #fbe3d6; }}
figure {{ margin: 1.2rem 0; }} img {{ max-width: 100%; height: auto; }} figcaption {{ color: #555; font-size: .9rem; }}
.wide {{ overflow-x: auto; }} .run {{ color: #555; font-size: .9rem; }}
</style></head><body>
<h1>{title}</h1><p class="run">{run}</p>{first}
<h2>Metrics</h2><div class="wide"><table><tr><th>metric</th><th class="n">value</th><th class="n">band</th><th></th><th>what it is</th></tr>{rows}</table></div>
{sections}
<h2>Cost</h2><table><tr><th>notebook</th><th class="n">time</th></tr>{costs}</table>
</body></html>
"""
