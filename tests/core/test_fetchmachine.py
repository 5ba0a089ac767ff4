"""
Owns the tests of core.fetchmachine: any events leave it consistent; and one test for each rule.

Knows nothing of tasks, sockets or clocks.
Invariants: the ones that the machine's docstring names, after every event.
Source: core/fetchmachine.py; design.md §6.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.fence import FENCE_S_MAX
from p2pcache.core.fetchevents import (
    Accuse,
    Action,
    Ask,
    Cancel,
    ChunksForgotten,
    ChunkStored,
    Look,
    RunEnded,
)
from p2pcache.core.fetchmachine import (
    OVERDUE_REST_S,
    REFUSALS_IN_A_ROW_MAX,
    FetchMachine,
)
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.pace import (
    ENDGAME_OVERDUE_FACTOR,
    EXTRA_SHARE_MAX,
    OVERDUE_S_MIN,
    OVERDUE_SAMPLES_MIN,
    OVERDUE_UNMEASURED_S,
    ExtraBytes,
    Pace,
)
from p2pcache.core.patience import FIRST_WAIT_S
from p2pcache.core.readers import READER_PATIENCE_S
from p2pcache.core.rendezvous import find_owner
from p2pcache.core.tenure import LEASE_S, PROGRESS_BYTES_MIN
from p2pcache.core.transitions import (
    BROKEN_REST_S,
    BUSY_IN_A_CROWD_MAX,
    BUSY_IN_A_ROW_MAX,
    BUSY_REST_JITTER,
    BUSY_REST_S,
    BUSY_REST_S_MAX,
    BUSY_SOON_MAX,
    CRAWLER_REST_S,
    REFUSED_REST_S,
    ChunkState,
    Outcome,
)
from p2pcache.core.views import UPSTREAM, PeerView, PlannerLimits, RunRequest
from p2pcache.errors import UpstreamRateLimitedError, UpstreamUnreachableError

BLOB = BlobDigest("sha256", "5d" * 32)
SELF_ID = "f" * 32
A, B = "a" * 32, "b" * 32
HERE = "here"
# All that is missing comes in one request.
ONE_LONG_RUN = {"upstream_requests_inflight_max": 1, "swarm_run_bytes_max": 4 * CHUNK_SIZE_BYTES}
# One source outcome for each kind of source.
PEER_OUTCOMES = [
    outcome for outcome in Outcome if outcome not in (Outcome.RATE_LIMITED, Outcome.UPSTREAM_FAILED)
]
UPSTREAM_OUTCOMES = [
    Outcome.DELIVERED,
    Outcome.CANCELLED,
    Outcome.RATE_LIMITED,
    Outcome.UPSTREAM_FAILED,
]


def make_machine(chunks: int = 8, **limits: int) -> FetchMachine:
    """Make the machine of a blob of so many chunks, of which nothing is here."""
    pace = Pace()
    pace.extra.wanted = chunks * CHUNK_SIZE_BYTES
    return FetchMachine(
        BLOB,
        Layout(chunks * CHUNK_SIZE_BYTES),
        SELF_ID,
        limits=PlannerLimits(**limits),
        pace=pace,
        random=Random(1),
    )


def see(peer_id: str, have: Bitfield, **changes: object) -> PeerView:
    """Return what a peer says."""
    view = PeerView(peer_id, have, Bitfield(have.length), heard_s=1e9)
    return replace(view, **changes)  # type: ignore[arg-type]


def look(
    machine: FetchMachine, *peers: PeerView, now_s: float = 100.0, **changes: object
) -> list[Action]:
    """Let a machine look, by default without a hub."""
    event = replace(Look(peers, can_fetch_upstream=False), **changes)  # type: ignore[arg-type]
    return machine.handle(event, now_s=now_s)


def asks_of(actions: list[Action]) -> list[RunRequest]:
    """Return the requests among the actions."""
    return [action.request for action in actions if isinstance(action, Ask)]


def cancels_of(actions: list[Action]) -> list[int]:
    """Return the runs that are to end."""
    return [action.run_id for action in actions if isinstance(action, Cancel)]


def store(machine: FetchMachine, index: int, run_id: int | None, now_s: float) -> None:
    """Let a chunk come."""
    assert machine.handle(ChunkStored(index, run_id), now_s=now_s) == []


def end(
    machine: FetchMachine, run_id: int, outcome: Outcome, *, now_s: float = 100.0, **more: object
) -> list[Action]:
    """Let a run end."""
    event = replace(RunEnded(run_id, outcome), **more)  # type: ignore[arg-type]
    return machine.handle(event, now_s=now_s)


class AnyEvents(RuleBasedStateMachine):
    """A machine, and what anybody who drives it would know."""

    chunks = 12

    def __init__(self) -> None:
        super().__init__()
        self.machine = make_machine(self.chunks, run_bytes_max=3 * CHUNK_SIZE_BYTES)
        self.now_s = 100.0
        self.have: set[int] = set()
        self.runs: dict[int, RunRequest] = {}
        self.received: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.here: set[int] = set()

    bits = st.integers(0, (1 << chunks) - 1)
    peers_ = st.lists(
        st.builds(
            PeerView,
            st.sampled_from([A, B, "c" * 32]),
            bits.map(lambda bits: Bitfield(12, bits)) | st.just(Bitfield.full(12)),
            bits.map(lambda bits: Bitfield(12, bits)) | st.just(Bitfield(12)),
            is_fetching=st.booleans(),
            can_fetch_upstream=st.booleans(),
            received_bytes=st.integers(0, 1 << 30),
            moved_bytes=st.integers(0, 1 << 30),
            heard_s=st.floats(0.0, 200.0),
            requests_inflight=st.integers(0, 2),
            rate_bps=st.sampled_from([0.0, 1e5, 1e8]),
        ),
        max_size=3,
        unique_by=lambda peer: peer.peer_id,
    )

    @rule(peers=peers_, can_fetch=st.booleans(), inflight=st.integers(0, 8))
    def look_around(self, peers: list[PeerView], can_fetch: bool, inflight: int) -> None:
        """Look, and do what the machine says."""
        event = Look(peers, inflight, can_fetch, dict(self.received))
        for action in self.machine.handle(event, now_s=self.now_s):
            if isinstance(action, Ask):
                request = action.request
                assert action.run_id not in self.runs
                assert not self.have.intersection(request.chunk_indexes)
                assert request.source_id == UPSTREAM or any(
                    all(i in peer.have for i in request.chunk_indexes)
                    for peer in peers
                    if peer.peer_id == request.source_id
                )
                self.runs[action.run_id] = request
                self.received[action.run_id] = 0
            else:
                assert isinstance(action, Cancel)
                assert action.run_id in self.runs
                assert action.run_id not in self.cancelled
                self.cancelled.add(action.run_id)

    @precondition(lambda self: self.runs)
    @rule(choice=st.randoms(use_true_random=False), length=st.integers(0, 2 * CHUNK_SIZE_BYTES))
    def receive(self, choice: Random, length: int) -> None:
        """Bytes come; a chunk of some run may be whole."""
        run_id = choice.choice(sorted(self.runs))
        self.received[run_id] += length
        index = choice.choice(self.runs[run_id].chunk_indexes)
        if choice.random() < 0.8:
            self.machine.handle(ChunkStored(index, run_id), now_s=self.now_s)
            self.have.add(index)

    @precondition(lambda self: self.runs)
    @rule(choice=st.randoms(use_true_random=False))
    def end_some_run(self, choice: Random) -> None:
        """A run ends in one of the ways in which one of its source can."""
        run_id = choice.choice(sorted(self.cancelled & set(self.runs)) or sorted(self.runs))
        request = self.runs.pop(run_id)
        is_upstream = request.source_id == UPSTREAM
        outcome = choice.choice(UPSTREAM_OUTCOMES if is_upstream else PEER_OUTCOMES)
        error = UpstreamUnreachableError("x") if outcome is Outcome.UPSTREAM_FAILED else None
        wrong = request.first if outcome is Outcome.WRONG_BYTES else None
        event = RunEnded(run_id, outcome, self.received.pop(run_id), wrong, error)
        accused = [action.peer_id for action in self.machine.handle(event, now_s=self.now_s)
                   if isinstance(action, Accuse)]  # fmt: skip
        assert set(accused) <= {request.source_id} - {UPSTREAM}

    @rule(indexes=st.sets(st.integers(0, chunks - 1), max_size=4))
    def forget(self, indexes: set[int]) -> None:
        """The proof puts chunks in doubt."""
        self.machine.handle(ChunksForgotten(tuple(indexes)), now_s=self.now_s)
        self.have -= indexes

    @rule(index=st.integers(0, chunks - 1))
    def look_here(self, index: int) -> None:
        """Another file of this machine may have a chunk."""
        if self.machine.state_of(index) in (ChunkState.MISSING, ChunkState.ASKED):
            self.machine.note_asked(index, HERE)
            self.machine.note_asked(index, HERE)
            self.here.add(index)

    @rule(index=st.integers(0, chunks - 1), is_there=st.booleans())
    def look_no_more(self, index: int, is_there: bool) -> None:
        """It had it, or not."""
        if index in self.here and is_there:
            self.machine.handle(ChunkStored(index), now_s=self.now_s)
            self.have.add(index)
        self.machine.note_answered(index, HERE)
        self.here.discard(index)

    @rule(reader=st.integers(0, 2), index=st.integers(0, chunks - 1))
    def read(self, reader: int, index: int) -> None:
        """A reader waits for a chunk."""
        self.machine.readers.note(reader, index, now_s=self.now_s)

    @rule(duration_s=st.sampled_from([0.01, 0.5, 3.0, 8.0, 70.0]))
    def wait(self, duration_s: float) -> None:
        """Time passes."""
        self.now_s += duration_s

    @invariant()
    def counts_what_is(self) -> None:
        """Held is what came; in flight is what was asked and has not ended; two sources at most."""
        machine = self.machine
        asked: dict[int, set[str]] = {}
        for request in self.runs.values():
            for index in request.chunk_indexes:
                assert request.source_id not in asked.setdefault(index, set())
                asked[index].add(request.source_id)
        for index in self.here:
            asked.setdefault(index, set()).add(HERE)
        assert machine.asked == asked
        assert all(len(sources) <= 2 for sources in asked.values())
        assert set(machine.have) == self.have
        assert set(machine.inflight) == set(asked)
        assert set(machine.runs) == set(self.runs)
        assert set(machine.intent - machine.inflight) <= machine.begun
        assert machine.begun <= set(machine.intent) - self.have

    @invariant()
    def spends_no_less_than_nothing(self) -> None:
        """What is reserved is given back."""
        extra = self.machine._pace.extra
        assert extra.spent >= 0
        assert extra.reserved >= 0
        assert self.runs or extra.reserved == 0


TestAnyEvents = AnyEvents.TestCase
TestAnyEvents.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- runs and what follows from their end ---


def test_machine_asks_for_what_is_missing_and_counts_it() -> None:
    """What was asked is in flight, and not asked again."""
    machine = make_machine(4)
    peer = see(A, Bitfield.full(4))
    first = asks_of(look(machine, peer))
    assert len(first) == 2
    assert set(machine.inflight) == {i for r in first for i in r.chunk_indexes}
    busy = replace(peer, requests_inflight=2)
    assert asks_of(look(machine, busy)) == []


def test_machine_chunk_that_is_here_already_is_held_without_a_run() -> None:
    """What an earlier run left counts."""
    machine = make_machine(2)
    store(machine, 0, None, 100.0)
    assert machine.state_of(0) is ChunkState.HELD
    assert [r.first for r in asks_of(look(machine, see(A, Bitfield.full(2))))] == [1]


@pytest.mark.parametrize(
    ("outcome", "rest_s", "is_shunned"),
    [
        (Outcome.REFUSED, REFUSED_REST_S, True),
        (Outcome.BUSY, BUSY_REST_S, False),
        (Outcome.PROTOCOL, BROKEN_REST_S, True),
        (Outcome.UNREACHABLE, BROKEN_REST_S, True),
        (Outcome.CRAWLED, CRAWLER_REST_S, True),
    ],
)
def test_peer_that_failed_rests(outcome: Outcome, rest_s: float, is_shunned: bool) -> None:
    """It is asked again after its rest; meanwhile the hub is, unless it only was busy."""
    machine = make_machine(1)
    peer = see(A, Bitfield.full(1))
    look(machine, peer)
    end(machine, 1, outcome, now_s=100.0)
    jitter_s = BUSY_REST_JITTER * rest_s if outcome is Outcome.BUSY else 0.0
    soon = machine.view([peer], now_s=100.0 + rest_s - jitter_s - 0.01)[0]
    assert bool(soon.have) is not is_shunned
    assert machine.view([peer], now_s=100.0 + rest_s + jitter_s + 0.01) == [peer]
    meanwhile = asks_of(look(machine, peer, now_s=100.01, can_fetch_upstream=True))
    assert [r.source_id for r in meanwhile] == ([UPSTREAM] if is_shunned else [])
    assert machine.is_anyone_resting(now_s=100.0) is (rest_s <= BROKEN_REST_S)


def test_busy_peers_rests_differ() -> None:
    """All that were turned away at the same time would come back at the same time."""
    machine = make_machine(8)
    peers = [see(f"{n:032x}", Bitfield.full(8)) for n in range(4)]
    asks = asks_of(look(machine, *peers))
    for number in range(1, len(asks) + 1):
        end(machine, number, Outcome.BUSY, now_s=100.0)
    ends_s = list(machine.rests.resting_until_s.values())
    assert len(ends_s) == len(set(ends_s)) > 1
    most_s = BUSY_REST_S * (1 + BUSY_REST_JITTER)
    assert all(most_s / 3 <= until_s - 100.0 <= most_s for until_s in ends_s)


def test_peer_that_delivered_is_not_shunned_any_more() -> None:
    """A good run ends the rest that another one began."""
    machine = make_machine(8)
    peer = see(A, Bitfield.full(8))
    assert len(asks_of(look(machine, peer))) == 2
    end(machine, 1, Outcome.CRAWLED)
    store(machine, next(iter(machine.runs[2].request.chunk_indexes)), 2, 100.0)
    end(machine, 2, Outcome.DELIVERED)
    assert machine.view([peer], now_s=100.1) == [peer]


@pytest.mark.parametrize("is_crowded", [False, True])
def test_busy_peer_among_few_is_asked_later_and_later(is_crowded: bool) -> None:
    """In a crowd it may be a queue, in which who comes back too late has lost its place."""
    machine = make_machine(1)
    peer = see(A, Bitfield.full(1))
    crowd = frozenset([A]) if is_crowded else frozenset[str]()
    rests_s, now_s = [], 100.0
    for _ in range(BUSY_IN_A_ROW_MAX - 1):
        look(machine, peer, now_s=now_s, crowd=crowd)
        end(machine, max(machine.runs), Outcome.BUSY, now_s=now_s)
        rests_s.append(machine.rests.resting_until_s[A] - now_s)
        now_s += 5.0
    soonest, latest = BUSY_REST_S * (1 - BUSY_REST_JITTER), BUSY_REST_S * (1 + BUSY_REST_JITTER)
    assert all(soonest <= rest_s <= latest for rest_s in rests_s[:BUSY_SOON_MAX])
    if is_crowded:
        assert max(rests_s) <= latest
    else:
        assert min(rests_s[-3:]) >= BUSY_REST_S_MAX * (1 - BUSY_REST_JITTER)
        assert max(rests_s) <= BUSY_REST_S_MAX * (1 + BUSY_REST_JITTER)


@pytest.mark.parametrize(
    ("outcome", "most", "crowd"),
    [
        (Outcome.REFUSED, REFUSALS_IN_A_ROW_MAX, ""),
        (Outcome.BUSY, BUSY_IN_A_ROW_MAX, ""),
        (Outcome.BUSY, BUSY_IN_A_CROWD_MAX, A),
    ],
)
def test_peer_whose_word_is_broken_too_often_is_not_believed(
    outcome: Outcome, most: int, crowd: str
) -> None:
    """Who says that it has a chunk and never gives it does not hold it up for ever."""
    machine = make_machine(1)
    peer = see(A, Bitfield.full(1))
    now_s = 100.0
    for number in range(most):
        now_s += 5.0
        seen = look(machine, peer, now_s=now_s, crowd=frozenset(filter(None, [crowd])))
        assert [r.source_id for r in asks_of(seen)] == [A], number
        run_id = max(machine.runs)
        end(machine, run_id, outcome, now_s=now_s)
    assert 0 in machine.refused[A]
    assert not machine.view([peer], now_s=now_s + 1000.0)[0].have


def test_peer_that_sent_wrong_bytes_is_banned_and_not_asked_for_that_chunk() -> None:
    """One wrong byte is proof."""
    machine = make_machine(2)
    peer = see(A, Bitfield.full(2))
    look(machine, peer)
    wrong = machine.runs[1].request.first
    actions = end(machine, 1, Outcome.WRONG_BYTES, chunk_index=wrong)
    assert actions == [Accuse(A, "wrong bytes", is_ban=True)]
    assert set(machine.refused[A]) == {wrong}
    end(machine, 2, Outcome.WRONG_BYTES)
    assert set(machine.refused[A]) == {wrong}


def test_peer_with_a_damaged_copy_is_not_asked_for_the_rest_of_it() -> None:
    """It said so itself: a fault, and no ban."""
    machine = make_machine(3, peer_requests_inflight_max=1, run_bytes_min=1 << 30)
    look(machine, see(A, Bitfield.full(3)))
    store(machine, 0, 1, 100.0)
    assert end(machine, 1, Outcome.DAMAGED) == [Accuse(A, "damaged copy", is_ban=False)]
    assert set(machine.refused[A]) == {1, 2}


def test_hub_that_fails_is_asked_again_after_a_while() -> None:
    """Patience is kept for the hub; a rate limit is somebody else's business."""
    machine = make_machine(1)
    error = UpstreamUnreachableError("x")
    assert look(machine, can_fetch_upstream=True)
    end(machine, 1, Outcome.UPSTREAM_FAILED, error=error)
    assert look(machine, can_fetch_upstream=True) == []
    assert look(machine, now_s=101.0, can_fetch_upstream=True)
    end(machine, 2, Outcome.CANCELLED, now_s=101.0)
    assert look(machine, now_s=101.0, can_fetch_upstream=True)
    end(machine, 3, Outcome.DELIVERED, now_s=101.0)
    assert look(machine, now_s=101.0, can_fetch_upstream=True)
    error_429 = UpstreamRateLimitedError("x", retry_after_s=1.0)
    end(machine, 4, Outcome.RATE_LIMITED, now_s=101.0, error=error_429)
    assert not machine.patience.is_given_up()


def test_intent_is_announced_while_a_first_copy_is_under_way() -> None:
    """Until it came, or the run ended."""
    machine = make_machine(2, **ONE_LONG_RUN)
    look(machine, can_fetch_upstream=True)
    assert set(machine.intent) == {0, 1}
    store(machine, 0, 1, 100.0)
    assert set(machine.intent) == {1}
    end(machine, 1, Outcome.UPSTREAM_FAILED, error=UpstreamUnreachableError("x"))
    assert set(machine.intent) == set()


def test_chunk_that_we_owe_is_brought_whatever_else_we_brought_before() -> None:
    """All waited for us, and we for who comes after one that let it lapse: for a lease."""
    machine = make_machine(16)
    other = see(A, Bitfield(16), is_fetching=True, can_fetch_upstream=True)
    ours = [i for i in range(16) if find_owner(BLOB, i, [A, SELF_ID]) == SELF_ID]
    others = [i for i in range(16) if i not in ours]
    assert len(others) > 4, "more than make a claim lapse"
    for index in ours:
        machine.handle(ChunkStored(index), now_s=100.0)
    assert asks_of(look(machine, other, can_fetch_upstream=True)) == []
    machine.handle(ChunksForgotten((ours[0],)), now_s=100.0)
    now_s, run_id = 100.3, 1
    for index in others:
        # The hub is busy for all but readers, who wait for what is not ours.
        machine.readers.note(run_id, index, now_s=now_s - 2 * READER_PATIENCE_S)
        (request,) = asks_of(
            look(machine, other, now_s=now_s, can_fetch_upstream=True, upstream_requests_inflight=8)
        )
        assert list(request.chunk_indexes) == [index]
        machine.readers.forget(run_id)
        now_s += 0.3
        store(machine, index, run_id, now_s)
        end(machine, run_id, Outcome.DELIVERED, now_s=now_s, received_bytes=CHUNK_SIZE_BYTES)
        run_id += 1
    assert asks_of(look(machine, other, now_s=now_s + 0.3, can_fetch_upstream=True)) == [
        RunRequest(UPSTREAM, ours[0], ours[0], is_first_copy=True)
    ]


def break_off_midway(machine: FetchMachine) -> RunRequest:
    """Let the hub break off in the middle of what it was asked for first."""
    first, *_ = asks_of(look(machine, can_fetch_upstream=True))
    look(machine, can_fetch_upstream=True, received={1: CHUNK_SIZE_BYTES // 2})
    error = UpstreamUnreachableError("It broke off.")
    end(machine, 1, Outcome.UPSTREAM_FAILED, received_bytes=CHUNK_SIZE_BYTES // 2, error=error)
    return first


def test_chunk_that_broke_off_midway_stays_announced_and_is_asked_for_again() -> None:
    """Whoever owns it: else another takes it, and the hub sends the start a second time."""
    machine = make_machine(1)
    first = break_off_midway(machine)
    assert set(machine.intent) == {0}
    assert machine.state_of(0) is ChunkState.MISSING
    owner = see(A, Bitfield(1), is_fetching=True, can_fetch_upstream=True)
    assert asks_of(look(machine, owner, can_fetch_upstream=True)) == []
    later_s = 100.0 + FIRST_WAIT_S
    again = asks_of(look(machine, owner, now_s=later_s, can_fetch_upstream=True))
    assert [request.chunk_indexes for request in again] == [first.chunk_indexes]
    store(machine, 0, 2, later_s)
    assert set(machine.intent) == set()


def test_chunk_that_broke_off_is_left_to_others_once_the_hub_is_given_up() -> None:
    """Who cannot go on must not keep the others from it."""
    machine = make_machine(1)
    break_off_midway(machine)
    look(machine, now_s=100.1)
    assert set(machine.intent) == set()


def test_chunk_that_broke_off_and_that_another_has_announced_is_left_to_it() -> None:
    """Both kept it for a moment; only one of them asks."""
    machine = make_machine(1)
    break_off_midway(machine)
    other = see(A, Bitfield(1), intent=Bitfield.full(1), is_fetching=True, can_fetch_upstream=True)
    later_s = 100.0 + FIRST_WAIT_S
    assert asks_of(look(machine, other, now_s=later_s, can_fetch_upstream=True)) == []


def test_bytes_of_first_copies_are_counted_once_whenever_they_are_told() -> None:
    """What a look saw is not added again at the end; peers' bytes are no first copies."""
    machine = make_machine(1)
    look(machine, can_fetch_upstream=True)
    look(machine, received={1: 700, 99: 5})
    assert machine.first_copy_bytes == 700
    end(machine, 1, Outcome.CANCELLED, received_bytes=1000)
    assert machine.first_copy_bytes == 1000
    look(machine, see(A, Bitfield.full(1)))
    end(machine, 2, Outcome.CANCELLED, received_bytes=1000)
    assert machine.first_copy_bytes == 1000


# --- what takes too long ---


def begin_slow_run(machine: FetchMachine, *, samples_s: float = 0.0) -> PeerView:
    """Begin one run from A of a machine of one chunk, perhaps with a measured pace."""
    for _ in range(OVERDUE_SAMPLES_MIN if samples_s else 0):
        machine._pace.peer_chunk.note(samples_s)
    slow = see(A, Bitfield.full(machine.have.length))
    assert len(asks_of(look(machine, slow))) == 1
    return replace(slow, requests_inflight=1)


@pytest.mark.parametrize(
    ("samples_s", "limit_s"),
    [
        (0.0, OVERDUE_UNMEASURED_S),
        (0.01, OVERDUE_S_MIN),
        (1.0, ENDGAME_OVERDUE_FACTOR * 1.0),
    ],
)
def test_run_that_is_overdue_and_has_brought_nothing_goes_to_another_peer(
    samples_s: float, limit_s: float
) -> None:
    """A slow peer cannot hold a chunk: its run is cut, the chunk is asked of somebody else."""
    machine = make_machine(1)
    slow = begin_slow_run(machine, samples_s=samples_s)
    other = see(B, Bitfield.full(1))
    assert look(machine, slow, other, now_s=100.0 + 0.8 * limit_s) == []
    late_s = 100.0 + 1.4 * limit_s
    assert cancels_of(look(machine, slow, other, now_s=late_s)) == [1]
    end(machine, 1, Outcome.CANCELLED, now_s=late_s)
    assert machine.rests.resting_until_s[A] == pytest.approx(late_s + OVERDUE_REST_S)
    assert [r.source_id for r in asks_of(look(machine, slow, other, now_s=late_s))] == [B]


def test_rest_of_a_lone_seeder_in_one_fetch_makes_no_other_fetch_wait() -> None:
    """Its line would be empty meanwhile: who may not ask now stands back."""
    machine = make_machine(32)
    needs, seeder = machine._pace.needs, see("e" * 32, Bitfield.full(32))
    member = see(A, Bitfield(32), is_fetching=True)
    look(machine, seeder, member)
    assert needs.find_first_owing(seeder.peer_id) == BLOB
    end(machine, 1, Outcome.BUSY)
    look(machine, seeder, member, now_s=100.0 + BUSY_REST_S / 3)
    assert needs.find_first_owing(seeder.peer_id) is None
    assert asks_of(look(machine, seeder, member, now_s=100.0 + 2 * BUSY_REST_S))
    assert needs.find_first_owing(seeder.peer_id) == BLOB


@pytest.mark.parametrize(
    ("changes", "gives_way"),
    [
        ({"can_fetch_upstream": True}, True),
        ({"can_fetch_upstream": False}, False),
        ({"can_fetch_upstream": True, "is_fetching": False}, False),
    ],
)
def test_member_that_is_too_slow_gives_way_to_one_that_can_reach_the_hub(
    changes: dict[str, object], gives_way: bool
) -> None:
    """Who alone has a hub brings what it can: those who heard that it does not would give up."""
    machine = make_machine()
    other = replace(see(A, Bitfield(8), is_fetching=True), **changes)  # type: ignore[arg-type]
    look(machine, other, can_fetch_upstream=True)
    assert not machine.gives_way()
    machine.duties.stalled = {SELF_ID}
    assert machine.gives_way() is gives_way
    machine.duties.stalled = {A}
    assert not machine.gives_way()


def test_run_that_is_overdue_and_nearly_here_is_doubled_within_the_allowance() -> None:
    """More than half of it came: the other peer is asked too, if two hundredths allow it."""
    machine = make_machine(1)
    slow = begin_slow_run(machine)
    other = see(B, Bitfield.full(1))
    received = {1: CHUNK_SIZE_BYTES * 3 // 4}
    assert look(machine, slow, other, now_s=103.0, received=received) == []
    machine._pace.extra.wanted = int(CHUNK_SIZE_BYTES / EXTRA_SHARE_MAX) + 1
    actions = look(machine, slow, other, now_s=103.0, received=received)
    assert actions == [Ask(2, RunRequest(B, 0, 0, is_second_source=True))]
    assert machine.state_of(0) is ChunkState.DOUBLED
    assert machine._pace.extra.reserved == CHUNK_SIZE_BYTES
    store(machine, 0, 2, 103.1)
    assert cancels_of(look(machine, slow, other, now_s=103.1)) == [1]
    end(machine, 1, Outcome.CANCELLED, received_bytes=received[1])
    end(machine, 2, Outcome.DELIVERED, received_bytes=CHUNK_SIZE_BYTES)
    assert machine._pace.extra.reserved == 0
    assert machine._pace.extra.spent == received[1]


def test_run_that_is_overdue_stays_when_nobody_else_has_the_chunk() -> None:
    """A slow source is better than none."""
    machine = make_machine(1)
    slow = begin_slow_run(machine)
    busy = see(B, Bitfield.full(1), requests_inflight=2)
    assert look(machine, slow, see(B, Bitfield(1)), now_s=105.0) == []
    assert look(machine, slow, busy, now_s=105.0) == []


def test_run_is_not_given_up_for_bytes_that_are_not_allowed_twice() -> None:
    """What was given up comes again, and counts."""
    machine = make_machine(1)
    slow = begin_slow_run(machine)
    other = see(B, Bitfield.full(1))
    machine._pace.extra.wanted = 0
    assert look(machine, slow, other, now_s=103.0, received={1: 1000}) == []
    assert cancels_of(look(machine, slow, other, now_s=103.0, received={1: 0})) == []


def test_bytes_of_upstream_that_broke_off_are_kept_and_a_peers_are_lost() -> None:
    """Only a peer's half chunk counts as received in vain."""
    machine = make_machine(1)
    extra = machine._pace.extra
    look(machine, can_fetch_upstream=True)
    end(machine, 1, Outcome.CANCELLED, received_bytes=1000)
    assert extra.spent == 0
    look(machine, see(A, Bitfield.full(1)))
    end(machine, 2, Outcome.CANCELLED, received_bytes=1000)
    assert extra.spent == 1000


def test_extra_bytes_are_a_share_of_what_was_wanted() -> None:
    """What is reserved counts like what is spent."""
    extra = ExtraBytes(wanted=1000)
    assert extra.may_spend(20)
    assert not extra.may_spend(21)
    extra.reserved = 15
    assert extra.may_spend(5)
    extra.spent = 1
    assert not extra.may_spend(5)


@pytest.mark.parametrize(("received_share", "is_cut"), [(0.25, True), (0.75, False)])
def test_first_copy_that_somebody_else_has_by_now_is_cut_unless_nearly_here(
    received_share: float, is_cut: bool
) -> None:
    """The hub need not send what the swarm has."""
    machine = make_machine(1)
    look(machine, can_fetch_upstream=True)
    received = {1: int(received_share * CHUNK_SIZE_BYTES)}
    assert look(machine, received=received) == []
    other = see(A, Bitfield.full(1))
    assert look(machine, other, received=received) == []
    # Its word counts once it has given something.
    other = replace(other, rate_bps=1e6)
    assert cancels_of(look(machine, other, received=received)) == ([1] if is_cut else [])
    assert cancels_of(look(machine, other, received=received)) == []


def test_run_of_which_all_came_from_others_is_cut() -> None:
    """Nobody waits for what is here."""
    machine = make_machine(2, peer_requests_inflight_max=1, run_bytes_min=1 << 30)
    look(machine, see(A, Bitfield.full(2)))
    store(machine, 0, 1, 100.0)
    assert look(machine) == []
    store(machine, 1, None, 100.0)
    assert cancels_of(look(machine)) == [1]
    assert cancels_of(look(machine)) == []


# --- readers ---


def test_reader_that_waits_too_long_gets_its_chunk_from_the_hub() -> None:
    """Whoever owns it, and although it is on its way from a peer already."""
    machine = make_machine(1)
    slow = begin_slow_run(machine)
    machine.readers.note(1, 0, now_s=100.0)
    early_s, late_s = 100.0 + READER_PATIENCE_S, 100.1 + READER_PATIENCE_S
    assert look(machine, slow, now_s=early_s, can_fetch_upstream=True) == []
    rescue = RunRequest(UPSTREAM, 0, 0, is_second_source=True)
    assert asks_of(look(machine, slow, now_s=late_s, can_fetch_upstream=True)) == [rescue]
    store(machine, 0, 2, late_s)
    assert machine.readers.find_starving(machine.have, now_s=late_s) == []


@pytest.mark.parametrize(("waits_for", "is_cut"), [(0, False), (1, False), (2, True)])
def test_reader_behind_a_long_run_of_the_hub_has_it_cut(waits_for: int, is_cut: bool) -> None:
    """Unless its chunk is the one that comes; the next run begins with the reader's chunk."""
    machine = make_machine(4, **ONE_LONG_RUN)
    (first,) = asks_of(look(machine, can_fetch_upstream=True))
    assert (first.first, first.last) == (0, 3)
    store(machine, 0, 1, 100.0)
    machine.readers.note(1, waits_for, now_s=100.0)
    assert cancels_of(look(machine, now_s=100.0 + READER_PATIENCE_S, can_fetch_upstream=True)) == []
    late_s = 100.1 + READER_PATIENCE_S
    cancelled = cancels_of(look(machine, now_s=late_s, can_fetch_upstream=True))
    assert cancelled == ([1] if is_cut else [])
    if is_cut:
        end(machine, 1, Outcome.CANCELLED, now_s=late_s)
        again = asks_of(look(machine, now_s=late_s, can_fetch_upstream=True))
        assert [(r.first, r.last) for r in again] == [(2, 2)]


# --- leases and fences ---


def test_member_that_owns_and_does_not_move_loses_its_chunks() -> None:
    """We take over what nobody brings."""
    machine = make_machine(32)
    member = see(A, Bitfield(32), is_fetching=True, can_fetch_upstream=True)
    mine = {i for r in asks_of(look(machine, member, can_fetch_upstream=True)) for i in
            r.chunk_indexes}  # fmt: skip
    assert mine != set(range(32))
    for run_id in list(machine.runs):
        end(machine, run_id, Outcome.CANCELLED)
    asked: set[int] = set()
    were_stalled: set[str] = set()
    for step in range(80):
        now_s = 101.0 + step / 8
        actions = look(machine, member, now_s=now_s, can_fetch_upstream=True)
        were_stalled |= machine.duties.stalled
        asked |= {i for r in asks_of(actions) for i in r.chunk_indexes}
        for run_id, run in list(machine.runs.items()):
            for index in run.request.chunk_indexes:
                store(machine, index, run_id, now_s)
            end(machine, run_id, Outcome.DELIVERED, now_s=now_s)
        # We move: else we would stall as well.
        machine._pace.moved_bytes += PROGRESS_BYTES_MIN
        if step == 8:
            assert asked < set(range(32))
    assert were_stalled == {A}
    assert asked == set(range(32))


def test_one_that_was_frozen_brings_nothing_before_it_has_heard_the_others() -> None:
    """Its leases may be somebody else's by now."""
    machine = make_machine(8)
    member = see(A, Bitfield(8), is_fetching=True, can_fetch_upstream=True, heard_s=99.0)
    look(machine, member)
    thaw_s = 101.0 + LEASE_S
    assert look(machine, member, now_s=thaw_s, can_fetch_upstream=True) == []
    heard = replace(member, heard_s=thaw_s + 0.1)
    assert look(machine, heard, now_s=thaw_s + 0.2, can_fetch_upstream=True) != []


def test_one_that_was_frozen_waits_for_those_who_seem_gone_too() -> None:
    """What its own silence made it drop is there, and may have taken over everything."""
    machine = make_machine(8)
    member = see(A, Bitfield(8), is_fetching=True, can_fetch_upstream=True, heard_s=99.0)
    look(machine, member)
    thaw_s = 101.0 + LEASE_S
    assert look(machine, now_s=thaw_s, can_fetch_upstream=True) == []
    assert look(machine, now_s=thaw_s + 0.1, can_fetch_upstream=True) == []
    done = replace(member, have=Bitfield.full(8), is_fetching=False, heard_s=thaw_s + 0.1)
    [request] = asks_of(look(machine, done, now_s=thaw_s + 0.2, can_fetch_upstream=True))[:1]
    assert request.source_id == A


def test_fence_ends_although_somebody_says_nothing() -> None:
    """A member that died meanwhile is not waited for."""
    machine = make_machine(8)
    member = see(A, Bitfield(8), is_fetching=True, can_fetch_upstream=True, heard_s=99.0)
    look(machine, member)
    thaw_s = 101.0 + LEASE_S
    assert look(machine, member, now_s=thaw_s, can_fetch_upstream=True) == []
    late_s = thaw_s + FENCE_S_MAX + 0.1
    assert look(machine, member, now_s=late_s, can_fetch_upstream=True) != []


def test_machine_of_a_huge_blob_looks_at_few_chunks_for_who_owes() -> None:
    """A sample finds the same members."""
    machine = make_machine(2000)
    assert look(machine, can_fetch_upstream=True)
    assert machine.duties.stalled == set()


@pytest.mark.parametrize(("is_hub_up", "is_given_up"), [(True, True), (False, False)])
def test_run_that_all_but_stands_goes_to_the_hub_if_nobody_else_has_the_chunk(
    is_hub_up: bool, is_given_up: bool
) -> None:
    """A slow swarm is no reason to go upstream; one holder that stands still is."""
    machine = make_machine(1)
    peer = begin_slow_run(machine)
    late_s = 100.0 + LEASE_S + 0.1
    actions = look(machine, peer, now_s=late_s, can_fetch_upstream=is_hub_up)
    assert bool(cancels_of(actions)) is is_given_up


def test_allowance_is_shared_by_runs_that_are_given_up_at_once() -> None:
    """What has come of a run that was given up is reserved until the run has ended."""
    machine = make_machine(1)
    peer = begin_slow_run(machine)
    other = see(B, Bitfield.full(1))
    run_id = next(iter(machine.runs))
    came = 1000
    actions = look(machine, peer, other, now_s=200.0, received={run_id: came})
    assert run_id in cancels_of(actions)
    assert machine._pace.extra.reserved == came
    end(machine, run_id, Outcome.CANCELLED, received_bytes=came)
    assert (machine._pace.extra.reserved, machine._pace.extra.spent) == (0, came)
