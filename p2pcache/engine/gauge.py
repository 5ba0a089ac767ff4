"""
Owns the running figure of what the store takes on its disk.

Knows nothing of who needs it.
Invariants: a figure costs no walk over the store: the index counts whole files, and what the disk
gave beyond that is known from the last walk, at start, at gc, and before every eviction.
Source: stat(2) st_blocks; statvfs(3).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from p2pcache.core.digest import BlobDigest
from p2pcache.engine.context import Context
from p2pcache.store.index import Index
from p2pcache.store.usage import measure_blobs


@dataclass(frozen=True, slots=True)
class Figures:
    """What the store takes, and what it may take."""

    own_bytes: int
    partial_bytes: int
    disk_free: int
    disk_total: int
    quota_bytes: int | None
    floor_bytes: int


class Gauge:
    """The figure. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # What the disk gave for whole files beyond what the index counts; None: not walked yet.
        self._overhead_bytes: int | None = None

    async def read(self) -> Figures:
        """
        Return what the store takes and may take.

        Raises:
            StoreError: The disk failed.
        """
        if self._overhead_bytes is None:
            await self.calibrate()
        context, settings = self._context, self._context.settings
        # The index last: a file that gets its row in between is counted twice, not never.
        partial_bytes = await context.in_bulk(context.store.measure_partials)
        counted = await context.index.call(lambda index: index.inventory.measure_taken())
        usage = shutil.disk_usage(settings.store)
        return Figures(
            counted + (self._overhead_bytes or 0) + partial_bytes,
            partial_bytes,
            usage.free,
            usage.total,
            settings.quota_bytes,
            settings.free_floor_bytes,
        )

    async def calibrate(self) -> None:
        """
        Walk over the whole files.

        Raises:
            StoreError: The disk failed.
        """

        # The index first: a file that is published in between is counted twice, not never.
        def count(index: Index) -> tuple[int, set[BlobDigest]]:
            return index.inventory.measure_taken(), set(index.inventory.list_adopted())

        counted, adopted = await self._context.index.call(count)
        taken = await self._context.in_bulk(measure_blobs, self._context.store)
        own_bytes = sum(size for blob, size in taken.items() if blob not in adopted)
        self.note_walk(own_bytes, counted)

    def note_walk(self, own_bytes: int, counted_bytes: int) -> None:
        """Take over what somebody else's walk over the whole files found."""
        self._overhead_bytes = own_bytes - counted_bytes
