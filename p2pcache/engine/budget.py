"""
Owns what all local requests together may ask of the hub: how many, how often, and not before when.

Knows nothing of connections; the metadata client and the bulk threads ask before they ask the hub.
Invariants: nothing asks while the hub wants a pause; after one, requests come back one by one and
not at the same moment as those of other daemons; what is left of a quota is spread over its window.
Source: design.md §6.5; docs/decisions/0015-rate-limits.md; core.ratelimit.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from p2pcache.clock import Clock, SystemClock
from p2pcache.core.ratelimit import Quota, find_pause_s, read_quotas
from p2pcache.errors import UpstreamRateLimitedError
from p2pcache.hubs.base import RequestKind

T = TypeVar("T")

# All blobs together: a share of the hub's link that one site may take without being rude.
UPSTREAM_REQUESTS_INFLIGHT_MAX = 8
# With a cap, each request shall still bring a chunk of 4 MiB within the 10 s that clients wait.
REQUEST_RATE_BPS_MIN = 1_000_000
# A hub that asks to slow down without saying how long; one that says "0" means less than that.
RATE_LIMIT_PAUSE_S = 5.0
RATE_LIMIT_PAUSE_S_MIN = 0.5
# A 503 with Retry-After may come from one machine of many: not believed for minutes.
UNAVAILABLE_PAUSE_S_MAX = 30.0
# Daemons of one site share an address, hear of the same window and would all return at its end.
JITTER_SHARE = 0.1
JITTER_S_MAX = 5.0
# Several answers to requests that were sent together mean one pause; headers count whole seconds.
SAME_PAUSE_S = 1.0
# For so long after a pause requests begin one by one: if the first is refused, few more are.
RESUME_S = 2.0
RESUME_GAP_S = 0.1
# Below this share of a quota, or this many requests where its size is not said, what is left is
# spread over what is left of the window.
LOW_SHARE = 0.1
LOW_REQUESTS = 20
# Somebody waits for an answer about a name; a run of chunks can wait longer.
METADATA_GAP_S_MAX = 0.5
BULK_GAP_S_MAX = 5.0
# How often one that waits looks whether the hub asked for more.
_LOOK_INTERVAL_S = 0.05
# Gaps are as long as they are on average, and never in step with another daemon's.
_GAP_SPREAD = (0.5, 1.5)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the hub said last of a quota: until when it holds, and how requests are spread."""

    ends_s: float
    is_used_up: bool
    gap_s: float


class UpstreamBudget:
    """
    What may be asked of the hub now. Implements hubs.base.Gate.

    `requests_inflight` is changed on the event loop alone; pauses come from any thread.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        random: Random | None = None,
        *,
        limit_bps: int | None = None,
    ) -> None:
        """
        Args:
            clock: Of the engine.
            random: For the jitter; that of the system if none is given.
            limit_bps: What all bulk bytes from the hub may take, None for no limit.
        """
        self.requests_inflight = 0
        self.paused_until_s = 0.0
        self.pauses_total = 0
        self.requests_inflight_max = UPSTREAM_REQUESTS_INFLIGHT_MAX
        if limit_bps is not None:
            fitting = max(1, limit_bps // REQUEST_RATE_BPS_MIN)
            self.requests_inflight_max = min(fitting, UPSTREAM_REQUESTS_INFLIGHT_MAX)
        self._clock = clock or SystemClock()
        self._random = random or Random()
        self._lock = threading.Lock()
        self._resume_next_s = 0.0
        self._metadata_next_s: dict[RequestKind, float] = {}
        self._bulk_next_s = 0.0
        self._quotas: dict[RequestKind, _Reading] = {}

    # --- what the hub says ---

    def pause(self, retry_after_s: float | None, *, now_s: float) -> None:
        """Ask nothing for a while: the hub said so, and it means every request of ours."""
        pause_s = RATE_LIMIT_PAUSE_S if retry_after_s is None else retry_after_s
        pause_s = max(pause_s, RATE_LIMIT_PAUSE_S_MIN)
        with self._lock:
            is_known = now_s < self.paused_until_s
            if is_known and now_s + pause_s <= self.paused_until_s + SAME_PAUSE_S:
                return
            self.pauses_total += 1
            until_s = now_s + pause_s + self._jitter(pause_s)
            self.paused_until_s = max(self.paused_until_s, until_s)

    def note_answer(self, kind: RequestKind, status: int, headers: Mapping[str, str]) -> None:
        """Take in what an answer of the hub says of its limits. Safe to call from any thread."""
        now_s = self._clock.monotonic_s()
        asked_s = find_pause_s(headers) if status in (429, 503) else None
        if status == 503 and asked_s is not None:
            asked_s = min(asked_s, UNAVAILABLE_PAUSE_S_MAX)
        if status == 429 or asked_s is not None:
            self.pause(asked_s, now_s=now_s)
            with self._lock:
                # How long to wait has been said; after that, what is left is anybody's guess.
                self._quotas.pop(kind, None)
            return
        quotas = [quota for quota in read_quotas(headers) if quota.reset_s is not None]
        if not quotas:
            return
        least = min(quotas, key=lambda quota: quota.remaining)
        reset_s = least.reset_s or 0.0
        with self._lock:
            jitter_s = 0.0 if least.remaining else self._jitter(reset_s)
            self._quotas[kind] = _Reading(
                now_s + reset_s + jitter_s, not least.remaining, _gap_of(least, reset_s)
            )

    def note_bulk_answer(self, status: int, headers: Mapping[str, str]) -> None:
        """Take in an answer to a request for bytes. Safe to call from any thread."""
        self.note_answer("resolve", status, headers)

    # --- who may ask now ---

    def may_ask(self, now_s: float) -> bool:
        """Return whether a request for bytes may begin now, for somebody who has one to send."""
        with self._lock:
            return now_s >= self._bulk_at(now_s)

    def count_free(self, now_s: float) -> int:
        """Return how many requests for bytes may begin now; those under way are counted."""
        with self._lock:
            if now_s < self._bulk_at(now_s):
                return 0
            free = max(0, self.requests_inflight_max - self.requests_inflight)
            is_slow = self._is_resuming(now_s) or self._turn_after("resolve", now_s, 1.0) > now_s
            return min(free, 1) if is_slow else free

    def begin(self, now_s: float) -> None:
        """Count a request for bytes that begins now; end() comes after, whatever happens."""
        self.requests_inflight += 1
        with self._lock:
            self._bulk_next_s = self._turn_after("resolve", now_s, BULK_GAP_S_MAX)
            self._begin_resuming(now_s)

    def end(self) -> None:
        """Count a request for bytes that ended."""
        self.requests_inflight -= 1

    def check(self) -> None:
        """
        Insist that the hub wants no pause, just before a request. Safe to call from any thread.

        Raises:
            UpstreamRateLimitedError: It does, with how long.
        """
        now_s = self._clock.monotonic_s()
        with self._lock:
            left_s = self.paused_until_s - now_s
        if left_s > 0:
            raise _refuse(left_s)

    def guard(self, work: Callable[..., T], *arguments: object) -> T:
        """
        Do what asks the hub, in a bulk thread, unless the hub wants a pause; one that it asks for
        holds before this returns.

        Raises:
            UpstreamRateLimitedError: The hub wants a pause, or asked for one just now.
        """
        self.check()
        try:
            return work(*arguments)
        except UpstreamRateLimitedError as error:
            self.pause(error.retry_after_s, now_s=self._clock.monotonic_s())
            raise

    async def admit(self, kind: RequestKind, *, wait_s_max: float) -> None:
        """Wait until a question may be asked. See hubs.base.Gate."""
        deadline_s = self._clock.monotonic_s() + wait_s_max
        while True:
            now_s = self._clock.monotonic_s()
            with self._lock:
                at_s = self._metadata_at(kind, now_s)
                if at_s <= now_s:
                    turn_s = self._turn_after(kind, now_s, METADATA_GAP_S_MAX)
                    self._metadata_next_s[kind] = turn_s
                    self._begin_resuming(now_s)
                    return
            if at_s > deadline_s:
                raise _refuse(at_s - now_s)
            await asyncio.sleep(min(at_s - now_s, _LOOK_INTERVAL_S))

    # --- small parts; the lock is held ---

    def _metadata_at(self, kind: RequestKind, now_s: float) -> float:
        at_s = max(self._open_at(now_s), self._metadata_next_s.get(kind, 0.0))
        return max(at_s, self._find_refill_s(kind))

    def _bulk_at(self, now_s: float) -> float:
        at_s = max(self._open_at(now_s), self._bulk_next_s)
        return max(at_s, self._find_refill_s("resolve"))

    def _open_at(self, now_s: float) -> float:
        """Return when the pause is over and the turn of the next request has come."""
        turn_s = self._resume_next_s if self._is_resuming(now_s) else 0.0
        return max(self.paused_until_s, turn_s)

    def _is_resuming(self, now_s: float) -> bool:
        return 0.0 < self.paused_until_s <= now_s < self.paused_until_s + RESUME_S

    def _begin_resuming(self, now_s: float) -> None:
        """Put off the next request, if a pause has just ended."""
        if self._is_resuming(now_s):
            self._resume_next_s = now_s + self._spread(RESUME_GAP_S)

    def _find_refill_s(self, kind: RequestKind) -> float:
        """Return when a quota that is used up is there again; 0 while something is left."""
        found = self._quotas.get(kind)
        return found.ends_s if found is not None and found.is_used_up else 0.0

    def _turn_after(self, kind: RequestKind, now_s: float, gap_s_max: float) -> float:
        """Return when the next request may follow one that begins now: now, or after a gap."""
        found = self._quotas.get(kind)
        if found is None or not found.gap_s or now_s >= found.ends_s:
            return now_s
        return min(found.ends_s, now_s + self._spread(min(found.gap_s, gap_s_max)))

    def _jitter(self, pause_s: float) -> float:
        return self._random.uniform(0.0, min(JITTER_S_MAX, JITTER_SHARE * pause_s))

    def _spread(self, gap_s: float) -> float:
        return gap_s * self._random.uniform(*_GAP_SPREAD)


def _gap_of(quota: Quota, reset_s: float) -> float:
    """Return the seconds between requests that spread what is left; 0 while there is plenty."""
    low = LOW_REQUESTS if quota.quota is None else LOW_SHARE * quota.quota
    return reset_s / quota.remaining if 0 < quota.remaining < low else 0.0


def _refuse(left_s: float) -> UpstreamRateLimitedError:
    return UpstreamRateLimitedError(
        f"The hub asked to slow down, so nothing is asked of it for {math.ceil(left_s)} s more; "
        "ask for what is cached, or again then.",
        retry_after_s=left_s,
    )
