"""
Owns the tests of engine.gossip: what is told of owners to those who do not talk to them.

Knows nothing of connections.
Invariants: none.
Source: engine/gossip.py; design.md §9.
"""

from __future__ import annotations

import pytest

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.messages import CREW_AGE_MS_MAX, CrewWord, SwarmEntry
from p2pcache.core.neighbours import Neighbourhood
from p2pcache.core.views import PlannerLimits
from p2pcache.engine.gossip import (
    add_crew,
    hear_crew,
    is_worth_a_look,
)
from p2pcache.engine.peer import Peer
from tests.engine.crowds import BLOB, CREW, IDS, LAYOUT, make_entry, make_peers


def find_far_owner(hood: Neighbourhood) -> str:
    """Return an owner to whom we do not talk."""
    return next(one for one in CREW if one not in hood.near)


def get_entry(peer: Peer) -> SwarmEntry:
    """Return what is known of a peer and the blob."""
    entry = peer.find_entry(BLOB)
    assert entry is not None
    return entry


def test_entry_of_ours_tells_of_the_owners() -> None:
    """Of each what it had received and how long ago that was; of what is too old, nothing."""
    hood, peers = make_peers()
    far = find_far_owner(hood)
    peers[far].hear(make_entry(7), now_s=101.5)
    told = {word.peer_id: word for word in add_crew(make_entry(), hood, peers, now_s=102.0).crew}
    assert set(told) == set(CREW)
    assert told[far] == CrewWord(far, 7, 500, False)
    late_s = 101.0 + CREW_AGE_MS_MAX / 1000
    assert [w.peer_id for w in add_crew(make_entry(), hood, peers, now_s=late_s).crew] == [far]


def test_entry_of_what_is_complete_tells_of_nobody() -> None:
    """Who does not fetch does not watch the owners."""
    hood, peers = make_peers()
    assert add_crew(make_entry(have=True), hood, peers, now_s=100.0).crew == ()


def test_word_on_an_owner_counts_until_a_newer_one() -> None:
    """What it received never becomes less, an older word changes nothing."""
    hood, peers = make_peers()
    far = find_far_owner(hood)
    for received, age_ms, expected in ((50, 1000, 50), (20, 3000, 50), (80, 0, 80), (60, 0, 80)):
        word = CrewWord(far, received, age_ms, True)
        entry = SwarmEntry(BLOB, LAYOUT.id, Bitfield(1), Bitfield(1), crew=(word,))
        hear_crew(entry, hood, peers, now_s=103.0)
        assert get_entry(peers[far]).received_bytes == expected
    assert peers[far].moved_bytes == 80
    assert get_entry(peers[far]).can_fetch_upstream


def test_word_on_a_neighbour_or_a_stranger_counts_for_nothing() -> None:
    """We hear from neighbours ourselves, and meet nobody by hearsay."""
    hood, peers = make_peers()
    near, stranger = min(hood.near), "f" * 32
    words = tuple(CrewWord(one, 99, 0, True) for one in (near, stranger))
    entry = SwarmEntry(BLOB, LAYOUT.id, Bitfield(1), Bitfield(1), crew=words)
    hear_crew(entry, hood, peers, now_s=101.0)
    assert get_entry(peers[near]).received_bytes == 0
    assert stranger not in peers


@pytest.mark.parametrize(
    ("requests_inflight", "known_count", "is_worth"),
    [(0, 7, True), (1, 7, False), (1, 3, True), (0, 1, True)],
)
def test_news_of_who_has_no_place_for_us_is_worth_no_look(
    requests_inflight: int, known_count: int, is_worth: bool
) -> None:
    """Among few peers each is asked for two runs at a time, so that news may lead to a second."""
    peer = Peer(IDS[0], "a", "10.0.0.1", 1, requests_inflight=requests_inflight)
    assert is_worth_a_look(peer, known_count, limits=PlannerLimits()) is is_worth
