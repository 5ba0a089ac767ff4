"""
Owns the caps on bulk bytes: what comes from the hub, from peers, from each peer, and goes to them.

Knows nothing of requests; control messages and the local endpoint are not capped.
Invariants: whoever waits as told keeps every cap that holds for it, however many share one; a wait
ends at once when nobody wants the bytes any more.
Source: design.md §6.5; core.pacing; docs/decisions/0015-rate-limits.md.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from p2pcache.clock import Clock
from p2pcache.core.pacing import TokenBucket
from p2pcache.engine.settings import EngineSettings

# What may go at once after a silence: short enough that nobody else on the line notices.
BURST_S = 0.25
# As much as a capped sender gives in one go: receivers take 15 s of silence for death.
SLICE_S = 0.25
SLICE_BYTES_MIN = 64 * 1024
SLICE_BYTES_MAX = 8 * 1024 * 1024
# A capped daemon serves few at once rather than all at a crawl: peers leave one that gives less
# than 64 KiB/s, and this is twice that.
RUN_RATE_BPS_MIN = 128 * 1024
# Peers and addresses that are told apart; more than a daemon talks to. The oldest goes.
BUCKETS_MAX = 4096
# How often one that waits looks at the clock and for the end of interest.
_LOOK_INTERVAL_S = 0.25


class Pacer:
    """All caps on one way of bytes. Safe from several threads."""

    def __init__(self, buckets: Sequence[TokenBucket], clock: Clock, lock: threading.Lock) -> None:
        self._buckets = tuple(buckets)
        self._clock = clock
        self._lock = lock
        rate_bps = min((bucket.rate for bucket in buckets), default=float("inf"))
        # The lowest cap, for whoever judges how fast this way could be; None without one.
        self.limit_bps = None if rate_bps == float("inf") else rate_bps
        # How much a sender gives between two waits.
        self.slice_bytes = int(min(SLICE_BYTES_MAX, max(SLICE_BYTES_MIN, SLICE_S * rate_bps)))

    def reserve(self, count: int) -> float:
        """Take `count` bytes of every cap; return how many seconds to wait before they may move."""
        if not self._buckets:
            return 0.0
        with self._lock:
            now_s = self._clock.monotonic_s()
            return max(bucket.take(count, now_s=now_s) for bucket in self._buckets)

    def wait_in_thread(self, wait_s: float, wait_for_end: Callable[[float], bool]) -> None:
        """
        Wait in a bulk thread.

        Args:
            wait_s: As reserve() said.
            wait_for_end: Waits so many seconds for the end of interest; True once that has come.
        """
        until_s = self._clock.monotonic_s() + wait_s
        while (left_s := until_s - self._clock.monotonic_s()) > 0:
            if wait_for_end(min(left_s, _LOOK_INTERVAL_S)):
                return

    async def take(self, count: int) -> None:
        """Return when `count` bytes may be sent, on the event loop."""
        until_s = self._clock.monotonic_s() + self.reserve(count)
        while True:
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, _LOOK_INTERVAL_S))


class Caps:
    """The caps of one daemon. Safe from several threads."""

    def __init__(self, settings: EngineSettings, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._peer_limit_bps = settings.peer_limit_bps
        self._download = self._make(settings.download_limit_bps)
        self._upload = self._make(settings.upload_limit_bps)
        self._upstream = self._make(settings.upstream_limit_bps)
        self._by_peer: OrderedDict[tuple[str, str], TokenBucket] = OrderedDict()

    def of_upstream(self) -> Pacer:
        """Return the pacer of bytes from the hub."""
        return Pacer(_some(self._upstream, self._download), self._clock, self._lock)

    def of_download(self, peer_id: str) -> Pacer:
        """Return the pacer of bytes from one peer."""
        own = self._find_own("from", peer_id)
        return Pacer(_some(own, self._download), self._clock, self._lock)

    def of_upload(self, host: str) -> Pacer:
        """Return the pacer of bytes to one address; who asks from there is not known."""
        own = self._find_own("to", host)
        return Pacer(_some(own, self._upload), self._clock, self._lock)

    def count_uploads(self, uploads_max: int) -> int:
        """Return how many uploads at once, of those that may be, each get a decent rate."""
        return _fit(uploads_max, None if self._upload is None else self._upload.rate)

    def count_runs(self, runs_max: int) -> int:
        """Return how many runs between us and one peer at once each get a decent rate."""
        return _fit(runs_max, self._peer_limit_bps)

    def _find_own(self, way: str, name: str) -> TokenBucket | None:
        """Return the bucket of one peer or address, the same one for all its runs."""
        if self._peer_limit_bps is None:
            return None
        with self._lock:
            bucket = self._by_peer.pop((way, name), None) or self._make(self._peer_limit_bps)
            assert bucket is not None, "there is a limit"
            self._by_peer[way, name] = bucket
            while len(self._by_peer) > BUCKETS_MAX:
                self._by_peer.popitem(last=False)
        return bucket

    def _make(self, rate_bps: int | None) -> TokenBucket | None:
        if rate_bps is None:
            return None
        return TokenBucket(rate_bps, rate_bps * BURST_S, now_s=self._clock.monotonic_s())


def _fit(count_max: int, rate_bps: float | None) -> int:
    if rate_bps is None:
        return count_max
    return max(1, min(count_max, int(rate_bps / RUN_RATE_BPS_MIN)))


def _some(*buckets: TokenBucket | None) -> list[TokenBucket]:
    return [bucket for bucket in buckets if bucket is not None]
