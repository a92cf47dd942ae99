"""Fetch datasets: annotations and the images that they name, each file whole or not at all.

The original host of RefCOCO's annotations is gone; the addresses are of the archived copies that
others use. Of PhraseCut's files no lasting address is known. No sha256 of the data is published.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO

from hybridgl import download as library
from hybridgl.download import DownloadError, RemoteFile, disk_errors, folder_lock, require_space
from hybridgl.errors import DataError
from hybridgl.program import progress
from refer.splits import SPLITS

__all__ = ["ARCHIVES", "ITEMS", "add_download_arguments", "download", "unpack"]

_REFERIT = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
_ARCHIVE = "https://web.archive.org/web"
_GENOME = "https://cs.stanford.edu/people/rak248/VG_100K_2"
_SIZES = "image_data_split.json"
_REFS = re.compile(r"refs\(\w+\)\.p")
_CHUNK_BYTES = 1 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # a password is asked for, or an unknown method of compression
)
"""What reading a damaged archive may end in."""


def _fetch_annotations(
    dataset: str, arguments: argparse.Namespace, report: Callable[[str], None]
) -> None:
    folder, archive = arguments.data_root / dataset, ARCHIVES[dataset][0]
    path = arguments.data_root / "downloads" / archive.name
    if not path.is_file() and _are_annotations(path.name for path in folder.glob("*")):
        report(f"already there: {folder}")
    elif not _are_annotations(_fetch_archive(archive, folder, _is_annotation, arguments, report)):
        raise DataError(
            f"Expected instances.json and refs(*).p in {path}, got an archive without them; delete "
            f"it and name another source with --mirror URL_PREFIX."
        )


def _fetch_phrasecut(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    folder = arguments.data_root / "phrasecut"
    try:
        for name in (*(f"refer_{split}.json" for split in SPLITS["phrasecut"]["-"]), _SIZES):
            file = RemoteFile(name)
            library.fetch(file, folder, arguments.mirror, option="--data_root", report=report)
    except DownloadError as error:
        raise DataError(
            f"{error} No lasting address of it is known, so put refer_SPLIT.json and {_SIZES}, "
            f"which the download script of github.com/ChenyunWu/PhraseCutDataset fetches, into "
            f"{folder}, or name a copy with --mirror URL_PREFIX."
        ) from error


def _fetch_coco_images(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    root, names = arguments.data_root, set()
    paths = [root / dataset / "instances.json" for dataset in _COCO_DATASETS]
    for path in filter(Path.is_file, paths):
        with _parsing(path, "images, each with a file_name,"):
            images = json.loads(path.read_bytes())["images"]
            names |= {Path(image["file_name"]).name for image in images}
    if not names:
        raise DataError(
            f"Expected instances.json of {', '.join(_COCO_DATASETS)} or several of them below "
            f"{root}, which say what images are needed, got none; fetch annotations first: "
            f"`python -m refer download refcoco`."
        )
    folder = root / "images/mscoco/images/train2014"
    _fetch_images(ARCHIVES["coco-train2014"], folder, names, arguments, report)


def _fetch_genome_images(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    folder = arguments.data_root / "phrasecut"
    if not (folder / _SIZES).is_file():
        raise DataError(
            f"Expected {folder / _SIZES}, which says what images are needed, got no such file; "
            f"fetch the annotations first: `python -m refer download phrasecut`."
        )
    with _parsing(folder / _SIZES, "a list of images, each with an image_id,"):
        images = json.loads((folder / _SIZES).read_bytes())
        names = {f"{int(image['image_id'])}.jpg" for image in images}
    _fetch_images(ARCHIVES["phrasecut-images"], folder / "images", names, arguments, report)


def _fetch_images(
    archives: Iterable[RemoteFile],
    folder: Path,
    names: set[str],
    arguments: argparse.Namespace,
    report: Callable[[str], None],
) -> None:
    had_all = not _missing(folder, names)
    for archive in archives:
        if not had_all or (arguments.data_root / "downloads" / archive.name).is_file():
            _fetch_archive(archive, folder, names.__contains__, arguments, report)
    missing = _missing(folder, names)
    if missing:
        raise DataError(
            f"Expected {len(names)} images in {folder}, got archives without {len(missing)} of "
            f"them, the first {missing[0]}; check that the annotations are of this dataset."
        )
    report(f"all {len(names)} images that the annotations name are in {folder}")


def _fetch_archive(
    archive: RemoteFile,
    folder: Path,
    is_wanted: Callable[[str], bool],
    arguments: argparse.Namespace,
    report: Callable[[str], None],
) -> set[str]:
    """Fetch an archive and unpack what is wanted of it; return the names of that."""
    downloads = arguments.data_root / "downloads"
    library.fetch(archive, downloads, arguments.mirror, option="--data_root", report=report)
    names = unpack(downloads / archive.name, folder, is_wanted, report)
    report(f"{downloads / archive.name} is not needed any more; delete it at will")
    return names


_COCO_DATASETS = ("refcoco", "refcoco+", "refcocog")
ARCHIVES: Mapping[str, tuple[RemoteFile, ...]] = {
    **{
        name: (RemoteFile(f"{name}.zip", f"{_ARCHIVE}/{date}/{_REFERIT}/{name}.zip"),)
        for name, date in zip(
            _COCO_DATASETS, ("20220413011718", "20220413011656", "20220413012904"), strict=True
        )
    },
    "coco-train2014": (
        RemoteFile("train2014.zip", "http://images.cocodataset.org/zips/train2014.zip"),
    ),
    "phrasecut-images": tuple(
        RemoteFile(name, f"{_GENOME}/{name}") for name in ("images.zip", "images2.zip")
    ),
}
"""Item -> archives."""


def _item(name: str, about: str, fetch: Callable[..., None]) -> library.Item:
    urls = ", ".join(file.url for file in ARCHIVES.get(name, ()))
    return library.Item(f"{about}{urls and ', from '}{urls}", fetch)


ITEMS: Mapping[str, library.Item] = {
    **{
        name: _item(name, "annotations", partial(_fetch_annotations, name))
        for name in _COCO_DATASETS
    },
    "phrasecut": _item("phrasecut", "annotations, from a mirror or by hand", _fetch_phrasecut),
    "coco-train2014": _item(
        "coco-train2014", "images that the annotations of RefCOCO(+/g) name", _fetch_coco_images
    ),
    "phrasecut-images": _item(
        "phrasecut-images", "images that the annotations of phrasecut name", _fetch_genome_images
    ),
    **library.ITEMS,
}
"""In the order of fetching: annotations say which images are needed."""


def add_download_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``download`` reads."""
    library.add_download_arguments(parser, ITEMS)
    parser.add_argument(
        "--data_root",
        "--refer_data_root",
        type=Path,
        default=Path("refer/data"),
        metavar="DIR",
        help="where datasets go (default: %(default)s)",
    )


def download(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    """Fetch the data and weights that the arguments name, as ``hybridgl.download.download`` does.

    Raises:
        DataError: no source has a file, an archive is damaged, or annotations are missing.
    """
    library.download(arguments, report, ITEMS, fix="check the spelling")


def _missing(folder: Path, names: set[str]) -> list[str]:
    return sorted(name for name in names if not (folder / name).is_file())


def _is_annotation(name: str) -> bool:
    return name == "instances.json" or _REFS.fullmatch(name) is not None


def _are_annotations(names: Iterable[str]) -> bool:
    names = set(names)
    return "instances.json" in names and any(map(_REFS.fullmatch, names))


@contextmanager
def _parsing(path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(
            f"Expected {expected} in {path}, got {type(error).__name__}: {error}; fetch the file "
            f"again."
        ) from error


def unpack(
    archive: Path,
    folder: Path,
    is_wanted: Callable[[str], bool],
    report: Callable[[str], None],
) -> set[str]:
    """Put the wanted files of an archive into a folder, without the folders that they have in it.

    Files that are there already with the right size and CRC are left as they are.

    Args:
        archive: a zip file.
        folder: where they go; made where it is missing.
        is_wanted: decides by the last part of a name.
        report: takes lines for people.

    Returns:
        Names of the wanted files that the archive has.

    Raises:
        DataError: the archive is damaged, has names that point out of a folder, or holds two
            different files of one name.
        OSError: the disk refuses.
    """
    with disk_errors(folder, "--data_root"), folder_lock(archive.parent, report):
        with _reading(archive):
            opened = zipfile.ZipFile(archive)
        with opened:
            members = _wanted_members(archive, opened.infolist(), is_wanted)
            folder.mkdir(parents=True, exist_ok=True)
            missing = [m for name, m in members.items() if not _has_size(folder / name, m)]
            require_space(folder, sum(member.file_size for member in missing))
            num_written = 0
            for name, member in progress(members.items(), archive.name, "file", leave=False):
                if not _is_there(folder / name, member):
                    _write(archive, opened, member, folder / name)
                    num_written += 1
    there = len(members) - num_written
    report(f"files unpacked to {folder}: {num_written}, already there: {there}")
    return set(members)


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"Expected a whole zip file at {archive}, got one that cannot be read ({reason}); "
            f"delete it and run the same command again, which fetches it again."
        ) from error


def _wanted_members(
    archive: Path, entries: Iterable[zipfile.ZipInfo], is_wanted: Callable[[str], bool]
) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        path = PureWindowsPath(entry.filename)
        if path.anchor or ".." in path.parts:
            raise DataError(
                f"Expected names inside the archive {archive}, got {entry.filename!r}, which "
                f"points out of it; delete it and name another source with --mirror URL_PREFIX."
            )
        if entry.is_dir() or not path.name or not is_wanted(path.name):
            continue
        other = members.setdefault(path.name, entry)
        if (other.file_size, other.CRC) != (entry.file_size, entry.CRC):
            raise DataError(
                f"Expected one {path.name} in {archive}, got {other.filename} and "
                f"{entry.filename}, which differ; unpack the right one by hand."
            )
    return members


def _has_size(path: Path, member: zipfile.ZipInfo) -> bool:
    return path.is_file() and path.stat().st_size == member.file_size


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    if not _has_size(path, member):
        return False
    crc = 0
    with path.open("rb") as stream:
        while content := stream.read(_CHUNK_BYTES):
            crc = zlib.crc32(content, crc)
    return crc == member.CRC


def _write(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    # Unpacking is exclusive, so the name is too; a killed process's file is written over.
    partial = path.with_name(f".{path.name}.partial")
    with _reading(archive):
        source = opened.open(member)
    try:
        with source, partial.open("wb") as stream:
            while content := _read(archive, source):
                stream.write(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(archive: Path, source: IO[bytes]) -> bytes:
    with _reading(archive):
        return source.read(_CHUNK_BYTES)
