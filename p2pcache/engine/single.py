"""
Owns joining callers that want the same thing at the same time.

Knows nothing of what they want.
Invariants: work for one key runs once at a time; a caller that gives up does not stop the others.
Source: Go's singleflight, for the name and the behaviour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")


class SingleFlight:
    """Work under way, by key. Event loop only."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Run the work, or wait for the same work that somebody else began."""
        return cast("T", await asyncio.shield(self.start(key, work)))

    def start(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> asyncio.Task[Any]:
        """Begin the work unless it is under way; do not wait."""
        task = self._flights.get(key)
        if task is None or task.done():  # done: cancelled before its first step
            task = asyncio.create_task(self._fly(key, work))
            self._flights[key] = task
            task.add_done_callback(_retrieve)
        return task

    def is_under_way(self, key: Hashable) -> bool:
        """Return whether work for a key has begun and not ended."""
        task = self._flights.get(key)
        return task is not None and not task.done()

    async def settle(self, key: Hashable) -> None:
        """Wait until no work is under way for a key, whatever comes of it."""
        task = self._flights.get(key)
        if task is not None:
            await asyncio.wait({task})

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        tasks = list(self._flights.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        finally:
            self._flights.pop(key, None)


async def see_through(work: Awaitable[T]) -> T:
    """Wait for some work to its end even when cancelled meanwhile; the cancellation comes after."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        _retrieve(task)
        raise


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that one that nobody waits for any more is not complained of."""
    if not task.cancelled():
        task.exception()
