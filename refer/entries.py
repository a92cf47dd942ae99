"""Reading annotation files entry by entry: each is checked before anything is made of it.

Messages name the entry by its place and file, what was expected, and what came.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hybridgl.errors import DataError
from hybridgl.files import file_sha256

__all__ = [
    "Entry",
    "digests",
    "first_few",
    "identifier",
    "number",
    "optional",
    "parse_each",
    "read_json",
    "require_unique",
    "required",
]

MAX_NUMBER = 1e300
"""Numbers below it are finite and fit a float."""

FEW = 5
"""As many names as a line shows."""

T = TypeVar("T")
Entry = Mapping[str, object]


def read_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        DataError: It is damaged or cut short.
        OSError: It cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"Expected whole JSON in {path}; got {type(error).__name__}: {error}. "
            "It is damaged or cut short: fetch or make it again."
        ) from error


def parse_each(content: object, parse: Callable[[Entry], T | None], what: str) -> list[T]:
    """Parse a list of objects; entries that `parse` answers with None are not needed.

    Raises:
        DataError: It is no list, or holds something else than objects; or what `parse` raised,
            after the place of the entry.
    """
    if not isinstance(content, list):
        raise DataError(f"Expected {what} as a list; got {reprlib.repr(content)}.")
    parsed: list[T] = []
    for index, entry in enumerate(content):
        try:
            if not isinstance(entry, dict):
                raise DataError(f"expected an object; got {reprlib.repr(entry)}.")
            record = parse(entry)
        except ValueError as error:
            raise DataError(f"Entry {index} of {what}: {error}") from None
        if record is not None:
            parsed.append(record)
    return parsed


def required(entry: Entry, key: str, kind: type[T]) -> T:
    """The value of a key, of a type and of none that only passes for it, as True does for 1.

    Raises:
        DataError: It is of another type.
    """
    found = entry.get(key)
    if type(found) is not kind:
        raise DataError(f"expected {key} as {kind.__name__}; got {reprlib.repr(found)}.")
    return found


def optional(entry: Entry, key: str, kind: type[T]) -> T | None:
    """As `required`, and None where the entry lacks the key or has null there.

    Raises:
        DataError: It is of another type.
    """
    return None if entry.get(key) is None else required(entry, key, kind)


def identifier(entry: Entry, key: str) -> int | str:
    """The value of a key that may be a number or a name.

    Raises:
        DataError: It is neither.
    """
    found = entry.get(key)
    if type(found) is not int and type(found) is not str:
        raise DataError(f"expected {key} as int or str; got {reprlib.repr(found)}.")
    return found


def number(found: object, what: str) -> float:
    """A finite number as a float.

    Raises:
        DataError: It is none.
    """
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < MAX_NUMBER:
        raise DataError(f"expected {what} as finite numbers; got {reprlib.repr(found)}.")
    return float(found)


def require_unique(ids: Iterable[object], what: str) -> None:
    """Refuse ids that come more than once.

    Raises:
        DataError: The message names the first that does.
    """
    seen: set[object] = set()
    for one in ids:
        if one in seen:
            raise DataError(
                f"Expected every {what} to be unique; got {one} more than once. "
                "Fetch or make the file again."
            )
        seen.add(one)


def first_few(names: Sequence[object]) -> str:
    """The first names of a list that may be long.

    >>> first_few([1, 2, 3, 4, 5, 6])
    '1, 2, 3, 4, 5 and 1 more'
    """
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(map(str, names[:FEW])) + more


def digests(*paths: Path) -> dict[str, str]:
    """SHA-256 of files, by file name."""
    return {path.name: file_sha256(path) for path in paths}
