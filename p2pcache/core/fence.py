"""
Owns what a member may not do yet since it has just begun, or just woken from a freeze.

Knows nothing of chunks.
Invariants: a fence ends when everybody has answered, or after FENCE_S_MAX.
Source: design.md §6.2 (fenced leases); Kleppmann, "How to do distributed locking" (2016), for the
holder of a lease that slept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from p2pcache.core.tenure import LEASE_S

if TYPE_CHECKING:
    from p2pcache.core.views import PeerView

# After a freeze nothing is brought into the swarm before everybody was heard, or for so long.
FENCE_S_MAX = 2.0
# Nobody takes over what owners have not begun before they could say what they begin with.
STEAL_AFTER_S = 1.0
# Members of a crowd that start together have heard of each other after so long; before that, who
# would be an owner among all of them begins.
CREW_SETTLE_S = 1.0


class Fence:
    """When one fetch began, and when it last looked."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._looked_s: float | None = None
        self._fence_s: float | None = None
        # Who fetched at the last look: one that seems gone after a freeze was not asked yet.
        self._members: set[str] = set()

    def look(self, peers: Iterable[PeerView], *, now_s: float) -> bool:
        """
        Note a look; return whether a freeze has just ended, and what others did is unknown.

        Who lost its leases while it did not run must not go on as if it had them.
        """
        if self._looked_s is not None and now_s - self._looked_s > LEASE_S:
            self._fence_s = now_s
        if self._began_s is None:
            self._began_s = now_s
        self._looked_s = now_s
        peers = list(peers)
        fetching = {p.peer_id for p in peers if p.is_fetching}
        if self._fence_s is None:
            self._members = fetching
            return False
        self._members |= fetching
        heard = {p.peer_id for p in peers if p.heard_s >= self._fence_s}
        if self._members <= heard or now_s - self._fence_s > FENCE_S_MAX:
            self._fence_s = None
        return self._fence_s is not None

    def may_steal(self) -> bool:
        """Return whether the owners had the time to tell what they begin with."""
        return self._age_s() > STEAL_AFTER_S

    def is_settling(self) -> bool:
        """Return whether others that started with us may be unknown yet."""
        return self._age_s() < CREW_SETTLE_S

    def _age_s(self) -> float:
        return (self._looked_s or 0.0) - (self._began_s or 0.0)
