"""
Owns the files of a snapshot in columns: names, sizes and digests, and no object for each file.

Knows nothing of where the columns come from.
Invariants: it makes the very entries that it was made of; its digests are well formed.
Source: docs/decisions/0023-residency.md (what a first question costs).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from p2pcache.core.digest import BlobDigest, check_blob_digests
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot


# No slots: the entries are kept in its dictionary, once somebody asked for them.
@dataclass(frozen=True)
class Listing:
    """
    The files of a snapshot, or some of them, in path order. `blobs`: their digests as text.

    Text and numbers are nothing to Python's collector of garbage. Objects for each file of some
    hundred models are: it walks over them in the middle of an answer, which then takes three times
    as long.
    """

    id: SnapshotId
    paths: tuple[str, ...]
    sizes_bytes: tuple[int, ...]
    blobs: tuple[str, ...]
    tree_oids: tuple[str, ...]

    @classmethod
    def of_rows(cls, snapshot_id: SnapshotId, rows: Sequence[tuple[Any, ...]]) -> Listing:
        """
        Take over (path, size, digest, oid) of each file, as put_snapshot() put them.

        Raises:
            InvalidDigestError: A digest is none.
        """
        paths, sizes, blobs, oids = zip(*rows, strict=True) if rows else ((), (), (), ())
        check_blob_digests(blobs)
        return cls(snapshot_id, paths, sizes, blobs, oids)

    @classmethod
    def of(cls, snapshot_id: SnapshotId, files: Iterable[FileEntry]) -> Listing:
        """Return the columns of some entries."""
        rows = [(e.path, e.size_bytes, str(e.digest), e.tree_oid) for e in files]
        return cls.of_rows(snapshot_id, rows)

    @cached_property
    def files(self) -> tuple[FileEntry, ...]:
        """Return the entries."""
        return self.make_files()

    @property
    def snapshot(self) -> Snapshot:
        """Return the snapshot, where these are all of its files."""
        return Snapshot(self.id, self.files)

    def make_files(self) -> tuple[FileEntry, ...]:
        """Return the entries without keeping them."""
        columns = zip(self.paths, self.sizes_bytes, self.blobs, self.tree_oids, strict=True)
        return tuple(
            FileEntry(path, size, BlobDigest.parse(blob), oid) for path, size, blob, oid in columns
        )

    def size_blobs(self) -> dict[str, int]:
        """Return the bytes of each blob, each once."""
        return dict(zip(self.blobs, self.sizes_bytes, strict=True))
