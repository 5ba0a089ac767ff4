"""
Owns the tests of store.presence: what is told of partial files, against the partials themselves.

Knows nothing of the index.
Invariants: a reader that looked before and one that looks for the first time say the same.
Source: store/presence.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.presence import Presence, PresenceReader
from tests.samples import PEER_ID, make_sample

pytestmark = pytest.mark.usefixtures("small_chunks")
SIZE_BYTES = 40_000
UPSTREAM = "upstream"


def held(store: FileBlobStore, reader: PresenceReader) -> int:
    """Ask a reader that has looked before and a new one; both must say the same."""
    blob = make_sample(SIZE_BYTES).blob
    told = reader.look(blob, SIZE_BYTES)
    assert told == PresenceReader(store.root).look(blob, SIZE_BYTES)
    return told.held_bytes


def test_presence_follows_a_file_from_its_first_chunk_to_its_name(store: FileBlobStore) -> None:
    """Every chunk counts once its record is there; forgotten ones do not; in the end all of it."""
    sample, reader = make_sample(SIZE_BYTES), PresenceReader(store.root)
    assert held(store, reader) == 0
    partial = store.open_partial(sample.blob, sample.layout)
    assert held(store, reader) == 0
    expected = 0
    for chunk in sample.chunks():
        partial.put(chunk, UPSTREAM)
        expected += len(chunk.view)
        assert held(store, reader) == expected
        if chunk.chunk_index == 4:
            partial.forget([1, 2])
            expected -= sample.layout.measure([1, 2])
            assert held(store, reader) == expected
    for index in (1, 2):
        partial.put(sample.chunk(index), PEER_ID)
    assert held(store, reader) == SIZE_BYTES
    assert not reader.look(sample.blob, SIZE_BYTES).is_whole
    store.publish(partial, sample.proof(), is_public=True)
    partial.close()
    assert reader.look(sample.blob, SIZE_BYTES) == Presence(SIZE_BYTES, True)
    store.discard(sample.blob)
    assert reader.look(sample.blob, SIZE_BYTES) == Presence(SIZE_BYTES, True)


def test_presence_sees_a_record_that_began_anew(store: FileBlobStore) -> None:
    """A partial that is opened again rewrites its record; one that was dropped has none."""
    sample, reader = make_sample(SIZE_BYTES), PresenceReader(store.root)
    for indexes in ([0, 1, 2], [5], []):
        partial = store.open_partial(sample.blob, sample.layout)
        for index in indexes:
            partial.put(sample.chunk(index), UPSTREAM)
        partial.flush()
        partial.close()
        held(store, reader)
    assert held(store, reader) == sample.layout.measure([0, 1, 2, 5])
    store.discard(sample.blob)
    assert held(store, reader) == 0
    partial = store.open_partial(sample.blob, sample.layout)
    partial.put(sample.chunk(3), UPSTREAM)
    assert held(store, reader) == sample.layout.measure([3])
    partial.close()


def test_presence_leaves_a_torn_record_for_the_next_look(store: FileBlobStore) -> None:
    """Half a record is nothing; once it is whole it counts."""
    sample, reader = make_sample(SIZE_BYTES), PresenceReader(store.root)
    partial = store.open_partial(sample.blob, sample.layout)
    partial.put(sample.chunk(0), UPSTREAM)
    partial.put(sample.chunk(1), UPSTREAM)
    path = partial.record_path
    raw = path.read_bytes()
    partial.close()
    path.write_bytes(raw[:-30])
    assert held(store, reader) == sample.layout.measure([0])
    with path.open("ab") as file:
        file.write(raw[-30:])
    assert held(store, reader) == sample.layout.measure([0, 1])


def test_presence_believes_no_record_of_another_kind(store: FileBlobStore, tmp_path: Path) -> None:
    """Rubbish, a folder or a link in its place is nothing, and no error."""
    sample, reader = make_sample(SIZE_BYTES), PresenceReader(store.root)
    _, record_path = store.partial_paths_of(sample.blob)
    record_path.write_bytes(b"rubbish" * 100)
    assert held(store, reader) == 0
    record_path.unlink()
    record_path.mkdir()
    assert held(store, reader) == 0
    record_path.rmdir()
    os.symlink(tmp_path, record_path)
    assert held(store, reader) == 0


def test_presence_tells_what_the_disk_gave(store: FileBlobStore) -> None:
    """Room that is reserved is not needed a second time."""
    sample = make_sample(SIZE_BYTES)
    partial = store.open_partial(sample.blob, sample.layout)
    told = PresenceReader(store.root).look(sample.blob, SIZE_BYTES)
    assert told.taken_bytes >= SIZE_BYTES
    partial.close()
