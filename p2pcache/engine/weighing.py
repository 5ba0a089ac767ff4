"""
Owns learning what a model's weight files hold before they are here: their heads, read by range.

Knows nothing of who asks, and of the answer's form (core.weights).
Invariants: a head is asked for once, whoever wants it; while a swarm fetches a file, its owner
alone asks the hub; a pull is never held up by this, and fails for none of it.
Source: design.md §8 (weights: exact with nothing of them here); docs/decisions/0023-residency.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable
from functools import partial

from p2pcache.core import layout as layouts
from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.digest import BlobDigest
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.tensors import FIRST_HEAD_BYTES, MoreHead, TensorList, list_tensors
from p2pcache.core.weights import FileWeights, choose_weight_files, is_weight_file, measure_weights
from p2pcache.engine.context import Context
from p2pcache.engine.fetchstate import FetchOrder
from p2pcache.engine.layouts import Layouts
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import P2PCacheError, StoreError, UpstreamRateLimitedError
from p2pcache.store.filelayout import read_bytes
from p2pcache.store.index import Index
from p2pcache.transfer.upstream import UpstreamSource

log = logging.getLogger(__name__)

# Heads read at once: they are small, and the round trips overlap.
HEADS_AT_ONCE_MAX = 8
# Background readings at once; more pulls than begin together.
TASKS_MAX = 64


class Weighing:
    """All heads that are read for what they say. Event loop only."""

    def __init__(self, context: Context, swarm: Swarm) -> None:
        self._context = context
        self._swarm = swarm
        self._layouts = Layouts(context, swarm)
        self._slots = asyncio.Semaphore(HEADS_AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        # Files that are whole here and whose heads nobody has read yet.
        self._waiting: dict[BlobDigest, int] = {}
        self._worker: asyncio.Task[None] | None = None

    def begin(self, snapshot: Snapshot, files: Iterable[FileEntry], asker: Credentials) -> None:
        """
        Begin to read the heads of a model that is about to be fetched, and return at once.

        Call it once the swarm has heard of the files: those that are another member's first copies
        are left to that one.
        """
        if len(self._tasks) >= TASKS_MAX:
            return  # the files say it themselves once they are here
        task = asyncio.create_task(self._try_read(snapshot, choose_weight_files(files), asker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def learn(
        self, snapshot: Snapshot, files: Iterable[FileEntry], asker: Credentials
    ) -> None:
        """
        Read the heads of a model's weight files, as far as nobody has yet.

        Args:
            snapshot: Whose files they are.
            files: The model's; others than weight files are passed over.
            asker: Whose rights count at the hub, if not everybody's.

        Raises:
            SourceError, NotFoundError: The hub does not give one.
            StoreError: The disk failed.
        """
        entries = choose_weight_files(files)
        try:
            async with asyncio.TaskGroup() as group:
                for entry in await self._find_unknown(entries):
                    group.create_task(self._read(snapshot, entry, asker))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def note_whole(self, blob: BlobDigest) -> None:
        """Take in that a file is here, proven: its head can be read from the disk."""
        self._waiting[blob] = 0
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._read_waiting())

    async def catch_up(self, timeout_s: float) -> None:
        """Wait a while until the heads of all files that are here were read."""
        if self._worker is not None:
            await asyncio.wait({self._worker}, timeout=timeout_s)

    async def close(self) -> None:
        """Stop reading."""
        tasks = [*self._tasks, *([] if self._worker is None else [self._worker])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._context.heads.close()

    # --- at the hub ---

    async def _try_read(
        self, snapshot: Snapshot, entries: list[FileEntry], asker: Credentials
    ) -> None:
        """Read what is ours to read; what fails is known once the file is here."""
        try:
            unknown = await self._find_unknown(entries)
        except StoreError as error:
            log.debug("%s: heads are not read: %s", snapshot.id, error)
            return

        async def read(entry: FileEntry) -> None:
            with contextlib.suppress(P2PCacheError):
                await self._read(snapshot, entry, asker)

        # What fits into one chunk comes whole as soon as its head would.
        large = [entry for entry in unknown if entry.size_bytes > layouts.CHUNK_SIZE_BYTES]
        ours = [entry for entry in large if self._is_ours(entry.digest)]
        away = await self._context.in_bulk(self._filter_away, ours)
        await asyncio.gather(*map(read, away))

    def _filter_away(self, entries: list[FileEntry]) -> list[FileEntry]:
        """Leave out what is on this disk, not proven yet: its head is read once it is."""
        return [e for e in entries if not self._context.store.path_of(e.digest).exists()]

    def _is_ours(self, blob: BlobDigest) -> bool:
        """Return whether we would ask the hub for a file's first bytes in any case."""
        for peer in self._swarm.iter_up():
            entry = peer.find_entry(blob)
            # The hub is spared what a peer has; the head then comes with the file.
            if entry is not None and (entry.have or entry.layout.name != layouts.FIXED_LAYOUT):
                return False
        return self._swarm.is_mine(blob)

    async def _find_unknown(self, entries: list[FileEntry]) -> list[FileEntry]:
        by_digest = {entry.digest: entry for entry in entries}
        unknown = await self._context.index.call(
            lambda index: index.weights.find_unknown(by_digest)
        )
        return [by_digest[digest] for digest in unknown]

    async def _read(self, snapshot: Snapshot, entry: FileEntry, asker: Credentials) -> None:
        """Read one head, from the disk if the file is here, else at the hub."""
        async with self._slots:
            if await self._read_here(entry.digest):
                return
            context, now_s = self._context, self._context.clock.monotonic_s()
            pause_s = context.budget.paused_until_s - now_s
            if pause_s > 0:
                raise UpstreamRateLimitedError(
                    f"The hub wants to be left alone for {pause_s:.0f} s more; ask again then.",
                    retry_after_s=pause_s,
                )
            order = FetchOrder(
                entry.digest,
                entry.layout,
                context.hub.locate(snapshot.id, entry, asker),
                is_public=asker == ANONYMOUS,
                trusts_peers=False,
                trusts_upstream=False,
            )
            source = UpstreamSource(
                order.location, context.upstream_pool, on_answer=context.budget.note_bulk_answer
            )
            try:
                await self._layouts.read_head(order, source)
            except UpstreamRateLimitedError as error:
                context.budget.pause(error.retry_after_s, now_s=context.clock.monotonic_s())
                raise
            finally:
                source.close()

    # --- on the disk ---

    async def _read_waiting(self) -> None:
        while self._waiting:
            blob = next(iter(self._waiting))
            del self._waiting[blob]
            try:
                if await self._context.index.call(partial(_is_wanted, blob=blob)):
                    await self._read_here(blob)
            except StoreError as error:
                log.debug("the head of %s cannot be read: %s", blob, error)

    async def _read_here(self, blob: BlobDigest) -> bool:
        """Read the head of a file that is whole here; returns whether it is."""
        proven = await self._context.index.call(lambda index: index.checks.find_proven([blob]))
        if not proven:
            return False
        found = await self._context.in_bulk(self._weigh, blob)
        if found is None:
            return False
        await self._context.index.call(lambda index: index.weights.put(blob, found[0]))
        return True

    def _weigh(self, blob: BlobDigest) -> tuple[FileWeights | None] | None:
        """Return what a file's head says, in a bulk thread; None when the file is not there."""
        file = self._context.store.find_blob(blob)
        if file is None:
            return None
        try:
            size_bytes = file.stamp.size_bytes
            wanted = min(FIRST_HEAD_BYTES, size_bytes)
            while True:
                head = read_bytes(file.fd, wanted, 0)
                listed = list_tensors(head, size_bytes)
                if isinstance(listed, TensorList):
                    return (measure_weights(listed),)
                if not isinstance(listed, MoreHead) or len(head) < wanted:
                    return (None,)
                wanted = listed.head_bytes
        except OSError as error:
            log.debug("the head of %s cannot be read: %s", blob, error)
            return None
        finally:
            os.close(file.fd)


def _is_wanted(index: Index, blob: BlobDigest) -> bool:
    """Return whether a file is a weight file, by one of its names, and its head is unknown."""
    if not index.weights.find_unknown([blob]):
        return False
    return any(is_weight_file(entry.path) for _, entry in index.catalogue.list_places(blob))
