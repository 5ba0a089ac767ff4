"""
Owns how fast bytes arrive, and how long the rest will take, from what was counted lately.

Knows nothing of clocks or of what is counted.
Invariants: constant memory; without movement there is no estimate; the careful one is never
shorter than the likely one.
Source: design.md §8 (rate_bps, eta_s); docs/reference/http-api.md.
"""

from __future__ import annotations

from collections import deque

# What is shown as the rate is an average over about this long.
RATE_WINDOW_S = 3.0
# What is still to come is judged by the last quarter of a minute: a line shared with others wavers.
ETA_WINDOW_S = 15.0
# Counts are kept this far apart at least, however often somebody looks.
_STEP_S = 0.1
# A stall of a few seconds makes a download slow, not endless.
_SLOW_SHARE_MIN = 0.1


class Throughput:
    """The bytes that moved lately."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def reset(self) -> None:
        """Forget everything: what comes next is another run."""
        self._samples.clear()

    def note(self, moved_bytes: int, *, now_s: float) -> None:
        """Take in how much has moved since the beginning."""
        samples = self._samples
        if len(samples) > 1 and now_s - samples[-2][0] < _STEP_S:
            samples.pop()
        samples.append((now_s, moved_bytes))
        while len(samples) > 2 and now_s - samples[1][0] >= ETA_WINDOW_S:
            samples.popleft()

    def rate_bps(self, window_s: float = RATE_WINDOW_S) -> float:
        """Return bytes a second over the last seconds; 0 before two counts."""
        if len(self._samples) < 2:
            return 0.0
        last_s, last = self._samples[-1]
        first_s, first = self._samples[-2]
        for then_s, then in reversed(self._samples):
            first_s, first = then_s, then
            if last_s - then_s >= window_s:
                break
        return max(0.0, (last - first) / (last_s - first_s)) if last_s > first_s else 0.0

    def eta_s(self, missing_bytes: int) -> float | None:
        """Return in how many seconds the rest is probably here; None while nothing moves."""
        rate = self.rate_bps(ETA_WINDOW_S)
        return missing_bytes / rate if rate > 0 else None

    def careful_eta_s(self, missing_bytes: int) -> float | None:
        """Return the same, if it goes on as in its slowest stretch of late."""
        rate = self.rate_bps(ETA_WINDOW_S)
        if rate <= 0:
            return None
        return missing_bytes / min(rate, max(self._slowest_bps(), rate * _SLOW_SHARE_MIN))

    def _slowest_bps(self) -> float:
        """Return the lowest rate over any RATE_WINDOW_S of what is remembered."""
        samples, slowest, start = list(self._samples), float("inf"), 0
        for end_s, moved in samples:
            while start + 1 < len(samples) and end_s - samples[start + 1][0] >= RATE_WINDOW_S:
                start += 1
            span_s = end_s - samples[start][0]
            if span_s >= RATE_WINDOW_S:
                slowest = min(slowest, (moved - samples[start][1]) / span_s)
        return slowest
