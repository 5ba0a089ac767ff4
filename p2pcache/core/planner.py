"""
Owns the choice of what to ask of whom next, for one blob.

Knows nothing of sockets, tasks or clocks: views in, requests out.
Invariants: a chunk is asked of one source at a time, but for a second one that rescues a waiting
reader or a chunk that takes too long; a first copy, from upstream or from a lone seeder, is asked
for only by the chunk's owner, by who has its start, or for a waiting reader; equal inputs give
equal plans.
Source: design.md §6; BEP 3 (rarest first); owed.py for what is ours to bring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.core.needs import REQUESTS_NO_MAX, FirstCopyNeeds
from p2pcache.core.owed import find_owned, iter_in_our_order
from p2pcache.core.ownership import CROWD_MEMBERS_MIN, OWNERS_MAX, Ownership
from p2pcache.core.turns import count_runs_at_once
from p2pcache.core.views import (
    UPSTREAM,
    FetchView,
    PeerView,
    PlannerLimits,
    RunRequest,
    find_lone_seeder,
)

if TYPE_CHECKING:
    from random import Random

# Peers that start together choose among so many chunks that are equally rare.
CHANCE_WINDOW_CHUNKS = 32


# Beside a lone seeder, who comes so late in rank takes nothing over: all who are idle at the end
# would take the last chunk.
RANK_BOLD_MAX = 3


class _Draft:
    """The mutable middle of one planning."""

    def __init__(self, view: FetchView, limits: PlannerLimits) -> None:
        self.view = view
        self.limits = limits
        self.missing = Bitfield.full(view.layout.chunk_count) - view.have - view.inflight
        self.requests: list[RunRequest] = []
        self.owners = view.ownership or Ownership(view.blob)
        self.needs = view.needs or FirstCopyNeeds()
        self.lone = find_lone_seeder(view.peers) if view.relays else None
        # Who gives first copies.
        self.origin_id = UPSTREAM if self.lone is None else self.lone.peer_id
        # As long as it has first copies to give, the lone seeder gives nothing else.
        self.is_lone_needed = self.lone is not None and not self._find_spread().is_full()
        fetching = sum(1 for p in view.peers if p.is_fetching)
        is_crowd = view.is_crowded and fetching >= CROWD_MEMBERS_MIN
        self.is_lone_crowd = self.lone is not None and is_crowd
        self.best_bps = max((p.rate_bps for p in view.peers), default=0.0)
        givers = sum(1 for p in view.peers if p.have and not self.is_slow(p))
        self.runs_a_peer = 1 if givers >= limits.many_peers else limits.peer_requests_inflight_max
        # One run of each member keeps a lone seeder's line full; with two, first chunks would come,
        # and be passed on, after twice the time, and meanwhile the other lines would be idle.
        is_shared = 1 + fetching >= limits.many_peers
        self.lone_runs = 1 if is_shared else self.runs_a_peer
        self.slots = {p.peer_id: self._free_of(p) for p in view.peers}
        # For a reader one more: other blobs of ours may hold the one place all the time.
        urgent_max = limits.peer_requests_inflight_max
        self.lone_urgent_slots = 0 if self.lone is None else self._free_of(self.lone, urgent_max)
        moving = [p for p in view.peers if p.is_fetching and p.peer_id not in view.stalled]
        self.members = max(len(moving), len(view.expected))
        share = -(-limits.swarm_upstream_requests_max // (1 + self.members))
        most = min(share, limits.upstream_requests_inflight_max)
        # Requests for first copies that a member of this swarm may have under way.
        self.origin_runs = most if self.lone is None else self.lone_runs
        inflight, free = view.upstream_requests_inflight, view.upstream_free
        self.origin_inflight = inflight if self.lone is None else self.lone.requests_inflight
        self.slots[UPSTREAM] = min(free, max(0, most - inflight))
        urgent = limits.upstream_requests_inflight_max + limits.upstream_reader_requests_max
        self.urgent_slots = min(free, urgent - inflight)
        if not view.can_fetch_upstream:
            self.slots[UPSTREAM] = self.urgent_slots = 0

    def _find_spread(self) -> Bitfield:
        """Return the chunks that anybody has but the lone seeder, we among them."""
        held = [peer.have for peer in self.view.peers if peer is not self.lone]
        return Bitfield.union(self.view.have.length, [self.view.have, *held])

    def is_slow(self, peer: PeerView) -> bool:
        """Return whether a peer is of the slow class."""
        return 0 < peer.rate_bps < self.best_bps * self.limits.slow_share

    def _free_of(self, peer: PeerView, most: int | None = None) -> int:
        if most is None:
            most = self.lone_runs if peer is self.lone else self.runs_a_peer
        return max(0, (1 if self.is_slow(peer) else most) - peer.requests_inflight)

    def run_bytes_of(self, peer: PeerView) -> int:
        """Return how much one request to a peer may carry."""
        measured = int(peer.rate_bps * self.limits.run_s_max)
        return min(self.limits.run_bytes_max, max(measured, self.limits.run_bytes_min))

    def take(
        self, source_id: str, first: int, allowed: Bitfield, bytes_max: int, *, is_first: bool
    ) -> None:
        """Ask for a run that begins at `first` and goes on as far as it may."""
        layout, last = self.view.layout, first
        run_bytes = layout.length_of(first)
        while (
            last + 1 < layout.chunk_count
            and last + 1 in allowed
            and last + 1 in self.missing
            and run_bytes + layout.length_of(last + 1) <= bytes_max
        ):
            last += 1
            run_bytes += layout.length_of(last)
        for index in range(first, last + 1):
            self.missing.discard(index)
        self.count(source_id)
        self.requests.append(RunRequest(source_id, first, last, is_first_copy=is_first))

    def count(self, source_id: str) -> None:
        """Count one request more to a source."""
        self.slots[source_id] -= 1
        if source_id == UPSTREAM:
            self.urgent_slots -= 1
        if self.lone is not None and source_id == self.lone.peer_id:
            self.lone_urgent_slots -= 1
        if source_id == self.origin_id:
            self.origin_inflight += 1


def plan_requests(view: FetchView, *, limits: PlannerLimits, random: Random) -> list[RunRequest]:
    """
    Choose the next requests for one blob: peers that hold chunks first, upstream last.

    Args:
        view: The blob's fetch and its peers. Not mutated, but for its memory of owners and needs.
        limits: The numbers to keep.
        random: Breaks ties, so that peers that start together ask for different chunks.

    Returns:
        Requests in sending order; no chunk twice, none that is held, none that is in flight here
        but a starving or an overdue one, from one more source.
    """
    draft = _Draft(view, limits)
    owes = False
    _plan_second_sources(draft)
    if draft.missing:
        first_copies = _find_first_copies(draft)
        _plan_peer_runs(draft, first_copies, random)
        owes = _plan_first_copies(draft, first_copies)
    if draft.lone is None or draft.is_lone_needed:
        draft.needs.note(
            view.blob,
            draft.origin_id,
            size_bytes=view.layout.size_bytes,
            owes=owes,
            requests_max=REQUESTS_NO_MAX if draft.lone is not None else draft.origin_runs,
        )
    else:
        draft.needs.forget(view.blob)
    return draft.requests


def _plan_second_sources(draft: _Draft) -> None:
    """Ask a second source for chunks in flight that a reader waits for, or that take too long."""
    view = draft.view
    starving = set(view.starving)
    for index in dict.fromkeys([*view.starving, *view.overdue]):  # two may wait for one chunk
        asked = view.asked.get(index, frozenset())
        if index not in view.inflight or index in view.have or len(asked) != 1:
            continue
        holders = [p for p in view.peers if index in p.have and p.peer_id not in asked]
        if index not in starving:
            # The lone seeder has better to do, and a slow peer would not be the sooner.
            holders = [p for p in holders if p is not draft.lone and not draft.is_slow(p)]
        free = [p for p in holders if draft.slots[p.peer_id] > 0]
        source_id = max(free, key=_idle_rate).peer_id if free else None
        if source_id is None and index in starving and UPSTREAM not in asked:
            source_id = UPSTREAM if draft.urgent_slots > 0 else None
        if source_id is not None:
            draft.count(source_id)
            draft.requests.append(RunRequest(source_id, index, index, is_second_source=True))


def _find_first_copies(draft: _Draft) -> Bitfield:
    """Return the missing chunks that no peer has, the lone seeder not counted."""
    held = [peer.have for peer in draft.view.peers if peer is not draft.lone]
    return draft.missing - Bitfield.union(draft.view.layout.chunk_count, held)


def _plan_peer_runs(draft: _Draft, first_copies: Bitfield, random: Random) -> None:
    """Ask for what is spread already, rarest first."""
    view = draft.view
    sources = [p for p in view.peers if p is not draft.lone or not _is_kept_free(draft)]
    held = [peer.have for peer in sources if draft.slots[peer.peer_id] > 0]
    reachable = Bitfield.union(view.layout.chunk_count, held)
    reachable = (reachable & draft.missing) - first_copies
    if not reachable:
        return
    readers = [i for i in (*view.starving, *view.next_for_readers) if i in reachable]
    candidates = list(dict.fromkeys([*readers, *_sample(reachable, draft.limits, random)]))
    # Complete peers count alike for every chunk, so only partial ones tell what is rare.
    partial = [p.have for p in view.peers if not p.have.is_full()]
    copies = Counter({index: sum(index in have for have in partial) for index in candidates})
    rank = {index: place for place, index in enumerate(dict.fromkeys(readers))}
    never = len(rank)
    # Chance only among those near one another: files that fill from the start on are proven from
    # the start on, beside the transfer; and not at all where nobody is there to trade with.
    trades = any(p.is_fetching for p in view.peers)
    order = sorted(
        candidates,
        key=lambda i: (
            rank.get(i, never),
            copies[i],
            i // CHANCE_WINDOW_CHUNKS if trades else i,
            random.random(),
        ),
    )
    free_slots = sum(draft.slots[p.peer_id] for p in sources)
    # What is left, shared over the slots: the last chunks come from everybody at once.
    share_bytes = view.layout.measure(reachable) // max(1, free_slots)
    runs_left = _count_further_runs(draft)
    for index in order:
        if runs_left <= 0 and index not in rank:
            break
        if index not in draft.missing:
            continue
        holders = [p for p in sources if index in p.have]
        quick = [p for p in holders if not draft.is_slow(p)]
        ready = [p for p in quick or holders if draft.slots[p.peer_id] > 0]
        if draft.is_lone_crowd and len(ready) > 1:
            # All would ask the lone seeder, since it is complete, and share its line.
            ready = [p for p in ready if p is not draft.lone]
        if not ready:
            if not any(draft.slots[p.peer_id] for p in sources):
                break
            continue
        runs_left -= 1
        peer = _choose_peer(ready, draft.limits, random)
        bytes_max = min(draft.run_bytes_of(peer), max(share_bytes, draft.limits.run_bytes_min))
        allowed = peer.have - first_copies
        start = index if index in rank else _run_start(draft, index, allowed, bytes_max)
        draft.take(peer.peer_id, start, allowed, bytes_max, is_first=False)


def _is_kept_free(draft: _Draft) -> bool:
    """Return whether the lone seeder's line is left to first copies, of this blob or another."""
    if draft.lone is None:
        return False
    blob, seeder_id = draft.view.blob, draft.lone.peer_id
    return draft.is_lone_needed or draft.needs.is_needed_elsewhere(blob, seeder_id)


def _count_further_runs(draft: _Draft) -> int:
    """Return how many runs of further copies may begin now: what turns.py says of uploads."""
    if not draft.is_lone_crowd:
        return draft.view.layout.chunk_count
    return count_runs_at_once(len(draft.view.have)) - draft.view.further_runs_inflight


def _sample(reachable: Bitfield, limits: PlannerLimits, random: Random) -> list[int]:
    """Return the chunks to choose from: all, or so many from a place that chance gives."""
    if len(reachable) <= limits.candidates_max:
        return list(reachable)
    start = random.randrange(reachable.length)
    found = list(islice(reachable.iter_from(start), limits.candidates_max))
    return found + list(islice(reachable, limits.candidates_max - len(found)))


def _run_start(draft: _Draft, index: int, allowed: Bitfield, bytes_max: int) -> int:
    """Let a run begin before the chunk that led to it, if that still ends after it."""
    start = index
    run_bytes = draft.view.layout.length_of(index)
    while start > 0 and start - 1 in draft.missing and start - 1 in allowed:
        run_bytes += draft.view.layout.length_of(start - 1)
        if run_bytes > bytes_max:
            break
        start -= 1
    return start


def _idle_rate(peer: PeerView) -> float:
    return peer.rate_bps / (1 + peer.requests_inflight)


def _choose_peer(ready: Sequence[PeerView], limits: PlannerLimits, random: Random) -> PeerView:
    """Weigh by the measured rate that is idle; complete peers go before partial ones."""
    complete = [p for p in ready if p.have.is_full()]
    pool = complete or ready
    rates = [_idle_rate(p) for p in pool]
    floor = max(*rates, 1.0) * limits.weight_floor if len(rates) > 1 else 1.0
    return random.choices(pool, weights=[max(rate, floor) for rate in rates])[0]


def _plan_first_copies(draft: _Draft, first_copies: Bitfield) -> bool:
    """
    Ask the lone seeder, or else the hub, for what is ours to bring into the swarm.

    Returns:
        Whether more of it is ours than could be asked for now, as far as is known.
    """
    view, source_id = draft.view, draft.origin_id
    nothing = Bitfield(view.layout.chunk_count)
    for index in view.starving:
        if index in draft.missing and index in first_copies and _has_urgent_slot(draft, source_id):
            draft.take(source_id, index, nothing, 0, is_first=True)
    slots = draft.slots[source_id]
    if view.is_fenced or (draft.lone is None and not view.can_fetch_upstream):
        return False
    bytes_max = _find_first_run_bytes(draft)
    owned = find_owned(
        view,
        (first_copies & draft.missing),
        owners=draft.owners,
        is_upstream=draft.lone is None,
        # And one chunk more, to know whether anything is left.
        bytes_max=max(0, slots) * max(bytes_max, CHUNK_SIZE_BYTES) + 1,
    )
    if slots <= 0:
        return bool(owned)
    share_bytes = view.layout.measure(owned) // slots
    bytes_max = min(bytes_max, max(share_bytes, draft.limits.run_bytes_min))
    preferred = [i for i in view.next_for_readers if i in owned]
    is_turn = draft.needs.is_turn_of(
        view.blob,
        source_id,
        size_bytes=view.layout.size_bytes,
        requests_inflight=draft.origin_inflight,
    )
    others = iter_in_our_order(view, owned, draft.owners) if is_turn else iter(())
    for index in chain(preferred, others):
        if index in draft.missing and draft.slots[source_id] > 0:
            draft.take(source_id, index, owned, bytes_max, is_first=True)
            draft.needs.note_asked(view.blob, source_id)
    # Our own chunks come first, those of our other blobs too.
    if not owned and not draft.needs.owes_elsewhere(
        view.blob, source_id, requests_inflight=draft.origin_inflight
    ):
        _plan_help(draft, first_copies & draft.missing, source_id)
    return bool(owned & draft.missing)


def _find_first_run_bytes(draft: _Draft) -> int:
    """Return how much one request for first copies may carry."""
    limits, view = draft.limits, draft.view
    if draft.lone is not None:
        return draft.run_bytes_of(draft.lone)
    if draft.members:
        return limits.swarm_run_bytes_max
    held_bytes = len(view.have) * view.layout.size_bytes // max(1, view.layout.chunk_count)
    grown = max(limits.swarm_run_bytes_max, held_bytes // limits.alone_run_share)
    return min(limits.run_bytes_max, grown)


def _plan_help(draft: _Draft, candidates: Bitfield, source_id: str) -> None:
    """Bring what others have not begun or, if there is nothing of it, not got far with."""
    before = len(draft.requests)
    if draft.view.may_steal:
        _plan_theft(draft, candidates, source_id)
    if draft.view.slow and len(draft.requests) == before:
        _plan_rescue(draft, candidates, source_id)


def _plan_rescue(draft: _Draft, candidates: Bitfield, source_id: str) -> None:
    """
    Bring what a slow member has announced, since nothing else is left to bring.

    It comes from there, too, and will mostly be here before that: asked for earlier, it would
    come twice and make nobody ready sooner.
    """
    ours = find_owned(
        draft.view,
        candidates,
        owners=draft.owners,
        is_upstream=draft.lone is None,
        bytes_max=1,
        waits_for_slow=False,
    )
    for index in ours:
        draft.take(source_id, index, ours, 0, is_first=True)


def _plan_theft(draft: _Draft, candidates: Bitfield, source_id: str) -> None:
    """
    Bring what another owner has not begun, so that the line to the hub stays full to the end.

    From the end of the longest list: its owner comes from the start. What the owner may begin in
    one go is left to it: it does so before we could say that we did.
    """
    view = draft.view
    if not draft.owners.is_owner(view.self_id):
        return  # Of hundreds of members few may.
    intents = [peer.intent for peer in view.peers if peer.is_fetching]
    announced = Bitfield.union(candidates.length, intents)
    lists: dict[str, list[int]] = {}
    for index in islice(candidates - announced, draft.limits.candidates_max):
        owner = draft.owners.owner_of(index)
        if owner is not None and owner != view.self_id:
            lists.setdefault(owner, []).append(index)
    left = _count_begun_at_once(draft)
    spare = [(len(indexes), index) for indexes in lists.values() for index in indexes[left:]]
    ranks = {index: _find_rank(draft, index) for _, index in spare}
    # Who is next in rank takes it: idle members do not all take the same. But a seeder's line is
    # what a swarm waits for: a chunk that two take costs less than a place on it that stays empty.
    is_bold = draft.lone is not None and not draft.is_lone_crowd
    rank_max = min([RANK_BOLD_MAX, *ranks.values()]) if is_bold else 1
    ours = [(length, index) for length, index in spare if ranks[index] <= rank_max]
    if ours:
        index = max(ours)[1]
        draft.missing.discard(index)
        draft.count(source_id)
        request = RunRequest(source_id, index, index, is_first_copy=True, is_stolen=True)
        draft.requests.append(request)


def _count_begun_at_once(draft: _Draft) -> int:
    """Return how many chunks of one blob an owner may begin before we hear of it."""
    if draft.lone is not None:
        return draft.origin_runs
    # Members fetch the same blobs, and at the hub these take turns.
    return draft.origin_runs // max(1, draft.needs.count(draft.origin_id))


def _find_rank(draft: _Draft, index: int) -> int:
    """Return how many owners go before us for a chunk; as many as can be, if we are none."""
    ranks = draft.owners.ranks_of(index)
    return ranks.index(draft.view.self_id) if draft.view.self_id in ranks else OWNERS_MAX


def _has_urgent_slot(draft: _Draft, source_id: str) -> bool:
    """Return whether a reader may be served by this source now, beyond the swarm's share."""
    if source_id != UPSTREAM:
        return draft.lone_urgent_slots > 0
    return draft.urgent_slots > 0
