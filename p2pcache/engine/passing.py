"""
Owns a download that other daemons carry out: pass the order on, follow each, stop them with it.

Knows nothing of HTTP and of how a worker does it.
Invariants: every worker fetches the same commit; an order is known by the job's id, so that it can
be passed on again after either daemon was killed; nothing but public content is ordered.
Source: design.md §8 (workers); docs/reference/peer-protocol.md ("Orders").
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from p2pcache.core.jobs import FINAL_STATES, JobOrder, JobState
from p2pcache.core.refs import ModelReference
from p2pcache.engine.cache import Cache
from p2pcache.engine.crew import Crew
from p2pcache.engine.jobs import Failure, Job, WorkerView
from p2pcache.engine.jobview import describe_progress
from p2pcache.errors import (
    DaemonBusyError,
    ForbiddenError,
    InputError,
    JobNotFoundError,
    P2PCacheError,
    PeerProtocolError,
    PeerRefusedError,
    PeerUnreachableError,
)

log = logging.getLogger(__name__)

# Each worker is asked so often how far it is.
FOLLOW_INTERVAL_S = 0.5
# A machine that restarts is back within minutes; one that is away for longer is not waited for.
PATIENCE_S = 600.0
_COUNTS = (
    "bytes_total",
    "bytes_done",
    "bytes_from_peers",
    "bytes_from_upstream",
    "bytes_from_disk",
    "rate_bps",
)
_COUNT_MAX = 1 << 62
_ETA_S_MAX = 1e9
_MESSAGE_CHARS_MAX = 1000

StartHere = Callable[[JobOrder, Job], Job]


class Passing:
    """One run of a job whose order names workers. Event loop only."""

    def __init__(
        self, cache: Cache, crew: Crew, job: Job, on_change: Callable[[Job], None]
    ) -> None:
        self._cache = cache
        self._crew = crew
        self._job = job
        self._on_change = on_change

    async def run(self, start_here: StartHere) -> None:
        """
        Do it; the job is done when this returns.

        Args:
            start_here: Begins, or finds again, the part that this daemon does itself.

        Raises:
            P2PCacheError: A worker could not do it.
        """
        job, cache = self._job, self._cache
        self._enter(JobState.RESOLVING)
        if job.commit is None or not job.is_public:
            reference, commit = job.order.reference, job.commit or job.order.commit
            if commit is not None:
                reference = ModelReference(reference.repo, commit)
            resolved = await cache.librarian.resolve(reference, job.credentials)
            job.commit = resolved.snapshot.id.commit
            job.is_public = await cache.access.is_public(resolved.snapshot)
        if not job.is_public:
            raise ForbiddenError(
                f"{job.order.reference.repo} is not public, and what is not public is not ordered "
                "from other machines; pull it there, with a token."
            )
        order = replace(job.order, workers=(), commit=job.commit)
        self._enter(JobState.DOWNLOADING)
        async with asyncio.TaskGroup() as group:
            for view in job.workers:
                if view.is_self:
                    group.create_task(self._follow_here(view, start_here(order, job)))
                elif view.state not in FINAL_STATES:
                    group.create_task(self._follow(view, order))
        failed = [view for view in job.workers if view.state is not JobState.DONE]
        if failed:
            raise _sum_up(failed)

    async def stop(self, wish: JobState) -> None:
        """Tell the workers that the job is paused or cancelled; those that do not hear go on."""
        verb = {JobState.PAUSED: ("POST", "/pause"), JobState.CANCELLED: ("DELETE", "")}.get(wish)
        if verb is None:
            return  # this daemon ends: the workers go on
        method, suffix = verb

        async def tell(view: WorkerView) -> None:
            with contextlib.suppress(P2PCacheError):
                path = f"/v1/orders/{self._job.id}{suffix}"
                self._take_in(view, await self._crew.link.ask(method, self._url_of(view), path))

        others = [v for v in self._job.workers if not v.is_self and v.state not in FINAL_STATES]
        await asyncio.gather(*(tell(view) for view in others))
        for view in self._job.workers:
            if view.state not in FINAL_STATES:
                view.state = wish

    def _enter(self, state: JobState) -> None:
        self._job.state = state
        self._on_change(self._job)

    async def _follow(self, view: WorkerView, order: JobOrder) -> None:
        """Pass the order on to one worker, and follow it to its end."""
        clock = self._cache.context.clock
        is_passed_on, heard_s = False, clock.monotonic_s()
        path = f"/v1/orders/{self._job.id}"
        message = {**order.to_json(), "id": self._job.id}
        while view.state not in FINAL_STATES:
            try:
                if is_passed_on:
                    answer = await self._crew.link.ask("GET", self._url_of(view), path)
                else:
                    answer = await self._crew.link.ask(
                        "POST", self._url_of(view), "/v1/orders", message
                    )
                    is_passed_on = True
                view.is_reachable, heard_s = True, clock.monotonic_s()
                self._take_in(view, answer)
            except JobNotFoundError as error:
                if not is_passed_on:
                    self._fail(view, error)
                is_passed_on = False  # it forgot: told again
            except (PeerUnreachableError, DaemonBusyError) as error:
                view.is_reachable = not isinstance(error, PeerUnreachableError)
                if clock.monotonic_s() - heard_s > PATIENCE_S:
                    self._fail(view, _explain(view, error))
            except (InputError, PeerRefusedError, PeerProtocolError) as error:
                self._fail(view, error)
            self._sum()
            if view.state not in FINAL_STATES:
                await asyncio.sleep(FOLLOW_INTERVAL_S)

    async def _follow_here(self, view: WorkerView, part: Job) -> None:
        """Follow the part of the job that this daemon does itself."""
        while True:
            now_s = self._cache.context.clock.monotonic_s()
            self._take_in(view, describe_progress(part, now_s=now_s))
            self._sum()
            if part.is_over:
                return
            await asyncio.sleep(FOLLOW_INTERVAL_S)

    def _url_of(self, view: WorkerView) -> str:
        """Return where a worker is: it may have come back at another port."""
        view.url = self._crew.find_url(view.peer_id) or view.url
        return view.url

    def _take_in(self, view: WorkerView, answer: dict[str, object]) -> None:
        """
        Take in what a worker says of the order; numbers within their limits, or none.

        Raises:
            PeerProtocolError: It says nothing that can be used.
        """
        try:
            view.state = JobState(str(answer.get("state")))
        except ValueError as error:
            raise PeerProtocolError(f"{view.name} names an unknown state.") from error
        counts = {}
        for name in _COUNTS:
            value = answer.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNT_MAX:
                counts[name] = value
        if view.state not in FINAL_STATES and counts.get("bytes_done", 0) < view.seen.get(
            "bytes_done", 0
        ):
            # Killed, it has yet to look at what it holds: that is not less than what it told.
            counts = {"rate_bps": counts.get("rate_bps", 0)}
        view.seen |= counts
        eta_s = answer.get("eta_s")
        is_time = isinstance(eta_s, int | float) and not isinstance(eta_s, bool)
        eta = float(str(eta_s)) if is_time else -1.0
        view.eta_s = eta if 0 <= eta <= _ETA_S_MAX else None
        path, why = answer.get("path"), answer.get("error")
        view.path = path[:_MESSAGE_CHARS_MAX] if isinstance(path, str) else None
        view.failure = None
        if isinstance(why, dict):
            code, said = str(why.get("error"))[:80], str(why.get("message"))
            view.failure = Failure(code, said[:_MESSAGE_CHARS_MAX])

    def _fail(self, view: WorkerView, error: P2PCacheError) -> None:
        log.warning("%s does not carry out %s: %s", view.name, self._job.id, error)
        view.state, view.failure = JobState.FAILED, Failure.of(error)
        view.eta_s = None
        view.seen["rate_bps"] = 0

    def _sum(self) -> None:
        self._job.bytes_total = sum(v.seen.get("bytes_total", 0) for v in self._job.workers)


def _explain(view: WorkerView, error: P2PCacheError) -> P2PCacheError:
    return PeerUnreachableError(
        f"{view.name} did not answer for {PATIENCE_S:g} s ({error}); what it fetched is kept "
        "there: order again when it is back."
    )


def _sum_up(failed: list[WorkerView]) -> P2PCacheError:
    """Return the error of a job of which some workers could not do their part."""
    first = failed[0]
    why = first.state.value if first.failure is None else first.failure.message
    more = f" {len(failed) - 1} more failed." if len(failed) > 1 else ""
    return PeerRefusedError(f"{first.name}: {why}{more} See each worker's error in the job.")
