"""Masks that another program proposed, read from its JSON.

Two forms are read, told apart by what the file holds: COCO results, a list of {image_id,
segmentation, score}, and COCO annotations, an object of images and annotations. Reading checks the
structure of every entry, so that a file made wrongly stops a run at its start, by the name of its
first wrong entry; masks are not drawn here, as that takes the image's size.

Ids in the suite's datasets are whole numbers. An id that the file gives as digits in a string, with
or without leading zeros, is that number.

Source: COCO's formats (https://cocodataset.org/#format-data and #format-results): RLE size is
[height, width], counts run column by column; polygons are [x0, y0, x1, y1, ...] in pixels.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from hybridgl.errors import HybridGLError

__all__ = [
    "ImageId",
    "ListedImage",
    "ProposalEntry",
    "ProposalFile",
    "check_images",
    "read_proposal_file",
]

ImageId = int | str
"""A number; a string only where it is not made of digits, which no dataset here has."""

_MAX_ID_DIGITS = 18
"""A longer string of digits is no id that a dataset here could have."""

_MAX_NUMBER = 1e30
"""Numbers below it are finite, also as float32."""

_MIN_POLYGON_NUMBERS = 6
"""Three points."""

_FEW = 5
"""How many images are named where many are meant."""

_COMPRESSED_RUNS = re.compile(r"[0-o]+")
"""COCO writes six bits to a letter, from "0" on."""

_FORMS = "a list of {image_id, segmentation, score}, or an object with images and annotations"
_REMEDY = "Write one of COCO's two forms; third_party/README.md has a writer."


@dataclass(frozen=True, slots=True)
class ProposalEntry:
    """One proposed mask.

    Attributes:
        position: Index in the file's list of entries, from 0.
        image_id: Of its image.
        segmentation: As in the file: {size, counts} with counts as letters or as a list of runs, or
            a list of polygons.
        score: The program's own; None where it gives none.
    """

    position: int
    image_id: ImageId
    segmentation: object
    score: float | None


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that a file of annotations lists; hw is height and width in pixels."""

    image_id: ImageId
    file_name: str
    hw: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ProposalFile:
    """All masks of a file.

    Attributes:
        path: Where it was read.
        sha256: Of its bytes, in hex.
        by_image: Image id -> its entries, in file order; images in the order of their first entry.
            An image without entries is absent.
        images: Image id -> image, of a file of annotations; None for results, which list none.
    """

    path: Path
    sha256: str
    by_image: Mapping[ImageId, tuple[ProposalEntry, ...]]
    images: Mapping[ImageId, ListedImage] | None


class _EntryError(Exception):
    """What is wrong with an entry, without the entry's name."""


def read_proposal_file(path: Path) -> ProposalFile:
    """Read and check the masks that another program proposed.

    Args:
        path: COCO results or COCO annotations, as JSON.

    Raises:
        HybridGLError: No such file; damaged JSON; another form; no entry at all; an entry without mask,
            or whose mask, score or image id cannot be used; an annotation whose image the file does
            not list, lists twice, or lists with another size than the mask's. The message names
            file and first wrong entry.
    """
    content, sha256 = _read_json(path)
    images: dict[ImageId, ListedImage] | None = None
    rows = content
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        images = _listed_images(path, content["images"])
        rows = content["annotations"]
    elif isinstance(content, dict):
        keys = _few(map(reprlib.repr, content)) or "nothing"
        raise HybridGLError(f"Expected {_FORMS} in {path}, got an object with {keys}. {_REMEDY}")
    if not isinstance(rows, list):
        raise HybridGLError(
            f"Expected {_FORMS} in {path}, got {reprlib.repr(rows)} for the list. {_REMEDY}"
        )
    if not rows:
        raise HybridGLError(
            f"Expected masks in {path}, got an empty list. Check that the program that wrote it "
            "found the images, and that its score threshold leaves some masks."
        )
    by_image: dict[ImageId, list[ProposalEntry]] = {}
    for entry in _entries(path, rows, images):
        by_image.setdefault(entry.image_id, []).append(entry)
    return ProposalFile(
        path=path,
        sha256=sha256,
        by_image={image_id: tuple(entries) for image_id, entries in by_image.items()},
        images=images,
    )


def check_images(file: ProposalFile, images: Mapping[int, tuple[str, int, int]]) -> tuple[str, ...]:
    """Check that a file's masks belong to the images of a dataset, or of a part of it.

    A file may hold masks of other images too: one file can serve all splits.

    Args:
        file: From `read_proposal_file`.
        images: Image id -> file name, height and width in pixels; at least one.

    Returns:
        One line for each thing that is allowed but has to be said beside the scores.

    Raises:
        HybridGLError: No mask is for one of the images; or an image of the same id has another file
            name or another size, in the file's list of images or in the size of a mask.
    """
    for image_id, listed in (file.images or {}).items():
        # Names may differ in their folder: programs write paths, datasets names.
        if isinstance(image_id, int) and image_id in images:
            _require_same_image(file.path, listed, *images[image_id])
    _require_same_sizes(file, images)
    absent = [image_id for image_id in images if image_id not in file.by_image]
    if len(absent) == len(images):
        first = next(iter(file.by_image.values()))[0]
        raise HybridGLError(
            f"Expected masks for the {len(images)} images in {file.path}, got none of their ids: "
            f"entry {first.position} has image_id {reprlib.repr(first.image_id)}; the images have "
            f"{_few(images)}. Write the dataset's number of the image as image_id, not its file "
            "name nor its place in a list, or give the file of this dataset."
        )
    if not absent:
        return ()
    named = _few(f"{images[image_id][0]} ({image_id})" for image_id in absent)
    return (
        f"{len(absent)} of {len(images)} images have no entry in {file.path}, so no proposals: "
        f"{named}.",
    )


def _read_json(path: Path) -> tuple[object, str]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise HybridGLError(
            f"Expected a JSON file of masks at {path}, got {error.strerror or error}. "
            "Give the file that the other program wrote."
        ) from error
    try:
        return json.loads(raw), hashlib.sha256(raw).hexdigest()
    except (ValueError, RecursionError) as error:
        raise HybridGLError(
            f"Expected whole JSON in {path}, got {type(error).__name__}: {error}. It is cut short, "
            "damaged or no JSON: write it again."
        ) from error


def _listed_images(path: Path, rows: object) -> dict[ImageId, ListedImage]:
    if not isinstance(rows, list):
        raise HybridGLError(
            f"Expected images as a list in {path}, got {reprlib.repr(rows)}. List each as "
            "{id, file_name, height, width}."
        )
    images: dict[ImageId, ListedImage] = {}
    for position, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise _EntryError(f"Expected an object, got {reprlib.repr(row)}.")
            image_id = _image_id(row, "id")
            if image_id in images:
                raise _EntryError(f"Expected every id once, got {row['id']!r} again.")
            images[image_id] = ListedImage(image_id, *_name_and_size(row))
        except _EntryError as error:
            raise HybridGLError(
                f"{path}, image {position} of its list (id {_shown(row, 'id')}): {error} "
                "List each image once, as {id, file_name, height, width}."
            ) from None
    return images


def _name_and_size(row: Mapping[str, object]) -> tuple[str, tuple[int, int]]:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise _EntryError(f"Expected file_name as a string, got {reprlib.repr(name)}.")
    return name, _size([row.get("height"), row.get("width")], "height and width")


def _entries(
    path: Path, rows: list[object], images: Mapping[ImageId, ListedImage] | None
) -> Iterator[ProposalEntry]:
    """Every entry, checked."""
    spelling: dict[ImageId, object] = {}
    for position, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise _EntryError(f"Expected an object, got {reprlib.repr(row)}. {_REMEDY}")
            image_id = _image_id(row, "image_id")
            if spelling.setdefault(image_id, row["image_id"]) != row["image_id"]:
                raise _EntryError(
                    f"Expected one spelling of an image's id, got {spelling[image_id]!r} before. "
                    "Write every image_id as the dataset's number of the image."
                )
            segmentation = _segmentation(row)
            if images is not None:
                _require_listed(image_id, segmentation, images)
            yield ProposalEntry(position, image_id, segmentation, _score(row))
        except _EntryError as error:
            raise HybridGLError(
                f"{path}, entry {position} (image_id {_shown(row, 'image_id')}): {error}"
            ) from None


def _image_id(row: Mapping[str, object], key: str) -> ImageId:
    value = row.get(key)
    # Not isinstance, by which True would pass for a number.
    if type(value) is int:
        return value
    if type(value) is str and value:
        digits = value.isascii() and value.isdigit() and len(value) <= _MAX_ID_DIGITS
        return int(value) if digits else value
    raise _EntryError(
        f"Expected {key} as a whole number, got {reprlib.repr(value)}. Write the dataset's number "
        "of the image."
    )


def _score(row: Mapping[str, object]) -> float | None:
    if "score" not in row:
        return None
    score = row["score"]
    if not _is_finite(score):
        raise _EntryError(
            f"Expected score as a finite number, got {reprlib.repr(score)}. Write a number, or "
            "leave score out."
        )
    return float(score)


def _segmentation(row: Mapping[str, object]) -> object:
    """The mask as it stands in the file, once its structure is checked."""
    segmentation = row.get("segmentation")
    if "segmentation" not in row:
        only = ", only a bbox" if "bbox" in row else ""
        raise _EntryError(
            f"Expected a segmentation, got none{only}. Have the program write masks "
            "(detectron2: the 'segm' results), not boxes."
        )
    if isinstance(segmentation, dict):
        _check_rle(segmentation)
    elif isinstance(segmentation, list) and segmentation:
        _check_polygons(segmentation)
    else:
        raise _EntryError(
            "Expected segmentation as RLE {size, counts} or as a list of polygons, got "
            f"{reprlib.repr(segmentation)}. Leave out entries without a mask."
        )
    return segmentation


def _check_rle(rle: Mapping[str, object]) -> None:
    height, width = _size(rle.get("size"), "size of the RLE")
    counts = rle.get("counts")
    if isinstance(counts, str):
        if not _COMPRESSED_RUNS.fullmatch(counts):
            raise _EntryError(
                f"Expected counts as COCO's letters, got {reprlib.repr(counts)}. Write what "
                "pycocotools encodes as text: rle['counts'].decode('ascii')."
            )
    elif isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or (
            sum(counts) != height * width
        ):
            raise _EntryError(
                f"Expected counts as whole numbers that add up to {height} x {width} pixels, got "
                f"{reprlib.repr(counts)}. Encode the mask again."
            )
    else:
        raise _EntryError(
            f"Expected counts as text or as a list of runs, got {reprlib.repr(counts)}. "
            "Encode the mask again."
        )


def _check_polygons(polygons: list[object]) -> None:
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise _EntryError(
                "Expected segmentation as a list of polygons, each a list of numbers, got "
                f"{reprlib.repr(polygon)} for a polygon. Write [[x0, y0, x1, y1, ...]]."
            )
        if len(polygon) < _MIN_POLYGON_NUMBERS or len(polygon) % 2:
            raise _EntryError(
                "Expected polygons of an even count of numbers, at least "
                f"{_MIN_POLYGON_NUMBERS}, got {len(polygon)}. Leave out what is no polygon."
            )
        for number in polygon:
            if not _is_finite(number):
                raise _EntryError(
                    f"Expected polygons of finite numbers, got {reprlib.repr(number)} in one. "
                    "Write the mask again."
                )


def _is_finite(value: object) -> TypeGuard[int | float]:
    # Written so that NaN, which compares with nothing, fails; True is no number.
    kind = type(value)
    return (kind is int or kind is float) and abs(value) < _MAX_NUMBER  # type: ignore[arg-type]


def _size(value: object, what: str) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2:
        height, width = value
        if type(height) is int and type(width) is int and height > 0 and width > 0:
            return height, width
    raise _EntryError(
        f"Expected {what} as two whole numbers above 0, height first, got {reprlib.repr(value)}. "
        "Write the size of the dataset's image."
    )


def _require_listed(
    image_id: ImageId, segmentation: object, images: Mapping[ImageId, ListedImage]
) -> None:
    if image_id not in images:
        raise _EntryError(
            f"Expected the image of every annotation among the {len(images)} images of the file, "
            "got one that it does not list. List it with its file_name, height and width."
        )
    hw = images[image_id].hw
    if isinstance(segmentation, dict) and tuple(segmentation["size"]) != hw:
        raise _EntryError(
            f"Expected masks of the size [{hw[0]}, {hw[1]}] that the file lists for the image, got "
            f"{segmentation['size']}. Write both as the dataset's image has it, height first."
        )


def _require_same_image(
    path: Path, listed: ListedImage, name: str, height: int, width: int
) -> None:
    if _base_name(listed.file_name) != _base_name(name):
        raise HybridGLError(
            f"Expected image {listed.image_id} of {path} to be {name}, got {listed.file_name!r}. "
            "Its ids are of other data: list the dataset's images under their own ids and names."
        )
    if listed.hw != (height, width):
        raise HybridGLError(
            f"Expected image {listed.image_id} ({name}) of {path} to have height {height} and "
            f"width {width}, got {listed.hw[0]} and {listed.hw[1]}. Propose masks on the dataset's "
            "own image, at its full size."
        )


def _require_same_sizes(file: ProposalFile, images: Mapping[int, tuple[str, int, int]]) -> None:
    wrong = [
        (entry.position, image_id, entry.segmentation["size"])
        for image_id, (_, *hw) in images.items()
        for entry in file.by_image.get(image_id, ())
        if isinstance(entry.segmentation, dict) and entry.segmentation["size"] != hw
    ]
    if not wrong:
        return
    position, image_id, size = min(wrong)
    name, height, width = images[image_id]
    turned = " That is width first: write the height first." * (size == [width, height])
    raise HybridGLError(
        f"{file.path}, entry {position} (image_id {image_id}): Expected the size "
        f"[{height}, {width}] of {name}, got {size}.{turned} Propose masks on the dataset's own "
        "image, at its full size."
    )


def _base_name(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]


def _shown(row: object, key: str) -> str:
    return reprlib.repr(row[key]) if isinstance(row, dict) and key in row else "missing"


def _few(items: Iterable[object]) -> str:
    """The first items, and how many more there are.

    >>> _few(range(7)), _few("ab")
    ('0, 1, 2, 3, 4 and 2 more', 'a, b')
    """
    texts = [str(item) for item in items]
    more = len(texts) - _FEW
    return ", ".join(texts[:_FEW]) + (f" and {more} more" if more > 0 else "")
