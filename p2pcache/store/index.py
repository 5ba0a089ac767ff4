"""
Owns the SQLite catalogue: opening it, its durability, setting a broken one aside.

Knows nothing of files on disk but its own; what is lost with it is rebuilt (rebuild.py).
Invariants: one thread uses it; a statement is durable when its call returns (synchronous=FULL);
an index of a newer release is refused, a corrupt one is set aside, never deleted.
Source: SQLite, "PRAGMA synchronous"; design.md §4.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from sqlite_utils import Database

from p2pcache.errors import IndexCorruptError, SchemaTooNewError, StoreError, StoreFullError
from p2pcache.store.bloblist import BlobList
from p2pcache.store.catalogue import Catalogue
from p2pcache.store.roots import Roots
from p2pcache.store.schema import migrations

_OUR_NAMES = {migration.name for migration in migrations._migrations}


def open_database(path: Path) -> Database:
    """
    Open the index and bring its tables up to date.

    Raises:
        IndexCorruptError: It is not a readable SQLite file.
        SchemaTooNewError: A later release wrote it.
        StoreError: The disk failed or is full.
    """
    try:
        connection = sqlite3.connect(path, check_same_thread=False)
    except sqlite3.DatabaseError as error:
        raise translate_error(error, path) from error
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        result = connection.execute("PRAGMA quick_check(1)").fetchone()
        if result is None or result[0] != "ok":
            raise IndexCorruptError(f"The index {path} is damaged; it is rebuilt from the store.")
        db = Database(connection, execute_plugins=False)
        newer = [m.name for m in migrations.applied(db) if m.name not in _OUR_NAMES]
        if newer:
            raise SchemaTooNewError(
                f"The index {path} was written by a later release ({newer[0]}); run that one."
            )
        migrations.apply(db)
        return db
    except sqlite3.DatabaseError as error:
        connection.close()
        raise translate_error(error, path) from error
    except StoreError:
        connection.close()
        raise


def translate_error(error: sqlite3.DatabaseError, path: Path) -> StoreError:
    """Return the store's error for an error of SQLite."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreFullError(f"The disk that holds {path} is full; free some space.")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IndexCorruptError(f"The index {path} is damaged; it is rebuilt from the store.")
    return StoreError(f"The index {path} failed ({error}); see the system's log.")


class Index:
    """The open index. Not thread safe: one thread owns it."""

    def __init__(self, path: Path) -> None:
        """
        Open the index; set a corrupt one aside and begin a new one.

        `was_rebuilt` tells the caller to fill it from the store.
        """
        self.path = path
        self.was_rebuilt = not path.exists()
        try:
            self._db = open_database(path)
        except IndexCorruptError:
            self._set_aside()
            self.was_rebuilt = True
            self._db = open_database(path)
        self.blobs = BlobList(self._db)
        self.catalogue = Catalogue(self._db)
        self.roots = Roots(self._db)

    def _set_aside(self) -> None:
        number = 1
        while self.path.with_name(f"{self.path.name}.corrupt-{number}").exists():
            number += 1
        aside = self.path.with_name(f"{self.path.name}.corrupt-{number}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(f"{aside}{suffix}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()
