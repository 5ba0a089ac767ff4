"""
Owns the tests of engine.leases and engine.pins: what protects a snapshot, over time and restarts.

Knows nothing of eviction.
Invariants: a lease ends; a clock that jumps neither ends it early nor makes it eternal; pins
survive the loss of the index.
Source: engine/leases.py, engine/pins.py; design.md §3.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.engine import leases as leases_module
from p2pcache.engine import pins as pins_module
from p2pcache.engine.leases import LEASE_TTL_S_MAX, Leases
from p2pcache.errors import DaemonBusyError, InputError, NotFoundError, StoreError
from p2pcache.store.catalogue import RefRow
from p2pcache.store.index import Index
from p2pcache.store.pinfile import read_pins, restore_pins
from tests.engine.conftest import REPO, MakeCache
from tests.engine.engine import Engine

COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
FIRST = SnapshotId(RepoId("hf", "models", "org/model"), COMMIT)
SECOND = SnapshotId(RepoId("hf", "models", "org/model"), OTHER_COMMIT)


class JumpingClock(ManualClock):
    """A clock whose wall reading somebody sets."""

    def set_wall(self, wall_s: float) -> None:
        """Set the wall clock alone."""
        self._wall_s = wall_s


@pytest.fixture
def clock() -> JumpingClock:
    """A clock that the test moves."""
    return JumpingClock()


@pytest.fixture
async def manual(make_cache: MakeCache, clock: JumpingClock) -> Engine:
    """Open an engine on that clock."""
    return await make_cache("m", clock=clock)


async def open_leases(engine: Engine) -> Leases:
    """Return what a daemon that starts now knows of leases."""
    leases = Leases(engine.context)
    await leases.load()
    return leases


async def list_rows(engine: Engine) -> list[str]:
    """Return the ids of the leases in the index."""
    rows = await engine.context.index.call(lambda index: index.roots.list_leases())
    return [row.id for row in rows]


async def test_lease_holds_for_its_time_and_no_longer(manual: Engine, clock: JumpingClock) -> None:
    """Renewing begins the time anew; what has ended protects nothing and is not renewed."""
    leases = await open_leases(manual)
    lease = await leases.grant(FIRST, 60.0, "loader 1")
    assert leases.is_leased(FIRST)
    assert not leases.is_leased(SECOND)
    clock.advance(59)
    assert (await leases.renew(lease.id)).expires_wall_s == clock.wall_s() + 60
    clock.advance(59)
    assert leases.is_leased(FIRST)
    await leases.renew(lease.id, 10.0)
    clock.advance(10)
    assert not leases.is_leased(FIRST)
    assert leases.list_all() == []
    with pytest.raises(NotFoundError, match="ask for a new one"):
        await leases.renew(lease.id)
    with pytest.raises(NotFoundError):
        await leases.end(lease.id)
    assert await list_rows(manual) == [lease.id]
    await leases.forget_ended()
    assert await list_rows(manual) == []


async def test_lease_of_several_holders_ends_with_the_last(
    manual: Engine, clock: JumpingClock
) -> None:
    """Each has its own; ending one leaves the other."""
    leases = await open_leases(manual)
    first, second = [await leases.grant(FIRST, ttl_s, "") for ttl_s in (60.0, 30.0)]
    assert [lease.id for lease in leases.list_all()] == [second.id, first.id]
    await leases.end(first.id)
    assert leases.is_leased(FIRST)
    assert await list_rows(manual) == [second.id]
    clock.advance(30)
    assert not leases.is_leased(FIRST)


async def test_lease_survives_a_restart_with_what_it_has_left(
    manual: Engine, clock: JumpingClock
) -> None:
    """A loader goes on renewing the same lease; one that ended in between is forgotten."""
    leases = await open_leases(manual)
    long = await leases.grant(FIRST, 60.0, "loader")
    await leases.grant(SECOND, 5.0, "")
    clock.advance(20)
    again = await open_leases(manual)
    assert [(lease.id, lease.holder) for lease in again.list_all()] == [(long.id, "loader")]
    assert await list_rows(manual) == [long.id]
    clock.advance(39)
    assert again.is_leased(FIRST)
    clock.advance(1)
    assert not again.is_leased(FIRST)


@pytest.mark.parametrize("jump_s", [-1e9, -1.0, 1e9])
async def test_lease_is_not_moved_by_a_wall_clock_that_jumps(
    manual: Engine, clock: JumpingClock, jump_s: float
) -> None:
    """While the daemon runs, its own clock counts."""
    leases = await open_leases(manual)
    await leases.grant(FIRST, 60.0, "")
    clock.set_wall(clock.wall_s() + jump_s)
    clock.advance(59)
    assert leases.is_leased(FIRST)
    clock.advance(1)
    assert not leases.is_leased(FIRST)


async def test_lease_is_not_eternal_after_a_clock_that_was_set_back(
    manual: Engine, clock: JumpingClock
) -> None:
    """After a restart in the past no lease has more left than the longest one may ask for."""
    leases = await open_leases(manual)
    await leases.grant(FIRST, 60.0, "")
    clock.set_wall(clock.wall_s() - 1e9)
    again = await open_leases(manual)
    assert again.is_leased(FIRST)
    clock.advance(LEASE_TTL_S_MAX)
    assert not again.is_leased(FIRST)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, LEASE_TTL_S_MAX + 1, float("nan"), float("inf")])
async def test_lease_of_an_impossible_time_is_refused(manual: Engine, ttl_s: float) -> None:
    """Longer than a day is what pins are for."""
    leases = await open_leases(manual)
    with pytest.raises(InputError, match="or pin the model"):
        await leases.grant(FIRST, ttl_s, "")
    lease = await leases.grant(FIRST, 60.0, "")
    if ttl_s:
        with pytest.raises(InputError):
            await leases.renew(lease.id, ttl_s)


async def test_leases_are_bounded(
    manual: Engine, clock: JumpingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that leases in a loop cannot fill the index; ended ones do not count."""
    monkeypatch.setattr(leases_module, "LEASES_MAX", 2)
    leases = await open_leases(manual)
    for _ in range(2):
        await leases.grant(FIRST, 60.0, "")
    with pytest.raises(DaemonBusyError):
        await leases.grant(FIRST, 60.0, "")
    clock.advance(60)
    await leases.grant(FIRST, 60.0, "")


# --- pins ---


def make_pin(revision: str, commit: str = COMMIT, wall_s: float = 1.0) -> RefRow:
    """Make a pin."""
    return RefRow(FIRST.repo, revision, commit, wall_s)


async def restore(engine: Engine, path: Path) -> list[RefRow]:
    """Return the pins of an index that was made anew beside the store's file."""

    def make() -> list[RefRow]:
        index = Index(path)
        restore_pins(engine.root, index)
        pins = index.roots.list_pins()
        index.close()
        return pins

    return await engine.context.in_bulk(make)


async def test_pins_survive_the_loss_of_the_index(engine: Engine, tmp_path: Path) -> None:
    """The file says what the index says after every change."""
    pins = engine.cache.space.pins
    await pins.put(make_pin("main"))
    await pins.put(make_pin("v1", OTHER_COMMIT, 2.0))
    await pins.put(make_pin("main", OTHER_COMMIT, 3.0))
    expected = [make_pin("v1", OTHER_COMMIT, 2.0), make_pin("main", OTHER_COMMIT, 3.0)]
    assert await pins.list_all() == expected
    assert read_pins(engine.root) == expected
    assert await restore(engine, tmp_path / "new.sqlite") == expected
    assert await pins.remove(ModelReference(FIRST.repo, "main"))
    assert not await pins.remove(ModelReference(FIRST.repo, "main"))
    assert await restore(engine, tmp_path / "newer.sqlite") == expected[:1]
    await pins.put(make_pin("main", OTHER_COMMIT))
    await pins.remove_all(SECOND)
    assert await pins.list_all() == []
    assert read_pins(engine.root) == []


async def test_pin_is_in_the_file_before_it_is_in_the_index(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told so has it in both; a crash in between errs to the safe side."""
    pins = engine.cache.space.pins
    await pins.put(make_pin("main"))
    roots = await engine.context.index.call(lambda index: index.roots)

    def fail(*_: object) -> None:
        raise StoreError("The daemon was killed here.")

    with monkeypatch.context() as patch:
        patch.setattr(roots, "put_pin", fail)
        with pytest.raises(StoreError):
            await pins.put(make_pin("v1"))
    assert read_pins(engine.root) == [make_pin("main"), make_pin("v1")]
    with monkeypatch.context() as patch:
        patch.setattr(pins_module, "write_pins", fail)
        with pytest.raises(StoreError):
            await pins.remove(ModelReference(FIRST.repo, "main"))
    assert await pins.list_all() == []
    assert make_pin("main") in read_pins(engine.root)


async def test_pins_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are written with each change; moving one is always possible."""
    monkeypatch.setattr(pins_module, "PINS_MAX", 1)
    pins = engine.cache.space.pins
    await pins.put(make_pin("main"))
    await pins.put(make_pin("main", OTHER_COMMIT))
    with pytest.raises(DaemonBusyError):
        await pins.put(make_pin("v1"))


async def test_pin_of_what_is_not_known_is_refused(engine: Engine) -> None:
    """A pin protects what is here; an evicted model is pulled first."""
    with pytest.raises(NotFoundError, match="p2pcache pull"):
        await engine.cache.space.pin(make_pin("main"))
    with pytest.raises(NotFoundError, match="p2pcache pull"):
        await engine.cache.space.lease(FIRST, 60.0, "")
    assert await engine.cache.space.pins.list_all() == []
    assert await list_rows(engine) == []


async def test_pin_of_a_pull_is_in_the_file(engine: Engine) -> None:
    """The pull's own pin is as durable as one that is made by itself."""
    job = await engine.pull(REPO, is_pin=True)
    saved = json.loads((engine.root / "pins.json").read_text())
    assert [(pin["model"], pin["revision"], pin["commit"]) for pin in saved["pins"]] == [
        (REPO, "main", job.commit)
    ]
