"""Where the masks come from among which an expression picks: SAM, a file, or the ground truth.

A run's methods all see the same source, so that what they score compares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hybridgl.config import ProposalConfig
from hybridgl.errors import DataError, ImageError
from hybridgl.images import RgbImage
from hybridgl.masks import Proposals, mask_boxes_xywh
from hybridgl.models.models import Models
from hybridgl.stages import ArtefactStore, SamProposals
from refer.dataset import ReferSplit
from refer.images import open_image
from refer.segmentation import check_segmentation, gt_mask
from utils.runtime import prefetch, progress

__all__ = ["FileSource", "GroundTruthSource", "ProposalSource", "SamSource"]


_FINISHERS = min(os.cpu_count() or 1, 4)
"""Threads that clean and store masks."""

_ImageId = int | str
"""A number, also where a file has digits in a string; another string is of no dataset's image."""

_MAX_ID_DIGITS = 18
"""A longer string of digits is no id that a dataset here could have."""

_MAX_SCORE = 1e30
"""Numbers below it are finite, also as float32."""

_FEW = 5
"""How many images are named where many are meant."""

_FORMS = "a list of {image_id, segmentation, score}, or an object with images and annotations"
_REMEDY = "write one of COCO's two forms; third_party/README.md has a writer"


class ProposalSource(Protocol):
    """Masks of a split's images.

    Attributes:
        name: for people.
        models: of "clip" and "sam", those that it computes with.
        warnings: one line for each warning about it that does not forbid using it.
    """

    name: str
    models: tuple[str, ...]
    warnings: tuple[str, ...]

    def count(self, image_id: int) -> int:
        """Number of an image's masks.

        Raises:
            ImageError: the image cannot be read, so that nothing is predicted for it.
        """

    def counts(self, image_ids: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Every image's id and the number of its masks, in order; 0 where it cannot be read."""
        for image_id in image_ids:
            count = 0
            with contextlib.suppress(ImageError):  # named when its sentences are scored
                count = self.count(image_id)
            yield image_id, count

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """An image's masks; the image is the opened one of that id."""

    def describe(self) -> dict[str, Any]:
        """What must be the same for the same masks, as JSON values."""


class SamSource(ProposalSource):
    """SAM's automatic masks.

    Args:
        models: hold SAM.
        config: settings of its mask generator.
        store: keeps the masks.
        split: the data.
    """

    models: tuple[str, ...] = ("sam",)
    warnings: tuple[str, ...] = ()

    def __init__(
        self, models: Models, config: ProposalConfig, store: ArtefactStore, split: ReferSplit
    ) -> None:
        self.name = f"SAM {models.weights.sam_checkpoint.name}"
        self._sam = SamProposals(models, config, store)
        self._split = split

    def count(self, image_id: int) -> int:
        """Number of an image's masks, which are made if the store lacks them."""
        image = open_image(self._split, image_id)
        stored = self._sam.stored_count(image)
        return len(self._sam.propose(image)) if stored is None else stored

    def counts(self, image_ids: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Every image's id and the number of its masks, in order; 0 where it cannot be read.

        While the device works on some images, threads read the next ones, and clean and store the
        masks of the last.
        """
        return prefetch(lambda finish: finish(), self._counting(image_ids), threads=_FINISHERS)

    def _counting(self, image_ids: Iterable[int]) -> Iterator[Callable[[], tuple[int, int]]]:
        """What is left to do for every image when the device is done with it."""
        opened = prefetch(self._open, image_ids)
        while group := list(itertools.islice(opened, self._sam.images_at_once)):
            lacking = [image for _, image, count in group if image and count is None]
            unfinished = iter(self._sam.begin(lacking))
            for image_id, _, count in group:
                finish = next(unfinished) if count is None else None
                yield partial(_counted, image_id, count, finish)

    def _open(self, image_id: int) -> tuple[int, RgbImage | None, int | None]:
        """An image, decoded where its masks are not stored; their number where they are."""
        try:
            image = open_image(self._split, image_id)
            count = self._sam.stored_count(image)
            if count is None:
                _ = image.pixels_HW3
        except ImageError:  # named when its sentences are scored
            return image_id, None, 0
        return image_id, image, count

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """An image's masks, in the generator's order."""
        return self._sam.propose(image)

    def describe(self) -> dict[str, Any]:
        """Settings of the generator; the weights are described with the models."""
        return {"source": "sam", **dataclasses.asdict(self._sam.config)}


class FileSource(ProposalSource):
    """Masks that another program wrote as COCO results or COCO annotations.

    One file can serve several splits, so what it holds for other images is not checked.

    Args:
        path: the file.
        split: the data.

    Raises:
        DataError: the file is missing, damaged, of another form, or for other images than those of
            the split; its first wrong entry is named.
    """

    models: tuple[str, ...] = ()

    def __init__(self, path: Path, split: ReferSplit) -> None:
        self.name = path.name
        self._split = split
        content, self._sha256 = _read_json(path)
        self._masks = _read_masks(path, content, split)
        absent = [
            f"{info.file_name} ({image_id})"
            for image_id, info in split.images.items()
            if image_id not in self._masks
        ]
        self.warnings: tuple[str, ...] = ()
        if absent:
            self.warnings = (
                f"{len(absent)} of {len(split.images)} images have no entry in {path}, so no "
                f"proposals: {_few(absent)}.",
            )

    def count(self, image_id: int) -> int:
        """Return the number of an image's masks.

        Raises:
            ImageError: the image cannot be read, so that nothing is predicted for it.
        """
        _ = open_image(self._split, image_id).pil
        return len(self._masks.get(image_id, ()))

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """Return an image's masks in the file's order; scores stand for the predicted IoU."""
        entries = self._masks.get(image_id, [])
        masks = [
            gt_mask(segmentation, image.hw, overlapping_polygons_dropped=False)
            for segmentation, _ in entries
        ]
        return _proposals_of(masks, image.hw, [score for _, score in entries])

    def describe(self) -> dict[str, Any]:
        """The file by its content."""
        return {"source": "coco", "file": self.name, "sha256": self._sha256}


class GroundTruthSource(ProposalSource):
    """Every annotated object of an image: what is left to choose where the masks are perfect.

    Args:
        split: the data.
        overlapping_polygons_dropped: quirk Q9, as for the truth that picks are scored against.

    Raises:
        DataError: an annotation's segmentation is broken.
    """

    name = "ground truth"
    models: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __init__(self, split: ReferSplit, *, overlapping_polygons_dropped: bool) -> None:
        self._split = split
        self._overlapping_polygons_dropped = overlapping_polygons_dropped
        for image_id in split.images:
            for ann_id in split.instances(image_id):
                split.check_mask(ann_id)

    def count(self, image_id: int) -> int:
        """Number of an image's annotated objects.

        Raises:
            ImageError: the image cannot be read, so that nothing is predicted for it.
        """
        _ = open_image(self._split, image_id).pil
        return len(self._split.instances(image_id))

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """Masks of an image's annotated objects, in the order of their file."""
        masks = [
            self._split.instance_mask(
                ann_id, overlapping_polygons_dropped=self._overlapping_polygons_dropped
            )
            for ann_id in self._split.instances(image_id)
        ]
        return _proposals_of(masks, image.hw, [1.0] * len(masks))

    def describe(self) -> dict[str, Any]:
        """The annotations are described with the data."""
        return {"source": "gt"}


def _counted(
    image_id: int, count: int | None, finish: Callable[[], Proposals] | None
) -> tuple[int, int]:
    return image_id, len(finish()) if finish else count or 0


def _proposals_of(
    masks: list[NDArray[np.bool_]], hw: tuple[int, int], scores: list[float]
) -> Proposals:
    masks_NHW = np.array(masks, dtype=np.bool_).reshape(len(masks), *hw)
    return Proposals(
        masks_NHW=masks_NHW,
        boxes_xywh=mask_boxes_xywh(masks_NHW),
        predicted_iou=np.array(scores, dtype=np.float32),
        stability=np.ones(len(masks), dtype=np.float32),
    )


def _read_json(path: Path) -> tuple[object, str]:
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


def _read_masks(
    path: Path, content: object, split: ReferSplit
) -> dict[int, list[tuple[object, float]]]:
    """Return segmentations and scores by the split's images, checked, in the file's order."""
    listed: set[_ImageId] | None = None
    rows = content
    if isinstance(content, dict):
        if not {"images", "annotations"} <= content.keys():
            keys = _few(map(reprlib.repr, content)) or "nothing"
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
            f"{_few(split.images)}: write the dataset's number of the image as image_id, not its "
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


def _few(items: Iterable[object]) -> str:
    """Name the first items, and how many more there are.

    >>> _few(range(7)), _few("ab")
    ('0, 1, 2, 3, 4 and 2 more', 'a, b')
    """
    texts = [str(item) for item in items]
    more = len(texts) - _FEW
    return ", ".join(texts[:_FEW]) + (f" and {more} more" if more > 0 else "")
