"""
Owns the tests of core.versions: commits compared by bytes, and which may go.

Knows nothing of stores.
Invariants: what is current or protected never goes.
Source: core/versions.py.
"""

from __future__ import annotations

import hashlib

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.versions import KeptVersion, diff_snapshots, list_differing, plan_keep

REPO = RepoId("hf", "models", "org/name")


def make(commit: str, files: dict[str, tuple[str, int]]) -> Snapshot:
    """Make a commit of files with these contents and sizes."""
    entries = [
        FileEntry(path, size, make_digest(content), "b" * 40)
        for path, (content, size) in files.items()
    ]
    return Snapshot.of(SnapshotId(REPO, commit * 40), entries)


def make_digest(content: str) -> BlobDigest:
    """Return the digest of a text."""
    return BlobDigest("sha256", hashlib.sha256(content.encode()).hexdigest())


OLD = make("1", {"a": ("same", 10), "b": ("old", 20), "c": ("gone", 5), "d": ("same", 10)})
NEW = make("2", {"a": ("same", 10), "b": ("new", 30), "e": ("same", 10), "f": ("added", 7)})


def test_diff_counts_every_content_once() -> None:
    """A content at two paths is one; a path with another content is a change."""
    diff = diff_snapshots(OLD, NEW)
    assert [change.path for change in diff.changes] == ["b", "c", "d", "e", "f"]
    assert (diff.same_files, diff.shared_bytes) == (1, 10)
    assert (diff.new_bytes, diff.gone_bytes, diff.similar_bytes) == (37, 25, None)
    same = diff_snapshots(OLD, OLD)
    assert (same.changes, same.new_bytes, same.similar_bytes) == ((), 0, 0)


def test_diff_finds_chunks_that_were_there() -> None:
    """A file that changed in its second chunk is new by four of eight megabytes."""
    size = 2 * CHUNK_SIZE_BYTES
    old, new = make("1", {"w": ("o", size)}), make("2", {"w": ("n", size)})
    tables = {}
    for snapshot, second in ((old, "aa"), (new, "bb")):
        digest = snapshot.files[0].digest
        tables[digest] = ChunkTable(digest, Layout(size), Standing.PROVEN)
        tables[digest].set(0, ChunkDigest.parse("cc" * 32))
        tables[digest].set(1, ChunkDigest.parse(second * 32))
    assert list_differing(old, new) == tables.keys()
    diff = diff_snapshots(old, new, tables)
    assert (diff.new_bytes, diff.similar_bytes) == (size, CHUNK_SIZE_BYTES)


def test_keep_lets_the_oldest_go_but_never_what_is_needed() -> None:
    """The last ones stay, as do those that a branch points to or a pin protects."""
    versions = [
        KeptVersion("a", 0, is_current=True),
        KeptVersion("b", 1),
        KeptVersion("c", 2, is_protected=True),
        KeptVersion("d", 3),
        KeptVersion("e", 4),
    ]
    assert plan_keep(versions, 2) == ["b", "d"]
    assert plan_keep(versions, 3) == ["b"]
    assert plan_keep(versions, 1) == ["b", "d", "e"]
    assert plan_keep(versions, 9) == []
