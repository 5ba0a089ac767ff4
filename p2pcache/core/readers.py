"""
Owns where the readers of one blob are, and which of them have waited too long.

Knows nothing of files, HTTP or how bytes come.
Invariants: a reader waits for one chunk at a time; moving on begins its wait anew.
Source: design.md §6.4 (a waiting reader is never starved).
"""

from __future__ import annotations

from p2pcache.core.bitfield import Bitfield

# HTTP clients give up after 10 s without a byte; a reader that has waited this long is helped.
READER_PATIENCE_S = 2.0
# Chunks ahead of a reader that are asked for first.
READER_WINDOW_CHUNKS = 8


class Readers:
    """The readers of one blob."""

    def __init__(self) -> None:
        # reader → (the chunk it waits for, since when)
        self._waits: dict[int, tuple[int, float]] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._waits)

    def note(self, reader_id: int, chunk_index: int, *, now_s: float) -> bool:
        """Say which chunk a reader waits for; return whether it is another than before."""
        before = self._waits.get(reader_id)
        if before is not None and before[0] == chunk_index:
            return False
        self._waits[reader_id] = (chunk_index, now_s)
        return True

    def forget(self, reader_id: int) -> None:
        """Say that a reader left."""
        self._waits.pop(reader_id, None)

    def find_starving(self, have: Bitfield, *, now_s: float) -> list[int]:
        """Return the chunks that a reader has waited for too long."""
        return [
            index
            for index, since_s in self._waits.values()
            if now_s - since_s > READER_PATIENCE_S and index not in have
        ]

    def find_next(self, chunk_count: int) -> list[int]:
        """Return the chunks that readers need next, nearest first."""
        starts = {index for index, _ in self._waits.values()}
        ahead = [start + n for n in range(READER_WINDOW_CHUNKS) for start in starts]
        return list(dict.fromkeys(index for index in ahead if index < chunk_count))
