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
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

# Run as a file, Python looks beside it only; the programs lie in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hybridgl_main
from hybridgl.errors import UserError
from hybridgl.metrics import CONVENTIONS, Convention
from refer.arguments import split_from_arguments
from refer.dataset import ReferSplit
from refer.errors import DataError
from refer.splits import default_split_by
from suite.breakdowns import BREAKDOWNS
from suite.paper_tables import TABLES, Choices, PaperTable, TableRow, paper_table
from suite.report import intervals_by_pick, score_by_pick, scored_records
from suite.runs import Run, prepare
from third_party.published import ROWS, SOURCES
from utils.records import Record, read_records
from utils.runtime import read_summary, run_program
from utils.store import atomic_write_bytes
from utils.tables import Table

_SPLITS = {
    "shapes": ("val",),
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
    "phrasecut": ("test",),
}
"""Splits of a dataset where none are named."""

_MISSING = "-"


@dataclass(frozen=True, slots=True, eq=False)
class PlannedRun:
    """A run that tables need.

    Attributes:
        arguments: of ``hybridgl_main.py``.
        run: the run; None where it cannot be made.
        problem: why it cannot be made.
        done: whether its results are there.
        seconds: estimated; None where nothing was measured yet.
    """

    arguments: tuple[str, ...]
    run: Run | None
    problem: str | None
    done: bool
    seconds: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 1 where a run of the tables could not be made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), required=True)
    parser.add_argument("--dataset", nargs="+", choices=list(_SPLITS), default=["shapes"])
    parser.add_argument("--splits", nargs="+", help="(default: the dataset's evaluation splits)")
    parser.add_argument(
        "--convention", choices=list(CONVENTIONS), default="zero-shot", help="(default: zero-shot)"
    )
    parser.add_argument("--freesolo", type=Path, metavar="FILE", help="FreeSOLO's masks of a split")
    parser.add_argument("--plan", action="store_true", help="print the plan, run nothing")
    parser.add_argument(
        "--tables_folder",
        type=Path,
        default=Path("runs/tables"),
        metavar="DIR",
        help="where the tables go (default: %(default)s)",
    )
    arguments, passed_on = parser.parse_known_args(argv)
    hybridgl_main.build_parser().parse_args(passed_on)
    failed: list[str] = []

    def body() -> None:
        for dataset in arguments.dataset:
            failed.extend(_reproduce(arguments, dataset, passed_on))

    status = run_program(body, expected=(UserError, DataError, OSError))
    return status or int(bool(failed))


def _reproduce(arguments: argparse.Namespace, dataset: str, passed_on: Sequence[str]) -> list[str]:
    """All tables of one dataset; returns the problems of runs that could not be made."""
    tiny = "tiny" in passed_on or (dataset == "shapes" and "--weights" not in passed_on)
    choices = Choices(tiny=tiny, freesolo=arguments.freesolo)
    tables = {name: paper_table(name, choices) for name in arguments.tables}
    splits = arguments.splits or _SPLITS[dataset]
    plan = _plan(tables.values(), dataset, splits, passed_on)
    distinct = {id(planned): planned for planned in plan.values()}.values()
    print(f"{dataset}: {len(distinct)} runs\n{_plan_table(distinct).markdown()}\n")
    if arguments.plan:
        return []
    problems = []
    for planned in distinct:
        problem = planned.problem
        if planned.run and not planned.done:
            problem = _make(planned.run, planned.arguments)
        if problem:
            problems.append(f"hybridgl_main.py {' '.join(planned.arguments)}: {problem}")
    for name, table in tables.items():
        convention = CONVENTIONS[table.convention or arguments.convention]
        cells, notes = _cells(table, plan, dataset, splits, convention)
        notes += [f"not made: {problem}" for problem in problems]
        command = " ".join(["python", "scripts/reproduce.py", *sys.argv[1:]])
        heading = [f"# {table.title}: {dataset}", "", f"`{command}`, {date.today()}, {_machine()}"]
        text = "\n".join([*heading, "", cells.markdown(), "", *(f"* {note}" for note in notes)])
        path = arguments.tables_folder / f"{name}-{dataset}"
        for suffix, content in ((".md", text), (".csv", cells.csv()), (".tex", cells.latex())):
            atomic_write_bytes(
                path.with_name(path.name + suffix),
                f"{content.rstrip()}\n".encode(),
                option="--tables_folder",
            )
        print(f"{text}\n\n{path}.md, .csv, .tex\n")
    return problems


def _plan(
    tables: Iterable[PaperTable],
    dataset: str,
    splits: Sequence[str],
    passed_on: Sequence[str],
) -> dict[tuple[str, ...], PlannedRun]:
    """Every distinct run of the tables, by split and arguments of the row."""
    read: dict[str, ReferSplit] = {}
    plan: dict[tuple[str, ...], PlannedRun] = {}
    of_folder: dict[Path, PlannedRun] = {}
    wanted = [row.arguments for table in tables for row in table.rows if row.arguments is not None]
    estimate = _Estimate(Path("runs"))
    for split in splits:
        for of_row in wanted:
            key = (split, *of_row)
            if key not in plan:
                given = ["--dataset", dataset, "--split", split, *passed_on, *of_row]
                planned = _planned(tuple(given), read, split, estimate)
                # Rows that name the defaults share the run of those that do not.
                folder = planned.run.output if planned.run else Path(*key)
                plan[key] = of_folder.setdefault(folder, planned)
    return plan


def _planned(
    given: tuple[str, ...], read: dict[str, ReferSplit], split: str, estimate: _Estimate
) -> PlannedRun:
    parsed = hybridgl_main.build_parser().parse_args(given)
    try:
        if split not in read:
            read[split] = split_from_arguments(parsed)
        run = prepare(parsed, read[split])
    except (UserError, DataError, OSError) as error:
        return PlannedRun(given, None, " ".join(str(error).split()), done=False, seconds=None)
    summary = read_summary(run.output)
    wanted = json.loads(json.dumps(run.settings))
    done = summary is not None and summary["settings"] == wanted and not parsed.overwrite
    seconds = 0.0 if done else estimate.seconds(wanted, len(read[split].images))
    return PlannedRun(given, run, None, done, seconds)


class _Estimate:
    """Time of runs, from the time per image that earlier runs took.

    Args:
        folder: holds the folders of earlier runs.
    """

    def __init__(self, folder: Path) -> None:
        self._rates: dict[str, float] = {}
        self._present: set[str] = set()
        for path in sorted(folder.glob("*/summary.json")):
            summary = read_summary(path.parent)
            if summary:
                self._learn(summary)

    def _learn(self, summary: Mapping[str, Any]) -> None:
        """Keep what a run took for the images whose results it had to make."""
        made, seconds, settings = summary["store"]["made"], summary["seconds"], summary["settings"]
        counts = {
            "proposals": made.get("proposals", 0),
            "features": made.get("features", 0) + made.get("global-local", 0),
            "picks": 0 if made else summary["counts"]["images"],
        }
        took = {
            "proposals": seconds["proposals"],
            "features": seconds["features and guidance"],
            "picks": sum(seconds.values()),
        }
        for stage, count in counts.items():
            if count:
                rate = took[stage] / count
                self._rates[_stage_id(settings, stage)] = rate
                # Another mode takes about as long; its own measurement goes before this one.
                self._rates[_stage_id(settings, stage, any_method=True)] = rate
            self._present.add(_stage_id(settings, stage, of_split=True))

    def seconds(self, settings: Mapping[str, Any], images: int) -> float | None:
        """Time of a run; None where a stage that it needs has not been measured.

        What the run makes is taken to be there for the runs after it.
        """
        needed = ["picks"]
        for stage in ("proposals", "features"):
            stored = _stage_id(settings, stage, of_split=True)
            if stored not in self._present and (stage, _source(settings)) != ("proposals", "gt"):
                needed.append(stage)
            self._present.add(stored)
        rates = [
            self._rates.get(
                _stage_id(settings, stage),
                self._rates.get(_stage_id(settings, stage, any_method=True)),
            )
            for stage in needed
        ]
        # The time of "features" includes that of the picks.
        rates = rates[1:] if "features" in needed else rates
        known = [rate for rate in rates if rate is not None]
        return images * sum(known) if len(known) == len(rates) else None


def _source(settings: Mapping[str, Any]) -> str:
    return str(settings["proposals"]["source"])


def _stage_id(
    settings: Mapping[str, Any], stage: str, *, of_split: bool = False, any_method: bool = False
) -> str:
    """Everything that the time of a stage depends on; with the split, what its results do."""
    method = settings["method"]
    described: dict[str, Any] = {"device": settings["device"], "dtype": settings["dtype"]}
    if stage == "proposals":
        described["proposals"] = settings["proposals"]
        described["sam"] = settings["weights"]["sha256"].get("sam")
    else:
        described["clip"] = settings["weights"]["sha256"]["clip"]
    if stage == "features" and not any_method:
        parts = ("name", "fusion", "masking_block", "quirks")
        described["method"] = {name: method.get(name) for name in parts}
    if of_split:
        names = ("dataset", "split", "split_by", "limit", "proposals")
        described |= {name: settings[name] for name in names}
    return json.dumps([stage, any_method, described], sort_keys=True)


def _plan_table(plan: Iterable[PlannedRun]) -> Table:
    rows = []
    for planned in plan:
        if planned.run is None:
            state = f"cannot be made: {planned.problem}"
        else:
            state = "done" if planned.done else "missing"
        where = str(planned.run.output) if planned.run else " ".join(planned.arguments)
        rows.append((where, state, _duration(planned.seconds)))
    return Table(("run", "state", "estimated time"), tuple(rows), text_columns=2)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured yet"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _make(run: Run, given: tuple[str, ...]) -> str | None:
    """Make a run; returns what went wrong."""
    print(f"{run.output} ...", flush=True)
    with contextlib.redirect_stdout(io.StringIO()):
        status = hybridgl_main.main(given)
    return f"it ended with status {status}" if status else None


def _cells(
    table: PaperTable,
    plan: Mapping[tuple[str, ...], PlannedRun],
    dataset: str,
    splits: Sequence[str],
    convention: Convention,
) -> tuple[Table, list[str]]:
    """The table, and notes on sources and on what is doubtful."""
    rows: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}
    for split in splits:
        for row in table.rows:
            planned = plan.get((split, *row.arguments)) if row.arguments is not None else None
            summary = read_summary(planned.run.output) if planned and planned.run else None
            split_by = summary["settings"]["split_by"] if summary else default_split_by(dataset)
            theirs = _published(row, (dataset, split_by, split), notes)
            groups: list[tuple[str, list[Record]]] = [("", [])]
            if planned and planned.run and summary:
                notes.update(dict.fromkeys(f"{split}: {line}" for line in summary["problems"]))
                records = scored_records(
                    read_records(planned.run.output / "records.jsonl"),
                    skips_without_proposals=planned.run.method.skips_without_proposals,
                )
                groups = [("", records)]
                if table.by_kind:
                    group_of = BREAKDOWNS["kind"].group_of
                    groups += [
                        (kind, [record for record in records if group_of(record) == kind])
                        for kind in sorted({group_of(record) for record in records})
                    ]
            comparable = summary is not None and not summary["problems"]
            for kind, records in groups:
                ours = _scores(records, row, planned, convention)
                shown = theirs if not kind else {}
                rows.append(
                    (
                        row.method,
                        ", ".join(filter(None, [row.setting, kind])),
                        split,
                        str(len(records)) if records else _MISSING,
                        *_compare(ours, shown, convention.mean_name, "mIoU", comparable),
                        *_compare(ours, shown, convention.overall_name, "oIoU", comparable),
                        ours["best"][0] if ours else _MISSING,
                        _profile(planned) if ours else _MISSING,
                        convention.name if ours else _MISSING,
                    )
                )
    header = ["method", "setting", "split", "n"]
    for name in (convention.mean_name, convention.overall_name):
        header += [name, "95 %", "published", "difference"]
    header += ["best proposal", "profile", "convention"]
    notes[
        "-: nobody's value is known, or the run was not made; a published value is compared only "
        "with a run of the whole split with the published weights."
    ] = None
    return Table(tuple(header), tuple(rows), text_columns=3), list(notes)


def _scores(
    records: Sequence[Record],
    row: TableRow,
    planned: PlannedRun | None,
    convention: Convention,
) -> dict[str, tuple[str, str]]:
    """Score and interval as text, by name; the best proposal's under "best"; empty without run."""
    if not records or planned is None or planned.run is None:
        return {}
    pick = row.pick or planned.run.method.final_pick
    values = score_by_pick(records, convention)
    intervals = intervals_by_pick(records, convention)[pick]
    result = {
        name: (f"{value:.2f}", "{:.2f} to {:.2f}".format(*intervals[name]))
        for name, value in values[pick].items()
    }
    result["best"] = (f"{values['best'][convention.mean_name]:.2f}", "")
    return result


def _published(
    row: TableRow, cell: tuple[str, str, str], notes: dict[str, None]
) -> dict[str, tuple[str, float]]:
    """Published values with their source's mark, by metric; the sources are noted."""
    found: dict[str, tuple[str, float]] = {}
    for published in ROWS:
        if published.row_id == row.published_id and cell in published.values:
            source = SOURCES[published.source]
            secondary = "secondary source: " if source.secondary else ""
            notes[f"[{source.mark}] {secondary}{source.text}"] = None
            text = f"{published.text(cell)} [{source.mark}]"
            found[published.metric] = (text, published.values[cell])
    return found


def _compare(
    ours: Mapping[str, tuple[str, str]],
    theirs: Mapping[str, tuple[str, float]],
    name: str,
    metric: str,
    comparable: bool,
) -> tuple[str, str, str, str]:
    """Four cells: ours, its interval, the published value, the difference."""
    value, interval = ours.get(name, (_MISSING, _MISSING))
    text, number = theirs.get(metric, (_MISSING, None))
    difference = _MISSING
    if comparable and value != _MISSING and number is not None:
        difference = f"{float(value) - number:+.2f}"
    return value, interval, text, difference


def _profile(planned: PlannedRun | None) -> str:
    return "corrected" if planned and "corrected" in planned.arguments else "reference"


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {device}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
