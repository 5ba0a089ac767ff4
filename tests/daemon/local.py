"""
Owns a local endpoint and a peer endpoint in this process, over an engine of the engine tests.

Knows nothing of single tests.
Invariants: listens on 127.0.0.1 only; everything ends with close().
Source: daemon/app.py, which serves the same applications.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from p2pcache.daemon.app import bind, make_local_app, make_peer_app, serve, show_address
from p2pcache.daemon.management import Management
from tests.engine.engine import Engine
from tests.ports import pick_port

READ_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Return status and error code of a body in our form; fails on any other body."""
        decoded = self.json
        assert sorted(decoded) == ["error", "message"], decoded
        assert decoded["message"].strip(), decoded
        return self.status, decoded["error"]


class Served:
    """Both endpoints of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.stack = AsyncExitStack()
        self.local = ""
        self.peer = ""
        self.management: Management
        self.session: aiohttp.ClientSession

    async def open(self) -> Served:
        """Listen on free ports."""
        local, peer = (bind(("127.0.0.1", pick_port()), flag) for flag in ("--local", "--listen"))
        self.local, self.peer = show_address(local), show_address(peer)
        app, self.management = make_local_app(self.engine.cache, self.engine.downloads, local)
        await serve(app, local, self.stack)
        await serve(make_peer_app(self.engine.cache, self.engine.downloads), peer, self.stack)
        self.engine.cache.swarm.port = peer.getsockname()[1]
        self.session = await self.stack.enter_async_context(
            aiohttp.ClientSession(auto_decompress=False)
        )
        return self

    async def close(self) -> None:
        """Stop listening."""
        await self.stack.aclose()

    @property
    def change_headers(self) -> dict[str, str]:
        """Return the headers that a change needs."""
        token = self.engine.context.home.admin_token
        return {"Authorization": f"Bearer {token}", "X-P2PCache": "1"}

    async def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        peer: bool = False,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request; a body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        all_headers = dict(headers or {})
        if content is not None:
            all_headers.setdefault("Content-Type", "application/json")
        url = URL(f"http://{self.peer if peer else self.local}{path}", encoded=True)
        async with self.session.request(
            method,
            url,
            data=None if content is None else io.BytesIO(content),
            headers=all_headers,
            allow_redirects=False,
        ) as response:
            return Reply(response.status, dict(response.headers), await response.read())

    async def change(self, path: str, method: str = "POST", body: object = None) -> Reply:
        """Send a change as the command line does."""
        return await self.ask(path, method, body=body, headers=self.change_headers)


async def ask_raw(address: str, request: str | bytes) -> bytes:
    """Send bytes as they are and return all that comes back until the connection closes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.encode("latin-1") if isinstance(request, str) else request)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await reader.read()
    finally:
        writer.close()


async def serve_handler(stack: AsyncExitStack, app: web.Application) -> str:
    """Serve any application on a free port; returns its address."""
    listener = socket.create_server(("127.0.0.1", pick_port()))
    listener.setblocking(False)
    await serve(app, listener, stack)
    return show_address(listener)
