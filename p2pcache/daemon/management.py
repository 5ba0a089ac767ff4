"""
Owns the management API of the local endpoint: models, peers, status; reading what is sent to it.

Knows nothing of how the engine works; asks it and writes JSON.
Invariants: what is not proven public is shown to the admin token's holder alone; field names are
the contract's.
Source: docs/reference/http-api.md; design.md §8.
"""

from __future__ import annotations

import json

from aiohttp import web

from p2pcache import __version__
from p2pcache.core.peers import Fault
from p2pcache.core.refs import ModelReference
from p2pcache.core.residency import State
from p2pcache.core.selection import select_default
from p2pcache.daemon.guard import MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.peerlist import describe_peers
from p2pcache.engine.cache import Cache
from p2pcache.engine.downloads import Downloads
from p2pcache.errors import InputError
from p2pcache.store.catalogue import RefRow, SnapshotRow


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
        router.add_get(f"{base}/models", self.models)
        router.add_get(f"{base}/peers", self.peers)
        router.add_get(f"{base}/status", self.status)

    # --- what is here ---

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
            measured = await self._cache.measure(list(select_default(row.snapshot.files)))
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
