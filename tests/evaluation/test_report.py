"""Scores of records by protocol, and what is left out of them."""

from __future__ import annotations

import pytest

from evaluation.breakdowns import BREAKDOWNS
from evaluation.records import Pick, Record
from evaluation.report import (
    breakdown_table,
    intervals_by_pick,
    points_lost,
    score_by_pick,
    scored_records,
)
from hybridgl.metrics import PROTOCOLS


def record_of(sent_id, intersection, union, *, num_proposals=2, **changes):
    """A record of two picks: one as told, one that is perfect."""
    target = 100
    area = union - target + intersection
    index = 0 if num_proposals else None
    told = Pick(
        index=index,
        area=area,
        intersection=intersection,
        union=union,
        intersection_480=2 * intersection,
        union_480=3 * union,
    )
    perfect = Pick(
        index=index,
        area=target if num_proposals else 0,
        intersection=target if num_proposals else 0,
        union=target,
        intersection_480=100 if num_proposals else 0,
        union_480=100,
    )
    values = {
        "dataset": "refcoco",
        "split": "val",
        "ref_id": sent_id,
        "sent_id": sent_id,
        "image_id": sent_id,
        "image_missing": False,
        "sentence": "the cat",
        "kind": None,
        "noun_phrase": "the cat",
        "num_other_nouns": 0,
        "position": "none",
        "relation": "none",
        "truncated": False,
        "num_proposals": num_proposals,
        "target_area": target,
        "best_intersection": target if num_proposals else 0,
        "best_union": target,
        "best_iou": 1.0 if num_proposals else 0.0,
        "random_iou": 0.25 if num_proposals else 0.0,
        "picks": {"pure": told, "guided": perfect},
    }
    return Record(**{**values, **changes})


HALF = record_of(1, 50, 100)
QUARTER = record_of(2, 30, 120)
EMPTY = record_of(3, 0, 100, num_proposals=0)


def test_samples_without_proposals_are_left_out_only_by_quirk_8():
    records = [HALF, EMPTY]
    assert scored_records(records, skips_without_proposals=True) == [HALF]
    assert scored_records(records, skips_without_proposals=False) == records
    protocol = PROTOCOLS["zero-shot"]
    kept = score_by_pick(scored_records(records, skips_without_proposals=True), protocol)
    both = score_by_pick(records, protocol)
    assert (kept["pure"]["mIoU"], both["pure"]["mIoU"]) == (50, 25)
    assert (kept["guided"]["oIoU"], both["guided"]["oIoU"]) == (100, 50)


def test_samples_without_an_image_are_never_left_out():
    gone = record_of(4, 0, 100, num_proposals=0, image_missing=True)
    assert scored_records([HALF, gone, EMPTY], skips_without_proposals=True) == [HALF, gone]


def test_samples_without_proposals_stay_where_there_is_nothing_else():
    assert scored_records([EMPTY], skips_without_proposals=True) == [EMPTY]


def test_scores_by_hand():
    scores = score_by_pick([HALF, QUARTER], PROTOCOLS["zero-shot"])
    assert scores["pure"]["mIoU"] == pytest.approx(37.5)
    assert scores["pure"]["oIoU"] == pytest.approx(100 * 80 / 220)
    assert scores["pure"]["P@0.5"] == 0
    assert scores["guided"]["mIoU"] == 100
    assert scores["best"] == {"mIoU": 100}
    assert scores["random"] == {"mIoU": 25}


def test_lavt_reads_the_counts_at_480_pixels():
    scores = score_by_pick([HALF, QUARTER], PROTOCOLS["lavt"])
    assert scores["pure"]["mIoU"] == pytest.approx(100 * (100 / 300 + 60 / 360) / 2)
    assert scores["pure"]["oIoU"] == pytest.approx(100 * 160 / 660)


def test_lisa_has_names_of_its_own():
    scores = score_by_pick([HALF, QUARTER], PROTOCOLS["lisa"])
    assert list(scores["pure"]) == ["cIoU", "gIoU"]
    assert scores["best"] == {"gIoU": 100}


def test_points_lost_by_proposals_and_by_choice_add_up_to_what_is_missing():
    scores = score_by_pick([HALF, QUARTER, EMPTY], PROTOCOLS["zero-shot"])
    lost = points_lost(scores, "pure", PROTOCOLS["zero-shot"])
    assert lost == pytest.approx({"proposals": 100 / 3, "choice": 200 / 3 - 25})
    assert sum(lost.values()) + scores["pure"]["mIoU"] == pytest.approx(100)
    for name in ("lavt", "lisa"):
        scores = score_by_pick([HALF], PROTOCOLS[name])
        assert points_lost(scores, "pure", PROTOCOLS[name]) == {}


def test_intervals_hold_the_scores_of_every_pick():
    records = [record_of(n, 10 * n, 100) for n in range(1, 9)]
    protocol = PROTOCOLS["zero-shot"]
    scores, intervals = score_by_pick(records, protocol), intervals_by_pick(records, protocol)
    assert list(intervals) == ["pure", "guided"]
    for pick, by_name in intervals.items():
        for name, (low, high) in by_name.items():
            assert low <= scores[pick][name] <= high
    assert intervals["guided"]["mIoU"] == [100, 100]


@pytest.mark.parametrize(
    ("name", "changes", "group"),
    [
        ("kind", {"kind": None}, "none"),
        ("kind", {"kind": "seen"}, "seen"),
        ("position", {"position": "left"}, "left"),
        ("relation", {"relation": "big"}, "big"),
        ("relation", {"relation": None}, "none"),
        ("other_nouns", {"num_other_nouns": 2}, "2"),
        ("other_nouns", {"num_other_nouns": 7}, "3 or more"),
        ("length", {"sentence": "cat"}, "1-2"),
        ("length", {"sentence": "the  red cat"}, "3-5"),
        ("length", {"sentence": "a b c d e f"}, "6-10"),
        ("length", {"sentence": "a " * 11}, "11 or more"),
        ("target_size", {}, "small"),
    ],
)
def test_records_fall_into_their_group(name, changes, group):
    assert BREAKDOWNS[name].group_of(record_of(1, 50, 100, **changes)) == group


@pytest.mark.parametrize(
    ("area", "group"),
    [(32 * 32 - 1, "small"), (32 * 32, "medium"), (96 * 96 - 1, "medium"), (96 * 96, "large")],
)
def test_sizes_are_cocos(area, group):
    nothing = Pick(index=0, area=0, intersection=0, union=area, intersection_480=0, union_480=1)
    record = record_of(
        1,
        50,
        100,
        target_area=area,
        best_intersection=0,
        best_union=area,
        best_iou=0.0,
        random_iou=0.0,
        picks={"pure": nothing},
    )
    assert BREAKDOWNS["target_size"].group_of(record) == group


def test_groups_are_listed_in_their_order_and_all_come_last():
    sentences = ["a " * 12, "cat", "the red cat", "a b c d e f g"]
    records = [record_of(n, 50, 100, sentence=text) for n, text in enumerate(sentences)]
    table = breakdown_table(records, PROTOCOLS["zero-shot"], BREAKDOWNS["length"])
    assert [row[0] for row in table.rows] == ["1-2", "3-5", "6-10", "11 or more", "all"]
    assert table.by_row()["all"] == {
        "n": 4,
        "mIoU pure": 50,
        "mIoU guided": 100,
        "mIoU random": 25,
        "mIoU best": 100,
        "P@0.5 pure": 0,
        "P@0.5 guided": 100,
    }
