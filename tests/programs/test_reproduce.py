"""``scripts.reproduce``: plan, runs and tables.

Most tests make runs whose records are made up, so that no model is loaded; those that are marked
slow run everything.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

import hybridgl
import hybridgl_main
import refer.config
import refer.splits
import scripts.reproduce
from evaluation.evaluate import Evaluation
from evaluation.published import ROWS, SOURCES
from evaluation.records import read_records
from evaluation.report import Report
from evaluation.run import Run, RunConfig
from evaluation.tables import paper_tables
from hybridgl.errors import DataError, HybridGLError
from hybridgl.metrics import PROTOCOLS
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES
from refer.splits import ExpectedCounts
from scripts.reproduce import (
    PlannedRun,
    main,
    plan_text,
    reasons_against,
    seconds_per_image,
    write_table,
)
from tests.evaluation.factories import record_of
from tests.factories_clip import clip_state, save_npz
from tests.refer_factories import mini_phrasecut, mini_refer
from utils.tables import Table

BUNDLED = Path(hybridgl.__file__).parent / "weights" / "tiny"
TABLES = ["main", "baselines", "ablation-guidance"]


@dataclass(frozen=True)
class Line:
    """A line of a plan."""

    state: str
    time: str


def plan_of(printed):
    """Lines of a printed plan by the names of their runs."""
    row = r"^\| (\S.*?) +\| (done|missing|cannot be made) +\| +(.+?) \|$"
    found = re.findall(row, printed, re.MULTILINE)
    return {name: Line(state, time) for name, state, time in found}


def states_of(printed):
    return [line.state for line in plan_of(printed).values()]


def lines_of(name):
    """Lines of a table as dicts, from its CSV file."""
    with Path(f"runs/tables/{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def notes_of(name):
    text = Path(f"runs/tables/{name}.md").read_text()
    return [line.removeprefix("* ") for line in text.splitlines() if line.startswith("* ")]


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# Functions


PLANNED = {
    "runs/a": PlannedRun("runs/a", done=True, seconds=0.0),
    "runs/b": PlannedRun("runs/b", seconds=90.0),
    "runs/c": PlannedRun("runs/c", problem="no data"),
    "runs/d": PlannedRun("runs/d", problem="no data"),
    "runs/e": PlannedRun("runs/e", problem="no weights"),
}


def test_plan_names_every_state_with_its_number_and_every_problem_once():
    text = plan_text(list(PLANNED.values()))
    assert text.startswith("5 runs, 1 done, 1 missing, 3 cannot be made (2 min)\n")
    assert plan_of(text) == {
        "runs/a": Line("done", "0 s"),
        "runs/b": Line("missing", "2 min"),
        "runs/c": Line("cannot be made", "-"),
        "runs/d": Line("cannot be made", "-"),
        "runs/e": Line("cannot be made", "-"),
    }
    assert text.endswith("\n\n* runs/c, runs/d: no data\n* runs/e: no weights")


def test_time_of_a_plan_is_known_where_that_of_every_missing_run_is():
    unknown = PlannedRun("runs/f")
    text = plan_text([PLANNED["runs/b"], unknown, PLANNED["runs/c"]])
    assert "2 missing, 1 cannot be made (not measured yet)" in text
    assert plan_of(text)["runs/f"].time == "not measured yet"
    assert plan_text([PLANNED["runs/a"]]).splitlines()[0] == "1 runs, 1 done"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (60.0, "1 min"),
        (3569.0, "59 min"),
        (3580.0, "1 h 0 min"),
        (9000.0, "2 h 30 min"),
        (None, "not measured yet"),
    ],
)
def test_durations_are_said_in_their_unit(seconds, text):
    assert plan_of(plan_text([PlannedRun("runs/x", seconds=seconds)]))["runs/x"].time == text


SETTINGS = {"method": {"name": "hybridgl", "alpha": 0.6}, "models": {"device": "cpu"}, "limit": 3}


def leave_summary(folder, settings=SETTINGS, *, seconds=(20.0, 6.0), images=2, age=0):
    folder.mkdir(parents=True)
    path = folder / "summary.json"
    summary = {
        "settings": settings,
        "counts": {"images": images},
        "seconds": {str(stage): one for stage, one in enumerate(seconds)},
    }
    path.write_text(json.dumps(summary))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_time_per_image_is_that_of_the_latest_run(tmp_path):
    leave_summary(tmp_path / "b", seconds=(1.0, 2.0), images=3, age=5)
    leave_summary(tmp_path / "a", age=9)
    other = {**SETTINGS, "limit": None, "method": {"name": "hybridgl", "alpha": 0.2}}
    assert seconds_per_image(tmp_path, other) == 1.0
    leave_summary(tmp_path / "c", age=1)
    assert seconds_per_image(tmp_path, other) == 13.0


@pytest.mark.parametrize(
    "changes",
    [{"models": {"device": "cuda"}}, {"method": {"name": "global_local"}}, {"models": {}}],
)
def test_time_of_other_models_devices_and_methods_says_nothing(tmp_path, changes):
    leave_summary(tmp_path / "a", {**SETTINGS, **changes})
    assert seconds_per_image(tmp_path, SETTINGS) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"settings": {}}',
        '{"settings": {"method": 3, "models": 1}, "seconds": {}}',
        '{"settings": {"method": {"name": "hybridgl"}, "models": {"device": "cpu"}}}',
        '{"settings": {"method": {"name": "hybridgl"}, "models": {"device": "cpu"}},'
        ' "seconds": {"scores": "x"}, "counts": {"images": 1}}',
        '{"settings": {"method": {"name": "hybridgl"}, "models": {"device": "cpu"}},'
        ' "seconds": {"scores": 1}, "counts": {"images": 0}}',
    ],
)
def test_summaries_of_anything_else_say_nothing(tmp_path, content):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/summary.json").write_text(content)
    assert seconds_per_image(tmp_path, SETTINGS) is None


MODELS = {
    "names": {"clip": "ViT-B-16.pt", "sam": "sam_vit_h.pth", "parser": "en_core_web_lg 3.8.0"},
    "sha256": {
        "clip": CLIP_FILES["ViT-B-16"].sha256,
        "sam": SAM_FILES["vit_h"].sha256 + "0" * 58,
        "parser": "ab",
    },
}


def reasons(*, names=(), sha256=(), clip_model="ViT-B-16", set_otherwise=(), whole=True):
    models = {
        "names": {**MODELS["names"], **dict(names)},
        "sha256": {**MODELS["sha256"], **dict(sha256)},
    }
    return reasons_against(models, clip_model=clip_model, set_otherwise=set_otherwise, whole=whole)


def test_published_setting_is_compared():
    assert reasons() == []


def test_run_without_sam_is_compared_as_far_as_weights_go():
    models = {
        "names": {"clip": "ViT-B-16.pt", "parser": "en_core_web_lg 3.8.0"},
        "sha256": {"clip": CLIP_FILES["ViT-B-16"].sha256, "parser": "ab"},
    }
    assert reasons_against(models, clip_model="ViT-B-16", set_otherwise=[], whole=True) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"whole": False}, "the data is not whole, or there are warnings"),
        (
            {"set_otherwise": ["--alpha 0.5", "--dtype bfloat16"]},
            "set otherwise: --alpha 0.5, --dtype bfloat16",
        ),
        ({"sha256": {"clip": "00"}}, "other weights than the published ones: ViT-B-16.pt"),
        ({"sha256": {"sam": "00"}}, "other weights than the published ones: sam_vit_h.pth"),
        (
            {"names": {"parser": "en_tiny_shapes 1"}},
            "other weights than the published ones: en_tiny_shapes 1",
        ),
        ({"clip_model": "RN50"}, "other weights than the published ones: ViT-B-16.pt"),
        ({"clip_model": None}, "other weights than the published ones: ViT-B-16.pt"),
    ],
)
def test_other_run_is_not_compared(changes, reason):
    assert reasons(**changes) == [reason]


def config_of(*argv):
    parsed = hybridgl_main.build_parser().parse_args(["--dataset", "refcoco", *argv])
    return RunConfig.from_arguments(parsed, hybridgl_main.METHODS)


@pytest.mark.parametrize(
    ("argv", "row", "named"),
    [
        ([], [], []),
        (["--profile", "corrected"], [], ["--profile corrected"]),
        (["--profile=corrected"], [], ["--profile corrected"]),
        (["--alpha", "0.5"], [], ["--alpha 0.5"]),
        (["--alpha", "0.6"], [], []),
        (["--alpha", "0.5"], ["--alpha", "0.5"], []),
        (["--fusion_mode", "crop"], [], ["--fusion_mode crop"]),
        (["--fusion_mode", "crop"], ["--fusion_mode", "crop"], []),
        (["--dtype", "bfloat16"], [], ["--dtype bfloat16"]),
        (["--proposals", "gt"], [], ["--proposals gt"]),
        (
            ["--without", "position", "--num_context_masks", "5"],
            [],
            ["--without position", "--num_context_masks 5"],
        ),
        (["--coherence_weights", "1.8", "1.8", "1.8"], [], ["--coherence_weights 1.8 1.8 1.8"]),
        # What the weights' files are is known by their content; the rest is said elsewhere.
        (["--weights", "tiny", "--limit", "2", "--device", "cpu"], [], []),
        (["--clip_model", "RN50"], [], []),
        (["--store", "elsewhere", "--overwrite", "--protocol", "lavt"], [], []),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_settings_that_a_row_does_not_have_are_named_as_they_are_written(argv, row, named):
    assert scripts.reproduce._differences(config_of(*argv), config_of(*row)) == named


CELLS = Table(
    ("method", "setting", "n"),
    (("A_1", "95 % of x", "2"), ("B", "c, d & e", "-")),
    text_columns=2,
)
NOTES = ["[a] R&D_1", "-: nothing"]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The table above, written; the three files' texts by suffix."""
    monkeypatch.chdir(tmp_path)
    path = Path("runs/tables/main-shapes")
    printed = write_table(path, "HybridGL: shapes", "`python\n -m x`, today", CELLS, NOTES)
    texts = {suffix: path.with_suffix(suffix).read_text() for suffix in (".md", ".csv", ".tex")}
    assert printed == f"{texts['.md']}\n{path}.md, .csv, .tex\n"
    return texts


def test_three_forms_hold_the_same_cells(written):
    rows = list(csv.reader(written[".csv"].splitlines()))
    assert rows == [list(CELLS.header), *map(list, CELLS.rows)]
    markdown = [line for line in written[".md"].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in markdown]
    assert [cells[0], *cells[2:]] == rows
    latex = written[".tex"].splitlines()
    tabular = latex[latex.index(r"\midrule") + 1 : latex.index(r"\bottomrule")]
    assert tabular == [r"A\_1 & 95 \% of x & 2 \\", r"B & c, d \& e & - \\"]


def test_heading_and_notes_stand_in_markdown_and_in_latex(written):
    lines = written[".md"].splitlines()
    assert lines[:3] == ["# HybridGL: shapes", "", "`python"]
    assert lines[-2:] == ["* [a] R&D_1", "* -: nothing"]
    latex = written[".tex"].splitlines()
    assert latex[:2] == ["% HybridGL: shapes", "% `python -m x`, today"]
    assert latex[-2:] == [r"\par\noindent {}[a] R\&D\_1", r"\par\noindent -: nothing"]


@pytest.mark.parametrize(
    ("dataset", "split_by", "splits", "expected"),
    [
        ("shapes", "synthetic", None, ["val"]),
        ("phrasecut", "-", None, ["test"]),
        ("refcoco", "unc", None, ["val", "testA", "testB"]),
        ("refcocog", "umd", None, ["val", "test"]),
        ("refcocog", "google", None, ["val"]),
        ("refcoco", "unc", ["testB", "train", "testB"], ["testB", "train"]),
    ],
)
def test_splits_are_those_named_or_those_of_evaluations(dataset, split_by, splits, expected):
    cells = scripts.reproduce._cells(dataset, split_by, splits)
    assert cells == [(dataset, split_by, split) for split in expected]


# Arguments


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The current folder, with nothing in it and no weights within reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--limit 2 --bogus x", "error: unrecognized arguments: --bogus x"),
        ("--limit 2 stray", "error: unrecognized arguments: stray"),
        ("--limit few", "argument --limit: invalid int value: 'few'"),
        ("--weights huge", "argument --weights: invalid choice: 'huge'"),
        ("--output x", "--output is decided by the tables: leave it out"),
        ("--out x", "--output is decided by the tables: leave it out"),
        ("--shard 1/2", "--shard is decided by the tables: leave it out"),
        ("--method global_local", "--method is decided by the tables: leave it out"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(empty, capsys, argv, message):
    with pytest.raises(SystemExit) as stopped:
        main(["--tables", "main", *argv.split()])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert list(empty.iterdir()) == []
    assert message in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "--splits val test",
            "Expected split of shapes with split_by synthetic to be one of train",
        ),
        (
            "--dataset refcoco refcocog --splits val testA",
            "Expected split of refcocog with split_by umd to be one of train, val, test",
        ),
        (
            "--dataset refcoco+ --split_by google",
            "Expected split_by of refcoco+ to be one of unc",
        ),
        ("--limit 0", "Expected limit of at least 1, got 0"),
        ("--tables_folder file", "give another --tables_folder DIR"),
        ("--tables_folder file/below", "give another --tables_folder DIR"),
    ],
)
def test_wrong_splits_and_folders_are_refused_before_any_run(empty, capsys, argv, message):
    (empty / "file").touch()
    assert main(["--tables", "main", *argv.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: Expected ")
    assert message in printed.err
    assert [path.name for path in empty.iterdir()] == ["file"]


# Runs with records that are made up


def made_up_records(evaluation):
    """A record of every sentence, different by variant, in place of what the models make."""
    number = itertools.count()
    for ref in evaluation.split.refs:
        for sentence in ref.sentences:
            n = next(number)
            predictions = {
                variant: ((37 * n + 11 * place) % 101, 100 + n % 7)
                for place, variant in enumerate(evaluation.method.variants)
            }
            ids = {"ref_id": ref.ref_id, "image_id": ref.image_id, "kind": sentence.kind}
            yield record_of(sentence.sent_id, predictions, **ids), None


@pytest.fixture
def made_up(monkeypatch):
    """Runs that load no model: nothing is scored, and records are made up."""
    monkeypatch.setattr(Evaluation, "records", made_up_records)
    monkeypatch.setattr(Run, "_score", lambda *_: None)
    monkeypatch.setattr("evaluation.run.draw_samples", lambda *_: None)


@pytest.fixture
def started(monkeypatch):
    """Folders of the runs that are started, in their order."""
    folders, execute = [], Run.execute

    def noted(self):
        folders.append(str(self.folder))
        return execute(self)

    monkeypatch.setattr(Run, "execute", noted)
    return folders


@pytest.fixture(scope="session")
def shapes(world, clip_file):
    """Arguments for two images of the shapes world."""
    given = ["--refer_data_root", world, "--clip_weights", clip_file, "--device", "cpu"]
    return [*map(str, given), "--limit", "2"]


@pytest.fixture(scope="module")
def first(shapes, tmp_path_factory):
    """A folder in which the tables were made, to be read only."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "records", made_up_records)
        patch.setattr(Run, "_score", lambda *_: None)
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        patch.chdir(folder)
        assert main(["--tables", *TABLES, *shapes]) == 0
    return folder


@pytest.fixture
def made(first, made_up, tmp_path, monkeypatch):
    """The current folder: a copy of what was made."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(name):
    """Rows of a table that have a run."""
    return [row for row in paper_tables(tiny=True)[name].rows if row.arguments is not None]


def folder_of(arguments, shapes):
    """Folder of a run."""
    parsed = hybridgl_main.build_parser().parse_args([*shapes, *arguments])
    return RunConfig.from_arguments(parsed, hybridgl_main.METHODS).folder


def test_one_run_serves_all_rows_that_need_it(empty, shapes, capsys):
    names = [*TABLES, "ablation-fusion"]
    assert main(["--tables", *names, *shapes, "--plan"]) == 0
    folders = {str(folder_of(row.arguments, shapes)) for name in names for row in rows_of(name)}
    assert len(folders) == 11
    printed = capsys.readouterr().out
    assert plan_of(printed).keys() == folders
    assert printed.startswith("shapes: 11 runs, 11 missing (not measured yet)\n")


def check_tables_show_their_runs(names, shapes):
    """Compare every line with its run's summary, and with its records scored again."""
    for name in names:
        rows, lines = rows_of(name), lines_of(f"{name}-shapes")
        assert len(lines) == len(rows)
        for row, line in zip(rows, lines, strict=True):
            folder = folder_of(row.arguments, shapes)
            summary = json.loads((folder / "summary.json").read_text())
            report = Report.of(read_records(folder / "records.jsonl"), PROTOCOLS["zero-shot"])
            variant = row.variant or report.variants[-1]
            shown = (line["method"], line["setting"], line["split"])
            assert shown == (row.method, row.setting, "val")
            assert line["n"] == str(len(report.records)) == str(summary["counts"]["sentences"])
            for score in ("mIoU", "oIoU"):
                value, interval = report.scores[variant][score], report.intervals[variant][score]
                assert line[score] == f"{value:.2f}"
                assert line[f"{score} 95 %"] == "{:.2f} to {:.2f}".format(*interval)
                assert summary["scores"][variant][score] == value
                assert summary["intervals"][variant][score] == interval
                assert line[f"{score} published"] == line[f"{score} difference"] == "-"
            assert line["oracle"] == f"{summary['scores']['oracle']['mIoU']:.2f}"
            assert (line["profile"], line["protocol"]) == ("reference", "zero-shot")


def test_every_row_shows_the_scores_of_its_run(made, shapes):
    check_tables_show_their_runs(TABLES, shapes)


def test_heading_names_table_command_date_and_machine(made, shapes):
    lines = Path("runs/tables/baselines-shapes.md").read_text().splitlines()
    assert lines[0] == "# Baselines: shapes"
    command, day, machine = re.fullmatch(r"`(.+)`, (\S+), (.+)", lines[2]).groups()
    given = ["--tables", *TABLES, *shapes]
    assert shlex.split(command) == ["python", "-m", "scripts.reproduce", *given]
    assert abs((date.fromisoformat(day) - date.today()).days) <= 1
    assert f"{os.cpu_count()} cores" in machine


def test_rows_that_nobody_ran_or_published_on_shapes_are_named_in_a_note(made):
    methods = [line["method"] for line in lines_of("baselines-shapes")]
    assert methods == ["Global-Local CLIP", "HybridGL"]
    (note,) = [note for note in notes_of("baselines-shapes") if note.startswith("left out")]
    for name in ("Global-Local CLIP (FreeSOLO)", "CLIP as RNN", "Ref-Diff", "TAS", "IteRPrimE"):
        assert name in note


def test_part_of_a_split_is_said_to_be_one(made):
    note = "val: Not the whole of shapes val: the first 2 of 4 images."
    assert note in notes_of("main-shapes")


def test_second_time_runs_nothing_and_gives_the_same_tables(made, first, shapes, started, capsys):
    shutil.rmtree("runs/tables")
    assert main(["--tables", *TABLES, *shapes]) == 0
    assert set(states_of(capsys.readouterr().out)) == {"done"}
    assert started == []
    for path in (first / "runs/tables").iterdir():
        assert (Path("runs/tables") / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_tables_go_on_with_the_run_that_was_stopped(
    empty, first, made_up, shapes, monkeypatch, capsys, after
):
    execute, left = Run.execute, [after]

    def interrupted(self):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return execute(self)

    argv = ["--tables", "ablation-guidance", *shapes]
    monkeypatch.setattr(Run, "execute", interrupted)
    assert main(argv) == 130
    assert capsys.readouterr().err.count("interrupted") == 1
    assert not Path("runs/tables").exists()
    monkeypatch.setattr(Run, "execute", execute)
    assert main(argv) == 0
    assert states_of(capsys.readouterr().out) == ["done"] * after + ["missing"] * (5 - after)
    name = "runs/tables/ablation-guidance-shapes.csv"
    assert Path(name).read_bytes() == (first / name).read_bytes()


def damaged_records(folder):
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def records_of_fewer_sentences(folder):
    path = folder / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def records_deleted(folder):
    (folder / "records.jsonl").unlink()


def summary_deleted(folder):
    """As where a run was killed before it wrote one."""
    (folder / "summary.json").unlink()


def other_images(folder):
    """As where images that were missing have come since."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["images_sha256"] = "0" * 64
    path.write_text(json.dumps(summary))


@pytest.mark.parametrize(
    "change",
    [
        damaged_records,
        records_of_fewer_sentences,
        records_deleted,
        summary_deleted,
        other_images,
    ],
)
def test_results_that_do_not_hold_any_more_are_made_again(
    made, first, shapes, started, capsys, change
):
    folder = folder_of((), shapes)
    change(folder)
    assert main(["--tables", *TABLES, *shapes]) == 0
    plan = plan_of(capsys.readouterr().out)
    assert [name for name, line in plan.items() if line.state == "missing"] == [str(folder)]
    assert started == [str(folder)]
    table = "runs/tables/main-shapes.csv"
    assert Path(table).read_bytes() == (first / table).read_bytes()


def test_overwrite_makes_what_is_done_again(made, shapes, started, capsys):
    assert main(["--tables", "main", *shapes, "--overwrite"]) == 0
    assert states_of(capsys.readouterr().out) == ["missing"]
    assert started == [str(folder_of((), shapes))]


def test_plan_writes_nothing_and_runs_nothing(made, shapes, started, capsys):
    shutil.rmtree(folder_of(("--without", "position"), shapes))
    before = tree(made)
    assert main(["--tables", *TABLES, *shapes, "--plan"]) == 0
    assert tree(made) == before
    assert started == []
    assert re.match(r"shapes: 6 runs, 5 done, 1 missing \(\d", capsys.readouterr().out)


def test_singular_of_splits_is_understood(made, shapes, capsys):
    assert main(["--tables", "main", *shapes, "--split", "val", "--plan"]) == 0
    assert list(plan_of(capsys.readouterr().out)) == [str(folder_of((), shapes))]


def test_names_that_come_twice_count_once(made, shapes, capsys):
    twice = ["--dataset", "shapes", "shapes", "--splits", "val", "val"]
    assert main(["--tables", "main", "main", *shapes, *twice]) == 0
    printed = capsys.readouterr().out
    assert len(plan_of(printed)) == 1
    assert printed.count("# HybridGL: shapes") == 1
    assert len(lines_of("main-shapes")) == 3


# What is in the way


def test_run_of_other_weights_is_in_the_way_and_not_shown(empty, made_up, world, started, capsys):
    clip = save_npz(empty / "clip.npz", clip_state(seed=0))
    given = ["--refer_data_root", str(world), "--device", "cpu", "--clip_weights", str(clip)]
    argv = ["--tables", "main", *given]
    assert main(argv) == 0
    (folder,) = started
    save_npz(clip, clip_state(seed=1))
    before = tree(Path(folder))
    capsys.readouterr()
    assert main([*argv, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert states_of(printed) == ["cannot be made"]
    assert "got a run with other models; give another --output DIR, or --overwrite." in printed
    assert main(argv) == 1
    assert started == [folder]
    assert tree(Path(folder)) == before
    assert {line["n"] for line in lines_of("main-shapes")} == {"not made"}
    assert {line["mIoU"] for line in lines_of("main-shapes")} == {"-"}
    (note,) = [note for note in notes_of("main-shapes") if note.startswith("not made: ")]
    assert "other models" in note
    assert main([*argv, "--overwrite"]) == 0
    assert "-" not in {line["mIoU"] for line in lines_of("main-shapes")}


def test_run_of_other_data_is_in_the_way(made, world, shapes, started, capsys):
    path, world_file = world / "shapes/instances.json", world / "shapes/world.json"
    before = {one: one.read_bytes() for one in (path, world_file)}
    try:
        path.write_text(path.read_text() + " ")
        manifest = json.loads(world_file.read_text())
        manifest["files"]["shapes/instances.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
        world_file.write_text(json.dumps(manifest))
        assert main(["--tables", "main", *shapes]) == 1
    finally:
        for one, content in before.items():
            one.write_bytes(content)
    assert "got a run with other data;" in capsys.readouterr().out
    assert started == []


def test_file_in_place_of_a_run_is_in_the_way(made, shapes, started, capsys):
    folder = folder_of(("--without", "position"), shapes)
    shutil.rmtree(folder)
    folder.write_text("a file")
    assert main(["--tables", "main", "ablation-guidance", *shapes]) == 1
    assert plan_of(capsys.readouterr().out)[str(folder)].state == "cannot be made"
    assert [line["n"] for line in lines_of("ablation-guidance-shapes")].count("not made") == 1
    assert not any("not made" in note for note in notes_of("main-shapes"))
    assert started == []


# Runs that cannot be made


@pytest.fixture
def refcoco(empty):
    """Arguments for a small folder in RefCOCO's layout, with the bundled weights."""
    mini_refer("refcoco").write(empty / "data")
    given = ["--dataset", "refcoco", "--splits", "val", "--refer_data_root", str(empty / "data")]
    return [*given, "--weights", "tiny", "--proposals", "gt", "--device", "cpu"]


def test_weights_that_are_not_there_are_named_with_the_command_that_fetches_them(
    refcoco, made_up, started, capsys
):
    given = [argument for argument in refcoco if argument not in ("--weights", "tiny")]
    assert main(["--tables", "main", *given]) == 1
    printed = capsys.readouterr().out
    assert set(states_of(printed)) == {"cannot be made"}
    assert "hybridgl download paper" in printed
    lines = lines_of("main-refcoco")
    assert [line["n"] for line in lines] == ["not made"] * 3
    assert [line["mIoU published"] for line in lines] == ["-", "49.48 [a]", "-"]
    assert started == []


def test_missing_data_leaves_the_published_values(empty, capsys):
    assert main(["--tables", "main", "--dataset", "refcocog", "--weights", "tiny"]) == 1
    printed = capsys.readouterr().out
    assert "2 runs, 2 cannot be made" in printed
    assert printed.count("refer/data") >= 2  # in the plan and in the table
    shown = [line["mIoU published"] for line in lines_of("main-refcocog")]
    assert shown == ["-", "51.25 [a]", "-", "46.66 [e]", "46.04 [e]", "-", "51.59 [a]", "-"]


@pytest.mark.parametrize("error", [HybridGLError, DataError, OSError])
def test_run_that_fails_is_named_and_the_next_is_made(
    empty, made_up, shapes, monkeypatch, capsys, error
):
    execute = Run.execute

    def failing(self):
        if self.config.changed.get("without") == ["relationship"]:
            raise error("Expected something else,\ngot this.")
        return execute(self)

    monkeypatch.setattr(Run, "execute", failing)
    assert main(["--tables", "ablation-guidance", *shapes]) == 1
    not_made = [
        line["setting"] for line in lines_of("ablation-guidance-shapes") if line["n"] == "not made"
    ]
    assert not_made == ["coherence, position"]
    folder = folder_of(("--without", "relationship"), shapes)
    note = f"not made: {folder}: Expected something else, got this."
    assert note in notes_of("ablation-guidance-shapes")


def test_setting_that_a_row_cannot_have_leaves_that_row_unmade(empty, made_up, shapes, capsys):
    assert main(["--tables", "baselines", *shapes, "--alpha", "0.5"]) == 1
    lines = lines_of("baselines-shapes")
    assert [line["n"] == "not made" for line in lines] == [True, False]
    (note,) = [note for note in notes_of("baselines-shapes") if note.startswith("not made: ")]
    assert note.startswith("not made: Global-Local CLIP, SAM, bundled CLIP, val: Expected ")
    assert "--alpha" in note
    assert "besides what a row says, the runs are made with --alpha 0.5" in notes_of(
        "baselines-shapes"
    )


def test_freesolo_masks_of_a_file_are_run(made, world, shapes, started, capsys):
    masks = world / "shapes/instances.json"
    assert main(["--tables", "baselines", *shapes, "--freesolo", str(masks)]) == 0
    assert len(started) == 1
    settings = [line["setting"] for line in lines_of("baselines-shapes")]
    assert settings == ["SAM, bundled CLIP", "FreeSOLO", "SAM"]


def test_rows_of_different_files_of_one_name_have_runs_of_their_own(
    empty, made_up, world, shapes, started
):
    masks = world / "shapes/instances.json"
    other = Path(shutil.copytree(masks.parent, empty / "other")) / "instances.json"
    more = ["--freesolo", str(masks), "--proposals", f"coco:{other}"]
    assert main(["--tables", "baselines", *shapes, *more]) == 0
    assert len(set(started)) == len(started) == 3
    assert not any("not made" in note for note in notes_of("baselines-shapes"))


def test_freesolo_masks_that_are_not_there_leave_one_row_unmade(made, shapes, capsys):
    assert main(["--tables", "baselines", *shapes, "--freesolo", "none.json"]) == 1
    assert "'none.json', got no such file" in capsys.readouterr().out
    lines = lines_of("baselines-shapes")
    assert [line["n"] == "not made" for line in lines] == [False, True, False]


# Published values


def test_small_refcoco_shows_published_values_without_a_difference(refcoco, made_up, capsys):
    assert main(["--tables", "main", "baselines", *refcoco]) == 0
    cell = ("refcoco", "unc", "val")
    for name in ("main-refcoco", "baselines-refcoco"):
        lines = lines_of(name)
        assert {line[f"{m} difference"] for line in lines for m in ("mIoU", "oIoU")} == {"-"}
        shown = [line[f"{m} published"] for line in lines for m in ("mIoU", "oIoU")]
        right = {f"{row.text(cell)} [{SOURCES[row.source].mark}]" for row in ROWS} | {"-"}
        assert set(shown) <= right
        for mark in set(re.findall(r"\[(\w)\]", " ".join(shown))):
            (source,) = [source for source in SOURCES.values() if source.mark == mark]
            assert f"[{mark}] secondary source: {source.text}" in notes_of(name)
    notes = notes_of("main-refcoco")
    why = "not compared with published values: "
    assert f"{why}the data is not whole, or there are warnings" in notes
    assert any(note.startswith("val: Not the whole of refcoco val (unc)") for note in notes)
    assert any(f"{why}other weights than the published ones: clip.npz" in note for note in notes)
    assert "besides what a row says, the runs are made with --proposals gt" in notes


@pytest.fixture
def as_published(empty, made_up, monkeypatch):
    """RefCOCO val as if the small folder were all of it, and the bundled weights the published.

    Returns what takes further arguments, and gives HybridGL's line with guidance and the notes.
    """
    counts = {"unc": {"val": ExpectedCounts(6, 3, 15, sentences_checked=True)}}
    whole = {**refer.splits.SPLITS, "refcoco": counts}
    for place in (refer.splits, refer.config, scripts.reproduce):
        monkeypatch.setattr(place, "SPLITS", whole)
    mini_refer("refcoco").write(empty / "data")
    monkeypatch.setattr(scripts.reproduce, "reasons_against", as_if_published)
    given = ["--dataset", "refcoco", "--weights", "tiny", "--device", "cpu"]
    given += ["--refer_data_root", str(empty / "data")]

    def line(*more):
        assert main(["--tables", "main", *given, *more]) == 0
        lines = lines_of("main-refcoco")
        (with_guidance,) = [line for line in lines if line["setting"] == "with guidance"]
        return with_guidance, notes_of("main-refcoco")

    return line


def as_if_published(_, **known):
    assert known["clip_model"] == "ViT-B-16"
    return reasons_against(MODELS, **known)


def test_whole_split_in_the_published_setting_is_compared(as_published):
    line, notes = as_published()
    assert line["mIoU published"] == "49.48 [a]"
    assert line["mIoU difference"] == f"{float(line['mIoU']) - 49.48:+.2f}"
    assert line["oIoU difference"] == "-"
    assert not any("not compared" in note for note in notes)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--profile", "corrected"], "set otherwise: --profile corrected"),
        (["--alpha", "0.5"], "set otherwise: --alpha 0.5"),
        (["--limit", "2"], "the data is not whole, or there are warnings"),
        (["--protocol", "lavt"], "protocol lavt, theirs is zero-shot"),
        (["--protocol", "lisa"], "protocol lisa, theirs is zero-shot"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_other_setting_is_not_compared(as_published, more, reason):
    line, notes = as_published(*more)
    mean = "gIoU" if "lisa" in more else "mIoU"
    assert (line["mIoU published"], line[f"{mean} difference"]) == ("49.48 [a]", "-")
    given = [note for note in notes if note.startswith("not compared with published values: ")]
    assert [note.partition(": ")[2] for note in given] == [reason]
    assert line["profile"] == ("corrected" if "corrected" in more else "reference")
    assert line["protocol"] == (more[-1] if "--protocol" in more else "zero-shot")


def test_image_that_came_since_makes_the_run_again(as_published, empty, started):
    first = mini_refer("refcoco").instances["images"][0]["file_name"]
    path = empty / "data/images/mscoco/images/train2014" / first
    content = path.read_bytes()
    path.unlink()
    line, notes = as_published()
    assert line["mIoU difference"] == "-"
    assert any("1 of 3 images of refcoco val are missing" in note for note in notes)
    path.write_bytes(content)
    line, _ = as_published()
    assert started[0] == started[1]
    assert line["mIoU difference"] != "-"


def test_splits_of_another_author_have_their_own_table_and_values(empty, capsys):
    given = ["--tables", "baselines", "--dataset", "refcocog", "--weights", "tiny"]
    assert main([*given, "--split_by", "google"]) == 1
    assert not Path("runs/tables/baselines-refcocog.csv").exists()
    lines = lines_of("baselines-refcocog-google")
    by_method = {line["method"]: line for line in lines if line["n"] == "-"}
    assert {line["split"] for line in lines} == {"val"}
    assert by_method["CLIP as RNN"]["mIoU published"] == "36.63 [c]"
    assert by_method["TAS"]["oIoU published"] == "-"
    assert "oIoU" in by_method["TAS"]


def test_several_datasets_and_splits_have_a_table_each(empty, made_up, world, clip_file, capsys):
    mini_refer("refcoco").write(empty / "data")
    shutil.copytree(world, empty / "data", dirs_exist_ok=True)
    given = ["--refer_data_root", "data", "--weights=tiny", "--clip_weights", str(clip_file)]
    given += ["--device", "cpu", "--limit", "1", "--proposals", "gt"]
    datasets = ["--dataset", "refcoco", "shapes", "refcocog"]
    assert main(["--tables", "main", *datasets, *given]) == 1
    splits = [line["split"] for line in lines_of("main-refcoco")]
    assert splits == ["val"] * 3 + ["testA"] * 3 + ["testB"] * 3
    assert [line["split"] for line in lines_of("main-shapes")] == ["val"] * 3
    assert {line["n"] for line in lines_of("main-refcocog")} == {"not made", "-"}


@pytest.mark.parametrize("given", [["--weights", "paper"], ["--weights=paper"]])
def test_weights_decide_which_baselines_there_are(empty, world, capsys, given):
    """Nothing else that is called tiny does."""
    argv = ["--tables", "baselines", "--store", "tiny", "--refer_data_root", str(world), *given]
    assert main(argv) == 1
    settings = [line["setting"] for line in lines_of("baselines-shapes") if line["n"] == "not made"]
    assert settings == ["SAM, CLIP ViT-B-32", "SAM, CLIP RN50", "SAM"]


# Everything


@pytest.mark.slow
def test_tables_of_real_runs(empty, shapes, monkeypatch, capsys):
    monkeypatch.setattr("evaluation.run.draw_samples", lambda *_: None)
    names = ["main", "baselines", "ablation-fusion"]
    assert main(["--tables", *names, *shapes]) == 0
    check_tables_show_their_runs(names, shapes)
    shutil.rmtree("store")
    capsys.readouterr()
    assert main(["--tables", *names, *shapes]) == 0
    assert set(states_of(capsys.readouterr().out)) == {"done"}


@pytest.mark.slow
def test_weights_of_another_model_leave_their_rows_unmade_and_the_others_made(
    empty, shapes, monkeypatch, capsys
):
    """Of the paper's settings only HybridGL's has no architecture that the given file lacks."""
    monkeypatch.setattr("evaluation.run.draw_samples", lambda *_: None)
    tiny = ["--sam_type", "tiny", "--spacy_model", str(BUNDLED / "spacy")]
    given = ["--weights", "paper", *tiny, *shapes]
    assert main(["--tables", "baselines", "main", *given]) == 1
    lines = {
        line["setting"]: line["n"] for line in lines_of("baselines-shapes") if line["n"] != "-"
    }
    assert lines.pop("SAM").isdigit()
    assert lines == {"SAM, CLIP ViT-B-32": "not made", "SAM, CLIP RN50": "not made"}
    (one, other) = [note for note in notes_of("baselines-shapes") if "not made" in note]
    assert "ViT-B-32" in one
    assert "RN50" in other
    assert not any("not made" in note for note in notes_of("main-shapes"))


@pytest.mark.slow
def test_phrasecut_is_broken_down_by_kind_under_its_protocol(empty, monkeypatch):
    monkeypatch.setattr("evaluation.run.draw_samples", lambda *_: None)
    mini_phrasecut().write(empty / "data/phrasecut")
    given = ["--dataset", "phrasecut", "--splits", "val", "--refer_data_root", str(empty / "data")]
    given += ["--weights", "tiny", "--device", "cpu", "--proposals", "gt"]
    assert main(["--tables", "phrasecut", "main", *given, "--protocol", "lavt"]) == 0
    lines = lines_of("phrasecut-phrasecut")
    shown = [(line["setting"], line["n"]) for line in lines]
    for setting in ("mask features alone", "with guidance", "SAM"):
        assert (setting, "9") in shown
        assert (f"{setting}, seen", "3") in shown
        assert (f"{setting}, unseen", "6") in shown
    assert {line["protocol"] for line in lines} == {"phrasecut"}
    assert {line["oIoU published"] for line in lines} == {"-"}  # they are of the test split
    lines = lines_of("main-phrasecut")
    assert {line["protocol"] for line in lines} == {"lavt"}
    assert len(lines) == 3
