"""Image files of a split that are missing, corrupt, or of another size than annotated.

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
    corrupt: list[int] = []
    wrong_size: dict[int, tuple[int, int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for image_id, info in split.images.items():
            path = split.image_path(image_id)
            if not path.is_file():
                missing.append(image_id)
            elif (hw := _whole_image_hw(path)) is None:
                corrupt.append(image_id)
            elif hw != (info.height, info.width):
                wrong_size[image_id] = hw
    return ImageErrors(tuple(missing), tuple(corrupt), wrong_size)


def describe_image_errors(split: ReferSplit, image_errors: ImageErrors) -> list[str]:
    """Write one line for each kind of error: how many images, and the first few's names."""

    def line(what: str, names: list[str], fix: str) -> list[str]:
        of = f"{len(split.images)} images of {split.dataset} {split.split}"
        return [f"{len(names)} of {of} {what}: {first_few(names)}. {fix}"] if names else []

    name = {image_id: info.file_name for image_id, info in split.images.items()}
    sizes = [
        f"{name[i]} ({width} x {height}, annotated {split.images[i].width} x "
        f"{split.images[i].height})"
        for i, (height, width) in image_errors.wrong_size.items()
    ]
    source = "See refer/README.md for where they come from."
    lines = [
        *line("are missing", [name[i] for i in image_errors.missing], source),
        *line("are corrupt", [name[i] for i in image_errors.corrupt], "Fetch them again."),
    ]
    if split.mask_rule is not MaskRule.PHRASECUT:  # whose images are published at other sizes
        lines += line("are of another size than annotated", sizes, "Fetch them again.")
    return lines


def _whole_image_hw(path: Path) -> tuple[int, int] | None:
    """Read the height and width of an image; None where it is corrupt."""
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
    except Exception:  # a corrupt image can fail in any operation of its decoder
        return None
