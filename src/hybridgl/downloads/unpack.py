"""The wanted files of a zip archive, each whole or not at all, and never outside their folder."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from hybridgl.downloads.disk import alone, require_space, writing
from hybridgl.errors import HybridGLError

__all__ = ["unpack"]

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
"""What damaged archives end in, which may be damaged anywhere."""


def unpack(
    archive: Path,
    folder: Path,
    is_wanted: Callable[[str], bool],
    *,
    option: str,
    report: Callable[[str], None],
) -> set[str]:
    """Put the wanted files of an archive into a folder, without the folders that they have in it.

    Files that are there already with the right size and CRC are left as they are. As only the last
    part of a file's name in the archive is used, nothing can get out of the folder.

    Args:
        archive: a zip file.
        folder: where they go; made where it is missing.
        is_wanted: tells by the last part of a name.
        option: of the command, which names another folder, for messages.
        report: takes lines for people.

    Returns:
        Names of the wanted files that the archive has.

    Raises:
        HybridGLError: the archive is damaged, holds two different files of one name, or the disk
            refuses.
    """
    with alone(archive, option, lambda: report(f"waiting for another process at {archive}")):
        with _reading(archive):
            opened = zipfile.ZipFile(archive)
        with opened:
            members = _wanted_members(archive, opened.infolist(), is_wanted)
            with writing(folder, option):
                folder.mkdir(parents=True, exist_ok=True)
            lacking = [m for name, m in members.items() if not _has_size(folder / name, m)]
            needed = sum(member.file_size for member in lacking)
            require_space(folder / archive.name, option, needed)
            num_written = 0
            for name, member in tqdm(
                members.items(), desc=archive.name, unit="file", disable=None, leave=False
            ):
                if not _is_there(folder / name, member):
                    _write(archive, opened, member, folder / name, option)
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
        raise HybridGLError(
            f"Expected a whole zip file at {archive}, cannot read it ({reason}). Delete it and run "
            f"the same command again, which fetches it anew."
        ) from error


def _wanted_members(
    archive: Path, entries: Iterable[zipfile.ZipInfo], is_wanted: Callable[[str], bool]
) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/")).name
        if entry.is_dir() or name in ("", "..") or not is_wanted(name):
            continue
        other = members.setdefault(name, entry)
        if (other.file_size, other.CRC) != (entry.file_size, entry.CRC):
            raise HybridGLError(
                f"Expected one {name} in {archive}, found {other.filename} and {entry.filename}, "
                f"which differ. Unpack the right one by hand."
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


def _write(
    archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, option: str
) -> None:
    # Unpacking is exclusive, so the name is too; a killed process's file is written over.
    partial = path.with_name(f".{path.name}.partial")
    with _reading(archive):
        source = opened.open(member)
    try:
        with source, writing(path, option), partial.open("wb") as stream:
            while content := _read(archive, source):
                stream.write(content)
        with writing(path, option):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(archive: Path, source: IO[bytes]) -> bytes:
    with _reading(archive):
        return source.read(_CHUNK_BYTES)
