"""The report of a run: metrics.json, summary.md and index.html, made from its stages' manifests."""

import html
import os
import subprocess
from pathlib import Path

from nbconvert import HTMLExporter

from mdlib import evidence, store
from mdlib.presets import ROOT, Preset
from mdlib.stage import ZOO, data_label, device, read_manifest, versions

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
    "miou_clustering_one_to_one": "mIoU of DeepLab, val; clusters named one-to-one on train by mask counts (the paper's matching at its own k)",
    "miou_clustering_majority_val": "mIoU of DeepLab, val; every cluster named on val by its pixels' majority",
    "classes_without_cluster": "number of classes that no cluster is named after",
    "cluster_nmi_val": "normalised mutual information of clusters and classes, val masks",
    "cluster_ari_val": "adjusted Rand index of clusters and classes, val masks (0 is chance)",
    "cluster_purity_val": "share of val masks in their cluster's most frequent class (grows with k)",
    "masks_miou_clustering_std": "spread of masks_miou_clustering over seeds of k-means",
    "masks_miou_clustering_valmatch_std": "spread of masks_miou_clustering_valmatch over seeds of k-means",
}


COCO_MEASURES = {
    "ap": "mask AP, mean over IoU 0.50 to 0.95", "ap75": "mask AP at IoU 0.75", "ar1": "recall with one answer an image, mean over IoU 0.50 to 0.95",
    "ar10": "the same with 10", "ar100": "the same with 100",
    **{f"{m}_{size}": f"mask {m.upper()} of {size} objects, COCO's sizes in pixels" for m in ("ap", "ar") for size in ("small", "medium", "large")},
}  # fmt: skip
MEANINGS |= {
    f"mask_rcnn_{measure}_{rule}": f"detector on val, class-agnostic, {rule}: {meaning}"
    for rule in ("single", "multi")
    for measure, meaning in COCO_MEASURES.items()
}
LESSONS = {
    "one_mask": "one mask an image, clustered", "clustered_masks": "stage 2's masks", "detector_filtered": "stage 4's maps",
    "detector_everything": "all of the detector's masks", "detector_at_random": "as many of the detector's masks at random",
}  # fmt: skip
MEANINGS |= {f"lessons_{arm}": f"mIoU on val of a segmenter taught by {what}, mean over seeds" for arm, what in LESSONS.items()}
MEANINGS |= {f"lessons_{arm}_std": "its spread over seeds" for arm in LESSONS}
MEANINGS |= {
    "ablation_filter_minus_all": "mIoU of the filter's label maps minus that of all predictions, train",
    "ablation_filter_minus_random": "mIoU of the filter's label maps minus that of as many predictions at random, train",
    **{f"ablation_origin_{c}": f"mask IoU of one mask on dev, keys' origin: {c}" for c in ("none", "mean", "balanced")},
}
MEANINGS |= {
    f"mask_rcnn_ap50_{rule}_named": f"detector on val, {rule}: mask AP50, mean over classes; clusters named on train" for rule in ("single", "multi")
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
    """The content of metrics.json: {"run": ..., "metrics": {name: value}, "bands": {name: [low, high]}}, and "skipped":
    {stage: reason} where stages had nothing to do."""
    manifests = [read_manifest(run_dir, name) for name in preset.notebooks]
    metrics = {name: value for manifest in manifests for name, value in manifest["metrics"].items()}
    info = store.read_json(run_dir / "artifacts" / "run.json")
    seeds = {m["parameters"]["seed"] for m in manifests if "seed" in m["parameters"]}
    run = {
        **info,
        "data": data_label(run_dir),
        "seed": min(seeds) if len(seeds) == 1 else sorted(seeds),
        "device": f"{device()}, {os.cpu_count()} CPU cores",
        "versions": versions(),
        "commit": _commit(),
        "seconds": round(sum(m["seconds"] for m in manifests), 1),
    }
    skipped = {name: manifest["skipped"] for name, manifest in zip(preset.notebooks, manifests) if "skipped" in manifest}
    return {"run": run, "metrics": metrics, "bands": {k: list(v) for k, v in preset.bands.items()}, **({"skipped": skipped} if skipped else {})}


def write(run_dir: Path, preset: Preset) -> None:
    """Write metrics.json, claims.json, summary.md and index.html of a finished run."""
    content = collect(run_dir, preset)
    store.write_json(run_dir / "metrics.json", content)
    evidence.write_claims(run_dir, evidence.gather_claims([run_dir / "artifacts" / name for name in preset.notebooks]))
    title = f"MaskDistill, {content['run']['preset']} preset, {content['run']['data']}"
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
    lines += ["", *(f"{name}: skipped, {reason}" for name, reason in content["skipped"].items())] if "skipped" in content else []
    return "\n".join(lines) + "\n"


def _run_line(content: dict) -> str:
    run = content["run"]
    line = (
        f"Measured by this code: preset {run['preset']}, seed {run['seed']}, {run['device']}, torch {run['versions']['torch']}, "
        f"commit {run['commit']}, {run['seconds']:.0f} s in notebooks. "
    )
    if run.get("data", ZOO) != ZOO:
        return f"{line}Data set: {run['data']}."
    return f"{line}Bands are for the zoo on this preset; no number here stands beside one of VOC or COCO."


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
        skipped = f"<p>Skipped: {html.escape(manifest['skipped'])}</p>" if "skipped" in manifest else ""
        sections.append(f"<section><h2>{link}</h2>{skipped}{figures}</section>")
    first = sections.pop() if preset.notebooks[-1] == "12_report" else ""  # the overview opens the page
    return PAGE.format(
        title=html.escape(title), run=html.escape(_run_line(content)), rows=rows, first=first, sections="".join(sections), costs="".join(costs)
    )


def _commit() -> str:
    """The commit that ran, "-dirty" where other files than reports, which a run writes itself, differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        said = [
            subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "-uno", "--", ".", ":!reports"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said[0] + ("-dirty" if said[1] else "")


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
