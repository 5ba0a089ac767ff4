"""
Owns the tests of core.pacing.

Knows nothing of clocks and threads: times are numbers of the test.
Invariants: the ones that the module's docstring names.
Source: core/pacing.py.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pcache.core.pacing import DISORDER_S_MAX, TokenBucket

# What floating-point arithmetic may lose over a few hundred steps.
ROUNDING = 1e-6
RATES = st.floats(0.5, 1e9)
BURSTS = st.floats(0, 1e6)
# (seconds since the last asking, amount)
ASKINGS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e7)), min_size=1, max_size=60)


def test_bucket_that_rested_gives_its_burst_at_once_and_then_its_rate() -> None:
    """Five at once, then one per tenth of a second; a rest fills the burst up, and no more."""
    bucket = TokenBucket(10, 5, now_s=0.0)
    assert bucket.take(5, now_s=0.0) == 0
    assert bucket.take(1, now_s=0.0) == pytest.approx(0.1)
    assert bucket.take(1, now_s=0.0) == pytest.approx(0.2)
    assert bucket.take(5, now_s=1_000.0) == 0
    assert bucket.take(5, now_s=1_000.0) == pytest.approx(0.5)


def test_bucket_without_burst_spaces_out_everything() -> None:
    """The first has to wait for what it takes, too."""
    bucket = TokenBucket(10, 0, now_s=0.0)
    assert bucket.take(1, now_s=0.0) == pytest.approx(0.1)


def release(askings: list[tuple[float, float]], bucket: TokenBucket) -> list[tuple[float, float]]:
    """Ask at the times that the gaps make; return (when it may move, amount)."""
    now_s, released = 0.0, []
    for gap_s, amount in askings:
        now_s += gap_s
        released.append((now_s + bucket.take(amount, now_s=now_s), amount))
    return released


@given(RATES, BURSTS, ASKINGS)
@example(320_788_214.0, 0.0, [(64.0, 0.0), (0.0, 0.25)])
def test_no_stretch_of_time_has_more_than_rate_and_burst(
    rate: float, burst: float, askings: list[tuple[float, float]]
) -> None:
    """However they ask: between any two releases there is no more than was earned, plus a burst."""
    released = release(askings, TokenBucket(rate, burst, now_s=0.0))
    for first in range(len(released)):
        moved = 0.0
        for at_s, amount in released[first:]:
            moved += amount
            allowed = rate * (at_s - released[first][0]) + burst
            # The first of a stretch may have waited for all of itself before it.
            own = released[first][1]
            # Both times are sums that were rounded twice; at a high rate that is worth something.
            clock = rate * 2 * math.ulp(at_s)
            assert moved <= allowed + own + clock + ROUNDING * (1 + moved)
    # From the start on, nothing waited for free.
    total = sum(amount for _, amount in released)
    assert total <= rate * released[-1][0] + burst + ROUNDING * (1 + total)


@given(RATES, BURSTS, ASKINGS)
def test_nobody_is_overtaken_and_nobody_waits_longer_than_all_before_it_take(
    rate: float, burst: float, askings: list[tuple[float, float]]
) -> None:
    """Releases are in the order of asking; a wait is bounded by what was asked for till then."""
    released = release(askings, TokenBucket(rate, burst, now_s=0.0))
    for (before_s, _), (after_s, _) in pairwise(released):
        assert after_s >= before_s - ROUNDING * (1 + before_s)
    now_s = asked = 0.0
    for (gap_s, amount), (at_s, _) in zip(askings, released, strict=True):
        now_s += gap_s
        asked += amount
        assert at_s - now_s <= asked / rate + ROUNDING * (1 + at_s)


@given(RATES, BURSTS, st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), max_size=60))
def test_clock_that_jumps_makes_no_wait_longer_than_the_debt(
    rate: float, burst: float, askings: list[tuple[float, float]]
) -> None:
    """Back or forth by days: nobody waits for the clock to come round again, nobody waits less."""
    bucket, now_s, asked = TokenBucket(rate, burst, now_s=0.0), 0.0, 0.0
    for jump_s, amount in askings:
        now_s += jump_s
        asked += amount
        wait_s = bucket.take(amount, now_s=now_s)
        assert 0 <= wait_s <= asked / rate + DISORDER_S_MAX + ROUNDING * (1 + asked / rate)
        if amount > burst:
            assert wait_s >= (amount - burst) / rate * (1 - ROUNDING) - ROUNDING


@given(RATES, st.integers(2, 50))
def test_clock_that_goes_back_and_forth_earns_one_burst_for_each_jump_at_most(
    rate: float, jumps: int
) -> None:
    """What was earned once is not earned again while the clock comes back."""
    bucket = TokenBucket(rate, rate, now_s=0.0)
    for _ in range(jumps):
        bucket.take(rate, now_s=10.0)
        # A moment back: two threads that read the clock and came in the other order.
        bucket.take(rate, now_s=10.0 - DISORDER_S_MAX / 2)
    debt_s = bucket.take(0, now_s=10.0)
    assert debt_s == pytest.approx(2 * jumps - 1)


@given(st.integers(2, 12), st.floats(1, 1e6))
def test_equal_askers_get_equal_shares(askers: int, rate: float) -> None:
    """Everybody asks again once released: after a while the counts differ by one at most."""
    bucket = TokenBucket(rate, 0, now_s=0.0)
    ready = dict.fromkeys(range(askers), 0.0)
    served = dict.fromkeys(range(askers), 0)
    for _ in range(20 * askers):
        asker = min(ready, key=lambda name: (ready[name], served[name]))
        now_s = ready[asker]
        ready[asker] = now_s + bucket.take(rate / 10, now_s=now_s)
        served[asker] += 1
    assert max(served.values()) - min(served.values()) <= 1
