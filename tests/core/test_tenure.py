"""
Owns the tests of core.tenure: how long a member keeps what it owes.

Knows nothing of messages.
Invariants: a lease ends by want of progress alone; who owes nothing does not stall.
Source: core/tenure.py; design.md §6.2.
"""

from __future__ import annotations

import pytest

from p2pcache.core.tenure import (
    CLAIM_PATIENCE_FACTOR,
    LEASE_JITTER_S,
    LEASE_S,
    PACE_WATCH_S,
    PROGRESS_BYTES_MIN,
    SLOW_S,
    Tenure,
)

CHUNK_BYTES = 100
TICK_S = 0.25


class Scene:
    """A tenure that is told, a quarter of a second at a time, what members say."""

    def __init__(self) -> None:
        self.tenure = Tenure()
        self.now_s = 50.0
        self.bytes: dict[str, int] = {}

    def pass_time(self, duration_s: float, *owing: str, **steps_per_s: int) -> set[str]:
        """Let time pass in which members make so many steps; return who stalls at the end."""
        for _ in range(round(duration_s / TICK_S)):
            self.now_s += TICK_S
            for name in {*steps_per_s, *self.bytes, *owing}:
                more = int(steps_per_s.get(name, 0) * TICK_S * PROGRESS_BYTES_MIN)
                total = self.bytes[name] = self.bytes.get(name, 0) + more
                self.tenure.note_progress(
                    name, moved_bytes=total, received_bytes=total, now_s=self.now_s
                )
            self.tenure.note_owing(set(owing), now_s=self.now_s, jitter=0.0)
        return self.tenure.find_stalled(now_s=self.now_s)

    def claim(self, *claims: tuple[str, int]) -> dict[int, set[str]]:
        """Take in what is announced; return what has lapsed."""
        self.tenure.note_claims(claims, lambda _: CHUNK_BYTES)
        return self.tenure.find_lapsed()

    def receive(self, name: str, received_bytes: int) -> None:
        """Let a member say what it has received in all."""
        self.tenure.note_progress(
            name, moved_bytes=received_bytes, received_bytes=received_bytes, now_s=self.now_s
        )


def test_member_that_owes_and_receives_nothing_stalls_after_the_lease() -> None:
    """Not before, and not by a clock alone."""
    scene = Scene()
    assert scene.pass_time(LEASE_S - 1.0, "a") == set()
    assert scene.pass_time(2.0, "a") == {"a"}


def test_member_that_receives_something_keeps_its_lease() -> None:
    """Slow is not dead: a byte now and then is enough, among equals."""
    assert Scene().pass_time(60.0, "a", a=8) == set()


def test_member_that_owes_nothing_does_not_stall() -> None:
    """Who waits for others makes no progress, and is not to blame."""
    scene = Scene()
    assert scene.pass_time(60.0, a=0) == set()
    # What it did not receive while it owed nothing does not count afterwards.
    assert scene.pass_time(LEASE_S - 1.0, "a") == set()


def test_member_that_moves_again_counts_again() -> None:
    """A thawed member owes what it owed."""
    scene = Scene()
    assert scene.pass_time(LEASE_S + 1.0, "a") == {"a"}
    assert scene.pass_time(1.0, "a", a=100) == set()


def test_lease_ends_a_little_later_by_chance() -> None:
    """Members whose views differ do not all step in at once."""
    scene = Scene()
    tenure = scene.tenure
    for now_s in (0.0, LEASE_S + LEASE_JITTER_S / 2):
        tenure.note_progress("a", moved_bytes=0, received_bytes=0, now_s=0.0)
        tenure.note_owing({"a"}, now_s=now_s, jitter=1.0)
    assert tenure.find_stalled(now_s=6.0) == set()
    tenure.note_owing({"a"}, now_s=LEASE_S + LEASE_JITTER_S / 2, jitter=0.1)
    assert tenure.find_stalled(now_s=6.0) == {"a"}


def test_member_far_slower_than_the_others_owes_nothing_for_a_while() -> None:
    """It holds up everybody; lines recover, so it is tried again."""
    scene = Scene()
    stalled = scene.pass_time(2 * PACE_WATCH_S, "a", "b", "c", a=8, b=1000, c=1000)
    assert stalled == {"a"}
    assert scene.pass_time(SLOW_S - 2.0, b=1000, c=1000) == {"a"}
    assert scene.pass_time(4.0, b=1000, c=1000) == set()


def test_member_that_is_slow_counts_as_such_only_while_it_moves() -> None:
    """What it announced may still come; of one that stands, nothing will."""
    scene = Scene()
    scene.pass_time(2 * PACE_WATCH_S, "a", "b", "c", a=8, b=1000, c=1000)
    assert scene.tenure.find_slow(now_s=scene.now_s) == {"a"}
    assert scene.pass_time(LEASE_S + 1.0, "a", b=1000, c=1000) == {"a"}
    assert scene.tenure.find_slow(now_s=scene.now_s) == set()


def test_member_that_is_half_as_fast_keeps_what_it_owes() -> None:
    """Lines differ; only who is far off holds up everybody."""
    assert Scene().pass_time(20.0, "a", "b", "c", a=500, b=1000, c=1000) == set()


def test_pace_of_one_member_alone_is_no_measure() -> None:
    """Without others there is nobody to compare with."""
    assert Scene().pass_time(20.0, "a", a=4, b=1000) == set()


def test_claim_that_is_overtaken_by_other_chunks_lapses() -> None:
    """Who brings twice what it had announced, and not this chunk, does not bring this chunk."""
    scene = Scene()
    scene.receive("a", 0)
    assert scene.claim(("a", 1), ("a", 2)) == {}
    scene.receive("a", CLAIM_PATIENCE_FACTOR * 2 * CHUNK_BYTES)
    assert scene.claim(("a", 2)) == {}
    scene.receive("a", CLAIM_PATIENCE_FACTOR * 2 * CHUNK_BYTES + 1)
    assert scene.claim(("a", 2)) == {2: {"a"}}


def test_claims_that_come_in_order_do_not_lapse() -> None:
    """The last of many that were announced together is waited for."""
    scene = Scene()
    scene.receive("a", 0)
    for done in range(32):
        scene.receive("a", done * CHUNK_BYTES)
        assert scene.claim(*(("a", index) for index in range(done, 32))) == {}


def test_claim_that_is_made_anew_is_waited_for_anew() -> None:
    """What was announced, given up and announced again begins from there."""
    scene = Scene()
    scene.receive("a", 0)
    scene.claim(("a", 1))
    scene.receive("a", 1000)
    assert scene.claim(("a", 1)) == {1: {"a"}}
    assert scene.claim() == {}
    assert scene.claim(("a", 1)) == {}


def test_claims_of_two_members_lapse_apart() -> None:
    """One that waits is not judged by what the other one brings."""
    scene = Scene()
    scene.receive("a", 0)
    scene.receive("b", 0)
    scene.claim(("a", 1), ("b", 1))
    scene.receive("b", 1000)
    assert scene.claim(("a", 1), ("b", 1)) == {1: {"b"}}


@pytest.mark.parametrize("is_known", [True, False])
def test_member_that_left_is_forgotten(is_known: bool) -> None:
    """One that comes back begins with a clean slate."""
    scene = Scene()
    scene.pass_time(LEASE_S + 1.0, "a")
    scene.tenure.forget({"a"} if is_known else set())
    assert scene.tenure.find_stalled(now_s=scene.now_s) == ({"a"} if is_known else set())


@pytest.mark.parametrize(("chunk_s", "is_late"), [(0.1, True), (2.0, False), (0.0, False)])
def test_claim_that_takes_far_longer_than_chunks_take_us_lapses(
    chunk_s: float, is_late: bool
) -> None:
    """Who moves on below an eighth of our own pace is not waited for."""
    tenure = Tenure()
    for now_s in (100.0, 100.0 + LEASE_S + 0.1):
        tenure.note_claims([("a", 3)], lambda _: CHUNK_BYTES, now_s=now_s, chunk_s=chunk_s)
    assert tenure.find_lapsed() == ({3: {"a"}} if is_late else {})
