"""
Owns the index's rows on repositories: snapshots, refs, proven visibility.

Knows nothing of files on disk.
Invariants: a snapshot's files never change; a ref says when the hub confirmed it.
Source: schema.py.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

from sqlite_utils import Database

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot

# Files of all lists in memory together; each takes some 400 bytes.
LISTED_FILES_MAX = 100_000
_KEY = "hub = ? AND kind = ? AND repo = ?"


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """
    A file list. `is_confirmed`: the hub itself said so (else a trusted peer). `about`: the
    hub's description of the repository, for clients that ask. `public_wall_s`: when the hub
    last gave a file of it to an anonymous caller, None if never.
    """

    snapshot: Snapshot
    is_confirmed: bool
    about: dict[str, object] | None
    public_wall_s: float | None


@dataclass(frozen=True, slots=True)
class RefRow:
    """Where a branch or tag pointed when it was last checked."""

    repo: RepoId
    revision: str
    commit: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class _List:
    """What of a snapshot changes only when it is put again."""

    snapshot: Snapshot
    about: dict[str, object] | None


def _key(repo: RepoId) -> list[str]:
    return [repo.hub, repo.kind, repo.name]


class Catalogue:
    """Rows of repositories."""

    def __init__(self, db: Database) -> None:
        self._db = db
        # The lists asked for last: one of 10,000 files takes 0.1 s to read, and every request for
        # one of its files wants it.
        self._lists: OrderedDict[SnapshotId, _List] = OrderedDict()
        self._listed_count = 0

    def put_snapshot(
        self,
        snapshot: Snapshot,
        *,
        is_confirmed: bool,
        about: dict[str, object] | None,
        wall_s: float,
    ) -> None:
        """
        Insert a file list, or confirm one that is there. One that the hub confirmed stays as it
        is, whatever an unconfirmed one says.
        """
        key = [*_key(snapshot.id.repo), snapshot.id.commit]
        text = None if about is None else json.dumps(about)
        known = None if is_confirmed else self.find_snapshot(snapshot.id)
        if known is not None and known.is_confirmed:
            return
        self._forget_list(snapshot.id)
        with self._db.atomic():
            self._db.execute(
                "INSERT INTO snapshots (hub, kind, repo, commit_id, about, is_confirmed, "
                "added_wall_s) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET about = coalesce(excluded.about, about), "
                "is_confirmed = max(excluded.is_confirmed, is_confirmed)",
                [*key, text, int(is_confirmed), wall_s],
            )
            where = f"{_KEY} AND commit_id = ?"
            self._db.execute(f"DELETE FROM files WHERE {where}", key)  # noqa: S608
            self._db.conn.executemany(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (*key, entry.path, entry.size_bytes, str(entry.digest), entry.tree_oid)
                    for entry in snapshot.files
                ),
            )

    def find_snapshot(self, snapshot_id: SnapshotId) -> SnapshotRow | None:
        """Return a file list, None when the index has none."""
        key = [*_key(snapshot_id.repo), snapshot_id.commit]
        where = f"{_KEY} AND commit_id = ?"
        query = f"SELECT is_confirmed, public_wall_s FROM snapshots WHERE {where}"  # noqa: S608
        rows = list(self._db.query(query, key))
        if not rows:
            return None
        listed = self._lists.get(snapshot_id)
        if listed is None:
            listed = self._read_list(snapshot_id, where, key)
            self._keep_list(listed)
        else:
            self._lists.move_to_end(snapshot_id)
        row = rows[0]
        is_confirmed, public_wall_s = bool(row["is_confirmed"]), row["public_wall_s"]
        return SnapshotRow(listed.snapshot, is_confirmed, listed.about, public_wall_s)

    def _read_list(self, snapshot_id: SnapshotId, where: str, key: list[str]) -> _List:
        query = f"SELECT about FROM snapshots WHERE {where}"  # noqa: S608
        about = next(iter(self._db.query(query, key)))["about"]
        files = tuple(
            FileEntry(
                str(row["path"]),
                int(row["size_bytes"]),
                BlobDigest.parse(str(row["digest"])),
                str(row["tree_oid"]),
            )
            for row in self._db.query(
                f"SELECT * FROM files WHERE {where} ORDER BY path",  # noqa: S608
                key,
            )
        )
        return _List(
            Snapshot(snapshot_id, files),
            None if about is None else cast("dict[str, object]", json.loads(about)),
        )

    def _keep_list(self, listed: _List) -> None:
        self._lists[listed.snapshot.id] = listed
        self._listed_count += 1 + len(listed.snapshot.files)
        while self._listed_count > LISTED_FILES_MAX and len(self._lists) > 1:
            self._forget_list(next(iter(self._lists)))

    def _forget_list(self, snapshot_id: SnapshotId) -> None:
        listed = self._lists.pop(snapshot_id, None)
        if listed is not None:
            self._listed_count -= 1 + len(listed.snapshot.files)

    def list_snapshots(self) -> list[SnapshotId]:
        """Return every snapshot that is known, newest last."""
        query = "SELECT hub, kind, repo, commit_id FROM snapshots ORDER BY added_wall_s"
        return [
            SnapshotId(RepoId.of(row["hub"], row["kind"], row["repo"]), row["commit_id"])
            for row in self._db.query(query)
        ]

    def list_places(self, digest: BlobDigest) -> list[tuple[SnapshotId, FileEntry]]:
        """Return every place that a blob has in any known snapshot."""
        return [
            (
                SnapshotId(RepoId.of(row["hub"], row["kind"], row["repo"]), row["commit_id"]),
                FileEntry(row["path"], row["size_bytes"], digest, row["tree_oid"]),
            )
            for row in self._db.query("SELECT * FROM files WHERE digest = ?", [str(digest)])
        ]

    def set_public(self, snapshot_id: SnapshotId, wall_s: float | None) -> None:
        """Record when a file was given to an anonymous caller; None revokes."""
        self._db.execute(
            f"UPDATE snapshots SET public_wall_s = ? WHERE {_KEY} AND commit_id = ?",  # noqa: S608
            [wall_s, *_key(snapshot_id.repo), snapshot_id.commit],
        )
        self._db.conn.commit()

    def find_public_wall_s(self, snapshot_id: SnapshotId) -> float | None:
        """Return when a file of a snapshot was last given to an anonymous caller, None if never."""
        row = self._db.execute(
            f"SELECT public_wall_s FROM snapshots WHERE {_KEY} AND commit_id = ?",  # noqa: S608
            [*_key(snapshot_id.repo), snapshot_id.commit],
        ).fetchone()
        return None if row is None else cast("float | None", row[0])

    def list_public(self, repo: RepoId) -> list[Snapshot]:
        """Return the snapshots of a repository that are public as far as is known."""
        commits = self._db.execute(
            f"SELECT commit_id FROM snapshots WHERE {_KEY} AND public_wall_s IS NOT NULL",  # noqa: S608
            _key(repo),
        ).fetchall()
        rows = [self.find_snapshot(SnapshotId(repo, str(commit))) for (commit,) in commits]
        return [row.snapshot for row in rows if row is not None]

    def list_shared(self, older_than_wall_s: float, count_max: int) -> list[Snapshot]:
        """
        Return public snapshots of which something is here, with proofs from before a time; the
        oldest first.
        """
        query = (
            "SELECT hub, kind, repo, commit_id FROM snapshots s WHERE public_wall_s < ? AND EXISTS "
            "(SELECT 1 FROM files f JOIN blobs b USING (digest) WHERE b.is_public AND f.hub = s.hub"
            " AND f.kind = s.kind AND f.repo = s.repo AND f.commit_id = s.commit_id) "
            "ORDER BY public_wall_s LIMIT ?"
        )
        found = []
        for row in list(self._db.query(query, [older_than_wall_s, count_max])):
            repo = RepoId.of(row["hub"], row["kind"], row["repo"])
            snapshot = self.find_snapshot(SnapshotId(repo, row["commit_id"]))
            found += [] if snapshot is None else [snapshot.snapshot]
        return found

    def revoke_public(self, snapshot_id: SnapshotId) -> list[BlobDigest]:
        """
        Record that a snapshot is not public; its blobs that no public snapshot has are not either.

        Returns:
            Those blobs.
        """
        key = [*_key(snapshot_id.repo), snapshot_id.commit]
        where = f"{_KEY} AND commit_id = ?"
        query = (
            f"SELECT digest FROM blobs WHERE is_public AND digest IN "  # noqa: S608
            f"(SELECT digest FROM files WHERE {where}) AND digest NOT IN "
            "(SELECT f.digest FROM files f JOIN snapshots s USING (hub, kind, repo, commit_id) "
            "WHERE s.public_wall_s IS NOT NULL)"
        )
        with self._db.atomic():
            self._db.execute(
                f"UPDATE snapshots SET public_wall_s = NULL WHERE {where}",  # noqa: S608
                key,
            )
            digests = [str(row["digest"]) for row in self._db.query(query, key)]
            for digest in digests:
                self._db.execute("UPDATE blobs SET is_public = 0 WHERE digest = ?", [digest])
        return [BlobDigest.parse(digest) for digest in digests]

    def put_ref(self, row: RefRow) -> None:
        """Record where a revision points."""
        self._db.execute(
            "INSERT OR REPLACE INTO refs VALUES (?, ?, ?, ?, ?, ?)",
            [*_key(row.repo), row.revision, row.commit, row.wall_s],
        )
        self._db.conn.commit()

    def find_ref(self, repo: RepoId, revision: str) -> RefRow | None:
        """Return where a revision pointed, None when it was never asked for."""
        rows = self._db.query(
            f"SELECT * FROM refs WHERE {_KEY} AND revision = ?",  # noqa: S608
            [*_key(repo), revision],
        )
        for row in rows:
            return RefRow(repo, revision, row["commit_id"], row["checked_wall_s"])
        return None

    def list_refs(self, repo: RepoId) -> list[RefRow]:
        """Return the revisions of a repository that are known."""
        rows = self._db.query(f"SELECT * FROM refs WHERE {_KEY}", _key(repo))  # noqa: S608
        return [RefRow(repo, r["revision"], r["commit_id"], r["checked_wall_s"]) for r in rows]

    def remove_snapshot(self, snapshot_id: SnapshotId) -> None:
        """Forget a file list and the revisions that point to it, if they exist."""
        self._forget_list(snapshot_id)
        key = [*_key(snapshot_id.repo), snapshot_id.commit]
        with self._db.atomic():
            # What heads say of files that only this one lists goes with them.
            self._db.execute(
                f"DELETE FROM weights WHERE digest IN (SELECT digest FROM files WHERE {_KEY} "  # noqa: S608
                "AND commit_id = ?) AND 1 = (SELECT count(*) FROM (SELECT DISTINCT hub, kind, "
                "repo, commit_id FROM files WHERE files.digest = weights.digest LIMIT 2))",
                key,
            )
            for table in ("files", "snapshots", "refs"):
                self._db.execute(
                    f"DELETE FROM {table} WHERE {_KEY} AND commit_id = ?",  # noqa: S608
                    key,
                )
