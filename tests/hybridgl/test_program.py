"""Progress in terminals and in logs."""

from __future__ import annotations

import io
import sys

import pytest

from hybridgl import program
from hybridgl.program import progress


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


def test_long_work_is_reported_in_a_log_by_whole_lines(shown, monkeypatch):
    monkeypatch.setattr(program, "_LOG_SECONDS", 1e-9)
    lines = shown(terminal=False).splitlines()
    assert all(line.startswith("work: ") for line in lines)
    assert "5/5" in lines[-1]
    assert "\r" not in shown(terminal=False)
