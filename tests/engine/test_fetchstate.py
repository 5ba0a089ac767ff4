"""
Owns the tests of what a fetch makes of its peers' words.

Knows nothing of sockets or disks.
Invariants: none.
Source: engine/fetchstate.py.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.pace import Pace
from p2pcache.core.upstream import UpstreamLocation
from p2pcache.core.views import PlannerLimits
from p2pcache.engine.fetchstate import COMING_S, FetchOrder, FetchState
from p2pcache.engine.peer import Peer

BLOB = BlobDigest("sha256", "0" * 64)
SIZE_BYTES = 2 * CHUNK_SIZE_BYTES
CUT = Layout.of_starts(SIZE_BYTES, [0, 8, CHUNK_SIZE_BYTES + 8])
UNCUT = Layout(SIZE_BYTES)


def make_state(layout: Layout, *, trusts_peers: bool = True) -> FetchState:
    """Make a fetch that has nothing."""
    location = UpstreamLocation("http://hub.invalid", "http://hub.invalid/x", "x")
    order = FetchOrder(BLOB, layout, location, True, trusts_peers, trusts_upstream=True)
    return FetchState.of(order, "f" * 32, limits=PlannerLimits(), pace=Pace(), random=Random(0))


def make_peer(entry: SwarmEntry, *, number: int = 1) -> Peer:
    """Make a peer that said this at second 0."""
    peer = Peer(f"{number:032x}", f"p{number}", "10.0.0.1", number)
    peer.hear(entry, now_s=0.0)
    return peer


def make_seeder() -> Peer:
    """Make a peer that has all of the blob."""
    count = CUT.chunk_count
    return make_peer(SwarmEntry(BLOB, CUT.id, Bitfield.full(count), Bitfield(count)), number=9)


NOTHING = Bitfield(UNCUT.chunk_count)
COMING = SwarmEntry(BLOB, UNCUT.id, NOTHING, NOTHING, is_fetching=True, can_fetch_upstream=True)


def test_view_peers_beside_a_lone_seeder_counts_who_is_about_to_fetch() -> None:
    """
    It will own chunks as we do, once it knows their boundaries.

    Who did not count it asked the seeder for all of them at the start, as all the others did.
    """
    seeder, coming = make_seeder(), make_peer(COMING)
    _, view = make_state(CUT).view_peers([coming, seeder], now_s=1.0)
    assert view.peer_id == coming.peer_id
    assert view.is_fetching
    assert view.have == view.intent == Bitfield(CUT.chunk_count)


def test_view_peers_counts_on_nobody_who_does_not_come() -> None:
    """Nor on anybody where the hub has to be asked: meanwhile its line would be idle."""
    seeder, coming = make_seeder(), make_peer(COMING)
    state = make_state(CUT)
    assert len(state.view_peers([seeder, coming], now_s=COMING_S)) == 1
    assert state.view_peers([coming], now_s=0.0) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"have": Bitfield.of(UNCUT.chunk_count, [0])},
        {"inflight": Bitfield.of(UNCUT.chunk_count, [0])},
        {"is_fetching": False},
        {"layout": Layout.of_starts(SIZE_BYTES, [0, 16, CHUNK_SIZE_BYTES + 16]).id},
        {"layout": Layout(SIZE_BYTES + 1).id},
    ],
)
def test_view_peers_leaves_out_who_cuts_the_blob_otherwise(changes: dict[str, object]) -> None:
    """Its chunks are not ours, and ours are none that it will bring."""
    other = make_peer(replace(COMING, **changes))  # type: ignore[arg-type]
    assert len(make_state(CUT).view_peers([make_seeder(), other], now_s=0.0)) == 1


def test_report_of_who_is_too_slow_makes_nobody_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those who had not seen how slow it was took it for the owner of the last chunk, for 5 s."""
    state = make_state(CUT)
    for gives_way, will_bring in [(False, True), (True, False)]:
        monkeypatch.setattr(state.machine, "gives_way", lambda result=gives_way: result)
        report = state.report(can_fetch_upstream=True)
        assert report is not None
        assert report.can_fetch_upstream is will_bring


@pytest.mark.parametrize("trusts_peers", [False, True])
def test_report_says_who_takes_the_hubs_bytes_alone(trusts_peers: bool) -> None:
    """A body that has begun goes on with the hub's own bytes, unless peers are trusted."""
    state = make_state(CUT, trusts_peers=trusts_peers)

    def said() -> bool:
        report = state.report(can_fetch_upstream=True)
        assert report is not None
        # What is said is what is done.
        assert report.is_hub_only is (not state.view_peers([make_seeder()], now_s=0.0))
        return report.is_hub_only

    assert not said()
    state.streaming_count = 1
    assert said() is not trusts_peers
    state.streaming_count = 0
    assert not said()
    state.asks_peers = False
    assert said()
