"""
Owns bringing index and files together at start: filling an empty index from the store, and
tidying up after a crash.

Knows nothing of hubs or peers.
Invariants: rebuilt blobs are marked unproven until they are hashed again; nothing that a crash
left behind is believed without its record; no file that is not ours is removed; reads names and
rows, never the content of blobs.
Source: design.md §4 ("if it is lost it is rebuilt").
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.core.messages import get_whole
from p2pcache.core.refs import RepoId, SnapshotId, parse_commit, parse_revision
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InputError
from p2pcache.store.base import FileStamp
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.catalogue import RefRow
from p2pcache.store.disk import store_error
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from p2pcache.store.pinfile import restore_pins
from p2pcache.store.quarantine import withdraw

log = logging.getLogger(__name__)

# The temporary names that store/ gives: small files (home.py), links (hubtree.py). A process that
# lives removes its own; one daemon has the store, so that what is found at start is nobody's.
_LEFTOVER = re.compile(
    r"\.\d+\.\d+\.new|\.\d+\.link|\.[0-9a-f]{40}(?:[0-9a-f]{24})?\.\d+", re.ASCII
)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What was found at start."""

    was_rebuilt: bool
    blobs_found: int
    blobs_lost: int
    partials: int
    # Temporary files and links of a process that was killed.
    leftovers: int = 0


def recover(store: FileBlobStore, tree: HubTree, index: Index, *, wall_s: float) -> RecoveryReport:
    """
    Bring index and files together at start.

    A file without a row gets one (unproven: hashed before first use); a row without a file goes;
    a damaged file whose setting aside was interrupted leaves the hub tree; a partial whose blob is
    published already goes; an index that is new, or older than the store, learns snapshots from
    the tree; pins that are in their file alone come back; temporary files of a killed process go.

    Raises:
        StoreError: Something cannot be read now. Going on without it would forget it for good: the
            next gc would remove what nobody remembers.
    """
    try:
        return _recover(store, tree, index, wall_s=wall_s)
    except OSError as error:
        raise store_error(error, store.root) from error


def _recover(store: FileBlobStore, tree: HubTree, index: Index, *, wall_s: float) -> RecoveryReport:
    on_disk = dict(store.iter_blobs())
    with index.batch():
        known, condemned, lost = _match_rows(index, on_disk)
        found = [blob for blob in on_disk if blob not in known]
        for blob in found:
            index.blobs.put(_make_row(store, blob, on_disk[blob]))
    for blob in condemned:
        withdraw(store, tree, index.catalogue.list_places(blob))
    partials = 0
    for blob in list(store.iter_partials()):
        if blob in on_disk or not store.is_filling(blob) or not store.is_recorded(blob):
            store.discard(blob)
        else:
            partials += 1
    if index.was_rebuilt or found:
        _learn_catalogue(tree, index, wall_s=wall_s)
    # Always, not for a new index alone: a start that failed halfway may have left one without them.
    restore_pins(store.root, index)
    if lost:
        log.warning("%d files of the index are gone from the disk; their rows were dropped", lost)
    if index.was_rebuilt:
        index.note_filled()
    leftovers = sum(map(_try_remove, _iter_leftovers(store.root, tree.folders.roots)))
    return RecoveryReport(index.was_rebuilt, len(found), lost, partials, leftovers)


def _match_rows(
    index: Index, on_disk: dict[BlobDigest, FileStamp]
) -> tuple[set[BlobDigest], list[BlobDigest], int]:
    """Drop rows without a file; return the others, those of damaged files, and how many went."""
    known, condemned, lost = set[BlobDigest](), list[BlobDigest](), 0
    for listed in index.checks.list_all():
        if listed.blob not in on_disk:
            index.blobs.remove(listed.blob)
            lost += 1
            continue
        known.add(listed.blob)
        if listed.is_condemned:
            condemned.append(listed.blob)
    return known, condemned, lost


def _make_row(store: FileBlobStore, blob: BlobDigest, stamp: FileStamp) -> BlobRow:
    """Return the row of a file that has none: it is hashed before its first use."""
    return BlobRow(
        blob,
        stamp,
        None,
        False,
        store.is_world_readable(blob),
        verified_wall_s=0.0,
        is_adopted=store.is_foreign(blob),
    )


def _iter_leftovers(root: Path, tree_roots: Sequence[Path]) -> Iterator[Path]:
    """Iterate over the temporary names in a store's root and in its trees."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if _LEFTOVER.fullmatch(entry.name)]
    yield from (root / name for name in names)
    for tree_root in tree_roots:
        for folder, folders, files in os.walk(tree_root):
            # A link to a folder is listed as a folder, and a link is what may be left here.
            names = [*files, *folders]
            yield from (Path(folder, name) for name in names if _LEFTOVER.fullmatch(name))


def _try_remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _learn_catalogue(tree: HubTree, index: Index, *, wall_s: float) -> None:
    """Take in what the tree knows of repositories and the index does not."""
    for snapshot_id in tree.iter_commits():
        if index.catalogue.find_snapshot(snapshot_id) is None:
            files = tree.read_tree(snapshot_id)
            if files is None:
                continue
            try:
                _learn_snapshot(index, snapshot_id, files, wall_s=wall_s)
            except (InputError, KeyError, TypeError):
                continue
        _learn_refs(tree, index, snapshot_id.repo)


def _learn_snapshot(
    index: Index, snapshot_id: SnapshotId, files: dict[str, object], *, wall_s: float
) -> None:
    entries = [_read_entry(path, raw) for path, raw in files.items()]
    snapshot = Snapshot.of(snapshot_id, entries)
    index.catalogue.put_snapshot(snapshot, is_confirmed=False, about=None, wall_s=wall_s)
    rows = [index.blobs.find(entry.digest) for entry in entries]
    held = [row for row in rows if row is not None]
    if held and len(held) == len(entries) and all(row.is_public for row in held):
        # Every file is here and public by itself; one shared file would prove nothing. Long
        # expired: asked of the hub again when it answers, believed while it does not.
        index.catalogue.set_public(snapshot_id, 0.0)


def _learn_refs(tree: HubTree, index: Index, repo: RepoId) -> None:
    for revision, target in tree.iter_refs(repo):
        with contextlib.suppress(InputError):
            row = RefRow(repo, parse_revision(revision), parse_commit(target), 0.0)
            if index.catalogue.find_ref(repo, row.revision) is None:
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
