"""
Owns reading the index beside the daemon: what residency asks, and nothing else.

Knows nothing of files but the index's own. Never writes: no row, no file, no lock on the store.
Invariants: a daemon that writes is neither waited for nor held up (WAL); without one the file is
read as it lies; a snapshot's file list is read once, what changes is read each time.
Source: SQLite, "Write-Ahead Logging" (read-only databases), "PRAGMA data_version".
"""

from __future__ import annotations

import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId, is_commit
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.tensors import Format
from p2pcache.core.weights import FileWeights, ShapeCount, shapes_from_text
from p2pcache.errors import IndexCorruptError, NotFoundError, SchemaTooNewError, StoreError

# File lists that are kept read: those of the models that somebody asks about again and again.
ENTRIES_KEPT_MAX = 200_000
# A daemon that ends or starts between two looks changes which way the file is read.
_OPEN_ATTEMPTS_MAX = 3
# Nobody writes through us; a checkpoint at the daemon's end holds readers up for a moment.
_BUSY_TIMEOUT_S = 5.0
_KEY = "hub = ? AND kind = ? AND repo = ?"
# Values in one question; SQLite's own limit is far above.
_VALUES_MAX = 500
# What a release before this one did not have.
_NEEDED_TABLE = "weights"


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """
    What the index says of a snapshot now. `public_wall_s`: when the hub last gave a file of it to
    anybody, None if it did not; `proven`: when each blob that is proven was hashed last.
    """

    snapshot: Snapshot
    is_confirmed: bool
    public_wall_s: float | None
    is_pinned: bool
    proven: dict[BlobDigest, float] = field(default_factory=dict)

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
        self._identity: tuple[object, ...] = ()
        self._lists: OrderedDict[tuple[SnapshotId, bool, float], Snapshot] = OrderedDict()
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
            self._connection = None

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
        proven = self._query(
            "SELECT DISTINCT f.digest, b.verified_wall_s FROM files f "  # noqa: S608
            "CROSS JOIN blobs b INDEXED BY blobs_proven ON b.digest = f.digest AND b.is_proven = 1 "
            f"WHERE {where}",
            key,
        )
        snapshot = self._find_list(snapshot_id, is_confirmed=bool(row[0]), added_wall_s=row[2])
        by_text = {str(entry.digest): entry.digest for entry in snapshot.files} if proven else {}
        return SnapshotFacts(
            snapshot,
            bool(row[0]),
            row[1],
            bool(row[3]),
            {by_text[text]: float(wall_s) for text, wall_s in proven if text in by_text},
        )

    def sum_weights(self, blobs: list[BlobDigest]) -> tuple[FileWeights | None, bool]:
        """
        Add up what the heads of some blobs say, without their shapes.

        Returns:
            The sum, None when a head is not known or not what its file's name says; and whether
            all of them are known. In SQL: a model has hundreds of files, and who asks cannot wait.
        """
        counted = tensors = total = largest = readable = 0
        format: str | None = None
        params: dict[str, int] = {}
        for part in _cut(blobs):
            marks = ",".join("?" * len(part))
            ((count, known, *sums, format),) = self._query(
                "SELECT count(*), count(format), total(tensors), total(tensor_bytes), "  # noqa: S608
                f"max(largest_tensor_bytes), min(format) FROM weights WHERE digest IN ({marks})",
                part,
            )
            counted, readable = counted + count, readable + known
            tensors, total = tensors + int(sums[0]), total + int(sums[1])
            largest = max(largest, sums[2] or 0)
            rows = self._query(
                "SELECT j.key, sum(j.value) FROM weights, json_each(params) j "  # noqa: S608
                f"WHERE digest IN ({marks}) GROUP BY j.key",
                part,
            )
            for dtype, elements in rows:
                params[dtype] = params.get(dtype, 0) + elements
        is_known = counted == len(blobs)
        if not is_known or readable < counted or format is None:
            return None, is_known
        summed = FileWeights(Format(format), tensors, total, largest, tuple(sorted(params.items())))
        return summed, True

    def find_unread(self, blobs: list[BlobDigest]) -> list[BlobDigest]:
        """Return those of some blobs whose heads nobody has read."""
        known = set()
        for part in _cut(blobs):
            marks = ",".join("?" * len(part))
            query = f"SELECT digest FROM weights WHERE digest IN ({marks})"  # noqa: S608
            known |= {digest for (digest,) in self._query(query, part)}
        return [blob for blob in blobs if str(blob) not in known]

    def find_shapes(self, blobs: list[BlobDigest]) -> tuple[ShapeCount, ...]:
        """Return the shapes of some blobs' tensors."""
        shapes: list[ShapeCount] = []
        for part in _cut(blobs):
            marks = ",".join("?" * len(part))
            query = f"SELECT shapes FROM weights WHERE digest IN ({marks})"  # noqa: S608
            for (text,) in self._query(query, part):
                shapes += shapes_from_text(text)
        return tuple(shapes)

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

    def _find_list(
        self, snapshot_id: SnapshotId, *, is_confirmed: bool, added_wall_s: float
    ) -> Snapshot:
        """Return a file list, read once: it changes only when the hub confirms it."""
        key = snapshot_id, is_confirmed, added_wall_s
        kept = self._lists.get(key)
        if kept is not None:
            self._lists.move_to_end(key)
            return kept
        rows = self._query(
            "SELECT path, size_bytes, digest, tree_oid FROM files "  # noqa: S608
            f"WHERE {_KEY} AND commit_id = ? ORDER BY path",
            (*_key(snapshot_id.repo), snapshot_id.commit),
        )
        files = tuple(
            FileEntry(path, size, BlobDigest.parse(digest), oid) for path, size, digest, oid in rows
        )
        snapshot = self._lists[key] = Snapshot(snapshot_id, files)
        self._entries_kept += len(files)
        while self._entries_kept > ENTRIES_KEPT_MAX and len(self._lists) > 1:
            _, oldest = self._lists.popitem(last=False)
            self._entries_kept -= len(oldest.files)
        return snapshot

    def _query_one(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        rows = self._query(query, values)
        return rows[0] if rows else None

    def _query(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Ask; a file that was replaced, or a daemon that came or went, is opened anew."""
        for attempts_left in reversed(range(_OPEN_ATTEMPTS_MAX)):
            if self._connection is None:
                self._open()
            assert self._connection is not None, "_open() opens or raises"
            try:
                return self._connection.execute(query, values).fetchall()
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
        self._connection, self._identity = connection, identity
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


def _cut(blobs: list[BlobDigest]) -> list[tuple[str, ...]]:
    """Return digests as values for questions, so many at a time as one takes."""
    texts = [str(blob) for blob in blobs]
    return [tuple(texts[n : n + _VALUES_MAX]) for n in range(0, len(texts), _VALUES_MAX)]
