"""
Owns a small HTTP/1.1 server on loopback that answers as a test tells it to, wrongly if need be.

Knows nothing of peers or hubs; honest answers for both are made here, tests bend them.
Invariants: every request and every connection is counted; closing ends all threads.
Source: RFC 9112.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from p2pcache.core.ranges import parse_range
from tests.ports import pick_port
from tests.samples import Sample

ENDLESS_BYTES = 64 * 1024


@dataclass(frozen=True)
class Request:
    """What a client asked; header names in lower case."""

    path: str
    headers: dict[str, str]
    connection_number: int


@dataclass(frozen=True)
class Reply:
    """
    What to answer. Content-Length is that of `body` unless `headers` has one (None: none at all).
    `closes` ends the connection after the answer without saying so; `is_endless` goes on sending
    after the body; `is_silent` sends nothing and keeps the connection; `raw` replaces everything.
    """

    status: int = 200
    headers: dict[str, str | None] = field(default_factory=dict)
    body: bytes | memoryview = b""
    closes: bool = False
    is_endless: bool = False
    is_silent: bool = False
    raw: bytes | None = None

    def head(self) -> bytes:
        """Return the head's bytes."""
        headers: dict[str, str | None] = {"Content-Length": str(len(self.body)), **self.headers}
        lines = [f"{name}: {text}" for name, text in headers.items() if text is not None]
        return "\r\n".join([f"HTTP/1.1 {self.status} Said", *lines, "", ""]).encode("latin-1")


Answer = Callable[[Request], Reply]


class RawServer:
    """A server in threads. `answer` may be replaced at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connection_count = 0
        self._listener = socket.create_server(("127.0.0.1", pick_port()))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = [self._listener]
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]
        self._is_closing = False

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and thread. Safe to call twice."""
        with self._lock:
            self._is_closing = True
            sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._is_closing:
                    connection.close()
                    return
                self.connection_count += 1
                self._sockets.append(connection)
                thread = threading.Thread(
                    target=self._serve, args=(connection, self.connection_count)
                )
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            while request := self._read(lines.readline, number):
                self.requests.append(request)
                reply = self.answer(request)
                if reply.is_silent:
                    continue
                if reply.raw is not None:
                    connection.sendall(reply.raw)
                else:
                    connection.sendall(reply.head() + bytes(reply.body))
                while reply.is_endless:
                    connection.sendall(bytes(ENDLESS_BYTES))
                if reply.closes:
                    return

    @staticmethod
    def _read(readline: Callable[[], bytes], number: int) -> Request | None:
        first = readline().decode("latin-1").split()
        if len(first) != 3:
            return None
        headers = {}
        while line := readline().decode("latin-1").strip():
            name, _, text = line.partition(":")
            headers[name.lower()] = text.strip()
        return Request(first[1], headers, number)


def answer_as_peer(sample: Sample) -> Answer:
    """Answer runs of chunks as an honest peer does."""

    def answer(request: Request) -> Reply:
        path, _, run = request.path.rpartition("/")
        assert path == f"/v1/blobs/{sample.blob}/chunks"
        first, last = (int(text) for text in run.split("-"))
        offset, length = sample.layout.span_of(first, last)
        digests = ",".join(str(sample.digest_of(index)) for index in range(first, last + 1))
        body = sample.content[offset : offset + length]
        return Reply(headers={"X-P2PCache-Chunks": digests}, body=body)

    return answer


def answer_as_hub(sample: Sample) -> Answer:
    """Answer ranges of a file as an honest hub or its storage does."""

    def answer(request: Request) -> Reply:
        found = parse_range(request.headers.get("range"), len(sample.content))
        if found is None:
            return Reply(body=sample.content)
        body = sample.content[found.start : found.end + 1]
        return Reply(206, {"Content-Range": found.to_content_range()}, body)

    return answer
