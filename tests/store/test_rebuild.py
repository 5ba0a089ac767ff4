"""
Owns the tests of store.rebuild.

Knows nothing of hubs or peers.
Invariants: after recover() the index names exactly the blobs that are on disk.
Source: store/rebuild.py; design.md §4.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.store.base import FileStamp
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.catalogue import RefRow
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.rebuild import RecoveryReport, recover
from tests.samples import COMMIT, OTHER_COMMIT, PEER_ID, Sample, make_sample

WALL_S = 1_700_000_000.0
FIRST, SECOND = make_sample(1000), make_sample(2000)
REPO = RepoId("hf", "models", "org/name")
ID = SnapshotId(REPO, COMMIT)


@dataclass
class World:
    """A store, its tree and its index."""

    store: FileBlobStore
    tree: HubTree
    index: Index

    def recover(self) -> RecoveryReport:
        """Do what the daemon does at start."""
        return recover(self.store, self.tree, self.index, wall_s=WALL_S)

    def restart_without_index(self) -> None:
        """Lose the index."""
        self.index.close()
        for path in self.index.path.parent.glob("index.sqlite*"):
            path.unlink()
        self.index = Index(self.index.path)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A store as after its first start."""
    world = World(
        FileBlobStore(tmp_path), HubTree(tmp_path / "hub"), Index(tmp_path / "index.sqlite")
    )
    world.recover()
    yield world
    world.index.close()


def publish(world: World, sample: Sample, *, is_public: bool = True) -> BlobRow:
    """Publish a blob, keep its record, put its row."""
    partial = world.store.open_partial(sample.blob, sample.layout)
    for chunk in sample.chunks():
        partial.put(chunk, PEER_ID)
    stamp = world.store.publish(partial, sample.proof(), is_public=is_public)
    partial.close()
    table = ChunkTable(sample.blob, sample.layout, Standing.PROVEN)
    table.set(0, sample.digest_of(0))
    row = BlobRow(sample.blob, stamp, table, True, is_public, 5.0)
    world.index.blobs.put(row)
    return row


def make_entry(path: str, sample: Sample) -> FileEntry:
    """List a sample as an LFS file."""
    return FileEntry(path, len(sample.content), sample.blob, hashlib.sha1(b"x").hexdigest())


SNAPSHOT = Snapshot.of(ID, [make_entry("first.bin", FIRST), make_entry("second.bin", SECOND)])


def test_recover_store_in_order_changes_nothing(world: World) -> None:
    """Rows of files that are there keep what is known of them."""
    publish(world, FIRST)
    world.store.discard(FIRST.blob)
    world.index.was_rebuilt = False
    assert world.recover() == RecoveryReport(False, 0, 0, 0)
    row = world.index.blobs.find(FIRST.blob)
    assert row is not None
    assert (row.is_proven, row.verified_wall_s) == (True, 5.0)


@pytest.mark.parametrize("is_public", [True, False])
def test_recover_file_without_row_gets_one_that_is_unproven(world: World, is_public: bool) -> None:
    """A crash between rename and row loses nothing, and proves nothing; the mode says the rest."""
    known = publish(world, FIRST, is_public=is_public)
    world.index.blobs.remove(FIRST.blob)
    assert world.recover().blobs_found == 1
    row = world.index.blobs.find(FIRST.blob)
    assert row is not None
    assert (row.stamp, row.table, row.is_proven) == (known.stamp, None, False)
    assert (row.is_public, row.verified_wall_s) == (is_public, 0.0)


def test_recover_row_without_file_goes(world: World) -> None:
    """The index never claims what the disk lacks."""
    publish(world, FIRST)
    publish(world, SECOND)
    world.store.discard(FIRST.blob, partial_only=False)
    assert world.recover().blobs_lost == 1
    assert world.index.blobs.find(FIRST.blob) is None
    assert world.index.blobs.find(SECOND.blob) is not None


def test_recover_changed_file_keeps_the_old_stamp(world: World) -> None:
    """Whoever opens it sees that the stamp differs, and hashes it first."""
    row = publish(world, FIRST)
    path = world.store.path_of(FIRST.blob)
    os.utime(path, ns=(1, 1))
    world.recover()
    found = world.index.blobs.find(FIRST.blob)
    assert found is not None
    assert found.stamp == row.stamp != FileStamp(1000, 1, row.stamp.inode)


def test_recover_partial_in_progress_stays(world: World) -> None:
    """What was fetched before the crash is there after it."""
    partial = world.store.open_partial(FIRST.blob, FIRST.layout)
    partial.put(FIRST.chunk(0), PEER_ID)
    partial.close()
    assert world.recover().partials == 1
    again = world.store.open_partial(FIRST.blob, FIRST.layout)
    assert again.snapshot().have.is_full()
    again.close()


def test_recover_leftovers_of_a_published_blob_go(world: World) -> None:
    """The record that stayed until the row was there, and a second partial, are removed."""
    publish(world, FIRST)
    world.store.open_partial(FIRST.blob, FIRST.layout).close()
    assert world.recover().partials == 0
    assert list((world.store.root / "partial").iterdir()) == []


def test_recover_record_without_file_goes(world: World) -> None:
    """A record alone speaks of bytes that are not there."""
    world.store.open_partial(FIRST.blob, FIRST.layout).close()
    (world.store.root / "partial" / f"sha256-{FIRST.blob.hex}").unlink()
    assert world.recover().partials == 0
    assert list((world.store.root / "partial").iterdir()) == []


def test_recover_lost_index_learns_blobs_snapshots_and_refs(world: World) -> None:
    """What the hub tree says is known again, unconfirmed, and public as all its files were."""
    for sample in (FIRST, SECOND):
        publish(world, sample)
    snapshot = SNAPSHOT
    world.tree.publish_tree(snapshot)
    world.tree.publish_ref(REPO, "main", COMMIT)
    world.tree.publish_ref(REPO, "refs/pr/1", COMMIT)
    world.restart_without_index()
    report = world.recover()
    assert (report.was_rebuilt, report.blobs_found) == (True, 2)
    row = world.index.catalogue.find_snapshot(ID)
    assert row is not None
    assert row.snapshot == snapshot
    assert (row.is_confirmed, row.about, row.public_wall_s) == (False, None, 0.0)
    assert world.index.catalogue.find_ref(REPO, "main") == RefRow(REPO, "main", COMMIT, 0.0)
    assert world.index.catalogue.find_ref(REPO, "refs/pr/1") is not None


def test_recover_lost_index_takes_no_part_for_the_whole(world: World) -> None:
    """One public file, which another repository may share, does not make a snapshot public."""
    publish(world, FIRST)
    small = FileEntry("small.txt", 3, BlobDigest("gitsha1", "12" * 20), "12" * 20)
    world.tree.publish_tree(Snapshot.of(ID, [*SNAPSHOT.files, small]))
    world.restart_without_index()
    world.recover()
    row = world.index.catalogue.find_snapshot(ID)
    assert row is not None
    assert row.public_wall_s is None


@pytest.mark.parametrize("publics", [(True, False), (False, False), ()])
def test_recover_snapshot_with_a_restricted_or_no_blob_is_not_public(
    world: World, publics: tuple[bool, ...]
) -> None:
    """Public is only what every file that is here says; nothing here says nothing."""
    for sample, is_public in zip((FIRST, SECOND), publics, strict=False):
        publish(world, sample, is_public=is_public)
    world.tree.publish_tree(SNAPSHOT)
    world.restart_without_index()
    world.recover()
    row = world.index.catalogue.find_snapshot(ID)
    assert row is not None
    assert row.public_wall_s is None


def test_recover_known_index_does_not_read_the_tree(world: World) -> None:
    """The tree is a source for a rebuild only."""
    world.tree.publish_tree(SNAPSHOT)
    world.index.close()
    world.index = Index(world.index.path)
    assert not world.recover().was_rebuilt
    assert world.index.catalogue.list_snapshots() == []


HOSTILE_FILES: list[object] = [
    {"../x": {"size": 1, "blob_id": "0" * 40}},
    {"a\x00": {"size": 1, "blob_id": "0" * 40}},
    {"a": None},
    {"a": []},
    {"a": {}},
    {"a": {"size": 1}},
    {"a": {"blob_id": "0" * 40}},
    {"a": {"size": "many", "blob_id": "0" * 40}},
    {"a": {"size": -1, "blob_id": "0" * 40}},
    {"a": {"size": 1e400, "blob_id": "0" * 40}},
    {"a": {"size": 1 << 70, "blob_id": "0" * 40}},
    {"a": {"size": 1, "blob_id": "../../etc"}},
    {"a": {"size": 1, "blob_id": "0" * 40, "lfs_sha256": "x"}},
    {"a": {"size": 1, "blob_id": "0" * 40}, "a/b": {"size": 1, "blob_id": "0" * 40}},
    [],
    None,
]


@pytest.mark.parametrize("files", HOSTILE_FILES, ids=range(len(HOSTILE_FILES)))
def test_recover_hostile_listing_is_passed_over(world: World, files: object) -> None:
    """A tree that others wrote to does not keep us from starting, nor get believed."""
    world.tree.publish_tree(SNAPSHOT)
    path = world.tree.repo_path(REPO) / "trees" / f"{OTHER_COMMIT}.json"
    path.write_text(json.dumps({"format_version": 1, "files": files}))
    (path.parent / "no-commit.json").write_text('{"files": {}}')
    refs = world.tree.repo_path(REPO) / "refs"
    refs.mkdir()
    (refs / "main").write_text("not a commit")
    (refs / "bad name").write_text(COMMIT)
    world.restart_without_index()
    world.recover()
    assert world.index.catalogue.list_snapshots() == [ID]
    assert world.index.catalogue.list_refs(REPO) == []
