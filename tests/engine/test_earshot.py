"""
Owns the tests of engine.earshot: whose word counts.

Knows nothing of connections.
Invariants: none.
Source: engine/earshot.py; design.md §9.
"""

from __future__ import annotations

from p2pcache.core.neighbours import RANKS_HEARD, Neighbourhood
from p2pcache.core.rendezvous import find_highest
from p2pcache.engine.earshot import (
    EARSHOT_INTERVAL_S,
    FAR_COMPLETE_MAX,
    RECENT_S,
    Earshot,
    filter_heard,
)
from p2pcache.engine.gossip import find_fetching
from p2pcache.engine.peer import Peer
from tests.engine.crowds import BLOB, SELF_ID, make_entry, make_peers


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


def find_ids(
    earshot: Earshot,
    hood: Neighbourhood,
    peers: dict[str, Peer],
    *,
    now_s: float,
    banned: frozenset[str] = frozenset(),
) -> set[str]:
    """Return the ids of those whose word counts."""
    return {peer.peer_id for peer in earshot.find(BLOB, peers, banned, hood, now_s=now_s)}


def test_earshot_of_a_crowd_is_what_the_filter_says_and_who_spoke_since() -> None:
    """Who speaks counts at once; who fell silent is noticed soon."""
    hood, peers = make_peers(now_s=0.0)
    earshot = Earshot()
    expected = {p.peer_id for p in filter_heard(BLOB, peers.values(), hood, now_s=100.0)}
    assert find_ids(earshot, hood, peers, now_s=100.0) == expected
    visitor = min(set(peers) - expected)
    peers[visitor].hear(make_entry(), now_s=100.1)
    assert find_ids(earshot, hood, peers, now_s=100.1) == expected
    earshot.note(BLOB, peers[visitor])
    assert find_ids(earshot, hood, peers, now_s=100.1) == expected | {visitor}
    silent_s = 100.2 + RECENT_S + EARSHOT_INTERVAL_S
    assert find_ids(earshot, hood, peers, now_s=silent_s) == expected


def test_earshot_leaves_out_who_is_gone_or_banned_since() -> None:
    """Within the half second, too."""
    hood, peers = make_peers(now_s=0.0)
    earshot = Earshot()
    before = find_ids(earshot, hood, peers, now_s=100.0)
    gone, banned, back = sorted(before)[:3]
    del peers[gone]
    peers[back] = Peer(back, "another life", "10.0.0.2", 1)
    now = find_ids(earshot, hood, peers, now_s=100.1, banned=frozenset({banned}))
    assert now == before - {gone, banned, back}
    peers[back].hear(make_entry(), now_s=100.2)
    earshot.note(BLOB, peers[back])
    assert find_ids(earshot, hood, peers, now_s=100.2) == before - {gone}


def test_earshot_keeps_nothing_of_a_blob_that_is_forgotten() -> None:
    """Else a daemon would remember every blob that it ever fetched."""
    hood, peers = make_peers(now_s=0.0)
    earshot = Earshot()
    before = find_ids(earshot, hood, peers, now_s=100.0)
    visitor = min(set(peers) - before)
    peers[visitor].hear(make_entry(), now_s=100.0)
    earshot.forget(BLOB)
    earshot.note(BLOB, peers[visitor])
    assert earshot._found == {}
    assert find_ids(earshot, hood, peers, now_s=100.1) == before | {visitor}


def test_earshot_among_few_is_everybody_who_spoke_of_the_blob() -> None:
    """Where all talk to all, nothing is kept."""
    _, crowd = make_peers(now_s=0.0)
    peers = dict(list(crowd.items())[:5])
    hood = Neighbourhood(SELF_ID)
    hood.update(peers, {BLOB: find_fetching(BLOB, peers.values())})
    earshot = Earshot()
    silent, banned = sorted(peers)[:2]
    peers[silent] = Peer(silent, "says nothing", "10.0.0.2", 1)
    heard = find_ids(earshot, hood, peers, now_s=100.0, banned=frozenset({banned}))
    assert heard == set(peers) - {silent, banned}
    assert earshot._found == {}
