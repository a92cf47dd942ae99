"""When, how, by which code and where records are made: for their summary and report."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from utils.runtime import cpu_name

__all__ = ["Origin"]

_CHECKOUT = Path(__file__).parents[1]
_GIT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Origin:
    """Where records come from.

    Attributes:
        date: of their start, UTC, as 2026-11-27T18:49:52+00:00.
        command: that was given; only the interpreter's path is left out.
        commit: of the checkout, ``-dirty`` at its end where files differ; None outside of git.
        machine: processor, its number of cores, and the GPU, if one is used.
    """

    date: str
    command: str
    commit: str | None
    machine: str

    @classmethod
    def now(cls, device: torch.device) -> Origin:
        """Describe this process.

        Args:
            device: that models run on.
        """
        machine = f"{os.cpu_count()} cores of {cpu_name()}"
        if device.type == "cuda":
            machine += f", {torch.cuda.get_device_name(device)}"
        return cls(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join(["python", *sys.orig_argv[1:]]),
            commit=_commit(),
            machine=machine,
        )

    def lines(self) -> list[str]:
        """Say it for people, as Markdown."""
        code = f", by the code at {self.commit}" if self.commit else ""
        return [f"Made on {self.date}{code}, on {self.machine}:", "", "```", self.command, "```"]

    def json(self) -> dict[str, str | None]:
        """Return the fields as JSON values."""
        return asdict(self)


def _commit() -> str | None:
    if not (_CHECKOUT / ".git").exists():
        return None  # a folder around it may be another's checkout
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(
            command, cwd=_CHECKOUT, capture_output=True, text=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
