"""
Owns the tests of store.check: hashing a published file again.

Knows nothing of the index, or of what becomes of a damaged file.
Invariants: exactly the wrong chunks are named, whatever is wrong with them.
Source: store/check.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.layout import Layout
from p2pcache.core.verify import digest_of
from p2pcache.store import pagecache
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.check import FileCheck
from p2pcache.store.pagecache import find_absent
from tests.samples import PEER_ID, Sample, make_sample

CHUNK = 4096
pytestmark = pytest.mark.usefixtures("small_chunks")


def publish(store: FileBlobStore, sample: Sample) -> ChunkTable:
    """Publish a blob; return its table."""
    partial = store.open_partial(sample.blob, sample.layout)
    for chunk in sample.chunks():
        partial.put(chunk, PEER_ID)
    store.publish(partial, sample.proof(), is_public=True)
    table = partial.snapshot().table
    table.standing = Standing.PROVEN
    partial.close()
    store.discard(sample.blob)
    return table


@pytest.fixture
def sample(small_chunks: int) -> Sample:
    """Ten chunks, the last one short."""
    return make_sample(10 * small_chunks - 100, seed=1)


def flip(path: Path, *offsets: int) -> None:
    """Change bytes of a file, which need not be writable."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x10]))


@contextmanager
def walking(
    store: FileBlobStore,
    sample: Sample,
    known: ChunkTable | None,
    *,
    first_chunk: int = 0,
    is_gentle: bool = False,
) -> Iterator[FileCheck]:
    """Begin a walk over a blob's file."""
    found = store.find_blob(sample.blob)
    assert found is not None
    try:
        yield FileCheck(found, sample.blob, known, first_chunk=first_chunk, is_gentle=is_gentle)
    finally:
        os.close(found.fd)


def walk_through(walk: FileCheck, bytes_max: int = 1 << 30) -> int:
    """Walk to the end; return how many steps that took."""
    buffer, steps = memoryview(bytearray(CHUNK)), 0
    while not walk.is_over:
        walk.step(buffer, bytes_max)
        steps += 1
    return steps


@pytest.mark.parametrize("is_gentle", [False, True])
def test_check_of_a_right_file_is_right(
    store: FileBlobStore, sample: Sample, is_gentle: bool
) -> None:
    """Nothing is wrong with a file that nobody touched, with its table or without."""
    table = publish(store, sample)
    for known in (table, None):
        with walking(store, sample, known, is_gentle=is_gentle) as walk:
            walk_through(walk)
            assert walk.is_right
            assert list(walk.table) == list(table)


@pytest.mark.parametrize("seed", range(20))
def test_check_names_exactly_the_chunks_with_wrong_bytes(
    store: FileBlobStore, sample: Sample, seed: int
) -> None:
    """Any bytes anywhere, the first and the last one among them."""
    table, random = publish(store, sample), Random(seed)
    size = len(sample.content)
    offsets = set(
        random.sample([0, size - 1, CHUNK - 1, CHUNK, *range(size)], random.randint(1, 6))
    )
    flip(store.path_of(sample.blob), *offsets)
    with walking(store, sample, table, is_gentle=seed % 2 == 0) as walk:
        walk_through(walk)
        assert walk.bad == sorted({offset // CHUNK for offset in offsets})
        assert walk.find_lost() == walk.bad
        assert not walk.is_right


def test_check_of_a_shorter_file_loses_what_is_cut_off(
    store: FileBlobStore, sample: Sample
) -> None:
    """A chunk that ends early is as wrong as one that is not there."""
    table = publish(store, sample)
    os.truncate(store.path_of(sample.blob), 7 * CHUNK + 1)
    with walking(store, sample, table) as walk:
        walk_through(walk)
        assert walk.bad == [7, 8, 9]


def test_check_of_a_longer_file_has_no_wrong_chunk_and_is_not_right(
    store: FileBlobStore, sample: Sample
) -> None:
    """Bytes behind the blob's end belong to no chunk, and to no blob."""
    table = publish(store, sample)
    with store.path_of(sample.blob).open("ab") as file:
        file.write(b"x")
    with walking(store, sample, table) as walk:
        walk_through(walk)
        assert walk.bad == []
        assert not walk.is_right


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
def test_check_of_any_size_is_right(store: FileBlobStore, size: int) -> None:
    """Empty files and whole chunks are files like any other."""
    sample = make_sample(size, seed=2)
    table = publish(store, sample)
    for known in (table, None):
        with walking(store, sample, known, is_gentle=True) as walk:
            walk_through(walk)
            assert walk.is_right


def test_check_without_a_table_loses_all_of_a_wrong_file(
    store: FileBlobStore, sample: Sample
) -> None:
    """The digest of the whole does not tell where it went wrong."""
    publish(store, sample)
    flip(store.path_of(sample.blob), 5 * CHUNK)
    with walking(store, sample, None) as walk:
        walk_through(walk)
        assert not walk.is_right
        assert walk.find_lost() == list(range(10))


@pytest.mark.parametrize("known", [True, False])
def test_check_of_a_chunk_that_cannot_be_read_calls_it_wrong(
    store: FileBlobStore, sample: Sample, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """A disk that reports an error has lost the chunk; the others are still looked at."""
    table = publish(store, sample)
    real = os.preadv

    def fail(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset // CHUNK == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers, offset, flags)

    with walking(store, sample, table if known else None) as walk:
        monkeypatch.setattr(os, "preadv", fail)
        walk_through(walk)
        assert not walk.is_right
        assert walk.bad == [4]


def test_check_begins_where_an_earlier_one_ended(store: FileBlobStore, sample: Sample) -> None:
    """What was looked at is not read again: damage there is not seen."""
    table = publish(store, sample)
    flip(store.path_of(sample.blob), 2 * CHUNK, 6 * CHUNK)
    with walking(store, sample, table, first_chunk=4) as walk:
        assert walk.step(memoryview(bytearray(CHUNK)), 3 * CHUNK) == 3 * CHUNK
        assert walk.next_chunk == 7
        assert walk.bad == [6]


def test_check_without_a_table_begins_at_the_first_chunk(
    store: FileBlobStore, sample: Sample
) -> None:
    """A digest of the whole cannot be continued."""
    publish(store, sample)
    with walking(store, sample, None, first_chunk=4) as walk:
        walk_through(walk)
        assert walk.is_right


def test_check_step_stays_within_its_bytes_and_hashes_one_chunk_at_least(
    store: FileBlobStore, sample: Sample
) -> None:
    """A step is as long as its caller wants to wait, and never for nothing."""
    table = publish(store, sample)
    for bytes_max, steps in [(1, 10), (2 * CHUNK, 5), (3 * CHUNK - 1, 5), (1 << 30, 1)]:
        with walking(store, sample, table) as walk:
            assert walk_through(walk, bytes_max) == steps


def find_cached(path: Path, chunk_count: int) -> list[int]:
    """Return the chunks that are in the page cache as a whole."""
    with path.open("rb") as file:
        return [i for i in range(chunk_count) if not find_absent(file.fileno(), i * CHUNK, CHUNK)]


def test_check_that_is_gentle_leaves_the_page_cache_as_it_was(
    store: FileBlobStore, sample: Sample
) -> None:
    """Pages that workers use stay, pages that only the check needed go."""
    table = publish(store, sample)
    path = store.path_of(sample.blob)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for index in (2, 3, 8):
        os.pread(fd, 1, index * CHUNK)
    os.close(fd)
    before = find_cached(path, 10)
    if before != [2, 3, 8]:
        pytest.skip(f"this file system has a page cache of another kind: {before}")
    with walking(store, sample, table, is_gentle=True) as walk:
        walk_through(walk)
        assert walk.is_right
    assert find_cached(path, 10) == [2, 3, 8]


def test_check_where_nobody_says_what_is_cached_reads_all_the_same(
    store: FileBlobStore, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system without mincore is checked like any other."""
    table = publish(store, sample)
    flip(store.path_of(sample.blob), 5 * CHUNK)
    monkeypatch.setattr(pagecache, "_load_libc", lambda: None)
    with walking(store, sample, table, is_gentle=True) as walk:
        walk_through(walk)
        assert walk.bad == [5]


def test_check_follows_boundaries_of_the_table(store: FileBlobStore, sample: Sample) -> None:
    """A layout with boundaries of its own is looked at by them."""
    publish(store, sample)
    size = len(sample.content)
    layout = Layout.of_starts(size, [0, 100, 4000, *range(5000, size, CHUNK)])
    table = ChunkTable(sample.blob, layout, Standing.PROVEN)
    for index in range(layout.chunk_count):
        offset, length = layout.span_of(index, index)
        table.set(index, digest_of(sample.content[offset : offset + length]))
    flip(store.path_of(sample.blob), 99, 4999, 5000)
    with walking(store, sample, table) as walk:
        walk_through(walk)
        assert walk.bad == [0, 2, 3]


def test_check_of_an_unreadable_file_of_which_nothing_is_known_ends(
    tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even its head says how it is cut: no chunk of it is right, and nothing is raised."""
    store = FileBlobStore(tmp_path / "store")
    publish(store, sample)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, fail)
    with walking(store, sample, None) as walk:
        walk_through(walk)
        assert not walk.is_right
        assert walk.bad == [0]
