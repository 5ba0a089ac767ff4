"""
Owns the tests of tests.serving.

Knows nothing of the package.
Invariants: none.
Source: tests/serving.py.
"""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from tests.serving import cut


@pytest.mark.parametrize("turns", range(8))
async def test_cut_leaves_nobody_connected_who_was_just_let_in(turns: int) -> None:
    """Whatever turn of the loop the end falls into: an open socket fails some later test."""
    runner = web.AppRunner(web.Application(), access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with socket.create_connection(runner.addresses[0][:2]) as client:
        for _ in range(turns):
            await asyncio.sleep(0)
        await cut(runner)
        client.setblocking(False)
        try:
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        except ConnectionResetError:
            pass
