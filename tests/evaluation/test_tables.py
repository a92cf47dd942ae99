"""Rows of the tables, and what is filled into them from hand-made records."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import hybridgl_main
from evaluation.published import ROWS, SOURCES
from evaluation.report import Report
from evaluation.tables import TABLES, Entry, PaperTable, TableRow, filled_table, paper_tables
from hybridgl.config import FusionMode
from hybridgl.metrics import PROTOCOLS
from refer.splits import SPLITS
from tests.evaluation.factories import record_of

CHOICES = {
    "tiny": {"tiny": True},
    "paper": {"tiny": False},
    "FreeSOLO": {"tiny": False, "freesolo": Path("masks.json")},
}
CELLS = [
    (dataset, split_by, split)
    for dataset, ways in SPLITS.items()
    for split_by, splits in ways.items()
    for split in splits
]
VAL = ("refcoco", "unc", "val")
ZERO_SHOT = PROTOCOLS["zero-shot"]


def sample(sent_id, intersection, union, kind=None):
    """A record of three variants: as given with guidance, half of it alone, all without GEM."""
    predictions = {
        "features": (intersection // 2, union),
        "relations": (100, 100),
        "guided": (intersection, union),
    }
    return record_of(sent_id, predictions, kind=kind, image_id=sent_id // 2)


RECORDS = [
    sample(0, 50, 100, "seen"),
    sample(1, 0, 200, "unseen"),
    sample(2, 100, 100, "seen"),
    sample(3, 30, 120, "seen"),
]
"""Guided: ratios 0.5, 0, 1, 0.25, so mIoU 43.75; sums 180 of 520, so oIoU 34.615."""


def entry_of(row, cell=VAL, protocol=ZERO_SHOT, *, records=RECORDS, warnings=()):
    """A row with a run."""
    return Entry(row, cell, Report.of(records, protocol), "reference", warnings)


OURS = TableRow(method="HybridGL", setting="with guidance", arguments=(), published_id="hybridgl")


def filled(*entries, protocol=ZERO_SHOT, by_kind=False):
    """Lines as dicts by the names of their columns, and the notes."""
    table, notes = filled_table(PaperTable("", (), by_kind=by_kind), entries, protocol)
    assert len(set(table.header)) == len(table.header)
    return [dict(zip(table.header, row, strict=True)) for row in table.rows], notes


# Rows


def all_rows(choices):
    return [(name, row) for name, table in paper_tables(**choices).items() for row in table.rows]


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_arguments_of_every_row_are_arguments_of_the_program(choices):
    for _, row in all_rows(choices):
        if row.arguments is not None:
            hybridgl_main.build_parser().parse_args(row.arguments)


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_variant_of_every_row_is_one_of_its_method(choices):
    for _, row in all_rows(choices):
        baseline = "global_local" in (row.arguments or ())
        method = hybridgl_main.METHODS["global_local" if baseline else "hybridgl"]
        assert row.variant in (None, *method.variants)


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_every_published_row_is_there_and_of_the_same_method(choices):
    methods = {row.row_id: row.method for row in ROWS}
    for _, row in all_rows(choices):
        assert row.published_id is not None or row.arguments is not None
        if row.published_id is not None:
            assert row.method == methods[row.published_id]


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_rows_of_a_table_can_be_told_apart(choices):
    for name in TABLES:
        labels = [(row.method, row.setting) for row in paper_tables(**choices)[name].rows]
        assert len(set(labels)) == len(labels), name


def test_every_published_number_is_in_some_table():
    shown = {row.published_id for _, row in all_rows(CHOICES["paper"])}
    assert shown >= {row.row_id for row in ROWS}


def test_bundled_weights_are_not_held_against_published_settings_of_clip():
    for _, row in all_rows(CHOICES["tiny"]):
        assert "--clip_model" not in (row.arguments or ())
        if row.published_id and row.published_id.startswith("global_local-sam"):
            assert row.arguments is None


def test_freesolo_is_run_only_where_its_masks_are_given():
    rows = {
        name: next(
            row for row in paper_tables(**choices)["baselines"].rows if "Free" in row.setting
        )
        for name, choices in CHOICES.items()
    }
    assert rows["paper"].arguments is None
    masks = ("--proposals", "coco:masks.json", "--crop_box", "freesolo")
    assert rows["FreeSOLO"].arguments[-4:] == masks


def test_fusion_ablation_has_every_mode_with_and_without_guidance():
    rows = paper_tables(tiny=True)["ablation-fusion"].rows
    expected = [
        (("--fusion_mode", mode.value), variant)
        for mode in FusionMode
        for variant in ("features", "guided")
    ]
    assert [(row.arguments, row.variant) for row in rows] == expected


def test_guidance_ablation_leaves_out_the_terms_that_a_row_does_not_name():
    for row in paper_tables(tiny=True)["ablation-guidance"].rows:
        left_out = set(row.arguments[1:])
        if row.variant is None:
            named = set(row.setting.split(", "))
            assert named | left_out == {"relationship", "coherence", "position"}
            assert not named & left_out
        else:
            assert (row.setting, row.variant, left_out) == ("no guidance", "features", set())


def test_settings_ablation_contains_the_default_of_every_setting():
    parse = hybridgl_main.build_parser().parse_args
    plain = vars(parse([]))
    by_option = {}
    for row in paper_tables(tiny=True)["ablation-settings"].rows:
        by_option.setdefault(row.arguments[0], []).append(vars(parse(row.arguments)))
    for option, parsed in by_option.items():
        name = option.lstrip("-")
        values = [arguments[name] for arguments in parsed]
        if name != "coherence_weights":
            assert plain[name] in values
        assert len({str(value) for value in values}) == len(values)


# Scores


def test_scores_intervals_and_n_are_those_of_the_records():
    ((line,), _) = filled(entry_of(OURS))
    assert (line["n"], line["mIoU"], line["oIoU"]) == ("4", "43.75", "34.62")
    intervals = Report.of(RECORDS, ZERO_SHOT).intervals["guided"]
    for name in ("mIoU", "oIoU"):
        assert line[f"{name} 95 %"] == "{:.2f} to {:.2f}".format(*intervals[name])
    assert line["oracle"] == "100.00"
    assert (line["profile"], line["protocol"]) == ("reference", "zero-shot")


@pytest.mark.parametrize(("variant", "miou"), [("features", "21.88"), ("relations", "100.00")])
def test_row_shows_its_own_variant(variant, miou):
    ((line,), _) = filled(entry_of(replace(OURS, variant=variant)))
    assert line["mIoU"] == miou


@pytest.mark.parametrize("name", PROTOCOLS)
def test_columns_are_named_and_computed_by_the_protocol(name):
    protocol = PROTOCOLS[name]
    ((line,), _) = filled(entry_of(OURS, protocol=protocol), protocol=protocol)
    scores = Report.of(RECORDS, protocol).scores["guided"]
    for score in (protocol.mean_name, protocol.overall_name):
        assert line[score] == f"{scores[score]:.2f}"
    assert line["protocol"] == name


def test_kinds_follow_all_records_and_have_no_published_value():
    row = TableRow(method="Global-Local CLIP", setting="SAM", arguments=())
    row = replace(row, published_id="global_local-phrasecut")
    cell = ("phrasecut", "-", "test")
    protocol = PROTOCOLS["phrasecut"]
    lines, _ = filled(entry_of(row, cell, protocol), protocol=protocol, by_kind=True)
    shown = [(line["setting"], line["n"], line["mIoU"], line["oIoU published"]) for line in lines]
    assert shown == [
        ("SAM", "4", "43.75", "23.64 [f]"),
        ("SAM, seen", "3", "58.33", "-"),
        ("SAM, unseen", "1", "0.00", "-"),
    ]
    assert [line["oIoU difference"] for line in lines] == ["+10.98", "-", "-"]


def test_kinds_are_left_out_of_other_tables():
    assert len(filled(entry_of(OURS))[0]) == 1


def test_kind_that_all_expressions_have_is_not_repeated():
    entry = entry_of(OURS, records=[RECORDS[0], RECORDS[2]])
    assert len(filled(entry, by_kind=True)[0]) == 1


# Published values


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_every_published_cell_is_what_its_source_prints(choices):
    values = {
        (row.row_id, cell, row.metric): f"{row.text(cell)} [{SOURCES[row.source].mark}]"
        for row in ROWS
        for cell in row.cells
    }
    shown, ours = set(), entry_of(OURS)
    for name, row in all_rows(choices):
        for cell in CELLS:
            entry = Entry(row, cell) if row.arguments is None else replace(ours, row=row, cell=cell)
            lines, notes = filled(entry, by_kind=name == "phrasecut")
            for line in lines[:1]:
                for metric in ("mIoU", "oIoU"):
                    key = (row.published_id, cell, metric)
                    assert line[f"{metric} published"] == values.get(key, "-")
                    shown |= {key} & values.keys()
            for mark in re.findall(r"\[(\w)\]", str(lines)):
                source = next(one for one in SOURCES.values() if one.mark == mark)
                secondary = "secondary source: " if source.secondary else ""
                assert f"[{mark}] {secondary}{source.text}" in notes
    expected = values.keys()
    if choices["tiny"]:
        expected = {key for key in expected if not key[0].startswith("global_local-sam")}
    assert shown == expected


def test_secondary_sources_are_called_so():
    _, notes = filled(Entry(OURS, VAL))
    assert notes[0].startswith("[a] secondary source: survey")
    rerun = TableRow(method="HybridGL", setting="", published_id="hybridgl-rerun-pure")
    _, notes = filled(Entry(rerun, ("refcocog", "umd", "val")))
    assert notes[0].startswith("[e] independent run of the released program")


def test_setting_that_a_source_does_not_report_is_not_claimed_for_it():
    (tas,) = [row for _, row in all_rows(CHOICES["paper"]) if row.published_id == "tas"]
    ((line,), notes) = filled(Entry(tas, VAL))
    assert (line["setting"], line["mIoU published"]) == ("CLIP ViT-B/32", "39.8 [c]")
    assert line["oIoU published"] == "29.5 [d]"
    assert "[d] reports no setting of TAS" in notes


def test_difference_is_ours_less_theirs():
    ((line,), notes) = filled(entry_of(OURS))
    assert (line["mIoU published"], line["mIoU difference"]) == ("49.48 [a]", "-5.73")
    assert (line["oIoU published"], line["oIoU difference"]) == ("-", "-")
    assert not any("not compared" in note for note in notes)


def test_difference_is_not_given_for_runs_with_warnings():
    ((line,), notes) = filled(entry_of(OURS, warnings=("the data is not whole",)))
    assert (line["mIoU"], line["mIoU published"]) == ("43.75", "49.48 [a]")
    assert line["mIoU difference"] == "-"
    assert "not compared with published values: the data is not whole" in notes


@pytest.mark.parametrize("name", ["lavt", "lisa", "phrasecut"])
def test_difference_is_not_given_across_protocols(name):
    protocol = PROTOCOLS[name]
    ((line,), notes) = filled(entry_of(OURS, protocol=protocol), protocol=protocol)
    mean = protocol.mean_name
    assert (line["mIoU published"], line[f"{mean} difference"]) == ("49.48 [a]", "-")
    note = f"not compared with published values: protocol {name}, theirs is zero-shot"
    assert note in notes


def test_phrasecut_is_compared_under_its_own_protocol_only():
    row = TableRow(method="Global-Local CLIP", setting="SAM", arguments=())
    row = replace(row, published_id="global_local-phrasecut")
    ((line,), notes) = filled(entry_of(row, ("phrasecut", "-", "test")))
    assert (line["oIoU published"], line["oIoU difference"]) == ("23.64 [f]", "-")
    note = "not compared with published values: protocol zero-shot, theirs is phrasecut"
    assert note in notes


def test_reasons_are_not_given_where_there_is_nothing_to_compare_with():
    row = replace(OURS, published_id=None)
    _, notes = filled(entry_of(row, warnings=("the data is not whole",)))
    assert not any("not compared" in note for note in notes)


# Rows without a run


def test_run_that_could_not_be_made_keeps_its_line_and_the_published_value():
    ((line,), _) = filled(Entry(OURS, VAL))
    assert (line["n"], line["mIoU published"]) == ("not made", "49.48 [a]")
    others = {name: cell for name, cell in line.items() if name not in ("n", "mIoU published")}
    assert set(list(others.values())[3:]) == {"-"}


def test_rows_that_nobody_ran_or_published_are_named_in_one_note():
    rows = [row for _, row in all_rows(CHOICES["tiny"]) if row.arguments is None]
    shapes = ("shapes", "synthetic", "val")
    lines, notes = filled(*(Entry(row, shapes, None) for row in rows))
    assert lines == []
    (note,) = [note for note in notes if note.startswith("left out")]
    for row in rows:
        assert f"{row.method} ({row.setting})" in note if row.setting else row.method in note


def test_row_that_is_left_out_of_one_split_is_named_with_it():
    rerun = TableRow(method="HybridGL", setting="re-run", published_id="hybridgl-rerun-pure")
    cells = [("refcocog", "umd", split) for split in ("val", "test")]
    lines, notes = filled(*(Entry(rerun, cell, None) for cell in cells))
    assert [line["split"] for line in lines] == ["val"]
    assert "left out, as nobody ran or published it here: HybridGL (re-run) on test" in notes


def test_nothing_is_said_to_be_left_out_where_nothing_is():
    _, notes = filled(entry_of(OURS))
    assert not any("left out" in note for note in notes)


def test_splitting_of_another_author_is_another_cell():
    clip_as_rnn = TableRow(method="CLIP as RNN", setting="", published_id="clip_as_rnn")
    cells = [("refcocog", split_by, "val") for split_by in ("umd", "google")]
    lines, _ = filled(*(Entry(clip_as_rnn, cell, None) for cell in cells))
    assert [line["mIoU published"] for line in lines] == ["36.67 [c]", "36.63 [c]"]
