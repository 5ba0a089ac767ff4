"""
Owns a Source in memory, for tests and simulations.

Knows nothing of networks. Wrong bytes, refusals and short bodies are the caller's to configure.
Invariants: as the real sources: verified chunks only, in order.
Source: base.py.
"""

from __future__ import annotations

from collections.abc import Callable

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import digest_of, verify_chunk
from p2pcache.core.views import RunRequest
from p2pcache.transfer.base import ChunkSink


class MemorySource:
    """Bytes in memory. Implements Source; may be asked from several threads."""

    def __init__(
        self,
        source_id: str,
        content: bytes,
        *,
        tamper: Callable[[int, bytearray], None] | None = None,
    ) -> None:
        """
        Args:
            source_id: Its name.
            content: The whole blob.
            tamper: Called with a chunk's index and bytes before they are "sent".
        """
        self.source_id = source_id
        self.requests: list[RunRequest] = []
        self._content = content
        self._tamper = tamper

    def fetch_run(self, blob: BlobDigest, layout: Layout, run: RunRequest, sink: ChunkSink) -> None:
        """Deliver a run. See Source.fetch_run."""
        self.requests.append(run)
        for index in run.chunk_indexes:
            offset, length = layout.span_of(index, index)
            honest = self._content[offset : offset + length]
            sent = bytearray(honest)
            if self._tamper is not None:
                self._tamper(index, sent)
            sink.note_progress(len(sent))
            expected = digest_of(honest)
            sink.deliver(
                verify_chunk(
                    blob,
                    layout,
                    index,
                    memoryview(sent),
                    expected=expected,
                    source_id=self.source_id,
                )
            )

    def close(self) -> None:
        """Do nothing."""
