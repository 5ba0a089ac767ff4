"""
Owns the check that nobody gets what is hidden here by naming its digest in a list of his own.

Knows nothing of HTTP answers.
Invariants: the hub that lies says that the file is public, and lists it with another's digest and
size; it does not have the bytes.
Source: engine/visibility.py (prove_file); design.md §7 (knowing a digest is no right).
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import IntegrityError
from tests.engine.conftest import CHUNK_BYTES, TOKEN, MakeCache
from tests.engine.engine import Engine, eventually, let_run
from tests.engine.fakepeer import sha256_name
from tests.hub import Hub, Repository

SECRET = Random(41).randbytes(9 * CHUNK_BYTES + 5)
SMALL_SECRET = Random(42).randbytes(3000)
HIDDEN, LIAR, HONEST = "org/secret", "org/liar", "org/honest"
FILES = {"w.bin": SECRET, "small.bin": SMALL_SECRET}


@pytest.fixture
async def engine(make_cache: MakeCache, hub: Hub) -> Engine:
    """Open an engine; its hub has a secret, its bytes in the open, and a liar."""
    hub.add(Repository(HIDDEN, FILES, private=True, tokens=[TOKEN]))
    hub.add(Repository(HONEST, FILES))
    hub.add(Repository(LIAR, {name: bytes(len(content)) for name, content in FILES.items()}))
    opened = await make_cache()
    real = opened.context.hub.list_files

    async def lie(snapshot_id: SnapshotId, credentials: Credentials) -> Snapshot:
        """Give the liar's files the digests of the secret ones."""
        snapshot = await real(snapshot_id, credentials)
        if snapshot_id.repo.name != LIAR:
            return snapshot
        entries = [
            FileEntry(entry.path, entry.size_bytes, sha256_name(FILES[entry.path]), entry.tree_oid)
            for entry in snapshot.files
            if entry.path in FILES
        ]
        return Snapshot.of(snapshot_id, entries)

    opened.context.hub.list_files = lie  # type: ignore[method-assign]
    return opened


@pytest.mark.parametrize("name", FILES)
async def test_list_that_names_a_hidden_files_digest_opens_nothing(
    engine: Engine, name: str
) -> None:
    """The hub says that anybody may have it; it cannot show a few of its bytes."""
    assert await engine.read(HIDDEN, name, token=TOKEN) == FILES[name]
    with pytest.raises(IntegrityError):
        await engine.read(LIAR, name)
    assert await engine.cache.describe(sha256_name(FILES[name])) is None


@pytest.mark.parametrize("name", FILES)
async def test_hidden_file_that_the_hub_really_gives_to_anybody_is_public(
    engine: Engine, hub: Hub, name: str
) -> None:
    """It is not fetched again: a few bytes at places of our choice say that it is the same."""
    assert await engine.read(HIDDEN, name, token=TOKEN) == FILES[name]
    hub.stats.reset()
    assert await engine.read(HONEST, name) == FILES[name]
    assert hub.stats.body_bytes <= max(len(SMALL_SECRET), len(SECRET) // 4)
    assert await engine.cache.describe(sha256_name(FILES[name])) is not None


async def test_list_that_names_what_is_being_fetched_for_somebody_else_opens_nothing(
    engine: Engine, hub: Hub
) -> None:
    """What has come of it is not shown to anybody before he would get it from the hub."""
    hub.set_faults(hang_after_bytes=CHUNK_BYTES, paths=f"{HIDDEN}/*")
    snapshot, entry = await engine.find(HIDDEN, "w.bin", TOKEN)
    credentials = Credentials(TOKEN)
    active = await engine.cache.fetches.start(snapshot, entry, credentials, is_public=False)
    await eventually(lambda: active.fetch.state.held_bytes >= CHUNK_BYTES, "some chunks")
    reading = asyncio.create_task(engine.read(LIAR, "w.bin"))
    await hub.wait_for(lambda stats: stats.requests["HEAD resolve"] > 0)
    await let_run()
    assert not reading.done()
    assert not active.fetch.state.order.is_public
    hub.set_faults()
    with pytest.raises(IntegrityError):
        await reading
    assert not active.fetch.state.order.is_public
    assert await engine.read(HIDDEN, "w.bin", token=TOKEN) == SECRET
