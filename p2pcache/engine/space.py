"""
Owns the store's room as a whole: what keeps a snapshot, removing one, tidying up, the figures.

Knows nothing of HTTP; core.eviction decides what leaves, evictor.py takes it out, holds.py knows
who needs what, rooms.py makes room.
Invariants: one eviction at a time; whoever waits for it is not its victim; a dry run says what a
run would do.
Source: design.md §4; docs/how-to/limit-disk.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from p2pcache.core.eviction import (
    HIGH_MARK,
    Protection,
    RoomReport,
    Step,
    measure_room,
    plan_eviction,
    plan_removal,
)
from p2pcache.core.refs import SnapshotId
from p2pcache.engine.context import Context
from p2pcache.engine.evictor import Evictor, Users, limit_space
from p2pcache.engine.gauge import Figures, Gauge
from p2pcache.engine.holds import Holds
from p2pcache.engine.leases import Lease, Leases
from p2pcache.engine.pins import Pins
from p2pcache.engine.rooms import DISK_SETTLE_S, Rooms
from p2pcache.errors import NotFoundError, P2PCacheError, ProtectedError
from p2pcache.store.catalogue import RefRow
from p2pcache.store.index import Index
from p2pcache.store.inventory import Sums
from p2pcache.store.usage import measure_missing

log = logging.getLogger(__name__)

# The store is looked at this often, and when a fetch ends: others fill the disk too.
LOOK_INTERVAL_S = 60.0
# Not more often than this, however many fetches end.
LOOK_PAUSE_S = 1.0
# Owners of adopted files may remove theirs at any time; to look for that costs a walk.
RELEASE_INTERVAL_S = 3600.0
# When eviction gave nothing back, for programs still read the files, no more goes for the disk's
# sake for so long: it would empty the store in vain.
FLOOR_PAUSE_S = 600.0


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What gc did, or would do."""

    steps: tuple[Step, ...]
    figures: Figures

    @property
    def bytes_freed(self) -> int:
        """Return the bytes of all steps."""
        return sum(step.own_bytes for step in self.steps)


class Space:
    """The store's room. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.holds = Holds()
        self.holds.on_closed = self._wake_up
        self.pins = Pins(context)
        self.leases = Leases(context)
        users = Users(self.holds.is_busy, self.holds.is_held, self.leases.is_leased, self._refresh)
        self._gauge = Gauge(context)
        self.evictor = Evictor(context, users, self._gauge)
        # Held while anything is evicted, and while anybody waits for that.
        self._lock = asyncio.Lock()
        self.rooms = Rooms(context, self.holds, self.evictor, self._gauge, self._lock)
        self._used: dict[SnapshotId, None] = {}
        self._floor_paused_until_s = 0.0
        self._release_s = 0.0
        self._wake = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """
        Measure what is here, and begin to look after it.

        Raises:
            StoreError: The disk failed.
        """
        await self.leases.load()
        await self._gauge.calibrate()
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop looking; what was used is recorded."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        with contextlib.suppress(P2PCacheError):
            await self._record_uses()

    # --- what is needed ---

    def note_used(self, snapshot_id: SnapshotId) -> None:
        """Put a snapshot last in the order of eviction. Recorded within a minute."""
        self._used.pop(snapshot_id, None)
        self._used[snapshot_id] = None

    @asynccontextmanager
    async def keeping(self, snapshot_id: SnapshotId) -> AsyncIterator[None]:
        """Hold a snapshot, after an eviction that had begun: the index says what is left."""
        with self.holds.holding(snapshot_id):
            await self.settle()
            yield

    async def settle(self) -> None:
        """Return when the eviction that runs is over, if one does."""
        async with self._lock:
            pass

    async def pin(self, pin: RefRow) -> None:
        """
        Protect a snapshot that is known here.

        Raises:
            NotFoundError: It is not, or not any more.
            StoreError: The disk failed or is full.
        """
        snapshot_id = SnapshotId(pin.repo, pin.commit)
        async with self.keeping(snapshot_id):
            await self._check_known(snapshot_id)
            await self.pins.put(pin)

    async def lease(self, snapshot_id: SnapshotId, ttl_s: float, holder: str) -> Lease:
        """
        Protect a snapshot that is known here, for a while.

        Raises:
            NotFoundError: It is not, or not any more.
            InputError, DaemonBusyError: See Leases.grant().
        """
        async with self.keeping(snapshot_id):
            await self._check_known(snapshot_id)
            await self.leases.load()
            self.note_used(snapshot_id)
            return await self.leases.grant(snapshot_id, ttl_s, holder)

    async def _check_known(self, snapshot_id: SnapshotId) -> None:
        row = await self._context.index.call(lambda i: i.catalogue.find_snapshot(snapshot_id))
        if row is None:
            raise NotFoundError(
                f"{snapshot_id} is not here; pull it first: p2pcache pull {snapshot_id}"
            )

    # --- tidying up ---

    async def gc(self, *, is_dry_run: bool) -> Cleaning:
        """
        Remove what nobody can reach, and go back below the marks; or tell what that would be.

        Raises:
            StoreError: The disk failed; what was done before is done.
        """
        async with self._lock:
            survey = await self.evictor.survey(is_sweep=True)
            limits = limit_space(await self.measure(), survey)
            plan = plan_eviction(survey.view, limits, is_sweep=True)
            if is_dry_run:
                return Cleaning(plan.steps, await self.measure())
            await self.leases.forget_ended()
            await self.evictor.release(survey)
            done = await self.evictor.apply(plan, survey)
            await self._gauge.calibrate()
            return Cleaning(tuple(done), await self.measure())

    async def remove(self, snapshot_id: SnapshotId, *, is_forced: bool = False) -> Step:
        """
        Take one snapshot out, with the blobs that no other one lists.

        Args:
            snapshot_id: Which.
            is_forced: Also when it is pinned; the pins go with it.

        Raises:
            NotFoundError: Nothing is known of it here.
            ProtectedError: Somebody needs it.
            StoreError: The disk failed.
        """
        async with self._lock:
            survey = await self.evictor.survey()
            views = [view for view in survey.view.snapshots if view.id == snapshot_id]
            if not views:
                raise NotFoundError(f"{snapshot_id} is not here; list what is: p2pcache ls")
            if self.leases.is_leased(snapshot_id):
                raise ProtectedError(
                    f"{snapshot_id} is leased by a program that loads it; remove it when that "
                    "has ended, or its lease ran out."
                )
            if self.holds.is_held(snapshot_id):
                raise _in_use(snapshot_id)
            if views[0].protection is Protection.PINNED:
                if not is_forced:
                    raise ProtectedError(
                        f"{snapshot_id} is pinned; unpin it first, or remove it with --force."
                    )
                await self.pins.remove_all(snapshot_id)
            done = await self.evictor.apply(plan_removal(survey.view, snapshot_id), survey)
            if not done:
                raise _in_use(snapshot_id)
            return done[0]

    async def _watch(self) -> None:
        """Look at the store now and then; a disk that fails is looked at again."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._wake.wait()
            await asyncio.sleep(LOOK_PAUSE_S)
            self._wake.clear()
            try:
                await self._release_now_and_then()
                await self.look()
            except P2PCacheError as error:
                log.warning("the store was not looked after: %s", error)

    async def _release_now_and_then(self) -> None:
        """Count adopted files whose other owner is gone as what they are by now: ours."""
        now_s = self._context.clock.monotonic_s()
        if now_s < self._release_s:
            return
        self._release_s = now_s + RELEASE_INTERVAL_S
        await self.release_ownerless()

    async def release_ownerless(self) -> None:
        """
        Take over adopted files that nobody else has any more: they count, and may be evicted.

        Raises:
            StoreError: The disk failed.
        """
        async with self._lock:
            survey = await self.evictor.survey(is_sweep=True)
            if survey.released:
                await self.evictor.release(survey)
                await self._gauge.calibrate()

    def _wake_up(self) -> None:
        self._wake.set()

    async def look(self) -> None:
        """
        Record uses; evict down to the low mark if the store is above the high one.

        Raises:
            StoreError: The disk failed.
        """
        await self._record_uses()
        if not _is_too_full(await self._measure_unpaused()):
            return
        async with self._lock:
            survey = await self.evictor.survey()
            before = await self._measure_unpaused()
            plan = plan_eviction(survey.view, limit_space(before, survey))
            done = await self.evictor.apply(plan, survey)
            if done and before.disk_free < before.floor_bytes:
                await self._check_gain(before, sum(step.own_bytes for step in done))

    async def _measure_unpaused(self) -> Figures:
        """As measure(), without the floor while it is of no use to look at it."""
        figures = await self.measure()
        is_paused = self._context.clock.monotonic_s() < self._floor_paused_until_s
        return replace(figures, floor_bytes=0) if is_paused else figures

    async def _check_gain(self, before: Figures, freed_bytes: int) -> None:
        """Stop evicting for the disk's sake while that gives the disk nothing."""
        await asyncio.sleep(DISK_SETTLE_S)
        after = await self.measure()
        if after.disk_free - before.disk_free < freed_bytes // 2:
            self._floor_paused_until_s = self._context.clock.monotonic_s() + FLOOR_PAUSE_S
            log.warning(
                "%d bytes were evicted and the disk of %s has not got them back: programs still "
                "read those files; no more goes for %d s",
                freed_bytes,
                self._context.settings.store,
                FLOOR_PAUSE_S,
            )

    # --- figures ---

    async def measure(self) -> Figures:
        """
        Return what the store takes and may take; cheap enough for every request.

        Raises:
            StoreError: The disk failed.
        """
        return await self._gauge.read()

    async def report(self) -> tuple[Figures, Sums, RoomReport]:
        """
        Return all that is to be told of the store's room.

        Raises:
            StoreError: The disk failed.
        """
        survey = await self.evictor.survey(is_report=True)
        sums = await self._context.index.call(lambda index: index.inventory.measure())
        return await self.measure(), sums, measure_room(survey.view)

    async def measure_reserved(self) -> int:
        """
        Return the bytes that downloads under way have yet to write.

        Raises:
            StoreError: The disk failed.
        """
        granted, store = self.holds.list_granted(), self._context.store
        return await self._context.in_bulk(lambda: measure_missing(store, granted.items()))

    async def _refresh(self) -> None:
        """Before the store is looked at: what protects snapshots, and when they were used."""
        await self.leases.load()
        await self._record_uses()

    async def _record_uses(self) -> None:
        used, self._used = list(self._used), {}

        def record(index: Index) -> None:
            for snapshot_id in used:
                index.roots.note_used(snapshot_id)

        if used:
            await self._context.index.call(record)


def _in_use(snapshot_id: SnapshotId) -> ProtectedError:
    return ProtectedError(
        f"{snapshot_id} is being downloaded or read; remove it when that is done."
    )


def _is_too_full(figures: Figures) -> bool:
    quota = figures.quota_bytes
    return figures.disk_free < figures.floor_bytes or (
        quota is not None and figures.own_bytes > quota * HIGH_MARK
    )
