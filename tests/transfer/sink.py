"""
Owns a ChunkSink that remembers everything it was told.

Knows nothing of stores.
Invariants: bytes are copied before deliver() returns, as a borrowed view demands.
Source: transfer/base.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.core.verify import VerifiedChunk
from p2pcache.transfer.base import RunCancelled


@dataclass
class RecordingSink:
    """Keeps chunks, starts of chunks and counts; cancels, or fails, when told to."""

    cancels_after_bytes: int | None = None
    error: Exception | None = None
    order: list[int] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    chunks: dict[int, VerifiedChunk] = field(default_factory=dict)
    prefixes: dict[int, bytes] = field(default_factory=dict)
    prefix_calls: list[tuple[int, int, int]] = field(default_factory=list)
    received_bytes: int = 0
    piece_bytes_max: int = CHUNK_SIZE_BYTES

    def deliver(self, chunk: VerifiedChunk) -> None:
        """Copy a chunk, or fail as a disk does."""
        if self.error is not None:
            raise self.error
        self.order.append(chunk.chunk_index)
        self.contents[chunk.chunk_index] = bytes(chunk.view)
        self.chunks[chunk.chunk_index] = chunk
        self.prefixes.pop(chunk.chunk_index, None)

    def resume(self, chunk_index: int, into: memoryview) -> int:
        """Give back the start of a chunk that was kept."""
        prefix = self.prefixes.get(chunk_index, b"")
        into[: len(prefix)] = prefix
        return len(prefix)

    def keep_prefix(self, chunk_index: int, prefix: memoryview, written_bytes: int) -> None:
        """Keep the start of a chunk."""
        self.prefix_calls.append((chunk_index, len(prefix), written_bytes))
        self.prefixes[chunk_index] = bytes(prefix)

    def note_progress(self, received_bytes: int) -> None:
        """Count; cancel when enough has come."""
        self.received_bytes += received_bytes
        limit = self.cancels_after_bytes
        if limit is not None and self.received_bytes >= limit:
            raise RunCancelled
