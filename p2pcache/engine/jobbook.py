"""
Owns keeping the jobs' records on disk as up to date as they need to be.

Knows nothing of what a job does.
Invariants: a job that was answered for is on disk; of two records of one job the later one stays;
a disk that takes nothing costs the record, not the job.
Source: docs/reference/store-layout.md (jobs).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from p2pcache.engine.context import Context
from p2pcache.engine.jobs import Job, read_record
from p2pcache.errors import InputError, StoreError
from p2pcache.store.jobfolder import read_jobs, remove_job, write_job

log = logging.getLogger(__name__)


class JobBook:
    """The records of the jobs. Event loop only; does nothing until it is opened."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._is_open = False
        self._lock = asyncio.Lock()
        self._waiting: dict[str, Job | None] = {}
        # Of the last attempt; whoever waits for a job's record is told.
        self._failed: dict[str, StoreError] = {}
        self._is_writing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> list[Job]:
        """
        Return the jobs of earlier runs, oldest first, and begin to keep records.

        Raises:
            StoreError: They cannot be read now.
        """
        self._is_open = True
        jobs = []
        for record in await self._context.in_bulk(read_jobs, self._context.home.root):
            try:
                jobs.append(read_record(record))
            except (InputError, ValueError, KeyError, TypeError) as error:
                log.warning("the job %s cannot be read (%s)", record.get("id"), error)
        return sorted(jobs, key=lambda job: job.number)

    def note(self, job: Job) -> None:
        """Write a job's record soon."""
        self._note(job.id, job)

    def forget(self, jobs: Iterable[Job]) -> None:
        """Remove jobs' records soon."""
        for job in jobs:
            self._note(job.id, None)

    async def settle(self, job: Job) -> None:
        """
        Return when what was noted of a job is on disk.

        Raises:
            StoreError: The disk failed or is full.
        """
        await self._flush()
        error = self._failed.pop(job.id, None)
        if error is not None:
            raise error

    async def close(self) -> None:
        """Write what is noted. Safe to call twice."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._flush()
        self._is_open = False

    def _note(self, job_id: str, job: Job | None) -> None:
        if not self._is_open:
            return
        self._waiting[job_id] = job
        if not self._is_writing:
            self._is_writing = True
            task = asyncio.create_task(self._write_soon())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write_soon(self) -> None:
        try:
            await self._flush()
        finally:
            self._is_writing = False

    async def _flush(self) -> None:
        """One writer at a time: a later record must not be overtaken by an earlier one."""
        root = self._context.home.root
        async with self._lock:
            while self._waiting:
                job_id = next(iter(self._waiting))
                job = self._waiting.pop(job_id)
                self._failed.pop(job_id, None)
                try:
                    if job is None:
                        await self._context.in_bulk(remove_job, root, job_id)
                    else:
                        await self._context.in_bulk(write_job, root, job_id, job.to_record())
                except StoreError as error:
                    log.warning("a download is not remembered: %s", error)
                    self._failed[job_id] = error
