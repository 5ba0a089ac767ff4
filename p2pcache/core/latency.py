"""
Owns a histogram of durations: how long a chunk takes, so that "too long" is measured, not guessed.

Knows nothing of clocks or of what is timed.
Invariants: constant memory; old durations fade, so that a quantile follows the network.
Source: HdrHistogram, for buckets of equal relative width; Dean and Barroso, "The Tail at Scale"
(2013), for asking a second time after the 95th percentile.
"""

from __future__ import annotations

import math

# Buckets grow by a fifth: a quantile is right within a fifth, from 0.1 ms to some five hours.
_GROWTH = 1.2
_FIRST_S = 1e-4
_BUCKETS = 104
# Each note counts so much more than the one before it: about the last hundred decide.
_FADING = 1.01
_WEIGHT_MAX = 1e100


class LatencyHistogram:
    """Durations in seconds, the recent ones more than the old ones."""

    def __init__(self) -> None:
        self.count = 0
        self._weights = [0.0] * _BUCKETS
        self._weight = 1.0

    def note(self, duration_s: float) -> None:
        """Take in one duration."""
        steps = math.log(max(duration_s, _FIRST_S) / _FIRST_S, _GROWTH)
        self._weights[min(int(steps), _BUCKETS - 1)] += self._weight
        self.count += 1
        self._weight *= _FADING
        if self._weight > _WEIGHT_MAX:
            self._weights = [weight / self._weight for weight in self._weights]
            self._weight = 1.0

    def quantile_s(self, share: float) -> float:
        """Return the duration that `share` of the recent ones did not exceed; 0 without any."""
        wanted = share * sum(self._weights)
        passed = 0.0
        for bucket, weight in enumerate(self._weights):
            passed += weight
            if weight and passed >= wanted:
                return _FIRST_S * _GROWTH ** (bucket + 1)
        return 0.0
