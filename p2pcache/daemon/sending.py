"""
Owns sending ranges of open files as response bodies.

Knows nothing of what the bytes are.
Invariants: the event loop never waits for a disk: pages are brought in by a thread first; a
client that stops reading is let go.
Source: docs/decisions/0002-bulk-bytes-in-threads.md; sendfile(2).
"""

from __future__ import annotations

import asyncio
import io
import os

from aiohttp import web

from p2pcache.errors import BlobCorruptError

# Handed to the kernel in one go: long enough to cost nothing, short enough to time out fairly.
SLICE_BYTES = 8 * 1024 * 1024
# A client that takes less than a slice in this time has stopped reading.
SEND_STALL_S = 120.0
_TOUCH_BYTES = 512 * 1024
# Below this a copy is cheaper than two trips to a thread.
SMALL_BYTES = 64 * 1024


async def send_file_range(
    request: web.Request, response: web.StreamResponse, fd: int, offset: int, length: int
) -> None:
    """
    Send bytes of an open file as the next part of a prepared response.

    Raises:
        BlobCorruptError: The file is shorter than it was; break the body off.
        ConnectionError: The client is gone.
        TimeoutError: The client stopped reading.
    """
    if length <= SMALL_BYTES:
        content = await asyncio.to_thread(os.pread, fd, length, offset)
        await response.write(content)
        _check_whole(len(content), length)
        return
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    loop = asyncio.get_running_loop()
    with io.FileIO(os.dup(fd), "rb") as file:
        while length > 0:
            count = min(length, SLICE_BYTES)
            await asyncio.to_thread(_bring_in, fd, offset, count)
            async with asyncio.timeout(SEND_STALL_S):
                sent = await loop.sendfile(transport, file, offset, count)
            _check_whole(sent, count)
            offset, length = offset + count, length - count


def _check_whole(sent_bytes: int, wanted_bytes: int) -> None:
    # A body that is too short and a connection that stays open make the next answer its end.
    if sent_bytes != wanted_bytes:
        raise BlobCorruptError("A file became shorter while it was sent; ask again.", path="")


def _bring_in(fd: int, offset: int, count: int) -> None:
    """Have the kernel read a range, and wait until it is in memory."""
    os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)
    for position in range(offset, offset + count, _TOUCH_BYTES):
        os.pread(fd, 1, position)
    os.pread(fd, 1, offset + count - 1)
