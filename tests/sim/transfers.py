"""
Owns the runs of one simulated daemon: requests sent, bytes that come, how each run ends.

Knows nothing of why a run was asked for.
Invariants: every run that was begun ends once, and the machine hears of it; the outcomes are those
that engine/dispatch.py would name; no more runs have a thread than the daemon has threads.
Source: engine/dispatch.py; transfer/peer.py and transfer/connection.py for what is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from p2pcache.core.fetchevents import RunEnded
from p2pcache.core.transitions import Outcome
from p2pcache.core.views import UPSTREAM, RunRequest
from p2pcache.engine.budget import UPSTREAM_REQUESTS_INFLIGHT_MAX
from p2pcache.engine.context import PEER_THREADS_MAX
from p2pcache.engine.dispatch import PACE_INTERVAL_S
from p2pcache.engine.peer import Peer
from p2pcache.errors import P2PCacheError, UpstreamRateLimitedError, UpstreamUnreachableError
from p2pcache.transfer.connection import CONNECT_S_MAX, SILENCE_S_MAX
from p2pcache.transfer.peer import RATE_FLOOR_BPS, RATE_GRACE_S
from tests.sim.network import Flow, Link
from tests.sim.setting import PEER_LATENCY_S
from tests.sim.upstream import HUB_LATENCY_S

if TYPE_CHECKING:
    from tests.sim.member import Member

# A cut run's thread notices at its next piece.
CUT_S = 0.001


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What a peer does with a request.

    Attributes:
        outcome: DELIVERED, or why not.
        forged_index: A chunk whose bytes are not what the answer itself promised.
        poison: Chunks whose bytes are as promised, and not the blob's.
    """

    outcome: Outcome
    forged_index: int | None = None
    poison: frozenset[int] = frozenset()


NOTHING_WRONG = Answer(Outcome.DELIVERED)


@dataclass(slots=True, eq=False)
class Transfer:
    """One run under way."""

    run_id: int
    request: RunRequest
    peer: Peer | None
    begun_s: float
    # When a thread took it up.
    started_s: float | None = None
    flow: Flow | None = None
    # Tells the sender that it is over.
    give_turn_back: Callable[[], None] = lambda: None
    answer: Answer = NOTHING_WRONG
    # Upstream's bytes of its first chunk that were here already.
    resumed_bytes: int = 0
    stored_bytes: int = 0
    # Of these, of chunks that came here first.
    new_bytes: int = 0
    is_cut: bool = False
    # Whether what came in vain is to be counted.
    is_counted: bool = True
    is_over: bool = False

    def received_bytes(self, now_s: float) -> int:
        """Return what came off the wire."""
        return 0 if self.flow is None else self.flow.received_bytes(now_s)


class Transfers:
    """The runs of one fetch of one member."""

    def __init__(self, member: Member) -> None:
        self.runs: dict[int, Transfer] = {}
        self._member = member
        self._waiting: list[Transfer] = []
        self._threads = {True: UPSTREAM_REQUESTS_INFLIGHT_MAX, False: PEER_THREADS_MAX}

    def begin(self, run_id: int, request: RunRequest) -> None:
        """Send a request, once a thread is free."""
        member = self._member
        peer = member.exchange.peers.get(request.source_id)
        if request.source_id == UPSTREAM:
            member.budget.begin(member.now_s)
        else:
            assert peer is not None, "asked of a peer that is not known"
            peer.requests_inflight += 1
        transfer = self.runs[run_id] = Transfer(run_id, request, peer, member.now_s)
        self._waiting.append(transfer)
        self._start_waiting()
        if request.is_first_copy:
            member.exchange.note_change()

    def cut(self, run_id: int) -> None:
        """End a run at once."""
        transfer = self.runs[run_id]
        transfer.is_cut = True
        if transfer.flow is not None:
            self._member.swarm.network.stop(transfer.flow)
        self._member.after(CUT_S, lambda: self._end(transfer, Outcome.CANCELLED))

    def stop(self, *, is_counted: bool) -> None:
        """Cut everything, and hear of it at once; what came in vain may be counted already."""
        for transfer in list(self.runs.values()):
            transfer.is_cut, transfer.is_counted = True, is_counted
            self._end(transfer, Outcome.CANCELLED)

    def abandon(self) -> None:
        """Die: the wires are cut, and nobody is told anything."""
        for transfer in self.runs.values():
            transfer.is_over = True
            transfer.give_turn_back()
            if transfer.flow is not None:
                self._member.swarm.network.stop(transfer.flow)
        self._waiting.clear()

    def find_served_by(self, server_id: str) -> list[Transfer]:
        """Return the runs whose bytes come from somebody now."""
        return [t for t in self.runs.values() if t.request.source_id == server_id]

    def fail(self, transfer: Transfer) -> None:
        """The other side broke off."""
        if not transfer.is_over and not transfer.is_cut and transfer.started_s is not None:
            self._end_failed(transfer)

    def refresh_holds(self) -> None:
        """Let flows stand still whose ends cannot reach each other now, and others go on."""
        swarm, member = self._member.swarm, self._member
        for transfer in self.runs.values():
            if transfer.flow is not None:
                is_moving = swarm.can_flow(member, transfer.request.source_id)
                swarm.network.hold(transfer.flow, not is_moving)

    # --- the life of a run ---

    def _start_waiting(self) -> None:
        for transfer in list(self._waiting):
            is_upstream = transfer.peer is None
            if self._threads[is_upstream] > 0:
                self._threads[is_upstream] -= 1
                self._waiting.remove(transfer)
                transfer.started_s = self._member.now_s
                self._member.after(PACE_INTERVAL_S, partial(self._guard, transfer))
                latency_s = HUB_LATENCY_S if is_upstream else PEER_LATENCY_S
                self._member.after(2 * latency_s, partial(self._arrive, transfer))

    def _arrive(self, transfer: Transfer) -> None:
        if transfer.is_over or transfer.is_cut:
            return
        swarm, member = self._member.swarm, self._member
        if transfer.peer is None:
            if not swarm.can_reach_hub(member):
                member.after(CONNECT_S_MAX, lambda: self.fail(transfer))
            elif (refusal := swarm.upstream.find_refusal()) is not None:
                self._end_failed(transfer, refusal)
            else:
                transfer.resumed_bytes = member.prefixes.get(transfer.request.first, 0)
                self._flow(transfer, [swarm.upstream.line, member.down])
            return
        server = swarm.members[transfer.request.source_id]
        if not swarm.can_reach(member, server):
            member.after(CONNECT_S_MAX, lambda: self.fail(transfer))
        elif not server.is_up:
            self.fail(transfer)
        else:
            server.when_awake(lambda: self._ask(transfer, server))

    def _ask(self, transfer: Transfer, server: Member) -> None:
        if transfer.is_over or transfer.is_cut:
            return
        request = transfer.request
        transfer.answer = server.serve(self._member.id, request.first, request.last)
        if transfer.answer.outcome is Outcome.DELIVERED:
            turns, now_s = server.turns, self._member.now_s
            number = turns.begin(self._member.id, now_s=now_s)
            transfer.give_turn_back = lambda: turns.end(number)
            self._flow(transfer, [server.up, self._member.down])
        else:
            self._end(transfer, transfer.answer.outcome)

    def _flow(self, transfer: Transfer, links: list[Link]) -> None:
        member, request = self._member, transfer.request
        layout = member.swarm.setting.layout
        marks = [
            layout.span_of(request.first, index)[1] - transfer.resumed_bytes
            for index in request.chunk_indexes
        ]
        transfer.flow = Flow(
            links,
            [max(1, mark) for mark in marks],
            lambda number: self._pass(transfer, request.first + number),
            now_s=member.now_s,
        )
        transfer.flow.is_held = not member.swarm.can_flow(member, request.source_id)
        member.swarm.network.start(transfer.flow)

    def _pass(self, transfer: Transfer, index: int) -> None:
        """A whole chunk came."""
        if transfer.is_over or transfer.is_cut:
            return
        member = self._member
        if index == transfer.answer.forged_index:
            assert transfer.flow is not None
            member.swarm.network.stop(transfer.flow)
            self._end(transfer, Outcome.WRONG_BYTES, chunk_index=index)
            return
        is_right = index not in transfer.answer.poison
        length = member.swarm.setting.layout.length_of(index)
        transfer.stored_bytes += length
        transfer.new_bytes += length if index not in member.stored else 0
        if not member.take_in(transfer.run_id, index, transfer.request.source_id, is_right):
            return
        if index == transfer.request.last:
            self._end(transfer, Outcome.DELIVERED)

    def _guard(self, transfer: Transfer) -> None:
        """Look at a run's pace once a second, as the daemon and its sockets do."""
        if transfer.is_over or transfer.started_s is None:
            return
        now_s = self._member.now_s
        received_bytes = transfer.received_bytes(now_s)
        elapsed_s = now_s - transfer.started_s
        moved_s = transfer.started_s if transfer.flow is None else transfer.flow.progress_s
        owed_bytes = RATE_FLOOR_BPS * (elapsed_s - RATE_GRACE_S)
        if transfer.peer is not None and received_bytes < owed_bytes:
            self._end(transfer, Outcome.CRAWLED)
            return
        if now_s - moved_s > SILENCE_S_MAX:
            self._end_failed(transfer)
            return
        self._member.after(PACE_INTERVAL_S, lambda: self._guard(transfer))

    def _end_failed(self, transfer: Transfer, error: P2PCacheError | None = None) -> None:
        if transfer.peer is not None:
            self._end(transfer, Outcome.UNREACHABLE)
            return
        error = error or UpstreamUnreachableError("The simulated hub broke off.")
        is_limited = isinstance(error, UpstreamRateLimitedError)
        outcome = Outcome.RATE_LIMITED if is_limited else Outcome.UPSTREAM_FAILED
        self._end(transfer, outcome, error=error)

    def _end(
        self,
        transfer: Transfer,
        outcome: Outcome,
        *,
        chunk_index: int | None = None,
        error: P2PCacheError | None = None,
    ) -> None:
        if transfer.is_over:
            return
        member, now_s = self._member, self._member.now_s
        transfer.is_over = True
        transfer.give_turn_back()
        if transfer.flow is not None:
            member.swarm.network.stop(transfer.flow)
        del self.runs[transfer.run_id]
        received_bytes = transfer.received_bytes(now_s)
        if transfer.started_s is not None:
            self._threads[transfer.peer is None] += 1
        else:
            self._waiting.remove(transfer)
        if transfer.peer is None:
            member.budget.end()
            member.keep_prefix(transfer, received_bytes)
        else:
            transfer.peer.requests_inflight -= 1
            transfer.peer.note_run(received_bytes, now_s - transfer.begun_s)
        if transfer.is_counted:
            member.tally.note_run(transfer, outcome, received_bytes)
        ended = RunEnded(transfer.run_id, outcome, received_bytes, chunk_index, error)
        member.note_end(ended, transfer.request)
        self._start_waiting()
