"""What a run leaves behind: one row per referring sentence, and one summary.

Every table and picture is made from these two files alone, so a row holds the integer counts (any
convention of oIoU, mIoU or precision is a function of them), the yardsticks (best and random
proposal) and what the parse found, to break scores down by. Rows are JSON lines, flat, in plain
ASCII; both files are written whole or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from utils.store import atomic_write_bytes, require_json, sweep_partials

__all__ = ["PICKS", "Record", "read_records", "write_records", "write_summary"]

PICKS = ("pure", "guided", "no_gem")
"""The picks that a record holds: fields that end in these names."""

_ALLOWED_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (float,),
    "str": (str,),
    "str | None": (str, type(None)),
}
_IOU_TOLERANCE = 1e-6  # IoUs may come from float32 arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The outcome for one sentence of one ref.

    "Pure" is the pick by features alone, "guided" the pick with guidance, "no_gem" the pick with
    guidance by relations alone. Areas, intersections and
    unions are in pixels, all at one resolution. Every field is checked when a record is made.

    Attributes:
        dataset: Name of the dataset, such as "refcoco+".
        split: Name of the split, such as "testA".
        ref_id: The dataset's id of the referred object.
        sent_id: The dataset's id of the sentence.
        image_id: The dataset's id of the image.
        sentence: The sentence as it was given.
        kind: Kind of expression, where the dataset tells it.
        noun_phrase: What the parse takes to be referred to.
        num_other_nouns: How many other nouns the parse found.
        position: The position word that the parse found, if any.
        relation: The relation word that the parse found, if any.
        truncated: Whether the sentence was too long for the text encoder and cut.
        num_proposals: How many proposals the image has.
        pick_pure: Index into the image's proposals; None where there are none.
        pick_guided: Likewise.
        pick_no_gem: Likewise.
        target_area: Pixels of the truth.
        predicted_area_pure: Pixels of the picked proposal; 0 where there is none.
        intersection_pure: Pixels both of the pick and of the truth.
        union_pure: Pixels of the pick, of the truth or of both.
        predicted_area_guided: As for the pure pick.
        intersection_guided: As for the pure pick.
        union_guided: As for the pure pick.
        predicted_area_no_gem: As for the pure pick.
        intersection_no_gem: As for the pure pick.
        union_no_gem: As for the pure pick.
        best_intersection: Intersection of the proposal with the highest IoU; 0 where there is none.
        best_union: Its union; `target_area` where there is none.
        best_iou: Its IoU, in 0..1; 0 where there is none.
        random_iou: Mean IoU over the proposals, which is what a random pick expects, in 0..1; 0
            where there is none.

    Raises:
        ValueError: A field has another type (numpy's numbers included), or the counts contradict
            each other.
    """

    dataset: str
    split: str
    ref_id: int
    sent_id: int
    image_id: int
    sentence: str
    kind: str | None
    noun_phrase: str
    num_other_nouns: int
    position: str | None
    relation: str | None
    truncated: bool
    num_proposals: int
    pick_pure: int | None
    pick_guided: int | None
    pick_no_gem: int | None
    target_area: int
    predicted_area_pure: int
    intersection_pure: int
    union_pure: int
    predicted_area_guided: int
    intersection_guided: int
    union_guided: int
    predicted_area_no_gem: int
    intersection_no_gem: int
    union_no_gem: int
    best_intersection: int
    best_union: int
    best_iou: float
    random_iou: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # `type` rather than isinstance: True is no count, and numpy's numbers are not JSON.
            if type(value) not in _ALLOWED_TYPES[str(field.type)]:
                raise self._error(
                    f"{field.name} of type {field.type}",
                    f"{value!r} of type {type(value).__name__}",
                )
        for name in ("num_other_nouns", "num_proposals", "target_area"):
            if getattr(self, name) < 0:
                raise self._error(f"{name} of at least 0", getattr(self, name))
        for which in PICKS:
            self._check_pick(which, getattr(self, f"pick_{which}"))
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
        names = {field.name for field in fields(cls)}
        missing, unknown = sorted(names - row.keys()), sorted(row.keys() - names)
        if missing or unknown:
            raise ValueError(
                "Expected exactly the fields of a record; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
            )
        return cls(**row)

    def _check_pick(self, which: str, pick: int | None) -> None:
        if (pick is None) != (self.num_proposals == 0):
            raise self._error(
                f"pick_{which} to be None exactly where num_proposals is 0",
                f"{pick} with num_proposals {self.num_proposals}",
            )
        if pick is not None and not 0 <= pick < self.num_proposals:
            raise self._error(f"pick_{which} in 0..{self.num_proposals - 1}", pick)
        area = getattr(self, f"predicted_area_{which}")
        intersection = getattr(self, f"intersection_{which}")
        union = getattr(self, f"union_{which}")
        if area < 0 or (pick is None and area > 0):
            raise self._error(
                f"predicted_area_{which} of at least 0, and 0 without a pick",
                f"{area} with pick {pick}",
            )
        if not 0 <= intersection <= min(area, self.target_area):
            raise self._error(
                f"intersection_{which} in 0..{min(area, self.target_area)}, the smaller of "
                f"predicted_area_{which} and target_area",
                intersection,
            )
        if union != area + self.target_area - intersection:
            raise self._error(
                f"union_{which} = {area} + {self.target_area} - {intersection}, that is "
                f"predicted_area_{which} + target_area - intersection_{which}",
                union,
            )
        if intersection * self.best_union > self.best_intersection * union:
            raise self._error(
                f"no IoU above the best, {self.best_intersection}/{self.best_union}",
                f"{intersection}/{union} for the {which} pick",
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
        # What the IoU of nothing with nothing is, 0 or 1, is a convention of the caller's.
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
        summary: A value that `utils.store.require_json` accepts.

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
