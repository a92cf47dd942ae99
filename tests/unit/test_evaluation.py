"""Scoring of picks by cases done by hand, and quirk Q5's running cap."""

from __future__ import annotations

import numpy as np
import pytest

from hybridgl.config import GuidanceConfig
from hybridgl.evaluation import candidate_caps, outcomes
from hybridgl.guidance import choose
from hybridgl.language import ParsedExpression, Position, Relation
from hybridgl.metrics import Overlap, iou
from hybridgl.pipeline import Prediction
from hybridgl.proposals import Proposals

EXPRESSION = ParsedExpression("a cat", "a cat", "cat", (), (), Position.NONE, Relation.NONE)


def proposals_of(masks_NHW):
    count = len(masks_NHW)
    return Proposals(
        masks_NHW,
        np.ones((count, 4), dtype=np.int64),
        np.ones(count, dtype=np.float32),
        np.ones(count, dtype=np.float32),
    )


def prediction_of(own, coherence):
    own, coherence = np.array(own, dtype=float), np.array(coherence, dtype=float)
    choice = None
    if len(own):
        boxes = np.ones((len(own), 4))
        choice = choose(own, None, coherence, boxes, Relation.NONE, GuidanceConfig())
    return Prediction(EXPRESSION, choice, own, np.zeros((2, 2), dtype=np.float32))


def rows(*filled):
    """Masks of 4 x 4 pixels whose first so many rows are filled."""
    masks = np.zeros((len(filled), 4, 4), dtype=bool)
    for mask, count in zip(masks, filled, strict=True):
        mask[:count] = True
    return masks


def test_cap_in_reference_is_the_smallest_count_so_far():
    assert candidate_caps([9, 5, 7, 2, 8], shrinks=True) == [9, 5, 5, 2, 2]


def test_cap_in_corrected_is_the_images_own_count():
    assert candidate_caps([9, 5, 7, 2, 8], shrinks=False) == [9, 5, 7, 2, 8]


def test_images_without_proposals_do_not_lower_the_cap():
    assert candidate_caps([9, 0, 7], shrinks=True) == [9, 9, 7]
    assert candidate_caps([0, 7, 9], shrinks=True)[1:] == [7, 7]


def test_caps_of_no_refs_are_none():
    assert candidate_caps([], shrinks=True) == candidate_caps([], shrinks=False) == []


def test_cap_in_reference_depends_on_the_dataset_order_alone():
    """Whatever part of the refs is asked for, the caps come from all counts."""
    counts = [4, 6, 2, 9]
    whole = candidate_caps(counts, shrinks=True)
    assert [candidate_caps(counts[: i + 1], shrinks=True)[-1] for i in range(4)] == whole
    assert candidate_caps(counts[::-1], shrinks=True) != whole[::-1]


def test_earlier_image_with_few_proposals_changes_a_pick_in_reference_only():
    own, coherence = np.array([2.0, 1.0, 0.0]), np.array([-1.0, 5.0, -1.0])
    picks = []
    for shrinks in (True, False):
        cap = candidate_caps([1, 3], shrinks=shrinks)[1]
        choice = choose(
            own, None, coherence, np.ones((3, 4)), Relation.NONE, GuidanceConfig(), largest_k=cap
        )
        picks.append(choice.pick)
    assert picks == [0, 1]


def test_picks_and_yardsticks_by_hand():
    proposals = proposals_of(rows(1, 2, 4))
    prediction = prediction_of([1.0, 0.0, 3.0], [0.0, -5.0, -9.0])
    (outcome,) = outcomes(proposals, [prediction], rows(2))
    assert (outcome.pure.index, outcome.pure.area, outcome.pure.overlap) == (2, 16, Overlap(8, 16))
    assert outcome.guided.index == 0
    assert (outcome.guided.area, outcome.guided.overlap) == (4, Overlap(4, 8))
    assert outcome.no_gem.index == 2
    assert (outcome.best.index, outcome.best.overlap) == (1, Overlap(8, 8))
    assert outcome.random_iou == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert outcome.target_area == 8


def test_each_sentence_meets_its_own_truth():
    proposals = proposals_of(rows(1, 2, 4))
    predictions = [prediction_of([3.0, 0, 0], [0, 0, 0]), prediction_of([0, 0, 3.0], [0, 0, 0])]
    first, second = outcomes(proposals, predictions, rows(1, 2))
    assert first.pure.overlap == Overlap(4, 4)
    assert second.pure.overlap == Overlap(8, 16)
    assert (first.best.index, second.best.index) == (0, 1)
    assert (first.target_area, second.target_area) == (4, 8)
    assert first.random_iou == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert second.random_iou == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)


def test_no_proposal_counts_as_an_empty_mask():
    (outcome,) = outcomes(Proposals.empty((4, 4)), [prediction_of([], [])], rows(2))
    for pick in (outcome.pure, outcome.guided, outcome.no_gem, outcome.best):
        assert (pick.index, pick.area, pick.overlap) == (None, 0, Overlap(0, 8))
        assert iou(pick.overlap) == 0
    assert outcome.random_iou == 0
    assert outcome.target_area == 8


def test_empty_truth_scores_zero_and_divides_by_nothing():
    masks = rows(0, 2)
    (outcome,) = outcomes(proposals_of(masks), [prediction_of([1.0, 0], [0, 0])], rows(0))
    assert outcome.pure.overlap == Overlap(0, 0)
    assert outcome.random_iou == 0


def test_first_of_equally_good_proposals_is_the_best():
    (outcome,) = outcomes(
        proposals_of(rows(1, 2, 2)), [prediction_of([1.0, 0, 0], [0, 0, 0])], rows(2)
    )
    assert outcome.best.index == 1


def test_permuted_proposals_give_the_same_counts():
    masks = rows(1, 2, 3, 4)
    own, coherence = np.array([0.1, 0.4, 0.3, 0.2]), np.array([-1.0, -2.0, -0.5, -3.0])
    order = np.array([3, 1, 0, 2])
    (plain,) = outcomes(proposals_of(masks), [prediction_of(own, coherence)], rows(3))
    (permuted,) = outcomes(
        proposals_of(masks[order]), [prediction_of(own[order], coherence[order])], rows(3)
    )
    for name in ("pure", "guided", "no_gem", "best"):
        assert getattr(permuted, name).overlap == getattr(plain, name).overlap
        assert order[getattr(permuted, name).index] == getattr(plain, name).index
    assert permuted.random_iou == pytest.approx(plain.random_iou)


def test_counts_are_flat_and_of_plain_numbers():
    (outcome,) = outcomes(
        proposals_of(rows(1, 2)), [prediction_of([1.0, 0.0], [-9.0, 0.0])], rows(2)
    )
    assert outcome.counts() == {
        "target_area": 8,
        "best_intersection": 8,
        "best_union": 8,
        "best_iou": 1.0,
        "random_iou": 0.75,
        "pick_pure": 0,
        "predicted_area_pure": 4,
        "intersection_pure": 4,
        "union_pure": 8,
        "pick_guided": 1,
        "predicted_area_guided": 8,
        "intersection_guided": 8,
        "union_guided": 8,
        "pick_no_gem": 0,
        "predicted_area_no_gem": 4,
        "intersection_no_gem": 4,
        "union_no_gem": 8,
    }
    assert {type(value) for value in outcome.counts().values()} == {int, float}
