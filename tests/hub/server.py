"""
Owns the running hub: three listeners (hub, CDN, control) and the way of each request.

Knows nothing of how single routes answer.
Invariants: listens on 127.0.0.1 unless told another address; a port stays while the hub lives.
Source: tests/hub modules; every answer carries X-Request-Id and the RateLimit headers.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType

from aiohttp import web

from tests.hub import api, listing, resolve
from tests.hub.answers import RefusalError, error_answer
from tests.hub.catalog import Catalog
from tests.hub.control import PREFIX, answer_control
from tests.hub.faults import Faults, FaultState
from tests.hub.listener import HOST, PortListener
from tests.hub.ms_answers import answer_modelscope
from tests.hub.ms_target import is_modelscope, parse_modelscope_target
from tests.hub.quota import QUOTA_REQUESTS, WINDOW_S, Quota
from tests.hub.repository import Repository
from tests.hub.state import PAGE_SIZE, PAGE_SIZE_EXPANDED, Call, HubState
from tests.hub.stats import Listener, RecordedRequest, Stats
from tests.hub.storage import answer_storage
from tests.hub.target import Target, parse_target
from tests.ports import pick_port

Answer = Callable[[Call], Awaitable[web.StreamResponse]]
RECORD: web.RequestKey[RecordedRequest] = web.RequestKey("record", RecordedRequest)
CLIENT_GONE_STATUS = 499
POLL_S = 0.005
WAIT_TIMEOUT_S = 10.0
EXPOSED = (
    "X-Repo-Commit,X-Request-Id,X-Error-Code,X-Error-Message,X-Total-Count,ETag,Link,"
    "Accept-Ranges,Content-Range,X-Linked-Size,X-Linked-ETag,X-Xet-Hash"
)
READ_METHODS = ("GET", "HEAD")
ANSWERS: Mapping[str, Answer] = {
    "resolve": resolve.answer_resolve,
    "resolve-cache": resolve.answer_resolve_cache,
    "info": api.answer_repository,
    "revision": api.answer_repository,
    "tree": listing.answer_tree,
    "paths-info": listing.answer_paths,
    "refs": api.answer_refs,
    "commits": api.answer_commits,
    "auth-check": api.answer_auth_check,
    "xet-read-token": api.answer_xet_token,
    "whoami-v2": api.answer_whoami,
    "telemetry": api.answer_empty,
    "agent-harnesses": api.answer_empty,
}


class Hub:
    """A hub in this event loop: `async with Hub([Repository(...)]) as hub: hub.url`."""

    def __init__(
        self,
        repositories: Iterable[Repository] = (),
        *,
        tokens: Iterable[str] = (),
        faults: Faults | None = None,
        page_size: int = PAGE_SIZE,
        page_size_expanded: int = PAGE_SIZE_EXPANDED,
        port: int = 0,
        cdn_port: int = 0,
        tls: ssl.SSLContext | None = None,
        host: str = HOST,
        quota_requests: int = QUOTA_REQUESTS,
    ) -> None:
        """
        Prepare a hub; nothing listens yet.

        Args:
            tls: Speak https with it, on the hub's and the storage's port.
            tokens: Tokens that are valid though no repository allows them in particular.
            faults: What set_faults() goes back to.
            quota_requests: Requests of each kind that a window has; said, not enforced.
            host: Where the hub and the storage listen; control stays on loopback.
        """
        state = FaultState(faults or Faults())
        catalog = Catalog(repositories, tokens)
        self.state = HubState(catalog, state, page_size, page_size_expanded)
        self._scheme = "http" if tls is None else "https"
        self._host = host
        self._quotas = {kind: Quota(quota_requests) for kind in ("api", "resolvers")}
        if host == HOST:
            # Closed and opened again at will, and called meanwhile.
            port, cdn_port = port or pick_port(), cdn_port or pick_port()
        self._hub = PortListener(self._answer_hub, self._decorate, port, tls, host)
        self._cdn = PortListener(self._answer_cdn, self._decorate, cdn_port, tls, host)
        self._control = PortListener(self._answer_control, self._decorate, 0)

    @property
    def url(self) -> str:
        """Return the address to use as HF_ENDPOINT."""
        return self.state.hub_url

    @property
    def cdn_url(self) -> str:
        """Return the address of the storage listener."""
        return self.state.cdn_url

    @property
    def control_url(self) -> str:
        """Return an address whose /_hub/ routes answer even when the hub does not listen."""
        return self.state.control_url

    @property
    def stats(self) -> Stats:
        """Return the live counts."""
        return self.state.stats

    @property
    def faults(self) -> Faults:
        """Return the switches now on."""
        return self.state.switches

    def set_faults(self, **changes: object) -> None:
        """Replace all switches by the hub's own plus these; no argument makes it behave."""
        self.state.faults.set_over_base(changes)

    def add(self, repository: Repository) -> Repository:
        """Offer one more repository."""
        self.state.catalog.add(repository)
        return repository

    def rename(self, repository: Repository, new_id: str) -> None:
        """Give a repository another id; the old one redirects."""
        self.state.catalog.rename(repository.kind, repository.repo_id, new_id)

    async def start(self) -> None:
        """Listen; the addresses are known from now on."""
        self.state.hub_url = f"{self._scheme}://{self._host}:{await self._hub.start()}"
        self.state.cdn_url = f"{self._scheme}://{self._host}:{await self._cdn.start()}"
        self.state.control_url = f"http://{HOST}:{await self._control.start()}"

    async def stop(self) -> None:
        """Close the listeners and every connection."""
        for listener in (self._hub, self._cdn, self._control):
            await listener.stop()

    async def set_listening(self, *, hub: bool = True, cdn: bool = True) -> None:
        """Open or close the listeners; closing cuts their connections too."""
        await self._hub.set_listening(hub)
        await self._cdn.set_listening(cdn)

    async def wait_for(
        self, condition: Callable[[Stats], bool], timeout_s: float = WAIT_TIMEOUT_S
    ) -> None:
        """
        Wait until the counts meet a condition.

        Raises:
            TimeoutError: They did not.
        """
        async with asyncio.timeout(timeout_s):
            while not condition(self.stats):  # noqa: ASYNC110 (a count has no event)
                await asyncio.sleep(POLL_S)

    async def __aenter__(self) -> Hub:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()

    async def _answer_control(self, request: web.Request) -> web.StreamResponse:
        """Answer on the control listener."""
        return await answer_control(self, request)

    async def _answer_hub(self, request: web.Request) -> web.StreamResponse:
        """Answer on the hub listener."""
        if request.path.startswith(PREFIX):
            return await answer_control(self, request)
        raw_path = request.raw_path.partition("?")[0]
        if is_modelscope(raw_path):
            target = parse_modelscope_target(raw_path, request.query)
            return await self._answer(request, "hub", target, answer_modelscope)
        target = parse_target(raw_path)
        allowed = ("POST",) if target.route == "paths-info" else READ_METHODS
        answer = ANSWERS.get(target.route) if request.method in allowed else None
        return await self._answer(request, "hub", target, answer or api.answer_other)

    async def _answer_cdn(self, request: web.Request) -> web.StreamResponse:
        """Answer on the storage listener."""
        return await self._answer(request, "cdn", Target("cdn"), answer_storage)

    async def _answer(
        self, request: web.Request, listener: Listener, target: Target, answer: Answer
    ) -> web.StreamResponse:
        """Record the request, let the faults act, answer."""
        stats, faults = self.state.stats, self.state.faults
        record = stats.open_request(
            listener, request.method, target.route, request.raw_path, dict(request.headers)
        )
        if request.transport is not None:
            record.client_port = request.transport.get_extra_info("peername")[1]
        request[RECORD] = record
        call = Call(self.state, request, target, record)
        try:
            if faults.now.is_route_hit(target.route):
                await asyncio.sleep(faults.now.latency_s)
            response = self._find_refusal(target) or await answer(call)
            record.status = response.status
        except RefusalError as refusal:
            response = refusal.answer
            record.status = response.status
        except ConnectionError:
            response = web.Response(status=record.status or CLIENT_GONE_STATUS)
        finally:
            stats.close_request(record)
        if isinstance(response, web.Response) and request.method != "HEAD":
            stats.json_bytes += response.content_length or 0
        return response

    def _find_refusal(self, target: Target) -> web.Response | None:
        """Return the answer of a fault that replaces the real one."""
        faults = self.state.faults
        if (status := faults.take_refusal(target.route)) is not None:
            refusal = error_answer(status, f"Refused on purpose with {status}")
            if faults.now.retry_after_s is not None:
                refusal.headers["Retry-After"] = str(faults.now.retry_after_s)
            return refusal
        if faults.now.html_body and faults.now.is_route_hit(target.route):
            text = "<!DOCTYPE html><html><body>Please sign in</body></html>"
            return web.Response(text=text, content_type="text/html")
        return None

    async def _decorate(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that every answer has, and note the status."""
        response.headers["X-Request-Id"] = f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)}"
        record = request.get(RECORD)
        if record is None:
            return
        record.status = response.status
        if record.listener == "hub":
            name = "resolvers" if record.route.startswith("resolve") else "api"
            quota = self._quotas[name]
            left, ends_in_s = quota.use()
            left = 0 if response.status == 429 else left
            response.headers["RateLimit"] = f'"{name}";r={left};t={ends_in_s}'
            policy = f'"fixed window";"{name}";q={quota.requests};w={WINDOW_S}'
            response.headers["RateLimit-Policy"] = policy
            response.headers["X-Powered-By"] = "huggingface-moon"
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
