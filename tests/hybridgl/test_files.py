"""Hashes, writes that are whole or not at all, folders that can be used."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hybridgl.files
from hybridgl.files import (
    atomic_write_bytes,
    check_folder,
    file_sha256,
    nearest_existing,
    sweep_partials,
)


def partials(folder):
    return list(folder.rglob("*.partial"))


def test_hash_of_a_file_is_read_again_only_when_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"old")
    assert file_sha256(path) == hashlib.sha256(b"old").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert file_sha256(path) == hashlib.sha256(b"old").hexdigest()
    path.write_bytes(b"new")
    os.utime(path, ns=(0, 1))
    assert file_sha256(path) == hashlib.sha256(b"new").hexdigest()
    with pytest.raises(OSError, match="No such file"):
        file_sha256(tmp_path / "gone")


def test_nearest_folder_is_the_path_itself_or_one_above(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert nearest_existing(tmp_path) == tmp_path
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert nearest_existing(Path("a/b")) == tmp_path


def test_folder_is_refused_where_none_can_be_made_or_written(tmp_path, monkeypatch):
    check_folder(tmp_path / "new" / "deep", "--store")
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(
            NotADirectoryError, match=f"Expected a folder for --store, got the file {file}; give"
        ):
            check_folder(path, "--store")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"--output that can be written, got .*; give"):
        check_folder(tmp_path / "new", "--output")


class TestInterruptedWrite:
    @pytest.mark.parametrize("function", ["fsync", "replace"])
    @pytest.mark.parametrize("error", [OSError(errno.EIO, "disk broke"), KeyboardInterrupt()])
    def test_keeps_the_old_content_and_no_partial(self, tmp_path, monkeypatch, function, error):
        path = tmp_path / "summary.json"
        path.write_bytes(b"old")

        def fail(*_):
            assert partials(tmp_path)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(type(error)):
                atomic_write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_content_is_on_the_disk_before_it_gets_its_name(self, tmp_path, monkeypatch):
        path = tmp_path / "summary.json"
        steps = []
        fsync, replace = os.fsync, os.replace

        def note_fsync(descriptor):
            status = os.fstat(descriptor)
            steps.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
            fsync(descriptor)

        def note_replace(source, target):
            steps.append("name")
            replace(source, target)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "replace", note_replace)
        atomic_write_bytes(path, b"all of it")
        assert steps == [len(b"all of it"), "name", "folder"]

    def test_folder_that_cannot_be_flushed_is_no_error(self, tmp_path, monkeypatch):
        fsync = os.fsync

        def fail_for_folders(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail_for_folders)
        atomic_write_bytes(tmp_path / "summary.json", b"content")
        assert (tmp_path / "summary.json").read_bytes() == b"content"

    def test_two_threads_may_write_one_file(self, tmp_path):
        path = tmp_path / "summary.json"
        contents = [bytes([writer]) * 100_000 for writer in range(2)]

        def write_often(content):
            for _ in range(100):
                atomic_write_bytes(path, content)

        with ThreadPoolExecutor(max_workers=2) as threads:
            assert list(threads.map(write_often, contents)) == [None, None]
        assert path.read_bytes() in contents
        assert list(tmp_path.iterdir()) == [path]

    def test_message_names_the_option_of_the_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="with --output DIR"):
            atomic_write_bytes(tmp_path / "file" / "records.jsonl", b"")


class TestSweep:
    HERE = hybridgl.files._host()
    ELSEWHERE = "0" * 8
    DAY = 24 * 60 * 60

    @pytest.fixture
    def dead_pid(self):
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        return process.pid

    def leave(self, folder, host, pid, age_seconds=0):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".{host}-{pid}-01234567.partial"
        path.touch()
        then = time.time() - age_seconds
        os.utime(path, (then, then))
        return path

    def test_removes_what_a_dead_process_left(self, tmp_path, dead_pid):
        left = self.leave(tmp_path, self.HERE, dead_pid)
        sweep_partials(tmp_path)
        assert not left.exists()

    def test_removes_what_is_older_than_a_day(self, tmp_path):
        left = [
            self.leave(tmp_path, self.HERE, os.getpid(), self.DAY + 60),
            self.leave(tmp_path, self.ELSEWHERE, 1, self.DAY + 60),
        ]
        sweep_partials(tmp_path)
        assert not any(path.exists() for path in left)

    def test_keeps_files_of_live_writers_here_and_elsewhere(self, tmp_path, dead_pid):
        live = [
            self.leave(tmp_path, self.HERE, os.getpid(), self.DAY - 60),
            self.leave(tmp_path, self.HERE, 1),
            self.leave(tmp_path, self.ELSEWHERE, dead_pid, self.DAY - 60),
        ]
        sweep_partials(tmp_path)
        assert all(path.exists() for path in live)

    def test_keeps_every_other_file(self, tmp_path, dead_pid):
        others = [
            tmp_path / name
            for name in ("film.partial", f".{self.HERE}-{dead_pid}.partial", "records.jsonl")
        ]
        for path in others:
            path.touch()
            os.utime(path, (0, 0))
        sweep_partials(tmp_path)
        assert all(path.exists() for path in others)

    def test_missing_folder_is_no_error(self, tmp_path):
        sweep_partials(tmp_path / "missing")

    def test_knows_the_partial_of_a_write_under_way(self, tmp_path, monkeypatch):
        def fail(partial, _):
            sweep_partials(tmp_path)
            assert Path(partial).exists()
            with monkeypatch.context() as patch:
                patch.setattr(hybridgl.files, "_is_alive", lambda pid: pid != os.getpid())
                sweep_partials(tmp_path)
            assert not Path(partial).exists()
            raise OSError(errno.EIO, "reached the end")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="reached the end"):
            atomic_write_bytes(tmp_path / "records.jsonl", b"")
