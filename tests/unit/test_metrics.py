"""Metrics against counts of Python integers."""

from __future__ import annotations

import numpy as np
import pytest

from hybridgl.metrics import Overlap, iou, mean_iou, overall_iou, overlap_counts, precision_at


def slow_counts(prediction, truth):
    inside, either = 0, 0
    for a, b in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        inside += int(a and b)
        either += int(a or b)
    return inside, either


def random_masks(count, seed=0, hw=(5, 7)):
    rng = np.random.default_rng(seed)
    return rng.random((count, *hw)) < rng.random((count, 1, 1))


def test_counts_of_every_prediction_with_every_truth():
    predictions, truths = random_masks(6), random_masks(4, seed=1)
    intersections, unions = overlap_counts(predictions, truths)
    assert intersections.dtype == unions.dtype == np.int64
    assert intersections.shape == unions.shape == (6, 4)
    for n, s in np.ndindex(6, 4):
        expected = slow_counts(predictions[n], truths[s])
        assert (intersections[n, s], unions[n, s]) == expected


def test_counts_by_hand():
    prediction = np.zeros((1, 4, 4), dtype=bool)
    truth = np.zeros((1, 4, 4), dtype=bool)
    prediction[0, :2], truth[0, :, :2] = True, True
    intersections, unions = overlap_counts(prediction, truth)
    assert (intersections.item(), unions.item()) == (4, 12)


def test_counts_are_exact_where_a_float32_is_not():
    side = 4100
    prediction = np.ones((1, side, side), dtype=bool)
    truth = np.ones((1, side, side), dtype=bool)
    truth[0, 0, 0] = False
    intersections, unions = overlap_counts(prediction, truth)
    assert (intersections.item(), unions.item()) == (side**2 - 1, side**2)


@pytest.mark.parametrize(("count", "truths"), [(0, 3), (3, 0), (0, 0)])
def test_no_masks_give_no_counts(count, truths):
    for counts in overlap_counts(random_masks(count), random_masks(truths)):
        assert counts.shape == (count, truths)


def test_masks_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"of one size, got \(5, 7\) and \(7, 5\)"):
        overlap_counts(random_masks(1), random_masks(1, hw=(7, 5)))


def test_intersection_and_union_do_not_depend_on_the_order():
    a, b = random_masks(3), random_masks(2, seed=1)
    for one, other in zip(overlap_counts(a, b), overlap_counts(b, a), strict=True):
        assert np.array_equal(one, other.T)


OVERLAPS = [Overlap(1, 2), Overlap(0, 10), Overlap(3, 4), Overlap(5, 5), Overlap(0, 0)]


def test_iou_of_two_empty_masks_is_zero():
    assert iou(Overlap(0, 0)) == 0
    assert mean_iou([Overlap(0, 0), Overlap(1, 1)]) == 50
    assert overall_iou([Overlap(0, 0)]) == 0


def test_overall_iou_is_the_ratio_of_the_sums():
    assert overall_iou(OVERLAPS) == pytest.approx(100 * 9 / 21)


def test_mean_iou_is_the_mean_of_the_ratios():
    assert mean_iou(OVERLAPS) == pytest.approx(100 * (0.5 + 0 + 0.75 + 1 + 0) / 5)


@pytest.mark.parametrize(
    ("threshold", "share"), [(0.5, 40), (0.4, 60), (0.75, 20), (0.9, 20), (1.0, 0)]
)
def test_precision_counts_ratios_strictly_above(threshold, share):
    assert precision_at(OVERLAPS, threshold) == share


def test_no_samples_score_zero():
    assert overall_iou([]) == mean_iou([]) == precision_at([], 0.5) == 0


def test_metrics_do_not_depend_on_the_order_of_samples():
    backwards = OVERLAPS[::-1]
    assert overall_iou(backwards) == overall_iou(OVERLAPS)
    assert mean_iou(backwards) == pytest.approx(mean_iou(OVERLAPS), abs=1e-12)
    assert precision_at(backwards, 0.5) == precision_at(OVERLAPS, 0.5)


def test_large_counts_stay_exact():
    many = [Overlap(2**40 + 1, 2**41)] * 3
    assert overall_iou(many) == 100 * (3 * (2**40 + 1)) / (3 * 2**41)
