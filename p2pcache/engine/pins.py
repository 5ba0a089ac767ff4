"""
Owns changing the pins: in the file that outlives the index, then in the index.

Knows nothing of eviction.
Invariants: what is answered to whoever pinned is durable in both; the file never lacks a pin that
the index has.
Source: design.md §3 (pin); store/pinfile.py.
"""

from __future__ import annotations

import asyncio

from p2pcache.core.refs import ModelReference, SnapshotId
from p2pcache.engine.context import Context
from p2pcache.errors import DaemonBusyError
from p2pcache.store.catalogue import RefRow
from p2pcache.store.index import Index
from p2pcache.store.pinfile import write_pins

# More than anybody pins by hand; the file of all of them is written with each change.
PINS_MAX = 10_000


class Pins:
    """All pins of this store. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = asyncio.Lock()

    async def list_all(self) -> list[RefRow]:
        """Return every pin, the oldest first."""
        return await self._context.index.call(lambda index: index.roots.list_pins())

    async def put(self, pin: RefRow) -> None:
        """
        Add a pin, or move one to another commit.

        Raises:
            DaemonBusyError: There are too many.
            StoreError: The disk failed or is full.
        """
        async with self._lock:
            others = [row for row in await self.list_all() if not _is_same(row, pin)]
            if len(others) >= PINS_MAX:
                raise DaemonBusyError(f"{PINS_MAX} models are pinned, the most there may be.")
            await self._write([*others, pin])
            await self._context.index.call(lambda index: index.roots.put_pin(pin))

    async def remove(self, reference: ModelReference) -> bool:
        """
        Take the pin of a reference away; returns whether there was one.

        Raises:
            StoreError: The disk failed or is full.
        """
        async with self._lock:
            pins = await self.list_all()
            gone = [p for p in pins if ModelReference(p.repo, p.revision) == reference]
            await self._remove(pins, gone)
            return bool(gone)

    async def remove_all(self, snapshot_id: SnapshotId) -> None:
        """
        Take every pin of a snapshot away, whatever revision it was made for.

        Raises:
            StoreError: The disk failed or is full.
        """
        async with self._lock:
            pins = await self.list_all()
            gone = [p for p in pins if SnapshotId(p.repo, p.commit) == snapshot_id]
            await self._remove(pins, gone)

    async def _remove(self, pins: list[RefRow], gone: list[RefRow]) -> None:
        if not gone:
            return

        def remove(index: Index) -> None:
            for pin in gone:
                index.roots.remove_pin(pin.repo, pin.revision)

        # The index first, here: the file may name more than it, never less.
        await self._context.index.call(remove)
        await self._write([pin for pin in pins if pin not in gone])

    async def _write(self, pins: list[RefRow]) -> None:
        await self._context.in_bulk(write_pins, self._context.home.root, pins)


def _is_same(one: RefRow, other: RefRow) -> bool:
    return (one.repo, one.revision) == (other.repo, other.revision)
