"""
Owns the Hugging Face dialect of the local endpoint: what an unmodified client talks to.

Knows nothing of chunks or peers, nor of what the answers are made of.
Invariants: a request is a file's, a question about a repository, or the hub's to answer; nothing
of a client's token is kept.
Source: docs/reference/hub-dialect.md.
"""

from __future__ import annotations

from aiohttp import web

from p2pcache.core.credentials import Credentials
from p2pcache.daemon.hf_errors import answer_hub_error
from p2pcache.daemon.hf_files import HubFiles
from p2pcache.daemon.hf_metadata import HubMetadata
from p2pcache.daemon.hf_origin import find_base, split_prefix
from p2pcache.daemon.hf_passage import Passage, Question
from p2pcache.daemon.hf_path import check_forwardable, parse_api_address, parse_file_address
from p2pcache.daemon.interim import hold
from p2pcache.engine.cache import Cache
from p2pcache.errors import NotFoundError, P2PCacheError

# Clients ask for at most some hundred paths in one paths-info.
BODY_BYTES_MAX = 1024 * 1024


class HuggingFaceGateway:
    """The handlers of the dialect."""

    def __init__(self, cache: Cache) -> None:
        self._passage = Passage(cache.context)
        self._files = HubFiles(cache)
        self._metadata = HubMetadata(cache, self._passage)

    async def close(self, app: web.Application) -> None:
        """Stop asking the hub; for the application's clean-up."""
        await self._passage.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request of the dialect."""
        credentials = Credentials()
        try:
            credentials = Credentials.from_authorization(request.headers.get("Authorization"))
            return await self._route(request, credentials)
        except P2PCacheError as error:
            return answer_hub_error(error, credentials)

    async def _route(self, request: web.Request, credentials: Credentials) -> web.StreamResponse:
        prefix, address = split_prefix(request.raw_path)
        is_reading = request.method in ("GET", "HEAD")
        if address.startswith("/api/telemetry/"):
            return web.Response(status=204)  # counted nowhere, and nobody else's business
        if address.startswith("/api/agent-harnesses"):
            return web.json_response({})
        file_address = parse_file_address(address) if is_reading else None
        if file_address is not None:
            return await self._files.serve(request, file_address, credentials)
        api_address = parse_api_address(address)
        is_paths = api_address is not None and api_address.action == "paths-info"
        if not address.startswith("/api/") or not (is_reading or is_paths):
            raise NotFoundError(
                f"{request.method} {request.path[:200]} is nothing that is served here."
            )
        check_forwardable(address, ("/api/",))
        body = await request.read() if request.method == "POST" else b""
        base = find_base(request, prefix)
        question = Question(request.method, address, body, credentials, base)
        if api_address is not None:
            return await self._metadata.serve(request, api_address, question)
        return await hold(request, self._passage.forward(question))
