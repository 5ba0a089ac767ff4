"""
Owns the tables of the index and how older ones become today's.

Knows nothing of what is asked of them.
Invariants: migrations are applied in order, each in a transaction; none is ever edited.
Source: docs/reference/store-layout.md.
"""

from __future__ import annotations

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

migrations = Migrations("p2pcache")


@migrations()
def m001_initial(db: Database) -> None:
    """Blobs and their chunks; snapshots, files, refs; pins."""
    db.create_table(
        "blobs",
        {
            "digest": str,
            "size_bytes": int,
            "layout": str,
            "chunk_digests": bytes,
            "is_proven": int,
            "is_public": int,
            "mtime_ns": int,
            "inode": int,
            "verified_wall_s": float,
        },
        pk="digest",
        strict=True,
    )
    db.execute(
        "CREATE TABLE chunks (digest BLOB PRIMARY KEY, blob TEXT NOT NULL, "
        "chunk_index INTEGER NOT NULL) WITHOUT ROWID, STRICT"
    )
    db.execute("CREATE INDEX chunks_blob ON chunks (blob)")
    db.execute(
        "CREATE TABLE snapshots (hub TEXT NOT NULL, kind TEXT NOT NULL, repo TEXT NOT NULL, "
        "commit_id TEXT NOT NULL, about TEXT, is_confirmed INTEGER NOT NULL, "
        "public_wall_s REAL, added_wall_s REAL NOT NULL, "
        "PRIMARY KEY (hub, kind, repo, commit_id)) STRICT"
    )
    db.execute(
        "CREATE TABLE files (hub TEXT NOT NULL, kind TEXT NOT NULL, repo TEXT NOT NULL, "
        "commit_id TEXT NOT NULL, path TEXT NOT NULL, size_bytes INTEGER NOT NULL, "
        "digest TEXT NOT NULL, tree_oid TEXT NOT NULL, "
        "PRIMARY KEY (hub, kind, repo, commit_id, path)) WITHOUT ROWID, STRICT"
    )
    db.execute("CREATE INDEX files_digest ON files (digest)")
    db.execute(
        "CREATE TABLE refs (hub TEXT NOT NULL, kind TEXT NOT NULL, repo TEXT NOT NULL, "
        "revision TEXT NOT NULL, commit_id TEXT NOT NULL, checked_wall_s REAL NOT NULL, "
        "PRIMARY KEY (hub, kind, repo, revision)) STRICT"
    )
    db.execute(
        "CREATE TABLE pins (hub TEXT NOT NULL, kind TEXT NOT NULL, repo TEXT NOT NULL, "
        "revision TEXT NOT NULL, commit_id TEXT NOT NULL, added_wall_s REAL NOT NULL, "
        "PRIMARY KEY (hub, kind, repo, revision)) STRICT"
    )


@migrations()
def m002_refuted(db: Database) -> None:
    """Blobs of which readers were given wrong bytes before the proof."""
    db.execute(
        "CREATE TABLE refuted (digest TEXT PRIMARY KEY, until_wall_s REAL NOT NULL) "
        "WITHOUT ROWID, STRICT"
    )
