"""
Owns tiny disks that are full but for a chosen rest.

Knows nothing of operations.
Invariants: the rest is free when the operation begins, to the file system's own block; the room is
given back without touching the store.
Source: borg's disk_full_test; reliability.md §3.2, D9 and D10.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.faults.case import Bay
from tests.faults.disk import MEBIBYTE, Disk

# A site and all that operations add to it, and room for a journal.
DISK_BYTES = 12 * MEBIBYTE
_FILLER_NAME = "filler"
_PIECES_BYTES = (MEBIBYTE, 64 * 1024, 4096, 512)


def make_bay(disk: Disk) -> Bay:
    """Return where cases find a disk that fills up."""
    filler = disk.mount_point / _FILLER_NAME
    filler.unlink(missing_ok=True)
    return Bay(
        disk.mount_point,
        before_fault=disk.sync,
        fill=lambda free_bytes: take_all_but(filler, free_bytes),
        drain=lambda: filler.unlink(missing_ok=True),
    )


def take_all_but(filler: Path, free_bytes: int) -> None:
    """Fill a disk to the last byte, then give some back."""
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    size_bytes = 0
    for piece in _PIECES_BYTES:
        try:
            while True:
                size_bytes += os.pwrite(fd, bytes(piece), size_bytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    os.ftruncate(fd, max(0, size_bytes - free_bytes))
    os.fsync(fd)
    os.close(fd)
