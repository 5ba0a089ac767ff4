"""
Owns the count of requests in a fixed window, as the hub tells it with every answer.

Knows nothing of HTTP, and refuses nothing: refusals are faults.
Invariants: a window begins with the first request after the last one ended.
Source: the RateLimit draft of the IETF (draft-ietf-httpapi-ratelimit-headers).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

QUOTA_REQUESTS = 3000
WINDOW_S = 300


class Quota:
    """What is left of a quota of one kind of requests."""

    def __init__(self, requests: int, clock_s: Callable[[], float] = monotonic) -> None:
        self.requests = requests
        self._clock_s = clock_s
        self._ends_s = 0.0
        self._used = 0

    def use(self) -> tuple[int, int]:
        """Count a request; returns how many are left, one at least, and for how many seconds."""
        now_s = self._clock_s()
        if now_s >= self._ends_s:
            self._ends_s, self._used = now_s + WINDOW_S, 0
        self._used += 1
        return max(1, self.requests - self._used), max(1, round(self._ends_s - now_s))
