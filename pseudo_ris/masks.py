"""Pseudo masks: one program says where objects are, another draws them.

CutLER finds objects without labels, and its masks are coarse; SAM draws well, and draws parts and
background too. So every mask of the first takes the mask of the second that fits it.

Source: Pseudo-RIS section 3.1; quirks P3 and P4 of docs/quirks.md.
Shapes: N masks that find, K masks that are drawn, H x W image pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hybridgl.masks import mask_areas
from hybridgl.metrics import intersections
from pseudo_ris.config import PseudoQuirks

__all__ = ["match_masks"]


def match_masks(
    found_NHW: NDArray[np.bool_], drawn_KHW: NDArray[np.bool_], quirks: PseudoQuirks
) -> NDArray[np.int64]:
    """Choose a drawn mask for every mask that finds an object.

    Args:
        found_NHW: masks of CutLER or any detector, best first, bool, (N, H, W).
        drawn_KHW: masks of SAM, bool, (K, H, W).
        quirks: P3 and P4.

    Returns:
        Indices of drawn masks in the order of the found ones, int64: of the largest IoU, where that
        is above 0, each once (P3: of the largest overlap, also of 0; P4: as often as it fits). The
        lowest index wins a tie. Empty without any drawn mask.

    Example:
        >>> found = np.array([[[1, 1, 0, 0]], [[1, 0, 0, 0]]], dtype=bool)
        >>> drawn = np.array([[[1, 1, 1, 1]], [[1, 1, 0, 0]]], dtype=bool)
        >>> match_masks(found, drawn, PseudoQuirks()).tolist()
        [0, 0]
    """
    if not len(drawn_KHW):
        return np.zeros(0, dtype=np.int64)
    fit_NK = intersections(found_NHW, drawn_KHW)
    if not quirks.matching_by_overlap:
        unions_NK = mask_areas(found_NHW)[:, None] + mask_areas(drawn_KHW) - fit_NK
        fit_NK = fit_NK / np.maximum(unions_NK, 1)
    best_N = fit_NK.argmax(axis=1)
    if not quirks.matching_by_overlap:
        best_N = best_N[fit_NK.max(axis=1) > 0]
    if not quirks.sam_masks_repeat:
        _, first = np.unique(best_N, return_index=True)
        best_N = best_N[np.sort(first)]
    return best_N.astype(np.int64)
