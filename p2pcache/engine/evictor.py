"""
Owns carrying out what core.eviction plans: looking at the store, and taking things out of it.

Knows nothing of when that is needed.
Invariants: rows, then links, then files, so that a crash anywhere leaves nothing that gc does not
find, and never a row without its file; who needs something is asked again right before it goes;
one eviction at a time (Space sees to that).
Source: docs/reference/store-layout.md (eviction); design.md §4.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from p2pcache.core.digest import BlobDigest
from p2pcache.core.eviction import (
    EvictionPlan,
    Holding,
    Kind,
    Leftover,
    Protection,
    SnapshotView,
    SpaceLimits,
    Step,
    StoreView,
)
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.engine.context import Context
from p2pcache.engine.gauge import Figures, Gauge
from p2pcache.engine.single import see_through
from p2pcache.store.index import Index
from p2pcache.store.leftovers import list_leftovers, note_changes, remove_leftover
from p2pcache.store.usage import (
    PartialUse,
    find_unshared,
    measure_blobs,
    measure_partials,
    remove_blob,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Survey:
    """
    The store as it was a moment ago. `blob_bytes`, `partial_bytes`: what ours takes on the disk;
    `released`: adopted files whose other owner is gone; `changes`: for remove_leftover().
    """

    view: StoreView
    blob_bytes: int
    partial_bytes: int
    released: tuple[BlobDigest, ...]
    changes: Mapping[RepoId, int]


@dataclass(frozen=True, slots=True)
class Users:
    """
    Who says what is needed now. Asked in the event loop; all but refresh(), which comes before a
    look at the store, answer without waiting.
    """

    is_busy: Callable[[BlobDigest], bool]
    is_held: Callable[[SnapshotId], bool]
    is_leased: Callable[[SnapshotId], bool]
    refresh: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Rows:
    contents: dict[SnapshotId, set[BlobDigest]]
    ticks: dict[SnapshotId, int]
    pinned: set[SnapshotId]
    adopted: list[BlobDigest]
    counted_bytes: int


class Evictor:
    """The hands of Space. Event loop only; files are touched in bulk threads."""

    def __init__(self, context: Context, users: Users, gauge: Gauge) -> None:
        self._context = context
        self._users = users
        self._gauge = gauge
        self.evicted: Counter[Kind] = Counter()
        self.evicted_bytes = 0

    async def survey(self, *, is_sweep: bool = False, is_report: bool = False) -> Survey:
        """
        Look at all that is here.

        Args:
            is_sweep: Also for leftovers, and for adopted files that are ours alone by now.
            is_report: Something may be evicted meanwhile: what is seen is not kept for later.

        Raises:
            StoreError: The disk failed.
        """
        context, store = self._context, self._context.store
        await self._users.refresh()
        changes = await context.in_bulk(note_changes, context.tree) if is_sweep else {}
        rows = await context.index.call(_read_rows)
        blobs = await context.in_bulk(measure_blobs, store)
        partials = await context.in_bulk(measure_partials, store, context.clock.wall_s())
        leftovers: list[Leftover] = []
        released: set[BlobDigest] = set()
        if is_sweep:
            known = rows.contents.keys()
            found = await context.in_bulk(list_leftovers, store, context.tree, known, changes)
            leftovers = [x for x in found if not any(map(self._users.is_busy, x.blobs))]
            released = await context.in_bulk(find_unshared, store, context.tree, rows.adopted)
        adopted = set(rows.adopted) - released
        own = {blob: 0 if blob in adopted else taken for blob, taken in blobs.items()}
        view = StoreView(
            tuple(self._view_snapshots(rows)),
            tuple(self._view_holdings(own, partials)),
            tuple(leftovers),
        )
        blob_bytes = sum(own.values())
        if not released and not is_report:
            self._gauge.note_walk(blob_bytes, rows.counted_bytes)
        return Survey(
            view,
            blob_bytes,
            sum(use.taken_bytes for use in partials.values()),
            tuple(sorted(released & blobs.keys())),
            changes,
        )

    def _view_snapshots(self, rows: _Rows) -> list[SnapshotView]:
        return [
            SnapshotView(
                snapshot_id,
                rows.ticks.get(snapshot_id, 0),
                frozenset(blobs),
                self._find_protection(snapshot_id, rows.pinned),
            )
            for snapshot_id, blobs in rows.contents.items()
        ]

    def _find_protection(
        self, snapshot_id: SnapshotId, pinned: set[SnapshotId]
    ) -> Protection | None:
        if snapshot_id in pinned:
            return Protection.PINNED
        if self._users.is_leased(snapshot_id):
            return Protection.LEASED
        return Protection.IN_USE if self._users.is_held(snapshot_id) else None

    def _view_holdings(
        self, own: dict[BlobDigest, int], partials: dict[BlobDigest, PartialUse]
    ) -> list[Holding]:
        is_busy = self._users.is_busy
        whole = [Holding(Kind.BLOB, blob, taken, is_busy(blob)) for blob, taken in own.items()]
        begun = [
            Holding(Kind.PARTIAL, blob, use.taken_bytes, is_busy(blob), use.idle_s)
            for blob, use in partials.items()
        ]
        return [*whole, *begun]

    async def apply(self, plan: EvictionPlan, survey: Survey) -> list[Step]:
        """
        Carry out a plan; what somebody needs again by now stays.

        Returns:
            The steps that were done.

        Raises:
            StoreError: The disk failed; the steps before are done.
        """
        done = []
        for step in plan.steps:
            if await see_through(self._take(step, survey)):
                done.append(step)
                self.evicted[step.what] += 1
                self.evicted_bytes += step.own_bytes
                log.info(
                    "%s %s went, %d bytes: %s", step.what, step.name, step.own_bytes, step.reason
                )
        return done

    async def _take(self, step: Step, survey: Survey) -> bool:
        """Do one step; returns whether it was done."""
        context, store, users = self._context, self._context.store, self._users
        # Nothing is waited for between this look and the call that takes the rows: whoever comes
        # later finds them gone, and waits for Space.
        if any(map(users.is_busy, step.blobs)):
            return False
        if step.what is Kind.FILE:
            return await context.in_bulk(
                remove_leftover, store, context.tree, step.name, survey.changes
            )
        if step.what is Kind.PARTIAL:
            await context.in_bulk(store.discard, step.blobs[0])
            return True
        if step.what is Kind.BLOB:
            (blob,) = step.blobs
            if not await context.index.call(lambda index: index.inventory.remove_unlisted(blob)):
                return False
            await context.in_bulk(remove_blob, store, blob)
            return True
        return await self._evict(step)

    async def _evict(self, step: Step) -> bool:
        context, users, snapshot_id = self._context, self._users, step.snapshot_id
        assert snapshot_id is not None, "a step for a snapshot names it"
        if users.is_held(snapshot_id) or users.is_leased(snapshot_id):
            return False
        gone = await context.index.call(
            lambda index: index.inventory.evict(snapshot_id, step.blobs)
        )
        if gone is None:
            return False
        await context.in_bulk(context.tree.withdraw_snapshot, snapshot_id, context.store.path_of)
        for blob in gone:
            await context.in_bulk(remove_blob, context.store, blob)
        return True

    async def release(self, survey: Survey) -> None:
        """Record that adopted files are ours alone."""
        blobs = survey.released
        store = self._context.store

        def list_public(index: Index) -> set[BlobDigest]:
            return {blob for blob, _ in index.blobs.find_shareable(blobs)}

        public = await self._context.index.call(list_public)
        for blob in blobs:
            await self._context.in_bulk(
                lambda blob=blob: store.claim_foreign(blob, is_public=blob in public)
            )

        def set_own(index: Index) -> None:
            for blob in blobs:
                index.blobs.set_adopted(blob, is_adopted=False)

        await self._context.index.call(set_own)


def limit_space(figures: Figures, survey: Survey) -> SpaceLimits:
    """Return the limits for a plan over a survey."""
    return SpaceLimits(
        survey.blob_bytes + survey.partial_bytes,
        figures.disk_free,
        figures.floor_bytes,
        figures.quota_bytes,
    )


def _read_rows(index: Index) -> _Rows:
    return _Rows(
        index.inventory.list_contents(),
        dict(index.roots.list_uses()),
        {SnapshotId(pin.repo, pin.commit) for pin in index.roots.list_pins()},
        index.inventory.list_adopted(),
        index.inventory.measure_taken(),
    )
