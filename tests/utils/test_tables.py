"""Tables as text: every form holds the same cells, whatever characters they have."""

from __future__ import annotations

import csv
import io
import re

import pytest

from utils.tables import Table, latex_escaped

PLAIN = Table(("name", "n", "mIoU"), (("left", "2", "7.50"), ("a longer name", "10", "-")))
AWKWARD = (
    'R&D, 95 % of "x"',
    r"50$ \ #1_a {b} ~c^d <e> |f|",
    "[g]",
    "*h",
    "",
    "Größe 大",
)


def table_of(cells):
    return Table(("cell", "n"), tuple((cell, str(i)) for i, cell in enumerate(cells)))


def test_markdown_puts_text_left_and_numbers_right():
    assert PLAIN.markdown().splitlines() == [
        "| name          |  n | mIoU |",
        "| ------------- | -: | ---: |",
        "| left          |  2 | 7.50 |",
        "| a longer name | 10 |    - |",
    ]


def test_number_of_text_columns_decides_the_side():
    table = Table(("a", "bb", "cc"), (("x", "y", "z"),), text_columns=2)
    assert table.markdown().splitlines() == [
        "| a | bb | cc |",
        "| - | -- | -: |",
        "| x | y  |  z |",
    ]
    assert table.latex().splitlines()[0] == r"\begin{tabular}{llr}"


def test_bar_in_a_cell_does_not_open_a_column():
    lines = table_of(["a|b", "c"]).markdown().splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3] * 4
    assert lines[2].startswith(r"| a\|b | ")
    assert len({len(line) for line in lines}) == 1


def test_narrowest_column_of_numbers_still_has_a_rule():
    table = Table(("a", "n"), (("x", "1"),))
    assert table.markdown().splitlines() == ["| a |  n |", "| - | -: |", "| x |  1 |"]


def test_line_break_in_a_cell_does_not_end_its_row():
    table = table_of(["two\nlines"])
    assert table.markdown().splitlines()[2:] == ["| two lines |  0 |"]
    assert table.latex().splitlines()[4] == r"two lines & 0 \\"


def test_table_without_rows_has_its_header():
    table = Table(("name", "n"), ())
    assert table.markdown().splitlines() == ["| name |  n |", "| ---- | -: |"]
    assert table.csv() == "name,n\n"
    assert table.latex().count(r"\\") == 1


def test_csv_gives_the_cells_back():
    table = table_of([*AWKWARD, "two\nlines", 'a "quoted", one'])
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows == [list(table.header), *(list(row) for row in table.rows)]


def test_csv_quotes_only_what_it_must():
    assert PLAIN.csv() == "name,n,mIoU\nleft,2,7.50\na longer name,10,-\n"


def test_latex_has_one_line_for_every_row_between_booktabs_rules():
    assert PLAIN.latex().splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"name & n & mIoU \\",
        r"\midrule",
        r"left & 2 & 7.50 \\",
        r"a longer name & 10 & - \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize("cell", AWKWARD)
def test_latex_keeps_cells_apart_whatever_they_hold(cell):
    line = table_of([cell]).latex().splitlines()[4]
    assert line.endswith(r" & 0 \\")
    assert printed(line.removesuffix(r" & 0 \\")) == cell


@pytest.mark.parametrize("cell", ["[2pt] x", "*"])
def test_latex_line_does_not_begin_with_an_argument_of_the_line_above(cell):
    r"""``\\`` and ``\midrule`` look past the end of their line for [ and for a star."""
    assert table_of([cell]).latex().splitlines()[4].startswith("{}" + cell)


def printed(latex):
    """What LaTeX prints of text; fails on a special character that is not escaped."""
    names = {
        "textasciitilde": "~",
        "textasciicircum": "^",
        "textbackslash": "\\",
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
    }
    text = ""
    rest = latex
    while rest:
        if match := re.match(r"\\(text[a-z]+)\{\}", rest):
            text += names[match[1]]
        elif match := re.match(r"\\([&%$#_{}])", rest):
            text += match[1]
        elif match := re.match(r"\{\}", rest):
            pass
        else:
            match = re.match(r"[^\\&%$#_{}~^<>|]", rest)
            assert match, f"unescaped at {rest!r}"
            text += match[0]
        rest = rest[match.end() :]
    return text


def test_escaped_text_is_left_alone_where_nothing_is_special():
    assert latex_escaped("49.48 [a], n = 12") == "49.48 [a], n = 12"
