"""The library's doctor: planted faults, each with the one command that fixes it."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hybridgl import doctor
from hybridgl.cli import main
from hybridgl.doctor import Check, folder_checks, guarded, move_away, show
from hybridgl.download import GROUPS, WEIGHTS, RemoteFile
from hybridgl.weights import registry

SHA256 = hashlib.sha256(b"the weights").hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The weights folder, in a folder with a space in its name; and nothing is published."""
    folder = tmp_path / "my folder" / "weights"
    folder.parent.mkdir()
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(folder))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    # Reading the bundled weights takes most of the time of a report.
    monkeypatch.setattr(doctor, "_bundled", lambda: Check("weights", "tiny (bundled)", "ok", ""))
    monkeypatch.setattr(doctor, "version", lambda _: "1")
    monkeypatch.setattr(registry, "_version", lambda _: "1")
    for item, file in WEIGHTS.items():
        monkeypatch.setitem(WEIGHTS, item, RemoteFile(file.name, "", SHA256))
    return folder


def weights_checks():
    return {check.name: check for check in doctor._weights()}


def test_report_is_the_same_as_text_and_as_json(folder, capsys):
    folder.mkdir()
    (folder / "RN50.pt").write_bytes(b"damaged")
    assert main(["doctor"]) == 1
    text = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [check["fix"] for check in told["checks"] if check["fix"]] == [
        line.removeprefix("-> ") for line in text if line.startswith("-> ")
    ]
    for check in told["checks"]:
        line = f"{check['status']} {check['name']} {check['found']}"
        line += f" (expected: {check['expected']})" if check["expected"] else ""
        assert " ".join(line.split()) in text
        assert bool(check["fix"]) == (check["status"] != "ok")
    assert {check["group"] for check in told["checks"]} == {"packages", "machine", "weights"}
    assert (told["counts"]["wrong"], told["counts"]["missing"]) == (1, 2)
    assert text[-1].startswith("1 wrong, 2 missing; datasets and the store of results: python -m")
    (folder / "RN50.pt").unlink()
    assert main(["doctor"]) == 0, "what is only missing is not wrong"


def test_empty_weights_folder_lacks_the_papers_weights_only(folder):
    checks = weights_checks()
    missing = {name: check.fix for name, check in checks.items() if check.status == "missing"}
    assert missing == {item: f"hybridgl download {item}" for item in GROUPS["paper"][:2]}
    assert checks["free disk"].expected == "4 GB"
    folder.mkdir()
    assert weights_checks() == checks


@pytest.mark.parametrize(
    ("model", "spacy", "status", "expected"),
    [
        ("3.7.1", "3.7.4", "ok", ""),
        (
            "3.8.0",
            "3.8.1",
            "ok",
            "en_core_web_lg 3.7.1 under spaCy 3.7.6, to compare with published values",
        ),
        (
            "3.7.1",
            "3.8.1",
            "ok",
            "en_core_web_lg 3.7.1 under spaCy 3.7.6, to compare with published values",
        ),
        (None, "3.8.1", "missing", "installed"),
    ],
)
def test_parser_is_told_beside_the_released_programs(monkeypatch, model, spacy, status, expected):
    versions = {"en_core_web_lg": model, "spacy": spacy}
    monkeypatch.setattr(registry, "_version", versions.get)
    check = doctor._parser()
    assert (check.name, check.status) == ("en_core_web_lg", status)
    assert check.expected == expected
    if model:
        assert check.found == f"en_core_web_lg {model} under spaCy {spacy}"


def a_folder(path):
    path.mkdir()


def damaged(path):
    path.write_bytes(b"damaged")


def link_to_nowhere(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (damaged, f", sha256 {hashlib.sha256(b'damaged').hexdigest()[:12]}"),
        (a_folder, ": Is a directory"),
        (link_to_nowhere, ": No such file or directory"),
    ],
)
def test_wrong_weights_are_told_with_both_checksums(folder, plant, found):
    folder.mkdir()
    path = folder / "RN50.pt"
    plant(path)
    check = weights_checks()["clip-RN50"]
    assert (check.status, check.found) == ("wrong", f"{path}{found}")
    assert check.expected == f"sha256 {SHA256[:12]}"
    *before, last = check.fix.split(" && ")
    assert last == "hybridgl download clip-RN50"
    for command in before:
        subprocess.run(shlex.split(command), check=True)
    path.write_bytes(b"the weights")
    assert weights_checks()["clip-RN50"].status == "ok"


@pytest.mark.parametrize("fault", ["none", "gone", "cut short", "flipped", "without spaCy"])
def test_damaged_bundled_weights_are_told(tmp_path, monkeypatch, fault):
    for name in ("clip.npz", "sam.npz"):
        np.savez(tmp_path / name, weights=np.arange(999))
    (tmp_path / "spacy").mkdir()
    (tmp_path / "spacy/meta.json").touch()
    tiny = SimpleNamespace(
        clip_weights=tmp_path / "clip.npz",
        sam_checkpoint=tmp_path / "sam.npz",
        spacy_model=str(tmp_path / "spacy"),
    )
    monkeypatch.setattr(doctor, "weight_set", lambda _: tiny)
    path = tmp_path / "clip.npz"
    content = bytearray(path.read_bytes())
    if fault == "gone":
        path.unlink()
    elif fault == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif fault == "without spaCy":
        shutil.rmtree(tmp_path / "spacy")
    check = doctor._bundled()
    assert check.status == ("ok" if fault == "none" else "wrong")
    if fault != "none":
        assert str(tmp_path) in check.found
        assert check.fix == f"git -C {doctor._ROOT} checkout -- {tmp_path}"


def test_bundled_weights_are_whole():
    assert doctor._bundled().status == "ok"
    assert zipfile.is_zipfile(doctor.weight_set("tiny").clip_weights)


@pytest.mark.parametrize("obstacle", ["file", "file above", "link to nowhere"])
def test_path_that_is_no_folder_is_told(tmp_path, obstacle):
    path = tmp_path / "store"
    path.symlink_to("nowhere") if obstacle == "link to nowhere" else path.write_text("a file")
    folder = path / "deeper" if obstacle == "file above" else path
    (check,) = folder_checks("store", folder)
    assert (check.status, check.found, check.expected) == (
        "wrong",
        f"{path} is no folder",
        "a folder",
    )
    subprocess.run(shlex.split(check.fix), check=True)
    assert folder_checks("store", folder) == []
    path.write_text("another")
    assert move_away(path) == f"mv {path} {path}.old1"


def test_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    (check,) = folder_checks("store", tmp_path)
    assert (check.status, check.found) == ("wrong", f"{tmp_path} cannot be read")
    assert shlex.split(check.fix) == ["chmod", "-R", "u+rwX", str(tmp_path)]


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (RuntimeError("a surprise\nof two lines"), ""),
        (PermissionError(13, "no"), "chmod -R u+rwX a"),
    ],
)
def test_what_stops_a_check_is_told_in_its_place(error, fix):
    def checks():
        yield Check("data", "first", "ok", "there")
        raise error

    first, second = guarded(checks(), "data", "second", Path("a"))
    assert first.name == "first"
    assert (second.name, second.status, second.fix) == ("second", "wrong", fix)
    assert second.found.startswith(f"cannot be looked at, {type(error).__name__}: ")
    assert "\n" not in second.found
    assert not show([first, second], lambda _: None, as_json=False, note="")


def test_package_that_is_missing_is_told_with_this_python(monkeypatch):
    version = doctor.version

    def without(name):
        if name == "segment-anything":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without)
    checks = {check.name: check for check in doctor._packages()}
    check = checks.pop("segment-anything")
    assert (check.status, check.expected) == ("missing", "segment-anything>=1.0")
    assert check.fix.endswith("python -m pip install 'segment-anything>=1.0'")
    assert {"Python", "hybridgl", "torch", "open_clip_torch", "requests"} <= checks.keys()
    assert {check.status for check in checks.values()} == {"ok"}


@pytest.mark.parametrize(("free", "status"), [(3.9, "missing"), (4.1, "ok")])
def test_little_disk_is_told_where_it_is_needed(folder, monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * 1e9))
    check = weights_checks()["free disk"]
    assert (check.status, check.found) == (status, f"{free:.1f} GB for {folder}")
    folder.mkdir()
    for item in GROUPS["paper"][:2]:
        (folder / WEIGHTS[item].name).write_bytes(b"the weights")
    assert weights_checks()["free disk"].status == "ok"
