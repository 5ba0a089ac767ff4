"""
Owns the tests of engine.checkup: looking at every published file again.

Knows nothing of single files (tests/store/test_check.py) or of mending (test_healing.py).
Invariants: exactly what is damaged is found; nothing is looked at twice without need.
Source: engine/checkup.py.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.engine import checkup
from p2pcache.engine.checkup import CHECK_INTERVAL_S, CheckOrder, CheckRun, CheckupState
from p2pcache.engine.shelf import take_step
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.check import FileCheck
from p2pcache.store.damages import CHECK_FILE_NAME, DamageState
from tests.engine.conftest import CHUNK_BYTES, FILES, MODEL_BYTES, REPO, WEIGHTS, MakeCache
from tests.engine.engine import Engine, eventually, list_open_files
from tests.engine.fakepeer import sha256_name
from tests.engine.test_shelf import flip_byte, hold_hashing, path_of
from tests.hub import Hub

BLOB = sha256_name(WEIGHTS)
OTHER = sha256_name(FILES["other.safetensors"])


@pytest.fixture
async def pulled(engine: Engine) -> Engine:
    """An engine that holds the model."""
    job = await engine.pull(REPO)
    assert job.error is None
    return engine


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[tuple[BlobDigest, int]]:
    """Record every chunk that is hashed again: (blob, chunk)."""
    seen: list[tuple[BlobDigest, int]] = []
    real = FileCheck._look_at

    def look_at(self: FileCheck, index: int, view: memoryview) -> None:
        seen.append((self.blob, index))
        real(self, index, view)

    monkeypatch.setattr(FileCheck, "_look_at", look_at)
    return seen


async def check(engine: Engine, **order: object) -> CheckRun:
    """Check to the end; returns the check."""
    run = await engine.cache.checkup.start(CheckOrder(**order))  # type: ignore[arg-type]
    await eventually(lambda: run.state is not CheckupState.RUNNING, "the check's end")
    return run


async def find_row(engine: Engine, blob: BlobDigest = BLOB) -> BlobRow:
    """Return a blob's row, which there has to be."""
    row = await engine.cache.shelf.find_row(blob)
    assert row is not None
    return row


def states(engine: Engine) -> dict[BlobDigest, DamageState]:
    """Return what became of each damaged file."""
    return {damage.blob: damage.state for damage in engine.cache.checkup.list_damages()}


def hold_steps(
    monkeypatch: pytest.MonkeyPatch, after: int = 1
) -> tuple[threading.Event, threading.Event]:
    """Let the check stand still after some steps: returns (it stands, it may go on)."""
    stands, may_go = threading.Event(), threading.Event()
    real, count = take_step, [0]

    def held(walk: FileCheck, bytes_max: int) -> int:
        looked = real(walk, CHUNK_BYTES)
        count[0] += 1
        if count[0] == after:
            stands.set()
            may_go.wait(5)
        return looked

    monkeypatch.setattr("p2pcache.engine.checkup.take_step", held)
    return stands, may_go


# --- what is found ---


async def test_check_of_a_store_in_order_finds_nothing(pulled: Engine, hub: Hub) -> None:
    """Every byte is looked at once, nothing changes, nobody is asked."""
    hub.stats.reset()
    before = await find_row(pulled)
    run = await check(pulled)
    assert run.state is CheckupState.DONE
    assert (run.blobs_done, run.blobs_total) == (len(FILES), len(FILES))
    assert run.bytes_done == run.bytes_total == run.bytes_read == MODEL_BYTES
    assert pulled.cache.checkup.checked_bytes_total == MODEL_BYTES
    assert pulled.cache.checkup.list_damages() == []
    after = await find_row(pulled)
    assert after.verified_wall_s > before.verified_wall_s
    assert replace(after, verified_wall_s=0.0) == replace(
        before, verified_wall_s=0.0, table=after.table
    )
    assert hub.stats.requests_total == 0


async def test_check_names_exactly_the_damaged_chunks(pulled: Engine) -> None:
    """Silent damage, with the file's time as before, in two files."""
    flip_byte(path_of(pulled), 3 * CHUNK_BYTES, keeps_time=True)
    flip_byte(path_of(pulled), 18 * CHUNK_BYTES + 7, keeps_time=True)
    flip_byte(path_of(pulled, OTHER), CHUNK_BYTES - 1, keeps_time=True)
    run = await check(pulled)
    assert run.state is CheckupState.DONE
    found = {damage.blob: damage.chunks for damage in pulled.cache.checkup.list_damages()}
    assert found == {BLOB: (3, 18), OTHER: (0,)}
    assert set(states(pulled).values()) == {DamageState.QUARANTINED}
    assert pulled.cache.checkup.healer.damaged_chunks_total == 3
    shown = {str(p) for d in pulled.cache.checkup.list_damages() for p in d.places}
    assert {text.partition(": ")[2] for text in shown} == {"pytorch_model.bin", "other.safetensors"}
    assert [fault.reason for fault in pulled.context.blame.faults] == ["damaged here"] * 2
    assert list_open_files(pulled.root / "blobs") == []


async def test_check_of_damage_leaves_nothing_wrong_to_be_read(pulled: Engine, hub: Hub) -> None:
    """Row and links are gone, the good chunks are kept, a reader gets right bytes."""
    snapshot, _ = await pulled.find(REPO, "pytorch_model.bin")
    link = pulled.context.tree.snapshot_path(snapshot.id) / "pytorch_model.bin"
    assert link.exists()
    flip_byte(path_of(pulled), 3 * CHUNK_BYTES, keeps_time=True)
    await check(pulled)
    assert await pulled.cache.shelf.find_row(BLOB) is None
    assert not os.path.lexists(link)
    hub.stats.reset()
    assert await pulled.read(REPO, "pytorch_model.bin") == WEIGHTS
    assert hub.stats.body_bytes == CHUNK_BYTES
    assert states(pulled) == {BLOB: DamageState.HEALED}


async def test_check_of_a_file_without_a_table_makes_one(pulled: Engine) -> None:
    """What a rebuilt index knows nothing of is hashed as a whole, and known then."""
    row = await find_row(pulled)
    bare = replace(row, table=None, is_proven=False, verified_wall_s=0.0)
    await pulled.context.index.call(lambda i: i.blobs.put(bare))
    assert (await check(pulled)).state is CheckupState.DONE
    after = await find_row(pulled)
    assert after.is_proven
    assert after.table is not None
    assert row.table is not None
    assert list(after.table) == list(row.table)


async def test_check_of_a_wrong_file_without_a_table_loses_all_of_it(pulled: Engine) -> None:
    """Nobody knows which chunk it was."""
    row = await find_row(pulled)
    bare = replace(row, table=None, is_proven=False)
    await pulled.context.index.call(lambda i: i.blobs.put(bare))
    flip_byte(path_of(pulled), 3 * CHUNK_BYTES)
    await check(pulled)
    (damage,) = pulled.cache.checkup.list_damages()
    assert damage.chunks == tuple(range(20))
    assert not pulled.context.store.is_filling(BLOB)


async def test_check_of_a_touched_file_takes_its_new_stamp(pulled: Engine) -> None:
    """The time changed and no byte did: proven again, so that readers need not hash it."""
    os.utime(path_of(pulled), ns=(1, 1))
    await check(pulled)
    row = await find_row(pulled)
    assert (row.stamp.mtime_ns, row.is_proven) == (1, True)


async def test_check_of_a_file_that_was_deleted_says_so(pulled: Engine) -> None:
    """A row without a file goes; the file is named until it is here again."""
    path_of(pulled).unlink()
    run = await check(pulled)
    assert run.state is CheckupState.DONE
    (damage,) = pulled.cache.checkup.list_damages()
    assert (damage.is_gone, damage.state, damage.chunks) == (True, DamageState.QUARANTINED, ())
    assert await pulled.cache.shelf.find_row(BLOB) is None
    assert await pulled.read(REPO, "pytorch_model.bin") == WEIGHTS
    assert states(pulled) == {BLOB: DamageState.HEALED}


async def test_file_that_was_deleted_is_partial_until_it_is_pulled(pulled: Engine) -> None:
    """A hand-deleted file turns resident into partial, and the next pull heals it."""
    snapshot, entry = await pulled.find(REPO, "pytorch_model.bin")
    files = list(snapshot.files)
    assert (await pulled.cache.measure(files)).state.value == "resident"
    path_of(pulled).unlink()
    measured = await pulled.cache.measure(files)
    assert (measured.state.value, measured.bytes_missing) == ("partial", entry.size_bytes)
    job = await pulled.pull(REPO)
    assert job.error is None
    assert (await pulled.cache.measure(files)).state.value == "resident"
    assert (pulled.context.tree.snapshot_path(snapshot.id) / entry.path).read_bytes() == WEIGHTS


async def test_check_looks_at_the_longest_unchecked_first(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]]
) -> None:
    """What was never proven comes before all, then by the time of the last look."""
    order = [BLOB, OTHER, sha256_name(FILES["empty.txt"])]

    for age, blob in enumerate([OTHER, BLOB]):
        row = replace(await find_row(pulled, blob), verified_wall_s=float(age + 1))
        await pulled.context.index.call(lambda i, row=row: i.blobs.put(row))  # type: ignore[misc]
    bare = replace(await find_row(pulled), is_proven=False)
    await pulled.context.index.call(lambda i: i.blobs.put(bare))
    await check(pulled)
    seen = list(dict.fromkeys(blob for blob, _ in looked_at))
    assert seen[:2] == order[:2]


# --- how far it comes ---


async def test_check_that_is_stopped_goes_on_in_the_middle_of_the_file(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop every chunk is looked at once, in both checks together."""
    stands, may_go = hold_steps(monkeypatch, after=7)
    run = await pulled.cache.checkup.start(CheckOrder())
    await asyncio.to_thread(stands.wait, 5)
    stopping = asyncio.create_task(pulled.cache.checkup.stop())
    await asyncio.sleep(0)
    may_go.set()
    await stopping
    assert run.state is CheckupState.STOPPED
    assert 0 < run.bytes_done < run.bytes_total
    again = await check(pulled)
    assert again.state is CheckupState.DONE
    assert again.bytes_done == again.bytes_total == MODEL_BYTES
    assert again.pass_started_wall_s == run.pass_started_wall_s == run.started_wall_s
    assert run.bytes_read + again.bytes_read == MODEL_BYTES
    assert len(looked_at) == len(set(looked_at)) == 20 + 3 + 1


async def test_check_goes_on_after_a_restart(
    make_cache: MakeCache,
    hub: Hub,
    looked_at: list[tuple[BlobDigest, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How far it came is on disk when the daemon is gone."""
    first = await make_cache("same")
    assert (await first.pull(REPO)).error is None
    with monkeypatch.context() as patch:
        stands, may_go = hold_steps(patch, after=7)
        await first.cache.checkup.start(CheckOrder())
        await asyncio.to_thread(stands.wait, 5)
        closing = asyncio.create_task(first.close())
        await asyncio.sleep(0)
        may_go.set()
        await closing
    second = await make_cache("same")
    run = await check(second)
    assert run.bytes_done == MODEL_BYTES > run.bytes_read
    assert len(looked_at) == len(set(looked_at)) == 20 + 3 + 1


async def test_check_with_little_time_gets_through_in_several(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]]
) -> None:
    """A rate and a time budget: each check does a part, none does a part again."""
    runs: list[CheckRun] = []
    while not runs or runs[-1].state is CheckupState.STOPPED:
        assert len(runs) < 30
        runs.append(await check(pulled, rate_bps=2.0 * MODEL_BYTES, budget_s=0.05))
    assert len(runs) > 2
    assert len({run.pass_started_wall_s for run in runs}) == 1
    assert len(looked_at) == len(set(looked_at))
    assert sum(run.bytes_read for run in runs) == MODEL_BYTES
    assert sorted(run.bytes_done for run in runs) == [run.bytes_done for run in runs]


async def test_check_with_a_rate_keeps_it(pulled: Engine) -> None:
    """Bytes per second are an upper bound, over the whole check."""
    rate_bps = 2.0 * MODEL_BYTES
    run = await check(pulled, rate_bps=rate_bps)
    assert run.ended_s is not None
    assert run.ended_s - run.started_s > 0.8 * MODEL_BYTES / rate_bps
    assert run.measure_rate(0.0) <= rate_bps * 1.25


async def test_check_anew_looks_at_everything_again(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants to be sure does not go on where another check ended."""
    with monkeypatch.context() as patch:
        stands, may_go = hold_steps(patch, after=7)
        await pulled.cache.checkup.start(CheckOrder())
        await asyncio.to_thread(stands.wait, 5)
        stopping = asyncio.create_task(pulled.cache.checkup.stop())
        await asyncio.sleep(0)
        may_go.set()
        await stopping
    looked_at.clear()
    run = await check(pulled, is_anew=True)
    assert run.bytes_read == MODEL_BYTES
    assert len(looked_at) == 24


async def test_check_after_one_that_is_through_looks_at_everything_again(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]]
) -> None:
    """Only a check that was not through is continued."""
    await check(pulled)
    looked_at.clear()
    run = await check(pulled)
    assert run.bytes_read == MODEL_BYTES
    assert len(looked_at) == 24


async def test_check_that_finds_damage_and_is_stopped_sets_the_file_aside_at_once(
    pulled: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not looked at is kept as a hint; damage there costs its chunk as well."""
    for chunk in (1, 12):
        flip_byte(path_of(pulled), chunk * CHUNK_BYTES, keeps_time=True)
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    stands, may_go = hold_steps(monkeypatch, after=4)
    await pulled.cache.checkup.start(CheckOrder())
    await asyncio.to_thread(stands.wait, 5)
    # Nobody is given it while the rest is looked at.
    assert not (await find_row(pulled)).is_proven
    stopping = asyncio.create_task(pulled.cache.checkup.stop())
    await asyncio.sleep(0)
    may_go.set()
    await stopping
    (damage,) = pulled.cache.checkup.list_damages()
    assert (damage.blob, damage.chunks) == (BLOB, (1,))
    hub.stats.reset()
    assert await pulled.read(REPO, "pytorch_model.bin") == WEIGHTS
    assert hub.stats.body_bytes == 2 * CHUNK_BYTES


async def test_check_progress_is_written_down_meanwhile(
    pulled: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill costs what was looked at since, not all of the file."""
    monkeypatch.setattr(checkup, "PROGRESS_INTERVAL_S", 0.0)
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    stands, may_go = hold_steps(monkeypatch, after=9)
    await pulled.cache.checkup.start(CheckOrder())
    await asyncio.to_thread(stands.wait, 5)
    noted = await find_row(pulled)
    assert (noted.checked_chunks, noted.verified_wall_s) == (8, 1.0)
    may_go.set()
    await pulled.cache.checkup.stop()


# --- who else is there ---


async def test_second_check_joins_the_first(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who ask get one check; what the second wants is added."""
    stands, may_go = hold_steps(monkeypatch)
    first = await pulled.cache.checkup.start(CheckOrder())
    await asyncio.to_thread(stands.wait, 5)
    second = await pulled.cache.checkup.start(CheckOrder(is_repair=True, rate_bps=1e9))
    assert second is first
    assert (first.order.is_repair, first.order.rate_bps) == (True, 1e9)
    may_go.set()
    await eventually(lambda: first.state is CheckupState.DONE, "the check's end")
    assert len(looked_at) == 24


async def test_reader_of_a_file_that_is_checked_does_not_wait_for_the_check(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader has the file hashed at once, and the check leaves it to him."""
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    os.utime(path_of(pulled), ns=(1, 1))
    # The whole file takes the check more than a minute.
    run = await pulled.cache.checkup.start(CheckOrder(rate_bps=CHUNK_BYTES / 4))
    await eventually(lambda: looked_at, "the first chunk")
    async with asyncio.timeout(10):
        found = await pulled.cache.shelf.open_proven(BLOB)
    assert found is not None
    os.close(found.fd)
    seen = [index for blob, index in looked_at if blob == BLOB]
    assert len(seen) <= 20 + 3
    run.order = CheckOrder()
    await pulled.cache.checkup.stop()
    assert (await find_row(pulled)).stamp.mtime_ns == 1


async def test_check_passes_over_a_file_that_is_hashed_for_a_reader(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes are not hashed twice at once."""
    begun, may_end = threading.Event(), threading.Event()
    hold_hashing(monkeypatch, begun, may_end)
    os.utime(path_of(pulled), ns=(1, 1))
    reader = asyncio.create_task(pulled.cache.shelf.open_proven(BLOB))
    await asyncio.to_thread(begun.wait, 5)
    run = await check(pulled)
    assert run.state is CheckupState.DONE
    assert [blob for blob, _ in looked_at if blob == BLOB] == []
    may_end.set()
    found = await reader
    assert found is not None
    os.close(found.fd)
    assert len([blob for blob, _ in looked_at if blob == BLOB]) == 20


async def test_check_leaves_a_file_to_the_reader_who_comes_meanwhile(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as a file is hashed for somebody, the check does not go on with it."""
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    os.utime(path_of(pulled), ns=(1, 1))
    stands, may_go = hold_steps(monkeypatch, after=3)
    run = await pulled.cache.checkup.start(CheckOrder())
    await asyncio.to_thread(stands.wait, 5)
    begun, may_end = threading.Event(), threading.Event()
    hold_hashing(monkeypatch, begun, may_end)
    reader = asyncio.create_task(pulled.cache.shelf.open_proven(BLOB))
    await asyncio.to_thread(begun.wait, 5)
    may_go.set()
    await eventually(lambda: run.state is CheckupState.DONE, "the check's end")
    assert [index for blob, index in looked_at if blob == BLOB] == [0, 1, 2]
    may_end.set()
    found = await reader
    assert found is not None
    os.close(found.fd)


async def test_check_passes_over_a_file_that_is_written(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]]
) -> None:
    """What somebody fills at the moment is proven when he is done."""
    async with pulled.cache.claims.hold(BLOB):
        run = await check(pulled)
    assert run.state is CheckupState.DONE
    assert BLOB not in {blob for blob, _ in looked_at}


async def test_check_of_a_file_that_changed_since_begins_at_its_first_chunk(
    pulled: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at was another file, as far as its stamp tells."""
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    with monkeypatch.context() as patch:
        stands, may_go = hold_steps(patch, after=7)
        await pulled.cache.checkup.start(CheckOrder())
        await asyncio.to_thread(stands.wait, 5)
        stopping = asyncio.create_task(pulled.cache.checkup.stop())
        await asyncio.sleep(0)
        may_go.set()
        await stopping
    assert (await find_row(pulled)).checked_chunks == 7
    flip_byte(path_of(pulled), 2 * CHUNK_BYTES)
    await check(pulled)
    assert [damage.chunks for damage in pulled.cache.checkup.list_damages()] == [(2,)]


async def test_check_of_a_file_that_is_replaced_meanwhile_says_nothing_of_the_new_one(
    pulled: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at is not what is there any more: it is left for the next check."""
    flip_byte(path_of(pulled), 0, keeps_time=True)
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    stands, may_go = hold_steps(monkeypatch, after=1)
    monkeypatch.setattr(pulled.cache.shelf, "condemn", lambda blob: asyncio.sleep(0))
    await pulled.cache.checkup.start(CheckOrder())
    await asyncio.to_thread(stands.wait, 5)
    path = path_of(pulled)
    path.unlink()
    path.write_bytes(WEIGHTS)
    assert await pulled.read(REPO, "pytorch_model.bin") == WEIGHTS
    may_go.set()
    await eventually(
        lambda: pulled.cache.checkup.find_run().state is CheckupState.DONE,  # type: ignore[union-attr]
        "the check's end",
    )
    assert path.read_bytes() == WEIGHTS
    assert (await find_row(pulled)).is_proven
    assert pulled.cache.checkup.list_damages() == []


async def test_check_of_a_store_whose_disk_fails_goes_on_with_the_other_files(
    pulled: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that cannot be opened is logged; the rest is looked at."""
    from p2pcache.errors import StoreError

    real = pulled.context.store.find_blob

    def fail(blob: BlobDigest) -> object:
        if blob == BLOB:
            raise StoreError("The disk failed; see the system's log.")
        return real(blob)

    monkeypatch.setattr(pulled.context.store, "find_blob", fail)
    run = await check(pulled)
    assert run.state is CheckupState.DONE
    assert run.bytes_read == MODEL_BYTES - len(WEIGHTS)
    assert "could not be checked" in caplog.text


# --- in the background ---


async def patrol(engine: Engine) -> None:
    """Do what the background does every few minutes, and wait for its end."""
    await engine.cache.checkup.patrol_once()
    run = engine.cache.checkup.find_run()
    if run is not None:
        await eventually(lambda: run.state is not CheckupState.RUNNING, "the check's end")
    await engine.cache.checkup.healer._sweeps.settle(None)


async def test_patrol_looks_at_everything_once_a_week(
    pulled: Engine,
    looked_at: list[tuple[BlobDigest, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is due after a pull, all of it after a week, and nothing again right after."""
    await patrol(pulled)
    assert looked_at == []
    wall_s = pulled.context.clock.wall_s
    monkeypatch.setattr(checkup, "CHECK_RATE_BPS", 1e9)
    monkeypatch.setattr(pulled.context.clock, "wall_s", lambda: wall_s() + CHECK_INTERVAL_S + 60)
    await patrol(pulled)
    assert len(looked_at) == 24
    await patrol(pulled)
    assert len(looked_at) == 24
    run = pulled.cache.checkup.find_run()
    assert run is not None
    assert run.order.is_background


async def test_patrol_finds_and_heals_damage_of_public_files(
    pulled: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to ask: the file is whole again, and linked where it was."""
    snapshot, _ = await pulled.find(REPO, "pytorch_model.bin")
    link = pulled.context.tree.snapshot_path(snapshot.id) / "pytorch_model.bin"
    flip_byte(path_of(pulled), 5, keeps_time=True)
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    monkeypatch.setattr(checkup, "CHECK_RATE_BPS", 1e9)
    hub.stats.reset()
    await patrol(pulled)
    await eventually(lambda: states(pulled) == {BLOB: DamageState.HEALED}, "the file is healed")
    assert link.read_bytes() == WEIGHTS
    assert hub.stats.body_bytes == CHUNK_BYTES


async def test_patrol_makes_way_for_a_check_that_somebody_wants(
    pulled: Engine, looked_at: list[tuple[BlobDigest, int]]
) -> None:
    """The gentle one is stopped, not waited for; it loses nothing by that."""
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    await pulled.cache.checkup.patrol_once()
    gentle = pulled.cache.checkup.find_run()
    assert gentle is not None
    run = await check(pulled)
    assert gentle.state in (CheckupState.STOPPED, CheckupState.DONE)
    assert not run.order.is_background
    assert run.state is CheckupState.DONE


async def test_patrol_rate_grows_with_a_store_that_a_week_is_too_short_for(
    pulled: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is looked at within the interval, whatever the store's size."""
    monkeypatch.setattr(checkup, "CHECK_RATE_BPS", 1.0)
    monkeypatch.setattr(checkup, "CHECK_INTERVAL_S", 1.0)
    row = replace(await find_row(pulled), verified_wall_s=1.0)
    await pulled.context.index.call(lambda i: i.blobs.put(row))
    await pulled.cache.checkup.patrol_once()
    run = pulled.cache.checkup.find_run()
    assert run is not None
    await eventually(lambda: run.blobs_total > 0, "the check has begun")
    assert run.order.rate_bps == 2 * MODEL_BYTES
    await pulled.cache.checkup.stop()


async def test_patrol_begins_with_the_daemon_and_ends_with_it(
    pulled: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look is after the interval, not at start, where others want the disk."""
    monkeypatch.setattr(checkup, "PATROL_INTERVAL_S", 0.01)
    bare = replace(await find_row(pulled), is_proven=False, table=None)
    await pulled.context.index.call(lambda i: i.blobs.put(bare))
    pulled.cache.checkup.open()
    await eventually(lambda: pulled.cache.checkup.find_run() is not None, "a check")
    await pulled.cache.checkup.close()
    assert list_open_files(pulled.root / "blobs") == []


async def test_check_remembers_damage_across_a_restart(make_cache: MakeCache, hub: Hub) -> None:
    """What is not healed is still known, and healed, by the next daemon."""
    first = await make_cache("same")
    assert (await first.pull(REPO)).error is None
    flip_byte(path_of(first), 0, keeps_time=True)
    await check(first)
    await first.close()
    mode = (first.root / CHECK_FILE_NAME).stat().st_mode & 0o777
    assert mode == 0o600
    second = await make_cache("same")
    assert states(second) == {BLOB: DamageState.QUARANTINED}
    await patrol(second)
    await eventually(lambda: states(second) == {BLOB: DamageState.HEALED}, "the file is healed")


def test_checkup_find_left_distrusts_times_of_the_future() -> None:
    """A clock that was wrong for a while does not keep files from being looked at."""
    from p2pcache.store.checklist import CheckRow

    def row(verified_wall_s: float, *, is_proven: bool = True) -> CheckRow:
        return CheckRow(BLOB, 1, is_proven, True, verified_wall_s)

    rows = [row(5.0), row(10.0), row(15.0), row(25.0), row(15.0, is_proven=False)]
    assert checkup.find_left(rows, 10.0, 20.0) == [rows[0], rows[3], rows[4]]
