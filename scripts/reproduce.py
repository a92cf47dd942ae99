"""Make the tables of the papers: print the plan, run what is missing, write the tables.

Every argument that is not listed below goes to hybridgl_main.py: --weights, --refer_data_root,
--profile, --device, --limit and so on.

Example:
    python scripts/reproduce.py --tables main baselines --dataset refcoco --splits val testA
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
from evaluation.estimates import TimeEstimate
from evaluation.report import scored_records
from evaluation.run import Run, finished_records, prepare, run_name
from evaluation.tables import (
    TABLES,
    Choices,
    Entry,
    GroupScores,
    Measured,
    PaperTable,
    TableRow,
    filled_table,
    group_scores,
    paper_table,
)
from hybridgl.download import SPACY_MODEL
from hybridgl.errors import DataError, HybridGLError
from hybridgl.files import atomic_write_bytes
from hybridgl.metrics import PROTOCOLS
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES
from refer.arguments import check_split_arguments, split_from_arguments
from refer.dataset import ReferSplit
from refer.splits import SPLITS, default_split_by, validate
from utils.runtime import check_settings, read_summary, run_program
from utils.tables import Table, latex_escaped

_RUNS = Path("runs")
"""Where hybridgl_main.py leaves its runs."""

_EVALUATED = {"shapes": ("val",), "phrasecut": ("test",)}
"""Splits that are taken where none are named; of the other datasets all but the training split."""

_EXPECTED = (HybridGLError, DataError, OSError)
"""What users can fix."""


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
    run: Run | None
    problem: str | None = None
    done: bool = False
    seconds: float | None = None


Plan = Mapping[tuple[str, TableRow], PlannedRun]
"""By split and row; rows may share a run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 1 where a run of the tables could not be made."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), required=True)
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
    warnings: list[str] = []

    def body() -> None:
        _check_folder(arguments.tables_folder)
        jobs = [
            _Job(arguments, dataset, passed_on, given)
            for dataset in dict.fromkeys(arguments.dataset)
        ]
        for job in jobs:
            warnings.extend(job.reproduce())

    status = run_program(body, expected=_EXPECTED)
    return status or int(bool(warnings))


def _parsed(given: Sequence[str]) -> dict[str, Any]:
    """Arguments of ``hybridgl_main.py``, with every default."""
    return vars(hybridgl_main.build_parser().parse_args(given))


def _check_folder(folder: Path) -> None:
    """Refuse, before any run, a folder that no table could be written to."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise HybridGLError(
            f"Expected a folder that can be written for the tables, got {nearest}. Give another "
            f"--tables_folder DIR."
        )


class _Job:
    """All tables of one dataset.

    Args:
        arguments: of this program.
        dataset: one of them.
        passed_on: arguments of ``hybridgl_main.py``.
        given: the whole command line, to be named in the tables.

    Raises:
        DataError: the dataset has no such split.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        dataset: str,
        passed_on: Sequence[str],
        given: Sequence[str],
    ) -> None:
        self._arguments = arguments
        self._dataset = dataset
        self._passed_on = passed_on
        self._given = given
        parsed = _parsed(passed_on)
        usual = default_split_by(dataset)
        split_by: str = usual if parsed["split_by"] is None else parsed["split_by"]
        splits = arguments.splits or _EVALUATED.get(dataset)
        if splits is None:
            validate(dataset, "val", split_by)
            splits = [split for split in SPLITS[dataset][split_by] if split != "train"]
        self._cells = [
            (dataset, validate(dataset, split, split_by), split) for split in dict.fromkeys(splits)
        ]
        self._label = dataset if split_by == usual else f"{dataset}-{split_by}"
        weights = parsed["weights"] or ("tiny" if dataset == "shapes" else "paper")
        choices = Choices(tiny=weights == "tiny", freesolo=arguments.freesolo)
        names = dict.fromkeys(arguments.tables)
        self._tables = {name: paper_table(name, choices) for name in names}

    def reproduce(self) -> list[str]:
        """Print the plan, make what is missing, write the tables.

        Returns:
            Problems of runs that could not be made.
        """
        plan = self._plan()
        distinct = list(dict.fromkeys(plan.values()))
        print(f"{self._label}: {_plan_text(distinct)}\n", flush=True)
        if self._arguments.plan:
            return []
        warnings = {planned: planned.problem for planned in distinct if planned.problem}
        missing = [planned for planned in distinct if planned.run and not planned.done]
        for number, planned in enumerate(missing, start=1):
            print(f"{number} of {len(missing)}: {planned.output} ...", flush=True)
            problem = _make(planned)
            if problem:
                warnings[planned] = problem
        protocols = {
            name: table.protocol or self._arguments.protocol for name, table in self._tables.items()
        }
        groups: dict[tuple[PlannedRun, str], list[GroupScores]] = {}
        for planned in distinct:
            run = None if planned in warnings else planned.run
            records = finished_records(run) if run else None
            if run and records is not None:
                skips = run.method.skips_without_proposals
                scored = scored_records(records, skips_without_proposals=skips)
                for protocol in dict.fromkeys(protocols.values()):
                    groups[planned, protocol] = group_scores(scored, PROTOCOLS[protocol])
            elif planned not in warnings:
                warnings[planned] = "its data changed meanwhile; run the same command again"
        for name, table in self._tables.items():
            protocol = protocols[name]
            entries, notes = self._entries(table, protocol, plan, groups, warnings)
            cells, more = filled_table(table, entries, PROTOCOLS[protocol])
            self._write(name, table.title, cells, [*notes, *more])
        return [str(problem) for problem in warnings.values()]

    def _plan(self) -> Plan:
        """The run of every row on every split."""
        read: dict[str, ReferSplit | Exception] = {}
        of_folder: dict[Path, PlannedRun] = {}
        plan: dict[tuple[str, TableRow], PlannedRun] = {}
        estimate = TimeEstimate(_RUNS)
        rows = dict.fromkeys(row for table in self._tables.values() for row in table.rows)
        for _, _, split in self._cells:
            for row in rows:
                if row.arguments is None:
                    continue
                parsed = argparse.Namespace(**self._row_arguments(row, split, self._passed_on))
                # Rows that name the defaults share the run of those that do not.
                output = _RUNS / run_name(parsed, check_split_arguments(parsed))
                if output not in of_folder:
                    of_folder[output] = _planned(parsed, output, read, estimate)
                plan[split, row] = of_folder[output]
                others = _differences(vars(parsed), vars(of_folder[output].arguments))
                if others:
                    problem = (
                        f"Expected a folder of its own for the run with {', '.join(others)}, got "
                        f"that of another row. Rename a file, so that the names differ."
                    )
                    plan[split, row] = PlannedRun(parsed, output, None, problem)
        return plan

    def _row_arguments(
        self, row: TableRow, split: str, passed_on: Sequence[str] = ()
    ) -> dict[str, Any]:
        own = row.arguments or ()
        return _parsed(["--dataset", self._dataset, "--split", split, *passed_on, *own])

    def _entries(
        self,
        table: PaperTable,
        protocol: str,
        plan: Plan,
        groups: Mapping[tuple[PlannedRun, str], Sequence[GroupScores]],
        warnings: Mapping[PlannedRun, str],
    ) -> tuple[list[Entry], list[str]]:
        """What there is for every row on every split, and what is doubtful about it."""
        entries: list[Entry] = []
        notes: dict[str, None] = {}
        not_made: dict[PlannedRun, str] = {}
        others = _differences(_parsed(self._passed_on), _parsed([]))
        if others:
            notes[f"besides what a row says, the runs are made with {', '.join(others)}"] = None
        for cell in self._cells:
            for row in table.rows:
                planned, measured = plan.get((cell[2], row)), None
                if planned and planned in warnings:
                    not_made[planned] = warnings[planned]
                elif planned and planned.run:
                    reasons = _not_comparable(planned, self._row_arguments(row, cell[2]))
                    measured = Measured(
                        groups=groups[planned, protocol],
                        final_pick=planned.run.method.final_pick,
                        profile=planned.arguments.profile,
                        warnings=tuple(reasons),
                    )
                    notes |= dict.fromkeys(f"{cell[2]}: {line}" for line in _warnings(planned))
                entries.append(Entry(row, cell, measured))
        return entries, [*(f"not made: {line}" for line in _by_problem(not_made)), *notes]

    def _write(self, name: str, title: str, cells: Table, notes: Sequence[str]) -> None:
        """Write a table in three forms, and print it."""
        title = f"{title}: {self._label}"
        command = " ".join(shlex.join(["python", "scripts/reproduce.py", *self._given]).split())
        made = f"`{command}`, {date.today()}, {_machine()}"
        text = "\n".join(
            [f"# {title}", "", made, "", cells.markdown(), "", *(f"* {note}" for note in notes)]
        )
        latex = "\n".join(
            [
                *(f"% {line}" for line in (title, made)),
                cells.latex(),
                *(rf"\par\noindent {latex_escaped(note)}" for note in notes),
            ]
        )
        path = self._arguments.tables_folder / f"{name}-{self._label}"
        for suffix, content in ((".md", text), (".csv", cells.csv()), (".tex", latex)):
            atomic_write_bytes(
                path.with_name(path.name + suffix),
                f"{content.rstrip()}\n".encode(),
                option="--tables_folder",
            )
        print(f"{text}\n\n{path}.md, .csv, .tex\n")


def _planned(
    parsed: argparse.Namespace,
    output: Path,
    read: dict[str, ReferSplit | Exception],
    estimate: TimeEstimate,
) -> PlannedRun:
    """A run with its state; nothing is computed.

    Args:
        parsed: of ``hybridgl_main.py``.
        output: folder of the run.
        read: splits that were read before, or why they cannot be; gets this one.
        estimate: of its time.
    """
    try:
        if parsed.split not in read:
            try:
                read[parsed.split] = split_from_arguments(parsed)
            except _EXPECTED as error:
                read[parsed.split] = error
        split = read[parsed.split]
        if isinstance(split, Exception):
            raise split
        run = prepare(parsed, split)
        check_settings(output, run.settings, overwrite=parsed.overwrite)
    except _EXPECTED as error:
        return PlannedRun(parsed, output, None, " ".join(str(error).split()))
    done = not parsed.overwrite and finished_records(run) is not None
    wanted = json.loads(json.dumps(run.settings))
    seconds = 0.0 if done else estimate.seconds(wanted, len(split.images), anew=parsed.overwrite)
    return PlannedRun(parsed, output, run, done=done, seconds=seconds)


def _warnings(planned: PlannedRun) -> list[str]:
    """What is doubtful about a finished run."""
    summary = read_summary(planned.output) or {}
    return [str(problem) for problem in summary.get("warnings", [])]


def _make(planned: PlannedRun) -> str | None:
    """Make a run; returns what went wrong."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            hybridgl_main.run(planned.arguments)
    except _EXPECTED as error:
        problem = " ".join(str(error).split())
        print(f"not made: {problem}", flush=True)
        return problem
    return None


_FILES = frozenset(("weights", "clip_weights", "sam_checkpoint", "spacy_model"))
"""Arguments whose files tell by their content whether they are the published ones."""
_OTHERWISE = frozenset(
    ("refer_data_root", "dataset", "split", "split_by", "limit", "device", "store", "overwrite")
)
"""Arguments that do not change what a row stands for, or are said elsewhere in a table."""


def _differences(parsed: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """The settings of one set of arguments that another does not have, as they are written."""
    return [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in (
            (name, value.value if isinstance(value, Enum) else value)
            for name, value in parsed.items()
            if name not in _FILES | _OTHERWISE and value != usual[name]
        )
    ]


def _not_comparable(planned: PlannedRun, plain: Mapping[str, Any]) -> list[str]:
    """Why a run does not compare with published values; nothing where it does.

    Args:
        planned: a run.
        plain: arguments of the row alone.
    """
    assert planned.run is not None
    warnings = ["the data is not whole, or doubtful"] if _warnings(planned) else []
    others = _differences(vars(planned.arguments), plain)
    if others:
        warnings.append(f"set otherwise: {', '.join(others)}")
    weights = planned.run.settings["weights"]
    published = {
        "clip": CLIP_FILES[plain["clip_model"] or "ViT-B-16"].sha256,
        "sam": SAM_FILES["vit_h"].sha256,
    }
    files = [
        weights[model]
        for model, digest in weights["sha256"].items()
        if not digest.startswith(published[model])
    ]
    if not weights["spacy"].startswith(SPACY_MODEL):
        files.append(weights["spacy"])
    if files:
        warnings.append(f"other weights than the published ones: {', '.join(files)}")
    return warnings


def _plan_text(plan: Sequence[PlannedRun]) -> str:
    """How many runs in which state, each of them, and what is in the way of some."""
    states = {planned: _state(planned) for planned in plan}
    missing = [planned.seconds for planned in plan if states[planned] == "missing"]
    known = [seconds for seconds in missing if seconds is not None]
    total = sum(known) if len(known) == len(missing) else None
    counts = Counter(states.values())
    parts = [f"{count} {state}" for state, count in counts.items()]
    time = f" ({_duration(total)})" if missing else ""
    rows = [
        (str(run.output), state, "-" if run.problem else _duration(run.seconds))
        for run, state in states.items()
    ]
    table = Table(("run", "state", "estimated time"), tuple(rows), text_columns=2).markdown()
    lines = [f"{len(plan)} runs, {', '.join(parts)}{time}", table]
    warnings = _by_problem({run: run.problem for run in plan if run.problem})
    return "\n".join([*lines, *(["", *(f"* {line}" for line in warnings)] if warnings else [])])


def _by_problem(warnings: Mapping[PlannedRun, str]) -> list[str]:
    """A line for each problem, with the runs that have it."""
    outputs: dict[str, list[str]] = {}
    for planned, problem in warnings.items():
        outputs.setdefault(problem, []).append(str(planned.output))
    return [f"{', '.join(runs)}: {problem}" for problem, runs in outputs.items()]


def _state(planned: PlannedRun) -> str:
    if planned.problem:
        return "cannot be made"
    return "done" if planned.done else "missing"


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
