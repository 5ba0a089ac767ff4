"""
Owns the tests of the hub's count of requests.

Knows nothing of HTTP.
Invariants: a quota that was used up is whole again in the next window.
Source: tests/hub/quota.py.
"""

from __future__ import annotations

from tests.hub.quota import WINDOW_S, Quota


def test_quota_is_whole_again_in_the_next_window() -> None:
    """A hub that lives for hours does not tell its clients for ever that they asked too much."""
    now_s = 50.0
    quota = Quota(3, lambda: now_s)
    assert [quota.use()[0] for _ in range(4)] == [2, 1, 1, 1]
    now_s += WINDOW_S - 1
    assert quota.use() == (1, 1)
    now_s += 1
    assert quota.use() == (2, WINDOW_S)
