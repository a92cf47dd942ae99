"""Ground truth by both rules, on masks that can be counted by hand."""

from __future__ import annotations

import reprlib

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image, ImageDraw

from hybridgl.errors import DataError
from refer.segmentation import MaskRule, check_segmentation, gt_mask

LEFT_HALF = [0, 0, 2, 0, 2, 4, 0, 4]
TOP_HALF = [0, 0, 4, 0, 4, 2, 0, 2]
HW = (4, 4)


def as_rows(mask_HW) -> list[str]:
    return ["".join(".#"[int(pixel)] for pixel in row) for row in mask_HW]


def slow_runs(mask_HW) -> list[int]:
    """Run lengths, pixel by pixel down the columns."""
    runs, current = [0], False
    for pixel in mask_HW.T.ravel():
        if bool(pixel) != current:
            runs.append(0)
            current = not current
        runs[-1] += 1
    return runs


def outcome_of(function, *args, **options):
    """What a function gives, or in which words it refuses."""
    try:
        return function(*args, **options)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("overlapping_polygons_dropped", [True, False])
@pytest.mark.parametrize(
    ("polygon", "rows"),
    [
        (LEFT_HALF, ["##..", "##..", "##..", "##.."]),
        (TOP_HALF, ["####", "####", "....", "...."]),
        ([1, 1, 3, 1, 3, 3, 1, 3], ["....", ".##.", ".##.", "...."]),
        ([1, 2, 4, 2, 4, 3, 1, 3], ["....", "....", ".###", "...."]),
    ],
)
def test_one_polygon_is_its_own_truth(polygon, rows, overlapping_polygons_dropped):
    mask_HW = gt_mask([polygon], HW, overlapping_polygons_dropped=overlapping_polygons_dropped)
    assert as_rows(mask_HW) == rows
    assert mask_HW.dtype == bool


def test_reference_drops_pixels_of_two_polygons():
    mask_HW = gt_mask([LEFT_HALF, TOP_HALF], HW, overlapping_polygons_dropped=True)
    assert as_rows(mask_HW) == ["..##", "..##", "##..", "##.."]


def test_corrected_keeps_the_union():
    mask_HW = gt_mask([LEFT_HALF, TOP_HALF], HW, overlapping_polygons_dropped=False)
    assert as_rows(mask_HW) == ["####", "####", "##..", "##.."]


def test_a_third_polygon_does_not_bring_dropped_pixels_back():
    parts = [LEFT_HALF, TOP_HALF, [0, 0, 1, 0, 1, 4, 0, 4]]
    assert as_rows(gt_mask(parts, HW, overlapping_polygons_dropped=True)) == [
        "..##",
        "..##",
        ".#..",
        ".#..",
    ]


def test_the_same_polygon_300_times_is_dropped_whole():
    parts = [LEFT_HALF] * 300
    assert not gt_mask(parts, HW, overlapping_polygons_dropped=True).any()
    assert gt_mask(parts, HW, overlapping_polygons_dropped=False).sum() == 8


# The compiled decoder of pycocotools predates numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_rules_match_sum_and_merge_of_pycocotools():
    rng = np.random.default_rng(3)
    for _ in range(20):
        height, width = (int(side) for side in rng.integers(5, 40, size=2))
        parts = [
            (rng.random((int(rng.integers(3, 8)), 2)) * (width, height)).ravel().tolist()
            for _ in range(int(rng.integers(1, 5)))
        ]
        rles = coco_mask.frPyObjects(parts, height, width)
        exactly_one = coco_mask.decode(rles).astype(int).sum(axis=2) == 1
        union = coco_mask.decode(coco_mask.merge(rles)) == 1
        for drop, expected in ((True, exactly_one), (False, union)):
            np.testing.assert_array_equal(
                gt_mask(parts, (height, width), overlapping_polygons_dropped=drop), expected
            )


def test_polygon_order_does_not_matter():
    for drop in (True, False):
        np.testing.assert_array_equal(
            gt_mask([LEFT_HALF, TOP_HALF], HW, overlapping_polygons_dropped=drop),
            gt_mask([TOP_HALF, LEFT_HALF], HW, overlapping_polygons_dropped=drop),
        )


def test_a_polygon_slightly_outside_is_clipped():
    mask_HW = gt_mask([[-2, -1, 2, -1, 2, 5, -2, 5]], HW, overlapping_polygons_dropped=True)
    assert as_rows(mask_HW) == ["##..", "##..", "##..", "##.."]


def test_a_polygon_thinner_than_a_pixel_is_an_empty_mask():
    assert not gt_mask([[1, 1, 1, 1, 1, 1]], HW, overlapping_polygons_dropped=False).any()


def test_run_lengths_go_down_the_columns():
    # 2 x 3: one background pixel, then the rest of the first column and the top of the second.
    rle = {"size": [2, 3], "counts": [1, 2, 3]}
    assert as_rows(gt_mask(rle, (2, 3), overlapping_polygons_dropped=True)) == [".#.", "#.."]


def test_all_run_length_forms_agree():
    rng = np.random.default_rng(11)
    for share in (0.0, 0.02, 0.3, 0.7, 1.0):
        for height, width in ((1, 1), (1, 9), (7, 1), (30, 50), (400, 300)):
            mask_HW = rng.random((height, width)) < share
            packed = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
            size = [height, width]
            for counts in (packed["counts"], packed["counts"].decode(), slow_runs(mask_HW)):
                rle = {"size": size, "counts": counts}
                for form in (rle, [rle]):
                    for drop in (True, False):
                        np.testing.assert_array_equal(
                            gt_mask(form, (height, width), overlapping_polygons_dropped=drop),
                            mask_HW,
                        )


def test_run_lengths_in_a_list_overlap_like_polygons():
    top = {"size": [4, 4], "counts": [0, 2, 2, 2, 2, 2, 2, 2, 2]}
    left = {"size": [4, 4], "counts": b"088"}
    assert as_rows(gt_mask([top, left], HW, overlapping_polygons_dropped=True)) == [
        "..##",
        "..##",
        "##..",
        "##..",
    ]
    assert gt_mask([top, left], HW, overlapping_polygons_dropped=False).sum() == 12


BROKEN = {
    "no polygon": ([], "at least one polygon"),
    "nothing": (None, "at least one polygon"),
    "an empty dict": ({}, "size"),
    "a text": ("0088", "got '0088'"),
    "a flat list": ([0, 0, 2, 0, 2, 2], "got 0; write"),
    "an empty polygon": ([[]], "got 0 numbers"),
    "two points": ([[0, 0, 2, 2]], "got 4 numbers"),
    "an odd list": ([[0, 0, 2, 0, 2, 2, 1]], "got 7 numbers"),
    "the second polygon": ([LEFT_HALF, [0, 0]], "Part 1 of 2"),
    "text in a polygon": ([[0, 0, 2, 0, 2, "2"]], "'2'"),
    "true in a polygon": ([[0, 0, 2, 0, 2, True]], "True"),
    "none in a polygon": ([[0, 0, 2, 0, 2, None]], "None"),
    "NaN": ([[0, 0, 2, 0, 2, float("nan")]], "nan"),
    "infinity": ([[0, 0, 2, 0, float("inf"), 2]], "inf"),
    "far outside": ([[0, 0, 1e9, 0, 2, 2]], "1000000000.0"),
    "beyond floats": ([[0, 0, 10**400, 0, 2, 2]], "coordinate"),
    "another size": ({"size": [4, 5], "counts": [20]}, r"\[4, 4\], height first, got \[4, 5\]"),
    "size swapped": ({"size": [2, 8], "counts": [16]}, r"got \[2, 8\]"),
    "size in fractions": ({"size": [4.5, 4], "counts": [16]}, r"got \[4.5, 4\]"),
    "true as size": ({"size": [True, 4], "counts": [16]}, r"got \[True, 4\]"),
    "a dense mask turned": ([[0, 1, 1, 0]] * 5, "rows of 4 pixels, got .* of 5 rows of 4"),
    "a dense mask cut": ([[0, 1, 1, 0, 0, 0]] * 4, "rows of 4 pixels, got .* of 4 rows of 6"),
    "a dense mask with a two": ([[0, 1, 1, 0]] * 3 + [[0, 1, 1, 2]], "got 4 numbers"),
    "rows of other widths": ([[0, 1, 1, 0]] * 3 + [[0, 1]], "Part 0 of 4 .* got 4 numbers"),
    "no size": ({"counts": [16]}, "got None"),
    "no counts": ({"size": [4, 4]}, "got None"),
    "counts too short": ({"size": [4, 4], "counts": [3, 4]}, "16 pixels, got 2 runs"),
    "counts too long": ({"size": [4, 4], "counts": [3, 4, 40]}, "add up to 47"),
    "no runs": ({"size": [4, 4], "counts": []}, "got 0 runs"),
    "negative counts": ({"size": [4, 4], "counts": [20, -4]}, "runs from -4"),
    "true in counts": ({"size": [4, 4], "counts": [True, 15]}, "got True"),
    "fractions": ({"size": [4, 4], "counts": [8.0, 8]}, "8.0"),
    "empty text": ({"size": [4, 4], "counts": ""}, "got 0 runs"),
    "negative compressed": ({"size": [4, 4], "counts": b"`0O"}, "runs from -1"),
    "compressed too short": ({"size": [4, 4], "counts": b"08"}, "add up to 8"),
    "cut within a number": ({"size": [4, 4], "counts": b"0P"}, "cut short"),
    "letters below": ({"size": [4, 4], "counts": b"0 8"}, "compressed"),
    "letters above": ({"size": [4, 4], "counts": "0~8"}, "compressed"),
    "not ASCII": ({"size": [4, 4], "counts": "0é8"}, "compressed"),
    "not Latin-1": ({"size": [4, 4], "counts": "0\N{SNOWMAN}8"}, "compressed"),
    "half a character": ({"size": [4, 4], "counts": "0\ud8008"}, "compressed"),
    "a number without end": ({"size": [4, 4], "counts": b"P" * 100000 + b"0"}, "compressed"),
    "a list with one broken": ([{"size": [4, 4], "counts": [16]}, {"size": [4, 4]}], "Part 1 of 2"),
}


@pytest.mark.parametrize(("segmentation", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_segmentations_are_refused(segmentation, says):
    with pytest.raises(DataError, match=says) as caught:
        gt_mask(segmentation, HW, overlapping_polygons_dropped=True)
    assert len(str(caught.value)) < 300
    assert outcome_of(check_segmentation, segmentation, HW) == str(caught.value)


@pytest.mark.parametrize("kind", [int, float, bool])
def test_a_dense_mask_of_the_images_size_is_read_as_one(kind):
    rng = np.random.default_rng(5)
    for hw in ((4, 4), (6, 8), (7, 5), (1, 9), (9, 1)):
        mask_HW = rng.random(hw) < 0.5
        rows = [[kind(pixel) for pixel in row] for row in mask_HW]
        for drop in (True, False):
            drawn_HW = gt_mask(rows, hw, overlapping_polygons_dropped=drop)
            np.testing.assert_array_equal(drawn_HW, mask_HW)
            assert drawn_HW.dtype == bool
        says = f"got a dense mask, {hw[0]} rows of {hw[1]} zeros and ones; write the mask so."
        assert says in str(check_segmentation(rows, hw))


def test_a_polygon_of_zeros_and_ones_is_a_pixel_in_the_corner():
    corner = [[0, 0, 1, 0, 1, 1, 0, 1]]
    assert as_rows(gt_mask(corner, HW, overlapping_polygons_dropped=True))[0] == "#..."
    assert check_segmentation(corner, HW) is None


def test_sizes_that_are_no_whole_numbers_are_read_and_said():
    rle = {"size": [4.0, 4], "counts": [0, 16]}
    assert gt_mask(rle, HW, overlapping_polygons_dropped=True).all()
    assert "whole numbers, got the size [4.0, 4];" in str(check_segmentation([rle, rle], HW))


def test_noise_in_compressed_runs_gives_the_right_size_or_an_error():
    rng = np.random.default_rng(2)
    mask_HW = rng.random((20, 30)) < 0.4
    valid = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))["counts"]
    refused = 0
    for _ in range(300):
        noisy = bytearray(valid)
        noisy[int(rng.integers(len(noisy)))] = int(rng.integers(256))
        try:
            mask = gt_mask(
                {"size": [20, 30], "counts": bytes(noisy)},
                (20, 30),
                overlapping_polygons_dropped=True,
            )
        except ValueError:
            refused += 1
        else:
            assert mask.shape == (20, 30)
    assert refused > 200


@pytest.mark.parametrize("hw", [(0, 4), (4, -1)])
def test_an_impossible_size_is_refused(hw):
    with pytest.raises(ValueError, match="positive height and width"):
        gt_mask([LEFT_HALF], hw, overlapping_polygons_dropped=True)


def test_runs_too_long_for_64_bits_in_sum_are_refused():
    """Each run is legal by itself; their sum, cut to 64 bits, would be the image's 16 pixels."""
    half = [2**62] * 2
    counts = [16, *half, *half]
    assert sum(counts) % 2**64 == 16
    with pytest.raises(ValueError, match=f"add up to {2**64 + 16}"):
        check_segmentation({"size": [4, 4], "counts": counts}, HW)


def test_checking_draws_nothing(monkeypatch):
    monkeypatch.setattr("hybridgl.masks.coco_mask", None)
    monkeypatch.setattr("refer.segmentation.decode_rle", None)
    monkeypatch.setattr("refer.segmentation.Image", None)
    check_segmentation([LEFT_HALF, TOP_HALF, {"size": [4, 4], "counts": [16]}], HW)
    check_segmentation([[[0, 0], [1, 1]]], HW, rule=MaskRule.PHRASECUT)


def test_any_numbers_are_checked_as_one_by_one():
    rng = np.random.default_rng(7)
    values = [-9, -8, -4, 0, 1.5, 4, 8, 8.5, 16, 16.5, 17, float("nan"), float("inf"), 10**400]
    refused = 0
    for _ in range(3000):
        polygon = [values[i] for i in rng.integers(0, len(values), 6)]
        if rng.random() < 0.7:
            polygon = [value if abs(value) < 9 else 1 for value in polygon]
        wrong = [
            value
            for place, value in enumerate(polygon)
            if not -(8, 4)[place % 2] <= value <= 2 * (8, 4)[place % 2]
        ]
        outcome = outcome_of(check_segmentation, [polygon], (4, 8))
        assert (outcome is not None) == bool(wrong)
        if wrong:
            assert f"got the coordinate {reprlib.repr(wrong[0])};" in outcome
            refused += 1
    assert 500 < refused < 2900


def test_numbers_of_numpy_are_taken():
    check_segmentation([list(np.array(LEFT_HALF, dtype=np.float64))], HW)


# PhraseCut's rule.


def slow_phrasecut(polygons, hw):
    """Every polygon on an image of its own, cut to whole pixels, and their sum above zero."""
    total_HW = np.zeros(hw)
    for polygon in polygons:
        points = []
        for x, y in polygon:
            points.append((int(x), int(y)))
        canvas = Image.new("L", (hw[1], hw[0]), 0)
        ImageDraw.Draw(canvas).polygon(points, outline=1, fill=1)
        total_HW += np.array(canvas)
    return total_HW > 0


def drawn(polygons, hw=HW, *, overlapping_polygons_dropped=True):
    return gt_mask(
        polygons,
        hw,
        overlapping_polygons_dropped=overlapping_polygons_dropped,
        rule=MaskRule.PHRASECUT,
    )


@pytest.mark.parametrize(
    ("polygon", "rows"),
    [
        ([[0, 0], [2, 0], [2, 2], [0, 2]], ["###.", "###.", "###.", "...."]),
        ([[0.9, 0.9], [2.9, 0.9], [2.9, 2.9], [0.9, 2.9]], ["###.", "###.", "###.", "...."]),
        ([[-0.9, 1.9], [1.2, 1.1]], ["....", "##..", "....", "...."]),
        ([[1, 0], [1, 3]], [".#..", ".#..", ".#..", ".#.."]),
        ([[2, 2], [2, 2], [2, 2]], ["....", "....", "..#.", "...."]),
        ([[2, -4], [8, -4], [8, 8], [2, 8]], ["..##", "..##", "..##", "..##"]),
    ],
)
def test_phrasecut_cuts_to_whole_pixels_and_draws_the_border(polygon, rows):
    mask_HW = drawn([polygon])
    assert as_rows(mask_HW) == rows
    assert mask_HW.dtype == bool


def test_phrasecut_keeps_the_union_in_both_profiles():
    left, top = [[0, 0], [1, 0], [1, 3], [0, 3]], [[0, 0], [3, 0], [3, 1], [0, 1]]
    rows = ["####", "####", "##..", "##.."]
    for overlapping_polygons_dropped in (True, False):
        assert (
            as_rows(drawn([left, top], overlapping_polygons_dropped=overlapping_polygons_dropped))
            == rows
        )


def test_phrasecut_matches_a_sum_of_images():
    rng = np.random.default_rng(4)
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(5, 60, size=2))
        polygons = [
            (rng.uniform(-0.2, 1.2, (int(rng.integers(2, 12)), 2)) * (width, height)).tolist()
            for _ in range(int(rng.integers(1, 5)))
        ]
        mask_HW = drawn(polygons, (height, width))
        np.testing.assert_array_equal(mask_HW, slow_phrasecut(polygons, (height, width)))


BROKEN_POINTS = {
    "no polygon": ([], "at least one polygon"),
    "numbers in turn": ([[0, 0, 2, 0, 2, 2]], r"list of points \[x, y\], got 0"),
    "run lengths": ({"size": [4, 4], "counts": [16]}, "list of points.*got {'counts'"),
    "one point": ([[[0, 0]]], "at least 4, got 2 numbers"),
    "three numbers": ([[[0, 0], [1, 1, 1]]], r"got \[1, 1, 1\]"),
    "a text": ([[[0, 0], [1, "1"]]], "'1' among"),
    "true": ([[[0, 0], [1, True]]], "True among"),
    "none": ([[[0, 0], [None, 1]]], "None among"),
    "NaN": ([[[0, 0], [1, float("nan")]]], "nan"),
    "far outside": ([[[0, 0], [1, 8.5]]], "8.5"),
    "far outside to the left": ([[[0, 0], [-4.5, 8]]], "-4.5"),
    "the second polygon": ([[[0, 0], [1, 1]], [[0, 0]]], "Part 1 of 2"),
}


@pytest.mark.parametrize(("polygons", "says"), BROKEN_POINTS.values(), ids=BROKEN_POINTS)
def test_broken_polygons_of_points_are_refused(polygons, says):
    with pytest.raises(DataError, match=says) as caught:
        drawn(polygons)
    words = outcome_of(check_segmentation, polygons, HW, rule=MaskRule.PHRASECUT)
    assert words == str(caught.value)
