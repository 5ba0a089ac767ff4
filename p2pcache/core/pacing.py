"""
Owns a token bucket: how long something has to wait so that a rate is kept.

Knows nothing of clocks, threads and what is counted; times come in, waits go out.
Invariants: whoever waits as told moves at most `rate * time + burst` in any stretch of time; waits
are in the order of asking, so nobody is overtaken; a clock that goes back gives nothing away.
Source: the generic cell rate algorithm (ITU-T I.371), in its form with a debt.
"""

from __future__ import annotations

# Threads that read the clock and then wait for each other hand in times a moment apart; a clock
# that is further back than this was set, and what it showed before counts no more.
DISORDER_S_MAX = 1.0


class TokenBucket:
    """One rate. The owner takes care of threads."""

    def __init__(self, rate: float, burst: float, *, now_s: float) -> None:
        """
        Args:
            rate: Tokens per second, above 0.
            burst: What may go at once after a silence; 0 spaces out everything.
            now_s: Monotonic seconds; the bucket begins full.
        """
        assert rate > 0, "no limit is no bucket"
        assert burst >= 0, "a burst is an amount"
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._counted_s = now_s

    def take(self, amount: float, *, now_s: float) -> float:
        """
        Take tokens, more than there are if need be; return how many seconds to wait for them.

        The debt is paid before anybody else's: a large amount waits longer, and is not overtaken.
        """
        if now_s < self._counted_s - DISORDER_S_MAX:
            self._counted_s = now_s
        elif now_s > self._counted_s:
            earned = (now_s - self._counted_s) * self.rate
            self._level = min(self.burst, self._level + earned)
            self._counted_s = now_s
        self._level -= amount
        # What was counted is not counted again: whoever comes with an older time waits for both.
        return max(0.0, -self._level / self.rate + self._counted_s - now_s)
