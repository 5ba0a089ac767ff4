"""
Owns what is known of one blob while it is being fetched.

Knows nothing of tasks or threads: it is asked and told.
Invariants: only the event loop changes it; a chunk that is here has a source.
Source: design.md §6; core.views for the views made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.fetchevents import ChunksForgotten
from p2pcache.core.fetchmachine import FetchMachine
from p2pcache.core.layout import Layout
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.pace import Pace
from p2pcache.core.upstream import UpstreamLocation
from p2pcache.core.views import UPSTREAM, PeerView, PlannerLimits, find_lone_seeder
from p2pcache.engine.peer import Peer
from p2pcache.errors import P2PCacheError
from p2pcache.store.partial import LIKENESS_SOURCE

# Who said that it is about to fetch has begun after this, or fetches something else first.
COMING_S = 2.0


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
    # What is here, what is asked of whom, who rests.
    machine: FetchMachine
    # Chunks of an earlier run that were not hashed again yet: held, but given to nobody.
    unchecked: Bitfield
    # Chunks that were copied from other files here.
    copied: Bitfield
    sources: dict[int, str] = field(default_factory=dict)
    bytes_from: Counter[str] = field(default_factory=Counter)
    # Readers that have begun a body: until they end, only trusted sources are asked.
    streaming_count: int = 0
    suspects: dict[int, Suspect] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    # Of the excluded, those that were never asked for all of it alone.
    untried: list[str] = field(default_factory=list)
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
    def of(
        cls, order: FetchOrder, self_id: str, *, limits: PlannerLimits, pace: Pace, random: Random
    ) -> FetchState:
        """Return the state of a fetch that has nothing yet; see FetchMachine for the arguments."""
        count = order.layout.chunk_count
        machine = FetchMachine(
            order.blob, order.layout, self_id, limits=limits, pace=pace, random=random
        )
        return cls(order, machine, Bitfield(count), Bitfield(count))

    @property
    def have(self) -> Bitfield:
        """Return the chunks that are here."""
        return self.machine.have

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
            self.machine.intent.copy(),
            is_fetching=not self.is_published,
            # Who gave itself up says so: those who did not see it would wait for what it owes.
            can_fetch_upstream=can_fetch_upstream and not self.machine.gives_way(),
            received_bytes=self.machine.first_copy_bytes,
            is_hub_only=self.is_hub_only(),
        )

    def is_hub_only(self) -> bool:
        """Return whether peers give us nothing of it: a body began with the hub's own bytes."""
        must_be_trusted = self.streaming_count > 0 and not self.order.trusts_peers
        return must_be_trusted or not self.asks_peers

    def view_peers(self, peers: Iterable[Peer], *, now_s: float) -> list[PeerView]:
        """Return the planner's views of the peers that may be asked for this blob."""
        if not self.order.is_public or self.is_hub_only():
            return []
        blob, layout_id = self.order.blob, self.order.layout.id
        views, coming = [], []
        for peer in peers:
            word = peer.words.get(blob)
            if word is None or peer.is_gone or peer.peer_id in self.excluded:
                continue
            if word.entry.layout == layout_id:
                views.append(peer.view(word))
            elif self._is_coming(word.entry) and now_s - word.heard_s < COMING_S:
                nothing = Bitfield(self.order.layout.chunk_count)
                coming.append(replace(peer.view(word), have=nothing, intent=nothing))
        # They will own chunks as we do: who did not count them would ask a lone seeder for theirs
        # too. The hub has time for them when they know where to cut; its line would be idle.
        return views + coming if find_lone_seeder(views + coming) else views

    def _is_coming(self, entry: SwarmEntry) -> bool:
        """Return whether a peer is about to fetch this blob, and does not know yet where to cut."""
        return entry.is_uncut() and entry.layout.size_bytes == self.order.layout.size_bytes

    def exclude(self, senders: Iterable[str]) -> None:
        """Ask none of the senders of a wrong whole again, as long as there is another way."""
        in_doubt = {source_id for source_id in senders if source_id not in self.excluded}
        self.untried += sorted(in_doubt - {LIKENESS_SOURCE}) if len(in_doubt) > 1 else []
        self.excluded |= in_doubt

    def try_next_sender(self) -> bool:
        """
        When the hub is away: ask one of those in doubt, alone, so that its part can be told.

        One liar must not keep a site without a hub from what honest peers have.
        """
        if not self.untried:
            return False
        self.excluded.discard(self.untried.pop(0))
        self.asks_peers = True
        return True

    def forget(self, chunk_index: int) -> None:
        """Take out a chunk that turned out to be doubtful; it counts as not here."""
        length = self.order.layout.length_of(chunk_index)
        kind = "upstream" if self.sources.pop(chunk_index, None) == UPSTREAM else "peer"
        if chunk_index in self.copied or self.bytes_from[kind] < length:
            kind = "disk"  # an earlier run brought it, or another file here
        self.bytes_from[kind] -= length
        self.machine.handle(ChunksForgotten((chunk_index,)), now_s=0.0)
        self.unchecked.discard(chunk_index)
        self.copied.discard(chunk_index)
