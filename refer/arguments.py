"""Command-line arguments that choose a split, shared by every program that reads one."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from refer.errors import DataError
from refer.reader import IMAGE_FOLDERS, ReferSplit, load_refer, missing_images
from refer.shapes.world import ensure_world
from refer.splits import DATASETS, validate

__all__ = ["add_split_arguments", "check_split_arguments", "split_from_arguments"]


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``split_from_arguments`` reads, in a group "data"."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="shapes", help="(default: shapes)")
    group.add_argument("--split", default="val", help="val, testA, ... (default: val)")
    group.add_argument(
        "--split_by",
        "--splitBy",
        help="unc, google or umd (default: the first that the dataset has, see refer/README.md)",
    )
    group.add_argument(
        "--refer_data_root",
        type=Path,
        default=Path("refer/data"),
        metavar="DIR",
        help="see refer/README.md for what it holds (default: %(default)s)",
    )
    group.add_argument("--limit", type=int, metavar="N", help="the first N images only")


def check_split_arguments(arguments: argparse.Namespace) -> str:
    """Check the arguments without reading or writing a file, and return the split_by.

    Raises:
        DataError: a wrong name or limit.
    """
    if arguments.limit is not None and arguments.limit < 1:
        raise DataError(f"Expected --limit of at least 1 image, got {arguments.limit}.")
    split_by = validate(arguments.dataset, arguments.split, arguments.split_by)
    if arguments.dataset not in IMAGE_FOLDERS:
        raise DataError(
            f"Expected a dataset that this version reads ({', '.join(IMAGE_FOLDERS)}), got "
            f"{arguments.dataset}."
        )
    return split_by


def split_from_arguments(arguments: argparse.Namespace) -> ReferSplit:
    """The split that the arguments name; the shapes world is made where it is missing.

    A split that lacks refs or images is read all the same, so that a part of the data can be
    tried: ``problems`` then says that it is incomplete, and so do the reports.

    Raises:
        DataError: as ``check_split_arguments``; data that cannot be read or has no sentence.
        FileNotFoundError: a file of the dataset is missing, images included.
    """
    dataset, root = arguments.dataset, arguments.refer_data_root
    split_by = check_split_arguments(arguments)
    if dataset == "shapes":
        ensure_world(root)
    split = load_refer(root, dataset, arguments.split, split_by, check_counts=False)
    whole = len(split.images)
    if arguments.limit is not None and arguments.limit < whole:
        split = split.limited(arguments.limit)
        part = f"the first {arguments.limit} of {whole} images"
        problem = f"Not the whole of {dataset} {arguments.split}: {part}."
        split = replace(split, problems=(*split.problems, problem))
    if not split.num_sentences:
        raise DataError(
            f"Expected sentences in {dataset} {arguments.split}, got {len(split.refs)} refs "
            f"without any. Fetch the refs file again, or raise --limit."
        )
    missing = missing_images(split)
    if missing:
        raise FileNotFoundError(
            f"Expected {len(split.images)} images of {dataset} {arguments.split}, "
            f"{len(missing)} are missing, the first of them {missing[0]}. "
            f"See refer/README.md for where they come from."
        )
    return split
