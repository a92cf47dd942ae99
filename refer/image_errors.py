"""Image files of a split that are missing, damaged, or of another size than annotated.

An evaluation that passed over them in silence would score another set than it names. So they are
looked for before work starts, by reading headers; an image is decoded only where its file does not
end as whole ones do.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image

from refer.dataset import ImageErrors, ReferSplit
from refer.entries import first_few
from refer.segmentation import MaskRule

__all__ = ["describe_image_errors", "find_image_errors"]

ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""How whole files end, by Pillow's names of the formats."""


def find_image_errors(split: ReferSplit) -> ImageErrors:
    """Look at every image file of a split."""
    missing: list[int] = []
    damaged: list[int] = []
    other_size: dict[int, tuple[int, int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for image_id, info in split.images.items():
            path = split.image_path(image_id)
            if not path.is_file():
                missing.append(image_id)
            elif (hw := _whole_image_hw(path)) is None:
                damaged.append(image_id)
            elif hw != (info.height, info.width):
                other_size[image_id] = hw
    return ImageErrors(tuple(missing), tuple(damaged), other_size)


def describe_image_errors(split: ReferSplit, image_errors: ImageErrors) -> list[str]:
    """One line for each kind of error that there is: how many images, and the first few's names."""

    def line(what: str, names: list[str], remedy: str) -> list[str]:
        of = f"{len(split.images)} images of {split.dataset} {split.split}"
        return [f"{len(names)} of {of} {what}: {first_few(names)}. {remedy}"] if names else []

    name = {image_id: info.file_name for image_id, info in split.images.items()}
    sizes = [
        f"{name[i]} ({width} x {height}, annotated {split.images[i].width} x "
        f"{split.images[i].height})"
        for i, (height, width) in image_errors.other_size.items()
    ]
    source = "See refer/README.md for where they come from."
    lines = [
        *line("are missing", [name[i] for i in image_errors.missing], source),
        *line("are damaged", [name[i] for i in image_errors.damaged], "Fetch them again."),
    ]
    if split.mask_rule is not MaskRule.PHRASECUT:  # whose images are published at other sizes
        lines += line("are of another size than annotated", sizes, "Fetch them again.")
    return lines


def _whole_image_hw(path: Path) -> tuple[int, int] | None:
    """Height and width of an image; None where it is damaged."""
    try:
        with path.open("rb") as file:
            file.seek(-max(map(len, ENDINGS.values())), os.SEEK_END)
            tail = file.read()
            file.seek(0)
            with Image.open(file) as image:
                width, height = image.size
                ending = ENDINGS.get(image.format or "")
                if ending is None or not tail.endswith(ending):
                    image.load()
                return height, width
    except Exception:  # a damaged image can fail in any operation of its decoder
        return None
