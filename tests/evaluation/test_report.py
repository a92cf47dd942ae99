"""Scores of records by protocol, what is left out of them, and how they are shown."""

from __future__ import annotations

import json

import pytest

from evaluation.report import BREAKDOWNS, Report, ReportContext
from hybridgl.metrics import PROTOCOLS
from tests.evaluation.factories import counts_of, record_of

ZERO_SHOT, LAVT, LISA = (PROTOCOLS[name] for name in ("zero-shot", "lavt", "lisa"))


def sample(sent_id, intersection, union, **changes):
    """A record of two variants: one by its counts, one that is perfect."""
    predictions = {"features": (intersection, union), "guided": (100, 100)}
    return record_of(sent_id, predictions, **changes)


HALF = sample(1, 50, 100)
QUARTER = sample(2, 30, 120)
EMPTY = sample(3, 0, 100, num_proposals=0)
NETWORK = sample(
    5,
    50,
    100,
    num_proposals=None,
    oracle_area=None,
    oracle_intersection=None,
    chance_iou=None,
    num_other_nouns=None,
    predictions={"network": counts_of(50, 100, proposal=None)},
)
CONTEXT = ReportContext(
    dataset="refcoco",
    split_by="unc",
    split="val",
    method="hybridgl",
    setting="G2L, reference profile",
    counts={"sentences": 3, "without_proposals": 1},
    warnings=["1 of 3 images is missing."],
)


# Scores


def test_samples_without_proposals_are_left_out_only_by_quirk_8():
    records = [HALF, EMPTY]
    kept = Report.of(records, ZERO_SHOT, skips_without_proposals=True)
    both = Report.of(records, ZERO_SHOT)
    assert (kept.records, kept.left_out) == ([HALF], 1)
    assert (both.records, both.left_out) == (records, 0)
    assert (kept.scores["features"]["mIoU"], both.scores["features"]["mIoU"]) == (50, 25)
    assert (kept.scores["guided"]["oIoU"], both.scores["guided"]["oIoU"]) == (100, 50)


def test_samples_without_an_image_are_never_left_out():
    gone = sample(4, 0, 100, num_proposals=0, image_error=True)
    report = Report.of([HALF, gone, EMPTY], ZERO_SHOT, skips_without_proposals=True)
    assert (report.records, report.left_out) == ([HALF, gone], 1)


def test_samples_without_proposals_stay_where_there_is_nothing_else():
    report = Report.of([EMPTY], ZERO_SHOT, skips_without_proposals=True)
    assert (report.records, report.left_out) == ([EMPTY], 0)


def test_method_without_proposals_leaves_nothing_out_and_has_no_yardsticks():
    report = Report.of([NETWORK], ZERO_SHOT, skips_without_proposals=True)
    assert (report.records, report.left_out) == ([NETWORK], 0)
    assert (list(report.scores), report.lost) == (["network"], {})
    text = report.text(CONTEXT)
    assert "network: oIoU 50.00" in text
    assert "oracle" not in text
    assert "chance" not in text


def test_scores_by_hand():
    scores = Report.of([HALF, QUARTER], ZERO_SHOT).scores
    assert scores["features"]["mIoU"] == pytest.approx(37.5)
    assert scores["features"]["oIoU"] == pytest.approx(100 * 80 / 220)
    assert scores["features"]["P@0.5"] == 0
    assert scores["guided"]["mIoU"] == 100
    assert scores["oracle"] == {"mIoU": 100}
    assert scores["chance"] == {"mIoU": 25}


def test_lavt_reads_the_counts_at_480_pixels():
    scores = Report.of([HALF, QUARTER], LAVT).scores["features"]
    assert scores["mIoU"] == pytest.approx(100 * (100 / 300 + 60 / 360) / 2)
    assert scores["oIoU"] == pytest.approx(100 * 160 / 660)


def test_lisa_has_names_of_its_own():
    scores = Report.of([HALF, QUARTER], LISA).scores
    assert list(scores["features"]) == ["cIoU", "gIoU"]
    assert scores["oracle"] == {"gIoU": 100}


def test_points_lost_by_proposals_and_by_choice_add_up_to_what_is_missing():
    records = [
        record_of(n, {"features": (100, 100), "guided": pair}, num_proposals=2 * (n < 3))
        for n, pair in enumerate([(50, 100), (30, 120), (40, 110), (0, 100)])
    ]
    report = Report.of(records, ZERO_SHOT)
    assert list(report.lost) == ["proposals", "choice"]
    assert report.lost["proposals"] == pytest.approx(25)
    assert sum(report.lost.values()) + report.scores["guided"]["mIoU"] == pytest.approx(100)
    for protocol in (LAVT, LISA):
        assert Report.of(records, protocol).lost == {}


def test_intervals_hold_the_scores_of_every_variant():
    report = Report.of([sample(n, 10 * n, 100) for n in range(1, 9)], ZERO_SHOT)
    assert list(report.intervals) == ["features", "guided"]
    for variant, by_name in report.intervals.items():
        for name, (low, high) in by_name.items():
            assert low <= report.scores[variant][name] <= high
    assert report.intervals["guided"]["mIoU"] == [100, 100]


# Groups


@pytest.mark.parametrize(
    ("name", "changes", "group"),
    [
        ("kind", {"kind": None}, "none"),
        ("kind", {"kind": "seen"}, "seen"),
        ("position", {"position": "left"}, "left"),
        ("position", {"position": None}, "none"),
        ("relation", {"relation": "big"}, "big"),
        ("relation", {"relation": None}, "none"),
        ("other_nouns", {"num_other_nouns": 2}, "2"),
        ("other_nouns", {"num_other_nouns": 7}, "3 or more"),
        ("other_nouns", {"num_other_nouns": None}, "none"),
        ("length", {"sentence": "cat"}, "1-2"),
        ("length", {"sentence": "the  red cat"}, "3-5"),
        ("length", {"sentence": "a b c d e f"}, "6-10"),
        ("length", {"sentence": "a " * 11}, "11 or more"),
        ("target_size", {}, "small"),
    ],
)
def test_records_fall_into_their_group(name, changes, group):
    assert BREAKDOWNS[name].group_of(sample(1, 50, 100, **changes)) == group


@pytest.mark.parametrize(
    ("area", "group"),
    [(32 * 32 - 1, "small"), (32 * 32, "medium"), (96 * 96 - 1, "medium"), (96 * 96, "large")],
)
def test_sizes_are_cocos(area, group):
    record = sample(1, 50, 100, oracle_area=area, gt_area=area, oracle_intersection=area)
    assert BREAKDOWNS["target_size"].group_of(record) == group


SENTENCES = ["a " * 12, "cat", "the red cat", "a b c d e f g"]


def test_groups_are_listed_in_their_order_and_all_come_last():
    records = [sample(n, 50, 100, sentence=text) for n, text in enumerate(SENTENCES)]
    rows = Report.of(records, ZERO_SHOT).breakdown("length")
    assert list(rows) == ["1-2", "3-5", "6-10", "11 or more", "all"]
    assert rows["all"] == {
        "n": 4,
        "mIoU features": 50,
        "mIoU guided": 100,
        "mIoU chance": 25,
        "mIoU oracle": 100,
        "P@0.5 features": 0,
        "P@0.5 guided": 100,
    }


def test_groups_without_an_order_are_listed_by_name_after_those_with():
    positions = ["up", "none", "down"]
    records = [sample(n, 50, 100, position=position) for n, position in enumerate(positions)]
    assert list(Report.of(records, ZERO_SHOT).groups("position")) == ["none", "down", "up"]


def test_scores_of_a_group_are_those_of_its_records():
    records = [sample(1, 50, 100, kind="seen"), sample(2, 30, 120, kind="unseen"), HALF]
    report = Report.of(records, ZERO_SHOT)
    for kind, group in report.groups("kind").items():
        members = [record for record in records if (record.kind or "none") == kind]
        assert group.scores == Report.of(members, ZERO_SHOT).scores
        assert report.breakdown("kind")[kind]["n"] == len(members)


def test_one_group_is_that_of_all():
    report = Report.of([HALF, QUARTER], ZERO_SHOT)
    assert report.groups("kind") == {}
    assert list(report.breakdown("kind")) == ["all"]


def test_table_without_precisions_has_none():
    assert not any("P@" in name for name in Report.of([HALF], LISA).breakdown("kind")["all"])


# Forms


def test_json_holds_everything_and_can_be_written():
    report = Report.of([HALF, QUARTER, EMPTY], ZERO_SHOT, skips_without_proposals=True)
    content = json.loads(json.dumps(report.json(), allow_nan=False))
    assert list(content) == ["scores", "lost", "intervals", "breakdowns", "left_out"]
    assert content["scores"] == report.scores
    assert list(content["breakdowns"]) == list(BREAKDOWNS)
    assert content["left_out"] == 1


def test_text_says_scores_counts_warnings_setting_and_published_values():
    records = [HALF, QUARTER, EMPTY]
    lines = Report.of(records, ZERO_SHOT, skips_without_proposals=True).text(CONTEXT).splitlines()
    assert lines[0].split("|")[1].strip() == "kind"
    assert [line for line in lines if line.startswith("|")] == lines[:3]
    assert "oracle: mIoU 100.00; of 100, the proposals lost 0.00, the choice lost 0.00" in lines
    assert "3 samples, 1 without proposals, 1 of them left out (Q8); protocol zero-shot" in lines
    assert "note: 1 of 3 images is missing." in lines
    assert "this run: G2L, reference profile" in lines
    assert "published, HybridGL, CLIP ViT-B/16, SAM ViT-H: mIoU 49.48 [a]" in lines
    assert lines[-1].startswith("    [a] secondary source: survey")
    (guided,) = [line for line in lines if line.startswith("with guidance: ")]
    assert guided.startswith("with guidance: oIoU 100.00  mIoU 100.00  (95 %: oIoU 100.00 to 100")
    assert "    P@0.5 0.00  P@0.6 0.00  P@0.7 0.00  P@0.8 0.00  P@0.9 0.00" in lines


def test_text_says_nothing_of_samples_that_were_not_left_out():
    text = Report.of([HALF, EMPTY], ZERO_SHOT).text(CONTEXT)
    assert "left out" not in text


@pytest.mark.parametrize("method", ["hybridgl", "network"])
def test_text_says_nothing_of_what_nobody_published(method):
    shapes = {"dataset": "shapes", "split_by": "synthetic", "method": method}
    context = ReportContext(
        **shapes, split="val", setting="", counts={"sentences": 1, "without_proposals": 0}
    )
    assert "published" not in Report.of([HALF], ZERO_SHOT).text(context)


def test_page_has_every_table_and_says_in_a_list_what_the_text_says():
    report = Report.of([HALF, QUARTER], ZERO_SHOT)
    page, text = report.markdown(CONTEXT), report.text(CONTEXT)
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    titles = [table.split("|")[1].strip() for table in tables]
    assert titles == [breakdown.title for breakdown in BREAKDOWNS.values()]
    listed = page.split("\n\n")[-1].splitlines()
    assert all(line.lstrip().startswith("* ") for line in listed)
    said = text.split("\n\n")[-1].splitlines()
    assert [line.strip().removeprefix("* ") for line in listed] == [line.strip() for line in said]
