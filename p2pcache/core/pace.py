"""
Owns what all fetches of a daemon learn together: how long chunks take, what came twice, and whose
line they need.

Knows nothing of single fetches.
Invariants: what is reserved is given back when a run ends; counts only grow.
Source: latency.py; design.md §6.3 (at most 2 % extra bytes).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pcache.core.latency import LatencyHistogram
from p2pcache.core.needs import FirstCopyNeeds

# A chunk that takes longer than this multiple of the 95th percentile is asked of somebody else.
OVERDUE_FACTOR = 2.0
# In the end, when nothing else is left to ask for, sooner.
ENDGAME_OVERDUE_FACTOR = 1.25
# No percentile is believed before so many chunks, and no chunk is overdue before so long.
OVERDUE_SAMPLES_MIN = 8
OVERDUE_UNMEASURED_S = 2.0
OVERDUE_S_MIN = 0.3
# What may be received twice, as a share of everything that was wanted.
EXTRA_SHARE_MAX = 0.02


@dataclass(slots=True)
class ExtraBytes:
    """What all fetches of a daemon together may receive twice, and did."""

    wanted: int = 0
    spent: int = 0
    reserved: int = 0

    def may_spend(self, length: int) -> bool:
        """Return whether so many bytes more may come twice."""
        return self.spent + self.reserved + length <= EXTRA_SHARE_MAX * self.wanted


@dataclass(slots=True)
class Pace:
    """What all fetches of a daemon share. One owner (the event loop)."""

    peer_chunk: LatencyHistogram = field(default_factory=LatencyHistogram)
    # From the hub, with the others that were under way.
    hub_chunk: LatencyHistogram = field(default_factory=LatencyHistogram)
    extra: ExtraBytes = field(default_factory=ExtraBytes)
    needs: FirstCopyNeeds = field(default_factory=FirstCopyNeeds)
    # First copies, of all blobs: what tells the others that we move.
    moved_bytes: int = 0

    def overdue_s(self, *, is_endgame: bool) -> float:
        """Return after how many seconds a peer's chunk takes too long."""
        if self.peer_chunk.count < OVERDUE_SAMPLES_MIN:
            return OVERDUE_UNMEASURED_S
        factor = ENDGAME_OVERDUE_FACTOR if is_endgame else OVERDUE_FACTOR
        return max(OVERDUE_S_MIN, factor * self.peer_chunk.quantile_s(0.95))
