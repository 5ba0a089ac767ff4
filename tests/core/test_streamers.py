"""
Owns the tests of core.streamers: what is left to a member that brings everything itself.

Knows nothing of how paces are measured.
Invariants: none.
Source: core/streamers.py; docs/decisions/0035.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.streamers import LAG_S_MAX, SHARE_MIN, UNCOMPARED_S_MAX, find_left_to
from p2pcache.core.views import PeerView

COUNT = 1000
LAYOUT = Layout(COUNT * CHUNK_SIZE_BYTES)
NONE = Bitfield(COUNT)
HELD = Bitfield.of(COUNT, range(100))
STREAMER = PeerView(
    "1" * 32, HELD, NONE, is_fetching=True, can_fetch_upstream=True, is_hub_only=True
)
# Ten chunks a second.
PACE_BPS = 10.0 * CHUNK_SIZE_BYTES


def left_to(
    peer: PeerView,
    have: Bitfield = HELD,
    *,
    pace_bps: float | None = PACE_BPS,
    share: float | None = 1.0,
) -> list[int]:
    """List what is left to a member."""
    return list(find_left_to(peer, have, LAYOUT, pace_bps=pace_bps, share=share))


def test_member_that_brings_everything_is_left_what_it_lacks() -> None:
    """Whoever else fetched that would fetch it a second time."""
    assert left_to(STREAMER) == list(range(100, COUNT))
    # At first nobody knows how fast it is.
    assert left_to(STREAMER, pace_bps=None, share=None) == list(range(100, COUNT))


@pytest.mark.parametrize("name", ["is_hub_only", "is_fetching", "can_fetch_upstream"])
def test_member_that_does_not_bring_everything_is_left_nothing(name: str) -> None:
    """Who shares the work owns its chunks by rank; who cannot reach the hub brings none."""
    changes: dict[str, Any] = {name: False}
    assert left_to(replace(STREAMER, **changes)) == []


@pytest.mark.parametrize(("share", "is_left"), [(SHARE_MIN, True), (0.9 * SHARE_MIN, False)])
def test_member_that_brings_little_of_all_is_left_nothing(share: float, is_left: bool) -> None:
    """All of it at its pace would take several times as long."""
    assert bool(left_to(STREAMER, share=share)) is is_left


def test_member_that_nobody_is_compared_with_is_left_what_comes_soon() -> None:
    """The rest tells its share, if there is much of it."""
    soon = int(UNCOMPARED_S_MAX * 10)
    assert left_to(STREAMER, share=None) == list(range(100, 100 + soon))
    assert left_to(STREAMER, pace_bps=2 * PACE_BPS, share=None) == list(range(100, COUNT))


@pytest.mark.parametrize(("lag_chunks", "is_left"), [(0, True), (10, True), (11, False)])
def test_member_that_we_cannot_keep_up_with_is_left_nothing(lag_chunks: int, is_left: bool) -> None:
    """Its line to us is the narrow one: what others bring comes sooner."""
    lag = round(LAG_S_MAX) * lag_chunks
    assert bool(left_to(STREAMER, Bitfield.of(COUNT, range(lag, 100)))) is is_left
