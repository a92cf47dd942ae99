"""Records of two runs, compared field by field."""

from __future__ import annotations

import pytest

from evaluation.records import write_records
from scripts.compare_records import differences
from tests.evaluation.factories import record_of


@pytest.fixture
def written(tmp_path):
    """Write records to a file of a name."""

    def write(name, *records):
        write_records(tmp_path / name, records)
        return tmp_path / name

    return write


def test_equal_records_have_no_differences(written):
    records = [
        record_of(1, {"features": (40, 120)}),
        record_of(2, {"features": (0, 0)}, num_proposals=0),
    ]
    assert differences(written("a", *records), written("b", *records)) == []


def test_difference_names_sample_and_field(written):
    before = written("a", record_of(1, {"features": (40, 120)}))
    (line,) = differences(before, written("b", record_of(1, {"features": (30, 120)})))
    assert "sentence 1: predictions" in line


def test_records_without_proposals_compare(written):
    none = dict.fromkeys(("oracle_area", "oracle_intersection", "chance_iou"))
    record = record_of(1, {"features": (40, 120)}, num_proposals=None, **none)
    assert differences(written("a", record), written("b", record)) == []


def test_line_that_is_no_record_is_named(written):
    path = written("a", record_of(1, {"features": (40, 120)}))
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=f"Expected a record in {path}, line 1"):
        differences(path, path)
