"""A run as a whole: what its arguments make of it, its folder, and what it leaves there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgl.arguments import add_method_arguments
from hybridgl.config import Profile
from hybridgl.metrics import CONVENTIONS
from refer.arguments import SplitChoice, check_split_arguments, split_from_arguments
from refer.dataset import Id, ReferSplit
from suite.breakdowns import BREAKDOWNS
from suite.methods import (
    Method,
    add_run_arguments,
    check_run_arguments,
    method_from_arguments,
    source_from_arguments,
)
from suite.proposals import ProposalSource
from suite.report import (
    breakdown_table,
    draw_samples,
    intervals_by_pick,
    points_lost,
    report_text,
    score_by_pick,
    scored_records,
)
from utils.records import Record, write_records, write_summary
from utils.runtime import (
    Stopwatch,
    check_output_folder,
    peak_memory_bytes,
    store_from_arguments,
)
from utils.store import Store, atomic_write_bytes

__all__ = ["Run", "leave_results", "prepare", "run_name"]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """An evaluation, ready to start.

    Attributes:
        method: what picks.
        source: what it picks from.
        split: the data.
        settings: everything that decides the records, as JSON values.
        output: folder that gets the results.
        store: keeps the results of stages.
        convention: how scores are computed; does not touch the records.
    """

    method: Method
    source: ProposalSource
    split: ReferSplit
    settings: dict[str, Any]
    output: Path
    store: Store
    convention: str


def prepare(arguments: argparse.Namespace, split: ReferSplit | None = None) -> Run:
    """The run that the arguments of ``hybridgl_main.py`` describe; nothing is computed or written.

    Args:
        arguments: parsed.
        split: the data, where it has been read for these arguments before.

    Raises:
        UserError: a wrong argument, or a file that is missing or wrong.
        DataError: data that cannot be used.
        OSError: a file or folder that cannot be used.
    """
    choice = check_split_arguments(arguments)
    check_run_arguments(arguments)
    store = store_from_arguments(arguments)
    method = method_from_arguments(arguments, store)
    output = arguments.output or Path("runs") / run_name(arguments, choice)
    check_output_folder(output)
    if split is None:
        split = split_from_arguments(arguments)
    source = source_from_arguments(arguments, method.backbones, store, split)
    settings = {
        "dataset": split.dataset,
        "split": split.split,
        "split_by": split.split_by,
        "limit": arguments.limit,
        "data": split.file_digests,
        "method": method.describe(),
        "proposals": source.describe(),
        **method.backbones.describe("clip", *source.models),
    }
    return Run(method, source, split, settings, output, store, arguments.convention)


def run_name(arguments: argparse.Namespace, choice: SplitChoice) -> str:
    """Name of a run's folder: dataset, split, mode, profile, and all that is not the default."""
    hybridgl = arguments.method == "hybridgl"
    parts = [choice.label]
    if arguments.limit:
        parts.append(f"first-{arguments.limit}")
    parts.append(arguments.fusion_mode.value if hybridgl else arguments.method)
    parts.append(arguments.profile)
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    add_method_arguments(parser)
    defaults = parser.parse_args([])
    named = {"method", "convention", "fusion_mode"}
    for name, default in vars(defaults).items():
        value = getattr(arguments, name)
        if name not in named and value != default:
            parts.append(_setting_name(name, value))
    models = ("weights", "clip_model", "clip_weights", "sam_type", "sam_checkpoint", "sam_settings")
    for name in models:
        value = getattr(arguments, name)
        if value is not None:
            parts.append(Path(value).stem)
    if arguments.dtype != "float32":
        parts.append(arguments.dtype)
    return "-".join(parts)


def leave_results(
    run: Run, records: Sequence[Record], caps: Mapping[Id, int], watch: Stopwatch
) -> str:
    """Write records, figures, report and summary.

    Args:
        run: the evaluation.
        records: one for every sentence, in dataset order.
        caps: effective cap on the candidate counts of every ref.
        watch: time of the run's stages.

    Returns:
        What to print.
    """
    convention = CONVENTIONS[run.convention]
    # The summary, written last, vouches for the files beside it; an earlier run's no longer does.
    summary_path = run.output / "summary.json"
    summary_path.unlink(missing_ok=True)
    write_records(run.output / "records.jsonl", records)
    with watch.measure("figures"):
        draw_samples(run.method, run.source, run.split, records, caps, run.output / "figures")
    skips = run.method.skips_without_proposals
    scored = scored_records(records, skips_without_proposals=skips)
    doubts = run.method.backbones.doubts("clip", *run.source.models)
    scores = score_by_pick(scored, convention)
    summary: dict[str, Any] = {
        "settings": run.settings,
        "setting": _setting(run),
        "convention": run.convention,
        "counts": _counts(run, records, len(records) - len(scored)),
        "problems": [*run.split.problems, *run.source.problems, *doubts],
        "scores": scores,
        "lost": points_lost(scores, run.method.final_pick, convention),
        "intervals": intervals_by_pick(scored, convention),
        "breakdowns": {
            name: breakdown_table(scored, convention, groups).by_row()
            for name, groups in BREAKDOWNS.items()
        },
        "store": {"found": dict(run.store.hits), "made": dict(run.store.misses)},
        "seconds": watch.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    report = report_text(run.split, scored, summary, convention, groups=tuple(BREAKDOWNS))
    atomic_write_bytes(run.output / "report.md", f"{report}\n".encode())
    write_summary(summary_path, summary)
    return "\n".join(
        [
            report_text(run.split, scored, summary, convention),
            f"in {run.store.root}/: found {dict(run.store.hits)}, made {dict(run.store.misses)}",
            f"records, summary, report with all breakdowns, and figures: {run.output}",
        ]
    )


def _setting(run: Run) -> str:
    """What the run was made with, to be held against a published setting."""
    described = run.settings["method"]
    mode = described["fusion"]["mode"] if described["name"] == "hybridgl" else described["name"]
    reference = all(described["quirks"].values())
    profile = Profile.REFERENCE if reference else Profile.CORRECTED
    clip = run.method.backbones.weights.clip_weights.name
    return (
        f"{mode}, {profile.value} profile, CLIP {clip}, proposals of {run.source.name}, "
        f"{run.settings['dtype']}"
    )


def _counts(run: Run, records: Sequence[Record], left_out: int) -> dict[str, int]:
    split = run.split
    return {
        "refs": len(split.refs),
        "images": len(split.images),
        "sentences": len(records),
        "without_proposals": sum(record.num_proposals == 0 for record in records),
        "left_out": left_out,
        "truncated": sum(record.truncated for record in records),
        "images_missing": len(split.faults.missing),
        "images_damaged": len(split.faults.damaged),
        "images_of_other_size": len(split.faults.other_size),
        "refs_without_mask": len(split.refs_without_mask),
        "refs_without_sentences": len(split.refs_without_sentences),
    }


def _setting_name(name: str, value: object) -> str:
    if name == "proposals" and isinstance(value, str):
        return Path(value.removeprefix("coco:")).stem
    values = value if isinstance(value, list | tuple) else [value]
    return "-".join([name, *map(str, values)])
