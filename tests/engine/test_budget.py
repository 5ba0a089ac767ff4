"""
Owns the tests of engine.budget: pauses, the way back from them, what is left of a quota.

Knows nothing of how bytes travel.
Invariants: time is a ManualClock's; what reaches the hub is counted at the hub.
Source: engine/budget.py; design.md §6.5.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from itertools import pairwise
from random import Random

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.ratelimit import RETRY_AFTER_S_MAX
from p2pcache.core.refs import ModelReference
from p2pcache.core.snapshot import FileEntry
from p2pcache.engine import budget as module
from p2pcache.engine.budget import UPSTREAM_REQUESTS_INFLIGHT_MAX, UpstreamBudget
from p2pcache.errors import P2PCacheError, UpstreamRateLimitedError
from p2pcache.hubs.base import RequestKind
from tests.engine.conftest import REPO, MakeCache
from tests.engine.engine import eventually
from tests.hub import Hub

NAME = "pytorch_model.bin"
START_S = 1_000.0


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock(START_S)


@pytest.fixture
def budget(clock: ManualClock) -> UpstreamBudget:
    """A budget with that clock."""
    return UpstreamBudget(clock, Random(1))


def said(left: int, reset_s: int, quota: int | None = None) -> dict[str, str]:
    """Return headers as the hub sends them."""
    headers = {"RateLimit": f'"resolvers";r={left};t={reset_s}'}
    if quota is not None:
        headers["RateLimit-Policy"] = f'"fixed window";"resolvers";q={quota};w=300'
    return headers


# --- pauses ---


@pytest.mark.parametrize(
    ("asked_s", "least_s"),
    [(None, module.RATE_LIMIT_PAUSE_S), (0.0, module.RATE_LIMIT_PAUSE_S_MIN), (30.0, 30.0)],
)
def test_pause_is_what_was_asked_and_a_little_more(
    budget: UpstreamBudget, asked_s: float | None, least_s: float
) -> None:
    """Never shorter than the hub said; a tenth longer at most, and never by more than 5 s."""
    budget.pause(asked_s, now_s=START_S)
    assert START_S + least_s <= budget.paused_until_s <= START_S + 1.1 * least_s
    budget.pause(RETRY_AFTER_S_MAX, now_s=START_S)
    assert budget.paused_until_s <= START_S + RETRY_AFTER_S_MAX + module.JITTER_S_MAX


def test_pause_asked_for_by_many_answers_is_one_pause(budget: UpstreamBudget) -> None:
    """Eight requests were under way, each is refused: the end does not creep away."""
    budget.pause(30.0, now_s=START_S)
    until_s = budget.paused_until_s
    for n in range(8):
        budget.pause(30.0, now_s=START_S + 0.1 * n)
        # What check() said to somebody is told to pause() again.
        budget.pause(until_s - START_S, now_s=START_S + 0.1 * n)
    budget.pause(3.0, now_s=START_S + 1)
    assert (budget.paused_until_s, budget.pauses_total) == (until_s, 1)
    budget.pause(60.0, now_s=START_S)
    assert budget.paused_until_s >= START_S + 60


def test_daemons_that_were_told_the_same_come_back_at_different_times() -> None:
    """One site, one address at the hub, one window: its end must not be everybody's moment."""
    budgets = [UpstreamBudget(ManualClock(START_S), Random(seed)) for seed in range(100)]
    for one in budgets:
        one.pause(100.0, now_s=START_S)
    back_s = sorted(one.paused_until_s - START_S for one in budgets)
    assert back_s[0] >= 100
    assert len({round(at_s, 3) for at_s in back_s}) >= 95
    assert max(sum(at_s <= other < at_s + 0.5 for other in back_s) for at_s in back_s) <= 30


@pytest.mark.parametrize(
    ("status", "headers", "pause_s"),
    [
        (429, {"Retry-After": "20"} | said(0, 300), 20.0),
        (429, said(0, 40), 40.0),
        (429, {}, module.RATE_LIMIT_PAUSE_S),
        (503, {"retry-after": "20"}, 20.0),
        (503, {"Retry-After": "200"}, module.UNAVAILABLE_PAUSE_S_MAX),
        (503, {}, None),
        (500, {"Retry-After": "20"}, None),
        (200, {"Retry-After": "20"}, None),
        (404, said(2999, 300, 3000), None),
    ],
)
def test_answer_that_refuses_pauses_everything(
    budget: UpstreamBudget, status: int, headers: dict[str, str], pause_s: float | None
) -> None:
    """Whatever was asked for, and nothing is left over of it once the pause has ended."""
    budget.note_answer("api", status, headers)
    if pause_s is None:
        assert budget.count_free(START_S) == UPSTREAM_REQUESTS_INFLIGHT_MAX
        return
    assert START_S + pause_s <= budget.paused_until_s <= START_S + 1.1 * pause_s
    assert (budget.count_free(START_S), budget.may_ask(START_S)) == (0, False)
    after_s = budget.paused_until_s + module.RESUME_S
    assert budget.count_free(after_s) == UPSTREAM_REQUESTS_INFLIGHT_MAX


def test_guard_during_a_pause_asks_nothing(budget: UpstreamBudget, clock: ManualClock) -> None:
    """A run that waited for its thread while another one was refused."""

    def work(said: str) -> str:
        raise AssertionError(said)

    budget.pause(30.0, now_s=START_S)
    until_s = budget.paused_until_s
    with pytest.raises(UpstreamRateLimitedError, match="asked to slow down") as caught:
        budget.guard(work, "asked")
    assert caught.value.retry_after_s == pytest.approx(until_s - START_S)
    clock.advance(34)
    with pytest.raises(AssertionError, match="asked"):
        budget.guard(work, "asked")


def test_guard_of_what_is_refused_pauses_before_it_returns(
    budget: UpstreamBudget, clock: ManualClock
) -> None:
    """The next thread must not ask before the event loop has heard of it."""

    def work() -> None:
        raise UpstreamRateLimitedError("slow down", retry_after_s=30.0)

    with pytest.raises(UpstreamRateLimitedError, match="slow down"):
        budget.guard(work)
    assert budget.paused_until_s >= START_S + 30
    assert budget.guard(lambda: 7) == 7 if budget.may_ask(START_S) else True


# --- after a pause ---


def test_requests_for_bytes_after_a_pause_begin_one_by_one(budget: UpstreamBudget) -> None:
    """Whoever asks often: for the first moments there is one at a time, and then a gap."""
    budget.pause(10.0, now_s=START_S)
    now_s, begun = START_S, []
    while now_s < START_S + 15:
        for _ in range(budget.count_free(now_s)):
            budget.begin(now_s)
            begun.append(now_s)
            budget.end()
        now_s += 0.01
    resumed = [at_s for at_s in begun if at_s < budget.paused_until_s + module.RESUME_S]
    assert min(begun) >= budget.paused_until_s
    assert 10 <= len(resumed) <= 2 * module.RESUME_S / module.RESUME_GAP_S
    least_s = 0.5 * module.RESUME_GAP_S
    assert all(after - before >= least_s - 0.011 for before, after in pairwise(resumed))
    # Then as many as may be.
    assert len(begun) - len(resumed) > 500


async def test_questions_held_by_a_pause_come_back_one_by_one(
    budget: UpstreamBudget, clock: ManualClock
) -> None:
    """Twenty clients wait: each is let through in its turn, none at the same moment."""
    budget.pause(2.0, now_s=START_S)
    admitted: list[float] = []

    async def ask() -> None:
        await budget.admit("api", wait_s_max=6.0)
        admitted.append(clock.monotonic_s())

    tasks = [asyncio.create_task(ask()) for _ in range(20)]

    def move_on() -> bool:
        clock.advance(0.01)
        return all(task.done() for task in tasks)

    await eventually(move_on, "everybody is let through")
    await asyncio.gather(*tasks)
    assert min(admitted) >= budget.paused_until_s
    resumed = [at_s for at_s in admitted if at_s < budget.paused_until_s + module.RESUME_S]
    assert len(resumed) == len(set(resumed)) >= 5


@pytest.mark.parametrize("kind", ["api", "resolve"])
async def test_question_that_would_wait_too_long_is_refused_at_once(
    budget: UpstreamBudget, clock: ManualClock, kind: RequestKind
) -> None:
    """A client has ten seconds; it is told how long instead, and nothing is held."""
    budget.pause(30.0, now_s=START_S)
    with pytest.raises(UpstreamRateLimitedError) as caught:
        await budget.admit(kind, wait_s_max=6.0)
    assert 30 <= (caught.value.retry_after_s or 0) <= 33
    clock.advance(34)
    await budget.admit(kind, wait_s_max=0.0)


# --- what is left ---


def count_begun(budget: UpstreamBudget, clock: ManualClock, seconds: float) -> int:
    """Begin requests whenever that is allowed; return how many."""
    count, end_s = 0, clock.monotonic_s() + seconds
    while clock.monotonic_s() < end_s:
        for _ in range(budget.count_free(clock.monotonic_s())):
            budget.begin(clock.monotonic_s())
            budget.end()
            count += 1
        clock.advance(0.05)
    return count


@pytest.mark.parametrize(("left", "quota"), [(19, None), (100, 3000), (299, 3000)])
def test_few_requests_that_are_left_are_spread_over_the_window(
    budget: UpstreamBudget, clock: ManualClock, left: int, quota: int | None
) -> None:
    """Not spent in the first second, to be refused for five minutes."""
    budget.note_answer("resolve", 200, said(left, 60, quota))
    count = count_begun(budget, clock, 59.0)
    assert 0.8 * left <= count <= 1.2 * left, count
    assert budget.count_free(START_S + 61) == UPSTREAM_REQUESTS_INFLIGHT_MAX


@pytest.mark.parametrize(("left", "quota"), [(20, None), (300, 3000), (2998, 3000)])
def test_plenty_that_is_left_holds_nobody(
    budget: UpstreamBudget, left: int, quota: int | None
) -> None:
    """A tenth of the quota, or twenty where its size is not said."""
    budget.note_answer("resolve", 200, said(left, 60, quota))
    assert budget.count_free(START_S) == UPSTREAM_REQUESTS_INFLIGHT_MAX


async def test_quota_that_is_used_up_holds_its_kind_alone(budget: UpstreamBudget) -> None:
    """The hub counts questions and files apart; a 200 that says "0 left" is no refusal yet."""
    budget.note_answer("resolve", 200, said(0, 60))
    assert budget.count_free(START_S + 59.9) == 0
    assert budget.count_free(START_S + 66) == UPSTREAM_REQUESTS_INFLIGHT_MAX
    await budget.admit("api", wait_s_max=0.0)
    with pytest.raises(UpstreamRateLimitedError):
        await budget.admit("resolve", wait_s_max=6.0)
    # A later answer knows better.
    budget.note_bulk_answer(200, said(3000, 300, 3000))
    await budget.admit("resolve", wait_s_max=0.0)
    assert budget.count_free(START_S) == UPSTREAM_REQUESTS_INFLIGHT_MAX


async def test_question_is_not_held_long_by_what_is_left(
    budget: UpstreamBudget, clock: ManualClock
) -> None:
    """Two left in a minute: somebody who waits gets one of them now, and the next soon."""
    budget.note_answer("api", 200, said(2, 60))
    await budget.admit("api", wait_s_max=0.0)
    with pytest.raises(UpstreamRateLimitedError):
        await budget.admit("api", wait_s_max=0.0)
    clock.advance(2 * module.METADATA_GAP_S_MAX)
    await budget.admit("api", wait_s_max=0.0)


def test_requests_under_way_are_limited(budget: UpstreamBudget) -> None:
    """All blobs together."""
    for n in range(UPSTREAM_REQUESTS_INFLIGHT_MAX):
        assert budget.count_free(START_S) == UPSTREAM_REQUESTS_INFLIGHT_MAX - n
        budget.begin(START_S)
    assert (budget.count_free(START_S), budget.may_ask(START_S)) == (0, True)
    budget.end()
    assert budget.count_free(START_S) == 1


@pytest.mark.parametrize(
    ("limit_bps", "requests"), [(None, 8), (125_000, 1), (3_000_000, 3), (10**9, 8)]
)
def test_requests_under_a_cap_are_few_enough_to_bring_something(
    limit_bps: int | None, requests: int
) -> None:
    """Eight chunks at an eighth of a slow line each would all come too late for a reader."""
    assert UpstreamBudget(limit_bps=limit_bps).count_free(START_S) == requests


# --- with a hub ---


@pytest.mark.parametrize(
    ("refused", "retry_after_s"),
    [("resolve", 200), ("resolve", None), ("revision", 200), ("tree", None), ("info", 200)],
)
async def test_one_refusal_keeps_every_request_from_the_hub_until_the_pause_ends(
    make_cache: MakeCache, hub: Hub, refused: str, retry_after_s: int | None
) -> None:
    """
    A 429 to anything, with Retry-After or with RateLimit alone: downloads, files, names, lists,
    access, pages of the hub wait or fail here; the hub counts no request. Then all goes on.
    """
    clock = ManualClock()
    engine = await make_cache(clock=clock, ref_ttl_s=0.0)
    snapshot, _ = await engine.find(REPO, NAME)
    context = engine.context
    # As whoever was shown it did; nobody is told from memory of what may be hidden.
    assert (await engine.cache.access.visibility.prove(snapshot)).is_public
    access = context.hub.check_access

    async def fetch(entry: FileEntry) -> None:
        active = await engine.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
        await active.result()

    repo, commit = snapshot.id.repo, snapshot.id.commit
    asking: dict[str, Callable[[], Awaitable[object]]] = {
        "resolve": lambda: access(snapshot.id, NAME, ANONYMOUS),
        "revision": lambda: context.hub.resolve(repo, commit, ANONYMOUS),
        "tree": lambda: context.hub.list_files(snapshot.id, ANONYMOUS),
        "info": lambda: context.hub.forward("GET", f"/api/models/{repo.name}", b"", ANONYMOUS),
    }
    hub.set_faults(routes=[refused], refuse_status=429, refuse_times=1, retry_after_s=retry_after_s)
    with pytest.raises(P2PCacheError) if refused != "info" else contextlib.nullcontext():
        await asking[refused]()
    until_s = context.budget.paused_until_s
    assert until_s - clock.monotonic_s() >= (retry_after_s or 300)
    asked = hub.stats.requests_total
    fetches = [asyncio.create_task(fetch(entry)) for entry in snapshot.files if entry.size_bytes]
    while clock.monotonic_s() < until_s - 8.0:
        for ask in asking.values():
            with pytest.raises(UpstreamRateLimitedError):
                await ask()
        # What is here is given all the same.
        await engine.cache.librarian.resolve(ModelReference.parse(REPO), ANONYMOUS)
        clock.advance(min(20.0, until_s - 7.9 - clock.monotonic_s()))
    assert hub.stats.requests_total == asked
    assert not any(task.done() for task in fetches)
    waiting = [asyncio.ensure_future(ask()) for ask in asking.values()]

    def move_on() -> bool:
        if clock.monotonic_s() < until_s:
            assert hub.stats.requests_total == asked
        clock.advance(0.01)
        return all(task.done() for task in [*fetches, *waiting])

    clock.advance(4.9)
    await eventually(move_on, "all goes on", timeout_s=20.0)
    await asyncio.gather(*fetches, *waiting)
    assert hub.stats.statuses[f"{refused} 429"] == 1
