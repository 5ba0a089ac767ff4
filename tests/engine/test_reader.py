"""
Owns the tests of engine.reader: which byte may go out when.

Knows nothing of HTTP.
Invariants: no byte before its chunk is checked and its source trusted; the last one never before
the proof.
Source: engine/reader.py; design.md §7 ("when a gateway may send").
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from p2pcache.core import readers as readers_module
from p2pcache.engine import reader as reader_module
from p2pcache.engine.reader import BlobReader
from p2pcache.errors import IntegrityError
from tests.engine.conftest import CHUNK_BYTES, REPO, WEIGHTS, MakeCache, MakePeer
from tests.engine.engine import Engine, eventually, list_open_files
from tests.engine.fakepeer import sha256_name
from tests.hub import Hub

NAME = "pytorch_model.bin"
KEY = f"{REPO}/{NAME}"
BLOB = sha256_name(WEIGHTS)
LAST = 19 * CHUNK_BYTES


class Body:
    """A body under way: what was read so far, and how it ended."""

    def __init__(self, reader: BlobReader, start: int, length: int) -> None:
        self.received = b""
        self.piece_count = 0
        self._reader = reader
        self.task = asyncio.create_task(self._read(start, length))

    async def _read(self, start: int, length: int) -> None:
        try:
            await self._reader.ready(start)
            async for segment in self._reader.segments(start, length):
                assert segment.offset == start + len(self.received)
                self.piece_count += 1
                self.received += os.pread(segment.fd, segment.length, segment.offset)
        finally:
            self._reader.close()


async def open_body(engine: Engine, start: int = 0, length: int | None = None) -> Body:
    """Begin to read the weights."""
    reader = await engine.open_reader(REPO, NAME)
    wanted = len(WEIGHTS) - start if length is None else length
    return Body(reader, start, wanted)


async def test_bytes_flow_before_the_file_is_whole_but_never_the_last_chunk(
    engine: Engine, hub: Hub
) -> None:
    """With the hub trusted, chunks go out in order as they come; the end waits for the proof."""
    hub.set_faults(rate_bytes_per_s=600_000)
    body = await open_body(engine)
    await eventually(lambda: body.received, "first bytes")
    active = engine.cache.fetches.find(BLOB)
    assert active is not None
    assert WEIGHTS.startswith(body.received)
    while not active.is_done:
        assert len(body.received) <= LAST
        await asyncio.sleep(0.002)
    await body.task
    assert body.received == WEIGHTS


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 1), (CHUNK_BYTES - 1, 2), (7 * CHUNK_BYTES + 3, 5000), (LAST - 1, 2), (LAST + 10, 20)],
)
async def test_range_of_a_cold_file_is_exact(engine: Engine, start: int, length: int) -> None:
    """Any range of a file that is not here yet has exactly its bytes."""
    body = await open_body(engine, start, length)
    await body.task
    assert body.received == WEIGHTS[start : start + length]


async def test_range_in_the_middle_does_not_wait_for_what_comes_before(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the fetch begins before the reader is known, with one run for the whole file."""
    monkeypatch.setattr(readers_module, "READER_PATIENCE_S", 0.1)
    await engine.find(REPO, NAME)
    engine.context.limits = replace(engine.context.limits, upstream_requests_inflight_max=1)
    hub.set_faults(rate_bytes_per_s=300_000)
    body = await open_body(engine, 15 * CHUNK_BYTES, 10)
    await body.task
    assert hub.stats.path_bytes[KEY] < len(WEIGHTS) // 2
    hub.set_faults()
    active = engine.cache.fetches.find(BLOB)
    assert active is not None
    await active.result()


async def test_last_chunk_trickles_while_the_proof_is_awaited(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader at the last chunk gets some bytes every while, though other chunks still arrive."""
    monkeypatch.setattr(reader_module, "TRICKLE_INTERVAL_S", 0.1)
    await engine.find(REPO, NAME)
    engine.keep_chunks(WEIGHTS, (18, 19))
    # A chunk comes oftener than a piece is due, for a dozen pieces and more.
    hub.set_faults(rate_bytes_per_s=200_000)
    body = await open_body(engine, LAST - 100)
    await body.task
    assert body.received == WEIGHTS[LAST - 100 :]
    assert body.piece_count > 5


async def test_trickle_never_reaches_the_last_byte(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the proof takes, the end of the file does not go out before it."""
    monkeypatch.setattr(reader_module, "TRICKLE_INTERVAL_S", 0.0)
    monkeypatch.setattr(reader_module, "TRICKLE_BYTES", CHUNK_BYTES // 2)
    await engine.find(REPO, NAME)
    engine.keep_chunks(WEIGHTS, (18, 19))
    hub.set_faults(rate_bytes_per_s=600_000)
    body = await open_body(engine, LAST - 100)
    active = engine.cache.fetches.find(BLOB)
    assert active is not None
    while not active.is_done:
        assert len(body.received) < 100 + len(WEIGHTS) - LAST
        await asyncio.sleep(0.002)
    await body.task
    assert body.received == WEIGHTS[LAST - 100 :]


async def test_untrusted_peers_hold_every_byte_until_the_proof(
    engine: Engine, make_peer: MakePeer, hub: Hub
) -> None:
    """While a peer that nobody vouches for gives chunks, a reader gets none of them unproven."""
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    await engine.find(REPO, NAME)
    peer.tamper = lambda index, chunk: chunk if index else b"\xff" + chunk[1:]
    body = await open_body(engine)
    await body.task
    assert peer.sent_chunks > 0
    assert body.received == WEIGHTS


async def test_trusted_peers_chunks_go_out_at_once(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub
) -> None:
    """With --trust-peers a chunk from a peer is read before the whole is proven."""
    engine = await make_cache("b", trust_peers=True)
    peer = await make_peer(WEIGHTS)
    peer.vanishes_after = 3
    await engine.meet(peer.address)
    await engine.find(REPO, NAME)
    hub.set_faults(hang_after_bytes=0, paths=KEY)
    body = await open_body(engine)
    await eventually(lambda: body.received, "first bytes")
    assert WEIGHTS.startswith(body.received)
    hub.set_faults()
    peer.vanishes_after = None
    await body.task
    assert body.received == WEIGHTS


async def test_body_that_turns_out_wrong_is_broken_off(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub
) -> None:
    """A trusted peer's lie that went out already ends the body short of its end."""
    engine = await make_cache("b", trust_peers=True)
    peer = await make_peer(WEIGHTS)
    peer.tamper = lambda index, chunk: chunk if index else b"\xff" + chunk[1:]
    await engine.meet(peer.address)
    await engine.find(REPO, NAME)
    body = await open_body(engine)
    await asyncio.wait({body.task})
    if body.task.exception() is None:
        assert body.received == WEIGHTS
    else:
        assert isinstance(body.task.exception(), IntegrityError)
        assert len(body.received) < len(WEIGHTS)
    await eventually(lambda: engine.cache.fetches.find(BLOB) is None, "the end of the fetch")
    assert engine.context.store.path_of(BLOB).read_bytes() == WEIGHTS


async def test_body_does_not_begin_while_an_untrusted_run_is_under_way(
    engine: Engine, make_peer: MakePeer, hub: Hub
) -> None:
    """A paused peer may still send what it was asked for: no body begins meanwhile."""
    peer = await make_peer(WEIGHTS)
    peer.hangs_runs = True
    await engine.meet(peer.address)
    active = await engine.start_fetch(REPO, NAME)
    await eventually(lambda: peer.runs, "a run from the peer")
    state = active.fetch.state
    state.machine.rests.resting_until_s[peer.peer_id] = engine.context.clock.monotonic_s() + 60
    assert not active.fetch.may_stream()
    await peer.stop()
    await active.result()


async def test_reader_that_is_closed_leaves_nothing_behind(engine: Engine, hub: Hub) -> None:
    """Closing releases the descriptor and the claim on trusted sources, twice if need be."""
    hub.set_faults(rate_bytes_per_s=600_000)
    body = await open_body(engine)
    await eventually(lambda: body.received, "first bytes")
    active = engine.cache.fetches.find(BLOB)
    assert active is not None
    assert active.fetch.state.streaming_count == 1
    body.task.cancel()
    await asyncio.wait({body.task})
    for _ in range(2):
        body._reader.close()
    assert active.fetch.state.streaming_count == 0
    assert len(active.fetch.state.machine.readers) == 0
    hub.set_faults()
    await active.result()
    await eventually(
        lambda: not [n for n in list_open_files(engine.root) if "/partial/" in n or "/blobs/" in n],
        "every descriptor is closed",
    )


async def test_failure_before_the_first_byte_is_told_by_ready(engine: Engine, hub: Hub) -> None:
    """A client can still be given a status when nothing was sent."""
    await engine.find(REPO, NAME)
    hub.set_faults(flips={KEY: 3})
    reader = await engine.open_reader(REPO, NAME)
    with pytest.raises(IntegrityError):
        await reader.ready(LAST)
    reader.close()


async def test_empty_file_is_ready_and_has_no_segment(engine: Engine) -> None:
    """A file of no byte needs no waiting."""
    assert await engine.read(REPO, "empty.txt") == b""
    assert await engine.read(REPO, "empty.txt") == b""


async def test_open_that_is_cancelled_leaves_no_descriptor(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that goes while its file is being linked leaves nothing open."""
    await engine.read(REPO, NAME)
    waiting = asyncio.Event()

    async def wait(*_: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    for name in ("publish_to_tree", "is_shared"):
        target = engine.cache if name == "publish_to_tree" else engine.cache.shelf
        with monkeypatch.context() as patch:
            patch.setattr(target, name, wait)
            opening = asyncio.create_task(engine.open_reader(REPO, NAME))
            await waiting.wait()
            waiting.clear()
            opening.cancel()
            await asyncio.wait({opening})
            assert opening.cancelled()
    assert [name for name in list_open_files(engine.root) if "/blobs/" in name] == []


async def test_file_that_is_here_is_read_though_its_link_cannot_be_made(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk keeps nobody from bytes that are on it."""
    from p2pcache.errors import StoreFullError

    await engine.read(REPO, NAME)

    def refuse(*_: object) -> None:
        raise StoreFullError("The disk is full; free some space.")

    monkeypatch.setattr(engine.context.tree, "publish_ref", refuse)
    assert await engine.read(REPO, NAME) == WEIGHTS
