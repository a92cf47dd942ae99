"""Intersection over union, exact in integers.

oIoU (overall, cumulative IoU) is the sum of all intersections over the sum of all unions; mIoU is
the mean of the samples' own ratios. Both are functions of the integer counts alone.

Shapes: N proposals, S truths, H x W image pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Overlap", "iou", "mean_iou", "overall_iou", "overlap_counts", "precision_at"]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pixel counts of one prediction and its truth.

    Attributes:
        intersection: pixels in both.
        union: pixels in either.
    """

    intersection: int
    union: int


def overlap_counts(
    predictions_NHW: NDArray[np.bool_], truths_SHW: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersections and unions of every prediction with every truth.

    Args:
        predictions_NHW: bool, (N, H, W).
        truths_SHW: bool, (S, H, W).

    Returns:
        Two int64 arrays (N, S), in pixels.

    Raises:
        ValueError: heights or widths differ.

    Example:
        >>> a = np.array([[[True, True, False]]])
        >>> overlap_counts(a, np.array([[[False, True, True]]]))
        (array([[1]]), array([[3]]))
    """
    if predictions_NHW.shape[1:] != truths_SHW.shape[1:]:
        raise ValueError(
            f"Expected predictions and truths of one size, got {predictions_NHW.shape[1:]} "
            f"and {truths_SHW.shape[1:]}."
        )
    pixels = math.prod(truths_SHW.shape[1:])
    flat_N = predictions_NHW.reshape(len(predictions_NHW), pixels)
    flat_S = truths_SHW.reshape(len(truths_SHW), pixels)
    intersections = np.zeros((len(flat_N), len(flat_S)), dtype=np.int64)
    for column, truth in enumerate(flat_S):
        intersections[:, column] = np.count_nonzero(flat_N[:, truth], axis=1)
    areas_N1 = np.count_nonzero(flat_N, axis=1)[:, None]
    areas_1S = np.count_nonzero(flat_S, axis=1)[None]
    return intersections, areas_N1 + areas_1S - intersections


def iou(overlap: Overlap) -> float:
    """Ratio of one sample, 0 to 1; 0 where both masks are empty."""
    return overlap.intersection / overlap.union if overlap.union else 0.0


def overall_iou(overlaps: Sequence[Overlap]) -> float:
    """OIoU in percent: 100 * sum of intersections / sum of unions.

    Example:
        >>> overall_iou([Overlap(1, 2), Overlap(0, 2)])
        25.0
    """
    union = sum(overlap.union for overlap in overlaps)
    return 100 * sum(overlap.intersection for overlap in overlaps) / union if union else 0.0


def mean_iou(overlaps: Sequence[Overlap]) -> float:
    """MIoU in percent: 100 * mean of the samples' ratios.

    Example:
        >>> mean_iou([Overlap(1, 2), Overlap(0, 2), Overlap(3, 3)])
        50.0
    """
    return 100 * sum(map(iou, overlaps)) / len(overlaps) if overlaps else 0.0


def precision_at(overlaps: Sequence[Overlap], threshold: float) -> float:
    """Share of samples, in percent, with a ratio strictly above the threshold.

    Example:
        >>> precision_at([Overlap(1, 2), Overlap(2, 3)], 0.5)
        50.0
    """
    above = sum(iou(overlap) > threshold for overlap in overlaps)
    return 100 * above / len(overlaps) if overlaps else 0.0
