"""Masks: proposals of an image, their boxes, and COCO's two ways of writing a mask.

COCO writes a mask as polygons, [x0, y0, x1, y1, ...] in pixels, or as run lengths (RLE), column by
column, starting with background: a list of numbers, or compressed to text of about a hundred
letters. Everything is checked before it is decoded, because pycocotools checks nothing: it reads
compressed runs beyond their end, a polygon of four numbers as a box, and an odd list or NaN as
nothing. Its encoder and its rasteriser are used here, and its decoder is not: the check has the
runs at hand, from which NumPy draws a mask in less time.

Sources: COCO's formats (https://cocodataset.org/#format-data); SAM's mask generator, for boxes and
small regions (Kirillov et al., "Segment Anything", ICCV 2023, appendix B).
Shapes: N proposals, H x W image pixels, hw = (height, width). Boxes are x, y, w, h in pixels,
origin top left, and, as SAM's generator defines them, w = x_max - x_min with no 1 added.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from hybridgl.errors import DataError

__all__ = [
    "Proposals",
    "check_polygon",
    "check_rle",
    "decode_polygon",
    "decode_rle",
    "encode_rle",
    "mask_areas",
    "mask_boxes_xywh",
    "resize_nearest",
    "without_small_regions",
]

_NUMBERS = {int, float, np.float64}
"""Types of a coordinate; True is none."""

_MAX_LETTERS_PER_RUN = 7
"""Five bits each: more than any run of an image needs, and no room for numbers without end."""

_NEIGHBOURS = 8
"""Pixels that touch at a corner are connected."""


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Candidate masks of one image, in their generator's order, from SAM or any other source.

    Attributes:
        masks_NHW: bool, (N, H, W).
        boxes_xywh: int64, (N, 4); a mask one pixel wide has w = 0.
        predicted_iou: float32, (N,); the generator's own estimate of each mask's quality.
        stability: float32, (N,); IoU between the mask cut at a higher and at a lower threshold.

    Raises:
        ValueError: a field has another type or its shape does not match the masks.
    """

    masks_NHW: NDArray[np.bool_]
    boxes_xywh: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.masks_NHW)
        expected = {
            "masks_NHW": (np.bool_, (count, *self.masks_NHW.shape[-2:])),
            "boxes_xywh": (np.int64, (count, 4)),
            "predicted_iou": (np.float32, (count,)),
            "stability": (np.float32, (count,)),
        }
        for name, (dtype, shape) in expected.items():
            field = getattr(self, name)
            if field.dtype != dtype or field.shape != shape:
                raise ValueError(
                    f"Expected {name} to be {np.dtype(dtype)} of shape {shape}, "
                    f"got {field.dtype} of shape {field.shape}; convert it before."
                )

    def __len__(self) -> int:
        return len(self.masks_NHW)

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        height, width = self.masks_NHW.shape[1:]
        return height, width

    @classmethod
    def empty(cls, hw: tuple[int, int]) -> Proposals:
        """Return no proposal, for an image of ``hw`` pixels.

        >>> len(Proposals.empty((4, 5))), Proposals.empty((4, 5)).hw
        (0, (4, 5))
        """
        return cls(
            masks_NHW=np.zeros((0, *hw), dtype=np.bool_),
            boxes_xywh=np.zeros((0, 4), dtype=np.int64),
            predicted_iou=np.zeros(0, dtype=np.float32),
            stability=np.zeros(0, dtype=np.float32),
        )

    def sha256(self) -> str:
        """Hash number and pixels of the masks: other machines may find others at equal settings."""
        packed = np.packbits(self.masks_NHW)
        return f"{len(self)} {hashlib.sha256(packed.tobytes()).hexdigest()}"

    def to_entry(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the arrays and JSON values of a store's entry; the masks become RLE."""
        arrays: dict[str, NDArray[Any]] = {
            "boxes_xywh": self.boxes_xywh,
            "predicted_iou": self.predicted_iou,
            "stability": self.stability,
        }
        return arrays, {"hw": list(self.hw), "rle": encode_rle(self.masks_NHW)}

    @classmethod
    def from_entry(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Proposals:
        """Return the proposals of which ``to_entry`` made a store's entry.

        Raises:
            DataError: the run lengths are damaged.
        """
        height, width = meta["hw"]
        return cls(
            masks_NHW=decode_rle(meta["rle"], (height, width)),
            boxes_xywh=arrays["boxes_xywh"],
            predicted_iou=arrays["predicted_iou"],
            stability=arrays["stability"],
        )


def mask_boxes_xywh(masks_NHW: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the box of every mask, int64, (N, 4); zeros for an empty mask.

    >>> mask_boxes_xywh(np.array([[[False, True, True], [False, True, False]]]))
    array([[1, 0, 1, 1]])
    """
    boxes_xywh = np.zeros((len(masks_NHW), 4), dtype=np.int64)
    for column, axis in ((0, 1), (1, 2)):
        covered = np.asarray(masks_NHW.any(axis=axis))
        first = covered.argmax(axis=1)
        last = covered.shape[1] - 1 - covered[:, ::-1].argmax(axis=1)
        some = covered.any(axis=1)
        boxes_xywh[some, column] = first[some]
        boxes_xywh[some, column + 2] = (last - first)[some]
    return boxes_xywh


def mask_areas(masks_NHW: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the pixels of every mask.

    One call a mask: NumPy counts a whole array ten times faster than along axes.

    Args:
        masks_NHW: bool, (N, H, W).

    Returns:
        int64, (N,).
    """
    return np.fromiter(map(np.count_nonzero, masks_NHW), dtype=np.int64, count=len(masks_NHW))


def resize_nearest(masks_NHW: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Resize masks to a square: each pixel is the one under its center.

    Args:
        masks_NHW: bool, (N, H, W).
        side: height and width to reach, in pixels.

    Returns:
        bool, (N, side, side).

    Example:
        >>> resize_nearest(np.array([[[True, False, False, True]]]), 2).tolist()
        [[[False, True], [False, True]]]
    """
    rows, columns = (
        ((2 * np.arange(side) + 1) * extent) // (2 * side) for extent in masks_NHW.shape[1:]
    )
    return masks_NHW.take(rows, axis=1).take(columns, axis=2)


def encode_rle(masks_NHW: NDArray[np.bool_]) -> list[str]:
    """Write masks as COCO's compressed run lengths.

    Args:
        masks_NHW: bool, (N, H, W); N may be 0.

    Raises:
        ValueError: another type or number of axes, or an image without pixels.

    >>> encode_rle(np.eye(2, dtype=bool)[None])
    ['0120']
    """
    if masks_NHW.dtype != np.bool_ or masks_NHW.ndim != 3 or 0 in masks_NHW.shape[1:]:
        raise ValueError(
            f"Expected masks_NHW to be bool of shape (N, H, W) with H, W >= 1, "
            f"got {masks_NHW.dtype} of shape {masks_NHW.shape}; convert the masks before."
        )
    if not len(masks_NHW):
        return []
    columns_HWN = np.asfortranarray(masks_NHW.transpose(1, 2, 0).view(np.uint8))
    return [rle["counts"].decode("ascii") for rle in coco_mask.encode(columns_HWN)]


def decode_rle(counts: Sequence[str | bytes | list[int]], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw the masks of run lengths: the inverse of ``encode_rle``.

    Args:
        counts: N masks, each compressed or as a list of runs; N may be 0.
        hw: height and width of the image, in pixels.

    Returns:
        bool, (N, H, W), C order.

    Raises:
        DataError: run lengths are damaged or do not fill the image.
    """
    height, width = hw
    masks_NHW = np.empty((len(counts), height, width), dtype=np.bool_)
    for mask_HW, written in zip(masks_NHW, counts, strict=True):
        runs = _checked_runs(written, hw)
        is_mask = np.arange(len(runs)) % 2 == 1
        mask_HW[...] = np.repeat(is_mask, runs).reshape(width, height).T
    return masks_NHW


def check_rle(rle: Mapping[Any, object], hw: tuple[int, int]) -> None:
    """Refuse the RLE of a file where ``decode_rle`` would, or where it is for another size.

    Args:
        rle: ``size``, a list of height and width (224.0 is 224), and ``counts``, as for
            ``decode_rle``.
        hw: height and width of the image, in pixels.

    Raises:
        DataError: the message names what it got.
    """
    size = rle.get("size")
    whole = isinstance(size, list | tuple) and {*map(type, size)} <= {int, float}
    if not isinstance(size, list | tuple) or not whole or (*size,) != hw:
        turned = isinstance(size, list | tuple) and (*size,) == hw[::-1]
        raise DataError(
            f"Expected run lengths of the image's size {list(hw)}, height first, got "
            f"{reprlib.repr(size)}; "
            f"{'write the height first' if turned else 'write the mask at the size of the image'}."
        )
    _checked_runs(rle.get("counts"), hw)


def _checked_runs(counts: object, hw: tuple[int, int]) -> list[int]:
    if isinstance(counts, str | bytes):
        runs = _decompressed(counts)
    elif isinstance(counts, list):
        runs = counts
        if not {*map(type, runs)} <= {int}:
            wrong = next(run for run in runs if type(run) is not int)
            raise DataError(
                f"Expected run lengths as whole numbers, got {reprlib.repr(wrong)} among them; "
                "encode the mask again."
            )
    else:
        raise DataError(
            f"Expected run lengths as text or as a list of numbers, got {reprlib.repr(counts)}; "
            "encode the mask again."
        )
    pixels, smallest = hw[0] * hw[1], min(runs, default=0)
    if smallest < 0 or sum(runs) != pixels:
        raise DataError(
            f"Expected run lengths of at least 0 that add up to {pixels} pixels, got {len(runs)} "
            f"runs from {smallest} that add up to {sum(runs)}; encode the mask again."
        )
    return runs


def _decompressed(counts: str | bytes) -> list[int]:
    """Read COCO's compressed runs, which may still be of any sum, or negative.

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
    wrong = bits.max() >= 64 or lengths.max() > _MAX_LETTERS_PER_RUN
    if wrong or lengths[-1]:
        raise DataError(
            f"Expected COCO's compressed run lengths, got {reprlib.repr(counts)}"
            f"{'' if wrong else ', cut short'}; write rle['counts'].decode('ascii') of pycocotools."
        )
    starts, lengths = bounds[:-2], lengths[:-1]
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((bits & 0x1F) << shifts, starts)
    numbers -= (bits[ends] >> 4 & 1) << 5 * lengths
    for chain_start in (1, 2):
        np.cumsum(numbers[chain_start::2], out=numbers[chain_start::2])
    runs: list[int] = numbers.tolist()
    return runs


def decode_polygon(polygon: list[float], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw a polygon as pycocotools does.

    Args:
        polygon: x and y in turn, in pixels, at least three points; ``check_polygon`` accepts it.
        hw: height and width of the image, in pixels.

    Returns:
        bool, (H, W).

    >>> decode_polygon([0, 0, 2, 0, 2, 1, 0, 1], (2, 3)).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    (rle,) = coco_mask.frPyObjects([polygon], *hw)
    mask_HW: NDArray[np.bool_] = decode_rle([rle["counts"]], hw)[0]
    return mask_HW


def check_polygon(polygon: Sequence[object], hw: tuple[int, int], *, min_points: int = 3) -> None:
    """Refuse a polygon that is damaged or belongs to another image.

    Beyond its own size outside the image, a polygon belongs to another one, and the rasteriser's
    memory grows with the length of the edges.

    Args:
        polygon: x and y in turn, in pixels.
        hw: height and width of the image, in pixels.
        min_points: the fewest that can be drawn.

    Raises:
        DataError: the message names what it got.
    """
    height, width = hw
    if len(polygon) < 2 * min_points or len(polygon) % 2:
        raise DataError(
            f"Expected a polygon of an even count of numbers, at least {2 * min_points}, got "
            f"{len(polygon)} numbers; leave out what is no polygon."
        )
    if not {*map(type, polygon)} <= _NUMBERS:
        wrong = next(number for number in polygon if type(number) not in _NUMBERS)
        raise DataError(
            f"Expected a polygon of numbers, got {reprlib.repr(wrong)} among them; "
            "write the mask again."
        )
    for number, extent in zip(polygon, cycle((width, height)), strict=False):
        if not -extent <= number <= 2 * extent:  # type: ignore[operator]  # refuses NaN too
            raise DataError(
                f"Expected a polygon in an image of height {height} and width {width}, got the "
                f"coordinate {reprlib.repr(number)}; write the mask in the pixels of this image."
            )


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
    """Label regions; return by label whether it is small, every pixel's label, and areas.

    Label 0 is what lies outside, and never small.
    """
    _, labels_HW, statistics, _ = cv2.connectedComponentsWithStats(
        region_HW.view(np.uint8), connectivity=_NEIGHBOURS
    )
    areas = np.asarray(statistics, dtype=np.int32)[:, cv2.CC_STAT_AREA]
    small = areas < min_area
    small[0] = False
    return small, np.asarray(labels_HW, dtype=np.int32), areas
