"""Make the tables of the papers: print the plan, run what is missing, write the tables.

Every argument that is not listed below goes to hybridgl_main.py: --weights, --refer_data_root,
--profile, --device, --limit and so on.

Example:
    python -m scripts.reproduce --tables main baselines --dataset refcoco --splits val testA
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from evaluation.published import Cell
from evaluation.records import Record, read_summary
from evaluation.report import Report
from evaluation.run import Run, RunConfig
from evaluation.tables import TABLES, Entry, PaperTable, TableRow, filled_table, paper_tables
from hybridgl.config import ModelConfig
from hybridgl.errors import HybridGLError
from hybridgl.files import atomic_write_bytes, check_folder
from hybridgl.metrics import PROTOCOLS
from hybridgl.program import run_program
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES
from hybridgl_main import METHODS, build_parser
from refer.config import SplitConfig, load_split
from refer.dataset import ReferSplit
from refer.splits import SPLITS, default_split_by, validate
from utils.tables import Table, latex_escaped

__all__ = ["PlannedRun", "main", "plan_text", "reasons_against", "seconds_per_image", "write_table"]

_RUNS = Path("runs")
"""Where ``hybridgl_main.py`` leaves its runs."""

_EVALUATED = {"shapes": ("val",), "phrasecut": ("test",)}
"""Splits that are taken where none are named; of the other datasets all but the training split."""

_EXPECTED = (HybridGLError, OSError)
"""What users can fix."""

_PUBLISHED_PARSER = "en_core_web_lg"

_ELSEWHERE = frozenset(
    ("weights", "clip_model", "clip_weights", "sam_type", "sam_checkpoint", "spacy_model")
) | {"limit", "device", "refer_data_root"}
"""Settings that the models' sha256 settle, or that a table says elsewhere."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedRun:
    """A run that tables need.

    Attributes:
        name: its folder; where its settings are wrong, the row and the split.
        run: the run; None where it cannot be made.
        problem: why it cannot be made.
        done: whether its results are there.
        seconds: estimated; None where nothing was measured yet.
    """

    name: str
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


Plan = Mapping[tuple[str, TableRow], PlannedRun]
"""By split and row; rows may share a run."""


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
        "--protocol",
        "--convention",
        choices=list(PROTOCOLS),
        default="zero-shot",
        help="(default: zero-shot)",
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
    parsed, unknown = build_parser().parse_known_args(passed_on)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name in ("method", "output", "shard"):
        if getattr(parsed, name) != build_parser().get_default(name):
            parser.error(f"--{name} is decided by the tables: leave it out")
    command = shlex.join(["python", "-m", "scripts.reproduce", *given])
    not_made: list[str] = []

    def body() -> None:
        check_folder(arguments.tables_folder, "--tables_folder")
        datasets = dict.fromkeys(arguments.dataset)
        for job in [_Job(arguments, name, passed_on, command) for name in datasets]:
            not_made.extend(job.reproduce())

    status = run_program(body)
    return status or int(bool(not_made))


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
        parsed = build_parser().parse_args(["--dataset", dataset, *passed_on])
        usual = default_split_by(dataset)
        split_by = SplitConfig.from_arguments(parsed).split_by or usual
        self._cells = _cells(dataset, split_by, arguments.splits)
        self._label = dataset if split_by == usual else f"{dataset}-{split_by}"
        models = ModelConfig.from_arguments(parsed).resolved(dataset, published_clip="ViT-B-16")
        tables = paper_tables(tiny=models.weights == "tiny", freesolo=arguments.freesolo)
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
            print(f"{number} of {len(missing)}: {planned.name} ...", flush=True)
            problem = _make(planned)
            if problem:
                problems[planned] = problem
        records: dict[PlannedRun, Sequence[Record]] = {}
        for planned in runs:
            found = planned.run.finished_records() if planned.run else None
            if planned not in problems and found is None:
                problems[planned] = "its data changed meanwhile; run the same command again"
            elif planned not in problems and found is not None:
                records[planned] = found
        for name, table in self._tables.items():
            self._write(name, table, plan, records, problems)
        return list(problems.values())

    def _plan(self) -> Plan:
        """Return the run of every row on every split."""
        splits: dict[str, ReferSplit | Exception] = {}
        by_name: dict[str, PlannedRun] = {}
        plan: dict[tuple[str, TableRow], PlannedRun] = {}
        rows = dict.fromkeys(row for table in self._tables.values() for row in table.rows)
        for _, _, split in self._cells:
            for row in rows:
                if row.arguments is None:
                    continue
                try:
                    config = self._config(row, split, self._passed_on)
                except _EXPECTED as error:
                    name = f"{row.method}, {row.setting}, {split}"
                    plan[split, row] = PlannedRun(name, problem=_one_line(error))
                    continue
                # Rows that name the defaults share the run of those that do not.
                name = str(config.folder)
                if name not in by_name:
                    by_name[name] = _planned(config, splits)
                plan[split, row] = by_name[name]
        return plan

    def _config(self, row: TableRow, split: str, passed_on: Sequence[str] = ()) -> RunConfig:
        place = ["--dataset", self._dataset, "--split", split]
        parsed = build_parser().parse_args([*place, *passed_on, *(row.arguments or ())])
        return RunConfig.from_arguments(parsed, METHODS)

    def _write(
        self,
        name: str,
        table: PaperTable,
        plan: Plan,
        records: Mapping[PlannedRun, Sequence[Record]],
        problems: Mapping[PlannedRun, str],
    ) -> None:
        """Write a table with what there is for every row on every split."""
        protocol = table.protocol or self._arguments.protocol
        entries: list[Entry] = []
        set_otherwise: dict[str, None] = {}
        said: dict[str, None] = {}
        not_made: dict[PlannedRun, str] = {}
        for cell in self._cells:
            for row in table.rows:
                planned = plan.get((cell[2], row))
                if planned is None or planned.run is None or planned in problems:
                    not_made |= {planned: problems[planned]} if planned else {}
                    entries.append(Entry(row, cell))
                    continue
                config = planned.run.config
                summary = read_summary(planned.run.folder) or {}
                of_run = summary["warnings"]
                others = _differences(config, self._config(row, cell[2]))
                reasons = reasons_against(
                    planned.run.settings["models"],
                    clip_model=self._config(row, cell[2]).models.clip_model,
                    set_otherwise=others,
                    whole=not of_run,
                )
                said |= dict.fromkeys(f"{cell[2]}: {line}" for line in (*of_run, *summary["notes"]))
                set_otherwise |= dict.fromkeys(others)
                report = self._report(planned, protocol, records[planned])
                profile = config.choice.profile.value
                entries.append(Entry(row, cell, report, profile, tuple(reasons)))
        cells, more = filled_table(table, entries, PROTOCOLS[protocol])
        notes = [f"not made: {line}" for line in _by_problem(not_made)]
        if set_otherwise:
            named = ", ".join(set_otherwise)
            notes.append(f"besides what a row says, the runs are made with {named}")
        title = f"{table.title}: {self._label}"
        made = f"`{self._command}`, {date.today()}, {_machine()}"
        path = self._arguments.tables_folder / f"{name}-{self._label}"
        print(write_table(path, title, made, cells, [*notes, *said, *more]))

    def _report(self, planned: PlannedRun, protocol: str, records: Sequence[Record]) -> Report:
        """Return the scores of a run, once for all rows that show it."""
        if (planned, protocol) not in self._reports:
            assert planned.run is not None
            self._reports[planned, protocol] = planned.run.report(records, protocol)
        return self._reports[planned, protocol]


def _cells(dataset: str, split_by: str, splits: Sequence[str] | None) -> list[Cell]:
    """Return splits of a dataset: those named, or those that it is evaluated on."""
    chosen = splits or _EVALUATED.get(dataset)
    if chosen is None:
        validate(dataset, "val", split_by)
        chosen = [split for split in SPLITS[dataset][split_by] if split != "train"]
    return [(dataset, validate(dataset, split, split_by), split) for split in dict.fromkeys(chosen)]


def _planned(config: RunConfig, splits: dict[str, ReferSplit | Exception]) -> PlannedRun:
    """Return a run with its state; nothing is computed.

    Args:
        config: every setting.
        splits: that were read before, or why they cannot be; gets this one.
    """
    name, label = str(config.folder), config.data.label
    try:
        if label not in splits:
            try:
                splits[label] = load_split(config.data)
            except _EXPECTED as error:
                splits[label] = error
        split = splits[label]
        if isinstance(split, Exception):
            raise split
        run = Run(config, METHODS, split)
        run.check_folder_settings()
    except _EXPECTED as error:
        return PlannedRun(name, problem=_one_line(error))
    if not config.storage.overwrite and run.finished_records() is not None:
        return PlannedRun(name, run, done=True, seconds=0.0)
    rate = seconds_per_image(_RUNS, run.settings)
    return PlannedRun(name, run, seconds=None if rate is None else rate * len(split.images))


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
            summary = read_summary(path.parent) or {}
            if _decides_time(summary["settings"]) == _decides_time(settings):
                return sum(summary["seconds"].values()) / summary["counts"]["images"]
    return None


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _decides_time(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    return settings["method"]["name"], settings["models"]


def _make(planned: PlannedRun) -> str:
    """Make a run; return what went wrong, if anything."""
    assert planned.run is not None
    try:
        # One of its own, so that its models are freed after it.
        Run(planned.run.config, METHODS, planned.run.split).execute()
    except _EXPECTED as error:
        print(f"not made: {_one_line(error)}", flush=True)
        return _one_line(error)
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _differences(config: RunConfig, usual: RunConfig) -> list[str]:
    """Return the settings of a run that another does not have, as they are written."""
    profile = {"profile": config.choice.profile.value}
    found = {**profile, **config.changed}
    others = {"profile": usual.choice.profile.value, **usual.changed}
    return [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in found.items()
        if name not in _ELSEWHERE and others.get(name) != value
    ]


def reasons_against(
    models: Mapping[str, Any], *, clip_model: str | None, set_otherwise: Sequence[str], whole: bool
) -> list[str]:
    """Return why a run does not compare with published values; nothing where it does.

    Args:
        models: names and sha256 by model, of the run's settings.
        clip_model: that the row is about; None is that of the bundled weights.
        set_otherwise: settings that the row does not have.
        whole: whether the run has no warnings.
    """
    reasons = [] if whole else ["the data is not whole, or there are warnings"]
    if set_otherwise:
        reasons.append(f"set otherwise: {', '.join(set_otherwise)}")
    clip = CLIP_FILES[clip_model].sha256 if clip_model else "none"
    published = {"clip": clip, "sam": SAM_FILES["vit_h"].sha256}
    others = [
        models["names"][model]
        for model, sha256 in published.items()
        if not models["sha256"].get(model, sha256).startswith(sha256)
    ]
    if not models["names"]["parser"].startswith(_PUBLISHED_PARSER):
        others.append(models["names"]["parser"])
    if others:
        reasons.append(f"other weights than the published ones: {', '.join(others)}")
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
    rows = [(run.name, run.state, "-" if run.problem else _duration(run.seconds)) for run in plan]
    table = Table(("run", "state", "estimated time"), tuple(rows), text_columns=2).markdown()
    problems = _by_problem({planned: planned.problem for planned in plan if planned.problem})
    lines = [f"{len(plan)} runs, {', '.join(parts)}{time}", table]
    return "\n".join([*lines, *(["", *(f"* {line}" for line in problems)] if problems else [])])


def _by_problem(problems: Mapping[PlannedRun, str]) -> list[str]:
    """Return a line for each problem, with the runs that have it."""
    names: dict[str, list[str]] = {}
    for planned, problem in problems.items():
        names.setdefault(problem, []).append(planned.name)
    return [f"{', '.join(runs)}: {problem}" for problem, runs in names.items()]


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
