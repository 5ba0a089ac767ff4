"""
Owns the adoption jobs and the watched folders.

Knows nothing of how a cache is adopted.
Invariants: a job that is no watch ends as done, failed or cancelled, once; a watch goes on until
somebody ends it, over restarts too; what was adopted before an end is kept.
Source: design.md §8 (import); docs/how-to/adopt-a-cache.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
from collections import OrderedDict
from pathlib import Path

from p2pcache.engine.adopter import Adopter
from p2pcache.engine.adoptionjob import (
    FINAL_STATES,
    AdoptionJob,
    AdoptionMemory,
    AdoptionOrder,
    AdoptionState,
)
from p2pcache.engine.cache import Cache
from p2pcache.errors import DaemonBusyError, JobNotFoundError, P2PCacheError
from p2pcache.store.adopt import sweep_staging
from p2pcache.store.hfcache import check_cache, check_folder
from p2pcache.store.watchlist import WatchRow

log = logging.getLogger(__name__)

# How often a watched folder is looked at: a download of minutes is found within seconds.
WATCH_INTERVAL_S = 10.0
# A look that takes long is followed by a pause of this many times as long: 5 % of a core at most.
WATCH_PAUSE_FACTOR = 20.0
# Finished jobs that can still be asked about.
JOBS_KEPT_MAX = 100
# Jobs and watches that are not finished; each may hold a list of all names of its folder.
JOBS_RUNNING_MAX = 100


class Adoptions:
    """All adoptions of this daemon. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._context = cache.context
        self._adopter = Adopter(cache)
        self._jobs: OrderedDict[str, AdoptionJob] = OrderedDict()

    async def open(self) -> None:
        """Remove what a crash left, and go on watching."""
        await self._context.in_bulk(sweep_staging, self._context.store)
        rows = await self._context.index.call(lambda index: index.watchlist.list_all())
        for row in rows:
            order = AdoptionOrder(row.path, is_watch=True, is_public=row.is_public)
            self._begin(order, row.added_wall_s)

    async def start(self, order: AdoptionOrder) -> AdoptionJob:
        """
        Begin a job; returns as soon as it is known that the folder can be read.

        Raises:
            InputError: It cannot, it is our own, or there is no cache in it and nobody waits for
                one.
            DaemonBusyError: Too many are under way.
        """
        store_path = self._context.settings.store
        check = check_folder if order.is_watch else check_cache
        await self._context.in_bulk(check, order.path, store_path)
        running = sum(job.task is not None and not job.task.done() for job in self._jobs.values())
        if running >= JOBS_RUNNING_MAX:
            raise DaemonBusyError(f"{running} imports are under way; wait for one to end.")
        wall_s = self._context.clock.wall_s()
        if order.is_watch:
            row = WatchRow(order.path, wall_s, order.is_public)
            await self._context.index.call(lambda index: index.watchlist.put(row))
        return self._begin(order, wall_s)

    def get(self, job_id: str) -> AdoptionJob:
        """
        Return a job.

        Raises:
            JobNotFoundError: No such job, or it was long ago.
        """
        if job_id not in self._jobs:
            raise JobNotFoundError(f"No import {job_id[:40]!r}; list them with GET imports.")
        return self._jobs[job_id]

    def list_all(self) -> list[AdoptionJob]:
        """Return the jobs and watches, oldest first."""
        return list(self._jobs.values())

    async def cancel(self, job_id: str) -> AdoptionJob:
        """Stop a job or a watch; what was adopted is kept."""
        job = self.get(job_id)
        if job.order.is_watch:
            await self._context.index.call(lambda index: index.watchlist.remove(job.order.path))
        await self._stop(job)
        return job

    async def close(self) -> None:
        """Stop all jobs; watches go on after the next start."""
        for job in self.list_all():
            await self._stop(job)

    def _begin(self, order: AdoptionOrder, added_wall_s: float) -> AdoptionJob:
        job_id = _make_watch_id(order.path) if order.is_watch else secrets.token_hex(8)
        known = self._jobs.get(job_id)
        if known is not None and known.task is not None and not known.task.done():
            known.order = order
            known.state = AdoptionState.SCANNING
            known.rescan.set()
            return known
        job = AdoptionJob(job_id, order, added_wall_s)
        self._jobs.pop(job_id, None)
        self._jobs[job_id] = job
        self._forget_old()
        job.task = asyncio.create_task(self._watch(job) if order.is_watch else self._run_once(job))
        return job

    def _forget_old(self) -> None:
        while len(self._jobs) > JOBS_KEPT_MAX:
            ended = (j for j in self._jobs.values() if j.task is not None and j.task.done())
            oldest = next(ended, None)
            if oldest is None:
                break
            del self._jobs[oldest.id]

    async def _stop(self, job: AdoptionJob) -> None:
        if job.task is None or job.task.done():
            return
        job.stop.set()
        job.task.cancel()
        await asyncio.gather(job.task, return_exceptions=True)
        if job.order.is_watch or job.state not in FINAL_STATES:
            job.state = AdoptionState.CANCELLED

    async def _run_once(self, job: AdoptionJob) -> None:
        await self._look(job, AdoptionMemory())

    async def _watch(self, job: AdoptionJob) -> None:
        """Look at a folder again and again; one that is gone may come back."""
        clock, memory = self._context.clock, AdoptionMemory()
        while True:
            started_s = clock.monotonic_s()
            await self._look(job, memory)
            took_s = clock.monotonic_s() - started_s
            pause_s = max(WATCH_INTERVAL_S, WATCH_PAUSE_FACTOR * took_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await job.rescan.wait()
            job.rescan.clear()

    async def _look(self, job: AdoptionJob, memory: AdoptionMemory) -> None:
        """Adopt what is new, and say how it ended."""
        try:
            await self._adopter.run(job, memory)
        except P2PCacheError as error:
            if job.error is None or str(job.error) != str(error):
                log.warning("the import of %s failed: %s", job.order.path, error)
            job.error, job.state = error, AdoptionState.FAILED
        except asyncio.CancelledError:
            job.state = AdoptionState.CANCELLED
            raise
        except Exception:
            log.exception("the import of %s failed", job.order.path)
            job.error = P2PCacheError("The daemon failed at this import; its log says more.")
            job.state = AdoptionState.FAILED
        else:
            job.error, job.state = None, AdoptionState.DONE


def _make_watch_id(path: Path) -> str:
    """Return the id of a watch: the same after every restart."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
