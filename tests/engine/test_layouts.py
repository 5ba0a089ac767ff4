"""
Owns the tests of finding a blob's layout before its content is here, and of what a lie costs.

Knows nothing of copying from other files.
Invariants: the hub is asked for a head once in a swarm, and no byte of it comes twice; whoever
says a wrong layout does no lasting harm.
Source: engine/layouts.py; docs/reference/layouts.md; docs/decisions/0010-deduplication.md.
"""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.layout import FIXED_LAYOUT, Layout
from p2pcache.core.messages import table_to_json
from p2pcache.core.patience import FAILURES_IN_A_ROW_MAX
from p2pcache.core.rendezvous import find_owner
from p2pcache.core.tensors import FIRST_HEAD_BYTES
from p2pcache.core.verify import verify_chunk
from p2pcache.core.views import UPSTREAM
from p2pcache.engine import layouts
from p2pcache.engine.fetches import ActiveFetch
from p2pcache.errors import NotFoundError, P2PCacheError, SourceError
from tests.engine.conftest import CHUNK_BYTES, TOKEN, MakeCache, MakePeer
from tests.engine.engine import POLL_S, Engine, eventually, meet_all
from tests.engine.fakepeer import FakePeer, sha256_name
from tests.engine.weights import (
    BASE,
    BASE_REPO,
    NAME,
    layout_of,
    list_ranges,
    make_file,
    make_layers,
    small_parts,
)
from tests.hub import Hub, Repository

__all__ = ["small_parts"]

KEY = f"{BASE_REPO}/{NAME}"
BLOB = sha256_name(BASE)
RANDOM = Random(77).randbytes(9 * CHUNK_BYTES)
# Cuts every chunk of the true layout in two.
LIE = Layout.of_starts(len(BASE), range(0, len(BASE), CHUNK_BYTES // 2))


@pytest.fixture(autouse=True)
def repositories(hub: Hub) -> None:
    """Put the files of these tests into the hub."""
    hub.add(Repository(BASE_REPO, {NAME: BASE}))
    hub.add(Repository("org/random", {NAME: RANDOM}))


async def fetch_base(engine: Engine) -> ActiveFetch:
    """Fetch the base model to the end."""
    active = await engine.start_fetch(BASE_REPO, NAME)
    await active.result()
    return active


async def assert_cut_rightly(engine: Engine, content: bytes = BASE) -> None:
    """The file is here, and its table is the one that its own bytes say."""
    blob = sha256_name(content)
    assert engine.context.store.path_of(blob).read_bytes() == content
    row = await engine.cache.shelf.find_row(blob)
    assert row is not None
    assert row.table is not None
    layout = layout_of(content)
    assert row.table.layout == layout
    honest = FakePeer(content).cut(content, layout)
    assert list(row.table) == list(honest)


def count_heads(hub: Hub, repo: str = BASE_REPO) -> int:
    """Return how often the hub was asked for the start of the file, as a head is."""
    return sum(entry == (0, FIRST_HEAD_BYTES) for entry in list_ranges(hub, repo))


async def make_owner(make_peer: MakePeer, engine: Engine, *contents: bytes) -> FakePeer:
    """Start a peer that owns the first chunk of the model when it fetches it."""
    # The engine's own id is drawn by chance: one in a hundred goes before the first 99 for a chunk.
    for number in range(1, 1_000_000):
        ids = [engine.context.settings.peer_id, f"{number:032x}"]
        if find_owner(BLOB, 0, ids) == ids[1]:
            return await make_peer(*contents, number=number)
    raise AssertionError("one of a million peers owns it")


# --- the hub's word ---


async def test_head_is_read_at_the_hub_and_kept(engine: Engine, hub: Hub) -> None:
    """The file is cut at its tensors, and costs not one byte more than it has."""
    active = await fetch_base(engine)
    assert active.fetch.layout == layout_of(BASE)
    assert active.fetch.layout.name != FIXED_LAYOUT
    await assert_cut_rightly(engine)
    assert list_ranges(hub, BASE_REPO)[0] == (0, FIRST_HEAD_BYTES)
    assert count_heads(hub) == 1
    assert hub.stats.path_bytes[KEY] == len(BASE)
    assert active.fetch.state.bytes_from["upstream"] == len(BASE)


async def test_long_head_is_read_to_its_end_without_a_byte_twice(engine: Engine, hub: Hub) -> None:
    """As the first bytes say how long it is, the second request asks for just the rest."""
    content = make_file(make_layers(), {"note": "x" * 3 * FIRST_HEAD_BYTES})
    hub.add(Repository("org/long", {NAME: content}))
    active = await engine.start_fetch("org/long", NAME)
    await active.result()
    await assert_cut_rightly(engine, content)
    head_bytes = 8 + int.from_bytes(content[:8], "little")
    assert list_ranges(hub, "org/long")[:2] == [
        (0, FIRST_HEAD_BYTES),
        (FIRST_HEAD_BYTES, head_bytes - FIRST_HEAD_BYTES),
    ]
    assert hub.stats.path_bytes[f"org/long/{NAME}"] == len(content)


async def test_file_that_only_is_called_so_is_cut_as_any_other(engine: Engine, hub: Hub) -> None:
    """What was read to find that out is part of the file."""
    active = await engine.start_fetch("org/random", NAME)
    await active.result()
    assert active.fetch.layout == Layout(len(RANDOM))
    assert count_heads(hub, "org/random") == 1
    assert hub.stats.path_bytes[f"org/random/{NAME}"] == len(RANDOM)


async def test_other_names_are_not_looked_at(engine: Engine, hub: Hub) -> None:
    """A file of another name is fetched as before, whatever is in it."""
    hub.add(Repository("org/bin", {"pytorch_model.bin": BASE}))
    active = await engine.start_fetch("org/bin", "pytorch_model.bin")
    await active.result()
    assert active.fetch.layout == Layout(len(BASE))
    assert (0, FIRST_HEAD_BYTES) not in list_ranges(hub, "org/bin", "pytorch_model.bin")


async def test_head_of_a_restricted_file_is_asked_with_its_token(
    make_cache: MakeCache, hub: Hub, make_peer: MakePeer
) -> None:
    """And of the hub alone: nobody else hears of it."""
    hub.add(Repository("org/closed", {NAME: BASE}, private=True, tokens=[TOKEN]))
    engine = await make_cache()
    peer = await make_peer(BASE)
    peer.cut(BASE, layout_of(BASE))
    await engine.meet(peer.address)
    assert await engine.read("org/closed", NAME, token=TOKEN) == BASE
    await assert_cut_rightly(engine)
    assert hub.stats.path_bytes[f"org/closed/{NAME}"] == len(BASE)
    assert hub.stats.token_leaks == []
    assert peer.asked == []
    assert peer.runs == []
    assert all(not exchange.entries for exchange in peer.exchanges)


@pytest.mark.parametrize(
    ("fault", "wait_s"), [({"refuse_status": 503}, 1.4), ({"refuse_status": 429}, 0.9)]
)
async def test_bad_moment_of_the_hub_is_sat_out(
    engine: Engine, hub: Hub, fault: dict[str, object], wait_s: float
) -> None:
    """A hub that refuses twice, or asks to slow down, is asked again after a while."""
    snapshot, entry = await engine.find(BASE_REPO, NAME)
    hub.set_faults(routes=["resolve"], refuse_times=2, retry_after_s=1, **fault)
    started_s = engine.context.clock.monotonic_s()
    active = await engine.start_fetch(BASE_REPO, NAME)
    await active.result()
    assert engine.context.clock.monotonic_s() - started_s >= wait_s
    await assert_cut_rightly(engine)
    assert (snapshot.files[0], entry.size_bytes) == (entry, len(BASE))


async def test_hub_that_asks_to_slow_down_holds_every_request_of_ours(
    make_cache: MakeCache, hub: Hub
) -> None:
    """A 429 to a head means the daemon, not the file."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    await engine.find(BASE_REPO, NAME)
    hub.set_faults(routes=["resolve"], refuse_status=429, refuse_times=1, retry_after_s=30)
    task = asyncio.create_task(fetch_base(engine))
    await eventually(lambda: engine.context.budget.paused_until_s > 0, "the pause")
    assert 30 <= engine.context.budget.paused_until_s - clock.monotonic_s() <= 33
    asked = hub.stats.requests_total
    while clock.monotonic_s() < engine.context.budget.paused_until_s - 1.0:
        clock.advance(1.0)
        await asyncio.sleep(POLL_S)
        assert hub.stats.requests_total == asked

    def is_through() -> bool:
        clock.advance(0.2)
        return task.done()

    await eventually(is_through, "the fetch after the pause")
    await task
    await assert_cut_rightly(engine)


async def test_file_that_the_hub_has_no_more_fails_at_once(engine: Engine, hub: Hub) -> None:
    """A 404 to a head is the answer to the whole."""
    await engine.find(BASE_REPO, NAME)
    hub.set_faults(routes=["resolve"], refuse_status=404)
    async with asyncio.timeout(3):
        with pytest.raises(P2PCacheError) as caught:
            await fetch_base(engine)
    assert caught.value.http_status in (401, 404)
    assert isinstance(caught.value, NotFoundError) or caught.value.http_status == 401


async def test_hub_that_gives_no_head_at_all_leaves_the_plain_layout(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hope ends as for any request; nothing is left behind that would stick."""
    monkeypatch.setattr("p2pcache.core.patience.FIRST_WAIT_S", 0.01)
    await engine.find(BASE_REPO, NAME)
    hub.set_faults(routes=["resolve"], refuse_status=503)
    with pytest.raises(SourceError):
        await fetch_base(engine)
    assert hub.stats.statuses["resolve 503"] == FAILURES_IN_A_ROW_MAX
    hub.set_faults()
    active = await fetch_base(engine)
    assert active.fetch.layout == layout_of(BASE)
    await assert_cut_rightly(engine)


async def test_search_that_is_cancelled_leaves_nothing_running(engine: Engine, hub: Hub) -> None:
    """A hub that hangs at the head does not hold up who stops waiting."""
    await engine.find(BASE_REPO, NAME)
    hub.set_faults(hang_after_bytes=0, paths=KEY)
    task = asyncio.create_task(fetch_base(engine))
    await eventually(lambda: engine.context.budget.requests_inflight, "the request for the head")
    active = engine.cache.fetches.find(BLOB)
    assert active is not None
    async with asyncio.timeout(3):
        active.stop()
        await asyncio.wait({active.task})
    assert engine.context.budget.requests_inflight == 0
    assert not engine.context.store.is_filling(BLOB)
    await asyncio.gather(task, return_exceptions=True)
    # The thread that waited for the head is free, too: close() waits for all threads.
    started_s = time.monotonic()
    await engine.close()
    assert time.monotonic() - started_s < 3


# --- the word of peers ---


async def test_peer_that_has_the_file_says_how_it_is_cut(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """The hub gives no byte, not even a head."""
    peer = await make_peer(BASE)
    peer.cut(BASE, layout_of(BASE))
    await engine.meet(peer.address)
    await fetch_base(engine)
    await assert_cut_rightly(engine)
    assert hub.stats.path_bytes[KEY] == 0
    assert not engine.context.blame.faults


async def test_peer_that_nobody_asked_before_is_found_while_the_hub_is_away(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """A reader's fetch asks the peers of itself, before it waits for a head."""
    snapshot, entry = await engine.find(BASE_REPO, NAME)
    peer = await make_peer(BASE)
    peer.cut(BASE, layout_of(BASE))
    await engine.meet(peer.address)
    await hub.set_listening(hub=False, cdn=False)
    async with asyncio.timeout(5):
        fetches = engine.cache.fetches
        active = await fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
        assert active.fetch.layout == layout_of(BASE)
        await active.result()
    await assert_cut_rightly(engine)


async def test_peer_with_a_part_in_the_plain_layout_is_joined_in_it(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """An older release, or one that could not ask: together rather than apart, right in the end."""
    peer = await make_peer(BASE)
    peer.have = [2, 3]
    await engine.meet(peer.address)
    active = await fetch_base(engine)
    assert active.fetch.layout == Layout(len(BASE))
    assert active.fetch.state.bytes_from["peer"] == 2 * CHUNK_BYTES
    await assert_cut_rightly(engine)
    assert not engine.context.blame.faults


async def test_three_cold_daemons_ask_for_one_head(make_cache: MakeCache, hub: Hub) -> None:
    """Whoever owns the first chunk asks; the others wait for it."""
    engines = [await make_cache(name, trust_peers=True, seed=n) for n, name in enumerate("abc")]
    await meet_all(engines)
    for engine in engines:
        await engine.find(BASE_REPO, NAME)
    hub.set_faults(rate_bytes_per_s=600_000)
    # As pulls do; all of them here before the first one begins.
    for engine in engines:
        await engine.cache.swarm.ask_about([(BLOB, Layout(len(BASE)))])
    await asyncio.gather(*map(fetch_base, engines))
    for engine in engines:
        await assert_cut_rightly(engine)
    assert count_heads(hub) == 1
    assert hub.stats.path_bytes[KEY] <= len(BASE) + 3 * CHUNK_BYTES


async def test_owner_that_stays_silent_is_waited_for_a_bounded_time(
    make_cache: MakeCache, hub: Hub, make_peer: MakePeer
) -> None:
    """Its lease ends; then the hub is asked all the same."""
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    owner = await make_owner(make_peer, engine, BASE)
    owner.have, owner.is_fetching = [], True
    await engine.meet(owner.address)
    await engine.cache.swarm.ask_about([(BLOB, Layout(len(BASE)))])
    fetching = asyncio.create_task(fetch_base(engine))
    await eventually(lambda: engine.cache.fetches.find(BLOB), "the fetch begins")
    lease_ends_s = clock.monotonic_s() + layouts.HEAD_LEASE_S

    def move_on() -> bool:
        assert count_heads(hub) == 0 or clock.monotonic_s() >= lease_ends_s
        clock.advance(0.02)
        return fetching.done()

    await eventually(move_on, "the end of the lease")
    await fetching
    assert count_heads(hub) == 1
    await assert_cut_rightly(engine)


async def test_owner_that_speaks_within_its_lease_is_believed(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """It has no chunk yet, and knows the layout: nobody else asks for the head."""
    owner = await make_owner(make_peer, engine, BASE)
    owner.have, owner.is_fetching = [], True
    await engine.meet(owner.address)
    await engine.cache.swarm.ask_about([(BLOB, Layout(len(BASE)))])
    task = asyncio.create_task(engine.start_fetch(BASE_REPO, NAME))
    await eventually(lambda: engine.cache.fetches.find(BLOB), "the fetch")
    owner.cut(BASE, layout_of(BASE))
    await engine.cache.swarm.ask_about([(BLOB, Layout(len(BASE)))])
    active = await task
    assert active.fetch.layout == layout_of(BASE)
    await active.result()
    assert count_heads(hub) == 0
    await assert_cut_rightly(engine)


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"blob": str(sha256_name(b"other"))},
        {"size": len(BASE) + 1},
        {"spans": [[1, 1]]},
        {"spans": [[CHUNK_BYTES, 1 << 40]]},
        {"chunks": []},
        {"layout": "tensor-000000000"},
        {"layout": FIXED_LAYOUT},
    ],
)
async def test_peer_without_a_fitting_table_is_passed_over(
    engine: Engine, hub: Hub, make_peer: MakePeer, change: dict[str, object] | None
) -> None:
    """Whatever it answers, the hub's own bytes are asked instead."""
    peer = await make_peer(BASE)
    peer.cut(BASE, LIE)
    path = f"/v1/blobs/{BLOB}/table"
    table = peer.documents.pop(path)
    assert isinstance(table, dict)
    if change is not None:
        peer.documents[path] = {**table, **change}
    await engine.meet(peer.address)
    active = await fetch_base(engine)
    assert active.fetch.layout == layout_of(BASE)
    assert path in peer.asked
    assert peer.runs == []
    assert hub.stats.path_bytes[KEY] == len(BASE)
    await assert_cut_rightly(engine)


@pytest.mark.parametrize("size_bytes", [len(BASE), len(BASE) + CHUNK_BYTES])
async def test_peer_whose_table_is_of_another_layout_or_size_than_it_said_is_passed_over(
    engine: Engine, hub: Hub, make_peer: MakePeer, size_bytes: int
) -> None:
    """A good table that does not fit what was asked for says nothing."""
    peer = await make_peer(BASE)
    peer.layouts[BLOB] = LIE
    layout = Layout(size_bytes)
    if size_bytes > len(BASE):
        layout = Layout.of_starts(size_bytes, range(0, size_bytes, CHUNK_BYTES // 2))
    peer.documents[f"/v1/blobs/{BLOB}/table"] = table_to_json(ChunkTable(BLOB, layout))
    await engine.meet(peer.address)
    active = await fetch_base(engine)
    assert active.fetch.layout == layout_of(BASE)
    assert count_heads(hub) == 1
    await assert_cut_rightly(engine)


async def test_crowd_of_peers_without_tables_is_not_asked_one_by_one(
    engine: Engine, hub: Hub, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few silent answers are enough to turn to the hub."""
    monkeypatch.setattr(layouts, "TABLE_TIMEOUT_S", 0.2)
    peers = [await make_peer(BASE, number=number) for number in range(1, 9)]
    for peer in peers:
        peer.cut(BASE, LIE)
        del peer.documents[f"/v1/blobs/{BLOB}/table"]
        await engine.meet(peer.address)
    active = await engine.start_fetch(BASE_REPO, NAME)
    assert sum(len(peer.asked) for peer in peers) == layouts.TABLE_PEERS_MAX
    await active.result()
    assert active.fetch.layout == layout_of(BASE)


# --- lies ---


@pytest.mark.parametrize("gives", [True, False], ids=["gives chunks", "gives nothing"])
async def test_liar_about_the_layout_costs_a_detour_and_is_named(
    engine: Engine, hub: Hub, make_peer: MakePeer, gives: bool
) -> None:
    """The file is right, and what we say of it afterwards is what its bytes say."""
    liar = await make_peer(BASE, name="liar")
    liar.cut(BASE, LIE)
    liar.run_status = 200 if gives else 503
    await engine.meet(liar.address)
    active = await fetch_base(engine)
    assert active.fetch.layout == LIE
    await assert_cut_rightly(engine)
    fault = engine.context.blame.faults[0]
    assert (fault.source_name, fault.reason) == ("liar", "other layout")
    assert engine.context.blame.find_ban(liar.peer_id, now_s=0.0) is None
    described = await engine.cache.describe(BLOB)
    assert described is not None
    assert described.layout == layout_of(BASE).id
    table = await engine.cache.get_table(BLOB)
    assert list(table) == list(FakePeer(BASE).cut(BASE, layout_of(BASE)))


async def test_lie_that_an_earlier_run_believed_is_not_passed_on(
    make_cache: MakeCache, hub: Hub, make_peer: MakePeer
) -> None:
    """After a restart nobody knows any more who said so; the bytes say what is right."""
    engine = await make_cache()
    keep_chunks(engine, BASE, LIE, range(5))
    active = await fetch_base(engine)
    assert active.fetch.layout == LIE
    assert active.fetch.state.bytes_from["disk"] == 5 * CHUNK_BYTES // 2
    await assert_cut_rightly(engine)


async def test_honest_peers_are_not_blamed_for_a_lie_that_they_were_told(
    make_cache: MakeCache, hub: Hub, make_peer: MakePeer
) -> None:
    """Their chunks are asked for in their layout, and are right in it."""
    engine = await make_cache()
    liar = await make_peer(BASE, number=1)
    believer = await make_peer(BASE, number=2)
    for peer in (liar, believer):
        peer.cut(BASE, LIE)
    liar.run_status = 503
    await engine.meet(liar.address)
    await engine.meet(believer.address)
    await fetch_base(engine)
    await assert_cut_rightly(engine)
    now_s = engine.context.clock.monotonic_s()
    assert engine.context.blame.find_ban(believer.peer_id, now_s=now_s) is None
    assert {fault.reason for fault in engine.context.blame.faults} <= {"other layout"}


# --- what is here already ---


def keep_chunks(engine: Engine, content: bytes, layout: Layout, indexes: range) -> None:
    """Put some chunks into a partial file of that layout, as if the hub had sent them before."""
    opened = engine.context.store.open_partial(sha256_name(content), layout)
    for index in indexes:
        start, length = layout.span_of(index, index)
        view = memoryview(content)[start : start + length]
        chunk = verify_chunk(opened.blob, layout, index, view, expected=None, source_id=UPSTREAM)
        opened.put(chunk, UPSTREAM)
    opened.flush()
    opened.close()


async def test_partial_cut_at_tensors_goes_on_without_a_head(engine: Engine, hub: Hub) -> None:
    """Its record says the layout; what is here is not fetched again."""
    layout = layout_of(BASE)
    keep_chunks(engine, BASE, layout, range(2, 9))
    held = layout.measure(range(2, 9))
    active = await fetch_base(engine)
    assert active.fetch.state.bytes_from["disk"] == held
    assert active.fetch.layout == layout
    assert count_heads(hub) == 0
    assert hub.stats.path_bytes[KEY] == len(BASE) - held
    await assert_cut_rightly(engine)


async def test_partial_of_the_plain_layout_goes_on_in_it(engine: Engine, hub: Hub) -> None:
    """Nothing of it is fetched again; the table is that of the bytes in the end."""
    keep_chunks(engine, BASE, Layout(len(BASE)), range(8))
    active = await fetch_base(engine)
    assert active.fetch.layout == Layout(len(BASE))
    assert active.fetch.state.bytes_from["disk"] == 8 * CHUNK_BYTES
    assert count_heads(hub) == 0
    assert hub.stats.path_bytes[KEY] == len(BASE) - 8 * CHUNK_BYTES
    await assert_cut_rightly(engine)


@pytest.mark.parametrize("layout", [Layout(len(BASE)), LIE], ids=["plain", "lie"])
async def test_layout_of_an_empty_partial_does_not_stick(
    engine: Engine, hub: Hub, layout: Layout
) -> None:
    """Whatever an earlier run believed, it left nothing that is cut so."""
    keep_chunks(engine, BASE, layout, range(0))
    active = await fetch_base(engine)
    assert active.fetch.layout == layout_of(BASE)
    assert count_heads(hub) == 1
    await assert_cut_rightly(engine)


async def test_partial_of_another_size_does_not_count(engine: Engine, hub: Hub) -> None:
    """A wrong listing may have made it; it is started anew."""
    other = Layout(len(BASE) - 1)
    opened = engine.context.store.open_partial(BLOB, other)
    view = memoryview(BASE)[:CHUNK_BYTES]
    chunk = verify_chunk(BLOB, other, 0, view, expected=None, source_id=UPSTREAM)
    opened.put(chunk, UPSTREAM)
    opened.flush()
    opened.close()
    active = await fetch_base(engine)
    assert active.fetch.layout == layout_of(BASE)
    await assert_cut_rightly(engine)


async def test_fetch_that_was_stopped_goes_on_in_its_layout(
    make_cache: MakeCache, hub: Hub
) -> None:
    """A stop in the middle, a new start: one copy in all, of the head too."""
    engine = await make_cache()
    hub.set_faults(rate_bytes_per_s=400_000)
    active = await engine.start_fetch(BASE_REPO, NAME)
    await eventually(lambda: active.fetch.state.held_bytes > len(BASE) // 3, "a third")
    await engine.close()
    hub.set_faults()
    again = await make_cache()
    resumed = await fetch_base(again)
    assert resumed.fetch.layout == layout_of(BASE)
    assert resumed.fetch.state.bytes_from["disk"] > 0
    assert count_heads(hub) == 1
    assert hub.stats.path_bytes[KEY] <= len(BASE) + 4 * CHUNK_BYTES
    await assert_cut_rightly(again)
