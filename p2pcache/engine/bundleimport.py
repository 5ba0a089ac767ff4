"""
Owns the story of an import: from a stream of bytes to a snapshot that is resident.

Knows nothing of HTTP; read run() from top to bottom.
Invariants: nothing is stored before the manifest is the one that was asked for; a file has a name
only after its own proof, the snapshot only after the last byte; what was written stays for the
next import.
Source: docs/reference/bundle-format.md ("Reading"); design.md §7 (a list that the hub did not
confirm).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.cache import Cache
from p2pcache.engine.holds import Room
from p2pcache.engine.intake import Intake
from p2pcache.engine.librarian import Resolved
from p2pcache.engine.single import see_through
from p2pcache.errors import BundleCorruptError, InputError, StoreError, StoreFullError
from p2pcache.store.bundle import (
    HEAD_SIZE_BYTES,
    MANIFEST_NAME,
    BundledBlob,
    BundleManifest,
    Literal,
    is_begun,
    manifest_span,
    order_blobs,
    read_head,
    read_manifest,
)
from p2pcache.store.catalogue import RefRow, SnapshotRow
from p2pcache.store.index import Index

log = logging.getLogger(__name__)

# A pipe may wait for a disk or a link at its other end; one that died must not hold a blob.
SILENCE_S_MAX = 300.0
# What a power cut may cost: what was written is made durable this often.
FLUSH_INTERVAL_S = 1.0

ReadSome = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class ImportOrder:
    """What a caller wants: which bundle, None for any; public or not, None for its own word."""

    bundle_id: str | None = None
    is_public: bool | None = None


@dataclass(frozen=True, slots=True)
class ImportedBundle:
    """What came of it. `written_bytes` are those that were not here before."""

    bundle_id: str
    manifest: BundleManifest
    is_public: bool
    written_bytes: int

    @property
    def snapshot_id(self) -> SnapshotId:
        """Return what was imported."""
        return self.manifest.snapshot.id


class Frames:
    """A stream's bytes, in the lengths that the format demands. One reader."""

    def __init__(self, read_some: ReadSome) -> None:
        self._read_some = read_some
        self._rest = memoryview(b"")

    async def fill(self, view: memoryview, what: str) -> None:
        """
        Fill view with the next bytes.

        Raises:
            BundleCorruptError: The stream ends before.
            InputError: Nothing came for long.
        """
        while view:
            await self._refill()
            if not self._rest:
                raise _make_cut_off(what)
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            view, self._rest = view[count:], self._rest[count:]

    async def read_head(self) -> bytes:
        """
        Return the first bytes of all.

        Raises:
            BundleCorruptError: It is a bundle that was cut off. InputError: As fill().
        """
        head = b""
        while len(head) < HEAD_SIZE_BYTES:
            await self._refill()
            if not self._rest:
                if is_begun(head):
                    raise _make_cut_off(f"its head, before {MANIFEST_NAME}")
                break  # something else, and no longer than that
            count = min(HEAD_SIZE_BYTES - len(head), len(self._rest))
            head += bytes(self._rest[:count])
            self._rest = self._rest[count:]
        return head

    async def read(self, length: int, what: str) -> bytes:
        """Return the next bytes; memory is taken as they arrive. Raises as fill()."""
        content = bytearray()
        while len(content) < length:
            piece = bytearray(min(length - len(content), CHUNK_SIZE_BYTES))
            await self.fill(memoryview(piece), what)
            content += piece
        return bytes(content)

    async def expect(self, literal: Literal) -> None:
        """
        Insist on bytes that are known.

        Raises:
            BundleCorruptError: Others come, or none. InputError: As fill().
        """
        found = await self.read(len(literal.content), literal.what)
        if found != literal.content:
            raise BundleCorruptError(
                f"The bundle was changed in {literal.what}: it is not what the manifest demands. "
                "Ask for the bundle again."
            )

    async def expect_end(self) -> None:
        """
        Insist that nothing more comes.

        Raises:
            BundleCorruptError: Something does. InputError: As fill().
        """
        await self._refill()
        if self._rest:
            raise BundleCorruptError(
                "The bundle was changed: there is more after the end of the archive. Ask for the "
                "bundle again."
            )

    async def _refill(self) -> None:
        if self._rest:
            return
        try:
            async with asyncio.timeout(SILENCE_S_MAX):
                self._rest = memoryview(await self._read_some())
        except TimeoutError as error:
            raise InputError(
                f"No byte of the bundle came for {SILENCE_S_MAX:g} s; what was written is kept: "
                "import it again to go on."
            ) from error


def _make_cut_off(what: str) -> BundleCorruptError:
    return BundleCorruptError(
        f"The bundle ends in {what}; it was cut off. Copy it again, then import it again: what "
        "was written is kept."
    )


class BundleImport:
    """One import: run() once. Event loop only."""

    def __init__(self, cache: Cache, order: ImportOrder, read_some: ReadSome) -> None:
        self._cache = cache
        self._context = cache.context
        self._order = order
        self._frames = Frames(read_some)
        # Two that are filled and written in turn, and one for what the disk has.
        self._buffers = [memoryview(bytearray(CHUNK_SIZE_BYTES)) for _ in range(3)]
        self._written_bytes = 0

    async def run(self) -> ImportedBundle:
        """
        Take everything in, prove it, and give it its names.

        Raises:
            InputError: Another bundle than the one that was asked for, or of a later release.
            BundleCorruptError: It is not what it says; names the file and the chunk.
            DaemonBusyError: One of its files is being downloaded.
            StoreError: No room, or the disk failed.
        """
        bundle_id, manifest = await self._read_manifest()
        snapshot = manifest.snapshot
        wanted = self._order.is_public
        is_public = manifest.is_public if wanted is None else wanted
        with await self._cache.space.rooms.make(snapshot.id, order_blobs(snapshot)) as room:
            is_new = await self._note_list(snapshot)
            try:
                for part in manifest.iter_parts():
                    if isinstance(part, Literal):
                        await self._frames.expect(part)
                    else:
                        await self._take_blob(part, bundle_id, room)
                await self._frames.expect_end()
            except BundleCorruptError:
                if is_new:
                    await self._forget_list(snapshot)
                raise
            await self._publish(manifest, is_public=is_public)
        return ImportedBundle(bundle_id, manifest, is_public, self._written_bytes)

    async def _read_manifest(self) -> tuple[str, BundleManifest]:
        frames = self._frames
        bundle_id, size_bytes = read_head(await frames.read_head())
        if self._order.bundle_id not in (None, bundle_id):
            raise BundleCorruptError(
                f"This is bundle {bundle_id}, not {self._order.bundle_id}; nothing was taken from "
                "it. Find the one that you were told of."
            )
        span = await frames.read(manifest_span(size_bytes), f"its manifest, {MANIFEST_NAME}")
        manifest = await self._context.in_bulk(read_manifest, span, size_bytes, bundle_id)
        return bundle_id, manifest

    async def _forget_list(self, snapshot: Snapshot) -> None:
        """A bundle that is not what it says must not stand in the true one's way."""

        def forget(index: Index) -> None:
            known = index.catalogue.find_snapshot(snapshot.id)
            if known is not None and not known.is_confirmed:
                index.catalogue.remove_snapshot(snapshot.id)

        await self._context.index.call(forget)

    async def _note_list(self, snapshot: Snapshot) -> bool:
        """
        Record the list of files, unless it is known; a commit has one.

        Returns:
            Whether it was not known before.

        Raises:
            BundleCorruptError: Another list of that commit is known.
        """
        wall_s = self._context.clock.wall_s()

        def put(index: Index) -> SnapshotRow | None:
            known = index.catalogue.find_snapshot(snapshot.id)
            if known is None:
                index.catalogue.put_snapshot(
                    snapshot, is_confirmed=False, about=None, wall_s=wall_s
                )
            return known

        known = await self._context.index.call(put)
        if known is not None and known.snapshot.files != snapshot.files:
            whose = "the hub gave" if known.is_confirmed else "is known here, though not proven"
            raise BundleCorruptError(
                f"The bundle's manifest, {MANIFEST_NAME}, lists other files for {snapshot.id} "
                f"than the list that {whose}; nothing was taken from it. Compare the bundle's id "
                "with its maker."
            )
        return known is None

    # --- blobs ---

    async def _take_blob(self, bundled: BundledBlob, bundle_id: str, room: Room) -> None:
        async with self._cache.claims.hold(bundled.table.blob):
            is_here = await self._is_here(bundled)
            intake = Intake(self._context.store, bundled, bundle_id, is_here=is_here)
            try:
                await self._open(intake, room)
                await self._fill(intake, bundled)
                await see_through(self._finish(intake, bundled.table))
            finally:
                self._written_bytes += intake.written_bytes
                await see_through(self._context.in_bulk(_close_quietly, intake))

    async def _open(self, intake: Intake, room: Room) -> None:
        """Reserve the blob's bytes on the disk; if its room is gone, make it once more."""
        try:
            await see_through(self._context.in_bulk(intake.open))
        except StoreFullError:
            await self._cache.space.rooms.renew(room)
            await see_through(self._context.in_bulk(intake.open))

    async def _is_here(self, bundled: BundledBlob) -> bool:
        found = await self._cache.shelf.open_proven(bundled.table.blob)
        if found is None:
            return False
        os.close(found.fd)
        return True

    async def _fill(self, intake: Intake, bundled: BundledBlob) -> None:
        """Read each chunk while the one before it is checked and written."""
        layout = bundled.table.layout
        writing: asyncio.Task[None] | None = None
        flushing = asyncio.create_task(self._flush_regularly(intake))
        try:
            for index in range(layout.chunk_count):
                length = layout.length_of(index)
                content = self._buffers[index % 2][:length]
                await self._frames.fill(content, f"chunk {index} of {bundled.path}")
                if writing is not None:
                    await see_through(writing)
                read_back = self._buffers[2][:length]
                writing = asyncio.create_task(
                    self._context.in_bulk(intake.put, index, content, read_back)
                )
            if writing is not None:
                await see_through(writing)
        finally:
            flushing.cancel()
            waiting = [flushing] if writing is None else [flushing, writing]
            await see_through(asyncio.gather(*waiting, return_exceptions=True))

    async def _finish(self, intake: Intake, table: ChunkTable) -> None:
        stamp = await self._context.in_bulk(intake.finish)
        if stamp is not None:
            await self._cache.shelf.put(intake.blob, stamp, table, is_public=False)

    async def _flush_regularly(self, intake: Intake) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            await see_through(self._context.in_bulk(_flush_quietly, intake))

    # --- names ---

    async def _publish(self, manifest: BundleManifest, *, is_public: bool) -> None:
        """Everything is here: let others have it if they may, link it, move the branches."""
        snapshot = manifest.snapshot
        if is_public:
            for table in manifest.tables:
                await self._cache.shelf.note_public(table.blob)
            await self._cache.access.note_public(snapshot.id)

        def put_refs(index: Index) -> SnapshotRow | None:
            for revision in manifest.revisions:
                # Not confirmed by the hub: asked again as soon as it answers.
                row = RefRow(snapshot.id.repo, revision, snapshot.id.commit, 0.0)
                index.catalogue.put_ref(row)
            return index.catalogue.find_snapshot(snapshot.id)

        row = await self._context.index.call(put_refs)
        if row is None:
            raise StoreError(f"{snapshot.id} was removed while it was imported; import it again.")
        for revision in manifest.revisions or (snapshot.id.commit,):
            resolved = Resolved(row, revision, is_stale=True)
            await self._cache.publish_to_tree(resolved, list(snapshot.files))
        self._cache.space.note_used(snapshot.id)


def _close_quietly(intake: Intake) -> None:
    _flush_quietly(intake)
    intake.close()


def _flush_quietly(intake: Intake) -> None:
    """Flush; a disk that fails shows at the next write, where somebody can be told."""
    try:
        intake.flush()
    except StoreError as error:
        log.warning("flush of %s failed: %s", intake.blob, error)
