"""
Owns the tests of a swarm in which nobody talks to everybody.

Knows nothing of how neighbours are chosen.
Invariants: none.
Source: engine/swarm.py, engine/gossip.py, core/neighbours.py; design.md §9.
"""

from __future__ import annotations

import asyncio

import pytest

from p2pcache.core import cadence
from p2pcache.core import neighbours as neighbours_module
from p2pcache.core import ownership as ownership_module
from p2pcache.core.rendezvous import find_highest
from p2pcache.discovery.base import Candidate
from tests.engine.conftest import REPO, WEIGHTS, MakeCache
from tests.engine.engine import Engine, eventually
from tests.engine.fakepeer import sha256_name
from tests.hub import Hub

NAME = "pytorch_model.bin"
KEY = f"{REPO}/{NAME}"
BLOB = sha256_name(WEIGHTS)
MEMBERS, OWNERS = 7, 2


@pytest.fixture
async def crowd(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Return engines that know each other, and are too many to talk to all."""
    monkeypatch.setattr(cadence, "PROBE_INTERVAL_S", 0.05)
    monkeypatch.setattr(neighbours_module, "NEIGHBOURS_ALL_MAX", 3)
    monkeypatch.setattr(neighbours_module, "NEIGHBOURS_CHOSEN", 2)
    for module in (neighbours_module, ownership_module):
        monkeypatch.setattr(module, "OWNERS_MAX", OWNERS)
    monkeypatch.setattr(neighbours_module, "SPARES", 1)
    engines = [await make_cache(f"m{n}", trust_peers=True, seed=n) for n in range(MEMBERS)]
    for engine in engines:
        await engine.listen()
    for engine in engines:
        for other in engines:
            host, _, port = other.address.rpartition(":")
            engine.cache.swarm.add_candidate(Candidate(host, int(port), "static"))
    await eventually(
        lambda: all(len(e.cache.swarm.peers) == MEMBERS - 1 for e in engines), "all are known"
    )
    await eventually(
        lambda: all(e.cache.swarm.neighbourhood.is_crowded for e in engines), "the neighbours"
    )
    return engines


async def test_crowd_that_starts_together_takes_one_copy(crowd: list[Engine], hub: Hub) -> None:
    """Owners bring what they own; the others get it of neighbours, and need not the hub."""
    for engine in crowd:
        await engine.find(REPO, NAME)
    hub.set_faults(rate_bytes_per_s=400_000)
    fetches = await asyncio.gather(*(engine.start_fetch(REPO, NAME) for engine in crowd))
    near = [len(engine.cache.swarm.neighbourhood.near) for engine in crowd]
    assert max(near) < MEMBERS - 1
    await asyncio.gather(*(active.result() for active in fetches))
    # Who started a moment before the others may have taken a chunk for its own.
    assert hub.stats.path_bytes[KEY] < 1.2 * len(WEIGHTS)


async def test_crowd_hears_of_owners_that_it_does_not_talk_to(
    crowd: list[Engine], hub: Hub
) -> None:
    """How far an owner has come reaches members that never exchange with it."""
    for engine in crowd:
        await engine.find(REPO, NAME)
    hub.set_faults(rate_bytes_per_s=60_000)
    fetches = await asyncio.gather(*(engine.start_fetch(REPO, NAME) for engine in crowd))

    ids = [engine.context.settings.peer_id for engine in crowd]
    owners = frozenset(find_highest(BLOB, ids, OWNERS))

    def told() -> list[tuple[str, int]]:
        """List what far owners are said to have received, at members that are not owners."""
        found = []
        for engine in crowd:
            swarm = engine.cache.swarm
            for owner_id in owners & swarm.neighbourhood.find_crew(BLOB) - swarm.neighbourhood.near:
                entry = swarm.peers[owner_id].find_entry(BLOB)
                found.append((owner_id, 0 if entry is None else entry.received_bytes))
        return found

    await eventually(lambda: told() and all(count for _, count in told()), "news of far owners")
    received = {
        engine.context.settings.peer_id: active.fetch.state.machine.first_copy_bytes
        for engine, active in zip(crowd, fetches, strict=True)
    }
    # Never more than the owner has.
    assert [word for word in told() if word[1] > received[word[0]]] == []
    hub.set_faults()
    await asyncio.gather(*(active.result() for active in fetches))


async def test_crowd_gets_what_only_a_far_peer_has(crowd: list[Engine], hub: Hub) -> None:
    """A fetch begins by asking everybody; who holds all of it gives it, near or not."""
    holder, others = crowd[0], crowd[1:]
    await (await holder.start_fetch(REPO, NAME)).result()
    far = next(
        engine
        for engine in others
        if holder.context.settings.peer_id not in engine.cache.swarm.neighbourhood.near
    )
    before = hub.stats.path_bytes[KEY]
    await (await far.start_fetch(REPO, NAME)).result()
    assert hub.stats.path_bytes[KEY] == before
