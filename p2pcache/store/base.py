"""
Owns the BlobStore boundary: whole blobs, and blobs that are being filled.

Knows nothing of hubs, peers or repositories.
Invariants: only VerifiedChunks get in; only a blob with a right BlobProof gets published.
Source: design.md §4; docs/reference/store-layout.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import BlobProof, VerifiedChunk


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells that a published file is still the one that was proven."""

    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class BlobFile:
    """A published blob, open for reading. The receiver closes `fd`."""

    fd: int
    stamp: FileStamp


class PartialBlob(Protocol):
    """
    A blob that is being filled. put() may be called from several threads at once, for
    different chunks; a chunk only ever goes absent to present, but by forget().
    """

    blob: BlobDigest
    layout: Layout

    def put(self, chunk: VerifiedChunk, source_id: str) -> None:
        """
        Write one chunk and record it. Idempotent. The chunk's view is free again on return.

        Raises:
            StoreFullError: The disk is full.
            StoreError: The disk failed; nothing of this partial may be believed any more.
        """
        ...

    def snapshot(self) -> PartialState:
        """Return what is held now; an independent copy."""
        ...

    def read_into(self, offset: int, view: memoryview) -> None:
        """
        Fill view with the bytes at offset, which must lie in chunks that are held.

        Raises:
            StoreError: The disk failed.
        """
        ...

    def flush(self) -> None:
        """
        Make everything that was put before the call durable.

        Raises:
            StoreError: The disk failed; nothing of this partial may be believed any more.
        """
        ...

    def forget(self, chunk_indexes: list[int]) -> None:
        """
        Take chunks out that turned out to be wrong. Durable on return.

        Raises:
            StoreError: The disk failed; nothing of this partial may be believed any more.
        """
        ...


@dataclass(frozen=True, slots=True)
class PartialState:
    """What a partial blob holds: chunks, their digests, who sent each (provenance)."""

    have: Bitfield
    table: ChunkTable
    sources: dict[int, str]


class BlobStore(Protocol):
    """Where blobs live. Safe from several threads; one daemon per store."""

    def open_partial(self, blob: BlobDigest, layout: Layout) -> PartialBlob:
        """
        Continue or begin to fill a blob; room for all of it is reserved.

        Raises:
            StoreFullError: No room; nothing was left behind.
            StoreError: The disk failed.
        """
        ...

    def publish(self, partial: PartialBlob, proof: BlobProof, *, is_public: bool) -> FileStamp:
        """
        Turn a complete partial into a blob: durable, under its name, read-only.

        The have-record stays until discard_record(), so that a crash in between loses nothing.

        Raises:
            BlobCorruptError: The proof is not right; nothing was published.
            StoreError: The disk failed.
        """
        ...

    def find_blob(self, blob: BlobDigest) -> BlobFile | None:
        """
        Open a published blob; None when there is none.

        Raises:
            StoreError: It cannot be told: no more descriptors, or the disk failed.
        """
        ...

    def discard(self, blob: BlobDigest, *, partial_only: bool = True) -> None:
        """Remove what there is of a partial, and of the published blob unless partial_only."""
        ...

    def iter_blobs(self) -> Iterator[tuple[BlobDigest, FileStamp]]:
        """Iterate over the published blobs, in no order."""
        ...
