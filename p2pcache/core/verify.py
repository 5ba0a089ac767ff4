"""
Owns the passage from bytes to verified bytes.

Knows nothing of where bytes came from or go to.
Invariants: only this module makes a VerifiedChunk; a proof covers every byte of a blob in order.
Source: BLAKE3; FIPS 180-4 (SHA-256); git's blob object (SHA-1 over "blob <size>\\0" + content).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from blake3 import blake3

from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.errors import BlobCorruptError, ChunkMismatchError

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class VerifiedChunk:
    """
    One chunk whose length is right and whose digest is known.

    `view` is borrowed: it is valid only until the call that received the chunk returns.
    """

    blob: BlobDigest
    chunk_index: int
    offset: int
    view: memoryview
    digest: ChunkDigest


def digest_of(content: Bytes) -> ChunkDigest:
    """Return the BLAKE3-256 of some bytes."""
    return ChunkDigest(blake3(content).digest())


def verify_chunk(
    blob: BlobDigest,
    layout: Layout,
    chunk_index: int,
    content: memoryview,
    *,
    expected: ChunkDigest | None,
    source_id: str,
) -> VerifiedChunk:
    """
    Check one chunk against the digest that was promised for it.

    Args:
        blob: The blob that the chunk is part of.
        layout: The blob's chunk boundaries.
        chunk_index: Which chunk.
        content: The bytes; exactly the chunk's length.
        expected: What the table or the sending peer promised. None only for bytes that come
            from the hub itself, which names no chunk digests: the whole blob's proof decides.
        source_id: Who sent it, for the blame.

    Raises:
        ChunkMismatchError: Wrong length or wrong digest.
    """
    length = layout.length_of(chunk_index)
    if len(content) != length:
        raise ChunkMismatchError(
            f"Chunk {chunk_index} of {blob} from {source_id} has {len(content)} bytes, not "
            f"{length}; it was refused and is fetched elsewhere.",
            chunk_index=chunk_index,
            peer_id=source_id,
        )
    digest = digest_of(content)
    if expected is not None and digest != expected:
        raise ChunkMismatchError(
            f"Chunk {chunk_index} of {blob} from {source_id} does not have the digest that was "
            "promised; it was refused and is fetched elsewhere.",
            chunk_index=chunk_index,
            peer_id=source_id,
        )
    return VerifiedChunk(blob, chunk_index, layout.offset_of(chunk_index), content, digest)


class BlobProof:
    """
    The whole-blob digest, fed in order. One owner at a time; releases the GIL on large input.
    """

    def __init__(self, blob: BlobDigest, size_bytes: int) -> None:
        self.blob = blob
        self.size_bytes = size_bytes
        self.hashed_bytes = 0
        if blob.algorithm == "sha256":
            self._hash = hashlib.sha256()
        else:
            self._hash = hashlib.sha1(b"blob %d\x00" % size_bytes, usedforsecurity=False)

    def update(self, content: Bytes) -> None:
        """Hash the next bytes of the blob."""
        self._hash.update(content)
        self.hashed_bytes += len(content)

    def is_right(self) -> bool:
        """Return whether all bytes were seen and they are the blob's."""
        return self.hashed_bytes == self.size_bytes and self._hash.hexdigest() == self.blob.hex

    def check(self, path: str) -> None:
        """
        Insist on is_right().

        Raises:
            BlobCorruptError: The bytes at path are not the blob's.
        """
        if not self.is_right():
            raise BlobCorruptError(
                f"{path} does not have the content of {self.blob}; fetch it again.", path=path
            )
