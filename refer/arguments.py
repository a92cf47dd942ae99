"""Command-line arguments that choose a split, shared by every program that reads one."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from hybridgl.errors import DataError
from refer.coco import custom_name, load_custom, resolve_split
from refer.dataset import ReferSplit
from refer.image_errors import describe_image_errors, find_image_errors
from refer.phrasecut import load_phrasecut
from refer.refer import load_refer
from refer.shapes.world import ensure_world
from refer.splits import DATASETS, SPLITS, UNNAMED_SPLIT_BY, default_split_by, validate

__all__ = ["SplitChoice", "add_split_arguments", "check_split_arguments", "split_from_arguments"]

DEFAULT_SPLIT = "val"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """What the arguments choose, with every default filled in.

    Attributes:
        dataset: Its name, as `ReferSplit.dataset`.
        split: The split.
        split_by: Who drew the splits.
    """

    dataset: str
    split: str
    split_by: str

    @property
    def label(self) -> str:
        """A name for folders; says who drew the splits where that is not the usual way.

        >>> SplitChoice("refcocog", "val", "umd").label
        'refcocog-val'
        >>> SplitChoice("refcocog", "val", "google").label
        'refcocog-google-val'
        """
        usual = default_split_by(self.dataset) if self.dataset in SPLITS else UNNAMED_SPLIT_BY
        drawn_by = [] if self.split_by == usual else [self.split_by]
        return "-".join([self.dataset, *drawn_by, self.split])


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``split_from_arguments`` reads, in a group "data"."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        type=_dataset,
        default="shapes",
        metavar="NAME|PATH",
        help=f"{', '.join(DATASETS)}; or the path of a custom dataset, a folder in REFER form or a "
        "JSON file in COCO form, see refer/README.md (default: shapes)",
    )
    group.add_argument(
        "--split",
        help=f"val, testA, ... (default: {DEFAULT_SPLIT}; of a custom dataset the only one)",
    )
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


def _dataset(text: str) -> str:
    try:
        found = text in DATASETS or Path(text).exists()
    except OSError:  # no path can be so long, or none may be looked up there
        found = False
    if not found:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(DATASETS)}, or the path of a folder in REFER form or of "
            f"a JSON file in COCO form; got {text!r}, where there is nothing"
        )
    return text


def check_split_arguments(arguments: argparse.Namespace) -> SplitChoice:
    """Check the arguments without writing a file, and fill in their defaults.

    Nothing is read either, unless it takes a file of a custom dataset to find its only split.

    Raises:
        DataError: A wrong name or limit; or several splits to choose from.
        FileNotFoundError: A path without data.
    """
    if arguments.limit is not None and arguments.limit < 1:
        raise DataError(f"Expected --limit of at least 1 image, got {arguments.limit}.")
    if arguments.dataset not in DATASETS:
        path = Path(arguments.dataset)
        split, split_by = resolve_split(path, arguments.split, arguments.split_by)
        return SplitChoice(custom_name(path), split, split_by)
    split = DEFAULT_SPLIT if arguments.split is None else arguments.split
    split_by = validate(arguments.dataset, split, arguments.split_by)
    return SplitChoice(arguments.dataset, split, split_by)


def split_from_arguments(arguments: argparse.Namespace) -> ReferSplit:
    """The split that the arguments name; the shapes world is made where it is missing.

    A split that lacks refs or images is read all the same, so that a part of the data can be tried:
    ``warnings`` then says what is wrong, and so do the reports; ``image_errors`` holds the images that
    are missing, damaged or of another size.

    Raises:
        DataError: As ``check_split_arguments``; data that cannot be read or has no sentence.
        FileNotFoundError: A file of the dataset is missing, or all of its images.
    """
    choice = check_split_arguments(arguments)
    split = _load(arguments, choice)
    whole = len(split.images)
    if arguments.limit is not None and arguments.limit < whole:
        split = split.limited(arguments.limit)
        part = f"the first {arguments.limit} of {whole} images"
        problem = f"Not the whole of {choice.dataset} {choice.split}: {part}."
        split = replace(split, warnings=(*split.warnings, problem))
    if not split.num_sentences:
        raise DataError(
            f"Expected sentences in {choice.dataset} {choice.split}, got {len(split.refs)} refs "
            f"without any. Fetch the refs file again, or raise --limit."
        )
    return _with_image_errors(split)


def _load(arguments: argparse.Namespace, choice: SplitChoice) -> ReferSplit:
    dataset, root = arguments.dataset, arguments.refer_data_root
    if dataset not in DATASETS:
        return load_custom(Path(dataset), choice.split, choice.split_by)
    if dataset == "phrasecut":
        return load_phrasecut(root, choice.split, check_counts=False)
    if dataset == "shapes":
        ensure_world(root)
    return load_refer(root, dataset, choice.split, choice.split_by, check_counts=False)


def _with_image_errors(split: ReferSplit) -> ReferSplit:
    image_errors = find_image_errors(split)
    unreadable = [*image_errors.missing, *image_errors.corrupt]
    if len(unreadable) == len(split.images):
        raise FileNotFoundError(
            f"Expected {len(split.images)} images of {split.dataset} {split.split}, "
            f"{len(image_errors.missing)} are missing and {len(image_errors.corrupt)} damaged, the first of "
            f"them {split.image_path(unreadable[0])}. "
            f"See refer/README.md for where they come from."
        )
    lines = describe_image_errors(split, image_errors)
    for line in lines:
        logger.warning(line)
    return replace(split, image_errors=image_errors, warnings=(*split.warnings, *lines))
