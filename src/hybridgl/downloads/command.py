"""The body of ``hybridgl download``: the published weights and data, each to its place."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hybridgl.downloads.catalogue import COCO_DATASETS, GROUPS, ITEMS, SPACY_MODEL, Item, Kind
from hybridgl.downloads.fetch import NoSourceError, RemoteFile, fetch
from hybridgl.downloads.unpack import unpack
from hybridgl.errors import HybridGLError
from hybridgl.weights.registry import weights_folder

__all__ = ["add_download_arguments", "download"]

_INSTANCES = "instances.json"
_REFS = re.compile(r"refs\(\w+\)\.p")
_IMAGE_DATA = "image_data_split.json"


def add_download_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``download`` reads."""
    parser.add_argument(
        "items", nargs="*", metavar="ITEM", help=f"any of {', '.join((*GROUPS, *ITEMS))}"
    )
    parser.add_argument("--list", action="store_true", help="say what the items are, and stop")
    parser.add_argument(
        "--weights_folder",
        type=Path,
        metavar="DIR",
        help="where weights go (default: $HYBRIDGL_WEIGHTS, or ~/.cache/hybridgl/weights)",
    )
    parser.add_argument(
        "--data_root",
        "--refer_data_root",
        type=Path,
        default=Path("refer/data"),
        metavar="DIR",
        help="where datasets go (default: %(default)s)",
    )
    parser.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="URL_PREFIX",
        help="try URL_PREFIX/NAME_OF_THE_FILE before the published source; may be repeated",
    )


def download(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    """Get what the arguments name; what is there and whole is left as it is.

    Args:
        arguments: as of ``add_download_arguments``.
        report: takes lines for people.

    Raises:
        HybridGLError: an argument is wrong, a file cannot be got, or the disk refuses.
    """
    if arguments.list:
        report(_listing())
        return
    items = _chosen(arguments.items)
    job = _Job(
        arguments.weights_folder or weights_folder(), arguments.data_root, arguments.mirror, report
    )
    job.check(items)
    for item in items:
        job.get(item)
    if job.num_archives:
        report(f"the archives in {job.downloads} are not needed any more, and can be deleted")


def _listing() -> str:
    lines = [f"{name}: {', '.join(members)}" for name, members in GROUPS.items()]
    for item in ITEMS.values():
        lines.append(f"{item.name}: {item.about}; {item.kind.value.format(name=item.name)}")
        lines += [f"    {url}" for file in item.files for url in file.urls]
    return "\n".join(lines)


def _chosen(names: Sequence[str]) -> list[Item]:
    right = ", ".join((*GROUPS, *ITEMS))
    if not names:
        raise HybridGLError(f"Expected what to download, got nothing. Name any of {right}.")
    for name in names:
        if name not in ITEMS and name not in GROUPS:
            raise HybridGLError(f"Expected items among {right}; got {name!r}.")
    chosen = {single for name in names for single in GROUPS.get(name, (name,))}
    return [item for item in ITEMS.values() if item.name in chosen]


@dataclass(slots=True)
class _Job:
    """Where things go and come from.

    Attributes:
        weights_folder: for weights.
        data_root: for datasets.
        mirrors: beginnings of URLs.
        report: takes lines for people.
        num_archives: so far unpacked.
    """

    weights_folder: Path
    data_root: Path
    mirrors: Sequence[str]
    report: Callable[[str], None]
    num_archives: int = field(default=0, init=False)

    @property
    def downloads(self) -> Path:
        """Where archives lie."""
        return self.data_root / "downloads"

    def check(self, items: Sequence[Item]) -> None:
        """Refuse, before any work, what cannot come to an end."""
        for mirror in self.mirrors:
            _check_mirror(mirror)
        _check_folder(self.weights_folder, "--weights_folder")
        _check_folder(self.data_root, "--data_root")
        kinds = {item.kind for item in items}
        if Kind.PHRASECUT in kinds:
            self._check_phrasecut()
        if Kind.COCO_IMAGES in kinds and Kind.ANNOTATIONS not in kinds:
            self._instances()
        if Kind.VISUAL_GENOME_IMAGES in kinds and Kind.PHRASECUT not in kinds:
            self._image_data()

    def get(self, item: Item) -> None:
        """Get one item."""
        if item.kind is Kind.WEIGHTS:
            for file in item.files:
                self._fetch(file, self.weights_folder, "--weights_folder")
        elif item.kind is Kind.SPACY:
            self._install_spacy_model()
        elif item.kind is Kind.ANNOTATIONS:
            self._get_annotations(item)
        elif item.kind is Kind.PHRASECUT:
            self._get_phrasecut(item)
        elif item.kind is Kind.COCO_IMAGES:
            folder = self.data_root / "images/mscoco/images/train2014"
            names = {name for path in self._instances() for name in _image_names(path)}
            self._get_images(item, folder, names)
        else:
            names = _names_by_id(self._image_data())
            self._get_images(item, self.data_root / "phrasecut/images", names)

    def _fetch(self, file: RemoteFile, folder: Path, option: str) -> None:
        fetch(file, folder, mirrors=self.mirrors, option=option, report=self.report)

    def _unpack(self, file: RemoteFile, folder: Path, is_wanted: Callable[[str], bool]) -> set[str]:
        self._fetch(file, self.downloads, "--data_root")
        self.num_archives += 1
        archive = self.downloads / file.name
        return unpack(archive, folder, is_wanted, option="--data_root", report=self.report)

    def _get_annotations(self, item: Item) -> None:
        folder = self.data_root / item.name
        (file,) = item.files
        if not (self.downloads / file.name).is_file() and _are_annotations(
            {path.name for path in folder.glob("*")}
        ):
            self.report(f"already there: {folder}")
        elif not _are_annotations(self._unpack(file, folder, _is_annotation)):
            raise HybridGLError(
                f"Expected {_INSTANCES} and refs(*).p in {self.downloads / file.name}, found them "
                f"not. Delete it and name another source with --mirror URL_PREFIX."
            )

    def _get_phrasecut(self, item: Item) -> None:
        try:
            for file in item.files:
                self._fetch(file, self.data_root / "phrasecut", "--data_root")
        except NoSourceError as error:
            raise HybridGLError(f"{error} Otherwise, {self._about_phrasecut()}") from error

    def _get_images(self, item: Item, folder: Path, names: set[str]) -> None:
        had_all = not _lacking(folder, names)
        for file in item.files:
            if not had_all or (self.downloads / file.name).is_file():
                self._unpack(file, folder, names.__contains__)
        lacking = _lacking(folder, names)
        if lacking:
            raise HybridGLError(
                f"Expected {len(names)} images in {folder}, found {len(lacking)} of them in no "
                f"archive, the first {lacking[0]}. Check that the annotations are of this dataset."
            )
        self.report(f"all {len(names)} images that the annotations name are in {folder}")

    def _install_spacy_model(self) -> None:
        if importlib.util.find_spec(SPACY_MODEL):
            self.report(f"already there: {SPACY_MODEL}")
            return
        command = [sys.executable, "-m", "spacy", "download", SPACY_MODEL]
        self.report(f"running {' '.join(command)}")
        status = subprocess.run(command, check=False).returncode
        if status:
            raise HybridGLError(
                f"Expected `python -m spacy download {SPACY_MODEL}` to install the model, it ended "
                f"with status {status}. Mend what it says above, or install the wheel of "
                f"{SPACY_MODEL} that fits this spaCy with pip."
            )

    def _instances(self) -> list[Path]:
        paths = [self.data_root / dataset / _INSTANCES for dataset in COCO_DATASETS]
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise HybridGLError(
                f"Expected {_INSTANCES} of {', '.join(COCO_DATASETS)} or several of them below "
                f"{self.data_root}, which say what images are needed; found none. Download "
                f"annotations first: `hybridgl download refcoco`."
            )
        return paths

    def _image_data(self) -> Path:
        path = self.data_root / "phrasecut" / _IMAGE_DATA
        if not path.is_file():
            raise HybridGLError(
                f"Expected {path}, which says what images are needed; found no such file. Get the "
                f"annotations first: {self._about_phrasecut()}"
            )
        return path

    def _check_phrasecut(self) -> None:
        folder = self.data_root / "phrasecut"
        lacking = _lacking(folder, {file.name for file in ITEMS["phrasecut"].files})
        if lacking and not self.mirrors:
            raise HybridGLError(
                f"Expected PhraseCut's annotations in {folder}, found no {', '.join(lacking)}; "
                f"{self._about_phrasecut()}"
            )

    def _about_phrasecut(self) -> str:
        return (
            f"no lasting address of them is known, so put refer_SPLIT.json and {_IMAGE_DATA}, "
            f"which the download script of github.com/ChenyunWu/PhraseCutDataset fetches, into "
            f"{self.data_root / 'phrasecut'}, or name a copy with --mirror URL_PREFIX."
        )


def _check_mirror(mirror: str) -> None:
    try:
        parts = urlsplit(mirror)
        right = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        right = False
    if not right:
        raise HybridGLError(
            f"Expected --mirror to begin with http:// or https:// and a host, got {mirror!r}."
        )


def _check_folder(folder: Path, option: str) -> None:
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise HybridGLError(
            f"Expected a folder, got the file {nearest}. Give another {option} DIR."
        )


def _is_annotation(name: str) -> bool:
    return name == _INSTANCES or _REFS.fullmatch(name) is not None


def _are_annotations(names: set[str]) -> bool:
    return _INSTANCES in names and any(map(_REFS.fullmatch, names))


def _lacking(folder: Path, names: set[str]) -> list[str]:
    return sorted(name for name in names if not (folder / name).is_file())


def _image_names(path: Path) -> set[str]:
    """Names of the images of COCO annotations."""
    try:
        names = {image["file_name"] for image in json.loads(path.read_bytes())["images"]}
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a file_name is no text")
    except (ValueError, TypeError, LookupError) as error:
        raise _unreadable(path, "images, each with a file_name", error) from error
    return names


def _names_by_id(path: Path) -> set[str]:
    """Names of the images of PhraseCut's list."""
    try:
        return {f"{int(image['image_id'])}.jpg" for image in json.loads(path.read_bytes())}
    except (ValueError, TypeError, LookupError) as error:
        raise _unreadable(path, "a list of images, each with an image_id", error) from error


def _unreadable(path: Path, expected: str, error: Exception) -> HybridGLError:
    return HybridGLError(
        f"Expected {expected} in {path}, cannot read them ({type(error).__name__}: {error}). "
        f"Fetch the file again."
    )
