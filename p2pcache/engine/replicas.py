"""
Owns keeping a number of copies of a model in the neighbourhood: choose holders, order, mend.

Knows nothing of HTTP; core.replicas decides who holds what.
Invariants: every copy is ordered and pinned like any download; a holder that is away for long is
replaced, one that is back too many is released; what is kept is remembered over restarts.
Source: design.md §8 (pin --replicas); docs/decisions/0021-downloads.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.jobs import JobOrder, JobState
from p2pcache.core.refs import ModelReference
from p2pcache.core.replicas import REPLICAS_MAX, plan_replicas
from p2pcache.core.workers import Worker
from p2pcache.engine.cache import Cache
from p2pcache.engine.downloads import Downloads
from p2pcache.engine.jobs import Job, WorkerView
from p2pcache.errors import (
    DaemonBusyError,
    ForbiddenError,
    InputError,
    JobNotFoundError,
    P2PCacheError,
)
from p2pcache.store.replicafile import Holder, ReplicaRow, read_replicas, write_replicas

log = logging.getLogger(__name__)

# A neighbour that left is noticed within seconds, and its copy ordered elsewhere once it has been
# away for longer than a restart takes.
LOOK_INTERVAL_S = 5.0
AWAY_S_MAX = 60.0
# A daemon that could not hold a copy is asked again after this long.
FAILED_PAUSE_S = 600.0
ROWS_MAX = 1000


class Replicas:
    """The models of which this daemon keeps copies. Event loop only."""

    def __init__(self, cache: Cache, downloads: Downloads) -> None:
        self._cache = cache
        self._downloads = downloads
        self._rows: dict[ModelReference, ReplicaRow] = {}
        self._seen_s: dict[str, float] = {}
        self._failed_until_s: dict[tuple[ModelReference, str], float] = {}
        self._saving = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """
        Go on keeping what an earlier run kept.

        Raises:
            StoreError: It cannot be read now.
        """
        root = self._cache.context.home.root
        for row in await self._cache.context.in_bulk(read_replicas, root):
            self._rows[row.reference] = row
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop looking; copies stay where they are. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def keep(self, reference: ModelReference, count: int) -> ReplicaRow:
        """
        Keep so many copies of a model from now on; returns before they are there.

        Raises:
            InputError: There are not so many daemons that take orders from here.
            ForbiddenError: It is not public.
            StoreError: It cannot be remembered.
        """
        resolved = await self._cache.librarian.resolve(reference, ANONYMOUS)
        if not await self._cache.access.is_public(resolved.snapshot):
            raise ForbiddenError(
                f"{reference.repo} is not public, and copies of what is not public are not ordered "
                "from other machines; pin it on each, with a token."
            )
        members = await self._list_members()
        if not 1 <= count <= min(len(members), REPLICAS_MAX):
            names = ", ".join(sorted(member.name for member in members))
            raise InputError(
                f"{count} copies cannot be kept: {len(members)} daemons take orders from here, "
                f"this one included ({names}). See: p2pcache peers"
            )
        if reference not in self._rows and len(self._rows) >= ROWS_MAX:
            raise DaemonBusyError(f"Copies of {ROWS_MAX} models are kept, the most there may be.")
        old = self._rows.get(reference)
        commit = resolved.snapshot.id.commit
        row = ReplicaRow(reference, commit, count)
        if old is not None and old.commit == commit:
            row.holders = old.holders
        self._rows[reference] = row
        await self._save()
        if old is not None and old.commit != commit:
            await self._release(old, list(old.holders.values()))
        self._wake.set()
        return row

    async def stop(self, reference: ModelReference) -> bool:
        """Keep copies no longer; every holder's pin goes. Returns whether any were kept."""
        row = self._rows.pop(reference, None)
        if row is None:
            return False
        await self._save()
        await self._release(row, list(row.holders.values()))
        return True

    def list_all(self) -> list[ReplicaRow]:
        """Return what is kept."""
        return list(self._rows.values())

    def state_of(self, row: ReplicaRow, holder: Holder) -> str:
        """Return `held`, `away`, or the state of the download that brings a copy."""
        now_s = self._cache.context.clock.monotonic_s()
        if not self._counts(holder, now_s):
            return "away"
        job = self._find_job(holder)
        return "held" if job is None or job.state is JobState.DONE else job.state.value

    # --- looking after them ---

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()
            if not self._rows:
                continue
            try:
                await self.look()
            except P2PCacheError as error:
                log.warning("copies were not looked after: %s", error)

    async def look(self) -> None:
        """
        Order what is missing, release what is too much.

        Raises:
            StoreError: What was ordered cannot be remembered.
        """
        members = {member.peer_id: member for member in await self._list_members()}
        now_s = self._cache.context.clock.monotonic_s()
        for peer_id in members:
            self._seen_s[peer_id] = now_s
        for row in list(self._rows.values()):
            self._drop_failed(row, now_s)
            able = {m for m in members if self._failed_until_s.get((row.reference, m), 0.0) < now_s}
            holders = {h.peer_id: self._counts(h, now_s) for h in row.holders.values()}
            about = f"{row.reference.repo}@{row.commit}"
            plan = plan_replicas(about, able, holders, count=row.count)
            for peer_id in plan.order:
                self._order(row, members[peer_id])
            # Too many are told to let go once the others have their copies, not before.
            is_whole = all(self.state_of(row, h) == "held" for h in row.holders.values())
            released = [row.holders[peer_id] for peer_id in plan.release] if is_whole else []
            await self._release(row, released)
            away = [h for h, counts in holders.items() if not counts] if plan.order else []
            for peer_id in away:
                log.info("%s lost the copy on %s; ordered elsewhere", about, peer_id)
            if plan.order or released:
                await self._save()

    def _order(self, row: ReplicaRow, member: Worker) -> None:
        order = JobOrder(row.reference, is_pin=True, workers=(member.peer_id,), commit=row.commit)
        view = WorkerView(member.name, member.peer_id, member.url, member.is_self)
        job = self._downloads.start(order, ANONYMOUS, workers=[view])
        row.holders[member.peer_id] = Holder(member.peer_id, member.name, member.url, job.id)

    def _drop_failed(self, row: ReplicaRow, now_s: float) -> None:
        """Forget holders that could not get their copy; they are not asked again for a while."""
        for holder in list(row.holders.values()):
            job = self._find_job(holder)
            if job is not None and job.state in (JobState.FAILED, JobState.CANCELLED):
                del row.holders[holder.peer_id]
                self._failed_until_s[row.reference, holder.peer_id] = now_s + FAILED_PAUSE_S

    async def _release(self, row: ReplicaRow, holders: Iterable[Holder]) -> None:
        """Take the pins of copies away; a holder that does not hear keeps its own."""
        own_id = self._cache.context.settings.peer_id
        for holder in holders:
            row.holders.pop(holder.peer_id, None)
            job = self._find_job(holder)
            if job is not None and not job.is_over:
                await self._downloads.cancel(job.id)
            if holder.peer_id == own_id:
                await self._cache.space.pins.remove(row.reference)
                continue
            url = self._downloads.crew.find_url(holder.peer_id) or holder.url
            path = f"/v1/orders/{holder.order_id}/pin"
            try:
                await self._downloads.crew.link.ask("DELETE", url, path)
            except P2PCacheError as error:
                log.warning("%s keeps its copy of %s: %s", holder.name, row.reference, error)

    def _find_job(self, holder: Holder) -> Job | None:
        try:
            return self._downloads.get(holder.order_id)
        except JobNotFoundError:
            return None

    def _counts(self, holder: Holder, now_s: float) -> bool:
        # Since this daemon started, everybody gets the time that a restart takes.
        seen_s = self._seen_s.setdefault(holder.peer_id, now_s)
        return now_s - seen_s <= AWAY_S_MAX

    async def _list_members(self) -> list[Worker]:
        """Return this daemon and all that take orders from it."""
        return await self._downloads.crew.list_willing()

    async def _save(self) -> None:
        """One writer at a time, and of what holds when it is its turn."""
        root = self._cache.context.home.root
        async with self._saving:
            rows = [replace(row, holders=dict(row.holders)) for row in self._rows.values()]
            await self._cache.context.in_bulk(write_replicas, root, rows)
