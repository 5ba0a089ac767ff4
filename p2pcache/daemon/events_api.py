"""
Owns telling programs of this machine what happens, as server-sent events.

Knows nothing of what happens.
Invariants: an event is one line of JSON; a stream of one download ends with it; what may be of
something private is told to the admin token's holder alone; no reader costs more than its queue.
Source: the WHATWG's "Server-sent events"; docs/reference/http-api.md ("Events").
"""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from p2pcache.daemon.downloads_api import DownloadsApi
from p2pcache.daemon.guard import MANAGEMENT_PREFIX, Guard
from p2pcache.engine.cache import Cache
from p2pcache.engine.downloads import Downloads
from p2pcache.engine.jobs import Job
from p2pcache.engine.jobview import describe_job
from p2pcache.engine.news import Listener, NewsEvent

# Shorter than what proxies and clients take for a dead connection.
HEARTBEAT_S = 10.0
RETRY_MS = 1000
# How often somebody looks who of the peers is there, while anybody listens.
PEERS_INTERVAL_S = 1.0
_LAST_EVENT_ID_CHARS_MAX = 100
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class EventsApi:
    """The handlers of events. They end with the application."""

    def __init__(
        self, cache: Cache, downloads: Downloads, guard: Guard, downloads_api: DownloadsApi
    ) -> None:
        self._cache = cache
        self._downloads = downloads
        self._guard = guard
        self._downloads_api = downloads_api
        self._watcher: asyncio.Task[None] | None = None

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        base = MANAGEMENT_PREFIX + "v1"
        # HEAD has no body to stream, and would not end.
        app.router.add_get(f"{base}/downloads/{{id}}/events", self.follow_one, allow_head=False)
        app.router.add_get(f"{base}/events", self.follow_all, allow_head=False)
        app.on_shutdown.append(self._close)

    async def _close(self, app: web.Application) -> None:
        self._downloads.news.close()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def follow_one(self, request: web.Request) -> web.StreamResponse:
        """Tell how one download goes, from now to its end."""
        job = self._downloads_api.find(request)
        listener = self._downloads.news.listen(about=job.id)
        try:
            response = await self._begin(request)
            await self._send(response, "state", None, self._describe(job))
            told = job.state
            while not job.is_over and not listener.has_ended:
                event = await self._next(response, listener)
                if event is not None:
                    told = job.state
                    await self._send(response, event.kind, event.id, event.body)
            if job.is_over and told is not job.state:
                await self._send(response, "state", None, self._describe(job))
            while (event := await listener.next(0)) is not None:
                await self._send(response, event.kind, event.id, event.body)
            return response
        finally:
            self._downloads.news.leave(listener)

    async def follow_all(self, request: web.Request) -> web.StreamResponse:
        """Tell everything that happens, until the caller leaves."""
        after = request.headers.get("Last-Event-ID", "")[:_LAST_EVENT_ID_CHARS_MAX]
        is_admin = self._guard.is_admin(request)
        listener = self._downloads.news.listen(after=after)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch_peers())
        try:
            response = await self._begin(request)
            while not listener.has_ended:
                event = await self._next(response, listener)
                if event is not None and (event.is_public or is_admin):
                    await self._send(response, event.kind, event.id, event.body)
            return response
        finally:
            self._downloads.news.leave(listener)

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        await response.write(f"retry: {RETRY_MS}\n\n".encode())
        return response

    async def _next(self, response: web.StreamResponse, listener: Listener) -> NewsEvent | None:
        """Return the next event, or None after a sign of life."""
        event = await listener.next(HEARTBEAT_S)
        if event is None and not listener.has_ended:
            await response.write(b": alive\n\n")
        return event

    async def _send(
        self, response: web.StreamResponse, kind: str, event_id: str | None, body: object
    ) -> None:
        head = f"event: {kind}\n" + (f"id: {event_id}\n" if event_id else "")
        await response.write(f"{head}data: {json.dumps(body)}\n\n".encode())

    async def _watch_peers(self) -> None:
        """Publish who of the peers comes and goes, as long as anybody listens."""
        swarm, news = self._cache.swarm, self._downloads.news
        known = {peer.peer_id: peer.name for peer in swarm.peers.values()}
        while news.has_listeners:
            await asyncio.sleep(PEERS_INTERVAL_S)
            now = {peer.peer_id: peer.name for peer in swarm.peers.values()}
            for peer_id in now.keys() - known.keys():
                news.publish("peer", {"name": now[peer_id], "id": peer_id, "state": "up"})
            for peer_id in known.keys() - now.keys():
                news.publish("peer", {"name": known[peer_id], "id": peer_id, "state": "gone"})
            known = now

    def _describe(self, job: Job) -> dict[str, object]:
        return describe_job(job, now_s=self._cache.context.clock.monotonic_s())
