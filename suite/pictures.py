"""Pictures of a split, at the size that its annotations are in."""

from __future__ import annotations

from PIL import Image

from hybridgl.images import RgbImage
from refer.dataset import ReferSplit

__all__ = ["can_be_read", "open_image"]


def can_be_read(split: ReferSplit, image_id: int) -> bool:
    """Whether a picture of the split is there and whole, as far as was found at the start."""
    return image_id not in split.faults.missing and image_id not in split.faults.damaged


def open_image(split: ReferSplit, image_id: int) -> RgbImage:
    """A picture of the split; resized (bilinear, antialiased) if it is not of the annotated size.

    Raises:
        UserError: it is missing or damaged.
    """
    image, info = (
        RgbImage(split.image_path(image_id), apply_orientation=False),
        split.images[image_id],
    )
    if image.hw == (info.height, info.width):
        return image
    resized = image.pil.resize((info.width, info.height), Image.Resampling.BILINEAR)
    return RgbImage(resized, apply_orientation=False)
