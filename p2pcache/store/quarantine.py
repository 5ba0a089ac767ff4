"""
Owns taking a damaged file out of the place of good ones, and keeping what is still good of it.

Knows nothing of how the damage was found, or of who mends it.
Invariants: takes no room that the file does not have already; a chunk is recorded as held only
after its bytes are durable under the name that the record is for; a file that is somebody
else's too is never written to, and neither is its mode changed.
Source: design.md §4; docs/reference/store-layout.md (setting a damaged file aside).

The order, and what a crash after each step leaves:

1. condemn(): the row says "not proven", durably. From here the file is hashed before anybody is
   given it, also after a restart, and the row's table still tells its good chunks from its bad.
2. withdraw(): its links leave the hub tree. recover() takes away what a crash left of them.
3. keep_good_chunks(): the record of the good chunks, durable, beside no file yet. recover()
   drops it, for the file is still in its place; the next check writes it again.
4. …the file itself becomes the partial: one rename. Now the record speaks of it.
5. The row goes. recover() drops rows without a file anyway.

Who has the file open, or mapped, across the rename keeps the same inode and may see it being
mended: chunks that were wrong turn into the right ones, in any order and within a chunk in
pieces. Chunks that were right are recorded as held, and bytes of a held chunk are never written
again, so such a reader never sees a right byte become a wrong one by our hand. (A proof of the
whole that then fails, because the disk changed yet another chunk meanwhile, forgets chunks; they
are written again with what the hub or a peer sends for them.) A reader who must not see damage
asks the daemon, which gives out nothing that is condemned.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import FileEntry
from p2pcache.errors import StoreError
from p2pcache.store.base import BlobFile
from p2pcache.store.blobs import FileBlobStore, stamp_of
from p2pcache.store.damages import DamagePlace
from p2pcache.store.disk import (
    CopyPlace,
    open_writable,
    store_error,
    sync_directory,
    try_set_mode,
    write_all,
)
from p2pcache.store.havelog import Kind, Record, header_to_bytes
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.partial import NEW_SUFFIX, UPSTREAM_SOURCE

log = logging.getLogger(__name__)

_PARTIAL_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Wreck:
    """A damaged file, open, and what a check says of it."""

    blob: BlobDigest
    found: BlobFile
    # The table that was proven for the blob; without one no chunk of it can be believed.
    known: ChunkTable | None
    bad: frozenset[int]
    # Chunks from here on were not looked at: recorded as hints, hashed when the partial is opened.
    unseen_from: int
    # The index says that its bytes are shared with a file that somebody else owns.
    is_adopted: bool = False


def condemn(index: Index, blob: BlobDigest) -> list[tuple[SnapshotId, FileEntry]]:
    """Record that a file is damaged; return the places that it has in known snapshots."""
    index.checks.condemn(blob)
    return index.catalogue.list_places(blob)


def withdraw(
    store: FileBlobStore, tree: HubTree, places: Iterable[tuple[SnapshotId, FileEntry]]
) -> list[DamagePlace]:
    """
    Take a file out of the hub tree, durably; return the places, and which of them had it.

    Raises:
        StoreError: The disk failed.
    """
    return [
        DamagePlace(
            snapshot_id,
            entry.path,
            tree.withdraw_file(snapshot_id, entry, store.path_of(entry.digest)),
        )
        for snapshot_id, entry in places
    ]


def keep_good_chunks(store: FileBlobStore, wreck: Wreck) -> None:
    """
    Take a condemned file out of `blobs/`; its good chunks stay in `partial/` where they can.

    Raises:
        StoreError: The disk failed, and the file may still be in its place.
    """
    path = store.path_of(wreck.blob)
    try:
        if not _is_in_place(path, wreck):
            return  # somebody removed or replaced it meanwhile
        # Somebody may be filling a partial already: what that has is recorded for it.
        if wreck.known is not None and not store.is_filling(wreck.blob):
            if _is_shared(store, wreck):
                _copy(store, wreck, wreck.known)
            else:
                _move(store, path, wreck, wreck.known)
                return
    except (OSError, StoreError) as error:
        # No room for the copy, or a disk that fails: all of it is fetched again.
        log.warning("no chunk of %s could be kept: %s", wreck.blob, error)
        store.discard(wreck.blob)
    try:
        path.unlink(missing_ok=True)
        store.unmark_foreign(wreck.blob)
        sync_directory(path.parent)
    except OSError as error:
        raise store_error(error, path) from error


def _is_in_place(path: Path, wreck: Wreck) -> bool:
    """Return whether the name still is the file that was looked at."""
    try:
        return stamp_of(path.stat()).inode == wreck.found.stamp.inode
    except FileNotFoundError:
        return False


def _is_shared(store: FileBlobStore, wreck: Wreck) -> bool:
    """Return whether the file is somebody else's too: our own links were withdrawn before."""
    return wreck.is_adopted or store.is_foreign(wreck.blob) or os.fstat(wreck.found.fd).st_nlink > 1


def _move(store: FileBlobStore, path: Path, wreck: Wreck, known: ChunkTable) -> None:
    """Make the file itself the partial: no byte is copied."""
    partial_path, record_path = store.partial_paths_of(wreck.blob)
    fd = open_writable(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_size != known.layout.size_bytes:
            os.ftruncate(fd, known.layout.size_bytes)
        # What the record will speak of, should somebody have written it just now.
        os.fsync(fd)
        _write_record(record_path, wreck, known)
        os.rename(path, partial_path)
        sync_directory(path.parent)
        sync_directory(partial_path.parent)
        try_set_mode(fd, _PARTIAL_MODE)
    finally:
        os.close(fd)


def _write_record(record_path: Path, wreck: Wreck, known: ChunkTable) -> None:
    """Write the have-record of a file whose good chunks are durable."""
    seen, unseen = list[bytes](), list[bytes]()
    for index, digest in enumerate(known):
        if index in wreck.bad or digest is None:
            continue
        line = Record(Kind.CHUNK, index, known.layout.length_of(index), digest.raw).to_bytes()
        (seen if index < wreck.unseen_from else unseen).append(line)
    commit = Record(Kind.COMMIT, length_bytes=len(seen)).to_bytes()
    content = b"".join([header_to_bytes(known.layout), *seen, commit, *unseen])
    temporary = record_path.with_name(record_path.name + NEW_SUFFIX)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, _PARTIAL_MODE)
    try:
        write_all(fd, content)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, record_path)
    # Durable before the file has its new name: a record of an older partial must not speak for it.
    sync_directory(record_path.parent)


def _copy(store: FileBlobStore, wreck: Wreck, known: ChunkTable) -> None:
    """Copy the good chunks of a file that is not ours alone; shares blocks where it can."""
    partial = store.open_partial(wreck.blob, known.layout)
    try:
        for index, digest in enumerate(known):
            if index not in wreck.bad and digest is not None:
                place = CopyPlace(wreck.found.fd, known.layout.offset_of(index))
                partial.copy_chunk(index, place, digest, UPSTREAM_SOURCE)
        partial.flush()
    finally:
        partial.close()
