"""Which expressions and targets a method is good at: groups that records fall into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evaluation.records import Record

__all__ = ["BREAKDOWNS", "Breakdown"]

_SMALL, _LARGE = 32**2, 96**2


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A way to group records.

    Attributes:
        title: what the groups are of.
        group_of: name of a record's group.
        order: of the groups whose order is not that of their names.
    """

    title: str
    group_of: Callable[[Record], str]
    order: tuple[str, ...] = ()


def _other_nouns(record: Record) -> str:
    return str(record.num_other_nouns) if record.num_other_nouns < 3 else "3 or more"


def _length(record: Record) -> str:
    words = len(record.sentence.split())
    bounds = ((2, "1-2"), (5, "3-5"), (10, "6-10"))
    return next((name for most, name in bounds if words <= most), "11 or more")


def _target_size(record: Record) -> str:
    if record.target_area < _SMALL:
        return "small"
    return "medium" if record.target_area < _LARGE else "large"


BREAKDOWNS: Mapping[str, Breakdown] = {
    "kind": Breakdown("kind", lambda record: record.kind or "none"),
    "position": Breakdown("position word", lambda record: record.position or "none", ("none",)),
    "relation": Breakdown("relation word", lambda record: record.relation or "none", ("none",)),
    "other_nouns": Breakdown("other nouns", _other_nouns),
    "length": Breakdown("words", _length, ("1-2", "3-5", "6-10", "11 or more")),
    "target_size": Breakdown("target size", _target_size, ("small", "medium", "large")),
}
"""By name. Sizes are COCO's: small below 32 x 32 pixels, large from 96 x 96."""
