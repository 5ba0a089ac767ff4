"""
Owns the tests of engine.caps, and of the sink that keeps them in a bulk thread.

Knows nothing of which run is sent where.
Invariants: what moved is counted against a clock of the test, never against the wall's.
Source: engine/caps.py; engine/sink.py; design.md §6.5.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.layout import Layout
from p2pcache.core.views import RunRequest
from p2pcache.engine import caps as module
from p2pcache.engine.caps import Caps, Pacer
from p2pcache.engine.settings import EngineSettings
from p2pcache.engine.sink import RunSink
from p2pcache.transfer.base import RunCancelled
from p2pcache.transfer.upstream import UpstreamSource
from tests.engine.conftest import CHUNK_BYTES, REPO, WEIGHTS, MakeCache
from tests.engine.engine import Engine, eventually

NAME = "pytorch_model.bin"
RATE_BPS = 400_000
BURST_BYTES = module.BURST_S * RATE_BPS


def make_caps(clock: ManualClock, **limits_bps: int) -> Caps:
    """Return caps of some limits."""
    settings = EngineSettings(Path("/none"), "a", "b", "http://hub", **limits_bps)  # type: ignore[arg-type]
    return Caps(settings, clock)


def test_daemon_without_limits_holds_nobody() -> None:
    """Nothing is counted, slices are as long as they may be, uploads as many."""
    caps = make_caps(ManualClock())
    for pacer in (caps.of_upstream(), caps.of_download("a"), caps.of_upload("10.0.0.7")):
        assert (pacer.limit_bps, pacer.slice_bytes) == (None, module.SLICE_BYTES_MAX)
        assert pacer.reserve(1 << 50) == 0
    assert (caps.count_uploads(64), caps.count_runs(4)) == (64, 4)


@pytest.mark.parametrize(
    ("limit", "capped"),
    [
        ("upstream_limit_bps", {"upstream"}),
        ("download_limit_bps", {"upstream", "peer a", "peer b"}),
        ("upload_limit_bps", {"to a", "to b"}),
        ("peer_limit_bps", {"peer a", "peer b", "to a", "to b"}),
    ],
)
def test_limit_holds_for_its_ways_alone(limit: str, capped: set[str]) -> None:
    """From the hub, from peers, to peers: each cap where its name says."""
    caps = make_caps(ManualClock(), **{limit: RATE_BPS})
    ways = {
        "upstream": caps.of_upstream(),
        "peer a": caps.of_download("a"),
        "peer b": caps.of_download("b"),
        "to a": caps.of_upload("a"),
        "to b": caps.of_upload("b"),
    }
    assert {name for name, pacer in ways.items() if pacer.limit_bps == RATE_BPS} == capped
    assert {name for name, pacer in ways.items() if pacer.limit_bps is not None} == capped


def test_limit_of_all_is_shared_and_that_of_a_peer_is_its_own() -> None:
    """Two runs from one peer share its cap, another peer has another, all share the download's."""
    caps = make_caps(ManualClock(), peer_limit_bps=RATE_BPS, download_limit_bps=10 * RATE_BPS)
    assert caps.of_download("a").reserve(RATE_BPS) == pytest.approx(1 - module.BURST_S)
    assert caps.of_download("a").reserve(RATE_BPS) == pytest.approx(2 - module.BURST_S)
    assert caps.of_download("b").reserve(RATE_BPS) == pytest.approx(1 - module.BURST_S)
    # The slower one of two caps decides, and both have counted.
    upstream_wait_s = caps.of_upstream().reserve(10 * RATE_BPS)
    assert upstream_wait_s == pytest.approx(1.3 - module.BURST_S)


def test_peers_without_end_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can connect can come from many addresses."""
    monkeypatch.setattr(module, "BUCKETS_MAX", 3)
    caps = make_caps(ManualClock(), peer_limit_bps=RATE_BPS)
    caps.of_upload("first").reserve(RATE_BPS)
    for n in range(3):
        caps.of_upload(str(n)).reserve(RATE_BPS)
    assert caps.of_upload("2").reserve(RATE_BPS) > 1.5
    assert caps.of_upload("first").reserve(RATE_BPS) < 1


@pytest.mark.parametrize(("limit_bps", "count"), [(125_000, 1), (1_000_000, 7), (10_000_000, 64)])
def test_capped_daemon_serves_few_at_a_decent_rate(limit_bps: int, count: int) -> None:
    """Sixty-four peers at a sixty-fourth of a slow line each would all leave it for dead."""
    caps = make_caps(ManualClock(), upload_limit_bps=limit_bps, peer_limit_bps=limit_bps)
    assert (caps.count_uploads(64), caps.count_runs(64)) == (count, count)
    slice_s = caps.of_upload("a").slice_bytes / limit_bps
    assert slice_s <= 0.6


async def test_sender_waits_on_the_event_loop_for_its_cap() -> None:
    """Bytes released by the simulated time t are at most rate * t and a burst."""
    clock = ManualClock()
    started_s = clock.monotonic_s()
    caps = make_caps(clock, upload_limit_bps=RATE_BPS)
    released = 0
    most = 0.0

    async def send(host: str) -> None:
        nonlocal released, most
        pacer = caps.of_upload(host)
        for _ in range(10):
            await pacer.take(20_000)
            released += 20_000
            most = max(most, released - RATE_BPS * (clock.monotonic_s() - started_s))

    tasks = [asyncio.create_task(send(str(n))) for n in range(4)]

    def move_on() -> bool:
        clock.advance(0.01)
        return all(task.done() for task in tasks)

    await eventually(move_on, "all is sent", timeout_s=20.0)
    await asyncio.gather(*tasks)
    assert released == 800_000
    assert most <= BURST_BYTES + 1
    assert clock.monotonic_s() - started_s >= (released - BURST_BYTES) / RATE_BPS


class Download:
    """A run of the hub's file in a bulk thread, with a cap."""

    def __init__(self, engine: Engine, pacer: Pacer) -> None:
        self.engine = engine
        self.pacer = pacer
        self.sink: RunSink
        self.thread = ThreadPoolExecutor(1)

    async def start(self) -> Future[None]:
        """Begin."""
        context = self.engine.context
        snapshot, entry = await self.engine.find(REPO, NAME)
        layout = Layout(len(WEIGHTS))
        self.partial = context.store.open_partial(entry.digest, layout)
        self.sink = RunSink(
            self.partial, "upstream", lambda index, source: None, lambda: None, self.pacer
        )
        location = context.hub.locate(snapshot.id, entry, ANONYMOUS)
        self.source = UpstreamSource(location, context.upstream_pool)
        run = RunRequest("upstream", 0, layout.chunk_count - 1)
        return self.thread.submit(self.source.fetch_run, entry.digest, layout, run, self.sink)

    def close(self) -> None:
        """End the thread, close the file."""
        self.sink.cancel()
        self.source.close()
        self.thread.shutdown()
        self.partial.close()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
async def download(make_cache: MakeCache, clock: ManualClock) -> AsyncIterator[Download]:
    """A run that is capped at RATE_BPS."""
    engine = await make_cache(clock=clock, upstream_limit_bps=RATE_BPS)
    run = Download(engine, engine.context.caps.of_upstream())
    yield run
    run.close()


async def test_run_under_a_cap_takes_what_the_clock_allows(
    download: Download, clock: ManualClock
) -> None:
    """At each simulated moment no more has arrived than rate, burst and the piece that waits."""
    started_s = clock.monotonic_s()
    done = await download.start()
    await eventually(lambda: download.sink.paced_s > 0, "the cap holds")
    assert download.sink.received_bytes <= BURST_BYTES + CHUNK_BYTES

    def move_on() -> bool:
        allowed = RATE_BPS * (clock.monotonic_s() - started_s) + BURST_BYTES + CHUNK_BYTES
        assert download.sink.received_bytes <= allowed
        clock.advance(0.02)
        return done.done()

    await eventually(move_on, "the run's end")
    assert done.result() is None
    assert download.sink.received_bytes == len(WEIGHTS)
    elapsed_s = clock.monotonic_s() - started_s
    assert elapsed_s >= (len(WEIGHTS) - BURST_BYTES) / RATE_BPS
    # What it waited was ours, and is not held against the hub.
    assert 0 < download.sink.paced_s <= elapsed_s


async def test_run_that_waits_for_a_cap_ends_at_once_when_it_is_cancelled(
    download: Download,
) -> None:
    """The clock stands still, the wait would last for ever; cancel() is heard all the same."""
    done = await download.start()
    await eventually(lambda: download.sink.paced_s > 0, "the cap holds")
    received = download.sink.received_bytes
    download.sink.cancel()
    await eventually(done.done, "the end of the run", timeout_s=5.0)
    assert isinstance(done.exception(), RunCancelled)
    assert download.sink.received_bytes == received


async def test_two_runs_under_one_cap_take_no_more_than_one(
    make_cache: MakeCache, clock: ManualClock
) -> None:
    """The cap is the daemon's, not the run's."""
    engine = await make_cache(clock=clock, upstream_limit_bps=RATE_BPS)
    started_s = clock.monotonic_s()
    pacers = [engine.context.caps.of_upstream() for _ in range(4)]
    count, lock = 0, threading.Lock()

    def take(pacer: Pacer, wait_for_end: Callable[[float], bool]) -> None:
        nonlocal count
        for _ in range(10):
            pacer.wait_in_thread(pacer.reserve(16_000), wait_for_end)
            with lock:
                count += 16_000
                allowed = RATE_BPS * (clock.monotonic_s() - started_s) + BURST_BYTES
                assert count <= allowed + 1

    def nobody_ends(wait_s: float) -> bool:
        return threading.Event().wait(min(wait_s, 0.002))

    with ThreadPoolExecutor(4) as threads:
        tasks = [threads.submit(take, pacer, nobody_ends) for pacer in pacers]

        def move_on() -> bool:
            clock.advance(0.01)
            return all(task.done() for task in tasks)

        await eventually(move_on, "the end of all four", timeout_s=20.0)
    assert [task.result() for task in tasks] == [None] * 4
    assert count == 640_000
