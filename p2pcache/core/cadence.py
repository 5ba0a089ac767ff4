"""
Owns how often a daemon talks to each of the others.

Knows nothing of addresses, messages or clocks.
Invariants: a pair that has news speaks at most every EXCHANGE_INTERVAL_MIN_S; what a daemon spends
on all its neighbours does not grow with their number; only our own visit tells whether another
one can be reached.
Source: design.md §6.1; neighbours.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcache.core.neighbours import Neighbourhood

# A probe every 2 s and 6 s of patience: a peer that vanished is gone from every plan within 8 s.
PROBE_INTERVAL_S = 2.0
# While a blob is active, changes are told at most this often, and repeated at least this often.
EXCHANGE_INTERVAL_MIN_S = 0.05
EXCHANGE_INTERVAL_MAX_S = 1.0
# Of all neighbours together, begun here or there, where they speak of the same blobs: what a daemon
# may spend on talking, a few hundredths of a core.
EXCHANGES_PER_S_MAX = 30.0
# Where there are too many to talk to all, so many: news takes several steps, and who hears of few
# chunks in time has nothing to ask for.
EXCHANGES_CROWD_PER_S_MAX = 80.0
# In one exchange both of a pair hear everything: who has the greater id leaves the other so many
# times the pause to begin it, and both do so at once only where that one has nothing to say.
SECOND_PAUSE_FACTOR = 2.0
# Who is no neighbour is visited this often, to notice that it is gone; of all of them together, no
# more than so many a second.
FAR_INTERVAL_S_MIN = 30.0
FAR_VISITS_PER_S_MAX = 10.0

_NEVER_S = float("-inf")


def find_pause_s(neighbourhood: Neighbourhood, peer_id: str | None, *, is_busy: bool) -> float:
    """
    Return how long to wait between visits if nothing happens, in seconds.

    Args:
        neighbourhood: Whom we talk to.
        peer_id: Who lives at the address; None where no peer that we know does.
        is_busy: Whether we fetch something.
    """
    if peer_id is None:
        return PROBE_INTERVAL_S
    if peer_id not in neighbourhood.near and neighbourhood.is_crowded:
        return max(FAR_INTERVAL_S_MIN, len(neighbourhood.known) / FAR_VISITS_PER_S_MAX)
    return EXCHANGE_INTERVAL_MAX_S if is_busy else PROBE_INTERVAL_S


def find_interval_s(neighbourhood: Neighbourhood, *, is_first: bool) -> float:
    """
    Return how long after an exchange of a pair one of the two may begin the next, in seconds.

    Args:
        neighbourhood: Whom it talks to.
        is_first: Whether it is the one of the two that begins, if both have something to say.
    """
    is_crowded = neighbourhood.is_crowded
    most = EXCHANGES_CROWD_PER_S_MAX if is_crowded else EXCHANGES_PER_S_MAX
    share_s = len(neighbourhood.near) / most
    return max(EXCHANGE_INTERVAL_MIN_S, share_s if is_first else SECOND_PAUSE_FACTOR * share_s)


@dataclass(slots=True)
class Visits:
    """When two daemons last spoke; seconds on the clock of the one that keeps it. One owner."""

    # The newest round in which the other one has answered; -1 before the first visit ended.
    round: int = -1
    # When both last heard each other's news; when by a visit of ours; when it last visited us.
    visited_s: float = _NEVER_S
    told_s: float = _NEVER_S
    visitor_s: float = _NEVER_S

    def note_visit(self, number: int | None, *, now_s: float) -> None:
        """Note that a visit of ours ended; `number` is the round it was of, None if in vain."""
        self.round = max(self.round, 0 if number is None else number)
        self.visited_s = self.told_s = now_s

    def note_visitor(self, *, now_s: float) -> None:
        """Count an exchange that the other one began like one that we began."""
        self.visited_s = self.visitor_s = now_s

    def is_due(self, *, now_s: float) -> bool:
        """Return whether our own visit was so long ago that no other stands for the next."""
        return now_s - self.told_s >= PROBE_INTERVAL_S

    def find_wait_s(
        self,
        neighbourhood: Neighbourhood,
        *,
        has_smaller_id: bool,
        current_round: int,
        now_s: float,
    ) -> float:
        """
        Return in how many seconds we may visit again; 0 for now.

        Args:
            neighbourhood: Whom we talk to.
            has_smaller_id: Whether our peer id is the smaller one of the two.
            current_round: Who has not answered in it is asked as soon as may be.
            now_s: The time.
        """
        interval_s = EXCHANGE_INTERVAL_MIN_S
        if self.round >= current_round:
            # Who does not count us among its neighbours will not begin.
            is_first = now_s - self.visitor_s > PROBE_INTERVAL_S or has_smaller_id
            interval_s = find_interval_s(neighbourhood, is_first=is_first)
        return max(0.0, self.visited_s + interval_s - now_s)
