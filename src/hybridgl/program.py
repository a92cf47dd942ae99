"""How a program runs: progress, one-line errors, exit status, memory."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
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
    """Parser of a program: ``--version``; its docstring as it is written; flags with - or with _.

    Args:
        named: as for ``argparse.ArgumentParser``.
    """

    def __init__(self, **named: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **named})

    def add_version(self) -> None:
        """Add ``--version``."""
        try:
            installed = version("hybridgl")
        except PackageNotFoundError:
            installed = "from a folder, not installed"
        self.add_argument("--version", action="version", version=f"hybridgl {installed}")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse words; what follows a lone -- is left as it is."""
        words = list(sys.argv[1:] if args is None else args)
        flags_end = words.index("--") if "--" in words else len(words)
        plain = [_underscored(word) for word in words[:flags_end]]
        return super().parse_known_args([*plain, *words[flags_end:]], namespace)


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
