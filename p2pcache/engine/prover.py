"""
Owns hashing a blob behind its transfer, in order, as chunks arrive.

Knows nothing of sources.
Invariants: every byte is read back from the file that will be published; one hashing step at a
time.
Source: design.md §5 step ⑥; performance.md ("in order and behind the transfer").
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.core.verify import BlobProof
from p2pcache.engine.context import Context
from p2pcache.store.partial import FilePartial
from p2pcache.transfer.peer import thread_buffer

# Chunks hashed in one go: long enough to be worth a thread's while, short enough to be stopped.
STEP_CHUNKS_MAX = 16


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
    next_chunk = 0
    while next_chunk < partial.layout.chunk_count:
        end = next_chunk
        while end < partial.layout.chunk_count and is_here(end):
            if end - next_chunk >= STEP_CHUNKS_MAX:
                break
            end += 1
        if end == next_chunk:
            await wait_for_change()
            continue
        await context.in_bulk(_hash_chunks, proof, partial, next_chunk, end)
        next_chunk = end
    return proof


def _hash_chunks(proof: BlobProof, partial: FilePartial, first: int, end: int) -> None:
    for index in range(first, end):
        view = thread_buffer()[: partial.layout.length_of(index)]
        assert len(view) <= CHUNK_SIZE_BYTES, "a chunk fits the buffer"
        partial.read_into(partial.layout.offset_of(index), view)
        proof.update(view)
