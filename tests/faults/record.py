"""
Owns a second reading of the have-record, made from its description and not from the code.

Knows nothing of the store's own reading of it.
Invariants: a record counts as durable only if a commit covers it and its checksum is right.
Source: docs/reference/store-layout.md, "Have-record" (normative).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

_HEADER_BYTES = 32
_RECORD_BYTES = 64
_SPANS_HEAD = struct.Struct("<II")
_SPAN = struct.Struct("<II")
_CHUNK, _PREFIX, _COMMIT, _FORGET = 1, 2, 3, 4


@dataclass(slots=True)
class HaveRecord:
    """What a log says: the blob's size, where chunks start, chunk → digest of the durable ones."""

    size_bytes: int
    starts: list[int]
    durable: dict[int, bytes] = field(default_factory=dict)
    hinted: dict[int, bytes] = field(default_factory=dict)

    def span_of(self, index: int) -> tuple[int, int]:
        """Return (start, end) of a chunk."""
        ends = [*self.starts[1:], self.size_bytes]
        return self.starts[index], ends[index]


def read_record(raw: bytes, chunk_bytes: int) -> HaveRecord | None:
    """Read a log; None when nothing of it may be believed."""
    parsed = _read_header(raw, chunk_bytes)
    if parsed is None:
        return None
    record, position = parsed
    seen: dict[int, tuple[int, bytes]] = {}
    count = covered = 0
    while position + _RECORD_BYTES <= len(raw):
        body = raw[position : position + _RECORD_BYTES]
        (checksum,) = struct.unpack_from("<I", body, 60)
        kind = body[0]
        index, length = struct.unpack_from("<II", body, 4)
        if zlib.crc32(body[:60]) != checksum or kind not in (_CHUNK, _PREFIX, _COMMIT, _FORGET):
            break
        if kind != _COMMIT and index >= len(record.starts):
            break
        if kind == _CHUNK:
            seen[index] = (count, body[12:44])
        elif kind == _COMMIT:
            covered = max(covered, length)
        elif kind == _FORGET:
            seen.pop(index, None)
        position += _RECORD_BYTES
        count += 1
    for index, (number, digest) in seen.items():
        (record.durable if number < covered else record.hinted)[index] = digest
    return record


def _read_header(raw: bytes, chunk_bytes: int) -> tuple[HaveRecord, int] | None:
    if len(raw) < _HEADER_BYTES:
        return None
    magic, size_bytes = struct.unpack_from("<8sQ", raw)
    if magic == b"P2PHAVE1":
        return HaveRecord(size_bytes, list(range(0, size_bytes, chunk_bytes))), _HEADER_BYTES
    if magic != b"P2PHAVE2" or len(raw) < _HEADER_BYTES + _SPANS_HEAD.size:
        return None
    length, checksum = _SPANS_HEAD.unpack_from(raw, _HEADER_BYTES)
    begin = _HEADER_BYTES + _SPANS_HEAD.size
    spans = raw[begin : begin + length]
    if len(spans) != length or zlib.crc32(spans) != checksum or length % _SPAN.size:
        return None
    starts: list[int] = []
    offset = 0
    for chunk_length, count in _SPAN.iter_unpack(spans):
        starts += range(offset, offset + chunk_length * count, chunk_length)
        offset += chunk_length * count
    if offset != size_bytes:
        return None
    return HaveRecord(size_bytes, starts), begin + length
