"""The page of quirks names every switch of Pseudo-RIS, with where it acts and its test."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from pseudo_ris.config import PseudoQuirks

ROOT = Path(__file__).parents[2]


def test_every_quirk_stands_on_the_page_with_a_test_that_exists():
    page = (ROOT / "docs" / "quirks.md").read_text()
    rows = re.findall(r"^\| P\d+ \| `(\w+)` \| `(\S+):(\w+)` .* `(\S+):(\w+)` \|$", page, re.M)
    assert [name for name, *_ in rows] == [one.name for one in dataclasses.fields(PseudoQuirks)]
    for _, *places in rows:
        for file, function in (places[:2], places[2:]):
            assert f"def {function}(" in (ROOT / file).read_text()
