"""
Owns what is told of a blob's owners, and of who would be next, to those who do not talk to them.

Knows nothing of connections.
Invariants: a peer's own word counts for more than what others say of it; nobody is met by hearsay.
Source: design.md §9; core/neighbours.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from p2pcache.core.digest import BlobDigest
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.neighbours import Neighbourhood
from p2pcache.core.views import PlannerLimits
from p2pcache.engine.peer import Peer


def is_worth_a_look(peer: Peer, known_count: int, *, limits: PlannerLimits) -> bool:
    """
    Return whether news of a peer may lead to a request at once.

    Among several peers each is asked for one run at a time. Most news is of those who send to us
    just then: fetches look when that ends, and now and then anyway.
    """
    return not peer.requests_inflight or known_count < limits.many_peers


def find_fetching(blob: BlobDigest, peers: Iterable[Peer]) -> list[str]:
    """Return the peers that said last that they fetch a blob."""
    said = ((peer.peer_id, peer.find_entry(blob)) for peer in peers)
    return [peer_id for peer_id, entry in said if entry is not None and entry.is_fetching]


def add_crew(
    entry: SwarmEntry, neighbourhood: Neighbourhood, peers: Mapping[str, Peer], *, now_s: float
) -> SwarmEntry:
    """Return an entry of ours with what we know of the blob's owners; as it is among few."""
    crew = neighbourhood.find_crew(entry.blob)
    if not crew or not entry.is_fetching:
        return entry
    words = [peers[m].speak_of(entry.blob, now_s=now_s) for m in sorted(crew) if m in peers]
    return replace(entry, crew=tuple(word for word in words if word is not None))


def hear_crew(
    entry: SwarmEntry, neighbourhood: Neighbourhood, peers: Mapping[str, Peer], *, now_s: float
) -> None:
    """Take in what a peer says of the owners that we do not talk to."""
    for word in entry.crew:
        if word.peer_id in peers and word.peer_id not in neighbourhood.near:
            peers[word.peer_id].hear_of(entry.blob, word, now_s=now_s)
