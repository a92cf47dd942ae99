"""Predictions against the truth: integer counts for every pick, and the yardsticks.

Shapes: N proposals, S sentences of one image, H x W image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridgl.metrics import Overlap, iou, overlap_counts
from hybridgl.pipeline import Prediction
from hybridgl.proposals import Proposals

__all__ = ["Outcome", "PickOutcome", "candidate_caps", "outcomes"]


@dataclass(frozen=True, slots=True)
class PickOutcome:
    """One pick against the truth.

    Attributes:
        index: index of the proposal; None where there is none, which counts as an empty mask.
        area: pixels of the proposal.
        overlap: intersection and union with the truth.
    """

    index: int | None
    area: int
    overlap: Overlap


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sentence's picks and yardsticks.

    Attributes:
        pure: pick by mask features alone.
        guided: pick with guidance.
        no_gem: pick with guidance by relations alone.
        best: the proposal with the highest IoU.
        random_iou: mean IoU of the proposals, 0 to 1: what a random pick scores; 0 without any.
        target_area: pixels of the truth.
    """

    pure: PickOutcome
    guided: PickOutcome
    no_gem: PickOutcome
    best: PickOutcome
    random_iou: float
    target_area: int

    def counts(self) -> dict[str, Any]:
        """Flat, by the names of a record's fields."""
        flat: dict[str, Any] = {
            "target_area": self.target_area,
            "best_intersection": self.best.overlap.intersection,
            "best_union": self.best.overlap.union,
            "best_iou": iou(self.best.overlap),
            "random_iou": self.random_iou,
        }
        for name in ("pure", "guided", "no_gem"):
            pick: PickOutcome = getattr(self, name)
            flat[f"pick_{name}"] = pick.index
            flat[f"predicted_area_{name}"] = pick.area
            flat[f"intersection_{name}"] = pick.overlap.intersection
            flat[f"union_{name}"] = pick.overlap.union
        return flat


def candidate_caps(proposal_counts: Sequence[int], *, shrinks: bool) -> list[int]:
    """Cap on the candidate counts of every ref, in dataset order.

    Args:
        proposal_counts: number of proposals of every ref's image, in dataset order.
        shrinks: quirk Q5: the cap is the minimum over all refs so far. Images without proposals,
            at which the released program stops, do not lower it.

    Example:
        >>> candidate_caps([9, 2, 0, 5], shrinks=True), candidate_caps([9, 2, 0, 5], shrinks=False)
        ([9, 2, 2, 2], [9, 2, 0, 5])
    """
    if not shrinks:
        return list(proposal_counts)
    counts = np.array([count or np.iinfo(np.int64).max for count in proposal_counts], np.int64)
    return [int(cap) for cap in np.minimum.accumulate(counts)]


def outcomes(
    proposals: Proposals, predictions: Sequence[Prediction], truths_SHW: NDArray[np.bool_]
) -> list[Outcome]:
    """Score the predictions of one picture.

    Args:
        proposals: its masks.
        predictions: one for every sentence.
        truths_SHW: the truth of every sentence, bool, (S, H, W).
    """
    intersections_NS, unions_NS = overlap_counts(proposals.masks_NHW, truths_SHW)
    areas_N = proposals.masks_NHW.sum(axis=(1, 2), dtype=np.int64)
    ious_NS = intersections_NS / np.maximum(unions_NS, 1)
    results = []
    for column, prediction in enumerate(predictions):
        target_area = int(truths_SHW[column].sum())

        def score(
            index: int | None, column: int = column, target_area: int = target_area
        ) -> PickOutcome:
            if index is None:
                return PickOutcome(None, 0, Overlap(0, target_area))
            overlap = Overlap(int(intersections_NS[index, column]), int(unions_NS[index, column]))
            return PickOutcome(index, int(areas_N[index]), overlap)

        choice = prediction.choice
        results.append(
            Outcome(
                pure=score(choice.pick_pure if choice else None),
                guided=score(choice.pick if choice else None),
                no_gem=score(choice.pick_without_heat if choice else None),
                best=score(int(ious_NS[:, column].argmax()) if len(proposals) else None),
                random_iou=float(ious_NS[:, column].mean()) if len(proposals) else 0.0,
                target_area=target_area,
            )
        )
    return results
