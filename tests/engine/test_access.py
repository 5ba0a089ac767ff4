"""
Owns the tests of engine.access: public proofs, revocation, grants.

Knows nothing of bytes.
Invariants: time is a ManualClock's; the hub counts what it was asked.
Source: engine/access.py; design.md §7.
"""

from __future__ import annotations

import asyncio
import logging
from random import Random

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.ratelimit import RETRY_AFTER_S_MAX
from p2pcache.core.refs import ModelReference, SnapshotId
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.fresh import FreshFlight
from p2pcache.engine.grants import Grants
from p2pcache.errors import (
    EntryNotFoundError,
    GatedRepositoryError,
    RepositoryNotFoundError,
    SourceError,
    UpstreamAuthError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)
from tests.engine.conftest import GATED, OTHER_TOKEN, PRIVATE, REPO, TOKEN, MakeCache
from tests.engine.engine import Engine, eventually
from tests.hub import Hub, Repository

DAY_S, HOUR_S, MINUTE_S = 86_400.0, 3_600.0, 60.0
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


async def test_public_proof_lasts_a_minute(engine: Engine, hub: Hub, clock: ManualClock) -> None:
    """One anonymous HEAD is enough for a minute; the next minute needs another."""
    snapshot = await resolve(engine, REPO)
    for _ in range(3):
        assert await engine.cache.access.is_public(snapshot)
    clock.advance(MINUTE_S - 1)
    assert await engine.cache.access.is_public(snapshot)
    assert count_heads(hub) == 1
    clock.advance(2)
    assert await engine.cache.access.is_public(snapshot)
    assert count_heads(hub) == 2


async def test_public_proof_asks_anonymously_whoever_calls(engine: Engine, hub: Hub) -> None:
    """The proof never carries the caller's token; that is asked about apart, once a minute."""
    snapshot = await resolve(engine, REPO)
    for _ in range(3):
        assert await engine.cache.access.check_may_read(snapshot, ALLOWED)
    heads = [r for r in hub.stats.recorded if r.method == "HEAD"]
    assert [r.headers.get("authorization") for r in heads] == [None, "<present>"]


async def test_token_that_is_nobodys_is_refused_for_public_files_too(
    engine: Engine, hub: Hub
) -> None:
    """Who thinks that he is signed in hears that he is not, as the hub would tell him."""
    snapshot = await resolve(engine, REPO)
    with pytest.raises(UpstreamAuthError, match="Invalid credentials"):
        await engine.cache.access.check_may_read(snapshot, Credentials("hf_nobodys"))
    await hub.set_listening(hub=False, cdn=False)
    assert await engine.cache.access.check_may_read(snapshot, Credentials("hf_nobodys"))


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
    engine: Engine,
    hub: Hub,
    clock: ManualClock,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hub that cannot serve proves nothing, and nobody gets in."""
    monkeypatch.setattr("p2pcache.hubs.wire.RETRY_WAITS_S", (0.01,) * 3)
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


async def test_token_is_asked_about_each_time(engine: Engine, hub: Hub) -> None:
    """A token that the hub no longer lets in is refused at once, whatever it was granted."""
    snapshot = await resolve(engine, GATED, TOKEN)
    for _ in range(3):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)
    repository = hub.state.catalog.find("models", GATED)
    assert repository is not None
    repository.tokens = frozenset()
    with pytest.raises(GatedRepositoryError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)


async def test_token_is_asked_about_with_the_file_that_is_wanted(engine: Engine, hub: Hub) -> None:
    """A yes for one file is none for another: the list says what it likes."""
    snapshot = await resolve(engine, GATED, TOKEN)
    await engine.cache.access.check_may_read(snapshot, ALLOWED, "config.json")
    assert [r.path for r in hub.stats.recorded if r.headers.get("authorization")][-1].endswith(
        f"/resolve/{snapshot.id.commit}/config.json"
    )


async def test_grant_stands_for_a_minute_while_the_quota_is_short(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """With little left to ask, a yes of the last minute is enough; an older one is not."""
    snapshot = await resolve(engine, GATED, TOKEN)
    await engine.cache.access.check_may_read(snapshot, ALLOWED)
    asked = count_heads(hub)
    await hub.set_listening(hub=False, cdn=False)
    for advance_s in (0, 59):
        clock.advance(advance_s)
        use_up_quota(engine)
        assert not await engine.cache.access.check_may_read(snapshot, ALLOWED)
    assert count_heads(hub) == asked
    clock.advance(2)
    use_up_quota(engine)
    with pytest.raises(SourceError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)


def use_up_quota(engine: Engine) -> None:
    """Let the hub have said that nothing is left to ask for files."""
    policy = {"RateLimit": '"resolvers";r=0;t=250', "RateLimit-Policy": '"resolvers";q=3000;w=300'}
    engine.context.budget.note_answer("resolve", 200, policy)


async def test_pause_that_the_hub_wants_is_no_yes(engine: Engine, clock: ManualClock) -> None:
    """A hub that answers 429 lets nobody in, whatever it said a moment ago."""
    snapshot = await resolve(engine, GATED, TOKEN)
    await engine.cache.access.check_may_read(snapshot, ALLOWED)
    engine.context.budget.note_answer("resolve", 429, {"Retry-After": "200"})
    with pytest.raises(UpstreamRateLimitedError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)


async def test_hub_away_means_no_whatever_was_granted(engine: Engine, hub: Hub) -> None:
    """A caller whom the hub let in a moment ago is refused when it cannot be asked."""
    snapshot = await resolve(engine, GATED, TOKEN)
    await engine.cache.access.check_may_read(snapshot, ALLOWED)
    await hub.set_listening(hub=False, cdn=False)
    with pytest.raises(UpstreamUnreachableError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)
    assert engine.cache.access.grace_answers_total == 0


async def test_grace_is_for_its_time_and_counted(
    make_cache: MakeCache, hub: Hub, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Under a grace a yes outlives the hub; each use is counted and logged, and it ends."""
    engine = await make_cache(clock=clock, offline_grace_s=600.0)
    snapshot = await resolve(engine, GATED, TOKEN)
    await engine.cache.access.check_may_read(snapshot, ALLOWED)
    await hub.set_listening(hub=False, cdn=False)
    clock.advance(599)
    assert not await engine.cache.access.check_may_read(snapshot, ALLOWED)
    assert engine.cache.access.grace_answers_total == 1
    assert "is given out under --offline-grace" in caplog.text
    assert TOKEN not in caplog.text
    for stranger in (Credentials(OTHER_TOKEN), ANONYMOUS):
        with pytest.raises(UpstreamUnreachableError):
            await engine.cache.access.check_may_read(snapshot, stranger)
    clock.advance(2)
    with pytest.raises(UpstreamUnreachableError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)
    assert engine.cache.access.grace_answers_total == 1


async def test_grace_is_not_for_whom_the_hub_refused(
    make_cache: MakeCache, hub: Hub, clock: ManualClock
) -> None:
    """A refusal takes the grant back: a hub that goes away afterwards changes nothing."""
    engine = await make_cache(clock=clock, offline_grace_s=600.0)
    snapshot = await resolve(engine, GATED, TOKEN)
    await engine.cache.access.check_may_read(snapshot, ALLOWED)
    repository = hub.state.catalog.find("models", GATED)
    assert repository is not None
    repository.tokens = frozenset()
    with pytest.raises(GatedRepositoryError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)
    await hub.set_listening(hub=False, cdn=False)
    with pytest.raises(UpstreamUnreachableError):
        await engine.cache.access.check_may_read(snapshot, ALLOWED)


async def test_refusal_takes_back_the_whole_repository(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """What the hub refuses at one commit is not shared of another: bytes, modes, the tree."""
    repository = Repository("org/opened", {"a.txt": b"a"})
    hub.add(repository)
    old = await resolve(engine, "org/opened")
    assert await engine.read("org/opened", "a.txt") == b"a"
    repository.add_commit({"b.txt": b"b"})
    clock.advance(MINUTE_S + 1)
    assert await engine.read("org/opened", "b.txt") == b"b"
    new = await resolve(engine, "org/opened")
    assert old.id != new.id
    blob_paths = [engine.context.store.path_of(entry.digest) for entry in new.files]
    folder = engine.context.tree.repo_path(new.id.repo)
    await eventually(lambda: blob_paths[1].exists() and folder.exists(), "publishing")
    assert (folder.stat().st_mode & 0o777, blob_paths[1].stat().st_mode & 0o777) == (0o755, 0o444)
    repository.private, repository.tokens = True, frozenset([TOKEN])
    clock.advance(MINUTE_S + 1)
    assert not await engine.cache.access.is_public(new)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in blob_paths if path.exists()} == {0o400}
    assert await engine.cache.describe(new.files[1].digest) is None
    age_s = await engine.cache.access.visibility.find_age_s(old.id)
    assert age_s is None


async def test_refusal_heard_elsewhere_takes_back_what_was_public(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """Whoever hears a no makes us ask again as anybody, before the minute is over."""
    repository = Repository("org/opened", {"a.txt": b"a"})
    hub.add(repository)
    snapshot = await resolve(engine, "org/opened")
    assert await engine.cache.access.is_public(snapshot)
    repository.private = True
    await engine.cache.access.note_refused(snapshot.id.repo, ANONYMOUS)
    for _ in range(500):
        if await engine.cache.access.visibility.find_age_s(snapshot.id) is None:
            break
        await asyncio.sleep(0.01)
    assert not await engine.cache.access.is_public(snapshot)


async def test_what_is_shared_is_asked_for_again_within_an_hour(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """What nobody on this machine asks for is looked after too, for the peers' sake."""
    repository = Repository("org/opened", {"a.txt": b"a"})
    hub.add(repository)
    snapshot = await resolve(engine, "org/opened")
    await engine.read("org/opened", "a.txt")
    visibility = engine.cache.access.visibility
    assert await engine.cache.describe(snapshot.files[0].digest) is not None
    clock.advance(HOUR_S - 1)
    assert await visibility.sweep() == 0
    repository.private = True
    clock.advance(2)
    assert await visibility.sweep() == 1
    assert await engine.cache.describe(snapshot.files[0].digest) is None
    assert await visibility.sweep() == 0


async def test_restricted_blob_is_not_public_for_being_in_a_public_list(
    engine: Engine, hub: Hub
) -> None:
    """Who lists another's file by its digest gets it only if the hub gives it to him there."""
    secret = Random(3).randbytes(100_000)
    hub.add(Repository("org/secret", {"w.bin": secret}, private=True, tokens=[TOKEN]))
    assert await engine.read("org/secret", "w.bin", token=TOKEN) == secret
    liar = Repository("org/liar", {"w.bin": secret, "z.bin": bytes(200_000)})
    hub.add(liar)
    hub.set_faults(refuse_status=404, routes=["cdn"])
    snapshot = await resolve(engine, "org/liar")
    real = engine.context.hub.check_access

    async def check(snapshot_id: SnapshotId, path: str, credentials: Credentials) -> None:
        """Refuse the file that the liar only points to, as a hub that never got its bytes."""
        if path == "w.bin" and snapshot_id == snapshot.id:
            raise EntryNotFoundError("no such object")
        await real(snapshot_id, path, credentials)

    engine.context.hub.check_access = check  # type: ignore[method-assign]
    with pytest.raises(EntryNotFoundError):
        await engine.read("org/liar", "w.bin")
    assert await engine.cache.describe(snapshot.get_file("w.bin").digest) is None


async def test_silent_hub_is_asked_behind_the_readers_back(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """While the hub is away an older yes stands without a wait; its return is noticed."""
    snapshot = await resolve(engine, REPO)
    assert await engine.cache.access.is_public(snapshot)
    clock.advance(MINUTE_S + 1)
    hub.set_faults(refuse_status=503, routes=["resolve"])
    assert await engine.cache.access.is_public(snapshot)
    asked = count_heads(hub)
    for _ in range(5):
        assert await engine.cache.access.is_public(snapshot)
    assert count_heads(hub) == asked
    hub.set_faults()
    clock.advance(2 * RETRY_AFTER_S_MAX)
    assert await engine.cache.access.is_public(snapshot)
    for _ in range(500):
        if engine.cache.access.visibility.is_fresh(
            await engine.cache.access.visibility.find_age_s(snapshot.id)
        ):
            break
        await asyncio.sleep(0.01)
    assert count_heads(hub) == asked + 1


def test_grants_forget_when_a_clock_goes_back() -> None:
    """A yes is as old as the clock that went further says; one that went back has none."""
    clock = ManualClock()
    grants = Grants(clock)
    grants.note(ALLOWED, "hf")
    clock.advance(5)
    assert grants.find_age_s(ALLOWED, "hf") == 5
    clock._wall_s += 100  # the machine slept: only one clock moved
    assert grants.find_age_s(ALLOWED, "hf") == 105
    clock._wall_s -= 200
    assert grants.find_age_s(ALLOWED, "hf") is None


def test_what_one_hub_says_of_a_token_holds_at_no_other() -> None:
    """A hub that lets anybody pass makes nobody known elsewhere, nor does its no put him out."""
    grants, commit = Grants(ManualClock()), "0" * 40
    theirs, ours = (
        SnapshotId(ModelReference.parse(name).repo, commit) for name in ("ms:org/a", "org/a")
    )
    grants.note(ALLOWED, theirs.repo.hub)
    grants.note(ALLOWED, theirs)
    assert grants.find_age_s(ALLOWED, ours.repo.hub) is None
    grants.note(ALLOWED, ours.repo.hub)
    grants.note(ALLOWED, ours)
    grants.drop_hub(ALLOWED, theirs.repo.hub)
    assert grants.find_age_s(ALLOWED, theirs) is None
    assert grants.find_age_s(ALLOWED, theirs.repo.hub) is None
    assert grants.find_age_s(ALLOWED, ours) == 0
    assert grants.find_age_s(ALLOWED, ours.repo.hub) == 0


def test_grants_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens push out the oldest grants, not the memory."""
    monkeypatch.setattr("p2pcache.engine.grants.GRANTS_MAX", 3)
    grants = Grants(ManualClock())
    for number in range(6):
        grants.note(Credentials(f"hf_{number}"), "hf")
    assert len(grants) == 3


async def test_fresh_flight_gives_nobody_an_answer_from_before_he_asked() -> None:
    """Who comes while a question is under way joins the next one, with all who wait."""
    flight, gate = FreshFlight(), asyncio.Event()
    begun: list[int] = []

    async def ask() -> None:
        """Take as long as the gate is closed."""
        begun.append(len(begun))
        await gate.wait()

    first = asyncio.create_task(flight.run("k", ask))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [asyncio.create_task(flight.run("k", ask)) for _ in range(5)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert begun == [0]
    gate.set()
    await asyncio.gather(first, *later)
    assert begun == [0, 1]
    await flight.close()


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
