"""
Owns answering HEAD and GET of a file in the Hugging Face dialect.

Knows nothing of addresses, nor of how a body is sent.
Invariants: HEAD and GET of a file agree in every header, but for the length of what a client
would refuse by it; the GET after a HEAD is of the commit that the HEAD named; no Xet signal.
Source: docs/reference/hub-dialect.md (files).
"""

from __future__ import annotations

import secrets
from collections.abc import Hashable

from aiohttp import web

from p2pcache.core.credentials import Credentials
from p2pcache.core.hubclient import HeadForm, choose_head_form
from p2pcache.core.promises import Promise, Promises
from p2pcache.core.refs import is_commit
from p2pcache.core.snapshot import FileEntry
from p2pcache.daemon.filebody import find_early_answer, make_head, send_body
from p2pcache.daemon.hf_path import FileAddress
from p2pcache.daemon.interim import hold
from p2pcache.engine.cache import Cache, FoundFile
from p2pcache.engine.librarian import Resolved
from p2pcache.engine.reader import BlobReader
from p2pcache.errors import NotFoundError, TooLargeForClientError

STALE_NOTICE = "p2pcache; the hub does not answer, this is what is cached"


class HubFiles:
    """The files of the dialect. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._promises = Promises()

    async def serve(
        self, request: web.Request, address: FileAddress, credentials: Credentials
    ) -> web.StreamResponse:
        """Answer a HEAD, or a GET with what the HEAD before it named."""
        if request.method == "HEAD":
            return await self._head(request, address, credentials)
        promise = None
        if not is_commit(address.reference.revision):
            promise = self._promises.find(
                find_client(request), address.reference, address.path, now_s=self._now_s()
            )
        found = await hold(
            request,
            self._cache.find_file(address.reference, address.path, credentials, promise=promise),
        )
        headers = file_headers(found.resolved, found.entry)
        early = find_early_answer(request, found.entry, headers)
        if early is not None:
            return early
        reader = await self._open(request, address, found, credentials)
        try:
            return await send_body(request, self._cache, reader, found.entry, headers)
        except NotFoundError:
            await self._cache.librarian.doubt(address.reference)
            raise
        finally:
            reader.close()

    async def _open(
        self,
        request: web.Request,
        address: FileAddress,
        found: FoundFile,
        credentials: Credentials,
    ) -> BlobReader:
        try:
            return await hold(request, self._cache.open_found(found, credentials))
        except NotFoundError:
            # The hub may have dropped what the branch was: look again at the next question.
            await self._cache.librarian.doubt(address.reference)
            raise

    async def _head(
        self, request: web.Request, address: FileAddress, credentials: Credentials
    ) -> web.StreamResponse:
        found = await hold(
            request, self._cache.find_file(address.reference, address.path, credentials)
        )
        resolved = found.resolved
        if not is_commit(address.reference.revision):
            self._promises.note(
                find_client(request),
                address.reference,
                address.path,
                Promise(resolved.snapshot.id.commit, resolved.is_stale),
                now_s=self._now_s(),
            )
        form = choose_head_form(request.headers.get("User-Agent", ""), found.entry.size_bytes)
        if form is HeadForm.REFUSED:
            raise TooLargeForClientError(self._explain_refusal(address, found))
        head = make_head(request, found.entry, file_headers(resolved, found.entry))
        if form is HeadForm.UNSIZED and head.status == 200:
            return await send_unsized(request, head)
        return head

    def _explain_refusal(self, address: FileAddress, found: FoundFile) -> str:
        entry = found.entry
        return (
            f"{entry.path} has {entry.size_bytes:,} bytes, and this release of huggingface_hub "
            "fetches no file above 50 GB by HTTP: run 'p2pcache pull "
            f"{address.reference}', then set HF_HUB_CACHE={self._cache.context.tree.root} and "
            "HF_HUB_OFFLINE=1; or use huggingface_hub 1.31 or newer."
        )

    def _now_s(self) -> float:
        return self._cache.context.clock.monotonic_s()


def find_client(request: web.Request) -> Hashable:
    """Return what tells a client from others: its connection, which its HEAD and GET share."""
    transport = request.transport
    return None if transport is None else transport.get_extra_info("peername")


async def send_unsized(request: web.Request, head: web.Response) -> web.StreamResponse:
    """Send an answer to a HEAD without saying how long the GET's body is."""
    response = web.StreamResponse(status=head.status, headers=head.headers)
    response.headers.popall("Content-Length", None)
    response.headers.popall("X-Linked-Size", None)
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write_eof()
    return response


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
        headers["X-HF-Warning"] = STALE_NOTICE
    return headers
