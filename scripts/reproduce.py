"""Make the tables of the papers: print the plan, run what is missing, write the tables.

Every argument that is not listed below goes to hybridgl_main.py: --weights, --refer_data_root,
--profile, --device, --limit and so on.

Example:
    python -m scripts.reproduce --tables main baselines --dataset refcoco --splits val testA
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

import torch

import hybridgl_main
from evaluation.published import Cell
from evaluation.records import Record, read_summary
from evaluation.report import Report
from evaluation.run import Run, finished_records, prepare, run_name
from evaluation.tables import TABLES, Entry, PaperTable, TableRow, filled_table, paper_tables
from hybridgl.downloads.catalogue import SPACY_MODEL
from hybridgl.errors import HybridGLError
from hybridgl.files import atomic_write_bytes, check_folder
from hybridgl.metrics import PROTOCOLS
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES
from refer.arguments import check_split_arguments, split_from_arguments
from refer.dataset import ReferSplit
from refer.splits import SPLITS, default_split_by, validate
from utils.runtime import check_settings, run_program
from utils.tables import Table, latex_escaped

__all__ = ["PlannedRun", "main", "plan_text", "reasons_against", "seconds_per_image", "write_table"]

_RUNS = Path("runs")
"""Where ``hybridgl_main.py`` leaves its runs."""

_EVALUATED = {"shapes": ("val",), "phrasecut": ("test",)}
"""Splits that are taken where none are named; of the other datasets all but the training split."""

_EXPECTED = (HybridGLError, OSError)
"""What users can fix."""

_FILES = frozenset(("weights", "clip_weights", "sam_checkpoint", "spacy_model"))
"""Arguments whose files tell by their content whether they are the published ones."""

_ELSEWHERE = frozenset(
    ("refer_data_root", "dataset", "split", "split_by", "limit", "device", "store", "overwrite")
)
"""Arguments that do not change what a row stands for, or that a table says elsewhere."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedRun:
    """A run that tables need.

    Attributes:
        arguments: of ``hybridgl_main.py``, parsed.
        output: folder that gets or has its results.
        run: the run; None where it cannot be made.
        problem: why it cannot be made.
        done: whether its results are there.
        seconds: estimated; None where nothing was measured yet.
    """

    arguments: argparse.Namespace
    output: Path
    run: Run | None = None
    problem: str = ""
    done: bool = False
    seconds: float | None = None

    @property
    def state(self) -> str:
        """In a word or three."""
        if self.problem:
            return "cannot be made"
        return "done" if self.done else "missing"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status: 1 where a run of the tables could not be made."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, required=True)
    parser.add_argument("--dataset", nargs="+", choices=list(SPLITS), default=["shapes"])
    parser.add_argument("--splits", nargs="+", help="(default: the dataset's evaluation splits)")
    parser.add_argument(
        "--protocol", choices=list(PROTOCOLS), default="zero-shot", help="(default: zero-shot)"
    )
    parser.add_argument("--freesolo", type=Path, metavar="FILE", help="FreeSOLO's masks of a split")
    parser.add_argument("--plan", action="store_true", help="print the plan, run nothing")
    parser.add_argument(
        "--tables_folder",
        type=Path,
        default=_RUNS / "tables",
        metavar="DIR",
        help="where the tables go (default: %(default)s)",
    )
    arguments, passed_on = parser.parse_known_args(given)
    parsed, unknown = hybridgl_main.build_parser().parse_known_args(passed_on)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name in ("method", "output", "shard"):
        if getattr(parsed, name) != _parsed([])[name]:
            parser.error(f"--{name} is decided by the tables: leave it out")
    command = shlex.join(["python", "-m", "scripts.reproduce", *given])
    not_made: list[str] = []

    def body() -> None:
        check_folder(arguments.tables_folder, "--tables_folder")
        datasets = dict.fromkeys(arguments.dataset)
        for job in [_Job(arguments, name, passed_on, command) for name in datasets]:
            not_made.extend(job.reproduce())

    status = run_program(body, expected=_EXPECTED)
    return status or int(bool(not_made))


def _parsed(given: Sequence[str]) -> dict[str, Any]:
    """Arguments of ``hybridgl_main.py``, with every default."""
    return vars(hybridgl_main.build_parser().parse_args(given))


class _Job:
    """All tables of one dataset.

    Args:
        arguments: of this program.
        dataset: one of them.
        passed_on: arguments of ``hybridgl_main.py``.
        command: the whole command line, to be named in the tables.

    Raises:
        DataError: the dataset has no such split.
    """

    def __init__(
        self, arguments: argparse.Namespace, dataset: str, passed_on: Sequence[str], command: str
    ) -> None:
        self._arguments = arguments
        self._dataset = dataset
        self._passed_on = passed_on
        self._command = command
        parsed = _parsed(passed_on)
        usual = default_split_by(dataset)
        split_by: str = usual if parsed["split_by"] is None else parsed["split_by"]
        self._cells = _cells(dataset, split_by, arguments.splits)
        self._label = dataset if split_by == usual else f"{dataset}-{split_by}"
        weights = parsed["weights"] or ("tiny" if dataset == "shapes" else "paper")
        tables = paper_tables(tiny=weights == "tiny", freesolo=arguments.freesolo)
        self._tables = {name: tables[name] for name in dict.fromkeys(arguments.tables)}
        self._reports: dict[tuple[PlannedRun, str], Report] = {}

    def reproduce(self) -> list[str]:
        """Print the plan, make what is missing, write the tables.

        Returns:
            Why runs could not be made.
        """
        plan = self._plan()
        runs = list(dict.fromkeys(plan.values()))
        print(f"{self._label}: {plan_text(runs)}\n", flush=True)
        if self._arguments.plan:
            return []
        problems = {planned: planned.problem for planned in runs if planned.problem}
        missing = [planned for planned in runs if planned.state == "missing"]
        for number, planned in enumerate(missing, start=1):
            print(f"{number} of {len(missing)}: {planned.output} ...", flush=True)
            problem = _make(planned)
            if problem:
                problems[planned] = problem
        records: dict[PlannedRun, list[Record]] = {}
        for planned in runs:
            found = finished_records(planned.run) if planned.run else None
            if found is not None and planned not in problems:
                records[planned] = found
            elif found is None:
                problems.setdefault(
                    planned, "its data changed meanwhile; run the same command again"
                )
        for name, table in self._tables.items():
            self._write(name, table, plan, records, problems)
        return list(problems.values())

    def _plan(self) -> dict[tuple[str, TableRow], PlannedRun]:
        """The run of every row on every split; rows may share one."""
        splits: dict[str, ReferSplit | Exception] = {}
        of_folder: dict[Path, PlannedRun] = {}
        plan: dict[tuple[str, TableRow], PlannedRun] = {}
        rows = dict.fromkeys(row for table in self._tables.values() for row in table.rows)
        for _, _, split in self._cells:
            for row in rows:
                if row.arguments is None:
                    continue
                parsed = argparse.Namespace(**self._row_arguments(row, split, self._passed_on))
                # Rows that name the defaults share the run of those that do not.
                output = _RUNS / run_name(parsed, check_split_arguments(parsed))
                if output not in of_folder:
                    of_folder[output] = _planned(parsed, output, splits)
                plan[split, row] = of_folder[output]
                others = _differences(vars(parsed), vars(of_folder[output].arguments))
                if others:
                    problem = (
                        f"Expected a folder of its own for the run with {', '.join(others)}, got "
                        f"that of another row; rename a file, so that the names differ."
                    )
                    plan[split, row] = PlannedRun(parsed, output, problem=problem)
        return plan

    def _row_arguments(
        self, row: TableRow, split: str, passed_on: Sequence[str] = ()
    ) -> dict[str, Any]:
        own = row.arguments or ()
        return _parsed(["--dataset", self._dataset, "--split", split, *passed_on, *own])

    def _write(
        self,
        name: str,
        table: PaperTable,
        plan: Mapping[tuple[str, TableRow], PlannedRun],
        records: Mapping[PlannedRun, Sequence[Record]],
        problems: Mapping[PlannedRun, str],
    ) -> None:
        """Write a table with what there is for every row on every split."""
        protocol = table.protocol or self._arguments.protocol
        entries: list[Entry] = []
        notes: dict[str, None] = {}
        not_made: dict[PlannedRun, str] = {}
        others = _differences(_parsed(self._passed_on), _parsed([]))
        if others:
            notes[f"besides what a row says, the runs are made with {', '.join(others)}"] = None
        for cell in self._cells:
            for row in table.rows:
                planned = plan.get((cell[2], row))
                if planned is None or planned in problems:
                    not_made |= {planned: problems[planned]} if planned else {}
                    entries.append(Entry(row, cell))
                    continue
                assert planned.run is not None
                warnings = (read_summary(planned.output / "summary.json") or {})["warnings"]
                notes |= dict.fromkeys(f"{cell[2]}: {warning}" for warning in warnings)
                plain = self._row_arguments(row, cell[2])
                reasons = reasons_against(
                    planned.run.settings["weights"],
                    clip_model=plain["clip_model"] or "ViT-B-16",
                    set_otherwise=_differences(vars(planned.arguments), plain),
                    whole=not warnings,
                )
                report = self._report(planned, protocol, records[planned])
                entries.append(Entry(row, cell, report, planned.arguments.profile, tuple(reasons)))
        cells, more = filled_table(table, entries, PROTOCOLS[protocol])
        made = f"`{self._command}`, {date.today()}, {_machine()}"
        path = self._arguments.tables_folder / f"{name}-{self._label}"
        not_made_notes = [f"not made: {line}" for line in _by_problem(not_made)]
        title = f"{table.title}: {self._label}"
        print(write_table(path, title, made, cells, [*not_made_notes, *notes, *more]))

    def _report(self, planned: PlannedRun, protocol: str, records: Sequence[Record]) -> Report:
        """The scores of a run, once for all rows that show it."""
        if (planned, protocol) not in self._reports:
            assert planned.run is not None
            skips = planned.run.method.skips_without_proposals
            report = Report.of(records, PROTOCOLS[protocol], skips_without_proposals=skips)
            self._reports[planned, protocol] = report
        return self._reports[planned, protocol]


def _cells(dataset: str, split_by: str, splits: Sequence[str] | None) -> list[Cell]:
    """Splits of a dataset: those named, or those that it is evaluated on."""
    chosen = splits or _EVALUATED.get(dataset)
    if chosen is None:
        validate(dataset, "val", split_by)
        chosen = [split for split in SPLITS[dataset][split_by] if split != "train"]
    return [(dataset, validate(dataset, split, split_by), split) for split in dict.fromkeys(chosen)]


def _planned(
    parsed: argparse.Namespace, output: Path, splits: dict[str, ReferSplit | Exception]
) -> PlannedRun:
    """A run with its state; nothing is computed.

    Args:
        parsed: of ``hybridgl_main.py``.
        output: folder of the run.
        splits: that were read before, or why they cannot be; gets this one.
    """
    try:
        if parsed.split not in splits:
            try:
                splits[parsed.split] = split_from_arguments(parsed)
            except _EXPECTED as error:
                splits[parsed.split] = error
        split = splits[parsed.split]
        if isinstance(split, Exception):
            raise split
        run = prepare(parsed, split)
        check_settings(output, run.settings, overwrite=parsed.overwrite)
    except _EXPECTED as error:
        return PlannedRun(parsed, output, problem=" ".join(str(error).split()))
    if not parsed.overwrite and finished_records(run) is not None:
        return PlannedRun(parsed, output, run, done=True, seconds=0.0)
    rate = seconds_per_image(_RUNS, json.loads(json.dumps(run.settings)))
    seconds = None if rate is None else rate * len(split.images)
    return PlannedRun(parsed, output, run, seconds=seconds)


def seconds_per_image(runs: Path, settings: Mapping[str, Any]) -> float | None:
    """Return the time per image of the latest run of a method with the same models and device.

    Args:
        runs: holds the folders of runs.
        settings: of a run.

    Returns:
        Seconds; None where there is no such run.
    """
    for path in sorted(runs.glob("*/summary.json"), key=_modified, reverse=True):
        # Whatever lies there: a summary of another version has nothing to say.
        with contextlib.suppress(LookupError, TypeError, AttributeError, ZeroDivisionError):
            summary = read_summary(path) or {}
            if _timed(summary["settings"]) == _timed(settings):
                return sum(summary["seconds"].values()) / summary["counts"]["images"]
    return None


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _timed(settings: Mapping[str, Any]) -> list[Any]:
    """What the time of a run depends on most."""
    return [settings["method"]["name"], *(settings[n] for n in ("device", "dtype", "weights"))]


def _make(planned: PlannedRun) -> str:
    """Make a run; return what went wrong, if anything."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            hybridgl_main.run(planned.arguments)
    except _EXPECTED as error:
        problem = " ".join(str(error).split())
        print(f"not made: {problem}", flush=True)
        return problem
    return ""


def _differences(parsed: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """The settings of one set of arguments that another does not have, as they are written."""
    return [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in (
            (name, value.value if isinstance(value, Enum) else value)
            for name, value in parsed.items()
            if name not in _FILES | _ELSEWHERE and value != usual[name]
        )
    ]


def reasons_against(
    weights: Mapping[str, Any], *, clip_model: str, set_otherwise: Sequence[str], whole: bool
) -> list[str]:
    """Return why a run does not compare with published values; nothing where it does.

    Args:
        weights: of the run's settings.
        clip_model: that the row is about.
        set_otherwise: arguments that the row does not have.
        whole: whether the run has no warnings.
    """
    reasons = [] if whole else ["the data is not whole, or there are warnings"]
    if set_otherwise:
        reasons.append(f"set otherwise: {', '.join(set_otherwise)}")
    published = {"clip": CLIP_FILES[clip_model].sha256, "sam": SAM_FILES["vit_h"].sha256}
    files = [
        weights[model]
        for model, sha256 in weights["sha256"].items()
        if not sha256.startswith(published[model])
    ]
    if not weights["spacy"].startswith(SPACY_MODEL):
        files.append(weights["spacy"])
    if files:
        reasons.append(f"other weights than the published ones: {', '.join(files)}")
    return reasons


def write_table(path: Path, title: str, made: str, cells: Table, notes: Sequence[str]) -> str:
    """Write a table as Markdown, CSV and LaTeX.

    Args:
        path: of the files, without a suffix.
        title: one line.
        made: by what command, when and where.
        cells: the table.
        notes: under it.

    Returns:
        What to print.
    """
    text = "\n".join(
        [f"# {title}", "", made, "", cells.markdown(), "", *(f"* {note}" for note in notes)]
    )
    comments = [f"% {' '.join(line.split())}" for line in (title, made)]
    latex_notes = [rf"\par\noindent {latex_escaped(note)}" for note in notes]
    latex = "\n".join([*comments, cells.latex(), *latex_notes])
    for suffix, content in ((".md", text), (".csv", cells.csv()), (".tex", latex)):
        atomic_write_bytes(
            path.with_name(path.name + suffix),
            f"{content.rstrip()}\n".encode(),
            option="--tables_folder",
        )
    return f"{text}\n\n{path}.md, .csv, .tex\n"


def plan_text(plan: Sequence[PlannedRun]) -> str:
    """Say how many runs are in which state, each of them, and what is in the way of some."""
    counts = Counter(planned.state for planned in plan)
    parts = [f"{count} {state}" for state, count in counts.items()]
    missing = [planned.seconds for planned in plan if planned.state == "missing"]
    known = [seconds for seconds in missing if seconds is not None]
    total = sum(known) if len(known) == len(missing) else None
    time = f" ({_duration(total)})" if missing else ""
    rows = [
        (str(run.output), run.state, "-" if run.problem else _duration(run.seconds)) for run in plan
    ]
    table = Table(("run", "state", "estimated time"), tuple(rows), text_columns=2).markdown()
    problems = _by_problem({planned: planned.problem for planned in plan if planned.problem})
    lines = [f"{len(plan)} runs, {', '.join(parts)}{time}", table]
    return "\n".join([*lines, *(["", *(f"* {line}" for line in problems)] if problems else [])])


def _by_problem(problems: Mapping[PlannedRun, str]) -> list[str]:
    """A line for each problem, with the runs that have it."""
    outputs: dict[str, list[str]] = {}
    for planned, problem in problems.items():
        outputs.setdefault(problem, []).append(str(planned.output))
    return [f"{', '.join(runs)}: {problem}" for problem, runs in outputs.items()]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured yet"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {device}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
