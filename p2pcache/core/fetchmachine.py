"""
Owns one blob's way here as a state machine: events in, actions out.

Knows nothing of tasks, threads, sockets or clocks: the daemon and the simulator both drive it.
Invariants: a chunk that is held is never asked for; none is asked of more than two sources; what
is in flight is what was asked and has not ended; chunks change state by transitions.py alone.
Source: design.md §6; docs/explanation/scheduling.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.duties import Duties
from p2pcache.core.fence import Fence
from p2pcache.core.fetchevents import (
    Accuse,
    Action,
    Ask,
    Cancel,
    ChunksForgotten,
    ChunkStored,
    Event,
    Look,
    RunEnded,
)
from p2pcache.core.fetchrun import Run
from p2pcache.core.layout import Layout
from p2pcache.core.ownership import Ownership
from p2pcache.core.pace import Pace
from p2pcache.core.patience import Patience
from p2pcache.core.planner import plan_requests
from p2pcache.core.readers import Readers
from p2pcache.core.rests import Rests
from p2pcache.core.transitions import (
    BROKEN_REST_S,
    BUSY_IN_A_CROWD_MAX,
    BUSY_IN_A_ROW_MAX,
    BUSY_REST_JITTER,
    CHUNK_TRANSITIONS,
    CONSEQUENCES,
    CRAWLER_REST_S,
    ChunkEvent,
    ChunkState,
    Outcome,
    Refusal,
    find_busy_rest_s,
)
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

# After so many refusals without a chunk in between, a peer's word on a chunk is not believed.
REFUSALS_IN_A_ROW_MAX = 3
# A run whose chunk takes so long leaves room for another one: its source is slow, not our line.
LATE_RUN_S = 2.0
# Who was given up is not asked again at once: its queue is what made it late.
OVERDUE_REST_S = 3.0
# A run whose present chunk is further than this is not given up for another source.
KEPT_SHARE = 0.5


class FetchMachine:
    """The machine of one blob. handle() changes it; the properties may be read at any time."""

    def __init__(
        self,
        blob: BlobDigest,
        layout: Layout,
        self_id: str,
        *,
        limits: PlannerLimits,
        pace: Pace,
        random: Random,
    ) -> None:
        """
        Args:
            blob, layout: What is fetched.
            self_id: Our own peer id.
            limits: The planner's numbers.
            pace: Shared by all machines of a daemon.
            random: Breaks ties.
        """
        count = layout.chunk_count
        self.blob, self.layout = blob, layout
        self.have, self.inflight = Bitfield(count), Bitfield(count)
        # First copies under way: what peers are told of; among them are the ones whose start is
        # kept while the hub, which broke off, is left alone.
        self.intent, self.begun = Bitfield(count), set[int]()
        self.asked: dict[int, set[str]] = {}
        self.runs: dict[int, Run] = {}
        self.readers = Readers()
        self.patience = Patience()
        self.refused: dict[str, Bitfield] = {}
        self.rests = Rests()
        # First copies that came, in bytes off the wire.
        self.first_copy_bytes = 0
        self._refusals = Counter[str]()
        self._is_crowded = False
        self._self_id = self_id
        self._limits, self._pace, self._random = limits, pace, random
        self._ownership = Ownership(blob)
        self.duties = Duties(self_id, layout, self._ownership, pace)
        self._next_run_id = 1
        self.fence = Fence()

    def handle(self, event: Event, *, now_s: float) -> list[Action]:
        """Take in an event; return what to do, in order."""
        match event:
            case Look():
                return self._look(event, now_s)
            case ChunkStored():
                return self._store(event, now_s)
            case RunEnded():
                return self._end(event, now_s)
            case ChunksForgotten():
                for index in event.chunk_indexes:
                    self._move(index, ChunkEvent.FORGET)
                return []

    # --- chunks ---

    def state_of(self, chunk_index: int) -> ChunkState:
        """Return where a chunk stands."""
        if chunk_index in self.have:
            return ChunkState.HELD
        count = len(self.asked.get(chunk_index, ()))
        return (ChunkState.MISSING, ChunkState.ASKED, ChunkState.DOUBLED)[count]

    def note_asked(self, chunk_index: int, source_id: str) -> None:
        """Count a chunk as on its way from a source; also files of this machine are sources."""
        if source_id not in self.asked.get(chunk_index, ()):
            self._move(chunk_index, ChunkEvent.ASK, source_id)

    def note_answered(self, chunk_index: int, source_id: str) -> None:
        """Count a chunk as not on its way from a source any more, whether it came or not."""
        if source_id in self.asked.get(chunk_index, ()):
            self._move(chunk_index, ChunkEvent.END, source_id)

    def _move(self, index: int, event: ChunkEvent, source_id: str = "") -> None:
        after = CHUNK_TRANSITIONS[self.state_of(index), event]
        asked = self.asked.setdefault(index, set())
        match event:
            case ChunkEvent.ASK:
                asked.add(source_id)
            case ChunkEvent.END:
                asked.discard(source_id)
            case ChunkEvent.STORE:
                self.have.add(index)
                self._drop_intent(index)
            case ChunkEvent.FORGET:
                self.have.discard(index)
        if asked:
            self.inflight.add(index)
        else:
            del self.asked[index]
            self.inflight.discard(index)
        assert self.state_of(index) is after or event is ChunkEvent.FORGET, "the table says else"

    def _store(self, event: ChunkStored, now_s: float) -> list[Action]:
        index = event.chunk_index
        length = self.layout.length_of(index)
        is_new = index not in self.have
        run = self.runs.get(event.run_id) if event.run_id is not None else None
        if run is not None:
            source_id = run.request.source_id
            if source_id != UPSTREAM:
                self._pace.peer_chunk.note(now_s - run.chunk_s)
                self._refusals[source_id] = 0
            else:
                self._pace.hub_chunk.note(now_s - run.chunk_s)
                self.patience.note_good()
            run.chunk_s = now_s
            run.stored_bytes += length
            run.new_bytes += length if is_new else 0
        self._move(index, ChunkEvent.STORE)
        return []

    def _find_needless(self) -> list[int]:
        """Return the runs of which every chunk is here by now, though they did not bring all."""
        return [
            run_id
            for run_id, run in self.runs.items()
            if not run.is_cancelled
            and all(i in self.have for i in run.request.chunk_indexes)
            and run.stored_bytes < self.layout.span_of(run.request.first, run.request.last)[1]
        ]

    # --- runs ---

    def _begin(self, request: RunRequest, now_s: float) -> Ask:
        run_id, self._next_run_id = self._next_run_id, self._next_run_id + 1
        run = self.runs[run_id] = Run(request, now_s, now_s)
        for index in request.chunk_indexes:
            self._move(index, ChunkEvent.ASK, request.source_id)
            if request.is_first_copy or request.source_id == UPSTREAM:
                self.intent.add(index)
        if request.is_second_source:
            run.reserved_bytes = self.layout.length_of(request.first)
            self._pace.extra.reserved += run.reserved_bytes
        return Ask(run_id, request)

    def _end(self, event: RunEnded, now_s: float) -> list[Action]:
        run = self.runs.pop(event.run_id)
        request, source_id = run.request, run.request.source_id
        self._note_received(run, event.received_bytes)
        self._pace.extra.reserved -= run.reserved_bytes
        # A broken-off chunk's bytes count too, unless upstream gave them: those are kept.
        kept_bytes = run.stored_bytes if source_id != UPSTREAM else run.received_bytes
        self._pace.extra.spent += max(0, run.received_bytes - kept_bytes)
        self._pace.extra.spent += run.stored_bytes - run.new_bytes
        present = self._present_chunk(run)
        is_begun = present not in self.have and (run.partial_bytes > 0 or present in self.begun)
        for index in request.chunk_indexes:
            self.note_answered(index, source_id)
            if not any(self._is_first_copy(i, index) for i in self.runs.values()):
                self._drop_intent(index)
        if event.outcome is Outcome.UPSTREAM_FAILED and is_begun:
            # Else another member takes it meanwhile, and the hub sends its start again.
            self.begun.add(present)
            self.intent.add(present)
        if source_id == UPSTREAM:
            self._note_upstream(event, now_s)
            return []
        return self._judge(event, request, now_s)

    def _drop_intent(self, index: int) -> None:
        self.intent.discard(index)
        self.begun.discard(index)

    @staticmethod
    def _is_first_copy(run: Run, index: int) -> bool:
        is_first = run.request.is_first_copy or run.request.source_id == UPSTREAM
        return is_first and index in run.request.chunk_indexes

    def _note_upstream(self, event: RunEnded, now_s: float) -> None:
        if event.outcome is Outcome.DELIVERED:
            self.patience.note_good()
        elif event.error is not None:
            self.patience.note_failure(event.error, now_s=now_s)

    def _judge(self, event: RunEnded, request: RunRequest, now_s: float) -> list[Action]:
        peer_id = request.source_id
        consequence = CONSEQUENCES[event.outcome]
        if event.outcome is Outcome.DELIVERED:
            self._refusals[peer_id] = 0
            self.rests.forgive(peer_id)
        if event.outcome in (Outcome.REFUSED, Outcome.BUSY):
            self._refusals[peer_id] += 1
        if consequence.rest_s:
            leave_alone = self.rests.shun if consequence.is_shunned else self.rests.rest
            leave_alone(peer_id, now_s + self._draw_rest_s(event.outcome, peer_id))
        for index in self._find_refused(consequence.refusal, event, request):
            self.refuse(peer_id, index)
        if self._is_word_broken(event, request):
            self.rests.shun(peer_id, now_s + CRAWLER_REST_S)
        if consequence.fault is None:
            return []
        return [Accuse(peer_id, consequence.fault, consequence.is_ban)]

    def _draw_rest_s(self, outcome: Outcome, peer_id: str) -> float:
        if outcome is not Outcome.BUSY:
            return CONSEQUENCES[outcome].rest_s
        rest_s = find_busy_rest_s(self._refusals[peer_id], is_crowded=self._is_crowded)
        return rest_s * self._random.uniform(1 - BUSY_REST_JITTER, 1 + BUSY_REST_JITTER)

    def _find_refused(
        self, refusal: Refusal, event: RunEnded, request: RunRequest
    ) -> Iterable[int]:
        is_repeated = self._is_word_broken(event, request)
        match refusal:
            case Refusal.CHUNK:
                return [] if event.chunk_index is None else [event.chunk_index]
            case Refusal.REST:
                return [i for i in request.chunk_indexes if i not in self.have]
            case Refusal.REST_WHEN_REPEATED if is_repeated:
                return [i for i in request.chunk_indexes if i not in self.have]
        return []

    def _is_word_broken(self, event: RunEnded, request: RunRequest) -> bool:
        """Return whether a peer refused so often that its word on chunks is worth nothing."""
        most = REFUSALS_IN_A_ROW_MAX
        if event.outcome is Outcome.BUSY:
            most = BUSY_IN_A_CROWD_MAX if self._is_crowded else BUSY_IN_A_ROW_MAX
        return self._refusals[request.source_id] >= most

    def refuse(self, peer_id: str, chunk_index: int) -> None:
        """Do not ask this peer for this chunk again."""
        self.refused.setdefault(peer_id, Bitfield(self.have.length)).add(chunk_index)

    # --- looking ---

    def _look(self, look: Look, now_s: float) -> list[Action]:
        for run_id, received_bytes in look.received.items():
            if run_id in self.runs:
                self._note_received(self.runs[run_id], received_bytes)
        peers = self.view(look.peers, now_s=now_s)
        self._is_crowded = bool(look.crowd)
        can_ask_hub = look.can_fetch_upstream and self.patience.may_ask(now_s)
        is_cut_off = not can_ask_hub and not (look.relays and find_lone_seeder(peers))
        self.duties.watch(
            peers,
            self.have,
            self.intent,
            first_copy_bytes=self.first_copy_bytes,
            now_s=now_s,
            jitter=self._random.random(),
            is_distrusted=look.is_distrusted,
            is_cut_off=is_cut_off,
        )
        peers = self.duties.leave(peers, self.have)
        self._drop_begun(peers, can_fetch_upstream=look.can_fetch_upstream)
        is_fenced = self.fence.look(peers, now_s=now_s)
        starving = self.readers.find_starving(self.have, now_s=now_s)
        view = FetchView(
            self.blob,
            self.layout,
            self._self_id,
            self.have,
            self.inflight,
            peers,
            look.upstream_requests_inflight,
            can_ask_hub,
            starving=starving,
            next_for_readers=self.readers.find_next(self.have.length),
            asked=self.asked,
            begun=self.begun,
            stalled=self.duties.stalled,
            slow=self.duties.slow,
            lapsed=self.duties.lapsed,
            upstream_free=look.upstream_free,
            relays=look.relays,
            may_steal=self.fence.may_steal(),
            ownership=self._ownership,
            needs=self._pace.needs,
            is_fenced=is_fenced,
            is_crowded=self._is_crowded,
            further_runs_inflight=self._count_further_runs(now_s),
            expected=look.crowd if self.fence.is_settling() else frozenset(),
        )
        over = dict.fromkeys(
            [*self._find_needless(), *self._find_outdone(peers), *self._find_in_the_way(starving)]
        )
        for run_id in over:
            self.runs[run_id].is_cancelled = True
        is_endgame = (self.have | self.inflight).is_full()
        overdue = self._find_overdue(now_s, is_endgame=is_endgame)
        can_ask_hub = can_ask_hub and not is_fenced
        given_up = [
            run_id
            for run_id in overdue
            if self._try_give_up(run_id, peers, now_s, can_ask_hub=can_ask_hub)
        ]
        actions: list[Action] = [Cancel(run_id) for run_id in (*over, *given_up)]
        doubled = [self._present_chunk(self.runs[r]) for r in overdue if r not in given_up]
        doubled = [i for i in doubled if self._pace.extra.may_spend(self.layout.length_of(i))]
        view = replace(view, overdue=doubled[:1])
        requests = plan_requests(view, limits=self._limits, random=self._random)
        lone = find_lone_seeder(peers)
        if lone is not None and self.rests.is_resting(lone.peer_id, now_s=now_s):
            self._pace.needs.stand_back(self.blob)
        return actions + [self._begin(request, now_s) for request in requests]

    def _drop_begun(self, peers: Sequence[PeerView], *, can_fetch_upstream: bool) -> None:
        """Announce no more what we have the start of, and will not bring to its end."""
        is_hopeless = not can_fetch_upstream or self.patience.is_given_up()
        for index in self.begun - set(self.inflight):
            is_others = self._self_id in self.duties.stalled or any(index in p.have for p in peers)
            if is_hopeless or is_others:
                self._drop_intent(index)

    def view(self, peers: Iterable[PeerView], *, now_s: float) -> list[PeerView]:
        """
        Return what may be expected of peers now: a resting one has chunks and gives none, a
        shunned one has none, and none has what it refused.
        """
        seen = []
        for peer in peers:
            if self.rests.is_shunned(peer.peer_id, now_s=now_s):
                peer = replace(peer, have=Bitfield(self.have.length))
            elif peer.peer_id in self.refused:
                peer = replace(peer, have=peer.have - self.refused[peer.peer_id])
            if self.rests.is_resting(peer.peer_id, now_s=now_s):
                busy = self._limits.peer_requests_inflight_max
                peer = replace(peer, requests_inflight=max(busy, peer.requests_inflight))
            seen.append(peer)
        return seen

    def gives_way(self) -> bool:
        """Return whether we are too slow, and leave what is ours to somebody who is not."""
        return self._self_id in self.duties.stalled and self.duties.is_relieved

    def is_anyone_asked(self) -> bool:
        """Return whether a run from a peer is under way."""
        return any(run.request.source_id != UPSTREAM for run in self.runs.values())

    def _count_further_runs(self, now_s: float) -> int:
        """Return the runs from peers, first copies not counted, that are not late."""
        return sum(
            run.request.source_id != UPSTREAM
            and not run.request.is_first_copy
            and now_s - run.chunk_s < LATE_RUN_S
            for run in self.runs.values()
        )

    def list_tried(self) -> list[str]:
        """Return the peers that were asked and did not give what they were asked for."""
        return list(dict.fromkeys([*self.refused, *self.rests.list_peers()]))

    def is_anyone_resting(self, *, now_s: float) -> bool:
        """Return whether a peer that broke off or refused will be asked again soon."""
        return self.rests.find_next_end_s(now_s=now_s) <= BROKEN_REST_S

    def _note_received(self, run: Run, received_bytes: int) -> None:
        new_bytes = max(0, received_bytes - run.received_bytes)
        run.received_bytes += new_bytes
        if run.request.is_first_copy or run.request.source_id == UPSTREAM:
            self.first_copy_bytes += new_bytes
            self._pace.moved_bytes += new_bytes

    # --- what takes too long ---

    def _find_overdue(self, now_s: float, *, is_endgame: bool) -> list[int]:
        """Return the runs from peers whose present chunk takes too long, slowest first."""
        limit_s = self._pace.overdue_s(is_endgame=is_endgame)
        waits = [
            (now_s - run.chunk_s, run_id)
            for run_id, run in self.runs.items()
            if run.request.source_id != UPSTREAM and not run.is_cancelled
        ]
        return [run_id for wait_s, run_id in sorted(waits, reverse=True) if wait_s > limit_s]

    def _present_chunk(self, run: Run) -> int:
        """Return the chunk that a run is bringing now."""
        return next((i for i in run.request.chunk_indexes if i not in self.have), run.request.last)

    def _try_give_up(
        self, run_id: int, peers: Sequence[PeerView], now_s: float, *, can_ask_hub: bool
    ) -> bool:
        """
        Give up an overdue run for another source, if there is one; return whether.

        It costs the bytes that came, once, instead of a chunk that comes twice.
        """
        run = self.runs[run_id]
        index = self._present_chunk(run)
        partial_bytes = run.partial_bytes
        has_other = any(
            index in p.have
            and p.peer_id != run.request.source_id
            and p.requests_inflight < self._limits.peer_requests_inflight_max
            for p in peers
        )
        length = self.layout.length_of(index)
        if partial_bytes > KEPT_SHARE * length or not self._pace.extra.may_spend(partial_bytes):
            return False
        until_s = now_s + OVERDUE_REST_S
        if has_other:
            # Its other chunks go elsewhere too; it is tried again once it has given what it owes.
            self.rests.rest(run.request.source_id, until_s)
        elif can_ask_hub and run.is_standing(length, now_s=now_s):
            self.rests.shun(run.request.source_id, until_s)
        else:
            return False
        run.is_cancelled = True
        # Until it has ended: several runs given up in one look share one allowance.
        run.reserved_bytes += partial_bytes
        self._pace.extra.reserved += partial_bytes
        return True

    def _find_outdone(self, peers: Sequence[PeerView]) -> list[int]:
        """Return our first copies that somebody else has by now, unless they are nearly here."""
        outdone = []
        for run_id, run in self.runs.items():
            if run.is_cancelled or run.request.source_id != UPSTREAM:
                continue
            left = [i for i in run.request.chunk_indexes if i not in self.have]
            partial_bytes = run.partial_bytes
            if not left:
                continue
            if run.request.is_stolen and self._is_owner_on_it(left[0], peers):
                outdone.append(run_id)
                continue
            is_nearly_here = partial_bytes > KEPT_SHARE * self.layout.length_of(left[0])
            if len(left) == 1 and is_nearly_here:
                continue
            # Only who has given us something: a lie must not cost bytes of the hub.
            proven = [p for p in peers if p.rate_bps]
            if all(any(i in p.have for p in proven) for i in left):
                outdone.append(run_id)
        return outdone

    def _find_in_the_way(self, starving: Iterable[int]) -> list[int]:
        """
        Return the runs of the hub in which a reader's chunk would come late.

        What came of them is kept, and the next run begins with the reader's chunk.
        """
        return [
            run_id
            for run_id, run in self.runs.items()
            if run.request.source_id == UPSTREAM
            and not run.is_cancelled
            and any(
                index in run.request.chunk_indexes and index != self._present_chunk(run)
                for index in starving
            )
        ]

    def _is_owner_on_it(self, index: int, peers: Sequence[PeerView]) -> bool:
        """Return whether the owner of a chunk that we took over has begun it at the same time."""
        owner = self._ownership.owner_of(index)
        return any(p.peer_id == owner and index in p.intent for p in peers)
