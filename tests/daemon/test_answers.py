"""
Owns the tests of daemon.answers: every error class as an HTTP answer.

Knows nothing of routes.
Invariants: a body is {"error", "message"}; no traceback, no token leaves.
Source: daemon/answers.py; docs/reference/errors.md.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web

from p2pcache import errors
from p2pcache.daemon.answers import answer_error, answer_errors
from p2pcache.errors import ChunkNotYetError, P2PCacheError, UpstreamRateLimitedError
from tests.daemon.local import serve_handler

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, P2PCacheError)
]


def make_error(kind: type[P2PCacheError]) -> P2PCacheError:
    """Make an error of any class with what its constructor needs."""
    needed = {
        "chunk_index": 3,
        "peer_id": "p",
        "path": "/x",
        "retry_after_s": 2.4,
        "size_bytes": 10,
        "commit": "c",
    }
    parameters = inspect.signature(kind.__init__).parameters
    named = {name: value for name, value in needed.items() if name in parameters}
    return kind("It is so; do that.", **named)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_error_is_its_status_and_two_fields(kind: type[P2PCacheError]) -> None:
    """Every class of the hierarchy has a body of two fields, its own status and its code."""
    answer = answer_error(make_error(kind))
    assert answer.status == kind.http_status
    assert 400 <= answer.status < 600
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body) == {
        "error": kind.__name__.removesuffix("Error"),
        "message": "It is so; do that.",
    }
    assert answer.headers["X-Error-Code"] == kind.__name__.removesuffix("Error")
    assert answer.content_type == "application/json"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ChunkNotYetError("x", retry_after_s=2.4), "2"),
        (ChunkNotYetError("x", retry_after_s=0.1), "1"),
        (UpstreamRateLimitedError("x", retry_after_s=30), "30"),
        (UpstreamRateLimitedError("x"), None),
    ],
)
def test_retry_after_is_whole_seconds(error: P2PCacheError, expected: str | None) -> None:
    """Who is told to come back is told when, if we know."""
    assert answer_error(error).headers.get("Retry-After") == expected


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Serve handlers that fail in every way."""

    async def fail(request: web.Request) -> web.StreamResponse:
        match request.match_info["how"]:
            case "ours":
                raise errors.BlobNotFoundError("It is nowhere; ask another.")
            case "unforeseen":
                raise ZeroDivisionError("a secret detail")
            case "http":
                raise web.HTTPConflict
            case "redirect":
                raise web.HTTPFound("/elsewhere")
            case "body":
                await request.read()
        return web.Response(text="fine")

    app = web.Application(middlewares=[answer_errors], client_max_size=1000)
    app.router.add_get("/{how}", fail)
    app.router.add_post("/{how}", fail)
    async with AsyncExitStack() as stack:
        yield "http://" + await serve_handler(stack, app)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/ours", 404, "BlobNotFound"),
        ("GET", "/unforeseen", 500, "InternalError"),
        ("GET", "/http", 409, "Conflict"),
        ("GET", "/no/such/route", 404, "NotFound"),
        ("DELETE", "/ours", 405, "MethodNotAllowed"),
        ("POST", "/body", 413, "RequestEntityTooLarge"),
    ],
)
async def test_whatever_is_raised_is_json_and_shows_nothing_inside(
    address: str, method: str, path: str, status: int, code: str | None
) -> None:
    """Our errors, aiohttp's and unforeseen ones have the same form; details stay in the log."""
    body = b"x" * 5000 if method == "POST" else None
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, address + path, data=body) as response,
    ):
        text = await response.text()
    assert response.status == status
    decoded = json.loads(text)
    assert sorted(decoded) == ["error", "message"]
    assert code is None or decoded["error"] == code
    assert "secret" not in text
    assert "Traceback" not in text
    if status == 405:
        assert "GET" in response.headers["Allow"]


async def test_redirect_is_no_error(address: str) -> None:
    """A redirect that a handler raises stays one."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{address}/redirect", allow_redirects=False) as response,
    ):
        assert (response.status, response.headers["Location"]) == (302, "/elsewhere")
