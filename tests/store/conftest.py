"""
Owns what the store's tests share: a store, small chunks, a disk that can be filled.

Knows nothing of single tests.
Invariants: every test has a folder of its own; a disk that was mounted is unmounted.
Source: none.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.core import layout
from p2pcache.store.blobs import FileBlobStore

SMALL_CHUNK_SIZE_BYTES = 4096
TINY_DISK_SIZE_BYTES = 12 * 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> FileBlobStore:
    """A store without blobs."""
    return FileBlobStore(tmp_path / "store")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut blobs every page, so that blobs of many chunks stay small; returns the size."""
    monkeypatch.setattr(layout, "CHUNK_SIZE_BYTES", SMALL_CHUNK_SIZE_BYTES)
    return SMALL_CHUNK_SIZE_BYTES


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB; skips where none can be mounted."""
    mount_point = tmp_path / "tiny"
    mount_point.mkdir()
    options = f"size={TINY_DISK_SIZE_BYTES}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount_point)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)
