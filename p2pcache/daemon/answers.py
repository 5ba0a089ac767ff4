"""
Owns turning errors into HTTP answers, the same way on every endpoint.

Knows nothing of routes.
Invariants: a body is `{"error", "message"}`; no traceback leaves the process; whatever is not
ours is logged and answered 500.
Source: house style (errors); docs/reference/errors.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from p2pcache.errors import (
    ChunkNotYetError,
    DaemonBusyError,
    P2PCacheError,
    UpstreamRateLimitedError,
)

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer_error(error: P2PCacheError, headers: dict[str, str] | None = None) -> web.Response:
    """Return the answer for an error of ours."""
    all_headers = {"X-Error-Code": error.code, **(headers or {})}
    if isinstance(error, DaemonBusyError):
        all_headers["Retry-After"] = "1"
    if isinstance(error, ChunkNotYetError):
        all_headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, UpstreamRateLimitedError) and error.retry_after_s is not None:
        all_headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return web.json_response(
        {"error": error.code, "message": str(error)}, status=error.http_status, headers=all_headers
    )


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into an answer."""
    try:
        return await handler(request)
    except P2PCacheError as error:
        return answer_error(error)
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
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return web.json_response(
            {"error": "InternalError", "message": "The daemon failed at this; its log says more."},
            status=500,
        )
