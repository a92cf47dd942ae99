"""Datasets and the store, as ``hybridgl doctor`` shows them; nothing is written."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridgl.doctor import (
    Check,
    Places,
    Status,
    checks_of_place,
    existing_parent,
    move_away,
    survived,
)
from hybridgl.errors import DataError
from hybridgl.files import file_sha256
from hybridgl.store import Store
from refer.dataset import ReferSplit
from refer.image_errors import find_image_errors
from refer.phrasecut import load_phrasecut
from refer.refer import load_refer_splits
from refer.segmentation import MaskRule
from refer.splits import SPLITS, default_split_by, expected_counts

__all__ = ["data_checks"]

_GB = 10**9
_DATA_BYTES = 20 * _GB
"""COCO train2014's archive and what is unpacked from it; PhraseCut takes about as much."""

_FILES = {"phrasecut": "refer_SPLIT.json, image_data_split.json and images"}
"""What is expected of a dataset that is not in REFER form."""

_MANY = 20
"""Damaged images beyond which their folder is moved away, rather than each of them removed."""


def data_checks(places: Places) -> Iterator[Check]:
    """Every split of every dataset, the disk they are on, and the store."""
    blocked = checks_of_place("data", places.data_root)
    yield from blocked
    needs_room = False
    for dataset in () if blocked else SPLITS:
        for check in survived(_dataset(places, dataset), "data", dataset):
            needs_room |= check.status is Status.MISSING
            yield check
    folder = existing_parent(places.data_root)
    free = shutil.disk_usage(folder).free
    enough = free >= _DATA_BYTES or not needs_room
    yield Check(
        "data",
        "free disk",
        Status.OK if enough else Status.MISSING,
        f"{free / _GB:.1f} GB for {places.data_root}",
        f"{_DATA_BYTES / _GB:.0f} GB for the images of COCO, their archive included"
        if needs_room
        else "",
        ""
        if enough
        else "hybridgl download refcoco refcoco+ refcocog coco-train2014 --data_root LARGER_DISK",
    )
    yield from survived(_store(places), "store", str(places.store))


@dataclass(frozen=True, slots=True)
class _Source:
    """How a dataset is got.

    Attributes:
        places: that are looked at.
        dataset: its name.
    """

    places: Places
    dataset: str

    def annotations(self, told: str = "") -> str:
        """The command for annotations that are missing or wrong.

        Args:
            told: what a reader said; of PhraseCut's files, the one that it names goes aside.
        """
        root = self.places.data_root
        if self.dataset == "shapes":
            return self._world()
        command = f"hybridgl download {self.dataset} --data_root {shlex.quote(str(root))}"
        if self.dataset == "phrasecut":
            named = [path for path in root.glob("**/*.json") if str(path) in told]
            return " && ".join([*map(move_away, named[:1]), command])
        folder = root / self.dataset
        blocked = folder.is_file() or any(path.is_dir() for path in folder.glob("*"))
        # What is there counts as downloaded, unless its archive tells that it is another file.
        archived = (root / "downloads" / f"{self.dataset}.zip").is_file()
        if blocked or ((folder / "instances.json").exists() and not archived):
            return f"{move_away(folder)} && {command}"
        return command

    def images(self, wrong: Sequence[Path] = (), folder: Path | None = None) -> str:
        """The command for images that are missing or wrong.

        Args:
            wrong: files that have to go before.
            folder: of the images; moved away where too many are wrong.
        """
        if self.dataset == "shapes":
            return self._world()
        item = "phrasecut-images" if self.dataset == "phrasecut" else "coco-train2014"
        command = f"hybridgl download {item} --data_root {shlex.quote(str(self.places.data_root))}"
        if folder is not None and len(wrong) > _MANY:
            return f"{move_away(folder)} && {command}"
        return _first_removed(wrong, command)

    def _world(self) -> str:
        root = self.places.data_root
        folder = root / "shapes"
        if _manifest(root) is not None:
            # Written again with its own seed and sizes.
            return f"python save_attn_gem.py --refer_data_root {shlex.quote(str(root))} --limit 1"
        command = f"python -m refer.shapes.world --root {shlex.quote(str(root))}"
        return f"{move_away(folder)} && {command}" if folder.exists() else command


def _first_removed(paths: Sequence[Path], command: str) -> str:
    if not paths:
        return command
    return f"{shlex.join(['rm', '-r', *map(str, paths)])} && {command}"


def _dataset(places: Places, dataset: str) -> Iterator[Check]:
    source = _Source(places, dataset)
    if dataset == "shapes" and (places.data_root / "shapes").exists():
        world = _world(source)
        yield world
        if world.status is Status.WRONG:
            return
    for split_by, splits in SPLITS[dataset].items():
        label = dataset if len(SPLITS[dataset]) == 1 else f"{dataset} ({split_by})"
        try:
            loaded = _load(places, dataset, split_by)
        except FileNotFoundError as error:
            usual = split_by == default_split_by(dataset)
            status = Status.MISSING if usual and dataset != "shapes" else Status.OPTIONAL
            expected = _FILES.get(dataset, f"instances.json, refs({split_by}).p and images")
            yield _missing(label, status, error, expected, source.annotations())
            continue
        except DataError as error:
            yield Check("data", label, Status.WRONG, _line(error), fix=source.annotations())
            continue
        for split in splits:
            name = f"{label} {split}"
            yield from survived(_split(name, loaded[split], split, source), "data", name)


def _load(places: Places, dataset: str, split_by: str) -> dict[str, ReferSplit | Exception]:
    """Every split that the dataset is said to have, or why it cannot be read."""
    if dataset != "phrasecut":
        return {**load_refer_splits(places.data_root, dataset, split_by)}
    loaded: dict[str, ReferSplit | Exception] = {}
    for split in SPLITS[dataset][split_by]:
        try:
            loaded[split] = load_phrasecut(places.data_root, split, check_counts=False)
        except (FileNotFoundError, DataError) as error:
            loaded[split] = error
    missing = [one for one in loaded.values() if isinstance(one, FileNotFoundError)]
    if len(missing) == len(loaded):
        raise missing[0]
    return loaded


def _missing(name: str, status: Status, error: Exception, expected: str, fix: str) -> Check:
    """A line from a reader's "Expected ...; there is ... . See refer/README.md ..."."""
    told = _line(error).partition(". See refer/README.md")[0]
    return Check("data", name, status, told.rpartition("; there is ")[2], expected, fix)


def _world(source: _Source) -> Check:
    """Whether the files of the shapes world are those that were written."""
    root = source.places.data_root
    manifest = _manifest(root)
    if manifest is None:
        found, expected = f"no manifest in {root / 'shapes' / 'world.json'}", "one that can be read"
        return Check("data", "shapes files", Status.WRONG, found, expected, source.annotations())
    files: dict[str, str] = manifest["files"]
    others = [
        name
        for name, digest in files.items()
        if not (root / name).is_file() or file_sha256(root / name) != digest
    ]
    if not others:
        return Check("data", "shapes files", Status.OK, f"{len(files)} as they were written")
    return Check(
        "data",
        "shapes files",
        Status.WRONG,
        f"{len(others)} missing or changed, first: {root / others[0]}",
        f"{len(files)} as they were written",
        source.annotations(),
    )


def _manifest(root: Path) -> dict[str, Any] | None:
    """What the shapes world was written as; None where that cannot be read."""
    try:
        manifest = json.loads((root / "shapes" / "world.json").read_text(encoding="utf-8"))
        return {"files": dict(manifest["files"]), "sizes": dict(manifest["sizes"])}
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _split(
    name: str, split: ReferSplit | Exception, split_name: str, source: _Source
) -> Iterator[Check]:
    manifest = _manifest(source.places.data_root) if source.dataset == "shapes" else None
    if manifest and manifest["sizes"].get(split_name) == 0:
        yield Check("data", name, Status.OPTIONAL, "no images, as the world was written")
        return
    fix = source.annotations()
    if isinstance(split, FileNotFoundError):
        yield _missing(name, Status.MISSING, split, _FILES["phrasecut"], fix)
        return
    if isinstance(split, Exception):
        told = _line(split)
        yield Check("data", name, Status.WRONG, told, fix=source.annotations(told))
        return
    yield _counts(name, split, fix)
    broken = _broken_masks(split)
    for what, number, detail in (
        ("without mask", len(split.refs_without_mask), ""),
        ("without sentences", len(split.refs_without_sentences), ""),
        ("with a broken mask", len(broken), f", first: {broken[0]}" if broken else ""),
    ):
        if number:
            found = f"{number} of {len(split.refs)} refs {what}{detail}"
            yield Check("data", f"{name} refs {what}", Status.WRONG, found, "none", fix)
    yield _images(f"{name} images", split, source)


def _counts(name: str, split: ReferSplit, fix: str) -> Check:
    expected = expected_counts(split.dataset, split.split, split.split_by)
    found = {"refs": len(split.refs), "images": len(split.images)}
    found["sentences"] = split.num_sentences
    wanted = asdict(expected) if expected else {}
    off = [unit for unit in found if wanted.get(unit) not in (None, found[unit])]
    told = ", ".join(f"{wanted[unit]} {unit}" for unit in off)
    # Most sentence counts are widely quoted, but nobody vouches for them.
    doubtful = off == ["sentences"] and not wanted["sentences_checked"]
    return Check(
        "data",
        name,
        Status.WRONG if off and not doubtful else Status.OK,
        ", ".join(f"{count} {unit}" for unit, count in found.items()),
        f"{told}, a number that is quoted, but unchecked" if doubtful else told,
        fix if off and not doubtful else "",
    )


def _broken_masks(split: ReferSplit) -> list[str]:
    """What is wrong with the masks of refs, for each ref that has a broken one."""
    broken = []
    for ref in split.refs:
        try:
            for ann_id in ref.ann_ids:
                split.check_mask(ann_id)
        except DataError as error:
            broken.append(_line(error))
    return broken


def _images(name: str, split: ReferSplit, source: _Source) -> Check:
    image_errors = find_image_errors(split)
    # PhraseCut's images are published at other sizes, and resized to the annotated ones.
    resized = len(image_errors.wrong_size) if split.mask_rule is MaskRule.PHRASECUT else 0
    other_size = () if resized else tuple(image_errors.wrong_size)
    counts = {
        "missing": len(image_errors.missing),
        "damaged": len(image_errors.corrupt),
        "of another size than annotated": len(other_size),
    }
    bad = {what: count for what, count in counts.items() if count}
    if not bad:
        found = f"{len(split.images)} in place" + (f", {resized} to be resized" if resized else "")
        return Check("data", name, Status.OK, found)
    first = next(iter((*image_errors.missing, *image_errors.corrupt, *other_size)))
    wrong = [split.image_path(image_id) for image_id in (*image_errors.corrupt, *other_size)]
    return Check(
        "data",
        name,
        Status.WRONG if wrong else Status.MISSING,
        f"{', '.join(f'{count} {what}' for what, count in bad.items())}, "
        f"first: {split.image_path(first)}",
        f"{len(split.images)} whole ones, of the annotated size",
        source.images(wrong, split.image_roots[0]),
    )


def _store(places: Places) -> Iterator[Check]:
    blocked = checks_of_place("store", places.store)
    yield from blocked
    if blocked:
        return
    if not places.store.is_dir():
        yield Check("store", str(places.store), Status.OPTIONAL, "no results yet")
        return
    for folder in sorted(path for path in places.store.iterdir() if path.is_dir()):
        # glob passes over what may not be read.
        blocked = checks_of_place("store", folder)
        for shard in () if blocked else sorted(folder.iterdir()):
            blocked += checks_of_place("store", shard) if shard.is_dir() else []
        if blocked:
            yield blocked[0]
            continue
        entries = sorted(folder.glob("*/*.safetensors"))
        damaged = Store.damaged_among(entries)
        size = sum(path.stat().st_size for path in entries)
        yield Check(
            "store",
            folder.name,
            Status.WRONG if damaged else Status.OK,
            f"{len(entries)} entries, {size / 10**6:.1f} MB"
            + (f"; {len(damaged)} damaged, first: {damaged[0]}" if damaged else ""),
            "whole entries; the next run makes anew what is removed" if damaged else "",
            shlex.join(["rm", "-r", *map(str, damaged)]) if damaged else "",
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
