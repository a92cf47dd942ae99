"""Tables of scores: rows of records grouped by a property, one column per score."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Table", "breakdown", "latex_escaped"]

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Table:
    """Text cells under a header.

    Attributes:
        header: names of the columns.
        rows: cells, as many in each row as there are columns.
        text_columns: how many columns, from the first on, are text; the others are numbers.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1

    def markdown(self) -> str:
        """A Markdown table with aligned columns: text to the left, numbers to the right."""
        header, *rows = (
            [cell.replace("|", r"\|").replace("\n", " ") for cell in cells]
            for cells in (self.header, *self.rows)
        )
        # The rule of a column of numbers takes two characters at least.
        widths = [
            max(
                1 if column < self.text_columns else 2,
                *(len(row[column]) for row in (header, *rows)),
            )
            for column in range(len(header))
        ]

        def line(cells: Sequence[str]) -> str:
            padded = [
                cell.ljust(width) if column < self.text_columns else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return f"| {' | '.join(padded)} |"

        rule = [
            "-" * width if column < self.text_columns else "-" * (width - 1) + ":"
            for column, width in enumerate(widths)
        ]
        return "\n".join([line(header), line(rule), *map(line, rows)])

    def by_row(self) -> dict[str, dict[str, float]]:
        """Numbers by the names of row and column."""
        return {
            row[0]: {name: float(cell) for name, cell in zip(self.header[1:], row[1:], strict=True)}
            for row in self.rows
        }

    def csv(self) -> str:
        """Comma-separated values, quoted where they must be."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()

    def latex(self) -> str:
        """A LaTeX tabular with rules of the package booktabs."""
        columns = "l" * self.text_columns + "r" * (len(self.header) - self.text_columns)
        header, *rows = (
            " & ".join(map(latex_escaped, cells)) + r" \\" for cells in (self.header, *self.rows)
        )
        return "\n".join(
            [
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                header,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )


_LATEX_SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\n": " ",
    }
)


def latex_escaped(text: str) -> str:
    r"""Text as LaTeX prints it.

    >>> latex_escaped("95 % of R&D_1")
    '95 \\% of R\\&D\\_1'
    """
    # At the start of a line of a tabular, both would belong to the command that ends the one above.
    guard = "{}" if text.startswith(("[", "*")) else ""
    return guard + text.translate(_LATEX_SPECIAL)


def breakdown(
    records: Sequence[Row],
    group_of: Callable[[Row], str],
    scores_of: Callable[[Sequence[Row]], Mapping[str, float]],
    *,
    title: str,
    order: Sequence[str] = (),
) -> Table:
    """Scores of every group of records, where there are several, and of all in the last row.

    Args:
        records: at least one.
        group_of: name of a record's group.
        scores_of: numbers of a group, shown at two decimals in a column for each name; called once
            a group.
        title: name of the first column.
        order: groups that are listed first, in this order; the others follow by name.
    """
    groups: dict[str, list[Row]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    names = [name for name in order if name in groups]
    names += sorted(groups.keys() - set(order))
    rows = [(name, groups[name]) for name in names] if len(names) > 1 else []
    rows.append(("all", list(records)))
    scored = [(name, str(len(members)), scores_of(members)) for name, members in rows]
    return Table(
        header=(title, "n", *scored[-1][2]),
        rows=tuple(
            (name, count, *(f"{score:.2f}" for score in scores.values()))
            for name, count, scores in scored
        ),
    )
