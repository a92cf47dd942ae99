"""``checksums.json``: what came of files that nobody publishes a whole checksum of."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from hybridgl.downloads.disk import alone, write_whole
from hybridgl.errors import HybridGLError

__all__ = ["CHECKSUMS", "Arrival", "read_arrivals", "record_arrival", "sha256_of"]

CHECKSUMS = "checksums.json"
"""Name of the file, in the folder of the files that it tells of."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file that came.

    Attributes:
        sha256: in hexadecimal.
        bytes: its size.
        url: where it came from.
        date: when, in ISO 8601.
    """

    sha256: str
    bytes: int
    url: str
    date: str


def read_arrivals(folder: Path) -> dict[str, Arrival]:
    """What a folder's ``checksums.json`` tells, by file name; nothing where there is none.

    Raises:
        HybridGLError: it is something else.
    """
    path = folder / CHECKSUMS
    try:
        entries = json.loads(path.read_bytes())
        return {name: Arrival(**entry) for name, entry in entries.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise HybridGLError(
            f"Expected the checksums of downloaded files in {path}, cannot read them "
            f"({type(error).__name__}: {error}). Delete or fix it."
        ) from error


def record_arrival(path: Path, arrival: Arrival, option: str) -> None:
    """Tell of a file in its folder's ``checksums.json``; warn where another came before.

    Args:
        path: the file; need not be there yet.
        arrival: what came.
        option: of the command, which names another folder, for messages.

    Raises:
        HybridGLError: ``checksums.json`` is something else, or cannot be written.
    """
    with alone(path.with_name(CHECKSUMS), option, lambda: None):
        arrivals = read_arrivals(path.parent)
        before = arrivals.get(path.name)
        if before and before.sha256 != arrival.sha256:
            _logger.warning(
                "%s is not what it was on %s: its sha256 was %s, and is %s now. Results with the "
                "one may differ from those with the other.",
                arrival.url,
                before.date,
                before.sha256,
                arrival.sha256,
            )
        arrivals[path.name] = arrival
        entries = {name: asdict(arrivals[name]) for name in sorted(arrivals)}
        content = f"{json.dumps(entries, indent=2)}\n".encode()
        write_whole(path.with_name(CHECKSUMS), content, option)


def sha256_of(path: Path) -> str:
    """Sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
