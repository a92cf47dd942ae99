"""Progress in terminals and in logs."""

from __future__ import annotations

import io
import sys

import pytest

from utils import runtime
from utils.runtime import prefetch, progress


class Stream(io.StringIO):
    def __init__(self, *, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture
def shown(monkeypatch):
    """What work on five items shows in a terminal or in a log."""

    def show(*, terminal):
        stream = Stream(terminal=terminal)
        # Not in a fixture's set-up, after which pytest puts its own stream in place.
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            assert list(progress([3, 1, 2, 0, 4], "work", "item")) == [3, 1, 2, 0, 4]
        return stream.getvalue()

    return show


def test_terminal_has_a_bar(shown):
    assert "work" in shown(terminal=True)
    assert "5/5" in shown(terminal=True)


def test_short_work_leaves_no_trace_in_a_log(shown):
    assert shown(terminal=False) == ""


def test_long_work_is_reported_in_a_log(shown, monkeypatch):
    monkeypatch.setattr(runtime, "_LOG_SECONDS", 1e-9)
    assert "5/5" in shown(terminal=False)


def test_results_come_in_order_and_few_are_prefetched():
    started = []

    def double(n):
        started.append(n)
        return 2 * n

    results = prefetch(double, iter(range(100)), threads=3)
    assert next(results) == 0
    assert len(started) <= 5
    assert list(results) == [2 * n for n in range(1, 100)]


def test_an_error_is_raised_in_its_results_place():
    results = prefetch(lambda n: 1 // (2 - n), range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_results_that_nobody_asks_for_are_not_computed():
    started = []
    results = prefetch(started.append, range(100))
    next(results)
    results.close()
    assert len(started) < 10
