"""Progress in terminals and in logs; settings from a file."""

from __future__ import annotations

import io
import json
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


@pytest.fixture
def parser():
    parser = program.ArgumentParser()
    parser.add_config()
    parser.add_argument("image")
    parser.add_argument("--alpha", type=float, default=0.6)
    parser.add_argument("--fusion_mode")
    parser.add_argument("--without", nargs="+", action="extend", default=[])
    parser.add_argument("--tf32", action="store_true")
    return parser


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "my settings.json"
    settings = {"alpha": 0.25, "fusion-mode": "L2G", "tf32": True, "without": ["position", "gem"]}
    path.write_text(json.dumps({**settings, "device": None}))
    return str(path)


@pytest.mark.parametrize("flag", ["--config", "--conf"])
def test_file_of_settings_stands_for_flags_and_given_ones_win(parser, config, flag):
    found = parser.parse_args([flag, config, "a.jpg", "--alpha", "0.5"])
    assert (found.image, found.alpha, found.fusion_mode) == ("a.jpg", 0.5, "L2G")
    assert (found.without, found.tf32) == (["position", "gem"], True)
    assert parser.parse_args(["a.jpg", f"{flag}={config}"]).alpha == 0.25
    given = parser.parse_args(["a.jpg", flag, config, "--without", "coherence"])
    assert given.without == ["coherence"]
    assert parser.parse_args(["a.jpg"]).alpha == 0.6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "Expected JSON in --config"),
        ("{", "Expected JSON in --config"),
        ("[3]", "Expected an object of flags in --config"),
        ('{"alhpa": 1}', "unrecognized arguments: --alhpa=1"),
        ('{"alpha": "much"}', "invalid float value: 'much'"),
    ],
)
def test_file_of_settings_that_cannot_be_read_is_refused_by_name(
    parser, tmp_path, capsys, content, said
):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["a.jpg", "--config", str(path)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
