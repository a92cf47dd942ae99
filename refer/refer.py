"""Reader of REFER datasets: who refers to what, in which image, in which words.

One ``load_refer`` call gives one split as plain records, in the order of the refs file, with only
the images and annotations that the split needs.  README.md of this folder shows the expected files.

Source: the published files of RefCOCO, RefCOCO+ and RefCOCOg (COCO-style instances.json and a list
of refs); the image's name comes from instances.json, as the refs' own file_name ends in the
annotation's id and names no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hybridgl.errors import DataError
from hybridgl.files import file_sha256
from refer import pickles, splits
from refer.dataset import Annotation, Id, ImageInfo, Ref, ReferSplit, Sentence
from refer.entries import (
    FIX,
    Entry,
    identifier,
    optional,
    parse_each,
    read_json,
    require_unique,
    required,
    unexpected,
)

__all__ = [
    "IMAGE_FOLDERS",
    "ReferFiles",
    "load_refer",
    "load_refer_splits",
    "parse_instances",
    "read_object",
    "split_names",
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
        root: the data root: holds one folder per dataset, and images/.
        dataset: one of ``IMAGE_FOLDERS``.
        split: a split of the dataset, matched by equality.
        split_by: who drew the splits; None: the dataset's default.
        check_counts: refuse a split whose refs, images or sentences differ in number from the
            published ones; False reads it all the same, and names it among the warnings.

    Raises:
        FileNotFoundError: a folder or file is missing; the message shows the expected ones.
        DataError: the split does not exist or is empty; a file is damaged or unsafe; refs,
            annotations and images do not fit together; or the counts are off.
    """
    split_by = splits.validate(dataset, split, split_by)
    if dataset not in IMAGE_FOLDERS:
        raise DataError(
            f"Expected a dataset in REFER form ({', '.join(IMAGE_FOLDERS)}), got {dataset!r}; "
            "choose one of these, or load_phrasecut."
        )
    files = ReferFiles(*_find_files(root, dataset, split_by))
    loaded = files.parse(split, dataset, split_by, (root / IMAGE_FOLDERS[dataset],))
    return splits.checked(loaded, files.refs_path, check_counts=check_counts)


def load_refer_splits(root: Path, dataset: str, split_by: str) -> dict[str, ReferSplit | DataError]:
    """Load every split of a dataset in REFER form, reading its files once.

    Args:
        root: as for ``load_refer``.
        dataset: one of ``IMAGE_FOLDERS``.
        split_by: who drew the splits.

    Returns:
        By the split's name; in place of one that cannot be read, why not. Counts are not checked.

    Raises:
        FileNotFoundError: a folder or file is missing.
        DataError: a file is damaged or unsafe.
    """
    files = ReferFiles(*_find_files(root, dataset, split_by))
    loaded: dict[str, ReferSplit | DataError] = {}
    for split in splits.SPLITS[dataset][split_by]:
        try:
            loaded[split] = files.parse(split, dataset, split_by, (root / IMAGE_FOLDERS[dataset],))
        except DataError as error:
            loaded[split] = error
    return loaded


def _find_files(root: Path, dataset: str, split_by: str) -> tuple[Path, Path]:
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
        f"{root / IMAGE_FOLDERS[dataset]}, got {missing}; "
        "see refer/README.md for the expected tree and where the data comes from."
    )


class ReferFiles:
    """The two annotation files of a dataset in REFER form, read once for all of its splits.

    Args:
        instances_path: the file of images and annotations.
        refs_path: the file of refs, a pickle or JSON.

    Attributes:
        refs_path: as given.

    Raises:
        DataError: one of them is damaged or unsafe.
    """

    def __init__(self, instances_path: Path, refs_path: Path) -> None:
        self.refs_path = refs_path
        self._instances_path = instances_path
        self._instances = read_object(instances_path)
        self._refs = _read_refs(refs_path)

    def parse(
        self, split: str, dataset: str, split_by: str, image_roots: tuple[Path, ...]
    ) -> ReferSplit:
        """Make the records of one split.

        Args:
            split: matched by equality.
            dataset: as ``ReferSplit.dataset``.
            split_by: as ``ReferSplit.split_by``.
            image_roots: as ``ReferSplit.image_roots``.

        Raises:
            DataError: the split is not there, or something in it is malformed or missing.
        """
        refs = _parse_refs(self._refs, split, self.refs_path)
        images, annotations = parse_instances(self._instances, refs, self._instances_path)
        files = (self._instances_path, self.refs_path)
        return ReferSplit(
            dataset=dataset,
            split=split,
            split_by=split_by,
            refs=refs,
            images=images,
            annotations=annotations,
            image_roots=image_roots,
            sha256_by_file={path.name: file_sha256(path) for path in files},
        )


def _read_refs(path: Path) -> object:
    return pickles.load_plain_pickle(path) if path.suffix == ".p" else read_json(path)


def read_object(path: Path) -> Entry:
    """Read a JSON file in COCO form.

    Raises:
        DataError: it is damaged, or no object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"Expected an object with images and annotations in {path}, "
            f"got {type(content).__name__}; {FIX}."
        )
    return content


def split_names(refs_path: Path) -> list[str]:
    """List the splits in a refs file, in the order of first appearance.

    Raises:
        DataError: it is damaged, unsafe or no list of refs, or one has no split.
    """
    return _split_names(_read_refs(refs_path), refs_path)


def _split_names(content: object, path: Path) -> list[str]:
    return list(dict.fromkeys(parse_each(content, _split_of, f"the refs in {path}")))


def _split_of(entry: Entry) -> str:
    return required(entry, "split", str)


def _parse_refs(content: object, split: str, path: Path) -> tuple[Ref, ...]:
    def parse(entry: Entry) -> Ref | None:
        return _parse_ref(entry) if _split_of(entry) == split else None

    refs = parse_each(content, parse, f"the refs in {path}")
    if not refs:
        found = ", ".join(sorted(_split_names(content, path)))
        raise DataError(
            f"Expected refs of split {split!r} in {path}, got those of {found or 'no split'}; "
            "choose one that is there, or fetch the file again."
        )
    require_unique((ref.ref_id for ref in refs), f"ref_id in {path}")
    require_unique((s.sent_id for ref in refs for s in ref.sentences), f"sent_id in {path}")
    return tuple(refs)


def parse_instances(
    content: Entry, refs: tuple[Ref, ...], path: Path
) -> tuple[dict[int, ImageInfo], dict[Id, Annotation]]:
    """Parse the images of refs, in the order of first appearance, and all annotations of these.

    Args:
        content: from ``read_object``.
        refs: of the split.
        path: the file, to be named.

    Raises:
        DataError: an image or annotation is malformed, or one that a ref needs is not there.
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
        expected, found = f"image {ref.image_id}", "none"
    elif ann is None:
        expected, found = f"annotation {ann_id}", "none"
    elif ann.image_id != ref.image_id:
        expected = f"annotation {ann_id} in image {ref.image_id}"
        found = f"one in image {ann.image_id}"
    else:
        return
    raise DataError(
        f"Expected {expected} for ref {ref.ref_id} in {path}, got {found}; "
        "use annotations and refs of the same release."
    )


def _parse_ref(entry: Entry) -> Ref:
    return Ref(
        ref_id=required(entry, "ref_id", int),
        ann_ids=(required(entry, "ann_id", int),),
        image_id=required(entry, "image_id", int),
        sentences=tuple(parse_each(entry.get("sentences"), _parse_sentence, "its sentences")),
    )


def _parse_sentence(entry: Entry) -> Sentence:
    return Sentence(
        sent_id=required(entry, "sent_id", int),
        raw=required(entry, "raw", str),
        kind=optional(entry, "kind", str),
    )


def _parse_image(entry: Entry) -> ImageInfo:
    hw = required(entry, "height", int), required(entry, "width", int)
    if min(hw) <= 0:
        raise unexpected("a positive height and width", hw)
    return ImageInfo(required(entry, "id", int), required(entry, "file_name", str), *hw)


def _parse_annotation(entry: Entry) -> Annotation:
    return Annotation(
        ann_id=identifier(entry, "id"),
        image_id=required(entry, "image_id", int),
        segmentation=entry.get("segmentation"),
        iscrowd=bool(entry.get("iscrowd", 0)),
    )
