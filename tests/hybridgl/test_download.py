"""Fetching from a server that misbehaves: the right bytes under the name, or none and a reason."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybridgl import download
from hybridgl.cli import main
from hybridgl.download import GROUPS, ITEMS, WEIGHTS, DownloadError, RemoteFile, fetch, folder_lock
from hybridgl.errors import SettingError, WeightsError
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES
from tests.misbehaving_server import MisbehavingServer, Reply

CONTENT = random.Random(0).randbytes(300_000)
OTHER_CONTENT = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHUNK = 1 << 16
"""What is received is written in pieces of this size: of 150,000 bytes two of them are kept."""
CUT, KEPT = 150_000, 2 * CHUNK
SIZE, CONTINUED = len(CONTENT), f"bytes={KEPT}-"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with MisbehavingServer() as running:
        yield running


class Client:
    """Fetches ``file.bin`` into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.target = folder, folder / "file.bin"
        self.lines: list[str] = []

    def fetch(self, url="", *mirrors, sha256=SHA256, name="file.bin"):
        file = RemoteFile(name, url, sha256)
        report = self.lines.append
        return fetch(file, self.folder, mirrors, option="--weights_folder", report=report)

    def names(self):
        return sorted(path.name for path in self.folder.iterdir() if path.name[0] != ".")

    def leave_part(self, content=CONTENT[:KEPT], total=SIZE):
        """What an earlier process left behind."""
        (self.folder / f"file.bin.{total}.part").write_bytes(content)


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_BACKOFF_SECONDS", 0)
    return Client(tmp_path)


def assert_refused(client, *urls, match, error=DownloadError, **named):
    with pytest.raises(error, match=match) as refused:
        client.fetch(*urls, **named)
    assert not client.target.is_file()
    return str(refused.value)


@pytest.mark.parametrize("sha256", ["", SHA256[:6], SHA256], ids=["none", "first digits", "whole"])
@pytest.mark.parametrize("length", ["header", "chunked", "close"])
def test_whole_file_is_received_once_and_recorded(server, client, sha256, length):
    url = server.serve("/file.bin", CONTENT, Reply(length=length))
    client.folder /= "a/b"
    client.target = client.folder / "file.bin"
    assert client.fetch(url, sha256=sha256)
    assert client.lines == [
        f"fetching {client.target}",
        f"fetched {client.target}: 300kB, sha256 {SHA256}",
    ]
    assert not client.fetch(url, sha256=sha256)
    assert client.lines[-1] == f"already there: {client.target}, whole"
    (request,) = server.requests
    assert (request.headers["accept-encoding"], request.range) == ("identity", None)
    assert client.target.read_bytes() == CONTENT
    assert json.loads((client.folder / "sha256.json").read_text()) == {"file.bin": SHA256}
    assert client.names() == ["file.bin", "sha256.json"]


# Sources

SOURCES = {
    "404": ([Reply(status=404)], 1, "answered 404 Not Found"),
    "403": ([Reply(status=403)], 1, "answered 403"),
    "overloaded": ([Reply(status=503)], 5, "answered 503"),
    "circle": ([Reply(status=302, headers={"Location": "/a/file.bin"})], 31, "redirects"),
    "nonsense": ([Reply(status=302, headers={"Location": "http://[bad"})], 1, "."),
    "no address": ([Reply(status=302, headers={"Location": "ftp://host/file"})], 1, "adapters"),
    "wrong bytes": ([Reply(content=OTHER_CONTENT)], 1, f"starts with {SHA256[:12]}, got"),
    "never all": ([Reply(drop_after=CUT, ranges=False)], 6, "5 times"),
    "back and forth": ([Reply(drop_after=n, ranges=False) for n in (CUT, 1) * 9], 6, "5 times"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_source_that_fails_is_named_and_the_next_one_is_asked(server, client, kind):
    replies, num_requests, reason = SOURCES[kind]
    server.serve("/a/file.bin", CONTENT, *replies)
    assert_refused(client, "", f"{server.url}/a/", match=rf"{server.url}/a/file.bin: .*{reason}")
    assert len(server.requests) == num_requests
    url = server.serve("/b", CONTENT)
    assert client.fetch(url, f"{server.url}/gone", f"{server.url}/a")
    paths = list(dict.fromkeys(request.path for request in server.requests))
    assert paths == ["/a/file.bin", "/gone/file.bin", "/b"]
    assert client.target.read_bytes() == CONTENT
    assert client.names() == ["file.bin", "sha256.json"]


def test_all_failing_sources_are_listed_and_what_was_received_is_kept(server, client):
    url = server.serve("/b", CONTENT, Reply(drop_after=CUT, ranges=False))
    refusal = assert_refused(client, url, f"{server.url}/gone", match="file.bin from a source")
    assert f"{server.url}/gone/file.bin: it answered 404 Not Found; {url}: " in refusal
    assert "--mirror URL_PREFIX. What was received (131kB) is kept." in refusal
    assert client.names() == ["file.bin.300000.part"]
    assert_refused(client, match="Expected other from a source, got none to ask", name="other")


@pytest.mark.parametrize(("said", "waits"), [("7", [7]), ("99999", [60]), ("soon", [])])
def test_overloaded_source_is_asked_again_after_the_time_that_it_says(
    server, client, monkeypatch, said, waits
):
    busy = Reply(status=503, headers={"Retry-After": said})
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert client.fetch(server.serve("/a", CONTENT, busy, Reply()))
    assert [seconds for seconds in waited if seconds] == waits


def test_source_that_is_not_there_is_named(client):
    assert "http://127.0.0.1:1/a: [Errno 111]" in assert_refused(
        client, "http://127.0.0.1:1/a", match="refused"
    )


def test_source_without_tls_is_named(server, client):
    url = server.serve("/a", CONTENT)
    assert_refused(client, url.replace("http:", "https:"), match="WRONG_VERSION_NUMBER")


def test_source_that_falls_silent_is_asked_for_the_rest(server, client, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", (1, 0.1))
    url = server.serve("/a", CONTENT, Reply(stall_after=CUT), Reply())
    assert client.fetch(url)
    assert server.ranges("/a") == [None, CONTINUED]
    client.target.unlink()
    silent = server.serve("/b", CONTENT, Reply(stall_after=-1))
    assert_refused(client, silent, match="/b: timed out")


def test_web_page_is_no_file_where_no_sha256_tells(server, client):
    page = Reply(headers={"Content-Type": "text/html; charset=utf-8"})
    url = server.serve("/a", CONTENT, page)
    assert_refused(client, url, match="web page", sha256="")
    assert client.fetch(url)


def test_password_of_a_mirror_is_written_nowhere(server, client, caplog):
    server.serve("/m/file.bin", CONTENT, Reply(status=404), Reply(drop_after=CUT), Reply())
    mirror = server.url.replace("//", "//me:hunter2@") + "/m"
    refusal = assert_refused(client, "", mirror, match="404")
    assert client.fetch("", mirror)
    assert "authorization" in server.requests[0].headers
    assert "hunter2" not in refusal + caplog.text + "".join(client.lines)


# Files that are there


def test_file_put_there_by_hand_is_kept(client):
    client.target.write_bytes(b"mine")
    assert not client.fetch("http://127.0.0.1:1/", sha256="")
    assert "no sha256 to compare" in client.lines[-1]


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:6]])
def test_published_sha256_is_compared_first(server, client, sha256):
    client.target.write_bytes(CONTENT)
    assert not client.fetch("http://127.0.0.1:1/", sha256=sha256)
    assert client.lines[-1] == f"already there: {client.target}, whole"
    client.target.write_bytes(OTHER_CONTENT)
    other = hashlib.sha256(OTHER_CONTENT).hexdigest()
    (client.folder / "sha256.json").write_text(json.dumps({"file.bin": other}))
    assert client.fetch(server.serve("/a", CONTENT), sha256=sha256)
    assert client.target.read_bytes() == CONTENT


@pytest.mark.parametrize("published", [True, False])
def test_damaged_file_is_replaced_when_all_is_received(server, client, published, caplog):
    sha256 = SHA256 if published else ""
    url = server.serve("/a", CONTENT)
    client.fetch(url, sha256=sha256)
    client.target.write_bytes(OTHER_CONTENT)
    failing = server.serve("/b", CONTENT, Reply(drop_after=CUT), Reply(status=404))
    with pytest.raises(DownloadError, match="answered 404"):
        client.fetch(failing, sha256=sha256)
    assert client.target.read_bytes() == OTHER_CONTENT
    assert f"{client.target} that starts with {SHA256[:12]}, got" in caplog.text
    client.fetch(url, sha256=sha256)
    assert client.target.read_bytes() == CONTENT


def test_published_file_that_changed_is_a_warning(server, client, caplog):
    client.fetch(server.serve("/a", CONTENT), sha256="")
    client.target.unlink()
    client.fetch(server.serve("/a", OTHER_CONTENT), sha256="")
    assert client.target.read_bytes() == OTHER_CONTENT
    (record,) = caplog.records
    assert f"is not what it was: its sha256 is {hashlib.sha256(OTHER_CONTENT).hexdigest()}" in (
        record.getMessage()
    )


def test_records_of_other_files_are_kept_and_damaged_ones_are_refused(server, client):
    for name in ("b.zip", "a.zip"):
        client.fetch(server.serve(f"/{name}", name.encode()), name=name, sha256="")
    assert list(json.loads((client.folder / "sha256.json").read_text())) == ["a.zip", "b.zip"]
    for content in ("{", "[]"):
        (client.folder / "sha256.json").write_text(content)
        url = server.serve("/a", CONTENT)
        assert_refused(client, url, match="delete the file", sha256="")


# Resuming


@pytest.mark.parametrize("sha256", ["", SHA256[:6]], ids=["by size", "by sha256"])
class TestResume:
    def test_drops_are_continued_to_the_byte(self, server, client, sha256):
        """Each after a piece or so, more often than a source may fail in a row."""
        url = server.serve("/a", CONTENT * 2, Reply(drop_after=CHUNK + 1))
        sha256 = sha256 and hashlib.sha256(CONTENT * 2).hexdigest()
        assert client.fetch(url, sha256=sha256)
        assert server.ranges("/a") == [None] + [f"bytes={i * CHUNK}-" for i in range(1, 10)]
        assert client.target.read_bytes() == CONTENT * 2

    def test_part_of_an_earlier_process_is_continued(self, server, client, sha256):
        client.leave_part()
        client.fetch(server.serve("/a", CONTENT), sha256=sha256)
        assert server.ranges("/a") == [CONTINUED]
        assert client.target.read_bytes() == CONTENT

    def test_part_that_is_the_whole_needs_no_request(self, client, sha256):
        client.leave_part(CONTENT)
        assert client.fetch(sha256=sha256, url="http://127.0.0.1:1/a")
        assert client.target.read_bytes() == CONTENT

    def test_part_of_a_longer_file_is_dropped(self, server, client, sha256):
        client.leave_part(OTHER_CONTENT + b"more", total=400_000)
        client.fetch(server.serve("/a", CONTENT), sha256=sha256)
        assert server.ranges("/a") == ["bytes=300004-", None]
        assert client.target.read_bytes() == CONTENT
        assert client.names() == ["file.bin", "sha256.json"]

    def test_other_size_is_another_file(self, server, client, sha256):
        client.leave_part(OTHER_CONTENT[:KEPT], total=299_999)
        client.fetch(server.serve("/a", CONTENT), sha256=sha256)
        assert server.ranges("/a") == [CONTINUED, None]
        assert client.target.read_bytes() == CONTENT

    def test_ignored_range_brings_the_whole(self, server, client, sha256):
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT), Reply(ranges=False))
        client.fetch(url, sha256=sha256)
        assert server.ranges("/a") == [None, CONTINUED]
        assert client.target.read_bytes() == CONTENT

    @pytest.mark.parametrize("span", ["bytes 0-299999/300000", "bytes 7-9/300000", "nonsense", ""])
    def test_other_range_is_not_appended(self, server, client, sha256, span):
        shifted = Reply(headers={"Content-Range": span})
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT), shifted, Reply())
        client.fetch(url, sha256=sha256)
        assert server.ranges("/a") == [None, CONTINUED, None]
        assert client.target.read_bytes() == CONTENT

    def test_shorter_range_is_appended(self, server, client, sha256):
        span = {"Content-Range": f"bytes {KEPT}-199999/{len(CONTENT)}"}
        less = Reply(content=CONTENT[:200_000], headers=span)
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT), less, Reply())
        client.fetch(url, sha256=sha256)
        assert server.ranges("/a") == [None, CONTINUED, "bytes=200000-"]
        assert client.target.read_bytes() == CONTENT

    def test_interruption_keeps_what_was_received(self, server, client, sha256, monkeypatch):
        url = server.serve("/a", CONTENT)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.fetch(url, sha256=sha256)
        assert "file.bin" not in client.names()
        assert client.fetch(url, sha256=sha256)
        assert client.target.read_bytes() == CONTENT


def test_end_without_size_is_verified_by_the_sha256_alone(server, client):
    cut = Reply(drop_after=CUT, length="chunked")
    url = server.serve("/a", CONTENT, cut, Reply(length="chunked"))
    client.fetch(url)
    assert server.ranges("/a") == [None, f"bytes={CUT}-"]
    url = server.serve("/b", CONTENT, cut, Reply(length="chunked"))
    client.fetch(url, name="b", sha256="")
    assert server.ranges("/b") == [None, None]
    assert client.target.read_bytes() == (client.folder / "b").read_bytes() == CONTENT


def test_wrong_bytes_are_blamed_on_an_earlier_source_first(server, client):
    server.serve("/a/file.bin", OTHER_CONTENT, Reply(drop_after=CUT), Reply(status=404))
    assert client.fetch(server.serve("/b", CONTENT), f"{server.url}/a")
    assert server.ranges("/b") == [CONTINUED, None]
    assert client.target.read_bytes() == CONTENT


@pytest.mark.parametrize("seed", range(25))
def test_whatever_goes_wrong_the_name_holds_one_whole_version(server, client, seed):
    """Two versions of a file, of which a server sends parts as it likes, to repeated commands."""
    draw = random.Random(seed)
    sha256 = draw.choice(["", SHA256])
    versions = [CONTENT, OTHER_CONTENT + b"longer"]
    replies = []
    for _ in range(12):
        length = draw.choice(["header", "chunked", "close"])
        # An end that is shown by closing cannot be told from a drop, but by a sha256.
        may_drop = sha256 or length != "close"
        replies.append(
            Reply(
                status=draw.choice([200] * 9 + [503, 404]),
                content=draw.choice(versions),
                drop_after=draw.randrange(len(CONTENT))
                if may_drop and draw.random() < 0.8
                else None,
                ranges=draw.random() < 0.8,
                length=length,
            )
        )
    url = server.serve("/a", b"", *replies, Reply(content=CONTENT))
    for _ in range(20):
        try:
            assert client.fetch(url, sha256=sha256)
            break
        except DownloadError:
            assert not client.target.exists()
    assert client.target.read_bytes() in ([CONTENT] if sha256 else versions)
    assert client.names() == ["file.bin", "sha256.json"]


def test_kill_9_leaves_what_the_next_process_goes_on_from(server, client):
    url = server.serve("/a", CONTENT, Reply(stall_after=CUT), Reply())
    script = f"""
from pathlib import Path
from hybridgl.download import RemoteFile, fetch
fetch(RemoteFile("file.bin", {url!r}), Path({str(client.folder)!r}), option="", report=print)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": "src"}
    )
    partial = client.folder / f"file.bin.{len(CONTENT)}.part"
    end = time.monotonic() + 20
    while not partial.is_file() or partial.stat().st_size < KEPT:
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert client.names() == [partial.name]
    assert client.fetch(url, sha256="")
    assert server.ranges("/a") == [None, CONTINUED]
    assert client.target.read_bytes() == CONTENT


# Disk and other processes


def test_full_disk_is_said_before_anything_is_written(server, client, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    url = server.serve("/a", CONTENT)
    match = r"expected 300kB of free space, got 200kB; free space.*--weights_folder DIR"
    assert_refused(client, url, match=match, error=OSError)
    assert client.names() == []
    client.leave_part()
    assert client.fetch(url), "the rest fits"


def test_disk_that_fills_up_keeps_what_was_received(server, client):
    url = server.serve("/a", CONTENT)
    script = f"""
import resource
from pathlib import Path
from hybridgl.download import RemoteFile, fetch
resource.setrlimit(resource.RLIMIT_FSIZE, ({CUT}, resource.RLIM_INFINITY))
fetch(RemoteFile("file.bin", {url!r}), Path({str(client.folder)!r}), option="--it", report=print)
"""
    argv, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert f"OSError: Cannot write {client.target}: File too large; free space" in done.stderr
    assert "--it DIR. The same command goes on from here." in done.stderr
    (partial,) = client.folder.glob("*.part")
    assert CONTENT.startswith(partial.read_bytes())
    assert partial.stat().st_size >= KEPT
    assert client.fetch(url)


@pytest.mark.parametrize("name", ["file.bin", "file.bin.300000.part"])
def test_folder_in_the_way_is_named(server, client, name):
    (client.folder / name).mkdir()
    url = server.serve("/a", CONTENT)
    assert_refused(client, url, match="got a folder; move it away|Cannot write", error=OSError)


def test_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    client = Client(tmp_path / "file")
    assert_refused(client, match=f"Cannot write {client.target}: .*--weights_folder", error=OSError)


def test_second_process_waits_and_finds_the_file(server, client):
    url = server.serve("/a", CONTENT, Reply(stall_after=CUT))
    second, received = Client(client.folder), {}
    threads = []
    for one in (client, second):
        threads.append(
            threading.Thread(target=lambda one=one: received.update({one: one.fetch(url)}))
        )
        threads[-1].start()
        assert server.stalled.wait(5)
    end = time.monotonic() + 5
    while not second.lines and time.monotonic() < end:
        time.sleep(0.01)
    server.release()
    for thread in threads:
        thread.join()
    assert received == {client: True, second: False}
    assert len(server.requests) == 1
    assert second.lines[0] == f"waiting for another process at {client.folder}"
    assert second.lines[-1] == f"already there: {client.target}, whole"


def test_file_system_without_locks_goes_without(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(download.FileLock, "acquire", refuse)
    with folder_lock(tmp_path, print) as waited:
        assert not waited


# The command


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Parses the words of a command whose weights are small and not published."""
    contents = {"sam_vit_h_4b8939.pth": b"sam", "ViT-B-16.pt": b"clip"}
    for item, file in WEIGHTS.items():
        sha256 = hashlib.sha256(contents.get(file.name, b"")).hexdigest()[: len(file.sha256)]
        monkeypatch.setitem(WEIGHTS, item, RemoteFile(file.name, "", sha256))
    parser = argparse.ArgumentParser()
    download.add_download_arguments(parser)
    return lambda *words: parser.parse_args([*words, "--weights_folder", str(tmp_path / "weights")])


def test_group_fetches_its_files_and_the_package(server, arguments, tmp_path, monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    server.serve("/m/sam_vit_h_4b8939.pth", b"sam")
    server.serve("/m/ViT-B-16.pt", b"clip")
    commands, status = [], 0

    def run(argv, check):
        commands.append(argv)
        return subprocess.CompletedProcess(argv, status)

    monkeypatch.setattr(download, "version", version)
    monkeypatch.setattr(subprocess, "run", run)
    words = arguments("paper", "--mirror", f"{server.url}/m")
    download.download(words, print)
    assert (tmp_path / "weights/ViT-B-16.pt").read_bytes() == b"clip"
    assert (tmp_path / "weights/sam_vit_h_4b8939.pth").read_bytes() == b"sam"
    assert commands == [[sys.executable, "-m", "spacy", "download", "en_core_web_lg"]]
    status = 3
    with pytest.raises(WeightsError, match="to install the model, got status 3"):
        download.download(arguments("spacy"), print)


def test_package_that_is_there_is_left_alone(arguments, monkeypatch):
    lines = []
    monkeypatch.setattr(download, "version", lambda _: "3.8.0")
    download.download(arguments("spacy"), lines.append)
    assert lines == ["already there: en_core_web_lg 3.8.0"]


def test_dataset_names_the_command_that_fetches_it(capsys):
    assert main(["download", "paper", "refcoco"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Expected items among paper, sam-vit_h")
    assert (
        "got 'refcoco'; check the spelling; datasets: `python -m refer download paper refcoco`"
        in line
    )


def test_no_item_lists_the_right_ones(arguments):
    with pytest.raises(SettingError, match="got none; name any of paper, ") as refused:
        download.download(arguments(), print)
    assert all(name in str(refused.value) for name in (*ITEMS, *GROUPS))


def test_list_names_every_item_with_its_source(capsys):
    assert main(["download", "--list"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("paper: sam-vit_h, clip-ViT-B-16, spacy\n")
    for file in (*SAM_FILES.values(), *CLIP_FILES.values()):
        assert f"\n{file.item}: {file.url}\n" in printed
        assert WEIGHTS[file.item] == RemoteFile(file.name, file.url, file.sha256)


def test_interruption_has_its_own_status(monkeypatch, capsys):
    monkeypatch.setattr("hybridgl.cli.download", interrupt)
    assert main(["download", "paper"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"


def test_help_waits_for_no_model():
    script = """
import sys
from hybridgl.cli import main
try:
    main(["--help"])
finally:
    assert not {"torch", "spacy", "matplotlib", "numpy"} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"download" in done.stdout


def interrupt(*_):
    raise KeyboardInterrupt
