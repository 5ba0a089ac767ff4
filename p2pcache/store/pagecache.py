"""
Owns reading a file without changing what the page cache holds of it.

Knows nothing of blobs.
Invariants: pages that were cached before stay; pages that this brought in go again, unless
somebody mapped them meanwhile; where the system does not say, everything stays.
Source: mincore(2), posix_fadvise(2). preadv2(2) with RWF_NOWAIT does not tell it: it starts the
read itself, and a fast disk is done before it looks.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from itertools import groupby

from p2pcache.store.filelayout import read_into

_MAP_FAILED = ctypes.c_void_p(-1).value


class _Libc:
    """What Python has no functions for."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        is_wide = hasattr(libc, "mmap64")
        offset = ctypes.c_int64 if is_wide else ctypes.c_long
        size, number = ctypes.c_size_t, ctypes.c_int
        self.mmap = libc.mmap64 if is_wide else libc.mmap
        self.mmap.restype = ctypes.c_void_p
        self.mmap.argtypes = [ctypes.c_void_p, size, number, number, number, offset]
        self.munmap = libc.munmap
        self.munmap.argtypes = [ctypes.c_void_p, size]
        self.mincore = libc.mincore
        self.mincore.argtypes = [ctypes.c_void_p, size, ctypes.c_char_p]


@cache
def _load_libc() -> _Libc | None:
    try:
        return _Libc()
    except (OSError, AttributeError):
        return None


def stop_readahead(fd: int) -> None:
    """Bring in what is read from an open file and nothing beside it."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)


def read_gently(fd: int, view: memoryview, offset: int) -> int:
    """
    Fill view from the bytes at offset; return how many there were.

    Raises:
        OSError: The disk failed.
    """
    absent = find_absent(fd, offset, len(view))
    for start, length in absent:
        # All of it at once: without readahead the read below would ask piece by piece.
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_WILLNEED)
    try:
        return read_into(fd, view, offset)
    finally:
        for start, length in absent:
            os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


def find_absent(fd: int, offset: int, length: int) -> list[tuple[int, int]]:
    """
    Return the (offset, length) of whole pages of a range that are not cached.

    Others' files are said to be cached by the system, whether they are or not.
    """
    libc = _load_libc()
    first = offset - offset % mmap.PAGESIZE
    pages = -(-(offset + length - first) // mmap.PAGESIZE)
    if libc is None or pages <= 0:
        return []
    # Never touched, so that the end of a shortened file does no harm.
    start = libc.mmap(None, pages * mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, first)
    if start is None or start == _MAP_FAILED:
        return []
    try:
        states = ctypes.create_string_buffer(pages)
        if libc.mincore(start, pages * mmap.PAGESIZE, states) != 0:
            return []
    finally:
        libc.munmap(start, pages * mmap.PAGESIZE)
    absent, page = [], 0
    for is_cached, run in groupby(states.raw, key=lambda state: state & 1):
        count = sum(1 for _ in run)
        if not is_cached:
            absent.append((first + page * mmap.PAGESIZE, count * mmap.PAGESIZE))
        page += count
    return absent
