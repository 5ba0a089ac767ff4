"""
Owns carrying a whole snapshot out of the store and into it, as one stream.

Knows nothing of HTTP or of files outside the store; bundleimport.py has the story of an import.
Invariants: no byte leaves that is not what its chunk table says; what is exported is held, and is
read from descriptors that were opened before the first byte, so that nothing can break it off.
Source: docs/reference/bundle-format.md; docs/decisions/0012-bundles.md.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import ModelReference
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.verify import digest_of
from p2pcache.engine.bundleimport import BundleImport, ImportedBundle, ImportOrder
from p2pcache.engine.cache import Cache, check_size
from p2pcache.engine.single import see_through
from p2pcache.errors import BlobCorruptError, DaemonBusyError, NotFoundError
from p2pcache.store.bundle import (
    BundledBlob,
    BundleManifest,
    Literal,
    bundle_id_of,
    head_to_bytes,
    order_blobs,
)

# Of each kind: whoever may only read must not keep the admin from importing. Each holds up to
# three chunks in memory, and a thread half of the time.
EXPORTS_AT_ONCE_MAX = 4
IMPORTS_AT_ONCE_MAX = 4
# Descriptors of one export; a process has a few thousand. Of a snapshot with more files the
# smallest, which come first in the archive, are opened when it is their turn.
OPEN_FILES_MAX = 1024


class BundleExport:
    """A snapshot on its way out: iter_bytes() once."""

    def __init__(
        self, cache: Cache, manifest: BundleManifest, files: dict[BlobDigest, int]
    ) -> None:
        """
        Args:
            cache: For a bulk thread, and to tell of damage.
            manifest: What is exported.
            files: Descriptors of its blobs; more are added.
        """
        raw = manifest.to_bytes()
        self.manifest = manifest
        self.bundle_id = bundle_id_of(raw)
        self._head = head_to_bytes(raw)
        self.size_bytes = len(self._head) + manifest.measure()
        self._cache = cache
        self._files = files

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """
        Iterate over the archive.

        Raises:
            BlobCorruptError: A file is not what it was when it was proven.
            NotFoundError: A small file of very many was removed meanwhile.
        """
        yield self._head
        rest = b""
        for part in self.manifest.iter_parts():
            if isinstance(part, Literal):
                rest += part.content
                continue
            fd = self._open(part)
            for index in range(part.table.layout.chunk_count):
                content = await self._read(fd, part, index)
                yield rest + content if rest else content
                rest = b""
        yield rest

    def _open(self, bundled: BundledBlob) -> int:
        blob = bundled.table.blob
        if blob not in self._files:
            found = self._cache.context.store.find_blob(blob)
            if found is None:
                raise NotFoundError(f"{bundled.path} was removed meanwhile; pull and export again.")
            self._files[blob] = found.fd
        return self._files[blob]

    async def _read(self, fd: int, bundled: BundledBlob, chunk_index: int) -> bytes:
        context = self._cache.context
        try:
            # To its end: a thread must not read from a descriptor that is somebody else's by then.
            return await see_through(context.in_bulk(_read_chunk, fd, bundled.table, chunk_index))
        except BlobCorruptError:
            # Anybody on this machine reads the faults.
            shown, whole = "a restricted file", "its export"
            if self.manifest.is_public:
                shown, whole = bundled.path, f"the export of {self.manifest.snapshot.id}"
            fault = context.make_fault(
                context.settings.peer_id,
                context.settings.name,
                "damaged here",
                f"Chunk {chunk_index} of {shown} changed on this disk; {whole} was broken off. "
                "Run p2pcache check --repair.",
            )
            context.blame.faults.append(fault)
            await self._cache.shelf.condemn(bundled.table.blob)
            raise


class Bundles:
    """Exports and imports of this daemon. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._running: Counter[str] = Counter()

    @contextmanager
    def _take_place(self, what: str, at_once_max: int) -> Iterator[None]:
        """Be one of the few that run at a time."""
        if self._running[what] >= at_once_max:
            raise DaemonBusyError(f"{at_once_max} {what} run already; ask when one has ended.")
        self._running[what] += 1
        try:
            yield
        finally:
            self._running[what] -= 1

    @asynccontextmanager
    async def exporting(
        self, reference: ModelReference, *, is_admin: bool
    ) -> AsyncIterator[BundleExport]:
        """
        Open a snapshot that is here, whole and proven; nothing of it leaves before the block ends.

        Args:
            reference: Which; no hub is asked what it means.
            is_admin: The caller may have what is not public.

        Raises:
            NotFoundError: It is not here, or not for this caller.
            DaemonBusyError: Enough exports run already.
        """
        row = await self._cache.librarian.find_cached(reference)
        is_public = row is not None and await self._cache.access.is_public(row.snapshot)
        if row is None or not (is_public or is_admin):
            raise NotFoundError(
                f"{reference} is not here; pull it first: p2pcache pull {reference}"
            )
        snapshot = row.snapshot
        with self._take_place("exports", EXPORTS_AT_ONCE_MAX), ExitStack() as stack:
            async with self._cache.space.keeping(snapshot.id):
                self._cache.space.note_used(snapshot.id)
                named = await self._cache.librarian.list_branches(snapshot.id.repo)
                revisions = [name for name, commit in named if commit == snapshot.id.commit]
                files: dict[BlobDigest, int] = {}
                stack.callback(_close_all, files)
                tables = await self._open_files(reference, snapshot, files)
                manifest = BundleManifest.of(snapshot, revisions, tables, is_public=is_public)
                yield BundleExport(self._cache, manifest, files)

    async def _open_files(
        self, reference: ModelReference, snapshot: Snapshot, files: dict[BlobDigest, int]
    ) -> dict[BlobDigest, ChunkTable]:
        tables: dict[BlobDigest, ChunkTable] = {}
        for entry in order_blobs(snapshot):
            files[entry.digest], table = await self._open_proven(reference, entry)
            tables[entry.digest] = table
            check_size(snapshot, entry, table.layout.size_bytes)
            if len(files) > OPEN_FILES_MAX:
                os.close(files.pop(next(iter(files))))
        return tables

    async def _open_proven(
        self, reference: ModelReference, entry: FileEntry
    ) -> tuple[int, ChunkTable]:
        found = await self._cache.shelf.open_proven(entry.digest)
        row = None if found is None else await self._cache.shelf.find_row(entry.digest)
        if found is not None and row is not None and row.table is not None:
            return found.fd, row.table
        if found is not None:
            os.close(found.fd)
        raise NotFoundError(
            f"{reference} is not here in whole, {entry.path} is missing; pull all of it first: "
            f"p2pcache pull {reference} --include '*'"
        )

    async def take_in(
        self, order: ImportOrder, read_some: Callable[[], Awaitable[bytes]]
    ) -> ImportedBundle:
        """
        Import a bundle. See bundleimport.BundleImport.run.

        Args:
            order: What the caller wants.
            read_some: Returns the next bytes, as many as there are; none at the end.
        """
        with self._take_place("imports", IMPORTS_AT_ONCE_MAX):
            return await BundleImport(self._cache, order, read_some).run()


def _close_all(files: dict[BlobDigest, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def _read_chunk(fd: int, table: ChunkTable, chunk_index: int) -> bytes:
    """
    Read a chunk and check it.

    Raises:
        BlobCorruptError: It is not what the table says, or cannot be read.
    """
    offset, length = table.layout.span_of(chunk_index, chunk_index)
    try:
        content = os.pread(fd, length, offset)
    except OSError:
        content = b""  # a disk that cannot read it has damaged it
    if len(content) != length or digest_of(content) != table.find(chunk_index):
        raise BlobCorruptError(
            f"Chunk {chunk_index} of {table.blob} changed on this disk; pull it again.",
            path=str(table.blob),
        )
    return content
