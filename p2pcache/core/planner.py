"""
Owns the choice of what to ask of whom next, for one blob.

Knows nothing of sockets, tasks or clocks: views in, requests out.
Invariants: a chunk is asked of one source at a time, but for a second one that rescues a waiting
reader; upstream is asked only by the chunk's owner or for a waiting reader; equal inputs give
equal plans.
Source: design.md §6; BEP 3 (rarest first); rendezvous.py for ownership.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.rendezvous import find_owner

if TYPE_CHECKING:
    from random import Random

UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class PlannerLimits:
    """The planner's numbers; each has a unit and a reason."""

    # One request carries at most this much: long enough to amortise a round trip at 100 Gb/s,
    # short enough that losing it costs little.
    run_bytes_max: int = 32 * 1024 * 1024
    # Two runs a peer keep its disk and the wire busy while the first is being verified.
    peer_requests_inflight_max: int = 2
    # Hubs give one connection a share of their link; four come near the whole of it.
    upstream_requests_inflight_max: int = 4
    # A member without any progress for so long no longer owns chunks; above a slow round trip
    # and a 4 MiB chunk at 1 MB/s, below the 10 s after which HTTP clients give up.
    lease_s: float = 5.0
    # Share of the fastest peer's weight that an unmeasured or slow peer keeps: newcomers are tried.
    weight_floor: float = 0.1


@dataclass(frozen=True, slots=True)
class PeerView:
    """What is known of one peer, for one blob."""

    peer_id: str
    have: Bitfield
    intent: Bitfield
    is_fetching: bool = False
    can_fetch_upstream: bool = False
    last_progress_s: float = 0.0
    requests_inflight: int = 0
    rate_bps: float = 0.0


@dataclass(frozen=True, slots=True)
class FetchView:
    """What one blob's fetch looks like from here."""

    blob: BlobDigest
    layout: Layout
    self_id: str
    have: Bitfield
    inflight: Bitfield
    peers: Sequence[PeerView] = ()
    upstream_requests_inflight: int = 0
    can_fetch_upstream: bool = True
    # Chunks that a reader has waited for too long, most urgent first: ownership is ignored, and
    # one that is in flight already may be asked of one more source.
    starving: Sequence[int] = ()
    # Chunks that a reader will need next, in order.
    next_for_readers: Sequence[int] = ()
    # Whom each chunk in flight was asked of.
    asked: Mapping[int, Set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Ask source_id for the consecutive chunks first..last, both included."""

    source_id: str
    first: int
    last: int

    @property
    def chunk_indexes(self) -> range:
        """Return the chunks of the run."""
        return range(self.first, self.last + 1)


@dataclass(slots=True)
class _Draft:
    """The mutable middle of one planning."""

    view: FetchView
    limits: PlannerLimits
    missing: Bitfield
    slots: dict[str, int]
    requests: list[RunRequest] = field(default_factory=list)

    def take(self, source_id: str, first: int, allowed: Bitfield, chunks_max: int) -> None:
        last = first
        run_bytes = self.view.layout.length_of(first)
        while (
            last - first + 1 < chunks_max
            and last + 1 < self.view.layout.chunk_count
            and last + 1 in allowed
            and last + 1 in self.missing
            and run_bytes + self.view.layout.length_of(last + 1) <= self.limits.run_bytes_max
        ):
            last += 1
            run_bytes += self.view.layout.length_of(last)
        for index in range(first, last + 1):
            self.missing.discard(index)
        self.slots[source_id] -= 1
        self.requests.append(RunRequest(source_id, first, last))


def plan_requests(
    view: FetchView, *, now_s: float, limits: PlannerLimits, random: Random
) -> list[RunRequest]:
    """
    Choose the next requests for one blob: peers that hold chunks first, upstream last.

    Args:
        view: The blob's fetch and its peers. Not mutated.
        now_s: Monotonic seconds, the same clock as PeerView.last_progress_s.
        limits: The numbers to keep.
        random: Breaks ties, so that peers that start together ask for different chunks.

    Returns:
        Requests in sending order; no chunk twice, none that is held, none that is in flight here
        but a starving one, from one more source.
    """
    missing = Bitfield.full(view.layout.chunk_count) - view.have - view.inflight
    slots = {
        p.peer_id: max(0, limits.peer_requests_inflight_max - p.requests_inflight)
        for p in view.peers
    }
    slots[UPSTREAM] = (
        max(0, limits.upstream_requests_inflight_max - view.upstream_requests_inflight)
        if view.can_fetch_upstream
        else 0
    )
    draft = _Draft(view, limits, missing, slots)
    _plan_rescues(draft)
    if not missing:
        return draft.requests
    _plan_peer_runs(draft, random)
    _plan_upstream_runs(draft, now_s)
    return draft.requests


def _plan_rescues(draft: _Draft) -> None:
    """Ask a second source for chunks that a reader waits for and the first does not deliver."""
    view = draft.view
    for index in dict.fromkeys(view.starving):  # two readers may wait for one chunk
        asked = view.asked.get(index, frozenset())
        if index not in view.inflight or index in view.have or len(asked) != 1:
            continue
        holders = [p.peer_id for p in view.peers if index in p.have]
        for source_id in [*holders, UPSTREAM]:
            if source_id not in asked and draft.slots.get(source_id, 0) > 0:
                draft.slots[source_id] -= 1
                draft.requests.append(RunRequest(source_id, index, index))
                break


def _plan_peer_runs(draft: _Draft, random: Random) -> None:
    view = draft.view
    reachable = Bitfield(view.layout.chunk_count)
    for peer in view.peers:
        if draft.slots[peer.peer_id] > 0:
            reachable = reachable | peer.have
    reachable = reachable & draft.missing
    if not reachable:
        return
    # Complete peers count alike for every chunk, so only partial ones tell what is rare.
    copies = Counter(
        index for p in view.peers if not p.have.is_full() for index in p.have & reachable
    )
    reader_rank = {
        index: rank for rank, index in enumerate([*view.starving, *view.next_for_readers])
    }
    never = len(reader_rank)
    order = sorted(
        reachable,
        key=lambda index: (reader_rank.get(index, never), copies[index], random.random()),
    )
    free_slots = sum(draft.slots[p.peer_id] for p in view.peers)
    # Not more than fits one run: else it would begin so early that it ends before the very chunk
    # that led to it.
    fitting = max(1, draft.limits.run_bytes_max // CHUNK_SIZE_BYTES)
    chunks_max = min(fitting, max(1, -(-len(order) // max(1, free_slots))))
    for index in order:
        if index not in draft.missing:
            continue
        ready = [p for p in view.peers if draft.slots[p.peer_id] > 0 and index in p.have]
        if not ready:
            if not any(draft.slots[p.peer_id] for p in view.peers):
                break
            continue
        peer = _choose_peer(ready, draft.limits, random)
        draft.take(peer.peer_id, _run_start(draft, peer, index, chunks_max), peer.have, chunks_max)


def _run_start(draft: _Draft, peer: PeerView, index: int, chunks_max: int) -> int:
    """Let a run begin before the chunk that led to it, unless a reader waits for that one."""
    if index in draft.view.starving or index in draft.view.next_for_readers:
        return index
    start = index
    while start > 0 and index - start + 1 < chunks_max and start - 1 in draft.missing:
        if start - 1 not in peer.have:
            break
        start -= 1
    return start


def _choose_peer(ready: Sequence[PeerView], limits: PlannerLimits, random: Random) -> PeerView:
    """Weigh by the measured rate that is idle; complete peers go before partial ones."""
    complete = [p for p in ready if p.have.is_full()]
    pool = complete or ready
    rates = [p.rate_bps / (1 + p.requests_inflight) for p in pool]
    floor = max(*rates, 1.0) * limits.weight_floor if len(rates) > 1 else 1.0
    return random.choices(pool, weights=[max(rate, floor) for rate in rates])[0]


def _plan_upstream_runs(draft: _Draft, now_s: float) -> None:
    view = draft.view
    if draft.slots[UPSTREAM] <= 0:
        return
    for index in view.starving:
        if index in draft.missing and draft.slots[UPSTREAM] > 0:
            draft.take(UPSTREAM, index, Bitfield(view.layout.chunk_count), 1)
    elsewhere = Bitfield(view.layout.chunk_count)
    for peer in view.peers:
        elsewhere = elsewhere | peer.have
        if now_s - peer.last_progress_s <= draft.limits.lease_s:
            elsewhere = elsewhere | peer.intent
    nobody_has = draft.missing - elsewhere
    slots_left = max(1, draft.slots[UPSTREAM])
    owned = _find_owned_chunks(
        view,
        nobody_has,
        now_s=now_s,
        limits=draft.limits,
        count_max=slots_left * max(1, draft.limits.run_bytes_max // CHUNK_SIZE_BYTES),
    )
    preferred = [i for i in view.next_for_readers if i in owned]
    chunks_max = max(1, -(-len(owned) // slots_left))
    for index in [*preferred, *owned]:
        if index in draft.missing and draft.slots[UPSTREAM] > 0:
            draft.take(UPSTREAM, index, owned, chunks_max)


def _find_owned_chunks(
    view: FetchView,
    candidates: Bitfield,
    *,
    now_s: float,
    limits: PlannerLimits,
    count_max: int,
) -> Bitfield:
    """
    Return the candidates that rendezvous hashing gives to us among the members that move.

    Stops at count_max, readers' chunks first: hashing every chunk of a large blob for every
    member, each time a request ends, would hold up the caller for longer than a chunk takes.
    """
    members = [
        p.peer_id
        for p in view.peers
        if p.is_fetching and p.can_fetch_upstream and now_s - p.last_progress_s <= limits.lease_s
    ]
    if not members:
        return candidates.copy()
    everyone = [view.self_id, *members]
    owned = Bitfield(candidates.length)
    for index in chain((i for i in view.next_for_readers if i in candidates), candidates):
        if find_owner(view.blob, index, everyone) == view.self_id:
            owned.add(index)
            if len(owned) >= count_max:
                break
    return owned
