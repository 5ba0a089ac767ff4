"""
Owns the tests of engine.swarm and engine.peerlink: who is there, what they say, who is left alone.

Knows nothing of chunks' bytes.
Invariants: a hostile neighbour costs bounded time and memory; a dead one is dropped.
Source: engine/swarm.py; design.md §6.1.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core import cadence, neighbours
from p2pcache.core.bitfield import Bitfield
from p2pcache.core.layout import Layout
from p2pcache.core.messages import Exchange, Hello, SwarmEntry
from p2pcache.discovery.base import Candidate
from p2pcache.engine import swarm as swarm_module
from p2pcache.engine.peerlink import PeerLink
from p2pcache.engine.swarm import PEER_SILENCE_S, is_private_address
from p2pcache.errors import PeerUnreachableError
from tests.engine.conftest import REPO, WEIGHTS, MakeCache, MakePeer
from tests.engine.engine import Engine, eventually
from tests.engine.fakepeer import sha256_name
from tests.hub import Hub

NAME = "pytorch_model.bin"
BLOB = sha256_name(WEIGHTS)


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe idle addresses often, so that tests need not wait."""
    monkeypatch.setattr(cadence, "PROBE_INTERVAL_S", 0.02)


def make_exchange(number: int, port: int, *, blobs: int = 0) -> Exchange:
    """Make what a peer says of itself."""
    count = 20
    entry = SwarmEntry(BLOB, Layout(len(WEIGHTS)).id, Bitfield.full(count), Bitfield(count))
    return Exchange(Hello(f"{number:032x}", f"peer-{number}", "0.1.0"), port, (entry,) * blobs)


@pytest.mark.parametrize(
    ("host", "is_private"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("192.168.0.9", True),
        ("172.16.0.1", True),
        ("169.254.1.1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::1", True),
        ("::ffff:10.0.0.1", True),
        ("8.8.8.8", False),
        ("::ffff:8.8.8.8", False),
        ("2606:4700::1111", False),
        ("64:ff9b::808:808", False),
        ("0.0.0.0", False),
        ("224.0.0.251", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_private_address_is_one_of_a_local_network(host: str, is_private: bool) -> None:
    """Only addresses that cannot come from outside count, in whatever form they are written."""
    assert is_private_address(host) is is_private


async def test_exchange_tells_both_sides(make_cache: MakeCache, hub: Hub) -> None:
    """While one fetches, the other hears what it has; when it is done, that it has all."""
    first, second = await make_cache("a"), await make_cache("b")
    await first.listen()
    await second.listen()
    await first.meet(second.address)
    hub.set_faults(rate_bytes_per_s=1_000_000)
    active = await first.start_fetch(REPO, NAME)
    await eventually(lambda: len(second.cache.swarm.peers) == 1, "the introduction")
    peer = next(iter(second.cache.swarm.peers.values()))

    def is_partial() -> bool:
        entry = peer.find_entry(BLOB)
        return entry is not None and entry.is_fetching and bool(entry.have)

    await eventually(is_partial, "news of some chunks")
    await active.result()
    asker = next(iter(first.cache.swarm.peers.values()))
    assert asker.name == "b"


async def test_visitor_that_asks_about_nothing_of_ours_does_not_delay_our_news(
    make_cache: MakeCache, make_peer: MakePeer
) -> None:
    """A visit stands for one of ours only if our news was told by it."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    peer = await make_peer()
    await engine.meet(peer.address)
    swarm, host = engine.cache.swarm, peer.address.rpartition(":")[0]
    (address,) = swarm._addresses.values()
    swarm.register(BLOB, lambda: None, lambda: None)
    hello = Hello(peer.peer_id, peer.name, "0.1.0")
    clock.advance(100.0)
    entries = make_exchange(1, 1, blobs=1).entries
    for said, is_counted in [((), False), (entries, True)]:
        address.visits.visited_s = 0.0
        await swarm.answer(Exchange(hello, address.candidate.port, said), host)
        assert (address.visits.visited_s > 0.0) is is_counted


async def test_news_of_a_peer_that_sends_to_us_wakes_no_fetch(
    make_cache: MakeCache, make_peer: MakePeer
) -> None:
    """A fetch that looked at every word of those it waits for would look in vain all day long."""
    engine = await make_cache()
    peers = [await make_peer(number=n) for n in range(1, 5)]
    for peer in peers:
        await engine.meet(peer.address)
    swarm, woken = engine.cache.swarm, list[int]()
    swarm.register(BLOB, lambda: None, lambda: woken.append(1))
    first = peers[0]
    host, port = first.address.rpartition(":")[::2]
    says_more = make_exchange(1, int(port), blobs=1)
    nothing = Bitfield(says_more.entries[0].have.length)
    says_less = replace(says_more, entries=(replace(says_more.entries[0], have=nothing),))
    known = swarm.peers[first.peer_id]
    for requests_inflight, is_woken in [(1, False), (0, True)]:
        known.requests_inflight = requests_inflight
        woken.clear()
        await swarm.answer(says_less, host)
        await swarm.answer(says_more, host)
        assert bool(woken) is is_woken


async def test_visitor_that_never_stops_is_visited_all_the_same(
    engine: Engine, make_peer: MakePeer
) -> None:
    """Whether it can still be reached, only a visit of ours tells."""
    peer = await make_peer()
    await engine.meet(peer.address)
    swarm, (host, _, port) = engine.cache.swarm, peer.address.rpartition(":")
    hello, visits = Hello(peer.peer_id, peer.name, "0.1.0"), len(peer.exchanges)
    seen_s = swarm.peers[peer.peer_id].last_seen_s

    async def visit_for_ever() -> None:
        while True:
            await swarm.answer(Exchange(hello, int(port), ()), host)
            await asyncio.sleep(0.001)

    visiting = asyncio.create_task(visit_for_ever())
    try:
        await eventually(lambda: len(peer.exchanges) >= visits + 3, "three visits of ours")
    finally:
        visiting.cancel()
    assert swarm.peers[peer.peer_id].last_seen_s > seen_s, "its answers count, not its visits"


async def test_two_engines_know_each_other_by_one_introduction(make_cache: MakeCache) -> None:
    """It is enough that one side is told of the other."""
    first, second = await make_cache("a"), await make_cache("b")
    await first.listen()
    await second.listen()
    await first.meet(second.address)
    await eventually(lambda: second.cache.swarm.peers, "the other side")
    peer = next(iter(second.cache.swarm.peers.values()))
    assert (peer.name, f"{peer.host}:{peer.port}", peer.via) == ("a", first.address, "introduced")


async def test_own_address_is_no_peer(engine: Engine) -> None:
    """A daemon that finds itself does not talk to itself."""
    await engine.listen()
    host, _, port = engine.address.rpartition(":")
    engine.cache.swarm.add_candidate(Candidate(host, int(port), "mdns"))
    await eventually(
        lambda: engine.cache.swarm._addresses[host, int(port)].peer_id is not None, "the answer"
    )
    assert engine.cache.swarm.peers == {}
    assert engine.cache.swarm.list_unreachable() == []


async def test_peer_with_two_addresses_is_one_peer(
    make_cache: MakeCache, make_peer: MakePeer
) -> None:
    """The second address of a peer adds no second peer; the first stays in use."""
    engine = await make_cache()
    first, second = await make_peer(number=7), await make_peer(number=7)
    await engine.meet(first.address)
    host, _, port = second.address.rpartition(":")
    engine.cache.swarm.add_candidate(Candidate(host, int(port), "mdns"))
    await eventually(
        lambda: engine.cache.swarm._addresses[host, int(port)].peer_id is not None, "the answer"
    )
    peer = engine.cache.swarm.peers[first.peer_id]
    assert list(engine.cache.swarm.peers) == [first.peer_id]
    assert f"{peer.host}:{peer.port}" == first.address


async def test_peer_whose_first_address_dies_is_reached_at_the_second(
    make_cache: MakeCache, make_peer: MakePeer
) -> None:
    """An answer at one address says nothing of another: the dead one is given up for it."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    first, second = await make_peer(number=7), await make_peer(number=7)
    await engine.meet(first.address)
    host, _, port = second.address.rpartition(":")
    engine.cache.swarm.add_candidate(Candidate(host, int(port), "mdns"))
    await eventually(lambda: second.exchanges, "the second address is visited")
    await first.stop()

    def is_moved() -> bool:
        clock.advance(0.5)
        peer = engine.cache.swarm.peers.get(first.peer_id)
        return peer is not None and f"{peer.host}:{peer.port}" == second.address

    await eventually(is_moved, "the peer at its second address")
    assert list(engine.cache.swarm.peers) == [first.peer_id]
    visits = len(second.exchanges)
    await eventually(lambda: len(second.exchanges) > visits, "exchanges at the second address")


async def test_restart_with_a_new_id_replaces_the_old_one(
    engine: Engine, make_peer: MakePeer
) -> None:
    """What an earlier daemon at an address said is forgotten with it."""
    peer = await make_peer(WEIGHTS, number=1)
    await engine.meet(peer.address)
    old = peer.peer_id
    await peer.stop()
    peer.peer_id, peer.name = f"{2:032x}", "reborn"
    await peer.start()
    await eventually(lambda: peer.peer_id in engine.cache.swarm.peers, "the new one")
    assert old not in engine.cache.swarm.peers


async def test_silent_peer_is_dropped_and_found_again(
    make_cache: MakeCache, make_peer: MakePeer
) -> None:
    """After six seconds without an answer a peer is in no plan; when it answers, it is back."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    peer = await make_peer()
    await engine.meet(peer.address)
    await peer.stop()
    await eventually(engine.cache.swarm.list_unreachable, "a visit in vain")
    assert peer.peer_id in engine.cache.swarm.peers
    clock.advance(PEER_SILENCE_S)
    await eventually(lambda: not engine.cache.swarm.peers, "the drop")
    unreachable = engine.cache.swarm.list_unreachable()
    assert [f"{c.host}:{c.port}" for c in unreachable] == [peer.address]
    await peer.start()
    await eventually(lambda: peer.peer_id in engine.cache.swarm.peers, "the return")


async def test_silence_while_this_process_stood_still_drops_nobody(
    make_cache: MakeCache, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a freeze every visit is out of time; without the peers, all chunks looked like ours."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    exchange, visits = PeerLink.exchange, []

    async def freeze_once(link: PeerLink, url: str, message: Exchange) -> Exchange:
        visits.append(url)
        if len(visits) > 1:
            return await exchange(link, url, message)
        clock.advance(60)
        raise PeerUnreachableError("out of time")

    monkeypatch.setattr(PeerLink, "exchange", freeze_once)
    engine.cache.swarm.note_change()
    await eventually(lambda: len(visits) > 1, "another visit at once")
    assert peer.peer_id in engine.cache.swarm.peers


async def test_word_that_a_peer_brings_itself_is_no_answer(
    engine: Engine, make_peer: MakePeer
) -> None:
    """It may have lain in our sockets while this process stood still."""
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    swarm = engine.cache.swarm
    known = swarm.peers[peer.peer_id]
    await eventually(lambda: known.answered_s, "an answer")
    await swarm.close()
    answered_s = known.answered_s
    assert 0 < answered_s <= known.last_seen_s
    said = Hello(peer.peer_id, peer.name, "0", ())
    nothing = Bitfield(Layout(len(WEIGHTS)).chunk_count)
    entry = SwarmEntry(BLOB, Layout(len(WEIGHTS)).id, nothing, nothing, is_fetching=True)
    await swarm.answer(Exchange(said, known.port, (entry,)), known.host)
    word = known.words[BLOB]
    assert word.entry == entry
    assert word.heard_s > answered_s
    assert known.view(word).heard_s == known.answered_s == answered_s


async def test_introduced_address_where_nobody_answers_is_forgotten(engine: Engine) -> None:
    """A made-up introduction leaves nothing behind once its peer is dropped."""
    swarm = engine.cache.swarm
    clock_s = engine.context.clock.monotonic_s()
    await swarm.answer(make_exchange(5, 1), "127.0.0.1")
    assert len(swarm.peers) == 1
    next(iter(swarm.peers.values())).last_seen_s = clock_s - PEER_SILENCE_S
    await eventually(lambda: not swarm.peers and not swarm._addresses, "nothing is left")


async def test_flood_of_introductions_is_bounded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour that invents peers fills the tables up to their limit, and no further."""
    monkeypatch.setattr(swarm_module, "PEERS_MAX", 10)
    for number in range(1, 60):
        await engine.cache.swarm.answer(make_exchange(number, number), "127.0.0.1")
        assert len(engine.cache.swarm.peers) <= 10
        assert len(engine.cache.swarm._addresses) <= 10


async def test_introductions_are_unable_to_outlive_their_addresses(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that came in without an address that is visited would never be dropped."""
    monkeypatch.setattr(swarm_module, "PEERS_MAX", 5)
    for number in range(1, 20):
        await engine.cache.swarm.answer(make_exchange(number, number), "127.0.0.1")
        visited = set(engine.cache.swarm._addresses)
        assert {(p.host, p.port) for p in engine.cache.swarm.peers.values()} <= visited


async def test_stranger_does_not_speak_for_a_peer(engine: Engine, make_peer: MakePeer) -> None:
    """What another host says in a peer's name is not believed."""
    peer = await make_peer(number=3)
    await engine.meet(peer.address)
    await engine.cache.swarm.answer(make_exchange(3, 999, blobs=1), "10.0.0.99")
    assert engine.cache.swarm.peers[peer.peer_id].find_entry(BLOB) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"[" * 200_000,
        b'{"id": "x"}',
        json.dumps({"id": "1" * 32, "name": "a\x1b[31m", "version": "1", "protocol": 1}).encode(),
        json.dumps(make_exchange(1, 1).to_json() | {"protocol": 99}).encode(),
        json.dumps(make_exchange(1, 1).to_json() | {"port": 70_000}).encode(),
        json.dumps(make_exchange(1, 1).to_json() | {"blobs": {}}).encode(),
        b'{"port": 1e999, "blobs": []}',
        b'{"port": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
    ],
    ids=range(13),
)
async def test_hostile_answer_is_no_peer_and_no_crash(
    engine: Engine, make_peer: MakePeer, body: bytes
) -> None:
    """Whatever a neighbour answers, it is visited again, and nobody is the worse for it."""
    peer = await make_peer()
    peer.swarm_body = body
    host, _, port = peer.address.rpartition(":")
    engine.cache.swarm.add_candidate(Candidate(host, int(port), "mdns"))
    await eventually(lambda: len(peer.exchanges) >= 2, "two visits")
    assert engine.cache.swarm.peers == {}
    peer.swarm_body = None
    await eventually(lambda: peer.peer_id in engine.cache.swarm.peers, "an honest answer")


async def test_entries_that_cannot_be_are_left_out_of_an_exchange(
    engine: Engine, make_peer: MakePeer
) -> None:
    """One bad entry does not hide the good one beside it."""
    peer = await make_peer()
    good = make_exchange(1, 1, blobs=1).to_json()
    blobs = good["blobs"]
    assert isinstance(blobs, list)
    bad: list[object] = [
        blobs[0] | {"size": 10**30},
        blobs[0] | {"have": "A" * 100_000},
        blobs[0] | {"layout": "other"},
        blobs[0] | {"blob": "../../etc"},
        {"deep": [[[]]]},
        7,
    ]
    peer.swarm_body = json.dumps(good | {"blobs": [*bad, *blobs]}).encode()
    await engine.meet(peer.address)
    entry = engine.cache.swarm.peers[peer.peer_id].find_entry(BLOB)
    assert entry is not None
    assert entry.have.is_full()


async def test_answer_without_end_is_cut_off(
    engine: Engine, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A huge answer is refused as soon as it passes the limit."""
    monkeypatch.setattr("p2pcache.engine.peerlink.MESSAGE_BYTES_MAX", 100_000)
    peer = await make_peer()
    peer.swarm_body = b" " * 5_000_000
    host, _, port = peer.address.rpartition(":")
    engine.cache.swarm.add_candidate(Candidate(host, int(port), "mdns"))
    await eventually(lambda: len(peer.exchanges) >= 2, "two visits")
    assert engine.cache.swarm.peers == {}


async def test_round_with_a_peer_that_hangs_is_bounded(
    engine: Engine, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start does not wait for a peer that says nothing until that is given up and dropped."""
    monkeypatch.setattr(swarm_module, "START_ROUND_S_MAX", 0.2)
    peer = await make_peer()
    await engine.meet(peer.address)
    peer.is_silent = True
    rounds = [address.visits.round for address in engine.cache.swarm._addresses.values()]
    await engine.cache.swarm.begin_round()
    assert [address.visits.round for address in engine.cache.swarm._addresses.values()] == rounds
    assert list(engine.cache.swarm.peers) == [peer.peer_id]


async def test_round_without_peers_is_over_at_once(engine: Engine) -> None:
    """A machine that is alone loses no time: nothing is waited for, not even a turn."""
    round_ = engine.cache.swarm.begin_round()
    with pytest.raises(StopIteration):
        round_.send(None)


async def test_round_that_ended_tells_at_once_who_fetches_the_same(
    make_cache: MakeCache, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a crowd a fetch began with owners that were half a second old: with none."""
    monkeypatch.setattr(neighbours, "NEIGHBOURS_ALL_MAX", 0)
    engine = await make_cache(clock=ManualClock())
    peer = await make_peer(WEIGHTS)
    peer.is_fetching = True
    await engine.meet(peer.address)
    swarm, empty = engine.cache.swarm, Bitfield(Layout(len(WEIGHTS)).chunk_count)
    entry = SwarmEntry(BLOB, Layout(len(WEIGHTS)).id, empty, empty.copy(), is_fetching=True)
    swarm.register(BLOB, lambda: entry, lambda: None)
    assert swarm.neighbourhood.find_crew(BLOB) == frozenset()
    await swarm.begin_round()
    assert swarm.neighbourhood.find_crew(BLOB) == {peer.peer_id}


async def test_banned_peer_is_in_no_plan_until_its_ban_ends(
    make_cache: MakeCache, make_peer: MakePeer
) -> None:
    """A banned peer is not among those that are up, and gets no request."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    fault = engine.context.make_fault(peer.peer_id, peer.name, "wrong bytes", "a test said so")
    engine.context.blame.note_wrong_bytes(fault, now_s=clock.monotonic_s())
    assert list(engine.cache.swarm.iter_up()) == []
    active = await engine.start_fetch(REPO, NAME)
    await active.result()
    assert peer.runs == []
    clock.advance(3601)
    assert [p.peer_id for p in engine.cache.swarm.iter_up()] == [peer.peer_id]


async def test_withdrawn_address_that_still_answers_stays(
    engine: Engine, make_peer: MakePeer
) -> None:
    """A goodbye is a hint: who answers is there."""
    peer = await make_peer()
    await engine.meet(peer.address)
    host, _, port = peer.address.rpartition(":")
    visits = len(peer.exchanges)
    engine.cache.swarm.drop_candidate(Candidate(host, int(port), "mdns"))
    engine.cache.swarm.drop_candidate(Candidate("10.9.9.9", 1, "mdns"))
    await eventually(lambda: len(peer.exchanges) > visits, "a visit")
    assert peer.peer_id in engine.cache.swarm.peers


async def test_restricted_blobs_are_in_no_exchange(
    engine: Engine, make_peer: MakePeer, hub: Hub
) -> None:
    """Peers that ask about a restricted blob hear nothing of it, arriving or whole."""
    active = await engine.start_fetch(REPO, NAME, is_public=False)
    said = await engine.cache.swarm.answer(make_exchange(4, 9, blobs=1), "127.0.0.1")
    assert said.entries == ()
    await active.result()
    said = await engine.cache.swarm.answer(make_exchange(4, 9, blobs=1), "127.0.0.1")
    assert said.entries == ()
    await engine.cache.shelf.note_public(BLOB)
    said = await engine.cache.swarm.answer(make_exchange(4, 9, blobs=1), "127.0.0.1")
    assert [entry.have.is_full() for entry in said.entries] == [True]


async def test_closed_swarm_visits_nobody(engine: Engine, make_peer: MakePeer) -> None:
    """After close() an announcement begins nothing."""
    peer = await make_peer()
    await engine.cache.swarm.close()
    host, _, port = peer.address.rpartition(":")
    before = asyncio.all_tasks()
    engine.cache.swarm.add_candidate(Candidate(host, int(port), "mdns"))
    assert engine.cache.swarm.list_unreachable() == []
    assert asyncio.all_tasks() == before
    assert peer.exchanges == []


async def test_daemon_that_most_peers_have_banned_knows_it(
    engine: Engine, make_peer: MakePeer
) -> None:
    """Who is told of bans by most of its neighbours is to bring no more; by one, it is not."""
    peers = [await make_peer(number=number) for number in range(1, 4)]
    for peer in peers:
        await engine.meet(peer.address)
    swarm = engine.cache.swarm
    peers[0].bans_others = True
    await eventually(lambda: sum(p.bans_us for p in swarm.peers.values()) == 1, "one ban")
    assert not swarm.is_distrusted()
    peers[1].bans_others = True
    await eventually(swarm.is_distrusted, "the word of most")


async def test_ban_is_told_to_whom_it_is_about(engine: Engine, make_peer: MakePeer) -> None:
    """A visit to a banned peer says so, as an answer to it does."""
    peer = await make_peer()
    await engine.meet(peer.address)
    fault = engine.context.make_fault(peer.peer_id, "peer", "wrong bytes", "It lied.")
    engine.context.blame.note_wrong_bytes(fault, now_s=engine.context.clock.monotonic_s())
    await eventually(lambda: peer.exchanges[-1].is_banned, "the word")
    answer = await engine.cache.swarm.answer(
        replace(make_exchange(9, 0), hello=peer.hello), "127.0.0.1"
    )
    assert answer.is_banned
