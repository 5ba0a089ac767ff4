"""
Owns the tests of store.roots.

Knows nothing of eviction.
Invariants: what protects a snapshot is read back until it is removed.
Source: store/roots.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.store.catalogue import RefRow
from p2pcache.store.index import Index
from p2pcache.store.roots import LeaseRow, Roots

REPO, SAME_NAME = RepoId.of("hf", "models", "org/name"), RepoId.of("hf", "datasets", "org/name")
COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
FIRST, SECOND = SnapshotId(REPO, COMMIT), SnapshotId(REPO, OTHER_COMMIT)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index that knows two snapshots."""
    opened = Index(tmp_path / "index.sqlite")
    for number, snapshot_id in enumerate((FIRST, SECOND)):
        entry = FileEntry("config.json", 2, BlobDigest("gitsha1", "c" * 40), "c" * 40)
        snapshot = Snapshot.of(snapshot_id, [entry])
        opened.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=number)
    yield opened
    opened.close()


@pytest.fixture
def roots(index: Index) -> Roots:
    """The roots of that index."""
    return index.roots


def test_roots_pin_is_kept_until_removed(roots: Roots) -> None:
    """A pin protects under the revision that was named; removing says if there was one."""
    first, second = RefRow(REPO, "main", COMMIT, 1.0), RefRow(SAME_NAME, "v1", COMMIT, 2.0)
    roots.put_pin(second)
    roots.put_pin(first)
    assert roots.list_pins() == [first, second]
    moved = RefRow(REPO, "main", OTHER_COMMIT, 3.0)
    roots.put_pin(moved)
    assert roots.list_pins() == [second, moved]
    assert roots.remove_pin(REPO, "main")
    assert not roots.remove_pin(REPO, "main")
    assert roots.list_pins() == [second]


def test_roots_lease_is_renewed_and_ends(roots: Roots) -> None:
    """A lease is one row by its id; those that end first come first."""
    late, soon = LeaseRow("l1", FIRST, "vllm", 9.0), LeaseRow("l2", SECOND, "job 7", 5.0)
    roots.put_lease(late)
    roots.put_lease(soon)
    assert roots.list_leases() == [soon, late]
    renewed = LeaseRow("l2", SECOND, "job 7", 20.0)
    roots.put_lease(renewed)
    assert roots.list_leases() == [late, renewed]
    assert roots.remove_lease("l1")
    assert not roots.remove_lease("l1")
    assert roots.list_leases() == [renewed]


def test_roots_use_puts_a_snapshot_last(roots: Roots) -> None:
    """The logical clock orders by use, whatever the wall clock says; never used comes first."""
    assert roots.list_uses() == [(FIRST, 0), (SECOND, 0)]
    roots.note_used(FIRST)
    assert roots.list_uses() == [(SECOND, 0), (FIRST, 1)]
    roots.note_used(SECOND)
    roots.note_used(SECOND)
    assert roots.list_uses() == [(FIRST, 1), (SECOND, 3)]
