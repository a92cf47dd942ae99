"""Small holes and islands against segment_anything's clean-up, and by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from segment_anything.utils.amg import remove_small_regions

from hybridgl.mask_regions import without_small_regions


def of_the_library(mask, min_area):
    """Holes and then islands, as its mask generator calls it."""
    mask, filled = remove_small_regions(mask, min_area, mode="holes")
    mask, removed = remove_small_regions(mask, min_area, mode="islands")
    return mask, filled or removed


def assert_cleans_as_the_library(mask, min_area):
    before = mask.copy()
    expected, expected_change = of_the_library(mask, min_area)

    got, changed = without_small_regions(mask, min_area)

    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, expected)
    assert changed is expected_change
    np.testing.assert_array_equal(mask, before)
    return got, changed


def blob(rng):
    """A random field, smoothed and cut anywhere: islands and holes of all sizes."""
    hw = rng.integers(1, 70, 2)
    field = cv2.GaussianBlur(rng.standard_normal(hw), (0, 0), rng.uniform(0.1, 3))
    return field > np.quantile(field, rng.uniform(0, 1))


@pytest.mark.parametrize("seed", range(10))
def test_random_blobs_are_cleaned_as_by_the_library(seed):
    rng = np.random.default_rng(seed)
    outcomes = set()
    for _ in range(60):
        mask = blob(rng)
        got, changed = assert_cleans_as_the_library(mask, int(10 ** rng.uniform(0, 3.5)))
        outcomes.add((changed, bool((got & ~mask).any()), bool((mask & ~got).any())))
    assert {(False, False, False), (True, True, False), (True, False, True)} <= outcomes


@pytest.mark.parametrize("min_area", [0, 1, 2, 5, 30, 31, 10**9])
@pytest.mark.parametrize("filled", [0.0, 0.02, 0.3, 0.5, 0.7, 0.98, 1.0])
def test_noise_is_cleaned_as_by_the_library(filled, min_area):
    rng = np.random.default_rng(0)
    assert_cleans_as_the_library(rng.random((30, 31)) < filled, min_area)


@pytest.mark.parametrize("min_area", [0, 1, 2, 3, 11, 12, 13])
@pytest.mark.parametrize("value", [False, True], ids=["empty", "full"])
@pytest.mark.parametrize("hw", [(1, 1), (1, 12), (12, 1), (3, 4)])
def test_empty_and_full_masks_are_cleaned_as_by_the_library(hw, value, min_area):
    assert_cleans_as_the_library(np.full(hw, value), min_area)


@pytest.mark.parametrize("min_area", [1, 2, 3, 4, 5, 100])
def test_every_mask_of_three_by_three_is_cleaned_as_by_the_library(min_area):
    for code in range(2**9):
        mask = np.array([code >> bit & 1 for bit in range(9)], dtype=bool).reshape(3, 3)
        assert_cleans_as_the_library(mask, min_area)


def drawn(*rows):
    return np.array([[place == "#" for place in row] for row in rows])


RING = drawn(
    "......",
    ".####.",
    ".#..#.",
    ".####.",
    "......",
)


@pytest.mark.parametrize(("min_area", "filled"), [(2, False), (3, True)])
def test_a_hole_below_the_area_is_filled(min_area, filled):
    got, changed = without_small_regions(RING, min_area)
    assert got[2, 2:4].all() == filled
    assert got.sum() == (12 if filled else 10)
    assert changed == filled


def test_regions_that_touch_at_a_corner_are_one():
    diagonal = np.eye(4, dtype=bool)
    got, changed = without_small_regions(diagonal, 4)
    assert not changed
    np.testing.assert_array_equal(got, diagonal)


def test_an_island_below_the_area_goes_and_the_largest_of_small_ones_stays():
    mask = drawn("##....", "##..#.", "......", "...##.")
    got, changed = without_small_regions(mask, 3)
    assert changed
    np.testing.assert_array_equal(got, drawn("##....", "##....", "......", "......"))

    largest = without_small_regions(mask, 5)[0]

    np.testing.assert_array_equal(largest, got)


def test_of_equally_large_small_islands_one_stays():
    left, right = drawn("......", "##....", "#....."), drawn(".....#", ".....#", ".....#")
    got, changed = assert_cleans_as_the_library(left | right, 4)
    assert changed
    assert got.tolist() in (left.tolist(), right.tolist())


def test_an_only_island_stays_however_small_and_counts_as_changed():
    mask = drawn("...", ".#.", "...")
    got, changed = assert_cleans_as_the_library(mask, 5)
    assert changed
    np.testing.assert_array_equal(got, mask)


def test_an_islands_area_counts_after_its_holes_are_filled():
    got, changed = without_small_regions(RING, 11)
    assert changed
    assert got.sum() == 12


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "mirrored": lambda mask: mask[:, ::-1],
    "upside down": lambda mask: mask[::-1],
    "every other column": lambda mask: mask[:, ::2],
    "a window": lambda mask: mask[3:, 5:],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("min_area", [0, 20])
def test_a_mask_may_lie_anywhere_in_memory_and_be_read_only(layout, min_area):
    field = cv2.GaussianBlur(np.random.default_rng(1).standard_normal((40, 50)), (0, 0), 1)
    mask = layout(field > 0.05)
    mask.flags.writeable = False
    _, changed = assert_cleans_as_the_library(mask, min_area)
    assert changed == (min_area > 0)
