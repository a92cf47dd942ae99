"""Tables of scores: rows of records grouped by a property, one column per score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Table", "breakdown"]

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Table:
    """Text cells under a header.

    Attributes:
        header: names of the columns.
        rows: cells, as many in each row as there are columns.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """A Markdown table with aligned columns; the first column is text, the others numbers."""
        widths = [
            max(len(row[column]) for row in (self.header, *self.rows))
            for column in range(len(self.header))
        ]

        def line(cells: Sequence[str]) -> str:
            first = cells[0].ljust(widths[0])
            others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
            return f"| {' | '.join([first, *others])} |"

        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join([line(self.header), line(rule), *map(line, self.rows)])


def breakdown(
    records: Sequence[Row],
    group_of: Callable[[Row], str],
    scores: Mapping[str, Callable[[Sequence[Row]], float]],
    *,
    title: str,
) -> Table:
    """Scores of every group of records, and of all of them in the last row.

    Args:
        records: at least one.
        group_of: name of a record's group; groups are listed in the order of their names.
        scores: a column of numbers, shown at two decimals, for each name.
        title: name of the first column.
    """
    groups: dict[str, list[Row]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    rows = [(name, groups[name]) for name in sorted(groups)]
    if len(rows) > 1:
        rows.append(("all", list(records)))
    return Table(
        header=(title, "n", *scores),
        rows=tuple(
            (name, str(len(members)), *(f"{score(members):.2f}" for score in scores.values()))
            for name, members in rows
        ),
    )
