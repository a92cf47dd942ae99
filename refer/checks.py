"""What is doubtful about a split that was read: its counts, and refs without a mask or words."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from hybridgl.errors import DataError
from refer.dataset import ReferSplit
from refer.entries import first_few
from refer.splits import ExpectedCounts

__all__ = ["checked"]

logger = logging.getLogger(__name__)


def checked(
    split: ReferSplit, expected: ExpectedCounts | None, path: Path, *, check_counts: bool
) -> ReferSplit:
    """The split with its warnings among its warnings, each of which is logged as a warning.

    Args:
        split: As it was read.
        expected: What it should hold; None where nobody knows.
        path: The file of its refs, to be named.
        check_counts: Refuse a split of other counts; False names them among the warnings.

    Raises:
        DataError: The counts are off, and `check_counts`.
    """
    warnings = [*split.warnings, *_warnings(split)]
    certain_off, unchecked_off = _count_differences(split, expected)
    warnings += [f"Unchecked number: {line} in {path}." for line in unchecked_off]
    if certain_off:
        incomplete = (
            f"Not the whole of {split.dataset} {split.split} ({split.split_by}): "
            f"{'; '.join(certain_off)} in {path}."
        )
        if check_counts:
            raise DataError(
                f"{incomplete} Fetch the file again, or load without checking counts if it is a "
                "subset on purpose."
            )
        warnings.append(f"{incomplete} Its scores do not compare with published ones.")
    for problem in warnings:
        logger.warning(problem)
    return replace(split, warnings=tuple(warnings))


def _warnings(split: ReferSplit) -> list[str]:
    lacks = {"a mask": split.refs_without_mask, "sentences": split.refs_without_sentences}
    return [
        f"{len(ref_ids)} of {len(split.refs)} refs of {split.dataset} {split.split} lack {what}: "
        f"{first_few(ref_ids)}."
        for what, ref_ids in lacks.items()
        if ref_ids
    ]


def _count_differences(
    split: ReferSplit, expected: ExpectedCounts | None
) -> tuple[list[str], list[str]]:
    """How the split's counts differ from the expected ones.

    Returns:
        Two lists, each entry with the expected and the found number: counts that are certain
        (refs, images, RefCOCO's sentences), and sentence counts that are quoted but unchecked.
    """
    certain_off: list[str] = []
    unchecked_off: list[str] = []
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
