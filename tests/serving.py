"""
Owns the end of a test's web server.

Knows nothing of what it served.
Invariants: when cut() returns nothing is connected, not even who was let in while it ended.
Source: asyncio's selector transports (a connection is known to the server some turns of the loop
after it was accepted).
"""

from __future__ import annotations

import asyncio
from asyncio.base_events import Server

from aiohttp import web

# Accepted, made a transport, told to the protocol: each of it is a turn of the loop.
TURNS_TO_CONNECT = 5


async def cut(runner: web.AppRunner) -> None:
    """Listen no more and cut every connection, without a farewell."""
    loop = asyncio.get_running_loop()
    for site in runner.sites:
        for listener in site._server.sockets if isinstance(site._server, Server) else ():
            loop.remove_reader(listener.fileno())
    # Whoever becomes a transport after the server was closed is never closed itself (Python 3.11).
    for _ in range(TURNS_TO_CONNECT):
        await asyncio.sleep(0)
    for connection in [] if runner.server is None else runner.server.connections:
        if connection.transport is not None:
            connection.transport.abort()
    await runner.cleanup()
