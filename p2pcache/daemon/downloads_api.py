"""
Owns the part of the management API about downloads: order, look, pause, resume, cancel.

Knows nothing of how a download works.
Invariants: what is answered with 202 survives the daemon; a job that may be of something private
is shown to the admin token's holder alone, and to others does not exist; field names are the
contract's.
Source: docs/reference/http-api.md ("Downloads"); design.md §8.
"""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from p2pcache.core.credentials import Credentials
from p2pcache.core.jobs import JobOrder, read_order
from p2pcache.daemon.guard import DOWNLOAD_ALIAS, MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.management import get_optional_text, read_object
from p2pcache.engine.cache import Cache
from p2pcache.engine.downloads import Downloads
from p2pcache.engine.jobs import Job, WorkerView
from p2pcache.engine.jobview import describe_job
from p2pcache.errors import JobNotFoundError


class DownloadsApi:
    """The handlers about downloads."""

    def __init__(self, cache: Cache, downloads: Downloads, guard: Guard) -> None:
        self._cache = cache
        self._downloads = downloads
        self._guard = guard

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        base = MANAGEMENT_PREFIX + "v1/downloads"
        router = app.router
        router.add_post(base, self.start)
        router.add_post(DOWNLOAD_ALIAS, self.start)
        # Else ModelScope's dialect, whose prefix it has, would pass other methods on to the hub.
        router.add_route("*", DOWNLOAD_ALIAS, self.refuse_method)
        router.add_get(base, self.list_all)
        router.add_get(f"{base}/{{id}}", self.get)
        router.add_delete(f"{base}/{{id}}", self.cancel)
        router.add_post(f"{base}/{{id}}/pause", self.pause)
        router.add_post(f"{base}/{{id}}/resume", self.resume)

    async def start(self, request: web.Request) -> web.Response:
        """Begin to bring a model here, or to other machines; 202 at once."""
        message = await read_object(request)
        credentials = Credentials(get_optional_text(message, "token"))
        order = replace(read_order(message), commit=None)
        order, views = await self._choose(order)
        job = self._downloads.start(order, credentials, workers=views)
        await self._downloads.settle(job)
        answer: dict[str, object] = {"id": job.id, "state": job.state.value}
        if views:
            answer["workers"] = [view.name for view in views]
        return web.json_response(answer, status=202)

    async def refuse_method(self, request: web.Request) -> web.Response:
        """Answer what is no order, where orders alone are taken."""
        code = "MethodNotAllowed"
        message = (
            f"{DOWNLOAD_ALIAS} takes orders with POST alone; look at them with "
            f"GET {MANAGEMENT_PREFIX}v1/downloads."
        )
        return web.json_response(
            {"error": code, "message": message},
            status=405,
            headers={"Allow": "POST", "X-Error-Code": code},
        )

    async def _choose(self, order: JobOrder) -> tuple[JobOrder, list[WorkerView]]:
        """Return the order and whom it is passed on to; for this daemon alone, to nobody."""
        if not order.workers:
            return order, []
        chosen = await self._downloads.crew.choose(order.workers, order.path)
        if len(chosen) == 1 and chosen[0].is_self:
            return replace(order, workers=()), []
        views = [WorkerView(w.name, w.peer_id, w.url, w.is_self) for w in chosen]
        return order, views

    async def list_all(self, request: web.Request) -> web.Response:
        """List the jobs, oldest first."""
        is_admin = self._guard.is_admin(request)
        shown = [job for job in self._downloads.list_all() if job.is_public or is_admin]
        return web.json_response({"downloads": [self._describe(job) for job in shown]})

    async def get(self, request: web.Request) -> web.Response:
        """Say how far a job is."""
        return web.json_response(self._describe(self.find(request)))

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop a job; what was fetched is kept."""
        job = await self._downloads.cancel(request.match_info["id"])
        return web.json_response(self._describe(job))

    async def pause(self, request: web.Request) -> web.Response:
        """Stop a job until it is resumed."""
        job = await self._downloads.pause(request.match_info["id"])
        return web.json_response(self._describe(job))

    async def resume(self, request: web.Request) -> web.Response:
        """Let a paused job go on, with another token maybe."""
        message = await read_object(request) if request.can_read_body else {}
        token = get_optional_text(message, "token")
        credentials = None if token is None else Credentials(token)
        job = await self._downloads.resume(request.match_info["id"], credentials)
        return web.json_response(self._describe(job))

    def find(self, request: web.Request) -> Job:
        """
        Return the job of a request's path, for a caller who may know of it.

        Raises:
            JobNotFoundError: There is none, or none that this caller may know of.
        """
        job = self._downloads.get(request.match_info["id"])
        if not self._may_show(request, job):
            raise JobNotFoundError(f"No download {job.id!r}; list them with GET downloads.")
        return job

    def _may_show(self, request: web.Request, job: Job) -> bool:
        """
        Return whether a caller may know of a job whose id it has.

        One that was ordered without a token can come to nothing but what is public.
        """
        return job.is_public or not job.had_token or self._guard.is_admin(request)

    def _describe(self, job: Job) -> dict[str, object]:
        return describe_job(job, now_s=self._cache.context.clock.monotonic_s())
