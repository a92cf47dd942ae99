"""Ground truth of an annotation: a mask from polygons or run lengths, by its dataset's rule.

Quirk Q9, overlapping_polygons_dropped: the released programs sum an annotation's polygons and keep
the pixels where the sum is one, so pixels that two polygons share leave the ground truth; merging
them, as pycocotools does, keeps the union.

Source: COCO's annotation format, which ``hybridgl.masks`` reads; PhraseCut's (polygons as
[[x0, y0], [x1, y1], ...]) and its authors' way of drawing them.
Shapes: H x W image pixels, origin top-left, hw = (height, width).
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hybridgl.errors import DataError
from hybridgl.masks import check_polygon, check_rle, decode_polygon, decode_rle

__all__ = ["MIN_DRAWN_POINTS", "MaskRule", "check_segmentation", "gt_mask"]

MIN_DRAWN_POINTS = 2
"""The least that can be drawn with its border: a line."""

T = TypeVar("T")


class MaskRule(Enum):
    """How a dataset's segmentations are written and drawn."""

    COCO = "coco"
    """Polygons of x and y in turn, and run lengths; drawn by pycocotools; Q9 applies."""
    PHRASECUT = "phrasecut"
    """Polygons of points, cut to whole pixels, drawn with their border; always the union."""


def gt_mask(
    segmentation: object,
    hw: tuple[int, int],
    *,
    overlapping_polygons_dropped: bool,
    rule: MaskRule = MaskRule.COCO,
) -> NDArray[np.bool_]:
    """Draw an annotation's segmentation.

    >>> square, corner = [0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 2, 1, 2, 2, 1, 2]
    >>> mask_HW = gt_mask([square, corner], (2, 2), overlapping_polygons_dropped=True)
    >>> mask_HW.astype(int).tolist()
    [[1, 1], [1, 0]]

    Args:
        segmentation: under COCO's rule a list of polygons; run lengths as a dict of ``size`` and
            ``counts`` (a list of numbers, or COCO's compressed str or bytes); or a list of such
            dicts. Under PhraseCut's a list of polygons, each a list of points [x, y].
        hw: height and width of the image, in pixels.
        overlapping_polygons_dropped: quirk Q9. True (reference): pixels covered by exactly one
            part. False (corrected): pixels covered by at least one. PhraseCut's rule has no such
            quirk and keeps the union.
        rule: the dataset's.

    Returns:
        bool, (H, W), True on the object; all False if its parts cover no pixel.

    Raises:
        DataError: the segmentation is empty, of another size than the image, or broken; the
            message names the part and what it got.
    """
    parts = _parts(segmentation, hw)
    mask_of = _mask_of_part if rule is MaskRule.COCO else _mask_of_points
    covered_HW = np.zeros(hw, dtype=bool)
    shared_HW = np.zeros(hw, dtype=bool)
    for part_HW in _each(parts, mask_of, hw):
        shared_HW |= covered_HW & part_HW
        covered_HW |= part_HW
    if overlapping_polygons_dropped and rule is MaskRule.COCO:
        return covered_HW & ~shared_HW
    return covered_HW


def check_segmentation(
    segmentation: object, hw: tuple[int, int], *, rule: MaskRule = MaskRule.COCO
) -> None:
    """Refuse what ``gt_mask`` refuses, without drawing anything: microseconds a mask.

    Args:
        segmentation: as for ``gt_mask``.
        hw: height and width of the image, in pixels.
        rule: the dataset's.

    Raises:
        DataError: as ``gt_mask``, in the same words.
    """
    check = _check_part if rule is MaskRule.COCO else _check_points
    for _ in _each(_parts(segmentation, hw), check, hw):
        pass


def _parts(segmentation: object, hw: tuple[int, int]) -> list[object]:
    if min(hw) <= 0:
        raise DataError(f"Expected a positive height and width, got {hw}; list the image's own.")
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    if not parts or segmentation is None:
        raise DataError(
            "Expected a segmentation with at least one polygon or run-length mask, got "
            f"{segmentation!r}; leave out what has no mask."
        )
    return parts


def _each(
    parts: list[object], read: Callable[[Any, tuple[int, int]], T], hw: tuple[int, int]
) -> Iterator[T]:
    """Read every part, and name it in an error."""
    for index, part in enumerate(parts):
        try:
            result = read(part, hw)
        except DataError as error:
            name = f"Part {index} of {len(parts)} of the segmentation: " * (len(parts) > 1)
            raise DataError(f"{name}{error}") from None
        yield result


def _mask_of_part(part: Any, hw: tuple[int, int]) -> NDArray[np.bool_]:
    _check_part(part, hw)
    return (
        decode_rle([part["counts"]], hw)[0] if isinstance(part, dict) else decode_polygon(part, hw)
    )


def _check_part(part: object, hw: tuple[int, int]) -> None:
    if isinstance(part, dict):
        check_rle(part, hw)
    elif isinstance(part, list):
        check_polygon(part, hw)
    else:
        raise DataError(
            "Expected a polygon (a list of numbers) or run lengths (size and counts), got "
            f"{reprlib.repr(part)}; write [[x0, y0, x1, y1, ...]] or the mask's RLE."
        )


def _mask_of_points(part: Any, hw: tuple[int, int]) -> NDArray[np.bool_]:
    _check_points(part, hw)
    canvas = Image.new("L", (hw[1], hw[0]))
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in part], outline=1, fill=1)
    return np.asarray(canvas) > 0


def _check_points(part: object, hw: tuple[int, int]) -> None:
    points: list[Any] = part if isinstance(part, list) else [part]
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise DataError(
                f"Expected a polygon as a list of points [x, y], got {reprlib.repr(point)}; "
                "write the mask again."
            )
    check_polygon(list(chain.from_iterable(points)), hw, min_points=MIN_DRAWN_POINTS)
