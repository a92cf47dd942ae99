"""``scripts/reproduce.py``: plan, runs and tables on small data, from beginning to end."""

from __future__ import annotations

import csv
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
import refer.splits
import scripts.reproduce
from evaluation.published import ROWS, SOURCES
from evaluation.records import read_records
from evaluation.report import intervals_by_pick, score_by_pick
from evaluation.run import run_name
from evaluation.tables import Choices, paper_table
from hybridgl.errors import HybridGLError
from hybridgl.files import file_sha256
from hybridgl.methods.global_local import GlobalLocalClip
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.metrics import PROTOCOLS
from hybridgl.weights.registry import WeightsFile
from refer.arguments import check_split_arguments
from refer.splits import ExpectedCounts
from scripts.reproduce import main
from tests.factories_clip import clip_state, save_npz
from tests.refer_factories import mini_phrasecut, mini_refer

CARRIED = Path(hybridgl.__file__).parent / "weights" / "tiny"
TABLES = ["main", "baselines", "ablation-fusion", "ablation-guidance"]

pytestmark = pytest.mark.usefixtures("without_figures")


@dataclass(frozen=True)
class Line:
    """A line of a plan."""

    state: str
    time: str


def plan_of(printed):
    """Lines of a printed plan by their folders."""
    found = re.findall(r"^\| (runs/\S+) +\| (.+?) +\| +(.+?) \|$", printed, re.MULTILINE)
    return {Path(run).name: Line(state, time) for run, state, time in found}


def lines_of(path):
    """Lines of a table as dicts, from its CSV file."""
    with path.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def notes_of(path):
    text = path.with_suffix(".md").read_text()
    return [line.removeprefix("* ") for line in text.splitlines() if line.startswith("* ")]


@pytest.fixture(scope="session")
def shapes(world, clip_file):
    """Arguments for two images of the shapes world."""
    given = ["--refer_data_root", world, "--clip_weights", clip_file, "--device", "cpu"]
    return [*map(str, given), "--limit", "2"]


@pytest.fixture(scope="module")
def made(shapes, tmp_path_factory):
    """A folder in which all four tables were made, to be read only."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        patch.chdir(folder)
        assert main(["--tables", *TABLES, *shapes]) == 0
    return folder


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """The current folder: a copy of what was made."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stored(made, tmp_path, monkeypatch):
    """The current folder: the store of what was made, without the runs."""
    shutil.copytree(made / "store", tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The current folder, with nothing in it and no weights within reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


@pytest.fixture
def started(monkeypatch):
    """Names of the runs that are started, in their order."""
    names, run = [], hybridgl_main.run

    def noted(arguments):
        names.append(run_name(arguments, check_split_arguments(arguments)))
        run(arguments)

    monkeypatch.setattr(hybridgl_main, "run", noted)
    return names


@pytest.fixture
def refcoco(empty):
    """Arguments for a small folder in RefCOCO's layout, with the bundled weights."""
    mini_refer("refcoco").write(empty / "data")
    given = ["--dataset", "refcoco", "--splits", "val", "--refer_data_root", str(empty / "data")]
    return [*given, "--weights", "tiny", "--proposals", "gt", "--device", "cpu"]


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# Tables


def own_rows(name):
    """Rows of a table that have a run."""
    rows = paper_table(name, Choices(tiny=True)).rows
    return [row for row in rows if row.arguments is not None]


def folder_of(row, shapes):
    """Name of the folder of a row's run."""
    parsed = hybridgl_main.build_parser().parse_args([*shapes, *row.arguments])
    return run_name(parsed, check_split_arguments(parsed))


def test_one_run_serves_all_rows_that_need_it(made, shapes):
    names = {folder_of(row, shapes) for name in TABLES for row in own_rows(name)}
    assert len(names) == 11
    assert {path.name for path in (made / "runs").iterdir()} == names | {"tables"}


@pytest.mark.parametrize("name", TABLES)
def test_every_row_shows_the_scores_of_its_run(made, shapes, name):
    """Against the run's summary, and against its records scored again."""
    lines = lines_of(made / f"runs/tables/{name}-shapes")
    rows = own_rows(name)
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        folder = made / "runs" / folder_of(row, shapes)
        summary = json.loads((folder / "summary.json").read_text())
        baseline = row.method == "Global-Local CLIP"
        pick = row.pick or (GlobalLocalClip if baseline else HybridGL).final_pick
        records = read_records(folder / "records.jsonl")
        again = score_by_pick(records, PROTOCOLS["zero-shot"])[pick]
        intervals = intervals_by_pick(records, PROTOCOLS["zero-shot"])[pick]
        assert (line["method"], line["setting"], line["split"]) == (row.method, row.setting, "val")
        assert line["n"] == str(len(records)) == str(summary["counts"]["sentences"])
        for score in ("mIoU", "oIoU"):
            assert line[score] == f"{again[score]:.2f}" == f"{summary['scores'][pick][score]:.2f}"
            span = "{:.2f} to {:.2f}"
            assert line[f"{score} 95 %"] == span.format(*intervals[score])
            assert line[f"{score} 95 %"] == span.format(*summary["intervals"][pick][score])
            assert line[f"{score} published"] == line[f"{score} difference"] == "-"
        assert line["best proposal"] == f"{summary['scores']['best']['mIoU']:.2f}"
        assert (line["profile"], line["protocol"]) == ("reference", "zero-shot")


@pytest.mark.parametrize("name", TABLES)
def test_three_forms_hold_the_same_cells(made, name):
    path = made / f"runs/tables/{name}-shapes"
    with path.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.reader(file))
    text = path.with_suffix(".md").read_text()
    markdown = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in markdown]
    assert [cells[0], *cells[2:]] == rows
    latex = path.with_suffix(".tex").read_text().splitlines()
    tabular = latex[latex.index(r"\midrule") + 1 : latex.index(r"\bottomrule")]
    assert [line.removesuffix(r" \\").split(" & ") for line in tabular] == [
        [cell.replace("_", r"\_") for cell in row] for row in rows[1:]
    ]


@pytest.mark.parametrize("name", TABLES)
def test_latex_is_balanced_and_escaped(made, name):
    text = (made / f"runs/tables/{name}-shapes.tex").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    begin = lines.index(next(line for line in lines if line.startswith(r"\begin{tabular}{")))
    end = lines.index(r"\end{tabular}")
    columns = len(re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", lines[begin])[1])
    rules = [lines[begin + 1], lines[begin + 3], lines[end - 1]]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    rows = [lines[begin + 2], *lines[begin + 4 : end - 1]]
    for row in rows:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == columns - 1
    for line in [*rows, *lines[end + 1 :]]:
        bare = re.sub(r"\\(text\w+\{\}|par\\noindent|\\$|[&%$#_{}])", "", line).replace(" & ", "")
        assert not set(bare) & set("\\&%$#_{}~^<>")


def test_notes_stand_below_the_table_in_latex_too(made):
    path = made / "runs/tables/main-shapes"
    text = path.with_suffix(".tex").read_text().replace(r"\_", "_")
    assert notes_of(path)
    for note in notes_of(path):
        assert rf"\par\noindent {note}" in text


def test_heading_names_table_command_date_and_machine(made, shapes):
    lines = (made / "runs/tables/baselines-shapes.md").read_text().splitlines()
    assert lines[0] == "# Baselines: shapes"
    command, day, machine = re.fullmatch(r"`(.+)`, (\S+), (.+)", lines[2]).groups()
    given = ["--tables", *TABLES, *shapes]
    assert shlex.split(command) == ["python", "scripts/reproduce.py", *given]
    assert abs((date.fromisoformat(day) - date.today()).days) <= 1
    assert f"{os.cpu_count()} cores" in machine


def test_rows_that_nobody_ran_or_published_on_shapes_are_named_in_a_note(made):
    path = made / "runs/tables/baselines-shapes"
    assert [line["method"] for line in lines_of(path)] == ["Global-Local CLIP", "HybridGL"]
    (note,) = [note for note in notes_of(path) if note.startswith("left out")]
    for name in ("Global-Local CLIP (FreeSOLO)", "CLIP as RNN", "Ref-Diff", "TAS", "IteRPrimE"):
        assert name in note


def test_part_of_a_split_is_said_to_be_one(made):
    note = "val: Not the whole of shapes val: the first 2 of 4 images."
    assert note in notes_of(made / "runs/tables/main-shapes")


# Again, and after interruptions


def test_second_time_runs_nothing_and_gives_the_same_tables(
    copied, made, shapes, monkeypatch, capsys
):
    monkeypatch.setattr(hybridgl_main, "run", None)
    shutil.rmtree("runs/tables")
    shutil.rmtree("store")
    assert main(["--tables", *TABLES, *shapes]) == 0
    assert {line.state for line in plan_of(capsys.readouterr().out).values()} == {"done"}
    for path in (made / "runs/tables").iterdir():
        assert (Path("runs/tables") / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_tables_go_on_with_the_run_that_was_stopped(
    stored, made, shapes, monkeypatch, capsys, after
):
    run, left = hybridgl_main.run, [after]

    def interrupted(arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        run(arguments)

    argv = ["--tables", "ablation-guidance", *shapes]
    monkeypatch.setattr(hybridgl_main, "run", interrupted)
    assert main(argv) == 130
    printed = capsys.readouterr()
    assert printed.err.count("interrupted") == 1
    assert not Path("runs/tables").exists()
    monkeypatch.setattr(hybridgl_main, "run", run)
    assert main(argv) == 0
    states = [line.state for line in plan_of(capsys.readouterr().out).values()]
    assert states == ["done"] * after + ["missing"] * (5 - after)
    name = "ablation-guidance-shapes.csv"
    assert (Path("runs/tables") / name).read_bytes() == (made / "runs/tables" / name).read_bytes()


def test_run_that_was_killed_before_its_summary_is_missing(copied, shapes, started, capsys):
    Path("runs/shapes-val-first-2-crop-reference-clip/summary.json").unlink()
    assert main(["--tables", *TABLES, *shapes]) == 0
    assert started == ["shapes-val-first-2-crop-reference-clip"]


def damaged_records(folder):
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def records_of_fewer_sentences(folder):
    path = folder / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def records_deleted(folder):
    (folder / "records.jsonl").unlink()


def other_faults(folder):
    """As where images that were missing have come since."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["image_errors"]["missing"] = [2000000]
    path.write_text(json.dumps(summary))


@pytest.mark.parametrize(
    "change", [damaged_records, records_of_fewer_sentences, records_deleted, other_faults]
)
def test_results_that_do_not_hold_any_more_are_made_again(
    copied, made, shapes, started, capsys, change
):
    name = "shapes-val-first-2-G2L-reference-clip"
    change(Path("runs") / name)
    assert main(["--tables", "main", *shapes]) == 0
    assert plan_of(capsys.readouterr().out)[name].state == "missing"
    assert started == [name]
    table = "runs/tables/main-shapes.csv"
    assert Path(table).read_bytes() == (made / table).read_bytes()


def test_overwrite_makes_what_is_done_again(copied, shapes, started, capsys):
    assert main(["--tables", "main", *shapes, "--overwrite"]) == 0
    (line,) = plan_of(capsys.readouterr().out).values()
    assert line.state == "missing"
    assert started == ["shapes-val-first-2-G2L-reference-clip"]


# What is in the way


def test_run_of_other_weights_is_in_the_way_and_not_shown(copied, shapes, started, capsys):
    other = save_npz(copied / "other.npz", clip_state(seed=1))
    argv = ["--tables", "main", *shapes, "--clip_weights", str(other)]
    folder = Path("runs/shapes-val-first-2-G2L-reference-clip")
    folder = folder.rename(folder.with_name("shapes-val-first-2-G2L-reference-other"))
    before = tree(folder)
    assert main([*argv, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert plan_of(printed)[folder.name].state == "cannot be made"
    assert "found a run with other weights. Give another --output DIR, or --overwrite." in printed
    assert main(argv) == 1
    assert started == []
    assert tree(folder) == before
    path = Path("runs/tables/main-shapes")
    assert {line["n"] for line in lines_of(path)} == {"not made"}
    assert {line["mIoU"] for line in lines_of(path)} == {"-"}
    (note,) = [note for note in notes_of(path) if note.startswith("not made: ")]
    assert "other weights" in note
    assert main([*argv, "--overwrite"]) == 0
    assert "-" not in {line["mIoU"] for line in lines_of(path)}


def test_run_of_other_data_is_in_the_way(copied, world, shapes, started, capsys):
    root = Path(shutil.copytree(world, "data"))
    path = root / "shapes/instances.json"
    path.write_text(path.read_text() + " ")
    shapes_manifest = json.loads((root / "shapes/world.json").read_text())
    shapes_manifest["files"]["shapes/instances.json"] = file_sha256(path)
    (root / "shapes/world.json").write_text(json.dumps(shapes_manifest))
    assert main(["--tables", "main", *shapes, "--refer_data_root", "data"]) == 1
    assert "found a run with other data." in capsys.readouterr().out
    assert started == []


def test_file_in_place_of_a_run_is_in_the_way(copied, shapes, started, capsys):
    folder = Path("runs/shapes-val-first-2-crop-reference-clip")
    shutil.rmtree(folder)
    folder.write_text("a file")
    assert main(["--tables", "main", "ablation-fusion", *shapes]) == 1
    assert plan_of(capsys.readouterr().out)[folder.name].state == "cannot be made"
    assert [line["n"] for line in lines_of(Path("runs/tables/ablation-fusion-shapes"))].count(
        "not made"
    ) == 2
    assert not any("not made" in note for note in notes_of(Path("runs/tables/main-shapes")))
    assert started == []


# Runs that cannot be made


def test_missing_weights_leave_their_rows_unmade_and_the_others_made(
    empty, shapes, clip_file, capsys
):
    """Of the paper's settings only HybridGL's finds its weights, where CLIP's file is named."""
    tiny = ["--sam_type", "tiny", "--spacy_model", str(CARRIED / "spacy")]
    given = ["--weights", "paper", *tiny, *shapes]
    assert main(["--tables", "baselines", "main", *given]) == 1
    lines = {
        line["setting"]: line["n"]
        for line in lines_of(Path("runs/tables/baselines-shapes"))
        if line["n"] != "-"
    }
    assert lines.pop("SAM").isdigit()
    assert lines == {"SAM, CLIP ViT-B-32": "not made", "SAM, CLIP RN50": "not made"}
    (one, other) = [
        note for note in notes_of(Path("runs/tables/baselines-shapes")) if "not made" in note
    ]
    assert "ViT-B-32" in one
    assert "RN50" in other
    assert not any("not made" in note for note in notes_of(Path("runs/tables/main-shapes")))


def test_weights_that_are_not_there_are_named_with_the_command_that_fetches_them(
    refcoco, started, capsys
):
    given = [argument for argument in refcoco if argument not in ("--weights", "tiny")]
    assert main(["--tables", "main", *given]) == 1
    printed = capsys.readouterr().out
    assert {line.state for line in plan_of(printed).values()} == {"cannot be made"}
    assert "hybridgl download clip-ViT-B-16" in printed
    lines = lines_of(Path("runs/tables/main-refcoco"))
    assert [line["n"] for line in lines] == ["not made"] * 3
    assert [line["mIoU published"] for line in lines] == ["-", "49.48 [a]", "-"]
    assert started == []


def test_missing_data_leaves_the_published_values(empty, capsys):
    assert main(["--tables", "main", "--dataset", "refcocog", "--weights", "tiny"]) == 1
    printed = capsys.readouterr().out
    assert "2 runs, 2 cannot be made" in printed
    assert printed.count("there is no data folder refer/data") == 2  # in the plan and in the table
    shown = [line["mIoU published"] for line in lines_of(Path("runs/tables/main-refcocog"))]
    assert shown == ["-", "51.25 [a]", "-", "46.66 [e]", "46.04 [e]", "-", "51.59 [a]", "-"]


def test_run_that_fails_is_named_and_the_next_is_made(stored, shapes, monkeypatch, capsys):
    run = hybridgl_main.run

    def failing(arguments):
        if arguments.without == ["relationship"]:
            raise HybridGLError("Expected something else,\ngot this.")
        run(arguments)

    monkeypatch.setattr(hybridgl_main, "run", failing)
    assert main(["--tables", "ablation-guidance", *shapes]) == 1
    path = Path("runs/tables/ablation-guidance-shapes")
    not_made = [line["setting"] for line in lines_of(path) if line["n"] == "not made"]
    assert not_made == ["coherence, position"]
    name = "runs/shapes-val-first-2-G2L-reference-without-relationship-clip"
    assert f"not made: {name}: Expected something else, got this." in notes_of(path)


def test_freesolo_masks_of_a_file_are_run(copied, world, shapes, started, capsys):
    masks = world / "shapes/instances.json"
    assert main(["--tables", "baselines", *shapes, "--freesolo", str(masks)]) == 0
    (name,) = started
    assert name.startswith("shapes-val-first-2-global_local-reference-")
    (line,) = [
        line
        for line in lines_of(Path("runs/tables/baselines-shapes"))
        if line["setting"] == "FreeSOLO"
    ]
    assert line["best proposal"] == "100.00"


def test_rows_of_different_files_of_one_name_do_not_share_a_run(empty, world, shapes, capsys):
    masks = world / "shapes/instances.json"
    other = Path(shutil.copytree(masks.parent, empty / "other")) / "instances.json"
    more = ["--freesolo", str(masks), "--proposals", f"coco:{other}"]
    assert main(["--tables", "baselines", *shapes, *more]) == 1
    lines = lines_of(Path("runs/tables/baselines-shapes"))
    not_made = {line["setting"]: line["n"] == "not made" for line in lines}
    assert not_made == {"SAM, bundled CLIP": False, "FreeSOLO": True, "SAM": False}
    (note,) = [
        note for note in notes_of(Path("runs/tables/baselines-shapes")) if "not made" in note
    ]
    assert f"--proposals coco:{masks}, got that of another row" in note


def test_freesolo_masks_that_are_not_there_leave_one_row_unmade(copied, shapes, capsys):
    assert main(["--tables", "baselines", *shapes, "--freesolo", "none.json"]) == 1
    lines = lines_of(Path("runs/tables/baselines-shapes"))
    assert [line["n"] == "not made" for line in lines] == [False, True, False]


# Published values


def test_small_refcoco_shows_published_values_without_a_difference(refcoco, capsys):
    assert main(["--tables", "main", "baselines", *refcoco]) == 0
    cell = ("refcoco", "unc", "val")
    for name in ("main", "baselines"):
        path = Path(f"runs/tables/{name}-refcoco")
        assert {line[f"{m} difference"] for line in lines_of(path) for m in ("mIoU", "oIoU")} == {
            "-"
        }
        shown = [line[f"{m} published"] for line in lines_of(path) for m in ("mIoU", "oIoU")]
        right = {f"{row.text(cell)} [{SOURCES[row.source].mark}]" for row in ROWS} | {"-"}
        assert set(shown) <= right
        for mark in set(re.findall(r"\[(\w)\]", " ".join(shown))):
            (source,) = [source for source in SOURCES.values() if source.mark == mark]
            assert f"[{mark}] secondary source: {source.text}" in notes_of(path)
    notes = notes_of(Path("runs/tables/main-refcoco"))
    assert "not compared with published values: the data is not whole, or doubtful" in notes
    assert any(note.startswith("val: Not the whole of refcoco val (unc)") for note in notes)
    assert any("other weights than the published ones: clip.npz" in note for note in notes)
    assert "besides what a row says, the runs are made with --proposals gt" in notes


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Shared by runs on the same small folder."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def as_published(empty, store, monkeypatch):
    """Arguments for RefCOCO val as if the small folder were all of it, and the tiny weights real.

    Returns what takes further arguments and gives the line of HybridGL with guidance.
    """
    counts = {"unc": {"val": ExpectedCounts(6, 3, 15, sentences_checked=True)}}
    whole = {**refer.splits.SPLITS, "refcoco": counts}
    for place in (refer.splits, scripts.reproduce):
        monkeypatch.setattr(place, "SPLITS", whole)
    mini_refer("refcoco").write(empty / "data")
    clip, sam = (
        WeightsFile("", "", "", file_sha256(CARRIED / name)[:6]) for name in ("clip.npz", "sam.npz")
    )
    monkeypatch.setattr(scripts.reproduce, "CLIP_FILES", {"ViT-B-16": clip})
    monkeypatch.setattr(scripts.reproduce, "SAM_FILES", {"vit_h": sam})
    monkeypatch.setattr(scripts.reproduce, "SPACY_MODEL", "en_tiny_shapes")
    given = ["--dataset", "refcoco", "--weights", "tiny", "--device", "cpu"]
    given += ["--refer_data_root", str(empty / "data"), "--store", str(store)]

    def line(*more):
        assert main(["--tables", "main", *given, *more]) == 0
        path = Path("runs/tables/main-refcoco")
        (with_guidance,) = [line for line in lines_of(path) if line["setting"] == "with guidance"]
        return with_guidance, notes_of(path)

    return line


def test_whole_split_in_the_published_setting_is_compared(as_published, capsys):
    line, notes = as_published()
    assert line["mIoU published"] == "49.48 [a]"
    assert line["mIoU difference"] == f"{float(line['mIoU']) - 49.48:+.2f}"
    assert line["oIoU difference"] == "-"
    assert not any("not compared" in note for note in notes)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--profile", "corrected"], "set otherwise: --profile corrected"),
        (["--profile=corrected"], "set otherwise: --profile corrected"),
        (["--alpha", "0.5"], "set otherwise: --alpha 0.5"),
        (["--fusion_mode", "crop"], "set otherwise: --fusion_mode crop"),
        (["--dtype", "bfloat16"], "set otherwise: --dtype bfloat16"),
        (["--proposals", "gt"], "set otherwise: --proposals gt"),
        (
            ["--without", "position", "--num_context_masks", "5"],
            "set otherwise: --without position, --num_context_masks 5",
        ),
        (["--limit", "2"], "the data is not whole, or doubtful"),
        (["--protocol", "lavt"], "protocol lavt, theirs is zero-shot"),
        (["--protocol", "lisa"], "protocol lisa, theirs is zero-shot"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_other_setting_is_not_compared(as_published, capsys, more, reason):
    line, notes = as_published(*more)
    mean = "gIoU" if "lisa" in more else "mIoU"
    assert (line["mIoU published"], line[f"{mean} difference"]) == ("49.48 [a]", "-")
    reasons = [note for note in notes if note.startswith("not compared with published values: ")]
    assert [note.partition(": ")[2] for note in reasons] == [reason]
    assert line["profile"] == ("corrected" if "corrected" in more[-1] else "reference")
    assert line["protocol"] == (more[-1] if "--protocol" in more else "zero-shot")


def test_problem_of_the_data_is_not_compared(as_published, empty, capsys):
    first = mini_refer("refcoco").instances["images"][0]["file_name"]
    (empty / "data/images/mscoco/images/train2014" / first).unlink()
    line, notes = as_published()
    assert line["mIoU difference"] == "-"
    assert any("1 of 3 images of refcoco val are missing" in note for note in notes)
    assert "not compared with published values: the data is not whole, or doubtful" in notes


def test_image_that_came_since_makes_the_run_again(as_published, empty, started, capsys):
    first = mini_refer("refcoco").instances["images"][0]["file_name"]
    path = empty / "data/images/mscoco/images/train2014" / first
    content = path.read_bytes()
    path.unlink()
    as_published()
    path.write_bytes(content)
    line, _ = as_published()
    assert started == ["refcoco-val-G2L-reference-tiny"] * 2
    assert line["mIoU difference"] != "-"


@pytest.mark.parametrize("model", ["clip", "sam", "spacy"])
def test_other_weights_are_not_compared(as_published, monkeypatch, capsys, model):
    other = WeightsFile("", "", "", "0123456789")
    if model == "spacy":
        monkeypatch.setattr(scripts.reproduce, "SPACY_MODEL", "en_core_web_lg")
    elif model == "clip":
        monkeypatch.setattr(scripts.reproduce, "CLIP_FILES", {"ViT-B-16": other})
    else:
        monkeypatch.setattr(scripts.reproduce, "SAM_FILES", {"vit_h": other})
    line, notes = as_published()
    assert line["mIoU difference"] == "-"
    name = {"clip": "clip.npz", "sam": "sam.npz", "spacy": "en_tiny_shapes 1"}[model]
    reason = f"other weights than the published ones: {name}"
    assert f"not compared with published values: {reason}" in notes


def test_splits_of_another_author_have_their_own_table_and_values(empty, capsys):
    given = ["--tables", "baselines", "--dataset", "refcocog", "--weights", "tiny"]
    assert main([*given, "--split_by", "google"]) == 1
    assert not Path("runs/tables/baselines-refcocog.csv").exists()
    lines = lines_of(Path("runs/tables/baselines-refcocog-google"))
    by_method = {line["method"]: line for line in lines if line["n"] == "-"}
    assert {line["split"] for line in lines} == {"val"}
    assert by_method["CLIP as RNN"]["mIoU published"] == "36.63 [c]"
    assert by_method["TAS"]["oIoU published"] == "-"
    assert "oIoU" in by_method["TAS"]


def test_phrasecut_is_broken_down_by_kind_under_its_convention(empty, capsys):
    mini_phrasecut().write(empty / "data/phrasecut")
    given = ["--dataset", "phrasecut", "--splits", "val", "--refer_data_root", str(empty / "data")]
    given += ["--weights", "tiny", "--device", "cpu", "--proposals", "gt"]
    assert main(["--tables", "phrasecut", "main", *given, "--protocol", "lavt"]) == 0
    lines = lines_of(Path("runs/tables/phrasecut-phrasecut"))
    told = [(line["setting"], line["n"]) for line in lines]
    for setting in ("pure features", "with guidance", "SAM"):
        assert (setting, "9") in told
        assert (f"{setting}, seen", "3") in told
        assert (f"{setting}, unseen", "6") in told
    assert {line["protocol"] for line in lines} == {"phrasecut"}
    assert {line["oIoU published"] for line in lines} == {"-"}  # they are of the test split
    lines = lines_of(Path("runs/tables/main-phrasecut"))
    assert {line["protocol"] for line in lines} == {"lavt"}
    assert len(lines) == 3


# Arguments


@pytest.fixture
def refused(empty, capsys):
    """Checks that arguments are refused with a usage message before any work."""

    def check(*argv):
        with pytest.raises(SystemExit) as stopped:
            main(["--tables", "main", *argv])
        assert stopped.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert list(empty.iterdir()) == []
        return printed.err.splitlines()[-1]

    return check


def test_unknown_arguments_are_refused(refused):
    assert refused("--limit", "2", "--bogus", "x").endswith(
        "error: unrecognized arguments: --bogus x"
    )
    assert refused("--limit", "2", "stray").endswith("error: unrecognized arguments: stray")


def test_wrong_values_of_passed_arguments_are_refused(refused):
    assert "argument --limit: invalid int value: 'few'" in refused("--limit", "few")
    assert "argument --weights: invalid choice: 'huge'" in refused("--weights", "huge")


@pytest.mark.parametrize(
    "argv",
    [("--output", "x"), ("--out", "x"), ("--shard", "1/2"), ("--method", "global_local")],
    ids=" ".join,
)
def test_what_the_tables_decide_is_refused(refused, argv):
    line = refused(*argv)
    assert line.endswith("is decided by the tables: leave it out")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--splits", "val", "test"],
            "Expected split of shapes with split_by synthetic to be one of train, val, testA, "
            "testB; got 'test'.",
        ),
        (
            ["--dataset", "refcoco", "refcocog", "--splits", "val", "testA"],
            "Expected split of refcocog with split_by umd to be one of train, val, test; got "
            "'testA'.",
        ),
        (
            ["--dataset", "refcoco+", "--split_by", "google"],
            "Expected split_by of refcoco+ to be one of unc; got 'google'.",
        ),
        (["--limit", "0"], "Expected --limit of at least 1 image, got 0."),
    ],
)
def test_wrong_splits_are_refused_with_the_right_ones(empty, capsys, argv, message):
    assert main(["--tables", "main", *argv]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {message}\n")
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_tables_folder_that_cannot_be_is_refused_before_any_run(
    empty, shapes, started, capsys, place
):
    (empty / "file").write_text("")
    assert main(["--tables", "main", *shapes, "--tables_folder", place]) == 2
    assert "Give another --tables_folder DIR." in capsys.readouterr().err
    assert started == []
    assert [path.name for path in empty.iterdir()] == ["file"]


def test_singular_of_splits_is_understood(copied, shapes, capsys):
    assert main(["--tables", "main", *shapes, "--split", "val", "--plan"]) == 0
    assert list(plan_of(capsys.readouterr().out)) == ["shapes-val-first-2-G2L-reference-clip"]


def test_names_that_come_twice_count_once(copied, shapes, capsys):
    twice = ["--dataset", "shapes", "shapes", "--splits", "val", "val"]
    assert main(["--tables", "main", "main", *shapes, *twice]) == 0
    printed = capsys.readouterr().out
    assert len(plan_of(printed)) == 1
    assert printed.count("# HybridGL: shapes") == 1
    assert len(lines_of(Path("runs/tables/main-shapes"))) == 3


def test_several_datasets_and_splits_have_a_table_each(empty, world, clip_file, capsys):
    mini_refer("refcoco").write(empty / "data")
    shutil.copytree(world, empty / "data", dirs_exist_ok=True)
    given = ["--refer_data_root", "data", "--weights=tiny", "--clip_weights", str(clip_file)]
    given += ["--device", "cpu", "--limit", "1", "--proposals", "gt"]
    datasets = ["--dataset", "refcoco", "shapes", "refcocog"]
    assert main(["--tables", "main", *datasets, *given]) == 1
    splits = [line["split"] for line in lines_of(Path("runs/tables/main-refcoco"))]
    assert splits == ["val"] * 3 + ["testA"] * 3 + ["testB"] * 3
    assert [line["split"] for line in lines_of(Path("runs/tables/main-shapes"))] == ["val"] * 3
    assert {line["n"] for line in lines_of(Path("runs/tables/main-refcocog"))} == {"not made", "-"}


@pytest.mark.parametrize("given", [["--weights", "paper"], ["--weights=paper"]])
def test_weights_decide_which_baselines_there_are(empty, world, capsys, given):
    """Nothing else that is called tiny does."""
    argv = ["--tables", "baselines", "--store", "tiny", "--refer_data_root", str(world), *given]
    assert main([*argv, "--plan"]) == 0
    names = [name for name in plan_of(capsys.readouterr().out) if "global_local" in name]
    endings = [name.removeprefix("shapes-val-global_local-reference-paper-") for name in names]
    assert endings == ["ViT-B-32", "RN50"]


# The plan


def test_plan_writes_nothing_and_runs_nothing(copied, shapes, started, capsys):
    shutil.rmtree("runs/shapes-val-first-2-crop-reference-clip")
    before = tree(copied)
    assert main(["--tables", *TABLES, *shapes, "--plan"]) == 0
    assert tree(copied) == before
    assert started == []
    printed = capsys.readouterr().out
    states = {name: line.state for name, line in plan_of(printed).items()}
    assert states.pop("shapes-val-first-2-crop-reference-clip") == "missing"
    assert set(states.values()) == {"done"}
    assert "shapes: 11 runs, 10 done, 1 missing (" in printed


def test_plan_names_every_state_with_its_number(copied, shapes, capsys):
    shutil.rmtree("runs/shapes-val-first-2-crop-reference-clip")
    argv = ["--tables", "baselines", "ablation-fusion", *shapes, "--freesolo", "none.json"]
    assert main([*argv, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "8 runs, 6 done, 1 cannot be made, 1 missing (" in printed
    (problem,) = [line for line in printed.splitlines() if line.startswith("* ")]
    assert problem.startswith("* runs/shapes-val-first-2-global_local-reference-")
    assert ": Expected a JSON file of masks at 'none.json', found no such file." in problem


def settings_of(world, *more):
    """Settings of the run of some arguments."""
    given = ["--refer_data_root", str(world), "--device", "cpu", *more]
    parsed = hybridgl_main.build_parser().parse_args(given)
    return json.loads(json.dumps(scripts.reproduce.prepare(parsed).settings))


def leave_summary(folder, settings, *, images, made, proposals=0.0, features=0.0, figures=0.0):
    folder.mkdir(parents=True)
    summary = {
        "settings": settings,
        "counts": {"images": images},
        "store": {"found": {}, "made": made},
        "seconds": {
            "proposals": proposals,
            "features and guidance": features,
            "figures": figures,
        },
        "warnings": [],
    }
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def planned(empty, world, capsys):
    """Estimated times of the runs of some tables on four images, by the end of their name."""

    def plan(*argv):
        given = ["--refer_data_root", str(world), "--device", "cpu", "--plan"]
        assert main(["--tables", *argv, *given]) == 0
        lines = plan_of(capsys.readouterr().out)
        return {name.removeprefix("shapes-val-"): line.time for name, line in lines.items()}

    return plan


def test_time_of_what_was_never_run_is_not_measured_yet(planned):
    assert planned("main") == {"G2L-reference": "not measured yet"}


def test_time_is_that_of_the_stages_of_earlier_runs(planned, empty, world):
    """Two images took 20 s for proposals and 6 s for features: four take 40 s and 12 s."""
    settings = settings_of(world, "--limit", "2")
    made = {"proposals": 2, "gem": 2, "features": 2}
    leave_summary(
        empty / "runs/earlier", settings, images=2, made=made, proposals=20, features=6, figures=5
    )
    times = planned("main", "ablation-fusion")
    assert times["G2L-reference"] == "57 s"
    # The proposals are there by then.
    assert times["crop-reference"] == "17 s"


def test_measurement_of_a_mode_goes_before_that_of_another(planned, empty, world):
    settings = settings_of(world, "--limit", "2")
    made = {"features": 2}
    leave_summary(empty / "runs/a", settings, images=2, made=made, features=6)
    settings = settings_of(world, "--limit", "2", "--fusion_mode", "crop")
    leave_summary(empty / "runs/b", settings, images=2, made=made, features=60)
    times = planned("ablation-fusion", "--proposals", "gt")
    assert times["G2L-reference-gt"] == "12 s"
    assert times["crop-reference-gt"] == "2 min"


def test_run_whose_features_are_there_takes_the_time_of_picks(planned, empty, world):
    settings = settings_of(world)
    leave_summary(
        empty / "runs/a", settings, images=4, made={"proposals": 4, "features": 4}, features=400
    )
    more = settings_of(world, "--alpha", "0.1")
    leave_summary(empty / "runs/b", more, images=4, made={}, features=8, figures=3)
    assert planned("ablation-settings")["G2L-reference-alpha-0.2"] == "11 s"


def test_times_on_another_device_or_of_other_weights_tell_nothing(planned, empty, world, clip_file):
    made = {"proposals": 2, "features": 2}
    settings = settings_of(world, "--limit", "2")
    leave_summary(empty / "runs/a", {**settings, "device": "cuda"}, images=2, made=made, features=6)
    settings = settings_of(world, "--limit", "2", "--clip_weights", str(clip_file))
    leave_summary(empty / "runs/b", settings, images=2, made=made, features=6)
    assert planned("main") == {"G2L-reference": "not measured yet"}


def test_overwriting_takes_the_time_of_every_stage(planned, empty, world):
    made = {"proposals": 4, "features": 4}
    leave_summary(
        empty / "runs/shapes-val-G2L-reference",
        settings_of(world),
        images=4,
        made=made,
        proposals=30,
        features=9,
    )
    assert planned("main", "--overwrite") == {"G2L-reference": "39 s"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"settings": {}}',
        '{"settings": {}, "store": {"made": 3}, "seconds": {}}',
        '{"settings": {"device": 1}, "store": {"made": {"proposals": 1}}, '
        '"seconds": {"proposals": "x", "features and guidance": 1}, "counts": {"images": 1}}',
    ],
)
def test_summaries_of_anything_else_tell_nothing(planned, empty, content):
    (empty / "runs/other").mkdir(parents=True)
    (empty / "runs/other/summary.json").write_text(content)
    assert planned("main") == {"G2L-reference": "not measured yet"}


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
def test_durations_are_told_in_their_unit(seconds, text):
    assert scripts.reproduce._duration(seconds) == text
