"""Numbers that others published, each with its data set and protocol, and this run's beside those
that it may stand beside.

A measured number stands in a row only if the run was on that row's data set and split: none of the
zoo's ever does. Per cent, as published.
"""

from dataclasses import dataclass

# data set and split, as we call them
VAL, TRAINVAL, COCO20K = ("voc2012", "val"), ("voc2012", "instances"), ("coco", "coco20k")
DATA_SETS = {
    VAL: "VOC 2012 val, 1,449 images", TRAINVAL: "VOC 2012 train and val, 2,913 images with masks", COCO20K: "COCO20k, 19,817 images of train2014",
}  # fmt: skip
BY_TRAIN = "clusters named on train by mask counts"
BY_VAL = "clusters named on val by pixel IoU, K = 21"
LABELS = "linear classifier on frozen features: SUPERVISED"
MASKDISTILL, VERSIONS = "MaskDistill, arXiv 2206.06363", "average of runs; the released checkpoint"


@dataclass(frozen=True)
class Published:
    """metric: the name in metrics.json that it would stand beside; value: as printed."""

    metric: str
    data: tuple[str, str]
    method: str
    value: str
    protocol: str


ROWS = (
    Published("miou_clustering", VAL, f"{MASKDISTILL}, {VERSIONS}", "45.8; 48.46", BY_TRAIN),
    Published("miou_clustering_crf", VAL, f"{MASKDISTILL}, with CRF", "48.9", BY_TRAIN),
    Published("miou_linear", VAL, MASKDISTILL, "58.7", LABELS),
    Published("miou_linear_crf", VAL, f"{MASKDISTILL}, with CRF", "62.8", LABELS),
    Published(
        "miou_clustering_valmatch", VAL, "MaskContrast, unsupervised saliency", "35.0", BY_VAL
    ),
    Published("miou_clustering_valmatch", VAL, "MaskContrast, supervised saliency", "44.2", BY_VAL),
    Published("miou_clustering_valmatch", VAL, "TransFGU", "37.2", BY_VAL),
    Published(
        "miou_clustering_valmatch", VAL, "Deep Spectral; with self-training", "30.8; 37.2", BY_VAL
    ),
    Published("miou_clustering_valmatch", VAL, "Leopart", "41.7", BY_VAL),
    Published("miou_clustering_valmatch", VAL, "ACSeg", "47.1 +- 2.4", BY_VAL),
    Published("miou_clustering_valmatch", VAL, "COMUS", "50.0", BY_VAL),
    Published(
        "miou_clustering_valmatch",
        VAL,
        "CAUSE-TR: DINO S/8; DINO B/8; DINOv2 B/14",
        "50.0; 53.3; 53.2",
        BY_VAL,
    ),
    Published(
        "mask_rcnn_ap50_single", TRAINVAL, MASKDISTILL, "35.5", "mask AP50, one prediction an image"
    ),
    Published("mask_rcnn_ap50_multi", TRAINVAL, MASKDISTILL, "26.0", "mask AP50, all predictions"),
    Published(
        "mask_rcnn_ap50_single", COCO20K, MASKDISTILL, "15.3", "mask AP50, one prediction an image"
    ),
    Published("mask_rcnn_ap50_multi", COCO20K, MASKDISTILL, "8.0", "mask AP50, all predictions"),
)


def beside_published(measured: dict[tuple[str, str], dict[str, float]], *, profile: str) -> str:
    """ROWS as a table in Markdown, with what a run measured where data set and split are the row's
    own.

    measured: {(data set, split): metrics} of whole splits; profile: the run's preset and encoder,
    shown with its numbers.
    """
    lines = [
        "| method | data set | protocol | published | measured here | profile |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        ours = measured.get(row.data, {}).get(row.metric)
        number, how = ("not run", "") if ours is None else (f"{100 * ours:.1f}", profile)
        lines.append(
            f"| {row.method} | {DATA_SETS[row.data]} | {row.protocol} | {row.value} | {number} | {how} |"
        )
    return "\n".join(lines)
