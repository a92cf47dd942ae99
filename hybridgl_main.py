"""Stage 2: pick a mask for every expression of a split, and report mIoU and oIoU.

Uses what the store holds (GEM maps of save_attn_gem.py, proposals, features) and makes what it
lacks; a killed run goes on where it stopped.

Example:
    python hybridgl_main.py --dataset shapes --split val --fusion_mode G2L
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hybridgl.arguments import add_model_arguments, fusion_mode, model_from_arguments
from hybridgl.config import FusionMode
from hybridgl.errors import UserError
from refer.arguments import (
    add_split_arguments,
    check_split_arguments,
    split_from_arguments,
)
from refer.errors import DataError
from refer.splits import default_split_by
from suite.evaluation import caps_by_ref, check_truths, count_proposals, evaluate
from suite.report import draw_samples, score_by_pick, score_report
from utils.records import write_records, write_summary
from utils.runtime import (
    Stopwatch,
    add_store_arguments,
    check_output_folder,
    check_settings,
    peak_memory_bytes,
    run_program,
    store_from_arguments,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_split_arguments(parser)
    add_model_arguments(parser)
    add_store_arguments(parser)
    parser.add_argument(
        "--fusion_mode",
        type=fusion_mode,
        default=FusionMode.GLOBAL_TO_LOCAL,
        metavar="{" + ",".join(mode.value for mode in FusionMode) + "}",
        help="how the two streams of a mask are combined (default: G2L)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where records, summary and figures go (default: runs/DATASET-SPLIT-MODE-PROFILE)",
    )
    arguments = parser.parse_args(argv)
    return run_program(lambda: run(arguments), expected=(UserError, DataError, OSError))


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the split and leave records, summary and figures."""
    dataset, split_name, mode = arguments.dataset, arguments.split, arguments.fusion_mode
    split_by = check_split_arguments(arguments)
    store = store_from_arguments(arguments)
    model = model_from_arguments(arguments, store)
    model.load()
    drawn_by = "" if split_by == default_split_by(dataset) else f"-{split_by}"
    first = f"-first-{arguments.limit}" if arguments.limit else ""
    name = f"{dataset}{drawn_by}-{split_name}{first}-{mode.value}-{arguments.profile}"
    output = arguments.output or Path("runs") / name
    check_output_folder(output)
    split = split_from_arguments(arguments)
    settings = {
        "dataset": dataset,
        "split": split_name,
        "split_by": split_by,
        "limit": arguments.limit,
        "data": split.file_digests,
        **model.describe(),
    }
    check_settings(output, settings, overwrite=arguments.overwrite)
    check_truths(model, split)
    problems = [*split.problems, *model.weights.doubts(model.weights_ids)]
    watch = Stopwatch()
    with watch.measure("proposals"):
        counts = count_proposals(model, split)
    with watch.measure("features and guidance"):
        caps = caps_by_ref(model, split, counts)
        records = evaluate(model, split, counts, caps)
    # The summary, written last, vouches for the files beside it; an earlier run's no longer does.
    summary_path = output / "summary.json"
    summary_path.unlink(missing_ok=True)
    write_records(output / "records.jsonl", records)
    with watch.measure("figures"):
        draw_samples(model, split, records, caps, output / "figures")
    summary = {
        "settings": settings,
        "samples": len(records),
        "samples_without_proposals": sum(r.num_proposals == 0 for r in records),
        "samples_truncated": sum(r.truncated for r in records),
        "problems": problems,
        "scores": score_by_pick(records),
        "store": {"found": dict(store.hits), "made": dict(store.misses)},
        "seconds": watch.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_summary(summary_path, summary)
    setting = f"{mode.value}, {arguments.profile} profile, CLIP {model.weights.clip_weights.name}"
    setting += f", SAM {model.weights.sam_checkpoint.name}, {settings['dtype']}"
    print(f"\n{score_report(split, records, setting, problems)}")
    print(f"in {store.root}/: found {dict(store.hits)}, made {dict(store.misses)}")
    print(f"records, summary and figures: {output}")


if __name__ == "__main__":
    sys.exit(main())
