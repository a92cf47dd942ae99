"""Masks that another program proposed, read from COCO results or COCO annotations.

Two forms are read, told apart by what the file holds: a list of {image_id, segmentation, score},
and an object of images and annotations. Every mask of the split is checked before any work, so that
a file made wrongly stops a run at its start, by the name of its first wrong entry.

Source: COCO's formats (https://cocodataset.org/#format-data and #format-results).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridgl.errors import DataError
from hybridgl.program import progress
from refer.dataset import ReferSplit
from refer.entries import first_few
from refer.segmentation import check_segmentation

__all__ = ["read_json", "read_masks"]

_ImageId = int | str
"""A number, also where a file has digits in a string; another string is of no dataset's image."""

_MAX_ID_DIGITS = 18
"""A longer string of digits is no id that a dataset here could have."""

_MAX_SCORE = 1e30
"""Numbers below it are finite, also as float32."""

_FORMS = "a list of {image_id, segmentation, score}, or an object with images and annotations"
_REMEDY = "write one of COCO's two forms; third_party/README.md has a writer"


def read_json(path: Path) -> tuple[object, str]:
    """Read a file; return its content and the SHA-256 of its bytes."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"Expected a JSON file of masks at {path}, got {error.strerror or error}; "
            "give the file that the other program wrote."
        ) from error
    try:
        return json.loads(raw), hashlib.sha256(raw).hexdigest()
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"Expected whole JSON in {path}, got {type(error).__name__}: {error}; it is cut short, "
            "damaged or no JSON: write it again."
        ) from error


def read_masks(
    path: Path, content: object, split: ReferSplit
) -> dict[int, list[tuple[object, float]]]:
    """Return segmentations and scores by the split's images, checked, in the file's order."""
    listed: set[_ImageId] | None = None
    rows = content
    if isinstance(content, dict):
        if not {"images", "annotations"} <= content.keys():
            keys = first_few(map(reprlib.repr, content)) or "nothing"
            raise DataError(f"Expected {_FORMS} in {path}, got an object with {keys}; {_REMEDY}.")
        listed = _listed_images(path, content["images"], split)
        rows = content["annotations"]
    if not isinstance(rows, list):
        raise DataError(
            f"Expected {_FORMS} in {path}, got {reprlib.repr(rows)} for the list; {_REMEDY}."
        )
    if not rows:
        raise DataError(
            f"Expected masks in {path}, got an empty list; check that the program that wrote it "
            "found the images, and that its score threshold leaves some masks."
        )
    masks: dict[int, list[tuple[object, float]]] = {}
    spelling: dict[_ImageId, object] = {}
    for position, row in enumerate(progress(rows, "proposal file", "mask")):
        with _naming(f"{path}, entry {position}", row, "image_id"):
            image_id = _image_id(row, "image_id")
            if spelling.setdefault(image_id, row["image_id"]) != row["image_id"]:
                raise DataError(
                    f"Expected one spelling of an image's id, got {spelling[image_id]!r} before; "
                    "write every image_id as the dataset's number of the image."
                )
            if listed is not None and image_id not in listed:
                raise DataError(
                    f"Expected the image of every annotation among the {len(listed)} images of the "
                    "file, got one that it does not list; list it with its file_name, height and "
                    "width."
                )
            if isinstance(image_id, int) and image_id in split.images:
                info = split.images[image_id]
                entry = _segmentation(row, (info.height, info.width)), _score(row)
                masks.setdefault(image_id, []).append(entry)
    if not masks:
        raise DataError(
            f"Expected masks for the {len(split.images)} images in {path}, got none of their ids: "
            f"entry 0 has image_id {reprlib.repr(rows[0]['image_id'])}; the images have "
            f"{first_few(split.images)}: write the dataset's number of the image as image_id, not "
            "its "
            "file name nor its place in a list, or give the file of this dataset."
        )
    return masks


def _listed_images(path: Path, rows: object, split: ReferSplit) -> set[_ImageId]:
    """Return the ids of the images that annotations list; the split's have to be the same ones."""
    if not isinstance(rows, list):
        raise DataError(
            f"Expected images as a list in {path}, got {reprlib.repr(rows)}; list each as "
            "{id, file_name, height, width}."
        )
    listed: set[_ImageId] = set()
    for position, row in enumerate(rows):
        with _naming(f"{path}, image {position} of its list", row, "id"):
            image_id = _image_id(row, "id")
            if image_id in listed:
                raise DataError(
                    f"Expected every id once, got {row['id']!r} again; list each image once."
                )
            listed.add(image_id)
            name, *hw = row.get("file_name"), row.get("height"), row.get("width")
            if not isinstance(name, str) or not name:
                raise DataError(
                    f"Expected file_name as a string, got {reprlib.repr(name)}; write it."
                )
            if [*map(type, hw)] != [int, int] or min(hw) <= 0:
                raise DataError(
                    f"Expected height and width as two whole numbers above 0, got {hw}; "
                    "write the size of the dataset's image."
                )
            info = split.images.get(image_id) if isinstance(image_id, int) else None
            # Names may differ in their folder: programs write paths, datasets names.
            if info and _base_name(name) != _base_name(info.file_name):
                raise DataError(
                    f"Expected it to be {info.file_name}, got {name!r}; its ids are of other data: "
                    "list the dataset's images under their own ids and names."
                )
            if info and hw != [info.height, info.width]:
                raise DataError(
                    f"Expected {info.file_name} to have height {info.height} and width "
                    f"{info.width}, got {hw[0]} and {hw[1]}; propose masks on the dataset's own "
                    "image, at its full size."
                )
    return listed


@contextlib.contextmanager
def _naming(place: str, row: object, key: str) -> Iterator[None]:
    """Put a row's place and id before the message of a ``DataError``."""
    try:
        if not isinstance(row, dict):
            raise DataError(f"Expected an object, got {reprlib.repr(row)}; {_REMEDY}.")
        yield
    except DataError as error:
        shown = reprlib.repr(row[key]) if isinstance(row, dict) and key in row else "missing"
        raise DataError(f"{place} ({key} {shown}): {error}") from None


def _image_id(row: Mapping[str, object], key: str) -> _ImageId:
    value = row.get(key)
    # Not isinstance, by which True would pass for a number.
    if type(value) is int:
        return value
    if type(value) is str and value:
        digits = value.isascii() and value.isdigit() and len(value) <= _MAX_ID_DIGITS
        return int(value) if digits else value
    raise DataError(
        f"Expected {key} as a whole number, got {reprlib.repr(value)}; write the dataset's number "
        "of the image."
    )


def _segmentation(row: Mapping[str, object], hw: tuple[int, int]) -> object:
    if "segmentation" not in row:
        only = ", only a bbox" if "bbox" in row else ""
        raise DataError(
            f"Expected a segmentation, got none{only}; have the program write masks "
            "(detectron2: the 'segm' results), not boxes."
        )
    check_segmentation(row["segmentation"], hw)
    return row["segmentation"]


def _score(row: Mapping[str, Any]) -> float:
    score = row.get("score", 1.0)
    # Written so that NaN, which compares with nothing, fails; True is no number.
    if type(score) not in (int, float) or not abs(score) < _MAX_SCORE:
        raise DataError(
            f"Expected score as a finite number, got {reprlib.repr(score)}; write a number, or "
            "leave score out."
        )
    return float(score)


def _base_name(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]
