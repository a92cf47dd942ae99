"""``hybridgl doctor``: what is there, what is missing or damaged, and the command that fixes it.

The library looks at packages, device, memory and weights. What lies outside it, datasets and the
store of results, is looked at by ``refer.doctor`` where the library runs from a clone of the
repository.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.torch_version import TorchVersion

from hybridgl.downloads.catalogue import GROUPS, SPACY_MODEL
from hybridgl.files import file_sha256
from hybridgl.weights.registry import (
    CLIP_FILES,
    SAM_FILES,
    WeightsFile,
    weight_set,
    weights_folder,
)

__all__ = [
    "Check",
    "Places",
    "Status",
    "add_doctor_arguments",
    "checks_of_place",
    "doctor",
    "existing_parent",
    "move_away",
    "survived",
]

_PACKAGES = (
    "hybridgl",
    "torch",
    "torchvision",
    "open_clip_torch",
    "segment-anything",
    "spacy",
    "pycocotools",
    "opencv-python-headless",
    "numpy",
    "pillow",
    "safetensors",
)

_PUBLISHED = (*SAM_FILES.values(), *CLIP_FILES.values())

_ROOT = Path(__file__).parents[1]
"""Of the clone, where it is one."""

_INSTALL = f"{shlex.quote(sys.executable)} -m pip install"

_LEAST_PYTHON = (3, 11)

_BYTES = 10**9
_WEIGHTS_BYTES = 4 * _BYTES
"""Room for the paper's weights and spaCy's model."""


class Status(Enum):
    """How something is."""

    OK = "ok"
    OPTIONAL = "not there"
    """Not needed for the published setting, nor for the demo."""
    MISSING = "missing"
    WRONG = "wrong"
    """Damaged, or not what it must be."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        group: heading.
        name: what.
        status: how it is.
        found: what is there.
        expected: what should be; empty where ``found`` says all.
        fix: the one command that fixes it; empty where nothing is to be fixed.
    """

    group: str
    name: str
    status: Status
    found: str
    expected: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Folders that are looked at.

    Attributes:
        data_root: of the datasets.
        store: of the results of stages.
    """

    data_root: Path
    store: Path


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``doctor`` reads."""
    parser.add_argument(
        "--refer_data_root",
        "--data_root",
        dest="data_root",
        type=Path,
        default=Path("refer/data"),
        metavar="DIR",
        help="where the datasets lie (default: %(default)s)",
    )
    parser.add_argument(
        "--store",
        type=Path,
        default=Path("store"),
        metavar="DIR",
        help="where the results of stages are kept (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def doctor(arguments: argparse.Namespace, report: Callable[[str], None]) -> bool:
    """Look at everything and report it.

    Args:
        arguments: parsed.
        report: takes the text.

    Returns:
        Whether nothing is wrong; what is only missing is not wrong.
    """
    places = Places(arguments.data_root, arguments.store)
    checks = list(_checks(places))
    if arguments.json:
        rows = [{**asdict(check), "status": check.status.name.lower()} for check in checks]
        counts = {
            status.name.lower(): sum(check.status is status for check in checks)
            for status in Status
        }
        report(json.dumps({"checks": rows, "counts": counts}, indent=2))
    else:
        report(_text(checks))
    return not any(check.status is Status.WRONG for check in checks)


def existing_parent(path: Path) -> Path:
    """The nearest folder above a path, or itself, that is there."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())


def move_away(path: Path) -> str:
    """The command that makes room where something wrong lies, and keeps it."""
    free = (path.with_name(f"{path.name}.old{number or ''}") for number in range(1000))
    place = next(place for place in free if not os.path.lexists(place))
    return shlex.join(["mv", str(path), str(place)])


def checks_of_place(group: str, folder: Path) -> list[Check]:
    """What keeps a folder from being one, of itself or of those above it; empty where nothing does.

    Args:
        group: heading.
        folder: may be missing.
    """
    absolute = folder.absolute()
    nearest = next(place for place in (absolute, *absolute.parents) if os.path.lexists(place))
    if not nearest.is_dir():
        found = f"{nearest} is no folder"
        return [Check(group, str(folder), Status.WRONG, found, "a folder", move_away(nearest))]
    if nearest == absolute and not os.access(folder, os.R_OK | os.X_OK):
        found, expected = f"{nearest} cannot be read", "a folder that can be read"
        return [Check(group, str(folder), Status.WRONG, found, expected, _let_in(nearest))]
    return []


def survived(checks: Iterable[Check], group: str, name: str) -> Iterator[Check]:
    """The checks; in place of what stops them, one that says what it was.

    Args:
        checks: that may fail.
        group: heading.
        name: what they are of.
    """
    try:
        yield from checks
    except Exception as error:  # whatever is damaged in whatever way, the rest is looked at
        reason = " ".join(str(error).split()) or "no reason given"
        yield Check(
            group,
            name,
            Status.WRONG,
            f"cannot be looked at, {type(error).__name__}: {reason}",
            "something that can be read",
            _mend_of(error),
        )


def _mend_of(error: Exception) -> str:
    """The command that installs what is lacking, or lets through where something was denied."""
    if isinstance(error, ImportError):
        return f"{_INSTALL} -e {shlex.quote(str(_ROOT))}"
    if not isinstance(error, PermissionError) or not isinstance(error.filename, str | Path):
        return ""
    path = Path(error.filename).absolute()
    closed = (folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK))
    return _let_in(next(closed, path))


def _let_in(path: Path) -> str:
    return shlex.join(["chmod", "-R", "u+rwX", str(path)])


def _checks(places: Places) -> Iterator[Check]:
    yield from survived(_software(), "software", "packages")
    yield from survived(_machine(), "machine", "machine")
    yield from survived(_weights(), "weights", "weights")
    if (_ROOT / "suite" / "doctor.py").is_file():
        yield from survived(_of_the_suite(places), "data", "datasets and store")
    else:
        yield Check(
            "data",
            "datasets and store",
            Status.OPTIONAL,
            "not looked at: that code is in the repository, outside the installed library",
            fix="make demo, in a clone of the repository",
        )


def _of_the_suite(places: Places) -> Iterator[Check]:
    # The suite is no part of the installed library, and is looked for beside it alone.
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    yield from importlib.import_module("refer.doctor").data_checks(places)


def _software() -> Iterator[Check]:
    found = platform.python_version()
    old = sys.version_info < _LEAST_PYTHON
    needed = ".".join(map(str, _LEAST_PYTHON))
    yield Check(
        "software",
        "Python",
        Status.WRONG if old else Status.OK,
        f"{found} ({sys.executable})",
        f"at least {needed}",
        f"install Python {needed} or newer, then make demo" if old else "",
    )
    for name in _PACKAGES:
        try:
            yield Check("software", name, Status.OK, version(name))
        except PackageNotFoundError:
            what = f"-e {shlex.quote(str(_ROOT))}" if name == "hybridgl" else name
            found, fix = "not installed", f"{_INSTALL} {what}"
            yield Check("software", name, Status.MISSING, found, "installed", fix)


def _machine() -> Iterator[Check]:
    yield Check("machine", "CPU", Status.OK, f"{os.cpu_count()} cores, {platform.machine()}")
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    yield Check("machine", "memory", Status.OK, f"{pages * page_bytes / _BYTES:.1f} GB")
    built_for = f"torch {TorchVersion(torch.__version__)}"
    if not torch.cuda.is_available():
        yield Check("machine", "GPU", Status.OPTIONAL, f"none that {built_for} can use")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / _BYTES:.1f} GB"
        yield Check("machine", f"GPU {index}", Status.OK, f"{properties.name}, {memory}")


def _weights() -> Iterator[Check]:
    yield _bundled()
    folder = weights_folder()
    blocked = checks_of_place("weights", folder)
    checks = [] if blocked else [_weights_file(folder, file) for file in _PUBLISHED]
    yield from blocked
    yield from checks
    try:
        spacy = Check("weights", SPACY_MODEL, Status.OK, version(SPACY_MODEL))
    except PackageNotFoundError:
        fix = "hybridgl download spacy"
        spacy = Check("weights", SPACY_MODEL, Status.MISSING, "not installed", "installed", fix)
    yield spacy
    needs_room = any(check.status is Status.MISSING for check in (*checks, spacy))
    free = shutil.disk_usage(existing_parent(folder)).free
    enough = free >= _WEIGHTS_BYTES or not needs_room
    yield Check(
        "weights",
        "free disk",
        Status.OK if enough else Status.MISSING,
        f"{free / _BYTES:.1f} GB for {folder}",
        f"{_WEIGHTS_BYTES / _BYTES:.0f} GB for all of the paper's weights" if needs_room else "",
        "" if enough else "export HYBRIDGL_WEIGHTS=FOLDER_ON_A_LARGER_DISK",
    )


def _bundled() -> Check:
    tiny = weight_set("tiny")
    image_errors = tiny.missing()
    if not image_errors:
        image_errors = [
            error for path in (tiny.clip_weights, tiny.sam_checkpoint) for error in _npz(path)
        ]
    if not (Path(tiny.spacy_model) / "meta.json").is_file():
        image_errors.append(f"no {tiny.spacy_model}/meta.json")
    fix = f"git -C {shlex.quote(str(_ROOT))} checkout -- hybridgl/weights/tiny"
    return Check(
        "weights",
        "tiny (bundled)",
        Status.WRONG if image_errors else Status.OK,
        " ".join(image_errors) or f"in {tiny.clip_weights.parent}",
        "whole files, as they are in the repository" if image_errors else "",
        fix if image_errors else "",
    )


def _npz(path: Path) -> list[str]:
    """What is wrong with a file of arrays, by its own checksums."""
    try:
        with zipfile.ZipFile(path) as arrays:
            damaged = arrays.testzip()
    except Exception as error:  # a damaged file can fail in any part of its reader
        return [f"{path} is damaged ({type(error).__name__}: {error})."]
    return [f"{path} is damaged, in {damaged}."] if damaged else []


def _weights_file(folder: Path, file: WeightsFile) -> Check:
    """One published file, compared with its checksum."""
    path, fix = folder / file.name, f"hybridgl download {file.item}"
    expected = f"sha256 {file.sha256[:12]}"
    if not os.path.lexists(path):
        needed = file.item in GROUPS["paper"]
        status = Status.MISSING if needed else Status.OPTIONAL
        return Check("weights", file.item, status, f"no {path}", expected, fix)
    if not path.is_file():
        found, fix = f"{path} is no file", f"{move_away(path)} && {fix}"
        return Check("weights", file.item, Status.WRONG, found, expected, fix)
    try:
        digest = file_sha256(path)
    except OSError as error:
        found, fix = f"{path}: {error.strerror}", _mend_of(error) or f"{move_away(path)} && {fix}"
        return Check("weights", file.item, Status.WRONG, found, expected, fix)
    found = f"{path}, sha256 {digest[:12]}"
    if digest.startswith(file.sha256):
        return Check("weights", file.item, Status.OK, found)
    return Check("weights", file.item, Status.WRONG, found, expected, fix)


def _text(checks: list[Check]) -> str:
    """Lines under headings, and what to do."""
    lines: list[str] = []
    width = max(len(check.name) for check in checks)
    for group in dict.fromkeys(check.group for check in checks):
        lines += ["", group]
        for check in checks:
            if check.group != group:
                continue
            expected = f" (expected: {check.expected})" if check.expected else ""
            lines.append(
                f"  {check.status.value:<9}  {check.name:<{width}}  {check.found}{expected}"
            )
            if check.fix:
                lines.append(f"  {'':<9}  {'':<{width}}  -> {check.fix}")
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    lines += ["", f"{counts[Status.WRONG]} wrong, {counts[Status.MISSING]} missing"]
    lacks_packages = any(c.group == "software" and c.status is Status.MISSING for c in checks)
    if not counts[Status.WRONG] and not lacks_packages:
        lines[-1] += "; the demo needs nothing that is missing here"
    return "\n".join(lines[1:])
