"""Compare the records of two runs, sample by sample.

Run it before and after a change to the method: a change that is meant to alter nothing leaves every
record as it was. Records of schema 1 (released up to 0.1) and of schema 2 are both read; what one
holds and the other derives is derived, so that the two compare.

Exit status: 0 where all records are equal, 1 where some differ, 2 where a file cannot be read.

Example:
    python -m scripts.compare_records runs/before/records.jsonl runs/after/records.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["comparable", "differences", "main"]

_MOST_SHOWN = 10

_VARIANTS = {"pure": "features", "no_gem": "relations"}
"""Names of schema 2, by those of schema 1."""

_SAME = (
    "dataset",
    "split",
    "image_id",
    "sentence",
    "kind",
    "noun_phrase",
    "num_other_nouns",
    "position",
    "relation",
    "truncated",
    "num_proposals",
)


def comparable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a record of either schema to one form.

    Args:
        row: the JSON object of a record.

    Raises:
        LookupError: it is no record.
    """
    schema_2 = row.get("schema") == 2
    gt_area = row["gt_area"] if schema_2 else row["target_area"]
    form = {name: row[name] for name in _SAME}
    form["gt_area"] = gt_area
    form["image_error"] = row["image_error"] if schema_2 else row["image_missing"]
    form["chance_iou"] = row["chance_iou"] if schema_2 else row["random_iou"]
    if schema_2:
        inside = row["oracle_intersection"]
        area = row["oracle_area"]
        form["oracle"] = None if inside is None else [inside, area + gt_area - inside]
        form["predictions"] = {
            name: {
                "proposal": one["proposal"],
                "area": one["area"],
                "counts": [one["intersection"], one["area"] + gt_area - one["intersection"]],
                "counts_480": [
                    one["intersection_480"],
                    one["area_480"] + row["gt_area_480"] - one["intersection_480"],
                ],
            }
            for name, one in sorted(row["predictions"].items())
        }
    else:
        form["oracle"] = [row["best_intersection"], row["best_union"]]
        form["predictions"] = {
            name: {
                "proposal": one["index"],
                "area": one["area"],
                "counts": [one["intersection"], one["union"]],
                "counts_480": [one["intersection_480"], one["union_480"]],
            }
            for name, one in sorted((_VARIANTS.get(n, n), one) for n, one in row["picks"].items())
        }
    return form


def differences(before: Path, after: Path) -> list[str]:
    """Name every sample and field that differs between two files of records.

    Args:
        before: ``records.jsonl`` of one run.
        after: that of the other.

    Raises:
        OSError: a file cannot be read.
        ValueError: a line is no record; the message names file and line.
    """
    old, new = _read(before), _read(after)
    lines = [f"{name}: only in {before}" for name in old if name not in new]
    lines += [f"{name}: only in {after}" for name in new if name not in old]
    for name, record in old.items():
        other = new.get(name, record)
        lines += [
            f"{name}: {field} {record[field]!r} became {other[field]!r}"
            for field in record
            if record[field] != other[field]
        ]
    if not lines and list(old) != list(new):
        lines.append("the same records in another order")
    return lines


def _read(path: Path) -> dict[str, dict[str, Any]]:
    records = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name = f"ref {row['ref_id']}, sentence {row['sent_id']}"
            records[name] = comparable(row)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected a record in {path}, line {number}, got {line[:60]!r} "
                f"({type(error).__name__}: {error}); make the file again by repeating the run."
            ) from error
    return records


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="OLD", help="records.jsonl of a run")
    parser.add_argument("after", type=Path, metavar="NEW", help="that of another run")
    arguments = parser.parse_args(argv)
    try:
        lines = differences(arguments.before, arguments.after)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in lines[:_MOST_SHOWN]:
        print(line)
    if len(lines) > _MOST_SHOWN:
        print(f"... and {len(lines) - _MOST_SHOWN} more")
    print(f"{len(lines)} differences" if lines else "all records are equal")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
