"""The one Sample type that every data set yields, and its contract."""

from dataclasses import dataclass

import numpy as np

from mdlib.core.mask import mask_to_box

VOID = 255  # the label of pixels that never count


class Instances:
    """The objects of one image, n in number.

    They are given by masks, or by drawn boxes where there are no masks (VOC's detection set): a
    mask is never made up from a box.

    Attributes:
        labels: (n,) int64 class indices from 1.
        names: n identities of the pasted photographs, or () where a data set has none.
        has_masks: whether the objects have masks, and not drawn boxes alone.
        crowds: (c, H, W) bool regions of objects that nobody counted (COCO's iscrowd), which are
            no objects here; (0, H, W) where there are none, (0, 0, 0) beside drawn boxes.
    """

    def __init__(
        self,
        masks: np.ndarray | None,
        labels: np.ndarray,
        names: tuple[str, ...] = (),
        *,
        drawn_boxes: np.ndarray | None = None,
        crowds: np.ndarray | None = None,
    ):
        """Collect the objects of one image.

        Args:
            masks: (n, H, W) bool, or None.
            labels: (n,) int64 class indices from 1.
            names: n identities, or ().
            drawn_boxes: (n, 4) float64 as `boxes`, where masks is None.
            crowds: (c, H, W) bool, or None for no crowd.

        Raises:
            ValueError: for both masks and drawn boxes, and for neither.
        """
        if (masks is None) == (drawn_boxes is None):
            raise ValueError(
                "instances are given by masks, or by drawn boxes where there are no masks"
            )
        self._masks, self._drawn_boxes = masks, drawn_boxes
        self.labels, self.names, self.has_masks = labels, names, masks is not None
        if crowds is None:
            crowds = np.zeros((0, 0, 0) if masks is None else (0, *masks.shape[1:]), bool)
        self.crowds = crowds

    @property
    def masks(self) -> np.ndarray:
        """(n, H, W) bool.

        Raises:
            ValueError: where the objects have drawn boxes alone.
        """
        if self._masks is None:
            raise ValueError("these objects have boxes alone")
        return self._masks

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) float64 x0, y0, x1, y1 in pixels, x1 and y1 exclusive; tight around a mask."""
        if self._drawn_boxes is not None:
            return self._drawn_boxes
        return np.array([mask_to_box(mask) for mask in self.masks], np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        id: of the image in its data set; it may name a file.
        image: (H, W, 3) uint8 RGB.
        semantic: (H, W) uint8 class indices, 0 background, 255 void; None where there is no map.
        instances: the objects; None where they are not known.

    Raises:
        ValueError: for another shape or dtype, and for labels of another size than the image.
    """

    id: str
    image: np.ndarray
    semantic: np.ndarray | None = None
    instances: Instances | None = None

    def __post_init__(self):
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(
                f"{self.id}: image must be (H, W, 3) uint8, "
                f"got {self.image.shape} {self.image.dtype}"
            )
        size = self.image.shape[:2]
        if self.semantic is not None and (
            self.semantic.shape != size or self.semantic.dtype != np.uint8
        ):
            raise ValueError(
                f"{self.id}: semantic map must be {size} uint8 as the image, "
                f"got {self.semantic.shape} {self.semantic.dtype}"
            )
        if self.instances is None or not self.instances.has_masks:
            return
        for masks in (self.instances.masks, self.instances.crowds):
            if masks.shape[1:] != size:
                raise ValueError(
                    f"{self.id}: instance masks {masks.shape} do not fit the image {size}"
                )
