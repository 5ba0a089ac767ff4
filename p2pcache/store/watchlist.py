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
    """A folder, and since when it is watched."""

    path: Path
    added_wall_s: float


class Watchlist:
    """Rows of watched folders."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, row: WatchRow) -> None:
        """Insert a folder; one that is there keeps its time."""
        with self._db.atomic():
            self._db.execute(
                "INSERT OR IGNORE INTO watched VALUES (?, ?)", [str(row.path), row.added_wall_s]
            )

    def remove(self, path: Path) -> bool:
        """Take a folder away; returns whether it was there."""
        with self._db.atomic():
            cursor = self._db.execute("DELETE FROM watched WHERE path = ?", [str(path)])
        return cursor.rowcount > 0

    def list_all(self) -> list[WatchRow]:
        """Return every folder, the oldest first."""
        rows = self._db.query("SELECT path, added_wall_s FROM watched ORDER BY added_wall_s, path")
        return [WatchRow(Path(row["path"]), row["added_wall_s"]) for row in rows]
