"""How much the demo's cluster metrics change with the seed of k-means.

The bands of presets/demo.yaml come from it.

    python benchmarks/kmeans_seeds.py      after a demo run

writes benchmarks/results/kmeans_seeds.json.
"""

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from mdlib.core.files import write_json
from mdlib.core.paths import ROOT
from mdlib.evaluate import metrics, naming
from mdlib.method import clusters, pseudo_labels
from mdlib.models.encoder import load_encoder
from mdlib.run.artifacts import RunArtifacts
from mdlib.run.identity import device
from mdlib.run.presets import load_preset, resolve

SEEDS = range(10)


def main() -> None:
    """Cluster with each seed, score each clustering, and write the summary."""
    run = RunArtifacts(ROOT / "reports" / "demo")
    fitted = run.clusters()
    options = resolve(load_preset("demo"), {})["02_cluster_masks"]
    classes, num = fitted.mask_classes, len(run.classes)
    z_train = clusters.whiten(run.features(), fitted.deviation)
    masks = {split: run.masks(split) for split in ("train", "val")}
    data = {split: run.dataset(split) for split in masks}
    encoder = load_encoder("zoo", device=device())
    features = clusters.embed_masks(
        encoder, data["val"], masks["val"], size=fitted.crop_side, batch=64
    )
    z_val = clusters.whiten(features, fitted.deviation)

    rows = []
    for seed in SEEDS:
        model = clusters.fit_kmeans(
            z_train,
            k=fitted.k,
            seed=seed,
            batch_size=options["kmeans_batch"],
            restarts=options["restarts"],
        )
        centres = model.cluster_centers_.astype(np.float32)
        assigned = {
            "train": clusters.assign_clusters(z_train, centres),
            "val": clusters.assign_clusters(z_val, centres),
        }
        counts = naming.count_matrix(assigned["train"], classes, k=fitted.k, num_classes=num)
        names = naming.name_clusters(counts)
        total = {}
        for split in ("train", "val"):
            total[split] = np.zeros((fitted.k + 1, num), np.int64)
            clustered = masks[split].with_clusters(assigned[split])
            for i, found in enumerate(clustered.by_image(data[split].ids)):
                true = data[split].semantic(i)
                pred = pseudo_labels.clustered_map(found, image_hw=true.shape)
                total[split] += metrics.confusion(
                    pred, true, num_preds=fitted.k + 1, num_targets=num
                )
        named = np.array([0, *names])
        rows.append(
            {
                "cluster_accuracy": float((names[assigned["train"]] == classes).mean()),
                "cluster_nmi": float(normalized_mutual_info_score(classes, assigned["train"])),
                "pseudo_miou_unfiltered": metrics.mean_iou(total["train"], named),
                "masks_miou_clustering": metrics.mean_iou(total["val"], named),
                "masks_miou_clustering_valmatch": metrics.mean_iou(
                    total["val"], metrics.match_hungarian(total["val"])
                ),
            }
        )
    summary = {
        name: {
            f: round(float(getattr(np, f)([row[name] for row in rows])), 4)
            for f in ("mean", "std", "min", "max")
        }
        for name in rows[0]
    }
    write_json(
        ROOT / "benchmarks" / "results" / "kmeans_seeds.json",
        {"seeds": list(SEEDS), "metrics": summary},
    )
    for name, values in summary.items():
        print(name, values)


if __name__ == "__main__":
    main()
