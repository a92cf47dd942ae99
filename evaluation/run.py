"""A run as a whole: what its arguments make of it, its folder, and what it leaves there."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.breakdowns import BREAKDOWNS
from evaluation.methods import (
    Method,
    add_run_arguments,
    check_run_arguments,
    method_from_arguments,
    source_from_arguments,
)
from evaluation.proposals import ProposalSource
from evaluation.records import Record, read_records, write_records, write_summary
from evaluation.report import (
    breakdown_table,
    draw_samples,
    intervals_by_pick,
    points_lost,
    report_text,
    score_by_pick,
    scored_records,
)
from hybridgl.arguments import add_method_arguments
from hybridgl.config import FusionMode, Profile
from hybridgl.errors import HybridGLError
from hybridgl.files import atomic_write_bytes
from hybridgl.metrics import PROTOCOLS
from hybridgl.store import Store
from refer.arguments import SplitChoice, check_split_arguments, split_from_arguments
from refer.dataset import Id, ReferSplit
from utils.runtime import (
    Stopwatch,
    check_output_folder,
    peak_memory_bytes,
    read_summary,
    store_from_arguments,
)

__all__ = [
    "Run",
    "finished_records",
    "image_errors_of",
    "prepare",
    "rescore",
    "run_name",
    "run_warnings",
    "write_results",
]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """An evaluation, ready to start.

    Attributes:
        method: what picks.
        source: what it picks from.
        split: the data.
        settings: everything that decides the records, as JSON values.
        changed: settings that are not the defaults, by their names on the command line.
        output: folder that gets the results.
        store: keeps the results of stages.
        protocol: how scores are computed; does not touch the records.
    """

    method: Method
    source: ProposalSource
    split: ReferSplit
    settings: dict[str, Any]
    changed: dict[str, str]
    output: Path
    store: Store
    protocol: str


def prepare(arguments: argparse.Namespace, split: ReferSplit | None = None) -> Run:
    """The run that the arguments of ``hybridgl_main.py`` describe; nothing is computed or written.

    Args:
        arguments: parsed.
        split: the data, where it has been read for these arguments before.

    Raises:
        HybridGLError: a wrong argument, or a file that is missing or wrong.
        DataError: data that cannot be used.
        OSError: a file or folder that cannot be used.
    """
    choice = check_split_arguments(arguments)
    check_run_arguments(arguments)
    _check_settings_of_method(arguments)
    store = store_from_arguments(arguments)
    method = method_from_arguments(arguments, store)
    output = arguments.output or Path("runs") / run_name(arguments, choice)
    check_output_folder(output)
    if split is None:
        split = split_from_arguments(arguments)
    source = source_from_arguments(arguments, method.models, store, split)
    settings = {
        "dataset": split.dataset,
        "split": split.split,
        "split_by": split.split_by,
        "limit": arguments.limit,
        "data": split.sha256_by_file,
        "method": method.describe(),
        "proposals": source.describe(),
        **method.models.settings("clip", *source.models),
    }
    changed = _changed_settings(arguments)
    return Run(method, source, split, settings, changed, output, store, arguments.protocol)


def run_name(arguments: argparse.Namespace, choice: SplitChoice) -> str:
    """Name of a run's folder: dataset, split, mode, profile, and all that is not the default."""
    hybridgl = arguments.method == "hybridgl"
    parts = [choice.label]
    if arguments.limit:
        parts.append(f"first-{arguments.limit}")
    parts.append(arguments.fusion_mode.value if hybridgl else arguments.method)
    parts.append(arguments.profile)
    for name, value in _changed_settings(arguments).items():
        if name == "proposals":
            path = value.removeprefix("coco:")
            parts.append(value if value == path else f"masks-{Path(path).stem}")
        elif name != "fusion_mode":
            parts.append(f"{name}-{'-'.join(value.split())}")
    models = (
        "weights",
        "clip_model",
        "clip_weights",
        "sam_type",
        "sam_checkpoint",
        "sam_settings",
        "spacy_model",
    )
    for name in models:
        value = getattr(arguments, name)
        if value is not None:
            parts.append(f"sam-{value}" if name == "sam_type" else Path(value).stem)
    if arguments.dtype != "float32":
        parts.append(arguments.dtype)
    if arguments.compile:
        parts.append("compiled")
    return "-".join(parts)


def _changed_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """What is not the default among the settings of the run and of the method, as text."""
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    add_method_arguments(parser)
    changed = {}
    for name, default in vars(parser.parse_args([])).items():
        value = getattr(arguments, name)
        if name == "without":
            value = sorted(value)
        elif isinstance(default, tuple):
            value, default = list(value), list(default)
        if name not in ("method", "protocol") and value != default:
            if isinstance(value, FusionMode):
                value = value.value
            changed[name] = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return changed


def _check_settings_of_method(arguments: argparse.Namespace) -> None:
    """Refuse a setting that the method does not read: a run with it would show no effect.

    Raises:
        HybridGLError: naming the settings.
    """
    baseline = arguments.method == "global_local"
    of_both = {"proposals", "sentence_weight", "masking_block"}
    unread = [
        name
        for name in _changed_settings(arguments)
        if name not in of_both and (name == "mixing_weight") != baseline
    ]
    if unread:
        named = ", ".join(f"--{name}" for name in unread)
        raise HybridGLError(
            f"Expected settings of the method {arguments.method}, got {named}, which it does not "
            f"have. Leave them out, or choose another --method."
        )


def finished_records(run: Run) -> list[Record] | None:
    """The records that are in a run's folder; None unless the run would make the very same ones."""
    summary = read_summary(run.output)
    if summary is None or summary["settings"] != json.loads(json.dumps(run.settings)):
        return None
    path = run.output / "records.jsonl"
    if summary.get("image_errors") != image_errors_of(run.split) or not path.is_file():
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != summary.get("records_sha256"):
        return None
    return read_records(path)


def image_errors_of(split: ReferSplit) -> dict[str, list[Any]]:
    """The images that are not as annotated, as JSON values: records depend on them."""
    image_errors = split.image_errors
    return {
        "missing": list(image_errors.missing),
        "damaged": list(image_errors.damaged),
        "other_size": [[image_id, *hw] for image_id, hw in image_errors.other_size.items()],
    }


def write_results(
    run: Run, records: Sequence[Record], k_limits: Mapping[Id, int], watch: Stopwatch
) -> str:
    """Write records, figures, report and summary.

    Args:
        run: the evaluation.
        records: one for every sentence, in dataset order.
        k_limits: effective k_limit on the candidate counts of every ref.
        watch: time of the run's stages.

    Returns:
        What to print.
    """
    # The summary, written last, vouches for the files beside it; an earlier run's no longer does.
    (run.output / "summary.json").unlink(missing_ok=True)
    write_records(run.output / "records.jsonl", records)
    with watch.measure("figures"):
        draw_samples(run.method, run.source, run.split, records, k_limits, run.output / "figures")
    made = {
        "store": {"found": dict(run.store.hits), "made": dict(run.store.misses)},
        "seconds": watch.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    text = _write_scores(run, records, made)
    return "\n".join(
        [
            text,
            f"in {run.store.root}/: found {dict(run.store.hits)}, made {dict(run.store.misses)}",
            f"records, summary, report with all breakdowns, and figures: {run.output}",
        ]
    )


def rescore(run: Run, records: Sequence[Record]) -> str:
    """Write report and summary anew from the records of an earlier run of the same settings.

    Args:
        run: the evaluation, perhaps of another protocol.
        records: from ``finished_records``.

    Returns:
        What to print.
    """
    summary = read_summary(run.output) or {}
    made = {name: summary[name] for name in ("store", "seconds", "peak_memory_bytes")}
    text = _write_scores(run, records, made)
    return f"{text}\nthe records were there, and are scored again: {run.output}"


def _write_scores(run: Run, records: Sequence[Record], made: Mapping[str, Any]) -> str:
    """Write report and summary; returns the report in short."""
    protocol = PROTOCOLS[run.protocol]
    skips = run.method.skips_without_proposals
    scored = scored_records(records, skips_without_proposals=skips)
    scores = score_by_pick(scored, protocol)
    tables = {
        name: breakdown_table(scored, protocol, groups) for name, groups in BREAKDOWNS.items()
    }
    content = (run.output / "records.jsonl").read_bytes()
    summary: dict[str, Any] = {
        "settings": run.settings,
        "setting": _setting(run),
        "protocol": run.protocol,
        "counts": _counts(run, records, len(records) - len(scored)),
        "image_errors": image_errors_of(run.split),
        "warnings": [*run_warnings(run), *_unreadable(run.split, records)],
        "scores": scores,
        "lost": points_lost(scores, run.method.final_pick, protocol),
        "intervals": intervals_by_pick(scored, protocol),
        "breakdowns": {name: table.by_row() for name, table in tables.items()},
        **made,
        "records_sha256": hashlib.sha256(content).hexdigest(),
    }
    report = report_text(run.split, scored, summary, protocol, tables.values())
    atomic_write_bytes(run.output / "report.md", f"{report}\n".encode())
    write_summary(run.output / "summary.json", summary)
    return report_text(run.split, scored, summary, protocol, [tables["kind"]])


def run_warnings(run: Run) -> list[str]:
    """What is doubtful about a run before it starts: one line each."""
    warnings = run.method.models.warnings("clip", *run.source.models)
    return [*run.split.warnings, *run.source.warnings, *warnings]


def _unreadable(split: ReferSplit, records: Sequence[Record]) -> list[str]:
    """A line on the images that turned out to be damaged when they were needed."""
    ids = {record.image_id: None for record in records if record.image_missing}
    later = [i for i in ids if i not in (*split.image_errors.missing, *split.image_errors.damaged)]
    if not later:
        return []
    names = ", ".join(split.images[image_id].file_name for image_id in later[:5])
    return [f"{len(later)} images cannot be decoded or are too large: {names}. Fetch them again."]


def _setting(run: Run) -> str:
    """What the run was made with, to be held against a published setting."""
    described = run.settings["method"]
    mode = described["fusion"]["mode"] if described["name"] == "hybridgl" else described["name"]
    reference = all(described["quirks"].values())
    profile = Profile.REFERENCE if reference else Profile.CORRECTED
    clip = run.method.models.weights.clip_weights.name
    parts = [
        mode,
        f"{profile.value} profile",
        f"CLIP {clip}",
        f"proposals of {run.source.name}",
        run.settings["dtype"],
    ]
    parts += [
        f"{name} {value}"
        for name, value in run.changed.items()
        if name not in ("proposals", "fusion_mode")
    ]
    return ", ".join([*parts, f"protocol {run.protocol}"])


def _counts(run: Run, records: Sequence[Record], left_out: int) -> dict[str, int]:
    split = run.split
    unreadable = {record.image_id for record in records if record.image_missing}
    unreadable |= {*split.image_errors.missing, *split.image_errors.damaged}
    return {
        "refs": len(split.refs),
        "images": len(split.images),
        "sentences": len(records),
        "without_proposals": sum(record.num_proposals == 0 for record in records),
        "left_out": left_out,
        "truncated": sum(record.truncated for record in records),
        "images_missing": len(split.image_errors.missing),
        "images_damaged": len(unreadable) - len(split.image_errors.missing),
        "images_of_other_size": len(split.image_errors.other_size),
        "refs_without_mask": len(split.refs_without_mask),
        "refs_without_sentences": len(split.refs_without_sentences),
    }
