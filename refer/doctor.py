"""Look at datasets and the store: what is missing or wrong, and the fix of each; write nothing."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridgl.doctor import Check, disk_check, folder_checks, guarded, move_away, show
from hybridgl.errors import DataError
from hybridgl.files import file_sha256
from hybridgl.store import Store, entries_folder, old_folders
from refer.dataset import ReferSplit
from refer.image_errors import find_image_errors
from refer.phrasecut import load_phrasecut
from refer.refer import load_refer_splits
from refer.segmentation import MaskRule
from refer.splits import SPLITS, default_split_by, expected_counts

__all__ = ["add_doctor_arguments", "data_checks", "doctor", "store_checks"]

_DATA_GB = 20
"""COCO train2014's archive and what is unpacked from it; PhraseCut takes about as much."""

_MANY = 20
"""Damaged images beyond which their folder is moved away, rather than each of them removed."""


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``doctor`` reads."""
    parser.add_argument(
        "--data_root",
        "--refer_data_root",
        type=Path,
        default=Path("refer/data"),
        metavar="DIR",
        help="where the datasets lie (default: %(default)s)",
    )
    parser.add_argument(
        "--store",
        type=Path,
        default=Path("store"),
        metavar="DIR",
        help="where the results of stages are kept (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def doctor(arguments: argparse.Namespace, report: Callable[[str], None]) -> bool:
    """Look at every dataset and the store, and report it.

    Args:
        arguments: as of ``add_doctor_arguments``.
        report: takes the text.

    Returns:
        Whether nothing is wrong; what is only missing is not wrong.
    """
    store = arguments.store
    checks = [
        *data_checks(arguments.data_root),
        *guarded(store_checks(store), "store", str(store), store),
    ]
    note = "the shapes world needs nothing; packages, device and weights: hybridgl doctor"
    return show(checks, report, as_json=arguments.json, note=note)


def data_checks(root: Path) -> Iterator[Check]:
    """Look at every split of every dataset, and at the disk they are on."""
    blocked = folder_checks("data", root)
    yield from blocked
    is_needed = False
    for dataset in () if blocked else SPLITS:
        checks = _world(root) if dataset == "shapes" else _dataset(root, dataset)
        for check in guarded(checks, "data", dataset, root):
            is_needed |= check.status == "missing"
            yield check
    fix = _download("refcoco refcoco+ refcocog coco-train2014", Path("LARGER_DISK"))
    yield disk_check("data", root, _DATA_GB, fix, is_needed=is_needed)


def store_checks(store: Path) -> Iterator[Check]:
    """Look at every entry of a store, by kind."""
    blocked = folder_checks("store", store)
    yield from blocked
    if blocked:
        return
    if not store.is_dir():
        yield Check("store", str(store), "ok", "no results yet")
        return
    old = old_folders(store)
    if old:
        found = f"{', '.join(path.name for path in old)} of an earlier version, which nothing reads"
        fix = shlex.join(["rm", "-r", *map(str, old)])
        yield Check("store", "earlier versions", "wrong", found, "none", fix)
    entries = entries_folder(store)
    for kind in (
        sorted(path for path in entries.iterdir() if path.is_dir()) if entries.is_dir() else ()
    ):
        # By iterdir, as glob passes over what may not be read.
        folders = [path for path in kind.iterdir() if path.is_dir()]
        yield _entries(kind.name, [path for folder in folders for path in folder.iterdir()])


def _entries(kind: str, paths: Sequence[Path]) -> Check:
    entries = sorted(path for path in paths if path.suffix == ".safetensors")
    damaged = Store.damaged_among(entries)
    found = f"{len(entries)} entries, {sum(path.stat().st_size for path in entries) / 10**6:.1f} MB"
    if not damaged:
        return Check("store", kind, "ok", found)
    found += f"; {len(damaged)} damaged, first: {damaged[0]}"
    expected = "whole entries; the next run makes again what is removed"
    return Check(
        "store", kind, "wrong", found, expected, shlex.join(["rm", "-r", *map(str, damaged)])
    )


def _world(root: Path) -> Iterator[Check]:
    """Look at the shapes world, which programs write where it is missing."""
    folder = root / "shapes"
    if not folder.exists():
        yield Check("data", "shapes", "ok", "not written yet; the programs write it")
        return
    command = ["python", "-m", "refer.shapes.world", "--root", str(root)]
    try:
        manifest: dict[str, Any] = json.loads((folder / "world.json").read_bytes())
        files, sizes = dict(manifest["files"]), dict(manifest["sizes"])
        command.append(f"--seed={int(manifest['seed'])}")
    except (OSError, ValueError, TypeError, LookupError):
        found, fix = f"no manifest in {folder / 'world.json'}", move_away(folder)
        yield Check("data", "shapes", "wrong", found, "one", f"{fix} && {shlex.join(command)}")
        return
    wrong = [
        root / name
        for name, sha256 in files.items()
        if not (root / name).is_file() or file_sha256(root / name) != sha256
    ]
    if wrong:
        found = f"{len(wrong)} missing or changed, first: {wrong[0]}"
        fix = shlex.join([*command, *(f"--{split}={size}" for split, size in sizes.items())])
        yield Check("data", "shapes", "wrong", found, f"{len(files)} as they were written", fix)
        return
    yield from _dataset(root, "shapes", [split for split, size in sizes.items() if size])


def _dataset(root: Path, dataset: str, only: Sequence[str] | None = None) -> Iterator[Check]:
    """Look at the splits of a dataset, or only some; those by other authors may be missing."""
    for split_by, splits in SPLITS[dataset].items():
        label = dataset if len(SPLITS[dataset]) == 1 else f"{dataset} ({split_by})"
        try:
            loaded = _load(root, dataset, split_by)
        except FileNotFoundError as error:
            if split_by == default_split_by(dataset):
                yield _missing(label, error, root, dataset)
            continue
        except DataError as error:
            yield Check("data", label, "wrong", _line(error), fix=_annotations_fix(root, dataset))
            continue
        for name in only or splits:
            title = f"{label} {name}"
            yield from guarded(_split(title, loaded[name], root, dataset), "data", title, root)


def _load(root: Path, dataset: str, split_by: str) -> dict[str, ReferSplit | Exception]:
    """Return every split that a dataset is said to have, or why it cannot be read."""
    if dataset != "phrasecut":
        return {**load_refer_splits(root, dataset, split_by)}
    loaded: dict[str, ReferSplit | Exception] = {}
    for split in SPLITS[dataset][split_by]:
        try:
            loaded[split] = load_phrasecut(root, split, check_counts=False, strict=True)
        except (FileNotFoundError, DataError) as error:
            loaded[split] = error
    missing = [one for one in loaded.values() if isinstance(one, FileNotFoundError)]
    if len(missing) == len(loaded):
        raise missing[0]
    return loaded


def _split(name: str, split: ReferSplit | Exception, root: Path, dataset: str) -> Iterator[Check]:
    if isinstance(split, FileNotFoundError):
        yield _missing(name, split, root, dataset)
        return
    if isinstance(split, Exception):
        line = _line(split)
        yield Check("data", name, "wrong", line, fix=_annotations_fix(root, dataset, line))
        return
    fix = _annotations_fix(root, dataset)
    yield _counts(name, split, fix)
    broken = _broken_masks(split)
    for what, number, detail in (
        ("without mask", len(split.refs_without_mask), ""),
        ("without sentences", len(split.refs_without_sentences), ""),
        ("with a broken mask", len(broken), f", first: {broken[0]}" if broken else ""),
    ):
        if number:
            found = f"{number} of {len(split.refs)} refs {what}{detail}"
            yield Check("data", f"{name} refs {what}", "wrong", found, "none", fix)
    yield _images(f"{name} images", split, root)


def _counts(name: str, split: ReferSplit, fix: str) -> Check:
    counts = {"refs": len(split.refs), "images": len(split.images)}
    counts["sentences"] = split.num_sentences
    expected = expected_counts(split.dataset, split.split, split.split_by)
    wanted = asdict(expected) if expected else {}
    off = [unit for unit in counts if wanted.get(unit) not in (None, counts[unit])]
    found = ", ".join(f"{count} {unit}" for unit, count in counts.items())
    should = ", ".join(f"{wanted[unit]} {unit}" for unit in off)
    # Most sentence counts are widely quoted, but nobody vouches for them.
    if off == ["sentences"] and not wanted["sentences_checked"]:
        return Check("data", name, "ok", found, f"{should}, a number that is quoted, but unchecked")
    return Check("data", name, "wrong" if off else "ok", found, should, fix if off else "")


def _broken_masks(split: ReferSplit) -> list[str]:
    """Return what is wrong with the masks of refs, for each ref that has a broken one."""
    broken = []
    for ref in split.refs:
        try:
            for ann_id in ref.ann_ids:
                split.check_mask(ann_id)
        except DataError as error:
            broken.append(_line(error))
    return broken


def _images(name: str, split: ReferSplit, root: Path) -> Check:
    errors = find_image_errors(split)
    # PhraseCut's images are published at other sizes, and resized to the annotated ones.
    resized = len(errors.wrong_size) if split.mask_rule is MaskRule.PHRASECUT else 0
    by_kind = {
        "missing": errors.missing,
        "corrupt": errors.corrupt,
        "of another size than annotated": () if resized else tuple(errors.wrong_size),
    }
    bad = [image_id for image_ids in by_kind.values() for image_id in image_ids]
    if not bad:
        found = f"{len(split.images)} in place" + (f", {resized} to be resized" if resized else "")
        return Check("data", name, "ok", found)
    numbers = ", ".join(f"{len(ids)} {kind}" for kind, ids in by_kind.items() if ids)
    wrong = [split.image_path(image_id) for image_id in bad[len(errors.missing) :]]
    fix = _download("phrasecut-images" if split.dataset == "phrasecut" else "coco-train2014", root)
    if len(wrong) > _MANY:
        fix = f"{move_away(split.image_roots[0])} && {fix}"
    elif wrong:
        fix = f"{shlex.join(['rm', '-r', *map(str, wrong)])} && {fix}"
    return Check(
        "data",
        name,
        "wrong" if wrong else "missing",
        f"{numbers}, first: {split.image_path(bad[0])}",
        f"{len(split.images)} whole ones, of the annotated size",
        fix,
    )


def _annotations_fix(root: Path, dataset: str, line: str = "") -> str:
    """Return the command that fetches annotations again; what is there is moved away.

    Args:
        root: the data root.
        dataset: its name.
        line: what a reader said; of PhraseCut's files, the one that it names goes aside.
    """
    aside = [root / dataset] if (root / dataset).exists() else []
    if dataset == "phrasecut":
        aside = [path for path in root.glob("**/*.json") if str(path) in line][:1]
    return " && ".join([*map(move_away, aside), _download(dataset, root)])


def _download(items: str, root: Path) -> str:
    return f"python -m refer download {items} --data_root {shlex.quote(str(root))}"


def _missing(name: str, error: Exception, root: Path, dataset: str) -> Check:
    """Make a check of a reader's message about files that it did not find."""
    found = _line(error).partition("; see refer/README.md")[0]
    return Check("data", name, "missing", found, fix=_annotations_fix(root, dataset))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
