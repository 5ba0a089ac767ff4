"""
Owns what the crash harness found in the store's own files, each as a test of its own.

Knows nothing of the harness.
Invariants: each test failed before its bug was mended.
Source: docs/reliability.md, "What it found".
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import StoreError
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.catalogue import RefRow
from p2pcache.store.damages import CHECK_FILE_NAME, CheckMemory
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.leftovers import list_leftovers, note_changes
from p2pcache.store.pinfile import PINS_NAME, read_pins, write_pins
from p2pcache.store.rebuild import recover
from tests.samples import COMMIT, OTHER_COMMIT, make_chunks_sample

SAMPLE = make_chunks_sample(2)
ID = SnapshotId(RepoId("hf", "models", "org/name"), COMMIT)
ENTRY = FileEntry("model.bin", len(SAMPLE.content), SAMPLE.blob, "0" * 40)


def fail(*_: object, **__: object) -> Any:
    """A system call that fails."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def refuse_to_open(patch: pytest.MonkeyPatch, name: str, number: int = errno.EMFILE) -> None:
    """Let every try to open a file of this name fail."""
    real = io.open

    def open_or_fail(file: Any, *args: Any, **kwargs: Any) -> Any:
        if os.path.basename(os.fsdecode(file)) == name:
            raise OSError(number, os.strerror(number))
        return real(file, *args, **kwargs)

    patch.setattr(io, "open", open_or_fail)


def put_sample(store: FileBlobStore) -> None:
    """Publish the sample."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    for index in range(2):
        partial.put(SAMPLE.chunk(index), "upstream")
    store.publish(partial, SAMPLE.proof(), is_public=True)
    partial.close()


@pytest.fixture
def store(tmp_path: Path) -> FileBlobStore:
    """A store without blobs."""
    return FileBlobStore(tmp_path / "store")


def test_partial_whose_record_could_not_be_emptied_begins_anew(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When everything fails after a sync did, the record outlives it and is not believed."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), "upstream")
    with monkeypatch.context() as patch:
        for name in ("fdatasync", "ftruncate"):
            patch.setattr(os, name, fail)
        with pytest.raises(StoreError):
            partial.flush()
    partial.close()
    again = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    assert not again.snapshot().have
    again.close()


def test_partial_head_of_the_record_written_in_part_is_completed(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes half of the head at first does not leave a log that nobody can read."""
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, content: real(fd, bytes(content)[:10]))
        partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(1), "upstream")
    partial.flush()
    partial.close()
    again = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    assert list(again.snapshot().have) == [1]
    again.close()


def test_partial_record_that_cannot_be_measured_is_a_store_error(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that was shut down fails every call, lseek included."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), "upstream")
    with monkeypatch.context() as patch:
        patch.setattr(os, "lseek", fail)
        with pytest.raises(StoreError):
            partial.flush()
    partial.close()


@pytest.mark.parametrize(
    ("call", "work"),
    [
        ("unlink", lambda store: store.discard(SAMPLE.blob)),
        ("mkdir", lambda store: FileBlobStore(store.root / "other")),
    ],
)
def test_store_that_fails_says_so_as_a_store_error(
    store: FileBlobStore,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    work: Callable[[FileBlobStore], object],
) -> None:
    """No OSError leaves the store."""
    store.open_partial(SAMPLE.blob, SAMPLE.layout).close()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreError):
        work(store)


@pytest.mark.parametrize("name", [f"{COMMIT}.json", "main", PINS_NAME])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_rebuild_that_cannot_read_a_file_fails_and_forgets_nothing(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """A listing, ref or pin that is overlooked once is gone for good: the next gc sees to it."""
    put_sample(store)
    tree = HubTree(store.root / "hub")
    tree.open_repo(ID.repo, is_public=True)
    tree.publish_tree(Snapshot.of(ID, [ENTRY]))
    tree.publish_file(ID, ENTRY, store.path_of(SAMPLE.blob))
    tree.publish_ref(ID.repo, "main", COMMIT)
    pin = RefRow(ID.repo, "main", COMMIT, 1.0)
    write_pins(store.root, [pin])
    path = store.root / "index.sqlite"
    with closing(Index(path)) as index, monkeypatch.context() as patch:
        refuse_to_open(patch, name, number)
        with pytest.raises(StoreError, match=name):
            recover(store, tree, index, wall_s=1.0)
    with closing(Index(path)) as index:
        assert recover(store, tree, index, wall_s=2.0).was_rebuilt
        assert index.catalogue.find_snapshot(ID) is not None
        assert index.catalogue.find_ref(ID.repo, "main") is not None
        assert index.roots.list_pins() == [pin]


def test_pins_that_cannot_be_read_now_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who takes them for none gets as far as writing the file anew."""
    pins = [RefRow(ID.repo, "main", COMMIT, 1.0)]
    write_pins(tmp_path, pins)
    with monkeypatch.context() as patch:
        refuse_to_open(patch, PINS_NAME)
        with pytest.raises(StoreError, match="too many files are open"):
            read_pins(tmp_path)
    assert read_pins(tmp_path) == pins


def test_partial_record_that_cannot_be_read_now_is_not_an_empty_one(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks how a partial is cut would cut it anew, and give up what it holds."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), "upstream")
    partial.flush()
    partial.close()
    _, record_path = store.partial_paths_of(SAMPLE.blob)
    with monkeypatch.context() as patch:
        refuse_to_open(patch, record_path.name)
        with pytest.raises(StoreError):
            store.find_layout(SAMPLE.blob)
        with pytest.raises(StoreError):
            store.count_held_bytes(SAMPLE.blob)
    assert store.find_layout(SAMPLE.blob) == SAMPLE.layout


def test_damages_that_cannot_be_read_now_are_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be healed is not taken for nothing, and written over."""
    (tmp_path / CHECK_FILE_NAME).write_bytes(CheckMemory(7.0).to_bytes())
    with monkeypatch.context() as patch:
        refuse_to_open(patch, CHECK_FILE_NAME)
        with pytest.raises(StoreError):
            CheckMemory.load(tmp_path)
    assert CheckMemory.load(tmp_path).pass_started_wall_s == 7.0


@pytest.mark.parametrize(
    ("folder", "work"),
    [
        ("partial", lambda store, tree: store.measure_partials()),
        ("hub", lambda store, tree: note_changes(tree)),
        ("hub", lambda store, tree: list_leftovers(store, tree, set(), {})),
        ("blobs", lambda store, tree: list_leftovers(store, tree, set(), {})),
    ],
)
def test_folder_that_cannot_be_listed_is_a_store_error(
    store: FileBlobStore,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    work: Callable[[FileBlobStore, HubTree], object],
) -> None:
    """Too many open files at the wrong moment ends a job with a sentence, not with a traceback."""
    tree = HubTree(store.root / "hub")
    tree.open_repo(ID.repo, is_public=True)

    def refuse(name: str) -> None:
        real = getattr(os, name)

        def call_or_fail(path: Any = ".") -> Any:
            if os.fsdecode(path).startswith(str(store.root / folder)):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(path)

        monkeypatch.setattr(os, name, call_or_fail)

    for name in ("scandir", "listdir"):
        refuse(name)
    with pytest.raises(StoreError, match="too many files are open"):
        work(store, tree)


@pytest.mark.parametrize("call", ["scandir", "readlink"])
def test_eviction_that_cannot_see_all_links_takes_no_blob_of_another_commit(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A folder or link that cannot be read may be the one that needs the file."""
    put_sample(store)
    tree = HubTree(store.root / "hub")
    other = SnapshotId(ID.repo, OTHER_COMMIT)
    tree.open_repo(ID.repo, is_public=True)
    for snapshot_id in (ID, other):
        tree.publish_tree(Snapshot.of(snapshot_id, [ENTRY]))
        tree.publish_file(snapshot_id, ENTRY, store.path_of(SAMPLE.blob))
    real = getattr(os, call)

    def call_or_fail(path: Any) -> Any:
        if OTHER_COMMIT in os.fsdecode(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, call_or_fail)
        with pytest.raises(StoreError):
            tree.withdraw_snapshot(ID, store.path_of)
    assert (tree.snapshot_path(other) / ENTRY.path).read_bytes() == SAMPLE.content
