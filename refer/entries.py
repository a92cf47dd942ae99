"""Reading annotation files entry by entry: each is checked before anything is made of it.

Messages name the entry by its place and file, what was expected, and what was found.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from hybridgl.errors import DataError

__all__ = [
    "FIX",
    "Entry",
    "first_few",
    "identifier",
    "optional",
    "parse_each",
    "read_json",
    "require_unique",
    "required",
    "unexpected",
]

FIX = "correct the file or fetch it again"
"""What helps against a wrong file."""

FEW = 5
"""As many names as a line shows."""

T = TypeVar("T")
Entry = Mapping[str, object]


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        DataError: it is damaged or cut short.
        OSError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"Expected whole JSON in {path}, got {type(error).__name__}: {error}; {FIX}."
        ) from error


def parse_each(content: object, parse: Callable[[Entry], T | None], what: str) -> list[T]:
    """Parse a list of objects; entries that ``parse`` answers with None are left out.

    Raises:
        DataError: it is no list, or holds something else than objects; or what ``parse`` raised,
            after the place of the entry.
    """
    if not isinstance(content, list):
        raise DataError(f"Expected {what} as a list, got {reprlib.repr(content)}; {FIX}.")
    parsed: list[T] = []
    for index, entry in enumerate(content):
        try:
            if not isinstance(entry, dict):
                raise unexpected("an object", entry)
            record = parse(entry)
        except ValueError as error:
            raise DataError(f"Entry {index} of {what}: {error}") from None
        if record is not None:
            parsed.append(record)
    return parsed


def unexpected(expected: str, found: object) -> DataError:
    """Make the error of an entry that holds something else than expected.

    >>> print(unexpected("ref_id as int", "7"))
    Expected ref_id as int, got '7'; correct the file or fetch it again.
    """
    return DataError(f"Expected {expected}, got {reprlib.repr(found)}; {FIX}.")


def required(entry: Entry, key: str, kind: type[T]) -> T:
    """Return the value of a key, of a type and of none that only passes for it, as True for 1.

    Raises:
        DataError: it is of another type.
    """
    found = entry.get(key)
    if type(found) is not kind:
        raise unexpected(f"{key} as {kind.__name__}", found)
    return found


def optional(entry: Entry, key: str, kind: type[T]) -> T | None:
    """Return as ``required`` does, and None where the entry lacks the key or has null there.

    Raises:
        DataError: it is of another type.
    """
    return None if entry.get(key) is None else required(entry, key, kind)


def identifier(entry: Entry, key: str) -> int | str:
    """Return the value of a key that may be a number or a name.

    Raises:
        DataError: it is neither.
    """
    found = entry.get(key)
    if type(found) is not int and type(found) is not str:
        raise unexpected(f"{key} as int or str", found)
    return found


def require_unique(ids: Iterable[object], what: str) -> None:
    """Refuse ids of which one stands more than once.

    Raises:
        DataError: the message names the first that does.
    """
    seen: set[object] = set()
    for one in ids:
        if one in seen:
            raise DataError(f"Expected every {what} to be unique, got {one} more than once; {FIX}.")
        seen.add(one)


def first_few(names: Iterable[object]) -> str:
    """Name the first of a list that may be long.

    >>> first_few([1, 2, 3, 4, 5, 6])
    '1, 2, 3, 4, 5 and 1 more'
    """
    texts = [str(name) for name in names]
    more = f" and {len(texts) - FEW} more" if len(texts) > FEW else ""
    return ", ".join(texts[:FEW]) + more
