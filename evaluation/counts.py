"""Pixel counts of proposals and ground truths: all that any protocol's scores are made from.

And the boxes of proposals, which records name.

Shapes: N proposals, S ground truths of one image, H x W image pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.records import PredictionCounts
from hybridgl.masks import mask_areas, mask_boxes_xywh, resize_nearest
from hybridgl.metrics import intersections

__all__ = ["ImageCounts"]

_RESIZED_SIDE = 480
_MASKS_PER_CHUNK = 64
"""Masks that are resized at once: 15 MB."""

_Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ImageCounts:
    """Pixels of an image's proposals, of its ground truths, and of both.

    Attributes:
        boxes_xywh: of the proposals, x, y, w, h in pixels, (N, 4).
        areas_N: of the proposals.
        gt_areas_S: of the ground truths.
        intersections_NS: in both.
        areas_480_N: after all masks are resized to 480 x 480, for the protocol "lavt".
        gt_areas_480_S: likewise.
        intersections_480_NS: likewise.
    """

    boxes_xywh: _Counts
    areas_N: _Counts
    gt_areas_S: _Counts
    intersections_NS: _Counts
    areas_480_N: _Counts
    gt_areas_480_S: _Counts
    intersections_480_NS: _Counts

    @classmethod
    def of(
        cls,
        masks_NHW: NDArray[np.bool_],
        gt_masks_SHW: NDArray[np.bool_],
        boxes_xywh: _Counts | None = None,
    ) -> ImageCounts:
        """Count the pixels of masks.

        Args:
            masks_NHW: bool, (N, H, W).
            gt_masks_SHW: bool, (S, H, W).
            boxes_xywh: of the masks, (N, 4); None measures them.
        """
        areas_N, gt_areas_S, intersections_NS = _counts(masks_NHW, gt_masks_SHW)
        gt_480_SHW = resize_nearest(gt_masks_SHW, _RESIZED_SIDE)
        parts = [
            _counts(resize_nearest(chunk, _RESIZED_SIDE), gt_480_SHW)
            for chunk in np.split(
                masks_NHW, range(_MASKS_PER_CHUNK, len(masks_NHW), _MASKS_PER_CHUNK)
            )
        ]
        return cls(
            boxes_xywh=mask_boxes_xywh(masks_NHW) if boxes_xywh is None else boxes_xywh,
            areas_N=areas_N,
            gt_areas_S=gt_areas_S,
            intersections_NS=intersections_NS,
            areas_480_N=np.concatenate([areas for areas, _, _ in parts]),
            gt_areas_480_S=parts[0][1],
            intersections_480_NS=np.concatenate([shared for _, _, shared in parts]),
        )

    def arrays(self) -> dict[str, _Counts]:
        """Return the counts by name, to be stored."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ImageCounts:
        """Build the counts from what ``arrays`` returned, among other arrays."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def ious(self, column: int) -> NDArray[np.float64]:
        """Compute the IoU, 0 to 1, of every proposal with a ground truth; 0 where both are empty.

        Args:
            column: index of the ground truth.
        """
        intersections_N = self.intersections_NS[:, column]
        unions_N = self.areas_N + self.gt_areas_S[column] - intersections_N
        return np.asarray(intersections_N / np.maximum(unions_N, 1))

    def prediction(self, index: int | None, column: int) -> PredictionCounts:
        """Return the counts of a proposal with a ground truth.

        Args:
            index: of the proposal; None predicts nothing, an empty mask.
            column: index of the ground truth.
        """
        if index is None:
            return PredictionCounts(
                proposal=None, area=0, intersection=0, area_480=0, intersection_480=0
            )
        area = int(self.areas_N[index])
        return PredictionCounts(
            proposal=index,
            box=self.boxes_xywh[index].tolist() if area else None,
            area=area,
            intersection=int(self.intersections_NS[index, column]),
            area_480=int(self.areas_480_N[index]),
            intersection_480=int(self.intersections_480_NS[index, column]),
        )


def _counts(
    masks_NHW: NDArray[np.bool_], gt_masks_SHW: NDArray[np.bool_]
) -> tuple[_Counts, _Counts, _Counts]:
    """Count the pixels of both kinds of masks, and those that they share."""
    shared_NS = intersections(masks_NHW, gt_masks_SHW)
    return mask_areas(masks_NHW), mask_areas(gt_masks_SHW), shared_NS
