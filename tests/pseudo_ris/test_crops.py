"""Crops by hand; those of the released program are golden vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hybridgl.config import Profile
from hybridgl.views import CLIP_MEAN
from pseudo_ris.config import PseudoQuirks
from pseudo_ris.crops import CROP_KINDS, CropKind, mask_crops, usable_masks

REFERENCE, CORRECTED = (PseudoQuirks.of(profile) for profile in Profile)
MASKED = CROP_KINDS[0]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def box_mask(x1, y1, x2, y2):
    mask_HW = np.zeros((40, 60), dtype=bool)
    mask_HW[y1:y2, x1:x2] = True
    return mask_HW


def test_fill_is_clips_mean_unnormalised_by_quirk_p8(image):
    tall = box_mask(10, 5, 12, 35)
    for quirks, fill in ((REFERENCE, CLIP_MEAN), (CORRECTED, (0.0, 0.0, 0.0))):
        (crop_3RR,) = mask_crops(image, tall[None], MASKED, 56, quirks)
        assert torch.allclose(crop_3RR[:, :, 0], torch.tensor(fill)[:, None].expand(3, 56))


def test_box_loses_its_last_row_and_column_by_quirk_p9(image):
    """A square of 16 pixels is cut to 15, and what it shows is stretched to the input."""
    pixels = image.copy()
    pixels[20, 25] = 255  # the last pixel of the mask
    mask_1HW = box_mask(10, 5, 26, 21)[None]
    for quirks, seen in (
        (REFERENCE, False),
        (replace(REFERENCE, boxes_end_before_last_pixel=False), True),
    ):
        one, other = (mask_crops(some, mask_1HW, MASKED, 32, quirks) for some in (image, pixels))
        assert (not torch.equal(one, other)) == seen


def test_margin_is_cut_at_the_border_of_the_image(image):
    corner = box_mask(0, 0, 20, 20)
    wide = mask_crops(image, corner[None], CropKind(1.2), 22, CORRECTED)
    # Two pixels more at the right and at the bottom, none at the border.
    plain = mask_crops(image, box_mask(0, 0, 22, 22)[None], CropKind(1.0), 22, CORRECTED)
    assert torch.allclose(wide, plain, atol=1e-5)


def test_resize_is_smooth_but_for_quirk_p10():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    mask_1HW = np.ones((1, 64, 64), dtype=bool)
    mask_1HW[0, 0, 0] = False
    sharp, smooth = (
        mask_crops(stripes, mask_1HW, CropKind(1.0), 24, quirks)
        for quirks in (REFERENCE, CORRECTED)
    )
    assert smooth[0, 0, 4:-4, 4:-4].std() < sharp[0, 0, 4:-4, 4:-4].std() / 2


@pytest.mark.parametrize("kind", CROP_KINDS)
@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED])
def test_lines_have_crops_and_the_order_of_masks_is_kept(image, kind, quirks):
    masks_NHW = np.stack([box_mask(3, 3, 4, 30), box_mask(3, 3, 50, 4), box_mask(8, 8, 20, 30)])
    crops = mask_crops(image, masks_NHW, kind, 28, quirks)
    assert crops.shape == (3, 3, 28, 28)
    assert crops.isfinite().all()
    again = mask_crops(image, masks_NHW[::-1].copy(), kind, 28, quirks)
    assert torch.equal(again.flip(0), crops)


def test_masks_without_a_crop_are_told():
    masks_NHW = np.stack(
        [
            np.ones((40, 60), dtype=bool),
            np.zeros((40, 60), dtype=bool),
            box_mask(5, 5, 6, 6),
            box_mask(5, 5, 7, 6),
        ]
    )
    assert usable_masks(masks_NHW).tolist() == [False, False, False, True]
    assert usable_masks(masks_NHW[:0]).tolist() == []


def test_no_mask_gives_no_crop(image):
    none = mask_crops(image, np.zeros((0, 40, 60), dtype=bool), MASKED, 28, REFERENCE)
    assert none.shape == (0, 3, 28, 28)
