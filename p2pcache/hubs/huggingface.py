"""
Owns the Hugging Face hub's HTTP API, as a client.

Knows nothing of what is cached; nothing of bulk bytes.
Invariants: Authorization goes to the configured origin alone, through every redirect and page; a
revision is resolved to a commit before files are listed.
Source: docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import quote, urlsplit, urlunsplit

from p2pcache.core.credentials import Credentials
from p2pcache.core.hubjson import read_commit, read_siblings, read_tree
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FILES_PER_SNAPSHOT_MAX, FileEntry, Snapshot
from p2pcache.core.upstream import UpstreamLocation, error_of_answer
from p2pcache.errors import EntryNotFoundError, InputError, UpstreamProtocolError
from p2pcache.hubs.base import ForwardedAnswer, Gate, RequestKind, Resolution
from p2pcache.hubs.wire import HubWire, WireAnswer, WireRequest

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
        self._wire = HubWire(url, gate)

    def open(self) -> None:
        """Open the connection pool; call on the event loop."""
        self._wire.open()

    async def close(self) -> None:
        """Close the connection pool. Safe to call twice."""
        await self._wire.close()

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
        what = str(snapshot_id)
        answer = await self._send("HEAD", url, credentials, what, stops_at_redirect=True)
        if answer.status >= 400:
            has_token = not credentials.is_anonymous
            raise error_of_answer(answer.status, answer.headers, what, has_token=has_token)
        if "X-Repo-Commit" not in answer.headers:
            # A sign-in page answers 200, or redirects, too. Clients insist on this header as well.
            raise UpstreamProtocolError(
                f"What answered for {snapshot_id} names no commit, so it is no hub; "
                "check that a portal does not stand in between."
            )

    def locate(
        self, snapshot_id: SnapshotId, entry: FileEntry, credentials: Credentials
    ) -> UpstreamLocation:
        """Return where the data plane finds a file. See Hub.locate."""
        url = self._resolve_url(snapshot_id, entry.path)
        return self._wire.locate(url, snapshot_id, entry, credentials.headers())

    async def forward(
        self, method: str, raw_path: str, body: bytes, credentials: Credentials
    ) -> ForwardedAnswer:
        """Pass a request on. See Hub.forward."""
        url, what = self.url + raw_path, raw_path.partition("?")[0]
        answer = await self._send(method, url, credentials, what, body=body)
        return answer.forward(_KEPT_HEADERS)

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
        answer = await self._send("GET", url, credentials, what)
        status, headers = answer.status, answer.headers
        if status == 404 and "/tree/" in url and "X-Error-Code" not in headers:
            raise EntryNotFoundError(f"{what}: this hub lists no tree.")
        if status >= 400:
            raise error_of_answer(status, headers, what, has_token=not credentials.is_anonymous)
        try:
            decoded: object = json.loads(answer.body)
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
        what: str,
        *,
        body: bytes = b"",
        stops_at_redirect: bool = False,
    ) -> WireAnswer:
        return await self._wire.send(
            WireRequest(
                method,
                url,
                what,
                _kind_of(url),
                credentials.headers(),
                body,
                "application/x-www-form-urlencoded",
                stops_at_redirect=stops_at_redirect,
            )
        )


def _kind_of(url: str) -> RequestKind:
    """Return which of its quotas the hub counts a request in."""
    return "resolve" if "/resolve" in urlsplit(url).path else "api"
