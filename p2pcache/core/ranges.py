"""
Owns the reading of byte ranges: the Range header that we serve, the Content-Range that we check.

Knows nothing of files. One range only, as RFC 9110 allows; several are answered with the whole.
Invariants: numbers are bounded before arithmetic; a ByteRange is never empty.
Source: RFC 9110 §14.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2pcache.errors import InvalidRangeError, UpstreamProtocolError

# 2^63 has 19 digits; longer numbers are nobody's file size.
_DIGITS_MAX = 19
_RANGE = re.compile(r"bytes=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes start..end, both included, of a file of total bytes."""

    start: int
    end: int
    total: int

    @property
    def length(self) -> int:
        """Return how many bytes."""
        return self.end - self.start + 1

    def to_content_range(self) -> str:
        """Return the Content-Range header."""
        return f"bytes {self.start}-{self.end}/{self.total}"


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """
    Read a Range header against a file of size_bytes; the end is clamped.

    Returns:
        None when the whole file is to be sent: no header, another unit, several ranges, or a
        form that RFC 9110 tells us to ignore.

    Raises:
        InvalidRangeError: No byte of the file lies in the range (416).
    """
    if header is None:
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or max(len(match[1]), len(match[2])) > _DIGITS_MAX:
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if first:
        start, end = int(first), int(last) if last else size_bytes - 1
        if last and end < start:
            return None
    else:
        start, end = max(0, size_bytes - int(last)), size_bytes - 1
        if int(last) == 0:
            start = size_bytes
    if start >= size_bytes:
        raise InvalidRangeError(
            f"The range {header[:80]!r} starts beyond the end; the file has {size_bytes} bytes.",
            size_bytes=size_bytes,
        )
    return ByteRange(start, min(end, size_bytes - 1), size_bytes)


def parse_content_range(header: str | None) -> ByteRange:
    """
    Read the Content-Range of a 206.

    Raises:
        UpstreamProtocolError: Missing, malformed or contradictory.
    """
    match = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        raise UpstreamProtocolError(
            f"A partial answer came with the Content-Range {str(header)[:80]!r}; trying again."
        )
    start, end, total = int(match[1]), int(match[2]), int(match[3])
    if not start <= end < total:
        raise UpstreamProtocolError(
            f"A partial answer came with the impossible Content-Range {header!r}; trying again."
        )
    return ByteRange(start, end, total)
