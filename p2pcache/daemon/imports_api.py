"""
Owns the part of the management API that adopts caches of other programs: imports and watches.

Knows nothing of what a cache looks like.
Invariants: paths of this machine and names that may be private are shown to the admin token's
holder alone; field names are the contract's.
Source: docs/reference/http-api.md ("Imports"); design.md §8.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from p2pcache.daemon.guard import MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.management import get_optional_text, read_object
from p2pcache.engine.adoption import Adoptions
from p2pcache.engine.adoptionfiles import PRESENT
from p2pcache.engine.adoptionjob import AdoptionJob, AdoptionOrder, SnapshotReport
from p2pcache.engine.cache import Cache
from p2pcache.errors import InputError, MissingTokenError
from p2pcache.store.adopt import Placing

# What was left alone is listed up to here, and counted beyond.
SKIPPED_SHOWN_MAX = 1000
# As Linux has it for a whole path.
PATH_CHARS_MAX = 4096


class ImportsApi:
    """The handlers for imports. They begin and end with the application."""

    def __init__(self, cache: Cache, guard: Guard) -> None:
        self._adoptions = Adoptions(cache)
        self._guard = guard

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in, and go on watching when the application starts."""
        base = MANAGEMENT_PREFIX + "v1/imports"
        app.router.add_post(base, self.start)
        app.router.add_get(base, self.list_all)
        app.router.add_get(f"{base}/{{id}}", self.get)
        app.router.add_delete(f"{base}/{{id}}", self.cancel)
        app.on_startup.append(self._open)
        app.on_shutdown.append(self._close)

    async def _open(self, app: web.Application) -> None:
        await self._adoptions.open()

    async def _close(self, app: web.Application) -> None:
        await self._adoptions.close()

    async def start(self, request: web.Request) -> web.Response:
        """Begin to adopt a cache; 202 as soon as its folder could be read."""
        message = await read_object(request)
        path = get_optional_text(message, "path")
        if not path or len(path) > PATH_CHARS_MAX or not _is_plain(path):
            raise InputError("Name the cache's folder: {'path': '/home/me/.cache/huggingface'}.")
        order = AdoptionOrder(
            Path(path), get_flag(message, "watch"), is_public=get_flag(message, "public")
        )
        job = await self._adoptions.start(order)
        return web.json_response({"id": job.id, "state": job.state.value}, status=202)

    async def list_all(self, request: web.Request) -> web.Response:
        """List imports and watches, oldest first."""
        self._check_admin(request)
        jobs = [describe_job(job) for job in self._adoptions.list_all()]
        return web.json_response({"imports": jobs})

    async def get(self, request: web.Request) -> web.Response:
        """Say how far an import is."""
        self._check_admin(request)
        return web.json_response(describe_job(self._adoptions.get(request.match_info["id"])))

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop an import or a watch; what was imported is kept."""
        job = await self._adoptions.cancel(request.match_info["id"])
        return web.json_response(describe_job(job))

    def _check_admin(self, request: web.Request) -> None:
        if not self._guard.is_admin(request):
            raise MissingTokenError(
                "Imports name folders of this machine; ask with 'Authorization: Bearer' and the "
                "token in STORE/admin-token."
            )


def _is_plain(path: str) -> bool:
    """Return whether a text can be a path: no NUL, nothing that has no bytes in UTF-8."""
    return "\0" not in path and not any("\ud800" <= char <= "\udfff" for char in path)


def get_flag(message: dict[str, object], key: str) -> bool:
    """
    Return a truth value, False when it is absent or null.

    Raises:
        InputError: Something else; 'no' must not mean yes.
    """
    value = message.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{key!r} is true or false.")
    return value is True


def describe_job(job: AdoptionJob) -> dict[str, object]:
    """Return an import for people and programs."""
    skipped = job.list_skipped()
    described: dict[str, object] = {
        "id": job.id,
        "path": str(job.order.path),
        "watch": job.order.is_watch,
        "public": job.order.is_public,
        "added_at": job.added_wall_s,
        "state": job.state.value,
        "files_total": job.files_total,
        "files_done": job.files_done,
        "bytes_total": job.bytes_total,
        "bytes_done": job.bytes_done,
        **{placing.value: job.counts[placing.value] for placing in Placing},
        PRESENT: job.counts[PRESENT],
        "skipped_total": len(skipped),
        "skipped": [{"path": p, "reason": why} for p, why in skipped[:SKIPPED_SHOWN_MAX]],
        "snapshots": [describe_report(report) for report in job.snapshots.values()],
    }
    if job.error is not None:
        described["error"] = {"error": job.error.code, "message": str(job.error)}
    return described


def describe_report(report: SnapshotReport) -> dict[str, object]:
    """Return what came of one commit."""
    return {
        "model": str(report.id.repo),
        "commit": report.id.commit,
        "revisions": list(report.revisions),
        "files": report.files,
        "files_here": report.files_here,
        "confirmed": report.is_confirmed,
        "public": report.is_public,
        "notes": list(report.notes),
    }
