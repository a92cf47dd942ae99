"""Four crops of every mask for a captioner: its object alone, and with ever more around it.

Source: Pseudo-RIS section 3.2; quirks P8 to P10 of docs/quirks.md.
Shapes: N masks, H x W image pixels, R side of the captioner's input, hw = (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hybridgl.views import CLIP_MEAN, CLIP_STD, bilinear_taps, channel_values, normalise
from pseudo_ris.config import PseudoQuirks

__all__ = ["CROP_KINDS", "CropKind", "mask_crops", "usable_masks"]


@dataclass(frozen=True, slots=True)
class CropKind:
    """One of the ways to crop a mask.

    Attributes:
        margin: side of the crop over that of the mask's box.
        masked: whether what lies outside the mask is filled.
    """

    margin: float
    masked: bool = False


CROP_KINDS = (CropKind(1.0, masked=True), CropKind(1.0), CropKind(1.1), CropKind(1.2))
"""In the order of the captions.  The first and the last are those that CLIP scores."""


def usable_masks(masks_NHW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which masks have a crop: neither all nor none of the image, nor a single pixel.

    Args:
        masks_NHW: bool, (N, H, W).

    Returns:
        bool, (N,).

    Example:
        >>> usable_masks(np.array([[[1, 1]], [[0, 0]], [[1, 0]]], dtype=bool)).tolist()
        [False, False, False]
    """
    areas_N = np.count_nonzero(masks_NHW, axis=(1, 2))
    return (areas_N > 1) & (areas_N < math.prod(masks_NHW.shape[1:]))


def mask_crops(
    image_HW3: NDArray[np.uint8],
    masks_NHW: NDArray[np.bool_],
    kind: CropKind,
    side: int,
    quirks: PseudoQuirks,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Crop every mask, padded to a square and resized to the captioner's input.

    Args:
        image_HW3: RGB, uint8, (H, W, 3).
        masks_NHW: bool, (N, H, W); ``usable_masks`` has accepted each.
        kind: of crop.
        side: R, in pixels.
        quirks: P8 the filling, P9 the box, P10 the filter.
        device: where the crops are made.

    Returns:
        float32, (N, 3, R, R), normalised with CLIP's statistics.
    """
    pixels_3HW = torch.from_numpy(image_HW3).to(device).permute(2, 0, 1).float() / 255
    pixels_3HW = normalise(pixels_3HW, CLIP_MEAN, CLIP_STD)
    unnormalised = quirks.crops_unnormalised_fill
    fill_311 = channel_values(CLIP_MEAN if unnormalised else (0.0, 0.0, 0.0), pixels_3HW.device)
    crops = []
    for mask_HW in masks_NHW:
        rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
        box = _box(columns, rows, mask_HW.shape, kind, whole=not quirks.boxes_end_before_last_pixel)
        cut_3hw = pixels_3HW[:, *box.slices]
        if kind.masked:
            inside_hw = torch.from_numpy(mask_HW[box.slices].copy()).to(device)
            cut_3hw = torch.where(inside_hw, cut_3hw, fill_311)
        crops.append(_resized(_squared(cut_3hw, box.side, fill_311), side, quirks))
    return torch.stack(crops) if crops else pixels_3HW.new_zeros(0, 3, side, side)


@dataclass(frozen=True, slots=True)
class _Box:
    """What is cut out.

    Attributes:
        slices: rows and columns of the image.
        side: of the square that it is padded to.
    """

    slices: tuple[slice, slice]
    side: int


def _box(
    columns: NDArray[np.int64],
    rows: NDArray[np.int64],
    hw: Sequence[int],
    kind: CropKind,
    *,
    whole: bool,
) -> _Box:
    """Compute the box of a mask with a margin, in double precision, cut to whole pixels.

    Args:
        columns: that the mask occupies.
        rows: likewise.
        hw: height and width of the image.
        kind: of crop.
        whole: whether the last row and column are in it.
    """
    slices, extents = [], []
    for places, extent in ((rows, hw[0]), (columns, hw[1])):
        low, high = float(places[0]), float(places[-1] + whole)
        length = kind.margin * (high - low)
        if not kind.masked:
            beyond = (length - (high - low)) / 2
            low, high = max(low - beyond, 0.0), min(high + beyond, float(extent))
            length = high - low
        slices.append(slice(int(low), int(low) + int(length)))
        extents.append(length)
    return _Box((slices[0], slices[1]), int(max(extents)))


def _squared(cut_3hw: Tensor, side: int, fill_311: Tensor) -> Tensor:
    """Pad a cut to a square, what is left over at the right and at the bottom."""
    _, height, width = cut_3hw.shape
    top, left = (side - height) // 2, (side - width) // 2
    square_3hh = fill_311.expand(3, side, side).clone()
    square_3hh[:, top : top + height, left : left + width] = cut_3hw
    return square_3hh


def _resized(square_3hh: Tensor, side: int, quirks: PseudoQuirks) -> Tensor:
    if not quirks.crops_without_antialias:
        return F.interpolate(
            square_3hh[None], (side, side), mode="bicubic", align_corners=False, antialias=True
        )[0]
    # Torch's own kernel rounds otherwise with one thread than with several.
    ends = torch.tensor([[0], [square_3hh.shape[-1]]], device=square_3hh.device)
    first_R, second_R, share_R = (one[0] for one in bilinear_taps(ends[0], ends[1], side))
    rows_3Rh = torch.lerp(square_3hh[:, first_R], square_3hh[:, second_R], share_R[:, None])
    return torch.lerp(rows_3Rh[:, :, first_R], rows_3Rh[:, :, second_R], share_R)
