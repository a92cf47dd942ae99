"""Scoring of picks by cases done by hand, and quirk Q5's running k_limit."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from evaluation.counts import ImageEvaluation, running_k_limits
from hybridgl.config import GuidanceConfig
from hybridgl.guidance import choose
from hybridgl.language import Relation
from hybridgl.masks import Proposals
from hybridgl.metrics import PixelCounts


def proposals_of(masks_NHW):
    count = len(masks_NHW)
    return Proposals(
        masks_NHW,
        np.ones((count, 4), dtype=np.int64),
        np.ones(count, dtype=np.float32),
        np.ones(count, dtype=np.float32),
    )


def rows(*filled):
    """Masks of 4 x 4 pixels whose first so many rows are filled."""
    masks = np.zeros((len(filled), 4, 4), dtype=bool)
    for mask, count in zip(masks, filled, strict=True):
        mask[:count] = True
    return masks


def test_cap_in_reference_is_the_smallest_count_so_far():
    assert running_k_limits([9, 5, 7, 2, 8], shrinks=True) == [9, 5, 5, 2, 2]


def test_cap_in_corrected_is_the_images_own_count():
    assert running_k_limits([9, 5, 7, 2, 8], shrinks=False) == [9, 5, 7, 2, 8]


def test_images_without_proposals_do_not_lower_the_cap():
    assert running_k_limits([9, 0, 7], shrinks=True) == [9, 9, 7]
    assert running_k_limits([0, 7, 9], shrinks=True)[1:] == [7, 7]


def test_caps_of_no_refs_are_none():
    assert running_k_limits([], shrinks=True) == running_k_limits([], shrinks=False) == []


def test_cap_in_reference_depends_on_the_dataset_order_alone():
    """Whatever part of the refs is asked for, the k_limits come from all counts."""
    counts = [4, 6, 2, 9]
    whole = running_k_limits(counts, shrinks=True)
    assert [running_k_limits(counts[: i + 1], shrinks=True)[-1] for i in range(4)] == whole
    assert running_k_limits(counts[::-1], shrinks=True) != whole[::-1]


def test_earlier_image_with_few_proposals_changes_a_pick_in_reference_only():
    own, coherence = np.array([2.0, 1.0, 0.0]), np.array([-1.0, 5.0, -1.0])
    picks = []
    for shrinks in (True, False):
        k_limit = running_k_limits([1, 3], shrinks=shrinks)[1]
        choice = choose(
            own, None, coherence, np.ones((3, 4)), Relation.NONE, GuidanceConfig(), k_limit=k_limit
        )
        picks.append(choice.pick)
    assert picks == [0, 1]


def outcome_of(masks_NHW, gt_masks_SHW, picks, sentence=0):
    return ImageEvaluation(proposals_of(masks_NHW), gt_masks_SHW).outcome(sentence, picks)


def test_picks_and_yardsticks_by_hand():
    outcome = outcome_of(rows(1, 2, 4), rows(2), {"pure": 2, "guided": 0})
    pure, guided = outcome.picks["pure"], outcome.picks["guided"]
    assert (pure.index, pure.area, pure.overlap) == (2, 16, PixelCounts(8, 16))
    assert (guided.index, guided.area, guided.overlap) == (0, 4, PixelCounts(4, 8))
    assert outcome.best == PixelCounts(8, 8)
    assert outcome.random_iou == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert outcome.target_area == 8


def test_overlap_at_480_pixels_is_that_of_the_enlarged_masks():
    outcome = outcome_of(rows(1, 2, 4), rows(2), {"pure": 2, "guided": 0})
    rows_480 = 480 // 4
    assert outcome.picks["pure"].overlap_480 == PixelCounts(2 * rows_480 * 480, 4 * rows_480 * 480)
    assert outcome.picks["guided"].overlap_480 == PixelCounts(rows_480 * 480, 2 * rows_480 * 480)


def test_each_sentence_meets_its_own_truth():
    evaluation = ImageEvaluation(proposals_of(rows(1, 2, 4)), rows(1, 2))
    first, second = evaluation.outcome(0, {"pure": 0}), evaluation.outcome(1, {"pure": 2})
    assert first.picks["pure"].overlap == PixelCounts(4, 4)
    assert second.picks["pure"].overlap == PixelCounts(8, 16)
    assert (first.best, second.best) == (PixelCounts(4, 4), PixelCounts(8, 8))
    assert (first.target_area, second.target_area) == (4, 8)
    assert first.random_iou == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert second.random_iou == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    # What is remembered of a pick is remembered for its sentence.
    assert evaluation.outcome(1, {"pure": 0}).picks["pure"].overlap == PixelCounts(4, 8)
    assert evaluation.outcome(0, {"pure": 2}).picks["pure"].overlap == PixelCounts(4, 16)


def test_no_proposal_counts_as_an_empty_mask():
    evaluation = ImageEvaluation(Proposals.empty((4, 4)), rows(2))
    outcome = evaluation.outcome(0, {"pure": None, "guided": None})
    for pick in outcome.picks.values():
        assert (pick.index, pick.area, pick.overlap) == (None, 0, PixelCounts(0, 8))
        assert pick.overlap_480 == PixelCounts(0, 480 * 480 // 2)
    assert outcome.best == PixelCounts(0, 8)
    assert outcome.random_iou == 0
    assert outcome.target_area == 8


def test_empty_truth_scores_zero_and_divides_by_nothing():
    outcome = outcome_of(rows(0, 2), rows(0), {"pure": 0})
    assert outcome.picks["pure"].overlap == PixelCounts(0, 0)
    assert outcome.random_iou == 0


def test_permuted_proposals_give_the_same_counts():
    masks = rows(1, 2, 3, 4)
    order = [3, 1, 0, 2]
    plain = outcome_of(masks, rows(3), {"pure": 1, "guided": 3})
    permuted = outcome_of(masks[order], rows(3), {"pure": 1, "guided": 0})
    for name, pick in plain.picks.items():
        assert permuted.picks[name].overlap == pick.overlap
        assert permuted.picks[name].overlap_480 == pick.overlap_480
    assert permuted.best == plain.best
    assert permuted.random_iou == pytest.approx(plain.random_iou)


def test_counts_are_plain_numbers():
    outcome = outcome_of(rows(1, 2), rows(2), {"pure": 0})
    pick = outcome.picks["pure"]
    numbers = [
        pick.area,
        *astuple(pick.overlap),
        *astuple(pick.overlap_480),
        *astuple(outcome.best),
    ]
    assert {type(number) for number in numbers} == {int}
    assert type(outcome.random_iou) is float
    assert type(outcome.target_area) is int
