"""
Owns the way of one blob from a bundle into the store.

Knows nothing of streams or of repositories.
Invariants: bytes are checked against the bundle's chunk table before they are written, and read
back for the proof of the whole; what a bundle lied about does not stay.
Source: docs/reference/bundle-format.md ("Reading"); docs/reference/store-layout.md ("Publishing").
"""

from __future__ import annotations

from p2pcache.core.digest import BlobDigest
from p2pcache.core.verify import BlobProof, VerifiedChunk, digest_of, verify_chunk
from p2pcache.errors import BundleCorruptError, ChunkMismatchError
from p2pcache.store.base import FileStamp
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.bundle import BundledBlob
from p2pcache.store.partial import FilePartial

# Of a bundle's id, the part that a have-record has room for: who gave a chunk.
_SOURCE_HEX_DIGITS = 32


class Intake:
    """
    One blob that is read from a bundle: open(), put() each chunk in order, finish(), close().
    Bulk threads, one call at a time, but for flush().
    """

    def __init__(
        self, store: FileBlobStore, bundled: BundledBlob, bundle_id: str, *, is_here: bool
    ) -> None:
        """
        Args:
            store: Where the blob goes.
            bundled: What the bundle says of it.
            bundle_id: Kept as the source of each chunk.
            is_here: The blob is published already: its bytes are compared, and not stored.
        """
        self.written_bytes = 0
        self._store = store
        self._bundled = bundled
        self._source_id = bundle_id[:_SOURCE_HEX_DIGITS]
        self._is_here = is_here
        self._partial: FilePartial | None = None
        self._held: set[int] = set()
        self._proof = BlobProof(self.blob, bundled.table.layout.size_bytes)

    @property
    def blob(self) -> BlobDigest:
        """Return what is taken in."""
        return self._bundled.table.blob

    def open(self) -> None:
        """
        Find what an earlier import or fetch left, and reserve room for the rest.

        Raises:
            StoreError: No room, or the disk failed.
        """
        if self._is_here:
            return
        table = self._bundled.table
        self._partial = self._store.open_partial(self.blob, table.layout)
        found = self._partial.snapshot()
        self._held = {i for i in found.have if found.table.find(i) == table.find(i)}
        others = [i for i in found.have if i not in self._held]
        if others:
            self._partial.forget(others)

    def put(self, chunk_index: int, content: memoryview, read_back: memoryview) -> None:
        """
        Check the next chunk, and write it unless it is here.

        Args:
            chunk_index: Which.
            content: Its bytes, as the bundle has them.
            read_back: A buffer of the same length, for what the disk has.

        Raises:
            BundleCorruptError: They are not what the manifest says.
            StoreError: The disk failed or is full.
        """
        chunk = self._verify(chunk_index, content)
        if self._partial is None:
            self._proof.update(content)
            return
        if chunk_index in self._held:
            self._partial.read_into(chunk.offset, read_back)
            if digest_of(read_back) != chunk.digest:
                self._partial.forget([chunk_index])  # damaged since
                self._held.discard(chunk_index)
        if chunk_index not in self._held:
            self._partial.put(chunk, self._source_id)
            self.written_bytes += len(content)
            self._partial.read_into(chunk.offset, read_back)
        self._proof.update(read_back)

    def _verify(self, chunk_index: int, content: memoryview) -> VerifiedChunk:
        table = self._bundled.table
        try:
            return verify_chunk(
                self.blob,
                table.layout,
                chunk_index,
                content,
                expected=table.find(chunk_index),
                source_id="a bundle",
            )
        except ChunkMismatchError as error:
            offset, length = table.layout.span_of(chunk_index, chunk_index)
            raise BundleCorruptError(
                f"{self._bundled.path}, chunk {chunk_index} of {table.layout.chunk_count} (bytes "
                f"{offset}-{offset + length - 1}) was changed in the bundle; this file was not "
                "taken. Ask for the bundle again."
            ) from error

    def finish(self) -> FileStamp | None:
        """
        Prove the whole and publish it, for the daemon's user alone; None if it was here before.

        Raises:
            BundleCorruptError: It is not what its upstream digest says.
            StoreError: The disk failed.
        """
        if not self._proof.is_right():
            self._drop_doubtful()
            raise BundleCorruptError(
                f"{self._bundled.path} in the bundle is not {self.blob}, although its chunks are "
                "those of the manifest; this file was not taken. Whoever made the bundle changed "
                "it: ask somebody else."
            )
        if self._partial is None:
            return None
        stamp = self._store.publish(self._partial, self._proof, is_public=False)
        self.close()
        return stamp

    def _drop_doubtful(self) -> None:
        """Forget what only this bundle vouched for; what else is here may be right."""
        if self._partial is not None:
            sources = self._partial.snapshot().sources
            self._partial.forget([i for i, source in sources.items() if source == self._source_id])

    def flush(self) -> None:
        """
        Make durable what was put so far. From any thread.

        Raises:
            StoreError: The disk failed.
        """
        if self._partial is not None:
            self._partial.flush()

    def close(self) -> None:
        """Close the file; what is in it stays for the next import."""
        if self._partial is not None:
            self._partial.close()
            self._partial = None
