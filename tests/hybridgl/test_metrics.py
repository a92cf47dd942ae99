"""Metrics against counts of Python integers."""

from __future__ import annotations

import numpy as np
import pytest

from hybridgl.metrics import (
    PROTOCOLS,
    EvaluationProtocol,
    bootstrap_intervals,
    intersection_and_union,
    scores,
)


def slow_counts(prediction, gt_mask):
    inside, either = 0, 0
    for a, b in zip(prediction.ravel().tolist(), gt_mask.ravel().tolist(), strict=True):
        inside += int(a and b)
        either += int(a or b)
    return inside, either


def random_masks(count, seed=0, hw=(5, 7)):
    rng = np.random.default_rng(seed)
    return rng.random((count, *hw)) < rng.random((count, 1, 1))


def test_counts_of_every_prediction_with_every_ground_truth():
    predictions, gt_masks = random_masks(6), random_masks(4, seed=1)
    intersections, unions = intersection_and_union(predictions, gt_masks)
    assert intersections.dtype == unions.dtype == np.int64
    assert intersections.shape == unions.shape == (6, 4)
    for n, s in np.ndindex(6, 4):
        expected = slow_counts(predictions[n], gt_masks[s])
        assert (intersections[n, s], unions[n, s]) == expected


def test_counts_by_hand():
    prediction = np.zeros((1, 4, 4), dtype=bool)
    gt_mask = np.zeros((1, 4, 4), dtype=bool)
    prediction[0, :2], gt_mask[0, :, :2] = True, True
    intersections, unions = intersection_and_union(prediction, gt_mask)
    assert (intersections.item(), unions.item()) == (4, 12)


def test_counts_are_exact_where_a_float32_is_not():
    side = 4100
    prediction = np.ones((1, side, side), dtype=bool)
    gt_mask = np.ones((1, side, side), dtype=bool)
    gt_mask[0, 0, 0] = False
    intersections, unions = intersection_and_union(prediction, gt_mask)
    assert (intersections.item(), unions.item()) == (side**2 - 1, side**2)


@pytest.mark.parametrize(("count", "gt_masks"), [(0, 3), (3, 0), (0, 0)])
def test_no_masks_give_no_counts(count, gt_masks):
    for counts in intersection_and_union(random_masks(count), random_masks(gt_masks)):
        assert counts.shape == (count, gt_masks)


def test_masks_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"of one size, got \(5, 7\) and \(7, 5\)"):
        intersection_and_union(random_masks(1), random_masks(1, hw=(7, 5)))


def test_intersection_and_union_do_not_depend_on_the_order():
    a, b = random_masks(3), random_masks(2, seed=1)
    for one, other in zip(intersection_and_union(a, b), intersection_and_union(b, a), strict=True):
        assert np.array_equal(one, other.T)


# Ratios 0.5, 0, 0.75, 1, and one of two empty masks.
INTERSECTIONS = np.array([1, 0, 3, 5, 0])
UNIONS = np.array([2, 10, 4, 5, 0])


def slow_scores(intersections, unions, protocol):
    """All scores with Python's numbers, one sample at a time."""
    ratios = [
        i / u if u else protocol.empty_union for i, u in zip(intersections, unions, strict=True)
    ]
    overall = sum(intersections) / sum(unions) if sum(unions) else protocol.empty_union
    result = {
        protocol.overall_name: 100 * overall,
        protocol.mean_name: 100 * sum(ratios) / len(ratios),
    }
    for x in protocol.precisions:
        hits = [ratio >= x if protocol.at_least else ratio > x for ratio in ratios]
        result[f"P@{x:g}"] = 100 * sum(hits) / len(hits)
    return result


@pytest.mark.parametrize("name", PROTOCOLS)
def test_scores_equal_a_slow_loop(name):
    protocol = PROTOCOLS[name]
    rng = np.random.default_rng(0)
    unions = rng.integers(0, 4, size=60)
    intersections = rng.integers(0, unions + 1)
    expected = slow_scores(intersections.tolist(), unions.tolist(), protocol)
    assert scores(intersections, unions, protocol) == pytest.approx(expected, abs=1e-12)
    assert list(scores(intersections, unions, protocol)) == list(expected)


def test_zero_shot_protocol_by_hand():
    assert scores(INTERSECTIONS, UNIONS, PROTOCOLS["zero-shot"]) == pytest.approx(
        {
            "oIoU": 100 * 9 / 21,
            "mIoU": 100 * (0.5 + 0 + 0.75 + 1 + 0) / 5,
            "P@0.5": 40,
            "P@0.6": 40,
            "P@0.7": 40,
            "P@0.8": 20,
            "P@0.9": 20,
        }
    )


def test_protocols_differ_where_they_are_said_to():
    by_name = {
        name: scores(INTERSECTIONS, UNIONS, protocol) for name, protocol in PROTOCOLS.items()
    }
    assert by_name["lisa"] == pytest.approx({"cIoU": 100 * 9 / 21, "gIoU": 65})
    assert by_name["phrasecut"] == by_name["zero-shot"]
    # A ratio of exactly 0.5 counts at LAVT's.
    assert by_name["lavt"]["P@0.5"] == pytest.approx(60)
    assert by_name["lavt"]["mIoU"] == by_name["zero-shot"]["mIoU"]
    assert [name for name, protocol in PROTOCOLS.items() if protocol.at_480] == ["lavt"]


def test_scores_do_not_depend_on_the_order_of_samples():
    for protocol in PROTOCOLS.values():
        backwards = scores(INTERSECTIONS[::-1], UNIONS[::-1], protocol)
        assert backwards == pytest.approx(scores(INTERSECTIONS, UNIONS, protocol), abs=1e-12)


@pytest.mark.parametrize(("name", "expected"), [("zero-shot", 0), ("lisa", 100)])
def test_nothing_to_find_and_nothing_found(name, expected):
    result = scores(np.array([0, 0]), np.array([0, 0]), PROTOCOLS[name])
    assert list(result.values())[:2] == [expected, expected]


def test_large_counts_stay_exact():
    intersections, unions = np.full(3, 2**40 + 1), np.full(3, 2**41)
    result = scores(intersections, unions, PROTOCOLS["zero-shot"])
    assert result["oIoU"] == 100 * ((2**40 + 1) / 2**41)


def slow_bootstrap(images, intersections, unions, protocol, draws):
    """Scores of every drawn set of images, sample by sample."""
    by_image = {}
    for image, i, u in zip(images, intersections, unions, strict=True):
        by_image.setdefault(image, []).append((i, u))
    groups = list(by_image.values())
    results = []
    for counts in draws:
        drawn = [pair for group, n in zip(groups, counts, strict=True) for pair in group * n]
        results.append(slow_scores(*zip(*drawn, strict=True), protocol))
    return results


def test_interval_is_that_of_drawn_images():
    protocol = PROTOCOLS["zero-shot"]
    rng = np.random.default_rng(1)
    images = rng.integers(0, 6, size=40).tolist()
    unions = rng.integers(1, 9, size=40)
    intersections = rng.integers(0, unions + 1)
    intervals = bootstrap_intervals(images, intersections, unions, protocol, resamples=130, seed=5)
    count = len(set(images))
    draws = np.random.default_rng(5).multinomial(count, [1 / count] * count, size=130).tolist()
    results = slow_bootstrap(images, intersections.tolist(), unions.tolist(), protocol, draws)
    for name in ("oIoU", "mIoU", "P@0.5"):
        values = [result[name] for result in results]
        expected = np.percentile(values, [2.5, 97.5]).tolist()
        assert intervals[name] == pytest.approx(expected, abs=1e-9)


def test_interval_holds_the_score_and_narrows_with_more_images():
    rng = np.random.default_rng(2)
    widths = []
    for count in (30, 3000):
        unions = np.full(count, 10)
        intersections = rng.integers(0, 11, size=count)
        protocol = PROTOCOLS["zero-shot"]
        low, high = bootstrap_intervals(range(count), intersections, unions, protocol)["mIoU"]
        assert low < scores(intersections, unions, protocol)["mIoU"] < high
        widths.append(high - low)
    # The width goes with one over the root of the number of images: a tenth here.
    assert 0.06 < widths[1] / widths[0] < 0.16


def test_interval_of_one_image_is_its_score():
    protocol = EvaluationProtocol(name="one", precisions=(0.5,))
    intervals = bootstrap_intervals([7, 7], np.array([1, 3]), np.array([2, 4]), protocol)
    assert intervals["mIoU"] == (62.5, 62.5)
    assert intervals["P@0.5"] == (50, 50)


def test_interval_is_the_same_each_time():
    intersections, unions = np.arange(50), np.full(50, 60)
    arguments = (range(50), intersections, unions, PROTOCOLS["lisa"])
    assert bootstrap_intervals(*arguments) == bootstrap_intervals(*arguments)
    assert bootstrap_intervals(*arguments, seed=1) != bootstrap_intervals(*arguments)
