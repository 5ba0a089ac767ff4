"""
Owns the tests of engine.access: public proofs, revocation, grants.

Knows nothing of bytes.
Invariants: time is a ManualClock's; the hub counts what it was asked.
Source: engine/access.py; design.md §7.
"""

from __future__ import annotations

import asyncio
import logging

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.ratelimit import RETRY_AFTER_S_MAX
from p2pcache.core.refs import ModelReference
from p2pcache.core.snapshot import Snapshot
from p2pcache.errors import (
    GatedRepositoryError,
    RepositoryNotFoundError,
    SourceError,
    UpstreamUnreachableError,
)
from tests.engine.conftest import GATED, OTHER_TOKEN, PRIVATE, REPO, TOKEN, MakeCache
from tests.engine.engine import Engine
from tests.hub import Hub, Repository

DAY_S = 86_400.0
ALLOWED = Credentials(TOKEN)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
async def engine(make_cache: MakeCache, clock: ManualClock) -> Engine:
    """Open an engine with that clock."""
    return await make_cache(clock=clock)


async def resolve(engine: Engine, repo: str, token: str | None = None) -> Snapshot:
    """Return a snapshot."""
    reference = ModelReference.parse(repo)
    return (await engine.cache.librarian.resolve(reference, Credentials(token))).snapshot


def count_heads(hub: Hub) -> int:
    """Return how often the hub was asked for access."""
    return hub.stats.count_requests(method="HEAD", route="resolve")


async def test_public_proof_lasts_a_day(engine: Engine, hub: Hub, clock: ManualClock) -> None:
    """One anonymous HEAD proves a day; the next day needs another."""
    snapshot = await resolve(engine, REPO)
    for _ in range(3):
        assert await engine.cache.access.is_public(snapshot)
    clock.advance(DAY_S - 1)
    assert await engine.cache.access.is_public(snapshot)
    assert count_heads(hub) == 1
    clock.advance(2)
    assert await engine.cache.access.is_public(snapshot)
    assert count_heads(hub) == 2


async def test_public_proof_asks_anonymously_whoever_calls(engine: Engine, hub: Hub) -> None:
    """The proof of a public snapshot never carries the caller's token."""
    snapshot = await resolve(engine, REPO)
    assert await engine.cache.access.check_may_read(snapshot, ALLOWED)
    heads = [r for r in hub.stats.recorded if r.method == "HEAD"]
    assert [r.headers.get("authorization") for r in heads] == [None]


async def test_public_snapshot_that_was_closed_is_revoked_at_the_next_question(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """A refusal to an anonymous caller takes the proof away at once, and the index knows."""
    repository = Repository("org/opened", {"a.txt": b"a"}, tokens=[TOKEN])
    hub.add(repository)
    snapshot = await resolve(engine, "org/opened")
    assert await engine.cache.access.is_public(snapshot)
    repository.private = True
    clock.advance(DAY_S + 1)
    assert not await engine.cache.access.is_public(snapshot)
    row = await engine.context.index.call(lambda i: i.catalogue.find_snapshot(snapshot.id))
    assert row is not None
    assert row.public_wall_s is None
    with pytest.raises(RepositoryNotFoundError):
        await engine.cache.access.check_may_read(snapshot, ANONYMOUS)


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
async def test_hub_that_fails_is_never_a_yes(
    engine: Engine, hub: Hub, clock: ManualClock, status: int
) -> None:
    """A hub that cannot serve proves nothing, and nobody gets in."""
    snapshot = await resolve(engine, REPO)
    hub.set_faults(refuse_status=status, routes=["resolve"])
    assert not await engine.cache.access.is_public(snapshot)
    with pytest.raises(SourceError):
        await engine.cache.access.check_may_read(snapshot, ANONYMOUS)
    hub.set_faults()
    clock.advance(2 * RETRY_AFTER_S_MAX)
    assert await engine.cache.access.check_may_read(snapshot, ANONYMOUS)


async def test_older_yes_stands_while_the_hub_is_away(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """What was public yesterday stays readable when the hub does not answer today."""
    snapshot = await resolve(engine, REPO)
    assert await engine.cache.access.is_public(snapshot)
    clock.advance(2 * DAY_S)
    await hub.set_listening(hub=False, cdn=False)
    assert await engine.cache.access.is_public(snapshot)


@pytest.mark.parametrize("fault", ["html_body"])
async def test_portal_that_answers_200_is_never_a_yes(engine: Engine, hub: Hub, fault: str) -> None:
    """A sign-in page in place of the file proves nothing."""
    snapshot = await resolve(engine, GATED)
    hub.set_faults(**{fault: True, "routes": ["resolve"]})
    assert not await engine.cache.access.is_public(snapshot)
    with pytest.raises(SourceError):
        await engine.cache.access.check_may_read(snapshot, ANONYMOUS)


async def test_private_repository_without_files_is_not_public(engine: Engine, hub: Hub) -> None:
    """An empty file list gives nothing to ask for; the repository itself is asked for instead."""
    hub.add(Repository("org/bare", {}, private=True, tokens=[TOKEN]))
    snapshot = await resolve(engine, "org/bare", TOKEN)
    assert snapshot.files == ()
    assert not await engine.cache.access.is_public(snapshot)
    assert not await engine.cache.access.check_may_read(snapshot, ALLOWED)
    with pytest.raises(RepositoryNotFoundError):
        await engine.cache.access.check_may_read(snapshot, ANONYMOUS)


@pytest.mark.parametrize(
    ("repo", "error"), [(GATED, GatedRepositoryError), (PRIVATE, RepositoryNotFoundError)]
)
async def test_grant_is_for_the_token_that_the_hub_accepted(
    engine: Engine, repo: str, error: type[Exception]
) -> None:
    """One caller's yes says nothing about another token or none."""
    snapshot = await resolve(engine, repo, TOKEN)
    assert not await engine.cache.access.check_may_read(snapshot, ALLOWED)
    for other in (ANONYMOUS, Credentials(OTHER_TOKEN)):
        with pytest.raises(error):
            await engine.cache.access.check_may_read(snapshot, other)


async def test_grant_expires_after_a_minute(engine: Engine, hub: Hub, clock: ManualClock) -> None:
    """Within 60 s the hub is not asked again; after them it is, and may refuse."""
    snapshot = await resolve(engine, GATED, TOKEN)
    await engine.cache.access.check_may_read(snapshot, ALLOWED)
    asked = count_heads(hub)
    clock.advance(59)
    await engine.cache.access.check_may_read(snapshot, ALLOWED)
    assert count_heads(hub) == asked
    repository = hub.state.catalog.find("models", GATED)
    assert repository is not None
    repository.tokens = frozenset()
    clock.advance(2)
    with pytest.raises(GatedRepositoryError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)


async def test_grant_outlives_the_hub_by_a_minute_only(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """While the hub is away a grant is good for its minute, then nobody can tell."""
    snapshot = await resolve(engine, GATED, TOKEN)
    await engine.cache.access.check_may_read(snapshot, ALLOWED)
    await hub.set_listening(hub=False, cdn=False)
    assert not await engine.cache.access.check_may_read(snapshot, ALLOWED)
    clock.advance(61)
    with pytest.raises(UpstreamUnreachableError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)


async def test_grants_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens push out the oldest grants, not the memory."""
    monkeypatch.setattr("p2pcache.engine.access.GRANTS_MAX", 3)
    snapshot = await resolve(engine, GATED, TOKEN)

    async def accept(*_: object) -> None:
        """Say yes to anybody with a token."""

    for number in range(6):
        token = Credentials(f"hf_{number}")
        monkeypatch.setattr(engine.cache.access, "is_public", _never)
        monkeypatch.setattr(engine.context.hub, "check_access", accept)
        await engine.cache.access.check_may_read(snapshot, token)
    assert len(engine.cache.access._grants) == 3


async def _never(_: object) -> bool:
    return False


async def test_questions_at_once_are_one_request(engine: Engine, hub: Hub) -> None:
    """Eight readers of a cold repository cost one anonymous HEAD, not eight."""
    snapshot = await resolve(engine, REPO)
    answers = await asyncio.gather(*(engine.cache.access.is_public(snapshot) for _ in range(8)))
    assert answers == [True] * 8
    assert count_heads(hub) == 1


async def test_token_is_in_no_file_and_no_log(
    engine: Engine, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """After a gated read, the token is in no byte of the store and no line of the log."""
    caplog.set_level(logging.DEBUG)
    assert await engine.read(GATED, "config.json", token=TOKEN)
    with pytest.raises(GatedRepositoryError):
        await engine.read(GATED, "config.json", token=OTHER_TOKEN)
    await engine.close()
    files = [path for path in engine.root.rglob("*") if path.is_file()]
    assert files
    for secret in (TOKEN, OTHER_TOKEN):
        assert [p for p in files if secret.encode() in p.read_bytes()] == []
        assert secret not in caplog.text
    assert hub.stats.token_leaks == []
