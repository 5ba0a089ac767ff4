"""
Owns which peers one fetch leaves alone for a while.

Knows nothing of why: each cause has its own length in transitions.py and fetchmachine.py.
Invariants: a rest is never cut short by a shorter one; only a delivery ends one early.
Source: design.md §6.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf


@dataclass(slots=True)
class Rests:
    """Until when peers are not asked; seconds on the caller's clock. One owner."""

    # They have chunks, and give none now.
    resting_until_s: dict[str, float] = field(default_factory=dict)
    # They count as having none.
    shunned_until_s: dict[str, float] = field(default_factory=dict)

    def rest(self, peer_id: str, until_s: float) -> None:
        """Ask a peer for nothing until then; its word on chunks holds."""
        self.resting_until_s[peer_id] = max(until_s, self.resting_until_s.get(peer_id, 0.0))

    def shun(self, peer_id: str, until_s: float) -> None:
        """Count a peer as having nothing until then."""
        self.shunned_until_s[peer_id] = max(until_s, self.shunned_until_s.get(peer_id, 0.0))

    def forgive(self, peer_id: str) -> None:
        """Believe a peer again: it has given something."""
        self.shunned_until_s.pop(peer_id, None)

    def is_resting(self, peer_id: str, *, now_s: float) -> bool:
        """Return whether a peer gives nothing now."""
        return now_s < self.resting_until_s.get(peer_id, 0.0)

    def is_shunned(self, peer_id: str, *, now_s: float) -> bool:
        """Return whether a peer counts as having nothing."""
        return now_s < self.shunned_until_s.get(peer_id, 0.0)

    def list_peers(self) -> list[str]:
        """Return all who were left alone once."""
        return list({**self.resting_until_s, **self.shunned_until_s})

    def find_next_end_s(self, *, now_s: float) -> float:
        """Return how many seconds from now the next rest ends; infinite if nobody rests."""
        ends = [*self.resting_until_s.values(), *self.shunned_until_s.values()]
        return min((until_s - now_s for until_s in ends if until_s > now_s), default=inf)
