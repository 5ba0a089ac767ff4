"""
Owns looking at every published file again: when asked to, and in the background once a week.

Knows nothing of how one file is hashed (store/check.py) or mended (healing.py).
Invariants: one check at a time, and none of a file that somebody waits for; what was looked at is
not looked at again after a stop, a restart or the end of the time; nobody is given a file from
the moment that its first wrong chunk shows.
Source: design.md §3 (check, repair); borg check --max-duration; restic's scrubbing advice.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from p2pcache.core.digest import BlobDigest
from p2pcache.engine.healing import DAMAGE_SHOWN_S, Healer
from p2pcache.engine.shelf import note_right, take_step
from p2pcache.engine.single import see_through
from p2pcache.errors import P2PCacheError, StoreError
from p2pcache.store.base import BlobFile
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.check import FileCheck
from p2pcache.store.checklist import CheckRow
from p2pcache.store.damages import Damage

if TYPE_CHECKING:
    from p2pcache.engine.cache import Cache

log = logging.getLogger(__name__)

# Everything is looked at so often: disks lose bits over months, and a week's read of all of it is
# nothing to them (ZFS and RAID arrays are scrubbed weekly to monthly).
CHECK_INTERVAL_S = 7 * 86_400.0
# In the background: a fifth of a hard disk's reads, two hundredths of one core, 20 TB
# a week. A larger store is read faster, so that a week is enough.
CHECK_RATE_BPS = 32 * 1024 * 1024
# Whether something is due, or can be healed, is asked so often.
PATROL_INTERVAL_S = 300.0
# Hashed in one go: what a stop, or a reader who wants the file at once, waits for.
STEP_BYTES_MAX = 16 * 1024 * 1024
# With a rate, so many steps in a second: no bursts that others notice.
STEPS_PER_S = 8
# How far a file was looked at is written down so often; each time costs a sync of the index.
PROGRESS_INTERVAL_S = 5.0


class CheckupState(StrEnum):
    """Where the last check stands."""

    IDLE = "idle"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class CheckOrder:
    """
    What a check is asked for.

    `is_repair`: fetch again what is damaged, and wait for it. `rate_bps`: bytes per second, None
    for as fast as the disk. `budget_s`: stop after so long. `is_anew`: look again also at what a
    check that was stopped has looked at.
    """

    is_repair: bool = False
    rate_bps: float | None = None
    budget_s: float | None = None
    is_anew: bool = False
    is_background: bool = False


@dataclass(slots=True)
class CheckRun:
    """One check, as far as it came."""

    order: CheckOrder
    started_wall_s: float
    started_s: float
    pass_started_wall_s: float | None = None
    state: CheckupState = CheckupState.RUNNING
    blobs_total: int = 0
    blobs_done: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    # What this check read itself, for the rate: an earlier one may have done a part.
    bytes_read: int = 0
    ended_s: float | None = None
    next_step_s: float = 0.0
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def measure_rate(self, now_s: float) -> float:
        """Return bytes per second, over all of the check."""
        elapsed_s = (now_s if self.ended_s is None else self.ended_s) - self.started_s
        return self.bytes_read / elapsed_s if elapsed_s > 0 else 0.0

    def count(self, rows: Sequence[CheckRow], left: Sequence[CheckRow]) -> None:
        """Note what there is to look at, and what of it is left."""
        self.blobs_total, self.blobs_done = len(rows), len(rows) - len(left)
        self.bytes_total = sum(row.size_bytes for row in rows)
        self.bytes_done = self.bytes_total - sum(row.size_bytes for row in left)

    def is_ending(self, now_s: float) -> bool:
        """Return whether it is to end now, through or not."""
        budget_s = self.order.budget_s
        return self.wake.is_set() or (budget_s is not None and now_s - self.started_s >= budget_s)


def find_left(rows: Sequence[CheckRow], since_wall_s: float, now_wall_s: float) -> list[CheckRow]:
    """Return the files that were not looked at since a moment."""
    return [
        row
        for row in rows
        # A time in the future is of a clock that was wrong.
        if not (row.is_proven and since_wall_s <= row.verified_wall_s <= now_wall_s)
    ]


class Checkup:
    """Checks of this store. Event loop only; hashing happens in bulk threads."""

    def __init__(self, cache: Cache) -> None:
        self.healer = Healer(cache)
        self.checked_bytes_total = 0
        self._cache = cache
        self._context = cache.context
        self._shelf = cache.shelf
        self._run: CheckRun | None = None
        self._task: asyncio.Task[None] | None = None
        self._patrol_task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._shelf.on_damage = self.healer.note
        self._shelf.on_put = self.healer.note_whole

    def open(self) -> None:
        """Begin to look after the store in the background."""
        self._patrol_task = asyncio.create_task(self._patrol())

    async def start(self, order: CheckOrder) -> CheckRun:
        """
        Begin a check; or join the one that runs, which then repairs too if that is asked for.

        One in the background makes way.
        """
        async with self._starting:
            run = self._run
            if run is not None and run.state is CheckupState.RUNNING:
                if not run.order.is_background:
                    run.order = _join(run.order, order)
                    return run
                await self._end()
            return self._begin(order)

    async def stop(self) -> None:
        """End the check that runs, if one does; the next one goes on from there."""
        async with self._starting:
            await self._end()

    def find_run(self) -> CheckRun | None:
        """Return the check that runs, else the last one of this daemon's life."""
        return self._run

    def list_damages(self) -> list[Damage]:
        """Return what is damaged, and what was healed lately."""
        return self.healer.list_all()

    async def close(self) -> None:
        """Stop; what was found, and how far it came, is on disk when this returns."""
        if self._patrol_task is not None:
            self._patrol_task.cancel()
            await asyncio.gather(self._patrol_task, return_exceptions=True)
        await self.healer.close()
        await self.stop()
        await self.healer.close()

    # --- in the background ---

    async def _patrol(self) -> None:
        """Heal what can be healed, look at what was not looked at for long; for ever."""
        while True:
            await asyncio.sleep(PATROL_INTERVAL_S)
            try:
                await self.patrol_once()
            except P2PCacheError as error:
                log.warning("a check in the background failed: %s", error)

    async def patrol_once(self) -> None:
        """Begin what is due now."""
        self.healer.heal_soon()
        now_wall_s = self._context.clock.wall_s()
        self.healer.forget_healed(now_wall_s - DAMAGE_SHOWN_S)
        due_before_wall_s = now_wall_s - CHECK_INTERVAL_S
        if not await self._context.index.call(
            lambda index: index.checks.has_due(due_before_wall_s, now_wall_s)
        ):
            return
        async with self._starting:
            if self._run is None or self._run.state is not CheckupState.RUNNING:
                self._begin(CheckOrder(is_repair=True, is_background=True))

    # --- one check ---

    def _begin(self, order: CheckOrder) -> CheckRun:
        clock = self._context.clock
        run = CheckRun(order, clock.wall_s(), clock.monotonic_s())
        self._run = run
        self._task = asyncio.create_task(self._check(run))
        return run

    async def _end(self) -> None:
        if self._run is not None and self._task is not None:
            self._run.wake.set()
            await asyncio.wait({self._task})

    async def _check(self, run: CheckRun) -> None:
        """Look at every file that is to be looked at, then mend what is damaged."""
        is_through = False
        try:
            is_through = await self._look_at_all(run)
            if run.order.is_repair and not run.wake.is_set():
                await self._heal(run)
        except P2PCacheError as error:
            log.warning("the check was broken off: %s", error)
        except Exception:
            log.exception("the check was broken off")
        finally:
            run.ended_s = self._context.clock.monotonic_s()
            is_done = is_through and not run.wake.is_set()
            run.state = CheckupState.DONE if is_done else CheckupState.STOPPED
            if is_through and not run.order.is_background:
                self.healer.end_pass()

    async def _heal(self, run: CheckRun) -> None:
        """Mend; whoever stops the check does not wait for it."""
        healing = asyncio.create_task(self.healer.heal_all(with_gone=not run.order.is_background))
        waking = asyncio.create_task(run.wake.wait())
        await asyncio.wait({healing, waking}, return_when=asyncio.FIRST_COMPLETED)
        waking.cancel()
        if not healing.done():
            healing.cancel()
        await asyncio.gather(healing, waking, return_exceptions=True)
        if not healing.cancelled() and (error := healing.exception()) is not None:
            raise error

    async def _look_at_all(self, run: CheckRun) -> bool:
        """Return whether nothing was left out."""
        rows = await self._choose(run)
        for row in rows:
            if run.is_ending(self._context.clock.monotonic_s()):
                return False
            before = run.bytes_done
            try:
                if not await self._look_at(run, row):
                    return False
            except StoreError as error:
                log.warning("%s could not be checked: %s", row.blob, error)
            run.bytes_done = before + row.size_bytes
            run.blobs_done += 1
        return True

    async def _choose(self, run: CheckRun) -> list[CheckRow]:
        """Return what is to be looked at, the longest unchecked first."""
        rows = await self._context.index.call(lambda index: index.checks.list_all())
        if run.order.is_background:
            total = sum(row.size_bytes for row in rows)
            # Twice as fast as a week needs: the daemon may not run all the time.
            rate_bps = max(CHECK_RATE_BPS, 2 * total / CHECK_INTERVAL_S)
            run.order = replace(run.order, rate_bps=rate_bps)
            left = find_left(rows, run.started_wall_s - CHECK_INTERVAL_S, run.started_wall_s)
            run.count(left, left)
            return left
        if run.order.is_anew:
            await self._context.index.call(lambda index: index.checks.forget_progress())
        run.pass_started_wall_s = self.healer.continue_pass(
            run.started_wall_s, within_s=CHECK_INTERVAL_S, is_anew=run.order.is_anew
        )
        left = find_left(rows, run.pass_started_wall_s, run.started_wall_s)
        run.count(rows, left)
        return left

    async def _look_at(self, run: CheckRun, listed: CheckRow) -> bool:
        """Look at one file; returns False if the check ended in the middle of it."""
        blob = listed.blob
        if self._is_taken(blob):
            return True
        row = await self._shelf.find_row(blob)
        if row is None:
            return True  # evicted meanwhile
        found = await self._context.in_bulk(self._context.store.find_blob, blob)
        if found is None:
            # A name that leads nowhere refers to a disk that may come back.
            if not os.path.lexists(self._context.store.path_of(blob)):
                await self._note_gone(row)
            return True
        try:
            return await self._walk(run, row, found)
        finally:
            os.close(found.fd)

    def _is_taken(self, blob: BlobDigest) -> bool:
        """Return whether a file is written, or hashed for somebody who waits, just now."""
        is_fetched = self._cache.fetches.find(blob) is not None
        return is_fetched or self._cache.claims.is_held(blob) or self._shelf.is_busy(blob)

    async def _note_gone(self, row: BlobRow) -> None:
        """A file that the index knows is not there; if it was evicted, its row went before it."""
        fresh = await self._shelf.find_row(row.blob)
        if fresh is None or fresh.stamp != row.stamp:
            return
        log.warning("%s is gone from the disk", row.blob)
        await self._context.index.call(lambda index: index.blobs.remove(row.blob))
        await self.healer.note_gone(row.blob, is_public=row.is_public)

    async def _walk(self, run: CheckRun, row: BlobRow, found: BlobFile) -> bool:
        """Hash one file, as gently as asked; returns False if the check ended meanwhile."""
        clock, blob = self._context.clock, row.blob
        is_same = row.is_proven and row.table is not None and row.stamp == found.stamp
        first = row.checked_chunks if is_same else 0

        def begin() -> FileCheck:
            return FileCheck(found, blob, row.table, first_chunk=first, is_gentle=True)

        walk = await see_through(self._context.in_bulk(begin))
        run.bytes_done += walk.layout.measure(range(first))
        noted_s, is_condemned = clock.monotonic_s(), False
        while not walk.is_over and not self._shelf.is_busy(blob):
            if run.is_ending(clock.monotonic_s()):
                break
            await self._take_step(run, walk)
            if walk.bad and not is_condemned:
                is_condemned = True
                await self._shelf.condemn(blob)
            elif is_same and clock.monotonic_s() - noted_s >= PROGRESS_INTERVAL_S:
                noted_s = clock.monotonic_s()
                await self._note_progress(row, walk)
        if self._shelf.is_busy(blob):
            return True  # somebody waits for it: it is hashed for him, all of it and at once
        await self._conclude(row, found, walk, is_repair=run.order.is_repair)
        return walk.is_over

    async def _take_step(self, run: CheckRun, walk: FileCheck) -> None:
        """Hash a little, then wait until the rate allows more."""
        rate_bps = run.order.rate_bps
        bytes_max = STEP_BYTES_MAX
        if rate_bps is not None:
            bytes_max = min(bytes_max, int(rate_bps / STEPS_PER_S))
        count = await see_through(self._context.in_bulk(take_step, walk, bytes_max))
        self.checked_bytes_total += count
        run.bytes_done += count
        run.bytes_read += count
        if rate_bps is None:
            return
        now_s = self._context.clock.monotonic_s()
        run.next_step_s = max(run.next_step_s, now_s) + count / rate_bps
        wait_s = run.next_step_s - now_s
        if run.order.budget_s is not None:
            wait_s = min(wait_s, run.started_s + run.order.budget_s - now_s)
        try:
            async with asyncio.timeout(max(wait_s, 0.0)):
                await run.wake.wait()
        except TimeoutError:
            pass

    async def _note_progress(self, row: BlobRow, walk: FileCheck) -> None:
        """Write down how far a file was looked at; the time stays that of the last whole look."""
        await self._context.index.call(
            lambda index: index.blobs.set_checked(row.blob, walk.next_chunk, row.verified_wall_s)
        )

    async def _conclude(
        self, row: BlobRow, found: BlobFile, walk: FileCheck, *, is_repair: bool
    ) -> None:
        """Do what follows from a walk, as far as it came."""
        fresh = await self._shelf.find_row(row.blob)
        if fresh is None or fresh.stamp != row.stamp:
            return  # evicted or made anew meanwhile: what was looked at is not what is there
        if walk.bad or (walk.is_over and not walk.is_right):
            await self._shelf.set_aside(fresh, found, walk)
            if is_repair:
                self.healer.heal_soon()
        elif walk.is_over:
            await note_right(self._context, fresh, found, walk)
        elif row.is_proven and walk.known is not None and row.stamp == found.stamp:
            await self._note_progress(row, walk)


def _join(order: CheckOrder, asked: CheckOrder) -> CheckOrder:
    """Return what a running check does once somebody else asked for one, too."""
    return CheckOrder(
        is_repair=order.is_repair or asked.is_repair,
        rate_bps=order.rate_bps if asked.rate_bps is None else asked.rate_bps,
        budget_s=order.budget_s if asked.budget_s is None else asked.budget_s,
        is_anew=order.is_anew,
    )
