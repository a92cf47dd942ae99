"""Fetch published files from the first source that has them: resumed, verified, never in part.

What was received of a file lies beside its place as ``NAME.SIZE.part``, SIZE being the whole file's
(0: no source said). A later attempt or process continues it where a sha256 or that size verifies
the end. The sha256 of every file received is kept in ``sha256.json`` beside it: later downloads are
compared with it where none is published. The library knows weights; ``refer.download`` datasets.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import requests
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from hybridgl.errors import DataError, SettingError, WeightsError
from hybridgl.files import atomic_write_bytes, file_sha256
from hybridgl.program import progress
from hybridgl.weights.registry import (
    CLIP_FILES,
    PAPER,
    SAM_FILES,
    SPACY_MODEL,
    weights_folder,
)

__all__ = [
    "GROUPS",
    "ITEMS",
    "WEIGHTS",
    "DownloadError",
    "Item",
    "RemoteFile",
    "add_download_arguments",
    "disk_errors",
    "download",
    "fetch",
    "folder_lock",
    "require_space",
]

_CHUNK_BYTES = 1 << 16
_TIMEOUT_SECONDS = (15.0, 60.0)
"""For a connection, and for the next bytes of an answer."""
_RETRIES = 4
"""Of one request, and of a file in a row without any progress."""
_BACKOFF_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_OVERLOADED = (408, 425, 429, 500, 502, 503, 504)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A published file.

    Attributes:
        name: of the file, here and at mirrors.
        url: where it is published; empty where only mirrors have it.
        sha256: in hexadecimal, or its first digits, as far as published.
    """

    name: str
    url: str = ""
    sha256: str = ""


class Item(NamedTuple):
    """What the command fetches under a name.

    Attributes:
        about: what it is, or where it is published.
        fetch: called with the command's arguments and with what takes lines for people.
    """

    about: str
    fetch: Callable[[argparse.Namespace, Callable[[str], None]], None]


class DownloadError(WeightsError, DataError):
    """No source gave the right bytes of a file; the message lists each with its reason."""


class _SourceError(Exception):
    """Why a source is given up."""


class _DroppedError(Exception):
    """Why an answer is not all of what was asked for; asking again may help."""


def _fetch_weights(item: str, arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    folder = arguments.weights_folder or weights_folder()
    fetch(WEIGHTS[item], folder, arguments.mirror, option="--weights_folder", report=report)


def _install_spacy_model(_: argparse.Namespace, report: Callable[[str], None]) -> None:
    try:
        report(f"already there: {SPACY_MODEL} {version(SPACY_MODEL)}")
        return
    except PackageNotFoundError:
        command = [sys.executable, "-m", "spacy", "download", SPACY_MODEL]
    report(f"running {' '.join(command)}")
    status = subprocess.run(command, check=False).returncode
    if status:
        raise WeightsError(
            f"Expected `python -m spacy download {SPACY_MODEL}` to install the model, got status "
            f"{status}; fix what it says above, or install the wheel of {SPACY_MODEL} that fits "
            f"this spaCy with pip."
        )


WEIGHTS: Mapping[str, RemoteFile] = {
    file.item: RemoteFile(file.name, file.url, file.sha256)
    for file in (*SAM_FILES.values(), *CLIP_FILES.values())
}
GROUPS: Mapping[str, tuple[str, ...]] = {"paper": PAPER}
ITEMS: Mapping[str, Item] = {
    **{name: Item(file.url, partial(_fetch_weights, name)) for name, file in WEIGHTS.items()},
    "spacy": Item(f"the package {SPACY_MODEL}", _install_spacy_model),
}


def add_download_arguments(
    parser: argparse.ArgumentParser, items: Mapping[str, Item] = ITEMS
) -> None:
    """Add the arguments that ``download`` reads."""
    names = ", ".join((*GROUPS, *items))
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"any of {names}")
    parser.add_argument("--list", action="store_true", help="say what the items are, and stop")
    parser.add_argument(
        "--weights_folder",
        type=Path,
        metavar="DIR",
        help="where weights go (default: $HYBRIDGL_WEIGHTS, or ~/.cache/hybridgl/weights)",
    )
    parser.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="URL_PREFIX",
        help="try URL_PREFIX/NAME_OF_THE_FILE before the published source; may be repeated",
    )


def download(
    arguments: argparse.Namespace,
    report: Callable[[str], None],
    items: Mapping[str, Item] = ITEMS,
    fix: str = "check the spelling; datasets: `python -m refer download {}` in a clone",
) -> None:
    """Fetch what the arguments name, in the order of the items; what is whole is left as it is.

    Args:
        arguments: as of ``add_download_arguments``.
        report: takes lines for people.
        items: that have a name.
        fix: for names that none has; they take the place of its braces.

    Raises:
        SettingError: an item is unknown, or none is named.
        DownloadError: no source gave the right bytes.
        WeightsError: spaCy's model cannot be installed.
        OSError: the disk refuses.
    """
    names, right = arguments.items, ", ".join((*GROUPS, *items))
    unknown = [name for name in names if name not in items and name not in GROUPS]
    if arguments.list:
        groups = [f"{name}: {', '.join(members)}" for name, members in GROUPS.items()]
        report("\n".join([*groups, *(f"{name}: {item.about}" for name, item in items.items())]))
        return
    if not names:
        raise SettingError(f"Expected items, got none; name any of {right}.")
    if unknown:
        fix = fix.format(" ".join(names))
        raise SettingError(f"Expected items among {right}, got {unknown[0]!r}; {fix}.")
    chosen = {single for name in names for single in GROUPS.get(name, (name,))}
    for name, item in items.items():
        if name in chosen:
            item.fetch(arguments, report)


def fetch(
    file: RemoteFile,
    folder: Path,
    mirrors: Sequence[str] = (),
    *,
    option: str,
    report: Callable[[str], None],
) -> bool:
    """Fetch a file, or find that it is there and whole.

    Args:
        file: what to fetch.
        folder: where it goes; made where it is missing.
        mirrors: beginnings of URLs that the name is appended to, tried before the published one.
        option: of the command, which names another folder, for messages.
        report: takes lines for people.

    Returns:
        Whether it was received now.

    Raises:
        DownloadError: no source gave the right bytes.
        OSError: the disk refuses, or a folder has the file's name.
    """
    target = folder / file.name
    if target.is_dir():
        raise IsADirectoryError(f"Expected a file at {target}, got a folder; move it away.")
    if _is_whole(file, target, report):
        return False
    with disk_errors(target, option):
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder, report) as waited:
            if waited and _is_whole(file, target, report):
                return False
            report(f"fetching {target}")
            part = _Part(target, file)
            sha256 = _receive_from_first(mirrors, part)
            _record(target, sha256)
            size = tqdm.format_sizeof(part.size, "B")
            part.path.replace(target)
            report(f"fetched {target}: {size}, sha256 {sha256}")
    return True


@contextmanager
def folder_lock(folder: Path, report: Callable[[str], None]) -> Iterator[bool]:
    """Let one process at a time write downloads into a folder, where the file system has locks.

    Yields:
        Whether another process had it first.
    """
    lock, waited = FileLock(folder / ".download.lock"), False
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report(f"waiting for another process at {folder}")
            lock.acquire()
            waited = True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield waited
    finally:
        lock.release()


@contextmanager
def disk_errors(path: Path, option: str) -> Iterator[None]:
    """Say in errors of the disk which path was written, and which ``option`` names another."""
    try:
        yield
    except OSError as error:
        explained = OSError(
            f"Cannot write {path}: {error.strerror or error}; free space, check permissions or "
            f"give another folder with {option} DIR. The same command goes on from here."
        )
        explained.errno = error.errno
        raise explained from error


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse to start what the disk of a folder cannot hold.

    Raises:
        OSError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        needed, found = (tqdm.format_sizeof(size, "B") for size in (num_bytes, free))
        raise OSError(errno.ENOSPC, f"expected {needed} of free space, got {found}")


def _is_whole(file: RemoteFile, target: Path, report: Callable[[str], None]) -> bool:
    """Decide whether a file is there, with the sha256 that it had or that is published."""
    if not target.is_file():
        return False
    expected = _records(target.parent).get(target.name, "")
    if not expected.startswith(file.sha256):
        expected = file.sha256
    if not expected:
        report(f"already there: {target}, with no sha256 to compare it with")
        return True
    report(f"checking {target}")
    sha256 = file_sha256(target)
    if sha256.startswith(expected):
        report(f"already there: {target}, whole")
        return True
    _logger.warning(
        "Expected a sha256 of %s that starts with %s, got %s; it is damaged, and is replaced once "
        "it has been received again.",
        target,
        expected[:12],
        sha256[:12],
    )
    return False


def _records(folder: Path) -> dict[str, str]:
    """Return the sha256 of the files received before, by name."""
    path = folder / "sha256.json"
    try:
        return {name: str(sha256) for name, sha256 in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise DownloadError(
            f"Expected the sha256 of downloaded files in {path}, got {error}; delete the file."
        ) from error


def _record(target: Path, sha256: str) -> None:
    """Keep the sha256 of what was received; warn where it was another one before."""
    records = _records(target.parent)
    before = records.get(target.name, sha256)
    if before != sha256:
        _logger.warning(
            "%s is not what it was: its sha256 is %s, and was %s when it was fetched before; "
            "results with the one may differ from those with the other.",
            target,
            sha256,
            before,
        )
    records[target.name] = sha256
    content = f"{json.dumps(records, indent=2, sort_keys=True)}\n".encode()
    atomic_write_bytes(target.with_name("sha256.json"), content)


class _Part:
    """What was received of a file so far.

    Attributes:
        file: what is fetched.
        total: size of the whole file in bytes; 0 where no source said.
    """

    def __init__(self, target: Path, file: RemoteFile) -> None:
        self.file, self._target = file, target
        name = re.compile(rf"{re.escape(target.name)}\.(\d+)\.part")
        matches = map(name.fullmatch, (path.name for path in target.parent.iterdir()))
        self.total = max((int(match[1]) for match in matches if match), default=0)

    @property
    def path(self) -> Path:
        return self._target.with_name(f"{self._target.name}.{self.total}.part")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def start(self, total: int = 0) -> None:
        """Forget what was received, and begin a file of another size."""
        self.path.unlink(missing_ok=True)
        self.total = total


class _Retry(Retry):
    """Retries of a request, with the waits that a server asks for, within limits."""

    def parse_retry_after(self, retry_after: str) -> float:
        try:
            return min(super().parse_retry_after(retry_after), _LONGEST_WAIT_SECONDS)
        except InvalidHeader:
            return 0


def _receive_from_first(mirrors: Sequence[str], part: _Part) -> str:
    """Receive the whole file from the first source that has it; return its sha256."""
    urls = [f"{mirror.rstrip('/')}/{part.file.name}" for mirror in mirrors]
    retry = _Retry(
        _RETRIES,
        backoff_factor=_BACKOFF_SECONDS,
        status_forcelist=_OVERLOADED,
        raise_on_status=False,
    )
    reasons = []
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        for url in (*urls, *filter(None, [part.file.url])):
            try:
                return _receive_from(session, url, part)
            except _SourceError as error:
                reasons.append(f"{_shown(url)}: {error}")
                _logger.warning("%s", reasons[-1])
    kept = f" What was received ({tqdm.format_sizeof(part.size, 'B')}) is kept." * (part.size > 0)
    raise DownloadError(
        f"Expected {part.file.name} from a source, got {'; '.join(reasons) or 'none to ask'}; run "
        f"the same command later, or name another source with --mirror URL_PREFIX.{kept}"
    )


def _receive_from(session: requests.Session, url: str, part: _Part) -> str:
    """Receive the whole file from one source, going on where it breaks off; return its sha256."""
    furthest, failures, expected = part.size, 0, part.file.sha256
    is_continued = part.size > 0
    while True:
        try:
            _receive(session, url, part)
        except _DroppedError as error:
            failures = 0 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures > _RETRIES:
                raise _SourceError(f"{error}, {failures} times") from error
            seconds = min(_BACKOFF_SECONDS * 2**failures, _LONGEST_WAIT_SECONDS)
            _logger.warning("%s: %s; going on in %.3g s", _shown(url), error, seconds)
            time.sleep(seconds)
            continue
        with part.path.open("rb+") as stream:
            os.fsync(stream.fileno())
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if sha256.startswith(expected):
            return sha256
        part.start()
        reason = f"expected a sha256 that starts with {expected[:12]}, got {sha256[:12]}"
        if not is_continued:
            raise _SourceError(reason)
        is_continued = False  # the wrong bytes may be those received before, from elsewhere
        _logger.warning("%s: %s; fetching all of it", _shown(url), reason)


def _receive(session: requests.Session, url: str, part: _Part) -> None:
    """Ask for the file or its rest, and write what is sent."""
    if 0 < part.size == part.total:
        return
    headers = {"Accept-Encoding": "identity"}
    if part.size and (part.file.sha256 or part.total):
        headers["Range"] = f"bytes={part.size}-"
    try:
        response = session.get(url, headers=headers, timeout=_TIMEOUT_SECONDS, stream=True)
    except (requests.RequestException, ValueError) as error:
        # A ValueError is what a redirect to a malformed address ends in.
        raise _SourceError(_cause(error)) from error
    with response:
        _check_answer(response, part)
        _append(response, part)
    if part.total and part.size != part.total:
        raise _DroppedError(f"it ended after {part.size} of {part.total} bytes")


def _check_answer(response: requests.Response, part: _Part) -> None:
    """Refuse what is no part of the file, and begin the file again if all of it is sent."""
    status, sent = response.status_code, response.headers
    if status == HTTPStatus.OK:
        if sent.get("Content-Type", "").lower().startswith("text/html") and not part.file.sha256:
            raise _SourceError("it sent a web page instead of the file")
        length = "" if "Transfer-Encoding" in sent else sent.get("Content-Length", "")
        part.start(int(length) if length.isdecimal() else 0)
        return
    if status not in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        raise _SourceError(f"it answered {status} {response.reason or ''}".rstrip())
    span = _CONTENT_RANGE.fullmatch(sent.get("Content-Range", ""))
    if not span or int(span[1]) != part.size or part.total not in (0, int(span[2])):
        part.start()
        raise _DroppedError("it sent another range than asked for, or of another file")


def _append(response: requests.Response, part: _Part) -> None:
    size = part.size
    require_space(part.path.parent, part.total - size)
    bar = {"initial": size, "unit_scale": True, "leave": False}
    with (
        part.path.open("ab") as stream,
        progress(None, part.file.name, "B", total=part.total or None, **bar) as received,
    ):
        try:
            for chunk in response.iter_content(_CHUNK_BYTES):
                stream.write(chunk)
                received.update(len(chunk))
        except requests.RequestException as error:
            stream.flush()
            raise _DroppedError(f"it broke off after {part.size} bytes") from error


def _cause(error: BaseException) -> str:
    """Return the first of a chain of reasons: the plainest one."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).rstrip(".") or type(error).__name__


def _shown(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
