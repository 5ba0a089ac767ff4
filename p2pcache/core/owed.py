"""
Owns which first copies of a blob are ours to bring into the swarm.

Knows nothing of slots, runs or sources: a view in, chunks out.
Invariants: what somebody who moves has announced is theirs; a chunk whose owner let it lapse goes
to the next in rank; which chunks others own is looked up once, until the members change.
Source: design.md §6.2; ownership.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, takewhile

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.ownership import Ownership
from p2pcache.core.rendezvous import find_owner, find_place
from p2pcache.core.views import FetchView


def find_owned(
    view: FetchView,
    candidates: Bitfield,
    *,
    owners: Ownership,
    is_upstream: bool,
    bytes_max: int,
    waits_for_slow: bool = True,
) -> Bitfield:
    """
    Return the candidates that are ours to bring: owned by us, announced by nobody who moves.

    Stops at bytes_max, readers' chunks first: looking at every chunk of a large blob each time a
    request ends would hold up the caller for longer than a chunk takes.
    """
    fetching = [p for p in view.peers if p.is_fetching]
    members = [p for p in fetching if p.peer_id not in view.stalled]
    waited_for = view.slow if waits_for_slow else frozenset[str]()
    bringers = members + [p for p in fetching if p.peer_id in waited_for]
    announced = Bitfield.union(candidates.length, [peer.intent for peer in bringers])
    able = [p.peer_id for p in members if p.can_fetch_upstream or not is_upstream]
    if view.self_id not in view.stalled or not able:
        able.append(view.self_id)
    owners.set_members([*able, *view.expected])
    owned = Bitfield(candidates.length)
    if not (owners.is_owner(view.self_id) or view.lapsed or view.begun):
        return owned
    lapsed = Bitfield.of(candidates.length, view.lapsed)
    candidates = candidates - (announced - lapsed)
    odd = candidates & (Bitfield.of(candidates.length, view.begun) | lapsed)
    candidates = owners.drop_not_owned(view.self_id, candidates) | odd
    nearest = [i for i in view.next_for_readers if i in candidates]
    not_owned = []
    for index in chain(nearest, iter_in_our_order(view, candidates, owners)):
        failed = view.lapsed.get(index, frozenset())
        if index in announced and any(
            index in p.intent and p.peer_id not in failed for p in bringers
        ):
            continue
        owner = owners.next_owner_of(index, failed) if failed else owners.owner_of(index)
        if owner is None:
            # All who count have failed with it: those who do not are better than nobody.
            others = [p.peer_id for p in view.peers if p.is_fetching and p.peer_id not in failed]
            owner = find_owner(view.blob, index, [*others, view.self_id])
        if owner == view.self_id or index in view.begun:
            owned.add(index)
            bytes_max -= view.layout.length_of(index)
            if bytes_max <= 0:
                break
        elif not failed:
            not_owned.append(index)
    if not_owned:
        owners.note_not_owned(view.self_id, Bitfield.of(owned.length, not_owned))
    return owned


def iter_in_our_order(view: FetchView, chunks: Bitfield, owners: Ownership) -> Iterator[int]:
    """
    Iterate over chunks from the start on, or, in a crowd, from a place that is ours.

    Members that start together do not know each other for a moment, and each takes itself for the
    owner of all; where that takes long, they begin at different places at least.
    """
    start = find_place(view.blob, view.self_id, chunks.length) if owners.is_crowded else 0
    yield from chunks.iter_from(start)
    yield from takewhile(lambda index: index < start, chunks)
