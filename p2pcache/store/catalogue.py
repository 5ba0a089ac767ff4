"""
Owns the index's rows on repositories: snapshots, refs, proven visibility.

Knows nothing of files on disk.
Invariants: a snapshot's files never change; a ref says when the hub confirmed it.
Source: schema.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

from sqlite_utils import Database

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot

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


def _key(repo: RepoId) -> list[str]:
    return [repo.hub, repo.kind, repo.name]


class Catalogue:
    """Rows of repositories."""

    def __init__(self, db: Database) -> None:
        self._db = db

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
        rows = list(self._db.query(f"SELECT * FROM snapshots WHERE {where}", key))  # noqa: S608
        if not rows:
            return None
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
        about = rows[0]["about"]
        return SnapshotRow(
            Snapshot(snapshot_id, files),
            bool(rows[0]["is_confirmed"]),
            None if about is None else cast("dict[str, object]", json.loads(about)),
            rows[0]["public_wall_s"],
        )

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
        key = [*_key(snapshot_id.repo), snapshot_id.commit]
        with self._db.atomic():
            for table in ("files", "snapshots", "refs"):
                self._db.execute(
                    f"DELETE FROM {table} WHERE {_KEY} AND commit_id = ?",  # noqa: S608
                    key,
                )
