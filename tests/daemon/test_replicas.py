"""
Owns the tests of engine.replicas through its API: copies that are kept, mended, and let go.

Knows nothing of real processes.
Invariants: there are never fewer copies than before a change.
Source: engine/replicas.py; docs/reference/http-api.md ("Pins").
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pcache.engine import replicas as replicas_module
from tests.daemon.conftest import Serve
from tests.daemon.local import Served
from tests.engine.conftest import GATED, REPO, MakeCache
from tests.engine.engine import eventually

BASE = "/_p2pcache/v1"


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and wait for nobody for long."""
    monkeypatch.setattr(replicas_module, "LOOK_INTERVAL_S", 0.05)
    monkeypatch.setattr(replicas_module, "AWAY_S_MAX", 0.3)
    monkeypatch.setattr("p2pcache.engine.passing.FOLLOW_INTERVAL_S", 0.05)


async def count_pins(served: Served) -> int:
    """Return how many models a daemon protects."""
    return len(await served.engine.cache.space.pins.list_all())


async def wait_for_copies(boss: Served, names: set[str] | None = None) -> dict[str, Any]:
    """Wait until two copies are held, by these daemons; returns what is told of them."""
    async with asyncio.timeout(20):
        while True:
            kept = (await boss.ask(f"{BASE}/pins")).json.get("replicas", [{}])[0]
            held = {h["name"] for h in kept.get("holders", ()) if h["state"] == "held"}
            if kept.get("copies") == 2 and (names is None or held == names):
                return dict(kept)
            await asyncio.sleep(0.02)


async def wait_for_pins(served: dict[str, Served], wanted: dict[str, int]) -> None:
    """Wait for pins: who is no holder any more in the boss's books may have yet to hear of it."""
    async with asyncio.timeout(20):
        while True:
            if {name: await count_pins(one) for name, one in served.items()} == wanted:
                return
            await asyncio.sleep(0.02)


async def test_copy_of_one_that_leaves_is_brought_elsewhere(
    make_cache: MakeCache, serve: Serve
) -> None:
    """The third takes its place; when it is back, as many as were wanted stay, and one lets go."""
    served = {name: await serve(await make_cache(name)) for name in "abc"}
    boss = served["a"]
    for name in "bc":
        await boss.engine.meet(served[name].peer)
    reply = await boss.change(f"{BASE}/pins", body={"model": REPO, "replicas": 2})
    assert (reply.status, reply.json["replicas"]) == (200, 2)
    kept = await wait_for_copies(boss)
    first = {holder["name"] for holder in kept["holders"]}
    assert len(first) == 2
    leaving = (first - {"a"}).pop()
    await served[leaving].close()
    await wait_for_copies(boss, {"a", *"bc"} - {leaving})

    back = await serve(served[leaving].engine)
    await boss.engine.meet(back.peer)
    kept = await wait_for_copies(boss, first)
    served[leaving] = back
    assert {holder["name"] for holder in kept["holders"]} == first
    await wait_for_pins(served, {name: int(name in first) for name in "abc"})

    await boss.change(f"{BASE}/pins", "DELETE", body={"model": REPO})
    assert [await count_pins(one) for one in served.values()] == [0, 0, 0]
    assert (await boss.change(f"{BASE}/pins", "DELETE", body={"model": REPO})).error[0] == 404


async def test_copies_that_cannot_be_kept_are_refused(served: Served) -> None:
    """More than there are daemons, none, nonsense, and what is not public."""
    for count, text in ((2, "1 daemons"), (0, "0 copies"), ("3", "replicas"), (True, "replicas")):
        reply = await served.change(f"{BASE}/pins", body={"model": REPO, "replicas": count})
        assert reply.error[0] == 400
        assert text in reply.json["message"]
    reply = await served.change(f"{BASE}/pins", body={"model": GATED, "replicas": 1})
    assert reply.status in (401, 403)


async def test_what_is_kept_is_remembered(make_cache: MakeCache, serve: Serve) -> None:
    """A restart goes on keeping it; a file that makes no sense costs no start."""
    served = await serve(await make_cache("a"))
    await served.engine.downloads.open()
    await served.change(f"{BASE}/pins", body={"model": REPO, "replicas": 1})
    await eventually(
        lambda: any(job.is_over for job in served.engine.downloads.list_all()), "the copy"
    )
    await served.close()
    await served.engine.close()
    again = await serve(await make_cache("a"))
    kept = (await again.ask(f"{BASE}/pins")).json["replicas"][0]
    assert (kept["replicas"], [holder["name"] for holder in kept["holders"]]) == (1, ["a"])
    await again.close()
    await again.engine.close()
    (again.engine.root / "replicas.json").write_text('{"replicas": [{"model": 5}]}')
    third = await serve(await make_cache("a"))
    assert "replicas" not in (await third.ask(f"{BASE}/pins")).json
