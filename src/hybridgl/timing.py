"""Seconds of stages, for whoever asks: the stages name themselves, and nobody patches functions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["collect", "timer"]

_collectors: list[Callable[[str, float], None]] = []
_waits: list[Callable[[], None]] = []
_inner = threading.local()


@contextmanager
def timer(stage: str) -> Iterator[None]:
    """Report the seconds of a block, less those of the timers inside it, to every ``collect``.

    Costs nothing worth measuring where nobody collects. As a decorator, it times every call.

    Args:
        stage: its name.
    """
    if not _collectors:
        yield
        return
    outer = getattr(_inner, "seconds", 0.0)
    _inner.seconds = 0.0
    start = _now()
    try:
        yield
    finally:
        elapsed = _now() - start
        for collector in list(_collectors):
            collector(stage, elapsed - _inner.seconds)
        _inner.seconds = outer + elapsed


@contextmanager
def collect(wait: Callable[[], None] | None = None) -> Iterator[dict[str, float]]:
    """Add up the seconds of every stage that is timed within the block, in all threads.

    Args:
        wait: called before each look at the clock. On a GPU, a stage's seconds are those of the
            host, unless this is ``torch.cuda.synchronize``.

    Example:
        >>> with collect() as seconds, timer("parse"):
        ...     pass
        >>> list(seconds)
        ['parse']
    """
    seconds: dict[str, float] = {}
    lock = threading.Lock()

    def add(stage: str, elapsed: float) -> None:
        with lock:
            seconds[stage] = seconds.get(stage, 0.0) + elapsed

    _collectors.append(add)
    waits = [wait] if wait else []
    _waits.extend(waits)
    try:
        yield seconds
    finally:
        _collectors.remove(add)
        for one in waits:
            _waits.remove(one)


def _now() -> float:
    for wait in list(_waits):
        wait()
    return time.perf_counter()
