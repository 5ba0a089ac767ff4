"""
Owns the tests of store.blobs that are about files: order, modes, names.

Knows nothing of chunks' recovery (test_partial.py) or of the boundary (test_conformance.py).
Invariants: bytes are durable before the name, the name before the caller goes on.
Source: store/blobs.py; design.md §4.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.errors import BlobCorruptError, StoreError
from p2pcache.store.base import FileStamp
from p2pcache.store.blobs import FileBlobStore, stamp_of
from p2pcache.store.memory import MemoryBlobStore
from tests.samples import PEER_ID, Sample, make_sample

SAMPLE = make_sample(5000)
OTHER = make_sample(5000, seed=1)


def publish(store: FileBlobStore, sample: Sample = SAMPLE, *, is_public: bool = True) -> FileStamp:
    """Fill and publish a blob."""
    partial = store.open_partial(sample.blob, sample.layout)
    for chunk in sample.chunks():
        partial.put(chunk, PEER_ID)
    stamp = store.publish(partial, sample.proof(), is_public=is_public)
    partial.close()
    return stamp


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the calls that make things durable, each with the names of what it touched."""
    recorded: list[str] = []

    def name_of(target: Any) -> str:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        name = Path(path).name.replace(SAMPLE.blob.hex, "HEX")
        return "AB" if name == SAMPLE.blob.hex[:2] else name

    def record(call: str, *, arguments: int) -> Callable[..., Any]:
        real = getattr(os, call)

        def recording(*args: Any) -> Any:
            recorded.append(" ".join([call, *(name_of(a) for a in args[:arguments])]))
            return real(*args)

        return recording

    for call in ("fsync", "fdatasync", "fchmod", "pwrite"):
        monkeypatch.setattr(os, call, record(call, arguments=1))
    monkeypatch.setattr(os, "rename", record("rename", arguments=2))
    return recorded


def test_publish_makes_bytes_durable_before_the_name(
    store: FileBlobStore, calls: list[str]
) -> None:
    """Data, record, mode, sync, rename, then every folder whose names changed."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), PEER_ID)
    calls.clear()
    store.publish(partial, SAMPLE.proof(), is_public=True)
    assert calls == [
        "fdatasync sha256-HEX",
        "pwrite sha256-HEX.have",
        "fdatasync sha256-HEX.have",
        "fsync partial",
        "fchmod sha256-HEX",
        "fsync sha256-HEX",
        "rename sha256-HEX HEX",
        "fsync AB",
        "fsync sha256",
        "fsync partial",
    ]
    partial.close()


def test_put_writes_bytes_before_the_record(store: FileBlobStore, calls: list[str]) -> None:
    """The record never speaks of bytes that were not written yet; put itself syncs nothing."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    calls.clear()
    partial.put(SAMPLE.chunk(0), PEER_ID)
    assert calls == ["pwrite sha256-HEX", "pwrite sha256-HEX.have"]
    partial.close()


def test_open_makes_recovered_record_durable_before_it_counts(
    store: FileBlobStore, calls: list[str]
) -> None:
    """What was hashed again is synced before the new record says that it is durable."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.close()
    calls.clear()
    store.open_partial(SAMPLE.blob, SAMPLE.layout).close()
    assert calls == [
        "fdatasync sha256-HEX",
        "fdatasync sha256-HEX.have.new",
        "rename sha256-HEX.have.new sha256-HEX.have",
        "fsync partial",
    ]


@pytest.mark.parametrize(("is_public", "mode"), [(True, 0o444), (False, 0o400)])
def test_publish_leaves_a_read_only_file(store: FileBlobStore, is_public: bool, mode: int) -> None:
    """Public weights can be mapped by everybody, restricted ones by us alone; nobody writes."""
    stamp = publish(store, is_public=is_public)
    status = store.path_of(SAMPLE.blob).stat()
    assert stat.S_IMODE(status.st_mode) == mode
    assert stamp == FileStamp(status.st_size, status.st_mtime_ns, status.st_ino)
    assert store.is_world_readable(SAMPLE.blob) is is_public


def test_publish_path_is_made_from_the_digest_alone(store: FileBlobStore) -> None:
    """blobs/<algorithm>/<first two digits>/<digits>."""
    publish(store)
    digits = SAMPLE.blob.hex
    assert (store.root / "blobs" / "sha256" / digits[:2] / digits).read_bytes() == SAMPLE.content


def test_publish_keeps_the_record_until_it_is_discarded(store: FileBlobStore) -> None:
    """A crash before the index row must not lose what is known of the chunks."""
    publish(store)
    names = [path.name for path in (store.root / "partial").iterdir()]
    assert names == [f"sha256-{SAMPLE.blob.hex}.have"]
    store.discard(SAMPLE.blob)
    assert list((store.root / "partial").iterdir()) == []


def test_publish_wrong_proof_leaves_the_partial_writable(store: FileBlobStore) -> None:
    """After a refusal the fetch goes on: nothing was renamed, nothing made read-only."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.wrong_chunk(0), PEER_ID)
    proof = SAMPLE.proof()
    proof.update(b"more")
    with pytest.raises(BlobCorruptError) as caught:
        store.publish(partial, proof, is_public=True)
    assert caught.value.path == str(partial.path)
    assert stat.S_IMODE(partial.path.stat().st_mode) == 0o600
    partial.forget([0])
    partial.put(SAMPLE.chunk(0), PEER_ID)
    store.publish(partial, SAMPLE.proof(), is_public=True)
    partial.close()


def test_publish_failed_rename_is_a_store_error_and_can_be_repeated(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that cannot be given now can be given later; nothing is fetched again."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), PEER_ID)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(StoreError):
            store.publish(partial, SAMPLE.proof(), is_public=True)
    store.publish(partial, SAMPLE.proof(), is_public=True)
    partial.close()
    assert store.path_of(SAMPLE.blob).read_bytes() == SAMPLE.content


def test_publish_partial_of_another_store_is_our_mistake(store: FileBlobStore) -> None:
    """Stores do not mix."""
    partial = MemoryBlobStore().open_partial(SAMPLE.blob, SAMPLE.layout)
    with pytest.raises(AssertionError):
        store.publish(partial, SAMPLE.proof(), is_public=True)


def test_set_public_opens_the_file_to_others(store: FileBlobStore) -> None:
    """What turned out to be public becomes readable, and back; the stamp still matches."""
    stamp = publish(store, is_public=False)
    store.set_public(SAMPLE.blob)
    assert store.is_world_readable(SAMPLE.blob)
    store.set_restricted(SAMPLE.blob)
    assert not store.is_world_readable(SAMPLE.blob)
    assert dict(store.iter_blobs()) == {SAMPLE.blob: stamp}


def test_set_public_of_an_absent_blob_does_nothing(store: FileBlobStore) -> None:
    """There is nothing to open."""
    store.set_public(SAMPLE.blob)
    assert not store.is_world_readable(SAMPLE.blob)


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_find_blob_something_else_of_that_name_is_no_blob(
    store: FileBlobStore, tmp_path: Path, kind: str
) -> None:
    """Links of others' making are not followed, folders not opened, a FIFO does not hold us up."""
    path = store.path_of(SAMPLE.blob)
    path.parent.mkdir()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(SAMPLE.content)
        path.symlink_to(os.path.relpath(tmp_path / "elsewhere", path.parent))
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert store.find_blob(SAMPLE.blob) is None
    assert list(store.iter_blobs()) == []


def test_find_blob_without_descriptors_is_not_an_absent_blob(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ran out of descriptors must not believe that its blobs are gone."""
    publish(store)

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StoreError):
        store.find_blob(SAMPLE.blob)


def test_iter_blobs_foreign_names_are_passed_over(store: FileBlobStore) -> None:
    """Only files whose place and name are a blob's are blobs."""
    stamp = publish(store)
    folder = store.root / "blobs" / "sha256"
    (folder / "zz").mkdir()
    (folder / "zz" / SAMPLE.blob.hex).write_bytes(b"in the wrong folder")
    (folder / SAMPLE.blob.hex[:2] / "README").write_bytes(b"")
    (folder / SAMPLE.blob.hex[:2] / SAMPLE.blob.hex.upper()).write_bytes(b"")
    assert list(store.iter_blobs()) == [(SAMPLE.blob, stamp)]


def test_iter_partials_lists_files_and_records_once(store: FileBlobStore) -> None:
    """A data file, a record alone and a record under way each name their blob; others nothing."""
    store.open_partial(SAMPLE.blob, SAMPLE.layout).close()
    folder = store.root / "partial"
    (folder / f"sha256-{OTHER.blob.hex}.have.new").write_bytes(b"")
    (folder / f"gitsha1-{'0' * 40}.have").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    expected = {SAMPLE.blob, OTHER.blob, BlobDigest("gitsha1", "0" * 40)}
    assert set(store.iter_partials()) == expected
    assert len(list(store.iter_partials())) == 3
    assert store.is_filling(SAMPLE.blob)
    assert not store.is_filling(OTHER.blob)
    for blob in expected:
        store.discard(blob)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_count_held_bytes_reads_the_record_of_an_idle_partial(
    store: FileBlobStore, small_chunks: int
) -> None:
    """Held chunks count, forgotten ones do not, no record counts nothing."""
    assert store.count_held_bytes(SAMPLE.blob) == 0
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    for chunk in SAMPLE.chunks():
        partial.put(chunk, PEER_ID)
    partial.flush()
    assert store.count_held_bytes(SAMPLE.blob) == len(SAMPLE.content)
    partial.forget([0])
    assert store.count_held_bytes(SAMPLE.blob) == len(SAMPLE.content) - small_chunks
    partial.close()


def test_measure_partials_counts_what_the_disk_gave(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reserved room counts; a file that goes meanwhile does not matter."""
    assert store.measure_partials() == 0
    sample = make_sample(1_000_000)
    store.open_partial(sample.blob, sample.layout).close()
    assert 1_000_000 <= store.measure_partials() < 1_100_000
    gone = [store.root / "partial" / "gone"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(gone))
    assert store.measure_partials() == 0


def test_open_partial_failure_on_a_known_partial_keeps_it(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a partial that was just made is cleaned up when it cannot be opened."""
    partial = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    partial.put(SAMPLE.chunk(0), PEER_ID)
    partial.close()

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        with pytest.raises(StoreError):
            store.open_partial(SAMPLE.blob, SAMPLE.layout)
    again = store.open_partial(SAMPLE.blob, SAMPLE.layout)
    assert again.snapshot().have.is_full()
    again.close()


def test_stamp_inode_fits_the_index(store: FileBlobStore, tmp_path: Path) -> None:
    """Some file systems use all 64 bits of an inode number; SQLite has 63."""
    fields = list(tmp_path.stat())
    fields[stat.ST_INO] = (1 << 64) - 1
    assert stamp_of(os.stat_result(fields)).inode < 1 << 63


def test_open_partial_of_an_empty_blob_can_be_published(store: FileBlobStore) -> None:
    """An empty file has no chunk to wait for."""
    empty = make_sample(0)
    partial = store.open_partial(empty.blob, Layout(0))
    assert store.publish(partial, empty.proof(), is_public=True).size_bytes == 0
    partial.close()


def fail(*_: object, **__: object) -> Any:
    """A system call on a disk that fails."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_blobs_mode_that_a_disk_does_not_take_is_a_store_error(
    store: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may read a file is not left in doubt."""
    publish(store)
    monkeypatch.setattr(os, "fchmod", fail)
    monkeypatch.setattr(os, "chmod", fail)
    with pytest.raises(StoreError):
        store.set_restricted(SAMPLE.blob)
    with pytest.raises(StoreError):
        store.claim_foreign(SAMPLE.blob, is_public=True)
    assert store.is_world_readable(SAMPLE.blob)


def test_blobs_link_that_cannot_be_read_now_is_not_passed_over(
    store: FileBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is referred to would lose its row, and its snapshot with it."""
    target = tmp_path / "elsewhere"
    target.write_bytes(SAMPLE.content)
    path = store.path_of(SAMPLE.blob)
    path.parent.mkdir()
    path.symlink_to(target)
    assert [blob for blob, _ in store.iter_blobs()] == [SAMPLE.blob]
    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", fail)
        with pytest.raises(StoreError):
            list(store.iter_blobs())
    path.unlink()
    path.symlink_to("relative")
    assert list(store.iter_blobs()) == []
