"""Masks: COCO's run lengths and polygons never silently wrong; boxes, resizing, small regions."""

from __future__ import annotations

import json
import reprlib

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from segment_anything.utils.amg import remove_small_regions

from hybridgl.errors import DataError
from hybridgl.masks import (
    _MAX_LETTERS_PER_RUN,
    Proposals,
    _decompressed,
    check_polygon,
    check_rle,
    decode_polygon,
    decode_rle,
    encode_rle,
    mask_boxes_xywh,
    resize_nearest,
    without_small_regions,
)


def random_masks(count=5, seed=0, hw=(7, 11)):
    return np.random.default_rng(seed).random((count, *hw)) < 0.4


def slow_runs(mask_HW):
    """Uncompressed run lengths, column-major, starting with the zeros."""
    runs, value, length = [], False, 0
    for pixel in mask_HW.T.ravel():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return [*runs, length]


def slow_compress(runs):
    """COCO's compression: differences to the run before last, five bits a character."""
    text = bytearray()
    for index, run in enumerate(runs):
        left = run - runs[index - 2] if index > 2 else run
        while True:
            bits, left = left & 0x1F, left >> 5
            more = left != (-1 if bits & 0x10 else 0)
            text.append((bits | 0x20 if more else bits) + 48)
            if not more:
                break
    return text.decode("ascii")


def slow_decompress(counts):
    """The oracle of the compressed runs: letter by letter."""
    refusal = f"Expected COCO's compressed run lengths, got {reprlib.repr(counts)}"
    fix = "; write rle['counts'].decode('ascii') of pycocotools."
    letters = map(ord, counts) if isinstance(counts, str) else counts
    runs, number, shift = [], 0, 0
    for letter in letters:
        bits = letter - 48
        if not 0 <= bits < 64 or shift >= 5 * _MAX_LETTERS_PER_RUN:
            raise ValueError(f"{refusal}{fix}")
        number |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError(f"{refusal}, cut short{fix}")
    return runs


def outcome_of(function, *args):
    """What a function gives, or in which words it refuses."""
    try:
        return function(*args)
    except ValueError as error:
        return str(error)


# Run lengths.


@pytest.mark.parametrize("hw", [(1, 1), (1, 300), (300, 1), (7, 11), (64, 48)])
def test_decoding_gives_the_encoded_masks_back(hw):
    masks = random_masks(hw=hw)
    masks[0], masks[1] = False, True

    decoded = decode_rle(encode_rle(masks), hw)

    assert decoded.dtype == np.bool_
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, masks)
    np.testing.assert_array_equal(decode_rle([slow_runs(mask) for mask in masks], hw), masks)


def test_encoding_is_that_of_the_format():
    masks = random_masks(hw=(40, 50))
    masks[0] = np.indices((40, 50))[1] > 30

    assert encode_rle(masks) == [slow_compress(slow_runs(mask)) for mask in masks]


def test_encoding_does_not_depend_on_memory_layout():
    masks = random_masks(hw=(6, 8))
    strided = np.zeros((10, 6, 16), dtype=bool)[::2, :, ::2]
    strided[...] = masks

    assert encode_rle(strided) == encode_rle(masks)
    assert encode_rle(np.asfortranarray(masks)) == encode_rle(masks)


def test_runs_of_length_zero_are_read():
    np.testing.assert_array_equal(
        decode_rle([[0, 1, 0, 1, 2, 0], slow_compress([0, 1, 0, 1, 2, 0])], (2, 2)),
        [[[True, False], [True, False]]] * 2,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 4), dtype=np.uint8),
        np.zeros((3, 4), dtype=bool),
        np.zeros((2, 0, 4), dtype=bool),
    ],
)
def test_only_boolean_masks_of_an_image_are_encoded(wrong):
    with pytest.raises(ValueError, match="Expected masks_NHW to be bool of shape"):
        encode_rle(wrong)


@pytest.mark.parametrize(
    "counts", [b"", "01", b"012", "0121999", b"o3", b"\xff\xff", [1, 2], [5, -1], [4.0], None, 4]
)
def test_damaged_run_lengths_are_noticed(counts):
    with pytest.raises(DataError, match=r"Expected .*run lengths\b.*, got .*; "):
        decode_rle(["04", counts], (2, 2))
    with pytest.raises(DataError, match=r"Expected .*run lengths\b.*, got .*; "):
        check_rle({"size": [2, 2], "counts": counts}, (2, 2))


def test_run_lengths_of_another_size_are_refused():
    (counts,) = encode_rle(random_masks(1, hw=(4, 6)))
    check_rle({"size": [4, 6], "counts": counts}, (4, 6))
    with pytest.raises(DataError, match=r"size \[6, 4\], height first, got \[4, 6\]; write the h"):
        check_rle({"size": [4, 6], "counts": counts}, (6, 4))
    with pytest.raises(DataError, match=r"got \[4, 6\]; write the mask at the size of the image"):
        check_rle({"size": [4, 6], "counts": counts}, (8, 12))


def test_runs_of_masks_are_decompressed_as_by_the_loop():
    rng = np.random.default_rng(5)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        for height, width in ((1, 1), (1, 40), (40, 1), (37, 53), (300, 400)):
            mask_HW = rng.random((height, width)) < share
            counts = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))["counts"]
            expected = slow_decompress(counts)
            assert _decompressed(counts) == _decompressed(counts.decode()) == expected
            assert expected == slow_runs(mask_HW)


def test_any_letters_are_decompressed_or_refused_as_by_the_loop():
    rng = np.random.default_rng(6)
    refused = 0
    for turn in range(4000):
        length = int(rng.integers(0, 12))
        low, high = ((48, 112), (40, 120), (48, 80), (80, 112))[turn % 4]
        counts = bytes(rng.integers(low, high, length, dtype=np.uint8))
        if turn % 3 == 0:
            counts = counts.decode("latin1")
        expected = outcome_of(slow_decompress, counts)
        assert outcome_of(_decompressed, counts) == expected
        refused += isinstance(expected, str)
    assert 1000 < refused < 3500


@pytest.mark.parametrize("num_letters", range(1, 10))
@pytest.mark.parametrize("last", [b"0", b"?", b"@", b"O", b""])
def test_numbers_of_up_to_seven_letters_are_read(num_letters, last):
    counts = b"1" * 4 + b"o" * (num_letters - 1) + last + b"2"
    expected = outcome_of(slow_decompress, counts)
    assert outcome_of(_decompressed, counts) == expected
    assert isinstance(expected, str) == (num_letters > 7)


# Polygons: against pycocotools in tests/refer/test_segmentation.py too.


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_polygon_is_drawn_as_pycocotools_decodes_it():
    rng = np.random.default_rng(3)
    for _ in range(20):
        height, width = (int(side) for side in rng.integers(5, 40, size=2))
        polygon = (rng.uniform(-0.3, 1.3, (5, 2)) * (width, height)).ravel().tolist()
        check_polygon(polygon, (height, width))
        expected = coco_mask.decode(coco_mask.frPyObjects([polygon], height, width))[..., 0]
        np.testing.assert_array_equal(decode_polygon(polygon, (height, width)), expected == 1)


@pytest.mark.parametrize(
    ("polygon", "says"),
    [
        ([0, 0, 2, 0], "at least 6, got 4 numbers"),
        ([0, 0, 2, 0, 2, 2, 1], "even count of numbers, at least 6, got 7"),
        ([0, 0, 2, 0, True, 2], "a polygon of numbers, got True among them"),
        ([0, 0, 2, 0, float("nan"), 2], "height 4 and width 6, got the coordinate nan"),
        ([0, 0, 2, 0, 2, 8.5], "got the coordinate 8.5"),
    ],
)
def test_damaged_polygons_are_refused(polygon, says):
    with pytest.raises(DataError, match=says):
        check_polygon(polygon, (4, 6))


def test_two_points_are_a_polygon_where_lines_are_drawn():
    check_polygon([0, 0, 2, 2], (4, 6), min_points=2)


# Boxes, proposals, resizing.


def test_boxes_are_those_of_the_pixels():
    masks = random_masks(8) & (np.arange(8) > 3)[:, None, None]
    masks[1, 3, 4] = masks[2, 2, 1:9] = masks[3, 1:6, 0] = True
    for mask, box in zip(masks, mask_boxes_xywh(masks).tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        some = [xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)] if len(xs) else [0, 0, 0, 0]
        assert box == some
    assert mask_boxes_xywh(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_proposals_come_back_from_a_stores_entry(count):
    masks = random_masks(count, hw=(20, 30))
    scores = np.linspace(0, 1, count, dtype=np.float32)
    proposals = Proposals(masks, mask_boxes_xywh(masks), scores, 1 - scores)

    arrays, meta = proposals.to_entry()
    again = Proposals.from_entry(arrays, json.loads(json.dumps(meta)))

    assert again.hw == (20, 30)
    for name in ("masks_NHW", "boxes_xywh", "predicted_iou", "stability"):
        np.testing.assert_array_equal(getattr(again, name), getattr(proposals, name))
    if count:
        with pytest.raises(DataError, match="add up to 600 pixels"):
            Proposals.from_entry(arrays, {**meta, "rle": ["04"] * count})
    with pytest.raises(ValueError, match="Expected boxes_xywh"):
        Proposals.from_entry(arrays, {**meta, "rle": [*meta["rle"], slow_compress([600])]})


def test_resizing_takes_the_pixel_under_each_center():
    masks = random_masks(3, hw=(7, 5))
    resized = resize_nearest(masks, 4)
    assert resized.shape == (3, 4, 4)
    for n, y, x in np.ndindex(3, 4, 4):
        expected = masks[n, int((y + 0.5) * 7 / 4), int((x + 0.5) * 5 / 4)]
        assert resized[n, y, x] == expected
    assert np.array_equal(resize_nearest(random_masks(2, hw=(6, 6)), 6), random_masks(2, hw=(6, 6)))


def test_resizing_of_no_masks():
    assert resize_nearest(np.zeros((0, 3, 5), dtype=bool), 8).shape == (0, 8, 8)


# Small holes and islands against segment_anything's clean-up, and by hand.


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
