"""
Owns the tests of store.inventory.

Knows nothing of files.
Invariants: rows of what is evicted go together or not at all; what is listed or pinned stays.
Source: store/inventory.py.
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
from p2pcache.store.catalogue import RefRow
from p2pcache.store.index import Index
from p2pcache.store.inventory import Inventory, Sums
from tests.store.rows import list_rows

REPO = RepoId("hf", "models", "org/name")
FIRST, SECOND = SnapshotId(REPO, "a" * 40), SnapshotId(REPO, "b" * 40)
DATA = SnapshotId(RepoId("hf", "datasets", "org/name"), "a" * 40)
BLOBS = [BlobDigest("sha256", f"{number:064x}") for number in range(4)]


def put_blob(index: Index, blob: BlobDigest, size_bytes: int, *, is_adopted: bool = False) -> None:
    """Record a published file."""
    stamp = FileStamp(size_bytes, 1, 1)
    index.blobs.put(BlobRow(blob, stamp, None, False, True, 0.0, is_adopted))


def put_snapshot(index: Index, snapshot_id: SnapshotId, *numbers: int) -> None:
    """Record a snapshot that lists some blobs, the last one in two places."""
    places = [*numbers, *numbers[-1:]]
    entries = [
        FileEntry(f"{place}.bin", 1000 * number, BLOBS[number], "c" * 40)
        for place, number in enumerate(places)
    ]
    snapshot = Snapshot.of(snapshot_id, entries)
    index.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=1.0)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index: two snapshots share a blob, another has the same commit, a blob is nobody's."""
    opened = Index(tmp_path / "index.sqlite")
    put_snapshot(opened, FIRST, 0, 1)
    put_snapshot(opened, SECOND, 1, 2)
    put_snapshot(opened, DATA, 2)
    for number, blob in enumerate(BLOBS):
        put_blob(opened, blob, 1000 * number)
    opened.catalogue.put_ref(RefRow(REPO, "main", FIRST.commit, 1.0))
    opened.catalogue.put_ref(RefRow(REPO, "next", SECOND.commit, 1.0))
    yield opened
    opened.close()


@pytest.fixture
def inventory(index: Index) -> Inventory:
    """Its inventory."""
    return index.inventory


def list_blobs(index: Index) -> list[BlobDigest]:
    """Return the blobs that have a row."""
    return sorted(row.blob for row in list_rows(index))


def test_inventory_lists_what_each_snapshot_has_in_the_order_of_use(
    index: Index, inventory: Inventory
) -> None:
    """The longest unused first; blobs that are not here are listed as well."""
    index.roots.note_used(FIRST)
    contents = inventory.list_contents()
    assert contents == {
        SECOND: {BLOBS[1], BLOBS[2]},
        DATA: {BLOBS[2]},
        FIRST: {BLOBS[0], BLOBS[1]},
    }
    assert list(contents)[-1] == FIRST


def test_inventory_sums_tell_own_adopted_and_logical_bytes(
    index: Index, inventory: Inventory
) -> None:
    """A blob counts once on the disk and once for every place; blocks are whole."""
    assert inventory.measure() == Sums(6000, 0, 2 * 1000 + 1000 + 2 * 2000 + 2 * 2000)
    assert inventory.measure_taken() == 3 * 4096
    index.blobs.set_adopted(BLOBS[3], is_adopted=True)
    assert inventory.measure() == Sums(3000, 3000, 11000)
    assert inventory.measure_adopted() == 3000
    assert inventory.measure_taken() == 2 * 4096
    assert inventory.list_adopted() == [BLOBS[3]]


def test_inventory_evicts_a_snapshot_with_what_is_its_own(
    index: Index, inventory: Inventory
) -> None:
    """Its list, its refs and its own blobs go; the same commit of a data set stays."""
    assert inventory.evict(FIRST, [BLOBS[0], BLOBS[1]]) == [BLOBS[0]]
    assert index.catalogue.find_snapshot(FIRST) is None
    assert index.catalogue.find_snapshot(DATA) is not None
    assert [ref.revision for ref in index.catalogue.list_refs(REPO)] == ["next"]
    assert list_blobs(index) == BLOBS[1:]


def test_inventory_leaves_a_pinned_snapshot_alone(index: Index, inventory: Inventory) -> None:
    """A pin that came after the plan wins; nothing of the snapshot is touched."""
    index.roots.put_pin(RefRow(REPO, "v1", FIRST.commit, 1.0))
    assert inventory.evict(FIRST, [BLOBS[0]]) is None
    assert index.catalogue.find_snapshot(FIRST) is not None
    assert list_blobs(index) == BLOBS
    assert inventory.evict(DATA, [BLOBS[2]]) == []


def test_inventory_eviction_is_all_or_nothing(
    index: Index, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure in the middle leaves every row as it was."""

    def fail(blob: BlobDigest) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(index.blobs, "remove", fail)
        with pytest.raises(ZeroDivisionError):
            inventory.evict(FIRST, [BLOBS[0]])
    assert index.catalogue.find_snapshot(FIRST) is not None
    assert index.catalogue.find_ref(REPO, "main") is not None
    assert list_blobs(index) == BLOBS


def test_inventory_forgets_a_blob_only_if_nobody_lists_it(
    index: Index, inventory: Inventory
) -> None:
    """A snapshot that appeared after the plan keeps its blobs."""
    assert inventory.remove_unlisted(BLOBS[3])
    assert not inventory.remove_unlisted(BLOBS[2])
    assert list_blobs(index) == BLOBS[:3]
