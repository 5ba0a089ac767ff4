"""
Owns the tests of core.planner: properties over any view, and N planners that form a swarm.

Knows nothing of sockets or tasks.
Invariants: the ones that the planner's docstring names, checked on random views.
Source: core/planner.py; design.md §6.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.planner import (
    UPSTREAM,
    FetchView,
    PeerView,
    PlannerLimits,
    RunRequest,
    plan_requests,
)
from p2pcache.core.rendezvous import find_owner

BLOB = BlobDigest("sha256", "0" * 64)
SELF_ID = "f" * 32
NOW_S = 1000.0
LIMITS = PlannerLimits()
MOVING_S = NOW_S - 1.0
STALE_S = NOW_S - LIMITS.lease_s - 0.1


def make_id(number: int) -> str:
    """Name a peer."""
    return f"{number:032x}"


def make_peer(number: int, have: Bitfield, **changes: object) -> PeerView:
    """Make a peer that moves and fetches nothing."""
    peer = PeerView(make_id(number), have, Bitfield(have.length), last_progress_s=MOVING_S)
    return replace(peer, **changes)  # type: ignore[arg-type]


def make_view(chunk_count: int, *peers: PeerView, **changes: object) -> FetchView:
    """Make the view of a fetch that has nothing yet."""
    layout = Layout(chunk_count * CHUNK_SIZE_BYTES)
    empty = Bitfield(chunk_count)
    view = FetchView(BLOB, layout, SELF_ID, empty, empty.copy(), peers)
    return replace(view, **changes)  # type: ignore[arg-type]


def plan(view: FetchView, *, seed: int = 0, limits: PlannerLimits = LIMITS) -> list[RunRequest]:
    """Plan at the usual moment."""
    return plan_requests(view, now_s=NOW_S, limits=limits, random=Random(seed))


def chunks_of(requests: list[RunRequest]) -> list[int]:
    """List every chunk that is asked for, repeated if asked twice."""
    return [index for request in requests for index in request.chunk_indexes]


@st.composite
def views(draw: st.DrawFn) -> FetchView:
    """Any view of a blob of up to 40 chunks with up to five peers."""
    count = draw(st.integers(0, 40))
    fields = st.builds(Bitfield, st.just(count), st.integers(0, (1 << count) - 1))
    indexes_ = st.integers(0, max(0, count - 1))
    indexes = st.lists(indexes_, max_size=5) if count else st.just([])
    sources_ = st.sampled_from([UPSTREAM, *map(make_id, range(3))])
    peers = [
        PeerView(
            make_id(number),
            draw(fields | st.just(Bitfield.full(count))),
            draw(fields),
            draw(st.booleans()),
            draw(st.booleans()),
            draw(st.sampled_from([STALE_S, MOVING_S, NOW_S])),
            draw(st.integers(0, 3)),
            draw(st.sampled_from([0.0, 1e6, 1e9])),
        )
        for number in range(draw(st.integers(0, 5)))
    ]
    short = draw(st.integers(0, CHUNK_SIZE_BYTES - 1)) if count else 0
    return FetchView(
        BLOB,
        Layout(count * CHUNK_SIZE_BYTES - short),
        SELF_ID,
        draw(fields),
        draw(fields),
        peers,
        draw(st.integers(0, 5)),
        draw(st.booleans()),
        draw(indexes),
        draw(indexes),
        draw(st.dictionaries(indexes_, st.sets(sources_, min_size=1)) if count else st.just({})),
    )


limits_ = st.builds(
    PlannerLimits,
    run_bytes_max=st.sampled_from([1, CHUNK_SIZE_BYTES, 3 * CHUNK_SIZE_BYTES, 1 << 40]),
    peer_requests_inflight_max=st.integers(1, 3),
    upstream_requests_inflight_max=st.integers(1, 4),
)
seeds = st.integers(0, 1000)


@given(views(), limits_, seeds)
def test_plan_any_view_asks_for_each_missing_chunk_at_most_once(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """No chunk twice, none that is held, none that is in flight, but to rescue a reader."""
    requests = plan(view, seed=seed, limits=limits)
    asked = chunks_of(requests)
    assert len(set(asked)) == len(asked)
    assert not [i for i in asked if i in view.have]
    for request in requests:
        if any(index in view.inflight for index in request.chunk_indexes):
            assert request.first == request.last
            assert request.first in view.starving
            assert len(view.asked[request.first] | {request.source_id}) == 2


@given(views(), limits_, seeds)
def test_plan_any_view_asks_peers_only_for_what_they_have(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """A run lies within what its source said it holds; nobody unknown is asked."""
    have = {peer.peer_id: peer.have for peer in view.peers}
    for request in plan(view, seed=seed, limits=limits):
        if request.source_id != UPSTREAM:
            assert all(index in have[request.source_id] for index in request.chunk_indexes)


@given(views(), limits_, seeds)
def test_plan_any_view_keeps_the_slots_of_each_source(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """Requests in flight and new ones together stay within the limit of each source."""
    new = Counter(request.source_id for request in plan(view, seed=seed, limits=limits))
    for peer in view.peers:
        free = max(0, limits.peer_requests_inflight_max - peer.requests_inflight)
        assert new[peer.peer_id] <= free
    free = max(0, limits.upstream_requests_inflight_max - view.upstream_requests_inflight)
    assert new[UPSTREAM] <= (free if view.can_fetch_upstream else 0)


@given(views(), limits_, seeds)
def test_plan_any_view_keeps_the_size_of_a_run(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """A run of several chunks has at most run_bytes_max; a single chunk is always allowed."""
    for request in plan(view, seed=seed, limits=limits):
        assert 0 <= request.first <= request.last < view.layout.chunk_count
        if request.first != request.last:
            assert view.layout.span_of(request.first, request.last)[1] <= limits.run_bytes_max


@given(views(), limits_, seeds)
def test_plan_any_view_asks_upstream_only_for_owned_or_starving_chunks(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """What a peer has, or fetches, or owns, is not asked of the hub but for a waiting reader."""
    moving = [p for p in view.peers if NOW_S - p.last_progress_s <= limits.lease_s]
    members = [SELF_ID, *(p.peer_id for p in moving if p.is_fetching and p.can_fetch_upstream)]
    for request in plan(view, seed=seed, limits=limits):
        if request.source_id != UPSTREAM:
            continue
        for index in request.chunk_indexes:
            if index in view.starving:
                continue
            assert not any(index in peer.have for peer in view.peers)
            assert not any(index in peer.intent for peer in moving)
            assert find_owner(BLOB, index, members) == SELF_ID


@given(views(), limits_, seeds)
def test_plan_equal_inputs_give_equal_plans_and_change_nothing(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """The planner is a function of its arguments, and leaves them alone."""
    before = (view.have.copy(), view.inflight.copy(), [p.have.copy() for p in view.peers])
    first = plan(view, seed=seed, limits=limits)
    assert plan(view, seed=seed, limits=limits) == first
    assert (view.have, view.inflight, [p.have for p in view.peers]) == before


@given(views(), limits_, seeds)
def test_plan_any_view_leaves_no_free_slot_beside_a_chunk_it_could_carry(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """The planner is not lazy: a peer with a free slot has nothing that is still missing."""
    requests = plan(view, seed=seed, limits=limits)
    asked = Bitfield.of(view.layout.chunk_count, chunks_of(requests))
    left = Bitfield.full(view.layout.chunk_count) - view.have - view.inflight - asked
    new = Counter(request.source_id for request in requests)
    for peer in view.peers:
        used = peer.requests_inflight + new[peer.peer_id]
        if used < limits.peer_requests_inflight_max:
            assert not peer.have & left


def test_plan_nothing_missing_is_empty() -> None:
    """A complete blob, and an empty one, need no request."""
    assert plan(make_view(0)) == []
    assert plan(make_view(3, have=Bitfield.full(3))) == []
    assert plan(make_view(3, inflight=Bitfield.full(3))) == []


def test_plan_alone_asks_upstream_for_everything_in_runs() -> None:
    """Without peers all chunks go to the hub, in as many runs as there are slots."""
    requests = plan(make_view(16))
    assert [request.source_id for request in requests] == [UPSTREAM] * 4
    assert sorted(chunks_of(requests)) == list(range(16))


def test_plan_large_blob_alone_asks_in_runs_of_the_size_limit() -> None:
    """A run never grows beyond run_bytes_max, however much is missing."""
    requests = plan(make_view(1000))
    assert [len(request.chunk_indexes) for request in requests] == [8, 8, 8, 8]


def test_plan_complete_peer_is_asked_instead_of_upstream() -> None:
    """What a peer has is not asked of the hub, even when the peer's slots are taken."""
    busy = make_peer(1, Bitfield.full(8), requests_inflight=LIMITS.peer_requests_inflight_max)
    assert plan(make_view(8, busy)) == []
    free = make_peer(1, Bitfield.full(8))
    assert {request.source_id for request in plan(make_view(8, free))} == {make_id(1)}


def test_plan_complete_peers_go_before_partial_ones() -> None:
    """As long as a complete peer has a slot, a partial one is left to others."""
    partial = make_peer(1, Bitfield.of(8, range(7)), rate_bps=1e9)
    complete = make_peer(2, Bitfield.full(8))
    for seed in range(20):
        first = plan(make_view(8, partial, complete), seed=seed)[0]
        assert first.source_id == make_id(2)


def test_plan_rarest_chunk_is_asked_first() -> None:
    """A chunk that one partial peer holds comes before one that three hold."""
    common, rare = Bitfield.of(8, [0, 1, 2]), Bitfield.of(8, [0, 1, 2, 6])
    peers = [make_peer(1, common), make_peer(2, common), make_peer(3, rare)]
    for seed in range(20):
        view = make_view(8, *peers, can_fetch_upstream=False)
        assert 6 in plan(view, seed=seed)[0].chunk_indexes


def test_plan_rarest_chunk_of_a_large_blob_is_in_the_first_run() -> None:
    """However much else is missing, the run that a rare chunk led to contains it."""
    common = [make_peer(number, Bitfield.of(1000, range(999))) for number in (1, 2)]
    only_here = make_peer(3, Bitfield.of(1000, range(500, 1000)))
    view = make_view(1000, *common, only_here, can_fetch_upstream=False)
    for seed in range(20):
        first = plan(view, seed=seed)[0]
        assert 999 in first.chunk_indexes
        assert first.source_id == make_id(3)


def test_plan_readers_chunks_are_asked_before_rare_ones() -> None:
    """What a reader waits for comes first, then what it needs next; runs start right there."""
    peer = make_peer(1, Bitfield.full(20), requests_inflight=1)
    view = make_view(20, peer, starving=[9], next_for_readers=[9, 10])
    for seed in range(20):
        assert plan(view, seed=seed)[0].first == 9
    view = make_view(20, peer, next_for_readers=[15])
    assert plan(view)[0].first == 15


def test_plan_faster_idle_peer_is_asked_more_often() -> None:
    """The choice is weighted by idle rate, with a floor that still tries the slow one."""
    fast = make_peer(1, Bitfield.full(1), rate_bps=1e9)
    slow = make_peer(2, Bitfield.full(1), rate_bps=1e3)
    asked = Counter(plan(make_view(1, fast, slow), seed=seed)[0].source_id for seed in range(300))
    assert asked[make_id(1)] > 200
    assert asked[make_id(2)] > 5


def test_plan_starving_chunk_goes_upstream_whoever_owns_it() -> None:
    """A waiting reader gets its chunk from the hub although another member means to fetch it."""
    other = make_peer(
        1, Bitfield(8), intent=Bitfield.full(8), is_fetching=True, can_fetch_upstream=True
    )
    assert plan(make_view(8, other)) == []
    assert plan(make_view(8, other, starving=[3])) == [RunRequest(UPSTREAM, 3, 3)]


def test_plan_starving_chunk_waits_when_upstream_has_no_slot() -> None:
    """The budget of the hub holds for readers too."""
    view = make_view(8, starving=[3], upstream_requests_inflight=4)
    assert plan(view) == []
    one_slot = make_view(8, starving=[3, 5], upstream_requests_inflight=3)
    assert plan(one_slot) == [RunRequest(UPSTREAM, 3, 3)]
    assert plan(make_view(8, can_fetch_upstream=False, starving=[3])) == []


@pytest.mark.parametrize(
    ("asked", "rescuer"),
    [
        ({make_id(1)}, make_id(2)),
        ({make_id(2)}, make_id(1)),
        ({UPSTREAM}, make_id(1)),
        ({make_id(1), make_id(2)}, None),
        (set(), None),
    ],
)
def test_plan_starving_chunk_in_flight_is_asked_of_one_more_source(
    asked: set[str], rescuer: str | None
) -> None:
    """A slow source cannot hold a reader's chunk hostage; a third one is never asked."""
    peers = [make_peer(number, Bitfield.full(8)) for number in (1, 2)]
    everything = Bitfield.full(8)
    view = make_view(8, *peers, inflight=everything, starving=[3, 3], asked={3: asked})
    assert plan(view) == ([RunRequest(rescuer, 3, 3)] if rescuer else [])
    assert plan(replace(view, starving=[])) == []
    assert plan(replace(view, have=Bitfield.of(8, [3]))) == []


def test_plan_starving_chunk_in_flight_is_rescued_from_upstream_last() -> None:
    """With no other peer that has it, the hub is asked, if it may be."""
    peer = make_peer(1, Bitfield.full(8), requests_inflight=2)
    everything = Bitfield.full(8)
    view = make_view(8, peer, inflight=everything, starving=[3], asked={3: {make_id(1)}})
    assert plan(view) == [RunRequest(UPSTREAM, 3, 3)]
    assert plan(replace(view, can_fetch_upstream=False)) == []


def test_plan_readers_next_chunk_is_first_at_upstream() -> None:
    """Among the chunks that we own, those that a reader needs next go first."""
    view = make_view(100, next_for_readers=[40, 41])
    assert plan(view)[0].first == 40


def test_plan_readers_next_chunk_of_another_owner_is_left_to_it() -> None:
    """A reader that does not starve yet does not override ownership."""
    member = make_peer(1, Bitfield(64), is_fetching=True, can_fetch_upstream=True)
    members = [SELF_ID, make_id(1)]
    foreign = [i for i in range(64) if find_owner(BLOB, i, members) == make_id(1)]
    view = make_view(64, member, next_for_readers=foreign[-3:])
    assert not set(chunks_of(plan(view))) & set(foreign)


@pytest.mark.parametrize(("last_progress_s", "is_asked"), [(MOVING_S, False), (STALE_S, True)])
def test_plan_intent_counts_only_while_its_peer_moves(
    last_progress_s: float, is_asked: bool
) -> None:
    """A lease ends when its holder makes no progress; then the chunks are ours again."""
    stalled = make_peer(
        1,
        Bitfield(4),
        intent=Bitfield.full(4),
        is_fetching=True,
        can_fetch_upstream=True,
        last_progress_s=last_progress_s,
    )
    assert bool(plan(make_view(4, stalled))) is is_asked


def test_plan_member_that_cannot_reach_upstream_owns_nothing() -> None:
    """Who has no way to the hub is not waited for."""
    cut_off = make_peer(1, Bitfield(16), is_fetching=True, can_fetch_upstream=False)
    assert sorted(chunks_of(plan(make_view(16, cut_off)))) == list(range(16))


# --- a swarm of planners ---


class Swarm:
    """N members that plan in turns; intents are visible to all at once, transfers take a turn."""

    def __init__(self, member_count: int, chunk_count: int, seed: int) -> None:
        self.ids = [make_id(n + 1) for n in range(member_count)]
        self.layout = Layout(chunk_count * CHUNK_SIZE_BYTES)
        self.random = Random(seed)
        self.have = {member: Bitfield(chunk_count) for member in self.ids}
        self.running: dict[str, list[RunRequest]] = {member: [] for member in self.ids}
        self.asked_upstream: Counter[int] = Counter()
        self.now_s = 0.0

    def view(self, member: str) -> FetchView:
        """What one member knows of the others: everything."""
        inflight = Bitfield.of(self.layout.chunk_count, chunks_of(self.running[member]))
        mine = Counter(request.source_id for request in self.running[member])
        peers = [
            PeerView(
                other,
                self.have[other],
                Bitfield.of(
                    self.layout.chunk_count,
                    chunks_of([r for r in self.running[other] if r.source_id == UPSTREAM]),
                ),
                is_fetching=not self.have[other].is_full(),
                can_fetch_upstream=True,
                last_progress_s=self.now_s,
                requests_inflight=mine[other],
            )
            for other in self.ids
            if other != member
        ]
        return FetchView(
            BLOB,
            self.layout,
            member,
            self.have[member],
            inflight,
            peers,
            upstream_requests_inflight=mine[UPSTREAM],
        )

    def step(self) -> None:
        """Let every member plan, in random order, then let some requests finish."""
        self.now_s += 0.25
        for member in self.random.sample(self.ids, len(self.ids)):
            for request in plan_requests(
                self.view(member), now_s=self.now_s, limits=LIMITS, random=self.random
            ):
                self.running[member].append(request)
                if request.source_id == UPSTREAM:
                    self.asked_upstream.update(request.chunk_indexes)
        for member in self.ids:
            for request in list(self.running[member]):
                if self.random.random() < 0.6:
                    self.running[member].remove(request)
                    for index in request.chunk_indexes:
                        self.have[member].add(index)

    def is_done(self) -> bool:
        """Whether everybody has everything."""
        return all(have.is_full() for have in self.have.values())


@pytest.mark.parametrize(("member_count", "chunk_count"), [(1, 40), (2, 50), (5, 60), (12, 97)])
def test_swarm_cold_together_asks_upstream_for_each_chunk_exactly_once(
    member_count: int, chunk_count: int
) -> None:
    """However many start at once, one copy comes from the hub, and everybody ends complete."""
    for seed in range(3):
        swarm = Swarm(member_count, chunk_count, seed)
        for _ in range(500):
            if swarm.is_done():
                break
            swarm.step()
        assert swarm.is_done()
        assert swarm.asked_upstream == Counter(range(chunk_count))
