"""
Owns what the store's files take on the disk, and giving it back.

Knows nothing of who needs them.
Invariants: bytes are those of the disk's blocks, holes not counted; a file that goes is unlinked,
so that whoever has it open reads on.
Source: stat(2); design.md §4.
"""

from __future__ import annotations

import contextlib
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from p2pcache.core.digest import BlobDigest
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.disk import DISK_BLOCK_SIZE_BYTES, store_error, sync_directory
from p2pcache.store.hubtree import HubTree
from p2pcache.store.leftovers import RECORD_SUFFIX, partial_path

_STAT_BLOCK_SIZE_BYTES = 512


@dataclass(frozen=True, slots=True)
class PartialUse:
    """A file that is not whole, with its record; `idle_s`: since somebody wrote to one of them."""

    taken_bytes: int
    idle_s: float


def round_up(size_bytes: int) -> int:
    """Return what a file of a size takes on the disk."""
    return -(-size_bytes // DISK_BLOCK_SIZE_BYTES) * DISK_BLOCK_SIZE_BYTES


def measure_blobs(store: FileBlobStore) -> dict[BlobDigest, int]:
    """
    Return what each published file takes.

    Raises:
        StoreError: The disk failed.
    """
    try:
        return {blob: taken_bytes for blob, _, taken_bytes in store.iter_files()}
    except OSError as error:
        raise store_error(error, store.root) from error


def measure_partials(store: FileBlobStore, wall_s: float) -> dict[BlobDigest, PartialUse]:
    """
    Return what each partial takes, and for how long nobody added to it.

    Raises:
        StoreError: The disk failed.
    """
    found: dict[BlobDigest, PartialUse] = {}
    try:
        for blob in store.iter_partials():
            path = partial_path(store.root, blob)
            taken, written_s = 0, 0.0
            for part in (path, path.with_name(path.name + RECORD_SUFFIX)):
                with contextlib.suppress(FileNotFoundError):
                    status = part.lstat()
                    taken += status.st_blocks * _STAT_BLOCK_SIZE_BYTES
                    written_s = max(written_s, status.st_mtime)
            if path.exists():
                # A clock that was set back makes nobody idle.
                found[blob] = PartialUse(taken, max(0.0, wall_s - written_s))
    except OSError as error:
        raise store_error(error, store.root) from error
    return found


def measure_missing(store: FileBlobStore, sizes: Iterable[tuple[BlobDigest, int]]) -> int:
    """Return the bytes that the disk has yet to give for some blobs of given sizes."""
    missing = 0
    for blob, size_bytes in sizes:
        taken = 0
        for path in (store.path_of(blob), partial_path(store.root, blob)):
            with contextlib.suppress(OSError):
                taken += path.lstat().st_blocks * _STAT_BLOCK_SIZE_BYTES
                # A file system that packs or shares blocks: a whole file takes no more.
                taken = max(taken, round_up(size_bytes)) if path == store.path_of(blob) else taken
        missing += max(0, round_up(size_bytes) - taken)
    return missing


def remove_blob(store: FileBlobStore, blob: BlobDigest) -> None:
    """
    Remove a blob's file, its partial and its record; after its row and its links.

    Raises:
        StoreError: The disk failed.
    """
    folder = store.path_of(blob).parent
    store.discard(blob, partial_only=False)
    try:
        with contextlib.suppress(FileNotFoundError):
            sync_directory(folder)
    except OSError as error:
        raise store_error(error, folder) from error


def find_unshared(
    store: FileBlobStore, tree: HubTree, blobs: Iterable[BlobDigest]
) -> set[BlobDigest]:
    """
    Return those published files that nobody else has a name for, beside the store's own.

    Raises:
        StoreError: The disk failed.
    """
    own: Counter[tuple[int, int]] = Counter()
    alone = set()
    try:
        for repo in tree.folders.iter_repos():
            for link in (tree.repo_path(repo) / "blobs").glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    status = link.lstat()
                    own[status.st_dev, status.st_ino] += 1
        for blob in blobs:
            with contextlib.suppress(FileNotFoundError):
                status = store.path_of(blob).lstat()
                # A link refers to somebody else's file.
                is_ours = stat.S_ISREG(status.st_mode)
                if is_ours and status.st_nlink <= 1 + own[status.st_dev, status.st_ino]:
                    alone.add(blob)
    except OSError as error:
        raise store_error(error, store.root) from error
    return alone
