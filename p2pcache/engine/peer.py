"""
Owns what is known of one peer: where it is, whether it answers, what it says it has.

Knows nothing of how that was learned.
Invariants: entries are hints; `last_progress_s` moves only when the peer reports new bytes.
Source: design.md §6.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.planner import PeerView

# What one peer may make us remember; the oldest entries go first.
ENTRIES_PER_PEER_MAX = 20_000
# Weight of the newest run in the measured rate.
RATE_SMOOTHING = 0.3


# What a member says of bytes under way is believed for so long without a chunk that follows: four
# chunks at once take that long on a line of 4 Mb/s.
INTENT_PATIENCE_S = 30.0
# A member that makes progress elsewhere keeps what it queued for this long after it spoke of it.
QUEUED_LEASE_S = 30.0


@dataclass(slots=True)
class _Heard:
    entry: SwarmEntry
    heard_s: float
    progress_s: float
    # When it last had a chunk more than before.
    have_s: float


@dataclass(slots=True)
class Peer:
    """One peer that has answered at least once."""

    peer_id: str
    name: str
    host: str
    port: int
    version: str = ""
    via: str = ""
    last_seen_s: float = 0.0
    requests_inflight: int = 0
    rate_bps: float = 0.0
    received_bytes: int = 0
    progress_s: float = 0.0
    _heard: OrderedDict[BlobDigest, _Heard] = field(default_factory=OrderedDict)

    @property
    def url(self) -> str:
        """Return the base address of its peer endpoint."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def hear(self, entry: SwarmEntry, *, now_s: float) -> None:
        """Take in what the peer says of one blob."""
        before = self._heard.pop(entry.blob, None)
        is_same = (
            before is not None
            and before.entry.have == entry.have
            and before.entry.received_bytes == entry.received_bytes
        )
        progress_s = before.progress_s if before is not None and is_same else now_s
        self.progress_s = max(self.progress_s, progress_s)
        has_more = before is None or len(entry.have) > len(before.entry.have)
        have_s = now_s if has_more or before is None else before.have_s
        self._heard[entry.blob] = _Heard(entry, now_s, progress_s, have_s)
        while len(self._heard) > ENTRIES_PER_PEER_MAX:
            self._heard.popitem(last=False)

    def find_entry(self, blob: BlobDigest) -> SwarmEntry | None:
        """Return what the peer last said of a blob."""
        heard = self._heard.get(blob)
        return None if heard is None else heard.entry

    def view(self, blob: BlobDigest, refused: Bitfield | None) -> PeerView | None:
        """Return the planner's view of this peer for a blob, without chunks it failed to give."""
        heard = self._heard.get(blob)
        if heard is None:
            return None
        entry = heard.entry
        queued_until_s = heard.heard_s + QUEUED_LEASE_S
        return PeerView(
            peer_id=self.peer_id,
            have=entry.have if refused is None else entry.have - refused,
            intent=entry.inflight,
            is_fetching=entry.is_fetching,
            can_fetch_upstream=entry.can_fetch_upstream,
            last_progress_s=min(
                max(heard.progress_s, min(self.progress_s, queued_until_s)),
                heard.have_s + INTENT_PATIENCE_S,
            ),
            requests_inflight=self.requests_inflight,
            rate_bps=self.rate_bps,
        )

    def note_run(self, received_bytes: int, elapsed_s: float) -> None:
        """Learn from a finished run how fast the peer is."""
        self.received_bytes += received_bytes
        if elapsed_s > 0 and received_bytes:
            rate = received_bytes / elapsed_s
            old = self.rate_bps or rate
            self.rate_bps = old + RATE_SMOOTHING * (rate - old)
