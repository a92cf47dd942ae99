"""Masks that another program proposed, read from COCO results or COCO annotations.

Two forms are read, told apart by what the file holds: a list of {image_id, segmentation, score},
and an object of images and annotations. Every mask of the split is checked before any work: a
broken one is left out and named, and a file without a mask that can be used is refused.

Source: COCO's formats (https://cocodataset.org/#format-data and #format-results).
"""

from __future__ import annotations

import functools
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from hybridgl.errors import DataError
from hybridgl.program import progress
from refer.dataset import Id, ReferSplit
from refer.entries import Entry, EntryReader, first_few, require_unique, required, unexpected
from refer.segmentation import check_segmentation

__all__ = ["read_masks"]

_MAX_SCORE = 1e30
"""Numbers below it are finite, also as float32."""

_FORMS = "a list of {image_id, segmentation, score}, or an object with images and annotations"
_REMEDY = "write one of COCO's two forms; third_party/README.md has a writer"

Masks = dict[int, list[tuple[object, float]]]
"""Segmentations and scores by the split's images, in the file's order."""


def read_masks(content: object, split: ReferSplit, reader: EntryReader) -> Masks:
    """Return the masks of a split's images.

    Args:
        content: of the file.
        split: whose images they are for; masks of others are not looked at.
        reader: of the file.

    Raises:
        DataError: the file is of another form, has no mask that can be used, or is of other images
            than those of the split; or a mask is broken, and the reader is strict.
    """
    path = reader.path
    listed: set[Id] | None = None
    rows = content
    if isinstance(content, dict):
        if not {"images", "annotations"} <= content.keys():
            keys = first_few(map(reprlib.repr, content)) or "nothing"
            raise DataError(f"Expected {_FORMS} in {path}, got an object with {keys}; {_REMEDY}.")
        listed = _listed_images(content["images"], split, reader)
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
    masks: Masks = {}

    def parse(row: Entry, index: int) -> None:
        image_id = reader.identifier(row, "image_id")
        if listed is not None and image_id not in listed:
            raise DataError(
                f"Expected the image {image_id} among the {len(listed)} images that the file "
                "lists, got one that it does not; list it with its file_name, height and width."
            )
        if isinstance(image_id, int) and image_id in split.images:
            mask = _mask(row, image_id, index, split, reader)
            masks.setdefault(image_id, []).append(mask)

    reader.each(
        rows, parse, "masks", shown=functools.partial(progress, what="proposal file", unit="mask")
    )
    if not masks:
        raise _no_masks(rows[0], split, reader)
    return masks


def _no_masks(row: object, split: ReferSplit, reader: EntryReader) -> DataError:
    """Make the error of a file without a mask for the split."""
    what, found = f"masks for the {len(split.images)} images", reader.none_of("masks")
    if found != "none":
        return DataError(f"Expected {what} in {reader.path}, got {found}; {_REMEDY}.")
    image_id = reprlib.repr(row["image_id"] if isinstance(row, dict) else row)
    return DataError(
        f"Expected {what} in {reader.path}, got none of their ids: entry 0 has image_id "
        f"{image_id}; the images have {first_few(split.images)}: write the dataset's number of the "
        "image as image_id, not its file name nor its place in a list, or give the file of this "
        "dataset."
    )


def _listed_images(rows: object, split: ReferSplit, reader: EntryReader) -> set[Id]:
    """Return the ids of the images that annotations list; the split's have to be the same ones."""

    def parse(row: Entry, index: int) -> Id:
        image_id = reader.identifier(row, "id")
        try:
            name = required(row, "file_name", str)
            hw = reader.whole(row, "height"), reader.whole(row, "width")
            if not name or min(hw) <= 0:
                raise unexpected("a file_name, and a height and width above 0", (name, *hw))
        except DataError as error:
            place = f"entry {index} of the images"
            reader.report("images are not compared with the dataset's in", place, error)
            return image_id
        others.extend(_differences(image_id, name, hw, split))
        return image_id

    others: list[str] = []
    listed: list[Id] = reader.each(rows, parse, "images")
    require_unique(listed, f"image id in {reader.path}")
    if others:
        raise DataError(
            f"Expected the dataset's own images in {reader.path}, got {others[0]}; list them under "
            "their own ids and names, and propose masks at their full size."
        )
    return set(listed)


def _differences(image_id: Id, name: str, hw: tuple[int, int], split: ReferSplit) -> list[str]:
    """Say in what a listed image is another one than the dataset's of this id."""
    info = split.images.get(image_id) if isinstance(image_id, int) else None
    # Names may differ in their folder: programs write paths, datasets names.
    if info and _base_name(name) != _base_name(info.file_name):
        return [f"{name!r} for image {image_id}, which is {info.file_name}"]
    if info and hw != (info.height, info.width):
        return [
            f"height {hw[0]} and width {hw[1]} for image {image_id}, {info.file_name}, which has "
            f"{info.height} and {info.width}"
        ]
    return []


def _mask(
    row: Entry, image_id: int, index: int, split: ReferSplit, reader: EntryReader
) -> tuple[object, float]:
    """Return the segmentation and the score of an entry."""
    info = split.images[image_id]
    try:
        segmentation, score = _segmentation(row), _score(row)
        other_form = check_segmentation(segmentation, (info.height, info.width))
    except DataError as error:
        raise DataError(f"image {image_id}: {error}") from None
    if other_form:
        place = f"entry {index} of the masks"
        reader.report("masks in another form are read in", place, other_form)
    return segmentation, score


def _segmentation(row: Entry) -> object:
    if "segmentation" not in row:
        only = ", only a bbox" if "bbox" in row else ""
        raise DataError(
            f"Expected a segmentation, got none{only}; have the program write masks "
            "(detectron2: the 'segm' results), not boxes."
        )
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
