"""
Owns the index's rows on folders that are looked at again and again.

Knows nothing of what is in them.
Invariants: a row stands until somebody takes it away; a folder that is gone stays on the list, for
it may be on a disk that comes back.
Source: schema.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database


@dataclass(frozen=True, slots=True)
class WatchRow:
    """A folder, since when it is watched, and whether the operator called its content public."""

    path: Path
    added_wall_s: float
    is_public: bool = False


class Watchlist:
    """Rows of watched folders."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, row: WatchRow) -> None:
        """Insert a folder; one that is there keeps its time, and takes the newest word."""
        with self._db.atomic():
            self._db.execute(
                "INSERT INTO watched VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET is_public = excluded.is_public",
                [str(row.path), row.added_wall_s, int(row.is_public)],
            )

    def remove(self, path: Path) -> bool:
        """Take a folder away; returns whether it was there."""
        with self._db.atomic():
            cursor = self._db.execute("DELETE FROM watched WHERE path = ?", [str(path)])
        return cursor.rowcount > 0

    def list_all(self) -> list[WatchRow]:
        """Return every folder, the oldest first."""
        rows = self._db.query("SELECT * FROM watched ORDER BY added_wall_s, path")
        return [
            WatchRow(Path(row["path"]), row["added_wall_s"], bool(row["is_public"])) for row in rows
        ]
