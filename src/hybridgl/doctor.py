"""Look at packages, device, memory and weights: what is missing or wrong, and the fix of each.

Datasets and the store of results, which are outside the library, are looked at by ``refer.doctor``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from hybridgl.download import GROUPS, WEIGHTS, RemoteFile
from hybridgl.files import file_sha256, nearest_existing
from hybridgl.weights.registry import (
    RELEASED_PARSER,
    SPACY_MODEL,
    weight_set,
    weights_folder,
)

__all__ = [
    "Check",
    "add_doctor_arguments",
    "disk_check",
    "doctor",
    "folder_checks",
    "guarded",
    "move_away",
    "show",
]

_ROOT = Path(__file__).parents[2]
"""Of the clone, where it is one."""

_INSTALL = f"{shlex.quote(sys.executable)} -m pip install"
_WEIGHTS_GB = 4
"""Room for the paper's weights and spaCy's model."""
_BYTES_OF_GB = 10**9


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        group: heading.
        name: what.
        status: "wrong" is damaged, or not what it must be.
        found: what is there.
        expected: what should be; empty where ``found`` says all.
        fix: the one command that fixes it; empty where nothing is to be fixed.
    """

    group: str
    name: str
    status: Literal["ok", "missing", "wrong"]
    found: str
    expected: str = ""
    fix: str = ""


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``doctor`` reads."""
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def doctor(arguments: argparse.Namespace, report: Callable[[str], None]) -> bool:
    """Look at everything and report it.

    Args:
        arguments: as of ``add_doctor_arguments``.
        report: takes the text.

    Returns:
        Whether nothing is wrong; what is only missing is not wrong.
    """
    checks = [
        *_packages(),
        *guarded(_machine(), "machine", "machine", _ROOT),
        *guarded(_weights(), "weights", "weights", weights_folder()),
    ]
    note = "datasets and the store of results: python -m refer doctor, in a clone of the repository"
    return show(checks, report, as_json=arguments.json, note=note)


def show(
    checks: Iterable[Check], report: Callable[[str], None], *, as_json: bool, note: str
) -> bool:
    """Report checks as text, which ends with a note, or as JSON; return whether none is wrong."""
    checks = list(checks)
    statuses = [check.status for check in checks]
    if as_json:
        counts = {status: statuses.count(status) for status in ("ok", "missing", "wrong")}
        rows = [asdict(check) for check in checks]
        report(json.dumps({"checks": rows, "counts": counts}, indent=2))
        return "wrong" not in statuses
    width = max((len(check.name) for check in checks), default=0)
    for group in dict.fromkeys(check.group for check in checks):
        report(group)
        for check in (check for check in checks if check.group == group):
            expected = f" (expected: {check.expected})" if check.expected else ""
            report(f"  {check.status:<7}  {check.name:<{width}}  {check.found}{expected}")
            if check.fix:
                report(f"  {'':<7}  {'':<{width}}  -> {check.fix}")
        report("")
    report(f"{statuses.count('wrong')} wrong, {statuses.count('missing')} missing; {note}")
    return "wrong" not in statuses


def guarded(checks: Iterable[Check], group: str, name: str, folder: Path) -> Iterator[Check]:
    """Yield checks of a folder; in place of what stops them, one that says what it was."""
    try:
        yield from checks
    except Exception as error:  # whatever is damaged in whatever way, the rest is looked at
        reason = " ".join(str(error).split()) or "no reason given"
        found = f"cannot be looked at, {type(error).__name__}: {reason}"
        fix = _permit(folder) if isinstance(error, PermissionError) else ""
        yield Check(group, name, "wrong", found, "something that can be read", fix)


def folder_checks(group: str, folder: Path) -> list[Check]:
    """Return what keeps a path from being a folder that can be read, if anything does."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        found = f"{nearest} is no folder"
        return [Check(group, str(folder), "wrong", found, "a folder", move_away(nearest))]
    if nearest == folder and not os.access(folder, os.R_OK | os.X_OK):
        found, expected = f"{folder} cannot be read", "a folder that can be read"
        return [Check(group, str(folder), "wrong", found, expected, _permit(folder))]
    return []


def disk_check(group: str, folder: Path, gigabytes: int, fix: str, *, is_needed: bool) -> Check:
    """Compare the free disk of a folder with what is still to be fetched into it, if anything."""
    free = shutil.disk_usage(nearest_existing(folder)).free
    found, expected = f"{free / _BYTES_OF_GB:.1f} GB for {folder}", f"{gigabytes} GB"
    if free >= gigabytes * _BYTES_OF_GB or not is_needed:
        return Check(group, "free disk", "ok", found, expected if is_needed else "")
    return Check(group, "free disk", "missing", found, expected, fix)


def move_away(path: Path) -> str:
    """Return the command that makes room where something wrong lies, and keeps it."""
    places = (path.with_name(f"{path.name}.old{number or ''}") for number in range(1000))
    free = next(place for place in places if not os.path.lexists(place))
    return shlex.join(["mv", str(path), str(free)])


def _permit(folder: Path) -> str:
    return shlex.join(["chmod", "-R", "u+rwX", str(folder)])


def _packages() -> Iterator[Check]:
    yield Check("packages", "Python", "ok", f"{platform.python_version()} ({sys.executable})")
    try:
        needed = ["hybridgl", *(line for line in requires("hybridgl") or [] if "extra" not in line)]
    except PackageNotFoundError:
        needed = ["hybridgl"]
    for requirement in needed:
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            yield Check("packages", name, "ok", version(name))
        except PackageNotFoundError:
            what = (
                f"-e {shlex.quote(str(_ROOT))}" if name == "hybridgl" else shlex.quote(requirement)
            )
            yield Check("packages", name, "missing", "none", requirement, f"{_INSTALL} {what}")


def _machine() -> Iterator[Check]:
    yield Check("machine", "CPU", "ok", f"{os.cpu_count()} cores, {platform.machine()}")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Check("machine", "memory", "ok", f"{memory / _BYTES_OF_GB:.1f} GB")
    import torch

    if not torch.cuda.is_available():
        yield Check("machine", "GPU", "ok", f"none that torch {torch.__version__!s} can use")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found = f"{device.name}, {device.total_memory / _BYTES_OF_GB:.1f} GB"
        yield Check("machine", f"GPU {index}", "ok", found)


def _weights() -> Iterator[Check]:
    yield _bundled()
    folder = weights_folder()
    blocked = folder_checks("weights", folder)
    checks = blocked or [
        check for item, file in WEIGHTS.items() for check in _weights_file(folder, item, file)
    ]
    checks.append(_parser())
    yield from checks
    is_needed = any(check.status == "missing" for check in checks)
    fix = "export HYBRIDGL_WEIGHTS=FOLDER_ON_A_LARGER_DISK"
    yield disk_check("weights", folder, _WEIGHTS_GB, fix, is_needed=is_needed)


def _parser() -> Check:
    """Name the parser, beside the released program's where it is another one."""
    parser = weight_set("paper").parser
    if parser.model_version is None:
        fix = "hybridgl download spacy"
        return Check("weights", SPACY_MODEL, "missing", "none", "installed", fix)
    expected = "" if parser.is_released else f"{RELEASED_PARSER}, to compare with published values"
    return Check("weights", SPACY_MODEL, "ok", str(parser), expected)


def _bundled() -> Check:
    """Look at the weights of the package, whose files have checksums of their own."""
    tiny = weight_set("tiny")
    wrong = []
    for path in (tiny.clip_weights, tiny.sam_checkpoint):
        try:
            with zipfile.ZipFile(path) as arrays:
                damaged = arrays.testzip()
        except Exception as error:  # a damaged file can fail in any part of its reader
            damaged = f"{type(error).__name__}: {error}"
        wrong += [f"{path} is damaged ({damaged})"] if damaged else []
    if not (Path(tiny.spacy_model) / "meta.json").is_file():
        wrong.append(f"no {tiny.spacy_model}/meta.json")
    folder = tiny.clip_weights.parent
    if not wrong:
        return Check("weights", "tiny (bundled)", "ok", f"in {folder}")
    fix = f"{_INSTALL} --force-reinstall --no-deps .  # in a clone of the repository"
    if (_ROOT / ".git").exists():
        fix = shlex.join(["git", "-C", str(_ROOT), "checkout", "--", str(folder)])
    return Check("weights", "tiny (bundled)", "wrong", ", ".join(wrong), "whole files", fix)


def _weights_file(folder: Path, item: str, file: RemoteFile) -> Iterator[Check]:
    """Compare a published file with its checksum; only the paper's have to be there."""
    path, fix, expected = folder / file.name, f"hybridgl download {item}", file.sha256[:12]
    status: Literal["ok", "missing", "wrong"] = "wrong"
    if not os.path.lexists(path):
        if item not in GROUPS["paper"]:
            return
        status, found = "missing", f"no {path}"
    else:
        try:
            sha256 = file_sha256(path)
            status = "ok" if sha256.startswith(file.sha256) else "wrong"
            found = f"{path}, sha256 {sha256[:12]}"
        except OSError as error:
            found, fix = f"{path}: {error.strerror}", f"{move_away(path)} && {fix}"
    expected = "" if status == "ok" else f"sha256 {expected}"
    yield Check("weights", item, status, found, expected, "" if status == "ok" else fix)
