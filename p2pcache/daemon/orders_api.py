"""
Owns the part of the peer endpoint by which other daemons order downloads here.

Knows nothing of how a download works.
Invariants: an order is taken from whom the crew lets order, and from no web page; it is carried
out with nobody's token; it never writes outside of this daemon's own allowed folders; nothing but
orders is shown.
Source: docs/reference/peer-protocol.md ("Orders"); docs/decisions/0021-downloads.md.
"""

from __future__ import annotations

import re
from dataclasses import replace

from aiohttp import web

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.jobs import JobState, read_order
from p2pcache.core.messages import get_text
from p2pcache.core.refs import ModelReference
from p2pcache.daemon.management import read_object
from p2pcache.engine.cache import Cache
from p2pcache.engine.downloads import Downloads
from p2pcache.engine.jobs import Job
from p2pcache.engine.jobview import describe_progress
from p2pcache.errors import ForbiddenError, InputError, JobNotFoundError

_ORDER_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)


class OrdersApi:
    """The handlers of orders, on the peer endpoint."""

    def __init__(self, cache: Cache, downloads: Downloads) -> None:
        self._cache = cache
        self._downloads = downloads

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        router = app.router
        router.add_get("/v1/worker", self.describe)
        router.add_post("/v1/orders", self.take)
        router.add_get("/v1/orders/{id}", self.get)
        router.add_delete("/v1/orders/{id}", self.cancel)
        router.add_post("/v1/orders/{id}/pause", self.pause)
        router.add_delete("/v1/orders/{id}/pin", self.release)

    async def describe(self, request: web.Request) -> web.Response:
        """Say what this machine can be chosen by, and whether the caller may order."""
        path = request.query.get("path")
        return web.json_response(self._downloads.crew.describe_self(request.remote or "", path))

    async def take(self, request: web.Request) -> web.Response:
        """Take an order; the same one again goes on with it."""
        self._check(request)
        message = await read_object(request)
        order_id = get_text(message, "id", chars_max=16)
        if _ORDER_ID.fullmatch(order_id) is None:
            raise InputError("An order's id has 16 lower-case hex digits.")
        order = replace(read_order(message), workers=())
        known = {job.id: job for job in self._downloads.list_all()}.get(order_id)
        if known is not None:
            if not known.origin or replace(known.order, priority=0) != replace(order, priority=0):
                raise InputError(f"{order_id} is another download here; order under a new id.")
            if known.state is JobState.PAUSED:
                known = await self._downloads.resume(known.id)
            return web.json_response(self._describe(known), status=202)
        origin = request.remote or "unknown"
        job = self._downloads.start(order, ANONYMOUS, origin=origin, job_id=order_id)
        await self._downloads.settle(job)
        return web.json_response(self._describe(job), status=202)

    async def get(self, request: web.Request) -> web.Response:
        """Say how far an order is."""
        return web.json_response(self._describe(self._find(request)))

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop an order; what was fetched is kept."""
        job = await self._downloads.cancel(self._find(request).id)
        return web.json_response(self._describe(job))

    async def pause(self, request: web.Request) -> web.Response:
        """Stop an order until it comes again."""
        job = self._find(request)
        if not job.is_over:
            job = await self._downloads.pause(job.id)
        return web.json_response(self._describe(job))

    async def release(self, request: web.Request) -> web.Response:
        """Take the pin of an order away; one that was there before stays."""
        job = self._find(request)
        if not job.is_over:
            job = await self._downloads.cancel(job.id)
        if job.has_pinned:
            job.has_pinned = False
            revision = job.order.reference.revision
            for name in {revision, job.commit or revision}:
                pin = ModelReference(job.order.reference.repo, name)
                await self._cache.space.pins.remove(pin)
        return web.json_response(self._describe(job))

    def _find(self, request: web.Request) -> Job:
        self._check(request)
        job = self._downloads.get(request.match_info["id"])
        if not job.origin:
            raise JobNotFoundError(f"No order {job.id!r}.")
        return job

    def _check(self, request: web.Request) -> None:
        """Refuse whom the operator did not let order, and what a browser was tricked into."""
        names = ("Origin", "Sec-Fetch-Site", "Referer")
        if request.headers.get("X-P2PCache") != "1" or any(n in request.headers for n in names):
            raise ForbiddenError("Orders come from daemons, not from web pages.")
        if not self._downloads.crew.may_order(request.remote or ""):
            raise ForbiddenError(
                f"{self._cache.context.settings.name} takes no orders from {request.remote}; start "
                f"it with --peer {request.remote}:PORT, or with --trust-peers."
            )

    def _describe(self, job: Job) -> dict[str, object]:
        return describe_progress(job, now_s=self._cache.context.clock.monotonic_s())
