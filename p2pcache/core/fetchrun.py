"""
Owns one request of a fetch that is under way: what was asked, and what has come of it.

Knows nothing of who else could be asked.
Invariants: what is stored was received; none of it is counted twice.
Source: design.md §6; fetchmachine.py, which alone changes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcache.core.tenure import LEASE_S
from p2pcache.core.views import RunRequest

# A chunk without another holder is taken from the hub if the rest would take so much longer yet.
STANDING_S = 2 * LEASE_S


@dataclass(slots=True)
class Run:
    """One request under way."""

    request: RunRequest
    begun_s: float
    # The last time that a chunk of it came.
    chunk_s: float
    received_bytes: int = 0
    stored_bytes: int = 0
    # Of these, the ones that came first.
    new_bytes: int = 0
    reserved_bytes: int = 0
    is_cancelled: bool = False

    @property
    def partial_bytes(self) -> int:
        """Return what has come of the chunk that is coming; what came is counted at each look."""
        return max(0, self.received_bytes - self.stored_bytes)

    def is_standing(self, length_bytes: int, *, now_s: float) -> bool:
        """
        Return whether its present chunk comes so slowly that even the hub is the better source.

        A swarm that is slow is not a reason to go upstream; one that all but stands still is.

        Args:
            length_bytes: Of the present chunk.
            now_s: Monotonic seconds.
        """
        waited_s = now_s - self.chunk_s
        left_bytes = length_bytes - self.partial_bytes
        return waited_s > LEASE_S and left_bytes * waited_s > STANDING_S * max(
            1, self.partial_bytes
        )
