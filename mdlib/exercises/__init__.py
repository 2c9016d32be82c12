"""Checks for the exercises: is a student's function right, and if not, on which small input?

Each `check_*` calls the function on small inputs, compares it with the library or with a slow
version of the formula, and prints how many agree; `compare` says how. Its docstring says what the
function is given and must return. A function that is not right raises `compare.Mismatch`.
"""

from mdlib.exercises.beyond import (
    check_crossed_error,
    check_interaction,
    check_loss_without_twins,
    check_object_agreement,
    check_resampled_gains,
    check_run_lengths,
)
from mdlib.exercises.chain import (
    check_average_precision,
    check_calibration_error,
    check_class_iou,
    check_diffuse,
    check_hardest_loss,
    check_kmeans_step,
    check_mask_to_box,
    check_mean_field_step,
    check_mirror_boxes,
    check_probe_gradient,
)

__all__ = [
    "check_average_precision",
    "check_calibration_error",
    "check_class_iou",
    "check_crossed_error",
    "check_diffuse",
    "check_hardest_loss",
    "check_interaction",
    "check_kmeans_step",
    "check_loss_without_twins",
    "check_mask_to_box",
    "check_mean_field_step",
    "check_mirror_boxes",
    "check_object_agreement",
    "check_probe_gradient",
    "check_resampled_gains",
    "check_run_lengths",
]
