"""
Owns the tests of engine.residency and its parts: heads, holdings, room, waiting.

Knows nothing of HTTP.
Invariants: what the hub was asked is counted at the hub.
Source: engine/residency.py, weighing.py, heads.py, holdings.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.digest import BlobDigest
from p2pcache.core.holdings import HoldingsQuestion
from p2pcache.core.refs import ModelReference
from p2pcache.core.residency import State
from p2pcache.core.tensors import TensorList, list_tensors
from p2pcache.core.weights import measure_weights
from p2pcache.engine.residency import Finding
from p2pcache.errors import UpstreamRateLimitedError
from p2pcache.store.lookup import Question
from tests.engine.conftest import PRIVATE, TOKEN, MakeCache
from tests.engine.engine import Engine, eventually
from tests.engine.weights import BASE, NAME, list_ranges
from tests.hub import Hub, Repository

MODEL = "org/base"
QUESTION = Question(ModelReference.parse(MODEL), with_shapes=True)
TOTAL_BYTES = len(BASE) + 2


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """Run a hub with one public model and a private one."""
    files = {NAME: BASE, "config.json": b"{}"}
    repositories = [
        Repository(MODEL, files),
        Repository(PRIVATE, {NAME: BASE}, private=True, tokens=[TOKEN]),
    ]
    async with Hub(repositories) as running:
        yield running


async def find(engine: Engine, question: Question = QUESTION, **options: bool) -> Finding:
    """Ask about a model that is known."""
    finding = await engine.cache.residencies.find(question, **options)
    assert finding is not None
    return finding


async def learn(engine: Engine) -> None:
    """Have the hub asked."""
    await engine.cache.residencies.learn(QUESTION, ANONYMOUS)


async def test_learning_reads_the_head_once_and_the_fetch_does_not_read_it_again(
    make_cache: MakeCache, hub: Hub
) -> None:
    """Nothing of the model is here and all is known; later every byte comes once."""
    a = await make_cache("a")
    assert await a.cache.residencies.find(QUESTION) is None
    await learn(a)
    ranges = list_ranges(hub, MODEL)
    assert ranges[0][0] == 0
    assert sum(count for _, count in ranges) < len(BASE) / 10
    found = await find(a)
    listed = list_tensors(BASE, len(BASE))
    assert isinstance(listed, TensorList)
    truth = measure_weights(listed)
    assert truth is not None
    assert found.look.weights is not None
    assert tuple(found.look.weights.params.items()) == truth.params
    assert found.look.weights.shapes == truth.shapes
    assert (found.look.residency.state, found.look.residency.bytes_local) == (State.ABSENT, 0)
    requests = hub.stats.requests_total
    await learn(a)
    await find(a)
    assert hub.stats.requests_total == requests
    assert (await a.pull(MODEL)).path
    assert sum(count for _, count in list_ranges(hub, MODEL)) == len(BASE)
    found = await find(a)
    assert (found.look.residency.state, found.eta and found.eta.p50_s) == (State.RESIDENT, 0.0)
    assert found.look.path is not None


async def test_heads_of_what_is_here_are_read_from_the_disk(
    make_cache: MakeCache, hub: Hub
) -> None:
    """A store that was filled before heads were of interest answers at the first question."""
    a = await make_cache("a")
    await a.pull(MODEL)
    # As an earlier release left it.
    await a.context.index.call(lambda index: index._db.execute("DELETE FROM weights"))
    await a.context.index.call(lambda index: index._db.conn.commit())
    requests = hub.stats.requests_total
    found = await find(a)
    assert found.look.weights is not None
    assert found.look.weights.tensors == 36
    assert hub.stats.requests_total == requests


async def test_hub_that_wants_a_pause_is_not_asked_for_heads(
    make_cache: MakeCache, hub: Hub
) -> None:
    """All requests of this machine keep to it; who asks is told for how long."""
    a = await make_cache("a")
    snapshot, entry = await a.find(MODEL, NAME)
    a.context.budget.pause(60.0, now_s=a.context.clock.monotonic_s())
    requests = hub.stats.requests_total
    with pytest.raises(UpstreamRateLimitedError):
        await a.cache.weights.learn(snapshot, [entry], ANONYMOUS)
    a.cache.weights.begin(snapshot, [entry], ANONYMOUS)
    await asyncio.sleep(0)
    await eventually(lambda: not a.cache.weights._tasks, "the end of the reading")
    assert hub.stats.requests_total == requests


async def test_peer_counts_and_is_asked_once_in_a_while(make_cache: MakeCache) -> None:
    """By digest, for what is public; what was heard stands for a few seconds."""
    a, b = await make_cache("a"), await make_cache("b")
    await a.pull(MODEL)
    await b.meet(await a.listen())
    await learn(b)
    found = await find(b)
    assert found.missing_from_peers == found.look.residency.bytes_missing == TOTAL_BYTES
    assert found.peers is None
    found = await find(b, is_cluster=True)
    assert found.peers is not None
    assert [peer.held_bytes for peer in found.peers] == [TOTAL_BYTES]
    digest = BlobDigest("sha256", "ab" * 32)
    blobs = [(entry.digest, entry.size_bytes) for entry in found.look.files]
    question = HoldingsQuestion(((digest, 5), *blobs))
    answer = await a.cache.residencies.answer(question)
    assert sorted(answer.held_bytes) == sorted([0, *(size for _, size in blobs)])


async def test_pull_of_what_a_peer_has_reads_no_head_at_the_hub(
    make_cache: MakeCache, hub: Hub
) -> None:
    """The hub is spared every byte that somebody here has; the head comes with the file."""
    a, b = await make_cache("a"), await make_cache("b")
    await a.pull(MODEL)
    await b.meet(await a.listen())
    b.cache.residencies.open()
    body_bytes = hub.stats.body_bytes
    await b.pull(MODEL)
    assert hub.stats.body_bytes == body_bytes
    assert (await find(b)).look.weights is not None


async def test_private_content_is_spoken_of_to_no_peer(make_cache: MakeCache) -> None:
    """Who holds it for somebody's token answers as one who has nothing, and asks nobody."""
    a = await make_cache("a")
    job = await a.pull(PRIVATE, token=TOKEN)
    assert job.error is None
    snapshot, entry = await a.find(PRIVATE, NAME, TOKEN)
    answer = await a.cache.residencies.answer(HoldingsQuestion(((entry.digest, entry.size_bytes),)))
    assert answer.held_bytes == (0,)
    question = Question(ModelReference.parse(f"{PRIVATE}@{snapshot.id.commit}"))
    found = await find(a, question, is_cluster=True)
    assert found.look.residency.state is State.RESIDENT
    assert (found.peers, found.missing_from_peers) == ((), 0)


async def test_room_that_lacks_is_told_before_anything_is_fetched(make_cache: MakeCache) -> None:
    """Too large for the quota: no; with something to evict: yes, and what."""
    a = await make_cache("a", quota_bytes=TOTAL_BYTES // 2)
    await learn(a)
    found = await find(a)
    assert (found.fits_disk, found.evictions) == (False, ())


async def test_wait_ends_with_the_last_file(make_cache: MakeCache) -> None:
    """Who waits hears of it at once, not at the next look."""
    a = await make_cache("a")
    a.cache.residencies.open()
    waiting = asyncio.create_task(a.cache.residencies.wait(QUESTION, 30.0))
    await asyncio.sleep(0)
    await a.pull(MODEL)
    finding = await asyncio.wait_for(waiting, 5.0)
    assert finding is not None
    assert finding.look.residency.state is State.RESIDENT
