"""
Owns filling an empty index from the store, and tidying up after a crash.

Knows nothing of hubs or peers.
Invariants: rebuilt blobs are marked unproven until they are hashed again; nothing that a crash
left behind is believed without its record.
Source: design.md §4 ("if it is lost it is rebuilt").
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.core.messages import get_whole
from p2pcache.core.refs import SnapshotId, parse_commit, parse_revision
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InputError
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.catalogue import RefRow
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What was found at start."""

    was_rebuilt: bool
    blobs_found: int
    blobs_lost: int
    partials: int


def recover(store: FileBlobStore, tree: HubTree, index: Index, *, wall_s: float) -> RecoveryReport:
    """
    Bring index and files together at start.

    A file without a row gets one (unproven: hashed before first use); a row without a file goes;
    a partial whose blob is published already goes; a new index learns snapshots from the tree.
    """
    on_disk = dict(store.iter_blobs())
    lost = 0
    known: set[BlobDigest] = set()
    for row in list(index.blobs.iter_all()):
        if row.blob in on_disk:
            known.add(row.blob)
        else:
            index.blobs.remove(row.blob)
            lost += 1
    for blob, stamp in on_disk.items():
        if blob not in known:
            is_public = store.is_world_readable(blob)
            index.blobs.put(BlobRow(blob, stamp, None, False, is_public, verified_wall_s=0.0))
    partials = 0
    for blob in list(store.iter_partials()):
        if blob in on_disk or not store.is_filling(blob):
            store.discard(blob)
        else:
            partials += 1
    if index.was_rebuilt:
        _rebuild_catalogue(tree, index, wall_s=wall_s)
    return RecoveryReport(index.was_rebuilt, len(on_disk) - len(known), lost, partials)


def _rebuild_catalogue(tree: HubTree, index: Index, *, wall_s: float) -> None:
    for repo, commit, files in tree.iter_trees():
        try:
            snapshot_id = SnapshotId(repo, parse_commit(commit))
            entries = [_read_entry(path, raw) for path, raw in files.items()]
            snapshot = Snapshot.of(snapshot_id, entries)
        except (InputError, KeyError, TypeError):
            continue
        index.catalogue.put_snapshot(snapshot, is_confirmed=False, about=None, wall_s=wall_s)
        rows = [index.blobs.find(entry.digest) for entry in entries]
        held = [row for row in rows if row is not None]
        if held and len(held) == len(entries) and all(row.is_public for row in held):
            # Every file is here and public by itself; one shared file would prove nothing. Long
            # expired: asked of the hub again when it answers, believed while it does not.
            index.catalogue.set_public(snapshot_id, 0.0)
        for revision, target in tree.iter_refs(repo):
            with contextlib.suppress(InputError):
                row = RefRow(repo, parse_revision(revision), parse_commit(target), 0.0)
                index.catalogue.put_ref(row)


def _read_entry(path: str, raw: object) -> FileEntry:
    if not isinstance(raw, dict):
        raise TypeError("a tree entry is an object")
    tree_oid = parse_commit(str(raw["blob_id"]))
    if raw.get("lfs_sha256") is not None:
        digest = BlobDigest("sha256", str(raw["lfs_sha256"]))
    else:
        digest = BlobDigest("gitsha1", tree_oid)
    size_bytes = get_whole(raw, "size", maximum=BLOB_SIZE_BYTES_MAX)
    return FileEntry(path, size_bytes, digest, tree_oid)
