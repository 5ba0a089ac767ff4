"""
Owns measuring how fast bytes come, from peers, from the hub and from this disk.

Knows nothing of what they are for.
Invariants: only time in which something is being fetched counts, so that a rate outlives a pause;
bytes count when they are off the wire, not when their chunk is whole; bounded.
Source: core/throughput.py; docs/explanation/performance-model.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from p2pcache.core.forecast import Speed
from p2pcache.core.throughput import Throughput
from p2pcache.engine.context import Context
from p2pcache.engine.fetches import ActiveFetch

# How often is counted while something arrives.
SAMPLE_INTERVAL_S = 0.5
# A kind of source that gives nothing for longer was not asked, rather than slow.
PAUSE_S_MAX = 3.0
# The source kinds that are told apart, and all of them together.
KINDS = ("peer", "upstream", "disk")
ALL = "all"


class Speeds:
    """The measured rates. Event loop only."""

    def __init__(self, context: Context, iter_active: Callable[[], Iterable[ActiveFetch]]) -> None:
        self._context = context
        self._iter_active = iter_active
        self._meters = {kind: Throughput() for kind in (*KINDS, ALL)}
        # Seconds in which each kind was busy: the meters' clocks; when each moved last, to what.
        self._busy_s = dict.fromkeys(self._meters, 0.0)
        self._moved: dict[str, tuple[float, int]] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to measure."""
        self._task = asyncio.create_task(self._sample_regularly())

    async def close(self) -> None:
        """Stop measuring. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def read(self, kind: str) -> Speed:
        """Return how fast a kind of source was lately; zeros if it was never measured."""
        meter = self._meters[kind]
        # Per byte: a whole number of bytes would round.
        likely_s, careful_s = meter.eta_s(1), meter.careful_eta_s(1)
        if not likely_s or not careful_s:
            return Speed()
        return Speed(1 / likely_s, 1 / careful_s)

    async def _sample_regularly(self) -> None:
        clock = self._context.clock
        while True:
            active = [fetch for fetch in self._iter_active() if fetch.is_open.is_set()]
            if active:
                self._note(active, clock.monotonic_s())
            else:
                self._moved.clear()
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    def _note(self, active: Iterable[ActiveFetch], now_s: float) -> None:
        counted = self._context.bytes_counted
        moved = {kind: counted[kind, "in"] for kind in KINDS}
        # Chunks on their way: without them a slow line would seem to stand still, then to leap.
        moved["upstream"] += sum(a.fetch.partial.count_prefix_bytes() for a in active)
        moved[ALL] = moved["peer"] + moved["upstream"] + moved["disk"]
        for kind, meter in self._meters.items():
            last_s, last = self._moved.get(kind, (now_s, -1))
            if moved[kind] == last:
                continue
            # What all sources give together may pause: then it is the line, or the hub.
            gap_s = now_s - last_s
            self._busy_s[kind] += gap_s if kind == ALL else min(gap_s, PAUSE_S_MAX)
            self._moved[kind] = now_s, moved[kind]
            meter.note(moved[kind], now_s=self._busy_s[kind])
