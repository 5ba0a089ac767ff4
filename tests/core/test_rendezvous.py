"""
Owns the tests of core.rendezvous.

Knows nothing of swarms.
Invariants: the owner depends on the set of members only; a leaver moves only what it owned.
Source: core/rendezvous.py.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest
from p2pcache.core.rendezvous import find_owner

BLOB = BlobDigest("sha256", "0" * 64)
member_lists = st.lists(
    st.text("0123456789abcdef", min_size=4, max_size=4), min_size=1, unique=True
)


@given(member_lists, st.integers(0, 1 << 20), st.randoms(use_true_random=False))
def test_owner_any_order_of_members_is_the_same(
    members: list[str], chunk_index: int, random: Random
) -> None:
    """Every member computes the same owner, whatever order it knows the others in."""
    shuffled = random.sample(members, len(members))
    assert find_owner(BLOB, chunk_index, members) == find_owner(BLOB, chunk_index, shuffled)


@given(member_lists.filter(lambda members: len(members) > 1), st.integers(0, 1 << 20))
def test_owner_a_leaver_moves_only_its_own_chunks(members: list[str], chunk_index: int) -> None:
    """A chunk changes hands only when its owner leaves."""
    owner = find_owner(BLOB, chunk_index, members)
    for leaver in members:
        rest = [member for member in members if member != leaver]
        moved = find_owner(BLOB, chunk_index, rest) != owner
        assert moved is (leaver == owner)


def test_owner_many_chunks_are_spread_evenly() -> None:
    """Eight members own about an eighth each: within 15 % over 8,000 chunks."""
    members = [f"{n:032x}" for n in range(8)]
    owned = Counter(find_owner(BLOB, index, members) for index in range(8000))
    assert set(owned) == set(members)
    assert all(850 <= count <= 1150 for count in owned.values())


def test_owner_other_blob_is_spread_otherwise() -> None:
    """The blob is part of the score, so that small blobs do not all have one owner."""
    members = [f"{n:032x}" for n in range(8)]
    blobs = [BlobDigest("gitsha1", f"{n:040x}") for n in range(64)]
    assert len({find_owner(blob, 0, members) for blob in blobs}) == 8


def test_owner_nobody_is_none() -> None:
    """No member, no owner."""
    assert find_owner(BLOB, 0, []) is None
