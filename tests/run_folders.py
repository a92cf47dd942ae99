"""What a run has left in ``folder/run``."""

from __future__ import annotations

import json

from evaluation.records import read_records


def content_of(folder):
    return (folder / "run" / "records.jsonl").read_bytes()


def records_of(folder):
    return read_records(folder / "run" / "records.jsonl")


def summary_of(folder):
    return json.loads((folder / "run" / "summary.json").read_text())


def made_in(folder):
    """How many entries of each kind the run had to make."""
    return summary_of(folder)["store"]["made"]
