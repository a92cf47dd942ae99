"""Ground truth of an annotation: a mask from polygons or run lengths, by its dataset's rule.

Quirk Q9, overlapping_polygons_dropped: the released programs sum an annotation's polygons and keep
the pixels where the sum is one, so pixels that two polygons share leave the ground truth; merging
them, as pycocotools does, keeps the union.

A dense mask, H rows of W zeros and ones, is read as what it is: no polygon has the image's shape.

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
            ``counts`` (a list of numbers, or COCO's compressed str or bytes); a list of such
            dicts; or a dense mask. Under PhraseCut's a list of polygons, each a list of points
            [x, y].
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
    if rule is MaskRule.COCO and _is_dense(parts, hw):
        return np.array(parts, dtype=bool)
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
) -> DataError | None:
    """Refuse what ``gt_mask`` refuses, without drawing anything: microseconds a mask.

    Args:
        segmentation: as for ``gt_mask``.
        hw: height and width of the image, in pixels.
        rule: the dataset's.

    Returns:
        The error of a mask that can be drawn, but is not written as its format has it: a dense one,
        or one whose size is not written in whole numbers. None for all others.

    Raises:
        DataError: as ``gt_mask``, in the same words.
    """
    parts = _parts(segmentation, hw)
    other_form = ""
    if rule is MaskRule.COCO and _is_dense(parts, hw):
        other_form = f"a dense mask, {hw[0]} rows of {hw[1]} zeros and ones"
    else:
        for form in _each(parts, _check_part if rule is MaskRule.COCO else _check_points, hw):
            other_form = other_form or form
    if not other_form:
        return None
    return DataError(
        f"Expected polygons, or run lengths with a size in whole numbers, got {other_form}; write "
        "the mask so."
    )


def _is_dense(parts: list[Any], hw: tuple[int, int]) -> bool:
    """Tell whether parts are the rows of a dense mask.

    Raises:
        DataError: they look so, but are not of the image's size.
    """
    if not all(map(_may_be_row, parts)):  # a glance at the first number, which most polygons fail
        return False
    widths = {*map(len, parts)}
    if len(widths) > 1 or not all(map((0, 1).__contains__, chain.from_iterable(parts))):
        return False
    if (len(parts), *widths) == hw:
        return True
    if len(parts) == 1:  # a polygon in the corner
        return False
    raise DataError(
        f"Expected a mask of {hw[0]} rows of {hw[1]} pixels, got what looks like a dense one of "
        f"{len(parts)} rows of {widths.pop()}; write the mask at the size of the image."
    )


def _may_be_row(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and part[0] in (0, 1)


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


def _check_part(part: Any, hw: tuple[int, int]) -> str:
    """Check a part; return its size where that is right, but not in whole numbers."""
    if isinstance(part, dict):
        check_rle(part, hw)
        return "" if [*map(type, part["size"])] == [int, int] else f"the size {part['size']}"
    if isinstance(part, list):
        check_polygon(part, hw)
        return ""
    raise DataError(
        "Expected a polygon (a list of numbers) or run lengths (size and counts), got "
        f"{reprlib.repr(part)}; write [[x0, y0, x1, y1, ...]] or the mask's RLE."
    )


def _mask_of_points(part: Any, hw: tuple[int, int]) -> NDArray[np.bool_]:
    _check_points(part, hw)
    canvas = Image.new("L", (hw[1], hw[0]))
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in part], outline=1, fill=1)
    return np.asarray(canvas) > 0


def _check_points(part: object, hw: tuple[int, int]) -> str:
    points: list[Any] = part if isinstance(part, list) else [part]
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise DataError(
                f"Expected a polygon as a list of points [x, y], got {reprlib.repr(point)}; "
                "write the mask again."
            )
    check_polygon(list(chain.from_iterable(points)), hw, min_points=MIN_DRAWN_POINTS)
    return ""
