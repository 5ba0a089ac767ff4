"""
Owns sets of chunk indexes: have, inflight, want.

Knows nothing of what the chunks are. One bit a chunk, least significant bit of byte 0 first.
Invariants: no bit at or beyond `length`; wire text is checked against the expected length.
Source: BEP 3 (bitfield), with the bit order of BEP 52's integers; docs/reference/peer-protocol.md.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator

from p2pcache.errors import InputError


class Bitfield:
    """A mutable set of indexes below a fixed length. Not thread safe: one owner mutates it."""

    __slots__ = ("_bits", "length")

    def __init__(self, length: int, bits: int = 0) -> None:
        assert length >= 0, "a bitfield has no negative length"
        assert bits >> length == 0, "bits beyond the length"
        self.length = length
        self._bits = bits

    @classmethod
    def full(cls, length: int) -> Bitfield:
        """Return the set of all indexes."""
        return cls(length, (1 << length) - 1)

    @classmethod
    def of(cls, length: int, indexes: Iterable[int]) -> Bitfield:
        """Return the set of the given indexes."""
        field = cls(length)
        for index in indexes:
            field.add(index)
        return field

    @classmethod
    def union(cls, length: int, fields: Iterable[Bitfield]) -> Bitfield:
        """Return what is in any of the fields, all of that length."""
        bits = 0
        for field in fields:
            assert field.length == length, "bitfields of different blobs"
            bits |= field._bits
        return cls(length, bits)

    @classmethod
    def from_wire(cls, text: str, length: int) -> Bitfield:
        """
        Read base64 text of exactly ceil(length / 8) bytes.

        Raises:
            InputError: Another length, not base64, or a bit set beyond the length.
        """
        size_bytes = -(-length // 8)
        if len(text) != 4 * -(-size_bytes // 3):
            raise InputError(f"A bitfield of {length} chunks has another length than this text.")
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError("A bitfield is base64 text; this is not.") from error
        bits = int.from_bytes(raw, "little")
        if len(raw) != size_bytes or bits >> length:
            raise InputError(f"This bitfield speaks of chunks beyond {length}.")
        return cls(length, bits)

    def to_wire(self) -> str:
        """Return base64 text that from_wire reads."""
        return base64.b64encode(self._bits.to_bytes(-(-self.length // 8), "little")).decode()

    def add(self, index: int) -> None:
        """Put an index in."""
        assert 0 <= index < self.length, "index outside the bitfield"
        self._bits |= 1 << index

    def discard(self, index: int) -> None:
        """Take an index out, if it is in."""
        self._bits &= ~(1 << index)

    def copy(self) -> Bitfield:
        """Return an independent copy."""
        return Bitfield(self.length, self._bits)

    def is_full(self) -> bool:
        """Return True when every index is in."""
        return self._bits.bit_count() == self.length

    def __contains__(self, index: int) -> bool:
        return index >= 0 and bool(self._bits >> index & 1)

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __bool__(self) -> bool:
        return self._bits != 0

    def __iter__(self) -> Iterator[int]:
        if not self._bits:
            return
        for base, byte in enumerate(self._bits.to_bytes(-(-self.length // 8), "little")):
            while byte:
                low = byte & -byte
                yield 8 * base + low.bit_length() - 1
                byte ^= low

    def iter_from(self, start: int) -> Iterator[int]:
        """Iterate over the indexes from `start` on."""
        return (
            start + index for index in Bitfield(max(0, self.length - start), self._bits >> start)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitfield):
            return NotImplemented
        return self.length == other.length and self._bits == other._bits

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Bitfield) -> Bitfield:
        assert self.length == other.length, "bitfields of different blobs"
        return Bitfield(self.length, self._bits | other._bits)

    def __and__(self, other: Bitfield) -> Bitfield:
        assert self.length == other.length, "bitfields of different blobs"
        return Bitfield(self.length, self._bits & other._bits)

    def __sub__(self, other: Bitfield) -> Bitfield:
        assert self.length == other.length, "bitfields of different blobs"
        return Bitfield(self.length, self._bits & ~other._bits)

    def __repr__(self) -> str:
        return f"<Bitfield {len(self)}/{self.length}>"
