"""
Owns who fills a blob when it is not a fetch: two must not write one file.

Knows nothing of what fills it.
Invariants: while a claim is held no fetch of the blob is under way and none begins; a claim ends
with its block, whatever happens in it.
Source: store/partial.py, which has one writer at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from p2pcache.core.digest import BlobDigest
from p2pcache.engine.fetches import Fetches
from p2pcache.errors import DaemonBusyError

# A fetch that has lost the hub and all peers gives up in less.
CLAIM_WAIT_S = 120.0


class Claims:
    """The blobs that are claimed. Event loop only."""

    def __init__(self, fetches: Fetches) -> None:
        self._fetches = fetches
        self._released: dict[BlobDigest, asyncio.Event] = {}
        # Returns when an eviction that may have begun on the blob is over.
        self.settle: Callable[[], Awaitable[None]] = _settle_nothing

    def is_held(self, blob: BlobDigest) -> bool:
        """Return whether somebody holds a blob."""
        return blob in self._released

    async def wait_free(self, blob: BlobDigest) -> None:
        """Return when nobody holds a blob."""
        while blob in self._released:
            await self._released[blob].wait()

    @asynccontextmanager
    async def hold(self, blob: BlobDigest) -> AsyncIterator[None]:
        """
        Keep everybody else off a blob for a while.

        Raises:
            DaemonBusyError: It is being fetched, and that takes long.
        """
        try:
            async with asyncio.timeout(CLAIM_WAIT_S):
                await self._wait_unused(blob)
        except TimeoutError as error:
            raise DaemonBusyError(
                f"{blob} is being downloaded; wait until that is done, or cancel the download."
            ) from error
        released = self._released[blob] = asyncio.Event()
        try:
            await self.settle()
            yield
        finally:
            del self._released[blob]
            released.set()

    async def _wait_unused(self, blob: BlobDigest) -> None:
        while True:
            active = self._fetches.find(blob)
            if active is not None:
                await asyncio.wait({active.task})
            elif blob in self._released:
                await self._released[blob].wait()
            else:
                return


async def _settle_nothing() -> None:
    """Nothing is evicted where nobody made room."""
