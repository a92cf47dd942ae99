"""Datasets and the store, as ``hybridgl doctor`` shows them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from hybridgl.doctor import Check, Places, Status, existing_parent
from refer.dataset import ReferSplit
from refer.errors import DataError
from refer.faults import image_faults
from refer.phrasecut import load_phrasecut
from refer.reader import load_refer_splits
from refer.splits import SPLITS, expected_counts
from utils.store import Store

__all__ = ["data_checks"]

_GB = 10**9
_DATA_BYTES = 20 * _GB
"""COCO train2014's archive and what is unpacked from it; PhraseCut takes about as much."""


def data_checks(places: Places) -> Iterator[Check]:
    """Every split of every dataset, the disk they are on, and the store."""
    for dataset in SPLITS:
        yield from _dataset(places, dataset)
    folder = existing_parent(places.data_root)
    free = shutil.disk_usage(folder).free
    yield Check(
        "data",
        "free disk",
        Status.OK if free >= _DATA_BYTES else Status.MISSING,
        f"{free / _GB:.1f} GB for {places.data_root}",
        f"{_DATA_BYTES / _GB:.0f} GB for the images of COCO, their archive included",
        "" if free >= _DATA_BYTES else "give --refer_data_root a folder on a larger disk",
    )
    yield from _store(places)


@dataclass(frozen=True, slots=True)
class _Source:
    """How a dataset is got.

    Attributes:
        annotations: command for its annotations.
        images: command for its images.
    """

    annotations: str
    images: str


def _source(places: Places, dataset: str) -> _Source:
    if dataset == "shapes":
        command = f"python save_attn_gem.py --refer_data_root {places.data_root}"
        return _Source(command, command)
    images = "phrasecut-images" if dataset == "phrasecut" else "coco-train2014"
    root = f"--data_root {places.data_root}"
    return _Source(f"hybridgl download {dataset} {root}", f"hybridgl download {images} {root}")


def _dataset(places: Places, dataset: str) -> Iterator[Check]:
    source = _source(places, dataset)
    for split_by, splits in SPLITS[dataset].items():
        label = dataset if len(SPLITS[dataset]) == 1 else f"{dataset} ({split_by})"
        try:
            loaded = _load(places, dataset, split_by)
        except FileNotFoundError as error:
            usual = split_by == next(iter(SPLITS[dataset]))
            status = Status.MISSING if usual and dataset != "shapes" else Status.OPTIONAL
            reason = str(error).partition(";")[2].partition(". ")[0].strip() or "no files"
            yield Check("data", label, status, reason, mend=source.annotations)
            continue
        except (DataError, OSError) as error:
            found = " ".join(str(error).split())
            yield Check("data", label, Status.WRONG, found, mend=source.annotations)
            continue
        for split in splits:
            yield from _split(f"{label} {split}", loaded[split], split_by, source)


def _load(places: Places, dataset: str, split_by: str) -> dict[str, ReferSplit | DataError]:
    """Every split that the dataset is said to have, or why it cannot be read."""
    if dataset != "phrasecut":
        return load_refer_splits(places.data_root, dataset, split_by)
    loaded: dict[str, ReferSplit | DataError] = {}
    missing: FileNotFoundError | None = None
    for split in SPLITS[dataset][split_by]:
        try:
            loaded[split] = load_phrasecut(places.data_root, split, check_counts=False)
        except FileNotFoundError as error:
            missing = error
            loaded[split] = DataError(f"no refer_{split}.json")
        except DataError as error:
            loaded[split] = error
    if missing and not any(isinstance(one, ReferSplit) for one in loaded.values()):
        raise missing
    return loaded


def _split(
    name: str, split: ReferSplit | DataError, split_by: str, source: _Source
) -> Iterator[Check]:
    if isinstance(split, DataError):
        reason = " ".join(str(split).split())
        yield Check("data", name, Status.WRONG, reason, mend=source.annotations)
        return
    expected = expected_counts(split.dataset, split.split, split_by)
    found = (len(split.refs), len(split.images), split.num_sentences)
    wanted = (expected.refs, expected.images, expected.sentences) if expected else (None,) * 3
    units = ("refs", "images", "sentences")
    off = [
        f"{want} {unit}"
        for got, want, unit in zip(found, wanted, units, strict=True)
        if want not in (None, got)
    ]
    yield Check(
        "data",
        name,
        Status.WRONG if off else Status.OK,
        ", ".join(f"{count} {unit}" for count, unit in zip(found, units, strict=True)),
        ", ".join(off),
        source.annotations if off else "",
    )
    doubts = {
        "refs without mask": len(split.refs_without_mask),
        "refs without sentences": len(split.refs_without_sentences),
    }
    for what, count in doubts.items():
        if count:
            yield Check("data", name, Status.WRONG, f"{count} {what}", "0", source.annotations)
    yield _images(name, split, source)


def _images(name: str, split: ReferSplit, source: _Source) -> Check:
    faults = image_faults(split)
    counts = {
        "missing": len(faults.missing),
        "damaged": len(faults.damaged),
        "of another size than annotated": len(faults.other_size),
    }
    bad = {what: count for what, count in counts.items() if count}
    if not bad:
        return Check("data", f"{name} images", Status.OK, f"{len(split.images)} in place")
    first = next(iter((*faults.missing, *faults.damaged, *faults.other_size)))
    wrong = bool(faults.damaged or faults.other_size)
    return Check(
        "data",
        f"{name} images",
        Status.WRONG if wrong else Status.MISSING,
        ", ".join(f"{count} {what}" for what, count in bad.items())
        + f" of {len(split.images)}, first: {split.image_path(first)}",
        mend=source.images,
    )


def _store(places: Places) -> Iterator[Check]:
    if not places.store.is_dir():
        yield Check("store", str(places.store), Status.OPTIONAL, "no results yet")
        return
    store = Store(places.store)
    for folder in sorted(path for path in places.store.iterdir() if path.is_dir()):
        entries = sorted(folder.glob("*/*.safetensors"))
        damaged = store.damaged_among(entries)
        size = sum(path.stat().st_size for path in entries)
        yield Check(
            "store",
            folder.name,
            Status.WRONG if damaged else Status.OK,
            f"{len(entries)} entries, {size / 10**6:.1f} MB"
            + (f"; {len(damaged)} damaged, first: {damaged[0]}" if damaged else ""),
            mend="the next run makes them again" if damaged else "",
        )
