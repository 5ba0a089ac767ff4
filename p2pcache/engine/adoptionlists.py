"""
Owns learning what the commits of a cache have: which files, and who may have them.

Knows nothing of bytes.
Invariants: the hub's word counts before a client's notes, and those before what lies in a folder;
what the hub refuses to anybody is restricted, whatever the operator said.
Source: docs/how-to/adopt-a-cache.md.
"""

from __future__ import annotations

import asyncio
import logging

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.refs import ModelReference
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.adoptionjob import AdoptionJob, AdoptionMemory
from p2pcache.engine.adoptionplan import Origin, SnapshotPlan, plan_snapshot
from p2pcache.engine.cache import Cache
from p2pcache.errors import NotFoundError, SourceError, UpstreamAuthError
from p2pcache.store.catalogue import SnapshotRow
from p2pcache.store.hfcache import FoundCache, FoundSnapshot
from p2pcache.store.index import Index

log = logging.getLogger(__name__)

# Snapshots about which the hub is asked at once.
QUESTIONS_AT_ONCE_MAX = 8
# A hub that left a question unanswered is asked no more for so long: time-outs would add up.
SILENCE_S = 60.0


class AdoptionLists:
    """Learns file lists. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._context = cache.context

    async def learn_all(
        self,
        job: AdoptionJob,
        memory: AdoptionMemory,
        found: FoundCache,
        fresh: list[FoundSnapshot],
    ) -> list[SnapshotPlan]:
        """
        Plan some commits.

        Raises:
            StoreError: The index failed.
        """
        slots = asyncio.Semaphore(QUESTIONS_AT_ONCE_MAX)

        async def learn(snapshot: FoundSnapshot) -> SnapshotPlan:
            async with slots:
                return await self._learn(job, memory, found, snapshot)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(learn(snapshot)) for snapshot in fresh]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _learn(
        self,
        job: AdoptionJob,
        memory: AdoptionMemory,
        found: FoundCache,
        snapshot: FoundSnapshot,
    ) -> SnapshotPlan:
        """Find out which files a commit has and who may have them: hub, client's notes, folder."""
        now_s = self._context.clock.monotonic_s()
        may_ask = memory.may_ask(snapshot.id, now_s=now_s)
        row, is_refused = await self._find_list(snapshot, may_ask=may_ask)
        if may_ask:
            memory.note_asked(snapshot.id, now_s=now_s)
        listing: Snapshot | None
        if row is not None and row.is_confirmed:
            origin, listing = Origin.HUB, row.snapshot
        elif snapshot.listing is not None:
            origin, listing = Origin.NOTED, snapshot.listing
            row = await self.put_list(listing)
        else:
            origin, listing = Origin.FOLDER, None if row is None else row.snapshot
        is_public = job.order.is_public and not is_refused
        if row is not None:
            is_public = await self._is_public(row, is_claimed=is_public, may_ask=may_ask)
        return plan_snapshot(snapshot, listing, found.blobs, origin=origin, is_public=is_public)

    async def _find_list(
        self, snapshot: FoundSnapshot, *, may_ask: bool
    ) -> tuple[SnapshotRow | None, bool]:
        """Return the list that is known, and whether the hub refuses it to anybody."""
        if may_ask:
            try:
                return await self._cache.librarian.get_snapshot(snapshot.id, ANONYMOUS), False
            except (NotFoundError, UpstreamAuthError):
                return None, True
            except SourceError as error:
                log.debug("the list of %s is not confirmed: %s", snapshot.id, error)
        return await self._find_row(snapshot), False

    async def _find_row(self, snapshot: FoundSnapshot) -> SnapshotRow | None:
        reference = ModelReference(snapshot.id.repo, snapshot.id.commit)
        return await self._cache.librarian.find_cached(reference)

    async def put_list(self, listing: Snapshot) -> SnapshotRow | None:
        """Record a list that the hub did not confirm; one that it did stays as it is."""
        wall_s = self._context.clock.wall_s()

        def put(index: Index) -> SnapshotRow | None:
            index.catalogue.put_snapshot(listing, is_confirmed=False, about=None, wall_s=wall_s)
            return index.catalogue.find_snapshot(listing.id)

        return await self._context.index.call(put)

    async def _is_public(self, row: SnapshotRow, *, is_claimed: bool, may_ask: bool) -> bool:
        """Return whether anybody may have a snapshot: the hub's word, else the operator's."""
        if is_claimed and row.public_wall_s is None:
            await self.claim_public(row.snapshot)
        access, now_s = self._cache.access, self._context.clock.monotonic_s()
        if not may_ask or now_s - access.unanswered_s < SILENCE_S:
            return is_claimed or row.public_wall_s is not None
        return await access.is_public(row.snapshot)

    async def claim_public(self, snapshot: Snapshot) -> None:
        """Note the operator's word: it stands as long as the hub does not say otherwise."""
        await self._context.index.call(lambda index: index.catalogue.set_public(snapshot.id, 0.0))
