"""Errors that a user can mend: their message says what was expected, what came and what to do."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """Wrong input, setting or file.

    Programs print its message on one line and leave with exit status 2, without a traceback.
    """
