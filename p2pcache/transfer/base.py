"""
Owns the Source boundary: anything that chunks can be asked of, and where they go.

Knows nothing of planning, stores or trust. Everything here runs in bulk threads.
Invariants: a sink is given verified chunks only; a source does not touch a chunk that it delivered.
Source: performance goals in docs/explanation/performance-model.md.
"""

from __future__ import annotations

from typing import Protocol

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import VerifiedChunk
from p2pcache.core.views import RunRequest


class ChunkSink(Protocol):
    """Where a run's chunks go. Called from the thread that fetches the run."""

    @property
    def piece_bytes_max(self) -> int:
        """Return how much may be taken off the wire between two calls of note_progress()."""
        ...

    def deliver(self, chunk: VerifiedChunk) -> None:
        """
        Store one chunk. Its buffer may be kept: thread_buffer() gives the one for the next chunk.

        Raises:
            StoreError: The disk failed or is full; the run ends.
        """
        ...

    def resume(self, chunk_index: int, into: memoryview) -> int:
        """Fill the start of a chunk that an earlier run left; return how many bytes."""
        ...

    def keep_prefix(self, chunk_index: int, prefix: memoryview, written_bytes: int) -> None:
        """Store the start of a chunk that is still arriving; see FilePartial.put_prefix."""
        ...

    def note_progress(self, received_bytes: int) -> None:
        """
        Count bytes off the wire.

        Raises:
            RunCancelled: Nobody wants the run any more.
        """
        ...


class RunCancelled(Exception):  # noqa: N818
    """The run is not wanted any more; what was delivered stays."""


class Source(Protocol):
    """
    One place that chunks of one blob can be asked of. Several runs may be fetched at once, each
    in a thread of its own.
    """

    source_id: str

    def fetch_run(self, blob: BlobDigest, layout: Layout, run: RunRequest, sink: ChunkSink) -> None:
        """
        Fetch consecutive chunks in order, verify each, deliver each.

        What was delivered before an error stays delivered.

        Raises:
            SourceError: The source did not do its part.
            ChunkMismatchError: It sent wrong bytes.
            StoreError: The sink could not store them.
            RunCancelled: The sink wants no more.
        """
        ...

    def close(self) -> None:
        """End the runs under way at once; each raises what a broken connection raises."""
        ...
