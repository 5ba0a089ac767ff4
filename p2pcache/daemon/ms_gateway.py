"""
Owns the ModelScope dialect of the local endpoint: what an unmodified client talks to.

Knows nothing of chunks or peers.
Invariants: every answer but a file is in the hub's envelope; HEAD and GET of a file agree in every
header; what the hub says of a failure reaches the client as the hub said it; nothing of a client's
token is kept.
Source: docs/reference/modelscope-dialect.md.
"""

from __future__ import annotations

import logging
import secrets

from aiohttp import web

from p2pcache.core.credentials import Credentials
from p2pcache.core.msjson import CODE_NO_ACCESS, CODE_NO_TREE, CODE_NOT_FOUND
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry
from p2pcache.core.upstream import error_of_answer
from p2pcache.daemon.filebody import find_early_answer, make_head, send_body
from p2pcache.daemon.hf_errors import NO_ANSWER
from p2pcache.daemon.hf_path import check_forwardable
from p2pcache.daemon.interim import hold
from p2pcache.daemon.ms_listing import (
    describe_revisions,
    list_files,
    make_listing,
    wrap,
    wrap_error,
)
from p2pcache.daemon.ms_passage import ModelScopePassage
from p2pcache.daemon.ms_path import ModelScopeAddress, parse_address
from p2pcache.engine.cache import Cache
from p2pcache.engine.librarian import Resolved
from p2pcache.errors import (
    EntryNotFoundError,
    ForbiddenError,
    GatedRepositoryError,
    InvalidRangeError,
    NotFoundError,
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SourceError,
    UpstreamFailedError,
    UpstreamRateLimitedError,
)
from p2pcache.hubs.base import ForwardedAnswer
from p2pcache.hubs.modelscope import SESSION_COOKIE
from p2pcache.hubs.router import MODELSCOPE_PATHS
from p2pcache.store.catalogue import SnapshotRow

log = logging.getLogger(__name__)

# How a client learns whether it is in the hub's own data centre, by a way that we are not part of.
_REGION_PATH = "/api/v1/repos/internalAccelerationInfo"
_LOGIN_PATH = "/api/v1/login"
_COUNTER_SUFFIX = "/download/increase"
_READING = ("GET", "HEAD")
_HIDING_STATUSES = (401, 403, 404)
_UNABLE_STATUSES = (408, 425, 429)
_NOT_SHOWN = (
    "record not found: the hub has no such repository, or does not show it to you; check its "
    "name, or pass a token."
)
_ERROR_CODES: dict[type[P2PCacheError], int] = {
    RepositoryNotFoundError: CODE_NOT_FOUND,
    RevisionNotFoundError: CODE_NO_TREE,
    GatedRepositoryError: CODE_NO_ACCESS,
}


class ModelScopeGateway:
    """The handlers of the dialect."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._passage = ModelScopePassage(cache.context)
        # The last listing that was cut into pages: a data set is asked for page after page.
        self._paged: tuple[tuple[SnapshotId, str, bool], list[dict[str, object]]] | None = None

    def add_routes(self, app: web.Application) -> None:
        """Register what begins as ModelScope's API does."""
        app.on_cleanup.append(self._close)
        app.router.add_route("*", "/api/v1/{tail:.*}", self.handle)
        app.router.add_route("*", "/openapi/v1/{tail:.*}", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request of the dialect."""
        try:
            return await self._route(request, read_credentials(request))
        except P2PCacheError as error:
            return answer_hub_error(error)

    async def _route(self, request: web.Request, credentials: Credentials) -> web.StreamResponse:
        raw_path = "/" + request.raw_path.lstrip("/")
        check_forwardable(raw_path, MODELSCOPE_PATHS)
        path = raw_path.partition("?")[0]
        if path == _REGION_PATH:
            return web.json_response(wrap({"InternalRegionQueryAddress": ""}))
        if request.method == "POST" and path.endswith(_COUNTER_SUFFIX):
            return web.json_response(wrap(None))  # counted nowhere, and nobody else's business
        if request.method == "POST" and path == _LOGIN_PATH:
            return await self._forward(request, raw_path, credentials)
        if request.method not in _READING:
            raise ForbiddenError(
                "Only downloads go through p2pcache; unset MODELSCOPE_ENDPOINT to change "
                "something on the hub."
            )
        address = parse_address(raw_path)
        if address is None:
            return await self._forward(request, raw_path, credentials)
        if address.action == "file":
            return await self._serve_file(request, address, credentials)
        if address.action == "archive":
            return await self._forward(request, raw_path, credentials)
        return await self._serve_metadata(request, raw_path, address, credentials)

    # --- files ---

    async def _serve_file(
        self, request: web.Request, address: ModelScopeAddress, credentials: Credentials
    ) -> web.StreamResponse:
        found = await hold(
            request, self._cache.find_file(address.reference, address.path, credentials)
        )
        headers = file_headers(found.resolved, found.entry)
        if request.method == "HEAD":
            return make_head(request, found.entry, headers)
        early = find_early_answer(request, found.entry, headers)
        if early is not None:
            return early
        try:
            reader = await hold(request, self._cache.open_found(found, credentials))
        except NotFoundError:
            # The hub may have dropped what the branch was: look again at the next question.
            await self._cache.librarian.doubt(address.reference)
            raise
        try:
            return await send_body(request, self._cache, reader, found.entry, headers)
        finally:
            reader.close()

    # --- metadata ---

    async def _serve_metadata(
        self,
        request: web.Request,
        raw_path: str,
        address: ModelScopeAddress,
        credentials: Credentials,
    ) -> web.StreamResponse:
        """Answer from the cached snapshot where that is the whole truth; else ask the hub."""
        if address.action in ("repository", "revisions"):
            return await self._serve_about(request, raw_path, address, credentials)
        resolved = await hold(
            request, self._cache.librarian.resolve(address.reference, credentials)
        )
        access, snapshot = self._cache.access, resolved.snapshot
        if not await access.may_list(snapshot, credentials):
            answer = await hold(
                request, self._passage.forward(request.method, raw_path, b"", credentials)
            )
            if answer.status in _HIDING_STATUSES:
                # In our words: what is cached here must not be told from what is not.
                error = RepositoryNotFoundError(_NOT_SHOWN)
                access.note_hidden(snapshot, credentials, error)
                raise error
            if answer.status in _UNABLE_STATUSES or answer.status >= 500:
                has_token = not credentials.is_anonymous
                raise error_of_answer(
                    answer.status, answer.headers, "this repository", has_token=has_token
                )
            return _answer_as(answer)
        entries = self._list(resolved, address)
        if not entries and address.path:
            raise EntryNotFoundError(
                f"{resolved.snapshot.id} has no folder {address.path!r}.",
                commit=resolved.snapshot.id.commit,
            )
        if address.page:
            first = (address.page - 1) * address.page_entries
            entries = entries[first : first + address.page_entries]
        return web.json_response(wrap(make_listing(resolved.snapshot, entries)))

    async def _serve_about(
        self,
        request: web.Request,
        raw_path: str,
        address: ModelScopeAddress,
        credentials: Credentials,
    ) -> web.StreamResponse:
        """Answer what the hub says of a repository; while it is away, what is known of it here."""
        repo = address.reference.repo
        known = await self._find_public(repo)
        if known is None and not credentials.is_anonymous:
            # What one caller may see is asked about each time.
            return _answer_as(await hold(request, self._passage.share(raw_path, credentials)))
        limit_s = self._cache.access.visibility.find_limit_s(repo)
        recalled = self._passage.recall(raw_path, credentials, limit_s=limit_s)
        try:
            return _answer_as(await hold(request, recalled))
        except SourceError:
            # Anew: somebody may have heard a no meanwhile.
            known = await self._find_public(repo)
            if known is None:
                raise
        row, branches = known
        if address.action == "revisions":
            return web.json_response(wrap(describe_revisions(row, branches)))
        about = (row.about or {}).get("repository")
        owner, _, name = repo.name.partition("/")
        return web.json_response(wrap(about or {"Path": owner, "Name": name}))

    async def _find_public(self, repo: RepoId) -> tuple[SnapshotRow, list[tuple[str, str]]] | None:
        """Return the newest public snapshot that is known, and all public branches."""
        librarian = self._cache.librarian
        branches = await librarian.list_public_branches(repo)
        for _, commit in reversed(branches):
            row = await librarian.find_cached(ModelReference(repo, commit))
            if row is not None:
                return row, branches
        return None

    def _list(self, resolved: Resolved, address: ModelScopeAddress) -> list[dict[str, object]]:
        key = (resolved.snapshot.id, address.path, address.is_deep)
        if self._paged is not None and self._paged[0] == key:
            return self._paged[1]
        entries = list_files(resolved.snapshot, address.path, is_deep=address.is_deep)
        if address.page:
            self._paged = (key, entries)
        return entries

    async def _forward(
        self, request: web.Request, raw_path: str, credentials: Credentials
    ) -> web.Response:
        """Pass a request on to the hub, uncached."""
        body = await request.read() if request.method == "POST" else b""
        return _answer_as(
            await hold(request, self._passage.forward(request.method, raw_path, body, credentials))
        )

    async def _close(self, app: web.Application) -> None:
        await self._passage.close()


def read_credentials(request: web.Request) -> Credentials:
    """Return a client's token, from the header that new clients send, or from the cookie."""
    credentials = Credentials.from_authorization(request.headers.get("Authorization"))
    if credentials.is_anonymous:
        return Credentials(request.cookies.get(SESSION_COOKIE) or None)
    return credentials


def file_headers(resolved: Resolved, entry: FileEntry) -> dict[str, str]:
    """Return the headers that name a file: equal for HEAD and GET, cached or not."""
    etag = f'"{entry.digest.hex}"'
    return {
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-transform",
        "Content-Type": "application/octet-stream",
        "ETag": etag,
        # The client checks what it got against this, even without a listing.
        "X-Linked-ETag": etag,
        "X-Repo-Commit": resolved.snapshot.id.commit,
        "X-Request-Id": secrets.token_hex(16),
    }


def _answer_as(answer: ForwardedAnswer) -> web.Response:
    """Return the hub's answer as it came."""
    headers = dict(answer.headers)
    content_type = headers.pop("Content-Type", "application/octet-stream")
    return web.Response(
        status=answer.status,
        body=answer.body,
        headers=headers,
        content_type=content_type.partition(";")[0].strip(),
    )


def answer_hub_error(error: P2PCacheError) -> web.Response:
    """Return an error in the form that the hub's clients understand."""
    said = _find_answer(error)
    if said is not None:
        return web.Response(status=200, body=said, content_type="application/json")
    status, message = error.http_status, NO_ANSWER.get(type(error), str(error))
    if isinstance(error, RepositoryNotFoundError):
        # Other words name commit and file of what is cached: not for whom the hub hides it from.
        message = _NOT_SHOWN
    if isinstance(error, GatedRepositoryError):
        status = 404  # what the hub says of its files
    code = _ERROR_CODES.get(type(error), status)
    response = web.json_response(wrap_error(code, message), status=status)
    if isinstance(error, InvalidRangeError) and error.size_bytes is not None:
        response.headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if isinstance(error, UpstreamRateLimitedError) and error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return response


def _find_answer(error: BaseException) -> bytes | None:
    """Return what the hub itself answered, of a failure that it called none by its status."""
    for cause in (error, error.__cause__):
        if isinstance(cause, UpstreamFailedError) and cause.answer:
            return cause.answer
    return None
