"""Custom datasets, by their path: a folder in REFER form, or one JSON file in COCO form.

README.md of this folder shows a minimal example of both.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hybridgl.errors import DataError
from hybridgl.files import file_sha256
from refer.dataset import Id, Ref, ReferSplit, Sentence
from refer.entries import (
    Entry,
    EntryReader,
    first_few,
    optional,
    require_unique,
    required,
    unexpected,
)
from refer.image_files import find_images, with_file_sizes
from refer.refer import ReferFiles, parse_instances, parse_sentence, read_object, split_names
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


def resolve_split(
    path: Path, split: str | None, split_by: str | None, *, strict: bool = False
) -> tuple[str, str]:
    """Find the split and the split_by that are meant where one or both are not given.

    Args:
        path: a folder in REFER form, or a JSON file in COCO form.
        split: taken as it is; None: the only one in the file, which is read for it.
        split_by: of a folder; None: the only one there is.  A COCO file has none.
        strict: refuse broken entries, if the file is read.

    Raises:
        FileNotFoundError: there is nothing at the path, or a file of the folder is missing.
        DataError: there are several to choose from, which the message lists; the file cannot be
            read; or an entry is broken, and ``strict``.
    """
    if path.is_dir():
        refs_path, split_by = _find_refs(path, split_by)
        if split is None:
            split = _only(split_names(refs_path, strict=strict), refs_path)
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
        split = _only(_refs_by_split(read_object(path), EntryReader(path, strict=strict)), path)
    return split, UNNAMED_SPLIT_BY


def load_custom(
    path: Path,
    split: str | None = None,
    split_by: str | None = None,
    *,
    image_roots: Sequence[Path] = (),
    strict: bool = False,
) -> ReferSplit:
    """Load one split of a custom dataset.

    Images are looked for in ``image_roots``, in ``images/`` in the folder, or beside the file, and
    then in the folder itself, or beside the file. Nobody knows how many refs there should be, so
    none are expected.

    Args:
        path: a folder with ``instances.json`` and ``refs(<split_by>).p`` or ``.json``; or a JSON
            file with images and annotations, of which those that are referred to have
            ``sentences``, ``expressions`` or a ``caption``.
        split: matched by equality; None: the only one there is.
        split_by: of a folder; None: the only one there is.
        image_roots: folders in which images are looked for first.
        strict: refuse broken entries, which are otherwise left out and named among the warnings.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: as ``resolve_split``; the split is not there; a file is damaged or unsafe;
            something that is referred to is missing; or an entry is broken, and ``strict``.
    """
    split, split_by = resolve_split(path, split, split_by, strict=strict)
    name, folder = custom_name(path), path if path.is_dir() else path.parent
    roots = (*image_roots, folder / "images", folder)
    if path.is_dir():
        refs_path, _ = _find_refs(path, split_by)
        files = ReferFiles(path / "instances.json", refs_path, strict=strict)
        loaded = files.parse(split, name, split_by, roots)
    else:
        refs_path, loaded = path, _parse_file(path, split, roots, strict=strict)
    return checked(with_file_sizes(find_images(loaded)), refs_path, check_counts=False)


def _parse_file(
    path: Path, split: str, image_roots: tuple[Path, ...], *, strict: bool
) -> ReferSplit:
    """Make the records of one split of a COCO file."""
    content, reader = read_object(path), EntryReader(path, strict=strict)
    by_split = _refs_by_split(content, reader)
    if split not in by_split:
        raise DataError(
            f"Expected a split of {path}, one of {', '.join(by_split)}, got {split!r}; "
            "choose one that is there."
        )
    refs = tuple(by_split[split])
    images, annotations = parse_instances(content, refs, reader)
    return ReferSplit(
        dataset=custom_name(path),
        split=split,
        split_by=UNNAMED_SPLIT_BY,
        refs=refs,
        images=images,
        annotations=annotations,
        image_roots=image_roots,
        sha256_by_file={path.name: file_sha256(path)},
        lenient=reader.lenient,
        warnings=(*reader.warnings(), *_shared_sentences(refs, path)),
    )


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


@dataclass(frozen=True, slots=True)
class _Referral:
    """An annotation that is referred to.

    Attributes:
        ann_id: of the annotation.
        image_id: of its image.
        split: its own; None where it has none.
        sentences: each with the annotations that it means together.
    """

    ann_id: Id
    image_id: int
    split: str | None
    sentences: tuple[tuple[Sentence, tuple[Id, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Annotations that are meant together, with what is said of them.

    Attributes:
        ann_ids: as the first sentence lists them.
        image_id: of their image.
        sentences: so far.
        said_at: annotation at which a sentence was found first, by its words.
    """

    ann_ids: tuple[Id, ...]
    image_id: int
    sentences: list[Sentence] = field(default_factory=list)
    said_at: dict[str, Id] = field(default_factory=dict)

    def add(self, sentence: Sentence, ann_id: Id) -> None:
        """Add a sentence, unless another annotation of the group has it."""
        if self.said_at.setdefault(_words(sentence), ann_id) != ann_id:
            return
        if len(self.ann_ids) > 1:  # places in the lists of several annotations are no ids
            sentence = replace(sentence, sent_id=len(self.sentences))
        self.sentences.append(sentence)

    def ref(self) -> Ref:
        """Return the finished ref, called after its annotations."""
        ref_id = self.ann_ids[0] if len(self.ann_ids) == 1 else "+".join(map(str, self.ann_ids))
        require_unique((one.sent_id for one in self.sentences), f"sent_id of annotation {ref_id}")
        return Ref(ref_id, self.ann_ids, self.image_id, tuple(self.sentences))


def _words(sentence: Sentence) -> str:
    return sentence.raw.strip().casefold()


def _refs_by_split(content: Entry, reader: EntryReader) -> dict[str, list[Ref]]:
    """Collect the refs of every split of a COCO file, in file order."""
    path = reader.path
    split_of_image = dict(
        reader.each(
            content.get("images"),
            lambda entry, index: (
                reader.whole(entry, "id"),
                _split_of(entry, f"entry {index} of the images", reader),
            ),
            "images",
        )
    )
    found = reader.each(
        content.get("annotations"),
        lambda entry, index: _parse_referral(entry, index, reader),
        "annotations",
    )
    if not found:
        raise DataError(
            "Expected annotations with sentences, expressions or a caption in "
            f"{path}, got {reader.none_of('annotations')}; "
            "see refer/README.md for the forms of a custom dataset."
        )
    pairs = [(one, one.split or split_of_image.get(one.image_id)) for one in found]
    if all(split is None for _, split in pairs):
        return {UNNAMED_SPLIT: _refs_of(found, path)}
    by_split: dict[str, list[_Referral]] = {}
    for one, split in pairs:
        if split is None:
            raise DataError(
                f"Expected a split of every annotation that is referred to in {path}, or of its "
                f"image, got none of annotation {one.ann_id}; add it, or leave out all splits."
            )
        by_split.setdefault(split, []).append(one)
    return {split: _refs_of(referrals, path) for split, referrals in by_split.items()}


def _split_of(entry: Entry, place: str, reader: EntryReader) -> str | None:
    """Return the split of an image or annotation; None where it says none."""
    try:
        return optional(entry, "split", str)
    except DataError as error:
        reader.report("splits that are no text are left out of", place, error)
        return None


def _refs_of(referrals: Sequence[_Referral], path: Path) -> list[Ref]:
    """Make a ref of each annotation, or group of annotations, that sentences mean."""
    require_unique((one.ann_id for one in referrals), f"annotation id in {path}")
    groups: dict[frozenset[Id], _Group] = {}
    for one in referrals:
        for sentence, ann_ids in one.sentences:
            group = groups.setdefault(frozenset(ann_ids), _Group(ann_ids, one.image_id))
            group.add(sentence, one.ann_id)
        if not one.sentences:
            groups.setdefault(frozenset([one.ann_id]), _Group((one.ann_id,), one.image_id))
    refs = [group.ref() for group in groups.values()]
    require_unique((ref.ref_id for ref in refs), f"name of annotations in {path}")
    return refs


def _parse_referral(entry: Entry, index: int, reader: EntryReader) -> _Referral | None:
    """Parse an annotation that is referred to; None for one that is not."""
    keys = [key for key in EXPRESSION_KEYS if entry.get(key) is not None]
    if not keys:
        return None
    place = f"entry {index} of the annotations"
    ann_id, image_id = reader.identifier(entry, "id"), reader.whole(entry, "image_id")
    try:
        if len(keys) > 1:
            raise unexpected(f"one of {', '.join(EXPRESSION_KEYS)}", keys)
        (key,) = keys
        given = [required(entry, key, str)] if key == "caption" else required(entry, key, list)
    except DataError as error:
        reader.report("annotations lose what is said of them, which is broken, in", place, error)
        given = []
    sentences = reader.each(
        [{"raw": one} if isinstance(one, str) else one for one in given],
        lambda one, number: _parse_sentence(one, number, place, ann_id, reader),
        "sentences",
        of=f" of {place}",
    )
    return _Referral(ann_id, image_id, _split_of(entry, place, reader), tuple(sentences))


def _parse_sentence(
    entry: Entry, index: int, place: str, ann_id: Id, reader: EntryReader
) -> tuple[Sentence, tuple[Id, ...]]:
    """Parse a sentence of an annotation, and the annotations that it means together."""
    ann_ids: tuple[Id, ...] = (ann_id,)
    if entry.get("annotation_ids") is not None:
        listed = required(entry, "annotation_ids", list)
        ids = (reader.identifier({"annotation_ids": one}, "annotation_ids") for one in listed)
        ann_ids = tuple(dict.fromkeys(ids))
        if ann_id not in ann_ids:
            raise unexpected(f"annotation_ids with {ann_id}, which has the sentence", listed)
    sent_id = reader.whole(entry, "sent_id") if "sent_id" in entry else index
    named = f"entry {index} of the sentences of {place}"
    return parse_sentence(entry, sent_id, named, reader), ann_ids


def _shared_sentences(refs: Sequence[Ref], path: Path) -> tuple[str, ...]:
    """Write a warning of sentences that several annotations of an image have, if any."""
    ref_ids: dict[tuple[int, str], dict[Id, None]] = {}
    for ref in refs:
        for sentence in ref.sentences:
            ref_ids.setdefault((ref.image_id, _words(sentence)), {})[ref.ref_id] = None
    shared = [
        f"{reprlib.repr(words)} ({', '.join(map(str, ids))})"
        for (_, words), ids in ref_ids.items()
        if len(ids) > 1
    ]
    if not shared:
        return ()
    return (
        f"{len(shared)} sentences in {path} are said of several annotations of an image, and are "
        f"a sample of each: {first_few(shared)}. Where one means all of them together, say so by "
        "its annotation_ids.",
    )
