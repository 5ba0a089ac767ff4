"""
Owns where the chunk boundaries of a blob lie.

Knows nothing of formats or sources: core.tensors says where tensors start, for formats that have
some; everything else is cut every 4 MiB.
Invariants: chunks are contiguous, none is empty or above 4 MiB; a name covers every boundary, so
honest daemons that name the same layout mean the same boundaries.
Source: design.md §3 (layout), §8 (409 other layout); docs/explanation/storage-design.md.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from blake3 import blake3

from p2pcache.errors import InputError

# At most 4 MiB, so that a wrong byte costs little and a first byte comes soon; larger chunks
# hardly shorten a transfer (docs/explanation/performance-model.md).
CHUNK_SIZE_BYTES = 4 * 1024 * 1024
# 2^20 chunks are 4 TiB in one file, far above any hub's limit; bounds every table we allocate.
CHUNKS_PER_BLOB_MAX = 1 << 20
BLOB_SIZE_BYTES_MAX = CHUNK_SIZE_BYTES * CHUNKS_PER_BLOB_MAX
# Chunks of a layout with boundaries of its own, for each 4 MiB of the blob: what core.tensors
# makes stays far below; a neighbour who invents boundaries cannot make us track single bytes.
CHUNKS_PER_STEP_MAX = 64
FIXED_LAYOUT = "fixed-4m"
_TENSOR_PREFIX = "tensor-"
# With the prefix 16 characters, the room that a have-record gives a layout's name.
_TENSOR_NAME_HEX_DIGITS = 9
_SPAN = struct.Struct("<II")
SPAN_SIZE_BYTES = _SPAN.size


@dataclass(frozen=True, slots=True)
class LayoutId:
    """Which layout a daemon means, without the boundaries; chunk_count fits its bitfields."""

    size_bytes: int
    name: str
    chunk_count: int

    @classmethod
    def parse(cls, size_bytes: int, name: str, chunk_count: int | None) -> LayoutId:
        """
        Read one; the fixed layout needs no count.

        Raises:
            InputError: No layout of that size has that name or count.
        """
        fixed_count = Layout(size_bytes).chunk_count
        if name == FIXED_LAYOUT:
            return cls(size_bytes, name, fixed_count)
        count_max = min(CHUNKS_PER_BLOB_MAX, CHUNKS_PER_STEP_MAX * fixed_count)
        if not is_layout_name(name) or chunk_count is None or not 0 < chunk_count <= count_max:
            raise InputError("That peer cuts the blob in an unknown layout; run one release.")
        return cls(size_bytes, name, chunk_count)


class Layout:
    """The chunks of one blob, every 4 MiB unless made by of_starts(). An empty blob has none."""

    __slots__ = ("_starts", "name", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        """
        Cut every 4 MiB.

        Raises:
            InputError: Negative, or above 4 TiB.
        """
        if not 0 <= size_bytes <= BLOB_SIZE_BYTES_MAX:
            raise InputError(f"A blob of {size_bytes} bytes cannot be stored; the limit is 4 TiB.")
        self.size_bytes = size_bytes
        self.name = FIXED_LAYOUT
        self._starts: array[int] | None = None

    @classmethod
    def of_starts(cls, size_bytes: int, starts: Iterable[int]) -> Layout:
        """
        Cut at given offsets; where they are every 4 MiB, this is the fixed layout.

        Args:
            size_bytes: Of the blob.
            starts: Where each chunk begins, ascending, the first one 0.

        Raises:
            InputError: A chunk would be empty or above 4 MiB, or there are too many.
        """
        made = cls(size_bytes)
        fixed_count = made.chunk_count
        places = array("Q", starts)
        if len(places) > min(CHUNKS_PER_BLOB_MAX, CHUNKS_PER_STEP_MAX * fixed_count):
            raise InputError("A layout has too many chunks for its size; refused.")
        ends = [*places[1:], size_bytes]
        if (places and places[0] != 0) or bool(places) != bool(size_bytes):
            raise InputError("A layout begins with the blob's first byte; refused.")
        lengths = (end - start for start, end in zip(places, ends, strict=True))
        if any(not 0 < length <= CHUNK_SIZE_BYTES for length in lengths):
            raise InputError("A chunk of a layout is empty or above 4 MiB; refused.")
        # As many chunks as the fixed layout has, none above 4 MiB, all but the last one full.
        if any(start != n * CHUNK_SIZE_BYTES for n, start in enumerate(places)):
            made._starts = places
            made.name = _TENSOR_PREFIX + _hash_starts(places)[:_TENSOR_NAME_HEX_DIGITS]
        return made

    @classmethod
    def from_spans(cls, size_bytes: int, spans: Iterable[Sequence[int]]) -> Layout:
        """
        Read (chunk length in bytes, how many of them) pairs.

        Raises:
            InputError: They do not make a layout of that size.
        """
        starts, offset = array("Q"), 0
        for length, count in spans:
            # All of them together: a short text could else ask for more memory than there is.
            count_left = CHUNKS_PER_BLOB_MAX - len(starts)
            if not 0 < length <= CHUNK_SIZE_BYTES or not 0 < count <= count_left:
                raise InputError("A layout has an impossible chunk, or too many; refused.")
            if offset + length * count > size_bytes:
                raise InputError("A layout is longer than its blob; refused.")
            starts.extend(range(offset, offset + length * count, length))
            offset += length * count
        if offset != size_bytes:
            raise InputError("A layout is shorter than its blob; refused.")
        return cls.of_starts(size_bytes, starts)

    @classmethod
    def from_bytes(cls, size_bytes: int, raw: bytes) -> Layout:
        """
        Read what to_bytes() wrote; nothing at all means the fixed layout.

        Raises:
            InputError: It is no layout of that size.
        """
        if not raw:
            return cls(size_bytes)
        if len(raw) % SPAN_SIZE_BYTES:
            raise InputError("A layout's record is torn.")
        return cls.from_spans(size_bytes, _SPAN.iter_unpack(raw))

    def to_spans(self) -> list[tuple[int, int]]:
        """Return (chunk length in bytes, how many of them in a row); none for the fixed layout."""
        if self._starts is None:
            return []
        lengths = map(self.length_of, range(self.chunk_count))
        return [(length, sum(1 for _ in run)) for length, run in groupby(lengths)]

    def to_bytes(self) -> bytes:
        """Return to_spans() as little-endian pairs of 32 bits; empty for the fixed layout."""
        return b"".join(_SPAN.pack(*span) for span in self.to_spans())

    @property
    def id(self) -> LayoutId:
        """Return what tells it from other layouts."""
        return LayoutId(self.size_bytes, self.name, self.chunk_count)

    @property
    def chunk_count(self) -> int:
        """Return how many chunks there are."""
        if self._starts is not None:
            return len(self._starts)
        return -(-self.size_bytes // CHUNK_SIZE_BYTES)

    def offset_of(self, chunk_index: int) -> int:
        """Return where a chunk starts, in bytes."""
        assert 0 <= chunk_index < self.chunk_count, "chunk index outside the layout"
        if self._starts is not None:
            return self._starts[chunk_index]
        return chunk_index * CHUNK_SIZE_BYTES

    def length_of(self, chunk_index: int) -> int:
        """Return how many bytes a chunk has."""
        start = self.offset_of(chunk_index)
        if self._starts is None:
            return min(CHUNK_SIZE_BYTES, self.size_bytes - start)
        is_last = chunk_index + 1 == len(self._starts)
        return (self.size_bytes if is_last else self._starts[chunk_index + 1]) - start

    def span_of(self, first: int, last: int) -> tuple[int, int]:
        """Return (offset, length) in bytes of the run first..last, both included."""
        start = self.offset_of(first)
        return start, self.offset_of(last) + self.length_of(last) - start

    def index_at(self, offset: int) -> int:
        """Return the chunk that holds the byte at offset."""
        assert 0 <= offset < self.size_bytes, "offset outside the blob"
        if self._starts is not None:
            return bisect_right(self._starts, offset) - 1
        return offset // CHUNK_SIZE_BYTES

    def measure(self, chunk_indexes: Iterable[int]) -> int:
        """Return the bytes of some chunks together."""
        return sum(map(self.length_of, chunk_indexes))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        # The name alone is short enough that somebody could find other boundaries for it.
        mine = (self.size_bytes, self.name, self._starts)
        return mine == (other.size_bytes, other.name, other._starts)

    def __hash__(self) -> int:
        return hash((self.size_bytes, self.name))

    def __repr__(self) -> str:
        return f"Layout(size_bytes={self.size_bytes}, name={self.name!r})"


def is_layout_name(text: str) -> bool:
    """Return whether a text can be a layout's name."""
    digits = text.removeprefix(_TENSOR_PREFIX)
    is_hex = len(digits) == _TENSOR_NAME_HEX_DIGITS and all(c in "0123456789abcdef" for c in digits)
    return text == FIXED_LAYOUT or (text != digits and is_hex)


def _hash_starts(starts: array[int]) -> str:
    if sys.byteorder == "big":
        starts = array("Q", starts)
        starts.byteswap()
    return blake3(starts.tobytes()).hexdigest()
