"""What long work overlaps, takes and runs on: prefetching, elapsed time, memory, processor."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

__all__ = [
    "Stopwatch",
    "cpu_name",
    "peak_memory_bytes",
    "prefetch",
]

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def cpu_name() -> str:
    """Return the processor's name, as the system has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


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
