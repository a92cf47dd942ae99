"""Stage 2: predict a mask for every expression of a split, and report mIoU and oIoU.

Uses what the store holds (GEM maps of save_attn_gem.py, proposals, features) and makes what it
lacks; a killed run goes on where it stopped.

Example:
    python hybridgl_main.py --dataset shapes --split val --fusion_mode G2L
"""

from __future__ import annotations

import os

# Before torch loads: on cores that others use too, threads that spin while they wait cost CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import sys
from collections.abc import Sequence

from evaluation.run import Methods, Run, RunConfig, add_run_arguments
from hybridgl.methods.global_local import GlobalLocalClip
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.program import ArgumentParser, run_program

METHODS: Methods = {method.name: method for method in (HybridGL, GlobalLocalClip)}
"""The methods that can be evaluated, by their names on the command line."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the program's arguments."""
    parser = ArgumentParser(description=__doc__)
    parser.add_version()
    parser.add_config()
    add_run_arguments(parser, METHODS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    return run_program(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the split, or score a shard of it."""
    print(f"\n{Run(RunConfig.from_arguments(arguments, METHODS), METHODS).execute()}")


if __name__ == "__main__":
    sys.exit(main())
