"""
Owns the part of the management API that checks the store: start, look, stop.

Knows nothing of how files are checked or mended.
Invariants: what is not public is named to the admin token's holder alone; a check that runs is
joined, never doubled.
Source: docs/reference/http-api.md; design.md §8.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from p2pcache.daemon.guard import MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.management import read_object
from p2pcache.engine.cache import Cache
from p2pcache.engine.checkup import CheckOrder, CheckRun, CheckupState
from p2pcache.errors import InputError
from p2pcache.store.damages import Damage

# Bytes per second, and seconds: beyond what any disk reads and anybody waits, and still a number.
RATE_BPS_MAX = 1e12
BUDGET_S_MAX = 366 * 86_400.0
_FLAGS = ("repair", "anew")


class CheckApi:
    """The handlers for checks."""

    def __init__(self, cache: Cache, guard: Guard) -> None:
        self._checkup = cache.checkup
        self._clock = cache.context.clock
        self._guard = guard

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        path = f"{MANAGEMENT_PREFIX}v1/check"
        app.router.add_post(path, self.start)
        app.router.add_get(path, self.show)
        app.router.add_delete(path, self.stop)

    async def start(self, request: web.Request) -> web.Response:
        """Begin a check, or join the one that runs; 202 at once."""
        message = await read_object(request) if request.can_read_body else {}
        await self._checkup.start(read_order(message))
        return web.json_response(self._describe(request), status=202)

    async def show(self, request: web.Request) -> web.Response:
        """Say how far the check is, or what the last one found."""
        return web.json_response(self._describe(request))

    async def stop(self, request: web.Request) -> web.Response:
        """End the check; the next one goes on from there."""
        await self._checkup.stop()
        return web.json_response(self._describe(request))

    def _describe(self, request: web.Request) -> dict[str, object]:
        return describe_check(
            self._checkup.find_run(),
            self._checkup.list_damages(),
            now_s=self._clock.monotonic_s(),
            shows_all=self._guard.is_admin(request),
        )


def read_order(message: dict[str, object]) -> CheckOrder:
    """
    Read `{"repair"?, "rate_bps"?, "budget_s"?, "anew"?}`.

    Raises:
        InputError: Something else is asked.
    """
    unknown = set(message) - {*_FLAGS, "rate_bps", "budget_s"}
    if unknown:
        raise InputError(
            f"{min(unknown)[:40]!r} is no field of a check; there are repair, rate_bps, budget_s "
            "and anew."
        )
    for name in _FLAGS:
        if not isinstance(message.get(name, False), bool):
            raise InputError(f"{name!r} is true or false.")
    return CheckOrder(
        is_repair=message.get("repair") is True,
        rate_bps=_read_number(message, "rate_bps", RATE_BPS_MAX),
        budget_s=_read_number(message, "budget_s", BUDGET_S_MAX),
        is_anew=message.get("anew") is True,
    )


def _read_number(message: dict[str, object], name: str, maximum: float) -> float | None:
    value = message.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= maximum:
        raise InputError(f"{name!r} is a number above 0, and {maximum:g} at most.")
    return float(value)


def describe_check(
    run: CheckRun | None, damages: Sequence[Damage], *, now_s: float, shows_all: bool
) -> dict[str, object]:
    """Return a check, running or over, and what is damaged now."""
    shown = [describe_damage(damage, shows_all=shows_all) for damage in damages]
    if run is None:
        return {
            "state": CheckupState.IDLE.value,
            "started_at": None,
            "pass_started_at": None,
            "background": False,
            "repair": False,
            "blobs_total": 0,
            "blobs_done": 0,
            "bytes_total": 0,
            "bytes_done": 0,
            "rate_bps": 0,
            "damaged": shown,
        }
    return {
        "state": run.state.value,
        "started_at": run.started_wall_s,
        "pass_started_at": run.pass_started_wall_s,
        "background": run.order.is_background,
        "repair": run.order.is_repair,
        "blobs_total": run.blobs_total,
        "blobs_done": run.blobs_done,
        "bytes_total": run.bytes_total,
        "bytes_done": run.bytes_done,
        "rate_bps": round(run.measure_rate(now_s)),
        "damaged": shown,
    }


def describe_damage(damage: Damage, *, shows_all: bool) -> dict[str, object]:
    """
    Return what is known of a damaged file; for others than the admin, nothing that names what is
    not public: neither the file, nor a repository that may have it beside a public one.
    """
    shows_blob = shows_all or damage.is_public
    return {
        "blob": str(damage.blob) if shows_blob else None,
        "chunks": list(damage.chunks),
        "files": list(map(str, damage.places)) if shows_all else [],
        "state": damage.state.value,
        "detail": damage.detail if shows_blob else "",
        "found_at": damage.found_wall_s,
    }
