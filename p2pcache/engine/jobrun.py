"""
Owns bringing one job's files here, once: resolve, choose, make room, fetch, link, hand out, pin.

Knows nothing of other jobs, queues or records.
Invariants: when run() returns, every chosen file is proven and linked, and lies where it was asked
for; jobs for the same bytes share their fetches.
Source: design.md §8 (downloads).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from p2pcache.core.credentials import Credentials
from p2pcache.core.digest import BlobDigest
from p2pcache.core.jobs import JobState
from p2pcache.core.refs import ModelReference
from p2pcache.core.selection import Selection, get_selection
from p2pcache.core.snapshot import (
    FileEntry,
    Snapshot,
    order_for_fetching,
    rank_for_fetching,
)
from p2pcache.engine.cache import Cache
from p2pcache.engine.jobs import Job
from p2pcache.engine.librarian import Resolved
from p2pcache.engine.single import see_through
from p2pcache.errors import ForbiddenError, NotFoundError, SourceError
from p2pcache.store.catalogue import RefRow
from p2pcache.store.handout import Handout, find_place

# Files that arrive at once: small ones overlap their round trips, large ones fill the wire.
FILES_AT_ONCE_MAX = 8
# Weights take every request that they can get, for seconds each: they begin once all that a loader
# reads first was asked for. A file that another daemon is to bring first holds them no longer.
METADATA_LEAD_S = 1.0
_LOOK_INTERVAL_S = 0.02


class JobRun:
    """One run of one job. Event loop only."""

    def __init__(self, cache: Cache, job: Job, on_state: Callable[[Job], None]) -> None:
        """
        Args:
            cache: Where to.
            job: Which; its state and numbers are kept up to date.
            on_state: Called after every change of its state.
        """
        self._cache = cache
        self._job = job
        self._on_state = on_state
        # What was found of the snapshot; the job's own word is taken back when the hub's is.
        self._was_public = False

    async def run(self) -> None:
        """
        Do it; the job is done when this returns.

        Raises:
            P2PCacheError: It cannot be done.
        """
        job, cache = self._job, self._cache
        self._enter(JobState.RESOLVING)
        resolved = await self._resolve()
        snapshot = resolved.snapshot
        job.commit = snapshot.id.commit
        await self._check_access(snapshot)
        selection = self._select(snapshot)
        blobs = order_for_fetching(selection.chosen)
        job.bytes_total = sum(entry.size_bytes for entry in blobs)
        with await cache.space.rooms.make(snapshot.id, blobs):
            # Listed again if it was evicted before it was held.
            await cache.librarian.get_snapshot(snapshot.id, job.credentials)
            await self._bring(resolved, list(selection.chosen))
        job.path = cache.path_of(snapshot.id)

    async def _check_access(self, snapshot: Snapshot) -> None:
        job = self._job
        job.is_public = await self._cache.access.check_may_read(snapshot, job.credentials)
        if job.origin and not job.is_public:
            raise ForbiddenError(
                f"{snapshot.id.repo} is not public, and other machines' orders are for public "
                "models alone; order it on that machine itself, with a token."
            )
        self._was_public = job.is_public

    def _enter(self, state: JobState) -> None:
        self._job.state = state
        self._on_state(self._job)

    async def _resolve(self) -> Resolved:
        """Return the snapshot; of a branch that has moved since it was ordered, the one meant."""
        librarian, order = self._cache.librarian, self._job.order
        commit = order.commit
        if commit is None:
            return await librarian.resolve(order.reference, self._job.credentials)
        try:
            resolved = await librarian.resolve(order.reference, self._job.credentials)
        except (SourceError, NotFoundError):
            resolved = None
        if resolved is not None and resolved.snapshot.id.commit == commit:
            return resolved
        meant = ModelReference(order.reference.repo, commit)
        return await librarian.resolve(meant, self._job.credentials)

    def _select(self, snapshot: Snapshot) -> Selection:
        job = self._job
        selection = get_selection(snapshot, job.order.include, job.order.exclude)
        job.left_out_files = len(selection.left_out)
        job.left_out_bytes = selection.left_out_bytes
        job.left_out_example = selection.left_out[0].path if selection.left_out else ""
        return selection

    async def _bring(self, resolved: Resolved, chosen: list[FileEntry]) -> None:
        """Fetch small files first, link, hand out, pin; there is room."""
        job, cache = self._job, self._cache
        blobs = order_for_fetching(chosen)
        self._enter(JobState.DOWNLOADING)
        if job.is_public:
            await cache.swarm.ask_about((b.digest, b.layout) for b in blobs)
            # Small files of our own first: by the time we come to the others', peers have them.
            blobs.sort(key=self._is_for_others)
        await self._fetch_all(resolved, blobs, chosen)
        self._enter(JobState.VERIFYING)
        await cache.publish_to_tree(resolved, chosen)
        if job.order.path is not None:
            await self._hand_out(resolved.snapshot, chosen, job.order.path)
        if job.order.is_pin:
            await self._pin(resolved)
        cache.space.note_used(resolved.snapshot.id)

    def _is_for_others(self, entry: FileEntry) -> tuple[int, bool, bool]:
        is_large = entry.layout.chunk_count > 1
        is_mine = self._cache.swarm.is_mine(entry.digest)
        return rank_for_fetching(entry), is_large, not is_large and not is_mine

    async def _fetch_all(
        self, resolved: Resolved, blobs: Sequence[FileEntry], chosen: Sequence[FileEntry]
    ) -> None:
        """Fetch configuration, tokenizer and indexes, then heads of weights, then all else."""
        credentials = self._job.credentials
        slots = asyncio.Semaphore(FILES_AT_ONCE_MAX)
        first = [entry for entry in blobs if rank_for_fetching(entry) == 0]

        async def fetch(entry: FileEntry) -> None:
            async with slots:
                await self._fetch_one(resolved, entry, credentials)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {entry.digest: group.create_task(fetch(entry)) for entry in first}
                await self._wait_begun(tasks)
                self._cache.weights.begin(resolved.snapshot, chosen, credentials)
                for entry in blobs[len(first) :]:
                    group.create_task(fetch(entry))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _wait_begun(self, tasks: Mapping[BlobDigest, asyncio.Task[None]]) -> None:
        """Return when each of some files is here or asked for, or for a while no more of them."""
        loop = asyncio.get_running_loop()
        begun_count, since_s = -1, loop.time()
        while True:
            count = sum(task.done() or self._is_begun(blob) for blob, task in tasks.items())
            if count > begun_count:
                begun_count, since_s = count, loop.time()
            if count == len(tasks) or loop.time() - since_s > METADATA_LEAD_S:
                return
            await asyncio.sleep(_LOOK_INTERVAL_S)

    def _is_begun(self, blob: BlobDigest) -> bool:
        active = self._job.running.get(blob)
        if active is None:
            return False
        state = active.fetch.state
        return bool(state.held_bytes) or state.machine.is_anyone_asked()

    async def _fetch_one(
        self, resolved: Resolved, entry: FileEntry, credentials: Credentials
    ) -> None:
        job, snapshot = self._job, resolved.snapshot
        if self._was_public and not job.is_public:
            await self._check_access(snapshot)  # it has turned private since: for this caller, too?
        landing = await self._cache.land(snapshot, entry, credentials, is_public=job.is_public)
        landing.close()
        if landing.active is None:
            job.finished_from["disk"] += entry.size_bytes
            return
        job.running[entry.digest] = landing.active
        landing.active.job_count += 1
        counts = landing.active.fetch.state.bytes_from
        try:
            await landing.active.result()
            job.finished_from += counts
        except BaseException:
            job.left.append(landing.active)
            raise
        finally:
            del job.running[entry.digest]
            landing.active.leave()

    async def _hand_out(self, snapshot: Snapshot, chosen: Sequence[FileEntry], path: str) -> None:
        """Put the files where the order wants them."""
        context, stop = self._cache.context, self._job.stop
        place = find_place(context.settings.allow_paths, path)
        handout = Handout(place, context.settings.store, snapshot.id, stop.is_set)
        try:
            # To its end: the folder must not be closed under a thread that writes to it.
            await see_through(context.in_bulk(handout.open))
            for entry in chosen:
                blob_path = context.store.path_of(entry.digest)
                await see_through(context.in_bulk(handout.place, entry, blob_path))
            await see_through(context.in_bulk(handout.finish))
        finally:
            await context.in_bulk(handout.close)
        self._job.placed = dict(Counter(handout.placings))

    async def _pin(self, resolved: Resolved) -> None:
        wall_s = self._cache.context.clock.wall_s()
        snapshot_id = resolved.snapshot.id
        row = RefRow(snapshot_id.repo, resolved.revision, snapshot_id.commit, wall_s)
        known = {(pin.repo, pin.revision) for pin in await self._cache.space.pins.list_all()}
        await self._cache.space.pin(row)
        self._job.has_pinned = self._job.has_pinned or (row.repo, row.revision) not in known
