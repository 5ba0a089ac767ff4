"""
Owns the tests of core.eviction: examples of every rule, and properties over any store.

Knows nothing of files.
Invariants: the ones that the module's docstring names, checked on random views.
Source: core/eviction.py.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest
from p2pcache.core.eviction import (
    PARTIAL_IDLE_S_MAX,
    EvictionPlan,
    Holding,
    Kind,
    Leftover,
    Protection,
    SnapshotView,
    SpaceLimits,
    Step,
    StoreView,
    measure_room,
    plan_eviction,
    plan_removal,
)
from p2pcache.core.refs import RepoId, SnapshotId

# Limits under which nothing has to go.
ROOMY = SpaceLimits(own_bytes=0, free_bytes=1 << 40, floor_bytes=0)


def make_blob(number: int) -> BlobDigest:
    """Name a blob."""
    return BlobDigest("sha256", f"{number:064x}")


def make_id(number: int) -> SnapshotId:
    """Name a snapshot."""
    return SnapshotId(RepoId("hf", "models", "org/name"), f"{number:040x}")


def make_snapshot(
    number: int, blobs: str = "", *, tick: int = 0, protection: Protection | None = None
) -> SnapshotView:
    """Make a snapshot that lists blobs by their one-digit numbers."""
    listed = frozenset(make_blob(int(digit)) for digit in blobs)
    return SnapshotView(make_id(number), tick, listed, protection)


def make_holding(number: int, own_bytes: int, kind: Kind = Kind.BLOB, **more: object) -> Holding:
    """Make a whole or a partial file."""
    return replace(Holding(kind, make_blob(number), own_bytes), **more)  # type: ignore[arg-type]


def quota(quota_bytes: int, own_bytes: int) -> SpaceLimits:
    """Limit own bytes alone, without a mark below."""
    return replace(ROOMY, quota_bytes=quota_bytes, own_bytes=own_bytes, low_mark=1.0)


def names(plan: EvictionPlan) -> list[str]:
    """Return what leaves: commits and digests by their numbers."""
    return [
        f"{step.what}:{int(step.name.rpartition('@')[2].rpartition(':')[2], 16)}"
        for step in plan.steps
    ]


# --- examples ---


def test_plan_with_room_is_empty() -> None:
    """While what is needed fits, nothing leaves, wanted by somebody or not."""
    view = StoreView((make_snapshot(1, "1"),), (make_holding(1, 50), make_holding(9, 30)))
    limits = replace(ROOMY, own_bytes=80, quota_bytes=100, floor_bytes=10, free_bytes=30)
    assert plan_eviction(view, limits, need_bytes=20) == EvictionPlan((), 0, 0)


def test_plan_takes_the_longest_unused_snapshot_first() -> None:
    """The logical clock decides, not the order in which snapshots were added."""
    snapshots = (make_snapshot(1, "1", tick=7), make_snapshot(2, "2", tick=3))
    view = StoreView(snapshots, (make_holding(1, 50), make_holding(2, 50)))
    plan = plan_eviction(view, quota(100, 100), need_bytes=10)
    assert plan.steps == (
        Step(
            Kind.SNAPSHOT,
            str(make_id(2)),
            50,
            "unused for longest",
            (make_blob(2),),
            make_id(2),
        ),
    )
    assert (plan.bytes_freed, plan.bytes_short) == (50, 0)


def test_plan_takes_what_nobody_can_reach_before_any_snapshot() -> None:
    """Blobs and partials that no snapshot lists go first, the largest first."""
    view = StoreView(
        (make_snapshot(1, "1"),),
        (
            make_holding(1, 50),
            make_holding(2, 5),
            make_holding(3, 20, Kind.PARTIAL),
            make_holding(4, 10),
        ),
    )
    plan = plan_eviction(view, quota(85, 85), need_bytes=25)
    assert names(plan) == ["partial:3", "blob:4"]


def test_plan_takes_a_partial_of_a_known_snapshot_only_when_it_is_stale() -> None:
    """A download that was paused yesterday goes on; one of last month does not."""
    recent = make_holding(1, 50, Kind.PARTIAL, idle_s=PARTIAL_IDLE_S_MAX - 1)
    stale = make_holding(2, 50, Kind.PARTIAL, idle_s=PARTIAL_IDLE_S_MAX)
    view = StoreView((make_snapshot(1, "1"), make_snapshot(2, "2")), (recent, stale))
    swept = plan_eviction(view, ROOMY, is_sweep=True)
    assert names(swept) == ["partial:2"]
    assert "7 days" in swept.steps[0].reason
    pinned = (make_snapshot(1, "1"), make_snapshot(2, "2", protection=Protection.PINNED))
    assert plan_eviction(replace(view, snapshots=pinned), ROOMY, is_sweep=True).steps == ()


def test_plan_evicts_a_recent_partial_with_its_snapshot() -> None:
    """Whole snapshots leave: what was begun of them goes with the rest."""
    view = StoreView(
        (make_snapshot(1, "12"),), (make_holding(1, 50), make_holding(2, 30, Kind.PARTIAL))
    )
    plan = plan_eviction(view, quota(100, 80), need_bytes=30)
    assert (names(plan), plan.bytes_freed) == (["snapshot:1"], 80)
    assert plan.steps[0].blobs == (make_blob(1), make_blob(2))


def test_plan_leaves_a_blob_that_a_protected_or_younger_snapshot_lists() -> None:
    """Only what no snapshot that stays needs goes with an evicted one."""
    snapshots = (
        make_snapshot(1, "123", tick=1),
        make_snapshot(2, "2", tick=2),
        make_snapshot(3, "3", tick=0, protection=Protection.LEASED),
    )
    view = StoreView(snapshots, tuple(make_holding(n, 10) for n in (1, 2, 3)))
    plan = plan_eviction(view, quota(30, 30), need_bytes=5)
    assert [step.blobs for step in plan.steps] == [(make_blob(1),)]
    plan = plan_eviction(view, quota(30, 30), need_bytes=20)
    assert [step.blobs for step in plan.steps] == [(make_blob(1),), (make_blob(2),)]
    plan = plan_eviction(view, quota(30, 30), need_bytes=30)
    assert (plan.bytes_freed, plan.bytes_short) == (20, 10)


def test_plan_drops_an_older_twin_together_with_the_younger_one() -> None:
    """A snapshot that shares everything frees nothing alone; with its twin it does."""
    snapshots = (
        make_snapshot(1, "1", tick=1),
        make_snapshot(2, "2", tick=2),
        make_snapshot(3, "1", tick=3),
    )
    view = StoreView(snapshots, (make_holding(1, 40), make_holding(2, 10)))
    assert names(plan_eviction(view, quota(50, 50), need_bytes=10)) == ["snapshot:2"]
    plan = plan_eviction(view, quota(50, 50), need_bytes=50)
    assert names(plan) == ["snapshot:1", "snapshot:2", "snapshot:3"]
    assert [step.own_bytes for step in plan.steps] == [0, 10, 40]


def test_plan_frees_nothing_by_adopted_files() -> None:
    """A snapshot whose files belong to somebody else too stays: its going would help nobody."""
    view = StoreView(
        (make_snapshot(1, "1", tick=1), make_snapshot(2, "2", tick=2)),
        (make_holding(1, 0), make_holding(2, 10)),
    )
    plan = plan_eviction(view, quota(10, 10), need_bytes=11)
    assert (names(plan), plan.bytes_short) == (["snapshot:2"], 1)


def test_plan_never_touches_what_is_in_use() -> None:
    """A file that is being filled or hashed stays, even if no snapshot lists it."""
    view = StoreView(
        (make_snapshot(1, "1"),),
        (
            make_holding(1, 10, Kind.PARTIAL, is_in_use=True),
            make_holding(2, 10, is_in_use=True),
        ),
    )
    plan = plan_eviction(view, quota(20, 20), need_bytes=5, is_sweep=True)
    assert (plan.steps, plan.bytes_short) == ((), 5)


def test_plan_goes_down_to_the_low_mark_but_not_below_it_for_the_marks_sake() -> None:
    """Small snapshots go until the mark; a large one is not worth the headroom."""
    limits = replace(ROOMY, own_bytes=100, quota_bytes=100, low_mark=0.9)
    small = StoreView(
        tuple(make_snapshot(n, str(n), tick=n) for n in range(1, 9)),
        tuple(make_holding(n, 4) for n in range(1, 9)),
    )
    assert names(plan_eviction(small, limits, need_bytes=2)) == [f"snapshot:{n}" for n in (1, 2, 3)]
    large = StoreView(
        (make_snapshot(1, "1", tick=1), make_snapshot(2, "2", tick=2)),
        (make_holding(1, 4), make_holding(2, 50)),
    )
    assert names(plan_eviction(large, limits, need_bytes=2)) == ["snapshot:1"]


def test_plan_keeps_the_free_space_floor() -> None:
    """Bytes below the floor count as missing, whatever the quota leaves."""
    view = StoreView((make_snapshot(1, "1"),), (make_holding(1, 50),))
    limits = SpaceLimits(own_bytes=50, free_bytes=100, floor_bytes=90)
    assert plan_eviction(view, limits, need_bytes=10).steps == ()
    assert names(plan_eviction(view, limits, need_bytes=11)) == ["snapshot:1"]
    assert plan_eviction(view, limits, need_bytes=61).bytes_short == 1


def test_plan_above_a_lower_high_mark_makes_headroom_without_being_short() -> None:
    """Between mark and quota eviction is wanted, not required."""
    view = StoreView((make_snapshot(1, "1"),), (make_holding(1, 10),))
    limits = replace(ROOMY, own_bytes=96, quota_bytes=100, high_mark=0.95, low_mark=0.8)
    plan = plan_eviction(view, limits)
    assert (names(plan), plan.bytes_short) == (["snapshot:1"], 0)


def test_sweep_takes_all_that_is_unreachable_and_no_snapshot() -> None:
    """Without need, gc tidies: leftovers by name, blobs and partials that nobody lists."""
    view = StoreView(
        (make_snapshot(1, "1"),),
        (make_holding(1, 10), make_holding(2, 10), make_holding(3, 0)),
        (Leftover("hub/b", 5, "left by a crash"), Leftover("hub/a", 6, "left by a crash")),
    )
    plan = plan_eviction(view, ROOMY, is_sweep=True)
    assert [(step.what, step.own_bytes) for step in plan.steps] == [
        (Kind.FILE, 6), (Kind.FILE, 5), (Kind.BLOB, 10), (Kind.BLOB, 0),
    ]  # fmt: skip
    assert plan.bytes_freed == 21
    assert plan_eviction(view, ROOMY).steps == ()


def test_leftovers_do_not_count_for_room() -> None:
    """Their bytes are not the quota's, so a plan never relies on them."""
    view = StoreView((), (), (Leftover("hub/a", 100, "left by a crash"),))
    plan = plan_eviction(view, quota(10, 10), need_bytes=5, is_sweep=True)
    assert (plan.bytes_freed, plan.bytes_short) == (100, 5)


def test_removal_takes_a_snapshot_whatever_protects_it_and_leaves_what_others_list() -> None:
    """Who may be removed is decided before; what goes with it here."""
    snapshots = (
        make_snapshot(1, "123", protection=Protection.PINNED),
        make_snapshot(2, "2"),
        make_snapshot(3, "3", protection=Protection.PINNED),
    )
    holdings = (*(make_holding(n, 10) for n in (1, 2, 3)), make_holding(4, 10))
    plan = plan_removal(StoreView(snapshots, holdings), make_id(1))
    assert [(step.blobs, step.own_bytes) for step in plan.steps] == [((make_blob(1),), 10)]
    assert plan_removal(StoreView(snapshots, holdings), make_id(9)).steps == ()


def test_room_report_counts_each_byte_once_for_its_strongest_keeper() -> None:
    """Pins before leases before jobs; the rest is evictable."""
    snapshots = (
        make_snapshot(1, "12", protection=Protection.IN_USE),
        make_snapshot(2, "23", protection=Protection.PINNED),
        make_snapshot(3, "34", protection=Protection.LEASED),
        make_snapshot(4, "5"),
    )
    holdings = (
        *(make_holding(n, 10**n) for n in range(1, 7)),
        make_holding(7, 10**7, is_in_use=True),
    )
    report = measure_room(StoreView(snapshots, holdings))
    assert report.evictable_bytes == 10**5 + 10**6
    both = StoreView((), (make_holding(1, 5, is_in_use=True), make_holding(1, 7, Kind.PARTIAL)))
    assert measure_room(both).protected_bytes[Protection.IN_USE] == 12
    assert report.protected_bytes == {
        Protection.PINNED: 10**2 + 10**3,
        Protection.LEASED: 10**4,
        Protection.IN_USE: 10 + 10**7,
    }


# --- properties ---


@st.composite
def views(draw: st.DrawFn) -> StoreView:
    """Any store of up to eight snapshots over ten blobs, whole, partial, adopted or in use."""
    numbers = st.integers(0, 9)
    snapshots = tuple(
        SnapshotView(
            make_id(number),
            draw(st.integers(0, 4)),
            frozenset(map(make_blob, draw(st.sets(numbers, max_size=5)))),
            draw(st.sampled_from([None, None, None, *Protection])),
        )
        for number in range(draw(st.integers(0, 8)))
    )
    kinds = draw(st.sets(st.tuples(numbers, st.sampled_from([Kind.BLOB, Kind.PARTIAL]))))
    holdings = tuple(
        Holding(
            kind,
            make_blob(number),
            draw(st.integers(0, 40)),
            is_in_use=draw(st.integers(0, 7)) == 0,
            idle_s=draw(st.sampled_from([0.0, PARTIAL_IDLE_S_MAX])),
        )
        for number, kind in sorted(kinds)
    )
    return StoreView(snapshots, holdings)


limits_of_any_store = st.builds(
    SpaceLimits,
    own_bytes=st.integers(0, 400),
    free_bytes=st.integers(0, 400),
    floor_bytes=st.integers(0, 100),
    quota_bytes=st.none() | st.integers(0, 400),
    high_mark=st.sampled_from([1.0, 0.95]),
    low_mark=st.sampled_from([1.0, 0.9, 0.5]),
)
needs = st.integers(0, 200)


def find_required(limits: SpaceLimits, need_bytes: int) -> int:
    """Return what must be freed, from the definition of quota and floor."""
    over = 0 if limits.quota_bytes is None else limits.own_bytes + need_bytes - limits.quota_bytes
    return max(0, over, limits.floor_bytes + need_bytes - limits.free_bytes)


def find_removed(plan: EvictionPlan, view: StoreView) -> list[Holding]:
    """Return what is gone after a plan, from its steps alone."""
    removed = []
    for step in plan.steps:
        kinds = (Kind.BLOB, Kind.PARTIAL) if step.what is Kind.SNAPSHOT else (step.what,)
        found = [h for h in view.holdings if h.blob in step.blobs and h.kind in kinds]
        removed += [h for h in found if h not in removed]
    return removed


@given(views(), limits_of_any_store, needs, st.booleans())
def test_plan_never_takes_what_is_protected(
    view: StoreView, limits: SpaceLimits, need_bytes: int, is_sweep: bool
) -> None:
    """No step names a protected snapshot, a blob of one, or a file in use; none goes twice."""
    plan = plan_eviction(view, limits, need_bytes=need_bytes, is_sweep=is_sweep)
    protected = {s.id for s in view.snapshots if s.protection is not None}
    evicted = {step.snapshot_id for step in plan.steps if step.snapshot_id is not None}
    assert not evicted & protected
    staying = [s for s in view.snapshots if s.id not in evicted]
    for holding in find_removed(plan, view):
        assert not holding.is_in_use
        listers = [s for s in staying if holding.blob in s.blobs]
        # A stale partial is the only thing that leaves a snapshot that stays.
        is_stale = holding.kind is Kind.PARTIAL and holding.idle_s >= PARTIAL_IDLE_S_MAX
        assert not listers or (is_stale and all(s.protection is None for s in listers))
    assert sum(h.own_bytes for h in find_removed(plan, view)) == plan.bytes_freed


@given(views(), limits_of_any_store, needs, st.booleans())
def test_plan_frees_enough_or_says_exactly_how_much_is_missing(
    view: StoreView, limits: SpaceLimits, need_bytes: int, is_sweep: bool
) -> None:
    """Short means that all that nothing keeps is in the plan, and still not enough."""
    plan = plan_eviction(view, limits, need_bytes=need_bytes, is_sweep=is_sweep)
    required = find_required(limits, need_bytes)
    assert plan.bytes_short == max(0, required - plan.bytes_freed)
    if plan.bytes_short:
        assert plan.bytes_freed == measure_room(view).evictable_bytes


@given(views(), limits_of_any_store, needs)
def test_plan_stops_when_it_has_enough(
    view: StoreView, limits: SpaceLimits, need_bytes: int
) -> None:
    """Without its last step a plan would not do: every plan is as short as its order allows."""
    plan = plan_eviction(view, limits, need_bytes=need_bytes)
    required = find_required(limits, need_bytes)
    targets = [required]
    if limits.quota_bytes is not None:
        taken = limits.own_bytes + need_bytes
        if taken > limits.high_mark * limits.quota_bytes:
            targets.append(taken - int(limits.low_mark * limits.quota_bytes))
    under = limits.floor_bytes + need_bytes - limits.free_bytes
    if under > 0:
        targets.append(under + int(limits.floor_bytes / limits.low_mark) - limits.floor_bytes)
    if plan.steps:
        last = plan.steps[-1]
        assert last.own_bytes > 0
        assert plan.bytes_freed - last.own_bytes < max(targets)
        if last.what is Kind.SNAPSHOT and plan.bytes_freed - last.own_bytes >= required:
            assert plan.bytes_freed <= max(targets)
    if max(targets) <= 0:
        assert plan.steps == ()


@given(views(), limits_of_any_store, needs, st.booleans())
def test_plan_keeps_its_order(
    view: StoreView, limits: SpaceLimits, need_bytes: int, is_sweep: bool
) -> None:
    """Unreachable files, then snapshots by their last use; no older one that helps is passed."""
    plan = plan_eviction(view, limits, need_bytes=need_bytes, is_sweep=is_sweep)
    kinds = [step.what is Kind.SNAPSHOT for step in plan.steps]
    assert kinds == sorted(kinds)
    ticks = {snapshot.id: snapshot.used_tick for snapshot in view.snapshots}
    evicted = [step.snapshot_id for step in plan.steps if step.snapshot_id is not None]
    assert [ticks[i] for i in evicted] == sorted(ticks[i] for i in evicted)
    if not evicted:
        return
    kept = {b for s in view.snapshots if s.protection is not None for b in s.blobs}
    kept |= {h.blob for h in view.holdings if h.is_in_use}
    removed = find_removed(plan, view)
    for snapshot in view.snapshots:
        if snapshot.id in evicted or snapshot.protection is not None:
            continue
        younger = ticks[snapshot.id] < ticks[evicted[-1]]
        alone = [
            holding
            for holding in view.holdings
            if holding.blob in snapshot.blobs - kept
            and holding.own_bytes
            and holding not in removed
            and not any(
                holding.blob in other.blobs and other.id not in (snapshot.id, *evicted)
                for other in view.snapshots
            )
        ]
        assert not (younger and alone)


@given(views(), limits_of_any_store, needs, st.booleans())
def test_equal_views_give_equal_plans(
    view: StoreView, limits: SpaceLimits, need_bytes: int, is_sweep: bool
) -> None:
    """The order in which files were found on the disk changes nothing."""
    plan = plan_eviction(view, limits, need_bytes=need_bytes, is_sweep=is_sweep)
    other = replace(view, holdings=view.holdings[::-1])
    assert plan == plan_eviction(other, limits, need_bytes=need_bytes, is_sweep=is_sweep)
    assert measure_room(view) == measure_room(other)


@given(views(), st.integers(0, 8))
def test_removal_frees_what_no_other_snapshot_lists(view: StoreView, number: int) -> None:
    """Of one snapshot, all that is its own and not in use."""
    plan = plan_removal(view, make_id(number))
    others = {b for s in view.snapshots if s.id != make_id(number) for b in s.blobs}
    busy = {h.blob for h in view.holdings if h.is_in_use}
    wanted = {b for s in view.snapshots if s.id == make_id(number) for b in s.blobs}
    freed = [h for h in view.holdings if h.blob in wanted - others - busy]
    assert plan.bytes_freed == sum(h.own_bytes for h in freed)
