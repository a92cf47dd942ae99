"""Pixel counts by cases done by hand."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from evaluation import counts
from evaluation.counts import ImageCounts
from evaluation.records import PredictionCounts


def rows(*filled):
    """Masks of 4 x 4 pixels whose first so many rows are filled."""
    masks = np.zeros((len(filled), 4, 4), dtype=bool)
    for mask, count in zip(masks, filled, strict=True):
        mask[:count] = True
    return masks


def slow_counts(masks_NHW, gt_masks_SHW):
    """Areas of both, and intersections, a pixel at a time."""
    masks, gt_masks = masks_NHW.tolist(), gt_masks_SHW.tolist()

    def pixels(mask):
        return {(y, x) for y, row in enumerate(mask) for x, inside in enumerate(row) if inside}

    mask_pixels, gt_pixels = [pixels(mask) for mask in masks], [pixels(mask) for mask in gt_masks]
    return (
        [len(one) for one in mask_pixels],
        [len(one) for one in gt_pixels],
        [[len(one & other) for other in gt_pixels] for one in mask_pixels],
    )


def test_predictions_and_yardsticks_by_hand():
    found = ImageCounts.of(rows(1, 2, 4), rows(2))
    assert (found.areas_N.tolist(), found.gt_areas_S.tolist()) == ([4, 8, 16], [8])
    whole, first = found.prediction(2, 0), found.prediction(0, 0)
    assert (whole.proposal, whole.area, whole.intersection) == (2, 16, 8)
    assert (first.proposal, first.area, first.intersection) == (0, 4, 4)
    assert found.ious(0).tolist() == [0.5, 1, 0.5]


def test_counts_at_480_pixels_are_those_of_the_enlarged_masks():
    found = ImageCounts.of(rows(1, 2, 4), rows(2))
    rows_480 = 480 // 4
    whole, first = found.prediction(2, 0), found.prediction(0, 0)
    assert (whole.area_480, whole.intersection_480) == (4 * rows_480 * 480, 2 * rows_480 * 480)
    assert (first.area_480, first.intersection_480) == (rows_480 * 480, rows_480 * 480)
    assert found.gt_areas_480_S.tolist() == [2 * rows_480 * 480]


def test_counts_are_those_of_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    for _ in range(5):
        masks_NHW, gt_masks_SHW = rng.random((4, 5, 7)) < 0.4, rng.random((3, 5, 7)) < 0.5
        found = ImageCounts.of(masks_NHW, gt_masks_SHW)
        three = (found.areas_N, found.gt_areas_S, found.intersections_NS)
        assert tuple(array.tolist() for array in three) == slow_counts(masks_NHW, gt_masks_SHW)


def test_each_sentence_meets_its_own_ground_truth():
    found = ImageCounts.of(rows(1, 2, 4), rows(1, 2))
    assert found.prediction(0, 0).intersection == found.prediction(0, 1).intersection == 4
    assert found.prediction(2, 0).intersection == 4
    assert found.prediction(2, 1).intersection == 8
    assert found.ious(0) == pytest.approx([1, 1 / 2, 1 / 4])
    assert found.ious(1) == pytest.approx([1 / 2, 1, 1 / 2])


def test_no_proposal_counts_as_an_empty_mask():
    found = ImageCounts.of(rows(), rows(2))
    assert found.ious(0).tolist() == []
    nothing = PredictionCounts(
        proposal=None, area=0, intersection=0, area_480=0, intersection_480=0
    )
    assert found.prediction(None, 0) == nothing
    assert (found.gt_areas_S.tolist(), found.gt_areas_480_S.tolist()) == ([8], [480 * 480 // 2])


def test_empty_ground_truth_scores_zero_and_divides_by_nothing():
    found = ImageCounts.of(rows(0, 2), rows(0))
    assert found.ious(0).tolist() == [0, 0]
    assert found.prediction(0, 0).intersection == 0


def test_permuted_proposals_give_the_same_counts():
    masks, order = rows(1, 2, 3, 4), [3, 1, 0, 2]
    plain, permuted = ImageCounts.of(masks, rows(3)), ImageCounts.of(masks[order], rows(3))
    for place, index in enumerate(order):
        same, moved = plain.prediction(index, 0), permuted.prediction(place, 0)
        assert (same.proposal, moved.proposal) == (index, place)
        assert astuple_without_index(same) == astuple_without_index(moved)
    assert sorted(plain.ious(0)) == sorted(permuted.ious(0))


def astuple_without_index(prediction):
    return (
        prediction.area,
        prediction.intersection,
        prediction.area_480,
        prediction.intersection_480,
    )


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_number_of_masks_resized_at_once_does_not_matter(at_once, monkeypatch):
    masks_NHW = np.random.default_rng(0).random((7, 5, 6)) < 0.5
    plain = ImageCounts.of(masks_NHW, masks_NHW[:2])
    monkeypatch.setattr(counts, "_MASKS_PER_CHUNK", at_once)
    chunked = ImageCounts.of(masks_NHW, masks_NHW[:2])
    for one, other in zip(astuple(plain), astuple(chunked), strict=True):
        np.testing.assert_array_equal(one, other)


def test_counts_come_back_from_their_arrays():
    found = ImageCounts.of(rows(1, 2, 4), rows(2, 3))
    again = ImageCounts.from_arrays({**found.arrays(), "0/similarity_N": np.zeros(3)})
    for one, other in zip(astuple(found), astuple(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_counts_are_plain_numbers():
    prediction = ImageCounts.of(rows(1, 2), rows(2)).prediction(0, 0)
    assert {type(number) for number in astuple_without_index(prediction)} == {int}
