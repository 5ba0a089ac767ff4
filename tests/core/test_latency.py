"""
Owns the tests of core.latency: quantiles that are right within a bucket, and that fade.

Knows nothing of what is timed.
Invariants: the ones that the module's docstring names.
Source: core/latency.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.latency import LatencyHistogram

# A bucket's width: what a quantile may be off.
SLACK = 1.21


@given(st.lists(st.floats(1e-3, 1000.0), min_size=1, max_size=20), st.floats(0.05, 1.0))
def test_quantile_is_within_a_bucket_of_a_duration_that_was_noted(
    durations: list[float], share: float
) -> None:
    """A quantile is near some duration, and never below the share that it names."""
    histogram = LatencyHistogram()
    for duration_s in durations:
        histogram.note(duration_s)
    quantile_s = histogram.quantile_s(share)
    assert any(duration <= quantile_s * 1.001 <= duration * SLACK for duration in durations)
    assert histogram.count == len(durations)


@given(st.lists(st.floats(1e-3, 1000.0), min_size=1), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_quantile_grows_with_its_share(durations: list[float], one: float, other: float) -> None:
    """A larger share is never reached sooner."""
    histogram = LatencyHistogram()
    for duration_s in durations:
        histogram.note(duration_s)
    low, high = sorted([one, other])
    assert histogram.quantile_s(low) <= histogram.quantile_s(high)


def test_quantile_of_nothing_is_zero() -> None:
    """Without a duration there is no quantile, and no failure."""
    assert LatencyHistogram().quantile_s(0.95) == 0.0


def test_quantile_follows_the_network() -> None:
    """Some hundred new durations outweigh a thousand old ones."""
    histogram = LatencyHistogram()
    for _ in range(1000):
        histogram.note(10.0)
    for _ in range(250):
        histogram.note(0.1)
    assert histogram.quantile_s(0.9) == pytest.approx(0.1, rel=0.25)


def test_histogram_of_very_many_durations_keeps_its_numbers_finite() -> None:
    """Weights that grow for ever are scaled down in time."""
    histogram = LatencyHistogram()
    for _ in range(60_000):
        histogram.note(0.5)
    assert histogram.quantile_s(0.5) == pytest.approx(0.5, rel=0.25)
    histogram.note(0.0)
    histogram.note(1e9)
    assert 0.0 < histogram.quantile_s(0.001) < 1e9
