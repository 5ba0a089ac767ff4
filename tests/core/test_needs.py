"""
Owns the tests of core.needs: whose turn it is on a lone seeder's line.

Knows nothing of chunks.
Invariants: none.
Source: core/needs.py.
"""

from __future__ import annotations

from collections import Counter

from p2pcache.core.digest import BlobDigest
from p2pcache.core.needs import IN_A_ROW_MAX, LoneNeeds

SEEDER, OTHER_SEEDER = "5" * 32, "6" * 32
ONE, TWO, THREE = (BlobDigest("sha256", digit * 64) for digit in "123")


def take_turns(needs: LoneNeeds, count: int) -> list[BlobDigest]:
    """Ask the seeder so often for whatever has its turn."""
    turns = []
    for _ in range(count):
        blob = needs.find_first_owing(SEEDER)
        assert blob is not None
        needs.note_asked(blob, SEEDER)
        turns.append(blob)
    return turns


def test_smallest_blob_comes_first_and_of_equal_ones_the_first_by_name() -> None:
    """A small file that others wait for too is through before a model's weights."""
    needs = LoneNeeds()
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
    needs = LoneNeeds()
    for size_bytes, blob in enumerate([ONE, TWO, THREE]):
        needs.note(blob, SEEDER, size_bytes=size_bytes, owes=True)
    turns = take_turns(needs, 4 * (IN_A_ROW_MAX + 1))
    assert turns[:IN_A_ROW_MAX] == [ONE] * IN_A_ROW_MAX
    assert Counter(turns) == {ONE: 4 * IN_A_ROW_MAX, TWO: 2, THREE: 2}


def test_blob_that_stands_back_or_is_forgotten_makes_nobody_wait() -> None:
    """It may be asked for again later; forgetting twice is no harm."""
    needs = LoneNeeds()
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
    assert needs == LoneNeeds(), "nothing is left of what is over"
    needs.note(ONE, SEEDER, size_bytes=1, owes=True)
    assert take_turns(needs, 1) == [ONE], "what was asked for then is over"
