"""
Owns the tests of engine.shelf: published blobs that changed, are damaged, or are not for sharing.

Knows nothing of repositories beyond what brings a blob here.
Invariants: a damaged byte is never handed out; no descriptor is left open.
Source: engine/shelf.py; design.md §4 and §7.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import digest_of
from p2pcache.engine.shelf import take_step
from p2pcache.errors import BlobCorruptError, BlobNotFoundError, ChunkNotYetError
from p2pcache.store.quarantine import keep_good_chunks
from tests.engine.conftest import CHUNK_BYTES, FILES, GATED, REPO, TOKEN, WEIGHTS
from tests.engine.engine import Engine, eventually, list_open_files
from tests.engine.fakepeer import sha256_name
from tests.hub import Hub

BLOB = sha256_name(WEIGHTS)
DAMAGED = 7


def flip_byte(path: Path, offset: int, *, keeps_time: bool = False) -> None:
    """Change one byte of a published file."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)
    shift = 0 if keeps_time else 1_000_000_000
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + shift))


def path_of(engine: Engine, blob: BlobDigest = BLOB) -> Path:
    """Return where a blob is published."""
    return engine.context.store.path_of(blob)


async def is_whole(engine: Engine, blob: BlobDigest = BLOB) -> bool:
    """Open a blob and close it again; returns whether there was one."""
    found = await engine.cache.shelf.open_proven(blob)
    if found is None:
        return False
    os.close(found.fd)
    return True


@pytest.fixture
async def pulled(engine: Engine) -> Engine:
    """An engine that holds the model."""
    job = await engine.pull(REPO)
    assert job.error is None
    return engine


async def test_file_with_a_new_time_and_the_same_bytes_is_proven_again(
    pulled: Engine, hub: Hub
) -> None:
    """A touched file is hashed, found right, and costs the hub nothing; the next open is quick."""
    os.utime(path_of(pulled), ns=(1, 1))
    hub.stats.reset()
    assert await is_whole(pulled)
    row = await pulled.cache.shelf.find_row(BLOB)
    assert row is not None
    assert row.stamp.mtime_ns == 1
    assert hub.stats.requests_total == 0


async def test_damaged_file_keeps_its_good_chunks_and_names_this_machine(
    pulled: Engine, hub: Hub
) -> None:
    """One wrong byte costs one chunk from the hub, and the fault says where it was."""
    flip_byte(path_of(pulled), DAMAGED * CHUNK_BYTES + 5)
    assert not await is_whole(pulled)
    partial = pulled.context.store.open_partial(BLOB, Layout(len(WEIGHTS)))
    missing = set(range(partial.layout.chunk_count)) - set(partial.snapshot().have)
    partial.close()
    assert missing == {DAMAGED}
    assert [fault.reason for fault in pulled.context.blame.faults] == ["damaged here"]
    hub.stats.reset()
    assert await pulled.read(REPO, "pytorch_model.bin") == WEIGHTS
    assert hub.stats.body_bytes == CHUNK_BYTES


async def test_truncated_file_is_fetched_again(pulled: Engine, hub: Hub) -> None:
    """A file that became shorter is not handed out, and heals."""
    path = path_of(pulled)
    path.chmod(0o644)
    os.truncate(path, 5 * CHUNK_BYTES)
    assert await pulled.read(REPO, "pytorch_model.bin") == WEIGHTS


async def test_deleted_file_is_fetched_again(pulled: Engine) -> None:
    """A row without a file is forgotten, not believed."""
    path_of(pulled).unlink()
    assert not await is_whole(pulled)
    assert await pulled.cache.shelf.find_row(BLOB) is None
    assert await pulled.read(REPO, "pytorch_model.bin") == WEIGHTS


async def test_link_in_place_of_a_file_is_not_followed(pulled: Engine, tmp_path: Path) -> None:
    """Somebody's symbolic link under a blob's name is no blob."""
    other = tmp_path / "other"
    other.write_bytes(b"x" * len(WEIGHTS))
    path_of(pulled).unlink()
    path_of(pulled).symlink_to(other)
    assert not await is_whole(pulled)


async def test_unproven_row_is_hashed_before_the_first_reader(pulled: Engine) -> None:
    """A row as a rebuild leaves it is proven, with its table, by the first open."""
    row = await pulled.cache.shelf.find_row(BLOB)
    assert row is not None
    bare = replace(row, table=None, is_proven=False)
    await pulled.context.index.call(lambda i: i.blobs.put(bare))
    assert await is_whole(pulled)
    proven = await pulled.cache.shelf.find_row(BLOB)
    assert proven is not None
    assert proven.is_proven
    assert proven.table is not None


async def test_unproven_row_tells_a_peer_to_come_back_and_is_hashed_meanwhile(
    pulled: Engine,
) -> None:
    """A peer gets no byte of an unproven file; its question starts the proof."""
    row = await pulled.cache.shelf.find_row(BLOB)
    assert row is not None
    bare = replace(row, table=None, is_proven=False)
    await pulled.context.index.call(lambda i: i.blobs.put(bare))
    assert await pulled.cache.shelf.describe(BLOB) is None
    with pytest.raises(ChunkNotYetError):
        await pulled.cache.shelf.open_run(BLOB, 0, 1)
    await pulled.cache.shelf._checks.settle(BLOB)
    run = await pulled.cache.shelf.open_run(BLOB, 0, 1)
    assert run is not None
    os.close(run.fd)


async def test_run_is_the_bytes_and_digests_of_its_chunks(pulled: Engine) -> None:
    """A run spans exactly its chunks, each with its digest."""
    run = await pulled.cache.open_run(BLOB, 18, 19, None)
    content = os.pread(run.fd, run.length, run.offset)
    os.close(run.fd)
    assert content == WEIGHTS[18 * CHUNK_BYTES :]
    pieces = content[:CHUNK_BYTES], content[CHUNK_BYTES:]
    assert run.digests == tuple(map(digest_of, pieces))


async def test_run_of_changed_file_is_checked_chunk_by_chunk(pulled: Engine) -> None:
    """A peer gets good chunks of a touched file, and is told of damage instead of bad ones."""
    flip_byte(path_of(pulled), DAMAGED * CHUNK_BYTES + 5)
    run = await pulled.cache.open_run(BLOB, 0, DAMAGED - 1, None)
    os.close(run.fd)
    with pytest.raises(BlobCorruptError):
        await pulled.cache.open_run(BLOB, DAMAGED - 1, DAMAGED, None)
    await eventually(
        lambda: [f.reason for f in pulled.context.blame.faults] == ["damaged here"],
        "the whole file is hashed",
    )
    await pulled.cache.shelf._checks.settle(BLOB)
    assert await pulled.cache.shelf.describe(BLOB) is None


async def test_restricted_blob_is_invisible_to_peers(engine: Engine) -> None:
    """Gated bytes are described to nobody, sent to nobody, and readable by the owner alone."""
    job = await engine.pull(GATED, token=TOKEN)
    assert job.error is None
    content = FILES["pytorch_model.bin"] + b"secret"
    blob = sha256_name(content)
    assert path_of(engine, blob).stat().st_mode & 0o777 == 0o400
    assert await engine.cache.shelf.describe(blob) is None
    assert await engine.cache.shelf.open_run(blob, 0, 0) is None
    assert await engine.cache.shelf.find_table(blob) is None
    with pytest.raises(BlobNotFoundError):
        await engine.cache.open_chunk(digest_of(content[:CHUNK_BYTES]))
    with pytest.raises(BlobNotFoundError):
        await engine.cache.get_table(blob)


async def test_note_public_opens_a_restricted_blob(engine: Engine) -> None:
    """Once its repository is public, the file is readable by all and shared."""
    await engine.pull(GATED, token=TOKEN)
    blob = sha256_name(FILES["pytorch_model.bin"] + b"secret")
    await engine.cache.shelf.note_public(blob)
    assert path_of(engine, blob).stat().st_mode & 0o777 == 0o444
    assert await engine.cache.shelf.describe(blob) is not None
    assert await is_whole(engine, blob)


async def test_reader_who_leaves_during_a_check_leaves_no_descriptor(
    pulled: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that goes while its file is hashed again costs nothing."""
    os.utime(path_of(pulled), ns=(1, 1))
    begun, may_end = threading.Event(), threading.Event()
    hold_hashing(monkeypatch, begun, may_end)
    reader = asyncio.create_task(pulled.cache.shelf.open_proven(BLOB))
    await asyncio.to_thread(begun.wait, 5)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    may_end.set()
    await pulled.cache.shelf._checks.settle(BLOB)
    assert not [name for name in list_open_files(pulled.root) if "/blobs/" in name]


def hold_hashing(
    monkeypatch: pytest.MonkeyPatch, begun: threading.Event, may_end: threading.Event
) -> None:
    """Let hashing a file wait for an event."""

    def held(*arguments: object) -> object:
        begun.set()
        may_end.wait(5)
        return take_step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("p2pcache.engine.shelf.take_step", held)


async def test_second_reader_of_a_damaged_file_waits_until_its_good_chunks_are_kept(
    pulled: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting a damaged file aside and fetching it again do not work on the same partial."""
    flip_byte(path_of(pulled), DAMAGED * CHUNK_BYTES + 5)
    begun, may_end = threading.Event(), threading.Event()

    def held(*arguments: object) -> None:
        begun.set()
        may_end.wait(5)
        keep_good_chunks(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("p2pcache.engine.shelf.keep_good_chunks", held)
    checks, waiting = pulled.cache.shelf._checks, []
    run = checks.run

    async def note_wait(key: Hashable, work: Callable[[], Awaitable[bool]]) -> bool:
        waiting.append(key)
        return await run(key, work)

    monkeypatch.setattr(checks, "run", note_wait)
    hub.stats.reset()
    first = asyncio.create_task(pulled.read(REPO, "pytorch_model.bin"))
    await asyncio.to_thread(begun.wait, 5)
    second = asyncio.create_task(pulled.read(REPO, "pytorch_model.bin"))
    await eventually(lambda: len(waiting) == 2, "both wait for the check")
    assert pulled.cache.fetches.find(BLOB) is None
    may_end.set()
    assert set(await asyncio.gather(first, second)) == {WEIGHTS}
    assert hub.stats.body_bytes == CHUNK_BYTES


async def test_chunk_by_its_hash_comes_from_a_public_blob(pulled: Engine) -> None:
    """Any chunk of a public blob is found by its digest; unknown ones are not."""
    run = await pulled.cache.open_chunk(digest_of(WEIGHTS[:CHUNK_BYTES]))
    assert os.pread(run.fd, run.length, run.offset) == WEIGHTS[:CHUNK_BYTES]
    os.close(run.fd)
    with pytest.raises(BlobNotFoundError):
        await pulled.cache.open_chunk(digest_of(b"never seen"))
