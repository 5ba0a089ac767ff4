"""
Owns the tests of store.usage: what files take on a real file system, and giving it back.

Knows nothing of who needs them.
Invariants: figures are those of the disk.
Source: store/usage.py.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.errors import StoreError
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.hubtree import HubTree
from p2pcache.store.leftovers import partial_path
from p2pcache.store.usage import (
    find_unshared,
    measure_blobs,
    measure_missing,
    measure_partials,
    remove_blob,
    round_up,
)
from tests.samples import Sample, make_sample

SIZE_BYTES = 1_000_000
DAY_S = 86_400.0


def fill(store: FileBlobStore, sample: Sample) -> None:
    """Begin to fill a blob."""
    partial = store.open_partial(sample.blob, sample.layout)
    partial.put(sample.chunk(0), "upstream")
    partial.flush()
    partial.close()


def publish(store: FileBlobStore, sample: Sample) -> Path:
    """Publish a blob; returns its file."""
    partial = store.open_partial(sample.blob, sample.layout)
    for chunk in sample.chunks():
        partial.put(chunk, "upstream")
    store.publish(partial, sample.proof(), is_public=True)
    partial.close()
    store.discard(sample.blob)
    return store.path_of(sample.blob)


def test_usage_of_whole_and_partial_files_is_what_the_disk_gave(store: FileBlobStore) -> None:
    """Blocks, not sizes; room that is reserved is taken."""
    whole, begun = make_sample(SIZE_BYTES), make_sample(5 * SIZE_BYTES, seed=1)
    path = publish(store, whole)
    fill(store, begun)
    assert measure_blobs(store) == {whole.blob: path.stat().st_blocks * 512}
    (use,) = measure_partials(store, time.time()).values()
    assert 5 * SIZE_BYTES <= use.taken_bytes <= 5 * SIZE_BYTES + 16_384
    assert use.idle_s < 60


def test_usage_of_a_partial_is_idle_since_its_last_write(store: FileBlobStore) -> None:
    """The younger of file and record counts; a clock that was set back makes nobody idle."""
    sample = make_sample(SIZE_BYTES)
    fill(store, sample)
    path = partial_path(store.root, sample.blob)
    now_s = time.time()
    os.utime(path, (now_s - 9 * DAY_S, now_s - 9 * DAY_S))
    assert measure_partials(store, now_s)[sample.blob].idle_s < 60
    record = path.with_name(path.name + ".have")
    os.utime(record, (now_s - 8 * DAY_S, now_s - 8 * DAY_S))
    idle_s = measure_partials(store, now_s)[sample.blob].idle_s
    assert idle_s == pytest.approx(8 * DAY_S, abs=1)
    assert measure_partials(store, now_s - 30 * DAY_S)[sample.blob].idle_s == 0.0


def test_usage_passes_over_records_without_a_file_and_foreign_names(store: FileBlobStore) -> None:
    """Those are leftovers, not downloads."""
    folder = store.root / "partial"
    (folder / f"sha256-{'0' * 64}.have").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"x" * 10_000)
    assert measure_partials(store, 0.0) == {}


def test_missing_bytes_are_those_that_the_disk_has_yet_to_give(store: FileBlobStore) -> None:
    """Nothing for what is here or reserved, all of the rest in whole blocks."""
    samples = [make_sample(SIZE_BYTES, seed=seed) for seed in range(3)]
    whole, begun, absent = [(sample.blob, SIZE_BYTES) for sample in samples]
    publish(store, samples[0])
    fill(store, samples[1])
    assert measure_missing(store, [whole, begun]) == 0
    assert measure_missing(store, [whole, begun, absent]) == round_up(SIZE_BYTES)
    assert measure_missing(store, [(absent[0], 0)]) == 0


def test_missing_bytes_of_a_file_with_holes_are_the_holes(store: FileBlobStore) -> None:
    """Where nothing can be reserved, the disk gives room only as bytes arrive."""
    sample = make_sample(SIZE_BYTES)
    path = partial_path(store.root, sample.blob)
    with path.open("wb") as file:
        file.write(bytes(8192))
        file.truncate(SIZE_BYTES)
    assert measure_missing(store, [(sample.blob, SIZE_BYTES)]) == round_up(SIZE_BYTES) - 8192


def test_removed_blob_leaves_no_file_and_removing_again_is_no_error(store: FileBlobStore) -> None:
    """The file, its partial and its records go; readers read on."""
    sample = make_sample(SIZE_BYTES)
    path = publish(store, sample)
    fill(store, sample)
    with path.open("rb") as reader:
        remove_blob(store, sample.blob)
        assert reader.read() == sample.content
    remove_blob(store, sample.blob)
    assert [p for p in store.root.rglob("*") if p.is_file()] == []
    remove_blob(store, BlobDigest("sha256", "7" * 64))


def test_disk_that_fails_is_an_error_of_the_store(
    store: FileBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody above sees a raw system error."""
    sample = make_sample(SIZE_BYTES)
    publish(store, sample)
    fill(store, make_sample(SIZE_BYTES, seed=1))

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.lstat", fail)
        patch.setattr(os, "scandir", fail)
        for work in (measure_blobs, lambda s: measure_partials(s, 0.0)):
            with pytest.raises(StoreError, match="disk failed"):
                work(store)
    for name in ("pathlib.Path.unlink", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            with pytest.raises(StoreError, match="disk failed"):
                remove_blob(store, sample.blob)


def test_file_is_shared_while_somebody_else_has_a_name_for_it(
    store: FileBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree's links are ours; a foreign cache's is not, nor is a file that is referred to."""
    tree = HubTree(store.root / "hub")
    sample = make_sample(SIZE_BYTES)
    path = publish(store, sample)
    for name in ("models--org--name", "models--org--other"):
        link = tree.root / name / "blobs" / sample.blob.hex
        link.parent.mkdir(parents=True)
        link.hardlink_to(path)

    def find() -> set[BlobDigest]:
        return find_unshared(store, tree, [sample.blob])

    assert find() == {sample.blob}
    foreign = tmp_path / "foreign"
    foreign.hardlink_to(path)
    assert find() == set()
    foreign.unlink()
    assert find() == {sample.blob}
    path.unlink()
    assert find() == set()
    path.symlink_to(tmp_path / "elsewhere")
    assert find() == set()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.lstat", fail)
    with pytest.raises(StoreError, match="disk failed"):
        find()
