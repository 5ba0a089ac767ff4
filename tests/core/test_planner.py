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
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.needs import FirstCopyNeeds
from p2pcache.core.ownership import OWNERS_MAX, Ownership
from p2pcache.core.planner import plan_requests
from p2pcache.core.rendezvous import find_highest, find_owner, rank_owners
from p2pcache.core.turns import CHUNKS_FOR_A_RUN_MORE, RUNS_AT_FIRST
from p2pcache.core.views import (
    UPSTREAM,
    FetchView,
    PeerView,
    PlannerLimits,
    RunRequest,
    find_lone_seeder,
)

BLOB = BlobDigest("sha256", "0" * 64)
SELF_ID = "f" * 32
LIMITS = PlannerLimits()
FIRST_3 = [RunRequest(UPSTREAM, 3, 3, is_first_copy=True)]
FIRST_5 = [RunRequest(UPSTREAM, 5, 5, is_first_copy=True)]


def make_id(number: int) -> str:
    """Name a peer."""
    return f"{number:032x}"


def make_peer(number: int, have: Bitfield, **changes: object) -> PeerView:
    """Make a peer that fetches nothing."""
    peer = PeerView(make_id(number), have, Bitfield(have.length))
    return replace(peer, **changes)  # type: ignore[arg-type]


def make_view(chunk_count: int, *peers: PeerView, **changes: object) -> FetchView:
    """Make the view of a fetch that has nothing yet."""
    layout = Layout(chunk_count * CHUNK_SIZE_BYTES)
    empty = Bitfield(chunk_count)
    view = FetchView(BLOB, layout, SELF_ID, empty, empty.copy(), peers)
    return replace(view, **changes)  # type: ignore[arg-type]


def plan(view: FetchView, *, seed: int = 0, limits: PlannerLimits = LIMITS) -> list[RunRequest]:
    """Plan with the usual limits."""
    return plan_requests(view, limits=limits, random=Random(seed))


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
    peer_ids = st.sampled_from(list(map(make_id, range(5))))
    sources_ = st.sampled_from([UPSTREAM, *map(make_id, range(3))])
    peers = [
        PeerView(
            make_id(number),
            draw(fields | st.just(Bitfield.full(count))),
            draw(fields),
            is_fetching=draw(st.booleans()),
            can_fetch_upstream=draw(st.booleans()),
            requests_inflight=draw(st.integers(0, 3)),
            rate_bps=draw(st.sampled_from([0.0, 1e6, 1e9])),
        )
        for number in range(draw(st.integers(0, 5)))
    ]
    short = draw(st.integers(0, CHUNK_SIZE_BYTES - 1)) if count else 0
    stalled = draw(st.sets(peer_ids | st.just(SELF_ID)))
    return FetchView(
        BLOB,
        Layout(count * CHUNK_SIZE_BYTES - short),
        SELF_ID,
        draw(fields),
        draw(fields),
        peers,
        draw(st.integers(0, 5)),
        draw(st.booleans()),
        starving=draw(indexes),
        overdue=draw(indexes),
        next_for_readers=draw(indexes),
        asked=draw(by_chunk(indexes_, sources_) if count else st.just({})),
        stalled=stalled,
        slow=draw(st.sets(st.sampled_from(sorted(stalled)))) if stalled else set(),
        lapsed=draw(by_chunk(indexes_, peer_ids) if count else st.just({})),
        is_fenced=draw(st.booleans()),
    )


def by_chunk(
    indexes: st.SearchStrategy[int], ids: st.SearchStrategy[str]
) -> st.SearchStrategy[dict[int, set[str]]]:
    """Any map from chunks to some ids."""
    return st.dictionaries(indexes, st.sets(ids, min_size=1))


limits_ = st.builds(
    PlannerLimits,
    run_bytes_max=st.sampled_from([1, CHUNK_SIZE_BYTES, 3 * CHUNK_SIZE_BYTES, 1 << 40]),
    run_bytes_min=st.sampled_from([1, 2 * CHUNK_SIZE_BYTES]),
    peer_requests_inflight_max=st.integers(1, 3),
    swarm_upstream_requests_max=st.integers(1, 8),
    upstream_requests_inflight_max=st.integers(1, 4),
)
seeds = st.integers(0, 1000)


def is_slow(peer: PeerView, view: FetchView, limits: PlannerLimits) -> bool:
    """Whether a peer is of the slow class."""
    best_bps = max(other.rate_bps for other in view.peers)
    return 0 < peer.rate_bps < best_bps * limits.slow_share


@given(views(), limits_, seeds)
def test_plan_any_view_asks_for_each_missing_chunk_at_most_once(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """No chunk twice, none that is held, none in flight, but one that cannot wait."""
    requests = plan(view, seed=seed, limits=limits)
    asked = chunks_of(requests)
    assert len(set(asked)) == len(asked)
    assert not [i for i in asked if i in view.have]
    for request in requests:
        if any(index in view.inflight for index in request.chunk_indexes):
            assert request.first == request.last
            assert request.is_second_source
            assert request.first in {*view.starving, *view.overdue}
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
        most = 1 if is_slow(peer, view, limits) else limits.peer_requests_inflight_max
        assert new[peer.peer_id] <= max(0, most - peer.requests_inflight)
    most = limits.upstream_requests_inflight_max + limits.upstream_reader_requests_max
    free = max(0, most - view.upstream_requests_inflight)
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
def test_plan_any_view_asks_for_first_copies_only_what_is_ours(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """
    What a peer has, or a member that moves fetches or owns, is not asked of the hub or of a lone
    seeder, but for a waiting reader.
    """
    lone = find_lone_seeder(view.peers)
    members = [p for p in view.peers if p.is_fetching and p.peer_id not in view.stalled]
    able = [p.peer_id for p in members if lone is not None or p.can_fetch_upstream]
    if SELF_ID not in view.stalled or not able:
        able.append(SELF_ID)
    for request in plan(view, seed=seed, limits=limits):
        assert request.is_first_copy or request.source_id != UPSTREAM or request.is_second_source
        if not request.is_first_copy:
            continue
        assert request.source_id == (UPSTREAM if lone is None else lone.peer_id)
        for index in request.chunk_indexes:
            assert not any(index in peer.have for peer in view.peers if peer is not lone)
            if index in view.starving:
                continue
            failed = view.lapsed.get(index, set())
            assert not view.is_fenced
            assert not any(index in p.intent for p in members if p.peer_id not in failed)
            left = [m for m in able if m not in failed]
            # When all who count have failed with a chunk, it is anybody's.
            others = [p.peer_id for p in view.peers if p.is_fetching and p.peer_id not in failed]
            assert find_owner(BLOB, index, left or [*others, SELF_ID]) == SELF_ID


@given(views(), limits_, seeds)
def test_plan_any_view_keeps_the_hubs_connections_for_few(
    view: FetchView, limits: PlannerLimits, seed: int
) -> None:
    """Without readers, each member of a large swarm keeps to its share of the connections."""
    view = replace(view, starving=[])
    members = sum(1 for p in view.peers if p.is_fetching and p.peer_id not in view.stalled)
    share = -(-limits.swarm_upstream_requests_max // (1 + members))
    new = [r for r in plan(view, seed=seed, limits=limits) if r.source_id == UPSTREAM]
    assert len(new) <= max(0, share - view.upstream_requests_inflight)


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
    """
    The planner is not lazy: a peer with a free slot has nothing that is still missing.

    But for the lone seeder, whose line is kept for first copies, and for slow peers.
    """
    lone = find_lone_seeder(view.peers)
    requests = plan(view, seed=seed, limits=limits)
    asked = Bitfield.of(view.layout.chunk_count, chunks_of(requests))
    left = Bitfield.full(view.layout.chunk_count) - view.have - view.inflight - asked
    new = Counter(request.source_id for request in requests)
    for peer in view.peers:
        used = peer.requests_inflight + new[peer.peer_id]
        # Among many that give, one run each is enough.
        is_many = sum(1 for p in view.peers if p.have) >= limits.many_peers
        is_kept = peer is lone or is_many or is_slow(peer, view, limits)
        if used < limits.peer_requests_inflight_max and not is_kept:
            assert not peer.have & left


def test_plan_nothing_missing_is_empty() -> None:
    """A complete blob, and an empty one, need no request."""
    assert plan(make_view(0)) == []
    assert plan(make_view(3, have=Bitfield.full(3))) == []
    assert plan(make_view(3, inflight=Bitfield.full(3))) == []


def test_plan_alone_asks_upstream_for_everything_in_runs() -> None:
    """Without peers all chunks go to the hub, in as many runs as there are slots."""
    requests = plan(make_view(32, have=Bitfield.of(32, range(16))))
    assert [request.source_id for request in requests] == [UPSTREAM] * 8
    assert all(request.is_first_copy for request in requests)
    assert sorted(chunks_of(requests)) == list(range(16, 32))


@pytest.mark.parametrize(("held", "length"), [(0, 1), (8, 1), (16, 2), (63, 7), (64, 8), (500, 8)])
def test_plan_large_blob_alone_asks_in_runs_that_grow(held: int, length: int) -> None:
    """To an eighth of what is here, so that who joins can bring its share; never to more than 8."""
    have = Bitfield.of(1000, range(held))
    requests = plan(make_view(1000, have=have))
    assert [len(request.chunk_indexes) for request in requests] == [length] * 8


@pytest.mark.parametrize(("member_count", "run_count"), [(1, 4), (3, 2), (7, 1)])
def test_plan_of_a_large_swarm_takes_few_connections_to_the_hub(
    member_count: int, run_count: int
) -> None:
    """Some eight connections of the whole swarm fill the hub's line; each member takes a share."""
    members = [
        make_peer(n, Bitfield(800), is_fetching=True, can_fetch_upstream=True)
        for n in range(member_count)
    ]
    requests = plan(make_view(800, *members))
    assert [request.source_id for request in requests] == [UPSTREAM] * run_count


@pytest.mark.parametrize(
    ("rate_bps", "chunk_count"), [(0.0, 1), (1e6, 1), (2.2 * 8 * CHUNK_SIZE_BYTES, 8), (1e12, 8)]
)
def test_plan_run_of_a_peer_is_as_long_as_it_is_fast(rate_bps: float, chunk_count: int) -> None:
    """A peer of unknown speed holds one chunk, a fast one as many as it gives in half a second."""
    peer = make_peer(1, Bitfield.full(100), rate_bps=rate_bps)
    assert {len(request.chunk_indexes) for request in plan(make_view(100, peer))} == {chunk_count}


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
    count = LIMITS.candidates_max
    common = [make_peer(n, Bitfield.of(count, range(count - 1))) for n in (1, 2)]
    only_here = make_peer(3, Bitfield.of(count, range(count // 2, count)))
    view = make_view(count, *common, only_here, can_fetch_upstream=False)
    for seed in range(20):
        first = plan(view, seed=seed)[0]
        assert count - 1 in first.chunk_indexes
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
    slow = make_peer(2, Bitfield.full(1), rate_bps=3e7)
    asked = Counter(plan(make_view(1, fast, slow), seed=seed)[0].source_id for seed in range(300))
    assert asked[make_id(1)] > 200
    assert asked[make_id(2)] > 5


def test_plan_starving_chunk_goes_upstream_whoever_owns_it() -> None:
    """A waiting reader gets its chunk from the hub although another member means to fetch it."""
    other = make_peer(
        1, Bitfield(8), intent=Bitfield.full(8), is_fetching=True, can_fetch_upstream=True
    )
    assert plan(make_view(8, other)) == []
    assert plan(make_view(8, other, starving=[3], is_fenced=True)) == FIRST_3
    assert plan(make_view(8, other, starving=[3])) == FIRST_3


def test_plan_starving_chunk_waits_when_upstream_has_no_slot() -> None:
    """Readers have a few requests beyond the others' limit, and no more."""
    most = LIMITS.upstream_requests_inflight_max + LIMITS.upstream_reader_requests_max
    view = make_view(8, starving=[3], upstream_requests_inflight=most)
    assert plan(view) == []
    one_slot = make_view(8, starving=[3, 5], upstream_requests_inflight=most - 1)
    assert plan(one_slot) == FIRST_3
    assert plan(make_view(8, can_fetch_upstream=False, starving=[3])) == []


def test_plan_starving_chunk_goes_beyond_the_swarms_share_of_connections() -> None:
    """The share is for the bulk; a reader may use what one daemon alone might."""
    other = make_peer(
        1, Bitfield(8), intent=Bitfield.full(8), is_fetching=True, can_fetch_upstream=True
    )
    assert plan(make_view(8, other, starving=[3], upstream_requests_inflight=5)) == FIRST_3


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
    rescue = [RunRequest(rescuer, 3, 3, is_second_source=True)] if rescuer else []
    assert plan(view) == rescue
    assert plan(replace(view, starving=[])) == []
    assert plan(replace(view, have=Bitfield.of(8, [3]))) == []


def test_plan_starving_chunk_in_flight_is_rescued_from_upstream_last() -> None:
    """With no other peer that has it, the hub is asked, if it may be."""
    peer = make_peer(1, Bitfield.full(8), requests_inflight=2)
    everything = Bitfield.full(8)
    view = make_view(8, peer, inflight=everything, starving=[3], asked={3: {make_id(1)}})
    assert plan(view) == [RunRequest(UPSTREAM, 3, 3, is_second_source=True)]
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


def test_plan_overdue_chunk_is_asked_of_one_more_peer_and_never_of_the_hub() -> None:
    """A chunk that takes too long gets a second source, if another peer has it."""
    slow, other = make_peer(1, Bitfield.full(8)), make_peer(2, Bitfield.full(8))
    everything = Bitfield.full(8)
    view = make_view(8, slow, other, inflight=everything, overdue=[3], asked={3: {make_id(1)}})
    assert plan(view) == [RunRequest(make_id(2), 3, 3, is_second_source=True)]
    assert plan(replace(view, peers=[slow])) == []
    assert plan(replace(view, asked={3: {make_id(1), UPSTREAM}})) == []


def test_plan_overdue_chunk_is_not_asked_of_a_slow_peer_nor_of_the_lone_seeder() -> None:
    """The one would not be sooner, the other has better to do."""
    everything = Bitfield.full(8)
    asked = {3: {make_id(1)}}
    holder = make_peer(1, Bitfield.of(8, [3]), rate_bps=1e9, is_fetching=True)
    seeder = make_peer(2, everything)
    view = make_view(8, holder, seeder, inflight=everything, overdue=[3], asked=asked)
    assert find_lone_seeder(view.peers) is seeder
    assert plan(view) == []
    slow = make_peer(2, Bitfield.of(8, [3]), rate_bps=1e6)
    assert plan(replace(view, peers=[holder, slow])) == []
    quick = make_peer(2, Bitfield.of(8, [3]), rate_bps=1e8)
    assert len(plan(replace(view, peers=[holder, quick]))) == 1


def test_plan_slow_peer_is_asked_only_for_what_no_quick_one_has() -> None:
    """Not even when the quick one has no slot: it will, before the slow one has delivered."""
    quick = make_peer(1, Bitfield.of(8, range(6)), rate_bps=1e9, requests_inflight=2)
    slow = make_peer(2, Bitfield.full(8), rate_bps=1e6)
    requests = plan(make_view(8, quick, slow, can_fetch_upstream=False))
    assert len(requests) == 1
    assert requests[0].source_id == make_id(2)
    assert 6 in requests[0].chunk_indexes or 7 in requests[0].chunk_indexes


@pytest.mark.parametrize("is_stalled", [False, True])
def test_plan_intent_counts_only_while_its_peer_moves(is_stalled: bool) -> None:
    """A lease ends when its holder makes no progress; then the chunks are ours again."""
    other = make_peer(
        1,
        Bitfield(4),
        intent=Bitfield.full(4),
        is_fetching=True,
        can_fetch_upstream=True,
    )
    view = make_view(4, other, stalled={make_id(1)} if is_stalled else set())
    assert bool(plan(view)) is is_stalled


def test_plan_what_a_slow_member_announced_is_brought_last() -> None:
    """It will mostly be here by then; asked for earlier, it would come twice for nothing."""
    slow = make_peer(1, Bitfield(4), intent=Bitfield.of(4, [1]), is_fetching=True)
    slow = replace(slow, can_fetch_upstream=True)
    limits = replace(LIMITS, swarm_upstream_requests_max=1)
    view = make_view(4, slow, stalled={make_id(1)}, slow={make_id(1)})
    asked = []
    while requests := plan(view, limits=limits):
        asked += chunks_of(requests)
        view = replace(view, have=Bitfield.of(4, asked))
    assert asked == [0, 2, 3, 1]
    # It is waited for no longer once it stands, or when it has let the chunk lapse.
    start = replace(view, have=Bitfield(4))
    for late in (replace(start, slow=set()), replace(start, lapsed={1: {make_id(1)}})):
        assert 1 in chunks_of(plan(late))


def test_plan_what_slow_members_announced_is_rescued_by_one() -> None:
    """Members that have nothing left to bring do not all bring the same."""
    slow = make_peer(9, Bitfield(8), intent=Bitfield.of(8, [5]), is_fetching=True)
    everything_else = Bitfield.of(8, [i for i in range(8) if i != 5])
    ids = [make_id(n) for n in range(4)]
    bringers = []
    for self_id in ids:
        others = [
            make_peer(n, everything_else, is_fetching=True, can_fetch_upstream=True)
            for n in range(4)
            if make_id(n) != self_id
        ]
        view = make_view(8, slow, *others, have=everything_else, stalled={make_id(9)})
        view = replace(view, self_id=self_id, slow={make_id(9)})
        if chunks_of(plan(view)) == [5]:
            bringers.append(self_id)
    assert bringers == [find_owner(BLOB, 5, ids)]


def test_plan_lapsed_claim_goes_to_the_next_in_rank() -> None:
    """A chunk whose claimant brought others meanwhile, and not this one, is the next one's."""
    claims = Bitfield.of(16, range(4))
    other = make_peer(1, Bitfield(16), intent=claims, is_fetching=True, can_fetch_upstream=True)
    mine = [i for i in range(4, 16) if find_owner(BLOB, i, [SELF_ID, make_id(1)]) == SELF_ID]
    view = make_view(16, other)
    assert sorted(chunks_of(plan(view))) == mine[: len(chunks_of(plan(view)))]
    lapsed = make_view(16, other, lapsed={2: {make_id(1)}})
    assert 2 in chunks_of(plan(lapsed))


def test_plan_of_one_that_stalls_itself_leaves_its_chunks_to_others() -> None:
    """Who makes no progress owes nothing and helps nobody, unless nobody else is there."""
    other = make_peer(1, Bitfield(16), is_fetching=True, can_fetch_upstream=True)
    assert plan(make_view(16, other, stalled={SELF_ID})) == []
    assert plan(make_view(16, other, stalled={SELF_ID}, may_steal=True)) == []
    slow = make_peer(2, Bitfield(16), intent=Bitfield.of(16, [0]), is_fetching=True)
    slow_too = {"stalled": {SELF_ID, make_id(2)}, "slow": {make_id(2)}}
    assert plan(make_view(16, other, slow, **slow_too)) == []
    assert sorted(chunks_of(plan(make_view(8, stalled={SELF_ID})))) == list(range(8))


def test_plan_behind_the_fence_asks_peers_and_brings_nothing() -> None:
    """After a freeze others may have taken over what we owe; what they have is asked for."""
    other = make_peer(1, Bitfield.of(16, [0]), is_fetching=True, can_fetch_upstream=True)
    assert chunks_of(plan(make_view(16, other, is_fenced=True))) == [0]


def test_find_lone_seeder_is_the_one_complete_peer_while_others_fetch() -> None:
    """Two complete peers are no bottleneck; one that only we ask may give what it likes."""
    full, none = Bitfield.full(4), Bitfield(4)
    seeder, fetching = make_peer(1, full), make_peer(2, none, is_fetching=True)
    assert find_lone_seeder([seeder, fetching]) is seeder
    assert find_lone_seeder([seeder, make_peer(3, full), fetching]) is None
    assert find_lone_seeder([seeder]) is None
    assert find_lone_seeder([seeder, make_peer(2, none)]) is None
    assert find_lone_seeder([fetching]) is None


def test_plan_lone_seeder_is_asked_for_owned_chunks_only() -> None:
    """Its line is to the swarm what the hub's is: no byte of it is sent twice."""
    seeder = make_peer(1, Bitfield.full(64))
    member = make_peer(2, Bitfield(64), is_fetching=True, can_fetch_upstream=False)
    requests = plan(make_view(64, seeder, member))
    assert {request.source_id for request in requests} == {make_id(1)}
    assert all(request.is_first_copy for request in requests)
    members = [SELF_ID, make_id(2)]
    assert all(find_owner(BLOB, i, members) == SELF_ID for i in chunks_of(requests))


def test_plan_lone_seeder_gives_further_copies_once_all_is_spread() -> None:
    """When every chunk is somewhere else too, its line is as good as any."""
    seeder = make_peer(1, Bitfield.full(64))
    everything = Bitfield.full(64)
    member = make_peer(2, Bitfield.of(64, range(1, 64)), is_fetching=True, requests_inflight=2)
    spread = make_view(64, seeder, member, have=Bitfield.of(64, [0]))
    assert {r.source_id for r in plan(spread)} == {make_id(1)}
    assert not any(r.is_first_copy for r in plan(spread))
    unspread = replace(
        spread, have=Bitfield.of(64, [1]), inflight=everything - Bitfield.of(64, [5])
    )
    assert plan(unspread) == []


def test_plan_of_a_huge_blob_looks_at_few_chunks_and_still_serves_the_reader() -> None:
    """Beyond candidates_max a sample is looked at; what a reader needs is always in it."""
    peer = make_peer(1, Bitfield.of(3000, range(2999)))
    for seed in range(5):
        assert plan(make_view(3000, peer, next_for_readers=[2990]), seed=seed)[0].first == 2990


def test_plan_member_that_cannot_reach_upstream_owns_nothing() -> None:
    """Who has no way to the hub is not waited for."""
    cut_off = make_peer(1, Bitfield(16), is_fetching=True, can_fetch_upstream=False)
    limits = replace(LIMITS, swarm_upstream_requests_max=32, upstream_requests_inflight_max=16)
    assert sorted(chunks_of(plan(make_view(16, cut_off), limits=limits))) == list(range(16))


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
        for member in self.random.sample(self.ids, len(self.ids)):
            for request in plan_requests(self.view(member), limits=LIMITS, random=self.random):
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


def find_list(owner: str, members: list[str], chunk_count: int) -> list[int]:
    """Return the chunks that one of the members owns."""
    return [i for i in range(chunk_count) if find_owner(BLOB, i, members) == owner]


def test_plan_idle_member_takes_over_what_a_busy_owner_has_not_begun() -> None:
    """From the end of its list, one chunk, and only once owners had time to say what they begin."""
    other = make_id(1)
    count = 32
    theirs = find_list(other, [SELF_ID, other], count)
    mine = Bitfield.of(count, [i for i in range(count) if i not in theirs])
    announced = Bitfield.of(count, theirs[:1])
    peer = make_peer(
        1, Bitfield(count), intent=announced, is_fetching=True, can_fetch_upstream=True
    )
    view = make_view(count, peer, have=mine)
    assert plan(view) == []
    (request,) = plan(replace(view, may_steal=True))
    assert request.is_stolen
    assert list(request.chunk_indexes) == theirs[-1:]
    assert plan(replace(view, may_steal=True, is_fenced=True)) == []
    assert plan(replace(view, may_steal=True, stalled={SELF_ID})) == []


@pytest.mark.parametrize(("left_count", "is_taken"), [(1, False), (4, False), (5, True)])
def test_plan_what_an_owner_may_begin_at_once_is_left_to_it(
    left_count: int, is_taken: bool
) -> None:
    """Of two members each has four connections: so much it begins before anybody could say so."""
    other = make_id(1)
    count = 32
    left = find_list(other, [SELF_ID, other], count)[-left_count:]
    mine = Bitfield.of(count, [i for i in range(count) if i not in left])
    peer = make_peer(1, Bitfield(count), is_fetching=True, can_fetch_upstream=True)
    requests = plan(make_view(count, peer, have=mine, may_steal=True))
    assert chunks_of(requests) == (left[-1:] if is_taken else [])


def make_seeded(theirs: str, *, others: int, left: list[int], **changes: object) -> FetchView:
    """One seeder, and members of which one owes what is left of 32 chunks; all else is here."""
    count = 32
    have = Bitfield.of(count, [i for i in range(count) if i not in left])
    members = [make_peer(n, have, is_fetching=True) for n in range(1, others + 1)]
    assert theirs in {p.peer_id for p in members}
    seeder = make_peer(50, Bitfield.full(count))
    view = make_view(count, seeder, *members, have=have, can_fetch_upstream=False, may_steal=True)
    return replace(view, **changes)  # type: ignore[arg-type]


def test_plan_idle_member_leaves_no_place_on_a_lone_seeders_line_empty() -> None:
    """
    It takes what others have not begun even where somebody else is next in rank.

    Not from the hub, and not in a crowd: there too many would take the same.
    """
    owner = make_id(1)
    ids = [SELF_ID, *(make_id(n) for n in range(1, 7))]
    left = [
        i
        for i in find_list(owner, ids, 32)
        if find_owner(BLOB, i, [m for m in ids if m != owner]) != SELF_ID
    ]
    assert len(left) > 1, "the first of them is left to its owner"
    (request,) = plan(make_seeded(owner, others=6, left=left))
    assert request.is_stolen
    assert request.source_id == make_id(50)
    assert set(request.chunk_indexes) <= set(left[1:])
    seeded = make_seeded(owner, others=6, left=left)
    assert plan(replace(seeded, may_steal=False)) == []
    members = [replace(p, can_fetch_upstream=True) for p in seeded.peers[1:]]
    assert plan(replace(seeded, peers=members, can_fetch_upstream=True)) == []
    ids = [SELF_ID, *(make_id(n) for n in range(1, 13))]
    ranks = {i: rank_owners(BLOB, i, find_highest(BLOB, ids, OWNERS_MAX)) for i in range(32)}
    others = [i for i in range(32) if SELF_ID not in ranks[i][:2]]
    assert plan(make_seeded(owner, others=12, left=others)), "they could be taken"
    assert plan(make_seeded(owner, others=12, left=others, is_crowded=True)) == []


@pytest.mark.parametrize(("others", "runs"), [(1, 2), (2, 2), (3, 1), (6, 1)])
def test_plan_lone_seeder_is_asked_by_each_of_several_for_one_run(others: int, runs: int) -> None:
    """More would share its line: first copies would come later, and be passed on later."""
    members = [make_peer(n, Bitfield(64), is_fetching=True) for n in range(1, others + 1)]
    seeder = replace(make_peer(50, Bitfield.full(64)), rate_bps=8e6)
    requests = plan(make_view(64, seeder, *members, can_fetch_upstream=False))
    assert [r.source_id for r in requests] == [make_id(50)] * runs
    assert all(r.is_first_copy for r in requests)


OTHER_BLOB = BlobDigest("sha256", "1" * 64)
EARLIER_BLOB = BlobDigest("gitsha1", "0" * 40)


@pytest.mark.parametrize(("owes", "is_taken"), [(False, True), (True, False)])
def test_plan_thief_takes_nothing_while_another_blob_of_its_own_owes(
    owes: bool, is_taken: bool
) -> None:
    """Who has chunks of its own to ask the lone seeder for has no place on its line to spare."""
    needs = FirstCopyNeeds()
    needs.note(OTHER_BLOB, make_id(50), size_bytes=0, owes=owes)
    left = find_list(make_id(1), [SELF_ID, *(make_id(n) for n in range(1, 7))], 32)
    seeded = make_seeded(make_id(1), others=6, left=left)
    assert plan(seeded), "it could be taken"
    assert bool(plan(replace(seeded, needs=needs))) is is_taken
    needs.forget(OTHER_BLOB)
    needs.note(OTHER_BLOB, make_id(49), size_bytes=0, owes=owes)
    assert plan(replace(seeded, needs=needs)), "that is another seeder's line"


def test_plan_lone_seeder_gives_no_further_copies_while_another_blob_needs_it() -> None:
    """A further copy would make the other blob's first copies wait, and with them the swarm."""
    needs = FirstCopyNeeds()
    seeder = make_peer(50, Bitfield.full(8))
    member = make_peer(1, Bitfield.of(8, range(8)) - Bitfield.of(8, [0]), is_fetching=True)
    spread = make_view(8, seeder, member, have=Bitfield.of(8, [0]), needs=needs)
    assert make_id(50) in {r.source_id for r in plan(spread)}
    needs.note(OTHER_BLOB, make_id(50), size_bytes=0, owes=False)
    assert {r.source_id for r in plan(spread)} == {make_id(1)}


def test_plan_says_what_it_needs_of_a_lone_seeder_until_all_is_spread() -> None:
    """While chunks of ours wait for a place it says so; what is on its way is still needed."""
    needs = FirstCopyNeeds()
    seeder = make_peer(50, Bitfield.full(32))
    members = [make_peer(n, Bitfield(32), is_fetching=True) for n in range(1, 4)]
    ids = [SELF_ID, *(p.peer_id for p in members)]
    ours = [i for i in range(32) if find_owner(BLOB, i, ids) == SELF_ID]
    assert len(ours) > 1
    view = make_view(32, seeder, *members, can_fetch_upstream=False, needs=needs)
    assert chunks_of(plan(view)) == ours[:1]
    assert needs.owes_elsewhere(OTHER_BLOB, make_id(50))
    assert not needs.owes_elsewhere(BLOB, make_id(50)), "of itself nobody hears"
    busy = replace(seeder, requests_inflight=1)
    waiting = replace(view, peers=(busy, *members), inflight=Bitfield.of(32, ours[:1]))
    assert plan(waiting) == []
    assert needs.owes_elsewhere(OTHER_BLOB, make_id(50)), "the rest still waits"
    assert plan(replace(waiting, inflight=Bitfield.full(32))) == []
    assert not needs.owes_elsewhere(OTHER_BLOB, make_id(50))
    assert needs.is_needed_elsewhere(OTHER_BLOB, make_id(50)), "nobody has it yet"
    plan(replace(waiting, have=Bitfield.full(32), inflight=Bitfield(32)))
    assert not needs.is_needed_elsewhere(OTHER_BLOB, make_id(50))


def make_two_blobs(*, owes: bool) -> tuple[FirstCopyNeeds, FetchView]:
    """Make what two blobs need of a lone seeder: another one, and BLOB, whose name comes later."""
    needs = FirstCopyNeeds()
    needs.note(EARLIER_BLOB, make_id(50), size_bytes=0, owes=owes)
    members = [make_peer(n, Bitfield(32), is_fetching=True) for n in range(1, 4)]
    seeder = make_peer(50, Bitfield.full(32))
    return needs, make_view(32, seeder, *members, can_fetch_upstream=False, needs=needs)


def test_plan_leaves_the_lone_seeder_to_the_blob_that_comes_first() -> None:
    """Files come one after the other, so that each is proven while the next one comes."""
    needs, view = make_two_blobs(owes=True)
    assert plan(view) == []
    assert needs.find_first_owing(make_id(50)) == EARLIER_BLOB, "both wait for the place"
    needs.note(EARLIER_BLOB, make_id(50), size_bytes=0, owes=False)
    assert needs.find_first_owing(make_id(50)) == BLOB, "it said so while it waited"
    (request,) = plan(view)
    assert request.source_id == make_id(50)
    needs.note(EARLIER_BLOB, make_id(49), size_bytes=0, owes=True)
    assert plan(view), "that is another seeder's line"


def test_plan_asks_the_lone_seeder_for_a_readers_chunk_whatever_comes_first() -> None:
    """Somebody waits for it."""
    _, view = make_two_blobs(owes=True)
    ids = [SELF_ID, *(p.peer_id for p in view.peers if p.is_fetching)]
    ours = [i for i in range(32) if find_owner(BLOB, i, ids) == SELF_ID]
    assert chunks_of(plan(replace(view, next_for_readers=ours[1:2]))) == ours[1:2]


def test_plan_gives_a_starving_reader_a_second_place_at_the_lone_seeder() -> None:
    """Runs of another file hold the one place all the time; more than two would share the line."""
    _, view = make_two_blobs(owes=True)
    *members, seeder = sorted(view.peers, key=lambda p: p.have.is_full())
    for requests_inflight, chunks in [(0, [5]), (1, [5]), (2, [])]:
        busy = replace(seeder, requests_inflight=requests_inflight)
        seen = replace(view, peers=(busy, *members), starving=[5])
        assert chunks_of(plan(seen)) == chunks


def test_plan_blob_of_a_larger_swarm_gets_its_turn_at_a_lone_seeder() -> None:
    """It has fewer places there than another blob, and is first in line all the same."""
    needs, alone = make_two_blobs(owes=False)
    seeder = make_peer(50, Bitfield.full(32), requests_inflight=1)
    members = [p for p in alone.peers if p.is_fetching]
    assert plan(replace(alone, blob=EARLIER_BLOB, peers=(seeder, *members))) == []
    first = needs.find_first_owing(make_id(50), requests_inflight=1)
    assert first == EARLIER_BLOB, "four members have one place each, and it is taken"
    few = replace(alone, peers=(seeder, members[0]))
    assert plan(few) == [], "two have two places each, and the second one is not theirs to take"
    needs.forget(EARLIER_BLOB)
    assert plan(few)


def test_plan_of_a_huge_blob_looks_once_at_what_others_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our own chunks are here, and places at the hub are taken: nothing is to be found any more."""
    count, asked = 5000, Counter[int]()
    ids = [SELF_ID, make_id(1)]
    mine = [i for i in range(count) if find_owner(BLOB, i, ids) == SELF_ID]
    other = make_peer(1, Bitfield(count), is_fetching=True, can_fetch_upstream=True)
    ownership = Ownership(BLOB)
    owner_of = ownership.owner_of

    def count_asked(index: int) -> str | None:
        asked[index] += 1
        return owner_of(index)

    monkeypatch.setattr(ownership, "owner_of", count_asked)
    view = make_view(count, other, have=Bitfield.of(count, mine), ownership=ownership)
    for _ in range(3):
        assert plan(view) == []
    assert set(asked.values()) == {1}
    assert len(asked) == count - len(mine)
    assert plan(replace(view, begun={next(iter(asked))})), "but for what is begun here"
    third = make_peer(2, Bitfield(count), is_fetching=True, can_fetch_upstream=True)
    plan(replace(view, peers=(other, third)))
    assert min(asked.values()) == 2, "others may own it by now"


def test_plan_blobs_take_turns_at_the_hub() -> None:
    """Else the first one would keep every place, and the last one come when all others are here."""
    needs = FirstCopyNeeds()
    needs.note(OTHER_BLOB, UPSTREAM, size_bytes=0, owes=True, requests_max=8)
    view = make_view(32, needs=needs, upstream_requests_inflight=7)
    assert plan(view) == [], "the other one is smaller, and neither was asked for"
    needs.note_asked(OTHER_BLOB, UPSTREAM)
    assert len(plan(view)) == 1
    assert plan(view) == [], "that was its turn"
    assert plan(replace(view, next_for_readers=[5])) == FIRST_5, "a reader waits for no turn"
    needs.note(OTHER_BLOB, UPSTREAM, size_bytes=0, owes=False)
    assert len(plan(view)) == 1


@pytest.mark.parametrize("changes", [{"is_fenced": True}, {"can_fetch_upstream": False}])
def test_plan_that_may_not_ask_the_hub_makes_no_other_blob_wait(changes: dict[str, Any]) -> None:
    """Its turn comes when it may."""
    needs = FirstCopyNeeds()
    view = make_view(32, needs=needs, upstream_requests_inflight=8)
    assert plan(view) == []
    assert needs.find_first_owing(UPSTREAM, requests_inflight=7) == BLOB, "it waits for a place"
    assert plan(replace(view, **changes)) == []
    assert needs.find_first_owing(UPSTREAM, requests_inflight=7) is None


def test_plan_thief_leaves_less_to_an_owner_of_several_blobs() -> None:
    """It has one list for each, and begins only one chunk of all of them at once."""
    other, count, needs = make_id(1), 32, FirstCopyNeeds()
    left = find_list(other, [SELF_ID, other], count)[-2:]
    mine = Bitfield.of(count, [i for i in range(count) if i not in left])
    peer = make_peer(1, Bitfield(count), is_fetching=True, can_fetch_upstream=True)
    view = make_view(count, peer, have=mine, may_steal=True, needs=needs)
    assert plan(view) == []
    for blob in (OTHER_BLOB, EARLIER_BLOB):
        needs.note(blob, UPSTREAM, size_bytes=0, owes=False)
    assert chunks_of(plan(view)) == left[-1:]


def test_plan_that_is_fenced_makes_no_other_blob_wait() -> None:
    """Who may not ask for what it owes would keep the seeder's line empty."""
    needs, view = make_two_blobs(owes=False)
    plan(view)
    assert needs.find_first_owing(make_id(50)) == BLOB
    plan(replace(view, is_fenced=True))
    assert needs.find_first_owing(make_id(50)) is None


# --- a crowd with a lone seeder ---


def make_lone_crowd(**changes: object) -> FetchView:
    """Twelve that fetch, each of which has one chunk of twenty, and a seeder that has all."""
    members = [make_peer(n, Bitfield.of(20, [n]), is_fetching=True) for n in range(12)]
    view = make_view(20, make_peer(50, Bitfield.full(20)), *members, can_fetch_upstream=False)
    view = replace(view, is_crowded=True)
    return replace(view, **changes)  # type: ignore[arg-type]


def test_plan_in_a_lone_seeders_crowd_keeps_few_runs_under_way() -> None:
    """Many at once would share the line, and all come late; what a reader needs comes anyway."""
    most = RUNS_AT_FIRST
    for inflight in range(most + 2):
        requests = plan(make_lone_crowd(further_runs_inflight=inflight))
        further = [r for r in requests if not r.is_first_copy]
        assert len(further) == max(0, most - inflight)
    among_few = make_lone_crowd(further_runs_inflight=most, is_crowded=False)
    assert any(not r.is_first_copy for r in plan(among_few)), "nobody is turned away there"
    some = make_lone_crowd(have=Bitfield.of(20, range(12, 12 + CHUNKS_FOR_A_RUN_MORE)))
    assert sum(not r.is_first_copy for r in plan(some)) == most + 1, "more to trade, more at once"
    waiting = make_lone_crowd(further_runs_inflight=most, next_for_readers=(3,))
    assert [r.first for r in plan(waiting) if not r.is_first_copy] == [3]


def test_plan_in_a_lone_seeders_crowd_asks_the_others_before_it() -> None:
    """When all is spread, its line is no better than anybody's."""
    members = [make_peer(n, Bitfield.full(20), is_fetching=True) for n in range(12)]
    members = [replace(p, have=p.have - Bitfield.of(20, [0])) for p in members[:11]]
    have = Bitfield.of(20, [0])
    view = make_view(20, make_peer(50, Bitfield.full(20)), *members, have=have, is_crowded=True)
    assert all(r.source_id != make_id(50) for r in plan(view))
