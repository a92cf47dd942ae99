"""Reader of REFER datasets: who refers to what, in which image, in which words.

One `load_refer` call gives one split as plain records, in the order of the refs file, with only the
images and annotations that the split needs.  README.md of this folder shows the expected files.

Source: the published files of RefCOCO, RefCOCO+ and RefCOCOg (COCO-style instances.json and a list
of refs); the image's name comes from instances.json, as the refs' own file_name ends in the
annotation's id and names no file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from refer import pickles, splits
from refer.errors import DataError
from refer.ground_truth import ground_truth

__all__ = [
    "Annotation",
    "ImageInfo",
    "Ref",
    "ReferSplit",
    "Sentence",
    "load_refer",
    "missing_images",
]

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = {
    "shapes": "images/shapes",
    "refcoco": "images/mscoco/images/train2014",
    "refcoco+": "images/mscoco/images/train2014",
    "refcocog": "images/mscoco/images/train2014",
}
"""Below the data root; the datasets that come in REFER form."""

MAX_NUMBER = 1e300
"""Numbers below it are finite and fit a float."""

T = TypeVar("T")
Entry = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Sentence:
    """One expression.

    Attributes:
        sent_id: Unique in its split.
        raw: As people wrote it; the method reads this one.
        sent: As the dataset's authors cleaned it.
        kind: Kind of expression, where the data says (the shapes world does).
    """

    sent_id: int
    raw: str
    sent: str
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Ref:
    """One referred object with everything said of it."""

    ref_id: int
    ann_id: int
    image_id: int
    category_id: int
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image; height and width in pixels, as annotated."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated object.

    Attributes:
        ann_id: Unique in the dataset.
        image_id: Its image.
        category_id: Its COCO category.
        segmentation: As in the file, unchecked; `refer.ground_truth.ground_truth` reads it.
        bbox_xywh: Left, top, width, height in pixels, origin top-left.
        area: In pixels.
        iscrowd: Whether it marks a group as one region.
    """

    ann_id: int
    image_id: int
    category_id: int
    segmentation: object
    bbox_xywh: tuple[float, float, float, float]
    area: float
    iscrowd: bool


@dataclass(frozen=True, slots=True)
class ReferSplit:
    """One split of one dataset.

    Attributes:
        dataset: Its name, as in `refer.splits.SPLITS`.
        split: Its name, as in the refs file.
        split_by: Who drew the splits.
        refs: In the order of the refs file, which is the dataset's order everywhere.
        images: Image id -> image, for the images of `refs`, in the order of first appearance.
        annotations: Annotation id -> annotation, for every annotated object of these images,
            referred to or not: ground truth as proposals needs the others too.
        image_root: Folder of the image files.
        file_digests: SHA-256 of the annotation files that were read, by file name.
        problems: One line for each doubt about the data that does not forbid using it.
    """

    dataset: str
    split: str
    split_by: str
    refs: tuple[Ref, ...]
    images: dict[int, ImageInfo]
    annotations: dict[int, Annotation]
    image_root: Path
    file_digests: dict[str, str]
    problems: tuple[str, ...] = ()

    @property
    def num_sentences(self) -> int:
        """Number of expressions: the number of samples of an evaluation."""
        return sum(len(ref.sentences) for ref in self.refs)

    def image_path(self, image_id: int) -> Path:
        """Path of an image file, which may be missing; see `missing_images`.

        Raises:
            KeyError: The split has no such image.
        """
        return self.image_root / self.images[image_id].file_name

    def refs_by_image(self) -> dict[int, tuple[Ref, ...]]:
        """Image id -> its refs; images in the order of first appearance, refs in file order."""
        grouped: dict[int, list[Ref]] = {}
        for ref in self.refs:
            grouped.setdefault(ref.image_id, []).append(ref)
        return {image_id: tuple(refs) for image_id, refs in grouped.items()}

    def truth(self, ref: Ref, *, drop_overlaps: bool) -> NDArray[np.bool_]:
        """The mask that a ref's sentences refer to.

        Args:
            ref: One of the split.
            drop_overlaps: Quirk Q9; see `ground_truth`.

        Returns:
            Bool, (H, W); empty where the annotation has no segmentation, which `problems` names.

        Raises:
            DataError: The segmentation is broken.
        """
        info = self.images[ref.image_id]
        segmentation = self.annotations[ref.ann_id].segmentation
        if not segmentation:
            return np.zeros((info.height, info.width), dtype=np.bool_)
        try:
            return ground_truth(
                segmentation, (info.height, info.width), drop_overlaps=drop_overlaps
            )
        except DataError as error:
            raise DataError(
                f"Annotation {ref.ann_id} of image {info.file_name}: {error}"
            ) from error

    def limited(self, n_images: int) -> ReferSplit:
        """The split of the first images alone, with all their refs, order unchanged.

        Raises:
            DataError: `n_images` is below 1.
        """
        if n_images < 1:
            raise DataError(f"Expected a limit of at least 1 image; got {n_images}.")
        images = dict(list(self.images.items())[:n_images])
        return replace(
            self,
            refs=tuple(ref for ref in self.refs if ref.image_id in images),
            images=images,
            annotations={i: ann for i, ann in self.annotations.items() if ann.image_id in images},
        )


def load_refer(
    root: Path, dataset: str, split: str, split_by: str | None = None, *, check_counts: bool = True
) -> ReferSplit:
    """Load one split of a dataset in REFER form.

    Args:
        root: The data root: holds one folder per dataset, and images/.
        dataset: One of `IMAGE_FOLDERS`.
        split: A split of the dataset, matched by equality.
        split_by: Who drew the splits; None: the dataset's default.
        check_counts: Refuse a split whose refs, images or sentences differ in number from the
            published ones; False reads it all the same, and names it among the problems.

    Raises:
        FileNotFoundError: A folder or file is missing; the message shows the expected ones.
        DataError: The split does not exist or is empty; a file is damaged or unsafe; refs,
            annotations and images do not fit together; or the counts are off.
    """
    split_by = splits.validate(dataset, split, split_by)
    if dataset not in IMAGE_FOLDERS:
        raise DataError(
            f"Expected a dataset in REFER form ({', '.join(IMAGE_FOLDERS)}); got {dataset!r}."
        )
    instances_path, refs_path = _data_files(root, dataset, split_by)
    refs = _read_refs(refs_path, split)
    images, annotations = _read_instances(instances_path, refs)
    loaded = ReferSplit(
        dataset=dataset,
        split=split,
        split_by=split_by,
        refs=refs,
        images=images,
        annotations=annotations,
        image_root=root / IMAGE_FOLDERS[dataset],
        file_digests={path.name: _sha256(path) for path in (instances_path, refs_path)},
    )
    problems = _doubts(loaded, instances_path)
    certain_off, unchecked_off = _count_differences(loaded)
    problems += [f"Unchecked number: {line} in {refs_path}." for line in unchecked_off]
    if certain_off:
        incomplete = (
            f"Not the whole of {dataset} {split} ({split_by}): {'; '.join(certain_off)} in "
            f"{refs_path}."
        )
        if check_counts:
            raise DataError(
                f"{incomplete} Fetch the file again, or load without checking counts if it is a "
                "subset on purpose."
            )
        problems.append(f"{incomplete} Its scores do not compare with published ones.")
    for problem in problems:
        logger.warning(problem)
    return replace(loaded, problems=tuple(problems))


def missing_images(split: ReferSplit) -> list[Path]:
    """The image files of the split that do not exist, in dataset order.

    An evaluation that skipped them would score another set than it names: a program checks this
    before it starts work, and stops at the first.
    """
    paths = (split.image_path(image_id) for image_id in split.images)
    return [path for path in paths if not path.is_file()]


def _data_files(root: Path, dataset: str, split_by: str) -> tuple[Path, Path]:
    folder = root / dataset
    instances = folder / "instances.json"
    forms = [folder / f"refs({split_by}).p", folder / f"refs({split_by}).json"]
    refs = next((path for path in forms if path.is_file()), None)
    if refs is not None and instances.is_file():
        return instances, refs
    if not root.is_dir():
        missing = f"no data folder {root}"
    elif not folder.is_dir():
        missing = f"no folder {folder}"
    elif not instances.is_file():
        missing = f"no {instances}"
    else:
        missing = f"neither {forms[0]} nor {forms[1].name}"
    raise FileNotFoundError(
        f"Expected {instances}, {forms[0]} (or {forms[1].name}) and images in "
        f"{root / IMAGE_FOLDERS[dataset]}; there is {missing}. "
        "See refer/README.md for the expected tree and where the data comes from."
    )


def _read_json(path: Path) -> object:
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"Expected whole JSON in {path}; got {type(error).__name__}: {error}. "
            "It is damaged or cut short: fetch or make it again."
        ) from error


def _read_refs(path: Path, split: str) -> tuple[Ref, ...]:
    content = pickles.load_plain_pickle(path) if path.suffix == ".p" else _read_json(path)
    found: set[str] = set()

    def parse(entry: Entry) -> Ref | None:
        of_split = _field(entry, "split", str)
        found.add(of_split)
        return _parse_ref(entry) if of_split == split else None

    refs = _parse_each(content, parse, f"the refs in {path}")
    if not refs:
        raise DataError(
            f"Expected refs of split {split!r} in {path}; "
            f"its splits are: {', '.join(sorted(found)) or 'none'}."
        )
    _require_unique((ref.ref_id for ref in refs), f"ref_id in {path}")
    _require_unique((s.sent_id for ref in refs for s in ref.sentences), f"sent_id in {path}")
    return tuple(refs)


def _read_instances(
    path: Path, refs: tuple[Ref, ...]
) -> tuple[dict[int, ImageInfo], dict[int, Annotation]]:
    content = _read_json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"Expected an object with images and annotations in {path}; "
            f"got {type(content).__name__}."
        )
    image_ids = dict.fromkeys(ref.image_id for ref in refs)
    ann_ids = {ref.ann_id for ref in refs}

    def parse_image(entry: Entry) -> ImageInfo | None:
        return _parse_image(entry) if _field(entry, "id", int) in image_ids else None

    def parse_annotation(entry: Entry) -> Annotation | None:
        needed = _field(entry, "image_id", int) in image_ids or _field(entry, "id", int) in ann_ids
        return _parse_annotation(entry) if needed else None

    images = _parse_each(content.get("images"), parse_image, f"the images in {path}")
    annotations = _parse_each(
        content.get("annotations"), parse_annotation, f"the annotations in {path}"
    )
    _require_unique((image.image_id for image in images), f"image id in {path}")
    _require_unique((ann.ann_id for ann in annotations), f"annotation id in {path}")
    by_image_id = {image.image_id: image for image in images}
    by_ann_id = {ann.ann_id: ann for ann in annotations}
    for ref in refs:
        _require_known(ref, by_image_id, by_ann_id, path)
    return {image_id: by_image_id[image_id] for image_id in image_ids}, by_ann_id


def _require_known(
    ref: Ref, images: Mapping[int, ImageInfo], annotations: Mapping[int, Annotation], path: Path
) -> None:
    ann = annotations.get(ref.ann_id)
    if ref.image_id not in images:
        lack = f"image {ref.image_id}, which it lacks"
    elif ann is None:
        lack = f"annotation {ref.ann_id}, which it lacks"
    elif ann.image_id != ref.image_id:
        lack = f"annotation {ref.ann_id} in image {ref.image_id}, but has it in {ann.image_id}"
    else:
        return
    raise DataError(
        f"Expected {path} to fit its refs; ref {ref.ref_id} needs {lack}. "
        "Use an instances.json and a refs file of the same release."
    )


def _require_unique(ids: Iterable[int], what: str) -> None:
    seen: set[int] = set()
    for one in ids:
        if one in seen:
            raise DataError(
                f"Expected every {what} to be unique; got {one} more than once. "
                "Fetch or make the file again."
            )
        seen.add(one)


def _doubts(split: ReferSplit, instances_path: Path) -> list[str]:
    without_mask = [
        f"Annotation {ref.ann_id} (ref {ref.ref_id}) in {instances_path} has no segmentation."
        for ref in split.refs
        if not split.annotations[ref.ann_id].segmentation
    ]
    without_words = [
        f"Ref {ref.ref_id} of {split.dataset} {split.split} has no sentences."
        for ref in split.refs
        if not ref.sentences
    ]
    return without_mask + without_words


def _count_differences(split: ReferSplit) -> tuple[list[str], list[str]]:
    """How the split's counts differ from the published ones.

    Returns:
        Two lists, each entry with the expected and the found number: counts that are certain
        (refs, images, RefCOCO's sentences), and sentence counts that are quoted but unchecked.
    """
    expected = splits.expected_counts(split.dataset, split.split, split.split_by)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parse_each(content: object, parse: Callable[[Entry], T | None], what: str) -> list[T]:
    """Parse a list of objects; entries that `parse` answers with None are not needed."""
    if not isinstance(content, list):
        raise DataError(f"Expected {what} as a list; got {reprlib.repr(content)}.")
    parsed: list[T] = []
    for index, entry in enumerate(content):
        try:
            if not isinstance(entry, dict):
                raise DataError(f"expected an object; got {reprlib.repr(entry)}.")
            record = parse(entry)
        except ValueError as error:
            raise DataError(f"Entry {index} of {what}: {error}") from None
        if record is not None:
            parsed.append(record)
    return parsed


def _parse_ref(entry: Entry) -> Ref:
    return Ref(
        ref_id=_field(entry, "ref_id", int),
        ann_id=_field(entry, "ann_id", int),
        image_id=_field(entry, "image_id", int),
        category_id=_field(entry, "category_id", int),
        sentences=tuple(_parse_each(entry.get("sentences"), _parse_sentence, "its sentences")),
    )


def _parse_sentence(entry: Entry) -> Sentence:
    return Sentence(
        sent_id=_field(entry, "sent_id", int),
        raw=_field(entry, "raw", str),
        sent=_field(entry, "sent", str),
        kind=_field(entry, "kind", str) if "kind" in entry else None,
    )


def _parse_image(entry: Entry) -> ImageInfo:
    height, width = _field(entry, "height", int), _field(entry, "width", int)
    if min(height, width) <= 0:
        raise DataError(f"expected a positive height and width; got {height} and {width}.")
    return ImageInfo(_field(entry, "id", int), _field(entry, "file_name", str), height, width)


def _parse_annotation(entry: Entry) -> Annotation:
    bbox = _field(entry, "bbox", list)
    if len(bbox) != 4:
        raise DataError(f"expected bbox as 4 numbers; got {reprlib.repr(bbox)}.")
    left, top, width, height = (_number(side, "bbox") for side in bbox)
    return Annotation(
        ann_id=_field(entry, "id", int),
        image_id=_field(entry, "image_id", int),
        category_id=_field(entry, "category_id", int),
        segmentation=entry.get("segmentation"),
        bbox_xywh=(left, top, width, height),
        area=_number(entry.get("area"), "area"),
        iscrowd=bool(entry.get("iscrowd", 0)),
    )


def _field(entry: Entry, key: str, kind: type[T]) -> T:
    value = entry.get(key)
    # Not isinstance, by which True would pass for a number.
    if type(value) is not kind:
        raise DataError(f"expected {key} as {kind.__name__}; got {reprlib.repr(value)}.")
    return value


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
        raise DataError(f"expected {what} as finite numbers; got {reprlib.repr(value)}.")
    return float(value)
