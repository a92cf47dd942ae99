"""The splits that exist, how many referring expressions each must hold, and the check of these.

Refs and images, and RefCOCO's sentences, come from the public catalogue of the REFER data, as do
PhraseCut's phrases; the other sentence counts are widely quoted but unchecked, so a difference
there is a warning.  Splits match by equality: the original API matches substrings, where ``test``
on RefCOCO means testA and testB together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hybridgl.errors import DataError
from refer.dataset import ReferSplit
from refer.entries import first_few

__all__ = [
    "DATASETS",
    "SPLITS",
    "UNNAMED_SPLIT_BY",
    "ExpectedCounts",
    "checked",
    "default_split_by",
    "expected_counts",
    "validate",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExpectedCounts:
    """What a complete split holds.

    Attributes:
        refs: referred objects (PhraseCut: phrases).
        images: distinct images.
        sentences: expressions, or None where no count is known.
        sentences_checked: whether the sentence count is certain: a difference is then an error,
            otherwise a warning.
    """

    refs: int
    images: int
    sentences: int | None = None
    sentences_checked: bool = False


UNNAMED_SPLIT_BY = "-"
"""The way of splitting of data that has one only, without a name: PhraseCut, a COCO file."""

SPLITS: Mapping[str, Mapping[str, Mapping[str, ExpectedCounts | None]]] = {
    "shapes": {"synthetic": {"train": None, "val": None, "testA": None, "testB": None}},
    "refcoco": {
        "unc": {
            "train": ExpectedCounts(42404, 16994, 120624, sentences_checked=True),
            "val": ExpectedCounts(3811, 1500, 10834, sentences_checked=True),
            "testA": ExpectedCounts(1975, 750, 5657, sentences_checked=True),
            "testB": ExpectedCounts(1810, 750, 5095, sentences_checked=True),
        },
        "google": {
            "train": ExpectedCounts(40000, 19213),
            "val": ExpectedCounts(5000, 4559),
            "test": ExpectedCounts(5000, 4527),
        },
    },
    "refcoco+": {
        "unc": {
            "train": ExpectedCounts(42278, 16992, 120191),
            "val": ExpectedCounts(3805, 1500, 10758),
            "testA": ExpectedCounts(1975, 750, 5726),
            "testB": ExpectedCounts(1798, 750, 4889),
        },
    },
    "refcocog": {
        "umd": {
            "train": ExpectedCounts(42226, 21899, 80512),
            "val": ExpectedCounts(2573, 1300, 4896),
            "test": ExpectedCounts(5023, 2600, 9602),
        },
        "google": {
            "train": ExpectedCounts(44822, 24698, 85474),
            "val": ExpectedCounts(5000, 4650, 9536),
        },
    },
    "phrasecut": {
        UNNAMED_SPLIT_BY: {
            "train": ExpectedCounts(310816, 71746),
            "val": ExpectedCounts(20316, 2971),
            "test": ExpectedCounts(14354, 2545),
            "miniv": ExpectedCounts(821, 100),
        },
    },
}
"""Dataset -> split_by -> split -> expected counts (None: no fixed size).  The first split_by of a
dataset is its default."""

DATASETS = tuple(SPLITS)


def default_split_by(dataset: str) -> str:
    """Return the split_by of a dataset where none is named.

    >>> default_split_by("refcocog")
    'umd'
    """
    return next(iter(SPLITS[dataset]))


def validate(dataset: str, split: str, split_by: str | None = None) -> str:
    """Check that the split exists, and return its split_by, the dataset's default for None.

    >>> validate("refcocog", "val")
    'umd'

    Raises:
        DataError: there is no such dataset, split_by or split; the message lists the legal ones.
    """
    if dataset not in SPLITS:
        raise DataError(
            f"Expected dataset to be one of {', '.join(DATASETS)}, got {dataset!r}; choose one of "
            "these."
        )
    ways = SPLITS[dataset]
    resolved = default_split_by(dataset) if split_by is None else split_by
    if resolved not in ways:
        raise DataError(
            f"Expected split_by of {dataset} to be one of {', '.join(ways)}, got {split_by!r}; "
            "choose one of these."
        )
    if split not in ways[resolved]:
        others = [way for way in ways if split in ways[way]]
        hint = f" ({split!r} exists with split_by {', '.join(others)})" if others else ""
        raise DataError(
            f"Expected split of {dataset} with split_by {resolved} to be one of "
            f"{', '.join(ways[resolved])}, got {split!r}{hint}; choose one of these."
        )
    return resolved


def expected_counts(dataset: str, split: str, split_by: str | None = None) -> ExpectedCounts | None:
    """Return what the complete split holds, or None for a dataset without a fixed size.

    >>> expected_counts("refcoco", "testA").refs
    1975

    Raises:
        DataError: as ``validate``.
    """
    return SPLITS[dataset][validate(dataset, split, split_by)][split]


def checked(split: ReferSplit, path: Path, *, check_counts: bool) -> ReferSplit:
    """Return a split with its warnings, which are logged.

    That is: counts other than the published ones, and refs without a mask or sentences.

    Args:
        split: as it was read.
        path: the file of its refs, to be named.
        check_counts: refuse a split of other counts; False names them among the warnings.

    Raises:
        DataError: the counts are off, and ``check_counts``.
    """
    warnings = [*split.warnings]
    missing = {"a mask": split.refs_without_mask, "sentences": split.refs_without_sentences}
    for what, ref_ids in missing.items():
        if ref_ids:
            of = f"{len(split.refs)} refs of {split.dataset} {split.split}"
            warnings.append(f"{len(ref_ids)} of {of} lack {what}: {first_few(ref_ids)}.")
    certain_off, unchecked_off = _count_differences(split)
    warnings += [f"Unchecked number: {line} in {path}." for line in unchecked_off]
    if certain_off:
        whole = f"the whole of {split.dataset} {split.split} ({split.split_by})"
        off = f"{'; '.join(certain_off)} in {path}"
        if check_counts:
            raise DataError(
                f"Expected {whole}, got a part: {off}; fetch the file again, or load it without "
                "checking counts if it is a subset on purpose."
            )
        warnings.append(f"Not {whole}: {off}. Its scores do not compare with published ones.")
    for warning in warnings:
        _logger.warning(warning)
    return replace(split, warnings=tuple(warnings))


def _count_differences(split: ReferSplit) -> tuple[list[str], list[str]]:
    """Compare a split's counts with the published ones.

    Returns:
        Two lists, each entry with the expected and the found number: counts that are certain
        (refs, images, RefCOCO's sentences), and sentence counts that are quoted but unchecked.
    """
    certain_off: list[str] = []
    unchecked_off: list[str] = []
    published = split.dataset in SPLITS  # no custom dataset is called as one of these
    expected = expected_counts(split.dataset, split.split, split.split_by) if published else None
    if expected is not None:
        for what, want, got, certain in (
            ("refs", expected.refs, len(split.refs), True),
            ("images", expected.images, len(split.images), True),
            ("sentences", expected.sentences, split.num_sentences, expected.sentences_checked),
        ):
            if want is not None and got != want:
                off = certain_off if certain else unchecked_off
                off.append(f"expected {want} {what}, got {got}")
    return certain_off, unchecked_off
