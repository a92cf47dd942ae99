"""An HTTP server on this machine whose faults are scripted, path by path, request by request."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How one request is answered; without arguments as it should be.

    Attributes:
        status: anything but 200 is sent instead of the file, with a short text.
        headers: besides the usual ones, or in their place.
        content: instead of the file's.
        drop_after: bytes of the body after which the connection ends.
        stall_after: bytes of the body after which nothing comes until `release`; -1 is before the
            status line.
        ranges: whether Range is honoured.
        length: how the end of the body is shown: by "header", "chunked" or by "close".
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    drop_after: int | None = None
    stall_after: int | None = None
    ranges: bool = True
    length: str = "header"


@dataclass(frozen=True)
class Request:
    """What was received; header names in lower case."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class MisbehavingServer:
    """Serves files on 127.0.0.1 while the block lasts.

    Attributes:
        requests: in the order of arrival.
        stalled: set when a reply stalls.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self._released = threading.Event()
        self._contents: dict[str, bytes] = {}
        self._replies: dict[str, list[Reply]] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> MisbehavingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve(self, path: str, content: bytes = b"", *replies: Reply) -> str:
        """Answer a path with these replies in turn, the last again and again; returns its URL."""
        self._contents[path] = content
        self._replies[path] = list(replies or [Reply()])
        return self.url + path

    def release(self) -> None:
        """Let stalled replies go on."""
        self._released.set()

    def ranges(self, path: str) -> list[str | None]:
        """The Range of every request for a path."""
        return [request.range for request in self.requests if request.path == path]

    def take(self, request: Request) -> tuple[Reply, bytes]:
        """Note a request; returns the reply to it, and the whole content."""
        with self._lock:
            self.requests.append(request)
            replies = self._replies.get(request.path, [Reply(status=404)])
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        content = self._contents.get(request.path, b"")
        return reply, content if reply.content is None else reply.content

    def stall(self) -> None:
        """Hold a reply until it is released."""
        self.stalled.set()
        self._released.wait()


def _handler_of(server: MisbehavingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Stay silent."""

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply, content = server.take(Request(self.path, headers))
            if reply.stall_after == -1:
                server.stall()
            status, body, usual = _answer(reply, content, headers)
            self.send_response(status)
            for name, value in {**usual, **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client has gone
                self._send(reply, body)

        def _send(self, reply: Reply, body: bytes) -> None:
            chunked = reply.length == "chunked"
            if reply.drop_after is not None:
                self._write(body[: reply.drop_after], chunked)
                return
            if reply.stall_after is not None and reply.stall_after > 0:
                self._write(body[: reply.stall_after], chunked)
                server.stall()
                body = body[reply.stall_after :]
            self._write(body, chunked)
            if chunked:
                self._write(b"", chunked)

        def _write(self, piece: bytes, chunked: bool) -> None:
            size = f"{len(piece):x}\r\n".encode()
            self.wfile.write(size + piece + b"\r\n" if chunked else piece)

    return Handler


def _answer(
    reply: Reply, content: bytes, headers: Mapping[str, str]
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and usual headers."""
    usual = {"Content-Type": "application/octet-stream"}
    status, body = reply.status, content
    if status != 200:
        body = b"no file"
    elif reply.ranges and "range" in headers:
        start = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            status, body = 416, b""
            usual["Content-Range"] = f"bytes */{len(content)}"
        else:
            status, body = 206, content[start:]
            usual["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    if reply.length == "header":
        usual["Content-Length"] = str(len(body))
    elif reply.length == "chunked":
        usual["Transfer-Encoding"] = "chunked"
    return status, body, usual
