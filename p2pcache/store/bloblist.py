"""
Owns the index's rows on blobs and chunks.

Knows nothing of repositories.
Invariants: a row exists only for a published file; is_proven means that its bytes matched its
name when the file had the row's stamp.
Source: schema.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlite_utils import Database

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.store.base import FileStamp


@dataclass(frozen=True, slots=True)
class BlobRow:
    """
    What the index says of one published blob; `table` is None until the file was hashed.

    `is_adopted`: its bytes are shared with a file that somebody else owns, and no room of ours.
    `checked_chunks`: how many of its chunks a check that ran out of time has done.
    """

    blob: BlobDigest
    stamp: FileStamp
    table: ChunkTable | None
    is_proven: bool
    is_public: bool
    verified_wall_s: float
    is_adopted: bool = False
    checked_chunks: int = 0


@dataclass(frozen=True, slots=True)
class TwinPlace:
    """Where another blob holds the bytes of a chunk: at an offset in it, in bytes."""

    chunk_index: int
    blob: BlobDigest
    offset: int
    is_public: bool


_COLUMNS = (
    "digest", "size_bytes", "layout", "layout_spans", "chunk_digests", "is_proven", "is_public",
    "mtime_ns", "inode", "verified_wall_s", "is_adopted", "checked_chunks",
)  # fmt: skip
_PUT = (
    f"INSERT INTO blobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608
    "ON CONFLICT (digest) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])
)


class BlobList:
    """Rows of published blobs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, row: BlobRow) -> None:
        """Insert or replace a row, with the chunks that it makes findable."""
        digest = str(row.blob)
        layout = Layout(row.stamp.size_bytes) if row.table is None else row.table.layout
        with self._db.atomic():
            # In SQL, not through the library: that looks the table up anew for every row, which
            # makes an index of 100,000 blobs take minutes.
            self._db.execute(
                _PUT,
                [
                    digest,
                    row.stamp.size_bytes,
                    layout.name,
                    layout.to_bytes() or None,
                    None if row.table is None else row.table.to_bytes(),
                    int(row.is_proven),
                    int(row.is_public),
                    row.stamp.mtime_ns,
                    row.stamp.inode,
                    row.verified_wall_s,
                    int(row.is_adopted),
                    row.checked_chunks,
                ],
            )
            self._db.execute("DELETE FROM chunk_places WHERE blob = ?", [digest])
            if row.table is not None:
                self._db.conn.executemany(
                    "INSERT INTO chunk_places VALUES (?, ?, ?)",
                    (
                        (chunk.raw, digest, index)
                        for index, chunk in enumerate(row.table)
                        if chunk is not None
                    ),
                )

    def find(self, blob: BlobDigest) -> BlobRow | None:
        """Return the row of a blob, None when the index has none."""
        for row in self._db.query("SELECT * FROM blobs WHERE digest = ?", [str(blob)]):
            return self._read(row)
        return None

    def find_shareable(self, blobs: Iterable[BlobDigest]) -> list[tuple[BlobDigest, Layout]]:
        """Return (blob, layout) of those that are proven and public."""
        query = (
            "SELECT size_bytes, layout_spans FROM blobs "
            "WHERE digest = ? AND is_proven AND is_public"
        )
        found = []
        for blob in blobs:
            row = self._db.execute(query, [str(blob)]).fetchone()
            if row is not None:
                found.append((blob, Layout.from_bytes(int(row[0]), row[1] or b"")))
        return found

    def set_public(self, blob: BlobDigest) -> None:
        """Record that anybody may have a blob."""
        with self._db.atomic():
            self._db.execute("UPDATE blobs SET is_public = 1 WHERE digest = ?", [str(blob)])

    def put_refuted(self, blob: BlobDigest, until_wall_s: float) -> None:
        """Record that readers may hold wrong bytes of a blob, until then."""
        with self._db.atomic():
            self._db.execute(
                "INSERT OR REPLACE INTO refuted VALUES (?, ?)", [str(blob), until_wall_s]
            )

    def list_refuted(self) -> list[tuple[BlobDigest, float]]:
        """Return what put_refuted() recorded."""
        rows = self._db.query("SELECT digest, until_wall_s FROM refuted")
        return [(BlobDigest.parse(str(row["digest"])), row["until_wall_s"]) for row in rows]

    def remove(self, blob: BlobDigest) -> None:
        """Delete a blob's row and its chunks' rows, if they exist."""
        with self._db.atomic():
            self._db.execute("DELETE FROM blobs WHERE digest = ?", [str(blob)])
            self._db.execute("DELETE FROM chunk_places WHERE blob = ?", [str(blob)])

    def find_chunk(
        self, chunk: ChunkDigest, *, is_public_only: bool = False
    ) -> tuple[BlobDigest, int] | None:
        """Return a proven blob that holds a chunk, and the chunk's index in it."""
        query = (
            "SELECT p.blob, p.chunk_index FROM chunk_places p JOIN blobs b ON b.digest = p.blob "
            "WHERE p.digest = ? AND b.is_proven AND b.is_public >= ? LIMIT 1"
        )
        for row in self._db.query(query, [chunk.raw, int(is_public_only)]):
            return BlobDigest.parse(str(row["blob"])), int(row["chunk_index"])
        return None

    def list_with_tensors(self, size_bytes: int, count_max: int) -> list[BlobDigest]:
        """Return the proven blobs that are cut at tensors, the nearest in size first."""
        query = (
            "SELECT digest FROM blobs WHERE is_proven AND layout_spans IS NOT NULL "
            "ORDER BY abs(size_bytes - ?), rowid DESC LIMIT ?"
        )
        rows = self._db.query(query, [size_bytes, count_max])
        return [BlobDigest.parse(str(row["digest"])) for row in rows]

    def find_twins(self, table: ChunkTable, wanted: Iterable[int]) -> list[TwinPlace]:
        """
        Find chunks of one blob in others that are here and proven, public ones first.

        Args:
            table: The blob's, as far as it is known.
            wanted: The chunks to look for.
        """
        query = (
            "SELECT p.blob, p.chunk_index, b.is_public, b.size_bytes, b.layout_spans "
            "FROM chunk_places p JOIN blobs b ON b.digest = p.blob "
            "WHERE p.digest = ? AND p.blob != ? AND b.is_proven ORDER BY b.is_public DESC LIMIT 1"
        )
        digests = {index: digest for index in wanted if (digest := table.find(index)) is not None}
        layouts: dict[str, Layout] = {}
        places: dict[ChunkDigest, tuple[BlobDigest, int, bool]] = {}
        # Each once: a chunk of zeros may be in one file many times, and many times in the other.
        for digest in set(digests.values()):
            row = self._db.execute(query, [digest.raw, str(table.blob)]).fetchone()
            if row is None:
                continue
            blob, other_index, is_public, size_bytes, spans = row
            if blob not in layouts:
                layouts[blob] = Layout.from_bytes(int(size_bytes), spans or b"")
            offset = layouts[blob].offset_of(other_index)
            places[digest] = BlobDigest.parse(blob), offset, bool(is_public)
        return [
            TwinPlace(index, *places[digest])
            for index, digest in digests.items()
            if digest in places
        ]

    def set_checked(self, blob: BlobDigest, checked_chunks: int, wall_s: float) -> None:
        """Record how far a check came; 0 chunks and the time mean that it came to the end."""
        with self._db.atomic():
            self._db.execute(
                "UPDATE blobs SET checked_chunks = ?, verified_wall_s = ? WHERE digest = ?",
                [checked_chunks, wall_s, str(blob)],
            )

    def set_adopted(self, blob: BlobDigest, *, is_adopted: bool) -> None:
        """Record whether a blob's bytes are shared with a file that somebody else owns."""
        with self._db.atomic():
            self._db.execute(
                "UPDATE blobs SET is_adopted = ? WHERE digest = ?", [int(is_adopted), str(blob)]
            )

    def measure(self) -> tuple[int, int]:
        """Return (how many blobs, their bytes)."""
        row = self._db.execute("SELECT count(*), coalesce(sum(size_bytes), 0) FROM blobs")
        count, size_bytes = row.fetchone()
        return int(count), int(size_bytes)

    @staticmethod
    def _read(row: dict[str, object]) -> BlobRow:
        blob = BlobDigest.parse(str(row["digest"]))
        size_bytes, mtime_ns, inode = (
            int(str(row["size_bytes"])),
            int(str(row["mtime_ns"])),
            int(str(row["inode"])),
        )
        raw, spans = row["chunk_digests"], row["layout_spans"]
        table = None
        if isinstance(raw, bytes):
            layout = Layout.from_bytes(size_bytes, spans if isinstance(spans, bytes) else b"")
            table = ChunkTable.from_bytes(blob, layout, raw)
        return BlobRow(
            blob,
            FileStamp(size_bytes, mtime_ns, inode),
            table,
            bool(row["is_proven"]),
            bool(row["is_public"]),
            float(str(row["verified_wall_s"])),
            bool(row["is_adopted"]),
            int(str(row["checked_chunks"])),
        )
