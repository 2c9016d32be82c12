"""The one Sample type that every data set yields, and its contract."""

from dataclasses import dataclass

import numpy as np

from mdlib.core.mask import mask_to_box

VOID = 255  # the label of pixels that never count


@dataclass(frozen=True)
class Instances:
    """The objects of one image.

    masks (n, H, W) bool; labels (n,) int64 class indices from 1; names: n identities of the pasted
    photographs, or () where a data set has none. Where only boxes are drawn (VOC's detection set),
    masks is None and drawn_boxes (n, 4) holds them: a mask is never made up from a box. crowds (c,
    H, W) bool: regions of objects that nobody counted (COCO's iscrowd), which are no objects here,
    or None.
    """

    masks: np.ndarray | None
    labels: np.ndarray
    names: tuple[str, ...] = ()
    drawn_boxes: np.ndarray | None = None
    crowds: np.ndarray | None = None

    def __post_init__(self):
        if (self.masks is None) == (self.drawn_boxes is None):
            raise ValueError(
                "instances are given by masks, or by drawn boxes where there are no masks"
            )

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) float64 x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
        if self.masks is None:
            return self.drawn_boxes
        return np.array([mask_to_box(mask) for mask in self.masks], np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    image (H, W, 3) uint8 RGB; semantic (H, W) uint8, 0 background, 255 void, or None;
    instances, or None where there are no labels.
    """

    id: str
    image: np.ndarray
    semantic: np.ndarray | None = None
    instances: Instances | None = None

    def __post_init__(self):
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(
                f"{self.id}: image must be (H, W, 3) uint8, got {self.image.shape} {self.image.dtype}"
            )
        size = self.image.shape[:2]
        if self.semantic is not None and (
            self.semantic.shape != size or self.semantic.dtype != np.uint8
        ):
            raise ValueError(
                f"{self.id}: semantic map must be {size} uint8 as the image, "
                f"got {self.semantic.shape} {self.semantic.dtype}"
            )
        for masks in (
            (self.instances.masks, self.instances.crowds) if self.instances is not None else ()
        ):
            if masks is not None and masks.shape[1:] != size:
                raise ValueError(
                    f"{self.id}: instance masks {masks.shape} do not fit the image {size}"
                )
