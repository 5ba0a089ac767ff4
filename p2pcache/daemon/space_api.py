"""
Owns the part of the management API about room: storage, gc, removing, pins, leases.

Knows nothing of how room is made.
Invariants: what is not proven public is named to the admin token's holder alone; field names are
the contract's; a dry run answers what a run would.
Source: docs/reference/http-api.md; design.md §8.
"""

from __future__ import annotations

from aiohttp import web

from p2pcache.core.eviction import HIGH_MARK, Protection, Step
from p2pcache.core.refs import ModelReference, SnapshotId
from p2pcache.core.residency import State
from p2pcache.core.selection import select_default
from p2pcache.daemon.guard import MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.management import get_optional_text, read_object, read_reference
from p2pcache.engine.cache import Cache
from p2pcache.engine.gauge import Figures
from p2pcache.engine.leases import HOLDER_CHARS_MAX, LEASE_TTL_S_DEFAULT, Lease
from p2pcache.engine.replicas import Replicas
from p2pcache.errors import InputError, NotFoundError
from p2pcache.store.catalogue import RefRow, SnapshotRow
from p2pcache.store.replicafile import ReplicaRow


class SpaceApi:
    """The handlers about room."""

    def __init__(self, cache: Cache, guard: Guard, replicas: Replicas) -> None:
        self._cache = cache
        self._guard = guard
        self._replicas = replicas

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        base = MANAGEMENT_PREFIX + "v1"
        router = app.router
        router.add_get(f"{base}/storage", self.storage)
        router.add_post(f"{base}/gc", self.gc)
        router.add_delete(f"{base}/models", self.remove)
        router.add_get(f"{base}/pins", self.list_pins)
        router.add_post(f"{base}/pins", self.pin)
        router.add_delete(f"{base}/pins", self.unpin)
        router.add_get(f"{base}/leases", self.list_leases)
        router.add_post(f"{base}/leases", self.lease)
        router.add_post(f"{base}/leases/{{id}}", self.renew)
        router.add_delete(f"{base}/leases/{{id}}", self.end_lease)

    # --- room ---

    async def storage(self, request: web.Request) -> web.Response:
        """Say what the store takes, and what of it could go."""
        context = self._cache.context
        count, size_bytes = await context.index.call(lambda index: index.blobs.measure())
        figures, sums, report = await self._cache.space.report()
        reserved = await self._cache.space.measure_reserved()
        return web.json_response(
            {
                "store": str(context.settings.store),
                "blobs": count,
                "blobs_bytes": size_bytes,
                "partial_bytes": figures.partial_bytes,
                "disk_total": figures.disk_total,
                "disk_free": figures.disk_free,
                "quota": figures.quota_bytes,
                "free_floor": figures.floor_bytes,
                "own_bytes": figures.own_bytes,
                "logical_bytes": sums.logical_bytes,
                "physical_bytes": sums.own_bytes,
                "saved_bytes": max(0, sums.logical_bytes - sums.own_bytes),
                "adopted_bytes": sums.adopted_bytes,
                "pinned_bytes": report.protected_bytes[Protection.PINNED],
                "evictable_bytes": report.evictable_bytes,
                "reserved_bytes": reserved,
                "warnings": find_warnings(figures, reserved, report.evictable_bytes),
            }
        )

    async def gc(self, request: web.Request) -> web.Response:
        """Tidy up, or say what that would do."""
        message = await read_object(request) if request.can_read_body else {}
        is_dry_run = get_switch(message, "dry_run")
        cleaning = await self._cache.space.gc(is_dry_run=is_dry_run)
        return web.json_response(
            {
                "dry_run": is_dry_run,
                "steps": [describe_step(step) for step in cleaning.steps],
                "bytes_freed": cleaning.bytes_freed,
                "own_bytes": cleaning.figures.own_bytes,
                "quota": cleaning.figures.quota_bytes,
                "disk_free": cleaning.figures.disk_free,
            }
        )

    async def remove(self, request: web.Request) -> web.Response:
        """Remove one snapshot."""
        message = await read_object(request)
        reference = read_reference(message)
        row = await self._get_known(reference, "list what is: p2pcache ls")
        is_forced = get_switch(message, "force")
        step = await self._cache.space.remove(row.snapshot.id, is_forced=is_forced)
        return web.json_response(
            {
                "model": str(reference.repo),
                "revision": reference.revision,
                "commit": row.snapshot.id.commit,
                "blobs": len(step.blobs),
                "bytes_freed": step.own_bytes,
            }
        )

    # --- pins ---

    async def list_pins(self, request: web.Request) -> web.Response:
        """List what is protected."""
        shown = [
            describe_pin(pin)
            for pin in await self._cache.space.pins.list_all()
            if await self._may_show(request, SnapshotId(pin.repo, pin.commit))
        ]
        rows = [
            self._describe_copies(row)
            for row in self._replicas.list_all()
            if await self._may_show(request, SnapshotId(row.reference.repo, row.commit))
        ]
        return web.json_response({"pins": shown} | ({"replicas": rows} if rows else {}))

    async def pin(self, request: web.Request) -> web.Response:
        """Protect a snapshot that is here."""
        message = await read_object(request)
        reference, count = read_reference(message), message.get("replicas")
        if count is not None:
            if isinstance(count, bool) or not isinstance(count, int):
                raise InputError("'replicas' is how many daemons are to hold a copy.")
            kept = await self._replicas.keep(reference, count)
            return web.json_response(self._describe_copies(kept))
        row = await self._get_known(reference)
        wall_s = self._cache.context.clock.wall_s()
        pin = RefRow(reference.repo, reference.revision, row.snapshot.id.commit, wall_s)
        await self._cache.space.pin(pin)
        return web.json_response(describe_pin(pin))

    async def unpin(self, request: web.Request) -> web.Response:
        """Stop protecting a snapshot."""
        reference = read_reference(await read_object(request))
        had_copies = await self._replicas.stop(reference)
        if not await self._cache.space.pins.remove(reference) and not had_copies:
            raise NotFoundError(f"{reference} is not pinned; list pins with: p2pcache ls")
        return web.json_response({"model": str(reference.repo), "revision": reference.revision})

    # --- leases ---

    async def list_leases(self, request: web.Request) -> web.Response:
        """List what is protected for a while."""
        await self._cache.space.leases.load()
        shown = [
            self._describe_lease(lease)
            for lease in self._cache.space.leases.list_all()
            if await self._may_show(request, lease.snapshot_id)
        ]
        return web.json_response({"leases": shown})

    async def lease(self, request: web.Request) -> web.Response:
        """Protect a snapshot of which something is here, for a while."""
        message = await read_object(request)
        reference = read_reference(message)
        ttl_s = get_seconds(message, "ttl_s") or LEASE_TTL_S_DEFAULT
        holder = get_optional_text(message, "holder") or ""
        if len(holder) > HOLDER_CHARS_MAX or not holder.isprintable():
            raise InputError(f"'holder' is text of at most {HOLDER_CHARS_MAX} plain characters.")
        row = await self._get_known(reference)
        residency = await self._cache.measure(list(row.snapshot.files))
        if residency.state is State.ABSENT:
            raise _not_here(reference)
        # Resident is what a pull without patterns brings, as everywhere else.
        residency = await self._cache.measure(list(select_default(row.snapshot.files)))
        lease = await self._cache.space.lease(row.snapshot.id, ttl_s, holder)
        if residency.state is State.RESIDENT:
            await self._cache.find_path(row.snapshot)  # who leases will open it
        return web.json_response(
            {**self._describe_lease(lease), "state": residency.state.value}, status=201
        )

    async def renew(self, request: web.Request) -> web.Response:
        """Let a lease hold for its time again, from now."""
        message = await read_object(request) if request.can_read_body else {}
        await self._cache.space.leases.load()
        leases = self._cache.space.leases
        lease = await leases.renew(request.match_info["id"], get_seconds(message, "ttl_s"))
        self._cache.space.note_used(lease.snapshot_id)
        return web.json_response(self._describe_lease(lease))

    async def end_lease(self, request: web.Request) -> web.Response:
        """End a lease."""
        await self._cache.space.leases.load()
        lease = await self._cache.space.leases.end(request.match_info["id"])
        return web.json_response(self._describe_lease(lease))

    def _describe_copies(self, row: ReplicaRow) -> dict[str, object]:
        states = {h.peer_id: self._replicas.state_of(row, h) for h in row.holders.values()}
        return {
            "model": str(row.reference.repo),
            "revision": row.reference.revision,
            "commit": row.commit,
            "replicas": row.count,
            "copies": sum(state == "held" for state in states.values()),
            "holders": [
                {"name": h.name, "id": h.peer_id, "state": states[h.peer_id]}
                for h in row.holders.values()
            ],
        }

    def _describe_lease(self, lease: Lease) -> dict[str, object]:
        return {
            "id": lease.id,
            "model": str(lease.snapshot_id.repo),
            "commit": lease.snapshot_id.commit,
            "path": self._cache.path_of(lease.snapshot_id),
            "holder": lease.holder,
            "ttl_s": lease.ttl_s,
            "expires_at": lease.expires_wall_s,
        }

    # --- small parts ---

    async def _get_known(self, reference: ModelReference, advice: str = "") -> SnapshotRow:
        row = await self._cache.librarian.find_cached(reference)
        if row is None:
            raise _not_here(reference, advice)
        return row

    async def _may_show(self, request: web.Request, snapshot_id: SnapshotId) -> bool:
        """Return whether a caller may know of a snapshot: a public one, or the admin."""
        if self._guard.is_admin(request):
            return True
        reference = ModelReference(snapshot_id.repo, snapshot_id.commit)
        row = await self._cache.librarian.find_cached(reference)
        return row is not None and row.public_wall_s is not None


def find_warnings(figures: Figures, reserved_bytes: int, evictable_bytes: int) -> list[str]:
    """Return what of the disk or the quota will soon keep a download from its end."""
    found = []
    room_bytes = figures.disk_free - figures.floor_bytes
    if room_bytes < 0:
        found.append(
            f"The disk has {figures.disk_free:,} bytes free, less than the {figures.floor_bytes:,} "
            "that stay free; models go until it has them. Free some space, or lower --free-floor."
        )
    elif reserved_bytes > room_bytes + evictable_bytes:
        found.append(
            f"Downloads under way need {reserved_bytes:,} more bytes, and the disk can give "
            f"{room_bytes + evictable_bytes:,}; remove or unpin a model: p2pcache ls"
        )
    quota = figures.quota_bytes
    if quota is not None and figures.own_bytes > quota * HIGH_MARK:
        found.append(
            f"The store takes {figures.own_bytes:,} of its quota of {quota:,} bytes; the longest "
            "unused models go next. Pin what must stay, or raise --quota."
        )
    return found


def describe_step(step: Step) -> dict[str, object]:
    """Return what leaves, for people and programs."""
    return {
        "what": step.what.value,
        "name": step.name,
        "bytes": step.own_bytes,
        "reason": step.reason,
    }


def describe_pin(pin: RefRow) -> dict[str, object]:
    """Return a pin."""
    return {"model": str(pin.repo), "revision": pin.revision, "commit": pin.commit}


def get_switch(message: dict[str, object], key: str) -> bool:
    """Return a true or false field, False when it is absent or null."""
    value = message.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{key!r} is true or false.")
    return value is True


def get_seconds(message: dict[str, object], key: str) -> float | None:
    """Return a number of seconds, None when it is absent or null."""
    value = message.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{key!r} is a number of seconds above 0.")
    return min(float(value), 1e9)


def _not_here(reference: ModelReference, advice: str = "") -> NotFoundError:
    return NotFoundError(
        f"{reference} is not here; {advice or f'pull it first: p2pcache pull {reference}'}"
    )
