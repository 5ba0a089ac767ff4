"""
Owns the tests of one blob's fetch: the hub's faults, peers' faults, proofs that fail.

Knows nothing of HTTP clients.
Invariants: nothing wrong is ever published; what was fetched is kept; a fetch ends.
Source: engine/fetch.py, dispatch.py, fetchstate.py; design.md §5 and §6.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.transitions import BUSY_IN_A_ROW_MAX, CONSEQUENCES, Consequence, Outcome
from p2pcache.core.upstream import UpstreamLocation
from p2pcache.engine import fetch
from p2pcache.errors import (
    IntegrityError,
    NoSourceError,
    NotFoundError,
    P2PCacheError,
    SourceError,
    StoreFullError,
    UpstreamUnreachableError,
)
from p2pcache.store import partial as partial_module
from tests.engine.conftest import (
    CHUNK_BYTES,
    FILES,
    OTHER_WEIGHTS,
    REPO,
    WEIGHTS,
    MakeCache,
    MakePeer,
)
from tests.engine.engine import POLL_S, Engine, eventually
from tests.engine.fakepeer import sha256_name
from tests.hub import Hub, Repository

NAME = "pytorch_model.bin"
KEY = f"{REPO}/{NAME}"
BLOB = sha256_name(WEIGHTS)
COUNT = 20


def is_published(engine: Engine) -> bool:
    """Return whether the weights are in the store, whole."""
    path = engine.context.store.path_of(BLOB)
    return path.exists() and path.read_bytes() == WEIGHTS


def flip(_: int, chunk: bytes) -> bytes:
    """Change a chunk's first byte."""
    return bytes([chunk[0] ^ 1]) + chunk[1:]


async def fetch_weights(engine: Engine) -> None:
    """Fetch the weights to the end."""
    active = await engine.start_fetch(REPO, NAME)
    await active.result()


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the plan often, so that a clock that is moved by hand is noticed soon."""
    monkeypatch.setattr(fetch, "REPLAN_INTERVAL_S", 0.02)


# --- the hub ---


async def test_fetch_of_every_file_publishes_exact_bytes(engine: Engine) -> None:
    """Files of no byte, some bytes and many chunks arrive whole."""
    for name, content in FILES.items():
        assert await engine.read(REPO, name) == content


async def test_hub_that_breaks_bodies_is_asked_for_the_rest(engine: Engine, hub: Hub) -> None:
    """Connections that break cost no byte twice beyond what was on the wire."""
    hub.set_faults(break_after_bytes=50_000, break_times=3)
    await fetch_weights(engine)
    assert is_published(engine)
    assert hub.stats.body_bytes <= len(WEIGHTS) + 3 * CHUNK_BYTES


async def test_outage_that_hits_all_connections_at_once_counts_once(
    engine: Engine, hub: Hub
) -> None:
    """Four runs that fail together are one failure of the hub, not four."""
    snapshot, entry = await engine.find(REPO, NAME)
    hub.set_faults(refuse_status=503, refuse_times=9, routes=["resolve", "cdn"])
    active = await engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    await active.result()
    assert is_published(engine)


async def test_hub_that_stays_away_ends_the_fetch_with_its_error(
    make_cache: MakeCache, hub: Hub
) -> None:
    """After some patience everyone who waits is told why, and nothing is published."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    await engine.find(REPO, NAME)
    hub.set_faults(refuse_status=503, routes=["resolve", "cdn"])
    starters = [asyncio.create_task(fetch_weights(engine)) for _ in range(3)]

    def move_on() -> bool:
        clock.advance(0.2)
        return all(task.done() for task in starters)

    await eventually(move_on, "the end of hope")
    for task in starters:
        assert isinstance(task.exception(), UpstreamUnreachableError)
    assert engine.cache.fetches.find(BLOB) is None
    assert not is_published(engine)


async def test_rate_limit_pauses_every_fetch(make_cache: MakeCache, hub: Hub) -> None:
    """A 429 with Retry-After keeps all fetches from the hub for so long, then they go on."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    await engine.find(REPO, NAME)
    hub.set_faults(refuse_status=429, refuse_times=1, retry_after_s=30, routes=["resolve", "cdn"])
    first = await engine.start_fetch(REPO, "config.json")
    await hub.wait_for(lambda stats: stats.statuses["resolve 429"] > 0)
    await eventually(lambda: engine.context.budget.paused_until_s > 0, "the pause")
    assert 30 <= engine.context.budget.paused_until_s - clock.monotonic_s() <= 33
    asked = hub.stats.requests_total
    second = await engine.start_fetch(REPO, NAME)
    while clock.monotonic_s() < engine.context.budget.paused_until_s - 1.0:
        clock.advance(1.0)
        await asyncio.sleep(POLL_S)
        assert hub.stats.requests_total == asked
    # Past the first moments as well, in which requests begin one by one.
    clock.advance(7.0)
    await asyncio.gather(first.result(), second.result())
    assert is_published(engine)


async def test_file_that_the_hub_has_no_more_fails_at_once(engine: Engine, hub: Hub) -> None:
    """A 404 cannot be mended by asking again."""
    snapshot, entry = await engine.find(REPO, NAME)
    hub.state.catalog.rename("models", REPO, "org/renamed")
    hub.state.catalog._moved.clear()
    active = await engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    with pytest.raises(P2PCacheError) as caught:
        await active.result()
    assert caught.value.http_status in (401, 404)


@pytest.mark.parametrize("fault", ["wrong_content_range", "ignore_range"])
async def test_range_answered_wrongly_never_publishes_wrong_bytes(
    make_cache: MakeCache, hub: Hub, fault: str
) -> None:
    """A hub that sends other bytes than were asked for is refused, or sends the whole file."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    await engine.find(REPO, NAME)
    hub.set_faults(**{fault: True})
    task = asyncio.create_task(fetch_weights(engine))

    def move_on() -> bool:
        clock.advance(0.2)
        return task.done()

    await eventually(move_on, "the end of the fetch")
    error = task.exception()
    assert is_published(engine) if error is None else isinstance(error, SourceError)


async def test_wrong_total_size_is_refused(make_cache: MakeCache, hub: Hub) -> None:
    """A hub whose file has another size than it listed is not believed."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    snapshot, entry = await engine.find(REPO, NAME)
    other = FILES["other.safetensors"]
    hub_locate = engine.context.hub.locate

    def locate(*arguments: object) -> UpstreamLocation:
        location = hub_locate(*arguments)  # type: ignore[arg-type]
        return UpstreamLocation(
            location.hub_url,
            location.resolve_url.replace(NAME, "other.safetensors"),
            location.what,
        )

    engine.context.hub.locate = locate  # type: ignore[assignment,method-assign]
    assert len(other) != entry.size_bytes
    active = await engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)

    def move_on() -> bool:
        clock.advance(0.2)
        return active.is_done

    await eventually(move_on, "the end of the fetch")
    with pytest.raises(SourceError):
        await active.result()
    assert active.fetch.state.held_bytes == 0


async def test_hub_that_sends_wrong_bytes_publishes_nothing_and_heals(
    engine: Engine, hub: Hub
) -> None:
    """The whole is fetched twice, then given up as IntegrityError; the next start is clean."""
    hub.set_faults(flips={KEY: 3 * CHUNK_BYTES + 7})
    with pytest.raises(IntegrityError):
        await fetch_weights(engine)
    assert not engine.context.store.path_of(BLOB).exists()
    assert await engine.cache.shelf.find_row(BLOB) is None
    hub.set_faults()
    await fetch_weights(engine)
    assert is_published(engine)


async def test_chunks_survive_a_failure_and_the_next_start_goes_on(
    make_cache: MakeCache, hub: Hub
) -> None:
    """What came before the hub went away is not fetched again."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    await engine.find(REPO, NAME)
    hub.set_faults(dies_after_bytes=12 * CHUNK_BYTES)
    active = await engine.start_fetch(REPO, NAME)
    await eventually(lambda: active.fetch.state.held_bytes >= 4 * CHUNK_BYTES, "some chunks")
    hub.set_faults(refuse_status=503, routes=["resolve", "cdn"])

    def move_on() -> bool:
        clock.advance(0.2)
        return active.is_done

    await eventually(move_on, "the end of hope")
    held = active.fetch.state.held_bytes
    assert 4 * CHUNK_BYTES <= held <= 12 * CHUNK_BYTES
    await engine.close()
    hub.set_faults()
    hub.stats.reset()
    again = await make_cache("a")
    active = await again.start_fetch(REPO, NAME)
    await active.result()
    assert active.fetch.state.bytes_from["disk"] == held
    assert hub.stats.body_bytes <= len(WEIGHTS) - held
    assert is_published(again)


async def test_unexpected_error_in_a_run_ends_the_fetch_instead_of_repeating(
    engine: Engine, hub: Hub
) -> None:
    """A run that fails in a way nobody foresaw is told to all, not tried again for ever."""
    snapshot, entry = await engine.find(REPO, NAME)
    impossible = UpstreamLocation(hub.url, f"http://{'a' * 70}.example/x", "the impossible")
    engine.context.hub.locate = lambda *_: impossible  # type: ignore[method-assign]
    active = await engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    async with asyncio.timeout(20):
        with pytest.raises(P2PCacheError):
            await active.result()


async def test_full_disk_is_an_error_and_keeps_what_is_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle ends the fetch; with room again it goes on."""
    put = partial_module.FilePartial.put
    stored: list[int] = []

    def fill(self: partial_module.FilePartial, chunk: object, source_id: str) -> None:
        if len(stored) >= 5:
            raise StoreFullError("The disk is full; free some space.")
        stored.append(1)
        put(self, chunk, source_id)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(partial_module.FilePartial, "put", fill)
        with pytest.raises(StoreFullError):
            await fetch_weights(engine)
    active = await engine.start_fetch(REPO, NAME)
    await active.result()
    assert active.fetch.state.bytes_from["disk"] >= 4 * CHUNK_BYTES
    assert is_published(engine)


async def test_no_room_at_the_start_is_told_to_all_starters(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the file cannot be reserved, everyone who joined gets the reason."""

    def refuse(*_: object) -> None:
        raise StoreFullError("The disk is full; free some space.")

    monkeypatch.setattr(engine.context.store, "open_partial", refuse)
    outcomes = await asyncio.gather(
        *(engine.start_fetch(REPO, NAME) for _ in range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [StoreFullError] * 3
    assert engine.cache.fetches.find(BLOB) is None


# --- peers ---


async def test_peer_that_has_everything_gives_everything(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """No byte comes from the hub when a peer has it."""
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    await fetch_weights(engine)
    assert is_published(engine)
    assert hub.stats.path_bytes[KEY] == 0
    assert peer.sent_chunks == COUNT


async def test_peer_that_vanishes_midway_is_replaced(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """What a peer did not finish comes from the hub; what it gave is kept."""
    peer = await make_peer(WEIGHTS)
    peer.vanishes_after = 2
    await engine.meet(peer.address)
    active = await engine.start_fetch(REPO, NAME)
    await active.result()
    assert is_published(engine)
    counts = active.fetch.state.bytes_from
    assert counts["peer"] >= 2 * CHUNK_BYTES
    assert counts["peer"] + counts["upstream"] == len(WEIGHTS)
    assert hub.stats.path_bytes[KEY] == counts["upstream"]


@pytest.mark.parametrize("status", [425, 503])
async def test_peer_that_is_busy_for_ever_is_believed_for_a_while(
    engine: Engine, hub: Hub, make_peer: MakePeer, status: int
) -> None:
    """A busy seeder does not send everybody to the hub at once; one that lies holds up nobody."""
    peer = await make_peer(WEIGHTS)
    peer.run_status = status
    await engine.meet(peer.address)
    await fetch_weights(engine)
    assert is_published(engine)
    inflight_max = engine.context.limits.peer_requests_inflight_max
    assert inflight_max < len(peer.runs) <= BUSY_IN_A_ROW_MAX + inflight_max
    assert hub.stats.path_bytes[KEY] == len(WEIGHTS)
    assert list(engine.cache.swarm.iter_up())


async def test_peer_that_was_busy_is_asked_when_its_rest_ends(
    engine: Engine, hub: Hub, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else happens then: nobody has news, and the next look is far away."""
    monkeypatch.setattr(fetch, "REPLAN_INTERVAL_S", 3600.0)
    await engine.find(REPO, NAME)
    hub.set_faults(refuse_status=503)
    peer = await make_peer(WEIGHTS)
    peer.run_status = 503
    await engine.meet(peer.address)
    active = await engine.start_fetch(REPO, NAME)
    await eventually(lambda: peer.runs, "a run from the peer")
    peer.run_status = 200
    await active.result()
    assert is_published(engine)
    assert active.fetch.state.bytes_from["upstream"] == 0


@pytest.mark.parametrize("status", [404, 409, 500])
async def test_peer_that_claims_all_and_gives_nothing_is_paused(
    engine: Engine, hub: Hub, make_peer: MakePeer, status: int
) -> None:
    """A claim that is not kept costs one round of requests, not a busy loop, and no ban."""
    peer = await make_peer(WEIGHTS)
    peer.run_status = status
    await engine.meet(peer.address)
    await fetch_weights(engine)
    assert is_published(engine)
    assert 1 <= len(peer.runs) <= engine.context.limits.peer_requests_inflight_max
    assert hub.stats.path_bytes[KEY] == len(WEIGHTS)
    assert list(engine.cache.swarm.iter_up())


async def test_peer_that_breaks_the_protocol_thrice_is_banned(
    engine: Engine, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that announces other lengths than chunks have is banned after three faults."""
    at_once = Consequence(fault="protocol")
    monkeypatch.setitem(CONSEQUENCES, Outcome.PROTOCOL, at_once)
    peer = await make_peer(WEIGHTS)
    peer.tamper = lambda _, chunk: chunk[:-1]
    await engine.meet(peer.address)
    await fetch_weights(engine)
    assert is_published(engine)
    await eventually(lambda: not list(engine.cache.swarm.iter_up()), "the ban")
    assert {fault.reason for fault in engine.context.blame.faults} == {"protocol"}


async def test_peer_whose_bytes_differ_from_its_own_claim_is_banned_at_once(
    engine: Engine, make_peer: MakePeer
) -> None:
    """A chunk that does not have the digest its sender named is proof enough."""
    peer = await make_peer(WEIGHTS)
    peer.tamper = flip
    peer.claim = "0" * 64
    await engine.meet(peer.address)
    await fetch_weights(engine)
    assert is_published(engine)
    fault = engine.context.blame.faults[0]
    assert (fault.source_name, fault.reason) == (peer.name, "wrong bytes")


async def test_proof_that_fails_drops_only_doubtful_chunks_and_names_the_liar(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """Chunks from the hub stay; those of peers are fetched anew, and the liar alone is banned."""
    snapshot, entry = await engine.find(REPO, NAME)
    engine.keep_chunks(WEIGHTS, range(5))
    liar, honest = await make_peer(WEIGHTS, number=1), await make_peer(WEIGHTS, number=2)
    liar.tamper = flip
    await engine.meet(liar.address)
    await engine.meet(honest.address)
    hub.stats.reset()
    active = await engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    await active.result()
    assert is_published(engine)
    assert liar.sent_chunks + honest.sent_chunks == COUNT - 5
    if liar.sent_chunks:
        assert hub.stats.path_bytes[KEY] == len(WEIGHTS) - 5 * CHUNK_BYTES
        assert {f.source_name for f in engine.context.blame.faults} == {liar.name}


async def test_new_liars_in_every_round_do_not_break_the_fetch(
    engine: Engine, make_peer: MakePeer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liars that appear one after the other cost time; the hub still gives the file."""
    liars = [await make_peer(WEIGHTS, number=n) for n in range(1, 5)]
    for liar in liars:
        liar.tamper = flip
    await engine.meet(liars[0].address)
    drop_doubtful = fetch.BlobFetch._drop_doubtful
    rounds = iter(liars[1:])

    async def drop_then_meet(self: fetch.BlobFetch, *arguments: object) -> None:
        await drop_doubtful(self, *arguments)  # type: ignore[arg-type]
        next_liar = next(rounds, None)
        if next_liar is not None:
            await engine.meet(next_liar.address)
            peer = engine.cache.swarm.peers[next_liar.peer_id]
            await eventually(lambda: peer.find_entry(BLOB), "the next liar's claim")

    monkeypatch.setattr(fetch.BlobFetch, "_drop_doubtful", drop_then_meet)
    await fetch_weights(engine)
    assert is_published(engine)


async def test_peers_are_left_alone_by_a_restricted_fetch(
    engine: Engine, make_peer: MakePeer, hub: Hub
) -> None:
    """Nobody is told of restricted content, and nobody is asked for it."""
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    active = await engine.start_fetch(REPO, NAME, is_public=False)
    await active.result()
    assert peer.runs == []
    assert all(not exchange.entries for exchange in peer.exchanges)
    assert os.stat(engine.context.store.path_of(BLOB)).st_mode & 0o777 == 0o400


async def test_hub_away_and_peers_that_give_nothing_ends_with_no_source(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub
) -> None:
    """When the hub is away and the only peer does not keep its word, the fetch ends."""
    engine = await make_cache()
    snapshot, entry = await engine.find(REPO, NAME)
    peer = await make_peer(WEIGHTS)
    peer.vanishes_after = 0
    await engine.meet(peer.address)
    await hub.set_listening(hub=False, cdn=False)
    engine.context.blame.note_wrong_bytes(
        engine.context.make_fault(peer.peer_id, peer.name, "wrong bytes", "test"),
        now_s=engine.context.clock.monotonic_s(),
    )
    hub_error = UpstreamUnreachableError("gone")
    active = await engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    now_s = engine.context.clock.monotonic_s()
    for number in range(5):
        active.fetch.state.machine.patience.note_failure(hub_error, now_s=now_s + 10 * number)
    with pytest.raises((NoSourceError, UpstreamUnreachableError)):
        await active.result()
    assert peer.runs == []


async def test_two_engines_fetch_each_chunk_from_the_hub_once(
    make_cache: MakeCache, hub: Hub
) -> None:
    """Two that start together and trust each other cost the hub one copy."""
    engines = [await make_cache(name, trust_peers=True, seed=n) for n, name in enumerate("ab")]
    for engine in engines:
        await engine.listen()
    await engines[0].meet(engines[1].address)
    await engines[1].meet(engines[0].address)
    for engine in engines:
        await engine.find(REPO, NAME)
    hub.set_faults(rate_bytes_per_s=600_000)
    await asyncio.gather(*(fetch_weights(engine) for engine in engines))
    assert all(map(is_published, engines))
    assert hub.stats.path_bytes[KEY] <= len(WEIGHTS) + 3 * CHUNK_BYTES
    for engine in engines:
        assert engine.context.budget.requests_inflight == 0
        assert all(p.requests_inflight == 0 for p in engine.cache.swarm.peers.values())


async def test_hanging_peers_do_not_hold_up_the_disk(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """Peers that accept and say nothing take no thread that hashing and opening files need."""
    large = b"".join(OTHER_WEIGHTS for _ in range(11))[: 32 * CHUNK_BYTES]
    hub.add(Repository("org/large", {NAME: large}))
    await engine.read(REPO, "other.safetensors")
    peers = [await make_peer(large, number=number) for number in range(1, 9)]
    for peer in peers:
        peer.hangs_runs = True
        await engine.meet(peer.address)
    active = await engine.start_fetch("org/large", NAME)
    await eventually(lambda: sum(len(peer.runs) for peer in peers) >= 16, "all peers are asked")
    async with asyncio.timeout(10):  # for ever, if the threads were taken
        assert await engine.read(REPO, "other.safetensors") == OTHER_WEIGHTS
    for peer in peers:
        await peer.stop()
    await active.result()


@pytest.mark.parametrize("comes_back", [True, False])
async def test_peer_that_falls_silent_is_waited_for_a_moment(
    make_cache: MakeCache, hub: Hub, make_peer: MakePeer, comes_back: bool
) -> None:
    """Without a hub, a pull outlives a restart of its only source, and not its end."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    await engine.find(REPO, NAME)
    peer = await make_peer(WEIGHTS)
    peer.hangs_runs = True
    await engine.meet(peer.address)
    active = await engine.start_fetch(REPO, NAME)
    await eventually(lambda: peer.runs, "a run from the peer")
    hub.set_faults(refuse_status=503, routes=["resolve", "cdn"])
    machine = active.fetch.state.machine
    failure = NotFoundError("The hub has it no more.")
    machine.patience.note_failure(failure, now_s=clock.monotonic_s())
    await peer.stop()
    await eventually(lambda: not machine.runs, "the run breaks off")
    clock.advance(fetch.HOPE_S - 0.5)
    await asyncio.wait({active.task}, timeout=2 * fetch.REPLAN_INTERVAL_S)
    assert not active.is_done

    def move_on() -> bool:
        clock.advance(0.1)
        return active.is_done

    if comes_back:
        peer.hangs_runs = False
        exchanges_before = len(peer.exchanges)
        await peer.start()
        await eventually(lambda: len(peer.exchanges) > exchanges_before, "it is heard again")
        await eventually(move_on, "the end")
        await active.result()
        assert is_published(engine)
    else:
        await eventually(move_on, "the end of hope")
        with pytest.raises(NoSourceError, match="Nobody could give"):
            await active.result()
