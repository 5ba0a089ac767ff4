"""
Owns turning errors into HTTP answers, the same way on every endpoint.

Knows nothing of routes.
Invariants: a body is `{"error", "message"}`; no traceback leaves the process; whatever is not
ours is logged and answered 500; a response that has begun is broken off, never written into.
Source: house style (errors); docs/reference/errors.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from p2pcache.errors import (
    ChunkNotYetError,
    DaemonBusyError,
    InputError,
    P2PCacheError,
    UpstreamRateLimitedError,
)

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer_error(
    error: P2PCacheError, headers: dict[str, str] | None = None, *, message: str = ""
) -> web.Response:
    """Return the answer for an error of ours, in its own words unless others are given."""
    all_headers = {"X-Error-Code": error.code, **(headers or {})}
    if isinstance(error, DaemonBusyError):
        all_headers["Retry-After"] = "1"
    if isinstance(error, ChunkNotYetError):
        all_headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, UpstreamRateLimitedError) and error.retry_after_s is not None:
        all_headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return web.json_response(
        {"error": error.code, "message": message or str(error)},
        status=error.http_status,
        headers=all_headers,
    )


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into an answer."""
    try:
        return await _answer(request, handler)
    except (ConnectionError, TimeoutError) as error:
        if not _has_begun(request):
            raise
        log.debug("%s %s was broken off: %s", request.method, request.path, error)
    # The status line is out: a second one would be read as part of the body.
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except P2PCacheError as error:
        _check_not_begun(request, error)
        return answer_error(error)
    except web.RequestPayloadError:
        return answer_error(InputError("The body cannot be read; send it plain, as JSON."))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = error.reason.replace(" ", "")
        headers = {"X-Error-Code": code}
        if "Allow" in error.headers:
            headers["Allow"] = error.headers["Allow"]
        message = f"{error.reason}: {request.path[:200]}; see the list of routes in the docs."
        return web.json_response(
            {"error": code, "message": message}, status=error.status, headers=headers
        )
    except (ConnectionError, TimeoutError):
        raise
    except Exception as error:
        _check_not_begun(request, error)
        log.exception("%s %s failed", request.method, request.path)
        return web.json_response(
            {"error": "InternalError", "message": "The daemon failed at this; its log says more."},
            status=500,
        )


def _has_begun(request: web.Request) -> bool:
    """Return whether a response's head was sent."""
    return request.writer.output_size > 0


def _check_not_begun(request: web.Request, error: Exception) -> None:
    if _has_begun(request):
        log.warning("%s %s was broken off: %r", request.method, request.path, error)
        raise ConnectionAbortedError("the response had begun") from error
