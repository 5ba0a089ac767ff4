"""
Owns a BlobStore in memory, for tests and simulations.

Knows nothing of folders: each blob is an anonymous file (memfd), so that callers can use the
descriptor as they do with a real store.
Invariants: the same as the file store's, but that nothing survives the process.
Source: base.py; memfd_create(2).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import BlobProof, VerifiedChunk
from p2pcache.store.base import BlobFile, FileStamp, PartialBlob, PartialState
from p2pcache.store.blobs import stamp_of


class MemoryPartial:
    """A partial blob in memory. Implements PartialBlob."""

    def __init__(self, blob: BlobDigest, layout: Layout) -> None:
        self.blob = blob
        self.layout = layout
        self.fd = os.memfd_create(blob.hex[:16])
        os.ftruncate(self.fd, layout.size_bytes)
        self._lock = threading.Lock()
        self._have = Bitfield(layout.chunk_count)
        self._table = ChunkTable(blob, layout)
        self._sources: dict[int, str] = {}

    def put(self, chunk: VerifiedChunk, source_id: str) -> None:
        """Write one chunk."""
        assert chunk.blob == self.blob, "a chunk of another blob"
        with self._lock:
            if chunk.chunk_index not in self._have:
                os.pwrite(self.fd, chunk.view, chunk.offset)
                self._have.add(chunk.chunk_index)
                self._table.set(chunk.chunk_index, chunk.digest)
                self._sources[chunk.chunk_index] = source_id

    def snapshot(self) -> PartialState:
        """Return a copy of what is held."""
        with self._lock:
            table = ChunkTable(self.blob, self.layout)
            for index in self._have:
                digest = self._table.find(index)
                assert digest is not None, "a held chunk has a digest"
                table.set(index, digest)
            return PartialState(self._have.copy(), table, dict(self._sources))

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from memory."""
        os.preadv(self.fd, [view], offset)

    def flush(self) -> None:
        """Do nothing: memory has no durability."""

    def forget(self, chunk_indexes: list[int]) -> None:
        """Take chunks out."""
        with self._lock:
            for index in chunk_indexes:
                self._have.discard(index)
                self._table.clear(index)
                self._sources.pop(index, None)


class MemoryBlobStore:
    """Blobs in anonymous files. Implements BlobStore."""

    def __init__(self) -> None:
        self._partials: dict[BlobDigest, MemoryPartial] = {}
        self._blobs: dict[BlobDigest, int] = {}

    def open_partial(self, blob: BlobDigest, layout: Layout) -> MemoryPartial:
        """Continue or begin to fill a blob."""
        if blob not in self._partials:
            self._partials[blob] = MemoryPartial(blob, layout)
        return self._partials[blob]

    def publish(self, partial: PartialBlob, proof: BlobProof, *, is_public: bool) -> FileStamp:
        """Turn a complete partial into a blob."""
        assert isinstance(partial, MemoryPartial), "a partial of another store"
        assert proof.blob == partial.blob, "a proof of another blob"
        proof.check(f"memory:{partial.blob}")
        replaced = self._blobs.get(partial.blob)
        if replaced is not None:
            os.close(replaced)
        self._blobs[partial.blob] = partial.fd
        self._partials.pop(partial.blob, None)
        return stamp_of(os.fstat(partial.fd))

    def find_blob(self, blob: BlobDigest) -> BlobFile | None:
        """Open a published blob."""
        if blob not in self._blobs:
            return None
        fd = os.dup(self._blobs[blob])
        return BlobFile(fd, stamp_of(os.fstat(fd)))

    def discard(self, blob: BlobDigest, *, partial_only: bool = True) -> None:
        """Remove a partial, and the published blob too unless partial_only."""
        partial = self._partials.pop(blob, None)
        fds = [] if partial is None else [partial.fd]
        if not partial_only and blob in self._blobs:
            fds.append(self._blobs.pop(blob))
        for fd in fds:
            os.close(fd)

    def iter_blobs(self) -> Iterator[tuple[BlobDigest, FileStamp]]:
        """Iterate over the published blobs."""
        for blob, fd in list(self._blobs.items()):
            yield blob, stamp_of(os.fstat(fd))
