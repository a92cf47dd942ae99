"""Reading annotation files entry by entry: each is checked before anything is made of it.

One broken entry among ten thousand does not stop a file: what is unambiguous is read however it is
written, what is broken is left out, counted and named; a strict reader refuses both. Messages name
the entry by its place and file, what was expected, and what was found.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from hybridgl.errors import DataError

__all__ = [
    "FIX",
    "Entry",
    "EntryReader",
    "first_few",
    "optional",
    "read_json",
    "require_unique",
    "required",
    "unexpected",
    "whole_number",
]

FIX = "correct the file or fetch it again"
"""What helps against a wrong file."""

FEW = 5
"""As many names as a line shows."""

_DIGITS = re.compile(r"-?[0-9]{1,18}")
"""Digits of a number; of more, no dataset has as many entries."""

_EXACT = 2**53
"""Whole numbers below it are the same as floats."""

T = TypeVar("T")
Entry = Mapping[str, object]


def read_json(path: Path) -> object:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        DataError: it cannot be read, or is damaged or cut short.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"Expected a JSON file at {path}, got {error.strerror or error}; "
            "give a file that can be read."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"Expected whole JSON in {path}, got {type(error).__name__}: {error}; it is cut short, "
            f"damaged or no JSON: {FIX}."
        ) from error


def whole_number(value: object) -> int | None:
    """Read a whole number however a program wrote it; None for all else.

    >>> [whole_number(value) for value in (5, 5.0, "5", "05", 5.5, "5.0", True, None)]
    [5, 5, 5, 5, None, None, None, None]
    """
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if type(value) is str and _DIGITS.fullmatch(value):
        return int(value)
    return None


class _NamedError(DataError):
    """An error of a strict reader, whose message has the place."""


class EntryReader:
    """Reads the entries of a file, and names what it leaves out.

    Args:
        path: the file, to be named.
        strict: refuse what is written in another way than the format's, and whatever is broken.

    Attributes:
        path: as given.
        strict: as given.
        lenient: whether anything was left out or taken otherwise than written, besides ways to
            write a number: part of the keys of what is computed from it.
    """

    def __init__(self, path: Path, *, strict: bool = False) -> None:
        self.path = path
        self.strict = strict
        self.lenient = False
        self._reported: dict[str, dict[str, DataError]] = {}

    def each(
        self,
        content: object,
        parse: Callable[[Entry, int], T | None],
        what: str,
        *,
        of: str = "",
        shown: Callable[[list[object]], Iterable[object]] = iter,
    ) -> list[T]:
        """Parse a list of objects; entries that ``parse`` answers with None are left out.

        Args:
            content: the list.
            parse: gets an entry and its index; raises a ``DataError`` for a broken one, which is
                left out and named.
            what: the list holds, such as "sentences".
            of: where the list is, if not in the file itself, such as " of entry 3 of the refs".
            shown: goes through the list, and shows how far it is.

        Raises:
            DataError: it is no list; or, of a strict reader, what ``parse`` raised, after the place
                of the entry.
        """
        if not isinstance(content, list):
            raise DataError(
                f"Expected the {what}{of} in {self.path} as a list, got {reprlib.repr(content)}; "
                f"{FIX}."
            )
        parsed: list[T] = []
        for index, entry in enumerate(shown(content)):
            try:
                if not isinstance(entry, dict):
                    raise unexpected("an object", entry)
                record = parse(entry, index)
            except _NamedError:
                raise
            except DataError as error:
                place = f"entry {index} of the {what}{of}"
                self.report(f"broken {what} are left out of", place, error)
                continue
            if record is not None:
                parsed.append(record)
        return parsed

    def report(self, what: str, place: str, error: DataError) -> None:
        """Take down something broken, or read otherwise than written, to be named.

        Args:
            what: it is and becomes, in words that a number goes before and the file's path follows.
            place: in the file; named once, however often it is met.
            error: what is wrong.

        Raises:
            DataError: the reader is strict.
        """
        if self.strict:
            named = f"{place[0].upper()}{place[1:]} in {self.path}"
            raise _NamedError(f"{named}: {error}") from None
        self.lenient = True
        self._reported.setdefault(what, {}).setdefault(place, error)

    def warnings(self) -> tuple[str, ...]:
        """Write one line for everything that was taken down: how often, and the first places."""
        return tuple(
            f"{len(by_place)} {what} {self.path}: {first_few(by_place)}; the first: "
            f"{next(iter(by_place.values()))}"
            for what, by_place in self._reported.items()
        )

    def none_of(self, what: str) -> str:
        """Say that something is not there, or what of its kind cannot be read.

        Args:
            what: as for ``each``.
        """
        broken = self._reported.get(f"broken {what} are left out of", {})
        if not broken:
            return "none"
        place, error = next(iter(broken.items()))
        return f"none that can be read ({place}: {str(error).rstrip('.')})"

    def whole(self, entry: Entry, key: str) -> int:
        """Return the whole number of a key.

        Raises:
            DataError: it is none.
        """
        found = entry.get(key)
        if type(found) is int:
            return found
        number = None if self.strict else whole_number(found)
        if number is None:
            raise unexpected(f"{key} as int", found)
        return number

    def identifier(self, entry: Entry, key: str) -> int | str:
        """Return the value of a key that may be a number or a name; digits are a number.

        Raises:
            DataError: it is neither, or digits of which a strict reader cannot tell which.
        """
        found = entry.get(key)
        if type(found) is int:
            return found
        number = whole_number(found)
        if number is None and type(found) is str and found:
            return found
        if number is None or self.strict:
            raise unexpected(f"{key} as int or a name", found)
        return number


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
