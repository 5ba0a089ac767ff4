"""
Owns what is known of one blob while it is being fetched.

Knows nothing of tasks or threads: it is asked and told.
Invariants: only the event loop changes it; a chunk that is here has a source.
Source: design.md §6; core.planner for the views made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.patience import Patience
from p2pcache.core.planner import UPSTREAM, PeerView
from p2pcache.core.upstream import UpstreamLocation
from p2pcache.engine.peer import Peer
from p2pcache.errors import P2PCacheError
from p2pcache.store.partial import LIKENESS_SOURCE

# A reader without a byte for this long gets its next chunk from wherever it can be had.
READER_PATIENCE_S = 2.0
# Chunks ahead of a reader that are fetched before others.
READER_WINDOW_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """What is to be fetched, where the hub has it, and whether peers may hear of it."""

    blob: BlobDigest
    layout: Layout
    location: UpstreamLocation
    is_public: bool
    trusts_peers: bool
    trusts_upstream: bool


@dataclass(frozen=True, slots=True)
class Suspect:
    """A chunk that was dropped because the whole did not match: who sent what."""

    digest: ChunkDigest
    source_id: str


@dataclass(slots=True)
class FetchState:
    """The mutable middle of a fetch."""

    order: FetchOrder
    have: Bitfield
    inflight: Bitfield
    intent: Bitfield
    # Chunks of an earlier run that were not hashed again yet: held, but given to nobody.
    unchecked: Bitfield
    # Chunks that were copied from other files here.
    copied: Bitfield
    # Whom each chunk in flight was asked of: one source, or two for a starving reader.
    asked: dict[int, set[str]] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    bytes_from: Counter[str] = field(default_factory=Counter)
    # reader → (the chunk it waits for, since when)
    readers: dict[int, tuple[int, float]] = field(default_factory=dict)
    # Readers that have begun a body: until they end, only trusted sources are asked.
    streaming_count: int = 0
    upstream_inflight: int = 0
    upstream_received: int = 0
    patience: Patience = field(default_factory=Patience)
    refused: dict[str, Bitfield] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    paused_until_s: dict[str, float] = field(default_factory=dict)
    # Peers that crawled: left alone, and no reason to go on hoping.
    crawlers_until_s: dict[str, float] = field(default_factory=dict)
    suspects: dict[int, Suspect] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    # False once peers' chunks failed the proof so often that only the hub is asked.
    asks_peers: bool = True
    failure: P2PCacheError | None = None
    # How often the whole turned out wrong: what was read before is worth nothing then.
    proof_failures: int = 0
    # Whether a reader was given bytes before the proof.
    was_read: bool = False
    # Whether chunks may still come from other files here, whatever the hub and the peers do.
    is_looking_here: bool = False
    # Whether chunks may yet be taken on likeness: a body that begins now might meet one.
    is_guessing: bool = False
    is_published: bool = False

    @classmethod
    def of(cls, order: FetchOrder) -> FetchState:
        """Return the state of a fetch that has nothing yet."""
        count = order.layout.chunk_count
        fields = [Bitfield(count) for _ in range(5)]
        return cls(order, fields[0], fields[1], fields[2], fields[3], fields[4])

    @property
    def missing(self) -> Bitfield:
        """Return the chunks that are not here."""
        return Bitfield.full(self.have.length) - self.have

    @property
    def held_bytes(self) -> int:
        """Return the bytes of the chunks that are here."""
        return self.order.layout.measure(self.have)

    def is_checked(self, chunk_index: int) -> bool:
        """Return whether a chunk is here, and hashed since this daemon started."""
        return chunk_index in self.have and chunk_index not in self.unchecked

    def is_trusted(self, chunk_index: int) -> bool:
        """Return whether a chunk that is here may be read before the whole blob is proven."""
        source_id = self.sources.get(chunk_index)
        if chunk_index in self.unchecked or source_id == LIKENESS_SOURCE:
            return False
        if self.order.trusts_peers:
            return True
        return self.order.trusts_upstream and source_id == UPSTREAM

    def find_likely(self) -> list[int]:
        """Return the chunks that were taken from other files here on likeness alone."""
        return [i for i in self.copied if self.sources.get(i) == LIKENESS_SOURCE]

    def find_shareable(self) -> Bitfield:
        """
        Return the chunks that peers may be told of before the proof: those from a trusted source.

        A chunk of unknown worth is not passed on: the blame would fall on us.
        """
        if self.order.trusts_peers and not self.find_likely():
            return self.have - self.unchecked
        return Bitfield.of(self.have.length, filter(self.is_trusted, self.have))

    def report(self, *, can_fetch_upstream: bool) -> SwarmEntry | None:
        """Return what peers may hear of this blob; None when it is not public."""
        if not self.order.is_public:
            return None
        return SwarmEntry(
            self.order.blob,
            self.order.layout.id,
            self.find_shareable(),
            self.intent.copy(),
            is_fetching=not self.is_published,
            can_fetch_upstream=can_fetch_upstream,
            received_bytes=self.upstream_received,
        )

    def view_peers(self, peers: Iterable[Peer], *, now_s: float) -> list[PeerView]:
        """Return the planner's views of the peers that may be asked for this blob."""
        must_be_trusted = self.streaming_count > 0 and not self.order.trusts_peers
        if not self.order.is_public or must_be_trusted or not self.asks_peers:
            return []
        views = []
        for peer in peers:
            entry = peer.find_entry(self.order.blob)
            is_paused = now_s < max(
                self.paused_until_s.get(peer.peer_id, 0.0),
                self.crawlers_until_s.get(peer.peer_id, 0.0),
            )
            if entry is None or entry.layout != self.order.layout.id or is_paused:
                continue
            view = peer.view(self.order.blob, self.refused.get(peer.peer_id))
            if view is not None and peer.peer_id not in self.excluded:
                views.append(view)
        return views

    def note_asked(self, chunk_index: int, source_id: str) -> None:
        """Count a chunk as in flight."""
        self.asked.setdefault(chunk_index, set()).add(source_id)
        self.inflight.add(chunk_index)
        if source_id == UPSTREAM:
            self.intent.add(chunk_index)

    def note_answered(self, chunk_index: int, source_id: str) -> None:
        """Count a chunk as not in flight from a source any more, whether it came or not."""
        left = self.asked.get(chunk_index, set())
        left.discard(source_id)
        if not left:
            self.asked.pop(chunk_index, None)
            self.inflight.discard(chunk_index)
        if source_id == UPSTREAM:
            self.intent.discard(chunk_index)

    def refuse(self, peer_id: str, chunk_index: int) -> None:
        """Do not ask this peer for this chunk again."""
        self.refused.setdefault(peer_id, Bitfield(self.have.length)).add(chunk_index)

    def forget(self, chunk_index: int) -> None:
        """Take out a chunk that turned out to be doubtful; it counts as not here."""
        length = self.order.layout.length_of(chunk_index)
        kind = "upstream" if self.sources.pop(chunk_index, None) == UPSTREAM else "peer"
        if chunk_index in self.copied or self.bytes_from[kind] < length:
            kind = "disk"  # an earlier run brought it, or another file here
        self.bytes_from[kind] -= length
        self.have.discard(chunk_index)
        self.unchecked.discard(chunk_index)
        self.copied.discard(chunk_index)

    def find_starving(self, *, now_s: float) -> list[int]:
        """Return the chunks that a reader has waited for too long."""
        return [
            index
            for index, since_s in self.readers.values()
            if now_s - since_s > READER_PATIENCE_S and index not in self.have
        ]

    def find_next_for_readers(self) -> list[int]:
        """Return the chunks that readers need next, nearest first."""
        starts = {index for index, _ in self.readers.values()}
        ahead = [start + n for n in range(READER_WINDOW_CHUNKS) for start in starts]
        return list(dict.fromkeys(index for index in ahead if index < self.have.length))
