"""
Owns the SQLite catalogue: opening it, its durability, setting one that cannot be used aside.

Knows nothing of files on disk but its own; what is lost with it is rebuilt (rebuild.py).
Invariants: one thread uses it; a statement is durable when its call returns (synchronous=FULL);
an index that is corrupt, or of a newer release, is set aside, never deleted.
Source: SQLite, "PRAGMA synchronous"; design.md §4.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlite_utils import Database

from p2pcache.errors import (
    IndexCorruptError,
    SchemaTooNewError,
    StoreError,
    StoreFullError,
)
from p2pcache.store.bloblist import BlobList
from p2pcache.store.catalogue import Catalogue
from p2pcache.store.checklist import CheckList
from p2pcache.store.disk import store_error, try_set_mode
from p2pcache.store.inventory import Inventory
from p2pcache.store.roots import Roots
from p2pcache.store.schema import migrations
from p2pcache.store.watchlist import Watchlist
from p2pcache.store.weightlist import WeightList

log = logging.getLogger(__name__)

# In the file's `user_version`, once recover() has been through: a start that a crash ended half
# way is begun anew, or pins would be lost for good.
_FILLED = 1
_OUR_NAMES = {migration.name for migration in migrations._migrations}


def _keep_private(path: Path) -> None:
    """
    Let nobody else read the index: it names what is hidden. SQLite gives its mode to the log.

    Raises:
        StoreError: The disk failed or is full.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            with contextlib.suppress(FileNotFoundError):
                try_set_mode(path.with_name(name), 0o600)
    except OSError as error:
        raise store_error(error, path) from error


def open_database(path: Path) -> tuple[Database, bool]:
    """
    Open the index and bring its tables up to date.

    Returns:
        The database, and whether it was never filled from the store.

    Raises:
        IndexCorruptError: It is not a readable SQLite file.
        SchemaTooNewError: A later release wrote it.
        StoreError: The disk failed or is full.
    """
    _keep_private(path)
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
        applied = [m.name for m in migrations.applied(db)]
        newer = [name for name in applied if name not in _OUR_NAMES]
        if newer:
            raise SchemaTooNewError(
                f"The index {path} was written by a later release ({newer[0]}); it is set aside "
                "and rebuilt from the store."
            )
        migrations.apply(db)
        if CheckList(db).is_garbled():
            raise IndexCorruptError(f"The index {path} is damaged; it is rebuilt from the store.")
        (state,) = connection.execute("PRAGMA user_version").fetchone()
        return db, state != _FILLED
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
        Open the index; set one aside that cannot be used, and begin a new one.

        `was_rebuilt` tells the caller to fill it from the store: there was none, or an empty one,
        or one that is damaged, or of a later release. The store itself is of a schema that this
        release knows, or home.py would have refused it; all that the index says of files is on
        disk as well, so a newer catalogue of it is no reason not to start.

        Raises:
            StoreError: The disk failed or is full.
        """
        self.path = path
        try:
            self._db, self.was_rebuilt = open_database(path)
        except (IndexCorruptError, SchemaTooNewError) as error:
            log.warning("%s", error)
            self._set_aside("corrupt" if isinstance(error, IndexCorruptError) else "newer")
            self._db, _ = open_database(path)
            self.was_rebuilt = True
        self.blobs = BlobList(self._db)
        self.catalogue = Catalogue(self._db)
        self.roots = Roots(self._db)
        self.inventory = Inventory(self._db, self.blobs, self.catalogue)
        self.checks = CheckList(self._db)
        self.watchlist = Watchlist(self._db)
        self.weights = WeightList(self._db)

    def _set_aside(self, reason: str) -> None:
        number = 1
        while self.path.with_name(f"{self.path.name}.{reason}-{number}").exists():
            number += 1
        aside = self.path.with_name(f"{self.path.name}.{reason}-{number}")
        try:
            self.path.rename(aside)
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + suffix).rename(f"{aside}{suffix}")
        except OSError as error:
            raise store_error(error, self.path) from error

    def note_filled(self) -> None:
        """Record that all that the store knows is in here."""
        self._db.execute(f"PRAGMA user_version = {_FILLED}")
        self._db.conn.commit()

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Make the changes of many blobs' rows durable together, or none of them."""
        with self._db.atomic():
            yield

    def close(self) -> None:
        """Close the file."""
        self._db.close()
