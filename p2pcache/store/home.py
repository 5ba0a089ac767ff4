"""
Owns the store's folder as a whole: who may use it, which schema it has, what is in its root.

Knows nothing of what the files hold.
Invariants: one daemon per store, for the life of the process (lock.py); the admin token is
readable by the owner alone; nothing of a newer schema is touched.
Source: design.md §4.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import stat
import threading
from pathlib import Path

from p2pcache.errors import (
    ConfigError,
    P2PCacheError,
    SchemaTooNewError,
    StoreError,
    StoreFullError,
)
from p2pcache.store.disk import try_set_mode, write_all
from p2pcache.store.lock import LOCK_NAME, StoreLock
from p2pcache.store.lock import MARKER_NAME as LOCK_MARKER_NAME

log = logging.getLogger(__name__)

STORE_SCHEMA = 1
MARKER_NAME = "p2pcache-store.json"
ENDPOINT_NAME = "daemon.json"
TOKEN_NAME = "admin-token"  # noqa: S105
PEER_ID_NAME = "peer-id"
_TOKEN_BYTES = 32
_PEER_ID_BYTES = 16
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def write_file_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a small file so that a crash leaves the old or the new content, never a torn one."""
    # Not made from the name, which may be as long as names get.
    temporary = path.with_name(f".{os.getpid()}.{threading.get_ident()}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try_set_mode(fd, mode)
        write_all(fd, content)
        os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


class StoreHome:
    """A store that this process has locked. Use as a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index_path = root / "index.sqlite"
        self.hub_path = root / "hub"
        self._lock = StoreLock(root)
        self.admin_token = ""
        self.peer_id = ""

    def open(self) -> StoreHome:
        """
        Create what is missing, check owner and schema, take the lock.

        Raises:
            ConfigError: The folder is not ours, or cannot be made.
            StoreLockedError: Another daemon runs on it.
            SchemaTooNewError: A later release wrote it.
        """
        try:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._check_owner()
            self._check_not_foreign()
            self._lock.acquire()
            self._close_to_others()
            self._check_schema()
            self.hub_path.mkdir(mode=0o755, exist_ok=True)
            self.admin_token = self._load_secret(TOKEN_NAME, _TOKEN_BYTES)
            self.peer_id = self._load_secret(PEER_ID_NAME, _PEER_ID_BYTES)
        except OSError as error:
            self.close()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFullError(
                    f"The disk of the store {self.root} is full; free some space and start again."
                ) from error
            raise ConfigError(
                f"The store {self.root} cannot be used ({error.strerror}); "
                "name a folder that you may write with --store DIR."
            ) from error
        except P2PCacheError:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Release the lock and say that no daemon is here. Safe to call twice."""
        if self._lock.is_held:
            with contextlib.suppress(OSError):
                (self.root / ENDPOINT_NAME).unlink()
            self._lock.release()

    def write_endpoint(self, local: str, peer: str, name: str) -> None:
        """Leave word of where the daemon listens, for the command line."""
        content = {"local": local, "peer": peer, "name": name, "pid": os.getpid()}
        try:
            write_file_atomically(self.root / ENDPOINT_NAME, json.dumps(content).encode())
        except OSError as error:
            raise StoreFullError(
                f"Nothing can be written to the store {self.root} ({error.strerror}); "
                "free some space and start again."
            ) from error

    def _check_owner(self) -> None:
        status = self.root.stat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise ConfigError(
                f"The store {self.root} belongs to another user; run as its owner or name "
                "another folder with --store DIR."
            )

    def _close_to_others(self) -> None:
        mode = stat.S_IMODE(self.root.stat().st_mode)
        if not mode & _OTHERS_WRITE:
            return
        try_set_mode(self.root, mode & ~_OTHERS_WRITE)
        if self.root.stat().st_mode & _OTHERS_WRITE:
            log.warning(
                "%s is on a file system without modes: every user of this machine can change the "
                "store and read its admin token; mount it with umask=077",
                self.root,
            )

    def _check_not_foreign(self) -> None:
        """Before anything is written: somebody else's folder stays as it is."""
        if (self.root / MARKER_NAME).exists():
            return
        ours = {LOCK_NAME, LOCK_MARKER_NAME, "blobs", "partial", "hub", "lost+found"}
        names = {path.name for path in self.root.iterdir()}
        foreign = {name for name in names - ours if not name.startswith(".")}
        if foreign:
            raise ConfigError(
                f"{self.root} is not empty and is not a store (it holds {min(foreign)!r}); "
                "name another folder with --store DIR."
            )

    def _check_schema(self) -> None:
        marker = self.root / MARKER_NAME
        if not marker.exists():
            content = json.dumps({"schema_version": STORE_SCHEMA}).encode()
            write_file_atomically(marker, content)
            return
        try:
            found = json.loads(marker.read_bytes())["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{marker} cannot be read; if this is a p2pcache store, remove that file."
            ) from error
        if not isinstance(found, int) or found > STORE_SCHEMA:
            raise SchemaTooNewError(
                f"The store {self.root} has schema {found}, this release knows {STORE_SCHEMA}; "
                "run the release that wrote it."
            )

    def _load_secret(self, name: str, size_bytes: int) -> str:
        """Return the random hex text in a file of ours, made on first use, readable by us alone."""
        path = self.root / name
        if path.exists():
            try_set_mode(path, 0o600)
            text = path.read_bytes().decode("ascii", "replace").strip()
            if len(text) == 2 * size_bytes and all(c in "0123456789abcdef" for c in text):
                return text
        text = secrets.token_hex(size_bytes)
        write_file_atomically(path, text.encode() + b"\n", mode=0o600)
        return text
