"""
Owns the runs of one fetch: sends out what the planner says, takes in chunks, judges sources.

Knows nothing of proofs or publishing.
Invariants: what is in flight is counted exactly, whatever way a run ends; a wrong byte bans its
sender on first proof; a broken promise costs a pause, then a ban.
Source: design.md §6.5–6.6.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from p2pcache.core.planner import UPSTREAM, FetchView, RunRequest, plan_requests
from p2pcache.engine.context import UPSTREAM_REQUESTS_INFLIGHT_MAX, Context
from p2pcache.engine.fetchstate import FetchState
from p2pcache.engine.peer import Peer
from p2pcache.engine.sink import RunSink
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import (
    ChunkMismatchError,
    P2PCacheError,
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

# A peer that failed to give a run is not asked for this blob again for so long.
PEER_PAUSE_S = 3.0
# How often a run's pace is looked at, and for how long a peer that crawled is left alone.
PACE_INTERVAL_S = 1.0
CRAWLER_PAUSE_S = 60.0
# A peer that is busy, or whose chunks are still on their way to it.
REFUSED_PAUSE_S = 1.0
# After so many refusals without a chunk in between, a peer's word on a chunk is not believed.
REFUSALS_IN_A_ROW_MAX = 3


class Dispatcher:
    """The runs of one fetch. Event loop only."""

    def __init__(
        self,
        context: Context,
        swarm: Swarm,
        state: FetchState,
        partial: FilePartial,
        on_change: Callable[[], None],
    ) -> None:
        """
        Args:
            context: The engine's shared parts.
            swarm: For the peers, and to tell them of intent.
            state: The fetch's; changed here.
            partial: Where chunks go.
            on_change: Called whenever a chunk arrived or a run ended.
        """
        self._context = context
        self._swarm = swarm
        self._state = state
        self._partial = partial
        self._on_change = on_change
        self._upstream = UpstreamSource(state.order.location, context.upstream_pool)
        self._runs: dict[asyncio.Task[None], tuple[RunSink, Source]] = {}

    @property
    def is_idle(self) -> bool:
        """Return whether no run is under way."""
        return not self._runs

    def send_planned(self) -> None:
        """Ask the planner and send out its requests."""
        now_s = self._context.clock.monotonic_s()
        state, limits, budget = self._state, self._context.limits, self._context.budget
        free = UPSTREAM_REQUESTS_INFLIGHT_MAX - budget.requests_inflight
        view = FetchView(
            state.order.blob,
            state.order.layout,
            self._context.settings.peer_id,
            state.have,
            state.inflight,
            state.view_peers(self._swarm.iter_up(), now_s=now_s),
            upstream_requests_inflight=max(
                state.upstream_inflight, limits.upstream_requests_inflight_max - free
            ),
            can_fetch_upstream=self.can_fetch_upstream(),
            starving=state.find_starving(now_s=now_s),
            asked=state.asked,
            next_for_readers=state.find_next_for_readers(),
        )
        for run in plan_requests(view, now_s=now_s, limits=limits, random=self._context.random):
            self._begin(run)

    def can_fetch_upstream(self) -> bool:
        """Return whether the hub may be asked for this blob now."""
        now_s = self._context.clock.monotonic_s()
        return self._state.patience.may_ask(now_s) and now_s >= self._context.budget.paused_until_s

    async def stop(self) -> None:
        """End all runs at once; returns when their threads have."""
        for sink, source in self._runs.values():
            sink.cancel()
            source.close()
        if self._runs:
            # Not gather(): cancelled meanwhile, it would leave threads writing to a closed file.
            await asyncio.wait(set(self._runs))

    def _begin(self, run: RunRequest) -> None:
        state = self._state
        peer = self._swarm.peers.get(run.source_id)
        for index in run.chunk_indexes:
            state.note_asked(index, run.source_id)
        source: Source
        if peer is None:
            state.upstream_inflight += 1
            self._context.budget.requests_inflight += 1
            source = self._upstream
        else:
            peer.requests_inflight += 1
            source = PeerSource(peer.peer_id, peer.url, self._context.peer_pool)
        sink = RunSink(self._partial, run.source_id, self._take_in, self._on_change)
        task = asyncio.create_task(self._fetch_run(run, source, peer, sink))
        self._runs[task] = (sink, source)
        task.add_done_callback(lambda done: self._runs.pop(done, None))
        self._swarm.note_change()

    async def _fetch_run(
        self, run: RunRequest, source: Source, peer: Peer | None, sink: RunSink
    ) -> None:
        """Fetch one run in a bulk thread; whatever happens, leave the counts right."""
        state, order = self._state, self._state.order
        started_s = self._context.clock.monotonic_s()

        def fetch() -> None:
            sink.is_begun = True
            source.fetch_run(order.blob, order.layout, run, sink)

        guard = None if peer is None else asyncio.create_task(self._guard_pace(peer, source, sink))
        try:
            await self._context.on_wire(fetch, is_upstream=peer is None)
            self._judge_good(run)
        except RunCancelled:
            pass
        except StoreError as error:
            state.failure = error
        except P2PCacheError as error:
            if not sink.is_cancelled:
                self._judge_fault(run, peer, error)
        except Exception:
            # Asked again at once it would fail again at once, for ever.
            log.exception("a run of %s failed", order.location.what)
            state.failure = P2PCacheError("The daemon failed at this fetch; its log says more.")
        finally:
            if guard is not None:
                guard.cancel()
            if peer is None:
                state.upstream_inflight -= 1
                self._context.budget.requests_inflight -= 1
            else:
                peer.requests_inflight -= 1
                elapsed_s = self._context.clock.monotonic_s() - started_s
                peer.note_run(sink.received_bytes, elapsed_s)
            for index in run.chunk_indexes:
                state.note_answered(index, run.source_id)
            self._swarm.note_change()
            self._on_change()

    async def _guard_pace(self, peer: Peer, source: Source, sink: RunSink) -> None:
        """
        Cut a run that crawls: silence is noticed by the socket, one byte now and then is not.
        """
        counted_s = 0.0
        while True:
            await asyncio.sleep(PACE_INTERVAL_S)
            counted_s += PACE_INTERVAL_S if sink.is_begun else 0.0
            owed = RATE_FLOOR_BPS * (counted_s - RATE_GRACE_S)
            if counted_s > RATE_GRACE_S and sink.received_bytes < owed:
                now_s = self._context.clock.monotonic_s()
                self._state.crawlers_until_s[peer.peer_id] = now_s + CRAWLER_PAUSE_S
                source.close()
                return

    def _take_in(self, chunk_index: int, source_id: str) -> None:
        """Count a chunk that a bulk thread has stored."""
        state = self._state
        length = state.order.layout.length_of(chunk_index)
        kind = "upstream" if source_id == UPSTREAM else "peer"
        self._context.bytes_counted[kind, "in"] += length
        if source_id == UPSTREAM:
            state.upstream_received += length
            state.patience.note_good()
        state.intent.discard(chunk_index)
        if chunk_index not in state.have:
            state.have.add(chunk_index)
            state.sources[chunk_index] = source_id
            state.bytes_from[kind] += length
        self._swarm.note_change()
        self._on_change()

    def _judge_good(self, run: RunRequest) -> None:
        if run.source_id == UPSTREAM:
            self._state.patience.note_good()
        else:
            self._context.blame.note_good(run.source_id)
            self._state.refusals[run.source_id] = 0

    def _judge_fault(self, run: RunRequest, peer: Peer | None, error: P2PCacheError) -> None:
        now_s = self._context.clock.monotonic_s()
        if peer is None:
            if isinstance(error, UpstreamRateLimitedError):
                self._context.budget.pause(error.retry_after_s, now_s=now_s)
            self._state.patience.note_failure(error, now_s=now_s)
            return
        if isinstance(error, ChunkMismatchError):
            self.blame(peer.peer_id, "wrong bytes", str(error))
            self._state.refuse(peer.peer_id, error.chunk_index)
            return
        if isinstance(error, PeerRefusedError):
            self._state.paused_until_s[peer.peer_id] = now_s + REFUSED_PAUSE_S
            self._state.refusals[peer.peer_id] += 1
            if self._state.refusals[peer.peer_id] >= REFUSALS_IN_A_ROW_MAX:
                for index in run.chunk_indexes:
                    self._state.refuse(peer.peer_id, index)
        elif isinstance(error, PeerDamagedError):
            self._context.chunks_rejected["peer", "damaged copy"] += 1
            for index in run.chunk_indexes:
                self._state.refuse(peer.peer_id, index)
        else:
            self._state.paused_until_s[peer.peer_id] = now_s + PEER_PAUSE_S
        if isinstance(error, PeerProtocolError | PeerDamagedError):
            reason = "damaged copy" if isinstance(error, PeerDamagedError) else "protocol"
            fault = self._context.make_fault(
                peer.peer_id, peer.name, reason, f"{error} Another source is asked."
            )
            self._context.blame.note_fault(fault, now_s=now_s)

    def blame(self, source_id: str, reason: str, detail: str) -> None:
        """Ban the sender of wrong bytes, and say so."""
        peer = self._swarm.peers.get(source_id)
        name = peer.name if peer is not None else source_id
        self._context.chunks_rejected["peer", reason] += 1
        fault = self._context.make_fault(source_id, name, reason, detail)
        self._context.blame.note_wrong_bytes(fault, now_s=self._context.clock.monotonic_s())
