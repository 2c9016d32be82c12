"""What each metric means, in one line for the tables.

MEANINGS is {name in metrics.json: meaning}, in the order of the tables. Metrics that come in
families, such as one for each rule and measure, are put together below.
"""

MEANINGS = {
    "mask_iou_sharpness_dev": (
        "stage 0: mask IoU on dev of the largest region in focus, which has learned nothing; the "
        "higher, the easier this world is for sharpness"
    ),
    "mask_iou_geodesic_dev": "the same of the geodesic prior, for colour",
    "mask_iou_centre_box_dev": "the same of a centred box, for place",
    "mask_iou": "stage 1: IoU of the mask with the object it overlaps best, mean over val images",
    "mask_iou_train": "the same over train images",
    "masks_per_image": "stage 1: masks an image, train",
    "mask_iou_centre_box": "the same for a centred box (a baseline)",
    "mask_iou_random_encoder": "the same with random weights, first 100 val images (a baseline)",
    "mask_ap50": (
        "stage 1: mask AP50 on val, class-agnostic, one mask an image, against the object that "
        "this mask overlaps best"
    ),
    "corloc": "stage 1: share of val images whose box has IoU >= 0.5 with a true one",
    "encoder_knn_seen": (
        "1-NN class accuracy of the CLS token on val scenes of one animal, seen in pretraining"
    ),
    "encoder_knn_unseen": "the same for animals the encoder never saw",
    "cluster_accuracy": (
        "stage 2: share of train masks in a cluster named as their class, mean over seeds of "
        "k-means"
    ),
    "cluster_accuracy_std": "spread of cluster_accuracy over seeds of k-means",
    "cluster_accuracy_one_to_one": (
        "the same with as many clusters as classes, named one-to-one (the paper's k)"
    ),
    "cluster_accuracy_shuffled": "the same after shuffling the clusters (a baseline)",
    "cluster_nmi": (
        "stage 2: normalised mutual information of clusters and classes, train, mean over seeds"
    ),
    "cluster_silhouette": (
        "A2: mean silhouette of the train masks in their clusters; needs no label"
    ),
    "detector_mask_iou": (
        "stage 3: IoU of the detector's most confident mask, mean over train images"
    ),
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
    "miou_clustering": (
        "mIoU of DeepLab, val; clusters named on train by mask counts (the paper's protocol)"
    ),
    "miou_clustering_crf": "the same with the CRF",
    "miou_clustering_valmatch": (
        "mIoU of DeepLab, val; one cluster a class, named on val by pixel IoU (most peers' "
        "protocol)"
    ),
    "miou_clustering_valmatch_crf": "the same with the CRF",
    "miou_linear": "SUPERVISED: linear probe on the frozen segmenter, val",
    "miou_linear_crf": "SUPERVISED: the same with the CRF",
    "miou_supervised": (
        "SUPERVISED: the same network and schedule on true labels, val (the ceiling)"
    ),
    "miou_supervised_crf": "SUPERVISED: the same with the CRF",
    "oracle_true_masks": (
        "ORACLE: mIoU of the true masks in the found clusters, val (what better masks could bring)"
    ),
    "oracle_true_classes": (
        "ORACLE: mIoU of the found masks with their true classes, val (what better clusters could "
        "bring)"
    ),
    "mask_rcnn_ap50_single": (
        "mask AP50 of the detector on val, class-agnostic, one prediction an image"
    ),
    "mask_rcnn_ap50_multi": "mask AP50 of the detector on val, class-agnostic, all predictions",
    "mask_ap50_multi": "mask AP50 of stage 1 on val against all objects",
    "mask_rcnn_corloc": (
        "share of val images whose most confident detection has box IoU >= 0.5 with a true one"
    ),
    "masks_miou_clustering": (
        "mIoU of the clustered masks, val; clusters named on train by mask counts; mean over "
        "seeds of k-means"
    ),
    "masks_miou_clustering_valmatch": (
        "the same; clusters named on val by pixel IoU (most peers' protocol)"
    ),
    "masks_miou_shuffled": (
        "mIoU on val after shuffling the clusters, names as on train (a baseline)"
    ),
    "masks_miou_background": "mIoU of predicting background everywhere, val (a baseline)",
    "miou_clustering_one_to_one": (
        "mIoU of DeepLab, val; clusters named one-to-one on train by mask counts (the paper's "
        "matching at its own k)"
    ),
    "miou_clustering_majority_val": (
        "mIoU of DeepLab, val; every cluster named on val by its pixels' majority"
    ),
    "classes_without_cluster": "number of classes that no cluster is named after",
    "cluster_nmi_val": (
        "normalised mutual information of clusters and classes, val masks, mean over seeds"
    ),
    "cluster_ari_val": (
        "adjusted Rand index of clusters and classes, val masks (0 is chance), mean over seeds"
    ),
    "cluster_purity_val": (
        "share of val masks in their cluster's most frequent class (grows with k), mean over seeds"
    ),
    "masks_miou_clustering_std": "spread of masks_miou_clustering over seeds of k-means",
    "masks_miou_clustering_valmatch_std": (
        "spread of masks_miou_clustering_valmatch over seeds of k-means"
    ),
}

# 09: COCO's measures of the detector's masks
RULES = ("single", "multi")  # one prediction an image; all of them
COCO_MEASURES = {
    "ap": "mask AP, mean over IoU 0.50 to 0.95",
    "ap75": "mask AP at IoU 0.75",
    "ar1": "recall with one answer an image, mean over IoU 0.50 to 0.95",
    "ar10": "the same with 10",
    "ar100": "the same with 100",
    "ap_small": "mask AP of small objects, COCO's sizes in pixels",
    "ap_medium": "mask AP of medium objects, COCO's sizes in pixels",
    "ap_large": "mask AP of large objects, COCO's sizes in pixels",
    "ar_small": "mask AR of small objects, COCO's sizes in pixels",
    "ar_medium": "mask AR of medium objects, COCO's sizes in pixels",
    "ar_large": "mask AR of large objects, COCO's sizes in pixels",
}
MEANINGS |= {
    f"mask_rcnn_{measure}_{rule}": f"detector on val, class-agnostic, {rule}: {meaning}"
    for rule in RULES
    for measure, meaning in COCO_MEASURES.items()
}

# 13: claims of the paper, each a mean over seeds; one mask an image, k as in the paper
MEANINGS |= {
    "filter_order_skill": (
        "how well the detector's score ranks train masks, some of them wrong: 0 as a random order, "
        "1 as their true IoU"
    ),
    "filter_share_kept": "share of these masks that the detector confirms",
    "filter_miou_kept": "mIoU on val of a segmenter trained on the masks kept by the score",
    "filter_miou_random": "the same, as many masks at random",
    "filter_miou_unfiltered": "the same, all masks",
    "model_miou_labels": "mIoU on val of stage 1's masks in their nearest clusters",
    "model_miou_detector": "mIoU on val of a detector that learned from such masks",
    "model_miou_segmenter_without": "mIoU on val of a segmenter that learned from such masks",
    "model_miou_segmenter": "mIoU on val of a segmenter that learned from that detector",
}
CHAINS = {"maskdistill": "MaskDistill's masks", "saliency": "a saliency prior's masks"}
MEANINGS |= {
    f"composition_drop_{chain}": (
        f"mIoU on val that a linear segmenter of {masks} loses, where the training set has small "
        "animals and empty scenes instead of one centred animal"
    )
    for chain, masks in CHAINS.items()
}

# 08: linear probes
FEATURES = {"deeplab": "DeepLab's features", "vit": "the encoder's tokens"}
MEANINGS |= {
    f"probe_{key}_{share}{suffix}": (
        f"SUPERVISED: linear probe on {features}, {share} % of the labels, val{text}"
    )
    for key, features in FEATURES.items()
    for share in (1, 10, 100)
    for suffix, text in (("", ""), ("_crf", ", with the CRF"))
}

# 11: ablations
MEANINGS |= {
    "ablation_filter_minus_all": (
        "mIoU of the filter's label maps minus that of all predictions, train"
    ),
    "ablation_filter_minus_random": (
        "mIoU of the filter's label maps minus that of as many predictions at random, train"
    ),
}
MEANINGS |= {
    f"ablation_origin_{origin}": f"mask IoU of one mask on dev, keys' origin: {origin}"
    for origin in ("none", "mean", "balanced")
}

# 09: the detector's masks, class by class
MEANINGS |= {
    f"mask_rcnn_ap50_{rule}_named": (
        f"detector on val, {rule}: mask AP50, mean over classes; clusters named on train"
    )
    for rule in RULES
}

# 10: masks and clusters under other compositions and cues
PRIORS = {
    "maskdistill": "MaskDistill",
    "geodesic": "geodesic saliency",
    "contrast": "frequency-tuned contrast",
    "sharpness": "local sharpness",
    "centre_box": "centred box",
}
COMPOSED = ("mixture", "sharp", "soft", "portrait", "crowd", "edge", "camouflage")
MEANINGS |= {
    f"prior_{prior}_{composition}_iou": (
        f"{name}, one mask an image on the encoder's grid: mask IoU on val, {scenes}"
    )
    for prior, name in PRIORS.items()
    for composition, scenes in (
        *((each, f"scenes composed as {each}") for each in COMPOSED),
        ("own", "the data set's own pictures"),
    )
}
MEANINGS |= {
    f"prior_{prior}_drop": (
        f"{name}: mask IoU in the composition that suits it best minus that in the worst, val"
    )
    for prior, name in PRIORS.items()
}
FACTS = {
    "class": "class",
    "photograph": "photograph of the ground",
    "ground_hue": "hue of the ground",
    "hue": "animal's hue",
    "size": "animal's size",
    "place": "animal's place",
}
CROPS = "crops of true boxes"
MEANINGS |= {
    f"clusters_ami_{fact}": (
        f"adjusted mutual information of clusters of {CROPS} with the {text}, mean over draws"
    )
    for fact, text in FACTS.items()
}
MEANINGS |= {
    "clusters_ami_class_histogram": f"the same with the class, for colour histograms of {CROPS}",
    "clusters_ami_class_random": "the same with the class, for random weights (a baseline)",
}
CUES = {
    "grey": "without colour",
    "hues": "with the hues of animals and ground exchanged",
    "focus": "with the animals out of focus and the ground in focus",
    "texture": "with the animal's texture on the ground",
}
MEANINGS |= {
    f"cue_{cue}_iou_change": f"MaskDistill's mask IoU on val scenes {text}, minus unchanged"
    for cue, text in CUES.items()
}

# 12: val in two parts
GROUPS = {
    "seen": "on val scenes whose animals all stand in train, too",
    "unseen": "on val scenes with an animal that no stage has met",
}
MEANINGS |= {
    f"{metric}_{group}": f"{metric} {which}"
    for group, which in GROUPS.items()
    for metric in (
        "mask_iou",
        "corloc",
        "mask_ap50_multi",
        "detector_mask_iou_val",
        "mask_rcnn_corloc",
        "mask_rcnn_ap50_single",
        "mask_rcnn_ap50_multi",
        "miou_clustering",
        "miou_clustering_crf",
        "miou_linear",
        "miou_supervised",
        "miou_supervised_crf",
    )
}

# 07 on a data set without a val that has label maps, such as a folder
MEANINGS |= {
    f"{name}_train": f"as {name}, on train: clusters are named on the pictures that are scored"
    for name in (
        "miou_clustering",
        "miou_clustering_crf",
        "miou_clustering_valmatch",
        "miou_clustering_valmatch_crf",
        "masks_miou_clustering",
        "masks_miou_clustering_valmatch",
        "masks_miou_clustering_std",
        "masks_miou_clustering_valmatch_std",
        "miou_clustering_one_to_one",
        "miou_clustering_majority_val",
        "masks_miou_shuffled",
        "masks_miou_background",
        "classes_without_cluster",
        "oracle_true_masks",
        "oracle_true_classes",
    )
}
MEANINGS["miou_supervised_train"] = (
    "SUPERVISED: the same network and schedule on true labels, on train, from which it learned"
)
MEANINGS["miou_supervised_crf_train"] = "SUPERVISED: the same with the CRF"
