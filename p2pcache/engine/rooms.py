"""
Owns making room: whether something fits, evicting for it, refusing it with the numbers.

Knows nothing of what is written there; core.eviction decides what leaves.
Invariants: room is there, or is refused, before the first byte; two that fit only one by one do
not both begin; what the disk gave already is not counted a second time.
Source: design.md §4; docs/how-to/limit-disk.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from p2pcache.core.digest import BlobDigest
from p2pcache.core.eviction import Protection, Step, measure_room, plan_eviction
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import FileEntry
from p2pcache.engine.context import Context
from p2pcache.engine.evictor import Evictor, Survey, limit_space
from p2pcache.engine.gauge import Figures, Gauge
from p2pcache.engine.holds import Holds, Room
from p2pcache.errors import StoreFullError
from p2pcache.store.usage import measure_missing

# Plans for one request: what a plan counted on may be needed again when its turn comes.
PLANS_MAX = 3
# A poll of many models' residency looks at the store this often, not each time.
SURVEY_AGE_S_MAX = 10.0
# File systems give room back a moment after the last name of a file went.
DISK_SETTLE_S = 2.0
DISK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class _Need:
    """Bytes that the disk has yet to give: for one room, and for all others that are granted."""

    room_bytes: int
    others_bytes: int

    @property
    def all_bytes(self) -> int:
        return self.room_bytes + self.others_bytes


@dataclass(frozen=True, slots=True)
class _Lack:
    """Bytes by which a room does not fit: into the quota, onto the disk."""

    quota_bytes: int
    disk_bytes: int

    @property
    def is_none(self) -> bool:
        return self.quota_bytes <= 0 and self.disk_bytes <= 0


def _find_lack(need: _Need, figures: Figures) -> _Lack:
    if not need.room_bytes:
        return _Lack(0, 0)
    over = 0
    if figures.quota_bytes is not None:
        over = figures.own_bytes + need.all_bytes - figures.quota_bytes
    under = figures.floor_bytes + need.all_bytes - figures.disk_free
    return _Lack(max(0, over), max(0, under))


@dataclass(frozen=True, slots=True)
class Forecast:
    """Whether something would fit, and what would be evicted for it."""

    fits: bool
    steps: tuple[Step, ...] = ()


class Rooms:
    """All rooms of this daemon. Event loop only."""

    def __init__(
        self, context: Context, holds: Holds, evictor: Evictor, gauge: Gauge, lock: asyncio.Lock
    ) -> None:
        """
        Args:
            context: The shared parts.
            holds: Who needs what.
            evictor: Looks at the store, and takes things out.
            gauge: What the store takes.
            lock: Held while anything is evicted.
        """
        self._context = context
        self._holds = holds
        self._evictor = evictor
        self._gauge = gauge
        self._lock = lock
        # The last look at the store that a question took, and when.
        self._seen: tuple[float, Survey] | None = None

    async def fits(self, snapshot_id: SnapshotId, entries: Iterable[FileEntry]) -> bool:
        """Return whether make() would find room now; see forecast()."""
        return (await self.forecast(snapshot_id, entries)).fits

    async def forecast(self, snapshot_id: SnapshotId, entries: Iterable[FileEntry]) -> Forecast:
        """
        Return whether make() would find room now: in the quota and on the disk, after evicting
        what may go, with what others reserved; and what that would be. Reserves and evicts nothing.

        Raises:
            StoreError: The disk failed.
        """
        need = await self._measure_need({entry.digest: entry.size_bytes for entry in entries})
        figures = await self._gauge.read()
        if _find_lack(need, figures).is_none:
            return Forecast(True)
        survey = await self._look()
        views = (
            replace(view, protection=Protection.IN_USE) if view.id == snapshot_id else view
            for view in survey.view.snapshots
        )
        view = replace(survey.view, snapshots=tuple(views))
        limits = limit_space(figures, survey)
        plan = plan_eviction(view, limits, need_bytes=need.all_bytes)
        return Forecast(not plan.bytes_short, plan.steps)

    async def _look(self) -> Survey:
        """Return how the store was a few seconds ago at most."""
        now_s = self._context.clock.monotonic_s()
        if self._seen is None or not 0 <= now_s - self._seen[0] < SURVEY_AGE_S_MAX:
            self._seen = now_s, await self._evictor.survey(is_report=True)
        return self._seen[1]

    async def make(self, snapshot_id: SnapshotId, entries: Iterable[FileEntry]) -> Room:
        """
        Reserve room for some files of a snapshot, evicting what nobody needs if that helps.

        Raises:
            StoreFullError: It cannot be had; with the numbers.
            StoreError: The disk failed.
        """
        sizes = {entry.digest: entry.size_bytes for entry in entries}
        is_reserved = sizes.keys() <= self._holds.list_granted().keys()
        room = self._holds.open_room(snapshot_id, sizes)
        try:
            if is_reserved:
                # A file of a job's: nothing of it can leave, so that nothing is waited for.
                room.is_granted = True
            else:
                await self.renew(room)
        except BaseException:
            room.release()
            raise
        return room

    async def renew(self, room: Room) -> None:
        """
        See to it that the room is there, once more if somebody else took it.

        Raises:
            StoreFullError: It cannot be had; with the numbers.
            StoreError: The disk failed.
        """
        async with self._lock:
            for plans_left in reversed(range(PLANS_MAX)):
                is_last = plans_left == 0
                if (await self._measure_lack(room)).is_none or await self._evict_for(
                    room, is_last=is_last
                ):
                    room.is_granted = True
                    return
            raise await self._refuse(room, "others need what could be evicted; ask again")

    async def _measure_lack(self, room: Room) -> _Lack:
        need = await self._measure_need(room.sizes, but=room)
        return _find_lack(need, await self._gauge.read())

    async def _evict_for(self, room: Room, *, is_last: bool) -> bool:
        """
        Evict what a room needs; returns whether it fits then. If not, another plan may do it,
        unless this is the last one.

        Raises:
            StoreFullError: None would.
        """
        ended_count = self._holds.ended_count
        survey = await self._evictor.survey()
        need = await self._measure_need(room.sizes, but=room)
        limits = limit_space(await self._gauge.read(), survey)
        plan = plan_eviction(survey.view, limits, need_bytes=need.all_bytes)
        if plan.bytes_short:
            # What a download that was cancelled leaves may go, once it has wound up.
            is_changing = await self._holds.wait_winding_up()
            if not is_last and (is_changing or self._holds.ended_count != ended_count):
                return False
            raise await self._refuse(room, f"{plan.bytes_short:,} cannot be had", survey)
        done = await self._evictor.apply(plan, survey)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + DISK_SETTLE_S
        while not (lack := await self._measure_lack(room)).is_none:
            if lack.quota_bytes or len(done) < len(plan.steps):
                return False
            if loop.time() >= end_s:
                raise await self._refuse(
                    room, "what was evicted is still open in other programs; wait until they end"
                )
            await asyncio.sleep(DISK_POLL_S)
        return True

    async def _measure_need(
        self, sizes: Mapping[BlobDigest, int], *, but: Room | None = None
    ) -> _Need:
        others = self._holds.list_granted(but=but)
        rest = {blob: size for blob, size in sizes.items() if blob not in others}
        store = self._context.store

        def measure() -> _Need:
            return _Need(
                measure_missing(store, rest.items()), measure_missing(store, others.items())
            )

        return await self._context.in_bulk(measure)

    async def _refuse(
        self, room: Room, reason: str, survey: Survey | None = None
    ) -> StoreFullError:
        survey = survey or await self._evictor.survey(is_report=True)
        need = await self._measure_need(room.sizes, but=room)
        figures = await self._gauge.read()
        report = measure_room(survey.view)
        kept = ", ".join(f"{n:,} {p}" for p, n in report.protected_bytes.items() if n)
        quota = "no quota" if figures.quota_bytes is None else f"a quota of {figures.quota_bytes:,}"
        return StoreFullError(
            f"{room.snapshot_id} needs {need.room_bytes:,} more bytes, and {reason}: the disk of "
            f"{self._context.settings.store} has {figures.disk_free:,} free, of which "
            f"{figures.floor_bytes:,} stay free; the store takes {figures.own_bytes:,} and has "
            f"{quota}; {need.others_bytes:,} are reserved for other downloads; evicting everything "
            f"that may go gives {report.evictable_bytes:,} (kept: {kept or 'nothing'}). Unpin or "
            "remove a model (p2pcache ls, p2pcache rm REF), raise --quota, or pull less with "
            "--include."
        )
