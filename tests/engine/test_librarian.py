"""
Owns the tests of engine.librarian: what a revision means, and who is asked for it.

Knows nothing of bytes.
Invariants: time is a ManualClock's where it matters; the hub and the peers count their requests.
Source: engine/librarian.py; design.md §5 step ③ and §7.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import replace
from urllib.parse import quote

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.credentials import Credentials
from p2pcache.core.digest import BlobDigest
from p2pcache.core.messages import snapshot_to_json
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.core.rendezvous import find_owner
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.librarian import Resolved
from p2pcache.engine.refusals import REFUSAL_TTL_S
from p2pcache.errors import (
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SourceError,
    UpstreamProtocolError,
    UpstreamUnreachableError,
)
from tests.engine.conftest import FILES, PRIVATE, REPO, TOKEN, MakeCache, MakePeer
from tests.engine.engine import Engine
from tests.engine.fakepeer import FakePeer
from tests.hub import Hub, Repository

TTL_S = 60.0
ANYBODY = Credentials()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
async def engine(make_cache: MakeCache, clock: ManualClock) -> Engine:
    """Open an engine with that clock."""
    return await make_cache(clock=clock)


async def resolve(engine: Engine, text: str, token: str | None = None) -> Resolved:
    """Resolve a reference."""
    return await engine.cache.librarian.resolve(ModelReference.parse(text), Credentials(token))


def find_repository(hub: Hub, repo: str = REPO) -> Repository:
    """Return a repository of the hub."""
    found = hub.state.catalog.find("models", repo)
    assert found is not None
    return found


def snapshot_path(repo: str, revision: str) -> str:
    """Return where a peer has a file list."""
    return f"/v1/snapshots/hf/{quote(repo, safe='')}/{quote(revision, safe='')}"


async def test_branch_is_asked_for_once_per_ttl(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """Within a minute one question to the hub is enough; after it another is asked."""
    for _ in range(3):
        await resolve(engine, REPO)
    clock.advance(TTL_S - 1)
    await resolve(engine, REPO)
    assert hub.stats.count_requests(route="revision") == 1
    clock.advance(1)
    await resolve(engine, REPO)
    assert hub.stats.count_requests(route="revision") == 2
    assert hub.stats.count_requests(route="tree") == 1


async def test_branch_that_moved_is_seen_after_the_ttl(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """A new commit shows once the old answer is a minute old."""
    before = await resolve(engine, REPO)
    find_repository(hub).add_commit({"new.txt": b"new"})
    assert (await resolve(engine, REPO)).snapshot.id == before.snapshot.id
    clock.advance(TTL_S)
    after = await resolve(engine, REPO)
    assert [entry.path for entry in after.snapshot.files if entry.path == "new.txt"]
    assert not after.is_stale


async def test_callers_at_once_share_one_question(engine: Engine, hub: Hub) -> None:
    """Ten cold callers cause one resolve and one listing."""
    await asyncio.gather(*(resolve(engine, REPO) for _ in range(10)))
    assert hub.stats.count_requests(route="revision") == 1
    assert hub.stats.count_requests(route="tree") == 1


async def test_stale_answer_stands_while_the_hub_is_away(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """What is public is answered and marked stale; when the hub is back it is fresh again."""
    before = await resolve(engine, REPO)
    assert await engine.cache.access.is_public(before.snapshot)
    await hub.set_listening(hub=False, cdn=False)
    clock.advance(TTL_S)
    stale = await resolve(engine, REPO)
    assert (stale.snapshot.id, stale.is_stale) == (before.snapshot.id, True)
    await hub.set_listening()
    clock.advance(5)
    assert not (await resolve(engine, REPO)).is_stale


async def test_pinned_commit_that_is_cached_asks_nobody(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """A commit never changes: once listed, no request is ever made for it."""
    commit = (await resolve(engine, REPO)).snapshot.id.commit
    hub.stats.reset()
    clock.advance(10 * 86_400)
    await hub.set_listening(hub=False, cdn=False)
    resolved = await resolve(engine, f"{REPO}@{commit}")
    assert (resolved.snapshot.id.commit, resolved.is_stale) == (commit, False)
    assert hub.stats.requests_total == 0


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("org/none", RepositoryNotFoundError),
        (f"{REPO}@none", RevisionNotFoundError),
        (f"{REPO}@{'0' * 40}", RevisionNotFoundError),
        (PRIVATE, RepositoryNotFoundError),
    ],
)
async def test_refusal_stands_for_seconds(
    engine: Engine, hub: Hub, clock: ManualClock, reference: str, error: type[Exception]
) -> None:
    """What the hub does not know may appear at any moment: a no is kept for two seconds."""
    for count in (1, 2):
        for _ in range(3):
            with pytest.raises(error):
                await resolve(engine, reference)
        assert hub.stats.count_requests(route="revision") == count
        clock.advance(REFUSAL_TTL_S)
    assert await engine.cache.librarian.find_cached(ModelReference.parse(reference)) is None


async def test_repository_that_appears_is_found_by_others_at_once(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """A refusal is its caller's alone: another one finds what was made a moment later."""
    with pytest.raises(RepositoryNotFoundError):
        await resolve(engine, "org/late")
    hub.add(Repository("org/late", {"a.txt": b"a"}))
    with pytest.raises(RepositoryNotFoundError):
        await resolve(engine, "org/late")
    assert (await resolve(engine, "org/late", TOKEN)).snapshot.files
    hub.add(Repository("org/later", {"a.txt": b"a"}))
    assert (await resolve(engine, "org/later")).snapshot.files


async def test_hub_that_was_silent_is_left_alone_for_a_while(
    engine: Engine, hub: Hub, clock: ManualClock
) -> None:
    """After one unanswered question the next ones fail at once, until 5 s have passed."""
    hub.set_faults(refuse_status=503)
    with pytest.raises(UpstreamUnreachableError):
        await resolve(engine, REPO)
    asked = hub.stats.requests_total
    hub.set_faults()
    for reference in (REPO, "org/other", f"{REPO}@{'1' * 40}"):
        with pytest.raises(UpstreamUnreachableError):
            await resolve(engine, reference)
    assert hub.stats.requests_total == asked
    clock.advance(5)
    assert (await resolve(engine, REPO)).snapshot.files


async def test_listing_without_a_tree_is_read_from_the_siblings(engine: Engine, hub: Hub) -> None:
    """A hub without the tree call gives the same snapshot by the other shape."""
    hub.set_faults(tree_missing=True)
    snapshot = (await resolve(engine, REPO)).snapshot
    sizes = {entry.path: entry.size_bytes for entry in snapshot.files}
    assert sizes == {name: len(content) for name, content in FILES.items()}
    algorithms = {entry.path: entry.digest.algorithm for entry in snapshot.files}
    assert algorithms["pytorch_model.bin"] == "sha256"
    assert algorithms["config.json"] == "gitsha1"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../b", "a\x00b", "a//b", "pytorch_model.bin/x"]
)
async def test_hostile_listing_is_refused_whole(engine: Engine, hub: Hub, name: str) -> None:
    """One impossible path refuses the listing; nothing of it is kept."""
    hub.set_faults(extra_names=[name])
    with pytest.raises(UpstreamProtocolError):
        await resolve(engine, REPO)
    assert await engine.context.index.call(lambda i: i.catalogue.list_snapshots()) == []


async def test_caller_without_access_learns_nothing_of_a_cached_private_commit(
    engine: Engine,
) -> None:
    """A snapshot that one token brought here is refused to others by the gatekeeper."""
    allowed = await resolve(engine, PRIVATE, TOKEN)
    anonymous = await resolve(engine, f"{PRIVATE}@{allowed.snapshot.id.commit}")
    with pytest.raises(RepositoryNotFoundError):
        await engine.cache.access.check_may_read(anonymous.snapshot, ANYBODY)


async def give_snapshot(
    peer: FakePeer, snapshot: Snapshot, revision: str, repo: str = REPO
) -> None:
    """Let a peer answer for a revision with a file list."""
    peer.documents[snapshot_path(repo, revision)] = snapshot_to_json(snapshot)


async def test_trusted_peer_is_believed_while_the_hub_is_away(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub
) -> None:
    """With --trust-peers and no hub, what a peer says of main is the answer, marked stale."""
    knowing = await make_cache("knowing")
    snapshot = (await resolve(knowing, REPO)).snapshot
    peer = await make_peer()
    await give_snapshot(peer, snapshot, "main")
    engine = await make_cache("b", trust_peers=True)
    await engine.meet(peer.address)
    await hub.set_listening(hub=False, cdn=False)
    said = await resolve(engine, REPO)
    assert (said.snapshot, said.is_stale, said.row.is_confirmed) == (snapshot, True, False)
    assert await engine.cache.access.is_public(said.snapshot)


async def test_untrusted_peer_is_never_asked_and_the_error_says_how_to(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub
) -> None:
    """Without --trust-peers no peer is asked for a file list; the error names the option."""
    peer = await make_peer()
    engine = await make_cache("b")
    await engine.meet(peer.address)
    await hub.set_listening(hub=False, cdn=False)
    with pytest.raises(UpstreamUnreachableError, match="--trust-peers"):
        await resolve(engine, REPO)
    assert peer.asked == []


async def test_trusted_peer_that_cannot_say_since_when_is_a_last_resort(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub
) -> None:
    """While the hub answers, an old word of a peer is passed over, and the hub's no is final."""
    knowing = await make_cache("knowing")
    snapshot = (await resolve(knowing, REPO)).snapshot
    peers = [await make_peer(number=number) for number in range(1, 9)]
    engine = await make_cache("b", trust_peers=True)
    for peer in peers:
        await engine.meet(peer.address)
        message = snapshot_to_json(snapshot)
        await give_snapshot(peer, snapshot, "main")
        peer.documents[snapshot_path(REPO, "main") + "?ask=1"] = message | {"age_ms": 60_000}
    hub.stats.reset()
    resolved = await resolve(engine, REPO)
    assert (resolved.is_stale, resolved.row.is_confirmed) == (False, True)
    assert hub.stats.count_requests(route="revision") == 1
    with pytest.raises(RepositoryNotFoundError):
        await resolve(engine, "org/none")


async def test_trusted_owner_is_asked_in_place_of_the_hub(
    make_cache: MakeCache, hub: Hub, clock: ManualClock
) -> None:
    """Engines that trust each other ask the hub once, each time that a branch's answer ran out."""
    engines = [await make_cache(f"e{number}", trust_peers=True, clock=clock) for number in range(4)]
    for engine in engines:
        await engine.listen()
    for one in engines:
        for other in engines:
            if one is not other:
                await one.meet(other.address)
    for round_count in (1, 2):
        said = await asyncio.gather(*(resolve(engine, REPO) for engine in engines))
        assert len({resolved.snapshot.id for resolved in said}) == 1
        assert not any(resolved.is_stale for resolved in said)
        assert hub.stats.count_requests(route="revision") == round_count
        clock.advance(TTL_S)
    assert hub.stats.count_requests(route="tree") == 1
    hub.stats.reset()
    await asyncio.gather(*(resolve(engine, REPO, TOKEN) for engine in engines))
    assert hub.stats.count_requests(route="revision") == 4  # a token's business is nobody else's


async def test_age_of_a_peers_word_is_not_forgotten(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub, clock: ManualClock
) -> None:
    """What the hub said 50 s ago stands for 10 s more, not for a minute."""
    knowing = await make_cache("knowing")
    snapshot = (await resolve(knowing, REPO)).snapshot
    peers = [await make_peer(number=number) for number in range(1, 5)]
    engine = await make_cache("b", trust_peers=True, clock=clock)
    name = BlobDigest("sha256", hashlib.sha256(f"hf:{REPO}".encode()).hexdigest())
    others = [peer.peer_id for peer in peers]
    own_id = next(
        own_id
        for own_id in (f"{number:032x}" for number in itertools.count(100))
        if find_owner(name, 0, [own_id, *others]) != own_id
    )
    engine.context.settings = replace(engine.context.settings, peer_id=own_id)
    for peer in peers:
        await engine.meet(peer.address)
        message = snapshot_to_json(snapshot) | {"age_ms": 50_000}
        peer.documents[snapshot_path(REPO, "main") + "?ask=1"] = message
    hub.stats.reset()
    await resolve(engine, REPO)
    asked = [path for peer in peers for path in peer.asked if "snapshots" in path]
    assert len(asked) == 1
    assert hub.stats.requests_total == 0
    clock.advance(9.9)
    await resolve(engine, REPO)
    assert [path for peer in peers for path in peer.asked if "snapshots" in path] == asked
    clock.advance(0.1)
    await resolve(engine, REPO)
    assert len([path for peer in peers for path in peer.asked if "snapshots" in path]) == 2


async def test_peer_that_answers_for_something_else_is_not_believed(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub
) -> None:
    """Another repository, another commit, or no file list at all is passed over."""
    knowing = await make_cache("knowing")
    snapshot = (await resolve(knowing, REPO)).snapshot
    other_repo = Snapshot(
        SnapshotId(RepoId("hf", "models", "org/other"), snapshot.id.commit), snapshot.files
    )
    other_commit = Snapshot(SnapshotId(snapshot.id.repo, "1" * 40), snapshot.files)
    wanted = "2" * 40
    liars = [await make_peer(number=n) for n in (1, 2, 3)]
    await give_snapshot(liars[0], other_repo, "main")
    await give_snapshot(liars[1], other_commit, wanted)
    liars[2].documents[snapshot_path(REPO, "main")] = {"hub": "hf", "files": [{"path": "../x"}]}
    engine = await make_cache("b", trust_peers=True)
    for liar in liars:
        await engine.meet(liar.address)
    await hub.set_listening(hub=False, cdn=False)
    for reference in (REPO, f"{REPO}@{wanted}"):
        with pytest.raises(SourceError):
            await resolve(engine, reference)
    assert all(liar.asked for liar in liars)
    assert await engine.context.index.call(lambda i: i.catalogue.list_snapshots()) == []


async def test_answer_of_a_peer_gives_way_to_the_hubs(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub, clock: ManualClock
) -> None:
    """What a peer said of main is asked again as soon as the hub answers."""
    knowing = await make_cache("knowing")
    snapshot = (await resolve(knowing, REPO)).snapshot
    peer = await make_peer()
    await give_snapshot(peer, snapshot, "main")
    engine = await make_cache("b", trust_peers=True, clock=clock)
    await engine.meet(peer.address)
    await hub.set_listening(hub=False, cdn=False)
    await resolve(engine, REPO)
    find_repository(hub).add_commit({"new.txt": b"new"})
    await hub.set_listening()
    clock.advance(5)
    fresh = await resolve(engine, REPO)
    assert not fresh.is_stale
    assert fresh.snapshot.id != snapshot.id
