"""
Owns a peer that speaks the protocol over real sockets and misbehaves in one named way.

Knows nothing of what a daemon should make of it.
Invariants: listens on loopback only and ends with the test; what it was asked is counted; what it
is not told to do wrongly it does rightly.
Source: docs/reference/peer-protocol.md; issue "the swarm", degrees of failure.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import Exchange, Hello, SwarmEntry
from p2pcache.core.verify import digest_of
from tests.hostile import sha256_blob
from tests.ports import pick_port

Json = dict[str, Any]
# How a run is answered: the peer, the request, the chunks that were asked for.
Send = Callable[["BadPeer", "Request", range], None]
# What becomes of a message of the peer's before it is sent: an object, or bytes as they are.
Speak = Callable[["BadPeer", Json], Json | bytes]

RUN_PATH = re.compile(r"/v1/blobs/([^/]+)/chunks/(\d+)-(\d+)")
FILLER = bytes(64 * 1024)


class Request(BaseHTTPRequestHandler):
    """One connection to a bad peer."""

    protocol_version = "HTTP/1.1"
    peer: BadPeer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer hello and runs."""
        run = RUN_PATH.fullmatch(self.path)
        with contextlib.suppress(OSError):
            if run is not None:
                chunks = range(int(run[2]), int(run[3]) + 1)
                self.peer.runs.append(chunks)
                self.peer.send(self.peer, self, chunks)
            elif self.path == "/v1/hello":
                self._say(self.peer.hello.to_json())
            else:
                self.send_whole(404, b"{}")

    def do_POST(self) -> None:
        """Answer an exchange."""
        said = self.rfile.read(int(self.headers["Content-Length"]))
        self.peer.caller = json.loads(said)
        self.peer.exchanges += 1
        with contextlib.suppress(OSError):
            self._say(self.peer.describe())

    def _say(self, message: Json) -> None:
        spoken = self.peer.speak(self.peer, message)
        self.send_whole(200, spoken if isinstance(spoken, bytes) else json.dumps(spoken).encode())

    def send_head(self, status: int, **headers: object) -> None:
        """Send a status line and headers; `_` stands for `-`."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send_whole(self, status: int, body: bytes, **headers: object) -> None:
        """Send an answer with a body that is as long as it says."""
        self.send_head(status, Content_Length=len(body), **headers)
        self.wfile.write(body)

    def send_run(self, pieces: list[bytes], claims: list[ChunkDigest] | None = None) -> None:
        """Send chunks under the digests given, or under their own."""
        named = claims or [digest_of(piece) for piece in pieces]
        self.send_whole(200, b"".join(pieces), X_P2PCache_Chunks=join(named))

    def send_for_ever(self) -> None:
        """Send zeros until nobody listens any more."""
        while not self.peer.has_ended.is_set():
            self.wfile.write(FILLER)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: whoever hears nonsense hangs up in the middle of it."""


class BadPeer:
    """
    A peer that says it has one blob, whole, and gives it, but for `send` and `speak`.

    Attributes:
        runs: The chunks of every run that it was asked for.
        exchanges: How many exchanges it was asked for.
        caller: What the last caller of an exchange said.
    """

    def __init__(
        self, content: bytes, *, send: Send | None = None, speak: Speak | None = None
    ) -> None:
        self.blob: BlobDigest = sha256_blob(content)
        self.layout = Layout(len(content))
        self.hello = Hello("bad0" * 8, "bad", "0.1.0")
        self.send = send or send_honestly
        self.speak = speak or speak_honestly
        self.runs: list[range] = []
        self.exchanges = 0
        self.caller: Json = {}
        self.has_ended = threading.Event()
        self._content = content
        handler = type("Handler", (Request,), {"peer": self})
        self._server = _Server(("127.0.0.1", pick_port()), handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> BadPeer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.has_ended.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def chunk_count(self) -> int:
        """Return how many chunks the blob has."""
        return self.layout.chunk_count

    def cut(self, chunk_index: int) -> bytes:
        """Return the true bytes of a chunk."""
        start, length = self.layout.span_of(chunk_index, chunk_index)
        return self._content[start : start + length]

    def describe(self) -> Json:
        """Return the honest answer to an exchange: everything is here, whole."""
        have = Bitfield.full(self.chunk_count)
        entry = SwarmEntry(self.blob, self.layout.id, have, Bitfield(self.chunk_count))
        return Exchange(self.hello, 0, (entry,)).to_json()


def join(digests: list[ChunkDigest]) -> str:
    """Return digests as the header of a run has them."""
    return ",".join(map(str, digests))


def speak_honestly(peer: BadPeer, message: Json) -> Json:
    """Say what is true."""
    return message


def send_honestly(peer: BadPeer, request: Request, chunks: range) -> None:
    """Send what was asked for."""
    request.send_run([peer.cut(index) for index in chunks])


def send_endless_pieces(peer: BadPeer, request: Request, chunks: range) -> None:
    """Send the run without a length, and go on for ever."""
    claims = join([digest_of(peer.cut(index)) for index in chunks])
    request.send_head(200, Transfer_Encoding="chunked", X_P2PCache_Chunks=claims)
    for index in chunks:
        request.wfile.write(b"%x\r\n%b\r\n" % (len(peer.cut(index)), peer.cut(index)))
    while not peer.has_ended.is_set():
        request.wfile.write(b"%x\r\n%b\r\n" % (len(FILLER), FILLER))


def send_endless_length(peer: BadPeer, request: Request, chunks: range) -> None:
    """Announce an exbibyte, and begin to send it."""
    claims = join([digest_of(peer.cut(index)) for index in chunks])
    request.send_head(200, Content_Length=1 << 60, X_P2PCache_Chunks=claims)
    request.send_for_ever()


def send_endless_tail(peer: BadPeer, request: Request, chunks: range) -> None:
    """Send the run rightly, and then go on for ever on the same connection."""
    send_honestly(peer, request, chunks)
    request.send_for_ever()


def send_endless_head(peer: BadPeer, request: Request, chunks: range) -> None:
    """Send headers for ever."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not peer.has_ended.is_set():
        request.wfile.write(b"X-More: %b\r\n" % (b"x" * 1000))


def send_nothing(peer: BadPeer, request: Request, chunks: range) -> None:
    """Take the request and never answer."""
    peer.has_ended.wait()


def send_half(peer: BadPeer, request: Request, chunks: range) -> None:
    """Promise the whole run, send half of it, close."""
    content = b"".join(peer.cut(index) for index in chunks)
    claims = join([digest_of(peer.cut(index)) for index in chunks])
    request.send_head(200, Content_Length=len(content), X_P2PCache_Chunks=claims)
    request.wfile.write(content[: len(content) // 2])
    request.close_connection = True


def send_short_length(peer: BadPeer, request: Request, chunks: range) -> None:
    """Announce a byte less than the run has, and send just that."""
    content = b"".join(peer.cut(index) for index in chunks)
    claims = join([digest_of(peer.cut(index)) for index in chunks])
    request.send_whole(200, content[:-1], X_P2PCache_Chunks=claims)


def flip(chunk: bytes) -> bytes:
    """Return a chunk with one bit changed."""
    return bytes([chunk[0] ^ 1]) + chunk[1:]


def send_wrong_bytes(peer: BadPeer, request: Request, chunks: range) -> None:
    """Flip a bit of every chunk, under the true chunk's digest."""
    true = [peer.cut(index) for index in chunks]
    request.send_run([flip(chunk) for chunk in true], [digest_of(chunk) for chunk in true])


def find_other(peer: BadPeer, index: int) -> bytes:
    """Return what passes for a chunk and is not it: the next one, or one of the same length."""
    last = peer.chunk_count - 1
    if index == last:  # shorter than the others: no other can stand for it
        return flip(peer.cut(last))
    return peer.cut((index + 1) % last)


def send_other_index(peer: BadPeer, request: Request, chunks: range) -> None:
    """Send the true chunk of another index, under its own true digest."""
    request.send_run([find_other(peer, index) for index in chunks])


def send_other_index_at_times(peer: BadPeer, request: Request, chunks: range) -> None:
    """Lie in every third run, the first among them, and tell the truth in the others."""
    if peer.runs.index(chunks) % 3 == 0:
        send_other_index(peer, request, chunks)
    else:
        send_honestly(peer, request, chunks)


def refuse_with(status: int, code: str, **headers: object) -> Send:
    """Return a way to refuse every run, whatever was said of having it."""

    def send(peer: BadPeer, request: Request, chunks: range) -> None:
        body = json.dumps({"error": code, "message": "No."}).encode()
        request.send_whole(status, body, X_Error_Code=code, **headers)

    return send
