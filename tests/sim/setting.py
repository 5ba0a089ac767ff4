"""
Owns what a simulated swarm is made of: how many, how much, how fast.

Knows nothing of what goes wrong.
Invariants: the lower bound is the issue's: nobody can be faster.
Source: design.md §6.7; Mundinger, Weber and Weiss, "Optimal scheduling of peer-to-peer file
dissemination" (2008).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.views import PlannerLimits

BLOB = BlobDigest("sha256", "ab" * 32)
MEGABIT_BPS = 125_000
# A local network's round trip is half a millisecond.
PEER_LATENCY_S = 0.00025


@dataclass(slots=True)
class Setting:
    """One swarm, before anything happens."""

    peers: int = 8
    chunks: int = 128
    upstream_bps: float = 200 * MEGABIT_BPS
    link_bps: float = 1000 * MEGABIT_BPS
    has_upstream: bool = True
    # Members that hold everything from the start; they are among `peers`.
    seeders: int = 0
    trusts_peers: bool = True
    # When each member starts to fetch; the others start at once.
    starts_s: dict[int, float] = field(default_factory=dict)
    # Share of exchanges that are lost on the way.
    loss_share: float = 0.0
    # How long a daemon takes from being woken to looking: what its loop does meanwhile.
    look_delay_s: float = 0.002
    # Reads the blob from its start, with clients' impatience.
    readers: int = 0
    # Send it to a client as it comes from the hub, if no peer has spoken of it when they begin.
    streamers: int = 0
    limits: PlannerLimits = field(default_factory=PlannerLimits)

    @property
    def layout(self) -> Layout:
        """Return the blob's cut."""
        return Layout(self.chunks * CHUNK_SIZE_BYTES)

    @property
    def bound_s(self) -> float:
        """Return the time that nobody can beat."""
        size_bytes = self.layout.size_bytes
        cold = self.peers - self.seeders
        source_bps = self.upstream_bps if self.has_upstream else 0.0
        source_bps += self.seeders * self.link_bps
        all_bps = source_bps + cold * self.link_bps
        return max(size_bytes / source_bps, size_bytes / self.link_bps, cold * size_bytes / all_bps)
