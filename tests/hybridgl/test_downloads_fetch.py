"""Fetching from a server that misbehaves: the right bytes under the name, or none and a reason."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from hybridgl.downloads import disk, part
from hybridgl.downloads.checksums import CHECKSUMS, read_arrivals
from hybridgl.downloads.disk import alone, size_text
from hybridgl.downloads.fetch import Patience, RemoteFile, fetch
from hybridgl.errors import HybridGLError
from tests.misbehaving_server import MisbehavingServer, Reply

REPOSITORY = Path(__file__).parents[2]
CONTENT = random.Random(0).randbytes(300_000)
OTHER_CONTENT = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHUNK = 1 << 16
"""What came is written in pieces of this size, so after 150,000 bytes two of them are kept."""
CUT, KEPT = 150_000, 2 * CHUNK
CONTINUED = f"bytes={KEPT}-"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with MisbehavingServer() as running:
        yield running


class Client:
    """Fetches into a folder, without really waiting between attempts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "file.bin"
        self.lines: list[str] = []
        self.waits: list[float] = []

    def fetch(self, *urls, sha256="", name="file.bin", mirrors=(), **patience):
        return fetch(
            RemoteFile(name, urls, sha256),
            self.folder,
            mirrors=mirrors,
            option="--weights_folder",
            report=self.lines.append,
            patience=Patience(sleep=self.waits.append, **patience),
        )

    def names(self):
        return sorted(path.name for path in self.folder.iterdir())

    def leave_part(self, content=CONTENT[:KEPT], **origin):
        """What an earlier process left behind."""
        (self.folder / "file.bin.part").write_bytes(content)
        if origin:
            known = {"etag": None, "last_modified": None, "total": len(CONTENT), **origin}
            (self.folder / "file.bin.part.json").write_text(json.dumps(known))


@pytest.fixture
def client(tmp_path):
    return Client(tmp_path)


def assert_refused(client, *urls, match, **named):
    with pytest.raises(HybridGLError, match=match) as refused:
        client.fetch(*urls, **named)
    return str(refused.value)


class TestWholeFile:
    def test_comes_with_a_line_at_start_and_end(self, server, client):
        url = server.serve("/file.bin", CONTENT)
        assert client.fetch(url, sha256=SHA256)
        assert client.target.read_bytes() == CONTENT
        assert client.names() == ["file.bin"]
        assert client.lines == [
            f"fetching {client.target}",
            f"fetched {client.target}: 300.0 kB, sha256 {SHA256}",
        ]

    def test_is_asked_for_as_it_is(self, server, client):
        client.fetch(server.serve("/file.bin", CONTENT), sha256=SHA256)
        (request,) = server.requests
        assert request.headers["accept-encoding"] == "identity"
        assert request.range is None

    def test_makes_missing_folders(self, server, tmp_path):
        client = Client(tmp_path / "a" / "b")
        assert client.fetch(server.serve("/file.bin", CONTENT), sha256=SHA256)
        assert client.target.read_bytes() == CONTENT

    @pytest.mark.parametrize("length", ["chunked", "close"])
    def test_comes_without_content_length(self, server, client, length):
        url = server.serve("/file.bin", CONTENT, Reply(length=length))
        assert client.fetch(url, sha256=SHA256)
        assert client.target.read_bytes() == CONTENT

    def test_comes_in_chunks_whatever_content_length_is_beside_them(self, server, client):
        reply = Reply(length="chunked", headers={"Content-Length": "5"})
        assert client.fetch(server.serve("/file.bin", CONTENT, reply))
        assert len(server.requests) == 1
        assert client.target.read_bytes() == CONTENT

    def test_of_no_bytes(self, server, client):
        assert client.fetch(server.serve("/file.bin"))
        assert client.target.read_bytes() == b""

    def test_comes_through_redirects(self, server, client):
        url = server.serve("/file.bin", CONTENT)
        moved = server.serve("/old", b"", Reply(status=302, headers={"Location": "/file.bin"}))
        assert client.fetch(moved, sha256=SHA256)
        assert [request.path for request in server.requests] == ["/old", "/file.bin"]
        assert client.target.read_bytes() == CONTENT
        assert url not in client.lines

    def test_mirrors_come_first_and_in_order(self, server, client):
        server.serve("/b/file.bin", CONTENT)
        url = server.serve("/published", CONTENT)
        client.fetch(url, sha256=SHA256, mirrors=[f"{server.url}/a/", f"{server.url}/b"])
        assert [request.path for request in server.requests] == ["/a/file.bin", "/b/file.bin"]


class TestSource:
    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 304])
    def test_that_does_not_have_the_file_is_left_at_once(self, server, client, status):
        refusing = server.serve("/a", b"", Reply(status=status))
        client.fetch(refusing, server.serve("/b", CONTENT), sha256=SHA256)
        assert [request.path for request in server.requests] == ["/a", "/b"]
        assert client.waits == []
        assert client.target.read_bytes() == CONTENT

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
    def test_that_is_overloaded_is_asked_again_after_the_time_it_says(self, server, client, status):
        busy = Reply(status=status, headers={"Retry-After": "7"})
        client.fetch(server.serve("/a", CONTENT, busy, Reply()), sha256=SHA256)
        assert client.waits == [7]
        assert client.target.read_bytes() == CONTENT

    def test_may_name_a_date_to_come_back_at(self, server, client):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
        busy = Reply(status=503, headers={"Retry-After": date})
        client.fetch(server.serve("/a", CONTENT, busy, Reply()), sha256=SHA256)
        assert 20 < client.waits[0] <= 30

    @pytest.mark.parametrize(
        ("said", "waited"), [("99999", 60), ("soon", 1), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)]
    )
    def test_cannot_make_it_wait_for_long(self, server, client, said, waited):
        busy = Reply(status=503, headers={"Retry-After": said})
        client.fetch(server.serve("/a", CONTENT, busy, Reply()), sha256=SHA256)
        assert client.waits == [waited]

    def test_that_stays_overloaded_is_left_after_some_attempts(self, server, client):
        busy = server.serve("/a", b"", Reply(status=503))
        client.fetch(busy, server.serve("/b", CONTENT), sha256=SHA256)
        assert [request.path for request in server.requests] == ["/a"] * 5 + ["/b"]
        assert client.waits == [1, 2, 4, 8]

    def test_that_redirects_in_circles_is_left(self, server, client):
        loop = server.serve("/a", b"", Reply(status=302, headers={"Location": "/a"}))
        message = assert_refused(client, loop, match="redirects")
        assert len(server.requests) == 11
        assert client.waits == []
        assert loop in message

    @pytest.mark.parametrize("address", ["http://[bad", "ftp://127.0.0.1/file", "nowhere://x"])
    def test_that_redirects_to_nonsense_is_left(self, server, client, address):
        away = server.serve("/a", b"", Reply(status=302, headers={"Location": address}))
        client.fetch(away, server.serve("/b", CONTENT), sha256=SHA256)
        assert client.target.read_bytes() == CONTENT

    def test_that_is_not_there_is_asked_again_and_named(self, client):
        message = assert_refused(client, "http://127.0.0.1:1/file.bin", match="refused")
        assert client.waits == [1, 2, 4, 8]
        assert "http://127.0.0.1:1/file.bin: " in message
        assert client.names() == []

    def test_that_never_answers_is_left(self, server, client):
        silent = server.serve("/a", CONTENT, Reply(stall_after=-1))
        assert_refused(client, silent, match="timed out", read_seconds=0.05, attempts=2)
        assert len(server.requests) == 2

    def test_that_falls_silent_is_asked_for_the_rest(self, server, client):
        url = server.serve("/a", CONTENT, Reply(stall_after=CUT), Reply())
        client.fetch(url, read_seconds=0.1)
        assert server.ranges("/a") == [None, CONTINUED]
        assert client.target.read_bytes() == CONTENT

    def test_whose_certificate_fails_is_left_at_once(self, server, client):
        url = server.serve("/a", CONTENT)
        assert_refused(client, url.replace("http:", "https:"), match="WRONG_VERSION_NUMBER")
        assert client.waits == []

    def test_that_sends_a_web_page_is_left(self, server, client):
        page = Reply(headers={"Content-Type": "text/html; charset=utf-8"})
        url = server.serve("/a", b"<html>sign in</html>", page)
        assert_refused(client, url, match="web page")
        assert client.names() == []

    def test_that_calls_the_file_a_web_page_is_judged_by_the_checksum(self, server, client):
        url = server.serve("/a", CONTENT, Reply(headers={"Content-Type": "text/html"}))
        assert client.fetch(url, sha256=SHA256)

    def test_that_compresses_although_asked_not_to_is_left(self, server, client):
        url = server.serve("/a", CONTENT, Reply(headers={"Content-Encoding": "gzip"}))
        assert_refused(client, url, match="sent gzip", sha256=SHA256)
        assert client.names() == []

    def test_all_in_vain_are_listed_with_their_reasons(self, server, client):
        gone = server.serve("/a", b"", Reply(status=404))
        wrong = server.serve("/b", OTHER_CONTENT)
        message = assert_refused(client, gone, wrong, match="tried 2 in vain", sha256=SHA256)
        other = hashlib.sha256(OTHER_CONTENT).hexdigest()
        assert f"{gone}: it answered 404 Not Found; {wrong}: expected a sha256" in message
        assert f"starts with {SHA256[:12]}, got {other[:12]}" in message
        assert "--mirror" in message
        assert client.names() == []


class TestChecksum:
    def test_wrong_bytes_are_dropped_and_the_next_source_is_asked(self, server, client):
        wrong, right = server.serve("/a", OTHER_CONTENT), server.serve("/b", CONTENT)
        client.fetch(wrong, right, sha256=SHA256)
        assert server.ranges("/b") == [None]
        assert client.target.read_bytes() == CONTENT

    def test_of_which_the_first_digits_are_known(self, server, client):
        wrong, right = server.serve("/a", OTHER_CONTENT), server.serve("/b", CONTENT)
        client.fetch(wrong, right, sha256=SHA256[:6])
        assert client.target.read_bytes() == CONTENT
        assert read_arrivals(client.folder)["file.bin"].sha256 == SHA256

    def test_that_nobody_publishes_is_recorded(self, server, client):
        url = server.serve("/a", CONTENT)
        before = datetime.now(UTC) - timedelta(seconds=1)
        client.fetch(url)
        recorded = json.loads((client.folder / CHECKSUMS).read_text())
        date = recorded["file.bin"].pop("date")
        assert recorded == {"file.bin": {"sha256": SHA256, "bytes": len(CONTENT), "url": url}}
        assert before < datetime.fromisoformat(date) <= datetime.now(UTC)
        assert client.names() == [CHECKSUMS, "file.bin"]

    def test_records_of_other_files_are_kept(self, server, client):
        for name in ("b.zip", "a.zip"):
            client.fetch(server.serve(f"/{name}", name.encode()), name=name)
        assert list(read_arrivals(client.folder)) == ["a.zip", "b.zip"]

    def test_password_of_a_mirror_is_written_nowhere(self, server, client, caplog):
        server.serve("/m/file.bin", CONTENT, Reply(status=503), Reply())
        mirror = server.url.replace("//", "//me:hunter2@") + "/m"
        client.fetch(mirrors=[mirror])
        assert "authorization" in server.requests[0].headers
        assert "503" in caplog.text
        written = (client.folder / CHECKSUMS).read_text() + caplog.text + "".join(client.lines)
        assert "hunter2" not in written

    def test_upstream_file_that_changed_is_a_warning(self, server, client, caplog):
        url = server.serve("/a", CONTENT)
        client.fetch(url)
        client.target.unlink()
        server.serve("/a", OTHER_CONTENT)
        client.fetch(url)
        assert client.target.read_bytes() == OTHER_CONTENT
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"is not what it was on {datetime.now(UTC):%Y-}" in record.getMessage()
        assert SHA256 in record.getMessage()

    @pytest.mark.parametrize("content", ["{", "[]", '{"file.bin": {"sha256": "0"}}'])
    def test_records_that_are_damaged_stop_it_before_any_request(self, server, client, content):
        (client.folder / CHECKSUMS).write_text(content)
        assert_refused(client, server.serve("/a", CONTENT), match="Delete or fix it")
        assert server.requests == []
        assert (client.folder / CHECKSUMS).read_text() == content


class TestFileThatIsThere:
    @pytest.mark.parametrize("sha256", [SHA256, SHA256[:6]])
    def test_and_whole_needs_no_network(self, client, sha256):
        client.target.write_bytes(CONTENT)
        assert not client.fetch("http://127.0.0.1:1/", sha256=sha256)
        assert client.lines[-1] == f"already there: {client.target}, whole"
        assert client.names() == ["file.bin"]

    def test_and_as_recorded_needs_no_network(self, server, client):
        url = server.serve("/a", CONTENT)
        client.fetch(url)
        assert not client.fetch(url)
        assert len(server.requests) == 1

    def test_and_put_there_by_hand_is_kept(self, client):
        client.target.write_bytes(b"mine")
        assert not client.fetch("http://127.0.0.1:1/")
        assert "no checksum to compare" in client.lines[-1]
        assert client.target.read_bytes() == b"mine"

    @pytest.mark.parametrize("recorded", [True, False])
    def test_and_damaged_is_replaced_when_whole(self, server, client, recorded, caplog):
        sha256 = "" if recorded else SHA256
        url = server.serve("/a", CONTENT)
        if recorded:
            client.fetch(url)
        client.target.write_bytes(OTHER_CONTENT)
        failing = server.serve("/b", CONTENT, Reply(drop_after=CUT), Reply(status=404))
        assert_refused(client, failing, match="answered 404", sha256=sha256)
        assert client.target.read_bytes() == OTHER_CONTENT
        assert f"{client.target} to start with {SHA256[:12]}" in caplog.text
        assert "damaged" in caplog.text
        client.fetch(url, sha256=sha256)
        assert client.target.read_bytes() == CONTENT

    def test_and_a_folder_is_refused(self, server, client):
        client.target.mkdir()
        assert_refused(client, server.serve("/a", CONTENT), match="found a folder")
        assert server.requests == []


class TestResume:
    def test_asks_for_the_rest_of_the_same_content(self, server, client):
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT), Reply())
        client.fetch(url)
        assert server.ranges("/a") == [None, CONTINUED]
        assert server.requests[1].headers["if-range"] == '"1"'
        assert client.target.read_bytes() == CONTENT
        assert client.names() == [CHECKSUMS, "file.bin"]

    def test_by_date_where_there_is_no_strong_etag(self, server, client):
        date = "Wed, 13 Apr 2022 01:17:18 GMT"
        reply = Reply(etag='W/"1"', headers={"Last-Modified": date})
        cut = Reply(etag='W/"1"', headers={"Last-Modified": date}, drop_after=CUT)
        client.fetch(server.serve("/a", CONTENT, cut, reply))
        assert server.requests[1].headers["if-range"] == date
        assert server.ranges("/a") == [None, CONTINUED]
        assert client.target.read_bytes() == CONTENT

    @pytest.mark.parametrize("etag", [None, 'W/"1"'])
    def test_is_not_tried_where_nothing_tells_the_content(self, server, client, etag):
        url = server.serve("/a", CONTENT, Reply(etag=etag, drop_after=CUT), Reply(etag=etag))
        client.fetch(url)
        assert server.ranges("/a") == [None, None]
        assert client.target.read_bytes() == CONTENT

    def test_needs_no_etag_where_the_checksum_tells_in_the_end(self, server, client):
        url = server.serve("/a", CONTENT, Reply(etag=None, drop_after=CUT), Reply(etag=None))
        client.fetch(url, sha256=SHA256)
        assert server.ranges("/a") == [None, CONTINUED]
        assert client.target.read_bytes() == CONTENT

    def test_goes_on_at_another_source_where_the_checksum_tells(self, server, client):
        first = server.serve("/a", CONTENT, Reply(drop_after=CUT), Reply(status=404))
        client.fetch(first, server.serve("/b", CONTENT), sha256=SHA256)
        assert server.ranges("/b") == [CONTINUED]
        assert client.target.read_bytes() == CONTENT

    def test_does_not_mix_sources_where_no_checksum_tells(self, server, client):
        first = server.serve("/a", CONTENT, Reply(drop_after=CUT), Reply(status=404))
        client.fetch(first, server.serve("/b", OTHER_CONTENT))
        assert server.ranges("/b") == [None]
        assert client.target.read_bytes() == OTHER_CONTENT

    def test_of_an_earlier_process(self, server, client):
        url = server.serve("/a", CONTENT)
        client.leave_part(url=url, etag='"1"')
        client.fetch(url)
        assert server.ranges("/a") == [CONTINUED]
        assert client.target.read_bytes() == CONTENT

    @pytest.mark.parametrize("origin", [None, "", "{", "[1]", '{"url": 1}'])
    def test_of_an_earlier_process_that_left_no_origin_starts_again(self, server, client, origin):
        client.leave_part(OTHER_CONTENT[:KEPT])
        if origin is not None:
            (client.folder / "file.bin.part.json").write_text(origin)
        client.fetch(server.serve("/a", CONTENT))
        assert server.ranges("/a") == [None]
        assert client.target.read_bytes() == CONTENT

    def test_starts_again_where_the_content_has_changed(self, server, client):
        url = server.serve(
            "/a", OTHER_CONTENT, Reply(drop_after=CUT, content=CONTENT), Reply(etag='"2"')
        )
        client.fetch(url)
        assert server.ranges("/a") == [None, CONTINUED]
        assert client.target.read_bytes() == OTHER_CONTENT

    def test_starts_again_where_another_content_is_sent_in_spite_of_if_range(self, server, client):
        changed = Reply(etag='"2"', if_range=False)
        url = server.serve("/a", OTHER_CONTENT, Reply(drop_after=CUT, content=CONTENT), changed)
        client.fetch(url)
        assert server.ranges("/a") == [None, CONTINUED, None]
        assert client.target.read_bytes() == OTHER_CONTENT

    def test_starts_again_where_the_file_has_another_size(self, server, client):
        longer = Reply(content=CONTENT + b"more", if_range=False)
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT), longer, Reply())
        client.fetch(url)
        assert server.ranges("/a") == [None, CONTINUED, None]
        assert client.target.read_bytes() == CONTENT

    def test_starts_again_where_ranges_are_ignored(self, server, client):
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT), Reply(ranges=False))
        client.fetch(url)
        assert server.ranges("/a") == [None, CONTINUED]
        assert client.target.read_bytes() == CONTENT

    @pytest.mark.parametrize(
        "span", ["bytes 0-299999/300000", "bytes 7-299999/300000", "nonsense", ""]
    )
    def test_starts_again_where_another_range_is_sent(self, server, client, span):
        shifted = Reply(headers={"Content-Range": span})
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT), shifted, Reply())
        client.fetch(url)
        assert server.ranges("/a") == [None, CONTINUED, None]
        assert client.target.read_bytes() == CONTENT

    def test_goes_on_where_less_is_sent_than_asked_for(self, server, client):
        span = {"Content-Range": f"bytes {KEPT}-199999/{len(CONTENT)}"}
        less = Reply(content=CONTENT[:200_000], headers=span)
        client.fetch(server.serve("/a", CONTENT, Reply(drop_after=CUT), less, Reply()))
        assert server.ranges("/a") == [None, CONTINUED, "bytes=200000-"]
        assert client.target.read_bytes() == CONTENT

    def test_ends_where_all_had_come(self, server, client):
        url = server.serve("/a", CONTENT)
        client.leave_part(CONTENT, url=url, etag='"1"')
        client.fetch(url)
        assert server.ranges("/a") == [f"bytes={len(CONTENT)}-"]
        assert client.target.read_bytes() == CONTENT

    def test_starts_again_where_more_had_come_than_there_is(self, server, client):
        url = server.serve("/a", CONTENT)
        client.leave_part(CONTENT + b"more", url=url, etag='"1"')
        client.fetch(url)
        assert server.ranges("/a") == [f"bytes={len(CONTENT) + 4}-", None]
        assert client.target.read_bytes() == CONTENT

    def test_blames_what_had_come_before_it_blames_a_source(self, server, client):
        client.leave_part(OTHER_CONTENT[:KEPT])
        client.fetch(server.serve("/a", CONTENT), sha256=SHA256)
        assert server.ranges("/a") == [CONTINUED, None]
        assert client.target.read_bytes() == CONTENT

    def test_gives_a_source_one_chance_of_its_own(self, server, client):
        client.leave_part()
        url = server.serve("/a", OTHER_CONTENT)
        assert_refused(client, url, match="starts with", sha256=SHA256)
        assert server.ranges("/a") == [CONTINUED, None]
        assert client.names() == []

    def test_blames_another_source_before_it_blames_the_one_that_went_on(self, server, client):
        wrong = server.serve("/a", OTHER_CONTENT, Reply(drop_after=CUT), Reply(status=404))
        client.fetch(wrong, server.serve("/b", CONTENT), sha256=SHA256)
        assert server.ranges("/b") == [CONTINUED, None]
        assert client.target.read_bytes() == CONTENT

    def test_coming_and_going_is_no_progress(self, server, client):
        drops = [Reply(drop_after=size, ranges=False) for size in (CUT, CHUNK + 1) * 20]
        assert_refused(client, server.serve("/a", CONTENT, *drops), match="5 times")
        assert len(server.requests) == 6

    def test_goes_on_as_long_as_there_is_progress(self, server, client):
        """Nine drops, each after a piece or so: more than the attempts that may be in vain."""
        content = CONTENT * 2
        url = server.serve("/a", content, Reply(drop_after=CHUNK + 1))
        client.fetch(url, attempts=2)
        assert server.ranges("/a") == [None] + [f"bytes={i * CHUNK}-" for i in range(1, 10)]
        assert client.target.read_bytes() == content

    def test_ends_where_there_is_no_progress(self, server, client):
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT, ranges=False))
        message = assert_refused(client, url, match="5 times")
        assert len(server.requests) == 6
        assert client.waits == [1, 1, 2, 4, 8]
        assert "What came (131.1 kB) is kept" in message
        assert client.names() == ["file.bin.part", "file.bin.part.json"]

    @pytest.mark.parametrize("length", ["header", "chunked"])
    def test_body_that_ends_early_is_no_file(self, server, client, length):
        url = server.serve("/a", CONTENT, Reply(drop_after=CUT, length=length), Reply())
        client.fetch(url)
        assert server.ranges("/a")[0] is None
        assert len(server.requests) == 2
        assert client.target.read_bytes() == CONTENT


@pytest.mark.parametrize("seed", range(40))
def test_whatever_goes_wrong_the_name_holds_one_whole_version(server, client, seed):
    """Two versions of a file, of which a server sends parts as it likes, to repeated commands."""
    draw = random.Random(seed)
    sha256 = draw.choice(["", SHA256])
    versions = {'"1"': CONTENT, '"2"': OTHER_CONTENT}
    replies = []
    for _ in range(12):
        etag = draw.choice(list(versions))
        length = draw.choice(["header", "chunked", "close"])
        # An end that is told by closing cannot be told from a drop, but by a checksum.
        may_drop = sha256 or length != "close"
        reply = Reply(
            status=draw.choice([200] * 9 + [503, 404]),
            content=versions[etag],
            etag=etag if draw.random() < 0.8 else None,
            drop_after=draw.randrange(len(CONTENT)) if may_drop and draw.random() < 0.8 else None,
            ranges=draw.random() < 0.8,
            if_range=draw.random() < 0.5,
            length=length,
        )
        # Who sends neither ETag nor heeds If-Range cannot be found out, but by a checksum.
        replies.append(reply if sha256 or reply.etag else replace(reply, if_range=True))
    url = server.serve("/a", b"", *replies, Reply(content=CONTENT))
    for _ in range(20):
        try:
            came = client.fetch(url, sha256=sha256, attempts=2)
        except HybridGLError:
            assert not client.target.exists()
        else:
            assert came
            break
    content = client.target.read_bytes()
    assert content == CONTENT or (content == OTHER_CONTENT and not sha256)
    assert [name for name in client.names() if name != CHECKSUMS] == ["file.bin"]


class TestInterruption:
    def test_keeps_what_came(self, server, client, monkeypatch):
        url = server.serve("/a", CONTENT)
        written = []

        def write(stream, content):
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(len(content))
            return stream.write(content)

        with monkeypatch.context() as patch:
            patch.setattr(part, "_write", write)
            with pytest.raises(KeyboardInterrupt):
                client.fetch(url)
        assert client.names() == ["file.bin.part", "file.bin.part.json"]
        client.fetch(url)
        assert server.ranges("/a") == [None, CONTINUED]
        assert client.target.read_bytes() == CONTENT

    def test_between_the_record_and_the_name_is_made_good(self, server, client, monkeypatch):
        url = server.serve("/a", CONTENT)
        with monkeypatch.context() as patch:
            patch.setattr(part.Part, "finish", interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.fetch(url)
        assert client.names() == [CHECKSUMS, "file.bin.part", "file.bin.part.json"]
        client.fetch(url)
        assert server.ranges("/a") == [None, f"bytes={len(CONTENT)}-"]
        assert client.target.read_bytes() == CONTENT

    def test_by_kill_9_leaves_what_the_same_command_goes_on_from(self, server, client):
        url = server.serve("/m/sam_vit_b_01ec64.pth", CONTENT, Reply(stall_after=CUT), Reply())
        mirror = url.rpartition("/")[0]
        partial = client.folder / "sam_vit_b_01ec64.pth.part"
        process = start_download(client.folder, mirror)
        wait_until(lambda: partial.is_file() and partial.stat().st_size == KEPT)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert client.names() == [
            f"sam_vit_b_01ec64.pth{end}" for end in (".lock", ".part", ".part.json")
        ]
        process = start_download(client.folder, mirror)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert server.ranges("/m/sam_vit_b_01ec64.pth") == [None, CONTINUED]
        assert client.names() == [CHECKSUMS, "sam_vit_b_01ec64.pth"]
        assert (client.folder / "sam_vit_b_01ec64.pth").read_bytes() == CONTENT


class TestDisk:
    def test_that_is_too_small_is_said_before_anything_is_written(
        self, server, client, monkeypatch
    ):
        set_free_space(monkeypatch, 200_000)
        assert_refused(
            client,
            server.serve("/a", CONTENT),
            match=r"Expected 300\.0 kB of free space .* found 200\.0 kB.*--weights_folder DIR",
        )
        assert client.names() == []

    def test_needs_space_for_the_rest_only(self, server, client, monkeypatch):
        set_free_space(monkeypatch, 200_000)
        url = server.serve("/a", CONTENT)
        client.leave_part(url=url, etag='"1"')
        client.fetch(url)
        assert client.target.read_bytes() == CONTENT

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_that_fills_up_keeps_what_came(self, server, client, monkeypatch, number):
        url = server.serve("/a", CONTENT)

        def write(stream, content):
            if stream.tell() >= KEPT:
                raise OSError(number, os.strerror(number))
            return stream.write(content[: CHUNK // 2])

        with monkeypatch.context() as patch:
            patch.setattr(part, "_write", write)
            message = assert_refused(client, url, match=re.escape(os.strerror(number)))
        assert f"{client.target}.part" in message
        assert re.search(r"168\.9 kB more are needed, [\d.]+ [kMGT]B are free", message)
        assert "--weights_folder DIR" in message
        assert client.waits == []
        client.fetch(url)
        assert server.ranges("/a") == [None, CONTINUED]
        assert client.target.read_bytes() == CONTENT

    def test_limit_of_the_system_keeps_what_came(self, server, client):
        server.serve("/m/sam_vit_b_01ec64.pth", CONTENT)
        process = start_download(client.folder, f"{server.url}/m", max_file_bytes=CUT)
        output, _ = process.communicate()
        assert process.returncode == 1
        assert (
            f"HybridGLError: Cannot write {client.folder / 'sam_vit_b_01ec64.pth.part'}" in output
        )
        assert "150.0 kB more are needed" in output
        kept = (client.folder / "sam_vit_b_01ec64.pth.part").read_bytes()
        assert kept == CONTENT[:CUT]

    @pytest.mark.parametrize("name", ["file.bin.lock", "file.bin.part"])
    def test_file_that_cannot_be_written_is_named(self, server, client, name):
        (client.folder / name).mkdir()
        url = server.serve("/a", CONTENT)
        assert_refused(client, url, match=rf"Cannot write .*{name}: .*--weights_folder DIR")
        assert server.requests == []

    def test_folder_that_is_a_file_is_named(self, server, tmp_path):
        (tmp_path / "file").touch()
        client = Client(tmp_path / "file")
        assert_refused(client, server.serve("/a", CONTENT), match=f"Cannot write {client.folder}")
        assert server.requests == []


class TestTwoAtOnce:
    def test_second_waits_and_finds_the_file(self, server, client, tmp_path):
        url = server.serve("/a", CONTENT, Reply(stall_after=CUT))
        second, waiting = Client(tmp_path), threading.Event()
        second.lines = type(
            "Lines",
            (list,),
            {"append": lambda lines, line: (list.append(lines, line), waiting.set())},
        )()
        came = {}
        threads = []
        for one in (client, second):
            thread = threading.Thread(target=lambda one=one: came.update({one: one.fetch(url)}))
            thread.start()
            threads.append(thread)
            assert server.stalled.wait(5)
        assert waiting.wait(5)
        server.release()
        for thread in threads:
            thread.join()
        assert came == {client: True, second: False}
        assert len(server.requests) == 1
        assert second.lines[0] == f"waiting for another process at {client.target}"
        assert second.lines[-1] == f"already there: {client.target}, whole"
        assert client.target.read_bytes() == CONTENT
        assert client.names() == [CHECKSUMS, "file.bin"]

    def test_many_exclude_each_other(self, tmp_path):
        inside, most, runs = [], [], []

        def work():
            for _ in range(20):
                with alone(tmp_path / "file", "--data_root", lambda: None):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0)
                    inside.pop()
                    runs.append(1)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(runs) == 120
        assert max(most) == 1
        assert list(tmp_path.iterdir()) == []

    def test_lock_left_by_a_killed_process_holds_nobody_up(self, server, client):
        (client.folder / "file.bin.lock").write_bytes(b"")
        client.fetch(server.serve("/a", CONTENT), sha256=SHA256)
        assert client.names() == ["file.bin"]
        assert client.lines[0] == f"fetching {client.target}"

    def test_file_system_without_locks_goes_without(self, server, client, monkeypatch):
        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(disk.fcntl, "flock", flock)
        assert client.fetch(server.serve("/a", CONTENT), sha256=SHA256)


def test_sizes_for_people():
    sizes = [0, 999, 1000, 999_949, 999_950, 2_564_550_879, 13_510_573_713, 10**16]
    assert [size_text(size) for size in sizes] == [
        "0 bytes", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "2.6 GB", "13.5 GB", "10000.0 TB",
    ]  # fmt: skip


def interrupt(*_):
    raise KeyboardInterrupt


def set_free_space(monkeypatch, free):
    usage = type(shutil.disk_usage("/"))(total=10**12, used=0, free=free)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)


def wait_until(holds, seconds=10):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def start_download(folder, mirror, max_file_bytes=None):
    """The command in a process of its own, for a file whose real checksum it is not held to."""
    script = f"""
import argparse, dataclasses, resource, sys, types

# The package without its __init__, which loads the models' packages: seconds, for nothing here.
package = types.ModuleType("hybridgl")
package.__path__ = [{str(REPOSITORY / "hybridgl")!r}]
sys.modules["hybridgl"] = package

from hybridgl.downloads import catalogue, command

item = catalogue.ITEMS["sam-vit_b"]
file = dataclasses.replace(item.files[0], sha256="", urls=())
catalogue.ITEMS["sam-vit_b"] = dataclasses.replace(item, files=(file,))
if {max_file_bytes}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({max_file_bytes}, resource.RLIM_INFINITY))
parser = argparse.ArgumentParser()
command.add_download_arguments(parser)
command.download(parser.parse_args(), print)
"""
    argv = ["sam-vit_b", "--weights_folder", folder, "--data_root", folder, "--mirror", mirror]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
