"""Tables of text cells, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

__all__ = ["Table", "latex_escaped"]

_MARKDOWN_SPECIAL = str.maketrans({"|": r"\|", "\n": " "})
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
        """Return a Markdown table with aligned columns: text to the left, numbers to the right."""
        lines = [
            [cell.translate(_MARKDOWN_SPECIAL) for cell in cells]
            for cells in (self.header, *self.rows)
        ]
        columns = []
        for index, cells in enumerate(zip(*lines, strict=True)):
            number = index >= self.text_columns
            width = max(1 + number, *map(len, cells))
            rule = "-" * (width - 1) + (":" if number else "-")
            header, *rest = (cell.rjust(width) if number else cell.ljust(width) for cell in cells)
            columns.append([header, rule, *rest])
        return "\n".join(f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True))

    def csv(self) -> str:
        """Return comma-separated values, quoted where they must be."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()

    def latex(self) -> str:
        """Return a LaTeX tabular with rules of the package booktabs."""
        columns = "l" * self.text_columns + "r" * (len(self.header) - self.text_columns)
        header, *rows = (
            " & ".join(map(latex_escaped, cells)) + r" \\" for cells in (self.header, *self.rows)
        )
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        return "\n".join([begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", end])


def latex_escaped(text: str) -> str:
    r"""Return text as LaTeX has to read it, to print it.

    >>> latex_escaped("95 % of R&D_1")
    '95 \\% of R\\&D\\_1'
    """
    # At the start of a line of a tabular, both would belong to the command that ends the one above.
    guard = "{}" if text.startswith(("[", "*")) else ""
    return guard + text.translate(_LATEX_SPECIAL)
