"""How a program runs: one-line errors, exit status, progress, elapsed time and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

__all__ = [
    "Stopwatch",
    "keep_freed_memory",
    "peak_memory_bytes",
    "prefetch",
    "progress",
    "run_program",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOG_SECONDS = 60

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_KEPT_BYTES = 2**30
"""Allocations up to this size are kept, and so much at the end of the heap."""

_FAILED = 2
_INTERRUPTED = 130


def run_program(body: Callable[[], None], expected: tuple[type[Exception], ...]) -> int:
    """Run a program's body.

    Args:
        body: does the work.
        expected: errors that the user can fix: printed on one line, without a traceback.

    Returns:
        Exit status: 0, or 2 after an expected error, or 130 after an interruption.
    """
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names and sentences that the terminal cannot show are no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    status, line = 0, ""
    try:
        body()
    except expected as error:
        text = " ".join(str(error).split()) or type(error).__name__
        status, line = _FAILED, f"error: {text}\n"
    except KeyboardInterrupt:
        status, line = _INTERRUPTED, "interrupted; the same command goes on from here\n"
    # Written when the exception is gone, and with it the body's progress bar, which ends its line.
    sys.stderr.write(line)
    return status


def keep_freed_memory() -> None:
    """Have the C library keep memory that is freed, instead of giving it back each time.

    A model's tensors on a CPU are large enough that each new one would be fetched from the kernel,
    page by page, which takes as long as many an operation on it. Does nothing where the C library
    is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # Before 2.35, glibc refuses so large a threshold; the second setting alone would harm.
        if mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES):
            mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def progress(
    items: Iterable[Item], what: str, unit: str, *, total: int | None = None
) -> Iterable[Item]:
    """Draw the items with a progress bar; in a log, where a bar is no use, a line every minute.

    Args:
        items: of a known number, unless ``total`` is given.
        what: name of the work.
        unit: of an item.
        total: number of the items.
    """
    log = {} if sys.stderr.isatty() else {"delay": _LOG_SECONDS, "mininterval": _LOG_SECONDS}
    bar: Iterable[Item] = tqdm(items, desc=what, unit=unit, total=total, **log)
    return bar


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 1
) -> Iterator[Result]:
    """Compute results of a function in other threads, while the caller works on earlier ones.

    Args:
        function: called with one item at a time.
        items: drawn by the caller's thread.
        threads: that call the function; at most this many results and one more wait.

    Returns:
        Results in the order of the items. What the function raises is raised in its result's place.

    Example:
        >>> list(prefetch(str.upper, ["a", "b"]))
        ['A', 'B']
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * (1 if sys.platform == "darwin" else 1024)


class Stopwatch:
    """Seconds spent in named stages.

    Attributes:
        seconds: by stage, in the order of their first use.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
