"""The true mask of an annotation, from polygons or run lengths.

Quirk Q9: the released programs sum an annotation's polygons and keep the pixels where the sum is
one, so pixels that two polygons share leave the truth; merging them, as pycocotools does, keeps
the union.
Broken input is refused before pycocotools sees it: it reads a polygon of four numbers as a box, an
odd list or NaN as nothing, and run lengths unchecked.

Source: COCO's annotation format (polygons as [x0, y0, x1, y1, ...] in pixels, run lengths column by
column, starting with background).
Shapes: H x W image pixels, origin top-left, hw = (height, width).
"""

from __future__ import annotations

import reprlib
from itertools import cycle

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray

from refer.errors import DataError

__all__ = ["ground_truth"]

MIN_POLYGON_NUMBERS = 6
"""Three points."""

MAX_LETTERS_PER_RUN = 7
"""Five bits each: more than any run of an image needs, and no room for numbers without end."""


def ground_truth(
    segmentation: object, hw: tuple[int, int], *, drop_overlaps: bool
) -> NDArray[np.bool_]:
    """Rasterise an annotation's segmentation.

    >>> square, corner = [0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 2, 1, 2, 2, 1, 2]
    >>> ground_truth([square, corner], (2, 2), drop_overlaps=True).astype(int).tolist()
    [[1, 1], [1, 0]]
    >>> ground_truth([square, corner], (2, 2), drop_overlaps=False).astype(int).tolist()
    [[1, 1], [1, 1]]

    Args:
        segmentation: COCO's forms: a list of polygons; run lengths as a dict of `size` and `counts`
            (a list of numbers, or COCO's compressed str or bytes); or a list of such dicts.
        hw: Height and width of the image, in pixels.
        drop_overlaps: True (reference, Q9): pixels covered by exactly one part.  False (corrected):
            pixels covered by at least one.

    Returns:
        Mask of shape (H, W), bool, True on the object; all False if its parts cover no pixel.

    Raises:
        DataError: The segmentation is empty, of another size than the image, or broken; the
            message names the part and what came.
    """
    if min(hw) <= 0:
        raise DataError(f"Expected a positive height and width; got {hw}.")
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    if not parts or segmentation is None:
        raise DataError(
            f"Expected a segmentation with at least one polygon or run-length mask; "
            f"got {segmentation!r}: the annotation has no mask to score against."
        )
    covered_HW = np.zeros(hw, dtype=bool)
    shared_HW = np.zeros(hw, dtype=bool)
    for index, part in enumerate(parts):
        try:
            part_HW = _part_mask(part, hw)
        except ValueError as error:
            raise DataError(f"Part {index} of {len(parts)} of the segmentation: {error}") from None
        shared_HW |= covered_HW & part_HW
        covered_HW |= part_HW
    return covered_HW & ~shared_HW if drop_overlaps else covered_HW


def _part_mask(part: object, hw: tuple[int, int]) -> NDArray[np.bool_]:
    if isinstance(part, dict):
        return _run_length_mask(part, hw)
    if isinstance(part, list):
        return _polygon_mask(part, hw)
    raise DataError(f"expected a polygon (list) or run lengths (dict); got {type(part).__name__}.")


def _polygon_mask(polygon: list[object], hw: tuple[int, int]) -> NDArray[np.bool_]:
    if len(polygon) < MIN_POLYGON_NUMBERS or len(polygon) % 2:
        raise DataError(
            f"expected a polygon of at least {MIN_POLYGON_NUMBERS} numbers, x and y in turn; "
            f"got {len(polygon)} numbers."
        )
    # Beyond its own size outside the image, a polygon belongs to another image, and the
    # rasteriser's memory grows with the length of its edges.
    height, width = hw
    numbers: list[float] = []
    for number, extent in zip(polygon, cycle((width, height)), strict=False):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise DataError(
                f"expected a polygon of numbers; got {reprlib.repr(number)} among them."
            )
        if not -extent <= number <= 2 * extent:  # nor NaN
            raise DataError(
                f"expected a polygon in an image of height {height} and width {width}; "
                f"got the coordinate {reprlib.repr(number)}."
            )
        numbers.append(float(number))
    (rle,) = coco_mask.frPyObjects([numbers], height, width)
    return _run_length_mask(rle, hw)


def _run_length_mask(rle: dict[object, object], hw: tuple[int, int]) -> NDArray[np.bool_]:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list | tuple) or tuple(size) != tuple(hw):
        raise DataError(
            f"expected run lengths for the image's size {tuple(hw)}; got {reprlib.repr(size)}."
        )
    if isinstance(counts, str | bytes):
        runs = _decompress(counts)
    elif isinstance(counts, list):
        runs = [_run(count) for count in counts]
    else:
        raise DataError(
            f"expected run lengths as a list, str or bytes; got {type(counts).__name__}."
        )
    height, width = hw
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise DataError(
            f"expected run lengths of at least 0 that add up to {height * width} pixels; "
            f"got {len(runs)} runs from {min(runs, default=0)} that add up to {sum(runs)}."
        )
    # Even runs are background, odd runs object; pixels go down the columns.
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _run(count: object) -> int:
    if isinstance(count, bool) or not isinstance(count, int):
        raise DataError(f"expected run lengths as whole numbers; got {reprlib.repr(count)}.")
    return count


def _decompress(counts: str | bytes) -> list[int]:
    """Read COCO's compressed runs.

    A letter carries five bits of a number and whether more follow, little end first; from the
    fourth on, a number is the difference to the run two before it.
    """
    letters = map(ord, counts) if isinstance(counts, str) else counts
    runs: list[int] = []
    number = shift = 0
    for letter in letters:
        bits = letter - 48
        if not 0 <= bits < 64 or shift >= 5 * MAX_LETTERS_PER_RUN:
            raise DataError(f"expected COCO's compressed run lengths; got {reprlib.repr(counts)}.")
        number |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if shift:
        raise DataError(
            f"expected COCO's compressed run lengths; got {reprlib.repr(counts)}, cut short."
        )
    return runs
