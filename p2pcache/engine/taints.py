"""
Owns which blobs readers were given wrong bytes of, before the proof showed it.

Knows nothing of how that happened.
Invariants: survives a restart; bounded; forgotten after TAINT_S.
Source: clients resume a broken body by range, under the same ETag, without checking what they
already have: the only safe resume is none (docs/explanation/trust-and-threats.md).
"""

from __future__ import annotations

from collections import OrderedDict

from p2pcache.clock import Clock
from p2pcache.core.digest import BlobDigest
from p2pcache.engine.indexthread import IndexThread

# Old clients keep the start of a file between runs; a week is longer than anybody waits to retry.
TAINT_S = 7 * 86_400.0
TAINTS_MAX = 1024


class Taints:
    """Blobs whose early bytes may be wrong at some reader. Event loop only."""

    def __init__(self, index: IndexThread, clock: Clock) -> None:
        self._index = index
        self._clock = clock
        self._until_wall_s: OrderedDict[BlobDigest, float] = OrderedDict()

    async def load(self) -> None:
        """Remember what an earlier run noted."""
        known = await self._index.call(lambda index: index.blobs.list_refuted())
        self._until_wall_s.update(known[-TAINTS_MAX:])

    async def note(self, blob: BlobDigest) -> None:
        """Record that wrong bytes of a blob may have been given out just now."""
        until_wall_s = self._clock.wall_s() + TAINT_S
        self._until_wall_s[blob] = until_wall_s
        self._until_wall_s.move_to_end(blob)
        while len(self._until_wall_s) > TAINTS_MAX:
            self._until_wall_s.popitem(last=False)
        await self._index.call(lambda index: index.blobs.put_refuted(blob, until_wall_s))

    def has(self, blob: BlobDigest) -> bool:
        """Return whether a reader may still hold wrong bytes of a blob."""
        return self._until_wall_s.get(blob, 0.0) > self._clock.wall_s()
