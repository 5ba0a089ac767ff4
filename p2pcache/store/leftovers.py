"""
Owns finding the files of ours that nobody needs: what a crash left, and what outlived its blob.

Knows nothing of blobs that are whole or being filled; core.eviction decides about those.
Invariants: a file is a leftover only by a name that we give, in a place where we put it; unknown
files are never touched; what was needed again since it was found stays.
Source: docs/reference/store-layout.md (what a crash leaves).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.eviction import Leftover
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.errors import InvalidDigestError
from p2pcache.store.blobs import ADOPTED_SUFFIX, FileBlobStore
from p2pcache.store.disk import store_error
from p2pcache.store.hubtree import HubTree
from p2pcache.store.partial import NEW_SUFFIX
from p2pcache.store.repofolder import RepoFolder

RECORD_SUFFIX = ".have"
# What home.write_file_atomically() calls a file until it gets its name: by process and thread.
_TEMPORARY = re.compile(r"\.(\d+)\.\d+\.new", re.ASCII)
_STAT_BLOCK_SIZE_BYTES = 512
_CRASH = "left by a crash"


def partial_path(root: Path, blob: BlobDigest) -> Path:
    """Return where a blob is filled."""
    return root / "partial" / f"{blob.algorithm}-{blob.hex}"


def parse_partial_name(name: str) -> BlobDigest | None:
    """Return the blob that a file in `partial/`, or a record there, is named for."""
    algorithm, _, digits = name.removesuffix(NEW_SUFFIX).removesuffix(RECORD_SUFFIX).partition("-")
    try:
        return BlobDigest.parse(f"{algorithm}:{digits}")
    except InvalidDigestError:
        return None


def own_bytes_of(status: os.stat_result) -> int:
    """Return what removing one name of a file gives back."""
    is_last = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    return status.st_blocks * _STAT_BLOCK_SIZE_BYTES if is_last else 0


def note_changes(tree: HubTree) -> dict[RepoId, int]:
    """
    Return how often each repository's folder was changed so far.

    To be called before the index is asked what it knows: a folder that changed since is passed
    over, since what was published meanwhile may be of a snapshot that the answer lacks.

    Raises:
        StoreError: The disk failed.
    """
    counts = {}
    for repo in _iter_repos(tree):
        with tree.hold_still(repo) as count:
            counts[repo] = count
    return counts


def list_leftovers(
    store: FileBlobStore,
    tree: HubTree,
    known: Set[SnapshotId],
    changes: Mapping[RepoId, int],
) -> list[Leftover]:
    """
    Return the files that nobody needs, unless somebody fills the blob that they are of.

    Args:
        store: Where blobs are.
        tree: Where links to them are.
        known: The snapshots that the index knows.
        changes: From note_changes().

    Raises:
        StoreError: The disk failed.
    """
    try:
        found = [
            *_iter_root(store.root),
            *_iter_records(store.root),
            *_iter_markers(store),
        ]
    except OSError as error:
        raise store_error(error, store.root) from error
    for repo in _iter_repos(tree):
        commits = {snapshot_id.commit for snapshot_id in known if snapshot_id.repo == repo}
        with tree.hold_still(repo) as count:
            if count != changes.get(repo):
                continue
            folder = RepoFolder(tree.repo_path(repo), store.path_of)
            found += [
                _describe(store.root, path, reason)
                for path, reason in folder.iter_leftovers(commits)
            ]
    return found


def remove_leftover(
    store: FileBlobStore, tree: HubTree, name: str, changes: Mapping[RepoId, int]
) -> bool:
    """
    Remove what list_leftovers() named; returns False if it may be needed again, and stayed.

    Raises:
        StoreError: The disk failed.
    """
    path = store.root / name
    repo = tree.folders.find_repo(path)
    if repo is None:
        try:
            marked = _marked_path(path)
            if marked is not None and os.path.lexists(marked):
                return False
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(error, path) from error
        return True
    with tree.hold_still(repo) as count:
        if count != changes.get(repo):
            return False
        path.unlink(missing_ok=True)
        RepoFolder(tree.repo_path(repo), store.path_of).prune()
    return True


def _iter_root(root: Path) -> Iterator[Leftover]:
    for path in sorted(root.iterdir()):
        found = _TEMPORARY.fullmatch(path.name)
        # Our own process may be writing one right now; a later start removes it.
        if found is not None and int(found[1]) != os.getpid():
            yield _describe(root, path, _CRASH)


def _iter_records(root: Path) -> Iterator[Leftover]:
    for path in sorted((root / "partial").iterdir()):
        blob = parse_partial_name(path.name)
        if blob is None:
            continue
        is_record = path.name.endswith(RECORD_SUFFIX) and not partial_path(root, blob).exists()
        if path.name.endswith(NEW_SUFFIX) or is_record:
            yield _describe(root, path, _CRASH, blob)


def _iter_markers(store: FileBlobStore) -> Iterator[Leftover]:
    """Iterate over the notes of whose file a blob is, where there is no such blob."""
    for path in sorted((store.root / "blobs").glob(f"*/*/*{ADOPTED_SUFFIX}")):
        with contextlib.suppress(InvalidDigestError):
            algorithm, digits = path.parent.parent.name, path.name.removesuffix(ADOPTED_SUFFIX)
            blob = BlobDigest.parse(f"{algorithm}:{digits}")
            if not os.path.lexists(store.path_of(blob)):
                yield _describe(store.root, path, _CRASH, blob)


def _marked_path(path: Path) -> Path | None:
    """Return the file that a marker is of; None when it is none."""
    is_marker = path.name.endswith(ADOPTED_SUFFIX)
    return path.with_name(path.name.removesuffix(ADOPTED_SUFFIX)) if is_marker else None


def _describe(root: Path, path: Path, reason: str, *blobs: BlobDigest) -> Leftover:
    own_bytes = 0
    with contextlib.suppress(FileNotFoundError):
        own_bytes = own_bytes_of(path.lstat())
    return Leftover(str(path.relative_to(root)), own_bytes, reason, blobs)


def _iter_repos(tree: HubTree) -> Iterator[RepoId]:
    try:
        yield from list(tree.folders.iter_repos())
    except OSError as error:
        raise store_error(error, tree.root) from error
