"""
Owns the tests of engine.gossip: what is told of owners to those who do not talk to them.

Knows nothing of connections.
Invariants: none.
Source: engine/gossip.py; design.md §9.
"""

from __future__ import annotations

import pytest

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import CREW_AGE_MS_MAX, CrewWord, SwarmEntry
from p2pcache.core.neighbours import RANKS_HEARD, Neighbourhood
from p2pcache.core.ownership import OWNERS_MAX
from p2pcache.core.rendezvous import find_highest
from p2pcache.core.views import PlannerLimits
from p2pcache.engine.gossip import (
    FAR_COMPLETE_MAX,
    add_crew,
    filter_heard,
    find_fetching,
    hear_crew,
    is_worth_a_look,
)
from p2pcache.engine.peer import Peer

BLOB = BlobDigest("sha256", "ab" * 32)
LAYOUT = Layout(4)
IDS = [f"{number + 1:032x}" for number in range(64)]
CREW = find_highest(BLOB, IDS, OWNERS_MAX)
# One that is no owner.
SELF_ID = next(one for one in IDS if one not in CREW)


def make_entry(received_bytes: int = 0, *, have: bool = False) -> SwarmEntry:
    """Make what a member says of the blob."""
    bits = Bitfield.full(1) if have else Bitfield(1)
    fetching = not have
    return SwarmEntry(BLOB, LAYOUT.id, bits, Bitfield(1), fetching, False, received_bytes)


def make_peers(now_s: float = 100.0) -> tuple[Neighbourhood, dict[str, Peer]]:
    """Make a crowd whose members all have said once that they fetch the blob."""
    peers = {one: Peer(one, one[-4:], "10.0.0.1", 1) for one in IDS if one != SELF_ID}
    for peer in peers.values():
        peer.hear(make_entry(), now_s=now_s)
    hood = Neighbourhood(SELF_ID)
    hood.update(peers, {BLOB: find_fetching(BLOB, peers.values())})
    return hood, peers


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


def test_far_peers_count_as_owners_or_when_they_hold_everything() -> None:
    """Their other words are old; a few that are complete are enough."""
    hood, peers = make_peers()
    heard = {peer.peer_id for peer in filter_heard(BLOB, peers.values(), hood, now_s=110.0)}
    assert heard == hood.near | set(find_highest(BLOB, [*peers, SELF_ID], RANKS_HEARD)) - {SELF_ID}
    far = [one for one in peers if one not in heard]
    for one in far[: FAR_COMPLETE_MAX + 3]:
        peers[one].hear(make_entry(have=True), now_s=101.0)
    now_heard = {peer.peer_id for peer in filter_heard(BLOB, peers.values(), hood, now_s=110.0)}
    assert len(now_heard - heard) == FAR_COMPLETE_MAX


def test_peer_that_spoke_a_moment_ago_counts_though_we_never_ask_it() -> None:
    """It chose us as its neighbour."""
    hood, peers = make_peers(now_s=0.0)
    heard = {peer.peer_id for peer in filter_heard(BLOB, peers.values(), hood, now_s=100.0)}
    visitor = next(one for one in peers if one not in heard)
    peers[visitor].hear(make_entry(), now_s=100.0)
    assert peers[visitor] in filter_heard(BLOB, peers.values(), hood, now_s=102.0)
    assert peers[visitor] not in filter_heard(BLOB, peers.values(), hood, now_s=104.0)


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
