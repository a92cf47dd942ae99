"""Custom datasets, by their path: a folder in REFER form, or one JSON file in COCO form.

README.md of this folder shows a minimal example of both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hybridgl.errors import DataError
from hybridgl.files import file_sha256
from refer.dataset import Ref, ReferSplit, Sentence
from refer.entries import (
    Entry,
    identifier,
    optional,
    parse_each,
    require_unique,
    required,
    unexpected,
)
from refer.refer import ReferFiles, parse_instances, read_object, split_names
from refer.splits import DATASETS, UNNAMED_SPLIT_BY, checked

__all__ = ["UNNAMED_SPLIT", "custom_name", "load_custom", "resolve_split"]

UNNAMED_SPLIT = "all"
"""The split of a COCO file that names none."""

EXPRESSION_KEYS = ("sentences", "expressions", "caption")


def custom_name(path: Path) -> str:
    """Name a custom dataset as its folder or file, but never as a published dataset.

    >>> custom_name(Path("data/birds.json"))
    'birds'
    >>> custom_name(Path("data/refcoco"))
    'custom-refcoco'
    """
    absolute = path.resolve()
    name = absolute.name if absolute.is_dir() else absolute.stem
    return f"custom-{name}" if name in DATASETS else name


def resolve_split(path: Path, split: str | None, split_by: str | None) -> tuple[str, str]:
    """Find the split and the split_by that are meant where one or both are not given.

    Args:
        path: a folder in REFER form, or a JSON file in COCO form.
        split: taken as it is; None: the only one in the file, which is read for it.
        split_by: of a folder; None: the only one there is.  A COCO file has none.

    Raises:
        FileNotFoundError: there is nothing at the path, or a file of the folder is missing.
        DataError: there are several to choose from, which the message lists; or the file cannot be
            read.
    """
    if path.is_dir():
        refs_path, split_by = _find_refs(path, split_by)
        if split is None:
            split = _only(split_names(refs_path), refs_path)
        return split, split_by
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a dataset among {', '.join(DATASETS)}, or the path of a folder in REFER "
            f"form or of a JSON file in COCO form, got {path}, where there is nothing; "
            "check the name or path."
        )
    if split_by not in (None, UNNAMED_SPLIT_BY):
        raise DataError(
            f"Expected no split_by for the file {path}, got {split_by!r}; leave it out: "
            "only folders in REFER form have one."
        )
    if split is None:
        split = _only(_refs_by_split(read_object(path), path), path)
    return split, UNNAMED_SPLIT_BY


def load_custom(path: Path, split: str | None = None, split_by: str | None = None) -> ReferSplit:
    """Load one split of a custom dataset.

    Images are looked for in ``images/`` in the folder, or beside the file, and then in the folder
    itself, or beside the file. Nobody knows how many refs there should be, so none are expected.

    Args:
        path: a folder with ``instances.json`` and ``refs(<split_by>).p`` or ``.json``; or a JSON
            file with images and annotations, of which those that are referred to have
            ``sentences``, ``expressions`` or a ``caption``.
        split: matched by equality; None: the only one there is.
        split_by: of a folder; None: the only one there is.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: as ``resolve_split``; the split is not there; or a file is damaged or unsafe, or
            something in it is malformed or missing.
    """
    split, split_by = resolve_split(path, split, split_by)
    name, folder = custom_name(path), path if path.is_dir() else path.parent
    image_roots = (folder / "images", folder)
    if path.is_dir():
        refs_path, _ = _find_refs(path, split_by)
        files = ReferFiles(path / "instances.json", refs_path)
        loaded = files.parse(split, name, split_by, image_roots)
        return checked(loaded, refs_path, check_counts=False)
    content = read_object(path)
    by_split = _refs_by_split(content, path)
    if split not in by_split:
        raise DataError(
            f"Expected a split of {path}, one of {', '.join(by_split)}, got {split!r}; "
            "choose one that is there."
        )
    refs = tuple(by_split[split])
    images, annotations = parse_instances(content, refs, path)
    loaded = ReferSplit(
        dataset=name,
        split=split,
        split_by=split_by,
        refs=refs,
        images=images,
        annotations=annotations,
        image_roots=image_roots,
        sha256_by_file={path.name: file_sha256(path)},
    )
    return checked(loaded, path, check_counts=False)


def _find_refs(folder: Path, split_by: str | None) -> tuple[Path, str]:
    """Find the refs file of a folder, a pickle before JSON, and its split_by."""
    files = {
        path.name.removeprefix("refs(").removesuffix(f"){suffix}"): path
        for suffix in (".json", ".p")
        for path in sorted(folder.glob(f"refs(*){suffix}"))
    }
    if not files or not (folder / "instances.json").is_file():
        raise FileNotFoundError(
            f"Expected instances.json and refs(<split_by>).p or .json in the folder {folder}, "
            f"got no {'instances.json' if files else 'refs file'}; "
            "see refer/README.md for the forms of a custom dataset."
        )
    if split_by is None and len(files) == 1:
        split_by = next(iter(files))
    if split_by is None or split_by not in files:
        raise DataError(
            f"Expected split_by of {folder} to be one of {', '.join(sorted(files))}, "
            f"got {'none' if split_by is None else repr(split_by)}; choose with --split_by."
        )
    return files[split_by], split_by


def _only(names: Iterable[str], path: Path) -> str:
    known = list(names)
    if len(known) != 1:
        raise DataError(
            f"Expected a split of {path}, one of {', '.join(known) or 'none'}, got none; "
            "choose with --split."
        )
    return known[0]


def _refs_by_split(content: Entry, path: Path) -> dict[str, list[Ref]]:
    """Collect the refs of every split of a COCO file, in file order."""
    split_of_image = dict(
        parse_each(
            content.get("images"),
            lambda entry: (required(entry, "id", int), optional(entry, "split", str)),
            f"the images in {path}",
        )
    )
    found = parse_each(
        content.get("annotations"), _parse_ref_with_split, f"the annotations in {path}"
    )
    if not found:
        raise DataError(
            f"Expected annotations with sentences, expressions or a caption in {path}, got none; "
            "see refer/README.md for the forms of a custom dataset."
        )
    pairs = [(ref, split or split_of_image.get(ref.image_id)) for ref, split in found]
    if all(split is None for _, split in pairs):
        return {UNNAMED_SPLIT: [ref for ref, _ in pairs]}
    by_split: dict[str, list[Ref]] = {}
    for ref, split in pairs:
        if split is None:
            raise DataError(
                f"Expected a split of every annotation that is referred to in {path}, or of its "
                f"image, got none of annotation {ref.ref_id}; add it, or leave out all splits."
            )
        by_split.setdefault(split, []).append(ref)
    return by_split


def _parse_ref_with_split(entry: Entry) -> tuple[Ref, str | None] | None:
    """Parse an annotation that is referred to; None for one that is not."""
    keys = [key for key in EXPRESSION_KEYS if entry.get(key) is not None]
    if not keys:
        return None
    if len(keys) > 1:
        raise unexpected(f"one of {', '.join(EXPRESSION_KEYS)}", keys)
    (key,) = keys
    given = [required(entry, key, str)] if key == "caption" else required(entry, key, list)
    sentences = tuple(_parse_sentence(one, place, key) for place, one in enumerate(given))
    ann_id = identifier(entry, "id")
    require_unique((one.sent_id for one in sentences), f"sent_id of annotation {ann_id}")
    ref = Ref(
        ref_id=ann_id,
        ann_ids=(ann_id,),
        image_id=required(entry, "image_id", int),
        sentences=sentences,
    )
    return ref, optional(entry, "split", str)


def _parse_sentence(given: object, place: int, key: str) -> Sentence:
    if isinstance(given, dict) and key == "sentences":
        sent_id = required(given, "sent_id", int) if "sent_id" in given else place
        sentence = Sentence(sent_id, required(given, "raw", str), optional(given, "kind", str))
    elif isinstance(given, str):
        sentence = Sentence(place, given)
    else:
        raise unexpected(f"{key} in words", given)
    if not sentence.raw.strip():
        raise unexpected(f"{key} in words", sentence.raw)
    return sentence
