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
    EntryReader,
    optional,
    read_json,
    require_unique,
    required,
    unexpected,
    whole_number,
)
from refer.image_files import SIZE_UNKNOWN, with_file_sizes

__all__ = [
    "IMAGE_FOLDERS",
    "ReferFiles",
    "image_size",
    "load_refer",
    "load_refer_splits",
    "parse_instances",
    "parse_sentence",
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
    root: Path,
    dataset: str,
    split: str,
    split_by: str | None = None,
    *,
    check_counts: bool = True,
    strict: bool = False,
) -> ReferSplit:
    """Load one split of a dataset in REFER form.

    Args:
        root: the data root: holds one folder per dataset, and images/.
        dataset: one of ``IMAGE_FOLDERS``.
        split: a split of the dataset, matched by equality.
        split_by: who drew the splits; None: the dataset's default.
        check_counts: refuse a split whose refs, images or sentences differ in number from the
            published ones; False reads it all the same, and names it among the warnings.
        strict: refuse broken entries, which are otherwise left out and named among the warnings.

    Raises:
        FileNotFoundError: a folder or file is missing; the message shows the expected ones.
        DataError: the split does not exist or is empty; a file is damaged or unsafe; refs,
            annotations and images do not fit together; the counts are off; or an entry is broken,
            and ``strict``.
    """
    split_by = splits.validate(dataset, split, split_by)
    if dataset not in IMAGE_FOLDERS:
        raise DataError(
            f"Expected a dataset in REFER form ({', '.join(IMAGE_FOLDERS)}), got {dataset!r}; "
            "choose one of these, or load_phrasecut."
        )
    files = ReferFiles(*_find_files(root, dataset, split_by), strict=strict)
    loaded = with_file_sizes(
        files.parse(split, dataset, split_by, (root / IMAGE_FOLDERS[dataset],))
    )
    return splits.checked(loaded, files.refs_path, check_counts=check_counts)


def load_refer_splits(root: Path, dataset: str, split_by: str) -> dict[str, ReferSplit | DataError]:
    """Load every split of a dataset in REFER form strictly, reading its files once.

    Args:
        root: as for ``load_refer``.
        dataset: one of ``IMAGE_FOLDERS``.
        split_by: who drew the splits.

    Returns:
        By the split's name; in place of one with anything broken, what is. Counts are not checked.

    Raises:
        FileNotFoundError: a folder or file is missing.
        DataError: a file is damaged or unsafe.
    """
    files = ReferFiles(*_find_files(root, dataset, split_by), strict=True)
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
        strict: refuse broken entries.

    Attributes:
        refs_path: as given.

    Raises:
        DataError: one of them is damaged or unsafe.
    """

    def __init__(self, instances_path: Path, refs_path: Path, *, strict: bool = False) -> None:
        self.refs_path = refs_path
        self._strict = strict
        self._instances_path = instances_path
        self._instances = read_object(instances_path)
        self._refs = _read_refs(refs_path)

    def parse(
        self, split: str, dataset: str, split_by: str, image_roots: tuple[Path, ...]
    ) -> ReferSplit:
        """Make the records of one split; images without a size have ``SIZE_UNKNOWN``.

        Args:
            split: matched by equality.
            dataset: as ``ReferSplit.dataset``.
            split_by: as ``ReferSplit.split_by``.
            image_roots: as ``ReferSplit.image_roots``.

        Raises:
            DataError: the split is not there, or something in it is malformed or missing.
        """
        files = (self._instances_path, self.refs_path)
        instances_reader, refs_reader = (EntryReader(path, strict=self._strict) for path in files)
        refs = _parse_refs(self._refs, split, refs_reader)
        images, annotations = parse_instances(self._instances, refs, instances_reader)
        return ReferSplit(
            dataset=dataset,
            split=split,
            split_by=split_by,
            refs=refs,
            images=images,
            annotations=annotations,
            image_roots=image_roots,
            sha256_by_file={path.name: file_sha256(path) for path in files},
            lenient=refs_reader.lenient or instances_reader.lenient,
            warnings=(*refs_reader.warnings(), *instances_reader.warnings()),
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


def split_names(refs_path: Path, *, strict: bool = False) -> list[str]:
    """List the splits in a refs file, in the order of first appearance.

    Raises:
        DataError: it is damaged, unsafe or no list of refs; or one has no split, and ``strict``.
    """
    return _split_names(_read_refs(refs_path), EntryReader(refs_path, strict=strict))


def _split_names(content: object, reader: EntryReader) -> list[str]:
    return list(dict.fromkeys(reader.each(content, _split_of, "refs")))


def _split_of(entry: Entry, _: int = 0) -> str:
    return required(entry, "split", str)


def _parse_refs(content: object, split: str, reader: EntryReader) -> tuple[Ref, ...]:
    def parse(entry: Entry, index: int) -> Ref | None:
        return _parse_ref(entry, index, reader) if _split_of(entry) == split else None

    refs, path = reader.each(content, parse, "refs"), reader.path
    if not refs:
        names = sorted(_split_names(content, reader))
        found = f"those of {', '.join(names) or 'no split'}"
        if split in names:
            found = reader.none_of("refs")
        raise DataError(
            f"Expected refs of split {split!r} in {path}, got {found}; "
            "choose one that is there, or fetch the file again."
        )
    require_unique((ref.ref_id for ref in refs), f"ref_id in {path}")
    require_unique((s.sent_id for ref in refs for s in ref.sentences), f"sent_id in {path}")
    return tuple(refs)


def parse_instances(
    content: Entry, refs: tuple[Ref, ...], reader: EntryReader
) -> tuple[dict[int, ImageInfo], dict[Id, Annotation]]:
    """Parse the images of refs, in the order of first appearance, and all annotations of these.

    Args:
        content: from ``read_object``.
        refs: of the split.
        reader: of the file.

    Raises:
        DataError: one that a ref needs is not there; or an image or annotation is broken, and the
            reader is strict.
    """
    image_ids = dict.fromkeys(ref.image_id for ref in refs)
    ann_ids = {ann_id for ref in refs for ann_id in ref.ann_ids}

    def parse_needed(entry: Entry, index: int) -> ImageInfo | None:
        image_id = reader.whole(entry, "id")
        return _parse_image(entry, index, image_id, reader) if image_id in image_ids else None

    def parse_annotation(entry: Entry, index: int) -> Annotation | None:
        ann_id, image_id = reader.identifier(entry, "id"), reader.whole(entry, "image_id")
        if image_id not in image_ids and ann_id not in ann_ids:
            return None
        is_crowd = _is_crowd(entry, index, reader)
        return Annotation(ann_id, image_id, entry.get("segmentation"), is_crowd)

    images = reader.each(content.get("images"), parse_needed, "images")
    annotations = reader.each(content.get("annotations"), parse_annotation, "annotations")
    require_unique((image.image_id for image in images), f"image id in {reader.path}")
    require_unique((ann.ann_id for ann in annotations), f"annotation id in {reader.path}")
    by_image_id = {image.image_id: image for image in images}
    by_ann_id = {ann.ann_id: ann for ann in annotations}
    for ref in refs:
        for ann_id in ref.ann_ids:
            _require_known(ref, ann_id, by_image_id, by_ann_id, reader)
    return {image_id: by_image_id[image_id] for image_id in image_ids}, by_ann_id


def _require_known(
    ref: Ref,
    ann_id: Id,
    images: Mapping[int, ImageInfo],
    annotations: Mapping[Id, Annotation],
    reader: EntryReader,
) -> None:
    ann = annotations.get(ann_id)
    if ref.image_id not in images:
        expected, found = f"image {ref.image_id}", reader.none_of("images")
    elif ann is None:
        expected, found = f"annotation {ann_id}", reader.none_of("annotations")
    elif ann.image_id != ref.image_id:
        expected = f"annotation {ann_id} in image {ref.image_id}"
        found = f"one in image {ann.image_id}"
    else:
        return
    raise DataError(
        f"Expected {expected} for ref {ref.ref_id} in {reader.path}, got {found}; "
        "use annotations and refs of the same release."
    )


def _parse_ref(entry: Entry, index: int, reader: EntryReader) -> Ref:
    place = f" of entry {index} of the refs"

    def parse(sentence: Entry, number: int) -> Sentence:
        sent_id = reader.whole(sentence, "sent_id")
        return parse_sentence(sentence, sent_id, f"entry {number} of the sentences{place}", reader)

    return Ref(
        ref_id=reader.whole(entry, "ref_id"),
        ann_ids=(reader.whole(entry, "ann_id"),),
        image_id=reader.whole(entry, "image_id"),
        sentences=tuple(reader.each(entry.get("sentences"), parse, "sentences", of=place)),
    )


def parse_sentence(entry: Entry, sent_id: int, place: str, reader: EntryReader) -> Sentence:
    """Parse a sentence.

    Args:
        entry: with ``raw``, and ``kind`` if it has one.
        sent_id: of the sentence.
        place: of the entry in its file, to be named.
        reader: of the file.

    Raises:
        DataError: it has no words; or a kind that is no text, and the reader is strict.
    """
    raw = required(entry, "raw", str)
    if not raw.strip():
        raise unexpected("raw in words", raw)
    try:
        kind = optional(entry, "kind", str)
    except DataError as error:
        reader.report("kinds of sentences that are no text are left out of", place, error)
        kind = None
    return Sentence(sent_id, raw, kind)


def _parse_image(entry: Entry, index: int, image_id: int, reader: EntryReader) -> ImageInfo:
    """Parse an image; one without a size that can be used has ``SIZE_UNKNOWN``.

    Args:
        entry: with ``file_name``, ``height`` and ``width``.
        index: of the entry, to be named.
        image_id: of the image.
        reader: of the file.

    Raises:
        DataError: name or size is none that can be used, and the reader is strict.
    """
    place = f"entry {index} of the images"
    try:
        name = required(entry, "file_name", str)
    except DataError as error:
        reader.report("images without a file_name count as missing in", place, error)
        name = ""
    return ImageInfo(image_id, name, *image_size(entry, place, reader))


def image_size(entry: Entry, place: str, reader: EntryReader) -> tuple[int, int]:
    """Return an image's height and width, or ``SIZE_UNKNOWN``.

    Args:
        entry: with both.
        place: of the entry in its file, to be named.
        reader: of the file.

    Raises:
        DataError: they are none, and the reader is strict.
    """
    try:
        hw = reader.whole(entry, "height"), reader.whole(entry, "width")
        if min(hw) <= 0:
            raise unexpected("a positive height and width", hw)
    except DataError as error:
        reader.report("sizes of images that are none are left out of", place, error)
        return SIZE_UNKNOWN
    return hw


def _is_crowd(entry: Entry, index: int, reader: EntryReader) -> bool:
    """Read whether an annotation marks a group; one that does not tell is taken for one."""
    found = entry.get("iscrowd")
    if found is None or (type(found) in (int, bool) and found in (0, 1)):
        return bool(found)
    number = None if reader.strict else whole_number(found)
    if number in (0, 1):
        reader.lenient = True
        return number == 1
    reader.report(
        "annotations with an iscrowd that is neither 0 nor 1 are proposals only if referred to in",
        f"entry {index} of the annotations",
        unexpected("iscrowd as 0 or 1", found),
    )
    return True
