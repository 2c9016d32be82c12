"""The method in one figure, for slides: one picture of a finished run on its way through all stages.

Told apart by place, number and words, so it can be read in grey and by the colour-blind. PNG for print, SVG to edit.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from mdlib import clusters, distill, figures, masks, pseudo, segmenter, store
from mdlib.datasets import open_role
from mdlib.encoder import load_encoder
from mdlib.presets import ROOT
from mdlib.stage import read_manifest

# (key, heading, what happens); the headings name the notebooks
STEPS = (
    ("picture", "00  a picture", "no label"),
    ("attention", "01  a frozen ViT", "where its CLS token looks"),
    ("mask", "01  object masks", "patches whose keys agree"),
    ("cluster", "02  clusters", "masks that look alike"),
    ("detector", "03  Mask R-CNN", "learns from clustered masks"),
    ("filter", "04  filter", "sure masks become labels"),
    ("segmenter", "05  DeepLab", "learns from these labels"),
    ("crf", "06  CRF", "follows the picture's edges"),
)
ALT = (
    "MaskDistill in eight steps, two rows of four panels joined by arrows. A picture; where the CLS token of a frozen vision "
    "transformer looks; the object masks; masks of one cluster; what Mask R-CNN predicts; its confident masks as a label map; "
    "DeepLab's map; the same map after a CRF."
)
GREY = "0.25"
DPI = 220  # of the PNG: 2,600 pixels wide


def method_figure(panels: dict[str, np.ndarray]) -> Figure:
    """The figure, from one image (H, W, 3) or map (h, w) for each key of STEPS. Raises ValueError if one is missing."""
    missing = [key for key, _, _ in STEPS if key not in panels]
    if missing:
        raise ValueError(f"the overview needs a picture for each step, without: {missing}")
    figure, axes = plt.subplots(2, 4, figsize=(12, 7.2), gridspec_kw={"wspace": 0.28, "hspace": 0.42})
    for number, (ax, (key, heading, text)) in enumerate(zip(axes.flat, STEPS)):
        ax.imshow(panels[key], cmap="cividis")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(heading, fontsize=15, fontweight="bold", loc="left", pad=6)
        ax.set_xlabel(text, fontsize=12, labelpad=6)
        if number:
            arrow = {"arrowstyle": "-|>", "lw": 2.2, "color": GREY, "mutation_scale": 20}
            start = -0.25 if number % 4 else -0.18
            ax.annotate("", xy=(-0.03, 0.5), xytext=(start, 0.5), xycoords="axes fraction", arrowprops=arrow)
    above, below = axes[0, 3].get_position(), axes[1, 0].get_position()  # from the end of the first row to the second
    right, left, between = above.x1 + 0.02, below.x0 - 0.028, (below.y1 + above.y0) / 2 - 0.005
    x, y = [above.x1 + 0.006, right, right, left, left], [(above.y0 + above.y1) / 2] * 2 + [between] * 2 + [(below.y0 + below.y1) / 2]
    figure.add_artist(plt.Line2D(x, y, color=GREY, lw=2.2, transform=figure.transFigure))
    return figure


def save(figure: Figure, folder: Path) -> tuple[Path, Path]:
    """Write method.png and method.svg into `folder`; the alternative text is in both."""
    paths = folder / "method.png", folder / "method.svg"
    for path, metadata in zip(paths, ({"Description": ALT, "Software": None}, {"Title": "MaskDistill", "Description": ALT, "Date": None})):
        with store.atomic(path) as temporary, plt.rc_context({"svg.hashsalt": "mdlib"}):  # else no two SVGs are alike
            figure.savefig(temporary, format=path.suffix[1:], dpi=DPI, bbox_inches="tight", metadata=metadata)
    return paths


def panels_of(run_dir: Path) -> dict[str, np.ndarray]:
    """The panels, from a run in which stages 00 to 07 are done: its best picture with several classes."""
    folder = {name[:2]: run_dir / "artifacts" / name for name in _STAGES}
    settings = {name[:2]: read_manifest(run_dir, name)["parameters"] for name in _STAGES}
    index = store.read_json(folder["00"] / "index.json")
    val = open_role(folder["00"], "val")
    names = np.array(store.read_json(folder["07"] / "val_clusters.json")["names"])
    logits = torch.from_numpy(store.read_array(folder["05"] / "segmenter_val.npy").astype(np.float32))
    final = [segmenter.label_map(one, image_hw=val[i].image.shape[:2]) for i, one in enumerate(logits)]
    best = max(range(len(val)), key=lambda i: _agreement(names[final[i]], val[i].semantic))
    sample, hw = val[best], val[best].image.shape[:2]

    def drawn(labels: np.ndarray) -> np.ndarray:
        return figures.colour_map(np.maximum(names[labels], 0), figures.class_colours(len(index["classes"])))

    def painted(records: list[dict]) -> np.ndarray:
        return figures.overlay(sample.image, np.array([r["mask"] for r in records], bool).reshape(-1, *hw))

    found = [r for r in store.read_masks(folder["01"] / "masks_val.json") if r["image_id"] == sample.id]
    said = [r for r in store.read_masks(folder["03"] / "predictions_val.json") if r["image_id"] == sample.id]
    stacked = pseudo.stack_predictions(said, hw)
    sure = pseudo.label_map(*stacked, threshold=settings["04"]["threshold"], overlap=settings["04"]["overlap"])
    refined = folder["06"] / "val" / f"{sample.id}.png"
    return {
        "picture": sample.image,
        "attention": _attention(sample.image, settings["01"]),
        "mask": painted(found),
        "cluster": _members(folder, most_common=final[best]),
        "detector": painted([r for r in said if r["score"] >= 0.3]),
        "filter": drawn(sure),
        "segmenter": drawn(final[best]),
        "crf": drawn(store.read_label_map(refined) if refined.is_file() else final[best]),
    }


_STAGES = (
    "00_prepare_data", "01_distill_masks", "02_cluster_masks", "03_train_mask_rcnn", "04_filter_masks", "05_train_deeplab",
    "06_refine_with_crf", "07_evaluate_clusters",
)  # fmt: skip


def _agreement(named: np.ndarray, true: np.ndarray) -> float:
    """Share of right pixels among those that either calls an object; pictures of one class count half."""
    counted = (named > 0) | (true > 0)
    return (named == true)[counted].mean() * (1.0 if len(np.setdiff1d(true, (0, 255))) > 1 else 0.5) if counted.any() else 0.0


def _attention(image: np.ndarray, settings: dict) -> np.ndarray:
    weights = settings["weights"]
    encoder = load_encoder(settings["encoder_name"], weights=weights if weights in (None, "random") else ROOT / weights, device="cpu")
    tokens = encoder.tokens(distill.resize_images(torch.from_numpy(image).permute(2, 0, 1)[None], input_side=settings["input_side"]))
    return masks.cls_attention(tokens.cls_query, tokens.keys)[0].mean(0).sqrt().view(tokens.grid_hw).numpy()


def _members(folder: dict[str, Path], *, most_common: np.ndarray, side: int = 3, size: int = 64) -> np.ndarray:
    """side x side crops of the training masks nearest to the centre of the map's largest cluster: one (H, W, 3) picture."""
    present = np.bincount(most_common[most_common > 0], minlength=2)
    features = clusters.whiten(store.read_array(folder["02"] / "features_train.npy"), store.read_array(folder["02"] / "deviation.npy"))
    centre = store.read_array(folder["02"] / "centres.npy")[max(0, int(present.argmax()) - 1)]
    records = store.read_masks(folder["01"] / "masks_train.json")
    nearest = [records[i] for i in ((features - centre) ** 2).sum(1).argsort(kind="stable")[: side * side]]
    train = open_role(folder["00"], "train")
    crops = clusters.crop_masks(train, nearest, size=size).permute(0, 2, 3, 1).numpy()
    return crops.reshape(side, side, size, size, 3).transpose(0, 2, 1, 3, 4).reshape(side * size, side * size, 3)
