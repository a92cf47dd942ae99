"""Images: anything that people hand over as RGB pixels, or an error that says what to do.

Shapes: H x W image pixels.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hybridgl.errors import ImageError

__all__ = ["MAX_ASPECT_RATIO", "MAX_PIXELS", "ImageSource", "RgbImage", "resized"]

MAX_PIXELS = 50_000_000
"""Largest image, in pixels: beyond it the masks of one image fill the memory."""

MAX_ASPECT_RATIO = 100
"""Longest over shortest side: SAM shrinks the longest side to 1024 pixels and sees patches of 16;
beyond this ratio the shorter side is less than one patch there, and no mask is found."""

_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif")
"""Brands in the first box of a file, of what ``pillow-heif`` reads."""

ImageSource = str | Path | Image.Image | NDArray[np.uint8]
"""A path, a PIL image, or an RGB array (H, W, 3) of uint8."""


class RgbImage:
    """An image, which is decoded when its pixels are first asked for.

    Args:
        source: path, PIL image, or uint8 RGB array (H, W, 3). Greyscale, palette, CMYK and 16-bit
            images are converted; transparent parts are laid over white.
        apply_orientation: turn the image as its EXIF tag says. Datasets, whose annotations are
            in stored pixels, leave it off.

    Attributes:
        name: path or kind of the source, for messages.
        sha256: of the file's bytes, or of the RGB pixels where there is no file.

    Raises:
        ImageError: no such file, no image, too large, too long, or a source of another kind.
    """

    def __init__(self, source: ImageSource, *, apply_orientation: bool = True) -> None:
        self._apply_orientation = apply_orientation
        if isinstance(source, str | Path):
            self.name = str(source)
            content = _read_file(Path(source))
            self._image = _open(content, self.name)
        elif isinstance(source, Image.Image):
            self.name = "the PIL image"
            self._image = source
        elif isinstance(source, np.ndarray):
            self.name = "the array"
            self._image = Image.fromarray(_checked_array(source))
        else:
            raise ImageError(
                f"Expected an image as a path, a PIL image or an RGB array (H, W, 3) of uint8, "
                f"got {type(source).__name__}; convert it to one of these."
            )
        _check_size(self._image, self.name)
        if not isinstance(source, str | Path):
            content = f"{self.hw}".encode() + self.pixels_HW3.tobytes()
        self.sha256 = hashlib.sha256(content + bytes([apply_orientation])).hexdigest()

    @cached_property
    def hw(self) -> tuple[int, int]:
        """Height and width in pixels; without ``apply_orientation``, from the header alone.

        Raises:
            ImageError: the file is cut short or damaged.
        """
        width, height = (self.pil if self._apply_orientation else self._image).size
        return height, width

    @cached_property
    def pil(self) -> Image.Image:
        """PIL image of mode RGB.

        Raises:
            ImageError: the file is cut short or damaged, or its values are no colours.
        """
        try:
            self._image.load()
            image = self._image
            if self._apply_orientation:
                image = ImageOps.exif_transpose(image)
            return _to_rgb(image, self.name)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # a damaged file can fail in any way inside its decoder
            raise ImageError(
                f"Expected a whole image in {self.name}, got one that cannot be decoded ({error}); "
                f"fetch it again, or save it as an 8-bit RGB image."
            ) from error

    @cached_property
    def pixels_HW3(self) -> NDArray[np.uint8]:
        """RGB, uint8, (H, W, 3)."""
        return np.array(self.pil)


def resized(image: Image.Image, size: tuple[int, int], filter_: Image.Resampling) -> Image.Image:
    """Resize an image to the same pixels under every version of Pillow.

    A filter goes along one axis, rounds to 8 bits, and then along the other. Up to 12.3 Pillow
    begins with the width; from 13 on it begins with whichever is cheaper, which moves pixels of
    portrait images. Here it is the width.

    Args:
        image: any mode that Pillow filters.
        size: width and height to reach, in pixels.
        filter_: of Pillow.
    """
    return image.resize((size[0], image.height), filter_).resize(size, filter_)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(
            f"Expected an image at {path}, got no such file; check the path."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"Expected an image at {str(path)!r}, got {reason}; check the path."
        ) from error


def _open(content: bytes, name: str) -> Image.Image:
    """Open a file by its header alone: one that claims gigapixels costs nothing."""
    _register_heic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"Expected an image of at most {MAX_PIXELS:,} pixels in {name}, got more ({error}); "
            f"shrink it first."
        ) from error
    except Exception as error:  # a damaged file can fail in any way inside its decoder
        if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
            raise ImageError(
                f"Expected an image that Pillow reads in {name}, got HEIC, a phone's own format; "
                f"run `pip install pillow-heif`, or save it as JPEG."
            ) from error
        raise ImageError(
            f"Expected an image in {name}, got {len(content):,} bytes of something else; "
            f"give a JPEG, PNG or another format that Pillow reads."
        ) from error


@cache  # once: where it is not installed, each import would search for it again
def _register_heic() -> None:
    with suppress(ImportError):
        import pillow_heif  # of the extra heic

        pillow_heif.register_heif_opener()


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"Expected an image of at most {MAX_PIXELS:,} pixels in {name}, got "
            f"{width} x {height}; shrink it first."
        )
    if not height or not width:
        raise ImageError(
            f"Expected an image with pixels in {name}, got {width} x {height}; give another."
        )
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(
            f"Expected sides of at most {MAX_ASPECT_RATIO} to 1 in {name}, got "
            f"{width} x {height} pixels; crop it first."
        )


def _checked_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"Expected an RGB array of shape (H, W, 3) and dtype uint8, got {array.shape} "
            f"{array.dtype}; convert it first."
        )
    return np.ascontiguousarray(array)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        deep = np.asarray(image, dtype=np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageError(
                f"Expected 8 or 16 bits a channel in {name}, got values from {deep.min()} to "
                f"{deep.max()}; convert it to 8 bits."
            )
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"Expected integer pixels in {name}, got floats; convert it to 8 bits.")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB")
