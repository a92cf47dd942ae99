"""Errors of the data that a user can mend: what was expected, what came and what to do."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """Wrong names, files or entries of a dataset."""
