"""
Owns the list of chunk digests of one blob, and how far it can be believed.

Knows nothing of bytes. A table grows from *derived* (no digests) to *proven* (all of them).
Invariants: a proven table is complete; entries are set once.
Source: design.md §3 (chunk table).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from p2pcache.core.digest import CHUNK_DIGEST_SIZE_BYTES, BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.errors import InputError


class Standing(StrEnum):
    """How far the digests can be believed."""

    DERIVED = "derived"
    CLAIMED = "claimed"
    PROVEN = "proven"
    ATTESTED = "attested"


class ChunkTable:
    """The BLAKE3 digests of a blob's chunks, in order; None where not known yet."""

    __slots__ = ("_digests", "blob", "layout", "standing")

    def __init__(
        self, blob: BlobDigest, layout: Layout, standing: Standing = Standing.DERIVED
    ) -> None:
        self.blob = blob
        self.layout = layout
        self.standing = standing
        self._digests: list[ChunkDigest | None] = [None] * layout.chunk_count

    @classmethod
    def from_bytes(cls, blob: BlobDigest, layout: Layout, raw: bytes) -> ChunkTable:
        """
        Read a complete, proven table: the digests one after the other.

        Raises:
            InputError: The length is not 32 bytes for each chunk.
        """
        if len(raw) != CHUNK_DIGEST_SIZE_BYTES * layout.chunk_count:
            raise InputError(f"The chunk table of {blob} has {len(raw)} bytes, which cannot be.")
        table = cls(blob, layout, Standing.PROVEN)
        size = CHUNK_DIGEST_SIZE_BYTES
        table._digests = [
            ChunkDigest(raw[i * size : (i + 1) * size]) for i in range(layout.chunk_count)
        ]
        return table

    def to_bytes(self) -> bytes:
        """Return the digests one after the other; the table must be complete."""
        assert self.is_complete(), "an incomplete chunk table has no byte form"
        return b"".join(digest.raw for digest in self._digests if digest is not None)

    def is_complete(self) -> bool:
        """Return True when every digest is known."""
        return None not in self._digests

    def find(self, chunk_index: int) -> ChunkDigest | None:
        """Return a chunk's digest, or None when it is not known."""
        return self._digests[chunk_index]

    def set(self, chunk_index: int, digest: ChunkDigest) -> None:
        """Record the digest of one chunk, once."""
        self._digests[chunk_index] = digest

    def clear(self, chunk_index: int) -> None:
        """Forget a digest that turned out to be wrong."""
        self._digests[chunk_index] = None

    def __iter__(self) -> Iterator[ChunkDigest | None]:
        return iter(self._digests)
