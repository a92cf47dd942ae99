"""Image files of a split that lie elsewhere than their annotations say, and sizes that these lack.

Programs write names as their machine has them: with backslashes, a drive, the folders of another
disk, suffixes in capitals. A name that is no file as it stands is looked for by ever shorter ends,
and at last without regard to upper and lower case, but only below the image roots, and never so
that two images become one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from hybridgl.errors import DataError, ImageError
from hybridgl.files import is_file
from hybridgl.images import RgbImage
from refer.dataset import ImageInfo, ReferSplit
from refer.entries import first_few

__all__ = ["SIZE_UNKNOWN", "find_images", "with_file_sizes"]

SIZE_UNKNOWN = (0, 0)
"""Height and width of an image whose annotations say none."""

_DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class _Folders:
    """Names in the folders that were looked into, each listed once."""

    _names: dict[Path, dict[str, list[str]]] = field(default_factory=dict)

    def find(self, root: Path, parts: tuple[str, ...], *, exactly: bool) -> Path | None:
        """Find a file below a folder by the parts of its name; None where there are none or two.

        Args:
            root: the folder.
            parts: of the name, none of them empty or "..".
            exactly: whether upper and lower case have to agree.
        """
        path = root
        for part in parts:
            names = self._list(path).get(part.casefold(), [])
            fitting = [name for name in names if name == part or not exactly]
            if len(fitting) != 1:
                return None
            path /= fitting[0]
        return path if path.is_file() else None

    def _list(self, folder: Path) -> dict[str, list[str]]:
        """Return the names in a folder without regard to case; nothing where it is none."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                for path in folder.iterdir():
                    names.setdefault(path.name.casefold(), []).append(path.name)
            except OSError:
                names = {}
            self._names[folder] = names
        return self._names[folder]


def find_images(split: ReferSplit) -> ReferSplit:
    """Find the images of a custom dataset whose names are no files as they stand.

    Returns:
        The split with ``image_paths`` of those that were found, and a warning that counts them.
        Where several images would become one file by a shorter name, none of these is found.
    """
    folders = _Folders()
    plain = {image_id: split.image_path(image_id) for image_id in split.images}
    elsewhere = {
        image_id: _find(split.images[image_id].file_name, split.image_roots, folders)
        for image_id, path in plain.items()
        if not is_file(path)
    }
    found = {image_id: path for image_id, path in elsewhere.items() if path is not None}
    if not found:
        return split
    names: dict[Path, set[str]] = {}
    for image_id, path in {**plain, **found}.items():
        name = split.images[image_id].file_name.replace("\\", "/")
        names.setdefault(_resolved(path), set()).add(name)
    ambiguous = [image_id for image_id, path in found.items() if len(names[_resolved(path)]) > 1]
    for image_id in ambiguous:
        del found[image_id]
    warnings = [
        *_line(split, found, "are found under another name", _renamed(split, found)),
        *_line(
            split,
            ambiguous,
            "count as missing, as a shorter name would make several of them one file",
            [split.images[image_id].file_name for image_id in ambiguous],
        ),
    ]
    return replace(split, image_paths=found, warnings=(*split.warnings, *warnings))


def _find(name: str, roots: tuple[Path, ...], folders: _Folders) -> Path | None:
    """Find a file by the longest end of its name that is one below a root."""
    parts = tuple(_parts(name))
    for exactly in (True, False):
        for start in range(len(parts)):
            for root in roots:
                path = folders.find(root, parts[start:], exactly=exactly)
                if path is not None:
                    return path
    return None


def _parts(name: str) -> Iterator[str]:
    """Take a name apart, without drive and root, and without what leads out of a folder."""
    for part in _DRIVE.sub("", name).replace("\\", "/").split("/"):
        if part not in ("", ".", ".."):
            yield part


def _resolved(path: Path) -> Path:
    """Return the one path of a file; a name that no file can have stays."""
    return path.resolve() if is_file(path) else path


def _renamed(split: ReferSplit, found: dict[int, Path]) -> list[str]:
    return [f"{split.images[image_id].file_name} ({path})" for image_id, path in found.items()]


def _line(split: ReferSplit, ids: object, what: str, names: list[str]) -> list[str]:
    of = f"{len(split.images)} images of {split.dataset} {split.split}"
    return [f"{len(names)} of {of} {what}: {first_few(names)}."] if ids else []


def with_file_sizes(split: ReferSplit) -> ReferSplit:
    """Give images of unknown size that of their file, and name them.

    Raises:
        DataError: the file cannot be read either.
    """
    unknown = [one for one in split.images.values() if (one.height, one.width) == SIZE_UNKNOWN]
    if not unknown:
        return split
    sized = {info.image_id: _with_file_size(info, split) for info in unknown}
    names = first_few(info.file_name for info in unknown)
    warning = (
        f"{len(unknown)} of {len(split.images)} images of {split.dataset} {split.split} have no "
        f"annotated size, and are taken at that of their file, as stored: {names}."
    )
    return replace(
        split,
        images={image_id: sized.get(image_id, info) for image_id, info in split.images.items()},
        warnings=(*split.warnings, warning),
    )


def _with_file_size(info: ImageInfo, split: ReferSplit) -> ImageInfo:
    path = split.image_path(info.image_id)
    try:
        height, width = RgbImage(path, apply_orientation=False).hw
    except ImageError as error:
        raise DataError(
            f"Expected a positive height and width of image {info.image_id}, or its file, got "
            f"neither ({error}); add the size, or the file."
        ) from None
    return replace(info, height=height, width=width)
