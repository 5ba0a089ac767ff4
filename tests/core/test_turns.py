"""
Owns the tests of core.turns.

Knows nothing of sockets.
Invariants: a seeder never turns few askers away; a slow receiver keeps nobody waiting for ever.
Source: core/turns.py.
"""

from __future__ import annotations

from collections import Counter

import pytest

from p2pcache.core.transitions import BUSY_REST_S
from p2pcache.core.turns import (
    ASKERS_FEW_MAX,
    CHUNKS_FOR_A_RUN_MORE,
    RETURN_S,
    RUNS_AT_FIRST,
    RUNS_MAX,
    TURN_S,
    TURNS_MAX,
    WAITING_MAX,
    UploadTurns,
)


def fill(turns: UploadTurns, *, held_chunks: int | None, asks: int) -> list[int]:
    """Let different askers come, one after the other; return the numbers of those who may."""
    return [
        turns.begin(f"asker {number}", now_s=0.0)
        for number in range(asks)
        if turns.may_begin(f"asker {number}", is_crowded=True, held_chunks=held_chunks, now_s=0.0)
    ]


@pytest.mark.parametrize(
    ("held_chunks", "most"),
    [
        (0, RUNS_AT_FIRST),
        (CHUNKS_FOR_A_RUN_MORE - 1, RUNS_AT_FIRST),
        (CHUNKS_FOR_A_RUN_MORE, RUNS_AT_FIRST + 1),
        (100 * CHUNKS_FOR_A_RUN_MORE, RUNS_MAX),
        (None, TURNS_MAX),
    ],
)
def test_turns_of_a_crowd_are_few_and_come_back(held_chunks: int | None, most: int) -> None:
    """So many are served at once, and the next one as soon as one is done."""
    turns = UploadTurns()
    numbers = fill(turns, held_chunks=held_chunks, asks=20)
    assert len(numbers) == most
    assert not turns.may_begin("another", is_crowded=True, held_chunks=held_chunks, now_s=1.0)
    turns.end(numbers[0])
    assert turns.may_begin("another", is_crowded=True, held_chunks=held_chunks, now_s=1.0)


def test_turns_without_a_crowd_are_not_counted() -> None:
    """Where all talk to all, nobody is turned away."""
    turns = UploadTurns()
    fill(turns, held_chunks=0, asks=20)
    assert turns.may_begin("another", is_crowded=False, held_chunks=0, now_s=0.0)


def test_turns_of_few_askers_are_not_counted() -> None:
    """Four that ask for several files at once are all served by one that fetches nothing."""
    turns = UploadTurns()
    for number in range(3 * TURNS_MAX):
        asker = f"asker {number % ASKERS_FEW_MAX}"
        assert turns.may_begin(asker, is_crowded=True, held_chunks=None, now_s=0.0)
        turns.begin(asker, now_s=0.0)


def test_turns_of_slow_receivers_keep_others_waiting_for_a_while_only() -> None:
    """Who receives at a crawl does not shut the others out."""
    turns = UploadTurns()
    fill(turns, held_chunks=0, asks=20)
    assert not turns.may_begin("another", is_crowded=True, held_chunks=0, now_s=TURN_S - 0.1)
    assert turns.may_begin("another", is_crowded=True, held_chunks=0, now_s=TURN_S)


@pytest.mark.parametrize(
    ("hosts", "runs", "share"), [(12, 1, 0.8), (8, 2, 0.5), (6, 3, 0.5), (20, 2, 0.5)]
)
def test_turns_of_a_seeder_come_round(hosts: int, runs: int, share: float) -> None:
    """
    Who has just received asks again at once; the place goes to whoever was turned away before.

    Those that ask as the daemons do, again soon after they were turned away, receive about
    alike; a host that asks for several runs at once waits for all of them in one place.
    """
    turns = UploadTurns()
    ask_s = [(f"asker {number % hosts}", 0.0) for number in range(hosts * runs)]
    received = Counter({asker: 0 for asker, _ in ask_s})
    under_way: list[tuple[float, str, int]] = []
    for step in range(3000):
        now_s = step / 100
        for end_s, asker, number in [u for u in under_way if u[0] <= now_s]:
            under_way.remove((end_s, asker, number))
            turns.end(number)
            received[asker] += 1
            ask_s.append((asker, now_s))
        for asker, due_s in [a for a in ask_s if a[1] <= now_s]:
            ask_s.remove((asker, due_s))
            if turns.may_begin(asker, is_crowded=True, held_chunks=None, now_s=now_s):
                under_way.append((now_s + 0.7, asker, turns.begin(asker, now_s=now_s)))
            else:
                ask_s.append((asker, now_s + BUSY_REST_S))
    assert min(received.values()) >= share * max(received.values()), received
    assert sum(received.values()) >= 0.75 * TURNS_MAX * 30.0 / 0.7, "places stay empty"


def test_turns_of_a_seeder_are_not_kept_for_who_does_not_come_back() -> None:
    """Whoever found another source holds up nobody."""
    turns = UploadTurns()
    numbers = fill(turns, held_chunks=None, asks=20)
    turns.end(numbers[0])
    assert not turns.may_begin("another", is_crowded=True, held_chunks=None, now_s=0.1)
    assert turns.may_begin("another", is_crowded=True, held_chunks=None, now_s=RETURN_S + 0.1)


def test_turns_of_a_seeder_remember_a_bounded_number() -> None:
    """A flood of askers takes no more memory than a crowd, and is forgotten as soon."""
    turns = UploadTurns()
    fill(turns, held_chunks=None, asks=20 * WAITING_MAX)
    assert len(turns._waiting) == WAITING_MAX
    assert not turns.may_begin("another", is_crowded=True, held_chunks=None, now_s=1.0)
    assert list(turns._waiting) == ["another"]


def test_turns_end_of_nothing_is_nothing() -> None:
    """An upload that never began, or ended before, may end."""
    turns = UploadTurns()
    turns.end(0)
    for number in fill(turns, held_chunks=0, asks=20):
        turns.end(number)
        turns.end(number)
    assert turns.may_begin("another", is_crowded=True, held_chunks=0, now_s=0.0)
