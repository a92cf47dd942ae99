"""Errors that a user can mend: their message says what was expected, what came and what to do."""

from __future__ import annotations

__all__ = ["PictureError", "UserError"]


class UserError(ValueError):
    """Wrong input, setting or file.

    Programs print its message on one line and leave with exit status 2, without a traceback.
    """


class PictureError(UserError):
    """A picture that cannot be read, or is too large or too long to be worked on."""
