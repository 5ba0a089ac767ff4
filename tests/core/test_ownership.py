"""
Owns the tests of core.ownership: who owes which chunk.

Knows nothing of leases.
Invariants: the ones that the module's docstring names.
Source: core/ownership.py; design.md §6.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest
from p2pcache.core.ownership import OWNERS_MAX, Ownership
from p2pcache.core.rendezvous import find_owner

BLOB = BlobDigest("sha256", "3c" * 32)
CHUNKS = 64

members_ = st.sets(st.integers(0, 100).map(lambda n: f"{n:032x}"), max_size=60)


def owners_of(members: Iterable[str]) -> list[str | None]:
    """Who owes each chunk."""
    ownership = Ownership(BLOB)
    ownership.set_members(members)
    return [ownership.owner_of(index) for index in range(CHUNKS)]


@given(members_)
def test_owners_are_few_members_and_the_same_for_everybody(members: set[str]) -> None:
    """Whoever computes them from the same members, in whatever order, finds the same."""
    owners = owners_of(members)
    assert owners == owners_of(sorted(members, reverse=True))
    assert set(owners) <= ({*members} if members else {None})
    assert len(set(owners)) <= OWNERS_MAX
    if 0 < len(members) <= OWNERS_MAX:
        assert owners == [find_owner(BLOB, index, members) for index in range(CHUNKS)]


@given(members_, st.integers(0, 59))
def test_owner_that_leaves_moves_its_own_chunks_only(members: set[str], which: int) -> None:
    """Of a small swarm, everybody else keeps what it owes."""
    members = set(sorted(members)[:OWNERS_MAX])
    if not members:
        return
    leaver = sorted(members)[which % len(members)]
    before, after = owners_of(members), owners_of(members - {leaver})
    assert all(new == old for old, new in zip(before, after, strict=True) if old != leaver)


def test_owners_remembered_change_when_the_members_do() -> None:
    """A memory of who owed what before is no answer now."""
    ownership = Ownership(BLOB)
    ownership.set_members(["a"])
    assert ownership.owner_of(0) == "a"
    ownership.set_members(["b"])
    assert ownership.owner_of(0) == "b"
    ownership.set_members([])
    assert ownership.owner_of(0) is None


def test_next_owner_is_one_that_has_not_failed() -> None:
    """Who failed with a chunk does not get it again; when all have, nobody owes it."""
    ownership = Ownership(BLOB)
    ownership.set_members(["a", "b", "c"])
    first = ownership.owner_of(5)
    assert first is not None
    second = ownership.next_owner_of(5, {first})
    assert second is not None
    assert second != first
    assert ownership.next_owner_of(5, {"a", "b", "c"}) is None


def test_owners_share_the_chunks() -> None:
    """With many chunks nobody owes most of them."""
    ownership = Ownership(BLOB)
    ownership.set_members(f"{n:032x}" for n in range(8))
    counts = Counter(ownership.owner_of(index) for index in range(800))
    assert len(counts) == 8
    assert max(counts.values()) < 2 * 100
