"""
Owns comparing two commits of a repository, and which older ones may go.

Knows nothing of hubs or stores.
Invariants: bytes that both commits have are counted once; what a branch points to, or somebody
protects, is never among those that go.
Source: docs/reference/http-api.md ("Versions").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.snapshot import FileEntry, Snapshot


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that differs: None on the side that does not have it."""

    path: str
    old: FileEntry | None
    new: FileEntry | None


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """
    How a commit differs from another one.

    Attributes:
        changes: The files that differ, by path.
        same_files: How many do not.
        shared_bytes: Contents that both have, each once.
        new_bytes: Contents that only the new one has.
        gone_bytes: Contents that only the old one has.
        similar_bytes: Of the new contents, chunks that the old one's have; None if not known.
    """

    changes: tuple[FileChange, ...]
    same_files: int
    shared_bytes: int
    new_bytes: int
    gone_bytes: int
    similar_bytes: int | None = None


def diff_snapshots(
    old: Snapshot, new: Snapshot, tables: Mapping[BlobDigest, ChunkTable] | None = None
) -> VersionDiff:
    """
    Compare two commits.

    Args:
        old: The one.
        new: The other.
        tables: Chunk tables of contents that only one of them has, as far as they are known.
    """
    olds, news = ({e.path: e for e in snapshot.files} for snapshot in (old, new))
    paths = sorted(olds.keys() | news.keys())
    changes = tuple(
        FileChange(path, olds.get(path), news.get(path))
        for path in paths
        if path not in olds or path not in news or olds[path].digest != news[path].digest
    )
    before, after = _contents(old.files), _contents(new.files)
    only_old, only_new = before.keys() - after.keys(), after.keys() - before.keys()
    return VersionDiff(
        changes,
        len(paths) - len(changes),
        sum(before[blob] for blob in before.keys() & after.keys()),
        sum(after[blob] for blob in only_new),
        sum(before[blob] for blob in only_old),
        _count_similar(only_old, only_new, tables or {}),
    )


def list_differing(old: Snapshot, new: Snapshot) -> frozenset[BlobDigest]:
    """Return the contents that only one of two commits has."""
    return frozenset(_contents(old.files).keys() ^ _contents(new.files).keys())


def _contents(files: Iterable[FileEntry]) -> dict[BlobDigest, int]:
    return {entry.digest: entry.size_bytes for entry in files}


def _count_similar(
    olds: Iterable[BlobDigest], news: Iterable[BlobDigest], tables: Mapping[BlobDigest, ChunkTable]
) -> int | None:
    news = list(news)
    if not all(blob in tables for blob in news):
        return None
    held = {
        digest for blob in olds if blob in tables for digest in tables[blob] if digest is not None
    }
    return sum(
        tables[blob].layout.length_of(index)
        for blob in news
        for index, digest in enumerate(tables[blob])
        if digest in held
    )


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A commit of which something is here. `number`: the higher, the later it came."""

    commit: str
    number: int
    is_current: bool = False
    is_protected: bool = False


def plan_keep(versions: Sequence[KeptVersion], count: int) -> list[str]:
    """
    Return the commits that may go when `count` are to stay, the oldest first.

    What a branch points to counts as newest, and stays with what is protected, however many.
    """
    ranked = sorted(versions, key=lambda v: (v.is_current, v.number), reverse=True)
    going = [v for v in ranked[max(0, count) :] if not (v.is_current or v.is_protected)]
    return [version.commit for version in reversed(going)]
