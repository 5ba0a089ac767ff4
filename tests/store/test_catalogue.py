"""
Owns the tests of store.catalogue.

Knows nothing of files on disk.
Invariants: what was put is read back; what the hub confirmed is not replaced by hearsay.
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
from p2pcache.store.catalogue import Catalogue, RefRow
from p2pcache.store.index import Index
from tests.samples import COMMIT, OTHER_COMMIT
from tests.store.rows import list_rows

REPO = RepoId("hf", "models", "org/name")
SAME_NAME = RepoId("hf", "datasets", "org/name")
ID = SnapshotId(REPO, COMMIT)
SMALL = FileEntry("a/b c/日本.json", 5, BlobDigest("gitsha1", "12" * 20), "12" * 20)
LARGE = FileEntry("model.bin", 7_000_000, BlobDigest("sha256", "34" * 32), "56" * 20)
SNAPSHOT = Snapshot.of(ID, [SMALL, LARGE])


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """The catalogue of an index."""
    index = Index(tmp_path / "index.sqlite")
    yield index.catalogue
    index.close()


def put(
    catalogue: Catalogue,
    snapshot: Snapshot = SNAPSHOT,
    *,
    is_confirmed: bool = True,
    about: dict[str, object] | None = None,
    wall_s: float = 1.0,
) -> None:
    """Put a snapshot with usual values."""
    catalogue.put_snapshot(snapshot, is_confirmed=is_confirmed, about=about, wall_s=wall_s)


def test_catalogue_snapshot_is_read_back(catalogue: Catalogue) -> None:
    """Files, description and confirmation survive; nothing is public until it is said."""
    about: dict[str, object] = {"sha": COMMIT, "tags": ["ü", None, 1.5]}
    put(catalogue, about=about)
    row = catalogue.find_snapshot(ID)
    assert row is not None
    assert row.snapshot == SNAPSHOT
    assert (row.is_confirmed, row.about, row.public_wall_s) == (True, about, None)


def test_catalogue_unknown_is_none(catalogue: Catalogue) -> None:
    """Another commit, kind or repository of the same name is not this one."""
    put(catalogue)
    assert catalogue.find_snapshot(SnapshotId(REPO, OTHER_COMMIT)) is None
    assert catalogue.find_snapshot(SnapshotId(SAME_NAME, COMMIT)) is None
    assert catalogue.find_ref(REPO, "main") is None
    assert catalogue.list_refs(REPO) == []


def test_catalogue_empty_snapshot_is_known(catalogue: Catalogue) -> None:
    """A repository without files is not an unknown one."""
    put(catalogue, Snapshot.of(ID, []))
    row = catalogue.find_snapshot(ID)
    assert row is not None
    assert row.snapshot.files == ()


def test_catalogue_hearsay_is_confirmed_later(catalogue: Catalogue) -> None:
    """What a peer said is replaced by what the hub says, and keeps its description."""
    put(catalogue, Snapshot.of(ID, [SMALL]), is_confirmed=False, about={"from": "peer"})
    put(catalogue)
    row = catalogue.find_snapshot(ID)
    assert row is not None
    assert row.snapshot == SNAPSHOT
    assert (row.is_confirmed, row.about) == (True, {"from": "peer"})


def test_catalogue_confirmed_list_is_not_replaced_by_hearsay(catalogue: Catalogue) -> None:
    """A peer's list never stands under the hub's confirmation."""
    put(catalogue)
    put(catalogue, Snapshot.of(ID, [SMALL]), is_confirmed=False, about={"x": 1})
    row = catalogue.find_snapshot(ID)
    assert row is not None
    assert (row.snapshot, row.is_confirmed, row.about) == (SNAPSHOT, True, None)


def test_catalogue_public_is_set_and_revoked(catalogue: Catalogue) -> None:
    """Visibility is that of one commit, and survives a new confirmation."""
    put(catalogue)
    catalogue.set_public(ID, 123.5)
    put(catalogue)
    row = catalogue.find_snapshot(ID)
    assert row is not None
    assert row.public_wall_s == 123.5
    catalogue.set_public(ID, None)
    row = catalogue.find_snapshot(ID)
    assert row is not None
    assert row.public_wall_s is None


def test_catalogue_revoked_snapshot_takes_its_own_blobs_along(tmp_path: Path) -> None:
    """A blob that another public snapshot has stays public; what was restricted is not named."""
    index = Index(tmp_path / "other.sqlite")
    restricted = FileEntry("r", 9, BlobDigest("sha256", "78" * 32), "56" * 20)
    public, elsewhere = (SnapshotId(SAME_NAME, commit) for commit in (COMMIT, OTHER_COMMIT))
    put(index.catalogue, Snapshot.of(ID, [SMALL, LARGE, restricted]))
    put(index.catalogue, Snapshot.of(public, [SMALL]))
    put(index.catalogue, Snapshot.of(elsewhere, [LARGE]))
    for entry in (SMALL, LARGE, restricted):
        stamp = FileStamp(entry.size_bytes, 1, 1)
        is_public = entry is not restricted
        index.blobs.put(BlobRow(entry.digest, stamp, None, True, is_public, 1.0))
    for snapshot_id in (ID, public):
        index.catalogue.set_public(snapshot_id, 1.0)
    assert index.catalogue.revoke_public(ID) == [LARGE.digest]
    assert index.catalogue.revoke_public(ID) == []
    rows = {row.blob: row.is_public for row in list_rows(index)}
    assert rows == {SMALL.digest: True, LARGE.digest: False, restricted.digest: False}
    row = index.catalogue.find_snapshot(ID)
    assert row is not None
    assert row.public_wall_s is None
    index.close()


def test_catalogue_snapshots_are_listed_newest_last(catalogue: Catalogue) -> None:
    """The order is that of first sight."""
    newer = SnapshotId(SAME_NAME, OTHER_COMMIT)
    put(catalogue, Snapshot.of(newer, [SMALL]), wall_s=2.0)
    put(catalogue, wall_s=1.0)
    put(catalogue, wall_s=3.0)
    assert catalogue.list_snapshots() == [ID, newer]


def test_catalogue_places_of_a_blob_are_all_found(catalogue: Catalogue) -> None:
    """One blob may be several files of several snapshots."""
    other = SnapshotId(SAME_NAME, COMMIT)
    copy = FileEntry("copy.bin", LARGE.size_bytes, LARGE.digest, LARGE.tree_oid)
    put(catalogue)
    put(catalogue, Snapshot.of(other, [copy]))
    places = catalogue.list_places(LARGE.digest)
    assert sorted(places, key=lambda place: place[1].path) == [(other, copy), (ID, LARGE)]
    assert catalogue.list_places(BlobDigest("sha256", "0" * 64)) == []


def test_catalogue_ref_moves(catalogue: Catalogue) -> None:
    """A branch points to one commit, the last one that was put."""
    catalogue.put_ref(RefRow(REPO, "main", COMMIT, 1.0))
    catalogue.put_ref(RefRow(REPO, "refs/pr/1", COMMIT, 1.0))
    catalogue.put_ref(RefRow(REPO, "main", OTHER_COMMIT, 2.0))
    assert catalogue.find_ref(REPO, "main") == RefRow(REPO, "main", OTHER_COMMIT, 2.0)
    assert catalogue.find_ref(SAME_NAME, "main") is None
    assert {row.revision for row in catalogue.list_refs(REPO)} == {"main", "refs/pr/1"}


def test_catalogue_list_in_memory_follows_what_is_put_and_removed(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list is read once, however many are kept; one that was put anew or removed is not kept."""
    monkeypatch.setattr("p2pcache.store.catalogue.LISTED_FILES_MAX", 4)
    other = Snapshot.of(SnapshotId(REPO, OTHER_COMMIT), [SMALL])
    put(catalogue, is_confirmed=False)
    put(catalogue, other)
    for _ in range(2):
        for snapshot in (SNAPSHOT, other):
            row = catalogue.find_snapshot(snapshot.id)
            assert row is not None
            assert row.snapshot == snapshot
    put(catalogue, Snapshot.of(ID, [SMALL]), about={"sha": COMMIT})
    row = catalogue.find_snapshot(ID)
    assert row is not None
    assert (row.snapshot.files, row.is_confirmed, row.about) == ((SMALL,), True, {"sha": COMMIT})
    again = catalogue.find_snapshot(ID)
    assert again is not None
    assert again.snapshot is row.snapshot
    catalogue.remove_snapshot(ID)
    assert catalogue.find_snapshot(ID) is None
    put(catalogue)
    assert catalogue.find_snapshot(ID) is not None
