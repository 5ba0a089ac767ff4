"""
Owns the tests of store.bloblist.

Knows nothing of files.
Invariants: what was put is read back; no chunk is findable whose blob has no row.
Source: store/bloblist.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.store.base import FileStamp
from p2pcache.store.bloblist import BlobList, BlobRow
from p2pcache.store.index import Index
from tests.samples import Sample, make_sample

pytestmark = pytest.mark.usefixtures("small_chunks")

FIRST, SECOND = make_sample(10_000), make_sample(20_000)


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[BlobList]:
    """The list of an index."""
    index = Index(tmp_path / "index.sqlite")
    yield index.blobs
    index.close()


def make_row(sample: Sample, *, is_hashed: bool = True, is_public: bool = True) -> BlobRow:
    """Make the row of a published blob."""
    table = None
    if is_hashed:
        table = ChunkTable(sample.blob, sample.layout, Standing.PROVEN)
        for index in range(sample.layout.chunk_count):
            table.set(index, sample.digest_of(index))
    stamp = FileStamp(len(sample.content), 1_700_000_000_123_456_789, (1 << 63) - 1)
    return BlobRow(sample.blob, stamp, table, is_hashed, is_public, 1.5)


def assert_same(found: BlobRow | None, row: BlobRow) -> None:
    """Compare rows; tables by what they hold."""
    assert found is not None
    assert (found.table is None) is (row.table is None)
    if found.table is not None and row.table is not None:
        assert list(found.table) == list(row.table)
        assert found.table.standing is Standing.PROVEN
    for name in ("blob", "stamp", "is_proven", "is_public", "verified_wall_s"):
        assert getattr(found, name) == getattr(row, name)


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 4097, 20_000])
@pytest.mark.parametrize("is_hashed", [True, False])
def test_bloblist_row_is_read_back(blobs: BlobList, size_bytes: int, is_hashed: bool) -> None:
    """Every field survives, the table included, for an empty blob too."""
    row = make_row(make_sample(size_bytes), is_hashed=is_hashed, is_public=not is_hashed)
    blobs.put(row)
    assert_same(blobs.find(row.blob), row)
    assert blobs.measure() == (1, size_bytes)


def test_bloblist_put_again_replaces(blobs: BlobList) -> None:
    """A blob has one row; its chunks follow it."""
    blobs.put(make_row(FIRST))
    row = make_row(FIRST, is_hashed=False, is_public=False)
    blobs.put(row)
    assert_same(blobs.find(FIRST.blob), row)
    assert [found.blob for found in blobs.iter_all()] == [FIRST.blob]
    assert blobs.find_chunk(FIRST.digest_of(0)) is None


def test_bloblist_chunk_is_found_where_it_is(blobs: BlobList) -> None:
    """A chunk's digest leads to a blob and the place in it."""
    blobs.put(make_row(FIRST))
    blobs.put(make_row(SECOND))
    assert blobs.find_chunk(SECOND.digest_of(3)) == (SECOND.blob, 3)
    assert blobs.find_chunk(make_sample(5).digest_of(0)) is None


def test_bloblist_shareable_is_what_is_proven_and_public(blobs: BlobList) -> None:
    """Peers may hear of neither restricted nor unproven blobs; absent ones are passed over."""
    blobs.put(make_row(FIRST))
    blobs.put(make_row(SECOND, is_public=False))
    unproven = make_sample(300)
    blobs.put(make_row(unproven, is_hashed=False))
    absent = make_sample(400)
    asked = [absent.blob, unproven.blob, SECOND.blob, FIRST.blob]
    assert blobs.find_shareable(asked) == [(FIRST.blob, FIRST.layout)]


def test_bloblist_set_public_changes_that_alone(blobs: BlobList) -> None:
    """A restricted blob becomes public, keeps its proof, and others stay as they are."""
    blobs.put(make_row(FIRST, is_public=False))
    blobs.put(make_row(SECOND, is_public=False))
    blobs.set_public(FIRST.blob)
    blobs.set_public(make_sample(7).blob)
    assert_same(blobs.find(FIRST.blob), make_row(FIRST))
    assert_same(blobs.find(SECOND.blob), make_row(SECOND, is_public=False))


def test_bloblist_removed_blob_is_gone_with_its_chunks(blobs: BlobList) -> None:
    """Nothing points to a blob that has no row; removing what is absent is fine."""
    blobs.put(make_row(FIRST))
    blobs.put(make_row(SECOND))
    for _ in range(2):
        blobs.remove(FIRST.blob)
    assert blobs.find(FIRST.blob) is None
    assert blobs.find_chunk(FIRST.digest_of(0)) is None
    assert blobs.find_chunk(SECOND.digest_of(0)) == (SECOND.blob, 0)
    assert blobs.measure() == (1, len(SECOND.content))


def test_bloblist_rows_survive_a_restart(tmp_path: Path) -> None:
    """What was put is durable."""
    index = Index(tmp_path / "other.sqlite")
    index.blobs.put(make_row(FIRST))
    index.close()
    again = Index(tmp_path / "other.sqlite")
    assert_same(again.blobs.find(FIRST.blob), make_row(FIRST))
    again.close()
