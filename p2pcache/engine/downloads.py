"""
Owns the download jobs: bring these files of this snapshot here, and say how far it is.

Knows nothing of who asked.
Invariants: a job ends as done, failed or cancelled, once; done means that every chosen file is
proven and linked; jobs for the same bytes share their fetches.
Source: design.md §8 (downloads).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from p2pcache.core.credentials import Credentials
from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import ModelReference
from p2pcache.core.snapshot import FileEntry, order_for_fetching
from p2pcache.engine.cache import Cache
from p2pcache.engine.fetches import ActiveFetch
from p2pcache.engine.librarian import Resolved
from p2pcache.errors import InputError, JobNotFoundError, P2PCacheError
from p2pcache.store.catalogue import RefRow

log = logging.getLogger(__name__)

# Files that arrive at once: small ones overlap their round trips, large ones fill the wire.
FILES_AT_ONCE_MAX = 8
# Finished jobs that can still be asked about.
JOBS_KEPT_MAX = 1000
# The rate shown is an average over about this long.
RATE_WINDOW_S = 3.0


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a caller asked for."""

    reference: ModelReference
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    is_pin: bool = False


@dataclass(slots=True)
class Job:
    """One download."""

    id: str
    order: JobOrder
    state: JobState = JobState.QUEUED
    commit: str | None = None
    path: str | None = None
    bytes_total: int = 0
    is_public: bool = False
    error: P2PCacheError | None = None
    task: asyncio.Task[None] | None = None
    finished_from: Counter[str] = field(default_factory=Counter)
    running: dict[BlobDigest, ActiveFetch] = field(default_factory=dict)
    samples: list[tuple[float, int]] = field(default_factory=list)


class Downloads:
    """All jobs of this daemon. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def start(self, order: JobOrder, credentials: Credentials) -> Job:
        """Begin a job; returns at once."""
        job = Job(secrets.token_hex(8), order)
        self._jobs[job.id] = job
        while len(self._jobs) > JOBS_KEPT_MAX:
            oldest = next((j for j in self._jobs.values() if j.state in FINAL_STATES), None)
            if oldest is None:
                break
            del self._jobs[oldest.id]
        job.task = asyncio.create_task(self._run(job, credentials))
        return job

    def get(self, job_id: str) -> Job:
        """
        Return a job.

        Raises:
            JobNotFoundError: No such job, or it was long ago.
        """
        if job_id not in self._jobs:
            raise JobNotFoundError(f"No download {job_id[:40]!r}; list them with GET downloads.")
        return self._jobs[job_id]

    def list_all(self) -> list[Job]:
        """Return the jobs, oldest first."""
        return list(self._jobs.values())

    def count_running(self) -> int:
        """Return how many jobs are not finished."""
        return sum(job.state not in FINAL_STATES for job in self._jobs.values())

    async def cancel(self, job_id: str) -> Job:
        """Stop a job; what was fetched is kept. A finished one stays as it is."""
        job = self.get(job_id)
        if job.task is not None and job.state not in FINAL_STATES:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)
            if job.state not in FINAL_STATES:
                job.state = JobState.CANCELLED  # before its first step
        return job

    async def close(self) -> None:
        """Stop all jobs."""
        for job in self.list_all():
            await self.cancel(job.id)

    def count_bytes(self, job: Job) -> Counter[str]:
        """Return the bytes that are here so far, by where they came from."""
        total = job.finished_from.copy()
        # Not looked up by digest: one that has just ended counts until the job takes it over.
        for active in job.running.values():
            total += active.fetch.state.bytes_from
        return total

    def measure_rate(self, job: Job) -> float:
        """Return bytes a second, averaged over the last seconds; 0 for a finished job."""
        if job.state in FINAL_STATES:
            return 0.0
        now_s = self._cache.context.clock.monotonic_s()
        counts = self.count_bytes(job)
        job.samples.append((now_s, counts["peer"] + counts["upstream"]))
        while len(job.samples) > 2 and now_s - job.samples[0][0] > RATE_WINDOW_S:
            job.samples.pop(0)
        (first_s, first), (last_s, last) = job.samples[0], job.samples[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0

    async def _run(self, job: Job, credentials: Credentials) -> None:
        """Resolve, make room, bring it here."""
        try:
            job.state = JobState.RESOLVING
            resolved = await self._cache.librarian.resolve(job.order.reference, credentials)
            snapshot = resolved.snapshot
            job.commit = snapshot.id.commit
            job.is_public = await self._cache.access.check_may_read(snapshot, credentials)
            chosen = snapshot.select(job.order.include, job.order.exclude)
            if not chosen and snapshot.files:
                raise InputError(
                    f"No file of {snapshot.id.repo} matches these patterns; it has "
                    f"{len(snapshot.files)} files, for example {snapshot.files[0].path!r}."
                )
            blobs = order_for_fetching(chosen)
            job.bytes_total = sum(entry.size_bytes for entry in blobs)
            with await self._cache.space.rooms.make(snapshot.id, blobs):
                # Listed again if it was evicted before it was held.
                await self._cache.librarian.get_snapshot(snapshot.id, credentials)
                await self._bring(job, resolved, chosen, credentials)
            job.path = self._cache.path_of(snapshot.id)
            job.state = JobState.DONE
        except P2PCacheError as error:
            job.error, job.state = error, JobState.FAILED
        except asyncio.CancelledError:
            job.state = JobState.CANCELLED
            raise
        except Exception:
            log.exception("download of %s failed", job.order.reference)
            job.error = P2PCacheError("The daemon failed at this download; its log says more.")
            job.state = JobState.FAILED

    async def _bring(
        self, job: Job, resolved: Resolved, chosen: list[FileEntry], credentials: Credentials
    ) -> None:
        """Fetch small files first, link, pin; there is room."""
        blobs = order_for_fetching(chosen)
        job.state = JobState.DOWNLOADING
        if job.is_public:
            await self._cache.swarm.ask_about((b.digest, b.layout) for b in blobs)
            # Small files of our own first: by the time we come to the others', peers have them.
            blobs.sort(key=self._is_for_others)
        await self._fetch_all(job, resolved, blobs, credentials, is_public=job.is_public)
        job.state = JobState.VERIFYING
        await self._cache.publish_to_tree(resolved, chosen)
        if job.order.is_pin:
            await self._pin(resolved)
        self._cache.space.note_used(resolved.snapshot.id)

    def _is_for_others(self, entry: FileEntry) -> tuple[bool, bool]:
        is_large = entry.layout.chunk_count > 1
        return is_large, not is_large and not self._cache.swarm.is_mine(entry.digest)

    async def _fetch_all(
        self,
        job: Job,
        resolved: Resolved,
        blobs: list[FileEntry],
        credentials: Credentials,
        *,
        is_public: bool,
    ) -> None:
        slots = asyncio.Semaphore(FILES_AT_ONCE_MAX)

        async def fetch(entry: FileEntry) -> None:
            async with slots:
                await self._fetch_one(job, resolved, entry, credentials, is_public=is_public)

        try:
            async with asyncio.TaskGroup() as group:
                for entry in blobs:
                    group.create_task(fetch(entry))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _fetch_one(
        self,
        job: Job,
        resolved: Resolved,
        entry: FileEntry,
        credentials: Credentials,
        *,
        is_public: bool,
    ) -> None:
        landing = await self._cache.land(resolved.snapshot, entry, credentials, is_public=is_public)
        landing.close()
        if landing.active is None:
            job.finished_from["disk"] += entry.size_bytes
            return
        job.running[entry.digest] = landing.active
        landing.active.job_count += 1
        try:
            await landing.active.result()
        finally:
            del job.running[entry.digest]
            job.finished_from += landing.active.fetch.state.bytes_from
            landing.active.leave()

    async def _pin(self, resolved: Resolved) -> None:
        wall_s = self._cache.context.clock.wall_s()
        snapshot_id = resolved.snapshot.id
        row = RefRow(snapshot_id.repo, resolved.revision, snapshot_id.commit, wall_s)
        await self._cache.space.pin(row)
