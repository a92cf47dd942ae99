"""What has come of a file that is being fetched, so that another process can go on with it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from hybridgl.downloads.disk import flush_folder, require_space, write_whole, writing

__all__ = ["Origin", "Part"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where bytes came from, as their source described them.

    Attributes:
        url: the address that was asked.
        etag: names this very content.
        last_modified: date of this content.
        total: size of the whole file in bytes.
    """

    url: str
    etag: str | None
    last_modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """What If-Range takes, which is no weak ETag."""
        strong = self.etag is not None and not self.etag.startswith("W/")
        return self.etag if strong else self.last_modified

    def may_be(self, other: Origin) -> bool:
        """Whether nothing speaks against both being the same content."""
        told: list[tuple[object, object]] = [(self.total, other.total)]
        if self.url == other.url:
            told += [(self.etag, other.etag), (self.last_modified, other.last_modified)]
        return all(here == there or None in (here, there) for here, there in told)


class Part:
    """``NAME.part``, and ``NAME.part.json`` with its origin.

    Both are kept however the process ends, unless nothing came or it was forgotten.

    Args:
        target: the file that it is to become; one process at a time may have its part.
        option: of the command, which names another folder, for messages.

    Attributes:
        size: in bytes.
        origin: None where it is not known.
        is_mixed: whether some of it may be from another source or an earlier process.

    Raises:
        HybridGLError: it cannot be written; so do all methods that write.
    """

    def __init__(self, target: Path, option: str) -> None:
        self._target = target
        self._path = target.with_name(f"{target.name}.part")
        self._origin_path = target.with_name(f"{target.name}.part.json")
        self._option = option
        with writing(self._path, option):
            # At its end, and without a buffer: what is there is exactly what was counted.
            self._stream = FileIO(self._path, "a")
        self.size = os.fstat(self._stream.fileno()).st_size
        self.origin = self._read_origin()
        self.is_mixed = self.size > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()
        if not self.size:
            self._path.unlink(missing_ok=True)
            self._origin_path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Drop what came."""
        with writing(self._path, self._option):
            self._stream.truncate(0)
        self.size, self.is_mixed = 0, False

    def start(self, origin: Origin) -> None:
        """Drop what came, and begin with what an origin sends."""
        self.forget()
        self.origin = origin
        write_whole(self._origin_path, json.dumps(asdict(origin)).encode(), self._option)

    def require_space(self, total: int) -> None:
        """Refuse to go on where the disk cannot hold the rest of ``total`` bytes."""
        require_space(self._path, self._option, total - self.size)

    def append(self, content: bytes, total: int | None) -> None:
        """Add what came, of ``total`` bytes if that is known."""
        rest = memoryview(content)
        while rest:
            with writing(self._path, self._option, None if total is None else total - self.size):
                written = _write(self._stream, rest)
            self.size += written
            rest = rest[written:]

    def finish(self) -> None:
        """Give it the final name."""
        with writing(self._target, self._option):
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._path.replace(self._target)
            self._origin_path.unlink(missing_ok=True)
        flush_folder(self._target.parent)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    def _read_origin(self) -> Origin | None:
        try:
            return Origin(**json.loads(self._origin_path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


def _write(stream: FileIO, content: memoryview) -> int:
    return stream.write(content)
