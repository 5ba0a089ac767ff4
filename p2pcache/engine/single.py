"""
Owns joining callers that want the same thing at the same time.

Knows nothing of what they want.
Invariants: work for one key runs once at a time; a caller that gives up does not stop the others.
Source: Go's singleflight, for the name and the behaviour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

T = TypeVar("T")


class SingleFlight:
    """Work under way, by key. Event loop only."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[object]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Run the work, or wait for the same work that somebody else began."""
        task = self._flights.get(key)
        if task is None:
            task = asyncio.ensure_future(self._fly(key, work))
            self._flights[key] = task
            task.add_done_callback(_retrieve)
        return await asyncio.shield(task)  # type: ignore[return-value]

    async def _fly(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        finally:
            self._flights.pop(key, None)


def _retrieve(task: asyncio.Task[object]) -> None:
    """Look at the outcome, so that one that nobody waits for any more is not complained of."""
    if not task.cancelled():
        task.exception()
