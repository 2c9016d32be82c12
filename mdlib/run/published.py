"""Published numbers, each with its data set and protocol, and a run's own numbers beside them.

A measured number stands in a row only if the run was on that row's data set and split: none of the
zoo's ever does. Per cent, as published.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mdlib.core.markup import markdown_text

Split = tuple[str, str]  # data set and split, as `open_dataset` calls them

VAL: Split = ("voc2012", "val")
TRAINVAL: Split = ("voc2012", "instances")
COCO20K: Split = ("coco", "coco20k")
DATA_SETS = {
    VAL: "VOC 2012 val, 1,449 images",
    TRAINVAL: "VOC 2012 train and val, 2,913 images with masks",
    COCO20K: "COCO20k, 19,817 images of train2014",
}
# protocols
BY_TRAIN = "clusters named on train by mask counts"
BY_VAL = "clusters named on val by pixel IoU, K = 21"
LABELS = "linear classifier on frozen features: SUPERVISED"
ONE = "mask AP50, one prediction an image"
ALL = "mask AP50, all predictions"
# methods
MASKDISTILL = "MaskDistill, arXiv 2206.06363"
VERSIONS = "average of runs; the released checkpoint"


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        metric: name in metrics.json of the number that may stand beside it.
        data: data set and split.
        method: its name, and which version where several are printed.
        value: as printed, in per cent; several are separated by semicolons.
        protocol: how clusters were named, or predictions counted.
    """

    metric: str
    data: Split
    method: str
    value: str
    protocol: str


ROWS = (
    Published("miou_clustering", VAL, f"{MASKDISTILL}, {VERSIONS}", "45.8; 48.46", BY_TRAIN),
    Published("miou_clustering_crf", VAL, f"{MASKDISTILL}, with CRF", "48.9", BY_TRAIN),
    Published("miou_linear", VAL, MASKDISTILL, "58.7", LABELS),
    Published("miou_linear_crf", VAL, f"{MASKDISTILL}, with CRF", "62.8", LABELS),
    *(
        Published("miou_clustering_valmatch", VAL, method, value, BY_VAL)
        for method, value in (
            ("MaskContrast, unsupervised saliency", "35.0"),
            ("MaskContrast, supervised saliency", "44.2"),
            ("TransFGU", "37.2"),
            ("Deep Spectral; with self-training", "30.8; 37.2"),
            ("Leopart", "41.7"),
            ("ACSeg", "47.1 +- 2.4"),
            ("COMUS", "50.0"),
            ("CAUSE-TR: DINO S/8; DINO B/8; DINOv2 B/14", "50.0; 53.3; 53.2"),
        )
    ),
    Published("mask_rcnn_ap50_single", TRAINVAL, MASKDISTILL, "35.5", ONE),
    Published("mask_rcnn_ap50_multi", TRAINVAL, MASKDISTILL, "26.0", ALL),
    Published("mask_rcnn_ap50_single", COCO20K, MASKDISTILL, "15.3", ONE),
    Published("mask_rcnn_ap50_multi", COCO20K, MASKDISTILL, "8.0", ALL),
)


def beside_published(measured: Mapping[Split, Mapping[str, float]], *, profile: str) -> str:
    """Put ROWS into a table in Markdown, each with what a run measured on the same data.

    Args:
        measured: {(data set, split): metrics in [0, 1]}, of whole splits.
        profile: the run's preset and encoder, shown with its numbers.

    Returns:
        One line a row; "not run" where data set, split or metric is not among the measured.
    """
    lines = [
        "| method | data set | protocol | published | measured here | profile |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        ours = measured.get(row.data, {}).get(row.metric)
        number, how = ("not run", "")
        if ours is not None:
            number, how = f"{100 * ours:.1f}", markdown_text(profile)
        cells = (row.method, DATA_SETS[row.data], row.protocol, row.value, number, how)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
