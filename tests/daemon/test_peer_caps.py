"""
Owns the tests of the peer endpoint under a cap: what leaves it, how evenly, for how many at once.

Knows nothing of downloads.
Invariants: what was sent is counted against a clock of the test, never against the wall's.
Source: daemon/peer_api.py; engine/caps.py.
"""

from __future__ import annotations

import asyncio

import pytest

from p2pcache.clock import ManualClock
from p2pcache.engine.caps import BURST_S
from tests.daemon.conftest import Serve
from tests.daemon.local import Served
from tests.engine.conftest import CHUNK_BYTES, REPO, WEIGHTS, MakeCache
from tests.engine.engine import eventually
from tests.engine.fakepeer import sha256_name

RATE_BPS = 400_000
RUNS = f"/v1/blobs/{sha256_name(WEIGHTS)}/chunks"
RUN = f"{RUNS}/0-19"


async def serve_capped(
    make_cache: MakeCache, serve: Serve, clock: ManualClock, **limits_bps: int
) -> Served:
    """Serve an engine that has the model and some limits."""
    engine = await make_cache(clock=clock, **limits_bps)
    served = await serve(engine)
    await engine.read(REPO, "pytorch_model.bin")
    await eventually(
        lambda: engine.cache.fetches.find(sha256_name(WEIGHTS)) is None, "the file is proven"
    )
    return served


@pytest.mark.parametrize("limit", ["upload_limit_bps", "peer_limit_bps"])
async def test_run_under_a_cap_leaves_as_the_clock_allows(
    make_cache: MakeCache, serve: Serve, limit: str
) -> None:
    """Two runs at once: what was sent by each simulated moment is rate and burst at most."""
    clock = ManualClock()
    served = await serve_capped(make_cache, serve, clock, **{limit: RATE_BPS})
    sent = served.engine.context.bytes_counted
    asking = [asyncio.create_task(served.ask(RUN, peer=True)) for _ in range(2)]
    started_s = clock.monotonic_s()

    def move_on() -> bool:
        allowed = RATE_BPS * (clock.monotonic_s() - started_s + BURST_S)
        assert sent["peer", "out"] <= allowed
        clock.advance(0.02)
        return all(task.done() for task in asking)

    await eventually(move_on, "both runs", timeout_s=30.0)
    assert [task.result().body for task in asking] == [WEIGHTS, WEIGHTS]
    assert sent["peer", "out"] == 2 * len(WEIGHTS)
    assert clock.monotonic_s() - started_s >= 2 * len(WEIGHTS) / RATE_BPS - BURST_S


async def test_programs_on_this_machine_are_not_capped(make_cache: MakeCache, serve: Serve) -> None:
    """The clock stands still and holds the peer; the gateway gives the same file whole."""
    served = await serve_capped(make_cache, serve, ManualClock(), upload_limit_bps=RATE_BPS)
    asking = asyncio.create_task(served.ask(RUN, peer=True))
    reply = await served.ask(f"/{REPO}/resolve/main/pytorch_model.bin")
    assert (reply.status, reply.body) == (200, WEIGHTS)
    assert served.engine.context.bytes_counted["peer", "out"] < len(WEIGHTS)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize("limit", ["upload_limit_bps", "peer_limit_bps"])
async def test_run_too_many_under_a_cap_is_told_to_come_back(
    make_cache: MakeCache, serve: Serve, limit: str
) -> None:
    """Three at a decent rate; the fourth hears so at once, and the others get all of it."""
    clock = ManualClock()
    served = await serve_capped(make_cache, serve, clock, **{limit: RATE_BPS})
    asking = [asyncio.create_task(served.ask(RUN, peer=True)) for _ in range(4)]
    refused, held = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().error for task in refused] == [(503, "DaemonBusy")]
    assert len(held) == 3

    def move_on() -> bool:
        clock.advance(0.05)
        return all(task.done() for task in held)

    await eventually(move_on, "the others", timeout_s=30.0)
    assert [task.result().body for task in held] == [WEIGHTS] * 3
    clock.advance(10)
    assert (await served.ask(f"{RUNS}/0-0", peer=True)).body == WEIGHTS[:CHUNK_BYTES]
