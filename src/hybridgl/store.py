"""Artefacts on disk, found by the content they were made from.

A stage's result is kept under a key that hashes everything it depends on: the image's bytes, the
weights, the settings of the stage and of those before it. So a repeated or resumed run finds it
whatever the order of the work, a changed setting never meets an old result, and stores merge by
copying one over the other. Results take hours, runs are killed and disks fill, so a file appears
under its final name only when it is whole, and every byte of it is checked when it is read: a
damaged entry is reported and made again, never used.

An entry is one safetensors file, ``root/v<version>/kind/key[:2]/key.safetensors``. Its only
metadata string is the sha256 of all other bytes of the file, in hex, followed by JSON that names
the format, kind, key and the caller's own metadata.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from hybridgl.files import atomic_write_bytes, sweep_partials
from hybridgl.timing import timer

__all__ = [
    "Content",
    "Entry",
    "Store",
    "cached",
    "entries_folder",
    "entry_key",
    "old_folders",
    "require_json",
]

FORMAT_VERSION = 2
"""Names the folder of all entries, and is written into each; the place of the checksum must not
change with it."""

_RESULTS_VERSION = 3
"""Part of every key: raised when the code gives other results than before."""

_STAGE_VERSIONS = {"gem": 4, "scores": 4}
"""The same, of stages whose code alone has changed since."""

_KIND = re.compile(r"[a-z][a-z0-9_-]*")
_KEY = re.compile(r"[0-9a-f]{64}")

# A safetensors file: the header's length, little-endian, then the header as JSON, then the arrays.
_HEADER_LENGTH_BYTES = 8
_OPENING = b'{"__metadata__":{"entry":"'
_UNSIGNED = b"0" * 64
_CHECKSUM = slice(
    _HEADER_LENGTH_BYTES + len(_OPENING), _HEADER_LENGTH_BYTES + len(_OPENING) + len(_UNSIGNED)
)

_MOST_UNWRITTEN_BYTES = 64 * 2**20
"""Memory of entries that may wait to be written, besides the last one."""

_logger = logging.getLogger(__name__)

Content = tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]
"""Arrays by name, and JSON values by name."""


def cached(
    store: Store | None, kind: str, inputs: Mapping[str, Any], compute: Callable[[], Content]
) -> Entry:
    """Load a stage's result, or compute and keep it.

    Args:
        store: keeps the results; None computes every time.
        kind: what sort of artefact, such as "features".
        inputs: everything that the result depends on, as JSON values.
        compute: makes arrays and JSON values.
    """
    if store is None:
        return Entry(*map(dict, compute()))
    key = entry_key(kind, inputs)
    entry = store.load(kind, key)
    if entry is None:
        entry = Entry(*map(dict, compute()))
        store.save(kind, key, entry.arrays, entry.meta)
    return entry


def entries_folder(root: Path) -> Path:
    """Return the folder of a store that holds a folder for every kind of entry."""
    return root / f"v{FORMAT_VERSION}"


def old_folders(root: Path) -> list[Path]:
    """Return the folders of a store whose entries an earlier version wrote."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [
        path
        for path in folders
        if path != entries_folder(root)
        and (re.fullmatch(r"v\d+", path.name) or any(path.glob("??/*.safetensors")))
    ]


def entry_key(kind: str, inputs: Mapping[str, Any]) -> str:
    """Return the sha256, in hex, of all that an artefact depends on.

    Args:
        kind: what sort of artefact.
        inputs: as for ``cached``.
    """
    version = _STAGE_VERSIONS.get(kind, _RESULTS_VERSION)
    described = {"kind": kind, "version": version, **inputs}
    return hashlib.sha256(_canonical_json(described).encode()).hexdigest()


def require_json(value: object, where: str) -> None:
    """Check that JSON gives a value back as it was, but for tuples, which become lists.

    Args:
        value: any nesting of dict (with str keys), list, tuple, str, bool, int, finite float and
            None.
        where: what the value is called in the message, such as "meta".

    Raises:
        ValueError: the first place that JSON would change or refuse (NaN and infinity among them).

    Example:
        >>> require_json({"loss": [1.0, float("nan")]}, "summary")
        Traceback (most recent call last):
        ValueError: Expected a finite number at summary.loss[1], got nan; leave it out.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"Expected a finite number at {where}, got {value}; leave it out.")
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(
                    f"Expected text as every name in {where}, got {name!r}; convert it."
                )
            require_json(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            require_json(item, f"{where}[{index}]")
    elif not (value is None or isinstance(value, str | int)):
        raise ValueError(
            f"Expected dict, list, tuple, str, bool, int, float or None at {where}, "
            f"got {type(value).__name__}; convert it first."
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store gives back for a key.

    Attributes:
        arrays: by name, in the order of the names; writable, each with the shape and dtype it was
            saved with.
        meta: what was saved beside them; tuples have become lists.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class Store:
    """Entries of several kinds under one folder, which is made when the first entry is saved.

    Several processes may use one folder at a time. Opening it sweeps the temporary files of killed
    runs.

    Args:
        root: the folder.
        overwrite: load only what this very object saved, so that everything else is made again.
        keep_tokens: ask for large entries too, from which other settings are made in a fraction of
            the time.

    Attributes:
        root: the folder.
        keep_tokens: as given.
        hits: per kind, how many entries were found when they were first asked for.
        misses: per kind, how many were not, damaged ones and those saved unasked included: what
            the caller had to make.
        damaged: per kind, how many entries were found damaged.

    Raises:
        NotADirectoryError: the root is a file.

    Example::

        key = hashlib.sha256(image_bytes + b"grid 8").hexdigest()
        entry = store.load("proposals", key)
        if entry is None:
            store.save("proposals", key, {"boxes_xywh": boxes_xywh}, {"hw": [480, 640]})
    """

    def __init__(self, root: Path, *, overwrite: bool = False, keep_tokens: bool = False) -> None:
        if root.exists() and not root.is_dir():
            raise NotADirectoryError(
                f"Expected a folder for the store, got the file {root}; choose another with "
                "--store DIR."
            )
        self.root = root
        self.keep_tokens = keep_tokens
        self._entries = entries_folder(root)
        self._overwrite = overwrite
        self._saved: set[Path] = set()
        self._counted: set[Path] = set()
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()
        self.damaged: Counter[str] = Counter()
        self._reported: set[Path] = set()
        self._counting = threading.Lock()
        self._writer: ThreadPoolExecutor | None = None
        self._unwritten: dict[Path, Future[None]] = {}
        self._unwritten_bytes: dict[Path, int] = {}
        for folder in self._entries.glob("*/*"):
            sweep_partials(folder)

    def path(self, kind: str, key: str) -> Path:
        """Return where the entry of a kind and key is, or would be.

        Raises:
            ValueError: the kind is not a word in lower case, or the key is no sha256 in hex.
        """
        if _KIND.fullmatch(kind) is None:
            raise ValueError(
                "Expected a kind of lower-case letters, digits, - and _ that starts with a letter, "
                f"got {kind!r}; rename it."
            )
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"Expected a key of 64 hex digits, got {key!r}; use a sha256.")
        return self._entries / kind / key[:2] / f"{key}.safetensors"

    def warnings(self) -> list[str]:
        """Name, in one line, the entries of earlier versions, which nothing reads any more."""
        old = old_folders(self.root)
        if not old:
            return []
        names = ", ".join(path.name for path in old)
        return [
            f"Entries of an earlier version lie in {self.root} ({names}) and are not read any "
            f"more; remove them with `{shlex.join(['rm', '-r', *map(str, old)])}`."
        ]

    def keys(self, kind: str) -> list[str]:
        """Return the keys of all entries of a kind, sorted, without reading them."""
        return sorted(path.stem for path in (self._entries / kind).glob("??/*.safetensors"))

    def has(self, kind: str, key: str) -> bool:
        """Tell whether an entry is there, without reading it: it may prove damaged."""
        path = self.path(kind, key)
        if self._overwrite:
            return path in self._saved or path in self._unwritten
        return path in self._unwritten or path.is_file()

    @timer("store")
    def load(self, kind: str, key: str) -> Entry | None:
        """Read an entry and check every byte of it.

        Args:
            kind: what sort of artefact, such as "proposals".
            key: sha256 in hex of what the entry is made from.

        Returns:
            The entry, or None where the caller has to make it: there is none, it is of another
            ``FORMAT_VERSION``, or it is damaged (unreadable, cut short, changed, or the entry of
            another key), which is logged once per entry.
        """
        path = self.path(kind, key)
        unwritten = self._unwritten.get(path)
        if unwritten:
            unwritten.result()
        entry: Entry | None = None
        try:
            if not self._overwrite or path in self._saved:
                entry = _decode(path.read_bytes(), kind, key)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, _DamagedError) as error:
            with self._counting:
                is_new = path not in self._reported
                self._reported.add(path)
                self.damaged[kind] += is_new
            if is_new:
                _logger.warning(
                    "The store's entry %s is damaged and is made again: %s", path, error
                )
        with self._counting:
            if path not in self._counted:
                self._counted.add(path)
                (self.misses if entry is None else self.hits)[kind] += 1
        return entry

    @timer("store")
    def save(
        self, kind: str, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, object]
    ) -> None:
        """Write an entry atomically, in place of the one that may be there.

        Args:
            kind: what sort of artefact, such as "proposals".
            key: sha256 in hex of what the entry is made from.
            arrays: any number of them, of booleans, integers or floats, of any shape (axes of
                length 0 included).
            meta: a value that ``require_json`` accepts.

        Raises:
            ValueError: an array or the metadata cannot be stored.
            OSError: the disk is full or the folder cannot be written; the message names the path
                and the fix.
        """
        path = self.path(kind, key)
        content = _encode(kind, key, arrays, meta)
        with self._counting:
            if path not in self._counted:
                self._counted.add(path)
                self.misses[kind] += 1
        writer = self._writer
        if writer is None:
            self._write(path, content)
            return
        self._settle(_MOST_UNWRITTEN_BYTES)
        with self._counting:
            self._unwritten[path] = writer.submit(self._write, path, content)
            self._unwritten_bytes[path] = len(content)

    @contextlib.contextmanager
    def background_writes(self) -> Iterator[None]:
        """Let ``save`` return before its entry is on the disk; the block's end waits for all.

        An entry that could not be written is reported by a later ``save``, or by the block's end.
        Whatever ends the block, what has been saved is written before. A block inside another one
        changes nothing.
        """
        if self._writer is not None:
            yield
            return
        try:
            with ThreadPoolExecutor(1) as writer:
                self._writer = writer
                yield
                self._settle(-1)
        finally:
            self._writer = None
            self._unwritten.clear()
            self._unwritten_bytes.clear()

    def _settle(self, most_bytes: int) -> None:
        """Forget entries that are written, and wait until at most so many bytes are not."""
        for path, write in list(self._unwritten.items()):
            if write.done() or sum(self._unwritten_bytes.values()) > most_bytes:
                write.result()
                with self._counting:
                    if self._unwritten.get(path) is write:
                        del self._unwritten[path], self._unwritten_bytes[path]

    def _write(self, path: Path, content: bytes) -> None:
        atomic_write_bytes(path, content, option="--store")
        self._reported.discard(path)
        self._saved.add(path)

    @staticmethod
    def damaged_among(paths: Iterable[Path]) -> list[Path]:
        """Return the entries that cannot be trusted, of files below a store's root."""
        damaged = []
        for path in paths:
            try:
                _decode(path.read_bytes(), path.parts[-3], path.stem)
            except (OSError, _DamagedError):
                damaged.append(path)
        return damaged


class _DamagedError(Exception):
    """Why an entry cannot be trusted."""


def _encode(
    kind: str, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, object]
) -> bytes:
    described = {"format": FORMAT_VERSION, "kind": kind, "key": key, "meta": dict(meta)}
    require_json(described["meta"], "meta")
    if "__metadata__" in arrays:
        raise ValueError("Expected other array names, got '__metadata__'; rename that array.")
    # safetensors reads an array's memory as it lies, which for a view or a transpose is not the
    # order of its elements.
    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        unsigned = to_safetensors(
            in_order, metadata={"entry": _UNSIGNED.decode() + _canonical_json(described)}
        )
    except SafetensorError as error:
        raise ValueError(
            f"Expected arrays of booleans, integers or floats for {kind}, got others ({error}); "
            "convert them first."
        ) from error
    assert unsigned[_CHECKSUM] == _UNSIGNED
    return unsigned[: _CHECKSUM.start] + _checksum(unsigned) + unsigned[_CHECKSUM.stop :]


def _decode(content: bytes, kind: str, key: str) -> Entry | None:
    """Return the entry, or None where it is of another format version."""
    if content[_CHECKSUM] != _checksum(content):
        raise _DamagedError(f"checksum of its {len(content)} bytes does not match")
    header_end = _HEADER_LENGTH_BYTES + int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")
    header = json.loads(content[_HEADER_LENGTH_BYTES:header_end])
    described = json.loads(header["__metadata__"]["entry"][len(_UNSIGNED) :])
    if described["format"] != FORMAT_VERSION:
        return None
    if (described["kind"], described["key"]) != (kind, key):
        raise _DamagedError(f"it is the entry of {described['kind']} {described['key']}")
    arrays = from_safetensors(content)
    return Entry({name: arrays[name] for name in sorted(arrays)}, described["meta"])


def _checksum(content: bytes) -> bytes:
    """Return the sha256, in hex, of all bytes but those where it is kept itself."""
    view = memoryview(content)
    checksum = hashlib.sha256(view[: _CHECKSUM.start])
    checksum.update(view[_CHECKSUM.stop :])
    return checksum.hexdigest().encode()


def _canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
