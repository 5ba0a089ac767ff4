"""
Owns the management API of the local endpoint: downloads, residency, models, peers, status.

Knows nothing of how the engine works; asks it and writes JSON.
Invariants: what is not proven public is shown to the admin token's holder alone; field names are
the contract's.
Source: docs/reference/http-api.md; design.md §8.
"""

from __future__ import annotations

import json
import shutil
from urllib.parse import unquote

from aiohttp import web

from p2pcache import __version__
from p2pcache.core.credentials import Credentials
from p2pcache.core.peers import Fault
from p2pcache.core.refs import ModelReference
from p2pcache.core.residency import State
from p2pcache.daemon.guard import DOWNLOAD_ALIAS, MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.peerlist import describe_peers
from p2pcache.engine.cache import Cache
from p2pcache.engine.downloads import Downloads, Job, JobOrder
from p2pcache.errors import InputError
from p2pcache.store.catalogue import RefRow, SnapshotRow

# Patterns in one request; a pattern is a file name at the longest.
PATTERNS_MAX = 1000


class Management:
    """The handlers of the management API."""

    def __init__(self, cache: Cache, downloads: Downloads, guard: Guard) -> None:
        self._guard = guard
        self._cache = cache
        self._downloads = downloads
        self._started_s = cache.context.clock.monotonic_s()
        self.endpoints: dict[str, str] = {}

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        base = MANAGEMENT_PREFIX + "v1"
        router = app.router
        router.add_post(f"{base}/downloads", self.start_download)
        router.add_post(DOWNLOAD_ALIAS, self.start_download)
        router.add_get(f"{base}/downloads", self.list_downloads)
        router.add_get(f"{base}/downloads/{{id}}", self.get_download)
        router.add_delete(f"{base}/downloads/{{id}}", self.cancel_download)
        router.add_get(f"{base}/residency/{{reference:.+}}", self.residency)
        router.add_get(f"{base}/models", self.models)
        router.add_get(f"{base}/peers", self.peers)
        router.add_get(f"{base}/status", self.status)

    # --- downloads ---

    async def start_download(self, request: web.Request) -> web.Response:
        """Begin to bring a model here; 202 at once."""
        message = await read_object(request)
        for name in ("target_worker", "download_path", "workers", "path", "priority"):
            if message.get(name) is not None:
                raise InputError(
                    f"{name!r} is not built in this release; leave it out, and the model is "
                    "brought to this machine's store."
                )
        model = get_optional_text(message, "model") or get_optional_text(message, "model_id")
        if not model:
            raise InputError("Name the model: {'model': 'org/name'}.")
        order = JobOrder(
            ModelReference.parse(model, revision=get_optional_text(message, "revision")),
            get_patterns(message, "include"),
            get_patterns(message, "exclude"),
            message.get("pin") is True,
        )
        job = self._downloads.start(order, Credentials(get_optional_text(message, "token")))
        return web.json_response({"id": job.id, "state": job.state.value}, status=202)

    async def list_downloads(self, request: web.Request) -> web.Response:
        """List the jobs, oldest first."""
        is_admin = self._guard.is_admin(request)
        shown = [job for job in self._downloads.list_all() if job.is_public or is_admin]
        jobs = [self._describe_job(job) for job in shown]
        return web.json_response({"downloads": jobs})

    async def get_download(self, request: web.Request) -> web.Response:
        """Say how far a job is."""
        return web.json_response(self._describe_job(self._downloads.get(request.match_info["id"])))

    async def cancel_download(self, request: web.Request) -> web.Response:
        """Stop a job; what was fetched is kept."""
        job = await self._downloads.cancel(request.match_info["id"])
        return web.json_response(self._describe_job(job))

    def _describe_job(self, job: Job) -> dict[str, object]:
        counts = self._downloads.count_bytes(job)
        done = sum(counts.values())
        rate = self._downloads.measure_rate(job)
        described: dict[str, object] = {
            "id": job.id,
            "model": str(job.order.reference.repo),
            "revision": job.order.reference.revision,
            "commit": job.commit,
            "state": job.state.value,
            "bytes_total": job.bytes_total,
            "bytes_done": done,
            "bytes_from_peers": counts["peer"],
            "bytes_from_upstream": counts["upstream"],
            "bytes_from_disk": counts["disk"],
            "rate_bps": round(rate),
            "eta_s": round((job.bytes_total - done) / rate, 1) if rate > 0 else None,
        }
        if job.path is not None:
            described["path"] = job.path
        if job.error is not None:
            described["error"] = {"error": job.error.code, "message": str(job.error)}
        return described

    # --- what is here ---

    async def residency(self, request: web.Request) -> web.Response:
        """Say how much of a snapshot is here, from the index alone."""
        for name in ("scope", "wait", "timeout"):
            if name in request.query:
                raise InputError(f"{name!r} is not built in this release; leave it out.")
        reference = ModelReference.parse(unquote(request.match_info["reference"]))
        row = await self._cache.librarian.find_cached(reference)
        if row is not None and not self._may_show(request, row):
            row = None
        free = shutil.disk_usage(self._cache.context.settings.store).free
        answer: dict[str, object] = {
            "model": str(reference.repo),
            "commit": None,
            "state": State.ABSENT.value,
            "pinned": False,
            "bytes_total": None,
            "bytes_local": 0,
            "bytes_missing": None,
            "disk_free": free,
            "fits_disk": None,
        }
        if row is not None:
            snapshot = row.snapshot
            measured = await self._cache.measure(list(snapshot.files))
            answer |= {
                "commit": snapshot.id.commit,
                "confirmed": row.is_confirmed,
                "state": measured.state.value,
                "pinned": any(
                    (pin.repo, pin.commit) == (snapshot.id.repo, snapshot.id.commit)
                    for pin in await self._pins()
                ),
                "bytes_total": measured.bytes_total,
                "bytes_local": measured.bytes_local,
                "bytes_missing": measured.bytes_missing,
                "fits_disk": await self._cache.space.rooms.fits(snapshot.id, snapshot.files),
            }
            if measured.verified_wall_s is not None:
                answer["verified_at"] = measured.verified_wall_s
            if measured.state is State.RESIDENT:
                path = await self._cache.find_path(snapshot)
                answer |= {} if path is None else {"path": path}
        return web.json_response(answer)

    async def models(self, request: web.Request) -> web.Response:
        """List the snapshots of which something is here."""
        index = self._cache.context.index
        pins = {(pin.repo, pin.commit) for pin in await self._pins()}
        listed = []
        for snapshot_id in await index.call(lambda index: index.catalogue.list_snapshots()):
            row = await self._cache.librarian.find_cached(
                ModelReference(snapshot_id.repo, snapshot_id.commit)
            )
            if row is None or not self._may_show(request, row):
                continue
            measured = await self._cache.measure(list(row.snapshot.files))
            if measured.state is State.ABSENT:
                continue
            branches = await self._cache.librarian.list_branches(snapshot_id.repo)
            listed.append(
                {
                    "model": str(snapshot_id.repo),
                    "commit": snapshot_id.commit,
                    "revisions": [
                        name for name, commit in branches if commit == snapshot_id.commit
                    ],
                    "confirmed": row.is_confirmed,
                    "state": measured.state.value,
                    "bytes_total": measured.bytes_total,
                    "bytes_local": measured.bytes_local,
                    "pinned": (snapshot_id.repo, snapshot_id.commit) in pins,
                    "public": row.public_wall_s is not None,
                    "path": self._cache.path_of(snapshot_id),
                }
            )
        return web.json_response({"models": listed})

    # --- who is there ---

    async def peers(self, request: web.Request) -> web.Response:
        """List the peers that answer, and the addresses that do not."""
        unreachable = [
            {"address": f"{candidate.host}:{candidate.port}", "via": candidate.via}
            for candidate in self._cache.swarm.list_unreachable()
        ]
        return web.json_response({"peers": describe_peers(self._cache), "unreachable": unreachable})

    async def status(self, request: web.Request) -> web.Response:
        """Say who this daemon is and what went wrong lately."""
        context = self._cache.context
        settings = context.settings
        now_s = context.clock.monotonic_s()
        return web.json_response(
            {
                "name": settings.name,
                "id": settings.peer_id,
                "version": __version__,
                "store": str(settings.store),
                **self.endpoints,
                "upstream": settings.hf_upstream,
                "upstream_paused_s": round(max(0.0, context.budget.paused_until_s - now_s), 1),
                "limits": {
                    "upstream_bps": settings.upstream_limit_bps,
                    "download_bps": settings.download_limit_bps,
                    "upload_bps": settings.upload_limit_bps,
                    "peer_bps": settings.peer_limit_bps,
                },
                "uptime_s": round(now_s - self._started_s, 1),
                "peers": len(list(self._cache.swarm.iter_up())),
                "downloads": self._downloads.count_running(),
                "faults": [describe_fault(fault) for fault in context.blame.faults],
            }
        )

    # --- small parts ---

    def _may_show(self, request: web.Request, row: SnapshotRow) -> bool:
        """Return whether a caller may know of a snapshot: a public one, or the admin."""
        return row.public_wall_s is not None or self._guard.is_admin(request)

    async def _pins(self) -> list[RefRow]:
        return await self._cache.space.pins.list_all()


def describe_fault(fault: Fault) -> dict[str, object]:
    """Return a fault for people and programs."""
    return {
        "source": fault.source_id,
        "name": fault.source_name,
        "reason": fault.reason,
        "detail": fault.detail,
        "at": fault.wall_s,
    }


async def read_object(request: web.Request) -> dict[str, object]:
    """
    Read a JSON object from a request.

    Raises:
        InputError: It is none.
    """
    if request.content_type != "application/json":
        raise InputError("Send JSON: Content-Type: application/json.")
    try:
        message = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise InputError("The body is not JSON.") from error
    if not isinstance(message, dict):
        raise InputError("The body is a JSON object.")
    return message


def read_reference(message: dict[str, object]) -> ModelReference:
    """Read `{"model", "revision"?}`."""
    model = get_optional_text(message, "model")
    if not model:
        raise InputError("Name the model: {'model': 'org/name'}.")
    return ModelReference.parse(model, revision=get_optional_text(message, "revision"))


def get_optional_text(message: dict[str, object], key: str) -> str | None:
    """Return a text field, None when it is absent or null."""
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key!r} is text.")
    return value


def get_patterns(message: dict[str, object], key: str) -> tuple[str, ...]:
    """Return a list of globs; one alone may be given as text."""
    value = message.get(key)
    if value is None:
        return ()
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or len(patterns) > PATTERNS_MAX:
        raise InputError(f"{key!r} is a list of at most {PATTERNS_MAX} patterns.")
    if not all(isinstance(pattern, str) and 0 < len(pattern) <= 4096 for pattern in patterns):
        raise InputError(f"{key!r} is a list of patterns, each a text.")
    return tuple(patterns)
