"""
Owns the fetches under way: one for each blob, however many want it.

Knows nothing of how a fetch works inside.
Invariants: a blob is fetched once at a time; a fetch that readers left goes on; its outcome is
told to everyone who asked.
Source: design.md §6 (single flight); desync's DedupQueue for the idea.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace

from p2pcache.clock import Clock
from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.digest import BlobDigest
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.engine.context import Context
from p2pcache.engine.fetch import BlobFetch
from p2pcache.engine.fetchstate import FetchOrder
from p2pcache.engine.layouts import Layouts
from p2pcache.engine.shelf import ChunkRun, Shelf
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import BlobNotFoundError, ChunkNotYetError, NoSourceError, P2PCacheError
from p2pcache.store.base import FileStamp

log = logging.getLogger(__name__)

# A peer that asks for chunks that are on their way comes back after this long.
NOT_YET_RETRY_S = 1.0


class ActiveFetch:
    """A fetch and its task."""

    def __init__(self, fetch: BlobFetch, clock: Clock) -> None:
        self.fetch = fetch
        self.started_s = clock.monotonic_s()
        self.is_open = asyncio.Event()
        # Jobs that wait for it; with a reader, or once one was here, it goes on without them.
        self.job_count = 0
        self.waiting_count = 0
        self.had_reader = False
        self.is_stopping = False
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None]:
        """Return the task that runs the fetch."""
        assert self._task is not None, "made by Fetches, which sets it at once"
        return self._task

    @task.setter
    def task(self, task: asyncio.Task[None]) -> None:
        self._task = task

    @property
    def is_done(self) -> bool:
        """Return whether the outcome is known."""
        return self.task.done()

    async def wait_open(self) -> None:
        """
        Return when the file that is being filled can be read.

        Raises:
            P2PCacheError: It could not be opened.
        """
        opening = asyncio.ensure_future(self.is_open.wait())
        try:
            await asyncio.wait({opening, self.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opening.cancel()
        if not self.is_open.is_set():
            await self.result()

    async def result(self) -> None:
        """
        Wait for the outcome.

        Raises:
            P2PCacheError: The fetch failed.
        """
        try:
            await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if not self.task.cancelled():
                raise
            raise NoSourceError(
                "The daemon stops; what was fetched is kept, ask again when it is up."
            ) from None

    async def wait_for_change(self) -> None:
        """Return when a chunk arrived or the outcome is known."""
        change = asyncio.ensure_future(self.fetch.wait_for_change())
        try:
            await asyncio.wait({change, self.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()

    def leave(self) -> None:
        """Say that a job does not want the blob any more; stops the fetch if nobody does."""
        self.job_count -= 1
        if self.job_count == 0 and not self.had_reader:
            self.stop()

    def stop(self) -> None:
        """Cancel the fetch, once: a second time would interrupt its winding up."""
        if not self.is_stopping:
            self.is_stopping = True
            self.task.cancel()

    def note_reader(self, reader_id: int, chunk_index: int) -> None:
        """Say which chunk a reader waits for."""
        readers = self.fetch.state.machine.readers
        if readers.note(reader_id, chunk_index, now_s=self._clock.monotonic_s()):
            self.fetch.note_reader_moved()

    def forget_reader(self, reader_id: int) -> None:
        """Say that a reader left."""
        self.fetch.state.machine.readers.forget(reader_id)


class Fetches:
    """All fetches of this daemon. Event loop only."""

    def __init__(self, context: Context, swarm: Swarm, shelf: Shelf) -> None:
        self._context = context
        self._swarm = swarm
        self._shelf = shelf
        self._layouts = Layouts(context, swarm)
        self._active: dict[BlobDigest, ActiveFetch] = {}
        self._followers: set[asyncio.Task[None]] = set()

    def find(self, blob: BlobDigest) -> ActiveFetch | None:
        """Return the fetch of a blob, if one is under way."""
        return self._active.get(blob)

    def iter_active(self) -> list[ActiveFetch]:
        """Return all fetches that are under way."""
        return list(self._active.values())

    def count_held_chunks(self) -> int | None:
        """Return how many chunks are here of all that is fetched now; None if nothing is."""
        if not self._active:
            return None
        return sum(len(active.fetch.state.have) for active in self._active.values())

    async def start(
        self, snapshot: Snapshot, entry: FileEntry, credentials: Credentials, *, is_public: bool
    ) -> ActiveFetch:
        """
        Begin to fetch a file's blob, or join the fetch that is under way.

        Raises:
            StoreError: No room, or the disk failed.
        """
        while True:
            active = self._active.get(entry.digest)
            if active is None:
                active = self._begin(snapshot, entry, credentials, is_public=is_public)
            if not active.is_stopping:
                await self._wait_open(active)
            if not active.is_stopping:
                break
            # Everybody left it; it winds up first, for two must not fill one file.
            await asyncio.wait({active.task})
        order = active.fetch.state.order
        if is_public and not order.is_public:
            active.fetch.state.order = replace(order, is_public=True)
        return active

    async def _wait_open(self, active: ActiveFetch) -> None:
        """Wait for the file; a fetch that everybody left before it was open is not wanted."""
        active.waiting_count += 1
        try:
            await active.wait_open()
        except asyncio.CancelledError:
            is_wanted = active.waiting_count > 1 or active.job_count or active.had_reader
            if not is_wanted:
                active.stop()
            raise
        finally:
            active.waiting_count -= 1

    def _begin(
        self, snapshot: Snapshot, entry: FileEntry, credentials: Credentials, *, is_public: bool
    ) -> ActiveFetch:
        # What anybody may have is asked for as anybody: a caller whose token has expired must not
        # fail the others who join.
        asker = ANONYMOUS if is_public else credentials
        order = FetchOrder(
            entry.digest,
            entry.layout,
            self._context.hub.locate(snapshot.id, entry, asker),
            is_public,
            trusts_peers=self._context.settings.trust_peers,
            trusts_upstream=self._context.upstream_is_trusted,
        )
        active = ActiveFetch(BlobFetch(self._context, self._swarm, order), self._context.clock)
        self._active[entry.digest] = active
        active.task = asyncio.create_task(self._run(active, entry.path))
        active.task.add_done_callback(_retrieve)
        return active

    async def _run(self, active: ActiveFetch, path: str) -> None:
        fetch = active.fetch
        try:
            await fetch.open(await self._layouts.find(fetch.state.order, path))
            active.is_open.set()
            await fetch.run(lambda stamp, table: self._record(fetch, stamp, table))
        finally:
            self._active.pop(fetch.blob, None)
            fetch.close()

    async def _record(self, fetch: BlobFetch, stamp: FileStamp, table: ChunkTable) -> None:
        is_public = fetch.state.order.is_public
        await self._shelf.put(fetch.blob, stamp, table, is_public=is_public)

    def hide(self, snapshot: Snapshot) -> None:
        """Stop sharing what is being fetched of a snapshot that turned out not to be public."""
        for entry in snapshot.files:
            active = self._active.get(entry.digest)
            if active is not None:
                state = active.fetch.state
                state.order = replace(state.order, is_public=False)

    def open_run(self, blob: BlobDigest, first: int, last: int) -> ChunkRun | None:
        """
        Open a run of a public blob that is still arriving, for a peer.

        Raises:
            ChunkNotYetError: Some of it is on its way.
            BlobNotFoundError: Some of it is neither here nor on its way.
        """
        active = self._active.get(blob)
        if active is None or not active.is_open.is_set() or not active.fetch.state.order.is_public:
            return None
        state = active.fetch.state
        shareable, wanted = state.find_shareable(), range(first, last + 1)
        if not all(index in shareable for index in wanted):
            if all(index in shareable or index in state.machine.intent for index in wanted):
                raise ChunkNotYetError(
                    f"Chunks {first}-{last} of {blob} are on their way here; ask again.",
                    retry_after_s=NOT_YET_RETRY_S,
                )
            raise BlobNotFoundError(f"Chunks {first}-{last} of {blob} are not here.")
        table = active.fetch.partial.snapshot().table
        digests = tuple(d for d in list(table)[first : last + 1] if d is not None)
        offset, length = state.order.layout.span_of(first, last)
        return ChunkRun(os.dup(active.fetch.partial.fd), offset, length, digests)

    def after(self, active: ActiveFetch, work: Callable[[], Awaitable[None]]) -> None:
        """Do some work once a fetch has succeeded; its failure is logged."""

        async def follow() -> None:
            with contextlib.suppress(P2PCacheError):
                await active.result()
                await work()

        task = asyncio.create_task(follow())
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def close(self) -> None:
        """Stop all fetches; what they have is durable when this returns."""
        tasks = [active.task for active in self._active.values()]
        for active in self._active.values():
            active.stop()
        await asyncio.gather(*tasks, *self._followers, return_exceptions=True)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Log a failure that nobody may be waiting for."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("a fetch failed: %s", error)
