"""The command ``python -m refer``: datasets, and whether they and the store are whole.

Example:
    python -m refer download paper refcoco coco-train2014
    python -m refer doctor
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Sequence

from hybridgl.program import ArgumentParser, run_program
from refer.doctor import add_doctor_arguments, doctor
from refer.download import add_download_arguments, download

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, as of ``hybridgl.cli.main``."""
    parser = ArgumentParser(
        prog="python -m refer",
        description="Fetch datasets, and look whether they and the store are whole.",
    )
    parser.add_version()
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("download", help="published datasets, and the library's weights")
    add_download_arguments(command)
    command.set_defaults(run=download)
    command = commands.add_parser("doctor", help="what is missing or damaged, and what fixes it")
    add_doctor_arguments(command)
    command.set_defaults(run=_doctor)
    arguments = parser.parse_args(argv)
    return run_program(lambda: arguments.run(arguments, functools.partial(print, flush=True)))


def _doctor(arguments: argparse.Namespace, report: Callable[[str], None]) -> bool:
    logging.disable(logging.WARNING)  # of readers, whose findings are among the doctor's
    try:
        return doctor(arguments, report)
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
