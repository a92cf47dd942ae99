"""How a program runs: progress, one-line errors, exit status, memory."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from hybridgl.errors import HybridGLError

__all__ = ["ArgumentParser", "keep_freed_memory", "progress", "run_program"]

Item = TypeVar("Item")

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_KEPT_BYTES = 2**30
"""Allocations up to this size are kept, and so much at the end of the heap."""

_LOG_SECONDS = 60

_UNWELL, _FAILED, _INTERRUPTED = 1, 2, 130


class ArgumentParser(argparse.ArgumentParser):
    """Parser of a program: ``--version``, ``--config``; flags with - or with _.

    Its description is shown as it is written.

    Args:
        named: as for ``argparse.ArgumentParser``.
    """

    def __init__(self, **named: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **named})
        self._takes_config = False

    def add_version(self) -> None:
        """Add ``--version``."""
        try:
            installed = version("hybridgl")
        except PackageNotFoundError:
            installed = "from a folder, not installed"
        self.add_argument("--version", action="version", version=f"hybridgl {installed}")

    def add_config(self) -> None:
        """Add ``--config``."""
        self.add_argument(
            "--config",
            metavar="FILE",
            help="JSON object of flags, by their names without dashes; flags that are given win",
        )
        self._takes_config = True

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse words; what follows a lone -- is left as it is."""
        words = list(sys.argv[1:] if args is None else args)
        flags_end = words.index("--") if "--" in words else len(words)
        plain = [_underscored(word) for word in words[:flags_end]]
        found = super().parse_known_args([*plain, *words[flags_end:]], namespace)
        config = found[0].config if self._takes_config else None
        if config is None:
            return found
        return super().parse_known_args(
            [*self._configured(config, plain), *plain, *words[flags_end:]], namespace
        )

    def _configured(self, path: str, words: Sequence[str]) -> list[str]:
        """Return what the file of ``--config`` stands for, as words before all others."""
        try:
            content = json.loads(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            self.error(f"Expected JSON in --config {path}, got none that can be read ({error}).")
        if not isinstance(content, dict):
            self.error(f"Expected an object of flags in --config {path}, got {content!r:.60}.")
        # Flags of several values would add up with given ones.
        given = {word.partition("=")[0] for word in words}
        flags = [_flag_words(name, value) for name, value in content.items()]
        left = [flag for flag in flags if flag and flag[0].partition("=")[0] not in given]
        # As the last of them, it ends a flag of several values.
        return [*itertools.chain.from_iterable(left), f"--config={path}"]


def _flag_words(name: str, value: object) -> list[str]:
    """Return a setting as the words of a command line.

    >>> _flag_words("alpha", 0.5), _flag_words("without", ["position"]), _flag_words("tf32", True)
    (['--alpha=0.5'], ['--without', 'position'], ['--tf32'])
    """
    flag = _underscored(f"--{name}")
    if isinstance(value, bool) or value is None:
        return [flag] if value else []
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def _underscored(word: str) -> str:
    """Return a flag as it is declared.

    >>> _underscored("--fusion-mode=a-b"), _underscored("a-b")
    ('--fusion_mode=a-b', 'a-b')
    """
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


class _LogLines:
    """What ``tqdm`` writes to in a log: every state of a bar becomes a whole line."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(
    items: Iterable[Item] | None, what: str, unit: str, *, total: int | None = None, **options: Any
) -> tqdm[Item]:
    """Draw items with a progress bar; in a log, where a bar is no use, a line every minute.

    Args:
        items: of a known number, unless ``total`` is given; None: the caller updates the bar.
        what: name of the work.
        unit: of an item.
        total: number of the items.
        options: more of ``tqdm``.
    """
    if not sys.stderr.isatty():
        options |= {"delay": _LOG_SECONDS, "mininterval": _LOG_SECONDS, "file": _LogLines()}
    return tqdm(items, desc=what, unit=unit, total=total, **options)


def run_program(body: Callable[[], bool | None]) -> int:
    """Run a program's body; print errors that the user can fix on one line, without a traceback.

    Args:
        body: does the work; returns False where something is not well.

    Returns:
        Exit status: 0; 1 where the body says so; 2 after an error that the user can fix; 130 after
        an interruption.
    """
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names and sentences that the terminal cannot show are no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    status, line = 0, ""
    try:
        status = _UNWELL if body() is False else 0
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough, as `head` does
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (HybridGLError, OSError) as error:
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
