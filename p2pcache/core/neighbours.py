"""
Owns whom a daemon talks to all the time, when it knows too many to talk to everybody.

Knows nothing of addresses or messages.
Invariants: among few, everybody is a neighbour; equal inputs give equal neighbours; the number of
neighbours does not grow with the number of daemons.
Source: design.md §9; random graphs of a few links a node are connected and a few steps wide
(Bollobás, "Random Graphs", 1985); BEP 3, for peers that each know some of the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from p2pcache.core.digest import BlobDigest
from p2pcache.core.ownership import OWNERS_MAX
from p2pcache.core.rendezvous import find_highest

# With so many others, a daemon that spends 30 exchanges a second still speaks to each of them
# about twice a second.
NEIGHBOURS_ALL_MAX = 12
# Chosen of more than that. As many on average choose us: what one has got reaches five hundred
# in three steps.
NEIGHBOURS_CHOSEN = 8
# Next in rank after the owners, so many are told of like them: when an owner is lost, all agree on
# who steps in.
SPARES = 4
# Whose word counts although we do not talk to them: owners, spares, and more who would be next.
RANKS_HEARD = 2 * OWNERS_MAX


class Neighbourhood:
    """Who is near. One owner (the event loop)."""

    def __init__(self, self_id: str) -> None:
        self._self_id = self_id
        self._known: frozenset[str] = frozenset()
        self._chosen: frozenset[str] = frozenset()
        self._crews: dict[BlobDigest, frozenset[str]] = {}
        self._heard: dict[BlobDigest, frozenset[str]] = {}
        self._near: frozenset[str] = frozenset()

    def update(self, known: Iterable[str], fetching: Mapping[BlobDigest, Collection[str]]) -> None:
        """
        Take in who is there.

        Args:
            known: All daemons that are known, without ourselves.
            fetching: For each blob that we fetch, who else does.
        """
        before, self._known = self._known, frozenset(known)
        if not self.is_crowded:
            self._near = self._known
            self._crews, self._heard = {}, {}
            return
        if self._known != before:
            self._chosen = frozenset(find_highest(self._self_id, self._known, NEIGHBOURS_CHOSEN))
        self._crews, self._heard = {}, {}
        near = set(self._chosen)
        for blob, others in fetching.items():
            ranks = find_highest(blob, {*others, self._self_id}, RANKS_HEARD)
            self._heard[blob] = frozenset(ranks) - {self._self_id}
            self._crews[blob] = frozenset(ranks[: OWNERS_MAX + SPARES]) - {self._self_id}
            # Owners must not begin what another one has begun: they talk to each other. Spares do
            # not: who talks to more talks to each of them more rarely, and is behind with chunks.
            owners = frozenset(ranks[:OWNERS_MAX])
            if self._self_id in owners:
                near |= owners
        self._near = self._known.intersection(near)

    @property
    def is_crowded(self) -> bool:
        """Return whether there are too many to talk to everybody."""
        return len(self._known) > NEIGHBOURS_ALL_MAX

    @property
    def known(self) -> frozenset[str]:
        """Return everybody."""
        return self._known

    @property
    def near(self) -> frozenset[str]:
        """Return whom to talk to all the time."""
        return self._near

    def counts(self, blob: BlobDigest, peer_id: str) -> bool:
        """Return whether a peer's word on a blob is recent: it is near, or others tell of it."""
        return not self.is_crowded or peer_id in self._near or peer_id in self._heard.get(blob, ())

    def find_crew(self, blob: BlobDigest) -> frozenset[str]:
        """Return the members of whom our neighbours should hear; nobody, if all talk to all."""
        return self._crews.get(blob, frozenset())
