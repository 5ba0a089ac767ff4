"""
Owns the tests of store.catalogue that are about what the hub shows to anybody, and since when.

Knows nothing of hubs.
Invariants: what was not proven public is in no list of public things.
Source: store/catalogue.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.store.base import FileStamp
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.catalogue import Catalogue
from p2pcache.store.index import Index

REPO = RepoId("hf", "models", "org/name")
SAME_NAME = RepoId("hf", "datasets", "org/name")
BLOBS = [BlobDigest("sha256", f"{n:064x}") for n in range(4)]


def make_snapshot(repo: RepoId, commit: str, *blobs: BlobDigest) -> Snapshot:
    """Return a snapshot with a file for each blob."""
    entries = [FileEntry(f"{n}.bin", 5, blob, "12" * 20) for n, blob in enumerate(blobs)]
    return Snapshot.of(SnapshotId(repo, commit * 40), entries)


OLD = make_snapshot(REPO, "a", BLOBS[0], BLOBS[1])
NEW = make_snapshot(REPO, "b", BLOBS[1])
OTHER = make_snapshot(SAME_NAME, "a", BLOBS[2])


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index that knows three snapshots."""
    opened = Index(tmp_path / "index.sqlite")
    for snapshot in (OLD, NEW, OTHER):
        opened.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=1.0)
    yield opened
    opened.close()


@pytest.fixture
def catalogue(index: Index) -> Catalogue:
    """Its catalogue."""
    return index.catalogue


def put_blob(index: Index, blob: BlobDigest, *, is_public: bool = True) -> None:
    """Say that a blob is here."""
    index.blobs.put(BlobRow(blob, FileStamp(5, 1, 1), None, True, is_public, 1.0))


def test_public_time_is_that_of_the_last_proof(catalogue: Catalogue) -> None:
    """None of what was never given to anybody, was taken back, or is not known at all."""
    assert catalogue.find_public_wall_s(OLD.id) is None
    catalogue.set_public(OLD.id, 0.0)
    assert catalogue.find_public_wall_s(OLD.id) == 0.0
    catalogue.set_public(OLD.id, 7.25)
    assert catalogue.find_public_wall_s(OLD.id) == 7.25
    assert catalogue.find_public_wall_s(NEW.id) is None
    assert catalogue.find_public_wall_s(OTHER.id) is None
    catalogue.set_public(OLD.id, None)
    assert catalogue.find_public_wall_s(OLD.id) is None
    unknown = SnapshotId(REPO, "c" * 40)
    catalogue.set_public(unknown, 1.0)
    assert catalogue.find_public_wall_s(unknown) is None


def test_public_snapshots_of_a_repository_are_listed_whole(catalogue: Catalogue) -> None:
    """Each commit for itself; another kind of the same name is another repository."""
    assert catalogue.list_public(REPO) == []
    for snapshot in (NEW, OTHER):
        catalogue.set_public(snapshot.id, 1.0)
    assert catalogue.list_public(REPO) == [NEW]
    catalogue.set_public(OLD.id, 0.0)
    assert {s.id for s in catalogue.list_public(REPO)} == {OLD.id, NEW.id}
    catalogue.revoke_public(NEW.id)
    assert catalogue.list_public(REPO) == [OLD]
    catalogue.remove_snapshot(OLD.id)
    assert catalogue.list_public(REPO) == []


def test_shared_snapshots_are_those_of_which_something_public_is_here(
    index: Index, catalogue: Catalogue
) -> None:
    """Of what is not here nobody has to know whether it is public still."""
    for snapshot in (OLD, NEW, OTHER):
        catalogue.set_public(snapshot.id, 1.0)
    assert catalogue.list_shared(9.0, 10) == []
    put_blob(index, BLOBS[0])
    put_blob(index, BLOBS[2], is_public=False)
    put_blob(index, BLOBS[3])
    assert catalogue.list_shared(9.0, 10) == [OLD]
    put_blob(index, BLOBS[1])
    assert {s.id for s in catalogue.list_shared(9.0, 10)} == {OLD.id, NEW.id}
    catalogue.set_public(OLD.id, None)
    assert catalogue.list_shared(9.0, 10) == [NEW]


def test_shared_snapshots_come_oldest_first_and_no_more_than_asked_for(
    index: Index, catalogue: Catalogue
) -> None:
    """Whose proof is old is asked about again; one of that very moment is not old."""
    for blob in BLOBS:
        put_blob(index, blob)
    for snapshot, wall_s in ((OLD, 3.0), (NEW, 1.0), (OTHER, 2.0)):
        catalogue.set_public(snapshot.id, wall_s)
    assert catalogue.list_shared(9.0, 10) == [NEW, OTHER, OLD]
    assert catalogue.list_shared(9.0, 2) == [NEW, OTHER]
    assert catalogue.list_shared(3.0, 10) == [NEW, OTHER]
    assert catalogue.list_shared(1.0, 10) == []
    assert catalogue.list_shared(9.0, 0) == []
