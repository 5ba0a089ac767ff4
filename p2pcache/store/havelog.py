"""
Owns the bytes of the have-record: an append-only log beside a partial file.

Knows nothing of files; reads and writes bytes only.
Invariants: every record carries a checksum; a record that no commit covers is a hint that must
be checked against the data; a torn tail is cut, never guessed.
Source: docs/reference/store-layout.md (normative).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from p2pcache.core.layout import Layout
from p2pcache.errors import InputError

# Boundaries every 4 MiB; boundaries of its own, which follow with their length and a checksum.
_MAGIC_FIXED = b"P2PHAVE1"
_MAGIC_SPANS = b"P2PHAVE2"
_HEADER = struct.Struct("<8sQ16s")
_SPANS = struct.Struct("<II")
_RECORD = struct.Struct("<BxxxII32s16sI")
RECORD_SIZE_BYTES = _RECORD.size
NO_DIGEST = bytes(32)
UPSTREAM_TAG = bytes(16)
_CHECKSUM_SIZE_BYTES = 4


class Kind(IntEnum):
    """What a record says."""

    CHUNK = 1
    PREFIX = 2
    COMMIT = 3
    FORGET = 4


@dataclass(frozen=True, slots=True)
class Record:
    """
    One statement. For PREFIX, length_bytes says how much of the chunk's start is there and
    digest is that of the prefix. For COMMIT, length_bytes is how many records, counted from the
    log's start, are durable. `source_tag` is the sending peer's id, zeros for upstream.
    """

    kind: Kind
    chunk_index: int = 0
    length_bytes: int = 0
    digest: bytes = NO_DIGEST
    source_tag: bytes = UPSTREAM_TAG

    def to_bytes(self) -> bytes:
        """Return the record with its checksum."""
        body = _RECORD.pack(
            self.kind, self.chunk_index, self.length_bytes, self.digest, self.source_tag, 0
        )[:-_CHECKSUM_SIZE_BYTES]
        return body + zlib.crc32(body).to_bytes(_CHECKSUM_SIZE_BYTES, "little")


def header_to_bytes(layout: Layout) -> bytes:
    """Return the log's first bytes, up to the first record."""
    spans = layout.to_bytes()
    magic = _MAGIC_SPANS if spans else _MAGIC_FIXED
    head = _HEADER.pack(magic, layout.size_bytes, layout.name.encode().ljust(16, b"\0"))
    return head + _SPANS.pack(len(spans), zlib.crc32(spans)) + spans if spans else head


def find_layout(raw: bytes) -> Layout | None:
    """Return the layout that a log was written for; None when its header is torn or foreign."""
    if len(raw) < _HEADER.size:
        return None
    magic, size_bytes, _ = _HEADER.unpack_from(raw)
    spans = b""
    if magic == _MAGIC_SPANS and len(raw) >= _HEADER.size + _SPANS.size:
        length, checksum = _SPANS.unpack_from(raw, _HEADER.size)
        start = _HEADER.size + _SPANS.size
        spans = raw[start : start + length]
        if len(spans) != length or zlib.crc32(spans) != checksum:
            return None
    elif magic != _MAGIC_FIXED:
        return None
    try:
        layout = Layout.from_bytes(size_bytes, spans)
    except InputError:
        return None
    return layout if raw.startswith(header_to_bytes(layout)) else None


def iter_records(raw: bytes, layout: Layout) -> Iterator[Record]:
    """
    Iterate over the log's records up to the first torn one; none if the header is another
    blob's or layout's.
    """
    header = header_to_bytes(layout)
    if raw.startswith(header):
        yield from iter_tail(raw[len(header) :], layout)


def iter_tail(raw: bytes, layout: Layout) -> Iterator[Record]:
    """Iterate over the records at the start of some bytes that follow a header or a record."""
    for start in range(0, len(raw) - RECORD_SIZE_BYTES + 1, RECORD_SIZE_BYTES):
        piece = raw[start : start + RECORD_SIZE_BYTES]
        kind, index, length, digest, tag, checksum = _RECORD.unpack(piece)
        is_torn = zlib.crc32(piece[:-_CHECKSUM_SIZE_BYTES]) != checksum
        if is_torn or kind not in Kind.__members__.values():
            return
        if kind != Kind.COMMIT and index >= layout.chunk_count:
            return
        yield Record(Kind(kind), index, length, digest, tag)
