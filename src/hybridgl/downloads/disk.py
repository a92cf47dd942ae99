"""Writing what was downloaded: one process at a time, whole files only, and plain errors."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hybridgl.errors import HybridGLError

if sys.platform != "win32":
    import fcntl

__all__ = ["alone", "flush_folder", "require_space", "size_text", "write_whole", "writing"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def alone(path: Path, option: str, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Let one process at a time work on a file; the others wait for it.

    The lock is the system's, on ``NAME.lock`` beside the file. It ends with the process that holds
    it, however that ends, so a lock file that a killed process left behind holds nobody up. File
    systems that know no locks, as some of clusters, go without.

    Args:
        path: the file to work on; need not be there.
        option: of the command, which names another folder.
        on_wait: called before waiting.

    Yields:
        Whether another process had it first.
    """
    lock = path.with_name(f"{path.name}.lock")
    waited = False
    while True:
        with writing(lock, option):
            stream = lock.open("ab")
        with stream:
            waited = _lock(stream, on_wait) or waited
            if not _is_at(stream, lock):
                continue  # who had it before has removed it, and others lock a newer file
            try:
                yield waited
            finally:
                lock.unlink(missing_ok=True)
            return


@contextmanager
def writing(path: Path, option: str, needed: int | None = None) -> Iterator[None]:
    """Turn what the disk refuses into an error that says what to do.

    Args:
        path: what is written.
        option: of the command, which names another folder.
        needed: bytes still to be written, if known.

    Raises:
        HybridGLError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise HybridGLError(
            f"Cannot write {path}: {error.strerror or error}{_space(path, error, needed)}. Free "
            f"space, check permissions or give another folder with {option} DIR; the same command "
            f"goes on from here."
        ) from error


def require_space(path: Path, option: str, needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        path: a file in a folder that is there.
        option: of the command, which names another folder.
        needed: bytes to be written.

    Raises:
        HybridGLError: less is free.
    """
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise HybridGLError(
            f"Expected {size_text(needed)} of free space in {path.parent} for {path.name}, found "
            f"{size_text(free)}. Free space or give another folder with {option} DIR; the same "
            f"command goes on from here."
        )


def write_whole(path: Path, content: bytes, option: str) -> None:
    """Write a file so that its name holds the old content or the new one, never a part.

    Args:
        path: the file; one process at a time may write it.
        content: all of it.
        option: of the command, which names another folder.

    Raises:
        HybridGLError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path, option), partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make a rename in a folder outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def size_text(num_bytes: int) -> str:
    """A size for people, in powers of 1000.

    Example:
        >>> size_text(999), size_text(2_564_550_879)
        ('999 bytes', '2.6 GB')
    """
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    size, unit = num_bytes / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}"


def _space(path: Path, error: OSError, needed: int | None) -> str:
    if error.errno not in _FULL:
        return ""
    free = size_text(shutil.disk_usage(path.parent).free)
    wanted = "" if needed is None else f"{size_text(needed)} more are needed, "
    return f" ({wanted}{free} are free)"


def _lock(stream: IO[bytes], on_wait: Callable[[], None]) -> bool:
    """Lock an open file; returns whether that meant waiting."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(stream, fcntl.LOCK_EX)
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return False


def _is_at(stream: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(stream.fileno()), found)
