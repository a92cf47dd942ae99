"""Timers: inner stages are counted once, and nobody pays where nobody collects."""

from __future__ import annotations

import pytest

from hybridgl import timing
from hybridgl.timing import collect, timer


@pytest.fixture
def clock(monkeypatch):
    """Set the times that the clock shows, one after the other."""

    def show(*times):
        shown = iter(times)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(shown))

    return show


def test_a_stage_inside_another_is_counted_once(clock):
    @timer("inner")
    def inner():
        pass

    clock(0.0, 1.0, 4.0, 10.0)
    with collect() as seconds, timer("outer"):
        inner()
    assert seconds == {"inner": 3.0, "outer": 7.0}


def test_the_device_is_awaited_before_each_look_at_the_clock(clock):
    waits = []
    clock(0.0, 1.0)
    with collect(lambda: waits.append(1)), timer("stage"):
        pass
    with timer("stage"):
        pass
    assert len(waits) == 2


def test_a_clock_that_nobody_asked_for_is_not_read(clock):
    clock()
    with timer("stage"):
        pass
