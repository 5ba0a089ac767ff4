"""
Owns the tests of store.bloblist.

Knows nothing of files.
Invariants: what was put is read back; no chunk is findable whose blob has no row.
Source: store/bloblist.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.layout import FIXED_LAYOUT, Layout
from p2pcache.core.verify import digest_of
from p2pcache.store.base import FileStamp
from p2pcache.store.bloblist import BlobList, BlobRow, TwinPlace
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
    assert blobs.measure() == (1, len(FIRST.content))
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


# --- chunks that several blobs have ---

PART = make_sample(3000).content


def make_cut(*lengths: int, seed: int = 0) -> tuple[Sample, Layout]:
    """Make a blob with chunks of these lengths, random but for those that PART begins with."""
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    pieces = [
        PART[:length] if length in (1500, 3000) else make_sample(length, seed + n).content
        for n, length in enumerate(lengths)
    ]
    sample = Sample(b"".join(pieces))
    return sample, Layout.of_starts(len(sample.content), starts)


def make_cut_row(
    sample: Sample, layout: Layout, *, is_proven: bool = True, is_public: bool = True
) -> BlobRow:
    """Make the row of a blob with that layout."""
    table = make_table(sample, layout)
    stamp = FileStamp(len(sample.content), 1, 1)
    return BlobRow(sample.blob, stamp, table, is_proven, is_public, 1.5)


def make_table(sample: Sample, layout: Layout) -> ChunkTable:
    """Make the complete table of a blob."""
    table = ChunkTable(sample.blob, layout, Standing.PROVEN)
    for index in range(layout.chunk_count):
        start, length = layout.span_of(index, index)
        table.set(index, digest_of(sample.content[start : start + length]))
    return table


def test_bloblist_layout_of_its_own_is_read_back(blobs: BlobList) -> None:
    """With every boundary, and for sharing; a blob that is put again may have another one."""
    sample, layout = make_cut(100, 3000, 700)
    blobs.put(make_cut_row(sample, layout))
    found = blobs.find(sample.blob)
    assert found is not None
    assert found.table is not None
    assert found.table.layout == layout
    assert list(found.table) == list(make_table(sample, layout))
    assert blobs.find_shareable([sample.blob]) == [(sample.blob, layout)]
    plain = Layout(layout.size_bytes)
    blobs.put(make_cut_row(sample, plain))
    assert blobs.find_shareable([sample.blob]) == [(sample.blob, plain)]
    assert blobs.find_shareable([sample.blob])[0][1].name == FIXED_LAYOUT


def test_bloblist_twins_are_found_at_their_offsets(blobs: BlobList) -> None:
    """Whatever the layouts of the two blobs are, and however often a chunk occurs in them."""
    base, base_layout = make_cut(100, 3000, 700, 1500, seed=10)
    plain = Sample(make_sample(4096).content + PART)
    blobs.put(make_cut_row(base, base_layout))
    blobs.put(make_cut_row(plain, plain.layout))
    tuned, layout = make_cut(900, 1500, 3000, 200, 1500, seed=20)
    table = make_table(tuned, layout)
    found = {place.chunk_index: place for place in blobs.find_twins(table, range(5))}
    assert set(found) == {1, 2, 4}
    assert found[1] == TwinPlace(1, base.blob, 3800, True)
    assert found[4] == TwinPlace(4, base.blob, 3800, True)
    contents = {base.blob: base.content, plain.blob: plain.content}
    for place in found.values():
        start, length = layout.span_of(place.chunk_index, place.chunk_index)
        there = contents[place.blob][place.offset : place.offset + length]
        assert there == tuned.content[start : start + length]


def test_bloblist_twins_are_looked_for_only_where_wanted_and_known(blobs: BlobList) -> None:
    """Chunks that are here already, or whose digest nobody said, are not looked up."""
    base, base_layout = make_cut(100, 3000, 1500)
    blobs.put(make_cut_row(base, base_layout))
    tuned, layout = make_cut(900, 1500, 3000, seed=20)
    table = make_table(tuned, layout)
    assert [place.chunk_index for place in blobs.find_twins(table, [0, 2])] == [2]
    table.clear(2)
    assert blobs.find_twins(table, [0, 2]) == []
    assert blobs.find_twins(table, []) == []


def test_bloblist_twins_of_a_blob_are_in_other_blobs(blobs: BlobList) -> None:
    """Its own row, of a file that is being fetched again, is no place to copy from."""
    tuned, layout = make_cut(900, 3000, seed=20)
    table = make_table(tuned, layout)
    blobs.put(make_cut_row(tuned, layout))
    assert blobs.find_twins(table, [0, 1]) == []
    base, base_layout = make_cut(100, 3000)
    blobs.put(make_cut_row(base, base_layout))
    assert blobs.find_twins(table, [0, 1]) == [TwinPlace(1, base.blob, 100, True)]


def test_bloblist_unproven_blob_has_no_twins(blobs: BlobList) -> None:
    """What its table says may be wrong by now."""
    base, base_layout = make_cut(100, 3000)
    tuned, layout = make_cut(900, 3000, seed=20)
    blobs.put(make_cut_row(base, base_layout, is_proven=False))
    assert blobs.find_twins(make_table(tuned, layout), [1]) == []
    blobs.remove(base.blob)
    assert blobs.find_twins(make_table(tuned, layout), [1]) == []


@pytest.mark.parametrize(("public_head", "restricted_head"), [(100, 200), (200, 100)])
def test_bloblist_twin_in_a_public_blob_goes_before_one_in_a_restricted_one(
    blobs: BlobList, public_head: int, restricted_head: int
) -> None:
    """Only what a public blob has may be passed on at once."""
    tuned, layout = make_cut(900, 3000, seed=20)
    table = make_table(tuned, layout)
    restricted, restricted_layout = make_cut(restricted_head, 3000)
    public, public_layout = make_cut(public_head, 3000)
    blobs.put(make_cut_row(public, public_layout))
    blobs.put(make_cut_row(restricted, restricted_layout, is_public=False))
    assert blobs.find_twins(table, [1]) == [TwinPlace(1, public.blob, public_head, True)]
    blobs.remove(public.blob)
    expected = TwinPlace(1, restricted.blob, restricted_head, False)
    assert blobs.find_twins(table, [1]) == [expected]


def test_bloblist_public_search_for_a_chunk_passes_restricted_blobs_over(blobs: BlobList) -> None:
    """A peer that names a chunk hears of those that anybody may have, wherever else it is."""
    restricted, layout = make_cut(100, 3000)
    digest = make_table(restricted, layout).find(1)
    assert digest is not None
    blobs.put(make_cut_row(restricted, layout, is_public=False))
    assert blobs.find_chunk(digest) == (restricted.blob, 1)
    assert blobs.find_chunk(digest, is_public_only=True) is None
    public, public_layout = make_cut(200, 300, 3000)
    blobs.put(make_cut_row(public, public_layout))
    assert blobs.find_chunk(digest, is_public_only=True) == (public.blob, 2)


def test_bloblist_blobs_with_tensors_come_nearest_in_size_first(blobs: BlobList) -> None:
    """Proven ones with boundaries of their own, so many at most; a tie goes to the latest."""
    sizes = [1000, 2000, 3500, 2100, 1900]
    samples = [make_cut(10, size - 10, seed=100 * n) for n, size in enumerate(sizes)]
    for sample, layout in samples:
        blobs.put(make_cut_row(sample, layout))
    blobs.put(make_row(make_sample(2000, 5)))
    unproven, layout = make_cut(20, 1980, seed=900)
    blobs.put(make_cut_row(unproven, layout, is_proven=False))
    digests = [sample.blob for sample, _ in samples]
    expected = [digests[1], digests[4], digests[3], digests[0], digests[2]]
    assert blobs.list_with_tensors(2000, 9) == expected
    assert blobs.list_with_tensors(2000, 2) == expected[:2]
    assert blobs.list_with_tensors(9000, 1) == [digests[2]]


def test_bloblist_chunk_that_occurs_everywhere_is_looked_up_once(
    blobs: BlobList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of zeros beside another one must not cost the product of their chunks."""
    zeros = Sample(bytes(40 * 4096))
    blobs.put(make_cut_row(zeros, zeros.layout))
    wanted = Sample(bytes(50 * 4096) + b"x")
    asked: list[object] = []
    real = blobs._db.execute

    def execute(*call: Any) -> Any:
        asked.append(call)
        return real(*call)

    monkeypatch.setattr(blobs._db, "execute", execute)
    found = blobs.find_twins(make_table(wanted, wanted.layout), range(51))
    assert [place.chunk_index for place in found] == list(range(50))
    assert len(asked) == 2


def test_bloblist_refuted_blobs_are_remembered_until_their_time(blobs: BlobList) -> None:
    """The latest word on each counts."""
    blobs.put_refuted(FIRST.blob, 5.0)
    blobs.put_refuted(FIRST.blob, 9.0)
    assert blobs.list_refuted() == [(FIRST.blob, 9.0)]


def test_bloblist_becomes_public_checked_and_adopted_row_by_row(blobs: BlobList) -> None:
    """Each word changes its own column, of its own row."""
    for sample in (FIRST, SECOND):
        blobs.put(make_row(sample, is_public=False))
    blobs.set_public(FIRST.blob)
    blobs.set_checked(FIRST.blob, 2, 8.0)
    blobs.set_adopted(FIRST.blob, is_adopted=True)
    found, other = blobs.find(FIRST.blob), blobs.find(SECOND.blob)
    assert found is not None
    assert other is not None
    assert (found.is_public, found.checked_chunks, found.verified_wall_s, found.is_adopted) == (
        True, 2, 8.0, True,
    )  # fmt: skip
    assert (other.is_public, other.checked_chunks, other.verified_wall_s, other.is_adopted) == (
        False, 0, 1.5, False,
    )  # fmt: skip
