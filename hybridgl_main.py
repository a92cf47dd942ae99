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

from evaluation.evaluate import (
    all_k_limits,
    check_ground_truth,
    count_proposals,
    evaluate,
    in_dataset_order,
    k_limit_by_ref,
)
from evaluation.methods import add_run_arguments
from evaluation.run import (
    Run,
    finished_records,
    image_errors_of,
    prepare,
    rescore,
    write_results,
)
from evaluation.shards import (
    Shard,
    add_shard_argument,
    check_other_shards,
    merge_shards,
    missing_shards,
    write_shard,
)
from hybridgl.arguments import add_method_arguments, add_model_arguments
from hybridgl.errors import DataError, HybridGLError
from refer.arguments import add_split_arguments
from utils.runtime import (
    Stopwatch,
    add_store_arguments,
    check_settings,
    run_program,
)


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_split_arguments(parser)
    add_run_arguments(parser)
    add_method_arguments(parser)
    add_model_arguments(parser)
    add_store_arguments(parser)
    parser.add_argument(
        "--keep_tokens",
        action="store_true",
        help="store what enters CLIP's masked blocks too (1.2 MB a mask), so that another "
        "--fusion_mode takes a fraction of the time",
    )
    add_shard_argument(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where records, summary and figures go (default: a folder in runs/ that is named "
        "after dataset, split, mode, profile and whatever differs from the defaults)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    return run_program(lambda: run(arguments), expected=(HybridGLError, DataError, OSError))


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the split, or a shard of it, and leave records, summary and figures."""
    execute(prepare(arguments), shard=arguments.shard, overwrite=arguments.overwrite)


def execute(this: Run, *, shard: Shard | None = None, overwrite: bool = False) -> None:
    """Do a run that is ready, or a shard of it; what it prints is its report."""
    method, source, split = this.method, this.source, this.split
    check_settings(this.output, this.settings, overwrite=overwrite)
    if not (overwrite or shard):
        finished = finished_records(this)
        if finished is not None:
            print(f"\n{rescore(this, finished)}")
            return
    method.load()
    check_ground_truth(split)
    watch, image_errors = Stopwatch(), image_errors_of(split)
    if shard:
        check_other_shards(shard, this.output, this.settings, image_errors)
    with watch.measure("proposals"), this.store.background_writes():
        image_ids = shard.image_ids(split) if shard else list(split.images)
        counts = count_proposals(source, split, image_ids)
    with watch.measure("features and guidance"), this.store.background_writes():
        if shard:
            variants = evaluate(method, source, split, counts, all_k_limits(method, split, counts))
            write_shard(shard, this.output, this.settings, image_errors, counts, variants)
            missing = missing_shards(shard, this.output)
            if missing:
                print(f"{shard} is in {this.output}/; missing: {', '.join(map(str, missing))}")
                return
            counts, variants = merge_shards(shard, this.output, this.settings, image_errors, split)
            k_limits = k_limit_by_ref(method, split, counts)
        else:
            k_limits = k_limit_by_ref(method, split, counts)
            variants = evaluate(
                method, source, split, counts, {r: [c] for r, c in k_limits.items()}
            )
    records = in_dataset_order(split, variants, k_limits)
    print(f"\n{write_results(this, records, k_limits, watch)}")


if __name__ == "__main__":
    sys.exit(main())
