"""
Owns the tests of core.turns.

Knows nothing of sockets.
Invariants: few askers are never turned away; a slow receiver keeps nobody waiting for ever.
Source: core/turns.py.
"""

from __future__ import annotations

import pytest

from p2pcache.core.turns import (
    ASKERS_FEW_MAX,
    TURN_S,
    TURNS_FETCHING_MAX,
    TURNS_MAX,
    UploadTurns,
)


def fill(turns: UploadTurns, *, is_fetching: bool, asks: int) -> list[int]:
    """Let different askers come, one after the other; return the numbers of those who may."""
    return [
        turns.begin(f"asker {number}", now_s=0.0)
        for number in range(asks)
        if turns.may_begin(f"asker {number}", is_crowded=True, is_fetching=is_fetching, now_s=0.0)
    ]


@pytest.mark.parametrize(("is_fetching", "most"), [(True, TURNS_FETCHING_MAX), (False, TURNS_MAX)])
def test_turns_of_a_crowd_are_few_and_come_back(is_fetching: bool, most: int) -> None:
    """So many are served at once, and the next one as soon as one is done."""
    turns = UploadTurns()
    numbers = fill(turns, is_fetching=is_fetching, asks=20)
    assert len(numbers) == most
    assert not turns.may_begin("another", is_crowded=True, is_fetching=is_fetching, now_s=1.0)
    turns.end(numbers[0])
    assert turns.may_begin("another", is_crowded=True, is_fetching=is_fetching, now_s=1.0)


def test_turns_without_a_crowd_are_not_counted() -> None:
    """Where all talk to all, nobody is turned away."""
    turns = UploadTurns()
    fill(turns, is_fetching=True, asks=20)
    assert turns.may_begin("another", is_crowded=False, is_fetching=True, now_s=0.0)


def test_turns_of_few_askers_are_not_counted() -> None:
    """Four that ask for several files at once are all served."""
    turns = UploadTurns()
    for number in range(3 * TURNS_MAX):
        asker = f"asker {number % ASKERS_FEW_MAX}"
        assert turns.may_begin(asker, is_crowded=True, is_fetching=True, now_s=0.0)
        turns.begin(asker, now_s=0.0)


def test_turns_of_slow_receivers_keep_others_waiting_for_a_while_only() -> None:
    """Who receives at a crawl does not shut the others out."""
    turns = UploadTurns()
    fill(turns, is_fetching=True, asks=20)
    assert not turns.may_begin("another", is_crowded=True, is_fetching=True, now_s=TURN_S - 0.1)
    assert turns.may_begin("another", is_crowded=True, is_fetching=True, now_s=TURN_S)


def test_turns_end_of_nothing_is_nothing() -> None:
    """An upload that never began, or ended before, may end."""
    turns = UploadTurns()
    turns.end(0)
    for number in fill(turns, is_fetching=True, asks=20):
        turns.end(number)
        turns.end(number)
    assert turns.may_begin("another", is_crowded=True, is_fetching=True, now_s=0.0)
