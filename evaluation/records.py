"""What a run leaves behind: one record per sentence, and one summary.

Every table and figure is made from these two files alone. So a record holds the integer counts that
every protocol of oIoU, mIoU or precision is a function of, the counts of oracle and chance, and
what the parse found, to break scores down by; whatever follows from these is derived, never stored.
Records are JSON lines in plain ASCII; both files are written whole or not at all.

Counts are pixels of the annotated image, with ``_480`` in the name those after prediction and
ground truth are resized to 480 x 480.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from hybridgl.errors import DataError
from hybridgl.files import atomic_write_bytes, sweep_partials
from hybridgl.store import require_json

__all__ = [
    "SCHEMA",
    "PredictionCounts",
    "Record",
    "read_records",
    "read_summary",
    "write_records",
    "write_summary",
]

SCHEMA: Final = 2
"""Of the records; files of schema 1 stored what is derived now."""

_PIXELS_480 = 480 * 480
_TOLERANCE = 1e-6
"""Of an IoU that may come from float32 arithmetic."""


class PredictionCounts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant's predicted mask and how it meets the ground truth.

    Attributes:
        proposal: index into the image's proposals; None where there are none, or where the method
            predicts a mask directly.
        area: pixels of the mask; 0 where nothing is predicted.
        intersection: pixels of the mask and of the ground truth.
        area_480: as ``area``.
        intersection_480: as ``intersection``.
        box: x, y, w, h of the mask in pixels; None where it has none.
        similarity: scaled cosine of the proposal with the sentence, rounded; None where there is no
            proposal, or the method compares none.
        score: what the proposal was chosen by, rounded: by features the similarity, by guidance the
            final score; None where it is undefined or there is no proposal.
    """

    proposal: int | None
    area: int
    intersection: int
    area_480: int
    intersection_480: int
    box: list[int] | None = None
    similarity: float | None = None
    score: float | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The outcome of one sentence.

    Attributes:
        schema: of the record.
        dataset: such as "refcoco+".
        split: such as "testA".
        ref_id: the dataset's id of the object that is referred to.
        sent_id: the dataset's id of the sentence, unique among those of its ref.
        image_id: the dataset's id of the image.
        image_file: its file's name, as annotated.
        image_error: whether the image is missing or corrupt, so that nothing was predicted.
        sentence: as it was given.
        kind: of the expression, where the dataset says it.
        noun_phrase: what the parse takes to be referred to; None, as the next three, where the
            method reads none.
        num_other_nouns: of the parse.
        position: the position word.
        relation: the relation word.
        truncated: whether the sentence was too long for the text encoder.
        num_proposals: of the image; None, as the next three, for a method without proposals.
        oracle_area: pixels of the proposal with the highest IoU; 0 where there is none.
        oracle_intersection: pixels of it and of the ground truth.
        chance_iou: mean IoU of the proposals, what a random one is expected to score, in 0..1; 0
            where there is none.
        gt_area: pixels of the ground truth.
        gt_area_480: as ``gt_area``.
        predictions: by variant; the last one is the method.

    Raises:
        ValueError: counts contradict each other.
    """

    schema: Literal[2] = SCHEMA
    dataset: str
    split: str
    ref_id: int | str
    sent_id: int
    image_id: int
    image_file: str
    image_error: bool
    sentence: str
    kind: str | None
    noun_phrase: str | None
    num_other_nouns: int | None
    position: str | None
    relation: str | None
    truncated: bool
    num_proposals: int | None
    oracle_area: int | None
    oracle_intersection: int | None
    chance_iou: float | None
    gt_area: int
    gt_area_480: int
    predictions: dict[str, PredictionCounts]

    def __post_init__(self) -> None:
        contradiction = next(_contradictions(self), None)
        if contradiction:
            raise ValueError(
                f"Expected counts that agree for ref {self.ref_id}, sentence {self.sent_id}, got "
                f"{contradiction}"
            )

    def union(self, variant: str) -> int:
        """Return the pixels of the prediction, of the ground truth or of both."""
        counts = self.predictions[variant]
        return counts.area + self.gt_area - counts.intersection

    def union_480(self, variant: str) -> int:
        """Return what ``union`` is at 480 x 480."""
        counts = self.predictions[variant]
        return counts.area_480 + self.gt_area_480 - counts.intersection_480

    def iou(self, variant: str) -> float:
        """Return intersection over union, in 0..1; 0 where both masks are empty."""
        return _ratio(self.predictions[variant].intersection, self.union(variant))

    @property
    def oracle_union(self) -> int | None:
        """Pixels of the oracle's proposal, of the ground truth or of both; None without one."""
        if self.oracle_area is None or self.oracle_intersection is None:
            return None
        return self.oracle_area + self.gt_area - self.oracle_intersection

    @property
    def oracle_iou(self) -> float | None:
        """Highest IoU of a proposal, in 0..1; None for a method without proposals."""
        if self.oracle_union is None or self.oracle_intersection is None:
            return None
        return _ratio(self.oracle_intersection, self.oracle_union)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _contradictions(record: Record) -> Iterator[str]:
    """Name what no sample can have."""
    if not record.predictions:
        yield "no prediction"
    if min(record.num_other_nouns or 0, record.num_proposals or 0, record.gt_area) < 0:
        yield "a number below 0"
    if not 0 <= record.gt_area_480 <= _PIXELS_480:
        yield f"gt_area_480 {record.gt_area_480} outside 0..480 * 480"
    for variant, counts in record.predictions.items():
        for contradiction in _of_prediction(record, counts):
            yield f"{contradiction} of the prediction {variant!r}"
    yield from _of_oracle(record)


def _of_prediction(record: Record, counts: PredictionCounts) -> Iterator[str]:
    proposal, num_proposals = counts.proposal, record.num_proposals or 0
    if proposal is None and counts.area and record.num_proposals is not None:
        yield f"area {counts.area} of no proposal"
    if proposal is not None and not 0 <= proposal < num_proposals:
        yield f"proposal {proposal} outside 0..{num_proposals - 1}"
    nothing_there = record.image_error or record.num_proposals == 0
    if counts.area and nothing_there:
        yield f"area {counts.area} where nothing can be predicted"
    if counts.area_480 and nothing_there:
        yield f"area_480 {counts.area_480} where nothing can be predicted"
    most = min(counts.area, record.gt_area)
    if not 0 <= counts.intersection <= most:
        yield f"intersection {counts.intersection} outside 0..{most}"
    if counts.area_480 > _PIXELS_480:
        yield f"area_480 {counts.area_480} above 480 * 480"
    most = min(counts.area_480, record.gt_area_480)
    if not 0 <= counts.intersection_480 <= most:
        yield f"intersection_480 {counts.intersection_480} outside 0..{most}"


def _of_oracle(record: Record) -> Iterator[str]:
    inside, area, chance = record.oracle_intersection, record.oracle_area, record.chance_iou
    if inside is None or area is None or chance is None or record.num_proposals is None:
        if (inside, area, chance, record.num_proposals) != (None,) * 4:
            yield "only some of num_proposals, oracle_area, oracle_intersection and chance_iou"
        return
    if record.num_proposals and record.image_error:
        yield f"num_proposals {record.num_proposals} where the image cannot be read"
    if not record.num_proposals and (area, chance) != (0, 0):
        yield f"oracle_area {area} and chance_iou {chance} without proposals"
    most = min(area, record.gt_area)
    if not 0 <= inside <= most:
        yield f"oracle_intersection {inside} outside 0..{most}"
    oracle_union = area + record.gt_area - inside
    for variant, counts in record.predictions.items():
        union = record.union(variant)
        if counts.intersection * oracle_union > inside * union:
            yield (
                f"IoU {counts.intersection}/{union} of the prediction {variant!r} above the "
                f"oracle's {inside}/{oracle_union}"
            )
    highest = _ratio(inside, oracle_union)
    if not 0.0 <= chance <= highest + _TOLERANCE:
        yield f"chance_iou {chance} outside 0..{highest}, the oracle's"


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, in the order given, atomically.

    Raises:
        OSError: the folder cannot be written or the disk is full; the message says what to do.
    """
    rows = map(msgspec.to_builtins, records)
    _write(path, "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows))


def read_records(path: Path) -> list[Record]:
    """Read the records that ``write_records`` wrote, in their order.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a line is damaged or of another schema; the message names file, line and field.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the records of a run at {path}, got no such file; make the run first."
        )
    with path.open("rb") as lines:
        return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _record(line: bytes, place: str) -> Record:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and "schema" not in row and "picks" in row:
            raise DataError(
                f"Expected a record of schema {SCHEMA} in {place}, got one of schema 1, which an "
                f"earlier version wrote; repeat the run with another --output, or --overwrite."
            )
        return msgspec.convert(row, Record)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(
            f"Expected a record of schema {SCHEMA} in {place}, got {line[:60]!r} ({error}); repeat "
            f"the run."
        ) from error


def write_summary(path: Path, summary: Mapping[str, object]) -> None:
    """Write the summary of a run as indented JSON, names in the order given, atomically.

    Args:
        path: the file.
        summary: what ``hybridgl.store.require_json`` accepts.

    Raises:
        ValueError: a value is NaN, infinite or not JSON; nothing is written.
        OSError: the folder cannot be written or the disk is full; the message says what to do.
    """
    require_json(dict(summary), "summary")
    _write(path, json.dumps(dict(summary), indent=2, allow_nan=False) + "\n")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the summary in a run's folder; None where it is missing or is no summary."""
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError):
        return None
    settings = summary.get("settings") if isinstance(summary, dict) else None
    return summary if isinstance(settings, dict) else None


def _write(path: Path, text: str) -> None:
    sweep_partials(path.parent)
    atomic_write_bytes(path, text.encode("ascii"))
