"""
Owns the published blobs: finding one that is certainly whole, noticing one that is not.

Knows nothing of fetching.
Invariants: a file is handed out only if it is the one that was proven (same stamp), or was
hashed again just now; what turned out damaged goes back to partial with the chunks still good.
Source: design.md §4 and §7.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.verify import digest_of
from p2pcache.engine.context import Context
from p2pcache.engine.single import SingleFlight, see_through
from p2pcache.errors import BlobCorruptError, ChunkNotYetError
from p2pcache.store.base import BlobFile, FileStamp
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.check import FileCheck
from p2pcache.store.damages import DamagePlace
from p2pcache.store.index import Index
from p2pcache.store.quarantine import Wreck, condemn, keep_good_chunks, withdraw
from p2pcache.transfer.buffers import thread_buffer

log = logging.getLogger(__name__)

# A peer that asks for a file that is being hashed again comes back after this long.
RECHECK_RETRY_S = 2.0
# Hashed in one go for somebody who waits: long enough to be worth a thread's while, short enough
# that a daemon that stops does not wait for it.
STEP_BYTES_MAX = 64 * 1024 * 1024
# Chunk indexes in a line of the log.
CHUNKS_SHOWN_MAX = 8


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Consecutive chunks in an open file, with their digests. The receiver closes `fd`."""

    fd: int
    offset: int
    length: int
    digests: tuple[ChunkDigest, ...]


@dataclass(frozen=True, slots=True)
class ShelfDamage:
    """A file that was set aside: which chunks are lost, and where it belongs."""

    blob: BlobDigest
    chunks: tuple[int, ...]
    places: tuple[DamagePlace, ...]
    is_public: bool


class Shelf:
    """Published blobs. Event loop only; hashing happens in bulk threads."""

    def __init__(self, context: Context) -> None:
        # Told of every file that was set aside, and of every one that is whole and proven.
        self.on_damage: Callable[[ShelfDamage], None] = lambda damage: None
        self.on_put: Callable[[BlobDigest], None] = lambda blob: None
        self._context = context
        self._checks = SingleFlight()
        # Places in the hub tree that a condemned file was taken out of, until it is set aside.
        self._withdrawn: dict[BlobDigest, tuple[DamagePlace, ...]] = {}

    async def find_row(self, blob: BlobDigest) -> BlobRow | None:
        """Return what the index says of a blob."""
        return await self._context.index.call(lambda index: index.blobs.find(blob))

    async def open_proven(self, blob: BlobDigest, *, is_anew: bool = False) -> BlobFile | None:
        """
        Open a blob that is whole; None when it is not here, or not any more.

        A file whose stamp changed, or that was never proven here, is hashed first, and with
        `is_anew` in any case: a disk that rots leaves the stamp as it was.
        """
        row = await self.find_row(blob)
        if row is None:
            # A damaged file may just be set aside: its good chunks are kept first.
            await self._checks.settle(blob)
            return None
        found = self._context.store.find_blob(blob)
        if found is None:
            await self._forget(blob)
            return None
        if row.is_proven and found.stamp == row.stamp and not is_anew:
            return found
        is_right = False
        try:
            is_right = await self._checks.run(blob, lambda: self._check(row))
        finally:
            if not is_right:
                os.close(found.fd)
        return found if is_right else None

    async def open_run(self, blob: BlobDigest, first: int, last: int) -> ChunkRun | None:
        """
        Open a run of a public blob for a peer; None when there is none to give.

        Raises:
            BlobCorruptError: The chunks on disk are not what they were.
            ChunkNotYetError: The file is being hashed again.
        """
        row = await self.find_row(blob)
        if row is None or not row.is_public:
            return None
        found = self._context.store.find_blob(blob)
        if found is None:
            await self._forget(blob)
            return None
        if row.table is None or not row.is_proven:
            os.close(found.fd)
            self._checks.start(blob, lambda: self._check(row))
            raise ChunkNotYetError(
                f"{blob} is being hashed here; ask again.", retry_after_s=RECHECK_RETRY_S
            )
        offset, length = row.table.layout.span_of(first, last)
        digests = tuple(d for d in list(row.table)[first : last + 1] if d is not None)
        run = ChunkRun(found.fd, offset, length, digests)
        if found.stamp != row.stamp:
            try:
                await self._context.in_bulk(_check_run, run, row.table.layout, first, blob)
            except BaseException as error:
                os.close(found.fd)
                if isinstance(error, BlobCorruptError):
                    self._checks.start(blob, lambda: self._check(row))
                raise
        return run

    async def describe(self, blob: BlobDigest) -> SwarmEntry | None:
        """Return what peers may hear of a published blob."""
        described = await self.describe_all([blob])
        return described[0] if described else None

    async def describe_all(self, blobs: list[BlobDigest]) -> list[SwarmEntry]:
        """Return what peers may hear of those blobs that are published, public and proven."""

        def find_layouts(index: Index) -> list[tuple[BlobDigest, Layout]]:
            return index.blobs.find_shareable(blobs)

        entries = []
        for blob, layout in await self._context.index.call(find_layouts):
            count = layout.chunk_count
            entries.append(SwarmEntry(blob, layout.id, Bitfield.full(count), Bitfield(count)))
        return entries

    async def find_table(self, blob: BlobDigest) -> ChunkTable | None:
        """Return the chunk table of a public blob."""
        row = await self.find_row(blob)
        return row.table if row is not None and row.is_public else None

    async def put(
        self, blob: BlobDigest, stamp: FileStamp, table: ChunkTable, *, is_public: bool
    ) -> None:
        """Record a blob that was just published, then drop its have-record."""
        table.standing = Standing.PROVEN
        wall_s = self._context.clock.wall_s()
        row = BlobRow(blob, stamp, table, True, is_public, wall_s)
        await self._context.index.call(lambda index: index.blobs.put(row))
        await self._context.in_bulk(self._context.store.discard, blob)
        self.on_put(blob)

    async def is_shared(self, blob: BlobDigest) -> bool:
        """Return whether anybody may have a blob that is here."""
        row = await self.find_row(blob)
        return row is not None and row.is_public

    async def note_public(self, blob: BlobDigest) -> None:
        """Share a blob that was restricted until now."""
        row = await self.find_row(blob)
        if row is None or row.is_public:
            return
        await self._context.in_bulk(self._context.store.set_public, blob)
        await self._context.index.call(lambda index: index.blobs.set_public(blob))

    async def close(self) -> None:
        """Stop hashing."""
        await self._checks.close()

    async def _forget(self, blob: BlobDigest) -> None:
        await self._context.index.call(lambda index: index.blobs.remove(blob))

    # --- checking ---

    def is_busy(self, blob: BlobDigest) -> bool:
        """Return whether a file is being hashed, or set aside, for somebody who waits."""
        return self._checks.is_under_way(blob)

    async def condemn(self, blob: BlobDigest) -> None:
        """Let nobody have a file that is damaged, here or in the hub tree; it stays in place."""
        places = await self._context.index.call(lambda index: condemn(index, blob))
        store, tree = self._context.store, self._context.tree
        known = {str(place): place for place in self._withdrawn.get(blob, ())}
        for place in await see_through(self._context.in_bulk(withdraw, store, tree, places)):
            if not known.setdefault(str(place), place).is_linked:
                known[str(place)] = place
        self._withdrawn[blob] = tuple(known.values())

    async def set_aside(self, row: BlobRow, found: BlobFile, walk: FileCheck) -> None:
        """Take a damaged file off the shelf; what the walk did not come to is kept as a hint."""
        await self._checks.run(row.blob, lambda: self._set_aside(row, found, walk))

    async def _check(self, row: BlobRow) -> bool:
        """Hash a published file again; returns whether it is right."""
        blob = row.blob
        log.info("hashing %s again: the file changed, or was never proven here", blob)
        found = self._context.store.find_blob(blob)
        if found is None:
            await self._forget(blob)
            return False
        try:
            walk = await see_through(self._context.in_bulk(FileCheck, found, blob, row.table))
            while not walk.is_over:
                await see_through(self._context.in_bulk(take_step, walk))
            if walk.is_right:
                await note_right(self._context, row, found, walk)
                return True
            await self._set_aside(row, found, walk)
            return False
        finally:
            os.close(found.fd)

    async def _set_aside(self, row: BlobRow, found: BlobFile, walk: FileCheck) -> bool:
        """Take a damaged file off the shelf; keep in partial what still matches its table."""
        blob = row.blob
        log.warning("%s is damaged on this disk: chunks %s", blob, show_chunks(walk.find_lost()))
        await self.condemn(blob)
        wreck = Wreck(blob, found, row.table, frozenset(walk.bad), walk.next_chunk, row.is_adopted)
        keep = self._context.in_bulk(keep_good_chunks, self._context.store, wreck)
        await see_through(keep)
        await self._forget(blob)
        # Anybody on this machine reads the faults.
        shown = str(blob) if row.is_public else "A restricted file"
        fault = self._context.make_fault(
            self._context.settings.peer_id,
            self._context.settings.name,
            "damaged here",
            f"{shown} changed on this disk; what is still good was kept, the rest is fetched anew.",
        )
        self._context.blame.faults.append(fault)
        places = self._withdrawn.pop(blob, ())
        self.on_damage(ShelfDamage(blob, tuple(walk.find_lost()), places, row.is_public))
        return False


async def note_right(context: Context, row: BlobRow, found: BlobFile, walk: FileCheck) -> None:
    """Record that all of a file was hashed, and is what it should be."""
    wall_s, table = context.clock.wall_s(), walk.table
    await context.index.call(lambda index: index.checks.note_right(row, found.stamp, table, wall_s))


def take_step(walk: FileCheck, bytes_max: int = STEP_BYTES_MAX) -> int:
    """Go on with a walk, in a bulk thread; returns how many bytes were looked at."""
    return walk.step(thread_buffer(), bytes_max)


def show_chunks(indexes: Sequence[int]) -> str:
    """Return chunk indexes for people: the first few, and how many more."""
    shown = ", ".join(map(str, indexes[:CHUNKS_SHOWN_MAX]))
    more = len(indexes) - CHUNKS_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown or "beyond its end"


def _check_run(run: ChunkRun, layout: Layout, first: int, blob: BlobDigest) -> None:
    for index, digest in enumerate(run.digests, first):
        view = thread_buffer()[: layout.length_of(index)]
        try:
            count = os.preadv(run.fd, [view], layout.offset_of(index))
        except OSError:
            count = -1  # a disk that cannot read it has damaged it
        if count != len(view) or digest_of(view) != digest:
            raise BlobCorruptError(
                f"Chunk {index} of {blob} changed on this disk; ask another peer.", path=str(blob)
            )
