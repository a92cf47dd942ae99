"""One's own data, by its path: a folder in REFER form, or one JSON file in COCO form.

README.md of this folder shows a minimal example of both.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from pathlib import Path

from hybridgl.errors import DataError
from refer.checks import checked
from refer.dataset import Ref, ReferSplit, Sentence
from refer.entries import Entry, digests, identifier, optional, parse_each, require_unique, required
from refer.refer import parse_instances, parse_refs, read_object, read_refs, splits_of
from refer.splits import DATASETS, UNNAMED_SPLIT_BY

__all__ = ["UNNAMED_SPLIT", "load_own_data", "name_of", "resolve_split"]

UNNAMED_SPLIT = "all"
"""The split of a COCO file that names none."""

EXPRESSION_KEYS = ("sentences", "expressions", "caption")


def name_of(path: Path) -> str:
    """What the data is called: as its folder or file, but never as a published dataset.

    >>> name_of(Path("data/birds.json"))
    'birds'
    >>> name_of(Path("data/refcoco"))
    'own-refcoco'
    """
    absolute = path.resolve()
    name = absolute.name if absolute.is_dir() else absolute.stem
    return f"own-{name}" if name in DATASETS else name


def resolve_split(path: Path, split: str | None, split_by: str | None) -> tuple[str, str]:
    """The split and the split_by that are meant where one or both are not given.

    Args:
        path: A folder in REFER form, or a JSON file in COCO form.
        split: Taken as it is; None: the only one in the file, which is read for it.
        split_by: Of a folder; None: the only one there is.  A COCO file has none.

    Raises:
        FileNotFoundError: There is nothing at the path, or a file of the folder is missing.
        DataError: There are several to choose from, which the message lists; or the file cannot be
            read.
    """
    if path.is_dir():
        refs_path, split_by = _refs_file(path, split_by)
        if split is None:
            split = _only(splits_of(read_refs(refs_path), refs_path), refs_path)
        return split, split_by
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a dataset among {', '.join(DATASETS)}, or the path of a folder in REFER "
            f"form or of a JSON file in COCO form; there is nothing at {path}."
        )
    if split_by not in (None, UNNAMED_SPLIT_BY):
        raise DataError(
            f"Expected no split_by for the file {path}; got {split_by!r}. "
            "Only folders in REFER form have one."
        )
    if split is None:
        split = _only(_refs_by_split(read_object(path), path), path)
    return split, UNNAMED_SPLIT_BY


def load_own_data(path: Path, split: str | None = None, split_by: str | None = None) -> ReferSplit:
    """Load one split of one's own data.

    Images are looked for in `images/` in the folder, or beside the file, and then in the folder
    itself, or beside the file. Nobody knows how many refs there should be, so none are expected.

    Args:
        path: A folder with `instances.json` and `refs(<split_by>).p` or `.json`; or a JSON file
            with images and annotations, of which those that are referred to have `sentences`,
            `expressions` or a `caption`.
        split: Matched by equality; None: the only one there is.
        split_by: Of a folder; None: the only one there is.

    Raises:
        FileNotFoundError: A file is missing.
        DataError: As `resolve_split`; the split is not there; or a file is damaged or unsafe, or
            something in it is malformed or missing.
    """
    split, split_by = resolve_split(path, split, split_by)
    if path.is_dir():
        folder, instances_path = path, path / "instances.json"
        refs_path, _ = _refs_file(path, split_by)
        files = [instances_path, refs_path]
        refs = parse_refs(read_refs(refs_path), split, refs_path)
        content = read_object(instances_path)
    else:
        folder, instances_path, refs_path, files = path.parent, path, path, [path]
        content = read_object(path)
        by_split = _refs_by_split(content, path)
        if split not in by_split:
            raise DataError(
                f"Expected a split of {path}, one of {', '.join(by_split)}; got {split!r}."
            )
        refs = tuple(by_split[split])
    images, annotations = parse_instances(content, refs, instances_path)
    loaded = ReferSplit(
        dataset=name_of(path),
        split=split,
        split_by=split_by,
        refs=refs,
        images=images,
        annotations=annotations,
        image_roots=(folder / "images", folder),
        sha256_by_file=digests(*files),
    )
    return checked(loaded, None, refs_path, check_counts=False)


def _refs_file(folder: Path, split_by: str | None) -> tuple[Path, str]:
    """The refs file of a folder, a pickle before JSON, and its split_by."""
    files = {
        path.name.removeprefix("refs(").removesuffix(f"){suffix}"): path
        for suffix in (".json", ".p")
        for path in sorted(folder.glob(f"refs(*){suffix}"))
    }
    if not files or not (folder / "instances.json").is_file():
        raise FileNotFoundError(
            f"Expected instances.json and refs(<split_by>).p or .json in the folder {folder}; "
            f"there is no {'instances.json' if files else 'refs file'}. "
            "See refer/README.md for the forms of one's own data."
        )
    if split_by is None and len(files) == 1:
        split_by = next(iter(files))
    if split_by is None or split_by not in files:
        raise DataError(
            f"Expected split_by of {folder} to be one of {', '.join(sorted(files))}; "
            f"got {'none' if split_by is None else repr(split_by)}. Choose with --split_by."
        )
    return files[split_by], split_by


def _only(names: Iterable[str], path: Path) -> str:
    known = list(names)
    if len(known) != 1:
        raise DataError(
            f"Expected a split of {path}, one of {', '.join(known) or 'none'}; got none. "
            "Choose with --split."
        )
    return known[0]


def _refs_by_split(content: Entry, path: Path) -> dict[str, list[Ref]]:
    """The refs of every split of a COCO file, in file order."""
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
            f"Expected annotations with sentences, expressions or a caption in {path}; none has "
            "any. See refer/README.md for the forms of one's own data."
        )
    pairs = [(ref, split or split_of_image.get(ref.image_id)) for ref, split in found]
    if all(split is None for _, split in pairs):
        return {UNNAMED_SPLIT: [ref for ref, _ in pairs]}
    by_split: dict[str, list[Ref]] = {}
    for ref, split in pairs:
        if split is None:
            raise DataError(
                f"Expected a split of every annotation that is referred to in {path}, or of its "
                f"image, as others have one; annotation {ref.ref_id} has none."
            )
        by_split.setdefault(split, []).append(ref)
    return by_split


def _parse_ref_with_split(entry: Entry) -> tuple[Ref, str | None] | None:
    """None for an annotation that nobody refers to."""
    keys = [key for key in EXPRESSION_KEYS if entry.get(key) is not None]
    if not keys:
        return None
    if len(keys) > 1:
        raise DataError(f"expected one of {', '.join(EXPRESSION_KEYS)}; got {' and '.join(keys)}.")
    (key,) = keys
    given = [required(entry, key, str)] if key == "caption" else required(entry, key, list)
    sentences = tuple(_parse_sentence(one, place, key) for place, one in enumerate(given))
    ann_id = identifier(entry, "id")
    require_unique((one.sent_id for one in sentences), f"sent_id of annotation {ann_id}")
    ref = Ref(
        ref_id=ann_id,
        ann_ids=(ann_id,),
        image_id=required(entry, "image_id", int),
        category_id=optional(entry, "category_id", int),
        sentences=sentences,
    )
    return ref, optional(entry, "split", str)


def _parse_sentence(given: object, place: int, key: str) -> Sentence:
    if isinstance(given, dict) and key == "sentences":
        raw = required(given, "raw", str)
        sent_id = required(given, "sent_id", int) if "sent_id" in given else place
        sent = required(given, "sent", str) if "sent" in given else raw
        sentence = Sentence(sent_id, raw, sent, optional(given, "kind", str))
    elif isinstance(given, str):
        sentence = Sentence(place, given, given)
    else:
        raise DataError(f"expected {key} in words; got {reprlib.repr(given)}.")
    if not sentence.raw.strip():
        raise DataError(f"expected {key} in words; got {sentence.raw!r}.")
    return sentence
