"""Masks as COCO run lengths: a proposal of a photograph in about a hundred bytes.

The format is that of pycocotools (compressed RLE, column-major). To be stored without pickle, the
run lengths of all masks of an image are laid end to end in one byte array, with offsets.

Shapes: N masks, H, W image pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["PackedRles", "Rle", "decode_masks", "encode_masks", "pack_rles", "unpack_rles"]


class Rle(TypedDict):
    """One mask as pycocotools takes it."""

    size: list[int]
    """Height and width, in pixels."""
    counts: bytes
    """Compressed run lengths."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedRles:
    """The run lengths of all masks of an image, as plain arrays.

    Attributes:
        counts: uint8, (total bytes,); the masks' run lengths end to end.
        offsets: int64, (N + 1,); mask i has ``counts[offsets[i]:offsets[i + 1]]``.
        hw: height and width, in pixels.

    Raises:
        ValueError: the arrays have another type, or the offsets do not divide the bytes.
    """

    counts: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    hw: tuple[int, int]

    def __post_init__(self) -> None:
        if self.counts.dtype != np.uint8 or self.counts.ndim != 1:
            raise ValueError(
                f"Expected counts to be one axis of uint8, got {self.counts.dtype} "
                f"of shape {self.counts.shape}; encode the masks again."
            )
        if self.offsets.dtype != np.int64 or self.offsets.ndim != 1 or not len(self.offsets):
            raise ValueError(
                f"Expected offsets to be one axis of N + 1 int64, got {self.offsets.dtype} "
                f"of shape {self.offsets.shape}; encode the masks again."
            )
        start, stop = int(self.offsets[0]), int(self.offsets[-1])
        if start != 0 or stop != len(self.counts) or (np.diff(self.offsets) < 0).any():
            raise ValueError(
                f"Expected offsets to rise from 0 to the {len(self.counts)} bytes of counts, "
                f"got {start} to {stop}; encode the masks again."
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1


def encode_masks(masks_NHW: NDArray[np.bool_]) -> list[Rle]:
    """Run lengths of masks.

    Args:
        masks_NHW: bool, (N, H, W); N may be 0.

    Raises:
        ValueError: another type or number of axes, or an image without pixels.

    >>> encode_masks(np.eye(2, dtype=bool)[None])
    [{'size': [2, 2], 'counts': b'0120'}]
    """
    if masks_NHW.dtype != np.bool_ or masks_NHW.ndim != 3 or 0 in masks_NHW.shape[1:]:
        raise ValueError(
            f"Expected masks_NHW to be bool of shape (N, H, W) with H, W >= 1, "
            f"got {masks_NHW.dtype} of shape {masks_NHW.shape}; convert the masks before."
        )
    if not len(masks_NHW):
        return []
    columns_HWN = np.asfortranarray(masks_NHW.transpose(1, 2, 0).view(np.uint8))
    rles: list[Rle] = coco_mask.encode(columns_HWN)
    return rles


def decode_masks(rles: Sequence[Rle], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks of run lengths.

    Args:
        rles: N masks; N may be 0.
        hw: height and width that every one of them must have, in pixels.

    Returns:
        bool, (N, H, W), C order.

    Raises:
        ValueError: a mask has another size, or its runs do not fill it.
    """
    for rle in rles:
        if tuple(rle["size"]) != tuple(hw):
            raise ValueError(
                f"Expected masks of {hw[0]} x {hw[1]} pixels, got one of {rle['size'][0]} x "
                f"{rle['size'][1]}; the masks belong to another image."
            )
    if not rles:
        return np.zeros((0, *hw), dtype=np.bool_)
    try:
        with warnings.catch_warnings():
            # pycocotools 2.0.11 and NumPy 2 disagree about a keyword, without consequence.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            masks_HWN = coco_mask.decode(list(rles))
    except ValueError:
        masks_HWN = None
    # Runs that stop short of the image leave the rest of it uninitialised; encoding again shows it.
    if masks_HWN is None or coco_mask.encode(masks_HWN) != list(rles):
        raise ValueError(
            f"Expected run lengths that fill {hw[0]} x {hw[1]} pixels, got damaged ones; "
            f"encode the masks again."
        )
    return np.ascontiguousarray(masks_HWN.transpose(2, 0, 1)).view(np.bool_)


def pack_rles(rles: Sequence[Rle], hw: tuple[int, int]) -> PackedRles:
    """Lay run lengths end to end, to be stored as plain arrays.

    Args:
        rles: N masks; N may be 0.
        hw: height and width that every one of them must have, in pixels.

    Raises:
        ValueError: a mask has another size.
    """
    for rle in rles:
        if tuple(rle["size"]) != tuple(hw):
            raise ValueError(
                f"Expected masks of {hw[0]} x {hw[1]} pixels, got one of {rle['size'][0]} x "
                f"{rle['size'][1]}; pack the masks of one image only."
            )
    lengths = np.array([len(rle["counts"]) for rle in rles], dtype=np.int64)
    counts = np.frombuffer(b"".join(rle["counts"] for rle in rles), dtype=np.uint8)
    return PackedRles(counts, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), hw)


def unpack_rles(packed: PackedRles) -> list[Rle]:
    """Inverse of ``pack_rles``.

    >>> rles = encode_masks(np.eye(2, dtype=bool)[None])
    >>> unpack_rles(pack_rles(rles, (2, 2))) == rles
    True
    """
    counts = packed.counts.tobytes()
    bounds = packed.offsets.tolist()
    return [
        {"size": list(packed.hw), "counts": counts[start:stop]} for start, stop in pairwise(bounds)
    ]
