"""
Owns what the planner is given and what it gives back: its limits, views of the world, requests.

Knows nothing of how a request is chosen.
Invariants: a view is a moment's: whoever makes it may change what it was made from.
Source: design.md §6; planner.py, which chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.ownership import Ownership

if TYPE_CHECKING:
    from p2pcache.core.needs import FirstCopyNeeds

UPSTREAM = "upstream"
# No limit but the planner's own.
UPSTREAM_FREE = 1 << 30


@dataclass(frozen=True, slots=True)
class PlannerLimits:
    """The planner's numbers; each has a unit and a reason."""

    # One request carries at most this much: long enough to amortise a round trip at 100 Gb/s,
    # short enough that losing it costs little.
    run_bytes_max: int = 32 * 1024 * 1024
    # Nor less, where chunks are smaller: a request costs about what so many bytes do.
    run_bytes_min: int = 256 * 1024
    # The hub gives a member of a swarm one chunk at a time: joiners get their share at once, and
    # little is lost with a member that dies.
    swarm_run_bytes_max: int = 4 * 1024 * 1024
    # And who is alone asks for more only as an eighth of what it has: others may begin a moment
    # later, and could not bring what it has asked for and waits for.
    alone_run_share: int = 8
    # And no more than a peer gives in this time: who turns out slow holds one chunk, not eight.
    run_s_max: float = 0.5
    # Two runs a peer keep its disk and the wire busy while the first is being verified.
    peer_requests_inflight_max: int = 2
    # With so many peers that have something to give, one run each does that already; more would
    # only make each chunk take longer.
    many_peers: int = 4
    # Hubs give one connection a share of their link; so many, of the whole swarm, come near all
    # of it. More would only make each chunk take longer, and lose more when a member dies.
    swarm_upstream_requests_max: int = 8
    # What one daemon alone may have under way.
    upstream_requests_inflight_max: int = 8
    # And so many more for readers that have waited too long: long runs leave no slot for minutes.
    upstream_reader_requests_max: int = 2
    # Share of the fastest peer's weight that an unmeasured or slow peer keeps: newcomers are tried.
    weight_floor: float = 0.1
    # A peer below this share of the fastest is of the slow class: asked for what nobody else has.
    slow_share: float = 0.02
    # Chunks that one planning looks at: rarest among so many is rare enough, and a plan for a
    # blob of 100,000 chunks takes no longer than one for a thousand.
    candidates_max: int = 256


@dataclass(frozen=True, slots=True)
class PeerView:
    """
    What is known of one peer, for one blob.

    `received_bytes` are the first copies that it says it has received of the blob, `moved_bytes`
    those of all blobs; `heard_s` is when we asked what it answered last. `is_hub_only`: it takes
    nothing from peers.
    """

    peer_id: str
    have: Bitfield
    intent: Bitfield
    is_fetching: bool = False
    can_fetch_upstream: bool = False
    received_bytes: int = 0
    moved_bytes: int = 0
    heard_s: float = 0.0
    requests_inflight: int = 0
    rate_bps: float = 0.0
    is_hub_only: bool = False


@dataclass(frozen=True, slots=True)
class FetchView:
    """What one blob's fetch looks like from here."""

    blob: BlobDigest
    layout: Layout
    self_id: str
    have: Bitfield
    inflight: Bitfield
    peers: Sequence[PeerView] = ()
    # Of all blobs together.
    upstream_requests_inflight: int = 0
    can_fetch_upstream: bool = True
    # How many requests more the hub may be sent now, whatever the swarm's share is.
    upstream_free: int = UPSTREAM_FREE
    # Chunks that a reader has waited for too long, most urgent first: ownership is ignored, and
    # one that is in flight already may be asked of one more source.
    starving: Sequence[int] = ()
    # Chunks in flight that take too long, slowest first: one more peer may be asked.
    overdue: Sequence[int] = ()
    # Chunks that a reader will need next, in order.
    next_for_readers: Sequence[int] = ()
    # Whom each chunk in flight was asked of.
    asked: Mapping[int, Set[str]] = field(default_factory=dict)
    # Missing chunks that are announced though nobody is asked for them: we have their start.
    begun: Set[int] = frozenset()
    # Members, we among them, that owe nothing: they make no progress, or far less than the others.
    stalled: Set[str] = frozenset()
    # Those of them that move: what they have announced is taken over last.
    slow: Set[str] = frozenset()
    # Members that had a chunk's lease and let it run out.
    lapsed: Mapping[int, Set[str]] = field(default_factory=dict)
    # Remembers who owns what between plannings; None for a new one.
    ownership: Ownership | None = None
    # What the daemon's other fetches need of the hub and of lone seeders, and this one; None for
    # it alone.
    needs: FirstCopyNeeds | None = None
    # Whether members pass on what they got from each other before all is proven.
    relays: bool = True
    # Whether chunks of other owners may be taken over that they have not begun.
    may_steal: bool = False
    # Whether what the others did lately is unknown: only readers are served then.
    is_fenced: bool = False
    # Of many that may be starting now: whoever of them would be an owner begins.
    expected: Set[str] = frozenset()
    # Runs of further copies that are under way and move.
    further_runs_inflight: int = 0
    # Whether more daemons are known than talk to each other: those we ask serve few at once.
    is_crowded: bool = False


@dataclass(frozen=True, slots=True)
class RunRequest:
    """
    Ask source_id for the consecutive chunks first..last, both included.

    `is_first_copy`: nobody else can give them, so the intent is announced.
    """

    source_id: str
    first: int
    last: int
    is_first_copy: bool = False
    is_second_source: bool = False
    # Of another owner, who had not begun it.
    is_stolen: bool = False

    @property
    def chunk_indexes(self) -> range:
        """Return the chunks of the run."""
        return range(self.first, self.last + 1)


def find_lone_seeder(peers: Sequence[PeerView]) -> PeerView | None:
    """
    Return the one complete peer of a swarm, when others still fetch.

    Its line is to the swarm what the hub's is: every byte that it sends twice, one of the others
    could have sent.
    """
    complete = [p for p in peers if p.have.is_full()]
    others_fetch = any(p.is_fetching and not p.have.is_full() for p in peers)
    return complete[0] if len(complete) == 1 and others_fetch else None
