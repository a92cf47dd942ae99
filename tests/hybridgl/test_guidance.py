"""Guidance against double loops over masks and pixels, and by cases done by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from hybridgl.config import GuidanceConfig
from hybridgl.guidance import (
    choose,
    coherence_scores,
    outside_weight,
    position_prior,
    relation_scores,
    similarity_scores,
    weighted_attention,
)
from hybridgl.language import Position, Relation

CONFIG = GuidanceConfig()
UNEQUAL = np.array([[0, 0, 4, 4], [4, 4, 2, 2], [1, 6, 3, 1]], dtype=np.float64)
"""Centres (2, 2), (5, 5), (2.5, 6.5); areas 16, 4, 3."""


def softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def best(scores, count):
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]


def relation_holds(relation, box, other):
    x, y, w, h = box
    x_, y_, w_, h_ = other
    if relation == "within":
        width = max(min(x + w, x_ + w_) - max(x, x_), 0)
        height = max(min(y + h, y_ + h_) - max(y, y_), 0)
        return width * height / (w * h) if w * h else 0
    return {
        "none": True,
        "left": x + w / 2 < x_ + w_ / 2,
        "right": x + w / 2 > x_ + w_ / 2,
        "up": y + h / 2 < y_ + h_ / 2,
        "down": y + h / 2 > y_ + h_ / 2,
        "big": w * h > w_ * h_,
        "small": w * h < w_ * h_,
    }[relation]


def slow_choice(similarity, other, coherence, boxes, relation, k_limit=None):
    """The section on guidance, word by word: candidates, relation scores, final scores."""
    k_limit = min(len(similarity), len(similarity) if k_limit is None else k_limit)
    p = softmax(similarity)
    candidates = best(similarity, min(3, k_limit))
    if other is None:
        context, q = candidates, p
    else:
        context, q = best(other, min(6, k_limit)), softmax(other)
    scores = []
    for i in candidates:
        score = 0.0
        for j in context:
            weight = p[i] if relation == "none" else p[i] * q[j]
            score += weight * relation_holds(relation, boxes[i], boxes[j])
        scores.append(score)
    final = [0.4 * r + 0.6 * coherence[i] for r, i in zip(softmax(scores), candidates, strict=True)]
    return candidates, scores, final


def random_case(seed):
    """Scores as CLIP gives them, boxes on a coarse grid so that centres and areas tie."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    similarity = rng.normal(0, 2, count)
    other = rng.normal(0, 2, count) if rng.random() < 0.6 else None
    coherence = rng.normal(-1, 0.3, count)
    corner, size = rng.integers(0, 5, (count, 2)), rng.integers(0, 5, (count, 2))
    return similarity, other, coherence, np.hstack([corner, size]).astype(np.float64)


@pytest.mark.parametrize("relation", list(Relation))
def test_choice_equals_the_formulas(relation):
    for seed in range(40):
        similarity, other, coherence, boxes = random_case(seed)
        k_limit = None if seed % 3 else 1 + seed % 5
        choice = choose(similarity, other, coherence, boxes, relation, CONFIG, k_limit=k_limit)
        candidates, scores, final = slow_choice(
            similarity, other, coherence, boxes, relation.value, k_limit
        )
        assert choice.candidates_K.tolist() == candidates
        np.testing.assert_allclose(choice.relation_K, scores, atol=1e-12)
        np.testing.assert_allclose(choice.final_K, final, atol=1e-12)
        assert choice.features == int(np.argmax(similarity))
        assert choice.guided == candidates[int(np.argmax(final))]
        assert choice.relations == candidates[int(np.argmax(scores))]
        assert np.array_equal(choice.coherence_N, coherence)


@pytest.mark.parametrize("relation", list(Relation))
def test_permuted_proposals_give_the_same_prediction(relation):
    for seed in range(20):
        similarity, other, coherence, boxes = random_case(seed)
        order = np.random.default_rng(seed).permutation(len(similarity))
        plain = choose(similarity, other, coherence, boxes, relation, CONFIG)
        permuted = choose(
            similarity[order],
            None if other is None else other[order],
            coherence[order],
            boxes[order],
            relation,
            CONFIG,
        )
        assert order[permuted.candidates_K].tolist() == plain.candidates_K.tolist()
        assert order[permuted.features] == plain.features
        np.testing.assert_allclose(permuted.final_K, plain.final_K, atol=1e-12)


MIRRORED = {
    Relation.LEFT: Relation.RIGHT,
    Relation.RIGHT: Relation.LEFT,
    Relation.UP: Relation.DOWN,
    Relation.DOWN: Relation.UP,
}


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("axis", [0, 1], ids=["left and right", "up and down"])
def test_mirrored_boxes_swap_the_directions(relation, axis):
    horizontal = relation in (Relation.LEFT, Relation.RIGHT)
    swaps = relation in MIRRORED and horizontal == (axis == 0)
    for seed in range(20):
        similarity, other, coherence, boxes = random_case(seed)
        mirrored = boxes.copy()
        mirrored[:, axis] = 20 - boxes[:, axis] - boxes[:, 2 + axis]
        plain = choose(similarity, other, coherence, boxes, relation, CONFIG)
        swapped = MIRRORED[relation] if swaps else relation
        again = choose(similarity, other, coherence, mirrored, swapped, CONFIG)
        np.testing.assert_allclose(again.relation_K, plain.relation_K, atol=1e-12)
        assert again.guided == plain.guided


@pytest.mark.parametrize(
    ("relation", "expected"),
    [
        (Relation.NONE, [1.5, 0.9, 0.6]),
        (Relation.LEFT, [0.5 * (0.5 + 0.25), 0, 0.2 * 0.5]),
        (Relation.RIGHT, [0, 0.3 * (0.25 + 0.25), 0.2 * 0.25]),
        (Relation.UP, [0.5 * 0.75, 0.3 * 0.25, 0]),
        (Relation.DOWN, [0, 0.3 * 0.25, 0.2 * 0.75]),
        (Relation.BIG, [0.5 * 0.75, 0.3 * 0.25, 0]),
        (Relation.SMALL, [0, 0.3 * 0.25, 0.2 * 0.75]),
        (Relation.WITHIN, [0.5 * 0.25, 0.3 * 0.5, 0.2 * 0.25]),
    ],
)
def test_relation_scores_by_hand(relation, expected):
    everyone = np.arange(3)
    similarity, context = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.5, 0.25])
    scores = relation_scores(UNEQUAL, similarity, context, everyone, everyone, relation)
    np.testing.assert_allclose(scores, expected)


def test_boxes_are_corner_width_height():
    """A tall box left of a flat one, whose corner is further left."""
    boxes = np.array([[3, 0, 1, 9], [0, 4, 9, 1]], dtype=np.float64)
    both = np.arange(2)
    ones = np.ones(2)
    assert relation_scores(boxes, ones, ones, both, both, Relation.LEFT).tolist() == [1, 0]
    assert relation_scores(boxes, ones, ones, both, both, Relation.UP).tolist() == [0, 0]
    assert relation_scores(boxes, ones, ones, both, both, Relation.BIG).tolist() == [0, 0]
    within = relation_scores(boxes, ones, ones, both, both, Relation.WITHIN)
    np.testing.assert_allclose(within, [1 + 1 / 9, 1 + 1 / 9])


def test_context_masks_are_indices_of_proposals_apart_from_candidates():
    scores = relation_scores(
        UNEQUAL, np.array([0.5]), np.array([0.25]), np.array([2]), np.array([1]), Relation.LEFT
    )
    assert scores.tolist() == [0.125]


def test_share_within_a_box_is_of_the_candidates_area():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 4, 4]], dtype=np.float64)
    first, second = np.array([0]), np.array([1])
    one = np.ones(1)
    assert relation_scores(boxes, one, one, first, second, Relation.WITHIN).tolist() == [1 / 4]
    assert relation_scores(boxes, one, one, second, first, Relation.WITHIN).tolist() == [1 / 16]


def test_touching_boxes_do_not_overlap():
    boxes = np.array([[0, 0, 2, 2], [2, 0, 2, 2], [9, 9, 1, 1]], dtype=np.float64)
    one = np.ones(1)
    for other in (1, 2):
        scores = relation_scores(boxes, one, one, np.array([0]), np.array([other]), Relation.WITHIN)
        assert scores.tolist() == [0]


@pytest.mark.parametrize("relation", list(Relation))
def test_boxes_one_pixel_wide_give_finite_scores(relation):
    """Such a box has w = 0 and no area."""
    boxes = np.array([[3, 0, 0, 5], [0, 3, 5, 0], [2, 2, 4, 4]], dtype=np.float64)
    similarity = np.array([2.0, 1.0, 0.0])
    choice = choose(similarity, None, np.zeros(3), boxes, relation, CONFIG)
    assert np.isfinite(choice.relation_K).all()
    _, expected, _ = slow_choice(similarity, None, np.zeros(3), boxes, relation.value)
    np.testing.assert_allclose(choice.relation_K, expected)


def test_no_proposal_cannot_be_chosen_from():
    nothing = np.zeros(0)
    with pytest.raises(ValueError, match="at least one proposal, got none; predict"):
        choose(nothing, None, nothing, np.zeros((0, 4)), Relation.NONE, CONFIG)


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("relation", list(Relation))
def test_only_proposal_is_predicted(relation, others):
    one = np.array([-3.0])
    choice = choose(
        one, one if others else None, np.array([-9.0]), np.ones((1, 4)), relation, CONFIG
    )
    assert (choice.features, choice.guided, choice.relations) == (0, 0, 0)


def test_more_candidates_than_proposals_are_all_of_them():
    config = dataclasses.replace(CONFIG, num_candidates=10, num_context_masks=20)
    similarity = np.array([1.0, 3.0, 2.0])
    choice = choose(similarity, similarity, np.zeros(3), UNEQUAL, Relation.NONE, config)
    assert choice.candidates_K.tolist() == [1, 2, 0]
    np.testing.assert_allclose(choice.relation_K, 3 * np.array(softmax(similarity))[[1, 2, 0]])


def test_three_candidates_and_six_context_masks_at_most():
    similarity = np.arange(9.0)
    boxes = np.ones((9, 4))
    with_others = choose(similarity, similarity, np.zeros(9), boxes, Relation.NONE, CONFIG)
    assert with_others.candidates_K.tolist() == [8, 7, 6]
    p = np.array(softmax(similarity))
    np.testing.assert_allclose(with_others.relation_K, 6 * p[[8, 7, 6]])
    alone = choose(similarity, None, np.zeros(9), boxes, Relation.NONE, CONFIG)
    np.testing.assert_allclose(alone.relation_K, 3 * p[[8, 7, 6]])


def test_limit_from_earlier_images_lowers_both_counts():
    similarity = np.arange(9.0)
    boxes = np.ones((9, 4))
    p = np.array(softmax(similarity))
    four = choose(similarity, similarity, np.zeros(9), boxes, Relation.NONE, CONFIG, k_limit=4)
    assert four.candidates_K.tolist() == [8, 7, 6]
    np.testing.assert_allclose(four.relation_K, 4 * p[[8, 7, 6]])
    one = choose(similarity, similarity, np.zeros(9), boxes, Relation.NONE, CONFIG, k_limit=1)
    assert one.candidates_K.tolist() == [8]
    assert one.guided == one.features == 8


def test_relation_overrules_similarity_and_coherence_the_relation():
    similarity, other = np.array([1.0, 0.9]), np.array([0.0, 0.0])
    boxes = np.array([[5, 0, 1, 1], [0, 0, 1, 1]], dtype=np.float64)
    without = choose(similarity, other, np.zeros(2), boxes, Relation.LEFT, CONFIG)
    assert (without.features, without.guided, without.relations) == (0, 1, 1)
    attention = choose(similarity, other, np.array([0.5, 0.0]), boxes, Relation.LEFT, CONFIG)
    assert (attention.features, attention.guided, attention.relations) == (0, 0, 1)


def test_terms_that_are_left_out_do_not_count():
    boxes = np.array([[9, 0, 2, 2], [0, 0, 2, 2], [4, 0, 2, 2]], dtype=np.float64)
    similarity, other = np.array([2.0, 1.9, 1.8]), np.array([3.0, 0.0, 0.0])
    coherence = np.array([0.0, 0.1, 0.9])

    def chosen(*without):
        config = dataclasses.replace(CONFIG, without=without)
        return choose(similarity, other, coherence, boxes, Relation.LEFT, config)

    assert chosen("coherence").guided == chosen().relations == 1
    assert chosen("relationship").guided == 2
    nothing = chosen("relationship", "coherence")
    assert nothing.guided == nothing.features == 0
    assert np.allclose(
        chosen("coherence").final_K + chosen("relationship").final_K, chosen().final_K
    )


def test_relations_are_the_prediction_of_alpha_0_even_among_vanishing_scores():
    similarity, other = np.array([60.0, 0.5, 0.0]), np.array([0.0, 60.0, 0.0])
    boxes = np.array([[9, 0, 2, 2], [0, 0, 2, 2], [1, 0, 2, 2]], dtype=np.float64)
    for relation in Relation:
        choice = choose(similarity, other, np.zeros(3), boxes, relation, CONFIG)
        at_0 = dataclasses.replace(CONFIG, alpha=0.0)
        assert (
            choice.relations == choose(similarity, other, np.zeros(3), boxes, relation, at_0).guided
        )


def test_alpha_is_the_share_of_coherence():
    similarity, coherence = np.array([1.0, 0.5]), np.array([-1.0, 0.25])
    boxes = np.ones((2, 4))
    relation = softmax([2 * p for p in softmax(similarity)])
    for alpha in (0.0, 0.6, 1.0):
        config = dataclasses.replace(CONFIG, alpha=alpha)
        choice = choose(similarity, None, coherence, boxes, Relation.NONE, config)
        expected = [(1 - alpha) * r + alpha * c for r, c in zip(relation, coherence, strict=True)]
        np.testing.assert_allclose(choice.final_K, expected)


@pytest.mark.parametrize("count", [8, 100])
def test_first_of_equal_proposals_is_predicted(count):
    similarity = np.array([0.0, 2.0] * (count // 2))
    boxes = np.ones((count, 4))
    choice = choose(similarity, similarity, np.zeros(count), boxes, Relation.NONE, CONFIG)
    assert choice.candidates_K.tolist() == [1, 3, 5]
    assert (choice.features, choice.guided, choice.relations) == (1, 1, 1)


def test_large_scores_do_not_overflow():
    similarity = np.array([1e4, -1e4, 0.0])
    choice = choose(similarity, -similarity, np.zeros(3), UNEQUAL, Relation.LEFT, CONFIG)
    assert np.isfinite(choice.final_K).all()


def test_scores_are_scaled_cosines():
    generator = torch.Generator().manual_seed(0)
    features, texts = (torch.randn(n, 5, generator=generator) for n in (4, 2))
    scores = similarity_scores(features, texts, 100.0)
    assert scores.shape == (2, 4)
    for s, n in np.ndindex(2, 4):
        cosine = float(features[n] @ texts[s]) / float(features[n].norm() * texts[s].norm())
        assert scores[s, n] == pytest.approx(100 * cosine, abs=1e-4)
    torch.testing.assert_close(similarity_scores(9 * features, texts / 7, 100.0), scores)


def slow_prior(position, height, width):
    """Weight of every pixel, from the definition of equally spaced numbers."""

    def spaced(first, last, count):
        return [first + (last - first) * i / max(count - 1, 1) for i in range(count)]

    along_x = {
        "left": spaced(1, 0, width),
        "right": spaced(0, 1, width),
        "middle": spaced(0, 1, width // 2) + spaced(1, 0, width - width // 2),
    }
    along_y = {"up": spaced(1, 0, height), "down": spaced(0, 1, height)}
    if position in along_x:
        return [along_x[position]] * height
    return [[weight] * width for weight in along_y.get(position, [1] * height)]


@pytest.mark.parametrize("hw", [(4, 4), (3, 7), (7, 3), (2, 2), (5, 1), (1, 5), (1, 1)])
@pytest.mark.parametrize("position", list(Position))
def test_priors_equal_their_definition(position, hw):
    prior = position_prior(position, hw, vertical_priors_disabled=False).expand(hw)
    np.testing.assert_allclose(prior, slow_prior(position.value, *hw), atol=1e-6)


@pytest.mark.parametrize(
    ("position", "row"),
    [
        (Position.LEFT, [1, 0.75, 0.5, 0.25, 0]),
        (Position.RIGHT, [0, 0.25, 0.5, 0.75, 1]),
        (Position.MIDDLE, [0, 1, 1, 0.5, 0]),
        (Position.NONE, [1, 1, 1, 1, 1]),
    ],
)
def test_priors_by_hand(position, row):
    prior = position_prior(position, (2, 5), vertical_priors_disabled=True).expand(2, 5)
    assert prior.tolist() == [row, row]


@pytest.mark.parametrize(
    ("position", "column"), [(Position.UP, [1, 0.5, 0]), (Position.DOWN, [0, 0.5, 1])]
)
def test_vertical_priors_act_in_corrected_and_not_in_reference(position, column):
    corrected = position_prior(position, (3, 2), vertical_priors_disabled=False).expand(3, 2)
    assert corrected.tolist() == [[weight, weight] for weight in column]
    assert (position_prior(position, (3, 2), vertical_priors_disabled=True).expand(3, 2) == 1).all()


@pytest.mark.parametrize("position", [Position.LEFT, Position.RIGHT, Position.MIDDLE])
def test_horizontal_priors_do_not_heed_q6(position):
    assert torch.equal(
        position_prior(position, (3, 6), vertical_priors_disabled=True),
        position_prior(position, (3, 6), vertical_priors_disabled=False),
    )


@pytest.mark.parametrize(
    ("one", "other", "axis"),
    [(Position.LEFT, Position.RIGHT, 1), (Position.UP, Position.DOWN, 0)],
)
def test_opposite_priors_mirror_each_other(one, other, axis):
    prior = position_prior(one, (6, 9), vertical_priors_disabled=False)
    torch.testing.assert_close(
        prior.flip(axis), position_prior(other, (6, 9), vertical_priors_disabled=False)
    )


NO_PRIOR = torch.ones(1, 1)


def test_weighted_attention_by_hand():
    attention = torch.tensor([[[2.0, 4.0], [6.0, 10.0]]])
    weighted = weighted_attention(attention, [torch.tensor([[1.0, 0.5]])])
    # Scaled: 0, 1/4, 1/2, 1. Under the prior: 0, 1/8, 1/2, 1/2, whose mean is 9/32.
    expected = torch.tensor([[[0.0, 4 / 9], [16 / 9, 16 / 9]]])
    torch.testing.assert_close(weighted, expected)


def test_weighted_attention_has_mean_one_for_each_sentence():
    attention = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    priors = [
        position_prior(p, (6, 8), vertical_priors_disabled=False)
        for p in (Position.LEFT, Position.NONE, Position.UP)
    ]
    kept = attention.clone()
    weighted = weighted_attention(attention, priors)
    torch.testing.assert_close(weighted.mean(dim=(1, 2)), torch.ones(3))
    for row in range(3):
        alone = weighted_attention(attention[row : row + 1], priors[row : row + 1])
        torch.testing.assert_close(weighted[row : row + 1], alone)
    assert torch.equal(attention, kept)


@pytest.mark.parametrize("value", [0.0, 0.3, 7.0])
def test_constant_attention_favours_no_mask(value):
    prior = position_prior(Position.LEFT, (4, 4), vertical_priors_disabled=True)
    weighted = weighted_attention(torch.full((1, 4, 4), value), [prior])
    assert (weighted == 0).all()
    masks = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    coherence = coherence_scores(weighted, masks, [1.8])[0].double().numpy()
    assert (coherence == 0).all()
    choice = choose(np.array([1.0, 5.0, 3.0]), None, coherence, UNEQUAL, Relation.NONE, CONFIG)
    assert choice.guided == choice.features == 1


def test_prior_that_blots_out_the_attention_favours_no_mask():
    attention = torch.rand(1, 5, 1, generator=torch.Generator().manual_seed(0))
    prior = position_prior(Position.RIGHT, (5, 1), vertical_priors_disabled=True)
    assert (prior == 0).all()
    assert (weighted_attention(attention, [prior]) == 0).all()


@pytest.mark.parametrize(
    ("relation", "weight"),
    [(Relation.BIG, 1.95), (Relation.SMALL, 1.5)]
    + [(r, 1.8) for r in Relation if r not in (Relation.BIG, Relation.SMALL)],
)
def test_weight_outside_depends_on_the_relation(relation, weight):
    assert outside_weight(relation, CONFIG) == weight


def random_masks(count, height=6, width=9):
    masks = torch.rand(count, height, width, generator=torch.Generator().manual_seed(1)) < 0.4
    masks[0] = False
    if count > 1:
        masks[1] = True
    return masks


def slow_coherence(attention, mask, b):
    inside = attention[mask].mean() if mask.any() else 0
    outside = attention[~mask].mean() if (~mask).any() else 0
    return (2 - b) * inside - b * outside


@pytest.mark.parametrize("count", [1, 2, 5, 64, 65, 150])
def test_coherence_equals_the_formula_for_any_number_of_masks(count):
    attention = torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(2))
    weights = [1.8, 1.95, 1.5]
    masks = random_masks(count)
    scores = coherence_scores(attention, masks, weights)
    assert scores.shape == (3, count)
    for s, n in np.ndindex(3, count):
        expected = slow_coherence(attention[s].double(), masks[n], weights[s])
        assert float(scores[s, n]) == pytest.approx(float(expected), abs=1e-5)


def test_coherence_by_hand():
    attention = torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor(
        [[[1, 0], [0, 0]], [[0, 1], [1, 1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]
    ).bool()
    scores = coherence_scores(attention, masks, [1.8])
    expected = [0.2 * 4, -1.8 * 4, 0.2 * 1, -1.8 * 1]
    torch.testing.assert_close(scores, torch.tensor([expected]))


def test_mask_of_the_whole_image_wins_by_quirk_10_alone():
    """A loop over pixels finds nothing outside of it: 0 / 0."""
    attention = torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]]]).bool()
    best = {}
    for quirk in (True, False):
        scores = coherence_scores(attention, masks, [1.8], undefined_scores_win=quirk)[0]
        assert scores[0] == pytest.approx(0.2 * 4)
        assert scores[1].isnan() if quirk else scores[1] == pytest.approx(0.2)
        coherence = scores.double().numpy()
        choice = choose(
            np.array([3.0, 1.0]),
            None,
            coherence,
            UNEQUAL[:2],
            Relation.NONE,
            CONFIG,
            undefined_scores_win=quirk,
        )
        best[quirk] = choice.guided
        assert (choice.features, choice.relations) == (0, 0)
    assert best == {True: 1, False: 0}
    # Among two that cover the image the more similar one is taken, and none that is no candidate.
    nan = np.array([0.0, np.nan, np.nan, 0.0])
    similarity = np.array([1.0, 2.0, 3.0, 4.0])
    boxes = np.tile(UNEQUAL[:1], (4, 1))
    config = dataclasses.replace(CONFIG, num_candidates=3)
    assert choose(similarity, None, nan, boxes, Relation.NONE, config).guided == 2
    config = dataclasses.replace(CONFIG, num_candidates=1)
    assert choose(similarity, None, nan, boxes, Relation.NONE, config).guided == 3


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_scores_that_are_none_leave_the_best_features(value):
    """Of a map without contrast, and of a box without area within another one."""
    quirk = {"undefined_scores_win": True}
    prior = position_prior(Position.LEFT, (4, 4), vertical_priors_disabled=True)
    weighted = weighted_attention(torch.full((1, 4, 4), value), [prior], **quirk)
    masks = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    coherence = coherence_scores(weighted, masks, [1.8], **quirk)[0].double().numpy()
    assert np.isnan(coherence).all()
    similarity = np.array([1.0, 5.0, 3.0])
    # By relation alone, the smallest would be another one.
    choice = choose(similarity, None, coherence, UNEQUAL, Relation.SMALL, CONFIG, **quirk)
    assert choice.guided == choice.features == 1

    boxes = np.array([[0, 0, 9, 9], [2, 2, 4, 0], [1, 1, 5, 5]], dtype=np.float64)
    favours_0 = np.array([9.0, 0.0, 0.0])
    choice = choose(similarity, None, favours_0, boxes, Relation.WITHIN, CONFIG, **quirk)
    assert choice.guided == choice.features == 1
    corrected = choose(similarity, None, favours_0, boxes, Relation.WITHIN, CONFIG)
    assert corrected.guided == 0
    assert np.isfinite(corrected.final_K).all()


def test_coherence_of_no_masks_is_empty():
    scores = coherence_scores(torch.rand(2, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool), [1, 1])
    assert scores.shape == (2, 0)


def test_permuted_masks_give_permuted_coherence():
    attention = torch.rand(1, 6, 9, generator=torch.Generator().manual_seed(2))
    masks = random_masks(5)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(
        coherence_scores(attention, masks[order], [1.8]),
        coherence_scores(attention, masks, [1.8])[:, order],
    )


def test_mirrored_image_with_left_for_right_gives_the_same_coherence():
    attention = torch.rand(1, 6, 9, generator=torch.Generator().manual_seed(2))
    masks = random_masks(5)

    def scores(attention, masks, position):
        prior = position_prior(position, (6, 9), vertical_priors_disabled=True)
        return coherence_scores(weighted_attention(attention, [prior]), masks, [1.8])

    torch.testing.assert_close(
        scores(attention.flip(-1), masks.flip(-1), Position.RIGHT),
        scores(attention, masks, Position.LEFT),
    )
    different = scores(attention, masks, Position.RIGHT) - scores(attention, masks, Position.LEFT)
    assert different.abs().max() > 0.1


def test_coherence_prefers_the_mask_that_the_attention_fills():
    attention = torch.zeros(1, 4, 4)
    attention[0, :2, :2] = 1
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, :2] = masks[2, 2:] = True
    scores = coherence_scores(weighted_attention(attention, [NO_PRIOR]), masks, [1.8])[0]
    assert scores[0] > scores[1] > scores[2]
