"""
Owns the tests of engine.prover: what is hashed, and where it is taken from.

Knows nothing of sources.
Invariants: the proof is of the file, whatever came in which order.
Source: engine/prover.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from p2pcache.core.verify import BlobProof, verify_chunk
from p2pcache.engine import prover
from p2pcache.engine.context import Context
from p2pcache.engine.prover import AHEAD_CHUNKS_MAX, prove
from p2pcache.store.partial import FilePartial
from p2pcache.transfer import buffers
from p2pcache.transfer.buffers import KEPT_BUFFERS_MAX, thread_buffer
from tests.engine.conftest import CHUNK_BYTES, MakeCache
from tests.engine.engine import eventually
from tests.samples import PEER_ID, Sample

SAMPLE = Sample(Random(5).randbytes(40 * CHUNK_BYTES - 100))
COUNT = 40


class Filler:
    """Fills a partial as bulk threads do, with a proof behind it; counts what is read back."""

    def __init__(self, context: Context, partial: FilePartial) -> None:
        self.partial = partial
        self.read_back: list[int] = []
        self._context = context
        self._here: set[int] = set()
        self._changed = asyncio.Event()
        self._read_into = partial.read_into
        self._thread = ThreadPoolExecutor(1)
        partial.read_into = self._count  # type: ignore[method-assign]

    def begin(self) -> asyncio.Task[BlobProof]:
        """Start the proof."""
        return asyncio.create_task(
            prove(self._context, self.partial, self._here.__contains__, self._wait)
        )

    async def put(self, index: int) -> None:
        """Receive one chunk into a thread's buffer, and write it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._put, index)
        self._here.add(index)
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_room(self) -> float:
        """Wait as a receiver does; return for how long."""
        wait = self.partial.wait_for_room
        assert wait is not None, "the proof has begun"
        started_s = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(self._thread, wait)
        return time.monotonic() - started_s

    def _put(self, index: int) -> None:
        content = SAMPLE.bytes_of(index)
        view = thread_buffer()[: len(content)]
        view[:] = content
        chunk = verify_chunk(
            SAMPLE.blob, SAMPLE.layout, index, view, expected=None, source_id=PEER_ID
        )
        self.partial.put(chunk, PEER_ID)

    async def _wait(self) -> None:
        await self._changed.wait()

    def _count(self, offset: int, view: memoryview) -> None:
        self.read_back.append(offset // CHUNK_BYTES)
        self._read_into(offset, view)


@pytest.fixture
async def filler(make_cache: MakeCache) -> AsyncIterator[Filler]:
    """An empty partial of the sample; nothing is kept in memory at the end."""
    engine = await make_cache()
    partial = engine.context.store.open_partial(SAMPLE.blob, SAMPLE.layout)
    yield Filler(engine.context, partial)
    partial.close()
    assert partial.on_put is None
    assert partial.wait_for_room is None
    assert not buffers._kept


async def test_proof_takes_chunks_in_order_from_memory(filler: Filler) -> None:
    """What has just been received is not read back."""
    proving = filler.begin()
    await asyncio.sleep(0)
    for index in range(COUNT):
        await filler.put(index)
        if index % 8 == 7:
            await eventually(lambda: not buffers._kept, "the proof is up with the transfer")
    assert (await proving).is_right()
    assert filler.read_back == []


async def test_proof_takes_two_streams_from_memory(filler: Filler) -> None:
    """Two runs at once leave nothing to read back, though half of it comes before its turn."""
    proving = filler.begin()
    await asyncio.sleep(0)
    for index in range(8):
        await filler.put(8 + index)
        await filler.put(index)
    await eventually(lambda: not buffers._kept, "the proof is up with the transfer")
    for index in range(16, COUNT):
        await filler.put(index)
    assert (await proving).is_right()
    assert not set(filler.read_back) & set(range(16))


async def test_proof_of_any_order_is_right(filler: Filler) -> None:
    """What was too far ahead, or found no buffer, is read back."""
    proving = filler.begin()
    await asyncio.sleep(0)
    order = list(range(COUNT))
    Random(3).shuffle(order)
    order.remove(0)
    for index in [*order, 0]:
        await filler.put(index)
    assert (await proving).is_right()
    assert set(range(AHEAD_CHUNKS_MAX, COUNT)) <= set(filler.read_back)


async def test_proof_of_chunks_from_before_reads_them_back(filler: Filler) -> None:
    """What was written before the proof began is on disk alone."""
    for index in range(COUNT // 2):
        await filler.put(index)
    proving = filler.begin()
    await asyncio.sleep(0)
    for index in range(COUNT // 2, COUNT):
        await filler.put(index)
    assert (await proving).is_right()
    assert set(range(COUNT // 2)) <= set(filler.read_back)


async def test_proof_of_a_chunk_that_came_twice_is_of_the_first(filler: Filler) -> None:
    """What is not written is not hashed: the file has what came first."""
    await filler.put(0)
    offset = filler.partial.layout.offset_of(0)
    proving = filler.begin()
    await asyncio.sleep(0)
    for index in (0, *range(1, COUNT)):
        await filler.put(index)
    assert (await proving).is_right()
    assert offset // CHUNK_BYTES in filler.read_back


async def test_proof_that_is_cancelled_lets_go_of_what_it_kept(filler: Filler) -> None:
    """A fetch that ends leaves no buffer behind."""
    proving = filler.begin()
    await asyncio.sleep(0)
    for index in range(1, 6):
        await filler.put(index)
    assert len(buffers._kept) == 5
    proving.cancel()
    await asyncio.gather(proving, return_exceptions=True)
    await filler.put(6)
    assert not buffers._kept


async def test_receiver_waits_for_a_proof_that_lags_but_not_for_ever(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full memory holds a receiver for a moment while the proof works, and never without it."""
    has_begun, may_go_on = threading.Event(), threading.Event()

    def hash_slowly(proof: BlobProof, content: bytes) -> None:
        has_begun.set()
        may_go_on.wait(10)
        update(proof, content)

    update = BlobProof.update
    monkeypatch.setattr(BlobProof, "update", hash_slowly)
    proving = filler.begin()
    await asyncio.sleep(0)
    for index in range(1, KEPT_BUFFERS_MAX):
        await filler.put(index)
    monkeypatch.setattr(prover, "ROOM_WAIT_S_MAX", 30.0)
    assert await filler.wait_for_room() < 30, "nothing is hashed: nobody waits"
    await filler.put(0)
    await asyncio.to_thread(has_begun.wait, 10)
    monkeypatch.setattr(prover, "ROOM_WAIT_S_MAX", 0.05)
    assert await filler.wait_for_room() >= 0.05
    monkeypatch.setattr(prover, "ROOM_WAIT_S_MAX", 30.0)
    waiting = asyncio.create_task(filler.wait_for_room())
    may_go_on.set()
    assert await waiting < 30, "room is noticed at once"
    for index in range(KEPT_BUFFERS_MAX, COUNT):
        await filler.put(index)
    assert (await proving).is_right()
