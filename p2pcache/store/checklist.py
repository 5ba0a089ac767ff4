"""
Owns the index's rows as a check sees them: which blob was looked at last, and which is condemned.

Knows nothing of files, and reads no chunk tables: a store may have millions of chunks.
Invariants: a row that has a table and is not proven is of a file found damaged, whose setting
aside did not come to its end; nothing else makes such a row.
Source: schema.py; quarantine.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sqlite_utils import Database

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest
from p2pcache.store.base import FileStamp
from p2pcache.store.bloblist import BlobList, BlobRow


@dataclass(frozen=True, slots=True)
class CheckRow:
    """What a check has to know of a blob before it comes to it."""

    blob: BlobDigest
    size_bytes: int
    is_proven: bool
    has_table: bool
    verified_wall_s: float

    @property
    def is_condemned(self) -> bool:
        """Return whether the file was found damaged, and may still be in its place."""
        return self.has_table and not self.is_proven


class CheckList:
    """Rows of blobs, for checks."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def is_garbled(self) -> bool:
        """Return whether a row names no blob: a byte changed that SQLite has no checksum for."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM blobs WHERE NOT ("
            "(digest GLOB 'sha256:*' AND length(digest) = 71) OR "
            "(digest GLOB 'gitsha1:*' AND length(digest) = 48)) "
            "OR substr(digest, instr(digest, ':') + 1) GLOB '*[^0-9a-f]*')"
        )
        return bool(self._db.execute(query).fetchone()[0])

    def list_all(self) -> list[CheckRow]:
        """Return every blob, those that were never proven first, then the longest unchecked."""
        query = (
            "SELECT digest, size_bytes, is_proven, chunk_digests IS NOT NULL, verified_wall_s "
            "FROM blobs ORDER BY is_proven, verified_wall_s, digest"
        )
        return [
            CheckRow(
                BlobDigest.parse(str(digest)),
                int(size_bytes),
                bool(is_proven),
                bool(has_table),
                float(verified_wall_s),
            )
            for digest, size_bytes, is_proven, has_table, verified_wall_s in self._db.execute(query)
        ]

    def has_due(self, before_wall_s: float, now_wall_s: float) -> bool:
        """Return whether a blob was never proven, or not checked since; a clock may have jumped."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM blobs "
            "WHERE NOT is_proven OR verified_wall_s < ? OR verified_wall_s > ?)"
        )
        return bool(self._db.execute(query, [before_wall_s, now_wall_s]).fetchone()[0])

    def find_proven(self, blobs: Iterable[BlobDigest]) -> dict[BlobDigest, float]:
        """Return those of some blobs that are proven, and when each was hashed last."""
        query = "SELECT verified_wall_s FROM blobs WHERE digest = ? AND is_proven"
        rows = ((blob, self._db.execute(query, [str(blob)]).fetchone()) for blob in blobs)
        return {blob: float(row[0]) for blob, row in rows if row is not None}

    def note_right(self, row: BlobRow, stamp: FileStamp, table: ChunkTable, wall_s: float) -> None:
        """
        Record that all of a file was hashed, and is what it should be.

        Args:
            row: As it was before.
            stamp: The file's, from before it was read.
            table: Its chunks.
            wall_s: Now.
        """
        blobs = BlobList(self._db)
        if row.is_proven and stamp == row.stamp:
            blobs.set_checked(row.blob, 0, wall_s)
            return
        table.standing = Standing.PROVEN
        right = replace(
            row,
            stamp=stamp,
            table=table,
            is_proven=True,
            verified_wall_s=wall_s,
            checked_chunks=0,
        )
        blobs.put(right)

    def forget_progress(self) -> None:
        """Let every check begin at the first chunk again."""
        with self._db.atomic():
            self._db.execute("UPDATE blobs SET checked_chunks = 0")

    def condemn(self, blob: BlobDigest) -> None:
        """Record that a blob's file is damaged: hashed again before anybody is given it."""
        with self._db.atomic():
            self._db.execute(
                "UPDATE blobs SET is_proven = 0, checked_chunks = 0 WHERE digest = ?", [str(blob)]
            )
