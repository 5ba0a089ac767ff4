"""
Owns joining callers that want the same answer, none of whom may get one from before he asked.

Knows nothing of what they ask.
Invariants: for one key one question is under way and one waits; whoever comes meanwhile joins the
one that waits, so what he hears was asked after he came.
Source: group commit in databases, for the idea.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")


class FreshFlight:
    """Questions under way, by key. Event loop only."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._waiting: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask, together with whoever else has not begun to; what the question raises is raised."""
        running = self._running.get(key)
        if running is None or running.done():
            task = self._running[key] = asyncio.create_task(self._fly(key, ask))
            task.add_done_callback(_retrieve)
        else:
            waiting = self._waiting.get(key)
            if waiting is None or waiting.done():
                waiting = asyncio.create_task(self._follow(key, running, ask))
                waiting.add_done_callback(_retrieve)
                self._waiting[key] = waiting
            task = waiting
        return cast("T", await asyncio.shield(task))

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        tasks = [*self._running.values(), *self._waiting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(
        self, key: Hashable, running: asyncio.Task[Any], ask: Callable[[], Awaitable[T]]
    ) -> T:
        me = asyncio.current_task()
        assert me is not None, "a task runs this"
        try:
            await asyncio.wait({running})
        finally:
            self._waiting.pop(key, None)
        self._running[key] = me
        return await self._fly(key, ask)

    async def _fly(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            return await ask()
        finally:
            if self._running.get(key) is asyncio.current_task():
                del self._running[key]


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the outcome, so that one that nobody waits for any more is not complained of."""
    if not task.cancelled():
        task.exception()
