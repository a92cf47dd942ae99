"""Files: hashes, writes that are whole or not at all, folders that can be used."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import time
from functools import lru_cache
from pathlib import Path

__all__ = [
    "atomic_write_bytes",
    "check_folder",
    "file_sha256",
    "is_file",
    "nearest_existing",
    "sweep_partials",
]

_PARTIAL = re.compile(r"\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.partial")
_ABANDONED_AFTER_SECONDS = 24 * 60 * 60

_HASHES_KEPT = 2**17
"""As many as the largest split has images; together some 40 MB."""


def is_file(path: Path) -> bool:
    """Tell whether there is a file; a name that no file can have is of none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or one that cannot be encoded
        return False


def file_sha256(path: Path) -> str:
    """Hash a file, once a process while the file does not change.

    Returns:
        Sha256 in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=_HASHES_KEPT)
def _sha256(path: Path, _size: int, _modified_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def nearest_existing(path: Path) -> Path:
    """Find the path itself, or the nearest one above it that exists."""
    absolute = path.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.exists())


def check_folder(path: Path, option: str) -> None:
    """Refuse a path at which no folder is or can be made, or none that can be written.

    Args:
        path: the folder; may be missing.
        option: the command-line option that chooses it, such as "--output".

    Raises:
        OSError: the path or one above it is a file, or cannot be written.
    """
    nearest = nearest_existing(path)
    if not nearest.is_dir():
        raise NotADirectoryError(
            f"Expected a folder for {option}, got the file {nearest}; give another {option} DIR."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(
            f"Expected a folder for {option} that can be written, got {nearest}, which cannot; "
            f"give another {option} DIR."
        )


def atomic_write_bytes(path: Path, content: bytes, *, option: str = "--output") -> None:
    """Write a file so that its name holds the old content or the new one, never a part.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed.
    Folders that are missing are made. Whatever stops it, an exception leaves no temporary file; a
    kill may, and ``sweep_partials`` removes that one.

    Args:
        path: where the file goes.
        content: all of it.
        option: the programs' option that chooses this folder, for the message.

    Raises:
        OSError: the folder cannot be written, the disk is full, or a folder's place is taken by a
            file. The message names the path, the reason and the fix; ``errno`` is that of the
            cause.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial"
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        explained = OSError(
            f"Cannot write {path}: {error}; choose another folder with {option} DIR, "
            "or free space and check permissions."
        )
        explained.errno = error.errno
        raise explained from error


def sweep_partials(folder: Path) -> None:
    """Remove the temporary files that killed runs left in a folder (not below it).

    A file goes when the process that wrote it ran on this machine and is gone, or when it is a day
    old: no write lasts that long. A live writer's file stays, be it of this machine or, on a shared
    disk, of another. A folder that is missing or cannot be written is left as it is.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as items:
        for item in items:
            match = _PARTIAL.fullmatch(item.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):
                age_seconds = time.time() - item.stat(follow_symlinks=False).st_mtime
                gone = match["host"] == _host() and not _is_alive(int(match["pid"]))
                if gone or age_seconds > _ABANDONED_AFTER_SECONDS:
                    Path(item.path).unlink()


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make a rename in the folder outlast a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # how some network file systems say that they cannot
            raise
    finally:
        os.close(descriptor)
