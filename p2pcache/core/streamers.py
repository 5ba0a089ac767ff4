"""
Owns what is left to a member that takes a blob from the hub alone, whatever others have.

Knows nothing of who judges progress: it is told who stands and how fast members move.
Invariants: what such a member will fetch anyway is fetched by nobody else, unless that would hold
up the others: it stands, it is slow, its line to us is the narrow one, or nobody knows.
Source: design.md §7 (a body that has begun takes bytes from the hub alone) and §2, promise 4.
"""

from __future__ import annotations

from itertools import islice

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.layout import Layout
from p2pcache.core.views import PeerView

# Who brings less than this share of what all bring together would take several times as long alone.
SHARE_MIN = 0.25
# As long as nobody else's pace is known, what would come later than this is not left to it: those
# whose chunks that are begin, and its share shows within seconds.
UNCOMPARED_S_MAX = 60.0
# Who has got so much less than it, in seconds of its pace, gets the rest elsewhere, too.
LAG_S_MAX = 5.0


def find_left_to(
    peer: PeerView,
    have: Bitfield,
    layout: Layout,
    *,
    pace_bps: float | None,
    share: float | None,
) -> Bitfield:
    """
    Return the chunks that a member will bring for itself, and that are left to it therefore.

    Args:
        peer: The member; of those that do not stand.
        have: Our own chunks.
        layout: The blob's chunks.
        pace_bps: How fast it brings first copies, in bytes per second; None if nobody knows yet.
        share: Of what all bring, what it brings; None if nobody else's pace is known.
    """
    count = layout.chunk_count
    if not peer.is_hub_only or not peer.is_fetching or not peer.can_fetch_upstream:
        return Bitfield(count)
    lacking = Bitfield.full(count) - peer.have
    if pace_bps is None:
        return lacking
    # In chunks of middle length: to measure thousands of them takes longer than one takes to come.
    chunks_per_s = pace_bps * count / max(1, layout.size_bytes)
    is_behind = len(peer.have - have) > LAG_S_MAX * chunks_per_s
    if is_behind or (share is not None and share < SHARE_MIN):
        return Bitfield(count)
    soon = int(UNCOMPARED_S_MAX * chunks_per_s)
    if share is not None or len(lacking) <= soon:
        return lacking
    return Bitfield.of(count, islice(lacking, soon))
