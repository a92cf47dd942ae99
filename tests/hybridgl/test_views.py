"""Views and patch coverage against bilinear resizing in loops, and by cases done by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridgl.config import Profile, ReferenceQuirks
from hybridgl.views import (
    CLIP_MEAN,
    CLIP_STD,
    blur_background,
    global_views,
    local_views,
    patch_coverage,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

REFERENCE = ReferenceQuirks.of(Profile.REFERENCE)
CORRECTED = ReferenceQuirks.of(Profile.CORRECTED)
Q1_REPAIRED = dataclasses.replace(REFERENCE, local_view_imagenet_unnormalised_fill=False)
Q2_REPAIRED = dataclasses.replace(REFERENCE, global_view_imagenet_statistics=False)


def random_image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))


def random_masks(count, height, width, seed=1):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.random((count, height, width)) < 0.5)


def blurred(image_3HW):
    return torch.from_numpy(blur_background(image_3HW.permute(1, 2, 0).numpy())).permute(2, 0, 1)


def resized_by_loops(plane_HW, side):
    """Bilinear, corners not aligned: every pixel from the four around its centre."""
    height, width = plane_HW.shape
    out = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            y = max((row + 0.5) * height / side - 0.5, 0)
            x = max((column + 0.5) * width / side - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            out[row, column] = (
                (1 - dy) * (1 - dx) * plane_HW[top, left]
                + (1 - dy) * dx * plane_HW[top, right]
                + dy * (1 - dx) * plane_HW[bottom, left]
                + dy * dx * plane_HW[bottom, right]
            )
    return out


def views_by_loops(image, outside, mask, side, mean, std, fill=None):
    """One mask: fill the normalised image, or normalise the image on its background."""
    planes = []
    for channel in range(3):
        plane = np.zeros(mask.shape)
        for row, column in np.ndindex(*mask.shape):
            source = image if mask[row, column] else outside
            plane[row, column] = float(source[channel, row, column]) / 255
            if fill is not None:
                plane[row, column] = (plane[row, column] - mean[channel]) / std[channel]
                if not mask[row, column]:
                    plane[row, column] = fill[channel]
        resized = resized_by_loops(plane, side)
        planes.append(resized if fill is not None else (resized - mean[channel]) / std[channel])
    return np.stack(planes)


@pytest.mark.parametrize("side", [3, 8])
@pytest.mark.parametrize(
    ("quirks", "mean", "std", "fill"),
    [
        (REFERENCE, IMAGENET_MEAN, IMAGENET_STD, CLIP_MEAN),
        (Q1_REPAIRED, CLIP_MEAN, CLIP_STD, (0, 0, 0)),
    ],
    ids=["Q1 reference", "Q1 corrected"],
)
def test_local_views_equal_the_formula(quirks, mean, std, fill, side):
    image, masks = random_image(5, 7), random_masks(3, 5, 7)
    views = local_views(image, masks, side, quirks)
    assert views.dtype is torch.float32
    for view, mask in zip(views, masks, strict=True):
        expected = views_by_loops(image, image, mask, side, mean, std, fill)
        np.testing.assert_allclose(view, expected, atol=2e-6)


@pytest.mark.parametrize("side", [3, 8])
@pytest.mark.parametrize(
    ("quirks", "mean", "std"),
    [(REFERENCE, IMAGENET_MEAN, IMAGENET_STD), (Q2_REPAIRED, CLIP_MEAN, CLIP_STD)],
    ids=["Q2 reference", "Q2 corrected"],
)
def test_global_views_equal_the_formula(quirks, mean, std, side):
    image, masks = random_image(5, 7), random_masks(3, 5, 7)
    views = global_views(image, blurred(image), masks, side, quirks)
    assert views.dtype is torch.float32
    for view, mask in zip(views, masks, strict=True):
        expected = views_by_loops(image, blurred(image), mask, side, mean, std)
        np.testing.assert_allclose(view, expected, atol=2e-6)


def test_corrected_background_of_a_local_view_is_the_mean_colour():
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    views = local_views(random_image(4, 4), nothing, 4, CORRECTED)
    assert (views == 0).all()


def test_reference_background_of_a_local_view_is_clips_mean_un_normalised():
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    views = local_views(random_image(4, 4), nothing, 4, REFERENCE)
    torch.testing.assert_close(views[0, :, 1, 2], torch.tensor(CLIP_MEAN))


def test_mean_colour_of_the_statistics_becomes_zero():
    mean = (255 * torch.tensor(CLIP_MEAN)).round().to(torch.uint8)
    image = mean[:, None, None].expand(3, 4, 4)
    everything = torch.ones(1, 4, 4, dtype=torch.bool)
    for views in (
        local_views(image, everything, 4, CORRECTED),
        global_views(image, image, everything, 4, CORRECTED),
    ):
        assert views.abs().max() < 0.01
    assert global_views(image, image, everything, 4, REFERENCE).abs().max() > 0.01


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED], ids=["reference", "corrected"])
def test_true_keeps_the_image_and_false_hides_it(quirks):
    image = torch.full((3, 4, 4), 10, dtype=torch.uint8)
    image[:, :, 2:] = 200
    left = torch.zeros(1, 4, 4, dtype=torch.bool)
    left[:, :, :2] = True
    background = torch.full_like(image, 100)
    shown = global_views(image, background, left, 4, quirks)[0, 0, 0]
    assert shown[0] == shown[1] < shown[2] == shown[3]
    local = local_views(image, left, 4, quirks)[0]
    other = local_views(255 - image, left, 4, quirks)[0]
    assert torch.equal(local[..., 2:], other[..., 2:])
    assert not torch.isclose(local[..., :2], other[..., :2]).any()


def test_full_mask_shows_the_plain_image_in_the_global_view():
    image = random_image(6, 6)
    full = torch.ones(1, 6, 6, dtype=torch.bool)
    with_blur = global_views(image, blurred(image), full, 4, REFERENCE)
    without = global_views(image, image, ~full, 4, REFERENCE)
    assert torch.equal(with_blur, without)


def test_whole_frame_is_shown_and_not_a_crop():
    image = random_image(4, 8)
    corner = torch.zeros(1, 4, 8, dtype=torch.bool)
    corner[:, :2, :2] = True
    view = local_views(image, corner, 8, CORRECTED)[0]
    assert view[:, 1, 0].abs().min() > 0
    assert (view[:, 5:] == 0).all()
    assert (view[:, :, 3:] == 0).all()


def test_resize_reads_four_pixels_without_antialiasing():
    image, masks = random_image(16, 16), random_masks(1, 16, 16)
    everything = torch.ones(1, 16, 16, dtype=torch.bool)
    plain = image[None].float() / 255
    channels = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    antialiased = F.interpolate(plain, (4, 4), mode="bilinear", antialias=True)
    views = global_views(image, image, everything, 4, CORRECTED)
    shown = views * channels[1] + channels[0]
    assert (shown - antialiased).abs().max() > 0.05
    np.testing.assert_allclose(
        patch_coverage(masks, 4)[0].reshape(4, 4),
        resized_by_loops(masks[0].double().numpy(), 4),
        atol=1e-6,
    )


def test_coverage_misses_a_pixel_that_the_resize_does_not_read():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert (patch_coverage(mask, 2) == 0).all()
    mask[0, 1, 1] = True
    torch.testing.assert_close(patch_coverage(mask, 2), torch.tensor([[0.25, 0, 0, 0]]))


def test_coverage_runs_row_by_row():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, 2:] = True
    assert patch_coverage(mask, 2).tolist() == [[0, 1, 0, 0]]


def test_coverage_of_a_full_mask_is_one_everywhere():
    full = patch_coverage(torch.ones(1, 37, 23, dtype=torch.bool), 14)
    torch.testing.assert_close(full, torch.ones(1, 196))


def test_no_masks_give_no_views():
    image, none = random_image(5, 7), torch.zeros(0, 5, 7, dtype=torch.bool)
    assert local_views(image, none, 4, REFERENCE).shape == (0, 3, 4, 4)
    assert global_views(image, image, none, 4, REFERENCE).shape == (0, 3, 4, 4)
    assert patch_coverage(none, 2).shape == (0, 4)


def test_every_mask_is_treated_alone():
    image, masks = random_image(9, 6), random_masks(5, 9, 6)
    order = torch.tensor([3, 1, 4, 0, 2])
    for make in (
        lambda m: local_views(image, m, 4, REFERENCE),
        lambda m: global_views(image, blurred(image), m, 4, REFERENCE),
        lambda m: patch_coverage(m, 3),
    ):
        assert torch.equal(make(masks)[order], make(masks[order]))
        assert torch.equal(make(masks), torch.cat([make(masks[:2]), make(masks[2:])]))


def test_mirrored_image_and_masks_give_mirrored_views():
    image, masks = random_image(9, 6), random_masks(2, 9, 6)
    mirrored = local_views(image.flip(-1), masks.flip(-1), 4, REFERENCE)
    torch.testing.assert_close(mirrored, local_views(image, masks, 4, REFERENCE).flip(-1))
    mirrored = global_views(image.flip(-1), blurred(image.flip(-1)), masks.flip(-1), 4, REFERENCE)
    expected = global_views(image, blurred(image), masks, 4, REFERENCE).flip(-1)
    torch.testing.assert_close(mirrored, expected, atol=0.02, rtol=0)


def test_arguments_are_left_as_they_are():
    image, masks = random_image(5, 7), random_masks(2, 5, 7)
    kept, kept_masks = image.clone(), masks.clone()
    local_views(image, masks, 4, REFERENCE)
    global_views(image, image, masks, 4, REFERENCE)
    patch_coverage(masks, 2)
    assert torch.equal(image, kept)
    assert torch.equal(masks, kept_masks)


@pytest.mark.parametrize("hw", [(20, 31), (3, 2), (1, 1)])
def test_blur_is_a_gaussian_over_15_pixels_with_reflected_borders(hw):
    tiles = random_image(-(-hw[0] // 9), -(-hw[1] // 9)).permute(1, 2, 0).numpy()
    image = np.kron(tiles, np.ones((9, 9, 1), dtype=np.uint8))[: hw[0], : hw[1]]
    sigma = 0.3 * ((15 - 1) / 2 - 1) + 0.8
    weights = np.exp(-(np.arange(-7, 8) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(image.astype(float), ((7, 7), (7, 7), (0, 0)), mode="reflect")
    expected = np.zeros(image.shape)
    for row, column in np.ndindex(*hw):
        window = padded[row : row + 15, column : column + 15]
        expected[row, column] = np.einsum("i,j,ijc->c", weights, weights, window)
    result = blur_background(image)
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result, expected, atol=2.5)


def test_blur_leaves_a_constant_image():
    image = np.full((20, 10, 3), (10, 128, 255), dtype=np.uint8)
    assert np.array_equal(blur_background(image), image)
