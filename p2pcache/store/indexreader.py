"""
Owns reading the index beside the daemon: what residency asks, and nothing else.

Knows nothing of files but the index's own. Never writes: no row, no file, no lock on the store.
Invariants: a daemon that writes is neither waited for nor held up (WAL); without one the file is
read as it lies; a snapshot's file list is read once, what changes is read each time.
Source: SQLite, "Write-Ahead Logging" (read-only databases), "PRAGMA data_version",
"JSON functions" (json_each).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from p2pcache.core.digest import BlobDigest
from p2pcache.core.listing import Listing
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId, is_commit
from p2pcache.core.snapshot import Snapshot
from p2pcache.core.tensors import Format
from p2pcache.core.weights import FileWeights, ShapeCount, params_from_texts, shapes_from_text
from p2pcache.errors import IndexCorruptError, NotFoundError, SchemaTooNewError, StoreError

# File lists that are kept read: those of the models that somebody asks about again and again.
ENTRIES_KEPT_MAX = 200_000
# A daemon that ends or starts between two looks changes which way the file is read.
_OPEN_ATTEMPTS_MAX = 3
# Nobody writes through us; a checkpoint at the daemon's end holds readers up for a moment.
_BUSY_TIMEOUT_S = 5.0
_KEY = "hub = ? AND kind = ? AND repo = ?"
# Pages of the index that are kept read: those of some thousand models' files, proofs and heads.
# Digests are random, so that one model's rows lie on as many pages as it has files.
_PAGES_KEPT_BYTES_MAX = 16 * 1024 * 1024
_FILES = (
    "SELECT f.path, f.size_bytes, f.digest, f.tree_oid, b.is_proven, b.verified_wall_s "  # noqa: S608
    "FROM files f LEFT JOIN blobs b INDEXED BY blobs_proven "
    f"ON b.digest = f.digest AND b.is_proven = 1 WHERE {_KEY} AND f.commit_id = ? ORDER BY f.path"
)
_PROVEN = (
    "SELECT DISTINCT f.digest, b.verified_wall_s FROM files f "  # noqa: S608
    "CROSS JOIN blobs b INDEXED BY blobs_proven ON b.digest = f.digest AND b.is_proven = 1 "
    f"WHERE {_KEY} AND f.commit_id = ?"
)
# Of the blobs whose digests are in a list, as one value: a question with a mark for each blob would
# be prepared anew for every number of files. Each has one row.
_WEIGHTS = "FROM json_each(?) AS asked CROSS JOIN weights AS w ON w.digest = asked.value"
_HEADS = (
    "SELECT count(*), count(w.format), total(w.tensors), total(w.tensor_bytes), "
    f"max(w.largest_tensor_bytes), min(w.format), group_concat(w.params) {_WEIGHTS}"
)
# What makes two file lists the same one: which snapshot, whether confirmed, since when known.
_ListKey = tuple[SnapshotId, bool, float]
# What a release before this one did not have.
_NEEDED_TABLE = "weights"


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """
    What the index says of a snapshot now. `public_wall_s`: when the hub last gave a file of it to
    anybody, None if it did not; `proven`: when each blob that is proven, by its digest's text, was
    hashed last.
    """

    listing: Listing
    is_confirmed: bool
    public_wall_s: float | None
    is_pinned: bool
    proven: dict[str, float] = field(default_factory=dict)

    @property
    def snapshot(self) -> Snapshot:
        """Return the whole file list."""
        return self.listing.snapshot

    @property
    def is_public(self) -> bool:
        """Return whether anybody may know of it, as far as the hub's last word goes."""
        return self.public_wall_s is not None


class IndexReader:
    """The index, for reading. One thread at a time."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: Of the index.

        Raises:
            NotFoundError: There is none.
            StoreError: It cannot be read.
        """
        self.path = path
        self._connection: sqlite3.Connection | None = None
        # One for all questions: a connection remembers every one that it ever made.
        self._cursor: sqlite3.Cursor | None = None
        self._identity: tuple[object, ...] = ()
        self._lists: OrderedDict[_ListKey, Listing] = OrderedDict()
        self._entries_kept = 0
        # What was found since somebody last wrote to the index.
        self._facts: dict[SnapshotId, SnapshotFacts | None] = {}
        self._facts_entries = 0
        self._data_version = -1
        self._open()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._cursor = None

    def refresh(self) -> None:
        """
        See to it that the right file is read: call before each round of questions.

        Raises:
            NotFoundError: It is gone.
            StoreError: It cannot be read.
        """
        if self._connection is None or self._identify() != self._identity:
            self._open()

    # --- what is asked ---

    def find_commit(self, reference: ModelReference) -> str | None:
        """Return the commit that a reference means here; None when it was never asked for."""
        if is_commit(reference.revision):
            return reference.revision
        row = self._query_one(
            f"SELECT commit_id FROM refs WHERE {_KEY} AND revision = ?",  # noqa: S608
            (*_key(reference.repo), reference.revision),
        )
        return None if row is None else str(row[0])

    def find_facts(self, snapshot_id: SnapshotId) -> SnapshotFacts | None:
        """Return what is known of a snapshot; the same object until something changes."""
        ((version,),) = self._query("PRAGMA data_version", ())
        if version != self._data_version or self._facts_entries > ENTRIES_KEPT_MAX:
            self._facts.clear()
            self._facts_entries, self._data_version = 0, version
        if snapshot_id not in self._facts:
            facts = self._facts[snapshot_id] = self._read_facts(snapshot_id)
            self._facts_entries += 1 if facts is None else 1 + len(facts.proven)
        return self._facts[snapshot_id]

    def _read_facts(self, snapshot_id: SnapshotId) -> SnapshotFacts | None:
        key = (*_key(snapshot_id.repo), snapshot_id.commit)
        where = f"{_KEY} AND commit_id = ?"
        row = self._query_one(
            "SELECT is_confirmed, public_wall_s, added_wall_s, "  # noqa: S608
            f"EXISTS (SELECT 1 FROM pins WHERE {where}) FROM snapshots WHERE {where}",
            key + key,
        )
        if row is None:
            return None
        is_confirmed, added_wall_s = bool(row[0]), row[2]
        listing, proven = self._find_list((snapshot_id, is_confirmed, added_wall_s))
        return SnapshotFacts(listing, is_confirmed, row[1], bool(row[3]), proven)

    def sum_weights(
        self, blobs: Sequence[str]
    ) -> tuple[FileWeights | None, tuple[BlobDigest, ...]]:
        """
        Add up what the heads of some blobs say, without their shapes.

        Args:
            blobs: Their digests as text.

        Returns:
            The sum, None when a head is not known or not what its file's name says; and those of
            the blobs whose heads nobody has read. In SQL: a model has hundreds of files, and who
            asks cannot wait.
        """
        ((count, readable, tensors, total, largest, format, listed),) = self._query(
            _HEADS, (json.dumps(blobs),)
        )
        if count < len(blobs):
            return None, self._find_unread(blobs)
        if readable < count or format is None:
            return None, ()
        # Taken apart here, in one go: SQLite would look for all of the rows once more.
        params: dict[str, int] = {}
        for dtype, elements in params_from_texts(listed):
            params[dtype] = params.get(dtype, 0) + elements
        ordered = tuple(sorted(params.items()))
        return FileWeights(Format(format), int(tensors), int(total), largest, ordered), ()

    def find_shapes(self, blobs: Sequence[str]) -> tuple[ShapeCount, ...]:
        """Return the shapes of some blobs' tensors."""
        rows = self._query(f"SELECT w.shapes {_WEIGHTS}", (json.dumps(blobs),))
        return tuple(shape for (text,) in rows for shape in shapes_from_text(text))

    def find_public(self, blobs: Iterable[BlobDigest]) -> list[BlobDigest]:
        """Return those of some blobs that are here as whole files, proven, and anybody's."""
        query = (
            "SELECT 1 FROM blobs INDEXED BY blobs_proven "
            "WHERE digest = ? AND is_proven = 1 AND is_public = 1"
        )
        return [blob for blob in blobs if self._query_one(query, (str(blob),)) is not None]

    def list_snapshots(self) -> list[SnapshotId]:
        """Return every snapshot that is known, newest last."""
        query = "SELECT hub, kind, repo, commit_id FROM snapshots ORDER BY added_wall_s"
        rows = self._query(query, ())
        return [SnapshotId(RepoId.of(hub, kind, repo), commit) for hub, kind, repo, commit in rows]

    # --- how ---

    def _find_list(self, key: _ListKey) -> tuple[Listing, dict[str, float]]:
        """
        Return a file list, and when each of its blobs that is proven was hashed last.

        The list is read once: it changes only when the hub confirms it. What is proven is read
        each time; at the first time along with the list, or who asks first would wait for two walks
        over the same rows.
        """
        where = (*_key(key[0].repo), key[0].commit)
        kept = self._lists.get(key)
        if kept is not None:
            self._lists.move_to_end(key)
            return kept, dict(self._query(_PROVEN, where))
        rows = self._query(_FILES, where)
        listing = self._lists[key] = Listing.of_rows(key[0], [row[:4] for row in rows])
        self._entries_kept += len(rows)
        while self._entries_kept > ENTRIES_KEPT_MAX and len(self._lists) > 1:
            _, oldest = self._lists.popitem(last=False)
            self._entries_kept -= len(oldest.paths)
        return listing, {row[2]: row[5] for row in rows if row[4]}

    def _find_unread(self, blobs: Sequence[str]) -> tuple[BlobDigest, ...]:
        rows = self._query(f"SELECT w.digest {_WEIGHTS}", (json.dumps(blobs),))
        known = {digest for (digest,) in rows}
        return tuple(BlobDigest.parse(blob) for blob in blobs if blob not in known)

    def _query_one(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        rows = self._query(query, values)
        return rows[0] if rows else None

    def _query(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Ask; a file that was replaced, or a daemon that came or went, is opened anew."""
        for attempts_left in reversed(range(_OPEN_ATTEMPTS_MAX)):
            if self._cursor is None:
                self._open()
            assert self._cursor is not None, "_open() opens or raises"
            try:
                return self._cursor.execute(query, values).fetchall()
            except sqlite3.DatabaseError as error:
                self.close()
                if not attempts_left:
                    raise self._translate(error) from error
        raise AssertionError("the last attempt returns or raises")

    def _identify(self) -> tuple[object, ...]:
        """
        Return what tells that the open file is the one to read.

        Which file it is, and whether there is a log beside it. Without one nobody writes: the file
        is then read as immutable, so that nothing is made beside it, and any change counts.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            return ()
        has_log = os.path.exists(f"{self.path}-wal")
        if has_log:
            return True, status.st_dev, status.st_ino
        return False, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    def _open(self) -> None:
        self.close()
        identity = self._identify()
        if not identity:
            raise NotFoundError(
                f"There is no index at {self.path}; name a store that a daemon has used."
            )
        name = f"file:{quote(str(self.path))}?" + ("mode=ro" if identity[0] else "immutable=1")
        try:
            connection = sqlite3.connect(
                name,
                uri=True,
                timeout=_BUSY_TIMEOUT_S,
                check_same_thread=False,
                isolation_level=None,
            )
            connection.execute(f"PRAGMA cache_size = -{_PAGES_KEPT_BYTES_MAX // 1024}")
            query = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
            has_tables = connection.execute(query, (_NEEDED_TABLE,)).fetchone() is not None
        except sqlite3.DatabaseError as error:
            raise self._translate(error) from error
        if not has_tables:
            connection.close()
            raise StoreError(
                f"The index {self.path} is of an earlier release; start its daemon once with this "
                "one."
            )
        self._connection, self._cursor = connection, connection.cursor()
        self._identity = identity
        self._lists.clear()
        self._facts.clear()
        self._entries_kept = self._facts_entries = 0

    def _translate(self, error: sqlite3.DatabaseError) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return IndexCorruptError(
                f"The index {self.path} is damaged; start its daemon, which builds it anew."
            )
        if code == sqlite3.SQLITE_ERROR:
            return SchemaTooNewError(
                f"The index {self.path} is of another release ({error}); use the one of its daemon."
            )
        return StoreError(
            f"The index {self.path} cannot be read ({error}); run this as the daemon's "
            "user, or ask the daemon."
        )


def _key(repo: RepoId) -> tuple[str, str, str]:
    return repo.hub, repo.kind, repo.name
