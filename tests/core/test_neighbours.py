"""
Owns the tests of core.neighbours: whom a daemon talks to among many.

Knows nothing of messages.
Invariants: none.
Source: core/neighbours.py; design.md §9.
"""

from __future__ import annotations

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.neighbours import (
    NEIGHBOURS_ALL_MAX,
    NEIGHBOURS_CHOSEN,
    RANKS_HEARD,
    SPARES,
    Neighbourhood,
)
from p2pcache.core.ownership import OWNERS_MAX
from p2pcache.core.rendezvous import find_highest

BLOB = BlobDigest("sha256", "ab" * 32)


def make_ids(count: int) -> list[str]:
    """Make the ids of so many daemons."""
    return [f"{number + 1:032x}" for number in range(count)]


def make_all(ids: list[str], *, fetching: bool) -> dict[str, Neighbourhood]:
    """Make everybody's neighbourhood; all fetch one blob, or nothing."""
    made = {}
    for self_id in ids:
        others = [other for other in ids if other != self_id]
        made[self_id] = Neighbourhood(self_id)
        made[self_id].update(others, {BLOB: others} if fetching else {})
    return made


def test_neighbours_among_few_are_everybody() -> None:
    """And what everybody says counts; nobody is told of by others."""
    ids = make_ids(NEIGHBOURS_ALL_MAX + 1)
    hood = make_all(ids, fetching=True)[ids[0]]
    assert hood.near == hood.known == set(ids[1:])
    assert not hood.is_crowded
    assert all(hood.counts(BLOB, other) for other in ids[1:])
    assert hood.find_crew(BLOB) == frozenset()


@pytest.mark.parametrize("count", [NEIGHBOURS_ALL_MAX + 2, 64, 512])
def test_neighbours_among_many_are_few_and_reach_everybody(count: int) -> None:
    """Whoever has something, all get it within some steps, however many they are."""
    ids = make_ids(count)
    hoods = make_all(ids, fetching=False)
    assert all(len(hood.near) == NEIGHBOURS_CHOSEN for hood in hoods.values())
    links: dict[str, set[str]] = {self_id: set(hood.near) for self_id, hood in hoods.items()}
    for self_id, hood in hoods.items():
        for other in hood.near:
            links[other].add(self_id)
    reached, edge, steps = {ids[0]}, {ids[0]}, 0
    while len(reached) < count:
        edge = set().union(*(links[one] for one in edge)) - reached
        assert edge, "somebody is cut off"
        reached |= edge
        steps += 1
    assert steps <= 4


def test_neighbours_that_are_owners_talk_to_each_other() -> None:
    """The others hear of them, and of those who would be next, and talk to none on purpose."""
    ids = make_ids(64)
    hoods = make_all(ids, fetching=True)
    ranks = find_highest(BLOB, ids, RANKS_HEARD)
    owners, crew = set(ranks[:OWNERS_MAX]), set(ranks[: OWNERS_MAX + SPARES])
    for self_id, hood in hoods.items():
        assert hood.find_crew(BLOB) == crew - {self_id}
        assert all(hood.counts(BLOB, rank) for rank in ranks if rank != self_id)
        if self_id in owners:
            assert owners - {self_id} <= hood.near
            assert len(hood.near) <= NEIGHBOURS_CHOSEN + OWNERS_MAX - 1
        else:
            assert len(hood.near) == NEIGHBOURS_CHOSEN
    far = next(one for one in ids if one not in ranks and one not in hoods[ids[0]].near)
    assert not hoods[ids[0]].counts(BLOB, far)


def test_neighbours_hear_of_who_steps_in_when_owners_are_lost() -> None:
    """Who has not noticed that they are gone passes on the word of the same members as before."""
    ids, lost_count = make_ids(64), 4
    lost = set(find_highest(BLOB, ids, OWNERS_MAX)[:lost_count])
    left = [one for one in ids if one not in lost]
    owners_now = set(find_highest(BLOB, left, OWNERS_MAX))
    before, after = make_all(ids, fetching=True), make_all(left, fetching=True)
    for self_id in left:
        assert owners_now - {self_id} <= before[self_id].find_crew(BLOB)
        assert owners_now - {self_id} <= after[self_id].find_crew(BLOB)


def test_neighbour_that_goes_is_replaced_and_the_others_stay() -> None:
    """A daemon less changes little."""
    ids = make_ids(40)
    hood = Neighbourhood(ids[0])
    hood.update(ids[1:], {})
    before = hood.near
    gone = min(before)
    hood.update([one for one in ids[1:] if one != gone], {})
    assert len(hood.near) == len(before)
    assert before - {gone} <= hood.near


def test_neighbours_are_everybody_again_when_many_have_gone() -> None:
    """A swarm that shrinks is a small one."""
    ids = make_ids(40)
    hood = Neighbourhood(ids[0])
    hood.update(ids[1:], {BLOB: ids[1:]})
    hood.update(ids[1:5], {BLOB: ids[1:5]})
    assert hood.near == set(ids[1:5])
    assert hood.find_crew(BLOB) == frozenset()
