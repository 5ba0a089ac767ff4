"""
Owns the check of what leaves for another origin when a hub redirects: no token, in no form.

Knows nothing of what is asked.
Invariants: the other origin is a server of this test, and keeps all that it is sent.
Source: hubs/wire.py; RFC 9110 §15.4.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from p2pcache.core.credentials import Credentials
from p2pcache.errors import UpstreamProtocolError
from p2pcache.hubs.huggingface import HuggingFaceHub
from p2pcache.hubs.modelscope import ModelScopeHub

SECRET = "ms-secret-token"
STATUSES = (301, 302, 303, 307, 308)


class Elsewhere:
    """A hub that redirects all that it is asked to another server, which keeps what comes."""

    def __init__(self) -> None:
        self.heard = ""
        self.hub_url = self.other_url = ""
        self.status = 307
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Elsewhere:
        """Listen on two ports."""
        self.hub_url, self.other_url = [await self._serve(a) for a in (self._lead, self._keep)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self._stack.aclose()

    async def _serve(self, answer: object) -> str:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)  # type: ignore[arg-type]
        runner = web.AppRunner(app)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _lead(self, request: web.Request) -> web.Response:
        return web.Response(status=self.status, headers={"Location": f"{self.other_url}/taken"})

    async def _keep(self, request: web.Request) -> web.Response:
        self.heard += f"{request.method} {request.raw_path} {dict(request.headers)} "
        self.heard += (await request.read()).decode()
        return web.json_response({"Code": 200, "Data": {}, "Success": True})


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    """Run both servers."""
    async with Elsewhere() as running:
        yield running


@pytest.mark.parametrize("status", STATUSES)
async def test_login_that_is_redirected_elsewhere_tells_nobody_the_token(
    elsewhere: Elsewhere, status: int
) -> None:
    """ModelScope's clients send their token in the body; a body goes where a token may."""
    elsewhere.status = status
    hub = ModelScopeHub(elsewhere.hub_url)
    hub.open()
    try:
        body = f'{{"AccessToken": "{SECRET}"}}'.encode()
        with pytest.raises(UpstreamProtocolError):
            await hub.forward("POST", "/api/v1/login", body, Credentials(SECRET))
    finally:
        await hub.close()
    assert SECRET not in elsewhere.heard


@pytest.mark.parametrize("status", STATUSES)
async def test_question_that_is_redirected_elsewhere_goes_without_the_token(
    elsewhere: Elsewhere, status: int
) -> None:
    """A mirror may lead to the hub that it mirrors: asked as anybody."""
    elsewhere.status = status
    for hub in (ModelScopeHub(elsewhere.hub_url), HuggingFaceHub(elsewhere.hub_url)):
        hub.open()
        try:
            await hub.forward("GET", "/api/models/org/model/refs", b"", Credentials(SECRET))
        finally:
            await hub.close()
    assert "GET /taken" in elsewhere.heard
    assert SECRET not in elsewhere.heard
