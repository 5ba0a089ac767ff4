"""
Owns the sending of file bodies: ranges, pace, byte counts, and the faults of a body.

Knows nothing of repositories or of the other headers.
Invariants: a byte is counted when it was handed to the connection, not when it was promised.
Source: RFC 9110 section 14 (ranges) and 13 (conditions).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from tests.hub.content import HubFile
from tests.hub.state import Call, RateBucket

PIECE_SIZE_BYTES = 256 * 1024  # bounds what is counted but never received
PIECE_SIZE_LIMITED_BYTES = 64 * 1024
PIECE_SIZE_MIN_BYTES = 1024
SOCKET_BUFFER_SIZE_BYTES = 256 * 1024
RANGE_PATTERN = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Span:
    """Byte offsets of a body: start included, stop not."""

    start: int
    stop: int


class UnsatisfiableRangeError(Exception):
    """No byte of the file is in the range."""


def parse_range(header: str | None, size_bytes: int) -> Span | None:
    """
    Read a Range header; None means that the whole file is due.

    Raises:
        UnsatisfiableRangeError: Well-formed, but outside the file.
    """
    match = RANGE_PATTERN.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        start, stop = max(size_bytes - int(last), 0), size_bytes
    else:
        start, stop = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= stop:
        raise UnsatisfiableRangeError
    return Span(start, stop)


async def send_file(
    call: Call, file: HubFile, headers: Mapping[str, str], *, honours_range: bool = True
) -> web.StreamResponse:
    """Answer with the file or the asked part of it; `headers` hold the quoted ETag."""
    request, switches = call.request, call.state.switches
    sent = {**headers, "Accept-Ranges": "bytes"}
    sent.setdefault("Content-Type", "application/octet-stream")
    if request.headers.get("If-None-Match") in (headers["ETag"], "*"):
        return web.Response(status=304, headers=headers)
    is_current = request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
    wants_range = request.method == "GET" and is_current and not switches.ignore_range
    wants_range = wants_range and honours_range
    try:
        asked = request.headers.get("Range") if wants_range else None
        span = parse_range(asked, file.size_bytes)
    except UnsatisfiableRangeError:
        sent["Content-Range"] = f"bytes */{file.size_bytes}"
        return web.Response(status=416, headers=sent)
    if span is None:
        status, span = 200, Span(0, file.size_bytes)
    else:
        status, shift = 206, 1 if switches.wrong_content_range else 0
        first, last = span.start + shift, span.stop - 1 + shift
        sent["Content-Range"] = f"bytes {first}-{last}/{file.size_bytes}"
    response = web.StreamResponse(status=status, headers=sent)
    if not switches.omit_sizes:
        response.content_length = span.stop - span.start
    if request.method != "HEAD":
        call.state.stats.path_requests[call.record.key] += 1
        await response.prepare(request)
        await _send_span(call, response, file, span)
    return response


async def _send_span(call: Call, response: web.StreamResponse, file: HubFile, span: Span) -> None:
    """Write the bytes, or as many as the faults let pass."""
    key, faults = call.record.key, call.state.faults
    _keep_buffers_small(call.request)
    stop = span.stop
    if faults.now.is_path_hit(key):
        stop = max(span.start, stop - faults.now.short_by_bytes)
    if (after := faults.take_break(key)) is not None:
        stop = min(stop, span.start + after)
    hang = faults.take_hang(key)
    own_bucket = RateBucket()
    offset = span.start
    with file.open_reader() as read:
        while offset < stop:
            if hang is not None and offset - span.start >= hang:
                await faults.wait_changed()
                hang = None
            size = min(_choose_piece_size(call), stop - offset)
            if hang is not None:
                size = min(size, hang - (offset - span.start))
            if not (size := faults.take_body(size)):
                break
            await call.state.bucket.wait(size, faults.now.rate_bytes_per_s)
            await own_bucket.wait(size, faults.now.connection_rate_bytes_per_s)
            piece = _flip(read(offset, size), offset, faults.now.flips.get(key))
            await response.write(piece)
            call.state.stats.count_body(call.record, len(piece))
            offset += len(piece)
    if offset < span.stop and call.request.transport is not None:
        call.request.transport.close()


def _choose_piece_size(call: Call) -> int:
    """Return a size that keeps counts honest and, under a limit, the gaps short."""
    switches = call.state.switches
    rates = (switches.rate_bytes_per_s, switches.connection_rate_bytes_per_s)
    limits = [rate for rate in rates if rate is not None]
    if not limits:
        return PIECE_SIZE_BYTES
    return max(PIECE_SIZE_MIN_BYTES, min(PIECE_SIZE_LIMITED_BYTES, min(limits) // 20))


def _flip(piece: bytes, offset: int, flip_offset: int | None) -> bytes:
    """Return the piece with the byte at the absolute offset inverted, if it is in there."""
    if flip_offset is None or not offset <= flip_offset < offset + len(piece):
        return piece
    changed = bytearray(piece)
    changed[flip_offset - offset] ^= 0xFF
    return bytes(changed)


def _keep_buffers_small(request: web.Request) -> None:
    """Let the kernel take little in advance, so that a vanished client stops the count soon."""
    transport = request.transport
    if transport is None:
        return
    transport.set_write_buffer_limits(high=PIECE_SIZE_LIMITED_BYTES)
    peer = transport.get_extra_info("socket")
    if peer is not None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE_BYTES)
