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
from dataclasses import dataclass

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import FileEntry
from p2pcache.core.verify import BlobProof, digest_of, verify_chunk
from p2pcache.engine.context import Context
from p2pcache.engine.single import SingleFlight
from p2pcache.errors import BlobCorruptError, ChunkMismatchError, ChunkNotYetError
from p2pcache.store.base import BlobFile, FileStamp
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.index import Index
from p2pcache.store.partial import UPSTREAM_SOURCE, FilePartial
from p2pcache.transfer.peer import thread_buffer

log = logging.getLogger(__name__)

# A peer that asks for a file that is being hashed again comes back after this long.
RECHECK_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Consecutive chunks in an open file, with their digests. The receiver closes `fd`."""

    fd: int
    offset: int
    length: int
    digests: tuple[ChunkDigest, ...]


class Shelf:
    """Published blobs. Event loop only; hashing happens in bulk threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._checks = SingleFlight()

    async def find_row(self, blob: BlobDigest) -> BlobRow | None:
        """Return what the index says of a blob."""
        return await self._context.index.call(lambda index: index.blobs.find(blob))

    async def open_proven(self, blob: BlobDigest) -> BlobFile | None:
        """
        Open a blob that is whole; None when it is not here, or not any more.

        A file whose stamp changed, or that was never proven here, is hashed first.
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
        if row.is_proven and found.stamp == row.stamp:
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

    async def _check(self, row: BlobRow) -> bool:
        """Hash a published file again; returns whether it is right."""
        blob = row.blob
        log.info("hashing %s again: the file changed, or was never proven here", blob)
        found = self._context.store.find_blob(blob)
        if found is None:
            await self._forget(blob)
            return False
        try:
            table, is_right = await self._context.in_bulk(_hash_file, found, blob)
            if is_right:
                await self.put(blob, found.stamp, table, is_public=row.is_public)
                return True
            await self._set_aside(row, found, table)
            return False
        finally:
            os.close(found.fd)

    async def _set_aside(self, row: BlobRow, found: BlobFile, table: ChunkTable) -> None:
        """Take a damaged file off the shelf; keep in partial what still matches its table."""
        blob = row.blob
        log.warning("%s is damaged on this disk; it is fetched again", blob)
        fault = self._context.make_fault(
            self._context.settings.peer_id,
            self._context.settings.name,
            "damaged here",
            f"{blob} changed on this disk; what is still good was kept, the rest is fetched again.",
        )
        self._context.blame.faults.append(fault)
        places = await self._context.index.call(lambda index: index.catalogue.list_places(blob))
        await self._forget(blob)
        await self._context.in_bulk(self._withdraw, places)
        await self._context.in_bulk(self._salvage, row, found, table)

    def _withdraw(self, places: list[tuple[SnapshotId, FileEntry]]) -> None:
        for snapshot_id, entry in places:
            self._context.tree.withdraw_file(snapshot_id, entry)

    def _salvage(self, row: BlobRow, found: BlobFile, table: ChunkTable) -> None:
        store, blob = self._context.store, row.blob
        store.discard(blob, partial_only=False)
        known = row.table
        if known is None or known.layout != table.layout:
            return
        partial = store.open_partial(blob, known.layout)
        try:
            self._keep_good_chunks(partial, found, known, table)
            partial.flush()
        finally:
            partial.close()

    @staticmethod
    def _keep_good_chunks(
        partial: FilePartial, found: BlobFile, known: ChunkTable, table: ChunkTable
    ) -> None:
        blob = partial.blob
        for index in range(known.layout.chunk_count):
            expected = known.find(index)
            if expected is None or table.find(index) != expected:
                continue
            view = thread_buffer()[: known.layout.length_of(index)]
            os.preadv(found.fd, [view], known.layout.offset_of(index))
            try:
                chunk = verify_chunk(
                    blob, known.layout, index, view, expected=expected, source_id="disk"
                )
            except ChunkMismatchError:
                continue
            partial.put(chunk, UPSTREAM_SOURCE)


def _hash_file(found: BlobFile, blob: BlobDigest) -> tuple[ChunkTable, bool]:
    """Return the chunk table of a file as it is, and whether the whole is right."""
    layout = Layout(found.stamp.size_bytes)
    table, proof = ChunkTable(blob, layout), BlobProof(blob, layout.size_bytes)
    for index in range(layout.chunk_count):
        view = thread_buffer()[: layout.length_of(index)]
        try:
            count = os.preadv(found.fd, [view], layout.offset_of(index))
        except OSError:
            return table, False  # a disk that cannot read it has damaged it
        if count != len(view):
            return table, False
        table.set(index, digest_of(view))
        proof.update(view)
    return table, proof.is_right()


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
