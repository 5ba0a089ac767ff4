"""
Owns the buffers that chunks are received into: one for each thread, and a few that were kept.

Knows nothing of what fills them or why one is kept.
Invariants: a thread has one buffer of the largest chunk's size; at most KEPT_BUFFERS_MAX more are
kept by others; once none is, all but SPARE_BUFFERS_MAX spare ones are freed.
Source: docs/decisions/0014-proof-from-memory.md.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

from p2pcache.core.layout import CHUNK_SIZE_BYTES

# 64 MiB: two runs of the longest length, so that a proof that follows two streams finds in memory
# what arrived out of order.
KEPT_BUFFERS_MAX = 16

# 16 MiB that a daemon holds on to between transfers.
SPARE_BUFFERS_MAX = 4

_local = threading.local()
_lock = threading.Lock()
_kept: set[int] = set()
_spare: list[mmap.mmap] = []


def thread_buffer() -> memoryview:
    """Return this thread's chunk buffer: 4 MiB, allocated once, or again after keep_buffer()."""
    if getattr(_local, "chunk", None) is None:
        with _lock:
            _local.chunk = _spare.pop() if _spare else _make_buffer()
    return memoryview(_local.chunk)


def _make_buffer() -> mmap.mmap:
    """
    Return a buffer whose pages come as they are received into.

    A bytearray is filled with zeros first, and nothing else of the interpreter runs meanwhile.
    """
    buffer = mmap.mmap(-1, CHUNK_SIZE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Two pages in place of a thousand; a kernel without them says so, and needs no telling.
        with contextlib.suppress(OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def keep_buffer(view: memoryview) -> bool:
    """
    Keep the buffer behind a view of thread_buffer(); the thread's next one is another.

    Returns:
        Whether it is kept, until return_buffer(); not when enough are, or it is somebody else's.
    """
    chunk = getattr(_local, "chunk", None)
    if chunk is None or view.obj is not chunk:
        return False
    with _lock:
        if len(_kept) >= KEPT_BUFFERS_MAX:
            return False
        _kept.add(id(chunk))
    _local.chunk = None
    return True


def return_buffer(view: memoryview) -> None:
    """Give back a buffer that was kept."""
    chunk = view.obj
    assert isinstance(chunk, mmap.mmap), "only thread buffers are kept"
    with _lock:
        _kept.discard(id(chunk))
        # Some stay: a fresh buffer costs as much as what is received into it.
        if _kept or len(_spare) < SPARE_BUFFERS_MAX:
            _spare.append(chunk)
        else:
            del _spare[SPARE_BUFFERS_MAX:]
