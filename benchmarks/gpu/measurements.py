"""Measurements of a run on a GPU: each printed and written as soon as it is there."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridgl.files import atomic_write_bytes

__all__ = ["PARTS", "Deferred", "Measurements"]

PARTS = ("exact", "run", "stages", "memory", "waiting")
"""Most important first."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """A measurement that is taken after all others, as it takes long to get.

    Attributes:
        part: one of ``PARTS``.
        name: of the measurement.
        measure: returns its value.
        needs_seconds: not begun with less time than this.
    """

    part: str
    name: str
    measure: Callable[[], Any]
    needs_seconds: float


class Measurements:
    """What has been measured so far.

    Args:
        path: gets all measurements as JSON, again after each.
        seconds: after which nothing more is begun.
        header: where and how they are measured.

    Attributes:
        values: the JSON: a value by name for every part, null where there is none, which
            ``failed`` or ``left_out`` explains; and the seconds that each took to get.
    """

    def __init__(self, path: Path, seconds: float, header: Mapping[str, Any]) -> None:
        self._path = path
        self._begun = time.monotonic()
        self._end = self._begun + seconds
        self.values: dict[str, Any] = {
            "machine": dict(header),
            **{part: {} for part in PARTS},
            "seconds": {},
            "failed": {},
            "left_out": {},
        }
        print(_worded(header), flush=True)

    def measure(
        self, part: str, name: str, measure: Callable[[], Any], *, needs_seconds: float = 0
    ) -> Any:
        """Take one measurement; what fails is named, and does not end the run.

        Args:
            part: one of ``PARTS``.
            name: of the measurement.
            measure: returns its value, of JSON types.
            needs_seconds: not begun with less time than this.

        Returns:
            The value; None where it could not be had.
        """
        start = time.monotonic()
        if self._end - start < needs_seconds:
            self.leave_out(part, name, "no time was left")
            return None
        value = None
        try:
            value = measure()
        except Exception as error:  # a missing kernel, memory: the others are worth as much
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.values["failed"][f"{part}, {name}"] = reason
            print(f"{part:8} {name}: FAILED, {reason}", flush=True)
        else:
            print(f"{part:8} {name}: {_worded(value)}", flush=True)
        free_memory()
        self.values["seconds"][f"{part}, {name}"] = round(time.monotonic() - start, 2)
        self._keep(part, name, value)
        return value

    def leave_out(self, part: str, name: str, reason: str) -> None:
        """Say that a measurement is not taken, and why."""
        self.values["left_out"][f"{part}, {name}"] = reason
        print(f"{part:8} {name}: left out, {reason}", flush=True)
        self._keep(part, name, None)

    def leave_out_tf32(self, part: str, name: str, device: torch.device) -> bool:
        """Leave a measurement out where there is no TF32; tells whether it did."""
        if device.type == "cuda":
            return False
        self.leave_out(part, name, "a CPU has no TF32")
        return True

    def _keep(self, part: str, name: str, value: Any) -> None:
        self.values[part][name] = value
        self.values["seconds"]["all"] = round(time.monotonic() - self._begun, 2)
        atomic_write_bytes(self._path, f"{json.dumps(self.values, indent=1)}\n".encode())


def free_memory() -> None:
    """Give back a GPU's memory that nobody holds, so that the next measurement has all of it."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _worded(value: Any) -> str:
    """Word a value for people, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_worded(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_worded, value)) or "none"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else str(value)
