"""
Owns the Hugging Face dialect of the local endpoint: what an unmodified client talks to.

Knows nothing of chunks or peers.
Invariants: HEAD and GET of a file agree in every header; no Xet signal leaves; a started body is
exact or broken off, never wrong; nothing of a client's token is kept.
Source: docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import json
import logging
import secrets
from urllib.parse import parse_qs

from aiohttp import web

from p2pcache.core.credentials import Credentials
from p2pcache.core.hubjson import strip_xet
from p2pcache.core.ranges import ByteRange, parse_range
from p2pcache.core.snapshot import FileEntry
from p2pcache.daemon.answers import answer_error
from p2pcache.daemon.hf_listing import describe_repository, find_paths, has_folder, list_tree
from p2pcache.daemon.hf_path import (
    ApiAddress,
    FileAddress,
    parse_api_address,
    parse_file_address,
)
from p2pcache.daemon.interim import hold
from p2pcache.daemon.sending import send_file_range
from p2pcache.engine.cache import Cache
from p2pcache.engine.librarian import Resolved
from p2pcache.engine.reader import BlobReader
from p2pcache.errors import (
    EntryNotFoundError,
    GatedRepositoryError,
    InputError,
    InvalidRangeError,
    NotFoundError,
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SourceError,
    UpstreamAuthError,
)

log = logging.getLogger(__name__)

# Clients ask for at most some hundred paths in one paths-info.
BODY_BYTES_MAX = 1024 * 1024
_HUB_ERROR_CODES: dict[type[P2PCacheError], str] = {
    EntryNotFoundError: "EntryNotFound",
    RevisionNotFoundError: "RevisionNotFound",
    RepositoryNotFoundError: "RepoNotFound",
    GatedRepositoryError: "GatedRepo",
}


class HuggingFaceGateway:
    """The handlers of the dialect."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request of the dialect."""
        credentials = Credentials()
        try:
            credentials = Credentials.from_authorization(request.headers.get("Authorization"))
            return await self._route(request, credentials)
        except P2PCacheError as error:
            return answer_hub_error(error, credentials)

    async def _route(self, request: web.Request, credentials: Credentials) -> web.StreamResponse:
        raw_path = "/" + request.raw_path.lstrip("/")
        is_reading = request.method in ("GET", "HEAD")
        if raw_path.startswith("/api/telemetry/"):
            return web.Response(status=204)  # counted nowhere, and nobody else's business
        if raw_path.startswith("/api/agent-harnesses"):
            return web.json_response({})
        file_address = parse_file_address(raw_path) if is_reading else None
        if file_address is not None:
            return await self._serve_file(request, file_address, credentials)
        if raw_path.startswith("/api/v1/"):
            raise NotFoundError("The ModelScope dialect is not built in this release.")
        api_address = parse_api_address(raw_path)
        if api_address is not None and (is_reading or api_address.action == "paths-info"):
            return await self._serve_metadata(request, raw_path, api_address, credentials)
        if is_reading and raw_path.startswith("/api/"):
            return await self._forward(request, raw_path, credentials)
        raise NotFoundError(
            f"{request.method} {request.path[:200]} is nothing that is served here."
        )

    # --- files ---

    async def _serve_file(
        self, request: web.Request, address: FileAddress, credentials: Credentials
    ) -> web.StreamResponse:
        """Open the file, decide what of it to send, wait until that can flow, send it."""
        if request.method == "HEAD":
            resolved, entry = await hold(
                request, self._cache.find_file(address.reference, address.path, credentials)
            )
            return self._head(request, resolved, entry)
        resolved, entry, reader = await hold(
            request, self._cache.open_file(address.reference, address.path, credentials)
        )
        try:
            headers = file_headers(resolved, entry)
            if is_unmodified(request, headers["ETag"]):
                return web.Response(status=304, headers=headers)
            wanted = choose_range(request, entry, headers["ETag"])
            if wanted is not None and wanted.start > 0:
                self._cache.check_may_resume(entry)
            return await self._send(request, reader, headers, entry, wanted)
        finally:
            reader.close()

    def _head(self, request: web.Request, resolved: Resolved, entry: FileEntry) -> web.Response:
        headers = file_headers(resolved, entry)
        if is_unmodified(request, headers["ETag"]):
            return web.Response(status=304, headers=headers)
        wanted = choose_range(request, entry, headers["ETag"])
        if wanted is not None:
            headers["Content-Range"] = wanted.to_content_range()
        length = entry.size_bytes if wanted is None else wanted.length
        headers["Content-Length"] = str(length)
        return web.Response(status=200 if wanted is None else 206, headers=headers)

    async def _send(
        self,
        request: web.Request,
        reader: BlobReader,
        headers: dict[str, str],
        entry: FileEntry,
        wanted: ByteRange | None,
    ) -> web.StreamResponse:
        start, length = (0, entry.size_bytes) if wanted is None else (wanted.start, wanted.length)
        await hold(request, reader.ready(start))
        response = web.StreamResponse(status=200 if wanted is None else 206, headers=headers)
        if wanted is not None:
            response.headers["Content-Range"] = wanted.to_content_range()
        response.content_length = length
        await response.prepare(request)
        try:
            async for segment in reader.segments(start, length):
                await send_file_range(request, response, segment.fd, segment.offset, segment.length)
                self._cache.context.bytes_counted["disk", "out"] += segment.length
        except (P2PCacheError, TimeoutError) as error:
            # The status line is out: the only honest answer left is to break off.
            log.warning("%s was broken off: %s", entry.path, error)
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    # --- metadata ---

    async def _serve_metadata(
        self,
        request: web.Request,
        raw_path: str,
        address: ApiAddress,
        credentials: Credentials,
    ) -> web.StreamResponse:
        """Answer from the cached snapshot where that is the whole truth; else ask the hub."""
        if address.action == "xet-read-token":
            raise NotFoundError(
                "Xet is not served here; unset stale listings by removing the cache's 'trees' "
                "folder, or set HF_HUB_DISABLE_XET=1."
            )
        query = parse_qs(raw_path.partition("?")[2])
        wants_more = any(key.startswith(("expand", "securityStatus")) for key in query)
        is_ours = address.action in ("info", "revision", "tree", "paths-info")
        if not is_ours:
            return await self._forward_or(request, raw_path, address, credentials)
        resolved = await hold(
            request, self._cache.librarian.resolve(address.reference, credentials)
        )
        if not await self._cache.access.is_public(resolved.snapshot):
            return await self._forward(request, raw_path, credentials)
        if wants_more and query.get("expand") not in (["false"], ["False"]):
            try:
                return await self._forward(request, raw_path, credentials)
            except SourceError:
                log.info("the hub is away: %s is answered without its extras", raw_path)
        return await self._answer_from_snapshot(request, address, resolved, query)

    async def _answer_from_snapshot(
        self,
        request: web.Request,
        address: ApiAddress,
        resolved: Resolved,
        query: dict[str, list[str]],
    ) -> web.Response:
        snapshot = resolved.snapshot
        headers = {"X-Repo-Commit": snapshot.id.commit, "X-Request-Id": secrets.token_hex(8)}
        if resolved.is_stale:
            headers["X-HF-Warning"] = "p2pcache; the hub does not answer, this is what is cached"
        if address.action in ("info", "revision"):
            with_blobs = query.get("blobs", [""])[0].lower() == "true"
            about = describe_repository(resolved.row, with_blobs=with_blobs)
            return web.json_response(about, headers=headers)
        if address.action == "paths-info":
            paths = parse_qs((await request.read()).decode("utf-8", "replace")).get("paths", [])
            return web.json_response(find_paths(snapshot, paths), headers=headers)
        if not has_folder(snapshot, address.path):
            raise EntryNotFoundError(
                f"{snapshot.id} has no folder {address.path!r}.", commit=snapshot.id.commit
            )
        recursive = query.get("recursive", [""])[0].lower() == "true"
        return web.json_response(
            list_tree(snapshot, address.path, recursive=recursive), headers=headers
        )

    async def _forward_or(
        self,
        request: web.Request,
        raw_path: str,
        address: ApiAddress,
        credentials: Credentials,
    ) -> web.StreamResponse:
        """Forward; while the hub is away, answer branches from what is known."""
        try:
            return await self._forward(request, raw_path, credentials)
        except SourceError:
            if address.action != "refs":
                raise
            refs = await self._cache.librarian.list_public_branches(address.reference.repo)
            if not refs:
                raise
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in refs
            ]
            return web.json_response({"branches": branches, "converts": [], "tags": []})

    async def _forward(
        self, request: web.Request, raw_path: str, credentials: Credentials
    ) -> web.Response:
        """Pass a request on to the hub, uncached, and take every Xet signal out of the answer."""
        body = await request.read() if request.method == "POST" else b""
        answer = await hold(
            request,
            self._cache.context.hub.forward(request.method, raw_path, body, credentials),
        )
        headers = dict(answer.headers)
        if "Link" in headers:
            hub_url = self._cache.context.settings.hf_upstream
            own = f"http://{request.host}"
            headers["Link"] = (
                headers["Link"].replace(hub_url, own) if 'rel="next"' in headers["Link"] else ""
            )
        headers.pop("Content-Type", None)
        content_type = answer.headers.get("Content-Type", "application/octet-stream")
        content = answer.body
        if "json" in content_type:
            try:
                content = json.dumps(strip_xet(json.loads(content))).encode() if content else b""
            except (ValueError, RecursionError):
                return web.Response(status=502, text="The hub's answer is not JSON.")
        return web.Response(
            status=answer.status,
            body=content,
            headers=headers,
            content_type=content_type.partition(";")[0].strip(),
        )


def file_headers(resolved: Resolved, entry: FileEntry) -> dict[str, str]:
    """Return the headers that name a file: equal for HEAD and GET, cached or not."""
    etag = f'"{entry.digest.hex}"'
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-transform",
        "Content-Type": "application/octet-stream",
        "ETag": etag,
        "X-Linked-Size": str(entry.size_bytes),
        "X-Repo-Commit": resolved.snapshot.id.commit,
        "X-Request-Id": secrets.token_hex(8),
    }
    if entry.digest.algorithm == "sha256":
        headers["X-Linked-Etag"] = etag
    if resolved.is_stale:
        headers["X-HF-Warning"] = "p2pcache; the hub does not answer, this is what is cached"
    return headers


def is_unmodified(request: web.Request, etag: str) -> bool:
    """Return whether If-None-Match names what we have (weak comparison, RFC 9110 §13.1.2)."""
    header = request.headers.get("If-None-Match")
    if header is None:
        return False
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return "*" in names or etag in names


def choose_range(request: web.Request, entry: FileEntry, etag: str) -> ByteRange | None:
    """Return the range to send, None for all; If-Range that does not match means all."""
    if_range = request.headers.get("If-Range")
    if if_range is not None and if_range.strip() != etag:
        return None
    return parse_range(request.headers.get("Range"), entry.size_bytes)


def answer_hub_error(error: P2PCacheError, credentials: Credentials) -> web.Response:
    """Return an error in the form that the hub's clients understand."""
    message = str(error).replace("\n", " ")
    headers = {
        "X-Error-Message": message.encode("ascii", "replace").decode(),
        "X-Request-Id": secrets.token_hex(8),
    }
    code = _HUB_ERROR_CODES.get(type(error))
    if code is not None:
        headers["X-Error-Code"] = code
    response = answer_error(error, headers)
    if code is None and isinstance(error, InputError | UpstreamAuthError):
        response.headers.pop("X-Error-Code", None)
    if isinstance(error, EntryNotFoundError) and error.commit:
        response.headers["X-Repo-Commit"] = error.commit
    if isinstance(error, RepositoryNotFoundError | GatedRepositoryError):
        # The hub tells an anonymous caller 401, whether a repository is missing or hidden.
        is_gated = isinstance(error, GatedRepositoryError)
        known = 403 if is_gated else 404
        response.set_status(401 if credentials.is_anonymous else known)
    if isinstance(error, UpstreamAuthError) and "Invalid credentials" in message:
        response.headers["X-Error-Message"] = "Invalid credentials in Authorization header"
    if isinstance(error, InvalidRangeError) and error.size_bytes is not None:
        response.headers["Content-Range"] = f"bytes */{error.size_bytes}"
    return response
