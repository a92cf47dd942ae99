"""``hybridgl doctor``: what is there, what is missing or damaged, and the command that mends it.

The library looks at packages, device, memory and weights. What lies outside it, datasets and the
store of results, is looked at by functions that a checkout of the repository announces under the
entry point group ``hybridgl.doctor``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import torch
from torch.torch_version import TorchVersion

from hybridgl.downloads.catalogue import GROUPS, SPACY_MODEL
from hybridgl.weights.manifest import CLIP_FILES, SAM_FILES, file_digest, weight_set, weights_folder

__all__ = ["Check", "Status", "add_doctor_arguments", "doctor", "existing_parent"]

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

_GROUP = "hybridgl.doctor"

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
        mend: the one command that mends it; empty where nothing is to be mended.
    """

    group: str
    name: str
    status: Status
    found: str
    expected: str = ""
    mend: str = ""


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


def _checks(places: Places) -> Iterator[Check]:
    yield from _software()
    yield from _machine()
    yield from _weights()
    for entry_point in sorted(entry_points(group=_GROUP), key=lambda one: one.name):
        try:
            checks: Callable[[Places], Iterable[Check]] = entry_point.load()
        except ImportError:
            yield Check(
                "data",
                entry_point.name,
                Status.OPTIONAL,
                "not looked at: that code is in the repository, outside the installed library",
                mend="make demo, in a clone of the repository",
            )
        else:
            yield from checks(places)


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
            yield Check("software", name, Status.MISSING, "-", "installed", f"pip install {name}")


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
    tiny = weight_set("tiny")
    lacking = tiny.missing()
    yield Check(
        "weights",
        "tiny (carried)",
        Status.WRONG if lacking else Status.OK,
        " ".join(lacking) or f"in {tiny.clip_weights.parent}",
        mend="git checkout -- hybridgl/weights/tiny" if lacking else "",
    )
    folder = weights_folder()
    for file in (*SAM_FILES.values(), *CLIP_FILES.values()):
        path = folder / file.name
        mend = f"hybridgl download {file.item}"
        if not path.is_file():
            needed = file.item in GROUPS["paper"]
            status = Status.MISSING if needed else Status.OPTIONAL
            yield Check("weights", file.item, status, f"no {path}", mend=mend)
            continue
        digest = file_digest(path)
        found = f"{path}, sha256 {digest[:12]}"
        if digest.startswith(file.sha256):
            yield Check("weights", file.item, Status.OK, found)
        else:
            expected = f"sha256 {file.sha256[:12]}"
            yield Check("weights", file.item, Status.WRONG, found, expected, mend)
    try:
        yield Check("weights", SPACY_MODEL, Status.OK, version(SPACY_MODEL))
    except PackageNotFoundError:
        mend = "hybridgl download spacy"
        yield Check("weights", SPACY_MODEL, Status.MISSING, "not installed", mend=mend)
    free = shutil.disk_usage(existing_parent(folder)).free
    yield Check(
        "weights",
        "free disk",
        Status.OK if free >= _WEIGHTS_BYTES else Status.MISSING,
        f"{free / _BYTES:.1f} GB for {folder}",
        f"{_WEIGHTS_BYTES / _BYTES:.0f} GB for all of the paper's weights",
        "" if free >= _WEIGHTS_BYTES else "export HYBRIDGL_WEIGHTS=FOLDER_ON_A_LARGER_DISK",
    )


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
            if check.mend:
                lines.append(f"  {'':<9}  {'':<{width}}  -> {check.mend}")
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    lines += ["", f"{counts[Status.WRONG]} wrong, {counts[Status.MISSING]} missing"]
    if not counts[Status.WRONG]:
        lines[-1] += "; the demo needs nothing that is missing here"
    return "\n".join(lines[1:])
