"""
Owns the Hugging Face hub's HTTP API, as a client.

Knows nothing of what is cached; nothing of bulk bytes.
Invariants: Authorization goes to the configured origin alone, through every redirect and page;
every body is read within a limit; a revision is resolved to a commit before files are listed.
Source: docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Mapping
from urllib.parse import quote, urlsplit, urlunsplit

import aiohttp
from yarl import URL

from p2pcache import __version__
from p2pcache.core.credentials import Credentials
from p2pcache.core.hubjson import read_commit, read_siblings, read_tree
from p2pcache.core.messages import MESSAGE_BYTES_MAX
from p2pcache.core.ratelimit import find_pause_s
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FILES_PER_SNAPSHOT_MAX, FileEntry, Snapshot
from p2pcache.core.upstream import (
    REDIRECT_STATUSES,
    REDIRECTS_MAX,
    UpstreamLocation,
    error_of_answer,
    follow_redirect,
    origin_of,
)
from p2pcache.errors import (
    EntryNotFoundError,
    InputError,
    UpstreamProtocolError,
    UpstreamUnreachableError,
)
from p2pcache.hubs.base import ForwardedAnswer, Gate, OpenGate, RequestKind, Resolution

# Clients give a HEAD 10 s; two of our own requests have to fit in.
REQUEST_S_MAX = 8.0
CONNECT_S_MAX = 4.0
# A hub has its moments; clients are held meanwhile, so a few seconds cost nobody anything. All
# waits of one question together: the rest of a client's 10 s is for the answer.
RETRIED_STATUSES = (429, 500, 502, 503, 504)
RETRY_WAITS_S = (0.25, 0.5, 1.0)
HOLD_S_MAX = 6.0
# Hubs list 1000 files on a page; a listing of small or empty pages ends somewhere too.
PAGES_MAX = 10_000
_KEPT_HEADERS = (
    "Content-Type", "ETag", "Link", "RateLimit", "RateLimit-Policy", "Retry-After",
    "X-Error-Code", "X-Error-Message", "X-HF-Warning", "X-Repo-Commit", "X-Request-Id",
    "X-Total-Count",
)  # fmt: skip


class HuggingFaceHub:
    """A client of one hub endpoint. Implements Hub; open() before use, close() after."""

    def __init__(self, url: str, gate: Gate | None = None) -> None:
        """
        Args:
            url: The endpoint, for example `https://huggingface.co`; a path prefix is kept.
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
            headers={"User-Agent": f"p2pcache/{__version__}", "Accept-Encoding": "identity"},
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

    async def resolve(self, repo: RepoId, revision: str, credentials: Credentials) -> Resolution:
        """Ask what a revision points to. See Hub.resolve."""
        url = f"{self._api(repo)}/revision/{quote(revision, safe='')}"
        about, _ = await self._get_json(url, f"{repo}@{revision}", credentials)
        commit = read_commit(about)
        assert isinstance(about, dict), "read_commit() refuses anything else"
        return Resolution(commit, about)

    async def list_files(self, snapshot_id: SnapshotId, credentials: Credentials) -> Snapshot:
        """Ask for all files: the tree, page by page; or the siblings where there is no tree."""
        url: str | None = f"{self._api(snapshot_id.repo)}/tree/{snapshot_id.commit}?recursive=true"
        items: list[object] = []
        page_count = 0
        try:
            while url is not None:
                page, url = await self._get_json(url, str(snapshot_id), credentials)
                if not isinstance(page, list):
                    raise UpstreamProtocolError("The hub's file list is no list.")
                items.extend(page)
                page_count += 1
                if len(items) > FILES_PER_SNAPSHOT_MAX * 2 or page_count > PAGES_MAX:
                    raise UpstreamProtocolError(f"The hub lists too many files: {snapshot_id}.")
            entries = read_tree(items)
        except EntryNotFoundError:
            entries = await self._list_siblings(snapshot_id, credentials)
        try:
            return Snapshot.of(snapshot_id, entries)
        except InputError as error:
            raise UpstreamProtocolError(f"The hub's file list cannot be: {error}") from error

    async def _list_siblings(
        self, snapshot_id: SnapshotId, credentials: Credentials
    ) -> list[FileEntry]:
        url = f"{self._api(snapshot_id.repo)}/revision/{snapshot_id.commit}?blobs=true"
        about, _ = await self._get_json(url, str(snapshot_id), credentials)
        return read_siblings(about)

    async def check_access(
        self, snapshot_id: SnapshotId, path: str, credentials: Credentials
    ) -> None:
        """Ask by HEAD whether a file would be given. See Hub.check_access."""
        url = self._resolve_url(snapshot_id, path)
        status, headers, _ = await self._send(
            "HEAD", url, credentials, b"", str(snapshot_id), stops_at_other_origin=True
        )
        if status >= 400:
            raise error_of_answer(
                status, headers, str(snapshot_id), has_token=not credentials.is_anonymous
            )
        if "X-Repo-Commit" not in headers:
            # A sign-in page answers 200, or redirects, too. Clients insist on this header as well.
            raise UpstreamProtocolError(
                f"What answered for {snapshot_id} names no commit, so it is no hub; "
                "check that a portal does not stand in between."
            )

    def locate(
        self, snapshot_id: SnapshotId, entry: FileEntry, credentials: Credentials
    ) -> UpstreamLocation:
        """Return where the data plane finds a file. See Hub.locate."""
        headers = {"User-Agent": f"p2pcache/{__version__}", **credentials.headers()}
        url = self._resolve_url(snapshot_id, entry.path)
        return UpstreamLocation(self.url, url, f"{snapshot_id} {entry.path}", headers)

    async def forward(
        self, method: str, raw_path: str, body: bytes, credentials: Credentials
    ) -> ForwardedAnswer:
        """Pass a request on. See Hub.forward."""
        status, headers, answer = await self._send(
            method, self.url + raw_path, credentials, body, raw_path.partition("?")[0]
        )
        kept = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
        return ForwardedAnswer(status, kept, answer)

    def _find_proxy(self, url: str) -> str | None:
        """Return the environment's proxy for an address."""
        scheme, host, _ = origin_of(url)
        proxy = self._proxies.get(scheme)
        if not proxy or urllib.request.proxy_bypass(host):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def _api(self, repo: RepoId) -> str:
        return f"{self.url}/api/{repo.kind}/{repo.name}"

    def _resolve_url(self, snapshot_id: SnapshotId, path: str) -> str:
        repo = snapshot_id.repo
        prefix = "" if repo.kind == "models" else f"{repo.kind}/"
        return f"{self.url}/{prefix}{repo.name}/resolve/{snapshot_id.commit}/{quote(path)}"

    async def _get_json(
        self, url: str, what: str, credentials: Credentials
    ) -> tuple[object, str | None]:
        """Return the decoded answer and the address of the next page."""
        status, headers, body = await self._send("GET", url, credentials, b"", what)
        if status == 404 and "/tree/" in url and "X-Error-Code" not in headers:
            raise EntryNotFoundError(f"{what}: this hub lists no tree.")
        if status >= 400:
            raise error_of_answer(status, headers, what, has_token=not credentials.is_anonymous)
        try:
            decoded: object = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UpstreamProtocolError(
                f"The hub answered {what} with something that is not JSON; "
                "check that a portal does not stand in between."
            ) from error
        return decoded, self._next_page(headers, url)

    def _next_page(self, headers: Mapping[str, str], url: str) -> str | None:
        """Return the next page, put back on the configured origin: mirrors name another."""
        for part in headers.get("Link", "").split(","):
            address, _, relation = part.partition(";")
            if 'rel="next"' in relation.replace(" ", ""):
                following = urlsplit(address.strip().strip("<>"))
                here = urlsplit(url)
                return urlunsplit((here.scheme, here.netloc, following.path, following.query, ""))
        return None

    async def _send(
        self,
        method: str,
        url: str,
        credentials: Credentials,
        body: bytes,
        what: str,
        *,
        stops_at_other_origin: bool = False,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send; a hub that cannot serve now, or asks to slow down, is asked again a few times."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + HOLD_S_MAX
        for wait_s in (*RETRY_WAITS_S, None):
            await self._gate.admit(_kind_of(url), wait_s_max=max(0.0, deadline_s - loop.time()))
            status, headers, answer = await self._send_once(
                method, url, credentials, body, what, stops_at_other_origin=stops_at_other_origin
            )
            if wait_s is None or status not in RETRIED_STATUSES:
                break
            wait_s = max(wait_s, find_pause_s(headers) or 0.0)
            if loop.time() + wait_s > deadline_s:
                break
            await asyncio.sleep(wait_s)
        return status, headers, answer

    async def _send_once(
        self,
        method: str,
        url: str,
        credentials: Credentials,
        body: bytes,
        what: str,
        *,
        stops_at_other_origin: bool = False,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send with our own redirect rules; returns (status, headers, body)."""
        assert self._session is not None, "open() comes first"
        may_send_token = True
        try:
            for _ in range(REDIRECTS_MAX + 1):
                headers = credentials.headers() if may_send_token else {}
                if body:
                    headers["Content-Type"] = "application/x-www-form-urlencoded"
                async with self._session.request(
                    method,
                    URL(url, encoded=True),
                    data=body or None,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._find_proxy(url),
                ) as response:
                    if may_send_token:
                        # Storage that the hub redirects to has limits of its own.
                        self._gate.note_answer(_kind_of(url), response.status, response.headers)
                    if response.status not in REDIRECT_STATUSES:
                        return response.status, response.headers, await _read_bounded(response)
                    hop = follow_redirect(self.url, url, response.headers.get("Location"))
                    if stops_at_other_origin and origin_of(hop.url) != origin_of(self.url):
                        return 200, response.headers, b""
                    url, may_send_token = hop.url, hop.may_send_token
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UpstreamUnreachableError(
                f"The hub {self.url} does not answer ({reason}); check the network, "
                "or ask for what is cached."
            ) from error
        raise UpstreamProtocolError(f"The hub redirects {what} in a circle.")


def _kind_of(url: str) -> RequestKind:
    """Return which of its quotas the hub counts a request in."""
    return "resolve" if "/resolve" in urlsplit(url).path else "api"


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    content = await response.content.read(MESSAGE_BYTES_MAX + 1)
    pieces = [content]
    size = len(content)
    while content and size <= MESSAGE_BYTES_MAX:
        content = await response.content.read(MESSAGE_BYTES_MAX + 1 - size)
        pieces.append(content)
        size += len(content)
    if size > MESSAGE_BYTES_MAX:
        raise UpstreamProtocolError("The hub's answer has no end; it was cut off and refused.")
    return b"".join(pieces)
