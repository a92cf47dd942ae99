"""Records and summaries: what they hold and refuse, and that files are whole or not there."""

from __future__ import annotations

import errno
import json
import os

import msgspec
import numpy as np
import pytest

from evaluation.records import (
    PredictionCounts,
    Record,
    read_records,
    read_summary,
    write_records,
    write_summary,
)
from hybridgl.errors import DataError

# Ground truth 100 px. Three proposals: 80 px of which 60 match, 40 of which 40, 50 of which none.
VALUES = {
    "schema": 2,
    "dataset": "refcoco+",
    "split": "testA",
    "ref_id": 3,
    "sent_id": 11,
    "image_id": 581857,
    "image_file": "581857.jpg",
    "image_error": False,
    "sentence": "Red cat  left",
    "kind": None,
    "noun_phrase": "Red cat",
    "num_other_nouns": 0,
    "position": "left",
    "relation": None,
    "truncated": False,
    "num_proposals": 3,
    "oracle_area": 80,
    "oracle_intersection": 60,
    "chance_iou": (0.5 + 0.4 + 0.0) / 3,
    "gt_area": 100,
    "gt_area_480": 2000,
    "predictions": {
        "features": {
            "proposal": 1,
            "area": 40,
            "intersection": 40,
            "area_480": 900,
            "intersection_480": 900,
            "box": [3, 5, 4, 9],
            "similarity": 24.1875,
            "score": 24.1875,
        },
        "guided": {
            "proposal": 0,
            "area": 80,
            "intersection": 60,
            "area_480": 1600,
            "intersection_480": 1200,
            "box": [0, 5, 8, 9],
            "similarity": 22.5,
            "score": None,
        },
    },
}
NOTHING = {
    **dict.fromkeys(("proposal", "box", "similarity", "score")),
    **dict.fromkeys(("area", "intersection", "area_480", "intersection_480"), 0),
}
NO_PROPOSALS = {
    "num_proposals": 0,
    "predictions": {"features": NOTHING, "guided": NOTHING},
    "oracle_area": 0,
    "oracle_intersection": 0,
    "chance_iou": 0.0,
}
MASK_OF_A_NETWORK = {
    "num_proposals": None,
    "oracle_area": None,
    "oracle_intersection": None,
    "chance_iou": None,
    "noun_phrase": None,
    "num_other_nouns": None,
    "predictions": {"network": {**VALUES["predictions"]["guided"], "proposal": None}},
}
NOTHING_TO_FIND = {
    "gt_area": 0,
    "oracle_intersection": 0,
    "chance_iou": 0.0,
    "features": {"intersection": 0},
    "guided": {"intersection": 0},
}


def row_of(**changes):
    """The JSON object of a record; a prediction's changes by its name, ``guided={"area": 3}``."""
    row = {**VALUES, **changes}
    row["predictions"] = {
        name: {**counts, **row.pop(name, {})} for name, counts in row["predictions"].items()
    }
    return row


def make_record(**changes):
    return msgspec.convert(row_of(**changes), Record)


def line_of(**changes):
    return json.dumps(row_of(**changes)).encode()


def test_derived_counts_by_hand():
    record = make_record()
    assert [record.union(name) for name in record.predictions] == [100, 120]
    assert [record.union_480(name) for name in record.predictions] == [2000, 2400]
    assert [record.iou(name) for name in record.predictions] == [0.4, 0.5]
    assert (record.oracle_union, record.oracle_iou) == (120, 0.5)


def test_derived_counts_without_proposals():
    record = make_record(**NO_PROPOSALS)
    assert (record.union("guided"), record.union_480("guided"), record.iou("guided")) == (
        100,
        2000,
        0.0,
    )
    assert (record.oracle_union, record.oracle_iou) == (100, 0.0)


def test_method_without_proposals_has_no_oracle():
    record = make_record(**MASK_OF_A_NETWORK)
    assert (record.oracle_union, record.oracle_iou) == (None, None)
    assert record.iou("network") == 0.5


def test_iou_of_two_empty_masks_is_0():
    record = make_record(**{**NOTHING_TO_FIND, "guided": {"area": 0, "intersection": 0}})
    assert (record.union("guided"), record.iou("guided")) == (0, 0.0)


@pytest.mark.parametrize("proposal", [np.int64(1), 1.5, "1"])
def test_number_that_json_does_not_have_is_never_written(tmp_path, proposal):
    counts = dict.fromkeys(("area", "intersection", "area_480", "intersection_480"), 0)
    record = make_record()
    record.predictions["features"] = PredictionCounts(proposal=proposal, **counts)
    path = tmp_path / "records.jsonl"
    try:
        write_records(path, [record])
    except TypeError:
        assert not path.exists()
    else:
        with pytest.raises(DataError, match=r"Expected `int \| null`, got"):
            read_records(path)


def test_cannot_be_changed():
    with pytest.raises(AttributeError, match="immutable"):
        make_record().sentence = "another"


FIELD_CASES = {
    "ref_id": ({"ref_id": None}, r"Expected `int \| str`, got `null` - at `\$.ref_id`"),
    "float": ({"image_id": 3.5}, r"Expected `int`, got `float` - at `\$.image_id`"),
    "bool": ({"num_proposals": True}, r"Expected `int \| null`, got `bool` - at `\$.num_prop"),
    "int": ({"truncated": 0}, r"Expected `bool`, got `int` - at `\$.truncated`"),
    "null": ({"gt_area": None}, r"Expected `int`, got `null` - at `\$.gt_area`"),
    "number": ({"position": 1}, r"Expected `str \| null`, got `int` - at `\$.position`"),
    "in prediction": ({"guided": {"area": None}}, r"got `null` - at `\$.predictions\[...\].area`"),
    "unknown": ({"iou": 2}, "unknown field `iou`"),
    "unknown in prediction": ({"guided": {"union": 1}}, "unknown field `union`"),
    "schema": ({"schema": 3}, r"Invalid enum value 3 - at `\$.schema`"),
}

CONTRADICTIONS = {
    "other nouns": ({"num_other_nouns": -1}, "a number below 0"),
    "proposals": ({**NO_PROPOSALS, "num_proposals": -1}, "a number below 0"),
    "gt": ({"gt_area": -1}, "a number below 0"),
    "gt 480": ({"gt_area_480": 230401}, r"gt_area_480 230401 outside 0..480 \* 480"),
    "no prediction": ({"predictions": {}}, "no prediction"),
    "none of 3": ({"features": {"proposal": None}}, "area 40 of no proposal of the pred"),
    "one of 0": ({**NO_PROPOSALS, "guided": {"proposal": 0}}, "proposal 0 outside 0..-1 of the"),
    "one of no": (
        {**MASK_OF_A_NETWORK, "network": {"proposal": 0}},
        "proposal 0 outside 0..-1 of the",
    ),
    "too high": ({"features": {"proposal": 3}}, "proposal 3 outside 0..2 of the prediction 'feat"),
    "below 0": ({"guided": {"proposal": -1}}, "proposal -1 outside 0..2 of the prediction 'guid"),
    "area": ({"features": {"area": -1}}, "intersection 40 outside 0..-1"),
    "area of nothing": (
        {**NO_PROPOSALS, "guided": {"area": 5}},
        "area 5 of no proposal of the pred",
    ),
    "area_480 of nothing": ({**NO_PROPOSALS, "guided": {"area_480": 5}}, "area_480 5 where noth"),
    "area without image": ({**MASK_OF_A_NETWORK, "image_error": True}, "area 80 where nothing"),
    "intersection below 0": ({"features": {"intersection": -1}}, "intersection -1 outside 0..40"),
    "above area": ({"features": {"intersection": 41}}, "intersection 41 outside 0..40"),
    "above gt": ({"guided": {"area": 300, "intersection": 101}}, "intersection 101 outside 0..100"),
    "480 below 0": ({"features": {"intersection_480": -1}}, "intersection_480 -1 outside 0..900"),
    "480 above area": ({"features": {"intersection_480": 901}}, "901 outside 0..900"),
    "480 above gt": (
        {"gt_area_480": 1000},
        "intersection_480 1200 outside 0..1000 of the prediction 'guided'",
    ),
    "480 area": ({"features": {"area_480": 230401}}, r"area_480 230401 above 480 \* 480"),
    "proposals without image": ({"image_error": True}, "where nothing can be predicted"),
    "above the oracle": (
        {"oracle_area": 60, "oracle_intersection": 45},
        "IoU 40/100 of the prediction 'features' above the oracle's 45/115",
    ),
    "above it by a pixel": (
        {"guided": {"intersection": 61}},
        "IoU 61/119 of the prediction 'guided' above the oracle's 60/120",
    ),
    "oracle above area": ({"oracle_intersection": 81}, "oracle_intersection 81 outside 0..80"),
    "oracle above gt": (
        {"oracle_area": 200, "oracle_intersection": 101},
        "oracle_intersection 101 outside 0..100",
    ),
    "oracle of nothing": ({**NO_PROPOSALS, "oracle_area": 1}, "oracle_area 1 and chance_iou 0.0 w"),
    "inside of nothing": ({**NO_PROPOSALS, "oracle_intersection": 1}, "1 outside 0..0"),
    "chance of nothing": ({**NO_PROPOSALS, "chance_iou": 0.1}, "chance_iou 0.1 without proposals"),
    "half an oracle": ({"oracle_area": None}, "only some of num_proposals, oracle_area"),
    "no oracle": ({**MASK_OF_A_NETWORK, "num_proposals": 1}, "area 80 of no proposal"),
    "chance below 0": ({"chance_iou": -0.1}, "chance_iou -0.1 outside 0..0.5"),
    "chance above": ({"chance_iou": 0.6}, "chance_iou 0.6 outside 0..0.5, the oracle's"),
    "chance NaN": ({"chance_iou": float("nan")}, "chance_iou nan outside"),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [*FIELD_CASES.values(), *CONTRADICTIONS.values()],
    ids=[*FIELD_CASES, *CONTRADICTIONS],
)
def test_wrong_line_is_named_with_its_field(tmp_path, changes, message):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join([line_of(), line_of(), line_of(**changes), line_of(), b""]))
    with pytest.raises(
        DataError, match=rf"Expected .* in {path}, line 3, got .*{message}.*repeat the run"
    ):
        read_records(path)


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS.values(), ids=list(CONTRADICTIONS))
def test_contradictions_are_refused_where_a_record_is_made(changes, message):
    row = row_of(**changes)
    row["predictions"] = {n: PredictionCounts(**one) for n, one in row["predictions"].items()}
    with pytest.raises(ValueError, match=rf"for ref 3, sentence 11, got .*{message}"):
        Record(**row)


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"schema"}))
def test_missing_field_is_named(tmp_path, name):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({key: value for key, value in VALUES.items() if key != name}))
    with pytest.raises(DataError, match=f"missing required field `{name}`"):
        read_records(path)


@pytest.mark.parametrize("line", [b"", b"[]", b"3", b"{", b"null", b"{'a': 1}", b"\xff\xfe{}"])
def test_line_that_is_no_object_is_quoted(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match="Expected a record of schema 2") as caught:
        read_records(path)
    assert f"got {line[:60]!r}"[:-1] in str(caught.value)


def test_schema_1_is_named_with_the_fix(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"dataset": "shapes", "target_area": 3, "picks": {}}\n')
    with pytest.raises(DataError, match=r"line 1, got one of schema 1, .*repeat the run"):
        read_records(path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        NO_PROPOSALS,
        NOTHING_TO_FIND,
        MASK_OF_A_NETWORK,
        {**NO_PROPOSALS, "image_error": True},
        {"ref_id": "2405722__0"},
        {"kind": "relation", "relation": "left of", "truncated": True, "position": None},
        {"chance_iou": 0.1 + 0.2},
        {"chance_iou": 0.5000001},
    ],
    ids=[
        "plain",
        "no proposals",
        "empty ground truth",
        "network",
        "image error",
        "named ref",
        "texts",
        "digits",
        "float32",
    ],
)
def test_file_gives_the_record_back(tmp_path, changes):
    record = make_record(**changes)
    write_records(tmp_path / "records.jsonl", [record])
    assert read_records(tmp_path / "records.jsonl") == [record]


def test_line_holds_the_fields_in_their_order(tmp_path):
    write_records(tmp_path / "records.jsonl", [make_record()])
    row = json.loads((tmp_path / "records.jsonl").read_text())
    assert row == VALUES
    assert list(row) == list(VALUES)


@pytest.mark.parametrize(
    "sentence", ["", "naïve 猫 🐈", "lone \ud83d", 'a "b"\\', "a\nb\r\u2028c\x85d\0"]
)
def test_any_sentence_is_one_ascii_line(tmp_path, sentence):
    path = tmp_path / "records.jsonl"
    write_records(path, [make_record(sentence=sentence)])
    text = path.read_text(encoding="ascii")
    assert len(text.splitlines()) == 1
    assert read_records(path)[0].sentence == sentence


def test_file_keeps_the_order_of_the_records(tmp_path):
    path = tmp_path / "run" / "records.jsonl"
    records = [make_record(ref_id=ref_id) for ref_id in (5, 1, 9, 1)]
    write_records(path, iter(records))
    assert read_records(path) == records
    assert path.read_text().count("\n") == 4


def test_variants_keep_their_order(tmp_path):
    predictions = dict(reversed(VALUES["predictions"].items()))
    write_records(tmp_path / "records.jsonl", [make_record(predictions=predictions)])
    (record,) = read_records(tmp_path / "records.jsonl")
    assert list(record.predictions) == ["guided", "features"]


def test_file_may_be_empty(tmp_path):
    write_records(tmp_path / "records.jsonl", [])
    assert read_records(tmp_path / "records.jsonl") == []


def test_same_records_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_records(tmp_path / name, [make_record(), make_record(**NO_PROPOSALS)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "records.jsonl")):
        read_records(tmp_path / "records.jsonl")


def test_cut_file_never_gives_a_changed_record(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [make_record(), make_record(ref_id=4)])
    whole = path.read_bytes()
    for length in range(len(whole) // 2 + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="line 2"):
            read_records(path)


def test_record_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [make_record()])

    def records():
        yield make_record(ref_id=8)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(path, records())
    assert read_records(path) == [make_record()]


def test_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    write_records(path, [make_record()])

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"Cannot write {path}.*No space left.*--output DIR"):
        write_records(path, [])
    assert read_records(path) == [make_record()]
    assert list(tmp_path.iterdir()) == [path]


def test_writing_sweeps_what_a_killed_run_left_in_the_folder(tmp_path):
    for name, write in (("records.jsonl", write_records), ("summary.json", write_summary)):
        left = tmp_path / ".01234567-1-01234567.partial"
        left.touch()
        os.utime(left, (0, 0))
        write(tmp_path / name, {})
        assert not left.exists()


def test_summary_is_indented_json_in_the_order_given(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, {"oiou": 12.5, "hw": (480, 640), "a": {"n": 3, "b": None}})
    assert path.read_text() == (
        '{\n  "oiou": 12.5,\n  "hw": [\n    480,\n    640\n  ],\n'
        '  "a": {\n    "n": 3,\n    "b": null\n  }\n}\n'
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"finite number at summary\.scores\.miou, got nan"),
        (float("-inf"), r"finite number at summary\.scores\.miou, got -inf"),
        (np.float32(1), r"at summary\.scores\.miou, got float32"),
    ],
)
def test_summary_refuses_what_json_cannot_hold_and_writes_nothing(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        write_summary(tmp_path / "run" / "summary.json", {"scores": {"miou": value}})
    assert list(tmp_path.iterdir()) == []


def test_summary_is_read_back(tmp_path):
    summary = {"settings": {"alpha": 0.6}, "scores": {"guided": {"mIoU": 50.0}}}
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path) == summary


@pytest.mark.parametrize("content", [None, "", "[]", "{", "{}", '{"settings": 3}', "\0"])
def test_what_is_no_summary_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert read_summary(tmp_path) is None
