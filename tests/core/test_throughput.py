"""
Owns the tests of core.throughput: rates and estimates from counts.

Knows nothing of clocks.
Invariants: an even flow is estimated right; the careful estimate is never the shorter one.
Source: core/throughput.py.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.throughput import Throughput


def test_even_flow_is_measured_and_estimated_right() -> None:
    """A thousand bytes a second are that, and the rest takes what it takes."""
    flow = Throughput()
    for step in range(61):
        flow.note(step * 500, now_s=100 + step / 2)
    assert abs(flow.rate_bps() - 1000) < 1
    assert abs((flow.eta_s(20_000) or 0) - 20) < 0.1
    assert abs((flow.careful_eta_s(20_000) or 0) - 20) < 0.1


def test_nothing_that_moves_has_no_end() -> None:
    """No estimate before two counts, or while all stands still; a reset forgets."""
    flow = Throughput()
    assert (flow.rate_bps(), flow.eta_s(5), flow.careful_eta_s(5)) == (0.0, None, None)
    for step in range(100):
        flow.note(70, now_s=float(step))
    assert (flow.rate_bps(), flow.eta_s(5)) == (0.0, None)
    flow.note(7000, now_s=100.0)
    assert flow.rate_bps() > 0
    flow.reset()
    assert flow.rate_bps() == 0.0


def test_stall_makes_the_careful_estimate_longer() -> None:
    """A line that stood for five of fifteen seconds may do so again."""
    flow = Throughput()
    moved = 0
    for step in range(150):
        moved += 0 if 50 <= step < 100 else 100
        flow.note(moved, now_s=step / 10)
    likely, careful = flow.eta_s(10_000), flow.careful_eta_s(10_000)
    assert likely is not None
    assert careful is not None
    assert careful > 2 * likely


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 10**9)), max_size=60))
def test_careful_is_never_shorter(steps: list[tuple[float, int]]) -> None:
    """Whatever comes, memory is bounded, nothing is negative, and careful is at least likely."""
    flow, now_s, moved = Throughput(), 0.0, 0
    for pause_s, count in steps:
        now_s, moved = now_s + pause_s, moved + count
        flow.note(moved, now_s=now_s)
        likely, careful = flow.eta_s(1000), flow.careful_eta_s(1000)
        assert (likely is None) == (careful is None)
        if likely is not None and careful is not None:
            assert 0 <= likely <= careful * 1.000001
    assert len(flow._samples) < 200
