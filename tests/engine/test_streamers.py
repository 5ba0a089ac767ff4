"""
Owns the tests of engines beside one that sends a blob to a client as it comes from the hub.

Knows nothing of what is left to whom: core/streamers.py decides.
Invariants: a body that began before any peer spoke takes the hub's bytes alone.
Source: design.md §7 ("when a gateway may send") and §2, promise 4; docs/decisions/0035.
"""

from __future__ import annotations

import asyncio

from tests.engine.conftest import REPO, WEIGHTS, MakeCache
from tests.engine.engine import Engine, eventually, meet_all
from tests.engine.fakepeer import sha256_name
from tests.engine.test_reader import Body
from tests.hub import Hub

NAME = "pytorch_model.bin"
KEY = f"{REPO}/{NAME}"
BLOB = sha256_name(WEIGHTS)


async def make_neighbours(make_cache: MakeCache, count: int) -> list[Engine]:
    """Return engines that know each other and do not trust each other."""
    engines = [await make_cache(f"m{n}", seed=n) for n in range(count)]
    await meet_all(engines)
    for engine in engines:
        await engine.find(REPO, NAME)
    return engines


async def begin_body(engine: Engine) -> Body:
    """Begin to send the weights to a client."""
    reader = await engine.open_reader(REPO, NAME)
    body = Body(reader, 0, len(WEIGHTS))
    await eventually(lambda: body.received, "first bytes")
    return body


async def test_what_one_streams_nobody_else_fetches_from_the_hub(
    make_cache: MakeCache, hub: Hub
) -> None:
    """It takes all of it from the hub, whatever others bring: one copy is enough for all."""
    hub.set_faults(rate_bytes_per_s=600_000)
    streamer, *others = await make_neighbours(make_cache, 3)
    body = await begin_body(streamer)
    fetches = [await engine.start_fetch(REPO, NAME) for engine in others]
    await asyncio.gather(*(active.result() for active in fetches))
    await body.task
    assert body.received == WEIGHTS
    assert hub.stats.path_bytes[KEY] == len(WEIGHTS)


async def test_what_one_streamed_the_others_bring_when_it_is_gone(
    make_cache: MakeCache, hub: Hub
) -> None:
    """Nobody waits for a daemon that has ended."""
    hub.set_faults(rate_bytes_per_s=400_000)
    streamer, *others = await make_neighbours(make_cache, 3)
    body = await begin_body(streamer)
    fetches = [await engine.start_fetch(REPO, NAME) for engine in others]
    await eventually(lambda: any(f.fetch.state.have for f in fetches), "a chunk at another one")
    body.task.cancel()
    await asyncio.wait({body.task})
    await streamer.close()
    hub.set_faults()
    await asyncio.gather(*(active.result() for active in fetches))
    for engine in others:
        assert engine.context.store.path_of(BLOB).read_bytes() == WEIGHTS
