"""
Owns the tests of the store's room: engine.space with rooms, holds, evictor, gauge.

Knows nothing of HTTP.
Invariants: a refused pull changes nothing; what is protected is there afterwards; no row without
its file; after gc no file that nothing lists.
Source: engine/space.py; design.md §4.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.eviction import EvictionPlan, Kind, Step, plan_eviction, plan_removal
from p2pcache.core.refs import ModelReference, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.engine import jobrun as jobrun_module
from p2pcache.engine import rooms as rooms_module
from p2pcache.engine import space as space_module
from p2pcache.engine.downloads import FINAL_STATES, Job, JobOrder, JobState
from p2pcache.engine.evictor import limit_space
from p2pcache.engine.holds import Room
from p2pcache.engine.librarian import Resolved
from p2pcache.errors import NotFoundError, ProtectedError, StoreError, StoreFullError
from p2pcache.store.catalogue import RefRow, SnapshotRow
from p2pcache.store.index import Index
from p2pcache.store.rebuild import recover
from tests.engine.conftest import CHUNK_BYTES, MakeCache
from tests.engine.engine import Engine, eventually, let_run
from tests.hub import Hub, Repository
from tests.store.rows import list_rows

WEIGHTS_BYTES = 20 * CHUNK_BYTES
# A block of the disk for the configuration, which all three share.
SMALL_BYTES = 4096
MODEL_BYTES = WEIGHTS_BYTES + SMALL_BYTES
CONFIG = b'{"model_type": "bert"}\n'
CONTENTS = {name: Random(name).randbytes(WEIGHTS_BYTES) for name in "abc"}
A, B, C = (f"org/{name}" for name in "abc")
ONE_AND_A_HALF = 3 * MODEL_BYTES // 2


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """Run a hub with three models of one size that share their configuration."""
    repositories = [
        Repository(f"org/{name}", {"config.json": CONFIG, "model.bin": content})
        for name, content in CONTENTS.items()
    ]
    async with Hub(repositories) as running:
        yield running


def list_files(engine: Engine) -> dict[str, tuple[int, int]]:
    """Return size and inode of every file in the store but for the index."""
    return {
        str(path.relative_to(engine.root)): (path.lstat().st_size, path.lstat().st_ino)
        for path in sorted(engine.root.rglob("*"))
        if (path.is_file() or path.is_symlink()) and "index.sqlite" not in path.name
    }


async def until_models(engine: Engine, repos: list[str]) -> None:
    """Wait until exactly these models are here."""
    async with asyncio.timeout(20):
        for _ in iter(int, 1):
            if await list_models(engine) == repos:
                return
            await asyncio.sleep(0.01)


def measure_disk(engine: Engine, folders: Iterable[str] = ("blobs", "partial")) -> int:
    """Return what du says of folders of a store; a file that goes meanwhile takes nothing."""
    bytes_taken = 0
    for path in (path for folder in folders for path in (engine.root / folder).rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            bytes_taken += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0
    return bytes_taken


async def list_models(engine: Engine) -> list[str]:
    """Return the repositories whose weights are here, by the index and on the disk."""

    def look(index: Index) -> list[str]:
        found = []
        for snapshot_id in index.catalogue.list_snapshots():
            row = index.catalogue.find_snapshot(snapshot_id)
            assert row is not None
            weights = row.snapshot.get_file("model.bin").digest
            has_row = index.blobs.find(weights) is not None
            assert has_row == engine.context.store.path_of(weights).exists()
            found += [snapshot_id.repo.name] if has_row else []
        return sorted(found)

    return await engine.context.index.call(look)


async def check_consistent(engine: Engine) -> None:
    """Assert that every row has its file and, after gc, that every file and link is listed."""

    def read(index: Index) -> tuple[set[Path], set[str], set[str]]:
        rows = {engine.context.store.path_of(row.blob) for row in list_rows(index)}
        snapshots = index.catalogue.list_snapshots()
        listed = {str(b.hex) for blobs in index.inventory.list_contents().values() for b in blobs}
        return rows, {snapshot_id.commit for snapshot_id in snapshots}, listed

    rows, commits, listed = await engine.context.index.call(read)
    on_disk = {path for path in (engine.root / "blobs").rglob("*") if path.is_file()}
    assert rows == on_disk
    assert {path.name for path in on_disk} <= listed
    hub = engine.root / "hub"
    assert {path.name for path in hub.glob("*/snapshots/*")} <= commits
    assert {path.stem for path in hub.glob("*/trees/*.json")} <= commits
    assert {path.read_text() for path in hub.glob("*/refs/*")} <= commits
    for link in hub.glob("*/blobs/*"):
        assert link.name in {path.name for path in on_disk}, link
    for link in hub.glob("*/snapshots/*/*"):
        assert link.exists(), link


async def find_id(engine: Engine, repo: str) -> SnapshotId:
    """Return which snapshot `main` of a repository is."""
    row = await engine.cache.librarian.find_cached(ModelReference.parse(repo))
    assert row is not None
    return row.snapshot.id


async def pin(engine: Engine, repo: str) -> None:
    """Pin `main` of a repository."""
    snapshot_id = await find_id(engine, repo)
    await engine.cache.space.pin(RefRow(snapshot_id.repo, "main", snapshot_id.commit, 1.0))


def start(engine: Engine, repo: str) -> Job:
    """Begin a download."""
    return engine.downloads.start(JobOrder(ModelReference.parse(repo)), ANONYMOUS)


async def pull(engine: Engine, *repos: str) -> None:
    """Pull some models, one after the other, each to its end."""
    for repo in repos:
        job = await engine.pull(repo)
        assert (job.state, job.error) == (JobState.DONE, None)


async def reopen(make_cache: MakeCache, engine: Engine, **options: object) -> Engine:
    """Open an engine on the same store, as the daemon does after a crash or a restart."""
    await engine.close()
    again = await make_cache(engine.root.name, **options)
    context = again.context
    await context.index.call(lambda i: recover(context.store, context.tree, i, wall_s=0.0))
    return again


# --- room for pulls ---


async def test_pull_evicts_the_longest_unused_model_for_its_room(
    make_cache: MakeCache, hub: Hub
) -> None:
    """A quota of one and a half models holds one at a time, and keeps what they share."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A, B)
    assert await list_models(engine) == [B]
    await check_consistent(engine)
    assert (await engine.cache.space.measure()).own_bytes == measure_disk(engine)
    assert engine.cache.space.evictor.evicted == {Kind.SNAPSHOT: 1}
    assert engine.cache.space.evictor.evicted_bytes == WEIGHTS_BYTES
    hub.stats.reset()
    await pull(engine, A)
    assert await list_models(engine) == [A]
    assert hub.stats.path_bytes == {f"{A}/model.bin": WEIGHTS_BYTES}


async def test_pull_that_cannot_fit_is_refused_with_the_numbers_and_changes_nothing(
    make_cache: MakeCache, hub: Hub
) -> None:
    """Before the first byte; the sentence says who has the room, and what to do."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A)
    await pin(engine, A)
    before = list_files(engine)
    hub.stats.reset()
    job = await engine.pull(C)
    assert isinstance(job.error, StoreFullError)
    sentence = str(job.error)
    assert f"{WEIGHTS_BYTES:,} more bytes" in sentence
    assert f"a quota of {ONE_AND_A_HALF:,}" in sentence
    assert f"the store takes {MODEL_BYTES:,}" in sentence
    assert f"kept: {MODEL_BYTES:,} pinned" in sentence
    for step in ("Unpin", "rm REF", "--quota", "--include"):
        assert step in sentence, step
    assert hub.stats.body_bytes == 0
    assert list_files(engine) == before
    assert await list_models(engine) == [A]


async def test_pull_of_more_than_the_quota_evicts_nothing(make_cache: MakeCache) -> None:
    """What would not help is not done."""
    engine = await make_cache(quota_bytes=MODEL_BYTES)
    await pull(engine, A)
    engine = await reopen(make_cache, engine, quota_bytes=MODEL_BYTES - 1)
    job = await engine.pull(B)
    assert isinstance(job.error, StoreFullError)
    assert await list_models(engine) == [A]


async def test_two_pulls_that_fit_one_by_one_do_not_both_begin(
    make_cache: MakeCache, hub: Hub
) -> None:
    """The room of a running job is its own, down to the files that it has not begun."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await engine.find(A, "config.json")
    await engine.find(B, "config.json")
    hub.set_faults(hang_after_bytes=0)
    first = start(engine, A)
    await eventually(lambda: len(first.running) == 2, "the first waits for both of its files")
    second = await engine.pull(B)
    assert isinstance(second.error, StoreFullError)
    assert "in use" in str(second.error)
    # Whoever cancels one for the other need not wait.
    await engine.downloads.cancel(first.id)
    hub.set_faults()
    await pull(engine, B)


async def test_files_that_a_job_has_not_begun_are_reserved(
    make_cache: MakeCache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room that no file takes yet is promised; the sentence says so."""
    monkeypatch.setattr(jobrun_module, "FILES_AT_ONCE_MAX", 1)
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await engine.find(A, "config.json")
    await engine.find(B, "config.json")
    hub.set_faults(hang_after_bytes=0, paths=f"{A}/config.json")
    first = start(engine, A)
    await eventually(lambda: first.state is JobState.DOWNLOADING, "the first begins")
    second = await engine.pull(B, include=("model.bin",))
    assert f"{WEIGHTS_BYTES:,} are reserved for other downloads" in str(second.error)
    await engine.downloads.cancel(first.id)


async def test_reserved_room_is_not_counted_twice(make_cache: MakeCache, hub: Hub) -> None:
    """What the disk gave for an open file, and what a job still waits for, are one model."""
    # The records of files that are being filled take a block each.
    engine = await make_cache(quota_bytes=2 * MODEL_BYTES + 8 * SMALL_BYTES)
    await engine.find(A, "config.json")
    hub.set_faults(hang_after_bytes=CHUNK_BYTES, paths=f"{A}/model.bin")
    first = start(engine, A)
    await eventually(
        lambda: measure_disk(engine, ["partial"]) >= WEIGHTS_BYTES,
        "room is reserved on the disk",
    )
    await pull(engine, B)
    assert not isinstance(first.error, StoreFullError)
    await engine.downloads.cancel(first.id)


async def test_pull_goes_on_from_a_partial_that_fills_the_quota(
    make_cache: MakeCache, hub: Hub
) -> None:
    """What an earlier run reserved is not evicted for its own sake, and needs no second room."""
    engine = await make_cache(quota_bytes=MODEL_BYTES + 4 * SMALL_BYTES)
    await engine.find(A, "config.json")
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=f"{A}/model.bin")
    job = start(engine, A)
    await eventually(
        lambda: engine.downloads.count_bytes(job)["upstream"] > 3 * CHUNK_BYTES, "some chunks"
    )
    await engine.downloads.cancel(job.id)
    hub.set_faults()
    again = await engine.pull(A)
    assert (again.state, again.error) == (JobState.DONE, None)
    assert engine.downloads.count_bytes(again)["disk"] >= 2 * CHUNK_BYTES


async def test_file_that_came_while_room_was_made_is_not_fetched_again(
    make_cache: MakeCache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited for an eviction looks again before a byte is asked for."""
    engine = await make_cache()
    make, waiting = engine.cache.space.rooms.make, [A]

    async def make_slowly(snapshot_id: SnapshotId, entries: Iterable[FileEntry]) -> Room:
        if waiting:
            await pull(engine, waiting.pop())
        return await make(snapshot_id, entries)

    monkeypatch.setattr(engine.cache.space.rooms, "make", make_slowly)
    assert await engine.read(A, "model.bin") == CONTENTS["a"]
    assert hub.stats.path_bytes[f"{A}/model.bin"] == WEIGHTS_BYTES


async def test_pull_of_a_model_that_was_evicted_before_it_was_held_is_whole(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done means listed and linked, whatever went between the first look and the room."""
    engine = await make_cache()
    await pull(engine, A)
    space, snapshot_id = engine.cache.space, await find_id(engine, A)
    make, evicted = space.rooms.make, [snapshot_id]

    async def make_late(snapshot_id: SnapshotId, entries: Iterable[FileEntry]) -> Room:
        if evicted:
            await space.remove(evicted.pop())
        return await make(snapshot_id, entries)

    monkeypatch.setattr(space.rooms, "make", make_late)
    job = await engine.pull(A)
    assert (job.state, job.error) == (JobState.DONE, None)
    assert job.path is not None
    assert (Path(job.path) / "model.bin").read_bytes() == CONTENTS["a"]
    assert await list_models(engine) == [A]
    await check_consistent(engine)


async def test_idle_partial_goes_with_its_snapshot(make_cache: MakeCache, hub: Hub) -> None:
    """A download that nobody goes on with makes room like any model."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await engine.find(A, "config.json")
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=f"{A}/model.bin")
    job = start(engine, A)
    await eventually(
        lambda: engine.downloads.count_bytes(job)["upstream"] > 3 * CHUNK_BYTES, "some chunks"
    )
    await engine.downloads.cancel(job.id)
    hub.set_faults()
    await pull(engine, B)
    assert list((engine.root / "partial").iterdir()) == []
    await check_consistent(engine)


async def test_free_space_floor_is_kept(make_cache: MakeCache, hub: Hub) -> None:
    """A disk with less free than the floor takes nothing, quota or no quota."""
    engine = await make_cache(free_floor_bytes=1 << 60)
    job = await engine.pull(A)
    assert isinstance(job.error, StoreFullError)
    assert f"{1 << 60:,} stay free" in str(job.error)
    assert "no quota" in str(job.error)
    assert hub.stats.body_bytes == 0


async def test_cold_read_makes_room_or_is_refused(make_cache: MakeCache, hub: Hub) -> None:
    """A client of the gateway is treated like a pull."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A)
    assert await engine.read(B, "model.bin") == CONTENTS["b"]
    assert await list_models(engine) == [B]
    await pin(engine, B)
    hub.stats.reset()
    with pytest.raises(StoreFullError):
        await engine.read(C, "model.bin")
    assert hub.stats.body_bytes == 0
    assert await engine.read(B, "model.bin") == CONTENTS["b"]


async def test_disk_that_filled_up_in_between_is_looked_at_once_more(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reservation that fails although there was room evicts, and is tried again once."""
    engine = await make_cache()
    await pull(engine, A)
    store, calls = engine.context.store, []
    open_partial = store.open_partial

    def fail_once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise StoreFullError("The disk is full.")
        return open_partial(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "open_partial", fail_once)
    assert await engine.read(B, "model.bin") == CONTENTS["b"]
    assert len(calls) == 2


async def test_eviction_that_gives_nothing_back_refuses_instead_of_emptying_the_store(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While programs read what was evicted the disk stays full; no second model goes for it."""
    monkeypatch.setattr(rooms_module, "DISK_SETTLE_S", 0.2)
    engine = await make_cache()
    await pull(engine, A, B)
    usage = shutil.disk_usage(engine.root)
    full = usage._replace(free=WEIGHTS_BYTES // 2)
    monkeypatch.setattr("p2pcache.engine.gauge.shutil.disk_usage", lambda path: full)
    job = await engine.pull(C)
    assert "still open in other programs" in str(job.error)
    assert await list_models(engine) == [B]


# --- the order, and who is passed over ---


async def test_reading_a_file_makes_its_model_the_last_to_go(make_cache: MakeCache) -> None:
    """The logical clock goes up with pulls and with opened files."""
    engine = await make_cache(quota_bytes=5 * MODEL_BYTES // 2)
    await pull(engine, A, B)
    await engine.read(A, "model.bin")
    await pull(engine, C)
    assert await list_models(engine) == [A, C]


async def test_uses_are_recorded_when_the_engine_closes(make_cache: MakeCache) -> None:
    """The order survives a restart."""
    engine = await make_cache()
    await pull(engine, A, B)
    await engine.read(A, "config.json")
    engine = await reopen(make_cache, engine, quota_bytes=5 * MODEL_BYTES // 2)
    await pull(engine, C)
    assert await list_models(engine) == [A, C]


async def test_lease_protects_until_it_ends(make_cache: MakeCache) -> None:
    """What a loader leased stays, whatever is pulled; then it goes like anything else."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A)
    lease = await engine.cache.space.lease(await find_id(engine, A), 60.0, "loader")
    job = await engine.pull(B)
    assert f"{MODEL_BYTES:,} leased" in str(job.error)
    await engine.cache.space.leases.end(lease.id)
    await pull(engine, B)
    assert await list_models(engine) == [B]


async def test_open_reader_finishes_through_an_eviction(make_cache: MakeCache) -> None:
    """A file that is being read may go; its reader gets every byte."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A)
    reader = await engine.open_reader(A, "model.bin")
    await reader.ready(0)
    await pull(engine, B)
    assert await list_models(engine) == [B]
    received = b""
    async for segment in reader.segments(0, WEIGHTS_BYTES):
        received += os.pread(segment.fd, segment.length, segment.offset)
    reader.close()
    assert received == CONTENTS["a"]


async def test_whoever_needs_something_meanwhile_wins(make_cache: MakeCache) -> None:
    """Between plan and step somebody may begin to use a snapshot or a blob: it stays."""
    engine = await make_cache()
    await pull(engine, A, B)
    space, snapshot_id = engine.cache.space, await find_id(engine, A)
    survey = await space.evictor.survey()
    plan = plan_removal(survey.view, snapshot_id)
    _, weights = await engine.find(A, "model.bin")
    with space.holds.holding(snapshot_id):
        assert await space.evictor.apply(plan, survey) == []
    lease = await space.leases.grant(snapshot_id, 60.0, "")
    assert await space.evictor.apply(plan, survey) == []
    await space.leases.end(lease.id)
    await pin(engine, A)
    assert await space.evictor.apply(plan, survey) == []
    await space.pins.remove(ModelReference.parse(A))
    space.holds.busy_checks.append(lambda blob: blob == weights.digest)
    assert await space.evictor.apply(plan, survey) == []
    space.holds.busy_checks.pop()
    assert await list_models(engine) == [A, B]
    assert await space.evictor.apply(plan, survey) == list(plan.steps)
    assert await list_models(engine) == [B]


async def test_blob_that_another_snapshot_lists_by_now_stays(make_cache: MakeCache) -> None:
    """A revision that appeared after the plan keeps the files that it shares."""
    engine = await make_cache()
    await pull(engine, A)
    snapshot, weights = await engine.find(A, "model.bin")
    space = engine.cache.space
    survey = await space.evictor.survey()
    plan = plan_removal(survey.view, snapshot.id)
    other = Snapshot.of(SnapshotId(snapshot.id.repo, "f" * 40), [weights])
    await engine.context.index.call(
        lambda i: i.catalogue.put_snapshot(other, is_confirmed=True, about=None, wall_s=1.0)
    )
    assert await space.evictor.apply(plan, survey) == list(plan.steps)
    assert engine.context.store.path_of(weights.digest).exists()


async def test_read_during_an_eviction_brings_the_model_back(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that begins while its model is on its way out waits, then fetches it anew."""
    engine = await make_cache()
    await pull(engine, A)
    tree, begun, may_go_on = engine.context.tree, threading.Event(), threading.Event()
    withdraw = tree.withdraw_snapshot

    def held(*arguments: object) -> None:
        begun.set()
        assert may_go_on.wait(10), "the test goes on"
        withdraw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tree, "withdraw_snapshot", held)
    removing = asyncio.create_task(engine.cache.space.remove(await find_id(engine, A)))
    await eventually(begun.is_set, "the eviction is under way")
    job = start(engine, A)
    await eventually(lambda: job.state is not JobState.QUEUED, "the pull is under way")
    await let_run()
    assert job.state not in FINAL_STATES
    may_go_on.set()
    await removing
    await eventually(lambda: job.state in FINAL_STATES, "the end of the job")
    assert (job.state, job.error) == (JobState.DONE, None)
    assert job.path is not None
    assert (Path(job.path) / "model.bin").read_bytes() == CONTENTS["a"]
    assert await list_models(engine) == [A]
    await check_consistent(engine)


# --- removing ---


async def test_removed_model_leaves_nothing_but_what_others_share(make_cache: MakeCache) -> None:
    """Rows, links, listing, ref and file go; the shared configuration stays."""
    engine = await make_cache()
    await pull(engine, A, B)
    step = await engine.cache.space.remove(await find_id(engine, A))
    assert isinstance(step, Step)
    assert step.own_bytes == WEIGHTS_BYTES
    assert await list_models(engine) == [B]
    assert [path.name for path in (engine.root / "hub").glob("models--*")] == ["models--org--b"]
    await check_consistent(engine)
    with pytest.raises(NotFoundError):
        await engine.cache.space.remove(step.snapshot_id)  # type: ignore[arg-type]


async def test_removing_what_is_needed_is_refused(make_cache: MakeCache, hub: Hub) -> None:
    """Pinned without force, leased and in use in any case; the reason is said."""
    engine = await make_cache()
    await pull(engine, A)
    space, snapshot_id = engine.cache.space, await find_id(engine, A)
    await pin(engine, A)
    with pytest.raises(ProtectedError, match="pinned; unpin it first"):
        await space.remove(snapshot_id)
    lease = await space.lease(snapshot_id, 60.0, "")
    with pytest.raises(ProtectedError, match="leased"):
        await space.remove(snapshot_id, is_forced=True)
    await space.leases.end(lease.id)
    with space.holds.holding(snapshot_id), pytest.raises(ProtectedError, match="downloaded"):
        await space.remove(snapshot_id, is_forced=True)
    await space.remove(snapshot_id, is_forced=True)
    assert await space.pins.list_all() == []
    assert await list_models(engine) == []


# --- gc ---


async def test_gc_does_what_its_dry_run_says(make_cache: MakeCache) -> None:
    """Unreachable blobs, records without a file, links that lead nowhere: named, then gone."""
    engine = await make_cache()
    await pull(engine, A, B)
    root, context = engine.root, engine.context
    _, weights = await engine.find(A, "model.bin")
    # As a crash between the rows and the links of an eviction leaves it.
    snapshot_id = await find_id(engine, A)
    await context.index.call(lambda i: i.inventory.evict(snapshot_id, [weights.digest]))
    (root / ".1.2.new").write_bytes(b"torn")
    (root / ".keep.new").write_bytes(b"somebody's")
    (root / "partial" / f"sha256-{'0' * 64}.have").write_bytes(b"")
    (root / "partial" / "notes.txt").write_text("somebody's")
    before = list_files(engine)
    busy = engine.cache.space.holds.busy_checks
    busy.append(lambda blob: blob.hex == "0" * 64)
    names = [step.name for step in (await engine.cache.space.gc(is_dry_run=True)).steps]
    assert not any(name.startswith("partial/") for name in names)
    busy.pop()
    plan = await engine.cache.space.gc(is_dry_run=True)
    assert list_files(engine) == before
    done = await engine.cache.space.gc(is_dry_run=False)
    assert done.steps == plan.steps
    assert done.bytes_freed >= WEIGHTS_BYTES
    whats = [step.what for step in done.steps]
    assert set(whats) == {Kind.FILE, Kind.BLOB}
    await check_consistent(engine)
    assert (root / ".keep.new").exists()
    assert (root / "partial" / "notes.txt").exists()
    assert not (root / ".1.2.new").exists()
    assert await list_models(engine) == [B]
    again = await engine.cache.space.gc(is_dry_run=False)
    assert again.steps == ()
    assert again.figures.own_bytes == measure_disk(engine)


@pytest.mark.parametrize("step", ["evict", "withdraw_snapshot", "discard"])
@pytest.mark.parametrize("is_before", [True, False])
async def test_eviction_that_breaks_off_leaves_nothing_that_gc_does_not_clean(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, step: str, *, is_before: bool
) -> None:
    """After every step: no row without a file; after a restart and gc, no trace."""
    engine = await make_cache()
    await pull(engine, A, B)
    context, snapshot_id = engine.context, await find_id(engine, A)
    inventory = await context.index.call(lambda index: index.inventory)
    owner: object = {
        "evict": inventory,
        "withdraw_snapshot": context.tree,
        "discard": context.store,
    }[step]
    true = getattr(owner, step)

    def break_off(*arguments: object, **more: object) -> object:
        if not is_before:
            true(*arguments, **more)
        raise StoreError("The daemon was killed here.")

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, break_off)
        with pytest.raises(StoreError):
            await engine.cache.space.remove(snapshot_id)
    await list_models(engine)
    engine = await reopen(make_cache, engine)
    await list_models(engine)
    await engine.cache.space.gc(is_dry_run=False)
    await check_consistent(engine)
    assert B in await list_models(engine)
    assert await engine.read(A, "model.bin") == CONTENTS["a"]


async def test_adopted_files_free_nothing_until_their_other_owner_is_gone(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    """Hard links of a foreign cache are no room of ours; alone with us they are."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A)
    _, weights = await engine.find(A, "model.bin")
    foreign = tmp_path / "foreign"
    foreign.hardlink_to(engine.context.store.path_of(weights.digest))
    await engine.context.index.call(
        lambda index: index.blobs.set_adopted(weights.digest, is_adopted=True)
    )
    await engine.cache.space.gc(is_dry_run=False)
    assert (await engine.cache.space.measure()).own_bytes == SMALL_BYTES
    await pull(engine, B)
    assert await list_models(engine) == [A, B]
    _, sums, _ = await engine.cache.space.report()
    assert sums.adopted_bytes == WEIGHTS_BYTES
    foreign.unlink()
    await engine.cache.space.gc(is_dry_run=True)
    assert (await engine.cache.space.report())[1].adopted_bytes == WEIGHTS_BYTES
    await engine.cache.space.gc(is_dry_run=False)
    assert (await engine.cache.space.report())[1].adopted_bytes == 0
    # By now the store is above its quota, and gc goes by that.
    assert await list_models(engine) == [B]
    assert (await engine.cache.space.measure()).own_bytes == measure_disk(engine)


# --- looking after the store ---


async def test_adopted_file_whose_owner_went_is_counted_without_anybody_asking(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is walked now and then; what is ours alone binds the quota from then on."""
    monkeypatch.setattr(space_module, "LOOK_PAUSE_S", 0.01)
    monkeypatch.setattr(space_module, "LOOK_INTERVAL_S", 0.02)
    monkeypatch.setattr(space_module, "RELEASE_INTERVAL_S", 0.05)
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await engine.cache.space.open()
    await pull(engine, A)
    _, weights = await engine.find(A, "model.bin")
    foreign = tmp_path / "foreign"
    foreign.hardlink_to(engine.context.store.path_of(weights.digest))
    await engine.context.index.call(
        lambda index: index.blobs.set_adopted(weights.digest, is_adopted=True)
    )
    await engine.cache.space.gc(is_dry_run=False)
    await pull(engine, B)
    assert await list_models(engine) == [A, B]
    foreign.unlink()
    await until_models(engine, [B])
    await engine.cache.space.gc(is_dry_run=False)  # comes after the eviction, whose rows go first
    assert (await engine.cache.space.measure()).own_bytes == measure_disk(engine)


async def test_file_that_has_its_name_and_no_row_yet_is_counted(make_cache: MakeCache) -> None:
    """Between the rename and the row a file is in neither partial/ nor the index."""
    engine = await make_cache()
    put = engine.cache.shelf.put
    seen: list[int] = []

    async def measure_first(*arguments: Any, **named: Any) -> None:
        seen.append((await engine.cache.space.measure()).own_bytes)
        await put(*arguments, **named)

    engine.cache.shelf.put = measure_first  # type: ignore[method-assign]
    await pull(engine, A)
    assert max(seen) >= WEIGHTS_BYTES
    assert (await engine.cache.space.measure()).own_bytes == measure_disk(engine)


async def test_resident_snapshot_without_links_gets_them_when_it_is_asked_for(
    make_cache: MakeCache,
) -> None:
    """A crash before the links, or a folder that somebody deleted, is mended by the question."""
    engine = await make_cache()
    job = await engine.pull(A)
    assert job.path is not None
    folder = Path(job.path)
    shutil.rmtree(folder.parent.parent)
    snapshot, _ = await engine.find(A, "model.bin")
    assert await engine.cache.find_path(snapshot) == job.path
    assert (folder / "model.bin").read_bytes() == CONTENTS["a"]
    assert (folder.parent.parent / "refs" / "main").read_text() == snapshot.id.commit


async def test_store_above_its_quota_goes_down_by_itself(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota that was lowered binds without anybody asking."""
    monkeypatch.setattr(space_module, "LOOK_PAUSE_S", 0.01)
    monkeypatch.setattr(space_module, "LOOK_INTERVAL_S", 0.02)
    engine = await make_cache()
    await pull(engine, A, B)
    engine = await reopen(make_cache, engine, quota_bytes=ONE_AND_A_HALF)
    await engine.cache.space.open()
    await eventually(lambda: measure_disk(engine, ["blobs"]) < ONE_AND_A_HALF, "eviction")
    await eventually(lambda: engine.cache.space.evictor.evicted, "its count")
    assert await list_models(engine) == [B]


async def test_disk_that_gets_nothing_back_is_not_evicted_for_again(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the floor one model goes; when that helps nobody, the next ones stay."""
    monkeypatch.setattr(space_module, "DISK_SETTLE_S", 0.01)
    engine = await make_cache(free_floor_bytes=WEIGHTS_BYTES)
    await pull(engine, A, B)
    usage = shutil.disk_usage(engine.root)
    full = usage._replace(free=WEIGHTS_BYTES // 2)
    monkeypatch.setattr("p2pcache.engine.gauge.shutil.disk_usage", lambda path: full)
    await engine.cache.space.look()
    assert await list_models(engine) == [B]
    await engine.cache.space.look()
    assert await list_models(engine) == [B]


async def test_figure_follows_what_others_do_to_the_store(make_cache: MakeCache) -> None:
    """Without a walk: what was pulled, removed, begun is in the figure at once."""
    engine = await make_cache()
    await pull(engine, A, B)
    space = engine.cache.space
    assert (await space.measure()).own_bytes == measure_disk(engine)
    await space.remove(await find_id(engine, A))
    assert (await space.measure()).own_bytes == measure_disk(engine)
    engine.keep_chunks(CONTENTS["c"], [0, 1])
    figures = await space.measure()
    assert figures.own_bytes == measure_disk(engine)
    assert figures.partial_bytes >= WEIGHTS_BYTES


async def test_report_tells_logical_from_physical_bytes(make_cache: MakeCache) -> None:
    """The shared configuration counts for each model, and lies here once."""
    engine = await make_cache()
    await pull(engine, A, B, C)
    await pin(engine, A)
    figures, sums, report = await engine.cache.space.report()
    assert sums.logical_bytes == 3 * (WEIGHTS_BYTES + len(CONFIG))
    assert sums.own_bytes == 3 * WEIGHTS_BYTES + len(CONFIG)
    assert figures.own_bytes == 3 * WEIGHTS_BYTES + SMALL_BYTES
    assert report.evictable_bytes == 2 * WEIGHTS_BYTES
    assert sum(report.protected_bytes.values()) == MODEL_BYTES


async def test_room_that_others_need_again_and_again_is_refused(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that cannot be carried out is made anew, and not for ever."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A)
    plans = []

    async def apply(plan: EvictionPlan, survey: object) -> list[Step]:
        plans.append(plan)
        return []

    monkeypatch.setattr(engine.cache.space.evictor, "apply", apply)
    job = await engine.pull(B)
    assert "others need what could be evicted; ask again" in str(job.error)
    assert len(plans) == rooms_module.PLANS_MAX
    with pytest.raises(ProtectedError, match="downloaded or read"):
        await engine.cache.space.remove(await find_id(engine, A))


async def test_gc_drops_partials_and_blobs_only_if_they_are_still_nobodys(
    make_cache: MakeCache,
) -> None:
    """What somebody begins to fill, or to list, while gc runs stays."""
    engine = await make_cache()
    await pull(engine, A)
    engine.keep_chunks(b"unknown" * CHUNK_BYTES, [0])
    space, context = engine.cache.space, engine.context
    snapshot, weights = await engine.find(A, "model.bin")
    await context.index.call(lambda i: i.catalogue.remove_snapshot(snapshot.id))
    survey = await space.evictor.survey(is_sweep=True)
    plan = plan_eviction(survey.view, limit_space(await space.measure(), survey), is_sweep=True)
    whats = [step.what for step in plan.steps if step.what is not Kind.FILE]
    assert sorted(whats) == [Kind.BLOB, Kind.BLOB, Kind.PARTIAL]
    await context.index.call(
        lambda i: i.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=1.0)
    )
    await engine.cache.publish_to_tree(
        Resolved(SnapshotRow(snapshot, True, None, None), "main", False), list(snapshot.files)
    )
    space.holds.busy_checks.append(lambda blob: not context.store.path_of(blob).exists())
    assert await space.evictor.apply(plan, survey) == []
    space.holds.busy_checks.pop()
    assert context.store.path_of(weights.digest).exists()
    done = await space.evictor.apply(plan, survey)
    assert [step.what for step in done] == [Kind.PARTIAL]
    assert list((engine.root / "partial").iterdir()) == []
    await check_consistent(engine)


async def test_store_is_looked_after_again_after_a_failure(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that failed once is no reason to stop looking."""
    monkeypatch.setattr(space_module, "LOOK_PAUSE_S", 0.01)
    monkeypatch.setattr(space_module, "LOOK_INTERVAL_S", 0.01)
    engine = await make_cache()
    failures, successes = 0, 0
    real, is_broken = engine.cache.space.look, True

    async def look() -> None:
        nonlocal failures, successes
        if is_broken:
            failures += 1
            raise StoreError("The disk failed.")
        await real()
        successes += 1

    monkeypatch.setattr(engine.cache.space, "look", look)
    await engine.cache.space.open()
    await eventually(lambda: failures > 2, "more looks")
    assert successes == 0
    is_broken = False
    await eventually(lambda: successes > 1, "looks that find a disk again")


class KilledError(Exception):
    """Stands for SIGKILL: nothing of ours handles it."""


async def test_eviction_that_is_killed_at_any_name_leaves_nothing_that_gc_does_not_clean(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the n-th unlink, for all n: no row without a file, and after gc no trace."""
    unlink, count = Path.unlink, 0
    for killed_at in range(100):
        engine = await make_cache(f"n{killed_at}")
        await pull(engine, A, B)
        snapshot_id, count = await find_id(engine, A), 0

        def unlink_or_die(path: Path, missing_ok: bool = False, killed_at: int = killed_at) -> None:
            nonlocal count
            count += 1
            if count > killed_at:
                raise KilledError
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink_or_die)
            try:
                await engine.cache.space.remove(snapshot_id)
            except KilledError:
                is_over = False
            else:
                is_over = True
        await list_models(engine)
        engine = await reopen(make_cache, engine)
        await engine.cache.space.gc(is_dry_run=False)
        await check_consistent(engine)
        assert B in await list_models(engine)
        if is_over:
            assert await list_models(engine) == [B]
            break
        await engine.close()
    assert 8 < count < 100


# --- whether something would fit ---


async def fits(engine: Engine, repo: str) -> bool:
    """Ask whether `main` of a repository would fit."""
    row = await engine.cache.librarian.find_cached(ModelReference.parse(repo))
    assert row is not None
    return await engine.cache.space.rooms.fits(row.snapshot.id, row.snapshot.files)


async def test_fits_counts_the_quota_and_what_eviction_could_free(
    make_cache: MakeCache, hub: Hub
) -> None:
    """What may go makes room, what is pinned does not; nothing goes for the question."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A)
    await engine.find(B, "config.json")
    before = list_files(engine)
    assert await fits(engine, B)
    assert await fits(engine, A)
    assert list_files(engine) == before
    await pin(engine, A)
    engine.cache.space.rooms._seen = None
    assert not await fits(engine, B)
    assert await fits(engine, A)


async def test_fits_knows_more_than_the_disk_has(make_cache: MakeCache, hub: Hub) -> None:
    """A model that is larger than the quota never fits, however much is free."""
    engine = await make_cache(quota_bytes=MODEL_BYTES // 2)
    await engine.find(A, "config.json")
    assert not await fits(engine, A)


async def test_fits_looks_at_the_store_now_and_then(
    make_cache: MakeCache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll of a tight store does not walk over it each time."""
    engine = await make_cache(quota_bytes=ONE_AND_A_HALF)
    await pull(engine, A)
    await engine.find(B, "config.json")
    looks: list[bool] = []
    real = engine.cache.space.evictor.survey

    async def survey(**options: bool) -> object:
        looks.append(True)
        return await real(**options)

    monkeypatch.setattr(engine.cache.space.evictor, "survey", survey)
    assert [await fits(engine, B) for _ in range(3)] == [True] * 3
    assert len(looks) == 1
