"""
Owns one port: opening it, closing it, cutting its connections.

Knows nothing of what is answered.
Invariants: once known, the port never changes; 127.0.0.1 unless told another address.
Source: aiohttp's application runner.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from tests.serving import cut

HOST = "127.0.0.1"
SHUTDOWN_TIMEOUT_S = 0.05
REQUEST_SIZE_BYTES_MAX = 256 << 20  # control requests carry files

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Decorator = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


class PortListener:
    """One port where a handler answers every request."""

    def __init__(
        self,
        handler: Handler,
        decorate: Decorator,
        port: int,
        tls: ssl.SSLContext | None = None,
        host: str = HOST,
    ) -> None:
        self._host = host
        self._tls = tls
        self._handler = handler
        self._decorate = decorate
        self._port = port
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen and return the port."""
        app = web.Application(client_max_size=REQUEST_SIZE_BYTES_MAX)
        app.router.add_route("*", "/{tail:.*}", self._handler)
        app.on_response_prepare.append(self._decorate)
        runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )
        await runner.setup()
        site = web.TCPSite(
            runner, self._host, self._port, reuse_address=True, ssl_context=self._tls
        )
        await site.start()
        self._port = runner.addresses[0][1]
        self._runner = runner
        return self._port

    async def stop(self) -> None:
        """Stop listening and cut what is connected; harmless when stopped."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await cut(runner)

    async def set_listening(self, wanted: bool) -> None:
        """Open or close the port."""
        if wanted and self._runner is None:
            await self.start()
        elif not wanted:
            await self.stop()
