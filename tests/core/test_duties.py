"""
Owns the tests of core.duties: who owes what, from what members say.

Knows nothing of runs.
Invariants: what somebody who moves has announced, nobody else owes.
Source: core/duties.py; design.md §6.2.
"""

from __future__ import annotations

import pytest

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.duties import WATCH_INTERVAL_S, Duties
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.ownership import Ownership
from p2pcache.core.pace import Pace
from p2pcache.core.tenure import CLAIM_PATIENCE_FACTOR, LEASE_S, PACE_WATCH_S
from p2pcache.core.views import PeerView

BLOB = BlobDigest("sha256", "0" * 64)
SELF_ID, SLOW, OTHER = "f" * 32, "1" * 32, "2" * 32
COUNT = 4
NONE = Bitfield(COUNT)


class Scene:
    """Duties that hear of two members every quarter of a second."""

    def __init__(self) -> None:
        self.ownership = Ownership(BLOB)
        self.ownership.set_members([SELF_ID, OTHER])
        self.pace = Pace()
        self.duties = Duties(SELF_ID, Layout(COUNT * CHUNK_SIZE_BYTES), self.ownership, self.pace)
        self.now_s = 50.0
        self.bytes = {SLOW: 0, OTHER: 0}
        self.hub_only = set[str]()
        self.intents = {SLOW: Bitfield.of(COUNT, [1]), OTHER: Bitfield.of(COUNT, [0, 2, 3])}

    def pass_time(self, duration_s: float, *, slow_bps: float, other_bps: float) -> None:
        """Let both receive for so long, of other blobs too."""
        for _ in range(round(duration_s / WATCH_INTERVAL_S)):
            self.now_s += WATCH_INTERVAL_S
            self.bytes[SLOW] += int(slow_bps * WATCH_INTERVAL_S)
            self.bytes[OTHER] += int(other_bps * WATCH_INTERVAL_S)
            peers = [
                PeerView(
                    name,
                    NONE,
                    self.intents[name],
                    is_fetching=True,
                    can_fetch_upstream=True,
                    received_bytes=self.bytes[name],
                    moved_bytes=self.bytes[name],
                    is_hub_only=name in self.hub_only,
                )
                for name in (SLOW, OTHER)
            ]
            self.duties.watch(
                peers,
                NONE,
                NONE,
                first_copy_bytes=0,
                now_s=self.now_s,
                jitter=0.0,
                is_distrusted=False,
                is_cut_off=False,
            )


def test_slow_member_is_told_from_one_that_stands() -> None:
    """Both own nothing; what the slow one announced may still come."""
    scene = Scene()
    scene.pass_time(2 * PACE_WATCH_S, slow_bps=300e3, other_bps=10e6)
    assert scene.duties.stalled == scene.duties.slow == {SLOW}
    scene.pass_time(LEASE_S + 1.0, slow_bps=0, other_bps=10e6)
    assert SLOW in scene.duties.stalled
    assert scene.duties.slow == set()


@pytest.mark.parametrize(("slow_bps", "is_let_off"), [(300e3, True), (0, False)])
def test_owner_of_what_a_slow_member_announced_does_not_let_it_lapse(
    slow_bps: float, is_let_off: bool
) -> None:
    """It leaves the chunk to the slow one on purpose, however much it brings meanwhile."""
    scene = Scene()
    scene.ownership.set_members([OTHER])
    scene.pass_time(2 * LEASE_S, slow_bps=slow_bps, other_bps=10e6)
    scene.intents[OTHER] = NONE
    brought = CLAIM_PATIENCE_FACTOR * (1 + COUNT) * CHUNK_SIZE_BYTES
    scene.pass_time(brought / 10e6, slow_bps=slow_bps, other_bps=10e6)
    assert (OTHER not in scene.duties.lapsed.get(1, set())) is is_let_off


def test_owner_of_what_is_left_to_another_one_does_not_stall() -> None:
    """Who leaves its chunks to a member that brings everything owes nothing meanwhile."""
    scene = Scene()
    scene.ownership.set_members([SELF_ID, OTHER, SLOW])
    scene.intents = {SLOW: Bitfield.of(COUNT, [0]), OTHER: NONE}
    scene.hub_only = {SLOW}
    scene.pass_time(2 * LEASE_S, slow_bps=3e6, other_bps=0)
    assert scene.duties.stalled == set()
    assert scene.duties.lapsed == {}


def test_member_that_says_it_brings_everything_and_stands_keeps_nothing() -> None:
    """Its lease ends as that of any other, and with it what was left to it."""
    scene = Scene()
    scene.ownership.set_members([SELF_ID, SLOW])
    scene.intents = {SLOW: NONE, OTHER: NONE}
    scene.hub_only = {SLOW}
    view = PeerView(SLOW, NONE, NONE, is_fetching=True, can_fetch_upstream=True, is_hub_only=True)
    scene.pass_time(WATCH_INTERVAL_S, slow_bps=0, other_bps=0)
    assert scene.duties.leave([view], NONE)[0].intent.is_full()
    scene.pass_time(LEASE_S + 2 * WATCH_INTERVAL_S, slow_bps=0, other_bps=0)
    assert scene.duties.stalled == {SLOW}
    assert not scene.duties.leave([view], NONE)[0].intent


def test_member_that_says_it_brings_everything_and_brings_nothing_lets_it_lapse() -> None:
    """Bytes that it says it received do not turn up as chunks: it is waited for no longer."""
    scene = Scene()
    scene.ownership.set_members([SELF_ID, SLOW])
    scene.intents = {SLOW: NONE, OTHER: NONE}
    scene.hub_only = {SLOW}
    said_bytes = (CLAIM_PATIENCE_FACTOR * COUNT + 1) * CHUNK_SIZE_BYTES
    scene.pass_time(said_bytes / 10e6 + WATCH_INTERVAL_S, slow_bps=10e6, other_bps=0)
    assert scene.duties.lapsed == {index: {SLOW} for index in range(COUNT)}
