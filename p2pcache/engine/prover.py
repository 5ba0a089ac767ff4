"""
Owns hashing a blob behind its transfer, in order, as chunks arrive.

Knows nothing of sources.
Invariants: what is hashed is what was written to the file that will be published, taken from
memory right after, or read back from it; one hashing step at a time.
Source: design.md §5 step ⑥; docs/decisions/0014-proof-from-memory.md.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from p2pcache.core.verify import BlobProof, VerifiedChunk
from p2pcache.engine.context import Context
from p2pcache.store.partial import FilePartial
from p2pcache.transfer.buffers import (
    KEPT_BUFFERS_MAX,
    keep_buffer,
    return_buffer,
    thread_buffer,
)

# Chunks hashed in one go: long enough to be worth a thread's while, short enough to be stopped.
STEP_CHUNKS_MAX = 16
# How far ahead of the proof a chunk may be and still be kept in memory for it: what lies further
# off would only hold buffers that nearer chunks need. Four runs of 4 MiB chunks.
AHEAD_CHUNKS_MAX = 32
# Where the proof is the slowest part, whoever receives waits for it rather than for a second copy
# of every byte; and no longer for one chunk than a reader or a peer would notice.
ROOM_CHUNKS = 4
ROOM_WAIT_S_MAX = 0.05


async def prove(
    context: Context,
    partial: FilePartial,
    is_here: Callable[[int], bool],
    wait_for_change: Callable[[], Awaitable[None]],
) -> BlobProof:
    """
    Hash the whole blob as it fills; returns once its last byte was hashed.

    Args:
        context: For a bulk thread.
        partial: The file.
        is_here: Says whether a chunk can be hashed now; more of them can as the fetch goes on.
        wait_for_change: Returns when a chunk arrived.
    """
    proof = BlobProof(partial.blob, partial.layout.size_bytes)
    chunks = _Chunks(partial)
    next_chunk = 0
    partial.on_put, partial.wait_for_room = chunks.keep, chunks.wait_for_room
    try:
        while next_chunk < partial.layout.chunk_count:
            end = next_chunk
            while end < partial.layout.chunk_count and is_here(end):
                if end - next_chunk >= STEP_CHUNKS_MAX:
                    break
                end += 1
            if end == next_chunk:
                chunks.note_idle(is_idle=True)
                await wait_for_change()
                chunks.note_idle(is_idle=False)
                continue
            next_chunk = await context.in_bulk(_hash_chunks, proof, chunks, next_chunk, end)
    finally:
        partial.on_put = partial.wait_for_room = None
        chunks.close()
    return proof


class _Chunks:
    """The chunks of one blob, for the proof: from memory where they were kept. Thread-safe."""

    def __init__(self, partial: FilePartial) -> None:
        self._partial = partial
        self._changed = threading.Condition()
        self._kept: dict[int, memoryview] = {}
        self._next_chunk = 0
        self._is_idle = True
        self._is_closed = False

    def keep(self, chunk: VerifiedChunk) -> None:
        """Keep a chunk that was just written, if the proof comes to it soon and there is room."""
        with self._changed:
            ahead = chunk.chunk_index - self._next_chunk
            if self._is_closed or not 0 <= ahead < AHEAD_CHUNKS_MAX:
                return
            if chunk.chunk_index not in self._kept and keep_buffer(chunk.view):
                self._kept[chunk.chunk_index] = chunk.view

    def wait_for_room(self) -> None:
        """Wait, for a moment at most, until some more chunks can be kept; not for an idle proof."""
        with self._changed:
            self._changed.wait_for(self._has_room, ROOM_WAIT_S_MAX)

    def _has_room(self) -> bool:
        is_full = len(self._kept) > KEPT_BUFFERS_MAX - ROOM_CHUNKS
        return self._is_idle or self._is_closed or not is_full

    def note_idle(self, *, is_idle: bool) -> None:
        """Note whether the proof waits for a chunk that is not here yet."""
        with self._changed:
            self._is_idle = is_idle
            self._changed.notify_all()

    def is_kept(self, chunk_index: int) -> bool:
        """Return whether a chunk is in memory."""
        with self._changed:
            return chunk_index in self._kept

    def feed(self, chunk_index: int, proof: BlobProof) -> None:
        """
        Hash one chunk.

        Raises:
            StoreError: It is not in memory, and the disk failed.
        """
        with self._changed:
            self._next_chunk = chunk_index + 1
            kept = self._kept.pop(chunk_index, None)
            self._changed.notify_all()
        if kept is not None:
            proof.update(kept)
            return_buffer(kept)
            return
        layout = self._partial.layout
        view = thread_buffer()[: layout.length_of(chunk_index)]
        self._partial.read_into(layout.offset_of(chunk_index), view)
        proof.update(view)

    def close(self) -> None:
        """Let go of what is kept; nothing is kept from now on."""
        with self._changed:
            self._is_closed = True
            for kept in self._kept.values():
                return_buffer(kept)
            self._kept.clear()
            self._changed.notify_all()


def _hash_chunks(proof: BlobProof, chunks: _Chunks, first: int, end: int) -> int:
    """Hash chunks up to `end`, and on while the next one is in memory; return the next chunk."""
    index = first
    while index < end or (index - first < STEP_CHUNKS_MAX and chunks.is_kept(index)):
        chunks.feed(index, proof)
        index += 1
    return index
