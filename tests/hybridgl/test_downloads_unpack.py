"""Unpacking archives, whole and damaged, friendly and not."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import threading
import zipfile
from pathlib import Path

import pytest

from hybridgl.downloads import disk
from hybridgl.downloads.disk import alone
from hybridgl.downloads.unpack import unpack
from hybridgl.errors import HybridGLError

CONTENTS = {
    "one.jpg": random.Random(1).randbytes(5_000),
    "two.jpg": b"two" * 1_000,
    "three.jpg": b"",
}


def make_archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


@pytest.fixture
def archive(tmp_path):
    members = [("train/", b""), *((f"train/{name}", CONTENTS[name]) for name in CONTENTS)]
    return make_archive(tmp_path / "train.zip", [*members, ("train/unwanted.txt", b"no")])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "folder"


def take(archive, folder, is_wanted=CONTENTS.__contains__, lines=None):
    lines = [] if lines is None else lines
    return unpack(archive, folder, is_wanted, option="--data_root", report=lines.append)


def contents(folder):
    if not folder.exists():
        return {}
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(archive, folder, match, **named):
    with pytest.raises(HybridGLError, match=match) as refused:
        take(archive, folder, **named)
    return str(refused.value)


def test_wanted_files_come_without_their_folders(archive, folder):
    lines = []
    assert take(archive, folder, lines=lines) == set(CONTENTS)
    assert contents(folder) == CONTENTS
    assert lines == [f"files unpacked to {folder}: 3, already there: 0"]
    assert sorted(path.name for path in archive.parent.iterdir()) == ["deep", "train.zip"]


def test_only_what_the_archive_has_is_promised(archive, folder):
    assert take(archive, folder, {"one.jpg", "gone.jpg"}.__contains__) == {"one.jpg"}
    assert contents(folder).keys() == {"one.jpg"}


def test_files_that_are_there_are_left_alone(archive, folder):
    take(archive, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "two.jpg").write_bytes(b"tow" * 1_000)
    (folder / "three.jpg").write_bytes(b"longer")
    lines = []
    take(archive, folder, lines=lines)
    assert contents(folder) == CONTENTS
    assert (folder / "one.jpg").stat().st_mtime_ns == before["one.jpg"]
    assert lines == [f"files unpacked to {folder}: 2, already there: 1"]


@pytest.mark.parametrize(
    "name",
    [
        "../one.jpg",
        "../../../../one.jpg",
        "/one.jpg",
        "train/../../one.jpg",
        "..\\..\\one.jpg",
        "C:\\one.jpg",
        "C:/one.jpg",
    ],
)
def test_names_that_point_elsewhere_stay_in_the_folder(tmp_path, folder, name):
    evil = make_archive(tmp_path / "evil.zip", [(name, b"evil")])
    assert take(evil, folder, lambda _: True) == {"one.jpg"}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [evil, folder / "one.jpg"]


@pytest.mark.parametrize("name", ["..", "a/..", "a/b/../..", "/", "a/", "."])
def test_names_of_no_file_are_left_out(tmp_path, folder, name):
    evil = make_archive(tmp_path / "evil.zip", [(name, b"")])
    assert take(evil, folder, lambda _: True) == set()
    assert contents(folder) == {}


def test_links_come_as_plain_files(tmp_path, folder):
    link = zipfile.ZipInfo("one.jpg")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    take(tmp_path / "evil.zip", folder)
    assert not (folder / "one.jpg").is_symlink()
    assert contents(folder) == {"one.jpg": b"/etc/passwd"}


def test_link_that_is_there_is_replaced_and_not_followed(archive, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder.mkdir(parents=True)
    (folder / "one.jpg").symlink_to(outside)
    take(archive, folder)
    assert outside.read_bytes() == b"mine"
    assert contents(folder) == CONTENTS


def test_two_files_of_one_name_are_an_error_where_they_differ(tmp_path, folder):
    pair = [("a/one.jpg", b"one"), ("b/one.jpg", b"two")]
    refusal = assert_refused(make_archive(tmp_path / "a.zip", pair), folder, "which differ")
    assert "a/one.jpg and b/one.jpg" in refusal
    assert contents(folder) == {}
    twins = make_archive(tmp_path / "b.zip", [("a/one.jpg", b"one"), ("b/one.jpg", b"one")])
    assert take(twins, folder) == {"one.jpg"}


class TestDamage:
    @pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 and no more"])
    def test_file_that_is_no_archive_is_named(self, tmp_path, folder, content):
        (tmp_path / "a.zip").write_bytes(content)
        message = assert_refused(tmp_path / "a.zip", folder, "Expected a whole zip file")
        assert str(tmp_path / "a.zip") in message
        assert "Delete it and run the same command again" in message
        assert not folder.exists()

    def test_archive_that_is_cut_short_is_named(self, archive, folder):
        archive.write_bytes(archive.read_bytes()[:-30])
        assert_refused(archive, folder, "Expected a whole zip file")
        assert contents(folder) == {}

    def test_wrong_bytes_of_a_member_are_noticed(self, tmp_path, folder):
        members = [("one.jpg", b"one" * 99), ("two.jpg", b"two" * 99)]
        archive = make_archive(tmp_path / "a.zip", members, zipfile.ZIP_STORED)
        archive.write_bytes(archive.read_bytes().replace(b"twotwo", b"tootwo", 1))
        assert_refused(archive, folder, r"Expected a whole zip file.*Bad CRC-32.*two\.jpg")
        assert contents(folder) == {"one.jpg": b"one" * 99}

    def test_name_that_is_no_text_is_noticed(self, tmp_path, folder):
        archive = make_archive(tmp_path / "a.zip", [("\N{LATIN SMALL LETTER E WITH ACUTE}", b"")])
        archive.write_bytes(archive.read_bytes().replace(b"\xc3\xa9", b"\xc3\xc3"))
        assert_refused(archive, folder, "Expected a whole zip file")

    def test_unknown_compression_is_noticed(self, archive, folder):
        content = bytearray(archive.read_bytes())
        start = content.rindex(b"PK\x01\x02", 0, content.rindex(b"train/one.jpg"))
        content[start + 10] = 77
        archive.write_bytes(content)
        assert_refused(archive, folder, "Expected a whole zip file.*compression")

    def test_archive_with_a_password_is_named(self, archive, folder):
        content = bytearray(archive.read_bytes())
        start = content.index(b"PK\x01\x02")
        while start >= 0:
            content[start + 8] |= 1
            start = content.find(b"PK\x01\x02", start + 4)
        archive.write_bytes(content)
        assert_refused(archive, folder, "password required")

    def test_anywhere_leaves_whole_files_or_none(self, tmp_path):
        """Every right file or an error, whatever byte is wrong and wherever the archive ends."""
        members = [(f"train/{name}", content[:300]) for name, content in CONTENTS.items()]
        whole = make_archive(tmp_path / "whole.zip", members).read_bytes()
        expected = {name: content[:300] for name, content in CONTENTS.items()}
        draw, damaged, refused = random.Random(0), tmp_path / "damaged.zip", 0
        for turn in range(400):
            content = bytearray(whole)
            if turn % 4:
                content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            else:
                del content[draw.randrange(len(whole)) :]
            damaged.write_bytes(content)
            folder = tmp_path / f"folder {turn}"
            try:
                names = take(damaged, folder)
            except HybridGLError:
                refused += 1
                names = set()
            found = contents(folder)
            assert names <= found.keys() <= expected.keys()
            assert all(expected[name] == content for name, content in found.items())
        assert 100 < refused < 400


class TestDisk:
    def test_that_is_too_small_is_said_before_anything_is_written(
        self, archive, folder, monkeypatch
    ):
        set_free_space(monkeypatch, 7_999)
        message = assert_refused(archive, folder, r"8\.0 kB of free space")
        assert "--data_root DIR" in message
        assert contents(folder) == {}

    def test_needs_space_for_what_is_lacking_only(self, archive, folder, monkeypatch):
        folder.mkdir(parents=True)
        (folder / "one.jpg").write_bytes(CONTENTS["one.jpg"])
        set_free_space(monkeypatch, 3_000)
        take(archive, folder)
        assert contents(folder) == CONTENTS

    def test_that_fills_up_leaves_whole_files_only(self, archive, folder, monkeypatch):
        real, opened = Path.open, []

        def open_on_full_disk(path, mode="r"):
            stream = real(path, mode)
            if mode == "wb":
                opened.append(path)
                if len(opened) == 2:
                    stream.close()
                    return FullDisk(path)
            return stream

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", open_on_full_disk)
            message = assert_refused(archive, folder, "No space left")
        assert f"Cannot write {folder / 'two.jpg'}" in message
        assert contents(folder) == {"one.jpg": CONTENTS["one.jpg"]}
        take(archive, folder)
        assert contents(folder) == CONTENTS


def test_interruption_leaves_whole_files_only(archive, folder, monkeypatch):
    real, replaced = Path.replace, []

    def replace(path, target):
        replaced.append(target)
        if len(replaced) == 2:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            take(archive, folder)
    assert contents(folder) == {"one.jpg": CONTENTS["one.jpg"]}


def test_what_a_killed_process_left_is_written_over(archive, folder):
    folder.mkdir(parents=True)
    (folder / ".one.jpg.partial").write_bytes(b"half")
    take(archive, folder)
    assert contents(folder) == CONTENTS


def test_two_at_once_wait_for_each_other(archive, folder):
    waiting, lines, done = threading.Event(), [], []

    def report(line):
        lines.append(line)
        waiting.set()

    def work():
        done.append(
            unpack(archive, folder, CONTENTS.__contains__, option="--data_root", report=report)
        )

    with alone(archive, "--data_root", lambda: None):
        thread = threading.Thread(target=work)
        thread.start()
        assert waiting.wait(5)
        assert lines == [f"waiting for another process at {archive}"]
        assert contents(folder) == {}
    thread.join()
    assert done == [set(CONTENTS)]


class FullDisk:
    """An open file on a disk without space."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def set_free_space(monkeypatch, free):
    usage = type(shutil.disk_usage("/"))(total=10**12, used=0, free=free)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
