"""The true mask of an annotation, from polygons or run lengths.

Quirk Q9: the released programs sum an annotation's polygons and keep the pixels where the sum is
one, so pixels that two polygons share leave the truth; merging them, as pycocotools does, keeps
the union.
Broken input is refused before pycocotools sees it: it reads a polygon of four numbers as a box, an
odd list or NaN as nothing, and run lengths unchecked.

Source: COCO's annotation format (polygons as [x0, y0, x1, y1, ...] in pixels, run lengths column by
column, starting with background); PhraseCut's (polygons as [[x0, y0], [x1, y1], ...]) and its
authors' way of drawing them.
Shapes: H x W image pixels, origin top-left, hw = (height, width).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import chain, cycle
from typing import Any, TypeVar

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hybridgl.errors import DataError

__all__ = ["MIN_DRAWN_POINTS", "MaskRule", "check_segmentation", "ground_truth"]

MIN_POLYGON_NUMBERS = 6
"""Three points."""

MIN_DRAWN_POINTS = 2
"""The least that can be drawn with its border: a line."""

MAX_LETTERS_PER_RUN = 7
"""Five bits each: more than any run of an image needs, and no room for numbers without end."""

T = TypeVar("T")


class MaskRule(Enum):
    """How a dataset's segmentations are written and drawn."""

    COCO = "coco"
    """Polygons of x and y in turn, and run lengths; drawn by pycocotools; Q9 applies."""
    PHRASECUT = "phrasecut"
    """Polygons of points, cut to whole pixels, drawn with their border; always the union."""


def ground_truth(
    segmentation: object,
    hw: tuple[int, int],
    *,
    drop_overlaps: bool,
    rule: MaskRule = MaskRule.COCO,
) -> NDArray[np.bool_]:
    """Rasterise an annotation's segmentation.

    >>> square, corner = [0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 2, 1, 2, 2, 1, 2]
    >>> ground_truth([square, corner], (2, 2), drop_overlaps=True).astype(int).tolist()
    [[1, 1], [1, 0]]
    >>> ground_truth([square, corner], (2, 2), drop_overlaps=False).astype(int).tolist()
    [[1, 1], [1, 1]]

    Args:
        segmentation: Under COCO's rule a list of polygons; run lengths as a dict of `size` and
            `counts` (a list of numbers, or COCO's compressed str or bytes); or a list of such
            dicts.  Under PhraseCut's a list of polygons, each a list of points [x, y].
        hw: Height and width of the image, in pixels.
        drop_overlaps: True (reference, Q9): pixels covered by exactly one part.  False (corrected):
            pixels covered by at least one.  PhraseCut's rule has no such quirk and keeps the union.
        rule: The dataset's.

    Returns:
        Mask of shape (H, W), bool, True on the object; all False if its parts cover no pixel.

    Raises:
        DataError: The segmentation is empty, of another size than the image, or broken; the
            message names the part and what came.
    """
    parts = _parts(segmentation, hw)
    mask_of = _mask_of_part if rule is MaskRule.COCO else _mask_of_points
    covered_HW = np.zeros(hw, dtype=bool)
    shared_HW = np.zeros(hw, dtype=bool)
    for part_HW in _each(parts, mask_of, hw):
        shared_HW |= covered_HW & part_HW
        covered_HW |= part_HW
    if drop_overlaps and rule is MaskRule.COCO:
        return covered_HW & ~shared_HW
    return covered_HW


def check_segmentation(
    segmentation: object, hw: tuple[int, int], *, rule: MaskRule = MaskRule.COCO
) -> None:
    """Refuse what `ground_truth` refuses, without drawing anything: microseconds a mask.

    Args:
        segmentation: As for `ground_truth`.
        hw: Height and width of the image, in pixels.
        rule: The dataset's.

    Raises:
        DataError: As `ground_truth`, in the same words.
    """
    check = _check_part if rule is MaskRule.COCO else _check_points
    for _ in _each(_parts(segmentation, hw), check, hw):
        pass


def _parts(segmentation: object, hw: tuple[int, int]) -> list[object]:
    if min(hw) <= 0:
        raise DataError(f"Expected a positive height and width; got {hw}.")
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    if not parts or segmentation is None:
        raise DataError(
            f"Expected a segmentation with at least one polygon or run-length mask; "
            f"got {segmentation!r}: the annotation has no mask to score against."
        )
    return parts


def _each(
    parts: list[object], read: Callable[[object, tuple[int, int]], T], hw: tuple[int, int]
) -> Iterator[T]:
    for index, part in enumerate(parts):
        try:
            result = read(part, hw)
        except ValueError as error:
            raise DataError(f"Part {index} of {len(parts)} of the segmentation: {error}") from None
        yield result


def _mask_of_part(part: object, hw: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = hw
    runs = _check_part(part, hw)
    if runs is None:
        (rle,) = coco_mask.frPyObjects([part], height, width)
        runs = _decompress(rle["counts"])
    # Even runs are background, odd runs object; pixels go down the columns.
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _check_part(part: object, hw: tuple[int, int]) -> list[int] | None:
    """The runs of a part in run lengths; None for a polygon."""
    if isinstance(part, dict):
        return _check_run_lengths(part, hw)
    if not isinstance(part, list):
        raise DataError(
            f"expected a polygon (list) or run lengths (dict); got {type(part).__name__}."
        )
    if len(part) < MIN_POLYGON_NUMBERS or len(part) % 2:
        raise DataError(
            f"expected a polygon of at least {MIN_POLYGON_NUMBERS} numbers, x and y in turn; "
            f"got {len(part)} numbers."
        )
    _check_coordinates(part, hw)
    return None


def _check_coordinates(numbers: Sequence[object], hw: tuple[int, int]) -> None:
    """Check coordinates, x and y in turn.

    Beyond its own size outside the image, a polygon belongs to another image, and the rasteriser's
    memory grows with the length of its edges.
    """
    if not _are_within(numbers, hw):
        height, width = hw
        for number, extent in zip(numbers, cycle((width, height)), strict=False):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise DataError(
                    f"expected a polygon of numbers; got {reprlib.repr(number)} among them."
                )
            if not -extent <= number <= 2 * extent:  # nor NaN
                raise DataError(
                    f"expected a polygon in an image of height {height} and width {width}; "
                    f"got the coordinate {reprlib.repr(number)}."
                )


def _are_within(numbers: Sequence[Any], hw: tuple[int, int]) -> bool:
    """Whether all coordinates are plain numbers in range: the usual case, without a loop in Python.

    `min` and `max` pass over a NaN that is not the first; but then they see every number beyond
    floats, on which `isfinite` would fail.
    """
    return (
        set(map(type, numbers)) <= {int, float}
        and all(
            -extent <= min(side) and max(side) <= 2 * extent
            for side, extent in ((numbers[0::2], hw[1]), (numbers[1::2], hw[0]))
        )
        and all(map(math.isfinite, numbers))
    )


def _check_run_lengths(rle: dict[object, object], hw: tuple[int, int]) -> list[int]:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list | tuple) or tuple(size) != tuple(hw):
        raise DataError(
            f"expected run lengths for the image's size {tuple(hw)}; got {reprlib.repr(size)}."
        )
    if isinstance(counts, str | bytes):
        runs = _decompress(counts)
    elif isinstance(counts, list):
        runs = counts
        for count in () if set(map(type, counts)) <= {int} else counts:
            if isinstance(count, bool) or not isinstance(count, int):
                raise DataError(
                    f"expected run lengths as whole numbers; got {reprlib.repr(count)}."
                )
    else:
        raise DataError(
            f"expected run lengths as a list, str or bytes; got {type(counts).__name__}."
        )
    pixels = hw[0] * hw[1]
    if min(runs, default=0) < 0 or sum(runs) != pixels:
        raise DataError(
            f"expected run lengths of at least 0 that add up to {pixels} pixels; "
            f"got {len(runs)} runs from {min(runs, default=0)} that add up to {sum(runs)}."
        )
    return runs


def _decompress(counts: str | bytes) -> list[int]:
    """Read COCO's compressed runs.

    A letter bundles five bits of a number and whether more follow, little end first; from the
    fourth on, a number is the difference to the run two before it.
    """
    if not counts:
        return []
    # What is not Latin-1 becomes a letter below "0", which is refused like all beyond ASCII.
    letters = counts if isinstance(counts, bytes) else counts.encode("latin-1", "xmlcharrefreplace")
    bits = np.frombuffer(letters, dtype=np.uint8) - np.uint8(48)  # what lies below wraps around
    ends = np.flatnonzero(bits & 0x20 == 0)
    bounds = np.concatenate(([0], ends + 1, [len(bits)]))
    lengths = np.diff(bounds)
    wrong = bits.max() >= 64 or lengths.max() > MAX_LETTERS_PER_RUN
    if wrong or lengths[-1]:
        raise DataError(
            f"expected COCO's compressed run lengths; got {reprlib.repr(counts)}"
            f"{'' if wrong else ', cut short'}."
        )
    starts, lengths = bounds[:-2], lengths[:-1]
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((bits & 0x1F) << shifts, starts)
    numbers -= (bits[ends] >> 4 & 1) << 5 * lengths
    for chain_start in (1, 2):
        np.cumsum(numbers[chain_start::2], out=numbers[chain_start::2])
    runs: list[int] = numbers.tolist()
    return runs


def _mask_of_points(part: object, hw: tuple[int, int]) -> NDArray[np.bool_]:
    points = _check_points(part, hw)
    canvas = Image.new("L", (hw[1], hw[0]))
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in points], outline=1, fill=1)
    return np.asarray(canvas) > 0


def _check_points(part: object, hw: tuple[int, int]) -> list[Any]:
    if not isinstance(part, list):
        raise DataError(f"expected a polygon (list) of points; got {type(part).__name__}.")
    if len(part) < MIN_DRAWN_POINTS:
        raise DataError(
            f"expected a polygon of at least {MIN_DRAWN_POINTS} points; got {len(part)}."
        )
    for point in part:
        if not isinstance(point, list) or len(point) != 2:
            raise DataError(f"expected points as [x, y]; got {reprlib.repr(point)}.")
    _check_coordinates(list(chain.from_iterable(part)), hw)
    return part
