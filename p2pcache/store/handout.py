"""
Owns putting proven files into a folder outside of the store: sharing their bytes where the file
system can, copying them where it cannot.

Knows nothing of jobs.
Invariants: nothing is written outside of the allowed roots, whatever links lie in the way; a file
that we did not put there is never replaced; a file gets its name when it is whole.
Source: openat(2) with O_NOFOLLOW; ioctl_ficlone(2), link(2), copy_file_range(2);
docs/decisions/0021-downloads.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import FileEntry
from p2pcache.errors import ForbiddenError, InputError, StoreError, StoreFullError
from p2pcache.store.adopt import FICLONE
from p2pcache.store.disk import copy_range, store_error, write_all

# What lies in the folder of which file is ours, so that a later commit may replace it.
RECORD_NAME = ".p2pcache.json"
_RECORD_BYTES_MAX = 64 * 1024 * 1024
_TEMPORARY_SUFFIX = ".p2pcache-part"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Copied in pieces, so that a job that is cancelled ends soon.
_PIECE_BYTES = 64 * 1024 * 1024
_COMPARE_BYTES = 1024 * 1024
_LINK_IN_WAY_ERRNOS = (errno.ELOOP, errno.ENOTDIR)
_PUBLIC_BITS = stat.S_IROTH | stat.S_IRGRP


@dataclass(frozen=True, slots=True)
class HandoutPlace:
    """A folder below an allowed root: the root as the operator named it, and the way down."""

    root: Path
    steps: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Return the folder's name."""
        return self.root.joinpath(*self.steps)


def find_place(roots: Sequence[Path], text: str) -> HandoutPlace:
    """
    Return where a folder lies below the allowed roots, going by its name.

    Raises:
        InputError: It is no absolute path, or leads up.
        ForbiddenError: It is below none of them.
    """
    if not text.startswith("/") or not text.isprintable() or ".." in text.split("/"):
        raise InputError(
            f"{text[:200]!r} is not a folder's absolute path; write it whole, without '..'."
        )
    steps = tuple(step for step in text.split("/") if step not in ("", "."))
    for root in sorted(roots, key=lambda root: len(root.parts), reverse=True):
        below = root.parts[1:]
        if steps[: len(below)] == below:
            return HandoutPlace(root, steps[len(below) :])
    named = ", ".join(map(str, roots)) or "none"
    raise ForbiddenError(
        f"{text[:200]!r} is outside of the folders that files may be put into ({named}); start "
        "the daemon with --allow-path DIR, or leave the path out and use the one that it prints."
    )


@dataclass(slots=True)
class Handout:
    """One snapshot on its way into one folder: open(), place() each file, finish(). One thread."""

    place_: HandoutPlace
    store: Path
    snapshot_id: SnapshotId
    is_stopped: Callable[[], bool] = lambda: False
    placings: Counter[str] = field(default_factory=Counter)
    _fd: int = -1
    _ours: dict[str, list[int | str]] = field(default_factory=dict)
    _placed: dict[str, list[int | str]] = field(default_factory=dict)

    def open(self) -> None:
        """
        Make the folder, and read what an earlier handout left there.

        Raises:
            ForbiddenError: A link lies in the way, or it is the store's own folder.
            StoreError: The disk failed, or is full, or the folder is not ours to write to.
        """
        with self._translating():
            # The root itself may be a link: the operator named it.
            self._fd = os.open(self.place_.root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
            for step in self.place_.steps:
                below = self._enter(self._fd, step)
                os.close(self._fd)
                self._fd = below
            folder = Path(os.readlink(f"/proc/self/fd/{self._fd}"))
            if folder.is_relative_to(self.store.resolve()):
                self.close()
                raise ForbiddenError(
                    f"{self.place_.path} lies in the daemon's store; name a folder outside of it."
                )
            self._ours = self._read_record()

    def place(self, entry: FileEntry, blob_path: Path) -> None:
        """
        Put one file into the folder.

        Raises:
            InputError: Another file of that name is there, and is not ours.
            ForbiddenError: A link lies in the way.
            StoreError: The disk failed or is full.
        """
        *steps, name = entry.path.split("/")
        with self._translating(), contextlib.ExitStack() as stack:
            fd = self._fd
            for step in steps:
                fd = self._enter(fd, step)
                stack.callback(os.close, fd)
            how = self._find_present(fd, name, entry, blob_path)
            if how is None:
                how = self._bring(fd, name, blob_path)
            self.placings[how] += 1
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            self._placed[entry.path] = [str(entry.digest), status.st_size, status.st_mtime_ns]

    def finish(self) -> None:
        """
        Take out what an older commit left, and write down what is ours.

        Raises:
            StoreError: The disk failed or is full.
        """
        with self._translating():
            for path in sorted(self._ours.keys() - self._placed.keys()):
                self._try_remove(path)
            content = {
                "format_version": 1,
                "model": str(self.snapshot_id.repo),
                "commit": self.snapshot_id.commit,
                "files": self._placed,
            }
            temporary = RECORD_NAME + _TEMPORARY_SUFFIX
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._fd)
            fd = os.open(temporary, _NEW_FLAGS, 0o644, dir_fd=self._fd)
            try:
                write_all(fd, json.dumps(content, indent=1).encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, RECORD_NAME, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the folder. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _enter(self, fd: int, step: str) -> int:
        """Open a folder in a folder, making it if it is missing; never through a link."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(step, 0o755, dir_fd=fd)
        try:
            return os.open(step, _FOLDER_FLAGS, dir_fd=fd)
        except OSError as error:
            if error.errno in _LINK_IN_WAY_ERRNOS:
                raise ForbiddenError(
                    f"{step!r} below {self.place_.path} is a link or a file, and might lead "
                    "elsewhere; remove it, or name another folder."
                ) from error
            raise

    def _find_present(self, fd: int, name: str, entry: FileEntry, blob_path: Path) -> str | None:
        """Return "present" if the very file is there, None if its name is free or ours."""
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        blob = blob_path.stat()
        if (status.st_dev, status.st_ino) == (blob.st_dev, blob.st_ino):
            return "present"
        known = self._ours.get(entry.path)
        is_ours = known is not None and known[1:] == [status.st_size, status.st_mtime_ns]
        if is_ours and known is not None and known[0] == str(entry.digest):
            return "present"
        if is_ours:
            return None
        if stat.S_ISREG(status.st_mode) and _is_same(fd, name, blob_path):
            return "present"
        raise InputError(
            f"{self.place_.path / entry.path} is another file, which p2pcache did not put there; "
            "move it away, or name another folder."
        )

    def _bring(self, fd: int, name: str, blob_path: Path) -> str:
        """Make the file under a temporary name, as cheaply as the file system can; rename it."""
        temporary = f".{name[:200]}{_TEMPORARY_SUFFIX}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=fd)
        try:
            how = self._make(fd, temporary, blob_path)
            os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=fd)
            raise
        os.fsync(fd)
        return how

    def _make(self, fd: int, temporary: str, blob_path: Path) -> str:
        source = os.open(blob_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(source)
            mode = 0o644 if status.st_mode & _PUBLIC_BITS == _PUBLIC_BITS else 0o600
            target = os.open(temporary, _NEW_FLAGS, mode, dir_fd=fd)
            try:
                os.fchmod(target, mode)
                if _try_reflink(source, target):
                    os.fsync(target)
                    return "reflinked"
                os.unlink(temporary, dir_fd=fd)
                if _try_link(blob_path, temporary, fd):
                    return "linked"
                self._check_room(fd, status.st_size)
            finally:
                os.close(target)
            self._copy(source, status.st_size, temporary, fd, mode)
            return "copied"
        finally:
            os.close(source)

    def _check_room(self, fd: int, size_bytes: int) -> None:
        disk = os.fstatvfs(fd)
        free_bytes = disk.f_bavail * disk.f_frsize
        if size_bytes > free_bytes:
            raise StoreFullError(
                f"{self.place_.path} is on a disk of its own, so that files are copied to it, and "
                f"it has {free_bytes:,} bytes free, less than the next file's {size_bytes:,}; "
                "free some space, or leave the path out."
            )

    def _copy(self, source: int, size_bytes: int, temporary: str, fd: int, mode: int) -> None:
        target = os.open(temporary, _NEW_FLAGS, mode, dir_fd=fd)
        try:
            for offset in range(0, size_bytes, _PIECE_BYTES):
                if self.is_stopped():
                    raise StoreError("The download was stopped while its files were copied.")
                length = min(_PIECE_BYTES, size_bytes - offset)
                if not copy_range(source, offset, target, offset, length):
                    raise StoreError(f"A file ended while it was copied to {self.place_.path}.")
            os.fsync(target)
        finally:
            os.close(target)

    def _try_remove(self, path: str) -> None:
        """Remove a file of an older commit, if it is still as we made it."""
        *steps, name = path.split("/")
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            fd = self._fd
            for step in steps:
                fd = os.open(step, _FOLDER_FLAGS, dir_fd=fd)
                stack.callback(os.close, fd)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if self._ours[path][1:] == [status.st_size, status.st_mtime_ns]:
                os.unlink(name, dir_fd=fd)

    def _read_record(self) -> dict[str, list[int | str]]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            fd = os.open(RECORD_NAME, _READ_FLAGS, dir_fd=self._fd)
            with os.fdopen(fd, "rb") as file:
                files = json.loads(file.read(_RECORD_BYTES_MAX))["files"]
            if isinstance(files, dict):
                return {str(p): r for p, r in files.items() if isinstance(r, list) and len(r) == 3}
        return {}

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
                raise StoreError(
                    f"{self.place_.path} cannot be written to ({error.strerror}); let the "
                    "daemon's user write there, or name another folder."
                ) from error
            raise store_error(error, self.place_.path) from error


def _is_same(fd: int, name: str, blob_path: Path) -> bool:
    """Return whether a file has the bytes of a blob."""
    other = os.open(name, _READ_FLAGS, dir_fd=fd)
    with os.fdopen(other, "rb") as one, blob_path.open("rb") as two:
        if os.fstat(one.fileno()).st_size != os.fstat(two.fileno()).st_size:
            return False
        while True:
            left, right = one.read(_COMPARE_BYTES), two.read(_COMPARE_BYTES)
            if left != right:
                return False
            if not left:
                return True


def _try_reflink(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False
    return True


def _try_link(blob_path: Path, name: str, fd: int) -> bool:
    if blob_path.is_symlink():
        return False  # it is somebody else's file: that may change
    try:
        os.link(blob_path, name, dst_dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True
