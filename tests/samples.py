"""
Owns blobs made of reproducible bytes, with their digests and verified chunks.

Knows nothing of stores or sources.
Invariants: equal size and seed give equal bytes; chunks pass through core.verify like any other.
Source: none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random

from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.verify import BlobProof, VerifiedChunk, digest_of, verify_chunk

PEER_ID = "ab" * 16
OTHER_PEER_ID = "cd" * 16
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40


@dataclass(frozen=True, repr=False)
class Sample:
    """A blob that exists in full, in memory."""

    content: bytes

    def __repr__(self) -> str:
        """Short: a failing sequence names many of them."""
        return f"<Sample {len(self.content)} {self.blob.hex[:6]}>"

    @cached_property
    def blob(self) -> BlobDigest:
        """Its name."""
        return BlobDigest("sha256", hashlib.sha256(self.content).hexdigest())

    @property
    def layout(self) -> Layout:
        """Its chunk boundaries."""
        return Layout(len(self.content))

    def bytes_of(self, chunk_index: int) -> bytes:
        """The bytes of one chunk."""
        offset, length = self.layout.span_of(chunk_index, chunk_index)
        return self.content[offset : offset + length]

    def digest_of(self, chunk_index: int) -> ChunkDigest:
        """The true digest of one chunk."""
        return digest_of(self.bytes_of(chunk_index))

    def chunk(self, chunk_index: int) -> VerifiedChunk:
        """One chunk, checked."""
        return verify_chunk(
            self.blob,
            self.layout,
            chunk_index,
            memoryview(self.bytes_of(chunk_index)),
            expected=self.digest_of(chunk_index),
            source_id="test",
        )

    def wrong_chunk(self, chunk_index: int, seed: int = 1) -> VerifiedChunk:
        """A chunk of the right length with other bytes, as a hub without digests may send it."""
        wrong = Random(seed).randbytes(self.layout.length_of(chunk_index))
        return verify_chunk(
            self.blob,
            self.layout,
            chunk_index,
            memoryview(wrong),
            expected=None,
            source_id="test",
        )

    def chunks(self) -> Iterator[VerifiedChunk]:
        """All chunks in order."""
        return (self.chunk(index) for index in range(self.layout.chunk_count))

    def proof(self) -> BlobProof:
        """A proof that is right."""
        proof = BlobProof(self.blob, len(self.content))
        proof.update(self.content)
        return proof


@lru_cache(maxsize=32)
def make_sample(size_bytes: int, seed: int = 0) -> Sample:
    """Make a blob of a size."""
    return Sample(Random(f"{size_bytes}/{seed}").randbytes(size_bytes))


def make_chunks_sample(chunk_count: int, seed: int = 0) -> Sample:
    """Make a blob of some chunks, the last one short."""
    return make_sample(chunk_count * CHUNK_SIZE_BYTES - 1000, seed)
