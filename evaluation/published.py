"""Published scores that a run is shown beside, each with where it was read.

The values are data: ``third_party/published.json``, which also says where they come from and what
is known about them. Whatever shows a value shows its source's mark and text too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from hybridgl.weights.registry import RELEASED_PARSER, Parser

__all__ = [
    "ROWS",
    "SOURCES",
    "Cell",
    "Metric",
    "PublishedRow",
    "Source",
    "parser_notes",
    "published",
]

Cell = tuple[str, str, str]
"""Dataset, split_by and split, as ``refer.splits.SPLITS`` names them."""

Metric = Literal["mIoU", "oIoU"]

_FILE = Path(__file__).parents[1] / "third_party" / "published.json"


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where scores were read.

    Attributes:
        mark: short, for a footnote; unique.
        text: the footnote.
        secondary: whether it repeats what others measured or published.
    """

    mark: str
    text: str
    secondary: bool

    @property
    def footnote(self) -> str:
        """Mark and text, secondary sources named as such."""
        return f"[{self.mark}] {'secondary source: ' if self.secondary else ''}{self.text}"


class PublishedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One method in one setting by one metric.

    Attributes:
        row_id: names method and setting; unique within a metric.
        method: as its authors call it.
        setting: models, masks and training, as far as the source says; may be empty.
        metric: of all values.
        source: key of ``SOURCES``.
        values: in percent as the source prints them, by the names of a cell with spaces between.
    """

    row_id: str
    method: str
    setting: str
    metric: Metric
    source: str
    values: dict[str, str]

    @property
    def cells(self) -> list[Cell]:
        """Where there is a value."""
        return [(dataset, by, split) for dataset, by, split in map(str.split, self.values)]

    def text(self, cell: Cell) -> str:
        """Return the value as its source prints it, "-" where there is none.

        >>> ROWS[0].text(("refcoco+", "unc", "val")), ROWS[0].text(("refcocog", "google", "val"))
        ('43.40', '-')
        """
        return self.values.get(" ".join(cell), "-")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    about: list[str]
    sources: dict[str, Source]
    rows: tuple[PublishedRow, ...]


_published = msgspec.json.decode(_FILE.read_bytes(), type=_File)

SOURCES = _published.sources
"""By key, in the order of their first use in ``ROWS``."""

ROWS = _published.rows
"""Every published number: mIoU, oIoU, the re-run of the released program, PhraseCut."""


def published(cell: Cell, method: str) -> list[PublishedRow]:
    """Return a method's rows that have a value for a split, in the order of ``ROWS``.

    Args:
        cell: of the split.
        method: in all settings; a re-run of a method is one of its settings.

    Raises:
        ValueError: no row has this method: a misspelt one would look like no number.

    >>> [row.row_id for row in published(("refcoco", "unc", "val"), "Global-Local CLIP")][:2]
    ['global_local-freesolo', 'global_local-sam-vit_b_32']
    """
    known = list(dict.fromkeys(row.method for row in ROWS))
    if method not in known:
        raise ValueError(
            f"Expected a method among {', '.join(known)}, got {method!r}; give one of them."
        )
    return [row for row in ROWS if row.method == method and cell in row.cells]


def parser_notes(dataset: str, parsers: Iterable[Parser]) -> list[str]:
    """Return one line for every parser that the published numbers were not made with.

    Args:
        dataset: of the run; where no numbers are published for it, there is nothing to say.
        parsers: that read its sentences.
    """
    if not any(cell[0] == dataset for row in ROWS for cell in row.cells):
        return []
    return [
        f"Sentences were read by {parser}, in HybridGL's released program by {RELEASED_PARSER}. "
        f"Between other pairs of models (sm and md, 3.6 and 3.8) that changed what was read off 12 "
        f"to 13 % of people's expressions: the scores may differ by it."
        for parser in parsers
        if not parser.is_released
    ]
