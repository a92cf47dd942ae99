"""One file from the first source that has it: resumed, checked, never a part under its own name.

A part that came is continued by the next attempt or process where the source's ETag or date can
tell that it still has the same file, or where a published sha256 will tell in the end. Of files
without a published checksum the one of what came is kept, and later downloads are compared with it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import requests
from tqdm import tqdm

from hybridgl.downloads.checksums import Arrival, read_arrivals, record_arrival, sha256_of
from hybridgl.downloads.disk import alone, size_text, writing
from hybridgl.downloads.part import Origin, Part
from hybridgl.errors import HybridGLError

__all__ = ["NoSourceError", "Patience", "RemoteFile", "fetch"]

_CHUNK_BYTES = 1 << 16
_MAX_REDIRECTS = 10
_SHA256_DIGITS = 64
_PASSING = {408, 425, 429}
"""Answers below 500 that a later attempt may not meet again."""

_logger = logging.getLogger(__name__)


class NoSourceError(HybridGLError):
    """No source gave the right bytes of a file; the message lists each with its reason."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that is published.

    Attributes:
        name: of the file, here and at mirrors.
        urls: where it is published, in the order of trying.
        sha256: its checksum in hexadecimal, or the first digits of it as far as known.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str = ""

    @property
    def is_vouched_for(self) -> bool:
        """Whether the whole checksum is published."""
        return len(self.sha256) == _SHA256_DIGITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long sources are waited for."""

    connect_seconds: float = 15
    """For a connection."""
    read_seconds: float = 60
    """For the next bytes of an answer."""
    attempts: int = 5
    """In a row without any progress, until a source is given up."""
    backoff_seconds: float = 1
    """Before the second attempt; doubled before each further one."""
    longest_wait_seconds: float = 60
    """Between attempts, whatever the source asks for."""
    sleep: Callable[[float], None] = time.sleep
    """Waits for that many seconds."""


_PATIENCE = Patience()


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    mirrors: Sequence[str] = (),
    option: str,
    report: Callable[[str], None],
    patience: Patience = _PATIENCE,
) -> bool:
    """Get a file, or find that it is there and whole.

    Args:
        file: what to get.
        folder: where it goes; made where it is missing.
        mirrors: beginnings of URLs that the name is appended to, tried before the published ones.
        option: of the command, which names another folder, for messages.
        report: takes lines for people.
        patience: with slow and failing sources.

    Returns:
        Whether it came now.

    Raises:
        NoSourceError: no source gave the right bytes.
        HybridGLError: they cannot be written, or what is there is in the way.
    """
    target = folder / file.name
    if target.is_dir():
        raise HybridGLError(
            f"Expected a file or nothing at {target}, found a folder. Move it away."
        )
    if _is_whole(file, target, report):
        return False
    with writing(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
    with alone(target, option, lambda: report(f"waiting for another process at {target}")) as late:
        if late and _is_whole(file, target, report):
            return False
        report(f"fetching {target}")
        urls = [*(f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors), *file.urls]
        with Part(target, option) as part, requests.Session() as session:
            session.max_redirects = _MAX_REDIRECTS
            url, sha256 = _Fetching(session, file, part, patience).from_first_of(urls)
            if not file.is_vouched_for:
                date = datetime.now(UTC).isoformat(timespec="seconds")
                record_arrival(target, Arrival(sha256, part.size, url, date), option)
            part.finish()
            report(f"fetched {target}: {size_text(part.size)}, sha256 {sha256}")
    return True


def _is_whole(file: RemoteFile, target: Path, report: Callable[[str], None]) -> bool:
    arrival = None if file.is_vouched_for else read_arrivals(target.parent).get(target.name)
    if not target.is_file():
        return False
    expected = arrival.sha256 if arrival else file.sha256
    if not expected:
        report(f"already there: {target}, with no checksum to compare it with")
        return True
    report(f"checking {target}")
    sha256 = sha256_of(target)
    if sha256.startswith(expected):
        report(f"already there: {target}, whole")
        return True
    _logger.warning(
        "Expected the sha256 of %s to start with %s, got %s: it is damaged, and is replaced when "
        "it has come again.",
        target,
        expected[:12],
        sha256[:12],
    )
    return False


class _TryAgainError(Exception):
    """A source failed in a way that may pass.

    Args:
        reason: for people.
        wait_seconds: before the next attempt; None leaves it to the backoff.
    """

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _SourceError(Exception):
    """A source does not have the file."""


class _Fetching:
    """Gets the bytes of one file into its part.

    Args:
        session: to ask with.
        file: what to get.
        part: where it goes.
        patience: with slow and failing sources.
    """

    def __init__(
        self, session: requests.Session, file: RemoteFile, part: Part, patience: Patience
    ) -> None:
        self._session = session
        self._file = file
        self._part = part
        self._patience = patience

    def from_first_of(self, urls: Sequence[str]) -> tuple[str, str]:
        """Get the whole file; returns from where, without a password, and its sha256."""
        reasons = []
        for url in urls:
            try:
                return _shown(url), self._from(url)
            except _SourceError as error:
                reasons.append(f"{_shown(url)}: {error}")
                _logger.warning("%s", reasons[-1])
        size = self._part.size
        kept = f" What came ({size_text(size)}) is kept." if size else ""
        raise NoSourceError(
            f"Expected {self._file.name} from a source, tried {len(urls)} in vain; "
            f"{'; '.join(reasons)}.{kept} Run the same command later, or name another source with "
            f"--mirror URL_PREFIX."
        )

    def _from(self, url: str) -> str:
        """Get the whole file from one source; returns its sha256."""
        part, patience = self._part, self._patience
        part.is_mixed = part.size > 0
        furthest, in_vain = part.size, 0
        while True:
            try:
                self._ask(url)
                return self._checked()
            except _TryAgainError as error:
                in_vain = 0 if part.size > furthest else in_vain + 1
                furthest = max(furthest, part.size)
                if in_vain == patience.attempts:
                    raise _SourceError(f"{error}, {in_vain} times") from error
                seconds = error.wait_seconds
                if seconds is None:
                    seconds = patience.backoff_seconds * 2 ** max(in_vain - 1, 0)
                seconds = min(seconds, patience.longest_wait_seconds)
                _logger.warning("%s: %s; trying again in %.3g s", _shown(url), error, seconds)
                patience.sleep(seconds)

    def _checked(self) -> str:
        part, expected = self._part, self._file.sha256
        sha256 = sha256_of(part.path)
        if sha256.startswith(expected):
            return sha256
        was_mixed = part.is_mixed
        part.forget()
        reason = f"expected a sha256 that starts with {expected[:12]}, got {sha256[:12]}"
        if was_mixed:
            # The wrong bytes may be those that came before from elsewhere.
            raise _TryAgainError(reason, 0)
        raise _SourceError(reason)

    def _ask(self, url: str) -> None:
        """Send one request, and take what is answered."""
        patience = self._patience
        try:
            with self._session.get(
                url,
                headers={"Accept-Encoding": "identity", **self._range(url)},
                timeout=(patience.connect_seconds, patience.read_seconds),
                stream=True,
            ) as response:
                self._take(url, response)
        except HybridGLError:
            raise
        except requests.exceptions.SSLError as error:
            raise _SourceError(_cause(error)) from error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise _TryAgainError(_cause(error)) from error
        except (requests.RequestException, ValueError) as error:
            # A ValueError is what a redirect to a malformed address ends in.
            raise _SourceError(_cause(error)) from error

    def _range(self, url: str) -> dict[str, str]:
        """Headers that ask for the rest, where it is sure to fit or will be checked."""
        part = self._part
        same = part.origin is not None and part.origin.url == _shown(url)
        validator = part.origin.validator if part.origin and same else None
        if not part.size or not (validator or self._file.sha256):
            return {}
        wanted = {"Range": f"bytes={part.size}-"}
        return {**wanted, "If-Range": validator} if validator else wanted

    def _take(self, url: str, response: requests.Response) -> None:
        part, answer = self._part, _Answer.of(url, response)
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.size:
            if answer.origin.total == part.size:
                return
            part.forget()
            raise _TryAgainError("it has fewer bytes than had come", 0)
        _require_file(response, self._file)
        if response.status_code == HTTPStatus.OK:
            part.start(answer.origin)
        elif answer.start != part.size or not answer.origin.may_be(part.origin or answer.origin):
            part.forget()
            raise _TryAgainError("it sent another part than asked for, or of another file", 0)
        total = answer.origin.total
        if total is not None:
            part.require_space(total)
        self._append(response, total)
        if total is not None and part.size != total:
            raise _TryAgainError(f"it ended after {part.size} of {total} bytes")

    def _append(self, response: requests.Response, total: int | None) -> None:
        with tqdm(
            total=total,
            initial=self._part.size,
            unit="B",
            unit_scale=True,
            desc=self._file.name,
            disable=None,
            leave=False,
        ) as progress:
            for content in response.iter_content(_CHUNK_BYTES):
                self._part.append(content, total)
                progress.update(len(content))


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the headers of an answer say.

    Attributes:
        origin: the file that it is a part of.
        start: of that part; None where that is not said.
    """

    origin: Origin
    start: int | None

    @classmethod
    def of(cls, url: str, response: requests.Response) -> Self:
        headers = response.headers
        start, total = None, None
        if response.status_code == HTTPStatus.OK:
            length = headers.get("Content-Length", "")
            if length.isdecimal() and "Transfer-Encoding" not in headers:
                total = int(length)
        elif span := _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "")):
            start = int(span["start"]) if span["start"] else None
            total = int(span["total"]) if span["total"] else None
        etag, last_modified = headers.get("ETag"), headers.get("Last-Modified")
        return cls(Origin(_shown(url), etag, last_modified, total), start)


_CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?:(?P<total>\d+)|\*)")


def _require_file(response: requests.Response, file: RemoteFile) -> None:
    """Refuse answers that do not bring the file's own bytes."""
    status = response.status_code
    said = f"it answered {status} {response.reason or ''}".rstrip()
    if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _TryAgainError(said, _retry_after(response))
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise _SourceError(said)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise _SourceError(f"it sent {encoding}, asked for the file as it is")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "text/html" and not file.sha256:
        raise _SourceError("it sent a web page instead of the file")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that a source asks to wait; None where it does not say."""
    said = response.headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        moment = parsedate_to_datetime(said)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0)


def _cause(error: Exception) -> str:
    """The innermost reason of a failed request, in short."""
    cause: object = error
    while isinstance(cause, Exception) and cause.args:
        cause = getattr(cause, "reason", None) or cause.args[0]
    text = re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", str(cause))
    return text.rstrip(".") or type(error).__name__


def _shown(url: str) -> str:
    """A URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
