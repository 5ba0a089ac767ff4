"""
Owns the one thread that uses the index.

Knows nothing of what is asked.
Invariants: calls run one after the other, in the order in which they were made.
Source: house style, "one writer per truth".
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from p2pcache.store.index import Index, translate_error

T = TypeVar("T")


class IndexThread:
    """The index, for use from the event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._index: Index | None = None

    async def open(self, path: Path) -> None:
        """
        Open the index in its thread.

        Raises:
            StoreError: See store.index.
        """
        loop = asyncio.get_running_loop()
        self._index = await loop.run_in_executor(self._executor, Index, path)

    async def call(self, work: Callable[[Index], T]) -> T:
        """
        Run some work on the index and return what it returns.

        Raises:
            StoreError: The disk failed or is full; nothing of the work was done.
        """
        index = self._index
        assert index is not None, "open() comes first"
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, index)
        except sqlite3.DatabaseError as error:
            raise translate_error(error, index.path) from error

    async def close(self) -> None:
        """Finish what was asked and close the file. Safe to call twice."""
        if self._index is not None:
            await self.call(Index.close)
            self._index = None
        self._executor.shutdown(wait=True)
