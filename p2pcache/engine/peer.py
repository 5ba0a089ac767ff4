"""
Owns what is known of one peer: where it is, whether it answers, what it says it has.

Knows nothing of how that was learned.
Invariants: entries are hints; `moved_bytes` grows only when the peer reports new bytes.
Source: design.md §6.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from p2pcache.core.digest import BlobDigest
from p2pcache.core.messages import CREW_AGE_MS_MAX, CrewWord, SwarmEntry
from p2pcache.core.views import PeerView

# What one peer may make us remember; the oldest entries go first.
ENTRIES_PER_PEER_MAX = 20_000
# Weight of the newest run in the measured rate.
RATE_SMOOTHING = 0.3


@dataclass(slots=True)
class Word:
    """What a peer last said of one blob, and when: itself, or another one for it."""

    entry: SwarmEntry
    heard_s: float


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
    # When we asked what it answered last: its word is no older. What it told us by itself may have
    # lain in our sockets while this process stood still.
    answered_s: float = 0.0
    # Whether nobody listens at its address: what it owed is not waited for.
    is_gone: bool = False
    # Whether it says that it has banned us.
    bans_us: bool = False
    requests_inflight: int = 0
    rate_bps: float = 0.0
    received_bytes: int = 0
    # First copies that it received since we know it, of all blobs.
    moved_bytes: int = 0
    # What it last said of each blob, the oldest word first. Changed by hear() and hear_of() alone.
    words: OrderedDict[BlobDigest, Word] = field(default_factory=OrderedDict)

    @property
    def url(self) -> str:
        """Return the base address of its peer endpoint."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def hear(self, entry: SwarmEntry, *, now_s: float) -> bool:
        """Take in what the peer says of one blob; returns whether that changes what to ask for."""
        self.is_gone = False
        if entry.crew:
            entry = replace(entry, crew=())
        before = self.words.pop(entry.blob, None)
        if before is not None:
            self.moved_bytes += max(0, entry.received_bytes - before.entry.received_bytes)
        self.words[entry.blob] = Word(entry, now_s)
        while len(self.words) > ENTRIES_PER_PEER_MAX:
            self.words.popitem(last=False)
        return before is None or not entry.says_as_much(before.entry)

    def hear_of(self, blob: BlobDigest, word: CrewWord, *, now_s: float) -> None:
        """Take in what another says of this peer; its own newer word counts for more."""
        heard = self.words.get(blob)
        heard_s = now_s - word.age_ms / 1000
        if heard is None or heard.heard_s >= heard_s:
            return
        entry = heard.entry
        received_bytes = max(word.received_bytes, entry.received_bytes)
        self.moved_bytes += received_bytes - entry.received_bytes
        changed = replace(
            entry, received_bytes=received_bytes, can_fetch_upstream=word.can_fetch_upstream
        )
        self.words[blob] = Word(changed, heard_s)

    def speak_of(self, blob: BlobDigest, *, now_s: float) -> CrewWord | None:
        """Return what others may hear of this peer; None if that is too old."""
        heard = self.words.get(blob)
        if heard is None:
            return None
        age_ms = max(0, round((now_s - heard.heard_s) * 1000))
        if age_ms > CREW_AGE_MS_MAX:
            return None
        entry = heard.entry
        return CrewWord(self.peer_id, entry.received_bytes, age_ms, entry.can_fetch_upstream)

    def find_entry(self, blob: BlobDigest) -> SwarmEntry | None:
        """Return what the peer last said of a blob."""
        heard = self.words.get(blob)
        return None if heard is None else heard.entry

    def view(self, word: Word) -> PeerView:
        """Return the planner's view of this peer, for the blob that its word is of."""
        entry = word.entry
        return PeerView(
            peer_id=self.peer_id,
            have=entry.have,
            intent=entry.inflight,
            is_fetching=entry.is_fetching,
            can_fetch_upstream=entry.can_fetch_upstream,
            received_bytes=entry.received_bytes,
            moved_bytes=self.moved_bytes,
            heard_s=self.answered_s,
            requests_inflight=self.requests_inflight,
            rate_bps=self.rate_bps,
            is_hub_only=entry.is_hub_only,
        )

    def note_run(self, received_bytes: int, elapsed_s: float) -> None:
        """Learn from a finished run how fast the peer is."""
        self.received_bytes += received_bytes
        if elapsed_s > 0 and received_bytes:
            rate = received_bytes / elapsed_s
            old = self.rate_bps or rate
            self.rate_bps = old + RATE_SMOOTHING * (rate - old)
