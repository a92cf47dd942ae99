"""Errors that a user can fix: each message says what was expected, what it got, and the fix.

The tree::

    HybridGLError(ValueError)   all of them; programs print one line and exit with status 2
        SettingError            a wrong argument or setting, or settings that exclude each other
        ImageError              an image that cannot be read, or is too large or too long
        WeightsError            a model's file or package that is missing, damaged or another one
        DataError               a dataset's, proposals' or run's file that is missing or wrong
"""

from __future__ import annotations

__all__ = ["DataError", "HybridGLError", "ImageError", "SettingError", "WeightsError"]


class HybridGLError(ValueError):
    """Base of all errors that a user can fix.

    Programs print its message on one line and exit with status 2, without a traceback.
    """


class SettingError(HybridGLError):
    """A wrong argument or setting, or settings that exclude each other."""


class ImageError(HybridGLError):
    """An image that cannot be read, or is too large or too long to be worked on."""


class WeightsError(HybridGLError):
    """A model's file or package that is missing, damaged, or not the expected one."""


class DataError(HybridGLError):
    """Wrong names, files or entries of a dataset, of proposals or of a run."""
