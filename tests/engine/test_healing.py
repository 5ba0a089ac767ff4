"""
Owns the tests of engine.healing: what becomes of damaged files.

Knows nothing of how damage is found (test_checkup.py).
Invariants: nothing that the hub would refuse to anybody is fetched without being asked for.
Source: engine/healing.py.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.core.residency import State
from p2pcache.engine.checkup import CheckOrder, CheckRun, CheckupState
from p2pcache.engine.healing import LOST_DETAIL, RESTRICTED_DETAIL
from p2pcache.store.damages import Damage, DamageState
from p2pcache.store.index import Index
from tests.engine.conftest import (
    CHUNK_BYTES,
    FILES,
    GATED,
    REPO,
    TOKEN,
    WEIGHTS,
    MakeCache,
    MakePeer,
)
from tests.engine.engine import Engine, eventually
from tests.engine.fakepeer import sha256_name
from tests.engine.test_shelf import flip_byte, path_of
from tests.hub import Hub

NAME = "pytorch_model.bin"
BLOB = sha256_name(WEIGHTS)
SECRET = sha256_name(FILES[NAME] + b"secret")


@pytest.fixture
async def pulled(engine: Engine) -> Engine:
    """An engine that holds the model."""
    job = await engine.pull(REPO)
    assert job.error is None
    return engine


async def check(engine: Engine, *, is_repair: bool) -> CheckRun:
    """Check to the end; returns the check."""
    run = await engine.cache.checkup.start(CheckOrder(is_repair=is_repair))
    await eventually(lambda: run.state is not CheckupState.RUNNING, "the check's end")
    return run


def find_damage(engine: Engine, blob: BlobDigest = BLOB) -> Damage:
    """Return what is known of a damaged file."""
    return {damage.blob: damage for damage in engine.cache.checkup.list_damages()}[blob]


async def links_of(engine: Engine, repo: str, token: str | None = None) -> list[Path]:
    """Return where the hub tree has the weights of a repository."""
    snapshot, _ = await engine.find(repo, NAME, token)
    return [engine.context.tree.snapshot_path(snapshot.id) / NAME]


async def test_heal_of_a_public_file_fetches_its_bad_chunks_and_links_it_again(
    pulled: Engine, hub: Hub
) -> None:
    """Two chunks from the hub; the file is published, proven and where it was in the tree."""
    (link,) = await links_of(pulled, REPO)
    for chunk in (0, 11):
        flip_byte(path_of(pulled), chunk * CHUNK_BYTES, keeps_time=True)
    hub.stats.reset()
    run = await check(pulled, is_repair=True)
    assert run.state is CheckupState.DONE
    assert find_damage(pulled).state is DamageState.HEALED
    assert hub.stats.body_bytes == 2 * CHUNK_BYTES
    assert path_of(pulled).read_bytes() == WEIGHTS
    assert link.samefile(path_of(pulled))
    assert link.read_bytes() == WEIGHTS


async def test_heal_with_the_hub_gone_comes_from_a_peer(
    make_cache: MakeCache, make_peer: MakePeer, hub: Hub
) -> None:
    """One honest peer is enough; the proof is against the digest that the hub once gave."""
    engine = await make_cache()
    assert (await engine.pull(REPO)).error is None
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    flip_byte(path_of(engine), 4 * CHUNK_BYTES, keeps_time=True)
    await hub.set_listening(hub=False, cdn=False)
    run = await check(engine, is_repair=True)
    assert run.state is CheckupState.DONE
    assert find_damage(engine).state is DamageState.HEALED
    assert path_of(engine).read_bytes() == WEIGHTS


async def test_heal_without_anybody_to_ask_says_so_and_succeeds_later(
    pulled: Engine, hub: Hub
) -> None:
    """The hub is away: the file stays quarantined, with the reason, until it is back."""
    flip_byte(path_of(pulled), 0, keeps_time=True)
    await hub.set_listening(hub=False, cdn=False)
    await check(pulled, is_repair=True)
    damage = find_damage(pulled)
    assert damage.state is DamageState.QUARANTINED
    assert damage.detail
    await hub.set_listening(hub=True, cdn=True)
    run = await check(pulled, is_repair=True)
    assert run.state is CheckupState.DONE
    assert find_damage(pulled).state is DamageState.HEALED


async def test_heal_of_a_restricted_file_waits_for_its_next_pull(engine: Engine, hub: Hub) -> None:
    """Without a token nobody asks for it, not even the hub's own answer is tried for its bytes."""
    assert (await engine.pull(GATED, token=TOKEN)).error is None
    (link,) = await links_of(engine, GATED, TOKEN)
    flip_byte(path_of(engine, SECRET), 0, keeps_time=True)
    path_of(engine, SECRET).chmod(0o400)
    hub.stats.reset()
    run = await check(engine, is_repair=True)
    assert run.state is CheckupState.DONE
    damage = find_damage(engine, SECRET)
    assert (damage.state, damage.detail) == (DamageState.QUARANTINED, RESTRICTED_DETAIL)
    assert (damage.is_public, hub.stats.body_bytes) == (False, 0)
    assert not os.path.lexists(link)
    assert (await engine.pull(GATED, token=TOKEN)).error is None
    assert find_damage(engine, SECRET).state is DamageState.HEALED
    assert link.read_bytes() == FILES[NAME] + b"secret"
    assert path_of(engine, SECRET).stat().st_mode & 0o777 == 0o400


async def test_heal_of_a_file_in_no_repository_is_not_tried(pulled: Engine) -> None:
    """Nobody can be asked for a digest alone."""
    snapshot, _ = await pulled.find(REPO, NAME)
    flip_byte(path_of(pulled), 0, keeps_time=True)
    await pulled.context.index.call(lambda index: index.catalogue.remove_snapshot(snapshot.id))
    await check(pulled, is_repair=True)
    damage = find_damage(pulled)
    assert (damage.state, damage.detail) == (DamageState.LOST, LOST_DETAIL)


async def test_heal_of_a_deleted_file_is_for_who_asks_for_it(pulled: Engine, hub: Hub) -> None:
    """The background does not bring back what somebody deleted; --repair does."""
    path_of(pulled).unlink()
    await check(pulled, is_repair=False)
    hub.stats.reset()
    await pulled.cache.checkup.healer.heal_all(with_gone=False)
    assert find_damage(pulled).state is DamageState.QUARANTINED
    assert hub.stats.body_bytes == 0
    await check(pulled, is_repair=True)
    assert find_damage(pulled).state is DamageState.HEALED
    assert path_of(pulled).read_bytes() == WEIGHTS


async def test_file_that_somebody_else_healed_is_linked_where_it_was(
    pulled: Engine, hub: Hub
) -> None:
    """A reader brings the file; every snapshot that had it has it again."""
    (link,) = await links_of(pulled, REPO)
    snapshot, entry = await pulled.find(REPO, NAME)
    other = SnapshotId(RepoId("hf", "models", "org/fork"), snapshot.id.commit)

    def put(index: Index) -> None:
        index.catalogue.put_snapshot(
            type(snapshot)(other, snapshot.files), is_confirmed=True, about=None, wall_s=1.0
        )
        index.catalogue.set_public(other, 1.0)

    await pulled.context.index.call(put)
    tree = pulled.context.tree
    tree.open_repo(other.repo, is_public=True)
    tree.publish_tree(type(snapshot)(other, snapshot.files))
    tree.publish_file(other, entry, path_of(pulled))
    fork = tree.snapshot_path(other) / NAME
    flip_byte(path_of(pulled), 0, keeps_time=True)
    await check(pulled, is_repair=False)
    assert not os.path.lexists(fork)
    assert not os.path.lexists(link)
    assert await pulled.read(REPO, NAME) == WEIGHTS
    await eventually(lambda: fork.exists() and link.exists(), "the links are back")
    assert fork.read_bytes() == link.read_bytes() == WEIGHTS


async def test_heal_does_not_link_a_file_where_it_was_not(pulled: Engine) -> None:
    """A snapshot of which somebody wanted other files only stays as he wanted it."""
    (link,) = await links_of(pulled, REPO)
    link.unlink()
    flip_byte(path_of(pulled), 0, keeps_time=True)
    await check(pulled, is_repair=True)
    assert find_damage(pulled).state is DamageState.HEALED
    assert not os.path.lexists(link)


async def test_damage_that_a_reader_finds_is_listed_like_any_other(pulled: Engine) -> None:
    """A file that changed under us is damage whoever notices, and healed by who reads it."""
    flip_byte(path_of(pulled), 6 * CHUNK_BYTES)
    assert await pulled.read(REPO, NAME) == WEIGHTS
    damage = find_damage(pulled)
    assert (damage.chunks, damage.state) == ((6,), DamageState.HEALED)
    assert pulled.cache.checkup.healer.damaged_chunks_total == 1


async def test_stop_while_it_heals_ends_the_check(pulled: Engine, hub: Hub) -> None:
    """Who stops a check does not wait for its fetches; they go on."""
    flip_byte(path_of(pulled), 0, keeps_time=True)
    hub.set_faults(rate_bytes_per_s=1000)
    run = await pulled.cache.checkup.start(CheckOrder(is_repair=True))
    await eventually(
        lambda: (
            find_damage(pulled).state is DamageState.HEALING
            if pulled.cache.checkup.list_damages()
            else False
        ),
        "the file is being healed",
    )
    await pulled.cache.checkup.stop()
    assert run.state is CheckupState.STOPPED
    hub.set_faults(rate_bytes_per_s=None)
    await eventually(
        lambda: find_damage(pulled).state is DamageState.HEALED, "the file is healed all the same"
    )


async def test_damaged_model_is_corrupt_until_it_is_healed(pulled: Engine) -> None:
    """Not partial: something was here, and rotted; when all is whole again it says since when."""
    row = await pulled.cache.librarian.find_cached(ModelReference.parse(REPO))
    assert row is not None
    files = list(row.snapshot.files)
    before = await pulled.cache.measure(files)
    assert before.state is State.RESIDENT
    assert before.verified_wall_s == pytest.approx(time.time(), abs=60)
    flip_byte(path_of(pulled, BLOB), CHUNK_BYTES + 1)
    await check(pulled, is_repair=False)
    damaged = await pulled.cache.measure(files)
    assert (damaged.state, damaged.verified_wall_s) == (State.CORRUPT, None)
    assert damaged.bytes_missing == CHUNK_BYTES
    await check(pulled, is_repair=True)
    await eventually(lambda: not pulled.cache.checkup.healer.is_damaged(BLOB), "healed")
    healed = await pulled.cache.measure(files)
    assert healed.state is State.RESIDENT
