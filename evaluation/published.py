"""Published scores that a run is shown beside, each with where it was read.

Transcribed from secondary sources, save the re-run, as the papers' own tables were not at hand:
whatever shows a value shows its source's mark and text too. A cell that no source has is absent,
never 0.

The re-run of HybridGL's released program lies about 5 mIoU below the paper. Its author's answer
there: guidance can be lower because of its scaling factor or of GEM, and open_clip has to be
2.24.0; with newer ones gem_torch is silently wrong, so that the guided figures may be a victim of
it. A reproduction near 46.5 mIoU on RefCOCOg val (umd) agrees with the released program, one near
51 with the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = [
    "ROWS",
    "SOURCES",
    "Cell",
    "Metric",
    "PublishedRow",
    "Source",
    "published",
]

Cell = tuple[str, str, str]
"""Dataset, split_by and split, as `refer.splits.SPLITS` names them."""

Metric = Literal["mIoU", "oIoU"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where scores were read.

    Attributes:
        mark: Short, for a footnote; unique.
        text: The footnote.
        secondary: Whether it repeats what others measured or published.
    """

    mark: str
    text: str
    secondary: bool


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One method in one setting by one metric.

    Attributes:
        row_id: Names method and setting; unique within a metric.
        method: As its authors call it.
        setting: Models, masks and training, as far as the source tells; may be empty.
        metric: Of all values.
        values: In percent, by cell.
        decimals: How many the source prints: 43.4 read off "43.40" has two.
        source: Key of `SOURCES`.
    """

    row_id: str
    method: str
    setting: str
    metric: Metric
    values: Mapping[Cell, float]
    decimals: int
    source: str

    def text(self, cell: Cell) -> str:
        """The value as its source prints it, "-" where there is none.

        >>> ROWS[0].text(("refcoco+", "unc", "val")), ROWS[0].text(("refcocog", "google", "val"))
        ('43.40', '-')
        """
        return f"{self.values[cell]:.{self.decimals}f}" if cell in self.values else "-"


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "survey": Source(
            "a",
            "survey 'Multimodal Referring Segmentation', Table 2; in agreement with the SAM 3 "
            "paper (arXiv 2511.16719), Table 42",
            secondary=True,
        ),
        "clip_as_rnn": Source("b", "CLIP as RNN (arXiv 2312.07661), Table 7", secondary=True),
        "sam3": Source("c", "SAM 3 (arXiv 2511.16719), Table 42", secondary=True),
        "attention_heads": Source(
            "d",
            "'Your LVLM only needs a few attention heads' (CVPR 2025), Table 2",
            secondary=True,
        ),
        "rerun": Source(
            "e",
            "independent run of the released program, fusion mode G2L, reported in issue 1 of its "
            "tracker",
            secondary=False,
        ),
        "phrasecut": Source(
            "f",
            "PhraseCut as a secondary source gives it; which source, subset and setting were not "
            "noted",
            secondary=True,
        ),
    }
)
"""By key, in the order of their first use in `ROWS`."""

_REFCOCO: tuple[Cell, ...] = tuple(
    (dataset, "unc", split)
    for dataset in ("refcoco", "refcoco+")
    for split in ("val", "testA", "testB")
)
_VAL_U: Cell = ("refcocog", "umd", "val")
_COLUMNS: tuple[Cell, ...] = (
    *_REFCOCO,
    _VAL_U,
    ("refcocog", "umd", "test"),
    ("refcocog", "google", "val"),
)
_PHRASECUT: Cell = ("phrasecut", "-", "test")


def _row(
    row_id: str,
    method: str,
    setting: str,
    metric: Metric,
    source: str,
    printed: str,
    cells: tuple[Cell, ...] = _COLUMNS,
) -> PublishedRow:
    """A row from its printed values, one for each cell, "-" for none."""
    texts = dict(zip(cells, printed.split(), strict=True))
    kept = {cell: text for cell, text in texts.items() if text != "-"}
    (decimals,) = {len(text.partition(".")[2]) for text in kept.values()}
    values = MappingProxyType({cell: float(text) for cell, text in kept.items()})
    return PublishedRow(row_id, method, setting, metric, values, decimals, source)


_GLOBAL_LOCAL = "Global-Local CLIP"
_PURE = "released program, re-run, pure"
_GUIDED = "released program, re-run, guided"
_PSEUDO_LABELS = "trained on pseudo labels"
_VIT_B_32 = "CLIP ViT-B/32"

# fmt: off
ROWS: tuple[PublishedRow, ...] = (
    _row("hybridgl", "HybridGL", "CLIP ViT-B/16, SAM ViT-H", "mIoU", "survey",
         "49.48 53.37 45.19  43.40 49.13 37.17  51.25 51.59 -"),
    _row("global_local-freesolo", _GLOBAL_LOCAL, "FreeSOLO", "mIoU", "clip_as_rnn",
         "26.20 24.94 26.56  27.80 25.64 27.84  33.52 33.67 33.61"),
    _row("global_local-sam-vit_b_32", _GLOBAL_LOCAL, f"SAM, {_VIT_B_32}", "mIoU", "sam3",
         "32.9 34.9 30.1  38.4 42.1 32.7  42.0 42.0 42.7"),
    _row("global_local-sam-rn50", _GLOBAL_LOCAL, "SAM, CLIP RN50", "mIoU", "sam3",
         "32.7 35.3 30.1  37.7 40.7 34.9  41.6 42.9 44.0"),
    _row("clip_as_rnn", "CLIP as RNN", "", "mIoU", "sam3",
         "33.57 35.36 30.51  34.22 36.03 31.02  36.67 36.57 36.63"),
    _row("ref_diff", "Ref-Diff", "", "mIoU", "sam3",
         "37.2 38.4 37.2  37.3 40.5 33.0  44.0 44.5 44.3"),
    _row("tas", "TAS", _VIT_B_32, "mIoU", "sam3",
         "39.8 41.1 36.2  43.6 49.1 36.5  46.6 46.8 48.1"),
    _row("iterprime", "IteRPrimE", "COCO-supervised masks", "mIoU", "sam3",
         "40.2 46.5 33.9  44.2 51.6 35.3  46.0 45.1 45.8"),
    _row("lgd_dino", "LGD + DINO", "descriptions by a large model", "mIoU", "sam3",
         "49.5 54.7 41.0  49.6 58.4 38.6  50.3 51.1 52.5"),
    _row("pseudo_ris-etris", "Pseudo-RIS", f"ETRIS, {_PSEUDO_LABELS}", "mIoU", "sam3",
         "41.1 48.2 33.5  44.3 51.4 35.1  46.0 46.7 46.8"),
    _row("pseudo_ris-cris", "Pseudo-RIS", f"CRIS, {_PSEUDO_LABELS}", "mIoU", "sam3",
         "39.8 44.8 33.0  42.2 46.3 34.5  43.7 43.4 43.8"),
    _row("global_local-freesolo", _GLOBAL_LOCAL, "FreeSOLO", "oIoU", "attention_heads",
         "24.9 23.6 24.7  26.2 24.9 25.8  31.1 31.0 -"),
    _row("ref_diff", "Ref-Diff", "", "oIoU", "attention_heads",
         "35.2 37.4 34.5  35.6 38.7 31.4  38.6 37.5 -"),
    _row("tas", "TAS", "", "oIoU", "attention_heads",
         "29.5 30.3 28.2  33.2 38.8 28.0  35.8 36.2 -"),
    _row("hybridgl-rerun-pure", "HybridGL", _PURE, "oIoU", "rerun", "37.14", (_VAL_U,)),
    _row("hybridgl-rerun-pure", "HybridGL", _PURE, "mIoU", "rerun", "46.66", (_VAL_U,)),
    _row("hybridgl-rerun-guided", "HybridGL", _GUIDED, "oIoU", "rerun", "35.48", (_VAL_U,)),
    _row("hybridgl-rerun-guided", "HybridGL", _GUIDED, "mIoU", "rerun", "46.04", (_VAL_U,)),
    _row("global_local-phrasecut", _GLOBAL_LOCAL, "", "oIoU", "phrasecut", "23.64", (_PHRASECUT,)),
    _row("ref_diff-phrasecut", "Ref-Diff", "", "oIoU", "phrasecut", "29.42", (_PHRASECUT,)),
)
# fmt: on
"""Every published number: mIoU, oIoU, the re-run, PhraseCut. HybridGL's own oIoU was not found.
PhraseCut's are kept under its test split, though the source does not tell the subset."""


def published(
    dataset: str,
    split_by: str,
    split: str,
    *,
    metric: Metric | None = None,
    method: str | None = None,
) -> list[PublishedRow]:
    """The rows that have a value for a split, in the order of `ROWS`; empty where nothing is known.

    Args:
        dataset: As in `Cell`.
        split_by: As in `Cell`.
        split: As in `Cell`.
        metric: Only its rows.
        method: Only its rows, in all settings; a re-run of a method is one of its settings.

    Raises:
        ValueError: No row has this metric or method: a misspelt one would look like no number.

    >>> rows = published("refcocog", "umd", "val", metric="mIoU", method="HybridGL")
    >>> [row.row_id for row in rows]
    ['hybridgl', 'hybridgl-rerun-pure', 'hybridgl-rerun-guided']
    """
    for name, wanted in (("metric", metric), ("method", method)):
        known = list(dict.fromkeys(getattr(row, name) for row in ROWS))
        if wanted is not None and wanted not in known:
            raise ValueError(f"Expected {name} among {', '.join(known)}, got {wanted!r}.")
    return [
        row
        for row in ROWS
        if (dataset, split_by, split) in row.values
        and metric in (None, row.metric)
        and method in (None, row.method)
    ]
