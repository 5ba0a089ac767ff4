"""
Owns the tests of core.replicas: who holds copies, and what changes when somebody leaves.

Knows nothing of orders.
Invariants: as few copies move as possible.
Source: core/replicas.py.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.replicas import ReplicaPlan, plan_replicas, rank_members

ABOUT = "org/name@" + "a" * 40
MEMBERS = {f"peer-{number}" for number in range(6)}
RANKED = rank_members(ABOUT, MEMBERS)


def test_copies_are_ordered_of_the_highest_ranked() -> None:
    """As many as wanted, in rank order; once they are, nothing is left to do."""
    assert plan_replicas(ABOUT, MEMBERS, {}, count=2).order == tuple(RANKED[:2])
    held = dict.fromkeys(RANKED[:2], True)
    assert plan_replicas(ABOUT, MEMBERS, held, count=2) == ReplicaPlan()
    assert plan_replicas(ABOUT, MEMBERS, held, count=4).order == tuple(RANKED[2:4])


def test_holder_that_left_is_replaced_and_released_when_it_is_too_many() -> None:
    """Away for a moment changes nothing; for long, the next in rank; back, the last lets go."""
    first, second, third = RANKED[:3]
    up = MEMBERS - {first}
    assert plan_replicas(ABOUT, up, {first: True, second: True}, count=2) == ReplicaPlan()
    assert plan_replicas(ABOUT, up, {first: False, second: True}, count=2).order == (third,)
    back = {first: True, second: True, third: True}
    assert plan_replicas(ABOUT, MEMBERS, back, count=2).release == (third,)


@given(
    st.sets(st.sampled_from(sorted(MEMBERS))),
    st.dictionaries(st.sampled_from(sorted(MEMBERS)), st.booleans()),
    st.integers(1, 8),
)
def test_plan_ends_with_as_many_copies_as_can_be(
    members: set[str], holders: dict[str, bool], count: int
) -> None:
    """Nobody is ordered who holds or is away, nobody released below the count."""
    plan = plan_replicas(ABOUT, members, holders, count=count)
    counting = {holder for holder, counts in holders.items() if counts}
    assert set(plan.order) <= members - counting
    assert set(plan.release) <= members & counting
    after = (counting | set(plan.order)) - set(plan.release)
    assert len(after) >= min(count, len(counting | members))
    assert not (plan.order and plan.release)
