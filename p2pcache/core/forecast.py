"""
Owns the estimate of how long the missing bytes of a model will take, from rates that were measured.

Knows nothing of clocks, and of how the rates were measured (core.throughput).
Invariants: nothing missing takes no time; without any measurement there is no estimate; the
careful one is never shorter than the likely one; equal inputs, equal estimates.
Source: design.md §8 (eta_s); docs/explanation/performance-model.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pcache.core.holdings import Eta


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second of one kind of source: likely, and in a slow stretch. 0: not measured."""

    likely_bps: float = 0.0
    careful_bps: float = 0.0

    def scaled(self, share: float) -> Speed:
        """Return the same for who has only a part of the line."""
        return Speed(self.likely_bps * share, self.careful_bps * share)


def forecast_running(missing_bytes: int, speed: Speed) -> Eta | None:
    """
    Estimate the rest of a model that arrives right now.

    Args:
        missing_bytes: What is still to come.
        speed: Of everything that arrives for it, whoever sends it: a swarm shifts work between
            peers and hub all the time, the sum stays.
    """
    if missing_bytes <= 0:
        return Eta(0.0, 0.0)
    if speed.likely_bps <= 0:
        return None
    likely_s = missing_bytes / speed.likely_bps
    return Eta(likely_s, max(likely_s, missing_bytes / (speed.careful_bps or speed.likely_bps)))


def forecast_start(needs: Iterable[tuple[int, Speed]]) -> Eta | None:
    """
    Estimate a model that nobody fetches yet: all kinds of sources at once, the slowest decides.

    Args:
        needs: (bytes from a kind of source, its speed). A kind that was never measured is taken
            to be as fast as the slowest of the others.
    """
    wanted = [(missing_bytes, speed) for missing_bytes, speed in needs]
    measured = [speed for _, speed in wanted if speed.likely_bps > 0]
    if not any(missing_bytes > 0 for missing_bytes, _ in wanted):
        return Eta(0.0, 0.0)
    if not measured:
        return None
    slowest = min(measured, key=lambda speed: speed.likely_bps)
    etas = [
        forecast_running(missing_bytes, speed if speed.likely_bps > 0 else slowest)
        for missing_bytes, speed in wanted
    ]
    known = [eta for eta in etas if eta is not None]
    return Eta(max(eta.p50_s for eta in known), max(eta.p95_s for eta in known))
