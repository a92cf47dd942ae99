"""What a run leaves behind: one row per referring sentence, and one summary.

Every table and image is made from these two files alone, so a row holds the integer counts (any
protocol of oIoU, mIoU or precision is a function of them), the yardsticks (best and random
proposal) and what the parse found, to break scores down by. Rows are JSON lines in plain ASCII;
both files are written whole or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hybridgl.files import atomic_write_bytes, sweep_partials
from hybridgl.store import require_json

__all__ = ["Pick", "Record", "read_records", "write_records", "write_summary"]

_ALLOWED_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "int | str": (int, str),
    "int | None": (int, type(None)),
    "float": (float,),
    "str": (str,),
    "str | None": (str, type(None)),
    "dict[str, Pick]": (dict,),
}
_IOU_TOLERANCE = 1e-6  # IoUs may come from float32 arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """What one way of picking took, and how it covers the truth; all in pixels.

    Attributes:
        index: Index into the image's proposals; None where there are none.
        area: Of the picked proposal; 0 where there is none.
        intersection: Both of the pick and of the truth.
        union: Of the pick, of the truth or of both.
        intersection_480: As above, after pick and truth are resized to 480 x 480.
        union_480: Likewise.
    """

    index: int | None
    area: int
    intersection: int
    union: int
    intersection_480: int
    union_480: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The outcome for one sentence of one ref.

    Areas, intersections and unions are in pixels of the annotated image. Every field is checked
    when a record is made.

    Attributes:
        dataset: Name of the dataset, such as "refcoco+".
        split: Name of the split, such as "testA".
        ref_id: The dataset's id of the referred object.
        sent_id: The dataset's id of the sentence, unique among those of its ref.
        image_id: The dataset's id of the image.
        image_missing: Whether the image's file was missing or damaged, so that nothing was
            predicted.
        sentence: The sentence as it was given.
        kind: Kind of expression, where the dataset tells it.
        noun_phrase: What the parse takes to be referred to.
        num_other_nouns: How many other nouns the parse found.
        position: The position word that the parse found, if any.
        relation: The relation word that the parse found, if any.
        truncated: Whether the sentence was too long for the text encoder and cut.
        num_proposals: How many proposals the image has.
        target_area: Pixels of the truth.
        best_intersection: Intersection of the proposal with the highest IoU; 0 where there is none.
        best_union: Its union; `target_area` where there is none.
        best_iou: Its IoU, in 0..1; 0 where there is none.
        random_iou: Mean IoU over the proposals, which is what a random pick expects, in 0..1; 0
            where there is none.
        picks: By the name of the way of picking.

    Raises:
        ValueError: A field has another type (numpy's numbers included), or the counts contradict
            each other.
    """

    dataset: str
    split: str
    ref_id: int | str
    sent_id: int
    image_id: int
    image_missing: bool
    sentence: str
    kind: str | None
    noun_phrase: str
    num_other_nouns: int
    position: str | None
    relation: str | None
    truncated: bool
    num_proposals: int
    target_area: int
    best_intersection: int
    best_union: int
    best_iou: float
    random_iou: float
    picks: dict[str, Pick]

    def __post_init__(self) -> None:
        self._check_types(self, "")
        for name in ("num_other_nouns", "num_proposals", "target_area"):
            if getattr(self, name) < 0:
                raise self._error(f"{name} of at least 0", getattr(self, name))
        if self.image_missing and self.num_proposals:
            raise self._error("no proposals of a missing image", self.num_proposals)
        if not self.picks:
            raise self._error("at least one pick", "none")
        for name, pick in self.picks.items():
            if not isinstance(pick, Pick):
                raise self._error(f"a Pick as picks.{name}", f"{pick!r} of another type")
            self._check_types(pick, f"picks.{name}.")
            self._check_pick(name, pick)
        self._check_yardsticks()

    def to_json(self) -> str:
        """Returns one line of JSON, without a line break, with the fields in the order declared."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: The text is no JSON object, a field is missing or unknown, or a value is
                wrong. The message names it.
        """
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"Expected one JSON object, got {line[:60]!r}.")
        return cls.from_row(row)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Record:
        """Reads the JSON object of a record.

        Raises:
            ValueError: A field is missing or unknown, or a value is wrong. The message names it.
        """
        names = {field.name for field in fields(cls)}
        _require_names(row, names, "a record")
        if not isinstance(row["picks"], dict):
            raise ValueError(f"Expected picks by name, got {row['picks']!r}.")
        pick_names = {field.name for field in fields(Pick)}
        picks = {}
        for name, pick in row["picks"].items():
            _require_names(pick, pick_names, f"the pick {name}")
            picks[name] = Pick(**pick)
        return cls(**{**row, "picks": picks})

    def _check_types(self, whole: Record | Pick, prefix: str) -> None:
        for field in fields(whole):
            value = getattr(whole, field.name)
            # `type` rather than isinstance: True is no count, and numpy's numbers are not JSON.
            if type(value) not in _ALLOWED_TYPES[str(field.type)]:
                raise self._error(
                    f"{prefix}{field.name} of type {field.type}",
                    f"{value!r} of type {type(value).__name__}",
                )

    def _check_pick(self, name: str, pick: Pick) -> None:
        if (pick.index is None) != (self.num_proposals == 0):
            raise self._error(
                f"picks.{name}.index to be None exactly where num_proposals is 0",
                f"{pick.index} with num_proposals {self.num_proposals}",
            )
        if pick.index is not None and not 0 <= pick.index < self.num_proposals:
            raise self._error(f"picks.{name}.index in 0..{self.num_proposals - 1}", pick.index)
        if pick.area < 0 or (pick.index is None and pick.area > 0):
            raise self._error(
                f"picks.{name}.area of at least 0, and 0 without a pick",
                f"{pick.area} with pick {pick.index}",
            )
        if not 0 <= pick.intersection <= min(pick.area, self.target_area):
            raise self._error(
                f"picks.{name}.intersection in 0..{min(pick.area, self.target_area)}, the smaller "
                "of its area and target_area",
                pick.intersection,
            )
        if pick.union != pick.area + self.target_area - pick.intersection:
            raise self._error(
                f"picks.{name}.union = {pick.area} + {self.target_area} - {pick.intersection}, "
                "that is area + target_area - intersection",
                pick.union,
            )
        if not 0 <= pick.intersection_480 <= pick.union_480 <= 480 * 480:
            raise self._error(
                f"0 <= picks.{name}.intersection_480 <= union_480 <= 480 * 480",
                f"{pick.intersection_480}, {pick.union_480}",
            )
        if pick.intersection * self.best_union > self.best_intersection * pick.union:
            raise self._error(
                f"no IoU above the best, {self.best_intersection}/{self.best_union}",
                f"{pick.intersection}/{pick.union} for the {name} pick",
            )

    def _check_yardsticks(self) -> None:
        if not 0 <= self.best_intersection <= self.target_area <= self.best_union:
            raise self._error(
                "0 <= best_intersection <= target_area <= best_union",
                f"{self.best_intersection}, {self.target_area}, {self.best_union}",
            )
        nothing = (0, self.target_area, 0.0)
        yardsticks = (self.best_intersection, self.best_union, self.random_iou)
        if self.num_proposals == 0 and yardsticks != nothing:
            raise self._error(
                f"best_intersection, best_union, random_iou of {nothing} without proposals",
                yardsticks,
            )
        if not 0.0 <= self.best_iou <= 1.0:
            raise self._error("best_iou in 0..1", self.best_iou)
        # What the IoU of nothing with nothing is, 0 or 1, is a protocol of the caller's.
        if self.best_union > 0 and not math.isclose(
            self.best_iou,
            self.best_intersection / self.best_union,
            rel_tol=0,
            abs_tol=_IOU_TOLERANCE,
        ):
            raise self._error(
                f"best_iou = {self.best_intersection}/{self.best_union}", self.best_iou
            )
        if not 0.0 <= self.random_iou <= self.best_iou + _IOU_TOLERANCE:
            raise self._error(f"random_iou in 0..best_iou ({self.best_iou})", self.random_iou)

    def _error(self, expected: str, got: object) -> ValueError:
        return ValueError(
            f"ref {self.ref_id}, sentence {self.sent_id}: expected {expected}; got {got}."
        )


def _require_names(row: object, names: set[str], what: str) -> None:
    found: set[str] = set(row) if isinstance(row, dict) else set()
    missing, unknown = sorted(names - found), sorted(found - names)
    if missing or unknown:
        raise ValueError(
            f"Expected exactly the fields of {what}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
        )


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes rows as JSON lines, in the order given, atomically.

    Raises:
        OSError: The folder cannot be written or the disk is full; the message says what to do.
    """
    _write(path, "".join(f"{record.to_json()}\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """Reads the rows that `write_records` wrote, in their order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is damaged or not of this version; the message names file, line and
            field.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the records of a run at {path}, found none. Run it first."
        )
    records = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                records.append(Record.from_json(line.decode()))
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: {error} Make the file again by repeating the run."
                ) from error
    return records


def write_summary(path: Path, summary: Mapping[str, object]) -> None:
    """Writes the summary of a run as indented JSON, names in the order given, atomically.

    Args:
        path: Where the file goes.
        summary: A value that `hybridgl.store.require_json` accepts.

    Raises:
        ValueError: A value is NaN, infinite or not JSON; the message says which. Nothing is
            written.
        OSError: The folder cannot be written or the disk is full; the message says what to do.
    """
    require_json(dict(summary), "summary")
    _write(path, json.dumps(dict(summary), indent=2, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    sweep_partials(path.parent)
    atomic_write_bytes(path, text.encode("ascii"))
