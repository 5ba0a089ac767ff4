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


@migrations()
def m003_space(db: Database) -> None:
    """
    Layouts with boundaries of their own; a chunk in several blobs; what eviction, checks, leases
    and watched folders need.
    """
    db.execute("ALTER TABLE blobs ADD COLUMN layout_spans BLOB")
    # Shares its bytes with a file that somebody else owns: evicting it frees nothing.
    db.execute("ALTER TABLE blobs ADD COLUMN is_adopted INTEGER NOT NULL DEFAULT 0")
    # Where a check that ran out of time goes on, in chunks.
    db.execute("ALTER TABLE blobs ADD COLUMN checked_chunks INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE snapshots ADD COLUMN used_tick INTEGER NOT NULL DEFAULT 0")
    db.execute(
        "CREATE TABLE chunk_places (digest BLOB NOT NULL, blob TEXT NOT NULL, "
        "chunk_index INTEGER NOT NULL, PRIMARY KEY (digest, blob, chunk_index)) "
        "WITHOUT ROWID, STRICT"
    )
    db.execute("INSERT INTO chunk_places SELECT digest, blob, chunk_index FROM chunks")
    db.execute("DROP TABLE chunks")
    db.execute("CREATE INDEX chunk_places_blob ON chunk_places (blob)")
    db.execute(
        "CREATE TABLE leases (id TEXT PRIMARY KEY, hub TEXT NOT NULL, kind TEXT NOT NULL, "
        "repo TEXT NOT NULL, commit_id TEXT NOT NULL, holder TEXT NOT NULL, "
        "expires_wall_s REAL NOT NULL) WITHOUT ROWID, STRICT"
    )
    db.execute(
        "CREATE TABLE watched (path TEXT PRIMARY KEY, added_wall_s REAL NOT NULL, "
        "is_public INTEGER NOT NULL) WITHOUT ROWID, STRICT"
    )


@migrations()
def m004_weights(db: Database) -> None:
    """What the heads of weight files say; what residency needs of blobs, without their tables."""
    # `format` is NULL for a file whose head is not what its name says.
    db.execute(
        "CREATE TABLE weights (digest TEXT PRIMARY KEY, format TEXT, tensors INTEGER NOT NULL, "
        "tensor_bytes INTEGER NOT NULL, largest_tensor_bytes INTEGER NOT NULL, "
        "params TEXT NOT NULL, shapes TEXT NOT NULL) STRICT"
    )
    # A blob's row has its chunk table in the middle, 32 bytes for each 4 MiB: whatever lies behind
    # it is read through all of its pages.
    db.execute("CREATE INDEX blobs_proven ON blobs (digest, is_proven, is_public, verified_wall_s)")
    db.execute("CREATE INDEX blobs_taken ON blobs (is_adopted, size_bytes)")
