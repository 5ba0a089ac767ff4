"""
Owns the runs of one fetch: does what the fetch's machine says, and tells it what came of it.

Knows nothing of proofs or publishing, and decides nothing.
Invariants: what is in flight is counted exactly, whatever way a run ends; every run that was
begun is reported as ended, once.
Source: design.md §6.5–6.6; core/fetchmachine.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from p2pcache.core.fetchevents import (
    Accuse,
    Action,
    Ask,
    Cancel,
    ChunkStored,
    Event,
    Look,
    RunEnded,
)
from p2pcache.core.tenure import LEASE_S
from p2pcache.core.transitions import Outcome
from p2pcache.core.views import UPSTREAM, RunRequest
from p2pcache.engine.context import Context
from p2pcache.engine.fetchstate import FetchState
from p2pcache.engine.peer import Peer
from p2pcache.engine.sink import RunSink
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import (
    ChunkMismatchError,
    P2PCacheError,
    PeerBusyError,
    PeerDamagedError,
    PeerProtocolError,
    PeerRefusedError,
    StoreError,
    UpstreamRateLimitedError,
)
from p2pcache.store.partial import FilePartial
from p2pcache.transfer.base import RunCancelled, Source
from p2pcache.transfer.peer import RATE_FLOOR_BPS, RATE_GRACE_S, PeerSource
from p2pcache.transfer.upstream import UpstreamSource

log = logging.getLogger(__name__)

# How often a run's pace is looked at.
PACE_INTERVAL_S = 1.0


@dataclass(slots=True)
class _Run:
    """One request under way, and what cuts it."""

    request: RunRequest
    sink: RunSink
    source: Source
    peer: Peer | None
    task: asyncio.Task[None] | None = None
    is_crawling: bool = False

    def cut(self) -> None:
        """End it at once."""
        self.sink.cancel()
        self.source.close()


@dataclass(frozen=True, slots=True)
class RunListeners:
    """Who wants to know: of more bytes, and of a source that is free again."""

    on_bytes: Callable[[], None]
    on_end: Callable[[], None]


class Dispatcher:
    """The runs of one fetch. Event loop only."""

    def __init__(
        self,
        context: Context,
        swarm: Swarm,
        state: FetchState,
        partial: FilePartial,
        listeners: RunListeners,
    ) -> None:
        """
        Args:
            context: The engine's shared parts.
            swarm: For the peers, and to tell them of intent.
            state: The fetch's; changed here.
            partial: Where chunks go.
            listeners: Told what came of runs.
        """
        self._context = context
        self._swarm = swarm
        self._state = state
        self._partial = partial
        self._listeners = listeners
        self._upstream = UpstreamSource(
            state.order.location, context.upstream_pool, on_answer=context.budget.note_bulk_answer
        )
        self._runs: dict[int, _Run] = {}

    @property
    def is_idle(self) -> bool:
        """Return whether no run is under way."""
        return not self._runs

    def send_planned(self) -> None:
        """Let the machine look at the world, and do what it says."""
        budget, now_s = self._context.budget, self._context.clock.monotonic_s()
        neighbourhood = self._swarm.neighbourhood
        self._tell(
            Look(
                self._state.view_peers(self._swarm.iter_heard(self._state.order.blob), now_s=now_s),
                budget.requests_inflight,
                budget.may_ask(now_s),
                {run_id: run.sink.received_bytes for run_id, run in self._runs.items()},
                is_distrusted=self._swarm.is_distrusted(),
                relays=self._state.order.trusts_peers,
                upstream_free=budget.count_free(now_s),
                crowd=neighbourhood.known if neighbourhood.is_crowded else frozenset(),
            )
        )

    def hopes_for_upstream(self) -> bool:
        """
        Return whether the hub will be asked for what is ours, now or within a lease.

        A short pause after an error is no reason for others to begin the same chunks.
        """
        now_s = self._context.clock.monotonic_s()
        is_soon = self._context.budget.paused_until_s - now_s < LEASE_S
        return is_soon and not self._state.machine.patience.is_given_up()

    async def stop(self) -> None:
        """End all runs at once; returns when their threads have."""
        for run in self._runs.values():
            run.cut()
        tasks = {run.task for run in self._runs.values() if run.task is not None}
        if tasks:
            # Not gather(): cancelled meanwhile, it would leave threads writing to a closed file.
            await asyncio.wait(tasks)

    # --- the machine's actions ---

    def _tell(self, event: Event) -> None:
        now_s = self._context.clock.monotonic_s()
        for action in self._state.machine.handle(event, now_s=now_s):
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Ask():
                self._begin(action.run_id, action.request)
            case Cancel():
                self._runs[action.run_id].cut()
            case Accuse():
                raise AssertionError("only the end of a run accuses; see _judge()")

    def _begin(self, run_id: int, request: RunRequest) -> None:
        peer = self._swarm.peers.get(request.source_id)
        source: Source
        if peer is None:
            self._context.budget.begin(self._context.clock.monotonic_s())
            # One for each run: what cuts a run must not cut the others.
            source = self._upstream.fork()
        else:
            peer.requests_inflight += 1
            source = PeerSource(peer.peer_id, peer.url, self._context.peer_pool)

        def take_in(chunk_index: int, source_id: str) -> None:
            self._take_in(run_id, chunk_index, source_id)

        caps, on_bytes = self._context.caps, self._listeners.on_bytes
        pacer = caps.of_upstream() if peer is None else caps.of_download(peer.peer_id)
        sink = RunSink(self._partial, request.source_id, take_in, on_bytes, pacer)
        run = self._runs[run_id] = _Run(request, sink, source, peer)
        run.task = asyncio.create_task(self._fetch_run(run_id, run))
        if request.is_first_copy:
            self._swarm.note_change()

    async def _fetch_run(self, run_id: int, run: _Run) -> None:
        """Fetch one run in a bulk thread; whatever happens, leave the counts right."""
        order, sink = self._state.order, run.sink
        started_s = self._context.clock.monotonic_s()

        def fetch() -> None:
            sink.is_begun = True
            run.source.fetch_run(order.blob, order.layout, run.request, sink)

        guard = None if run.peer is None else asyncio.create_task(self._guard_pace(run))
        failure: P2PCacheError | None = None
        outcome = Outcome.CANCELLED
        try:
            await self._context.on_wire(fetch, is_upstream=run.peer is None)
            outcome = Outcome.DELIVERED
        except RunCancelled:
            pass
        except StoreError as error:
            self._state.failure = error
        except P2PCacheError as error:
            if not sink.is_cancelled:
                failure = error
                outcome = Outcome.CRAWLED if run.is_crawling else outcome_of(error, run.peer)
        except Exception:
            # Asked again at once it would fail again at once, for ever.
            log.exception("a run of %s failed", order.location.what)
            self._state.failure = P2PCacheError("The daemon failed at this fetch; see its log.")
        finally:
            if guard is not None:
                guard.cancel()
            self._runs.pop(run_id, None)
            if run.peer is None:
                self._context.budget.end()
            else:
                run.peer.requests_inflight -= 1
                elapsed_s = self._context.clock.monotonic_s() - started_s - sink.paced_s
                run.peer.note_run(sink.received_bytes, elapsed_s)
            self._note_end(run_id, run, outcome, failure)
            self._listeners.on_end()
            self._pass_turn(run)

    def _pass_turn(self, run: _Run) -> None:
        """Wake the fetch whose turn it is where a place is free now."""
        inflight = self._context.budget.requests_inflight
        if run.peer is not None:
            inflight = run.peer.requests_inflight
        needs, source_id = self._context.pace.needs, run.request.source_id
        blob = needs.find_first_owing(source_id, requests_inflight=inflight)
        if blob is not None:
            self._swarm.nudge(blob)

    async def _guard_pace(self, run: _Run) -> None:
        """
        Cut a run that crawls: silence is noticed by the socket, one byte now and then is not.
        """
        counted_s = 0.0
        while True:
            await asyncio.sleep(PACE_INTERVAL_S)
            counted_s += PACE_INTERVAL_S if run.sink.is_begun else 0.0
            waited_s = counted_s - run.sink.paced_s
            owed = RATE_FLOOR_BPS * (waited_s - RATE_GRACE_S)
            if waited_s > RATE_GRACE_S and run.sink.received_bytes < owed:
                run.is_crawling = True
                run.source.close()
                return

    # --- what came of them ---

    def _take_in(self, run_id: int, chunk_index: int, source_id: str) -> None:
        """Count a chunk that a bulk thread has stored."""
        state = self._state
        length = state.order.layout.length_of(chunk_index)
        kind = "upstream" if source_id == UPSTREAM else "peer"
        self._context.bytes_counted[kind, "in"] += length
        if chunk_index not in state.have:
            state.sources[chunk_index] = source_id
            state.bytes_from[kind] += length
        is_doubled = len(state.machine.asked.get(chunk_index, ())) > 1
        self._tell(ChunkStored(chunk_index, run_id))
        self._swarm.note_change()
        # The slower of two sources is not needed any more.
        (self._listeners.on_end if is_doubled else self._listeners.on_bytes)()

    def _note_end(
        self, run_id: int, run: _Run, outcome: Outcome, failure: P2PCacheError | None
    ) -> None:
        """Tell the machine how a run ended; hold against the source what it says."""
        now_s = self._context.clock.monotonic_s()
        if isinstance(failure, UpstreamRateLimitedError):
            self._context.budget.pause(failure.retry_after_s, now_s=now_s)
        chunk_index = failure.chunk_index if isinstance(failure, ChunkMismatchError) else None
        ended = RunEnded(run_id, outcome, run.sink.received_bytes, chunk_index, failure)
        had_intent = bool(self._state.machine.intent)
        for action in self._state.machine.handle(ended, now_s=now_s):
            if isinstance(action, Accuse) and run.peer is not None:
                self._accuse(action, run.peer, failure)
        if had_intent:
            self._swarm.note_change()

    def _accuse(self, accusation: Accuse, peer: Peer, failure: P2PCacheError | None) -> None:
        if accusation.is_ban:
            self.blame(peer.peer_id, accusation.fault, str(failure))
            return
        detail = f"{failure} Another source is asked."
        fault = self._context.make_fault(peer.peer_id, peer.name, accusation.fault, detail)
        if accusation.fault == "damaged copy":
            # Who says so of itself is honest: no ban, however often.
            self._context.chunks_rejected["peer", accusation.fault] += 1
            self._context.blame.note_damage(fault)
            return
        self._context.blame.note_fault(fault, now_s=self._context.clock.monotonic_s())

    def blame(self, source_id: str, reason: str, detail: str) -> None:
        """Ban the sender of wrong bytes, and say so."""
        peer = self._swarm.peers.get(source_id)
        name = peer.name if peer is not None else source_id
        self._context.chunks_rejected["peer", reason] += 1
        fault = self._context.make_fault(source_id, name, reason, detail)
        self._context.blame.note_wrong_bytes(fault, now_s=self._context.clock.monotonic_s())


def outcome_of(error: P2PCacheError, peer: Peer | None) -> Outcome:
    """Return how a run ended that raised an error."""
    if peer is None:
        is_limited = isinstance(error, UpstreamRateLimitedError)
        return Outcome.RATE_LIMITED if is_limited else Outcome.UPSTREAM_FAILED
    match error:
        case ChunkMismatchError():
            return Outcome.WRONG_BYTES
        case PeerBusyError():
            return Outcome.BUSY
        case PeerRefusedError():
            return Outcome.REFUSED
        case PeerDamagedError():
            return Outcome.DAMAGED
        case PeerProtocolError():
            return Outcome.PROTOCOL
    return Outcome.UNREACHABLE
