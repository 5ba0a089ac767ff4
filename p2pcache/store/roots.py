"""
Owns the index's rows on what keeps snapshots from eviction, and in which order the rest goes.

Knows nothing of files on disk, and makes no decision (core.eviction does).
Invariants: a lease says when it ends, so that a loader that died protects nothing for ever; the
logical clock of uses only goes up.
Source: schema.py; design.md §3 (pin, lease).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlite_utils import Database

from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.store.catalogue import RefRow

_SNAPSHOT = "hub = ? AND kind = ? AND repo = ? AND commit_id = ?"


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A loader's claim on a snapshot, until then."""

    id: str
    snapshot_id: SnapshotId
    holder: str
    expires_wall_s: float


def _key(snapshot_id: SnapshotId) -> list[str]:
    repo = snapshot_id.repo
    return [repo.hub, repo.kind, repo.name, snapshot_id.commit]


class Roots:
    """Rows of pins, leases and uses."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put_pin(self, row: RefRow) -> None:
        """Protect a snapshot under the revision that the caller named."""
        self._db.execute(
            "INSERT OR REPLACE INTO pins VALUES (?, ?, ?, ?, ?, ?)",
            [row.repo.hub, row.repo.kind, row.repo.name, row.revision, row.commit, row.wall_s],
        )
        self._db.conn.commit()

    def remove_pin(self, repo: RepoId, revision: str) -> bool:
        """Stop protecting; returns whether there was such a pin."""
        cursor = self._db.execute(
            "DELETE FROM pins WHERE hub = ? AND kind = ? AND repo = ? AND revision = ?",
            [repo.hub, repo.kind, repo.name, revision],
        )
        self._db.conn.commit()
        return cursor.rowcount > 0

    def list_pins(self) -> list[RefRow]:
        """Return every pin, the oldest first."""
        return [
            RefRow(
                RepoId.of(row["hub"], row["kind"], row["repo"]),
                row["revision"],
                row["commit_id"],
                row["added_wall_s"],
            )
            for row in self._db.query("SELECT * FROM pins ORDER BY added_wall_s")
        ]

    def put_lease(self, row: LeaseRow) -> None:
        """Insert or renew a lease."""
        self._db.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)",
            [row.id, *_key(row.snapshot_id), row.holder, row.expires_wall_s],
        )
        self._db.conn.commit()

    def remove_lease(self, lease_id: str) -> bool:
        """End a lease; returns whether there was one."""
        cursor = self._db.execute("DELETE FROM leases WHERE id = ?", [lease_id])
        self._db.conn.commit()
        return cursor.rowcount > 0

    def list_leases(self) -> list[LeaseRow]:
        """Return every lease, ended ones included, the first to end first."""
        return [
            LeaseRow(
                row["id"],
                SnapshotId(RepoId.of(row["hub"], row["kind"], row["repo"]), row["commit_id"]),
                row["holder"],
                row["expires_wall_s"],
            )
            for row in self._db.query("SELECT * FROM leases ORDER BY expires_wall_s")
        ]

    def note_used(self, snapshot_id: SnapshotId) -> None:
        """Put a snapshot last in the order of eviction."""
        self._db.execute(
            "UPDATE snapshots SET used_tick = (SELECT 1 + max(used_tick) FROM snapshots) "  # noqa: S608
            f"WHERE {_SNAPSHOT}",
            _key(snapshot_id),
        )
        self._db.conn.commit()

    def list_uses(self) -> list[tuple[SnapshotId, int]]:
        """Return (snapshot, logical time of its last use, 0 for never), longest unused first."""
        query = (
            "SELECT hub, kind, repo, commit_id, used_tick FROM snapshots "
            "ORDER BY used_tick, added_wall_s"
        )
        return [
            (
                SnapshotId(RepoId.of(row["hub"], row["kind"], row["repo"]), row["commit_id"]),
                int(row["used_tick"]),
            )
            for row in self._db.query(query)
        ]
