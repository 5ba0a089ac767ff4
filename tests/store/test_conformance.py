"""
Owns the conformance suite of the BlobStore boundary, run by every store.

Knows nothing of files.
Invariants: each test holds for each store.
Source: store/base.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pcache.core.verify import BlobProof
from p2pcache.errors import BlobCorruptError
from p2pcache.store.base import BlobFile, BlobStore, PartialBlob
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.memory import MemoryBlobStore
from tests.samples import PEER_ID, Sample, make_chunks_sample, make_sample
from tests.sizes import INTERESTING_SIZES_BYTES

SAMPLE = make_chunks_sample(3)


@pytest.fixture(params=["file", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """Each kind of store, without blobs."""
    makers: dict[str, Callable[[], BlobStore]] = {
        "file": lambda: FileBlobStore(tmp_path / "store"),
        "memory": MemoryBlobStore,
    }
    return makers[request.param]()


def fill(store: BlobStore, sample: Sample) -> PartialBlob:
    """Put every chunk of a blob."""
    partial = store.open_partial(sample.blob, sample.layout)
    for chunk in sample.chunks():
        partial.put(chunk, "upstream")
    return partial


def read_all(found: BlobFile | None) -> bytes:
    """Read a published blob and close it."""
    assert found is not None
    try:
        return os.pread(found.fd, found.stamp.size_bytes + 1, 0)
    finally:
        os.close(found.fd)


@pytest.mark.parametrize("size_bytes", INTERESTING_SIZES_BYTES)
def test_store_filled_blob_is_published_with_its_bytes(
    any_store: BlobStore, size_bytes: int
) -> None:
    """Whatever the size, what went in as chunks comes out as one file."""
    sample = make_sample(size_bytes)
    partial = fill(any_store, sample)
    assert partial.snapshot().have.is_full()
    stamp = any_store.publish(partial, sample.proof(), is_public=True)
    assert stamp.size_bytes == size_bytes
    assert read_all(any_store.find_blob(sample.blob)) == sample.content
    assert list(any_store.iter_blobs()) == [(sample.blob, stamp)]


def test_store_new_partial_holds_nothing(any_store: BlobStore) -> None:
    """A partial begins empty and is no blob."""
    partial = any_store.open_partial(SAMPLE.blob, SAMPLE.layout)
    state = partial.snapshot()
    assert (partial.blob, partial.layout) == (SAMPLE.blob, SAMPLE.layout)
    assert not state.have
    assert list(state.table) == [None] * 3
    assert state.sources == {}
    assert any_store.find_blob(SAMPLE.blob) is None
    assert list(any_store.iter_blobs()) == []


def test_store_put_chunk_is_held_with_digest_and_source(any_store: BlobStore) -> None:
    """A chunk is there at once, with who sent it; the others are not."""
    partial = any_store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(1), PEER_ID)
    state = partial.snapshot()
    assert list(state.have) == [1]
    assert list(state.table) == [None, SAMPLE.digest_of(1), None]
    assert state.sources == {1: PEER_ID}
    view = memoryview(bytearray(SAMPLE.layout.length_of(1)))
    partial.read_into(SAMPLE.layout.offset_of(1), view)
    assert view.tobytes() == SAMPLE.bytes_of(1)


def test_store_snapshot_is_independent(any_store: BlobStore) -> None:
    """A state that was handed out does not change under its reader, nor the partial with it."""
    partial = any_store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), PEER_ID)
    state = partial.snapshot()
    partial.put(SAMPLE.chunk(1), PEER_ID)
    assert list(state.have) == [0]
    state.have.add(2)
    state.sources.clear()
    assert list(partial.snapshot().have) == [0, 1]
    assert partial.snapshot().sources == {0: PEER_ID, 1: PEER_ID}


def test_store_second_put_of_a_chunk_changes_nothing(any_store: BlobStore) -> None:
    """Bytes that are held are never overwritten, whoever sends others later."""
    partial = any_store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.put(SAMPLE.wrong_chunk(0), "upstream")
    state = partial.snapshot()
    assert state.sources == {0: PEER_ID}
    assert state.table.find(0) == SAMPLE.digest_of(0)
    view = memoryview(bytearray(SAMPLE.layout.length_of(0)))
    partial.read_into(0, view)
    assert view.tobytes() == SAMPLE.bytes_of(0)


def test_store_view_of_a_chunk_is_free_after_put(any_store: BlobStore) -> None:
    """The caller's buffer may be used again as soon as put returned."""
    partial = any_store.open_partial(SAMPLE.blob, SAMPLE.layout)
    buffer = bytearray(SAMPLE.bytes_of(0))
    chunk = SAMPLE.chunk(0)
    partial.put(type(chunk)(chunk.blob, 0, 0, memoryview(buffer), chunk.digest), PEER_ID)
    buffer[:] = bytes(len(buffer))
    view = memoryview(bytearray(SAMPLE.layout.length_of(0)))
    partial.read_into(0, view)
    assert view.tobytes() == SAMPLE.bytes_of(0)


def test_store_forgotten_chunk_is_absent_and_can_be_put_again(any_store: BlobStore) -> None:
    """forget() takes a chunk out with its digest and source; absent ones do not matter."""
    partial = any_store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.wrong_chunk(0), PEER_ID)
    partial.put(SAMPLE.chunk(1), PEER_ID)
    partial.forget([0, 2])
    state = partial.snapshot()
    assert list(state.have) == [1]
    assert state.table.find(0) is None
    assert state.sources == {1: PEER_ID}
    partial.put(SAMPLE.chunk(0), "upstream")
    assert partial.snapshot().table.find(0) == SAMPLE.digest_of(0)


def test_store_chunks_from_many_threads_all_arrive(any_store: BlobStore) -> None:
    """Several threads put the same and different chunks at once."""
    sample = make_chunks_sample(5)
    partial = any_store.open_partial(sample.blob, sample.layout)
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(partial.put, chunk, PEER_ID) for chunk in [*sample.chunks()] * 3]
        for job in jobs:
            job.result()
    assert partial.snapshot().have.is_full()
    any_store.publish(partial, sample.proof(), is_public=True)
    assert read_all(any_store.find_blob(sample.blob)) == sample.content


def test_store_partial_opened_again_goes_on(any_store: BlobStore) -> None:
    """A fetch that stops and starts again keeps what was put."""
    any_store.open_partial(SAMPLE.blob, SAMPLE.layout).put(SAMPLE.chunk(2), PEER_ID)
    again = any_store.open_partial(SAMPLE.blob, SAMPLE.layout)
    assert list(again.snapshot().have) == [2]
    assert again.snapshot().sources == {2: PEER_ID}


@pytest.mark.parametrize("hashed", [b"", SAMPLE.content[:-1], SAMPLE.content[:-1] + b"?"])
def test_store_publish_with_a_wrong_proof_is_refused(any_store: BlobStore, hashed: bytes) -> None:
    """Without a right proof of the whole nothing is published, and nothing is lost."""
    partial = fill(any_store, SAMPLE)
    proof = BlobProof(SAMPLE.blob, len(SAMPLE.content))
    proof.update(hashed)
    with pytest.raises(BlobCorruptError):
        any_store.publish(partial, proof, is_public=True)
    assert any_store.find_blob(SAMPLE.blob) is None
    assert partial.snapshot().have.is_full()


def test_store_publish_with_a_proof_of_another_blob_is_our_mistake(any_store: BlobStore) -> None:
    """A proof and a partial that do not belong together never meet."""
    partial = fill(any_store, SAMPLE)
    other = make_sample(10)
    with pytest.raises(AssertionError):
        any_store.publish(partial, other.proof(), is_public=True)


def test_store_blob_published_again_replaces_the_first(any_store: BlobStore) -> None:
    """A blob that is fetched twice is there once."""
    for _ in range(2):
        partial = fill(any_store, SAMPLE)
        any_store.publish(partial, SAMPLE.proof(), is_public=True)
        any_store.discard(SAMPLE.blob)
    assert len(list(any_store.iter_blobs())) == 1
    assert read_all(any_store.find_blob(SAMPLE.blob)) == SAMPLE.content


def test_store_discard_drops_the_partial_only(any_store: BlobStore) -> None:
    """A partial goes; a published blob stays unless it is meant."""
    other = make_sample(10)
    any_store.publish(fill(any_store, other), other.proof(), is_public=True)
    any_store.open_partial(SAMPLE.blob, SAMPLE.layout).put(SAMPLE.chunk(0), PEER_ID)
    any_store.discard(SAMPLE.blob)
    any_store.discard(other.blob)
    assert not any_store.open_partial(SAMPLE.blob, SAMPLE.layout).snapshot().have
    assert read_all(any_store.find_blob(other.blob)) == other.content


def test_store_discard_of_everything_is_repeatable(any_store: BlobStore) -> None:
    """A blob that goes is gone; what is gone may be discarded again."""
    any_store.publish(fill(any_store, SAMPLE), SAMPLE.proof(), is_public=True)
    for _ in range(2):
        any_store.discard(SAMPLE.blob, partial_only=False)
    assert any_store.find_blob(SAMPLE.blob) is None
    assert list(any_store.iter_blobs()) == []


def test_store_open_blob_outlives_its_name(any_store: BlobStore) -> None:
    """Who has a blob open reads it to the end although it was evicted meanwhile."""
    any_store.publish(fill(any_store, SAMPLE), SAMPLE.proof(), is_public=True)
    found = any_store.find_blob(SAMPLE.blob)
    any_store.discard(SAMPLE.blob, partial_only=False)
    assert read_all(found) == SAMPLE.content


def test_store_chunk_of_another_blob_is_our_mistake(any_store: BlobStore) -> None:
    """A chunk knows its blob; a partial takes no other."""
    partial = any_store.open_partial(SAMPLE.blob, SAMPLE.layout)
    with pytest.raises(AssertionError):
        partial.put(make_sample(10).chunk(0), PEER_ID)


def test_store_flush_of_a_partial_keeps_everything(any_store: BlobStore) -> None:
    """flush() changes nothing that can be seen."""
    partial = fill(any_store, SAMPLE)
    partial.flush()
    assert partial.snapshot().have.is_full()
