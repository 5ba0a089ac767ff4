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
