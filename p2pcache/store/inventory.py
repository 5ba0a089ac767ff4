"""
Owns the index's answers about room: what lists which blob, what that sums up to, and the rows
that go with what is evicted.

Knows nothing of files on disk, and makes no decision (core.eviction does).
Invariants: rows go in one transaction, before the files that they speak of; what a pin or another
snapshot needs by then stays.
Source: schema.py; docs/reference/store-layout.md (eviction).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlite_utils import Database

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.store.bloblist import BlobList
from p2pcache.store.catalogue import Catalogue
from p2pcache.store.disk import DISK_BLOCK_SIZE_BYTES

_SNAPSHOT = "hub = ? AND kind = ? AND repo = ? AND commit_id = ?"


@dataclass(frozen=True, slots=True)
class Sums:
    """
    Bytes of files that are here. `own`: each once, without adopted ones; `adopted`: those whose
    bytes lie in somebody else's file; `logical`: once for every place in a snapshot.
    """

    own_bytes: int
    adopted_bytes: int
    logical_bytes: int


class Inventory:
    """The rows behind what leaves."""

    def __init__(self, db: Database, blobs: BlobList, catalogue: Catalogue) -> None:
        self._db = db
        self._blobs = blobs
        self._catalogue = catalogue

    def list_contents(self) -> dict[SnapshotId, set[BlobDigest]]:
        """Return which blobs each known snapshot lists, the longest unused first."""
        order = "SELECT hub, kind, repo, commit_id FROM snapshots ORDER BY used_tick, added_wall_s"
        contents: dict[tuple[str, ...], set[BlobDigest]] = {
            tuple(map(str, row)): set() for row in self._db.execute(order)
        }
        blobs: dict[str, BlobDigest] = {}
        for *key, digest in self._db.execute(
            "SELECT hub, kind, repo, commit_id, digest FROM files"
        ):
            text = str(digest)
            if text not in blobs:
                blobs[text] = BlobDigest.parse(text)
            contents[tuple(map(str, key))].add(blobs[text])
        return {
            SnapshotId(RepoId.of(hub, kind, repo), commit): listed
            for (hub, kind, repo, commit), listed in contents.items()
        }

    def list_adopted(self) -> list[BlobDigest]:
        """Return the blobs whose bytes are shared with somebody else's file."""
        rows = self._db.execute("SELECT digest FROM blobs WHERE is_adopted")
        return [BlobDigest.parse(str(row[0])) for row in rows]

    def measure_taken(self) -> int:
        """Return what the disk needs for the whole files that are ours alone."""
        query = "SELECT coalesce(sum((size_bytes + ?) / ?), 0) FROM blobs WHERE NOT is_adopted"
        block = DISK_BLOCK_SIZE_BYTES
        return block * int(self._db.execute(query, [block - 1, block]).fetchone()[0])

    def measure_adopted(self) -> int:
        """Return the bytes of the whole files that are somebody else's too."""
        query = "SELECT coalesce(sum(size_bytes), 0) FROM blobs WHERE is_adopted"
        return int(self._db.execute(query).fetchone()[0])

    def measure(self) -> Sums:
        """Return what is here, summed up."""
        query = "SELECT coalesce(sum(size_bytes), 0) FROM blobs WHERE NOT is_adopted"
        own = self._db.execute(query).fetchone()[0]
        query = "SELECT coalesce(sum(b.size_bytes), 0) FROM files f JOIN blobs b USING (digest)"
        logical = self._db.execute(query).fetchone()[0]
        return Sums(int(own), self.measure_adopted(), int(logical))

    def evict(
        self, snapshot_id: SnapshotId, blobs: Iterable[BlobDigest]
    ) -> list[BlobDigest] | None:
        """
        Forget a snapshot, and those of its blobs that no other snapshot lists.

        Returns:
            The blobs whose files go now; None, and nothing was done, when a pin protects it.
        """
        with self._db.atomic():
            if self._is_pinned(snapshot_id):
                return None
            self._catalogue.remove_snapshot(snapshot_id)
            return [blob for blob in blobs if self.remove_unlisted(blob)]

    def remove_unlisted(self, blob: BlobDigest) -> bool:
        """Forget a blob unless a snapshot lists it; returns whether its file may go."""
        with self._db.atomic():
            query = "SELECT 1 FROM files WHERE digest = ? LIMIT 1"
            if self._db.execute(query, [str(blob)]).fetchone() is not None:
                return False
            self._blobs.remove(blob)
            return True

    def _is_pinned(self, snapshot_id: SnapshotId) -> bool:
        repo = snapshot_id.repo
        query = f"SELECT 1 FROM pins WHERE {_SNAPSHOT} LIMIT 1"  # noqa: S608
        key = [repo.hub, repo.kind, repo.name, snapshot_id.commit]
        return self._db.execute(query, key).fetchone() is not None
