"""
Owns the pages that a failed sync did not write, and what the disk shows of them later.

Knows nothing of why a sync failed.
Invariants: a write after the failed sync replaces what was lost at its place; nothing is lost
before lose() is called.
Source: Rebello et al. (ATC 2020): after a failed fsync the page cache says clean and still shows
the new bytes; after a restart the old ones are back.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Span = tuple[int, int]


@dataclass(slots=True)
class _File:
    dirty: list[Span] = field(default_factory=list)
    lost: list[Span] = field(default_factory=list)


def _subtract(span: Span, start: int, end: int) -> list[Span]:
    """Return what is left of a span without start..end."""
    pieces = [(span[0], min(span[1], start)), (max(span[0], end), span[1])]
    return [piece for piece in pieces if piece[0] < piece[1]]


class Pages:
    """What was written and not synced, by inode. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[tuple[int, int], _File] = {}

    def note_written(self, fd: int, start: int, length: int) -> None:
        """Some bytes are in the page cache alone."""
        with self._lock:
            file = self._find(fd)
            end = start + length
            file.dirty.append((start, end))
            file.lost = [rest for span in file.lost for rest in _subtract(span, start, end)]

    def note_synced(self, fd: int) -> None:
        """A sync worked: what is dirty is on the disk."""
        with self._lock:
            self._find(fd).dirty.clear()

    def note_failed(self, fd: int) -> None:
        """A sync failed: what was dirty will never be on the disk."""
        with self._lock:
            file = self._find(fd)
            file.lost += file.dirty
            file.dirty = []

    def lose(self, roots: list[str], write: Callable[[int, bytes, int], int]) -> int:
        """
        Overwrite with zeros what failed syncs lost, in the files that are still there.

        Args:
            roots: Folders to look in.
            write: The real pwrite.

        Returns:
            How many bytes.
        """
        lost_bytes = 0
        for root in roots:
            for folder, _, names in os.walk(root):
                for name in names:
                    lost_bytes += self._lose_in(os.path.join(folder, name), write)
        return lost_bytes

    def _lose_in(self, path: str, write: Callable[[int, bytes, int], int]) -> int:
        status = os.lstat(path)
        file = self._files.get((status.st_dev, status.st_ino))
        if file is None or not file.lost or not stat.S_ISREG(status.st_mode):
            return 0
        os.chmod(path, 0o600)
        fd = os.open(path, os.O_WRONLY)
        count = sum(write(fd, bytes(end - start), start) for start, end in file.lost)
        os.close(fd)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.chmod(path, stat.S_IMODE(status.st_mode))
        return count

    def _find(self, fd: int) -> _File:
        status = os.fstat(fd)
        return self._files.setdefault((status.st_dev, status.st_ino), _File())
