"""Images of a split, at the size that its annotations are in."""

from __future__ import annotations

import logging

from PIL import Image

from hybridgl.errors import ImageError
from hybridgl.images import RgbImage
from refer.dataset import ReferSplit

__all__ = ["open_image", "warn_unreadable"]

_LOG = logging.getLogger(__name__)


def open_image(split: ReferSplit, image_id: int) -> RgbImage:
    """An image of the split; resized (bilinear, antialiased) if it is not of the annotated size.

    Raises:
        ImageError: it is missing or damaged.
    """
    image, info = (
        RgbImage(split.image_path(image_id), apply_orientation=False),
        split.images[image_id],
    )
    if image.hw == (info.height, info.width):
        return image
    resized = image.pil.resize((info.width, info.height), Image.Resampling.BILINEAR)
    return RgbImage(resized, apply_orientation=False)


def warn_unreadable(split: ReferSplit, image_id: int, error: ImageError) -> None:
    """Name an image that cannot be read, unless it was named at the start."""
    if image_id not in (*split.image_errors.missing, *split.image_errors.damaged):
        _LOG.warning("%s Nothing is predicted for it.", error)
