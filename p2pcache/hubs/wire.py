"""
Owns one hub's HTTP requests for metadata: connection pool, redirects, patience, limits.

Knows nothing of what is asked and of what an answer means.
Invariants: what shows a token goes to the configured origin alone, through every redirect; every
body is read within a limit; a gate is asked before every request.
Source: RFC 9110 §15.4; docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from p2pcache import __version__
from p2pcache.core.messages import MESSAGE_BYTES_MAX
from p2pcache.core.ratelimit import find_pause_s
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import FileEntry
from p2pcache.core.upstream import (
    REDIRECT_STATUSES,
    REDIRECTS_MAX,
    UpstreamLocation,
    follow_redirect,
    origin_of,
)
from p2pcache.errors import UpstreamProtocolError, UpstreamUnreachableError
from p2pcache.hubs.base import ForwardedAnswer, Gate, OpenGate, RequestKind

# Clients give a HEAD 10 s; two of our own requests have to fit in.
REQUEST_S_MAX = 8.0
CONNECT_S_MAX = 4.0
# A hub has its moments; clients are held meanwhile, so a few seconds cost nobody anything. All
# waits of one question together: the rest of a client's 10 s is for the answer.
RETRIED_STATUSES = (429, 500, 502, 503, 504)
RETRY_WAITS_S = (0.25, 0.5, 1.0)
HOLD_S_MAX = 6.0
USER_AGENT = f"p2pcache/{__version__}"
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class WireRequest:
    """
    One request.

    Attributes:
        what: What is asked for, for messages.
        kind: Which of its quotas the hub counts it in.
        token_headers: For the hub's own origin alone; never shown.
        stops_at_redirect: Take a redirect away from the hub for its answer.
        is_body_secret: The body may hold a token, and goes to the hub's own origin alone too.
    """

    method: str
    url: str
    what: str
    kind: RequestKind
    token_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = b""
    content_type: str = ""
    stops_at_redirect: bool = False
    is_body_secret: bool = False


@dataclass(frozen=True, slots=True)
class WireAnswer:
    """One answer, after redirects; `is_elsewhere` if one led away and was not followed."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_elsewhere: bool = False

    def forward(self, kept_headers: Iterable[str]) -> ForwardedAnswer:
        """Return the answer for a client, with these of its headers alone."""
        kept = {name: self.headers[name] for name in kept_headers if name in self.headers}
        return ForwardedAnswer(self.status, kept, self.body)


class HubWire:
    """The connections to one hub; open() before use, close() after. Event loop only."""

    def __init__(self, url: str, gate: Gate | None = None) -> None:
        """
        Args:
            url: The hub's address; a path prefix is kept.
            gate: Asked before every request; without one nothing but the answer itself holds us.
        """
        self.url = url.rstrip("/")
        self._gate = gate or OpenGate()
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str] = {}

    def open(self) -> None:
        """Open the connection pool; call on the event loop."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_S_MAX, connect=CONNECT_S_MAX),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            # Not trust_env: it would sign anonymous questions with the daemon user's ~/.netrc.
            trust_env=False,
            # A session that a gateway opens for one caller is not another caller's.
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
        )
        self._proxies = urllib.request.getproxies()

    async def close(self) -> None:
        """Close the connection pool. Safe to call twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def locate(
        self, url: str, snapshot_id: SnapshotId, entry: FileEntry, token_headers: Mapping[str, str]
    ) -> UpstreamLocation:
        """
        Return where the data plane finds a file.

        What is fetched with a token is not named: whoever wants the same bytes by another name
        joins the fetch, and is told how it failed.
        """
        what = (
            f"a restricted file ({entry.digest})"
            if token_headers
            else f"{snapshot_id} {entry.path}"
        )
        headers = {"User-Agent": USER_AGENT, **token_headers}
        return UpstreamLocation(self.url, url, what, headers)

    async def send(self, request: WireRequest) -> WireAnswer:
        """
        Send; a hub that cannot serve now, or asks to slow down, is asked again a few times.

        Raises:
            UpstreamUnreachableError: Nobody answers.
            UpstreamRateLimitedError: The gate stays shut.
            UpstreamProtocolError: Redirects in a circle, or an answer without end.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + HOLD_S_MAX
        for wait_s in (*RETRY_WAITS_S, None):
            await self._gate.admit(request.kind, wait_s_max=max(0.0, deadline_s - loop.time()))
            answer = await self._send_once(request)
            if wait_s is None or answer.status not in RETRIED_STATUSES:
                break
            wait_s = max(wait_s, find_pause_s(answer.headers) or 0.0)
            if loop.time() + wait_s > deadline_s:
                break
            await asyncio.sleep(wait_s)
        return answer

    async def _send_once(self, request: WireRequest) -> WireAnswer:
        """Send with our own redirect rules."""
        assert self._session is not None, "open() comes first"
        url, may_send_token = request.url, True
        try:
            for _ in range(REDIRECTS_MAX + 1):
                headers = dict(request.token_headers) if may_send_token else {}
                if request.body:
                    headers["Content-Type"] = request.content_type
                async with self._session.request(
                    request.method,
                    URL(url, encoded=True),
                    data=request.body or None,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._find_proxy(url),
                ) as response:
                    if may_send_token:
                        # Storage that the hub redirects to has limits of its own.
                        self._gate.note_answer(request.kind, response.status, response.headers)
                    if response.status not in REDIRECT_STATUSES:
                        body = await _read_bounded(response)
                        return WireAnswer(response.status, response.headers, body)
                    hop = follow_redirect(self.url, url, response.headers.get("Location"))
                    if request.stops_at_redirect and origin_of(hop.url) != origin_of(self.url):
                        return WireAnswer(response.status, response.headers, b"", True)
                    if request.is_body_secret and not hop.may_send_token:
                        raise UpstreamProtocolError(
                            f"The hub redirects {request.what} to another server, which is not "
                            "sent what may hold a token; check the hub's address."
                        )
                    url, may_send_token = hop.url, hop.may_send_token
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UpstreamUnreachableError(
                f"The hub {self.url} does not answer ({reason}); check the network, "
                "or ask for what is cached."
            ) from error
        raise UpstreamProtocolError(f"The hub redirects {request.what} in a circle.")

    def _find_proxy(self, url: str) -> str | None:
        """Return the environment's proxy for an address."""
        scheme, host, _ = origin_of(url)
        proxy = self._proxies.get(scheme)
        if not proxy or urllib.request.proxy_bypass(host):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    pieces = []
    size = 0
    while piece := await response.content.read(_READ_BYTES):
        size += len(piece)
        if size > MESSAGE_BYTES_MAX:
            raise UpstreamProtocolError("The hub's answer has no end; it was cut off and refused.")
        pieces.append(piece)
    return b"".join(pieces)
