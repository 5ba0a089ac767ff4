"""
Owns the tests of engine.claims: a blob has one writer, whoever that is.

Knows nothing of bundles or imports, which claim blobs.
Invariants: while a claim is held no fetch of the blob runs.
Source: engine/claims.py.
"""

from __future__ import annotations

import asyncio

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.engine import claims as claims_module
from p2pcache.errors import DaemonBusyError
from p2pcache.store.base import BlobFile
from tests.engine.conftest import REPO, WEIGHTS
from tests.engine.engine import Engine, eventually, let_run
from tests.engine.fakepeer import sha256_name

NAME = "pytorch_model.bin"
BLOB = sha256_name(WEIGHTS)


async def test_claim_waits_for_the_fetch_under_way(engine: Engine) -> None:
    """The claim is had when the fetch is over, not before."""
    active = await engine.start_fetch(REPO, NAME)
    assert not active.is_done
    async with engine.cache.claims.hold(BLOB):
        assert active.is_done
        assert engine.cache.claims.is_held(BLOB)
    assert not engine.cache.claims.is_held(BLOB)


async def test_claims_of_one_blob_take_turns(engine: Engine) -> None:
    """The second has it when the first is through, also when the first failed."""
    order: list[str] = []

    async def claim(name: str, *, fails: bool) -> None:
        async with engine.cache.claims.hold(BLOB):
            order.append(f"{name} begins")
            await let_run()
            order.append(f"{name} ends")
            if fails:
                raise ValueError(name)

    await asyncio.gather(
        *(claim(name, fails=name == "a") for name in "abc"), return_exceptions=True
    )
    assert order == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]
    assert not engine.cache.claims.is_held(BLOB)


async def test_claim_of_a_blob_that_stays_in_use_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever; the claim that is held is not touched."""
    monkeypatch.setattr(claims_module, "CLAIM_WAIT_S", 0.02)
    async with engine.cache.claims.hold(BLOB):
        with pytest.raises(DaemonBusyError, match="wait"):
            async with engine.cache.claims.hold(BLOB):
                pytest.fail("two hold one blob")
        assert engine.cache.claims.is_held(BLOB)


async def test_reader_waits_for_a_claim_that_began_while_it_looked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim between the look at the shelf and the fetch is noticed: no fetch begins beside it."""
    released, shelf, claims = asyncio.Event(), engine.cache.shelf, engine.cache.claims
    real, looks, wait_free, waits = shelf.open_proven, [], claims.wait_free, []

    async def hold() -> None:
        async with claims.hold(BLOB):
            await released.wait()

    async def note_wait(blob: BlobDigest) -> None:
        waits.append(claims.is_held(blob))
        await wait_free(blob)

    holders: list[asyncio.Task[None]] = []

    async def open_proven(blob: object) -> BlobFile | None:
        looks.append(blob)
        if len(looks) == 2:  # the look after room was made, right before the fetch
            holders.append(asyncio.create_task(hold()))
            await asyncio.sleep(0)
        return await real(BLOB)

    monkeypatch.setattr(shelf, "open_proven", open_proven)
    monkeypatch.setattr(claims, "wait_free", note_wait)
    reading = asyncio.create_task(engine.read(REPO, NAME))
    await eventually(lambda: any(waits), "the reader waits for the claim")
    await let_run()
    assert not reading.done()
    assert engine.cache.fetches.find(BLOB) is None
    released.set()
    assert await reading == WEIGHTS
    await holders[0]
