"""
Owns fetching runs of chunks from another p2pcache daemon.

Knows nothing of which peer to ask or whether to believe it beyond its own promise: every chunk
must have the digest that the peer itself announced in the answer's head.
Invariants: no byte is delivered before its check; a body longer than asked is never read.
Source: docs/reference/peer-protocol.md, "runs".
"""

from __future__ import annotations

import time
from http import HTTPStatus

from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import verify_chunk
from p2pcache.core.views import RunRequest
from p2pcache.errors import (
    BlobCorruptError,
    InvalidDigestError,
    PeerBusyError,
    PeerDamagedError,
    PeerProtocolError,
    PeerRefusedError,
    PeerUnreachableError,
)
from p2pcache.transfer.base import ChunkSink
from p2pcache.transfer.buffers import thread_buffer as thread_buffer
from p2pcache.transfer.connection import BodyError, ConnectionPool, Exchange, Line

DIGESTS_HEADER = "X-P2PCache-Chunks"
LAYOUT_HEADER = "X-P2PCache-Layout"
ERROR_HEADER = "X-Error-Code"
# Too early, too many, not now: it has them, and is to be asked again.
BUSY_STATUSES = (425, 429, 503)
# Below this average a peer on a local network is as good as dead; another source is asked.
RATE_FLOOR_BPS = 64 * 1024
RATE_GRACE_S = 5.0


class PeerSource:
    """One peer. Implements Source."""

    def __init__(self, source_id: str, base_url: str, pool: ConnectionPool) -> None:
        """
        Args:
            source_id: The peer's id.
            base_url: `http://host:port`, without a slash at the end.
            pool: Shared by all peers' sources.
        """
        self.source_id = source_id
        self._base_url = base_url
        self._line = Line(pool)

    def close(self) -> None:
        """Cut the runs under way; the shared pool stays open."""
        self._line.cut()

    def fetch_run(self, blob: BlobDigest, layout: Layout, run: RunRequest, sink: ChunkSink) -> None:
        """Fetch a run. See Source.fetch_run."""
        url = f"{self._base_url}/v1/blobs/{blob}/chunks/{run.first}-{run.last}"
        headers = {"Accept-Encoding": "identity", LAYOUT_HEADER: layout.name}
        try:
            exchange = self._line.request(url, headers)
        except BodyError as error:
            raise PeerUnreachableError(
                f"Peer {self.source_id} does not answer: {error}."
            ) from error
        try:
            digests = self._check_head(exchange, layout, run)
            self._read_chunks(exchange, blob, layout, run, digests, sink)
        except BodyError as error:
            exchange.fail()
            raise PeerUnreachableError(f"Peer {self.source_id} broke off: {error}.") from error
        except BaseException:
            exchange.fail()
            raise
        exchange.finish()

    def _check_head(self, exchange: Exchange, layout: Layout, run: RunRequest) -> list[ChunkDigest]:
        response = exchange.response
        if response.headers.get(ERROR_HEADER) == BlobCorruptError.__name__.removesuffix("Error"):
            raise PeerDamagedError(
                f"Peer {self.source_id} found its copy of chunks {run.first}-{run.last} damaged."
            )
        if response.status != HTTPStatus.OK:
            is_busy = response.status in BUSY_STATUSES
            raise (PeerBusyError if is_busy else PeerRefusedError)(
                f"Peer {self.source_id} answered {response.status} for chunks "
                f"{run.first}-{run.last}."
            )
        length = layout.span_of(run.first, run.last)[1]
        if response.length != length or response.headers.get("Content-Encoding"):
            raise PeerProtocolError(
                f"Peer {self.source_id} announced {response.length} bytes instead of {length}."
            )
        try:
            digests = [
                ChunkDigest.parse(text)
                for text in response.headers.get(DIGESTS_HEADER, "").split(",")
            ]
        except InvalidDigestError as error:
            raise PeerProtocolError(f"Peer {self.source_id} named no valid digests.") from error
        if len(digests) != len(run.chunk_indexes):
            raise PeerProtocolError(f"Peer {self.source_id} named {len(digests)} digests.")
        return digests

    def _read_chunks(
        self,
        exchange: Exchange,
        blob: BlobDigest,
        layout: Layout,
        run: RunRequest,
        digests: list[ChunkDigest],
        sink: ChunkSink,
    ) -> None:
        started_s = time.monotonic()
        received = 0
        for index, digest in zip(run.chunk_indexes, digests, strict=True):
            content = thread_buffer()[: layout.length_of(index)]
            arrived = 0
            while arrived < len(content):
                count = exchange.read_some(content[arrived : arrived + sink.piece_bytes_max])
                arrived, received = arrived + count, received + count
                noted_s = time.monotonic()
                sink.note_progress(count)
                # Caps of ours are kept in there: not the peer's time.
                started_s += time.monotonic() - noted_s
                elapsed_s = time.monotonic() - started_s
                if elapsed_s > RATE_GRACE_S and received < RATE_FLOOR_BPS * elapsed_s:
                    raise PeerUnreachableError(f"Peer {self.source_id} is too slow to wait for.")
            sink.deliver(
                verify_chunk(
                    blob, layout, index, content, expected=digest, source_id=self.source_id
                )
            )
