"""Predictions against the truth: integer counts for every pick, and the yardsticks.

Shapes: N proposals, S sentences of one image, H x W image pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridgl.masks import Proposals, resize_nearest
from hybridgl.metrics import PixelCounts, intersection_and_union

__all__ = ["ImageEvaluation", "Outcome", "PickOutcome", "running_k_limits"]

_RESIZED_SIDE = 480


@dataclass(frozen=True, slots=True)
class PickOutcome:
    """One pick against the truth.

    Attributes:
        index: index of the proposal; None where there is none, which counts as an empty mask.
        area: pixels of the proposal.
        overlap: intersection and union with the truth.
        overlap_480: the same after both are resized to 480 x 480 pixels, for the protocol
            "lavt".
    """

    index: int | None
    area: int
    overlap: PixelCounts
    overlap_480: PixelCounts


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sentence's picks and yardsticks.

    Attributes:
        picks: by the name of the way of picking.
        best: the highest overlap of a proposal with the truth.
        random_iou: mean IoU of the proposals, 0 to 1: what a random pick scores; 0 without any.
        target_area: pixels of the truth.
    """

    picks: Mapping[str, PickOutcome]
    best: PixelCounts
    random_iou: float
    target_area: int


class ImageEvaluation:
    """The proposals of one image against the truths of its sentences.

    Args:
        proposals: its masks.
        gt_masks_SHW: the truth of every sentence, bool, (S, H, W).
    """

    def __init__(self, proposals: Proposals, gt_masks_SHW: NDArray[np.bool_]) -> None:
        self._masks_NHW = proposals.masks_NHW
        self._intersections_NS, self._unions_NS = intersection_and_union(
            self._masks_NHW, gt_masks_SHW
        )
        self._ious_NS = self._intersections_NS / np.maximum(self._unions_NS, 1)
        self._areas_N = self._masks_NHW.sum(axis=(1, 2), dtype=np.int64)
        self._target_areas_S = gt_masks_SHW.sum(axis=(1, 2), dtype=np.int64)
        self._truths_480_SHW = resize_nearest(gt_masks_SHW, _RESIZED_SIDE)
        self._scored: dict[tuple[int | None, int], PickOutcome] = {}

    def outcome(self, sentence: int, picks: Mapping[str, int | None]) -> Outcome:
        """Score the picks of a sentence.

        Args:
            sentence: its index.
            picks: index of the picked proposal by the name of the way of picking; None for none.
        """
        best, random_iou = PixelCounts(0, int(self._target_areas_S[sentence])), 0.0
        if len(self._masks_NHW):
            best = self._overlap(int(self._ious_NS[:, sentence].argmax()), sentence)
            random_iou = float(self._ious_NS[:, sentence].mean())
        return Outcome(
            picks={name: self._pick(index, sentence) for name, index in picks.items()},
            best=best,
            random_iou=random_iou,
            target_area=int(self._target_areas_S[sentence]),
        )

    def _pick(self, index: int | None, sentence: int) -> PickOutcome:
        if (index, sentence) not in self._scored:
            self._scored[index, sentence] = self._score(index, sentence)
        return self._scored[index, sentence]

    def _score(self, index: int | None, sentence: int) -> PickOutcome:
        gt_mask_1HW = self._truths_480_SHW[sentence : sentence + 1]
        if index is None:
            nothing = PixelCounts(0, int(self._target_areas_S[sentence]))
            return PickOutcome(None, 0, nothing, PixelCounts(0, int(gt_mask_1HW.sum())))
        resized_1HW = resize_nearest(self._masks_NHW[index : index + 1], _RESIZED_SIDE)
        counts_480 = (counts.item() for counts in intersection_and_union(resized_1HW, gt_mask_1HW))
        return PickOutcome(
            index=index,
            area=int(self._areas_N[index]),
            overlap=self._overlap(index, sentence),
            overlap_480=PixelCounts(*counts_480),
        )

    def _overlap(self, index: int, sentence: int) -> PixelCounts:
        return PixelCounts(
            int(self._intersections_NS[index, sentence]), int(self._unions_NS[index, sentence])
        )


def running_k_limits(proposal_counts: Sequence[int], *, shrinks: bool) -> list[int]:
    """Cap on the candidate counts of every ref, in dataset order.

    Args:
        proposal_counts: number of proposals of every ref's image, in dataset order.
        shrinks: quirk Q5: the k_limit is the minimum over all refs so far. Images without proposals,
            at which the released program stops, do not lower it.

    Example:
        >>> running_k_limits([9, 2, 0, 5], shrinks=True), running_k_limits([9, 2, 0, 5], shrinks=False)
        ([9, 2, 2, 2], [9, 2, 0, 5])
    """
    if not shrinks:
        return list(proposal_counts)
    counts = np.array([count or np.iinfo(np.int64).max for count in proposal_counts], np.int64)
    return [int(k_limit) for k_limit in np.minimum.accumulate(counts)]
