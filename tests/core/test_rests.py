"""
Owns the tests of core.rests: who is left alone, until when.

Knows nothing of requests.
Invariants: none.
Source: core/rests.py.
"""

from __future__ import annotations

from math import inf

from p2pcache.core.rests import Rests

A, B = "a" * 32, "b" * 32


def test_rest_is_not_cut_short_by_a_shorter_one() -> None:
    """Who is left alone for long, and then for a moment, is left alone for long."""
    rests = Rests()
    rests.rest(A, 10.0)
    rests.rest(A, 5.0)
    rests.shun(B, 10.0)
    rests.shun(B, 5.0)
    for now_s, is_left_alone in [(9.0, True), (10.0, False)]:
        assert rests.is_resting(A, now_s=now_s) is is_left_alone
        assert rests.is_shunned(B, now_s=now_s) is is_left_alone
    assert not rests.is_resting(B, now_s=0.0)
    assert not rests.is_shunned(A, now_s=0.0)
    assert rests.list_peers() == [A, B]


def test_delivery_ends_a_shunning_and_no_rest() -> None:
    """Who gave something is believed; who said that it is busy still is."""
    rests = Rests()
    rests.shun(A, 10.0)
    rests.rest(A, 10.0)
    rests.forgive(A)
    rests.forgive(A)
    assert not rests.is_shunned(A, now_s=0.0)
    assert rests.is_resting(A, now_s=0.0)


def test_next_end_is_that_of_the_rest_that_is_over_first() -> None:
    """Rests that are over do not count; without one there is nothing to wait for."""
    rests = Rests()
    assert rests.find_next_end_s(now_s=0.0) == inf
    rests.rest(A, 3.0)
    rests.shun(B, 2.0)
    assert [rests.find_next_end_s(now_s=now_s) for now_s in (0.0, 2.0, 3.0)] == [2.0, 1.0, inf]
