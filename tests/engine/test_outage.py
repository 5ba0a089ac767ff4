"""
Owns the check that an outage of the hub does not tell a hidden repository that is cached here from
one that nobody has.

Knows nothing of HTTP answers; tests/integration/test_access_matrix.py compares those.
Invariants: what is compared is errors and questions to the hub, asked by the same caller.
Source: engine/silence.py, access.py, librarian.py; docs/decisions/0019-how-old-a-yes-may-be.md.
"""

from __future__ import annotations

import time

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.credentials import Credentials
from p2pcache.errors import P2PCacheError, UpstreamUnreachableError
from tests.engine.conftest import FILES, OTHER_TOKEN, PRIVATE, TOKEN, MakeCache
from tests.engine.engine import Engine
from tests.hub import Hub

NAME, UNKNOWN = "config.json", "org/nobody-has-it"
STRANGERS = (None, "hf_garbage", OTHER_TOKEN)
LATENCY_S = 0.5


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silence be short."""
    monkeypatch.setattr("p2pcache.hubs.wire.RETRY_WAITS_S", (0.05, 0.1))
    monkeypatch.setattr("p2pcache.engine.silence.SILENCE_S_MIN", 0.1)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
async def engine(make_cache: MakeCache, clock: ManualClock) -> Engine:
    """Open an engine that has a private repository, for one caller."""
    opened = await make_cache(clock=clock)
    assert await opened.read(PRIVATE, NAME, token=TOKEN) == FILES[NAME] + b"secret"
    return opened


async def ask(engine: Engine, hub: Hub, repo: str, token: str | None) -> tuple[str, int]:
    """Return what a stranger is told, and how many questions that cost the hub."""
    before = hub.stats.requests_total
    with pytest.raises(P2PCacheError) as raised:
        await engine.read(repo, NAME, token=token)
    return type(raised.value).__name__, hub.stats.requests_total - before


@pytest.mark.parametrize("first", [UNKNOWN, PRIVATE])
@pytest.mark.parametrize("age_s", [0.0, 3600.0])
async def test_hub_that_was_silent_is_not_asked_for_strangers_whatever_they_name(
    engine: Engine, hub: Hub, clock: ManualClock, first: str, age_s: float
) -> None:
    """For some seconds all of them hear that it does not answer; then all hear its no."""
    clock.advance(age_s)
    hub.set_faults(refuse_status=503)
    assert (await ask(engine, hub, first, None))[0] == "UpstreamUnreachableError"
    hub.set_faults()
    for token in STRANGERS:
        told = [await ask(engine, hub, repo, token) for repo in (PRIVATE, UNKNOWN)]
        assert told == [("UpstreamUnreachableError", 0)] * 2, token
    snapshot, _ = await engine.find(PRIVATE, NAME, TOKEN)
    for token in STRANGERS:  # the same, once the hub's no was heard and is forgotten
        with pytest.raises(UpstreamUnreachableError):
            await engine.cache.access.may_list(snapshot, Credentials(token))
    clock.advance(5)
    for token in STRANGERS:
        told = [await ask(engine, hub, repo, token) for repo in (PRIVATE, UNKNOWN)]
        assert told[0][0] == told[1][0] != "UpstreamUnreachableError", token


async def test_who_was_let_in_before_is_asked_about_as_soon_as_the_hub_is_back(
    engine: Engine, hub: Hub
) -> None:
    """He knows that it is here; nobody makes him wait for the end of the others' pause."""
    hub.set_faults(refuse_status=503)
    await ask(engine, hub, UNKNOWN, None)
    with pytest.raises(UpstreamUnreachableError):
        await engine.read(PRIVATE, NAME, token=TOKEN)
    hub.set_faults()
    assert await engine.read(PRIVATE, NAME, token=TOKEN) == FILES[NAME] + b"secret"


async def test_slow_hub_is_waited_for_as_long_whatever_a_stranger_names(
    engine: Engine, hub: Hub, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch that is believed no more is not answered from here for whom it is hidden from."""
    monkeypatch.setattr("p2pcache.engine.librarian.STALE_AFTER_S", 0.05)
    clock.advance(3600)
    hub.set_faults(latency_s=LATENCY_S)
    for token in STRANGERS:
        waits = []
        for repo in (PRIVATE, UNKNOWN):
            started_s = time.monotonic()
            kind, count = await ask(engine, hub, repo, token)
            waits.append((kind, count, int((time.monotonic() - started_s) / LATENCY_S)))
        assert waits[0] == waits[1], (token, waits)
