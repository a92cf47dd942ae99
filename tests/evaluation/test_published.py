from __future__ import annotations

import re

import pytest

from evaluation.published import ROWS, SOURCES, published
from refer.splits import SPLITS

# A second transcription, laid out as the sources were first written down.
MIOU_TABLE = """
| method | RefCOCO val/testA/testB | RefCOCO+ val/testA/testB | RefCOCOg val(U)/test(U)/val(G) |
|---|---|---|---|
| HybridGL (CLIP ViT-B/16, SAM-H) | 49.48 53.37 45.19 | 43.40 49.13 37.17 | 51.25 51.59 - |
| Global-Local CLIP, FreeSOLO | 26.20 24.94 26.56 | 27.80 25.64 27.84 | 33.52 33.67 33.61 |
| Global-Local CLIP, SAM, ViT-B/32 | 32.9 34.9 30.1 | 38.4 42.1 32.7 | 42.0 42.0 42.7 |
| Global-Local CLIP, SAM, RN50 | 32.7 35.3 30.1 | 37.7 40.7 34.9 | 41.6 42.9 44.0 |
| CLIP as RNN | 33.57 35.36 30.51 | 34.22 36.03 31.02 | 36.67 36.57 36.63 |
| Ref-Diff | 37.2 38.4 37.2 | 37.3 40.5 33.0 | 44.0 44.5 44.3 |
| TAS (ViT-B/32) | 39.8 41.1 36.2 | 43.6 49.1 36.5 | 46.6 46.8 48.1 |
| IteRPrimE (COCO-supervised masks) | 40.2 46.5 33.9 | 44.2 51.6 35.3 | 46.0 45.1 45.8 |
| LGD + DINO (descriptions by a large model) | 49.5 54.7 41.0 | 49.6 58.4 38.6 | 50.3 51.1 52.5 |
| Pseudo-RIS, ETRIS (trained on pseudo labels) | 41.1 48.2 33.5 | 44.3 51.4 35.1 | 46.0 46.7 46.8 |
| Pseudo-RIS, CRIS (trained on pseudo labels) | 39.8 44.8 33.0 | 42.2 46.3 34.5 | 43.7 43.4 43.8 |
"""
OIOU_TEXT = (
    "Global-Local CLIP FreeSOLO 24.9 23.6 24.7 | 26.2 24.9 25.8 | 31.1 31.0; "
    "Ref-Diff 35.2 37.4 34.5 | 35.6 38.7 31.4 | 38.6 37.5; "
    "TAS 29.5 30.3 28.2 | 33.2 38.8 28.0 | 35.8 36.2"
)
RERUN_TEXT = "oIoU/mIoU 37.14/46.66 without guidance, 35.48/46.04 with it"
PHRASECUT_TEXT = "Global-Local CLIP 23.64; Ref-Diff 29.42"

MIOU_IDS = [
    "hybridgl",
    "global_local-freesolo",
    "global_local-sam-vit_b_32",
    "global_local-sam-rn50",
    "clip_as_rnn",
    "ref_diff",
    "tas",
    "iterprime",
    "lgd_dino",
    "pseudo_ris-etris",
    "pseudo_ris-cris",
]
COLUMNS = [
    ("refcoco", "unc", "val"),
    ("refcoco", "unc", "testA"),
    ("refcoco", "unc", "testB"),
    ("refcoco+", "unc", "val"),
    ("refcoco+", "unc", "testA"),
    ("refcoco+", "unc", "testB"),
    ("refcocog", "umd", "val"),
    ("refcocog", "umd", "test"),
    ("refcocog", "google", "val"),
]
VAL_U = COLUMNS[6]


def printed(text):
    """The numbers of a piece of text by column, as they are written; "-" is none."""
    numbers = re.findall(r"(?<!\S)(?:\d+\.\d+|-)(?!\S)", text.replace("|", " "))
    return {cell: number for cell, number in zip(COLUMNS, numbers, strict=False) if number != "-"}


def expected_cells():
    """(metric, row id, cell, number as written) of everything that was written down."""
    expected = []
    lines = MIOU_TABLE.strip().splitlines()[2:]
    tables = [("mIoU", row_id, line) for row_id, line in zip(MIOU_IDS, lines, strict=True)]
    oiou_ids = ["global_local-freesolo", "ref_diff", "tas"]
    tables += [
        ("oIoU", row_id, line) for row_id, line in zip(oiou_ids, OIOU_TEXT.split("; "), strict=True)
    ]
    for metric, row_id, line in tables:
        expected += [(metric, row_id, cell, number) for cell, number in printed(line).items()]
    pairs = re.findall(r"([\d.]+)/([\d.]+)", RERUN_TEXT)
    for which, (oiou, miou) in zip(["pure", "guided"], pairs, strict=True):
        expected.append(("oIoU", f"hybridgl-rerun-{which}", VAL_U, oiou))
        expected.append(("mIoU", f"hybridgl-rerun-{which}", VAL_U, miou))
    numbers = re.findall(r"\d+\.\d+", PHRASECUT_TEXT)
    for row_id, number in zip(["global_local", "ref_diff"], numbers, strict=True):
        expected.append(("oIoU", f"{row_id}-phrasecut", ("phrasecut", "-", "test"), number))
    return expected


def test_every_number_and_no_other_is_there_as_it_was_printed():
    got = [(row.metric, row.row_id, cell, row.text(cell)) for row in ROWS for cell in row.cells]
    assert got == expected_cells()
    assert len(got) == 10 * 9 + 8 + 3 * 8 + 4 + 2


def test_values_are_numbers_and_a_row_has_as_many_decimals_throughout():
    for row in ROWS:
        assert all(20 < float(value) < 60 for value in row.values.values())
        assert len({len(value.partition(".")[2]) for value in row.values.values()}) == 1


def test_rows_are_unique_and_in_the_order_of_their_kinds():
    keys = [(row.metric, row.row_id) for row in ROWS]
    assert len(set(keys)) == len(keys) == 20
    assert [row.row_id for row in ROWS[:11]] == MIOU_IDS
    # One method and setting has one row by each metric: no two rows claim a cell.
    claims = [(r.method, r.setting, r.metric, cell) for r in ROWS for cell in r.cells]
    assert len(set(claims)) == len(claims)


def test_every_cell_is_a_split_that_exists():
    for row in ROWS:
        for dataset, split_by, split in row.cells:
            assert split in SPLITS[dataset][split_by]


def test_every_row_has_a_source_and_every_source_a_row():
    assert list(dict.fromkeys(row.source for row in ROWS)) == list(SOURCES)
    assert [source.mark for source in SOURCES.values()] == list("abcdef")
    assert [key for key, source in SOURCES.items() if not source.secondary] == ["rerun"]


def test_absent_cell_is_absent():
    val_g = ("refcocog", "google", "val")
    assert published(val_g, "HybridGL") == []
    assert ROWS[0].text(val_g) == "-"
    assert [row.row_id for row in ROWS if val_g in row.cells] == MIOU_IDS[1:]
    for cell in (("refcoco", "google", "val"), ("shapes", "synthetic", "val")):
        assert not any(cell in row.cells for row in ROWS)


def test_lookup_by_method():
    assert [row.row_id for row in published(VAL_U, "TAS")] == ["tas", "tas"]
    rows = published(VAL_U, "HybridGL")
    assert [(row.metric, row.text(VAL_U)) for row in rows] == [
        ("mIoU", "51.25"),
        ("oIoU", "37.14"),
        ("mIoU", "46.66"),
        ("oIoU", "35.48"),
        ("mIoU", "46.04"),
    ]
    phrasecut = ("phrasecut", "-", "test")
    assert [row.text(phrasecut) for row in published(phrasecut, "Ref-Diff")] == ["29.42"]


def test_misspelt_method_names_the_right_ones():
    with pytest.raises(ValueError, match=r"Ref-Diff, .*, got 'Ref Diff'"):
        published(("refcoco", "unc", "val"), "Ref Diff")


def test_rows_cannot_be_changed():
    with pytest.raises(AttributeError, match="immutable"):
        ROWS[0].source = "sam3"
