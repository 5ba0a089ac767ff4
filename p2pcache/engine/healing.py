"""
Owns what becomes of damaged files: who is asked for them again, and their way back into the tree.

Knows nothing of how damage is found.
Invariants: only what the hub gives to anybody is fetched without being asked for; a file is healed
when it is proven again, whoever brought it; what it was taken out of, it is put back into.
Source: design.md §4; docs/how-to/repair-store.md.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.engine.shelf import ShelfDamage
from p2pcache.engine.single import SingleFlight
from p2pcache.errors import P2PCacheError, StoreError
from p2pcache.store.catalogue import SnapshotRow
from p2pcache.store.damages import (
    GONE_DETAIL,
    CheckMemory,
    Damage,
    DamagePlace,
    DamageState,
    save_memory,
)
from p2pcache.store.index import Index

if TYPE_CHECKING:
    from p2pcache.engine.cache import Cache

log = logging.getLogger(__name__)

# Fetches that the healer runs at once: it must not crowd out what people wait for.
HEALS_AT_ONCE_MAX = 4
# What is healed, or cannot be, is shown for so long.
DAMAGE_SHOWN_S = 7 * 86_400.0

RESTRICTED_DETAIL = (
    "The hub does not give it to everybody; it is healed when it is pulled with a token: "
    "p2pcache pull"
)
LOST_DETAIL = "No repository that is known here has this file; nobody can be asked for it."


# A snapshot that has a damaged file, and the file in it.
FoundPlace = tuple[SnapshotRow, FileEntry]


class Healer:
    """The damaged files of this store. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self.damaged_chunks_total = 0
        self._cache = cache
        self._context = cache.context
        # A small file, read once at start.
        self._memory = CheckMemory.load(self._context.settings.store)
        self._sweeps = SingleFlight()
        self._heals = SingleFlight()
        self._relinks = SingleFlight()
        self._saves = SingleFlight()
        self._is_changed = False

    # --- what is damaged ---

    def list_all(self) -> list[Damage]:
        """Return what was found damaged, the latest last."""
        return list(self._memory.damages.values())

    def is_damaged(self, blob: BlobDigest) -> bool:
        """Return whether a file was found damaged here, and is not whole again."""
        damage = self._memory.damages.get(blob)
        return damage is not None and damage.is_open and not damage.is_gone

    def note(self, found: ShelfDamage) -> None:
        """Take in a file that was set aside."""
        self.damaged_chunks_total += len(found.chunks)
        self._put(
            Damage(
                found.blob,
                found.chunks,
                found.places,
                found.is_public,
                self._context.clock.wall_s(),
            )
        )

    async def note_gone(self, blob: BlobDigest, *, is_public: bool) -> None:
        """Take in a file that is not where the index says: somebody deleted it."""
        places = await self._context.index.call(lambda index: index.catalogue.list_places(blob))
        self._put(
            Damage(
                blob,
                (),
                tuple(DamagePlace(snapshot_id, entry.path, False) for snapshot_id, entry in places),
                is_public,
                self._context.clock.wall_s(),
                detail=GONE_DETAIL,
                is_gone=True,
            )
        )

    def note_whole(self, blob: BlobDigest) -> None:
        """Take in that a blob is here and proven, whoever brought it."""
        damage = self._memory.damages.get(blob)
        if damage is not None and damage.is_open:
            log.info("%s is healed", blob)
            self._put(replace(damage, state=DamageState.HEALED, detail=""))
            self._relinks.start(blob, lambda: self._try_relink(damage))

    def _put(self, damage: Damage) -> None:
        self._memory.note(damage)
        self.save()

    # --- the pass that is not through yet ---

    def continue_pass(self, now_wall_s: float, *, within_s: float, is_anew: bool) -> float:
        """Return when the pass over everything began that a check is part of; see CheckMemory."""
        self._memory.continue_pass(now_wall_s, within_s=within_s, is_anew=is_anew)
        self.save()
        assert self._memory.pass_started_wall_s is not None, "a pass has begun"
        return self._memory.pass_started_wall_s

    def end_pass(self) -> None:
        """Record that everything was looked at."""
        self._memory.pass_started_wall_s = None
        self.save()

    def forget_healed(self, before_wall_s: float) -> None:
        """Show what was healed before a moment no longer."""
        self._memory.drop_healed(before_wall_s)
        self.save()

    # --- mending ---

    async def heal_all(self, *, with_gone: bool) -> None:
        """
        Fetch again what may be, and wait for the outcome.

        Args:
            with_gone: Files that somebody deleted, too.
        """
        await self._note_healed()
        wanted = [d.blob for d in self.list_all() if d.is_open and (with_gone or not d.is_gone)]
        places = await self._find_places(wanted)
        refusals = await self._find_refusals(places)
        public = [
            (blob, [place for place in found if refusals[place[0].snapshot.id] is None])
            for blob, found in places.items()
        ]
        await self._cache.swarm.ask_about(
            (found[0][1].digest, found[0][1].layout) for _, found in public if found
        )
        slots = asyncio.Semaphore(HEALS_AT_ONCE_MAX)

        async def heal(blob: BlobDigest, found: list[FoundPlace]) -> None:
            async with slots:
                await self._heals.run(blob, lambda: self._heal(blob, found))

        await asyncio.gather(*(heal(blob, found) for blob, found in public if found))
        for blob, found in public:
            if not found:
                reasons = [refusals[row.snapshot.id] for row, _ in places[blob]]
                self._give_up(blob, next(filter(None, reasons), None))
        await self._saves.settle(None)

    def heal_soon(self) -> None:
        """Begin to fetch again what may be, and do not wait; what is found meanwhile comes next."""
        self._sweeps.start(None, self._try_heal_all)

    async def _try_heal_all(self) -> None:
        try:
            await self.heal_all(with_gone=False)
        except P2PCacheError as error:
            log.warning("healing failed: %s", error)

    async def _note_healed(self) -> None:
        """Look whether somebody else brought what is missing, without telling."""
        blobs = [damage.blob for damage in self.list_all() if damage.is_open]
        for blob in await self._context.index.call(lambda index: index.checks.find_proven(blobs)):
            if self._context.store.path_of(blob).exists():
                self.note_whole(blob)

    async def _find_places(self, blobs: list[BlobDigest]) -> dict[BlobDigest, list[FoundPlace]]:
        """Return where each blob belongs, as far as the index knows now."""

        def find(index: Index) -> dict[BlobDigest, list[FoundPlace]]:
            # Each snapshot once: it may have thousands of files, and hundreds of them damaged.
            rows: dict[SnapshotId, SnapshotRow | None] = {}
            found: dict[BlobDigest, list[FoundPlace]] = {}
            for blob in blobs:
                found[blob] = []
                for snapshot_id, entry in index.catalogue.list_places(blob):
                    if snapshot_id not in rows:
                        rows[snapshot_id] = index.catalogue.find_snapshot(snapshot_id)
                    row = rows[snapshot_id]
                    if row is not None:
                        found[blob].append((row, entry))
            return found

        return await self._context.index.call(find) if blobs else {}

    async def _find_refusals(
        self, places: dict[BlobDigest, list[FoundPlace]]
    ) -> dict[SnapshotId, str | None]:
        """Return why nobody's files of a snapshot may be fetched; None where anybody's may."""
        refusals: dict[SnapshotId, str | None] = {}
        for row, _ in (place for found in places.values() for place in found):
            snapshot = row.snapshot
            if snapshot.id in refusals:
                continue
            refusals[snapshot.id] = RESTRICTED_DETAIL
            if row.public_wall_s is None:
                continue
            try:
                if await self._cache.access.check_may_read(snapshot, ANONYMOUS):
                    refusals[snapshot.id] = None
            except P2PCacheError as error:
                refusals[snapshot.id] = str(error)
        return refusals

    async def _heal(self, blob: BlobDigest, places: list[FoundPlace]) -> None:
        damage = self._memory.damages.get(blob)
        if damage is None or not damage.is_open:
            return
        self._put(replace(damage, state=DamageState.HEALING, detail=""))
        reason: str | None = None
        for row, entry in places:
            try:
                await self._fetch(row.snapshot, entry)
            except P2PCacheError as error:
                log.info("%s is not healed yet: %s", blob, error)
                reason = str(error)
            else:
                self.note_whole(blob)
                break
        self._give_up(blob, reason)
        await self._relinks.settle(blob)

    def _give_up(self, blob: BlobDigest, reason: str | None) -> None:
        """Say why a file did not come, if it did not; without a reason nobody can be asked."""
        damage = self._memory.damages.get(blob)
        if damage is not None and damage.is_open:
            state = DamageState.LOST if reason is None else DamageState.QUARANTINED
            self._put(replace(damage, state=state, detail=reason or LOST_DETAIL))

    async def _fetch(self, snapshot: Snapshot, entry: FileEntry) -> None:
        landing = await self._cache.land(snapshot, entry, ANONYMOUS, is_public=True)
        landing.close()
        if landing.active is None:
            return
        landing.active.job_count += 1
        try:
            await landing.active.result()
        finally:
            landing.active.leave()

    # --- the way back ---

    async def _try_relink(self, damage: Damage) -> None:
        """Put a file back into the tree where it was; it is healed even if that fails."""
        linked = {(place.snapshot_id, place.path) for place in damage.places if place.is_linked}
        if not linked:
            return
        places = (await self._find_places([damage.blob]))[damage.blob]
        chosen = [(row, entry) for row, entry in places if (row.snapshot.id, entry.path) in linked]
        try:
            await self._context.in_bulk(self._relink, chosen)
        except StoreError as error:
            log.warning("%s is healed, and not linked again: %s", damage.blob, error)

    def _relink(self, places: list[FoundPlace]) -> None:
        tree, store = self._context.tree, self._context.store
        for row, entry in places:
            path = store.path_of(entry.digest)
            if path.exists():
                tree.open_repo(row.snapshot.id.repo, is_public=row.public_wall_s is not None)
                tree.publish_tree(row.snapshot, [entry])
                tree.publish_file(row.snapshot.id, entry, path)

    # --- remembering ---

    def save(self) -> None:
        """Write what is known, soon; changes that come meanwhile go with it."""
        self._is_changed = True
        self._saves.start(None, self._save)

    async def _save(self) -> None:
        while self._is_changed:
            self._is_changed = False
            content = self._memory.to_bytes()
            try:
                await self._context.in_bulk(save_memory, self._context.settings.store, content)
            except StoreError as error:
                log.warning("what is damaged could not be written down: %s", error)

    async def close(self) -> None:
        """Stop healing; what is known is on disk when this returns."""
        await self._sweeps.close()
        await self._heals.close()
        await self._relinks.close()
        await self._saves.settle(None)
