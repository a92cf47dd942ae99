"""Reading pictures: anything that people hand over, as RGB bytes, or an error that says what came.

Shapes: H x W image pixels.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hybridgl.errors import PictureError

__all__ = ["MAX_ASPECT_RATIO", "MAX_PIXELS", "ImageSource", "RgbImage"]

MAX_PIXELS = 50_000_000
"""Largest picture, in pixels: beyond it the masks of one picture fill the memory."""

MAX_ASPECT_RATIO = 100
"""Longest over shortest side: SAM shrinks the longest side to 1024 pixels and sees patches of 16;
beyond this ratio the shorter side is less than one patch there, and no mask is found."""

ImageSource = str | Path | Image.Image | NDArray[np.uint8]
"""A path, a PIL image, or an RGB array (H, W, 3) of uint8."""


class RgbImage:
    """A picture, which is decoded when its pixels are first asked for.

    Args:
        source: path, PIL image, or uint8 RGB array (H, W, 3). Greyscale, palette, CMYK and 16-bit
            pictures are converted; transparent parts are laid over white.
        apply_orientation: turn the picture as its EXIF tag says. Datasets, whose annotations are
            in stored pixels, leave it off.

    Attributes:
        name: path or kind of the source, for messages.
        digest: sha256 of the file's bytes, or of the RGB pixels where there is no file.

    Raises:
        PictureError: no such file, no picture, too large, too long, or a source of another kind.
    """

    def __init__(self, source: ImageSource, *, apply_orientation: bool = True) -> None:
        self._apply_orientation = apply_orientation
        if isinstance(source, str | Path):
            self.name = str(source)
            content = _read_file(Path(source))
            self._picture = _open(content, self.name)
        elif isinstance(source, Image.Image):
            self.name = "the PIL image"
            self._picture = source
        elif isinstance(source, np.ndarray):
            self.name = "the array"
            self._picture = Image.fromarray(_checked_array(source))
        else:
            raise PictureError(
                f"Expected a picture as a path, a PIL image or an RGB array (H, W, 3) of uint8, "
                f"got {type(source).__name__}. Convert it to one of these."
            )
        _check_size(self._picture, self.name)
        if not isinstance(source, str | Path):
            content = f"{self.hw}".encode() + self.pixels_HW3.tobytes()
        self.digest = hashlib.sha256(content + bytes([apply_orientation])).hexdigest()

    @cached_property
    def hw(self) -> tuple[int, int]:
        """Height and width in pixels; without orientation, the header alone is read for it.

        Raises:
            PictureError: the file is cut short or damaged.
        """
        width, height = (self.pil if self._apply_orientation else self._picture).size
        return height, width

    @cached_property
    def pil(self) -> Image.Image:
        """The picture as a PIL image of mode RGB.

        Raises:
            PictureError: the file is cut short or damaged, or its values are no colours.
        """
        try:
            self._picture.load()
            picture = self._picture
            if self._apply_orientation:
                picture = ImageOps.exif_transpose(picture)
            return _to_rgb(picture, self.name)
        except PictureError:
            raise
        except Exception as error:  # a damaged file can fail in any way inside its decoder
            raise PictureError(
                f"Expected a whole picture in {self.name}, but it cannot be decoded ({error}). "
                f"Fetch it again, or save it as an 8-bit RGB picture."
            ) from error

    @cached_property
    def pixels_HW3(self) -> NDArray[np.uint8]:
        """RGB, uint8, (H, W, 3)."""
        return np.array(self.pil)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PictureError(
            f"Expected a picture at {path}, found no such file. Check the path."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise PictureError(
            f"Expected a picture at {str(path)!r}, cannot read it: {reason}. Check the path."
        ) from error


def _open(content: bytes, name: str) -> Image.Image:
    """The header alone is read: a file that claims gigapixels costs nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"Expected a picture of at most {MAX_PIXELS:,} pixels in {name}, got more ({error}). "
            f"Shrink it first."
        ) from error
    except Exception as error:  # a damaged file can fail in any way inside its decoder
        raise PictureError(
            f"Expected a picture in {name}, got {len(content):,} bytes of something else. "
            f"Give a JPEG, PNG or another format that Pillow reads."
        ) from error


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if height * width > MAX_PIXELS:
        raise PictureError(
            f"Expected a picture of at most {MAX_PIXELS:,} pixels in {name}, got "
            f"{width} x {height}. Shrink it first."
        )
    if not height or not width:
        raise PictureError(f"Expected a picture with pixels in {name}, got {width} x {height}.")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise PictureError(
            f"Expected sides of at most {MAX_ASPECT_RATIO} to 1 in {name}, got "
            f"{width} x {height} pixels. Crop it first."
        )


def _checked_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise PictureError(
            f"Expected an RGB array of shape (H, W, 3) and dtype uint8, got {array.shape} "
            f"{array.dtype}. Convert it first."
        )
    return np.ascontiguousarray(array)


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith("I"):
        deep = np.asarray(picture, dtype=np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise PictureError(
                f"Expected 8 or 16 bits a channel in {name}, got values from {deep.min()} to "
                f"{deep.max()}. Convert it to 8 bits."
            )
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise PictureError(f"Expected integer pixels in {name}, got floats. Convert it to 8 bits.")
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return picture.convert("RGB")
