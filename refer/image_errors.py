"""Image files of a split that are missing, corrupt, or of another size than annotated.

An evaluation that passed over them in silence would score another set than it names. So they are
looked for before work starts, by reading headers; an image is decoded only where its file does not
end as whole ones do.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hybridgl.errors import ImageError
from hybridgl.files import is_file
from hybridgl.images import RgbImage, register_heic
from refer.dataset import ImageErrors, ReferSplit
from refer.entries import first_few
from refer.segmentation import MaskRule
from refer.splits import DATASETS

__all__ = ["describe_image_errors", "find_image_errors", "where_from"]

ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""How whole files end, by Pillow's names of the formats."""


_ORIENTATION = 0x0112
"""EXIF's tag; 1 is as stored, 5 to 8 are quarter turns."""


@dataclass(frozen=True, slots=True)
class _Header:
    """What is read of a whole image.

    Attributes:
        hw: stored height and width.
        orientation: EXIF's, 1 to 8; 1 where there is none, or none was asked for.
    """

    hw: tuple[int, int]
    orientation: int


def find_image_errors(split: ReferSplit, *, apply_exif: bool | None = None) -> ImageErrors:
    """Look at every image file of a split.

    Args:
        split: whose images are looked at.
        apply_exif: whether images that size does not settle are turned as their EXIF tag says; None
            looks at no tag: images of published datasets are annotated as stored.
    """
    missing: list[int] = []
    corrupt: list[int] = []
    wrong_size: dict[int, tuple[int, int]] = {}
    turned: list[int] = []
    tagged: list[int] = []
    register_heic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for image_id, info in split.images.items():
            path, annotated = split.image_path(image_id), (info.height, info.width)
            if not is_file(path):
                missing.append(image_id)
                continue
            header = _read_header(path, orientation=apply_exif is not None)
            if header is None:
                corrupt.append(image_id)
                continue
            kind = _as_stored(header, annotated)
            if kind is False or (kind is None and apply_exif and header.orientation > 1):
                turned.append(image_id)
            elif header.hw != annotated:
                wrong_size[image_id] = header.hw
            elif kind is None and header.orientation > 1:
                tagged.append(image_id)
    return ImageErrors(
        tuple(missing), tuple(corrupt), wrong_size, turned=tuple(turned), tagged=tuple(tagged)
    )


def _as_stored(header: _Header, annotated: tuple[int, int]) -> bool | None:
    """Tell by size whether annotations are of the stored image; None where size cannot."""
    if header.orientation < 5 or annotated[0] == annotated[1]:
        return None
    if header.hw == annotated:
        return True
    return False if header.hw == annotated[::-1] else None


def describe_image_errors(split: ReferSplit, image_errors: ImageErrors) -> list[str]:
    """Write one line for each kind of error: how many images, and the first few's names."""

    def line(what: str, names: list[str], fix: str) -> list[str]:
        of = f"{len(split.images)} images of {split.dataset} {split.split}"
        return [f"{len(names)} of {of} {what}: {first_few(names)}. {fix}"] if names else []

    name = {
        image_id: info.file_name or f"image {image_id}" for image_id, info in split.images.items()
    }
    sizes = [
        f"{name[i]} ({width} x {height}, annotated {split.images[i].width} x "
        f"{split.images[i].height})"
        for i, (height, width) in image_errors.wrong_size.items()
    ]
    source = where_from(split)
    lines = [
        *line(
            "are missing",
            [name[i] for i in image_errors.missing],
            f"{source[0].upper()}{source[1:]}.",
        ),
        *line(
            "are corrupt",
            [name[i] for i in image_errors.corrupt],
            _first_reason(split, image_errors.corrupt),
        ),
    ]
    lines += line(
        "are turned as their EXIF tags say",
        [name[i] for i in image_errors.turned],
        "Their annotations are taken to be of the turned image.",
    )
    lines += line(
        "have an EXIF orientation that their size does not settle",
        [name[i] for i in image_errors.tagged],
        "They are taken as stored; if the annotations were drawn on turned images, give "
        "--apply_exif.",
    )
    if split.mask_rule is not MaskRule.PHRASECUT:  # whose images are published at other sizes
        lines += line("are of another size than annotated", sizes, "Fetch them again.")
    return lines


def _first_reason(split: ReferSplit, image_ids: Sequence[int]) -> str:
    """Say why the first of some images cannot be read."""
    for image_id in image_ids[:1]:
        try:
            _ = RgbImage(split.image_path(image_id)).pil
        except ImageError as error:
            return f"The first: {error}"
    return "Fetch them again."


def where_from(split: ReferSplit) -> str:
    """Say what helps where images of a split are missing."""
    if split.dataset in DATASETS:
        return "see refer/README.md for where they come from"
    folders = ", ".join(map(str, split.image_roots))
    return f"give --image_root DIR, as they are not in {folders}"


def _read_header(path: Path, *, orientation: bool) -> _Header | None:
    """Read an image's size, and its orientation if asked; None where it is corrupt."""
    try:
        with path.open("rb") as file:
            file.seek(-max(map(len, ENDINGS.values())), os.SEEK_END)
            tail = file.read()
            file.seek(0)
            with Image.open(file) as image:
                width, height = image.size
                turn = _orientation(image) if orientation else 1
                ending = ENDINGS.get(image.format or "")
                if ending is None or not tail.endswith(ending):
                    image.load()
    except Exception:  # a corrupt image can fail in any operation of its decoder
        return None
    return _Header((height, width), turn)


def _orientation(image: Image.Image) -> int:
    """Read EXIF's orientation; 1 where there is none that can be read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # to look behind the pixels, Pillow would decode them
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged block is no reason to leave the image out
        return 1
    return orientation if orientation in range(1, 9) else 1
