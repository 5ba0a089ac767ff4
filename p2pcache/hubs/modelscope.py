"""
Owns ModelScope's HTTP API, as a client.

Knows nothing of what is cached; nothing of bulk bytes.
Invariants: a token goes to the configured origin alone, in the header and in the cookie; a revision
is resolved to a commit before files are listed; a listing that the hub cut short is completed or
refused.
Source: docs/reference/modelscope-dialect.md; docs/decisions/0018-modelscope.md.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from p2pcache.core.credentials import Credentials
from p2pcache.core.msjson import (
    CODE_NO_ACCESS,
    CODE_NO_TREE,
    CODE_NOT_FOUND,
    Envelope,
    FileList,
    find_commit,
    name_listing,
    read_entries,
    read_envelope,
    read_files,
)
from p2pcache.core.refs import RepoId, SnapshotId, is_commit
from p2pcache.core.snapshot import FILES_PER_SNAPSHOT_MAX, FileEntry, Snapshot
from p2pcache.core.upstream import UpstreamLocation, error_of_answer
from p2pcache.errors import (
    GatedRepositoryError,
    InputError,
    NotFoundError,
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SourceError,
    UpstreamAuthError,
    UpstreamFailedError,
    UpstreamProtocolError,
)
from p2pcache.hubs.base import ForwardedAnswer, Gate, RequestKind, Resolution
from p2pcache.hubs.wire import HubWire, WireAnswer, WireRequest

SESSION_COOKIE = "m_session_id"
# `repo/files` has no pages: it leaves out what comes after so many entries, without a word.
LISTING_ENTRIES_MAX = 3000
# What clients ask for at once of a data set's files.
PAGE_ENTRIES = 200
# Each request of a walk brings a folder, or a page of a data set; a hostile tree ends somewhere.
LISTING_REQUESTS_MAX = 2000
# Names that stand for a state of a repository whose hub names no commit; the oldest goes.
NAMED_STATES_MAX = 1024
_KEPT_HEADERS = ("Content-Type", "Retry-After", "X-Request-Id")


class ModelScopeHub:
    """A client of one hub endpoint. Implements Hub; open() before use, close() after."""

    def __init__(self, url: str, gate: Gate | None = None) -> None:
        """
        Args:
            url: The endpoint, for example `https://modelscope.cn`; a path prefix is kept.
            gate: Asked before every request.
        """
        self.url = url.rstrip("/")
        self._wire = HubWire(url, gate)
        # The revision that stands for a commit which only we named: the hub does not know it.
        self._named: OrderedDict[SnapshotId, str] = OrderedDict()

    def open(self) -> None:
        """Open the connection pool; call on the event loop."""
        self._wire.open()

    async def close(self) -> None:
        """Close the connection pool. Safe to call twice."""
        await self._wire.close()

    async def resolve(self, repo: RepoId, revision: str, credentials: Credentials) -> Resolution:
        """Ask what a revision points to. See Hub.resolve."""
        if is_commit(revision):
            return Resolution(revision, await self._describe(repo, credentials))
        commit, about = await asyncio.gather(
            self._find_commit(repo, revision, credentials), self._describe(repo, credentials)
        )
        return Resolution(commit, about)

    async def list_files(self, snapshot_id: SnapshotId, credentials: Credentials) -> Snapshot:
        """Ask for all files: of a model folder by folder if need be, of a data set page by page."""
        revision = self._named.get(snapshot_id, snapshot_id.commit)
        entries = await self._list_entries(snapshot_id.repo, revision, credentials)
        try:
            return Snapshot.of(snapshot_id, entries)
        except InputError as error:
            raise UpstreamProtocolError(f"The hub's file list cannot be: {error}") from error

    async def check_access(
        self, snapshot_id: SnapshotId, path: str, credentials: Credentials
    ) -> None:
        """Ask by HEAD whether a file would be given. See Hub.check_access."""
        url, what = self._file_url(snapshot_id, path), f"{snapshot_id} {path}"
        answer = await self._send("HEAD", url, credentials, what, stops_at_redirect=True)
        error = None if answer.status < 400 else _error_of(answer, None, what, credentials)
        if error is not None and not isinstance(error, RepositoryNotFoundError):
            raise error
        if error is None and urlsplit(self.url).scheme == "https":
            return
        # Anybody's sign-in page answers 200, or redirects, too; verified TLS says who does. A no
        # has no words: whoever is shown the repository is refused its files alone.
        await self._get(self._api(snapshot_id.repo), credentials, str(snapshot_id.repo))
        if error is not None:
            raise GatedRepositoryError(
                f"The hub shows {snapshot_id.repo} and not its files: accept its terms on the hub "
                "and pass that account's token."
            ) from error

    def locate(
        self, snapshot_id: SnapshotId, entry: FileEntry, credentials: Credentials
    ) -> UpstreamLocation:
        """Return where the data plane finds a file. See Hub.locate."""
        token_headers = credentials.headers(cookie=SESSION_COOKIE)
        url = self._file_url(snapshot_id, entry.path)
        return self._wire.locate(url, snapshot_id, entry, token_headers)

    async def forward(
        self, method: str, raw_path: str, body: bytes, credentials: Credentials
    ) -> ForwardedAnswer:
        """Pass a request on. See Hub.forward."""
        answer = await self._wire.send(
            WireRequest(
                method,
                self.url + raw_path,
                raw_path.partition("?")[0],
                "api",
                credentials.headers(cookie=SESSION_COOKIE),
                body,
                "application/json",
                is_body_secret=bool(body),  # a login has the token in it
            )
        )
        return answer.forward(_KEPT_HEADERS)

    # --- revisions ---

    async def _find_commit(self, repo: RepoId, revision: str, credentials: Credentials) -> str:
        """Return the commit of a branch or tag; where the hub names none, a name of our own."""
        what = f"{repo}@{revision}"
        query = f"Ref={quote(revision, safe='')}&PageNumber=1&PageSize=1"
        try:
            content = await self._get(f"{self._api(repo)}/commits?{query}", credentials, what)
        except (UpstreamProtocolError, RepositoryNotFoundError):
            # No such list, in one way of saying so or another: the files themselves decide.
            return await self._name_state(repo, revision, credentials)
        commit = find_commit(content)
        if commit is None:
            raise RevisionNotFoundError(f"{what}: no such revision; look at its branches.")
        return commit

    async def _name_state(self, repo: RepoId, revision: str, credentials: Credentials) -> str:
        """Name what a revision is now, by the hub's own word in the listing, or by its files."""
        first = await self._list_once(repo, revision, "", credentials, is_deep=False)
        if first.commit is not None:
            return first.commit
        commit = name_listing(await self._list_entries(repo, revision, credentials))
        snapshot_id = SnapshotId(repo, commit)
        self._named[snapshot_id] = revision
        self._named.move_to_end(snapshot_id)
        if len(self._named) > NAMED_STATES_MAX:
            self._named.popitem(last=False)
        return commit

    async def _describe(self, repo: RepoId, credentials: Credentials) -> dict[str, object]:
        """Return what clients ask besides files: the repository itself, its branches and tags."""
        url = self._api(repo)
        found = await asyncio.gather(
            self._get(f"{url}/revisions", credentials, str(repo)),
            self._get(url, credentials, str(repo)),
            return_exceptions=True,
        )
        for answer in found:
            # Files can be served without; anything else is a mistake of ours.
            if isinstance(answer, BaseException) and not isinstance(
                answer, SourceError | NotFoundError
            ):
                raise answer
        names = ("revisions", "repository")
        return {
            name: answer
            for name, answer in zip(names, found, strict=True)
            if not isinstance(answer, BaseException)
        }

    # --- file lists ---

    async def _list_entries(
        self, repo: RepoId, revision: str, credentials: Credentials
    ) -> list[FileEntry]:
        if repo.kind == "datasets":
            items = await self._list_pages(repo, revision, credentials)
        else:
            items = await self._walk(repo, revision, credentials)
        if not items:
            # The hub answers a revision that it does not have with an empty list.
            raise RevisionNotFoundError(
                f"{repo} has no files at {revision}; look at its branches and tags."
            )
        return read_entries(items)

    async def _walk(
        self, repo: RepoId, revision: str, credentials: Credentials
    ) -> list[dict[str, object]]:
        """List a model's files; what comes back cut short is listed folder by folder."""
        found: list[dict[str, object]] = []
        folders, count = [""], 0
        while folders:
            folder = folders.pop()
            for is_deep in (True, False):
                count += 1
                _check_bounds(repo, count, len(found))
                listing = await self._list_once(
                    repo, revision, folder, credentials, is_deep=is_deep
                )
                is_cut = len(listing.items) >= LISTING_ENTRIES_MAX
                if not is_deep and is_cut:
                    raise UpstreamProtocolError(
                        f"{repo} has {LISTING_ENTRIES_MAX} files or more in {folder or '/'!r}, "
                        "which the hub does not list; ask its owner to spread them over folders."
                    )
                if not is_cut:
                    found += listing.items
                    folders += [] if is_deep else listing.folders
                    break
        return found

    async def _list_pages(
        self, repo: RepoId, revision: str, credentials: Credentials
    ) -> list[dict[str, object]]:
        items: list[dict[str, object]] = []
        for page in range(1, LISTING_REQUESTS_MAX + 1):
            listing = await self._list_once(
                repo, revision, "", credentials, is_deep=True, page=page
            )
            items += listing.items
            _check_bounds(repo, page, len(items))
            if len(listing.items) < PAGE_ENTRIES:
                return items
        raise UpstreamProtocolError(f"The hub lists {repo} on pages without end.")

    async def _list_once(
        self,
        repo: RepoId,
        revision: str,
        folder: str,
        credentials: Credentials,
        *,
        is_deep: bool,
        page: int = 1,
    ) -> FileList:
        query = f"Revision={quote(revision, safe='')}&Recursive={is_deep}"
        if folder:
            query += f"&Root={quote(folder, safe='')}"
        route = "files"
        if repo.kind == "datasets":
            route = "tree"
            query += f"&PageNumber={page}&PageSize={PAGE_ENTRIES}"
        url = f"{self._api(repo)}/repo/{route}?{query}"
        return read_files(await self._get(url, credentials, f"{repo}@{revision}"))

    # --- small parts ---

    def _api(self, repo: RepoId) -> str:
        return f"{self.url}/api/v1/{repo.kind}/{repo.name}"

    def _file_url(self, snapshot_id: SnapshotId, path: str) -> str:
        revision = quote(self._named.get(snapshot_id, snapshot_id.commit), safe="")
        return (
            f"{self._api(snapshot_id.repo)}/repo?Revision={revision}"
            f"&FilePath={quote(path, safe='')}"
        )

    async def _send(
        self,
        method: str,
        url: str,
        credentials: Credentials,
        what: str,
        *,
        stops_at_redirect: bool = False,
    ) -> WireAnswer:
        kind: RequestKind = "resolve" if stops_at_redirect else "api"
        token_headers = credentials.headers(cookie=SESSION_COOKIE)
        return await self._wire.send(
            WireRequest(method, url, what, kind, token_headers, stops_at_redirect=stops_at_redirect)
        )

    async def _get(self, url: str, credentials: Credentials, what: str) -> object:
        """Return what is in the envelope of an answer."""
        answer = await self._send("GET", url, credentials, what)
        try:
            envelope = read_envelope(json.loads(answer.body))
        except (ValueError, RecursionError):
            envelope = None
        if answer.status >= 400:
            raise _error_of(answer, envelope, what, credentials)
        if envelope is None:
            raise _NoEnvelopeError(
                f"The hub answered {what} with something that is not ModelScope's; "
                "check that a portal does not stand in between."
            )
        if not envelope.is_success:
            raise UpstreamFailedError(
                f"The hub failed at {what} (code {envelope.code}); try again later. "
                f"It says: {envelope.message}",
                answer=answer.body,
            )
        return envelope.content


class _NoEnvelopeError(UpstreamProtocolError):
    """Whatever answered has no such route, or is no ModelScope."""


def _check_bounds(repo: RepoId, request_count: int, entry_count: int) -> None:
    if request_count > LISTING_REQUESTS_MAX or entry_count > FILES_PER_SNAPSHOT_MAX * 2:
        raise UpstreamProtocolError(f"The hub lists too many files: {repo}.")


def _error_of(
    answer: WireAnswer, envelope: Envelope | None, what: str, credentials: Credentials
) -> P2PCacheError:
    """Return the error that a refusal means: the envelope's code, else the status."""
    said = f" The hub says: {envelope.message}" if envelope and envelope.message else ""
    code = envelope.code if envelope else 0
    is_missing = code in (CODE_NOT_FOUND, CODE_NO_ACCESS, 404) or answer.status == 404
    if code == CODE_NO_TREE:
        return RevisionNotFoundError(f"{what}: no such revision; look at its branches.{said}")
    if envelope is None and answer.status == 404 and answer.body:
        # A route that is not there is answered by something else than the application.
        return _NoEnvelopeError(f"The hub has no such route for {what}.")
    if is_missing or (code == 401 and credentials.is_anonymous):
        hint = (
            "check its name"
            if not credentials.is_anonymous
            else ("check its name, or pass a token if it is private")
        )
        return RepositoryNotFoundError(f"The hub knows no {what}; {hint}.{said}")
    if answer.status in (401, 403):
        return UpstreamAuthError(f"The hub refuses {what}; check the token's rights.{said}")
    return error_of_answer(
        answer.status, _plain(answer.headers), what, has_token=not credentials.is_anonymous
    )


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that say how long to wait; ModelScope has no codes in others."""
    kept = ("retry-after", "ratelimit", "ratelimit-policy")
    return {name: text for name, text in headers.items() if name.lower() in kept}
