"""Seconds of stages, on a clock that is told what to say."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hybridgl import timing
from hybridgl.timing import collect, timer


@pytest.fixture
def clock(monkeypatch):
    """Advances the clock of its own thread by as many seconds as it is called with."""
    now = threading.local()

    def advance(seconds):
        now.seconds = getattr(now, "seconds", 0.0) + seconds

    monkeypatch.setattr(time, "perf_counter", lambda: getattr(now, "seconds", 0.0))
    return advance


def test_seconds_of_a_stage_add_up_over_its_blocks(clock):
    with collect() as seconds:
        for duration in (1.0, 2.5):
            with timer("parse"):
                clock(duration)
            clock(10.0)
    assert seconds == {"parse": 3.5}


def test_seconds_of_an_inner_stage_are_not_those_of_the_outer_one(clock):
    with collect() as seconds, timer("outer"):
        clock(1.0)
        with timer("middle"):
            clock(2.0)
            with timer("inner"):
                clock(4.0)
        with timer("inner"):
            clock(8.0)
        clock(16.0)
    assert seconds == {"outer": 17.0, "middle": 2.0, "inner": 12.0}


def test_as_a_decorator_it_times_every_call(clock):
    @timer("parse")
    def parse(duration):
        """Read."""
        clock(duration)
        return "parsed"

    with collect() as seconds:
        assert [parse(1.0), parse(2.0)] == ["parsed"] * 2
    assert seconds == {"parse": 3.0}
    assert parse.__doc__ == "Read."


def test_stage_that_fails_is_timed_and_fails(clock):
    @timer("inner")
    def fail():
        clock(1.0)
        raise RuntimeError("out of memory")

    with collect() as seconds:
        with pytest.raises(RuntimeError, match="out of memory"), timer("outer"):
            fail()
        with timer("later"):
            clock(1.0)
    assert seconds == {"inner": 1.0, "outer": 0.0, "later": 1.0}


def test_every_collect_gets_what_happens_within_it(clock):
    with collect() as all_of_it:
        with timer("parse"):
            clock(1.0)
        with collect() as part_of_it, timer("parse"):
            clock(2.0)
    with timer("parse"):
        clock(4.0)
    assert (all_of_it, part_of_it) == ({"parse": 3.0}, {"parse": 2.0})
    assert timing._collectors == []


def test_threads_add_to_one_sum_and_do_not_nest_in_each_other(clock):
    together = threading.Barrier(4, timeout=10)

    def work(_):
        with timer("work"):
            together.wait()
            clock(1.0)
            together.wait()

    with collect() as seconds, timer("wait"):
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        clock(0.5)
    assert seconds == {"work": 4.0, "wait": 0.5}


def test_the_device_is_awaited_before_each_look_at_the_clock(clock):
    with collect(lambda: clock(1.0)) as seconds, timer("parse"):
        clock(4.0)
    with timer("parse"):
        clock(8.0)
    assert seconds == {"parse": 5.0}
    assert timing._waits == []
