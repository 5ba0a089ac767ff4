"""
Owns a simulated swarm: N members that plan with core.planner, in simulated time.

Knows nothing of sockets, disks or asyncio.
Invariants: one seed gives one history; members know of each other only what messages told them.
Source: engine/dispatch.py and engine/swarm.py, for what happens around a plan.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.planner import UPSTREAM, FetchView, PlannerLimits, RunRequest, plan_requests
from p2pcache.engine.peer import Peer

BLOB = BlobDigest("sha256", "ab" * 32)
# What the engine does in real time: replan on change, tell on change, look again now and then.
REPLAN_S = 0.02
TELL_S = 0.05
LOOK_AGAIN_S = 0.25
PEER_PAUSE_S = 3.0
SILENCE_S = 8.0


@dataclass
class World:
    """The network: time, delays, rates and chance."""

    seed: int
    chunk_count: int
    message_s: tuple[float, float] = (0.001, 0.03)
    upstream_chunk_s: float = 0.1
    peer_chunk_s: float = 0.02
    limits: PlannerLimits = field(default_factory=PlannerLimits)

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.random = Random(self.seed)
        self.layout = Layout(self.chunk_count * CHUNK_SIZE_BYTES)
        self.members: list[Member] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._count, work))

    def delay(self) -> float:
        """Return how long one message takes."""
        return self.random.uniform(*self.message_s)

    def run(self, until_s: float) -> None:
        """Let time pass until every member that lives has everything, or until_s."""
        while self._events and not all(m.is_complete or not m.is_alive for m in self.members):
            now_s, _, work = heapq.heappop(self._events)
            if now_s > until_s:
                return
            self.now_s = now_s
            work()

    @property
    def upstream_chunks(self) -> Counter[int]:
        """Return how often each chunk was asked of the hub."""
        return sum((member.asked_upstream for member in self.members), Counter())


class Member:
    """One daemon that fetches the blob."""

    def __init__(self, world: World, number: int, *, upstream_factor: float = 1.0) -> None:
        self.id = f"{number + 1:032x}"
        self.world = world
        self.have = Bitfield(world.chunk_count)
        self.inflight = Bitfield(world.chunk_count)
        self.intent = Bitfield(world.chunk_count)
        self.peers: dict[str, Peer] = {}
        self.paused_until_s: dict[str, float] = {}
        self.heard_s: dict[str, float] = {}
        self.upstream_inflight = 0
        self.received = 0
        self.is_alive = True
        self.is_started = False
        self.has_met_peers = False
        self.asked_upstream: Counter[int] = Counter()
        self._upstream_factor = upstream_factor
        self._random = Random(world.random.random())
        self._will_plan = self._will_tell = False
        world.members.append(self)

    @property
    def is_complete(self) -> bool:
        """Return whether every chunk is here."""
        return self.have.is_full()

    def start(self) -> None:
        """Tell everybody, hear what they have, then plan: the first round."""
        self.is_started = True
        for other in self.world.members:
            if other is not self and other.is_started:
                self._send_to(other)
                other._send_to(self)
        self.world.after(2 * self.world.message_s[1] + 0.001, self._look_again)

    def die(self) -> None:
        """Vanish without a word."""
        self.is_alive = False

    def report(self) -> SwarmEntry:
        """Return what this member says."""
        return SwarmEntry(
            BLOB,
            self.world.layout.id,
            self.have.copy(),
            self.intent.copy(),
            not self.is_complete,
            True,
            self.received,
        )

    def _send_to(self, other: Member) -> None:
        entry, sender = self.report(), self.id
        self.world.after(self.world.delay(), lambda: other._hear(sender, entry))

    def _hear(self, sender: str, entry: SwarmEntry) -> None:
        if not self.is_alive:
            return
        peer = self.peers.setdefault(sender, Peer(sender, sender, "10.0.0.1", 1))
        peer.hear(entry, now_s=self.world.now_s)
        self.heard_s[sender] = self.world.now_s
        self._plan_soon()

    def _tell_soon(self) -> None:
        if not self._will_tell:
            self._will_tell = True
            self.world.after(TELL_S, self._tell)

    def _tell(self) -> None:
        self._will_tell = False
        if self.is_alive:
            for other in self.world.members:
                if other is not self and other.is_started:
                    self._send_to(other)

    def _look_again(self) -> None:
        self.has_met_peers = True
        if self.is_alive and not self.is_complete:
            self._tell_soon()
            self._plan()
            self.world.after(LOOK_AGAIN_S, self._look_again)

    def _plan_soon(self) -> None:
        if not self._will_plan and self.has_met_peers:
            self._will_plan = True
            self.world.after(REPLAN_S, self._plan)

    def _plan(self) -> None:
        self._will_plan = False
        now_s = self.world.now_s
        if not self.is_alive or self.is_complete:
            return
        views = [
            view
            for peer in self.peers.values()
            if self.paused_until_s.get(peer.peer_id, 0.0) <= now_s
            and now_s - self.heard_s[peer.peer_id] < SILENCE_S
            and (view := peer.view(BLOB, None)) is not None
        ]
        fetch = FetchView(
            BLOB,
            self.world.layout,
            self.id,
            self.have,
            self.inflight,
            views,
            upstream_requests_inflight=self.upstream_inflight,
        )
        for run in plan_requests(fetch, now_s=now_s, limits=self.world.limits, random=self._random):
            self._begin(run)

    def _begin(self, run: RunRequest) -> None:
        for index in run.chunk_indexes:
            assert index not in self.have, "asked for what is here"
            assert index not in self.inflight, "asked twice at once"
            self.inflight.add(index)
        if run.source_id == UPSTREAM:
            self.upstream_inflight += 1
            for index in run.chunk_indexes:
                self.intent.add(index)
                self.asked_upstream[index] += 1
            chunk_s = self.world.upstream_chunk_s * self._upstream_factor
            self.world.after(chunk_s, lambda: self._take_in(run, run.first, chunk_s))
        else:
            self.peers[run.source_id].requests_inflight += 1
            chunk_s = self.world.peer_chunk_s * self._random.uniform(0.5, 2.0)
            self.world.after(self.world.delay(), lambda: self._take_in(run, run.first - 1, chunk_s))
        self._tell_soon()

    def _take_in(self, run: RunRequest, index: int, chunk_s: float) -> None:
        """Receive a chunk of a run (none when index is before the run), then wait for the next."""
        if not self.is_alive:
            return
        if index >= run.first:
            self.have.add(index)
            self.intent.discard(index)
            if run.source_id == UPSTREAM:
                self.received += CHUNK_SIZE_BYTES
            self._tell_soon()
        if index == run.last:
            self._end(run)
        elif run.source_id != UPSTREAM and not self._can_give(run.source_id, index + 1):
            self.paused_until_s[run.source_id] = self.world.now_s + PEER_PAUSE_S
            self._end(run)
        else:
            self.world.after(chunk_s, lambda: self._take_in(run, index + 1, chunk_s))

    def _can_give(self, peer_id: str, index: int) -> bool:
        source = next(member for member in self.world.members if member.id == peer_id)
        return source.is_alive and index in source.have

    def _end(self, run: RunRequest) -> None:
        for index in run.chunk_indexes:
            self.inflight.discard(index)
            self.intent.discard(index)
        if run.source_id == UPSTREAM:
            self.upstream_inflight -= 1
        else:
            self.peers[run.source_id].requests_inflight -= 1
        self._tell_soon()
        self._plan_soon()
