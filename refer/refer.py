"""Reader of REFER datasets: who refers to what, in which image, in which words.

One `load_refer` call gives one split as plain records, in the order of the refs file, with only the
images and annotations that the split needs.  README.md of this folder shows the expected files.

Source: the published files of RefCOCO, RefCOCO+ and RefCOCOg (COCO-style instances.json and a list
of refs); the image's name comes from instances.json, as the refs' own file_name ends in the
annotation's id and names no file.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hybridgl.errors import DataError
from refer import pickles, splits
from refer.checks import checked
from refer.dataset import Annotation, Id, ImageInfo, Ref, ReferSplit, Sentence
from refer.entries import (
    Entry,
    digests,
    identifier,
    number,
    optional,
    parse_each,
    read_json,
    require_unique,
    required,
)

__all__ = [
    "IMAGE_FOLDERS",
    "load_refer",
    "load_refer_splits",
    "parse_instances",
    "parse_refs",
    "parse_sentence",
    "read_object",
    "read_refs",
    "splits_of",
]

IMAGE_FOLDERS = {
    "shapes": "images/shapes",
    "refcoco": "images/mscoco/images/train2014",
    "refcoco+": "images/mscoco/images/train2014",
    "refcocog": "images/mscoco/images/train2014",
}
"""Below the data root; the datasets that come in REFER form."""


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
            published ones; False reads it all the same, and names it among the warnings.

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
    files = _Files.read(root, dataset, split_by)
    expected = splits.expected_counts(dataset, split, split_by)
    return checked(files.parse(split), expected, files.refs_path, check_counts=check_counts)


def load_refer_splits(root: Path, dataset: str, split_by: str) -> dict[str, ReferSplit | DataError]:
    """Load every split of a dataset in REFER form, reading its files once.

    Args:
        root: As for `load_refer`.
        dataset: One of `IMAGE_FOLDERS`.
        split_by: Who drew the splits.

    Returns:
        By the split's name; in place of one that cannot be read, why not. Counts are not checked.

    Raises:
        FileNotFoundError: A folder or file is missing.
        DataError: A file is damaged or unsafe.
    """
    files = _Files.read(root, dataset, split_by)
    loaded: dict[str, ReferSplit | DataError] = {}
    for split in splits.SPLITS[dataset][split_by]:
        try:
            loaded[split] = files.parse(split)
        except DataError as error:
            loaded[split] = error
    return loaded


@dataclass(frozen=True, slots=True)
class _Files:
    """What the two annotation files of a dataset hold.

    Attributes:
        root: The data root.
        dataset: The dataset.
        split_by: Who drew the splits.
        instances_path: File of images and annotations.
        refs_path: File of refs.
        instances: Its content.
        refs: Its content.
        sha256_by_file: SHA-256 by file name.
    """

    root: Path
    dataset: str
    split_by: str
    instances_path: Path
    refs_path: Path
    instances: Entry
    refs: object
    sha256_by_file: dict[str, str]

    @classmethod
    def read(cls, root: Path, dataset: str, split_by: str) -> _Files:
        instances_path, refs_path = _data_files(root, dataset, split_by)
        return cls(
            root=root,
            dataset=dataset,
            split_by=split_by,
            instances_path=instances_path,
            refs_path=refs_path,
            instances=read_object(instances_path),
            refs=read_refs(refs_path),
            sha256_by_file=digests(instances_path, refs_path),
        )

    def parse(self, split: str) -> ReferSplit:
        refs = parse_refs(self.refs, split, self.refs_path)
        images, annotations = parse_instances(self.instances, refs, self.instances_path)
        return ReferSplit(
            dataset=self.dataset,
            split=split,
            split_by=self.split_by,
            refs=refs,
            images=images,
            annotations=annotations,
            image_roots=(self.root / IMAGE_FOLDERS[self.dataset],),
            sha256_by_file=self.sha256_by_file,
        )


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


def read_refs(path: Path) -> object:
    """The content of a refs file, a pickle or JSON.

    Raises:
        DataError: It is damaged or unsafe.
    """
    return pickles.load_plain_pickle(path) if path.suffix == ".p" else read_json(path)


def read_object(path: Path) -> Entry:
    """The content of a JSON file in COCO form.

    Raises:
        DataError: It is damaged, or no object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"Expected an object with images and annotations in {path}; "
            f"got {type(content).__name__}."
        )
    return content


def splits_of(content: object, path: Path) -> list[str]:
    """The splits in a refs file, in the order of first appearance.

    Raises:
        DataError: It is no list of refs, or one has no split.
    """
    return list(dict.fromkeys(parse_each(content, _split_of, f"the refs in {path}")))


def _split_of(entry: Entry) -> str:
    return required(entry, "split", str)


def parse_refs(content: object, split: str, path: Path) -> tuple[Ref, ...]:
    """The refs of one split, at least one.

    Args:
        content: From `read_refs`.
        split: Matched by equality.
        path: The file, to be named.

    Raises:
        DataError: The split is not there, or a ref is malformed.
    """

    def parse(entry: Entry) -> Ref | None:
        return _parse_ref(entry) if _split_of(entry) == split else None

    refs = parse_each(content, parse, f"the refs in {path}")
    if not refs:
        found = sorted(splits_of(content, path))
        raise DataError(
            f"Expected refs of split {split!r} in {path}; "
            f"its splits are: {', '.join(found) or 'none'}."
        )
    require_unique((ref.ref_id for ref in refs), f"ref_id in {path}")
    require_unique((s.sent_id for ref in refs for s in ref.sentences), f"sent_id in {path}")
    return tuple(refs)


def parse_instances(
    content: Entry, refs: tuple[Ref, ...], path: Path
) -> tuple[dict[int, ImageInfo], dict[Id, Annotation]]:
    """The images of the refs, in the order of first appearance, and all annotations of these.

    Args:
        content: From `read_object`.
        refs: Of the split.
        path: The file, to be named.

    Raises:
        DataError: An image or annotation is malformed, or one that a ref needs is not there.
    """
    image_ids = dict.fromkeys(ref.image_id for ref in refs)
    ann_ids = {ann_id for ref in refs for ann_id in ref.ann_ids}

    def parse_image(entry: Entry) -> ImageInfo | None:
        return _parse_image(entry) if required(entry, "id", int) in image_ids else None

    def parse_annotation(entry: Entry) -> Annotation | None:
        needed = required(entry, "image_id", int) in image_ids or identifier(entry, "id") in ann_ids
        return _parse_annotation(entry) if needed else None

    images = parse_each(content.get("images"), parse_image, f"the images in {path}")
    annotations = parse_each(
        content.get("annotations"), parse_annotation, f"the annotations in {path}"
    )
    require_unique((image.image_id for image in images), f"image id in {path}")
    require_unique((ann.ann_id for ann in annotations), f"annotation id in {path}")
    by_image_id = {image.image_id: image for image in images}
    by_ann_id = {ann.ann_id: ann for ann in annotations}
    for ref in refs:
        for ann_id in ref.ann_ids:
            _require_known(ref, ann_id, by_image_id, by_ann_id, path)
    return {image_id: by_image_id[image_id] for image_id in image_ids}, by_ann_id


def _require_known(
    ref: Ref,
    ann_id: Id,
    images: Mapping[int, ImageInfo],
    annotations: Mapping[Id, Annotation],
    path: Path,
) -> None:
    ann = annotations.get(ann_id)
    if ref.image_id not in images:
        lack = f"image {ref.image_id}, which it lacks"
    elif ann is None:
        lack = f"annotation {ann_id}, which it lacks"
    elif ann.image_id != ref.image_id:
        lack = f"annotation {ann_id} in image {ref.image_id}, but has it in {ann.image_id}"
    else:
        return
    raise DataError(
        f"Expected {path} to fit its refs; ref {ref.ref_id} needs {lack}. "
        "Use annotations and refs of the same release."
    )


def _parse_ref(entry: Entry) -> Ref:
    return Ref(
        ref_id=required(entry, "ref_id", int),
        ann_ids=(required(entry, "ann_id", int),),
        image_id=required(entry, "image_id", int),
        category_id=optional(entry, "category_id", int),
        sentences=tuple(parse_each(entry.get("sentences"), parse_sentence, "its sentences")),
    )


def parse_sentence(entry: Entry) -> Sentence:
    """One sentence of a ref.

    Raises:
        DataError: It is malformed.
    """
    return Sentence(
        sent_id=required(entry, "sent_id", int),
        raw=required(entry, "raw", str),
        sent=required(entry, "sent", str),
        kind=optional(entry, "kind", str),
    )


def _parse_image(entry: Entry) -> ImageInfo:
    height, width = required(entry, "height", int), required(entry, "width", int)
    if min(height, width) <= 0:
        raise DataError(f"expected a positive height and width; got {height} and {width}.")
    return ImageInfo(required(entry, "id", int), required(entry, "file_name", str), height, width)


def _parse_annotation(entry: Entry) -> Annotation:
    return Annotation(
        ann_id=identifier(entry, "id"),
        image_id=required(entry, "image_id", int),
        segmentation=entry.get("segmentation"),
        iscrowd=bool(entry.get("iscrowd", 0)),
        category_id=optional(entry, "category_id", int),
        bbox_xywh=_box(required(entry, "bbox", list)) if entry.get("bbox") is not None else None,
        area=number(entry["area"], "area") if entry.get("area") is not None else None,
    )


def _box(sides: list[object]) -> tuple[float, float, float, float]:
    if len(sides) != 4:
        raise DataError(f"expected bbox as 4 numbers; got {reprlib.repr(sides)}.")
    left, top, width, height = (number(side, "bbox") for side in sides)
    return left, top, width, height
