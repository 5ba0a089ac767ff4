"""
Owns reading a file for an HTTP client, while it is still arriving or when it is whole.

Knows nothing of HTTP: yields ranges of an open file that may be sent now.
Invariants: a byte is yielded only if its chunk was checked and its source is trusted, or the
whole blob is proven; the last byte of a blob is never yielded before the proof, so nobody can
end up with a whole file that is wrong.
Source: design.md §7 ("when a gateway may send").
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from p2pcache.core.layout import Layout
from p2pcache.engine.fetches import ActiveFetch
from p2pcache.errors import IntegrityError

# Clients give up after 10 s without a byte: while the proof of a long file catches up, a piece
# of its last chunk goes out this often.
TRICKLE_INTERVAL_S = 3.0
TRICKLE_BYTES = 1024
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes that may be sent now: `length` from `offset` in the open file `fd`."""

    fd: int
    offset: int
    length: int


class BlobReader:
    """
    One client's view of one blob. Close it; the descriptor is its own.

    ready() first: it returns once a body may begin and be kept flowing.
    """

    def __init__(self, fd: int, size_bytes: int, active: ActiveFetch | None) -> None:
        """
        Args:
            fd: The open file; the reader closes it.
            size_bytes: Of the whole blob.
            active: The fetch that fills the file; None when the blob is proven.
        """
        self.size_bytes = size_bytes
        self._fd = fd
        self._active = active
        self._layout = Layout(size_bytes) if active is None else active.fetch.layout
        self._id = next(_numbers)
        self._is_streaming = False
        self._proof_failures = 0
        if active is not None:
            active.had_reader = True

    async def ready(self, start: int) -> None:
        """
        Wait until the byte at `start` may be sent and the body can be kept flowing.

        Raises:
            P2PCacheError: The fetch failed; nothing was sent yet, so the client can be told.
        """
        if self._active is None or self.size_bytes == 0:
            return
        chunk = self._layout.index_at(start)
        state = self._active.fetch.state
        while not self._active.is_done:
            if self._active.fetch.may_stream():
                self._begin_streaming()
                if self._find_limit(start) > start:
                    break
            await self._wait(chunk, timeout_s=1.0)
        else:
            await self._active.result()
        self._proof_failures = state.proof_failures

    async def segments(self, start: int, length: int) -> AsyncIterator[Segment]:
        """
        Yield what may be sent, in order, until `length` bytes from `start` were yielded.

        Raises:
            P2PCacheError: The fetch failed while bytes were still owed.
        """
        position, end = start, start + length
        while position < end:
            limit = await self._wait_for_bytes(position, end)
            if self._active is not None and not self._active.is_done:
                self._active.fetch.state.was_read = True
            yield Segment(self._fd, position, limit - position)
            position = limit

    async def _wait_for_bytes(self, position: int, end: int) -> int:
        """Return up to where bytes from position on may be sent; more than position."""
        if self._active is None:
            return end
        state = self._active.fetch.state
        chunk = self._layout.index_at(position)
        last_chunk = self._layout.chunk_count - 1
        # Measured from the last byte, not from the last change: while the rest of a file arrives,
        # something changes all the time.
        loop = asyncio.get_running_loop()
        trickle_s = loop.time() + TRICKLE_INTERVAL_S
        while not self._active.is_done:
            self._check_still_right()
            limit = self._find_limit(position)
            if limit > position:
                return min(end, limit)
            is_held = chunk == last_chunk and chunk in state.have and state.is_trusted(chunk)
            if is_held and loop.time() >= trickle_s and position + TRICKLE_BYTES < self.size_bytes:
                return min(end, position + TRICKLE_BYTES)
            left_s = max(trickle_s - loop.time(), 0.0) if is_held else 60.0
            await self._wait(chunk, timeout_s=left_s or TRICKLE_INTERVAL_S)
        await self._active.result()
        self._check_still_right()
        return end

    def _find_limit(self, position: int) -> int:
        """
        Return up to where the bytes from position on may be sent before the proof.

        Whole chunks that are checked and trusted; then as much of the next one as a trusted hub
        has sent, so that a slow line flows steadily. The end of the last chunk is kept back.
        """
        assert self._active is not None, "a proven blob has no limit"
        fetch, state = self._active.fetch, self._active.fetch.state
        until, last_chunk = self._layout.index_at(position), self._layout.chunk_count - 1
        while until < last_chunk and until in state.have and state.is_trusted(until):
            until += 1
        limit = self._layout.offset_of(until)
        if until not in state.have and state.order.trusts_upstream:
            limit += fetch.partial.find_prefix_bytes(until)
        return max(position, limit)

    def _check_still_right(self) -> None:
        """
        Insist that what was sent so far was part of the file that is proven.

        Raises:
            IntegrityError: The whole turned out wrong meanwhile; the body has to be broken off.
        """
        assert self._active is not None, "a proven blob stays right"
        if self._active.fetch.state.proof_failures != self._proof_failures:
            raise IntegrityError(
                "A source sent wrong bytes, which the proof of the whole file showed; ask again."
            )

    async def _wait(self, chunk: int, *, timeout_s: float) -> None:
        """Wait for something to change, timeout_s at most."""
        assert self._active is not None, "a proven blob needs no waiting"
        self._active.note_reader(self._id, chunk)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._active.wait_for_change()

    def _begin_streaming(self) -> None:
        if not self._is_streaming and self._active is not None:
            self._is_streaming = True
            self._active.fetch.state.streaming_count += 1

    def __del__(self) -> None:
        """Release the file when a client vanished before its handler could hold the reader."""
        self.close()

    def close(self) -> None:
        """Release the file; the fetch goes on without this reader. Safe to call twice."""
        if self._active is not None:
            self._active.forget_reader(self._id)
            if self._is_streaming:
                self._active.fetch.state.streaming_count -= 1
                self._is_streaming = False
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
