"""
Owns where the chunk boundaries of a blob lie.

Knows nothing of digests or sources. This release cuts every 4 MiB, whatever the format.
Invariants: a pure function of the size; every peer computes the same boundaries by itself.
Source: design.md §3 (layout), §8 (409 other layout).
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcache.errors import InputError

# At most 4 MiB, so that a wrong byte costs little and a first byte comes soon; larger chunks
# hardly shorten a transfer (docs/explanation/performance-model.md).
CHUNK_SIZE_BYTES = 4 * 1024 * 1024
# 2^20 chunks are 4 TiB in one file, far above any hub's limit; bounds every table we allocate.
CHUNKS_PER_BLOB_MAX = 1 << 20
BLOB_SIZE_BYTES_MAX = CHUNK_SIZE_BYTES * CHUNKS_PER_BLOB_MAX
FIXED_LAYOUT = "fixed-4m"


@dataclass(frozen=True, slots=True)
class Layout:
    """The chunks of one blob. An empty blob has none."""

    size_bytes: int
    name: str = FIXED_LAYOUT

    def __post_init__(self) -> None:
        if not 0 <= self.size_bytes <= BLOB_SIZE_BYTES_MAX:
            raise InputError(
                f"A blob of {self.size_bytes} bytes cannot be stored; the limit is 4 TiB."
            )

    @property
    def chunk_count(self) -> int:
        """Return how many chunks there are."""
        return -(-self.size_bytes // CHUNK_SIZE_BYTES)

    def offset_of(self, chunk_index: int) -> int:
        """Return where a chunk starts, in bytes."""
        assert 0 <= chunk_index < self.chunk_count, "chunk index outside the layout"
        return chunk_index * CHUNK_SIZE_BYTES

    def length_of(self, chunk_index: int) -> int:
        """Return how many bytes a chunk has."""
        return min(CHUNK_SIZE_BYTES, self.size_bytes - self.offset_of(chunk_index))

    def span_of(self, first: int, last: int) -> tuple[int, int]:
        """Return (offset, length) in bytes of the run first..last, both included."""
        start = self.offset_of(first)
        return start, self.offset_of(last) + self.length_of(last) - start

    def index_at(self, offset: int) -> int:
        """Return the chunk that holds the byte at offset."""
        assert 0 <= offset < self.size_bytes, "offset outside the blob"
        return offset // CHUNK_SIZE_BYTES
