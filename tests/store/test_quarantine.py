"""
Owns the tests of store.quarantine: a damaged file leaves, its good chunks stay.

Knows nothing of how damage is found in time, or of who mends it.
Invariants: after a crash at any step nothing wrong is held for right, and doing it again ends as
if there had been no crash.
Source: store/quarantine.py; docs/reference/store-layout.md.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import StoreError
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.check import FileCheck
from p2pcache.store.damages import DamagePlace
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.quarantine import Wreck, condemn, keep_good_chunks, withdraw
from p2pcache.store.rebuild import recover
from tests.samples import COMMIT, OTHER_COMMIT, PEER_ID, Sample, make_sample

CHUNK = 4096
BAD = (2, 7)
GOOD = sorted(set(range(10)) - set(BAD))
REPO = RepoId("hf", "models", "org/name")
pytestmark = pytest.mark.usefixtures("small_chunks")


class CrashError(BaseException):
    """The process ends here, as far as the code under test knows."""


@dataclass
class World:
    """A store with one published model of one file, in two snapshots."""

    store: FileBlobStore
    tree: HubTree
    index: Index
    sample: Sample
    withdrawn: list[DamagePlace] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Where the blob lies."""
        return self.store.path_of(self.sample.blob)

    @property
    def links(self) -> list[Path]:
        """Where the hub tree has it."""
        repo = self.tree.repo_path(REPO)
        snapshots = [repo / "snapshots" / commit / "a/b.bin" for commit in (COMMIT, OTHER_COMMIT)]
        return [*snapshots, repo / "blobs" / self.sample.blob.hex]

    def publish(self) -> None:
        """Publish the blob, link it, put its row."""
        partial = self.store.open_partial(self.sample.blob, self.sample.layout)
        for chunk in self.sample.chunks():
            partial.put(chunk, PEER_ID)
        stamp = self.store.publish(partial, self.sample.proof(), is_public=True)
        table = partial.snapshot().table
        partial.close()
        self.store.discard(self.sample.blob)
        self.index.blobs.put(BlobRow(self.sample.blob, stamp, table, True, True, 5.0))
        entry = FileEntry("a/b.bin", len(self.sample.content), self.sample.blob, "ab" * 20)
        for commit in (COMMIT, OTHER_COMMIT):
            snapshot = Snapshot.of(SnapshotId(REPO, commit), [entry])
            self.index.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=1.0)
            self.tree.publish_tree(snapshot)
            self.tree.publish_file(snapshot.id, entry, self.path)

    def damage(self, *chunks: int) -> None:
        """Change a byte in some chunks, in place, and leave no trace of it."""
        status = self.path.stat()
        fd = os.open(self.path, os.O_RDWR)
        for index in chunks:
            byte = os.pread(fd, 1, index * CHUNK + 11)[0]
            os.pwrite(fd, bytes([byte ^ 0x40]), index * CHUNK + 11)
        os.close(fd)
        os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def set_aside(self, *, unseen_from: int | None = None, is_adopted: bool = False) -> bool:
        """Do what a check does with what it finds; returns whether there was damage."""
        row = self.index.blobs.find(self.sample.blob)
        found = self.store.find_blob(self.sample.blob)
        if row is None or found is None:
            if found is not None:
                os.close(found.fd)
            return False
        try:
            walk = FileCheck(found, self.sample.blob, row.table)
            buffer = memoryview(bytearray(CHUNK))
            while not walk.is_over and walk.next_chunk != unseen_from:
                walk.step(buffer, 1)
            if not walk.bad and walk.is_right:
                return False
            self.withdrawn = withdraw(self.store, self.tree, condemn(self.index, row.blob))
            bad = frozenset(walk.bad)
            wreck = Wreck(row.blob, found, row.table, bad, walk.next_chunk, is_adopted)
            keep_good_chunks(self.store, wreck)
            self.index.blobs.remove(row.blob)
            return True
        finally:
            os.close(found.fd)

    def restart(self) -> None:
        """Open the index again and recover, as the next start does."""
        self.index.close()
        self.index = Index(self.index.path)
        recover(self.store, self.tree, self.index, wall_s=9.0)

    def find_held(self) -> list[int]:
        """Return the chunks that the partial says it has; each has to be right."""
        if not self.store.is_filling(self.sample.blob):
            return []
        partial = self.store.open_partial(self.sample.blob, self.sample.layout)
        try:
            held = sorted(partial.snapshot().have)
            for index in held:
                view = memoryview(bytearray(self.sample.layout.length_of(index)))
                partial.read_into(self.sample.layout.offset_of(index), view)
                assert view == self.sample.bytes_of(index), f"chunk {index} is held and wrong"
            return held
        finally:
            partial.close()


@pytest.fixture
def world(tmp_path: Path, small_chunks: int) -> Iterator[World]:
    """A store with a file in good order."""
    made = World(
        FileBlobStore(tmp_path),
        HubTree(tmp_path / "hub"),
        Index(tmp_path / "index.sqlite"),
        make_sample(10 * small_chunks - 100, seed=3),
    )
    recover(made.store, made.tree, made.index, wall_s=1.0)
    made.publish()
    yield made
    made.index.close()


def test_quarantine_keeps_the_file_and_its_good_chunks(world: World) -> None:
    """The same inode, closed to others, without a copy; the rest is to be fetched."""
    inode = world.path.stat().st_ino
    world.damage(*BAD)
    assert world.set_aside()
    partial_path, _ = world.store.partial_paths_of(world.sample.blob)
    assert partial_path.stat().st_ino == inode
    assert partial_path.stat().st_mode & 0o777 == 0o600
    assert world.find_held() == GOOD
    assert not world.path.exists()
    assert world.index.blobs.find(world.sample.blob) is None
    assert not any(os.path.lexists(link) for link in world.links)


def test_quarantine_tells_which_snapshots_had_the_file(world: World) -> None:
    """A place that was not linked is told apart: it is not to be linked later."""
    world.links[1].unlink()
    world.damage(*BAD)
    world.set_aside()
    linked = {place.snapshot_id.commit: place.is_linked for place in world.withdrawn}
    assert linked == {COMMIT: True, OTHER_COMMIT: False}
    assert str(world.withdrawn[0]).endswith(": a/b.bin")


def test_quarantine_leaves_what_a_program_put_into_the_tree_itself(world: World) -> None:
    """A client's own good copy in the tree is not taken for ours, though it has the name."""
    own = world.links[-1]
    own.unlink()
    own.write_bytes(world.sample.content)
    world.damage(*BAD)
    world.set_aside()
    assert own.read_bytes() == world.sample.content
    assert world.links[0].read_bytes() == world.sample.content


def test_quarantine_heals_in_place(world: World) -> None:
    """Fetching the bad chunks alone makes the file whole again."""
    world.damage(*BAD)
    world.set_aside()
    partial = world.store.open_partial(world.sample.blob, world.sample.layout)
    for index in BAD:
        partial.put(world.sample.chunk(index), PEER_ID)
    world.store.publish(partial, world.sample.proof(), is_public=True)
    partial.close()
    assert world.path.read_bytes() == world.sample.content


def test_quarantine_reader_sees_wrong_bytes_become_right_and_never_the_reverse(
    world: World,
) -> None:
    """Whoever has the damaged file open keeps the inode through all of it."""
    world.damage(*BAD)
    reader = os.open(world.path, os.O_RDONLY)
    world.set_aside()
    partial = world.store.open_partial(world.sample.blob, world.sample.layout)
    for index in range(10):
        partial.put(world.sample.wrong_chunk(index), PEER_ID)  # what is held is not written again
        content = os.pread(reader, CHUNK, index * CHUNK)
        assert (content == world.sample.bytes_of(index)) == (index not in BAD)
    partial.forget(list(BAD))
    for index in BAD:
        partial.put(world.sample.chunk(index), PEER_ID)
    partial.close()
    assert os.pread(reader, 1 << 20, 0) == world.sample.content
    os.close(reader)


def test_quarantine_of_a_file_looked_at_in_part_keeps_the_rest_as_hints(world: World) -> None:
    """Chunks behind the end of the walk are hashed when the partial is opened, not believed."""
    world.damage(*BAD)
    world.set_aside(unseen_from=5)
    assert world.find_held() == GOOD


@pytest.mark.parametrize("size", [0, 5 * CHUNK + 7, 100 * CHUNK])
def test_quarantine_of_a_file_of_another_size_keeps_what_is_there(world: World, size: int) -> None:
    """A file that was cut off, or grew, is brought to its size first."""
    os.truncate(world.path, size)
    world.set_aside()
    assert world.find_held() == [i for i in range(10) if (i + 1) * CHUNK <= size or size > 1e5]


def test_quarantine_without_a_table_drops_the_file(world: World) -> None:
    """Nothing can be believed of a file whose chunks were never proven."""
    row = world.index.blobs.find(world.sample.blob)
    assert row is not None
    world.damage(*BAD)
    world.index.blobs.put(BlobRow(row.blob, row.stamp, None, False, True, 0.0))
    assert world.set_aside()
    assert list((world.store.root / "partial").iterdir()) == []
    assert not world.path.exists()


# --- somebody else's file ---


def test_quarantine_of_a_file_with_another_name_copies_its_good_chunks(
    world: World, tmp_path: Path
) -> None:
    """The other owner's file stays as it is, to the byte, the mode and the time."""
    other = tmp_path / "theirs.bin"
    other.hardlink_to(world.path)
    world.damage(*BAD)
    before, status = other.read_bytes(), other.stat()
    assert world.set_aside()
    assert world.find_held() == GOOD
    partial = world.store.open_partial(world.sample.blob, world.sample.layout)
    for index in BAD:
        partial.put(world.sample.chunk(index), PEER_ID)
    partial.close()
    after = other.stat()
    assert other.read_bytes() == before != world.sample.content
    assert (after.st_mode, after.st_mtime_ns) == (status.st_mode, status.st_mtime_ns)


def test_quarantine_of_an_adopted_file_copies_its_good_chunks(world: World) -> None:
    """What the index says is somebody else's is not written to, whatever its links say."""
    fd = os.open(world.path, os.O_RDONLY)
    world.damage(*BAD)
    before = os.pread(fd, 1 << 20, 0)
    assert world.set_aside(is_adopted=True)
    assert world.find_held() == GOOD
    partial = world.store.open_partial(world.sample.blob, world.sample.layout)
    partial.put(world.sample.chunk(BAD[0]), PEER_ID)
    partial.close()
    assert os.pread(fd, 1 << 20, 0) == before
    os.close(fd)


def test_quarantine_of_a_shared_file_without_room_drops_its_chunks(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is fetched again; nothing is left half copied."""
    (tmp_path / "theirs.bin").hardlink_to(world.path)
    world.damage(*BAD)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert world.set_aside()
    assert not world.path.exists()
    assert list((world.store.root / "partial").iterdir()) == []


# --- who comes in between ---


def test_quarantine_of_a_file_that_was_replaced_meanwhile_leaves_the_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good file that took the damaged one's name is not taken away."""
    row, found = world.index.blobs.find(world.sample.blob), world.store.find_blob(world.sample.blob)
    assert row is not None
    assert found is not None
    world.path.unlink()
    world.path.write_bytes(world.sample.content)
    keep_good_chunks(world.store, Wreck(row.blob, found, row.table, frozenset(BAD), 10))
    os.close(found.fd)
    assert world.path.read_bytes() == world.sample.content


def test_quarantine_beside_a_partial_leaves_that_alone(world: World) -> None:
    """Somebody who fills the blob already keeps his file and his record."""
    partial = world.store.open_partial(world.sample.blob, world.sample.layout)
    partial.put(world.sample.chunk(2), PEER_ID)
    partial.flush()
    world.damage(*BAD)
    assert world.set_aside()
    assert sorted(partial.snapshot().have) == [2]
    partial.close()
    assert world.find_held() == [2]
    assert not world.path.exists()


# --- crashes and failures ---

STEPS = ("rename", "unlink", "fsync", "fdatasync", "ftruncate", "write", "open", "chmod")


def fail_at(
    monkeypatch: pytest.MonkeyPatch, number: int, failure: Callable[[], BaseException]
) -> list[str]:
    """Let the n-th call that touches a disk fail; returns the list of the calls, as they come."""
    seen: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            seen.append(name)
            if len(seen) == number:
                raise failure()
            return real(*arguments, **keywords)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return seen


def count_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> int:
    """Count the calls that setting the file aside makes."""
    with monkeypatch.context() as patch:
        seen = fail_at(patch, -1, AssertionError)
        assert world.set_aside()
    return len(seen)


POINTS_MAX = 60


@pytest.mark.parametrize("is_shared", [False, True], ids=["ours", "shared"])
@pytest.mark.parametrize("number", range(1, POINTS_MAX))
def test_quarantine_interrupted_anywhere_is_finished_by_the_next_check(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_shared: bool,
) -> None:
    """After a crash nobody is given the file, no link leads to it, and doing it again ends it."""
    if is_shared:
        (tmp_path / "theirs.bin").hardlink_to(world.path)
    world.damage(*BAD)
    with monkeypatch.context() as patch:
        seen = fail_at(patch, number, CrashError)
        try:
            world.set_aside()
        except CrashError:
            pass
        else:
            assert len(seen) < number, "a crash was swallowed"
            assert number > 10, "the steps were not seen"
    condemned = world.index.blobs.find(world.sample.blob)
    was_condemned = condemned is None or not condemned.is_proven
    world.restart()
    row = world.index.blobs.find(world.sample.blob)
    if was_condemned:
        assert row is None or (not row.is_proven and row.table is not None)
        assert not any(os.path.lexists(link) for link in world.links)
    assert set(world.find_held()) <= set(GOOD)
    if world.path.exists():
        assert world.set_aside()
    assert world.find_held() == GOOD
    world.restart()
    assert world.find_held() == GOOD
    names = {path.name for path in (world.store.root / "partial").iterdir()}
    blob = world.sample.blob
    assert names == {f"sha256-{blob.hex}", f"sha256-{blob.hex}.have"}


@pytest.mark.parametrize("number", range(1, 30))
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_quarantine_on_a_failing_disk_holds_nothing_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """Chunks may be lost, or the file stays condemned; a wrong one is never held."""
    world.damage(*BAD)
    with monkeypatch.context() as patch:
        fail_at(patch, number, lambda: OSError(code, os.strerror(code)))
        try:
            world.set_aside()
        except (StoreError, OSError):
            row = world.index.blobs.find(world.sample.blob)
            assert row is None or not row.is_proven or number < 3
    world.restart()
    assert set(world.find_held()) <= set(GOOD)
    if world.path.exists():
        assert world.set_aside()
        assert world.find_held() == GOOD


def test_quarantine_steps_are_all_interrupted_in_these_tests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranges above reach beyond the last step."""
    world.damage(*BAD)
    assert 10 < count_steps(world, monkeypatch) < 30


def test_quarantine_row_is_condemned_before_its_file_moves(world: World) -> None:
    """The table outlives the crash, so that good chunks can be told from bad ones again."""
    row = world.index.blobs.find(world.sample.blob)
    assert row is not None
    assert len(condemn(world.index, row.blob)) == 2
    again = world.index.blobs.find(row.blob)
    assert again is not None
    assert again.table is not None
    assert again.table.standing is Standing.PROVEN
    assert isinstance(again.table, ChunkTable)
    assert not again.is_proven
    assert [listed.is_condemned for listed in world.index.checks.list_all()] == [True]
