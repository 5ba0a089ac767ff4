"""
Owns the tests of engine.fetches: who joins a fetch, who leaves it, who goes on without it.

Knows nothing of HTTP clients.
Invariants: one fetch for a blob at a time; its outcome reaches everyone who asked.
Source: engine/fetches.py; design.md §6.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from typing import Any

import pytest

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.digest import BlobDigest
from p2pcache.core.fetchevents import Action, Event
from p2pcache.core.layout import Layout
from p2pcache.core.views import UPSTREAM
from p2pcache.engine.fetch import BlobFetch
from p2pcache.errors import BlobNotFoundError, ChunkNotYetError, NoSourceError
from p2pcache.store.partial import FilePartial
from tests.engine.conftest import CHUNK_BYTES, REPO, WEIGHTS, MakeCache, MakePeer
from tests.engine.engine import Engine, eventually, let_run, list_open_files
from tests.engine.fakepeer import sha256_name
from tests.hub import Hub

NAME = "pytorch_model.bin"
KEY = f"{REPO}/{NAME}"
BLOB = sha256_name(WEIGHTS)


async def test_starters_share_one_fetch(engine: Engine, hub: Hub) -> None:
    """Five that ask for one blob at once get one fetch and cost one copy."""
    actives = await asyncio.gather(*(engine.start_fetch(REPO, NAME) for _ in range(5)))
    assert len({id(active) for active in actives}) == 1
    await asyncio.gather(*(active.result() for active in actives))
    assert hub.stats.path_bytes[KEY] == len(WEIGHTS)


async def test_starter_who_comes_while_the_file_is_opened_joins(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gets a file that is not open yet; who waits for it is released together."""
    open_partial = engine.context.store.open_partial
    begun, may_end = threading.Event(), threading.Event()
    calls: list[int] = []

    def held(*arguments: object) -> object:
        calls.append(1)
        begun.set()
        may_end.wait(5)
        return open_partial(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.context.store, "open_partial", held)
    starters = [asyncio.create_task(engine.start_fetch(REPO, NAME)) for _ in range(3)]
    await asyncio.to_thread(begun.wait, 5)
    opening = engine.cache.fetches.find(BLOB)
    assert opening is not None
    await eventually(lambda: opening.waiting_count == 3, "all three wait")
    assert not any(task.done() for task in starters)
    may_end.set()
    actives = await asyncio.gather(*starters)
    await actives[0].result()
    assert calls == [1]


async def test_cancelled_waiter_does_not_stop_the_fetch(engine: Engine, hub: Hub) -> None:
    """Somebody who waits for the outcome may go; the others get it."""
    hub.set_faults(rate_bytes_per_s=2_000_000)
    active = await engine.start_fetch(REPO, NAME)
    first, second = (asyncio.create_task(active.result()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second


async def hang(engine: Engine, hub: Hub) -> None:
    """Resolve the file, then let the hub's bodies stop after some chunks."""
    await engine.find(REPO, NAME)
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)


async def test_fetch_that_every_job_left_is_stopped_and_keeps_what_it_has(
    engine: Engine, hub: Hub
) -> None:
    """The last job to leave ends the fetch; the next start goes on from its chunks."""
    await hang(engine, hub)
    active = await engine.start_fetch(REPO, NAME)
    active.job_count += 2
    await eventually(lambda: active.fetch.state.held_bytes >= 4 * CHUNK_BYTES, "some chunks")
    active.leave()
    assert not active.is_stopping
    needs = engine.context.pace.needs
    needs.note(BLOB, "1" * 32, size_bytes=0, owes=True)
    active.leave()
    await eventually(lambda: active.is_done, "the end")
    assert engine.cache.fetches.find(BLOB) is None
    other = sha256_name(b"another")
    assert not needs.is_needed_elsewhere(other, "1" * 32), "no other fetch waits for this one"
    assert engine.context.budget.requests_inflight == 0
    hub.set_faults()
    again = await engine.start_fetch(REPO, NAME)
    await again.result()
    assert again.fetch.state.bytes_from["disk"] >= 4 * CHUNK_BYTES


async def test_place_that_a_run_leaves_at_the_hub_is_offered_to_a_file_that_nobody_hears_of(
    engine: Engine, hub: Hub
) -> None:
    """A restricted file waits for its turn like any other, and no peer is told of it."""
    await engine.find(REPO, NAME)
    swarm, other, woken = engine.cache.swarm, sha256_name(b"another"), list[int]()
    needs = engine.context.pace.needs
    needs.note(other, UPSTREAM, size_bytes=0, owes=True, requests_max=8)
    needs.note_asked(other, UPSTREAM)

    def take_turn() -> None:
        woken.append(1)
        needs.forget(other)

    swarm.register(other, None, take_turn)
    assert not (await swarm._our_side([other])).entries
    await (await engine.start_fetch(REPO, NAME)).result()
    assert woken


async def test_place_that_a_run_leaves_is_offered_to_the_blob_that_comes_first(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """A fetch that waits for a lone seeder hears when another one's run has ended there."""
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    await engine.find(REPO, NAME)
    other, woken = sha256_name(b"another"), list[int]()
    engine.cache.swarm.register(other, lambda: None, lambda: woken.append(1))
    engine.context.pace.needs.note(other, peer.peer_id, size_bytes=0, owes=True)
    hub.set_faults(refuse_status=503)
    await (await engine.start_fetch(REPO, NAME)).result()
    assert peer.sent_chunks
    assert woken


async def test_file_that_is_all_here_needs_no_seeder_while_it_is_published(
    engine: Engine, hub: Hub, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proof and disk take their time; the seeder's line is free for other files."""
    published, publish = asyncio.Event(), BlobFetch._publish

    async def publish_late(self: BlobFetch, *arguments: Any) -> None:
        await published.wait()
        await publish(self, *arguments)

    monkeypatch.setattr(BlobFetch, "_publish", publish_late)
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    active = await engine.start_fetch(REPO, NAME)
    needs, other = engine.context.pace.needs, sha256_name(b"another")
    machine = active.fetch.state.machine
    handle = machine.handle

    def handle_and_need(event: Event, *, now_s: float) -> list[Action]:
        # As a look just before the last chunk came says it.
        needs.note(BLOB, peer.peer_id, size_bytes=0, owes=True)
        return handle(event, now_s=now_s)

    monkeypatch.setattr(machine, "handle", handle_and_need)
    await eventually(machine.have.is_full, "the last chunk")
    await eventually(lambda: not needs.is_needed_elsewhere(other, peer.peer_id), "a free line")
    assert not active.is_done
    published.set()
    await active.result()


async def test_fetch_with_a_reader_goes_on_without_its_jobs(engine: Engine, hub: Hub) -> None:
    """A file that a client has begun to read is fetched to the end, whoever cancels."""
    hub.set_faults(rate_bytes_per_s=2_000_000)
    reader = await engine.open_reader(REPO, NAME)
    active = await engine.start_fetch(REPO, NAME)
    active.job_count += 1
    active.leave()
    reader.close()
    await active.result()
    assert engine.context.store.path_of(BLOB).exists()


async def test_start_right_after_everybody_left_begins_anew(engine: Engine, hub: Hub) -> None:
    """Whoever comes while an abandoned fetch winds up gets a fetch of its own, not its end."""
    await hang(engine, hub)
    active = await engine.start_fetch(REPO, NAME)
    active.job_count += 1
    await eventually(lambda: active.fetch.state.held_bytes >= 4 * CHUNK_BYTES, "some chunks")
    active.leave()
    hub.set_faults()
    again = await engine.start_fetch(REPO, NAME)
    assert again is not active
    await again.result()
    assert active.is_done
    assert engine.context.store.path_of(BLOB).read_bytes() == WEIGHTS


async def test_close_tells_those_who_wait_to_come_back(make_cache: MakeCache, hub: Hub) -> None:
    """When the daemon stops, a waiting reader gets an error that says so, not a cancellation."""
    engine = await make_cache("b")
    await hang(engine, hub)
    active = await engine.start_fetch(REPO, NAME)
    waiting = asyncio.create_task(active.result())
    await asyncio.sleep(0)
    await engine.cache.fetches.close()
    with pytest.raises(NoSourceError, match="stops"):
        await waiting


async def test_close_during_winding_up_waits_for_every_thread(engine: Engine, hub: Hub) -> None:
    """A daemon that stops while a fetch is being stopped closes no file that is written to."""
    await hang(engine, hub)
    active = await engine.start_fetch(REPO, NAME)
    active.job_count += 1
    await eventually(lambda: active.fetch.state.held_bytes >= 4 * CHUNK_BYTES, "some chunks")
    active.leave()
    await asyncio.sleep(0)
    await engine.cache.fetches.close()
    assert active.is_done
    assert active.fetch._dispatcher is not None
    assert active.fetch._dispatcher.is_idle


async def test_public_joiner_opens_a_restricted_fetch(engine: Engine, hub: Hub) -> None:
    """A blob that is also in a public repository ends readable by all, whoever began it."""
    hub.set_faults(rate_bytes_per_s=2_000_000)
    first = await engine.start_fetch(REPO, NAME, is_public=False)
    second = await engine.start_fetch(REPO, NAME, is_public=True)
    assert first is second
    await second.result()
    assert os.stat(engine.context.store.path_of(BLOB)).st_mode & 0o777 == 0o444
    row = await engine.cache.shelf.find_row(BLOB)
    assert row is not None
    assert row.is_public


async def test_peer_gets_chunks_that_are_here_and_is_told_of_those_on_their_way(
    engine: Engine, hub: Hub
) -> None:
    """Held chunks are sent, those in flight are 425, all others 404."""
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)
    active = await engine.start_fetch(REPO, NAME)
    state = active.fetch.state
    await eventually(lambda: len(state.have) >= 8, "two chunks of each run")
    held = next(iter(state.have))
    run = await engine.cache.open_run(BLOB, held, held, None)
    content = os.pread(run.fd, run.length, run.offset)
    os.close(run.fd)
    assert content == WEIGHTS[held * CHUNK_BYTES : (held + 1) * CHUNK_BYTES]
    coming = next(iter(state.machine.intent))
    with pytest.raises(ChunkNotYetError):
        await engine.cache.open_run(BLOB, coming, coming, None)
    state.machine.intent.discard(coming)
    with pytest.raises(BlobNotFoundError):
        await engine.cache.open_run(BLOB, coming, coming, None)
    table = await engine.cache.get_table(BLOB)
    named = {index for index, digest in enumerate(table) if digest is not None}
    assert named == set(state.have)
    assert engine.cache.fetches.count_held_chunks() == len(state.have)
    hub.set_faults()
    await active.result()
    assert engine.cache.fetches.count_held_chunks() is None


async def test_chunks_of_unknown_worth_are_not_passed_on(make_cache: MakeCache, hub: Hub) -> None:
    """While the hub is not trusted, nothing unproven is described, sent or named."""
    engine = await make_cache("b", trusts_upstream=False)
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)
    active = await engine.start_fetch(REPO, NAME)
    await eventually(lambda: len(active.fetch.state.have) >= 8, "some chunks")
    description = await engine.cache.describe(BLOB)
    assert description is not None
    assert not description.have
    held = next(iter(active.fetch.state.have))
    with pytest.raises(BlobNotFoundError):
        await engine.cache.open_run(BLOB, held, held, None)
    table = await engine.cache.get_table(BLOB)
    assert not any(digest is not None for digest in table)
    hub.set_faults()
    await active.result()


async def test_after_follows_a_success_and_not_a_failure(engine: Engine, hub: Hub) -> None:
    """Work that waits for a fetch is done once it succeeded, and dropped if it failed."""
    done: list[str] = []

    async def note() -> None:
        done.append("linked")

    active = await engine.start_fetch(REPO, "config.json")
    engine.cache.fetches.after(active, note)
    await active.result()
    await eventually(lambda: done == ["linked"], "the work")
    await hang(engine, hub)
    snapshot, entry = await engine.find(REPO, NAME)
    assert entry.layout == Layout(len(WEIGHTS))
    stopped = await engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    engine.cache.fetches.after(stopped, note)
    stopped.stop()
    await eventually(lambda: stopped.is_done, "the end")
    await eventually(lambda: not engine.cache.fetches._followers, "nobody waits for it any more")
    assert done == ["linked"]


async def test_fetch_that_everybody_left_before_it_was_open_stops(engine: Engine, hub: Hub) -> None:
    """A job that is cancelled while the head is being read leaves no fetch behind."""
    snapshot, entry = await engine.find(REPO, NAME)
    entry = replace(entry, path="weights.safetensors")  # its head is looked at first
    hub.set_faults(latency_s=30.0)
    asking = asyncio.create_task(
        engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    )
    await eventually(lambda: engine.cache.fetches.find(entry.digest), "the fetch begins")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: engine.cache.fetches.find(entry.digest) is None, "the fetch stops")
    assert asking.cancelled()
    assert [name for name in list_open_files(engine.root) if "/partial/" in name] == []


async def test_fetch_that_is_stopped_while_its_file_opens_leaves_nothing_open(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opens the file ends first; what it opened is closed."""
    begun, may_go_on = threading.Event(), threading.Event()
    real = engine.context.store.open_partial

    def open_slowly(blob: BlobDigest, layout: Layout) -> FilePartial:
        begun.set()
        assert may_go_on.wait(10), "the test goes on"
        return real(blob, layout)

    monkeypatch.setattr(engine.context.store, "open_partial", open_slowly)
    snapshot, entry = await engine.find(REPO, NAME)
    asking = asyncio.create_task(
        engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    )
    await eventually(begun.is_set, "the file is being opened")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert engine.cache.fetches.find(entry.digest) is not None, "two must not open one file"
    may_go_on.set()
    await eventually(lambda: engine.cache.fetches.find(entry.digest) is None, "the fetch stops")
    assert [name for name in list_open_files(engine.root) if "/partial/" in name] == []


async def test_fetch_cancelled_while_its_file_gets_its_name_is_known_and_not_fetched_again(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody may leave at that moment; the next one finds the file."""
    store, loop = engine.context.store, asyncio.get_running_loop()
    publish = store.publish
    active = await engine.start_fetch(REPO, NAME)

    async def leave() -> None:
        active.stop()
        await let_run()  # until the cancellation has come to where it waits

    def publish_and_leave(*arguments: Any, **options: Any) -> Any:
        stamp = publish(*arguments, **options)
        asyncio.run_coroutine_threadsafe(leave(), loop).result(10)
        return stamp

    monkeypatch.setattr(store, "publish", publish_and_leave)
    with pytest.raises(NoSourceError):
        await active.result()
    before = hub.stats.path_bytes[KEY]
    assert before == len(WEIGHTS)
    assert await engine.read(REPO, NAME) == WEIGHTS
    assert hub.stats.path_bytes[KEY] == before
