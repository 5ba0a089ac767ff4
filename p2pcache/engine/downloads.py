"""
Owns the download jobs: which run, which wait, which were stopped, and what the next start knows.

Knows nothing of who asked, or of how one job's files come here (jobrun.py).
Invariants: a job ends as done, failed or cancelled, once; what was answered for survives the
daemon, tokens never do; at most so many models are fetched at once.
Source: design.md §8 (downloads); docs/decisions/0021-downloads.md.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, OrderedDict

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.jobs import FINAL_STATES as FINAL_STATES
from p2pcache.core.jobs import JobOrder as JobOrder
from p2pcache.core.jobs import JobState as JobState
from p2pcache.core.jobs import QueueEntry, plan_queue
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.cache import Cache
from p2pcache.engine.crew import Crew
from p2pcache.engine.jobbook import JobBook
from p2pcache.engine.jobrun import JobRun
from p2pcache.engine.jobs import Failure, WorkerView
from p2pcache.engine.jobs import Job as Job
from p2pcache.engine.jobview import describe_job, estimate
from p2pcache.engine.news import PROGRESS, News
from p2pcache.engine.passing import Passing
from p2pcache.errors import (
    DaemonBusyError,
    JobEndedError,
    JobNotFoundError,
    P2PCacheError,
    RepositoryNotFoundError,
    SourceError,
    UpstreamAuthError,
)
from p2pcache.store.handout import find_place

log = logging.getLogger(__name__)

# Jobs that can still be asked about; those that ended longest ago are forgotten first.
JOBS_KEPT_MAX = 1000
# Jobs that other daemons ordered and that have not ended: a fleet's rollout has a few models.
ORDERS_OPEN_MAX = 16
# Listeners and schedulers see progress twice a second.
TICK_S = 0.5
# What a killed daemon has to take the source of on trust: "disk" instead of "upstream".
SAVE_INTERVAL_S = 5.0
# A machine boots before its network is up: a job that is carried over is tried for half an hour.
RETRY_S_MIN, RETRY_S_MAX, RETRIES_MAX = 2.0, 60.0, 34


class Downloads:
    """All jobs of this daemon. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self.news = News()
        self.crew = Crew(cache)
        self._cache = cache
        self._book = JobBook(cache.context)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._number = 0
        self._is_closing = False
        self._ticker: asyncio.Task[None] | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        cache.access.visibility.on_revoked.append(self._hide)

    # --- life ---

    async def open(self) -> None:
        """
        Go on with the jobs of earlier runs of the daemon, and remember those of this one.

        Raises:
            StoreError: They cannot be read now.
        """
        for job in await self._book.open():
            self._jobs[job.id] = job
            self._number = max(self._number, job.number)
        self._forget_oldest()
        self._advance()

    async def close(self) -> None:
        """Stop all jobs; the next start goes on with them."""
        self._is_closing = True
        for timer in self._timers:
            timer.cancel()
        running = self._list_running()
        await asyncio.gather(*(self._stop(job, JobState.QUEUED) for job in running))
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self.news.close()
        await self.crew.close()
        await self._book.close()

    # --- orders ---

    def start(
        self,
        order: JobOrder,
        credentials: Credentials,
        *,
        workers: list[WorkerView] | None = None,
        origin: str = "",
        job_id: str | None = None,
        parent: str = "",
    ) -> Job:
        """
        Take a job in; it begins at once, or when it is its turn.

        Args:
            order: What is wanted.
            credentials: Of the caller; kept in memory until the job ends.
            workers: Whom it is passed on to, from crew.choose().
            origin: The address of the daemon that ordered it.
            job_id: Its id there; a new one without.
            parent: The job of this daemon that it is a part of.

        Raises:
            InputError, ForbiddenError: The order's path is not allowed.
            DaemonBusyError: Too many have not ended.
        """
        if order.path is not None and not order.workers:
            find_place(self._cache.context.settings.allow_paths, order.path)
        self._check_room_for_one(is_order=bool(origin))
        self._number += 1
        job = Job(job_id or secrets.token_hex(8), order, self._number)
        job.added_wall_s = self._cache.context.clock.wall_s()
        job.credentials, job.had_token = credentials, not credentials.is_anonymous
        job.origin, job.parent = origin, parent
        job.workers = workers or []
        self._jobs[job.id] = job
        self._forget_oldest()
        self._note(job)
        self._advance()
        return job

    async def settle(self, job: Job) -> None:
        """
        Return when a job is remembered beyond the daemon's life.

        Raises:
            StoreError: It cannot be; the job is cancelled then.
        """
        try:
            await self._book.settle(job)
        except P2PCacheError:
            await self.cancel(job.id)
            raise

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

    async def pause(self, job_id: str) -> Job:
        """
        Stop a job until it is resumed; what was fetched is kept.

        Raises:
            JobNotFoundError, JobEndedError: There is nothing to pause.
        """
        job = self._get_open(job_id, "paused")
        await self._stop_with_parts(job, JobState.PAUSED)
        return job

    async def resume(self, job_id: str, credentials: Credentials | None = None) -> Job:
        """
        Let a paused job go on, when it is its turn; one that is not paused stays as it is.

        Args:
            job_id: Which.
            credentials: Instead of those that it was ordered with, or that a restart lost.

        Raises:
            JobNotFoundError, JobEndedError: There is nothing to resume.
        """
        job = self._get_open(job_id, "resumed")
        if credentials is not None and not credentials.is_anonymous:
            job.credentials, job.had_token = credentials, True
        if job.state is JobState.PAUSED:
            job.state, job.error, job.failure = JobState.QUEUED, None, None
            job.retries, job.retry_s = 0, 0.0
            self._note(job)
            self._advance()
        for part in self._parts_of(job):
            if not part.is_over:
                await self.resume(part.id)
        return job

    async def cancel(self, job_id: str) -> Job:
        """Stop a job for good; what was fetched is kept. A finished one stays as it is."""
        job = self.get(job_id)
        if not job.is_over:
            await self._stop_with_parts(job, JobState.CANCELLED)
        return job

    # --- figures ---

    def count_running(self) -> int:
        """Return how many jobs are not finished."""
        return sum(not job.is_over for job in self._jobs.values())

    def count_bytes(self, job: Job) -> Counter[str]:
        """Return the bytes that are here so far, by where they came from."""
        return job.count_bytes()

    def measure_rate(self, job: Job) -> float:
        """Return bytes a second, averaged over the last seconds; 0 for a finished job."""
        return estimate(job, now_s=self._cache.context.clock.monotonic_s())[0]

    # --- the queue ---

    def _advance(self) -> None:
        """Begin what it is the turn of."""
        if self._is_closing:
            return
        now_s = self._cache.context.clock.monotonic_s()
        waiting = [
            job
            for job in self._jobs.values()
            if job.state is JobState.QUEUED and job.retry_s <= now_s and not _is_running(job)
        ]
        for job in waiting:
            if job.is_passed_on:
                self._begin(job)  # takes nothing of this machine
        here = [j for j in (*waiting, *self._list_running()) if not j.is_passed_on]
        plan = plan_queue(
            map(_queue_entry_of, here), slots=self._cache.context.settings.downloads_max
        )
        for job_id in plan.suspend:
            job = self._jobs[job_id]
            if job.wish is not JobState.QUEUED and job.task is not None:
                job.wish = JobState.QUEUED
                job.stop.set()
                job.task.cancel()
        for job_id in plan.start:
            self._begin(self._jobs[job_id])

    def _list_running(self) -> list[Job]:
        return [job for job in self._jobs.values() if _is_running(job)]

    def _begin(self, job: Job) -> None:
        job.begin_run()
        job.task = asyncio.create_task(self._run(job))
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.create_task(self._tick())

    async def _run(self, job: Job) -> None:
        """Run a job once; whatever ends it, the queue goes on."""
        try:
            await job.settle()
            if job.is_passed_on:
                await self._pass_on(job)
            else:
                await JobRun(self._cache, job, self._note).run()
            job.state = JobState.DONE
        except P2PCacheError as error:
            self._take_failure(job, error)
        except asyncio.CancelledError:
            job.state = job.wish
            raise
        except Exception:
            log.exception("download of %s failed", job.order.reference)
            job.fail(P2PCacheError("The daemon failed at this download; its log says more."))
            job.state = JobState.FAILED
        finally:
            job.task = None
            self._note_end(job)
            self._advance()

    async def _pass_on(self, job: Job) -> None:
        passing = Passing(self._cache, self.crew, job, self._note)
        try:
            await passing.run(self._start_part)
        except asyncio.CancelledError:
            await passing.stop(job.wish)
            raise
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _start_part(self, order: JobOrder, job: Job) -> Job:
        """Begin this daemon's part of a job that names workers, or find it again."""
        for part in self._parts_of(job):
            return part
        return self.start(order, job.credentials, parent=job.id)

    def _parts_of(self, job: Job) -> list[Job]:
        return [part for part in self._jobs.values() if part.parent == job.id]

    def _take_failure(self, job: Job, error: P2PCacheError) -> None:
        """Decide what becomes of a job that could not be done now."""
        job.fail(error)
        refusals = (UpstreamAuthError, RepositoryNotFoundError)
        if job.has_lost_token and isinstance(error, refusals):
            job.state = JobState.PAUSED
            job.failure = Failure(
                error.code,
                f"Your token for {job.order.reference.repo} was not kept when the daemon "
                "restarted, and without it the hub refuses; go on with: p2pcache jobs --resume "
                f"{job.id} --token T",
            )
            return
        may_retry = isinstance(error, SourceError) and error.retryable
        if job.is_carried_over and may_retry and job.retries < RETRIES_MAX:
            pause_s = min(RETRY_S_MAX, RETRY_S_MIN * 2**job.retries)
            job.retries += 1
            job.retry_s = self._cache.context.clock.monotonic_s() + pause_s
            job.state = JobState.QUEUED
            self._call_later(pause_s)
            return
        job.state = JobState.FAILED

    def _call_later(self, delay_s: float) -> None:
        """Look at the queue again after a while."""

        def look() -> None:
            self._timers.discard(timer)
            self._advance()

        timer = asyncio.get_running_loop().call_later(delay_s + 0.01, look)
        self._timers.add(timer)

    async def _stop_with_parts(self, job: Job, wish: JobState) -> None:
        for part in self._parts_of(job):
            if not part.is_over:
                await self._stop(part, wish)
        await self._stop(job, wish)

    async def _stop(self, job: Job, wish: JobState) -> None:
        """Stop a job, whether it waits, runs, or has not had its first step."""
        job.wish = wish
        job.stop.set()
        task = job.task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if job.task is not task:
                return  # it ran, and has become what was wished, or has ended by itself
            job.task = None
        if job.is_passed_on:
            await Passing(self._cache, self.crew, job, self._note).stop(wish)
        if not job.is_over:
            if job.state is JobState.QUEUED:
                # What it would have been tried again for; paused with an error is another thing.
                job.error = job.failure = None
            job.state = wish
            self._note_end(job)
            self._advance()

    def _get_open(self, job_id: str, verb: str) -> Job:
        job = self.get(job_id)
        if job.is_over:
            raise JobEndedError(
                f"The download {job_id} has ended as {job.state.value} and cannot be {verb}; order "
                f"it again with: p2pcache pull {job.order.reference}"
            )
        return job

    # --- telling and remembering ---

    def _note(self, job: Job) -> None:
        """Remember a job's state, and tell it."""
        self._book.note(job)
        body = self._describe(job)
        self.news.publish("state", body, about=job.id, is_public=job.is_public)

    def _hide(self, snapshot: Snapshot) -> None:
        """Tell of the jobs of a snapshot that is not public any more to the admin alone."""
        for job in self._jobs.values():
            is_of_it = (job.order.reference.repo, job.commit) == (
                snapshot.id.repo,
                snapshot.id.commit,
            )
            if job.is_public and is_of_it:
                job.is_public = False
                self._book.note(job)

    def _note_end(self, job: Job) -> None:
        """Say what became of a run; of a job that has ended, nothing more will come."""
        if job.is_over:
            job.ended_wall_s = self._cache.context.clock.wall_s()
            job.credentials = ANONYMOUS
            job.keep_counts()
        self._note(job)
        is_whole = not (job.order.include or job.order.exclude or job.is_passed_on)
        if job.state is JobState.DONE and is_whole:
            body: dict[str, object] = {
                "model": str(job.order.reference.repo),
                "commit": job.commit,
                "state": "resident",
            }
            self.news.publish("snapshot", body, is_public=job.is_public)

    def _describe(self, job: Job) -> dict[str, object]:
        return describe_job(job, now_s=self._cache.context.clock.monotonic_s())

    async def _tick(self) -> None:
        """While anything runs: measure it, tell how far it is, remember it now and then."""
        told: dict[str, tuple[int, int]] = {}
        ticks = 0
        while running := self._list_running():
            await asyncio.sleep(TICK_S)
            ticks += 1
            for job in running:
                self.measure_rate(job)
                mark = (job.count_bytes().total(), job.bytes_total)
                if not _is_running(job) or told.get(job.id) == mark:
                    continue
                told[job.id] = mark
                if ticks % round(SAVE_INTERVAL_S / TICK_S) == 0:
                    self._book.note(job)
                if self.news.has_listeners:
                    body = self._describe(job)
                    self.news.publish(PROGRESS, body, about=job.id, is_public=job.is_public)

    # --- limits ---

    def _check_room_for_one(self, *, is_order: bool) -> None:
        open_jobs = [job for job in self._jobs.values() if not job.is_over]
        if len(open_jobs) >= JOBS_KEPT_MAX:
            raise DaemonBusyError(
                f"{len(open_jobs)} downloads have not ended, the most there may be; cancel some "
                "with: p2pcache jobs --cancel ID"
            )
        if is_order and sum(bool(job.origin) for job in open_jobs) >= ORDERS_OPEN_MAX:
            raise DaemonBusyError(
                f"{ORDERS_OPEN_MAX} downloads that other machines ordered have not ended here, the "
                "most there may be; order again when one has."
            )

    def _forget_oldest(self) -> None:
        """Forget the jobs that ended longest ago, beyond what is kept."""
        too_many = len(self._jobs) - JOBS_KEPT_MAX
        if too_many > 0:
            gone = [job for job in self._jobs.values() if job.is_over][:too_many]
            for job in gone:
                del self._jobs[job.id]
            self._book.forget(gone)


def _is_running(job: Job) -> bool:
    return job.task is not None and not job.task.done()


def _queue_entry_of(job: Job) -> QueueEntry:
    model = str(job.order.reference)
    return QueueEntry(job.id, model, job.order.priority, job.number, _is_running(job))
