"""
Owns the passage of a run's chunks from a bulk thread into the partial file and the event loop.

Knows nothing of sources or plans.
Invariants: bytes are written before the event loop hears of them; after cancel() the thread ends
at its next piece; a cap is kept by waiting here, which is not the source's slowness.
Source: transfer.base.ChunkSink.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.core.verify import VerifiedChunk
from p2pcache.engine.caps import Pacer
from p2pcache.store.partial import FilePartial
from p2pcache.transfer.base import RunCancelled

ChunkListener = Callable[[int, str], None]


class RunSink:
    """The sink of one run. Implements ChunkSink; cancel() may be called from the event loop."""

    def __init__(
        self,
        partial: FilePartial,
        source_id: str,
        on_chunk: ChunkListener,
        on_prefix: Callable[[], None],
        pacer: Pacer | None = None,
    ) -> None:
        """
        Args:
            partial: Where the chunks go.
            source_id: Who sends them, for the record.
            on_chunk: Called on the event loop with (chunk index, source id).
            on_prefix: Called on the event loop when more of a chunk's start is there.
            pacer: Keeps the caps that hold for the source; None for no cap.
        """
        self.received_bytes = 0
        # Whether a thread has taken the run up; before, its source is not to blame for waiting.
        self.is_begun = False
        # Seconds that our own caps held the run up, those of a wait under way included: who judges
        # the source takes them off.
        self.paced_s = 0.0
        self._partial = partial
        self._source_id = source_id
        self._on_chunk = on_chunk
        self._on_prefix = on_prefix
        self._pacer = pacer
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()

    @property
    def piece_bytes_max(self) -> int:
        """Return how much may come between two waits for a cap; a whole chunk without one."""
        if self._pacer is None or self._pacer.limit_bps is None:
            return CHUNK_SIZE_BYTES
        return self._pacer.slice_bytes

    @property
    def is_cancelled(self) -> bool:
        """Return whether the run is not wanted any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End the run at its next piece, or in the middle of a wait for a cap."""
        self._cancelled.set()

    def deliver(self, chunk: VerifiedChunk) -> None:
        """Write a chunk, tell the event loop, then let the proof keep up."""
        self._partial.put(chunk, self._source_id)
        self._loop.call_soon_threadsafe(self._on_chunk, chunk.chunk_index, self._source_id)
        wait_for_room = self._partial.wait_for_room
        if wait_for_room is not None:
            wait_for_room()

    def resume(self, chunk_index: int, into: memoryview) -> int:
        """Read back the start of a chunk that was kept."""
        length = self._partial.find_prefix_bytes(chunk_index)
        if length:
            self._partial.read_into(self._partial.layout.offset_of(chunk_index), into[:length])
        # A copy from another file, begun meanwhile, may have been read in its place.
        return length if self._partial.find_prefix_bytes(chunk_index) >= length else 0

    def keep_prefix(self, chunk_index: int, prefix: memoryview, written_bytes: int) -> None:
        """Write the start of a chunk that is still arriving."""
        self._partial.put_prefix(chunk_index, prefix, written_bytes)
        self._loop.call_soon_threadsafe(self._on_prefix)

    def note_progress(self, received_bytes: int) -> None:
        """Count, keep the caps, and stop if nobody wants more."""
        self.received_bytes += received_bytes
        if self._pacer is not None:
            wait_s = self._pacer.reserve(received_bytes)
            self.paced_s += wait_s
            self._pacer.wait_in_thread(wait_s, self._cancelled.wait)
        if self._cancelled.is_set():
            raise RunCancelled
