"""Mask proposals of one image: the candidates among which an expression picks.

The method takes them from SAM's automatic mask generator (HybridGL, CVPR 2025, section 3.1), but
every later stage sees this record only, so that any other source of masks can stand in.

Shapes: N proposals, H, W image pixels. Boxes are x, y, w, h in pixels, origin top left, and, as
the generator defines them, w = x_max - x_min and h = y_max - y_min with no 1 added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Proposals"]


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Masks of one image, in their generator's order.

    Attributes:
        masks_NHW: bool, (N, H, W).
        boxes_xywh: int64, (N, 4); a mask one pixel wide has w = 0.
        predicted_iou: float32, (N,); the generator's own estimate of each mask's quality.
        stability: float32, (N,); IoU between the mask cut at a higher and at a lower threshold.

    Raises:
        ValueError: a field has another type or its shape does not match the masks.
    """

    masks_NHW: NDArray[np.bool_]
    boxes_xywh: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.masks_NHW)
        expected = {
            "masks_NHW": (np.bool_, (count, *self.masks_NHW.shape[-2:])),
            "boxes_xywh": (np.int64, (count, 4)),
            "predicted_iou": (np.float32, (count,)),
            "stability": (np.float32, (count,)),
        }
        for name, (dtype, shape) in expected.items():
            field = getattr(self, name)
            if field.dtype != dtype or field.shape != shape:
                raise ValueError(
                    f"Expected {name} to be {np.dtype(dtype)} of shape {shape}, "
                    f"got {field.dtype} of shape {field.shape}; convert it before."
                )

    def __len__(self) -> int:
        return len(self.masks_NHW)

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        height, width = self.masks_NHW.shape[1:]
        return height, width

    @classmethod
    def empty(cls, hw: tuple[int, int]) -> Proposals:
        """No proposal, for an image of ``hw`` pixels.

        >>> len(Proposals.empty((4, 5))), Proposals.empty((4, 5)).hw
        (0, (4, 5))
        """
        return cls(
            masks_NHW=np.zeros((0, *hw), dtype=np.bool_),
            boxes_xywh=np.zeros((0, 4), dtype=np.int64),
            predicted_iou=np.zeros(0, dtype=np.float32),
            stability=np.zeros(0, dtype=np.float32),
        )
