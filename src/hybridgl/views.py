"""The two views of every mask that CLIP sees.

The local view keeps the object and fills what surrounds it; the global view keeps the whole
image and blurs what surrounds the object. Both show the whole frame, not a crop.

Source: HybridGL (CVPR 2025) section 3.2; quirks Q1 and Q2 of docs/quirks.md.
Shapes: N masks, B images of any kind, C channels, H x W image pixels, R side of CLIP's input,
G patch-grid side.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hybridgl.config import ReferenceQuirks

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "bilinear_taps",
    "blur_background",
    "channel_values",
    "global_views",
    "local_views",
    "masks_per_chunk",
    "normalise",
    "patch_coverage",
    "resize",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BLUR_KERNEL = (15, 15)

_VIEW_BYTES = 512 * 2**20
"""Memory for the full-size views or attention maps of one chunk."""


def blur_background(image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blur the image, as it looks outside every mask of a global view.

    Args:
        image_HW3: RGB, uint8, (H, W, 3).

    Returns:
        Gaussian blur over 15 x 15 pixels, its sigma derived from the kernel; uint8, (H, W, 3).
    """
    return np.asarray(cv2.GaussianBlur(image_HW3, _BLUR_KERNEL, 0), dtype=np.uint8)


def local_views(image_3HW: Tensor, masks_NHW: Tensor, side: int, quirks: ReferenceQuirks) -> Tensor:
    """Draw every mask's object on a filled background, resized to CLIP's input.

    Args:
        image_3HW: RGB, uint8, (3, H, W).
        masks_NHW: bool, (N, H, W), on the same device.
        side: R, in pixels.
        quirks: Q1 decides the statistics and the filling.

    Returns:
        float32, (N, 3, R, R), normalised.
    """
    if quirks.local_view_imagenet_unnormalised_fill:
        pixels_3HW = normalise(image_3HW.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
        fill_311 = channel_values(CLIP_MEAN, image_3HW.device)
    else:
        pixels_3HW = normalise(image_3HW.float() / 255, CLIP_MEAN, CLIP_STD)
        fill_311 = torch.zeros(3, 1, 1, device=image_3HW.device)
    return resize(torch.where(masks_NHW[:, None], pixels_3HW, fill_311), (side, side))


def global_views(
    image_3HW: Tensor, blurred_3HW: Tensor, masks_NHW: Tensor, side: int, quirks: ReferenceQuirks
) -> Tensor:
    """Draw every mask's object in front of the blurred image, resized to CLIP's input.

    Args:
        image_3HW: RGB, uint8, (3, H, W).
        blurred_3HW: the same image through ``blur_background``, uint8, (3, H, W).
        masks_NHW: bool, (N, H, W), on the same device.
        side: R, in pixels.
        quirks: Q2 decides the statistics.

    Returns:
        float32, (N, 3, R, R), normalised.
    """
    composed_N3HW = torch.where(masks_NHW[:, None], image_3HW.float(), blurred_3HW.float())
    resized_N3RR = resize(composed_N3HW.div_(255), (side, side))
    if quirks.global_view_imagenet_statistics:
        return normalise(resized_N3RR, IMAGENET_MEAN, IMAGENET_STD)
    return normalise(resized_N3RR, CLIP_MEAN, CLIP_STD)


def patch_coverage(masks_NHW: Tensor, grid: int) -> Tensor:
    """Compute the share of each mask in every patch, as the released resize samples it.

    Args:
        masks_NHW: bool, (N, H, W).
        grid: G, patches along each side.

    Returns:
        float32, (N, G * G), 0 to 1, row by row.
    """
    return resize(masks_NHW[:, None].float(), (grid, grid)).flatten(1)


def masks_per_chunk(hw: tuple[int, ...], most: int) -> int:
    """Decide how many masks of an image are worked on at once.

    Args:
        hw: height and width of the image: full-size float views, of three channels, must fit in
            the memory set aside.
        most: limit whatever the image, as ``BatchSizes.masks``.
    """
    return min(max(_VIEW_BYTES // (3 * 4 * hw[0] * hw[1]), 1), most)


def resize(images_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly, corners not aligned, without antialiasing: a pixel reads four pixels.

    Args:
        images_BCHW: float32, (B, C, H, W).
        size: height and width to reach.
    """
    return F.interpolate(
        images_BCHW, size=size, mode="bilinear", align_corners=False, antialias=False
    )


def normalise(
    images_3HW: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Subtract the mean and divide by std per channel; any leading axes."""
    device = images_3HW.device
    return (images_3HW - channel_values(mean, device)) / channel_values(std, device)


@lru_cache(maxsize=32)
def channel_values(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return one value a channel, (C, 1, 1), float32, kept on the device for the next call.

    To copy them there each time, the host would wait for it.
    """
    with torch.inference_mode(mode=False):  # kept for whoever trains, too
        return torch.tensor(values, device=device)[:, None, None]


def bilinear_taps(start_N: Tensor, stop_N: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the two pixels that each output pixel reads along an axis of a crop, and their shares.

    Args:
        start_N: first pixel of every crop.
        stop_N: the pixel after its last.
        side: R.

    Returns:
        Two of int64 and one of float32, (N, R).
    """
    length_N1 = (stop_N - start_N)[:, None]
    centers_R = torch.arange(side, device=start_N.device) + 0.5
    place_NR = (length_N1.float() / side * centers_R - 0.5).clamp(min=0)
    first_NR = place_NR.long()
    second_NR = torch.minimum(first_NR + 1, length_N1 - 1)
    share_NR = place_NR - first_NR
    return start_N[:, None] + first_NR, start_N[:, None] + second_NR, share_NR
