"""What comparisons with golden vectors have in common: their rows, and how vectors are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "TOLERANCE",
    "Comparison",
    "FolderReport",
    "errors",
    "read_json",
    "read_npz",
    "unpack",
]

TOLERANCE = 1e-4
"""Largest error that passes where nothing else is said."""

_Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the report.

    Attributes:
        file: name of the file that holds the expected values.
        subject: what was compared.
        total: how many numbers, or cases that must match exactly.
        matches: cases that match; None where errors were measured.
        error: largest absolute error; infinite or NaN where none can be measured.
        tolerance: largest error that passes.
    """

    file: str
    subject: str
    total: int
    matches: int | None = None
    error: float = 0.0
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Tell whether all cases match, or the error is within the tolerance."""
        if self.matches is not None:
            return self.matches == self.total
        return self.error <= self.tolerance

    @property
    def result(self) -> str:
        """Return the number of matches, or the largest error."""
        if self.matches is not None:
            return f"{self.matches} of {self.total} exact"
        return f"largest error {self.error:.1e} in {self.total}"


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What a folder gave.

    Attributes:
        comparisons: at least one.
        not_compared: a line for every file that was left out, and why.
    """

    comparisons: tuple[Comparison, ...]
    not_compared: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Tell whether every comparison passed."""
        return all(comparison.passed for comparison in self.comparisons)

    def __str__(self) -> str:
        """Draw an aligned table, then list what was not compared."""
        cells = [
            (row.file, row.subject, "ok" if row.passed else "WRONG", row.result)
            for row in self.comparisons
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join([*lines, *(f"not compared: {line}" for line in self.not_compared)])


def errors(
    path: Path,
    subject: str,
    *pairs: tuple[Tensor | _Array | float, Any],
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Measure the largest error over pairs of what was computed and what was expected."""
    largest = [0.0]
    total = 0
    for computed, expected in pairs:
        if isinstance(computed, Tensor):
            computed = computed.cpu()
        computed = np.asarray(computed, np.float64)
        expected = np.asarray(expected, np.float64)
        total += expected.size
        if computed.shape != expected.shape:
            largest.append(np.inf)
        elif expected.size:
            largest.append(np.abs(computed - expected).max())
    error = float(np.max(largest))
    return Comparison(path.name, subject, total, error=error, tolerance=tolerance)


def unpack(packed_NB: _Array, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Unpack masks from ``np.packbits`` of each, bool, (N, H, W)."""
    count, height, width = shape
    bits = np.unpackbits(packed_NB, axis=1, count=height * width)
    return bits.reshape(count, height, width).astype(bool)


def read_npz(path: Path) -> dict[str, _Array]:
    """Read arrays by name; nothing in them is run."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def read_json(path: Path, kind: type) -> Any:
    """Read a list or an object.

    Raises:
        TypeError: it is of another kind.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, kind):
        raise TypeError(f"a {type(values).__name__} instead of a {kind.__name__}")
    return values
