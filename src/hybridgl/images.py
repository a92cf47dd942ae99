"""Images: anything that people hand over as RGB pixels, or an error that says what to do.

Shapes: H x W image pixels.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import warnings
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hybridgl.errors import ImageError

__all__ = [
    "MAX_ASPECT_RATIO",
    "MAX_PIXELS",
    "ImageSource",
    "RgbImage",
    "register_heic",
    "resized",
]

MAX_PIXELS = 50_000_000
"""Largest image, in pixels: beyond it the masks of one image fill the memory."""

MAX_ASPECT_RATIO = 100
"""Longest over shortest side: SAM shrinks the longest side to 1024 pixels and sees patches of 16;
beyond this ratio the shorter side is less than one patch there, and no mask is found."""

_MIN_BITS = 15
"""Bits that the largest value of a 16-bit image needs: below it, sensors of 10 to 14 bits wrote
their values as they are, which are nearly black as 16 bits."""

_16_BITS = re.compile(r";16([BLN])\b")
"""In Pillow's name of how colours are stored: big, little or the machine's own end first."""

_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif")
"""Brands in the first box of a file, of what ``pillow-heif`` reads."""

ImageSource = str | Path | Image.Image | NDArray[np.uint8]
"""A path, a PIL image, or an RGB array (H, W, 3) of uint8."""


class RgbImage:
    """An image, which is decoded when its pixels are first asked for.

    Args:
        source: path, PIL image, or uint8 RGB array (H, W, 3). Greyscale, palette, CMYK and 16-bit
            images are converted; transparent parts are laid over white. 16-bit images whose values
            need 14 bits or fewer, which would come out black or nearly so, are refused.
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
            ImageError: the file is cut short or damaged, or its values are no colours, or fill the
                16 bits of a channel only in part.
        """
        try:
            content = _content_of_16_bits(self._image)
            self._image.load()
            image = self._image
            if content:
                _check_bits(_bits_of_colours(image, content), self.name)
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
    register_heic()
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
def register_heic() -> None:
    """Have Pillow read HEIC, where the extra ``heic`` is installed."""
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


def _content_of_16_bits(image: Any) -> bytes:
    """Return the file of an image whose colours have 16 bits; nothing for all others.

    Pillow keeps the high byte of such colours alone, and forgets that there was another.
    """
    stored_as = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode.startswith("I") or not _16_BITS.search(stored_as):
        return b""
    stream = image.fp
    position = stream.tell()
    stream.seek(0)
    content: bytes = stream.read()
    stream.seek(position)
    return content


def _bits_of_colours(image: Image.Image, content: bytes) -> int:
    """Return how many bits the largest colour needs.

    Args:
        image: of the high bytes, as Pillow decodes it.
        content: of its file.
    """
    high = _largest(image)
    if high:
        return 8 + high.bit_length()
    low_bytes: Any = Image.open(io.BytesIO(content))
    low_bytes.tile = [_of_other_end(tile) for tile in low_bytes.tile]
    return _largest(low_bytes).bit_length()


def _of_other_end(tile: Any) -> Any:
    """Return a part of an image of which Pillow decodes the other byte of 16 bits."""
    swap = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    stored_as, *others = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    swapped = _16_BITS.sub(lambda found: f";16{swap[found[1]]}", stored_as)
    arguments = (swapped, *others) if isinstance(tile[3], tuple) else swapped
    # Pillow's own tuples have names from version 11 on.
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def _largest(image: Any) -> int:
    """Return the largest value of a colour, whatever is transparent."""
    bands = zip(image.getbands(), image.getextrema(), strict=True)
    return max(int(extrema[1]) for band, extrema in bands if band != "A")


def _check_bits(bits: int, name: str) -> None:
    """Refuse 16-bit values that are not of 16 bits; 0 bits are those of a black image."""
    if 0 < bits < _MIN_BITS:
        raise ImageError(
            f"Expected values of 16 bits in {name}, got such that need only {bits} of them, and "
            f"would come out nearly black; divide them by {2 ** max(bits - 8, 0)}, and save the "
            f"image with 8 bits a channel."
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        deep = np.asarray(image, dtype=np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageError(
                f"Expected 8 or 16 bits a channel in {name}, got values from {deep.min()} to "
                f"{deep.max()}; convert it to 8 bits."
            )
        _check_bits(int(deep.max()).bit_length(), name)
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"Expected integer pixels in {name}, got floats; convert it to 8 bits.")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB")
