"""
Owns the peer endpoint: hello, swarm, runs, chunks, tables, file lists.

Knows nothing of how the engine finds the answer.
Invariants: only private-range addresses are answered; only public content is spoken of; a
message is read within its limit; uploads are bounded.
Source: docs/reference/peer-protocol.md (normative); design.md §7 and §8.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from urllib.parse import unquote

from aiohttp import web

from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.holdings import HoldingsQuestion
from p2pcache.core.messages import Exchange, snapshot_to_json, table_to_json
from p2pcache.core.refs import ModelReference, RepoId, parse_revision
from p2pcache.core.saidrefs import SaidRef
from p2pcache.core.turns import UploadTurns
from p2pcache.daemon.answers import Handler, answer_error
from p2pcache.daemon.sending import send_file_range
from p2pcache.engine.cache import Cache
from p2pcache.engine.shelf import ChunkRun
from p2pcache.engine.swarm import is_private_address
from p2pcache.errors import DaemonBusyError, ForbiddenError, InputError, NotFoundError
from p2pcache.transfer.peer import DIGESTS_HEADER, LAYOUT_HEADER

# Requests for bytes under way at once, of all peers: above this a peer is told to come back.
UPLOADS_INFLIGHT_MAX = 64
_RUN = re.compile(r"(\d{1,7})-(\d{1,7})", re.ASCII)


@web.middleware
async def check_private(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer neighbours only: without a cluster key nothing is shared beyond a local network."""
    if not is_private_address(request.remote or ""):
        return answer_error(ForbiddenError("Only peers of the same local network are answered."))
    return await handler(request)


class PeerApi:
    """The handlers of the peer endpoint."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        caps = cache.context.caps
        self._uploads = asyncio.Semaphore(caps.count_uploads(UPLOADS_INFLIGHT_MAX))
        self._uploads_per_host_max = caps.count_runs(UPLOADS_INFLIGHT_MAX)
        self._uploads_by_host: Counter[str] = Counter()
        self._turns = UploadTurns()

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        app.router.add_get("/v1/hello", self.hello)
        app.router.add_post("/v1/swarm", self.swarm)
        app.router.add_get("/v1/chunks/{digest}", self.chunk)
        app.router.add_get("/v1/blobs/{digest}/chunks/{run}", self.run)
        app.router.add_get("/v1/blobs/{digest}/table", self.table)
        app.router.add_post("/v1/holdings", self.holdings)
        app.router.add_get("/v1/snapshots/{hub}/{repo:.+}/{revision}", self.snapshot)

    async def hello(self, request: web.Request) -> web.Response:
        """Say who we are."""
        return web.json_response(self._cache.swarm.hello().to_json())

    async def swarm(self, request: web.Request) -> web.Response:
        """Take in what a peer says of some blobs; say the same."""
        try:
            message = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise InputError("An exchange is JSON.") from error
        exchange = Exchange.from_json(message)
        ours = await self._cache.swarm.answer(exchange, request.remote or "")
        return web.json_response(ours.to_json())

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Send a run of chunks."""
        blob = BlobDigest.parse(request.match_info["digest"])
        match = _RUN.fullmatch(request.match_info["run"])
        if match is None:
            raise InputError("A run is written FIRST-LAST, for example 0-7.")
        layout = request.headers.get(LAYOUT_HEADER)
        run = await self._cache.open_run(blob, int(match[1]), int(match[2]), layout)
        return await self._send(request, run)

    async def chunk(self, request: web.Request) -> web.StreamResponse:
        """Send one chunk by its hash."""
        digest = ChunkDigest.parse(request.match_info["digest"])
        return await self._send(request, await self._cache.open_chunk(digest))

    async def _send(self, request: web.Request, run: ChunkRun) -> web.StreamResponse:
        host, now_s = request.remote or "", self._cache.context.clock.monotonic_s()
        may_begin = self._turns.may_begin(
            host,
            is_crowded=self._cache.swarm.neighbourhood.is_crowded,
            held_chunks=self._cache.fetches.count_held_chunks(),
            now_s=now_s,
        )
        turn = self._turns.begin(host, now_s=now_s) if may_begin else 0
        self._uploads_by_host[host] += 1
        try:
            is_host_busy = self._uploads_by_host[host] > self._uploads_per_host_max
            if not may_begin or is_host_busy or self._uploads.locked():
                raise DaemonBusyError("Too many uploads are under way; come back soon.")
            async with self._uploads:
                response = web.StreamResponse(
                    headers={
                        "Content-Type": "application/octet-stream",
                        "Content-Length": str(run.length),
                        DIGESTS_HEADER: ",".join(str(digest) for digest in run.digests),
                    }
                )
                await response.prepare(request)
                if request.method != "HEAD":
                    await self._send_body(request, response, run)
                await response.write_eof()
                return response
        finally:
            self._turns.end(turn)
            self._uploads_by_host[host] -= 1
            if not self._uploads_by_host[host]:
                del self._uploads_by_host[host]
            os.close(run.fd)

    async def _send_body(
        self, request: web.Request, response: web.StreamResponse, run: ChunkRun
    ) -> None:
        """Send a run, in small slices under a cap: receivers take a long silence for death."""
        context = self._cache.context
        pacer = context.caps.of_upload(request.remote or "")
        step = max(1, run.length) if pacer.limit_bps is None else pacer.slice_bytes
        for start in range(0, run.length, step):
            count = min(step, run.length - start)
            await pacer.take(count)
            await send_file_range(request, response, run.fd, run.offset + start, count)
            context.bytes_counted["peer", "out"] += count

    async def table(self, request: web.Request) -> web.Response:
        """Send a chunk table."""
        blob = BlobDigest.parse(request.match_info["digest"])
        return web.json_response(table_to_json(await self._cache.get_table(blob)))

    async def holdings(self, request: web.Request) -> web.Response:
        """Say how much of some blobs a peer may have here."""
        try:
            message = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise InputError("A question about blobs is JSON.") from error
        answer = await self._cache.residencies.answer(HoldingsQuestion.from_json(message))
        return web.json_response(answer.to_json())

    async def snapshot(self, request: web.Request) -> web.Response:
        """Send the file list of a commit, or of what a branch was when the hub last said."""
        name = unquote(request.match_info["repo"])
        kind, slash, rest = name.partition("/")
        if not (slash and kind in ("models", "datasets", "spaces")):
            kind, rest = "models", name
        repo = RepoId.of(request.match_info["hub"], kind, rest)
        reference = ModelReference(repo, parse_revision(request.match_info["revision"]))
        asks_hub = request.query.get("ask") == "1"
        heard = await self._cache.librarian.tell_peer(reference, asks_hub=asks_hub)
        if heard is None:
            raise NotFoundError(f"{reference} is not known here, or not for sharing.")
        message = snapshot_to_json(heard.snapshot)
        if heard.age_s is not None:
            message |= SaidRef(heard.age_s).to_json()
        return web.json_response(message)
