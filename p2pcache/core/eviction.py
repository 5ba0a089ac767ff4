"""
Owns the decision of what leaves the store when room is short: one pure function.

Knows nothing of files, indexes or clocks; it gets what is there and who needs it.
Invariants: what a pin, a lease or a running job needs never leaves; what nobody can reach goes
before snapshots, and those in the order of their last use, whole; equal inputs, equal plans.
Source: design.md §3 (pin, lease, evict, gc); docs/explanation/storage-design.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import SnapshotId

# Eviction begins when more than the whole quota would be taken: what an operator gives may be used.
HIGH_MARK = 1.0
# Once it has begun, a tenth of the quota is freed, so that not every file that follows begins it
# anew; HTTP caches take 90 to 95 % for the same reason.
LOW_MARK = 0.9
# A partial that nobody came back to for a week is not a paused download any more.
PARTIAL_IDLE_S_MAX = 7 * 86_400.0


class Protection(StrEnum):
    """What keeps a snapshot, the strongest first."""

    PINNED = "pinned"
    LEASED = "leased"
    IN_USE = "in use"


class Kind(StrEnum):
    """What a step of a plan takes away."""

    SNAPSHOT = "snapshot"
    BLOB = "blob"
    PARTIAL = "partial"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """A snapshot: what it lists, when it was last used (logical time), what keeps it."""

    id: SnapshotId
    used_tick: int
    blobs: frozenset[BlobDigest]
    protection: Protection | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """
    One blob's whole file, or its partial one. `own_bytes`: what its removal gives back, 0 for a
    file that somebody else owns too. `is_in_use`: somebody fills or hashes the blob, which keeps
    both. `idle_s`: since the last write to a partial.
    """

    kind: Kind
    blob: BlobDigest
    own_bytes: int
    is_in_use: bool = False
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file of ours that a crash left, and why nobody needs it; `blobs`: whose file it was."""

    name: str
    own_bytes: int
    reason: str
    blobs: tuple[BlobDigest, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreView:
    """All that a plan may speak of. The order of snapshots decides between equal ticks."""

    snapshots: tuple[SnapshotView, ...]
    holdings: tuple[Holding, ...]
    leftovers: tuple[Leftover, ...] = ()


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """How much there is, and how much of it may be taken. `own_bytes`: what the store takes."""

    own_bytes: int
    free_bytes: int
    floor_bytes: int
    quota_bytes: int | None = None
    high_mark: float = HIGH_MARK
    low_mark: float = LOW_MARK


@dataclass(frozen=True, slots=True)
class Step:
    """
    One thing that leaves. `blobs`: whose files and partials go with it; for a snapshot, those
    that no snapshot that stays lists.
    """

    what: Kind
    name: str
    own_bytes: int
    reason: str
    blobs: tuple[BlobDigest, ...] = ()
    snapshot_id: SnapshotId | None = None


@dataclass(frozen=True, slots=True)
class EvictionPlan:
    """
    What leaves, in order. `bytes_short`: what is still missing when all that may go is gone.
    """

    steps: tuple[Step, ...]
    bytes_freed: int
    bytes_short: int


@dataclass(frozen=True, slots=True)
class RoomReport:
    """Own bytes by what keeps them; what nothing keeps is evictable. Each byte counts once."""

    evictable_bytes: int
    protected_bytes: dict[Protection, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Targets:
    required_bytes: int
    wanted_bytes: int


def plan_eviction(
    view: StoreView, limits: SpaceLimits, *, need_bytes: int = 0, is_sweep: bool = False
) -> EvictionPlan:
    """
    Choose what leaves so that need_bytes more fit.

    Nothing leaves while they fit. Once they do not, the store goes down to the low mark; but for
    the mark alone no snapshot goes that would take it below: headroom is not worth a model.

    Args:
        view: What is there. Not changed.
        limits: Quota, free-space floor, marks.
        need_bytes: What is about to be taken.
        is_sweep: Remove all that is unreachable, room or no room.
    """
    targets = _find_targets(limits, need_bytes)
    shelf = _Shelf(view)
    steps = [*_sweep_leftovers(view, is_sweep=is_sweep)]
    freed = 0
    for step in _list_unreachable(shelf):
        if is_sweep or (step.own_bytes and freed < targets.wanted_bytes):
            steps.append(step)
            shelf.remove(step.blobs, step.what)
            freed += step.own_bytes
    for step in _evict_snapshots(view, shelf, targets, freed):
        steps.append(step)
        freed += step.own_bytes
    total = sum(step.own_bytes for step in steps)
    return EvictionPlan(tuple(steps), total, max(0, targets.required_bytes - freed))


def plan_removal(view: StoreView, snapshot_id: SnapshotId) -> EvictionPlan:
    """Plan the removal of one snapshot because somebody said so, whatever protects it."""
    wanted = [replace(s, protection=None) for s in view.snapshots if s.id == snapshot_id]
    others = [s for s in view.snapshots if s.id != snapshot_id]
    shelf = _Shelf(replace(view, snapshots=(*others, *wanted)))
    steps = []
    for snapshot in wanted:
        shelf.drop(snapshot)
        steps.append(_make_step(snapshot, shelf, "removed on request"))
    return EvictionPlan(tuple(steps), sum(step.own_bytes for step in steps), 0)


def measure_room(view: StoreView) -> RoomReport:
    """Sum up who keeps how much. A blob that several keep counts for the strongest."""
    keepers = {h.blob: Protection.IN_USE for h in view.holdings if h.is_in_use}
    for protection in reversed(Protection):
        for snapshot in view.snapshots:
            if snapshot.protection is protection:
                keepers.update(dict.fromkeys(snapshot.blobs, protection))
    evictable, kept = 0, dict.fromkeys(Protection, 0)
    for holding in view.holdings:
        keeper = keepers.get(holding.blob)
        if keeper is None:
            evictable += holding.own_bytes
        else:
            kept[keeper] += holding.own_bytes
    return RoomReport(evictable, kept)


def _find_targets(limits: SpaceLimits, need_bytes: int) -> _Targets:
    """Return what must be freed, and what is freed once something must."""
    under_floor = limits.floor_bytes + need_bytes - limits.free_bytes
    required = wanted = 0
    if under_floor > 0:
        required = under_floor
        wanted = under_floor + int(limits.floor_bytes / limits.low_mark) - limits.floor_bytes
    if limits.quota_bytes is not None:
        taken = limits.own_bytes + need_bytes
        required = max(required, taken - limits.quota_bytes)
        if taken > limits.quota_bytes * limits.high_mark:
            wanted = max(wanted, taken - int(limits.quota_bytes * limits.low_mark))
    return _Targets(required, max(required, wanted))


class _Shelf:
    """What is left while a plan is made: holdings by blob, and how many snapshots list each."""

    def __init__(self, view: StoreView) -> None:
        self.holdings: dict[BlobDigest, list[Holding]] = {}
        for holding in view.holdings:
            self.holdings.setdefault(holding.blob, []).append(holding)
        self.kept: set[BlobDigest] = {h.blob for h in view.holdings if h.is_in_use}
        self.listed: Counter[BlobDigest] = Counter()
        for snapshot in view.snapshots:
            self.listed.update(snapshot.blobs)
            if snapshot.protection is not None:
                self.kept |= snapshot.blobs

    def drop(self, snapshot: SnapshotView) -> None:
        """Count a snapshot as gone."""
        self.listed.subtract(snapshot.blobs)

    def take_back(self, snapshot: SnapshotView) -> None:
        """Count a snapshot as staying after all."""
        self.listed.update(snapshot.blobs)

    def find_freed(self, snapshot: SnapshotView) -> dict[BlobDigest, int]:
        """Return the blobs that nothing keeps now that a snapshot is dropped, and their bytes."""
        return {
            blob: sum(holding.own_bytes for holding in self.holdings[blob])
            for blob in sorted(snapshot.blobs)
            if blob in self.holdings and blob not in self.kept and not self.listed[blob]
        }

    def has_evictable(self, snapshot: SnapshotView) -> bool:
        """Return whether bytes of a snapshot could ever be freed."""
        return any(
            holding.own_bytes
            for blob in snapshot.blobs - self.kept
            for holding in self.holdings.get(blob, ())
        )

    def remove(self, blobs: Iterable[BlobDigest], kind: Kind) -> None:
        """Count files of one kind as gone."""
        for blob in blobs:
            self.holdings[blob] = [h for h in self.holdings[blob] if h.kind is not kind]


def _sweep_leftovers(view: StoreView, *, is_sweep: bool) -> Iterator[Step]:
    for leftover in sorted(view.leftovers, key=lambda leftover: leftover.name):
        if is_sweep:
            yield Step(
                Kind.FILE, leftover.name, leftover.own_bytes, leftover.reason, leftover.blobs
            )


def _list_unreachable(shelf: _Shelf) -> list[Step]:
    """Return a step for each file that no snapshot lists and for each stale partial, big first."""
    steps = []
    for blob, holdings in shelf.holdings.items():
        if blob in shelf.kept:
            continue
        for holding in holdings:
            is_stale = holding.kind is Kind.PARTIAL and holding.idle_s >= PARTIAL_IDLE_S_MAX
            if not shelf.listed[blob]:
                reason = "no snapshot lists it"
            elif is_stale:
                reason = f"nothing was added for {int(holding.idle_s // 86_400)} days"
            else:
                continue
            steps.append(Step(holding.kind, str(blob), holding.own_bytes, reason, (blob,)))
    return sorted(steps, key=lambda step: (-step.own_bytes, step.name, step.what))


def _evict_snapshots(
    view: StoreView, shelf: _Shelf, targets: _Targets, freed: int
) -> Iterator[Step]:
    """
    Yield snapshots in the order of their last use until enough is freed.

    A snapshot whose blobs are all shared with a younger one frees nothing by itself, and is
    dropped with it, or not at all.
    """
    dropped: list[SnapshotView] = []
    gone: set[BlobDigest] = set()
    for snapshot in sorted(view.snapshots, key=lambda snapshot: snapshot.used_tick):
        if freed >= targets.wanted_bytes:
            break
        if snapshot.protection is not None or not shelf.has_evictable(snapshot):
            continue
        shelf.drop(snapshot)
        freeable = shelf.find_freed(snapshot)
        own_bytes = sum(freeable.values())
        if freed >= targets.required_bytes and own_bytes > targets.wanted_bytes - freed:
            shelf.take_back(snapshot)
            break
        dropped.append(snapshot)
        gone |= {blob for blob, size_bytes in freeable.items() if size_bytes}
        freed += own_bytes
    for snapshot in dropped:
        shelf.take_back(snapshot)
    for snapshot in dropped:
        if snapshot.blobs & gone:
            shelf.drop(snapshot)
            yield _make_step(snapshot, shelf, "unused for longest")


def _make_step(snapshot: SnapshotView, shelf: _Shelf, reason: str) -> Step:
    freed = shelf.find_freed(snapshot)
    return Step(
        Kind.SNAPSHOT, str(snapshot.id), sum(freed.values()), reason, tuple(freed), snapshot.id
    )
