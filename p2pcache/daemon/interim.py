"""
Owns keeping an HTTP client patient before the status line: interim `100 Continue` answers.

Knows nothing of what is waited for.
Invariants: nothing is sent to HTTP/1.0 clients, nor once a response has begun.
Source: RFC 9110 §15.2; measured with huggingface_hub 0.24 to 2.4 and curl (design.md §7).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from aiohttp import HttpVersion11, web

T = TypeVar("T")

# Clients give up after 10 s without a byte.
INTERIM_INTERVAL_S = 3.0
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


async def hold(request: web.Request, work: Awaitable[T]) -> T:
    """Wait for some work, sending an interim answer every few seconds; return its result."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=INTERIM_INTERVAL_S)
            if done:
                return task.result()
            if request.version >= HttpVersion11 and request.transport is not None:
                request.transport.write(_INTERIM)
    finally:
        task.cancel()
