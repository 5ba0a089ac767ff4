"""
Owns adopting the files of one look at a cache: each distinct one once, several at a time.

Knows nothing of snapshots but which digests they name.
Invariants: one writer for a blob, by a claim; a row is written after its file is durable; what is
here, or known to be wrong, is not hashed again, but for the very file that is imported again by
hand; nothing is evicted for a copy.
Source: store/adopt.py; docs/decisions/0011-adoption.md.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

from p2pcache.core.digest import BlobDigest
from p2pcache.engine.adoptionjob import AdoptionJob, AdoptionMemory, FileWatch
from p2pcache.engine.adoptionplan import AdoptionUnit, SnapshotPlan
from p2pcache.engine.cache import Cache
from p2pcache.engine.single import see_through
from p2pcache.errors import DaemonBusyError, P2PCacheError
from p2pcache.store.adopt import (
    AdoptedBlob,
    Adoption,
    AdoptOrder,
    RefusedFile,
    StoppedAdoption,
    adopt_file,
)
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.hfcache import FileIdentity, FoundCache
from p2pcache.store.index import Index
from p2pcache.store.usage import measure_missing
from p2pcache.transfer.buffers import thread_buffer

# Half of the bulk threads: whoever opens a file meanwhile must not wait for a cache to be hashed.
HASHES_AT_ONCE_MAX = 4
# A change within the same tick of a file system's clock as the one before leaves no trace; the
# slowest tick of Linux is 10 ms.
TICK_S = 0.05
# How a file that was here already is counted.
PRESENT = "present"


class AdoptionWork:
    """What one look at a cache shares between its snapshots."""

    def __init__(
        self,
        job: AdoptionJob,
        memory: AdoptionMemory,
        found: FoundCache,
        units: dict[FileIdentity, AdoptionUnit],
    ) -> None:
        self.job = job
        self.memory = memory
        self.found = found
        self.units = units
        self.here: set[BlobDigest] = set()
        self.tasks: dict[FileIdentity, asyncio.Task[None]] = {}
        self._expected: set[FileIdentity] = set()
        self._skipped: dict[FileIdentity, str] = {}
        self._open: set[FileIdentity] = set()

    def expect(self, identity: FileIdentity) -> None:
        """Count a file in the totals, once."""
        if identity not in self._expected:
            self._expected.add(identity)
            self.job.expect(identity.size_bytes)

    def skip(self, identity: FileIdentity, reason: str, *, is_final: bool = True) -> None:
        """Note why a file was left alone; one that is not final is looked at again."""
        self._skipped[identity] = reason
        if not is_final:
            self._open.add(identity)

    def list_skipped(self, plan: SnapshotPlan) -> dict[str, str]:
        """Return path and reason of the files of one commit that were left alone."""
        # One file may have several names in the cache; it is called by the same one throughout.
        return {
            self.units[identity].file.shown: self._skipped[identity]
            for identity in plan.identities
            if identity in self._skipped
        }

    def is_unfinished(self, plan: SnapshotPlan) -> bool:
        """Return whether a file of a commit is to be looked at again."""
        return self.job.stop.is_set() or not self._open.isdisjoint(plan.identities)


class AdoptionFiles:
    """Adopts files. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._context = cache.context
        self._slots = asyncio.Semaphore(HASHES_AT_ONCE_MAX)
        self._copying_bytes = 0
        self._room_lock = asyncio.Lock()

    async def adopt(self, work: AdoptionWork, unit: AdoptionUnit) -> None:
        """
        Adopt one file, unless its content is here.

        Raises:
            StoreError: Our disk failed or is full.
        """
        identity = unit.file.identity
        async with self._slots:
            with work.job.follow(identity.size_bytes):
                missing = await self._list_missing(work, unit)
                is_nameless = bool(unit.algorithms) and identity not in work.memory.named
                if not missing and not is_nameless:
                    work.job.counts[PRESENT] += 1
                    return
                wrong = work.memory.wrong.get(identity)
                if wrong is not None and missing <= wrong[0] and not is_nameless:
                    work.skip(identity, wrong[1])
                    return
                await self._wait_for_tick(identity)
                async with AsyncExitStack() as claims:
                    try:
                        for name in sorted(missing):
                            if self._cache.fetches.find(name) is not None:
                                raise DaemonBusyError("it is being downloaded right now")
                            await claims.enter_async_context(self._cache.claims.hold(name))
                    except DaemonBusyError as error:
                        work.skip(identity, str(error), is_final=False)
                        return
                    # Who held a claim before us may have brought it.
                    missing = await self._list_missing(work, unit)
                    if missing or is_nameless:
                        await self._hash_and_place(work, unit, missing)
                    else:
                        work.job.counts[PRESENT] += 1

    async def _list_missing(self, work: AdoptionWork, unit: AdoptionUnit) -> frozenset[BlobDigest]:
        """Return the names of a file that are not here."""
        names = unit.names | work.memory.named.get(unit.file.identity, frozenset())
        return frozenset({name for name in names if not await self._is_here(work, unit, name)})

    async def _is_here(self, work: AdoptionWork, unit: AdoptionUnit, name: BlobDigest) -> bool:
        if name not in work.here:
            is_anew = not work.job.order.is_watch and await self._is_same_file(unit, name)
            found = await self._cache.shelf.open_proven(name, is_anew=is_anew)
            if found is None:
                return False
            os.close(found.fd)
            work.here.add(name)
        if unit.is_public:
            await self._cache.shelf.note_public(name)
        return True

    async def _is_same_file(self, unit: AdoptionUnit, name: BlobDigest) -> bool:
        """
        Return whether a blob that is here is the very file that somebody asks us to look at.

        It was taken for what its name says when it was adopted; whoever imports it again means
        what it is now. A watch does not ask that, and `check` does it every week.
        """
        row = await self._cache.shelf.find_row(name)
        return row is not None and row.is_adopted and row.stamp.inode == unit.file.identity.inode

    async def _wait_for_tick(self, identity: FileIdentity) -> None:
        """Let the file system's clock go on before a file is hashed that was written just now."""
        age_s = self._context.clock.wall_s() - identity.mtime_ns / 1e9
        if 0 <= age_s < TICK_S:
            await asyncio.sleep(TICK_S)

    async def _hash_and_place(
        self, work: AdoptionWork, unit: AdoptionUnit, names: frozenset[BlobDigest]
    ) -> None:
        identity = unit.file.identity
        order = AdoptOrder(
            unit.file.path,
            identity,
            names,
            frozenset(unit.algorithms),
            unit.is_public,
            unit.may_have_tensors,
        )
        loop = asyncio.get_running_loop()

        def may_place(blob: BlobDigest) -> bool:
            if blob in names:
                return True
            # A nameless file: nobody could know before it was hashed that it is here already.
            question = self._may_place(work, unit, blob)
            return asyncio.run_coroutine_threadsafe(question, loop).result()

        def may_copy(size_bytes: int) -> bool:
            question = self._may_copy(watch, size_bytes)
            return asyncio.run_coroutine_threadsafe(question, loop).result()

        watch = FileWatch(work.job.stop, may_copy, may_place)
        work.job.running.append(watch)
        try:
            outcome = await see_through(self._place(work, order, watch))
        finally:
            work.job.running.remove(watch)
            self._copying_bytes -= watch.reserved_bytes
        if isinstance(outcome, P2PCacheError):
            raise outcome
        if isinstance(outcome, RefusedFile):
            work.skip(identity, str(outcome), is_final=outcome.is_final)
            if outcome.is_final:
                work.memory.wrong[identity] = (names, str(outcome))
            return
        if outcome is None:
            return
        how = outcome.blobs[0].placing.value if outcome.blobs else PRESENT
        work.job.counts[how] += 1
        work.memory.named[identity] = outcome.names
        if names - outcome.names:
            reason = f"its content is {min(outcome.names)}, not what a name of it says"
            work.skip(identity, reason)
            work.memory.wrong[identity] = (names - outcome.names, reason)

    async def _may_place(self, work: AdoptionWork, unit: AdoptionUnit, blob: BlobDigest) -> bool:
        is_busy = self._cache.fetches.find(blob) is not None or self._cache.claims.is_held(blob)
        return not is_busy and not await self._is_here(work, unit, blob)

    async def _may_copy(self, watch: FileWatch, size_bytes: int) -> bool:
        """
        Reserve room for a copy, if there is some that nobody else counts on.

        Nothing is evicted for it: the bytes are on this machine already.
        """
        space, store = self._cache.space, self._context.store
        async with self._room_lock:
            figures = await space.measure()
            granted = list(space.holds.list_granted().items())
            others_bytes = await self._context.in_bulk(measure_missing, store, granted)
            need_bytes = size_bytes + others_bytes + self._copying_bytes
            fits = figures.disk_free - need_bytes >= figures.floor_bytes
            if figures.quota_bytes is not None:
                fits = fits and figures.own_bytes + need_bytes <= figures.quota_bytes
            if fits:
                watch.reserved_bytes += size_bytes
                self._copying_bytes += size_bytes
            return fits

    async def _place(
        self, work: AdoptionWork, order: AdoptOrder, watch: FileWatch
    ) -> Adoption | RefusedFile | P2PCacheError | None:
        """Place a file and record it, to the end even if nobody waits any more."""
        store = self._context.store
        try:
            adopted = await self._context.in_bulk(
                lambda: adopt_file(store, order, thread_buffer(), watch)
            )
            work.here |= {one.blob for one in adopted.blobs}
            for one in adopted.blobs:
                await self._put_row(one, is_public=order.is_public)
                await self._context.in_bulk(store.discard, one.blob)
                self._cache.shelf.on_put(one.blob)
        except StoppedAdoption:
            return None
        except (RefusedFile, P2PCacheError) as outcome:
            return outcome
        return adopted

    async def _put_row(self, adopted: AdoptedBlob, *, is_public: bool) -> None:
        wall_s = self._context.clock.wall_s()

        def put(index: Index) -> None:
            known = index.blobs.find(adopted.blob)
            row = BlobRow(
                adopted.blob,
                adopted.stamp,
                adopted.table,
                is_proven=True,
                is_public=is_public or (known is not None and known.is_public),
                verified_wall_s=wall_s,
                is_adopted=adopted.placing.is_shared,
            )
            index.blobs.put(row)

        await self._context.index.call(put)
