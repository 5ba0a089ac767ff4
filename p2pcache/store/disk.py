"""
Owns the steps on files that all parts of the store take: making names durable, reserving room,
writing everything, copying inside the kernel, and what a failed system call means.

Knows nothing of blobs or records.
Invariants: what a disk took in part is written on or reported, never left; a missing ability of a
file system is worked around, a failure of the disk never.
Source: fsync(2), posix_fallocate(3), copy_file_range(2); design.md §4.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.errors import StoreError, StoreFullError

# What a file takes at least, on the file systems that models lie on.
DISK_BLOCK_SIZE_BYTES = 4096
# What copy_file_range(2) says of file systems, or pairs of them, that it cannot copy between.
_NO_COPY_ERRNOS = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
# What chmod(2) says of file systems that cannot keep a mode.
_NO_MODE_ERRNOS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_TOO_MANY_ERRNOS = (errno.EMFILE, errno.ENFILE)
# What open(2) says of a name that is free, leads nowhere, or is a folder. Anything else says
# nothing of the file: it may be there, and whoever goes on without it forgets it.
_NOT_THERE_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def store_error(error: OSError, path: Path | str) -> StoreError:
    """Return the store's error for a failed system call."""
    if error.errno in _FULL_ERRNOS:
        return StoreFullError(
            f"The disk that holds {path} is full; free some space and ask again: "
            "what was fetched is kept."
        )
    if error.errno in _TOO_MANY_ERRNOS:
        return StoreError(
            f"{path} cannot be opened, too many files are open; raise the limit of open files "
            "(ulimit -n) and start the daemon again, or ask for less at once."
        )
    if error.errno == errno.EROFS:
        return StoreError(
            f"The disk that holds {path} became read-only, as disks do that fail; see the "
            "system's log, then mount it for writing and start the daemon again."
        )
    return StoreError(f"The disk failed at {path} ({error.strerror}); see the system's log.")


def is_not_there(error: OSError) -> bool:
    """Return whether a call failed for want of a file that we could read, and for nothing else."""
    return error.errno in _NOT_THERE_ERRNOS


def try_read(path: Path, bytes_max: int = -1) -> bytes | None:
    """
    Return the content of a small file, None when there is none.

    Args:
        path: The file.
        bytes_max: Read no more than so many; all of it without.

    Raises:
        StoreError: It cannot be read now: no more descriptors, say, or the disk failed.
    """
    try:
        with path.open("rb") as file:
            return file.read(bytes_max)
    except OSError as error:
        if is_not_there(error):
            return None
        if error.errno == errno.EIO:
            raise StoreError(
                f"{path} cannot be read ({error.strerror}); see the system's log. If the disk does "
                "not give it back, remove it and start again: what it says is lost then."
            ) from error
        raise store_error(error, path) from error


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, content: bytes) -> None:
    """Write everything: a disk that fills up takes a part first, and fails at the next call."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


@dataclass(frozen=True, slots=True)
class CopyPlace:
    """Bytes in an open file."""

    fd: int
    offset: int


def copy_range(source_fd: int, source_offset: int, fd: int, offset: int, length: int) -> bool:
    """
    Copy bytes between files inside the kernel, or through memory where it cannot.

    Returns:
        False when the source ended early.

    Raises:
        OSError: The disk failed.
    """
    while length > 0:
        try:
            count = os.copy_file_range(source_fd, fd, length, source_offset, offset)
        except OSError as error:
            if error.errno not in _NO_COPY_ERRNOS:
                raise
            count = _copy_through_memory(source_fd, source_offset, fd, offset, length)
        if count == 0:
            return False
        source_offset, offset, length = source_offset + count, offset + count, length - count
    return True


def _copy_through_memory(
    source_fd: int, source_offset: int, fd: int, offset: int, length: int
) -> int:
    piece = os.pread(source_fd, min(length, CHUNK_SIZE_BYTES), source_offset)
    view = memoryview(piece)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
    return len(piece)


def try_set_mode(file: Path | int, mode: int) -> None:
    """
    Set the mode of a path or an open file; one without modes has that of its mount.

    Raises:
        OSError: The disk failed.
    """
    try:
        if isinstance(file, int):
            os.fchmod(file, mode)
        else:
            os.chmod(file, mode)
    except OSError as error:
        if error.errno not in _NO_MODE_ERRNOS:
            raise


def open_writable(path: Path, flags: int) -> int:
    """Open our file; one that a crash left read-only, just before its rename, is ours again."""
    try:
        return os.open(path, flags, 0o600)
    except PermissionError:
        path.chmod(0o600)
        return os.open(path, flags, 0o600)


def reserve(fd: int, size_bytes: int) -> None:
    """Reserve room, so that a full disk shows before the first byte is fetched."""
    if os.fstat(fd).st_size == size_bytes:
        return
    try:
        if size_bytes:
            os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    os.ftruncate(fd, size_bytes)
