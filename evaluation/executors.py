"""Where the work of the first pass is done: one signature for one process, and later for several.

Work is a stream: it draws image ids and gives one result each, in any order. So whoever runs it can
overlap reading, the device's work and writing over many images, and an executor that has several
workers hands each of them a part of the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["Executor", "serial"]

Item = TypeVar("Item")
Result = TypeVar("Result")

Executor = Callable[
    [Callable[[Iterable[Item]], Iterator[Result]], Iterable[Item]], Iterator[Result]
]
"""Runs a stream of work over items; gives one result for each."""


def serial(
    work: Callable[[Iterable[Item]], Iterator[Result]], items: Iterable[Item]
) -> Iterator[Result]:
    """Run the work in this process.

    >>> list(serial(lambda numbers: (n + 1 for n in numbers), [1, 2]))
    [2, 3]
    """
    return work(items)
