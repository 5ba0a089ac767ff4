"""
Owns the tests of core.cadence: who of a pair speaks next, and when.

Knows nothing of messages.
Invariants: the pace does not grow with the number of neighbours.
Source: core/cadence.py; design.md §6.1.
"""

from __future__ import annotations

import pytest

from p2pcache.core.cadence import (
    EXCHANGE_INTERVAL_MAX_S,
    EXCHANGE_INTERVAL_MIN_S,
    EXCHANGES_CROWD_PER_S_MAX,
    EXCHANGES_PER_S_MAX,
    FAR_INTERVAL_S_MIN,
    FAR_VISITS_PER_S_MAX,
    PROBE_INTERVAL_S,
    SECOND_PAUSE_FACTOR,
    Visits,
    find_interval_s,
    find_pause_s,
)
from p2pcache.core.digest import BlobDigest
from p2pcache.core.neighbours import NEIGHBOURS_ALL_MAX, Neighbourhood

BLOB = BlobDigest("sha256", "0" * 64)


def make_hood(known_count: int) -> Neighbourhood:
    """Make the neighbourhood of one of many that all fetch."""
    hood = Neighbourhood("f" * 32)
    members = [f"{number:032x}" for number in range(known_count)]
    hood.update(members, {BLOB: members})
    return hood


@pytest.mark.parametrize(
    ("known_count", "most"),
    [
        (7, EXCHANGES_PER_S_MAX),
        (NEIGHBOURS_ALL_MAX, EXCHANGES_PER_S_MAX),
        (NEIGHBOURS_ALL_MAX + 1, EXCHANGES_CROWD_PER_S_MAX),
        (500, EXCHANGES_CROWD_PER_S_MAX),
    ],
)
def test_exchange_is_begun_by_one_of_a_pair_unless_it_has_nothing_to_say(
    known_count: int, most: float
) -> None:
    """The other one leaves it the time; both together keep the pace that is meant for all."""
    hood = make_hood(known_count)
    first_s = find_interval_s(hood, is_first=True)
    assert len(hood.near) / first_s == pytest.approx(most)
    assert find_interval_s(hood, is_first=False) == SECOND_PAUSE_FACTOR * first_s


def test_pair_alone_speaks_no_more_often_than_it_may() -> None:
    """With one neighbour the share would be more than news there is."""
    hood = make_hood(1)
    for is_first in (True, False):
        assert find_interval_s(hood, is_first=is_first) >= EXCHANGE_INTERVAL_MIN_S
    assert find_interval_s(hood, is_first=True) == EXCHANGE_INTERVAL_MIN_S


@pytest.mark.parametrize("is_busy", [True, False])
def test_pause_is_longer_where_nothing_is_fetched_and_longest_far_away(is_busy: bool) -> None:
    """An address without a peer is tried as often as an idle one; far ones share a rate."""
    few, many = make_hood(5), make_hood(500)
    near, far = min(many.near), min(many.known - many.near)
    usual_s = EXCHANGE_INTERVAL_MAX_S if is_busy else PROBE_INTERVAL_S
    assert find_pause_s(few, min(few.near), is_busy=is_busy) == usual_s
    assert find_pause_s(many, near, is_busy=is_busy) == usual_s
    assert find_pause_s(few, None, is_busy=is_busy) == PROBE_INTERVAL_S
    assert find_pause_s(many, far, is_busy=is_busy) == 500 / FAR_VISITS_PER_S_MAX
    assert find_pause_s(make_hood(20), "e" * 32, is_busy=is_busy) == FAR_INTERVAL_S_MIN


def wait_s(visits: Visits, *, now_s: float, has_smaller_id: bool, current_round: int = 0) -> float:
    """Return the wait among eight."""
    return visits.find_wait_s(
        make_hood(7), has_smaller_id=has_smaller_id, current_round=current_round, now_s=now_s
    )


def test_first_visit_waits_for_nothing() -> None:
    """Whoever turns up is asked at once."""
    assert wait_s(Visits(), now_s=0.0, has_smaller_id=False) == 0.0
    assert Visits().is_due(now_s=0.0)


def test_visitor_who_has_the_smaller_id_is_left_to_begin() -> None:
    """It visited us lately, so it will again; one that never did is not waited for."""
    pause_s = find_interval_s(make_hood(7), is_first=True)
    visits = Visits()
    visits.note_visit(0, now_s=100.0)
    assert wait_s(visits, now_s=100.0, has_smaller_id=False) == pytest.approx(pause_s)
    visits.note_visitor(now_s=100.0)
    assert wait_s(visits, now_s=100.0, has_smaller_id=True) == pytest.approx(pause_s)
    second_s = wait_s(visits, now_s=100.0, has_smaller_id=False)
    assert second_s == pytest.approx(SECOND_PAUSE_FACTOR * pause_s)
    # Its last visit was long ago.
    visits.note_visit(0, now_s=100.1 + PROBE_INTERVAL_S)
    again_s = wait_s(visits, now_s=100.1 + PROBE_INTERVAL_S, has_smaller_id=False)
    assert again_s == pytest.approx(pause_s)


def test_visit_of_the_other_stands_for_ours_but_not_for_ever() -> None:
    """Whether it can still be reached, only a visit of ours tells."""
    visits = Visits()
    visits.note_visit(0, now_s=100.0)
    visits.note_visitor(now_s=101.0)
    assert wait_s(visits, now_s=101.0, has_smaller_id=True) > 0
    assert not visits.is_due(now_s=99.9 + PROBE_INTERVAL_S)
    assert visits.is_due(now_s=100.0 + PROBE_INTERVAL_S)


def test_new_round_is_answered_soon() -> None:
    """A fetch begins with it; a visit in vain is no answer."""
    visits = Visits()
    visits.note_visit(1, now_s=100.0)
    soon_s = wait_s(visits, now_s=100.0, has_smaller_id=True, current_round=2)
    assert soon_s == pytest.approx(EXCHANGE_INTERVAL_MIN_S)
    visits.note_visit(None, now_s=101.0)
    assert visits.round == 1
    visits.note_visit(2, now_s=102.0)
    later_s = wait_s(visits, now_s=102.0, has_smaller_id=True, current_round=2)
    assert later_s > soon_s
