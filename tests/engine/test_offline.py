"""
Owns the tests of engine.offline: checking a store that no daemon has.

Knows nothing of the command line (tests/cli/test_check.py).
Invariants: the same files and chunks are found as by a daemon; the next daemon knows of them.
Source: engine/offline.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcache.engine import offline
from p2pcache.engine.checkup import CheckOrder, CheckRun, CheckupState
from p2pcache.engine.offline import OfflineCheck
from p2pcache.errors import ConfigError, StoreError, StoreLockedError
from p2pcache.store.damages import DamageState
from p2pcache.store.index import Index
from tests.engine.conftest import CHUNK_BYTES, FILES, MODEL_BYTES, REPO, WEIGHTS, MakeCache
from tests.engine.engine import Engine
from tests.engine.fakepeer import sha256_name
from tests.engine.test_shelf import flip_byte, path_of
from tests.hub import Hub

NAME = "pytorch_model.bin"
BLOB = sha256_name(WEIGHTS)


@pytest.fixture
async def closed(make_cache: MakeCache) -> Engine:
    """An engine that held the model and is closed: its store is nobody's."""
    engine = await make_cache("same")
    assert (await engine.pull(REPO)).error is None
    await engine.close()
    return engine


def check(root: Path, **order: object) -> OfflineCheck:
    """Check a store; returns the check, done."""
    checking = OfflineCheck(root, CheckOrder(**order))  # type: ignore[arg-type]
    with checking.open():
        checking.look_at_all(lambda run: None)
    return checking


async def test_offline_check_of_a_store_in_order_finds_nothing(closed: Engine) -> None:
    """Every byte is looked at, nothing is changed, the lock is given back."""
    for _ in range(2):
        checking = check(closed.root)
        assert checking.run.state is CheckupState.DONE
        assert checking.run.bytes_read == checking.run.bytes_total == MODEL_BYTES
        assert checking.damages == []
    assert path_of(closed).read_bytes() == WEIGHTS


async def test_offline_check_sets_damage_aside_and_the_next_daemon_heals_it(
    closed: Engine, make_cache: MakeCache, hub: Hub
) -> None:
    """Good chunks are kept, links withdrawn; the daemon that comes fetches the rest."""
    flip_byte(path_of(closed), 9 * CHUNK_BYTES, keeps_time=True)
    checking = check(closed.root)
    (damage,) = checking.damages
    assert (damage.blob, damage.chunks) == (BLOB, (9,))
    assert damage.state is DamageState.QUARANTINED
    assert [place.is_linked for place in damage.places] == [True]
    assert not path_of(closed).exists()
    engine = await make_cache("same")
    assert [d.chunks for d in engine.cache.checkup.list_damages()] == [(9,)]
    hub.stats.reset()
    await engine.cache.checkup.healer.heal_all(with_gone=False)
    assert hub.stats.body_bytes == CHUNK_BYTES
    assert path_of(engine).read_bytes() == WEIGHTS
    snapshot, _ = await engine.find(REPO, NAME)
    link = engine.context.tree.snapshot_path(snapshot.id) / NAME
    assert link.read_bytes() == WEIGHTS


async def test_offline_check_names_files_that_are_gone(closed: Engine) -> None:
    """What the index knows and the disk lacks is told once, before its row goes."""
    path_of(closed).unlink()
    (damage,) = check(closed.root).damages
    assert (damage.is_gone, damage.is_public) == (True, True)
    assert [place.path for place in damage.places] == [NAME]


async def test_offline_check_goes_on_in_the_middle_of_a_file(closed: Engine) -> None:
    """Ctrl-C at any step costs nothing that was looked at."""
    reads = []
    for _ in range(40):
        checking = OfflineCheck(closed.root, CheckOrder(rate_bps=8.0 * 4 * CHUNK_BYTES))

        def interrupt(run: CheckRun) -> None:
            if run.state is CheckupState.RUNNING:
                raise KeyboardInterrupt

        with checking.open():
            try:
                checking.look_at_all(interrupt)
            except KeyboardInterrupt:
                assert checking.run.state is CheckupState.STOPPED
        reads.append(checking.run.bytes_read)
        if checking.run.state is CheckupState.DONE:
            break
    assert sum(reads) == MODEL_BYTES
    assert 5 < len(reads) < 40


async def test_offline_check_with_little_time_stops_and_goes_on(closed: Engine) -> None:
    """The time budget ends a check between two steps; the rate makes it end early."""
    runs = [check(closed.root, rate_bps=2.0 * MODEL_BYTES, budget_s=0.05).run for _ in range(2)]
    assert [run.state for run in runs] == [CheckupState.STOPPED] * 2
    last = check(closed.root).run
    assert last.state is CheckupState.DONE
    assert sum(run.bytes_read for run in [*runs, last]) == MODEL_BYTES
    assert check(closed.root, is_anew=True).run.bytes_read == MODEL_BYTES


async def test_offline_check_of_a_rebuilt_index_hashes_whole_files(closed: Engine) -> None:
    """Without chunk tables the digests that name the files decide, and tables are made."""
    for path in closed.root.glob("index.sqlite*"):
        path.unlink()
    flip_byte(path_of(closed), 9 * CHUNK_BYTES)
    (damage,) = check(closed.root).damages
    assert damage.chunks == tuple(range(20))
    index = Index(closed.root / "index.sqlite")
    row = index.blobs.find(sha256_name(FILES["other.safetensors"]))
    assert row is not None
    assert row.is_proven
    assert row.table is not None
    index.close()


async def test_offline_check_of_a_store_in_use_is_refused(engine: Engine) -> None:
    """A daemon runs: it is asked instead, without --offline."""
    await engine.pull(REPO)
    with pytest.raises(StoreLockedError) as caught:
        check(engine.root)
    assert "leave out --offline" in str(caught.value)


def test_offline_check_of_a_folder_without_a_store_makes_none(tmp_path: Path) -> None:
    """A mistyped folder is not made a store."""
    with pytest.raises(ConfigError):
        check(tmp_path)
    assert os.listdir(tmp_path) == []


async def test_offline_check_of_a_file_that_cannot_be_set_aside_goes_on(
    closed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails at one file leaves it condemned; the others are looked at."""
    flip_byte(path_of(closed), 0, keeps_time=True)

    def fail(*_: object) -> None:
        raise StoreError("The disk failed; see the system's log.")

    with monkeypatch.context() as patch:
        patch.setattr(offline, "keep_good_chunks", fail)
        checking = check(closed.root)
    assert checking.run.blobs_done == len(FILES)
    again = check(closed.root)
    assert [d.chunks for d in again.damages] == [(0,)]


async def test_offline_check_distrusts_a_condemned_row(closed: Engine) -> None:
    """A file that a daemon was about to set aside when it was killed is set aside now."""
    index = Index(closed.root / "index.sqlite")
    index.checks.condemn(BLOB)
    row = index.blobs.find(BLOB)
    assert row is not None
    index.blobs.put(replace(row, verified_wall_s=4e9))
    index.close()
    flip_byte(path_of(closed), 3 * CHUNK_BYTES, keeps_time=True)
    assert [d.chunks for d in check(closed.root).damages] == [(3,)]
