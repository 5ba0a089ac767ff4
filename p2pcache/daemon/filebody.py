"""
Owns how one file leaves by HTTP, in any hub's dialect: conditions, ranges, the body.

Knows nothing of addresses and of the headers that a dialect adds.
Invariants: a started body is exact or broken off, never wrong; a HEAD says what a GET would.
Source: RFC 9110 §13 and §14; docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aiohttp import web

from p2pcache.core.ranges import ByteRange, parse_range
from p2pcache.core.snapshot import FileEntry
from p2pcache.daemon.interim import hold
from p2pcache.daemon.sending import send_file_range
from p2pcache.engine.cache import Cache
from p2pcache.engine.reader import BlobReader
from p2pcache.errors import P2PCacheError

log = logging.getLogger(__name__)


def is_unmodified(request: web.Request, etag: str) -> bool:
    """Return whether If-None-Match names what we have (weak comparison, RFC 9110 §13.1.2)."""
    header = request.headers.get("If-None-Match")
    if header is None:
        return False
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return "*" in names or etag in names


def choose_range(request: web.Request, entry: FileEntry, etag: str) -> ByteRange | None:
    """
    Return the range to send, None for all; If-Range that does not match means all.

    Raises:
        InvalidRangeError: No byte of the file is in it.
    """
    if_range = request.headers.get("If-Range")
    if if_range is not None and if_range.strip() != etag:
        return None
    return parse_range(request.headers.get("Range"), entry.size_bytes)


def find_early_answer(
    request: web.Request, entry: FileEntry, headers: Mapping[str, str]
) -> web.Response | None:
    """
    Return what needs no byte of the file, so that nothing is fetched for it: a 304.

    Raises:
        InvalidRangeError: No byte of the file was asked for.
    """
    if is_unmodified(request, headers["ETag"]):
        return web.Response(status=304, headers=headers)
    choose_range(request, entry, headers["ETag"])
    return None


def make_head(request: web.Request, entry: FileEntry, headers: Mapping[str, str]) -> web.Response:
    """
    Return the answer to a HEAD; `headers` are those of the dialect, with the ETag.

    Raises:
        InvalidRangeError: As for the GET.
    """
    sent = dict(headers)
    if is_unmodified(request, sent["ETag"]):
        return web.Response(status=304, headers=sent)
    wanted = choose_range(request, entry, sent["ETag"])
    if wanted is not None:
        sent["Content-Range"] = wanted.to_content_range()
    sent["Content-Length"] = str(entry.size_bytes if wanted is None else wanted.length)
    return web.Response(status=200 if wanted is None else 206, headers=sent)


async def send_body(
    request: web.Request,
    cache: Cache,
    reader: BlobReader,
    entry: FileEntry,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """
    Answer a GET: 304, or what was asked of the file, once that can flow.

    Raises:
        InvalidRangeError: No byte of the file was asked for.
        P2PCacheError: Nothing of it can be had; nothing was sent then.
    """
    if is_unmodified(request, headers["ETag"]):
        return web.Response(status=304, headers=headers)
    wanted = choose_range(request, entry, headers["ETag"])
    start, length = (0, entry.size_bytes) if wanted is None else (wanted.start, wanted.length)
    if start > 0:
        cache.check_may_resume(entry)
    await hold(request, reader.ready(start))
    response = web.StreamResponse(status=200 if wanted is None else 206, headers=headers)
    if wanted is not None:
        response.headers["Content-Range"] = wanted.to_content_range()
    response.content_length = length
    await response.prepare(request)
    try:
        async for segment in reader.segments(start, length):
            await send_file_range(request, response, segment.fd, segment.offset, segment.length)
            cache.context.bytes_counted["disk", "out"] += segment.length
    except (P2PCacheError, TimeoutError) as error:
        # The status line is out: the only honest answer left is to break off.
        log.warning("%s was broken off: %s", entry.path, error)
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response
