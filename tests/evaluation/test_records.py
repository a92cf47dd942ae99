from __future__ import annotations

import dataclasses
import errno
import json
import os

import numpy as np
import pytest

from evaluation.records import Pick, Record, read_records, write_records, write_summary

# Truth 100 px. Three proposals: 80 px of which 60 match, 40 px of which 40, 50 px of which none.
VALUES = {
    "dataset": "refcoco+",
    "split": "testA",
    "ref_id": 3,
    "sent_id": 11,
    "image_id": 581857,
    "image_missing": False,
    "sentence": "Red cat  left",
    "kind": None,
    "noun_phrase": "Red cat",
    "num_other_nouns": 0,
    "position": "left",
    "relation": None,
    "truncated": False,
    "num_proposals": 3,
    "target_area": 100,
    "best_intersection": 60,
    "best_union": 120,
    "best_iou": 0.5,
    "random_iou": (0.5 + 0.4 + 0.0) / 3,
    "picks": {
        "pure": {
            "index": 1,
            "area": 40,
            "intersection": 40,
            "union": 100,
            "intersection_480": 900,
            "union_480": 2000,
        },
        "guided": {
            "index": 0,
            "area": 80,
            "intersection": 60,
            "union": 120,
            "intersection_480": 1200,
            "union_480": 2400,
        },
    },
}
NO_PICK = {
    "index": None,
    "area": 0,
    "intersection": 0,
    "union": 100,
    "intersection_480": 0,
    "union_480": 2000,
}
NO_PROPOSALS = {
    "num_proposals": 0,
    "picks": {"pure": NO_PICK, "guided": NO_PICK},
    "best_intersection": 0,
    "best_union": 100,
    "best_iou": 0.0,
    "random_iou": 0.0,
}
NOTHING_TO_FIND = {
    "target_area": 0,
    "picks": {
        "pure": {**VALUES["picks"]["pure"], "intersection": 0, "union": 40},
        "guided": {**VALUES["picks"]["guided"], "area": 0, "intersection": 0, "union": 0},
    },
    "best_intersection": 0,
    "best_union": 0,
}


def make_record(**changes):
    """A record; changes of a pick are given by its name, as ``pure={"area": 3}``."""
    values = {**VALUES, **changes}
    picks = {
        name: {**pick, **values.pop(name, {})} if isinstance(pick, dict) else pick
        for name, pick in values["picks"].items()
    }
    values["picks"] = {
        name: Pick(**pick) if isinstance(pick, dict) else pick for name, pick in picks.items()
    }
    return Record(**values)


def vars_of(record):
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


class TestRecord:
    def test_line_holds_the_fields_in_the_order_declared(self):
        line = make_record().to_json()
        assert json.loads(line) == VALUES
        assert list(json.loads(line)) == [field.name for field in dataclasses.fields(Record)]

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            NO_PROPOSALS,
            {**NOTHING_TO_FIND, "best_iou": 0.0, "random_iou": 0.0},
            {**NOTHING_TO_FIND, "best_iou": 1.0, "random_iou": 1 / 3},
            {**NO_PROPOSALS, "image_missing": True},
            {"ref_id": "2405722__0"},
            {"kind": "relation", "relation": "left of", "truncated": True, "position": None},
            {"random_iou": 0.1 + 0.2},
            {"best_iou": float(np.float32(1) / np.float32(2)), "random_iou": 0.5000001},
        ],
        ids=[
            "plain",
            "no proposals",
            "empty zero",
            "empty one",
            "missing image",
            "named ref",
            "texts",
            "digits",
            "float32",
        ],
    )
    def test_line_gives_the_record_back(self, changes):
        record = make_record(**changes)
        assert Record.from_json(record.to_json()) == record

    @pytest.mark.parametrize(
        "sentence", ["", "naïve 猫 🐈", "lone \ud83d", 'a "b"\\', "a\nb\r\u2028c\x85d\0"]
    )
    def test_any_sentence_is_one_ascii_line(self, sentence):
        line = make_record(sentence=sentence).to_json()
        assert line.isascii()
        assert len(line.splitlines()) == 1
        assert Record.from_json(line).sentence == sentence

    def test_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            make_record().sentence = 2

    @pytest.mark.parametrize(
        ("name", "value", "got"),
        [
            ("ref_id", None, "None of type NoneType"),
            ("image_id", 3.0, "3.0 of type float"),
            ("num_proposals", True, "True of type bool"),
            ("truncated", 0, "0 of type int"),
            ("best_iou", np.float64(0.5), "of type float64"),
            ("random_iou", 0, "0 of type int"),
            ("target_area", None, "None of type NoneType"),
            ("sentence", None, "None of type NoneType"),
            ("position", 1, "1 of type int"),
            ("picks", [], "of type list"),
        ],
    )
    def test_wrong_type_names_the_field_and_the_type(self, name, value, got):
        with pytest.raises(ValueError, match=rf"ref .*expected {name} of type .*{got}"):
            Record(**{**vars_of(make_record()), name: value})

    @pytest.mark.parametrize(
        ("name", "value", "got"),
        [
            ("intersection", np.int64(40), "of type int64"),
            ("index", 1.0, "1.0 of type float"),
            ("union_480", None, "None of type NoneType"),
        ],
    )
    def test_wrong_type_in_a_pick_names_the_pick(self, name, value, got):
        with pytest.raises(ValueError, match=rf"expected picks.pure.{name} of type .*{got}"):
            make_record(pure={name: value})

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"num_other_nouns": -1}, "num_other_nouns of at least 0; got -1"),
            ({**NO_PROPOSALS, "num_proposals": -1}, "num_proposals of at least 0"),
            ({"target_area": -1}, "target_area of at least 0"),
            ({"pure": {"index": None}}, "picks.pure.index to be None exactly where num_prop"),
            ({"guided": {"index": None}}, "picks.guided.index to be None exactly where num_p"),
            ({**NO_PROPOSALS, "pure": {"index": 0}}, "picks.pure.index to be None exactly"),
            ({"pure": {"index": 3}}, r"picks.pure.index in 0\.\.2; got 3"),
            ({"guided": {"index": -1}}, r"picks.guided.index in 0\.\.2; got -1"),
            ({"pure": {"area": -1}}, "picks.pure.area of at least 0"),
            (
                {**NO_PROPOSALS, "guided": {"area": 5, "union": 105}},
                "picks.guided.area of at least 0, and 0 without a pick; got 5",
            ),
            ({"pure": {"intersection": -1, "union": 141}}, r"picks.pure.intersection in 0\.\.40"),
            (
                {"pure": {"intersection": 41, "union": 99}},
                r"picks.pure.intersection in 0\.\.40.*got 41",
            ),
            (
                {"guided": {"area": 300, "intersection": 101, "union": 299}},
                r"picks.guided.intersection in 0\.\.100",
            ),
            ({"pure": {"union": 39}}, r"picks.pure.union = 40 \+ 100 - 40.*got 39"),
            ({"guided": {"union": 121}}, r"picks.guided.union = 80 \+ 100 - 60.*got 121"),
            ({"guided": {"intersection": 61, "union": 119}}, "no IoU above the best, 60/120"),
            ({"pure": {"intersection_480": -1}}, "0 <= picks.pure.intersection_480"),
            ({"pure": {"intersection_480": 2001}}, "intersection_480 <= union_480"),
            ({"pure": {"union_480": 230401}}, r"union_480 <= 480 \* 480"),
            ({"image_missing": True}, "no proposals of a missing image; got 3"),
            ({"picks": {}}, "at least one pick; got none"),
            ({"picks": {"pure": 3}}, "a Pick as picks.pure; got 3"),
            (
                {"best_intersection": 45, "best_union": 115, "best_iou": 45 / 115},
                "no IoU above the best, 45/115; got 40/100 for the pure pick",
            ),
            ({"best_intersection": 101}, "best_intersection <= target_area"),
            ({"best_intersection": 50, "best_union": 99}, "target_area <= best_union"),
            ({"best_iou": 0.51}, r"best_iou = 60/120; got 0\.51"),
            ({"best_iou": 1.5}, r"best_iou in 0\.\.1"),
            ({"best_iou": float("nan")}, r"best_iou in 0\.\.1; got nan"),
            ({"random_iou": -0.1}, r"random_iou in 0\.\.best_iou"),
            ({"random_iou": 0.6}, r"random_iou in 0\.\.best_iou \(0\.5\); got 0\.6"),
            ({"random_iou": float("nan")}, r"random_iou in 0\.\.best_iou .*got nan"),
            ({**NO_PROPOSALS, "best_intersection": 1}, "without proposals"),
            ({**NO_PROPOSALS, "best_union": 101}, "without proposals"),
            ({**NO_PROPOSALS, "random_iou": 0.1}, "without proposals"),
        ],
    )
    def test_counts_that_contradict_each_other_are_refused(self, changes, expected):
        with pytest.raises(ValueError, match=rf"ref 3, sentence 11: expected .*{expected}"):
            make_record(**changes)

    @pytest.mark.parametrize("name", VALUES)
    def test_missing_field_is_named(self, name):
        row = {key: value for key, value in VALUES.items() if key != name}
        with pytest.raises(ValueError, match=rf"missing: {name}; unknown: none"):
            Record.from_json(json.dumps(row))

    @pytest.mark.parametrize(
        ("pick", "message"),
        [
            ({"index": 1}, "fields of the pick pure; missing: area, intersection"),
            ({**VALUES["picks"]["pure"], "iou": 1}, "missing: none; unknown: iou"),
            ([], "fields of the pick pure; missing: area"),
        ],
    )
    def test_wrong_fields_of_a_pick_are_named(self, pick, message):
        row = {**VALUES, "picks": {"pure": pick}}
        with pytest.raises(ValueError, match=message):
            Record.from_json(json.dumps(row))

    def test_unknown_field_is_named(self):
        with pytest.raises(ValueError, match=r"missing: none; unknown: iou, score"):
            Record.from_json(json.dumps({**VALUES, "score": 1, "iou": 2}))

    @pytest.mark.parametrize("line", ["", "[]", "3", "{", "null", "{'a': 1}"])
    def test_line_that_is_no_object_is_quoted(self, line):
        with pytest.raises(ValueError, match="Expected one JSON object, got") as caught:
            Record.from_json(line)
        assert repr(line) in str(caught.value)


class TestRecordsFile:
    def test_keeps_the_order_of_the_rows(self, tmp_path):
        path = tmp_path / "run" / "records.jsonl"
        records = [make_record(ref_id=ref_id) for ref_id in (5, 1, 9, 1)]
        write_records(path, iter(records))
        assert read_records(path) == records
        assert path.read_text().count("\n") == 4

    def test_may_be_empty(self, tmp_path):
        write_records(tmp_path / "records.jsonl", [])
        assert read_records(tmp_path / "records.jsonl") == []

    def test_same_rows_give_the_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            write_records(tmp_path / name, [make_record(), make_record(**NO_PROPOSALS)])
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=str(tmp_path / "records.jsonl")):
            read_records(tmp_path / "records.jsonl")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"", "Expected one JSON object, got"),
            (make_record().to_json()[:-30].encode(), "Expected one JSON object, got"),
            (b"\xff\xfe{}", "can't decode byte"),
            (json.dumps({**VALUES, "target_area": 1}).encode(), "picks.pure.intersection"),
            (json.dumps({**VALUES, "sentence": 5}).encode(), "sentence of type str"),
        ],
        ids=["blank", "cut", "not utf-8", "counts", "type"],
    )
    def test_damaged_line_is_named(self, tmp_path, line, message):
        path = tmp_path / "records.jsonl"
        good = make_record().to_json().encode()
        path.write_bytes(b"\n".join([good, good, line, good, b""]))
        with pytest.raises(ValueError, match=rf"{path}, line 3: .*{message}"):
            read_records(path)

    def test_cut_file_never_gives_a_changed_row(self, tmp_path):
        path = tmp_path / "records.jsonl"
        records = [make_record(), make_record(ref_id=4)]
        write_records(path, records)
        whole = path.read_bytes()
        first = len(whole) // 2
        for length in range(first + 1, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="line 2"):
                read_records(path)

    def test_row_that_fails_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "records.jsonl"
        write_records(path, [make_record()])

        def rows():
            yield make_record(ref_id=8)
            raise RuntimeError

        with pytest.raises(RuntimeError):
            write_records(path, rows())
        assert read_records(path) == [make_record()]

    def test_full_disk_leaves_the_old_file_and_says_what_to_do(self, tmp_path, monkeypatch):
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


class TestSummary:
    def test_is_indented_json_in_the_order_given(self, tmp_path):
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
    def test_refuses_what_json_cannot_hold_and_writes_nothing(self, tmp_path, value, message):
        with pytest.raises(ValueError, match=message):
            write_summary(tmp_path / "run" / "summary.json", {"scores": {"miou": value}})
        assert list(tmp_path.iterdir()) == []
