"""Small holes and islands of masks.

Source: the clean-up of SAM's automatic mask generator (Kirillov et al., "Segment Anything", ICCV
2023, appendix B).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["without_small_regions"]

_NEIGHBOURS = 8
"""Pixels that touch at a corner are connected."""


def without_small_regions(
    mask_HW: NDArray[np.bool_], min_area: int
) -> tuple[NDArray[np.bool_], bool]:
    """Fill holes and then remove islands below an area.

    Args:
        mask_HW: bool, (H, W).
        min_area: in pixels.

    Returns:
        The mask, whose largest island stays where all are small; and whether a region was small.
    """
    small, labels_HW, _ = _small_regions(~mask_HW, min_area)
    changed = bool(small.any())
    if changed:
        mask_HW = mask_HW | small[labels_HW]
    small, labels_HW, areas = _small_regions(mask_HW, min_area)
    if small.any():
        if small[1:].all():
            small[1 + int(areas[1:].argmax())] = False
        mask_HW, changed = mask_HW & ~small[labels_HW], True
    return mask_HW, changed


def _small_regions(
    region_HW: NDArray[np.bool_], min_area: int
) -> tuple[NDArray[np.bool_], NDArray[np.int32], NDArray[np.int32]]:
    """By label: whether it is a small region; the label of every pixel; areas. Label 0 is none."""
    _, labels_HW, statistics, _ = cv2.connectedComponentsWithStats(
        region_HW.view(np.uint8), connectivity=_NEIGHBOURS
    )
    areas = np.asarray(statistics, dtype=np.int32)[:, cv2.CC_STAT_AREA]
    small = areas < min_area
    small[0] = False
    return small, np.asarray(labels_HW, dtype=np.int32), areas
