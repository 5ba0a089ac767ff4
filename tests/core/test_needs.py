"""
Owns the tests of core.needs: whose turn it is at a lone seeder and at the hub.

Knows nothing of chunks.
Invariants: none.
Source: core/needs.py.
"""

from __future__ import annotations

from collections import Counter

from p2pcache.core.digest import BlobDigest
from p2pcache.core.needs import IN_A_ROW_MAX, FirstCopyNeeds
from p2pcache.core.views import UPSTREAM

SEEDER, OTHER_SEEDER = "5" * 32, "6" * 32
ONE, TWO, THREE = (BlobDigest("sha256", digit * 64) for digit in "123")


def take_turns(
    needs: FirstCopyNeeds, count: int, *, source_id: str = SEEDER, requests_inflight: int = 0
) -> list[BlobDigest]:
    """Ask a source so often for whatever has its turn."""
    turns = []
    for _ in range(count):
        blob = needs.find_first_owing(source_id, requests_inflight=requests_inflight)
        assert blob is not None
        needs.note_asked(blob, source_id)
        turns.append(blob)
    return turns


def test_smallest_blob_comes_first_and_of_equal_ones_the_first_by_name() -> None:
    """A small file that others wait for too is through before a model's weights."""
    needs = FirstCopyNeeds()
    needs.note(TWO, SEEDER, size_bytes=9, owes=True)
    needs.note(ONE, SEEDER, size_bytes=9, owes=True)
    assert needs.find_first_owing(SEEDER) == ONE
    assert not needs.is_turn_of(TWO, SEEDER, size_bytes=9)
    assert needs.is_turn_of(THREE, SEEDER, size_bytes=8), "it has not said yet that it owes"
    assert not needs.is_turn_of(THREE, SEEDER, size_bytes=9)
    needs.note(THREE, SEEDER, size_bytes=8, owes=True)
    assert needs.find_first_owing(SEEDER) == THREE
    assert needs.find_first_owing(OTHER_SEEDER) is None
    assert needs.is_turn_of(TWO, OTHER_SEEDER, size_bytes=9)


def test_blob_that_waits_gets_a_place_now_and_then() -> None:
    """A large file that comes after ever new ones would wait for ever, on other machines too."""
    needs = FirstCopyNeeds()
    for size_bytes, blob in enumerate([ONE, TWO, THREE]):
        needs.note(blob, SEEDER, size_bytes=size_bytes, owes=True)
    turns = take_turns(needs, 4 * (IN_A_ROW_MAX + 1))
    assert turns[:IN_A_ROW_MAX] == [ONE] * IN_A_ROW_MAX
    assert Counter(turns) == {ONE: 4 * IN_A_ROW_MAX, TWO: 2, THREE: 2}


def test_blob_that_stands_back_or_is_forgotten_makes_nobody_wait() -> None:
    """It may be asked for again later; forgetting twice is no harm."""
    needs = FirstCopyNeeds()
    needs.note(ONE, SEEDER, size_bytes=1, owes=True)
    needs.note(TWO, SEEDER, size_bytes=2, owes=True)
    needs.stand_back(ONE)
    assert needs.is_turn_of(TWO, SEEDER, size_bytes=2)
    assert needs.is_needed_elsewhere(TWO, SEEDER), "its line is still needed"
    needs.forget(ONE)
    needs.forget(ONE)
    needs.stand_back(ONE)
    assert not needs.is_needed_elsewhere(TWO, SEEDER)
    take_turns(needs, IN_A_ROW_MAX)
    needs.forget(TWO)
    assert needs == FirstCopyNeeds(), "nothing is left of what is over"
    needs.note(ONE, SEEDER, size_bytes=1, owes=True)
    assert take_turns(needs, 1) == [ONE], "what was asked for then is over"


def test_blobs_take_turns_at_the_hub() -> None:
    """Their chunks come side by side, each from its start on, and are proven on the way."""
    needs = FirstCopyNeeds()
    for size_bytes, blob in enumerate([THREE, ONE, TWO]):
        needs.note(blob, UPSTREAM, size_bytes=size_bytes, owes=True)
    assert take_turns(needs, 6, source_id=UPSTREAM) == [THREE, ONE, TWO] * 2
    needs.note_asked(THREE, UPSTREAM)
    assert needs.is_turn_of(ONE, UPSTREAM, size_bytes=1)
    assert not needs.is_turn_of(THREE, UPSTREAM, size_bytes=0)
    needs.forget(ONE)
    needs.note(ONE, UPSTREAM, size_bytes=9, owes=True)
    assert take_turns(needs, 2, source_id=UPSTREAM) == [ONE, TWO], "it is as if it were new"
    assert needs.count(UPSTREAM) == 3
    assert needs.count(SEEDER) == 0


def test_blob_waits_for_no_other_one_that_could_not_ask_now() -> None:
    """A member of a swarm may have one request under way, who fetches alone eight."""
    needs = FirstCopyNeeds()
    needs.note(ONE, UPSTREAM, size_bytes=1, owes=True, requests_max=1)
    needs.note(TWO, UPSTREAM, size_bytes=2, owes=True, requests_max=8)
    needs.note_asked(TWO, UPSTREAM)
    assert take_turns(needs, 1, source_id=UPSTREAM) == [ONE]
    needs.note_asked(TWO, UPSTREAM)
    for requests_inflight, is_turn in [(0, False), (1, True)]:
        assert is_turn is needs.is_turn_of(
            TWO, UPSTREAM, size_bytes=2, requests_inflight=requests_inflight
        )
        assert is_turn is not needs.owes_elsewhere(
            TWO, UPSTREAM, requests_inflight=requests_inflight
        )
    assert take_turns(needs, 2, source_id=UPSTREAM, requests_inflight=1) == [TWO, TWO]
