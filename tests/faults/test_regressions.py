"""
Owns what the crash harness found in the store's own files, each as a test of its own.

Knows nothing of the harness.
Invariants: each test failed before its bug was mended.
Source: docs/reliability.md, "What it found".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pcache.errors import StoreError
from p2pcache.store.blobs import FileBlobStore
from tests.samples import make_chunks_sample

SAMPLE = make_chunks_sample(2)


def fail(*_: object, **__: object) -> Any:
    """A system call that fails."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


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
