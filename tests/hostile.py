"""
Owns hostile neighbours: a wire that flips bits, a peer that lies.

Knows nothing of what is tested.
Invariants: they listen on loopback only and end with the test.
Source: threats T1–T4 of the fault matrix.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import Exchange, Hello, SwarmEntry
from p2pcache.core.verify import digest_of
from tests.ports import pick_port

_PIECE_BYTES = 64 * 1024
_BULK_BYTES = 1_000_000


class FlippingWire:
    """A TCP relay that flips one bit in every large answer of the other side."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", pick_port()))
        self.flipped = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FlippingWire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    raise
                threading.Thread(target=self._relay, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._relay, args=(far, near, True), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, flips: bool) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while piece := bytearray(source.recv(_PIECE_BYTES)):
                before, seen = seen, seen + len(piece)
                if flips and before < _BULK_BYTES <= seen:
                    piece[_BULK_BYTES - before - 1] ^= 1
                    self.flipped += 1
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


class LyingPeer:
    """
    A peer that claims to hold blobs and sends what it likes, with claims to match.

    `tamper` gets a chunk's index and its bytes; what it returns is sent, under its own digest.
    """

    peer_id = "f" * 32
    name = "liar"

    def __init__(
        self,
        blobs: dict[BlobDigest, bytes],
        tamper: Callable[[int, bytes], bytes],
        *,
        dribbles: bool = False,
    ) -> None:
        """
        Args:
            blobs: What it claims to hold.
            tamper: What it makes of a chunk.
            dribbles: Send bodies byte by byte, ten a second, for as long as anybody listens.
        """
        self.sent_chunks = 0
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

            def _answer(self, body: bytes, **headers: str) -> None:
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if headers and dribbles:
                    with contextlib.suppress(OSError):
                        for position in range(len(body)):
                            self.wfile.write(body[position : position + 1])
                            time.sleep(0.1)
                    return
                self.wfile.write(body)

            def do_GET(self) -> None:
                """Answer hello and runs."""
                hello = Hello(peer.peer_id, peer.name, "0.1.0")
                match = re.fullmatch(r"/v1/blobs/([^/]+)/chunks/(\d+)-(\d+)", self.path)
                if match is None:
                    self._answer(json.dumps(hello.to_json()).encode())
                    return
                content = blobs[BlobDigest.parse(match[1])]
                layout = Layout(len(content))
                chunks = []
                for index in range(int(match[2]), int(match[3]) + 1):
                    offset, length = layout.span_of(index, index)
                    chunks.append(tamper(index, content[offset : offset + length]))
                    peer.sent_chunks += 1
                claims = ",".join(str(digest_of(chunk)) for chunk in chunks)
                self._answer(b"".join(chunks), X_P2PCache_Chunks=claims)

            def do_POST(self) -> None:
                """Answer an exchange: everything is here, whole."""
                self.rfile.read(int(self.headers["Content-Length"]))
                entries = tuple(
                    SwarmEntry(
                        blob,
                        Layout(len(content)).id,
                        Bitfield.full(Layout(len(content)).chunk_count),
                        Bitfield(Layout(len(content)).chunk_count),
                    )
                    for blob, content in blobs.items()
                )
                hello = Hello(peer.peer_id, peer.name, "0.1.0")
                self._answer(json.dumps(Exchange(hello, 1, entries).to_json()).encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", pick_port()), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LyingPeer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def sha256_blob(content: bytes) -> BlobDigest:
    """Return the LFS name of some bytes."""
    return BlobDigest("sha256", hashlib.sha256(content).hexdigest())
