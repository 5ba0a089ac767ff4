"""
Owns that one daemon has a store: flock(2) where it works, a marker file where it does not.

Knows nothing of what the store holds.
Invariants: whoever cannot tell that the other owner is gone, does not take the store; a marker
has its content from the moment that it has its name, and a stale one is removed by one process.
Source: flock(2); open(2), O_EXCL; git-annex's pid locks, for the marker and the start time.

The marker names host, boot, process and the process's start time. It is stale if the same machine
runs another boot now, or if the same boot has no such process any more; process numbers mean
something only inside one pid namespace, and a host's name only together with its machine id. In
every other case somebody has to look and delete it: two daemons in one store would lose data.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from p2pcache.errors import StoreLockedError
from p2pcache.store.disk import sync_directory, write_all

log = logging.getLogger(__name__)

LOCK_NAME = "lock"
MARKER_NAME = "lock-owner.json"
# What flock(2) says on file systems that have none, or no lock server.
_NO_FLOCK_ERRNOS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_LINK_ERRNOS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_MARKER_BYTES_MAX = 4096
# Daemons that died one after the other while they took the store over: somebody should look.
_CLAIMS_MAX = 8
# Position of the start time among the fields of /proc/PID/stat that follow the command's name.
_START_FIELD = 19
# A process that ended and that its parent did not ask about yet.
_ENDED_STATES = ("Z", "X")


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, as far as another one can tell it from all others. Empty: cannot be told."""

    host: str
    machine: str
    boot: str
    pid_space: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Owner:
        """Return this process."""
        return cls(
            socket.gethostname(),
            _try_read(Path("/etc/machine-id")),
            _try_read(Path("/proc/sys/kernel/random/boot_id")),
            _try_read_link(Path("/proc/self/ns/pid")),
            os.getpid(),
            find_start(os.getpid()),
        )

    @classmethod
    def parse(cls, raw: bytes) -> Owner | None:
        """Read what to_bytes() wrote; None when it is something else."""
        try:
            fields = json.loads(raw)
            texts = [fields[key] for key in ("host", "machine", "boot", "pid_space", "started")]
            host, machine, boot, pid_space, started = texts
            pid = fields["pid"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if not all(isinstance(text, str) for text in texts) or type(pid) is not int:
            return None
        return cls(host, machine, boot, pid_space, pid, started)

    def to_bytes(self) -> bytes:
        """Return the content of a marker."""
        return json.dumps(
            {
                "host": self.host,
                "machine": self.machine,
                "boot": self.boot,
                "pid_space": self.pid_space,
                "pid": self.pid,
                "started": self.started,
            }
        ).encode()

    def is_gone(self, here: Owner) -> bool:
        """Return whether this process certainly does not run any more, as seen from another."""
        if not self.machine or (self.host, self.machine) != (here.host, here.machine):
            return False
        if not self.boot or not here.boot:
            return False
        if self.boot != here.boot:
            return True
        if not self.pid_space or self.pid_space != here.pid_space:
            return False
        # Not the number alone: after a while somebody else has it. And not without /proc.
        return bool(self.started and here.started) and find_start(self.pid) != self.started


class StoreLock:
    """The lock of one store. acquire(), then release()."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fd = -1
        self._marker = root / MARKER_NAME
        self._mark: bytes | None = None

    @property
    def is_held(self) -> bool:
        """Return whether this object has the store."""
        return self._fd >= 0

    def acquire(self) -> None:
        """
        Take the store.

        Raises:
            StoreLockedError: Another daemon has it, or it cannot be told whether one has.
            OSError: The disk failed.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._root / LOCK_NAME, flags, 0o600)
        try:
            if self._flock():
                # A daemon on another machine may see the same files without locks.
                self._clear_marker()
            else:
                log.warning(
                    "%s has no file locks; %s says who uses the store", self._root, self._marker
                )
                self._set_marker()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the store back. Safe to call twice."""
        if self._mark is not None:
            with contextlib.suppress(OSError):
                if self._read_marker() == self._mark:
                    self._marker.unlink()
            self._mark = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _flock(self) -> bool:
        """Take the lock; False where there are none."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_FLOCK_ERRNOS:
                return False
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise StoreLockedError(
                f"Another daemon runs on the store {self._root}; stop it, name another folder "
                "with --store DIR, or, for a check, leave out --offline."
            ) from error
        return True

    def _set_marker(self) -> None:
        self._clear_marker()
        mark = Owner.current().to_bytes()
        if not self._try_create(self._marker, mark):
            raise self._locked()
        self._mark = mark
        sync_directory(self._root)

    def _try_create(self, path: Path, mark: bytes) -> bool:
        """Make a marker or a claim, with its content at once; False when there is one already."""
        temporary = self._marker.with_name(f".{os.getpid()}.{id(self)}.new")
        _write_new(temporary, mark)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINK_ERRNOS:
                raise
        else:
            return True
        finally:
            temporary.unlink(missing_ok=True)
        try:
            # Where names cannot be linked either: empty for a moment, which nobody calls stale.
            _write_new(path, mark)
        except FileExistsError:
            return False
        return True

    def _clear_marker(self) -> None:
        """
        Remove a stale marker.

        Raises:
            StoreLockedError: There is one that may be somebody's.
        """
        seen = self._read_marker()
        if seen is None:
            return
        owner = Owner.parse(seen)
        if owner is None or not owner.is_gone(Owner.current()):
            raise self._locked()
        claims = self._claim(seen)
        try:
            # Whoever had the claim before us may have removed it, and may have one of its own.
            found = self._read_marker()
            if found is None:
                return
            if found != seen:
                raise self._locked()
            log.warning("took over the store %s from a daemon that is gone: %s", self._root, owner)
            self._marker.unlink(missing_ok=True)
        finally:
            for path in claims:
                path.unlink(missing_ok=True)

    def _claim(self, seen: bytes) -> list[Path]:
        """
        Be the only one who may remove the marker with this content; returns the claims to remove.

        A claim is a file named after what it is for, made once. That of a process which is gone is
        itself taken over by a claim. Removing a marker without one can hit the fresh marker of
        who was faster, and let a third one in.

        Raises:
            StoreLockedError: Somebody else is at it.
        """
        mark, claims = Owner.current().to_bytes(), list[Path]()
        while len(claims) < _CLAIMS_MAX:
            number = int.from_bytes(hashlib.sha256(seen).digest()[:8], "big")
            # As temporary files are called: what a crash leaves is removed at the next start.
            path = self._root / f".{number}.0.new"
            if self._try_create(path, mark):
                return [*claims, path]
            seen = _read_start(path) or b""
            owner = Owner.parse(seen)
            if owner is None or not owner.is_gone(Owner.current()):
                break
            claims.append(path)
        raise StoreLockedError(
            f"Another daemon is just taking the store {self._root} over from one that is gone; "
            f"start again in a moment. If none is, delete {self._root}/.*.0.new."
        )

    def _read_marker(self) -> bytes | None:
        return _read_start(self._marker)

    def _locked(self) -> StoreLockedError:
        owner = Owner.parse(self._read_marker() or b"")
        shown = "an unknown process"
        if owner is not None:
            host = "".join(char for char in owner.host[:80] if char.isprintable())
            shown = f"process {owner.pid} of {host or 'an unknown host'}"
        return StoreLockedError(
            f"The store {self._root} is used by {shown}, and its file system has no locks that "
            f"would tell whether that still runs. Stop it; if you are sure that it is gone, "
            f"delete {self._marker} and start again."
        )


def find_start(pid: int) -> str:
    """Return when a process started, in the kernel's own count; empty if it does not run."""
    text = _try_read(Path(f"/proc/{pid}/stat"))
    # The command's name is in brackets, and may hold anything, brackets and spaces too.
    fields = text.rpartition(")")[2].split()
    if len(fields) <= _START_FIELD or fields[0] in _ENDED_STATES:
        return ""
    return fields[_START_FIELD]


def _read_start(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MARKER_BYTES_MAX)
    except FileNotFoundError:
        return None


def _write_new(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o644)
    try:
        write_all(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)


def _try_read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""


def _try_read_link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
