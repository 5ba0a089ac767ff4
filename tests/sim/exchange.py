"""
Owns who tells whom what, and how often: the control messages of one simulated daemon.

Knows nothing of chunks; it carries what the member says.
Invariants: the pace is that of core/cadence.py and engine/swarm.py; every exchange that
is begun is counted, and ends.
Source: engine/swarm.py (_watch, _visit, _pause, answer); docs/reference/peer-protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2pcache.core.cadence import Visits, find_pause_s
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.neighbours import Neighbourhood
from p2pcache.engine.earshot import Earshot
from p2pcache.engine.gossip import add_crew, find_fetching, hear_crew, is_worth_a_look
from p2pcache.engine.peer import Peer
from p2pcache.engine.peerlink import REQUEST_S_MAX
from p2pcache.engine.swarm import (
    NEIGHBOURS_INTERVAL_S,
    PEER_SILENCE_S,
    SETTLE_S,
    START_ROUND_S_MAX,
    STOOD_STILL_S,
)
from tests.sim.setting import BLOB, PEER_LATENCY_S
from tests.sim.vice import Vice

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sim.member import Member


@dataclass(slots=True, eq=False)
class _Line:
    """The visits to one other member."""

    other_id: str
    visits: Visits = field(default_factory=Visits)
    is_visiting: bool = False
    is_planned: bool = False
    is_woken: bool = False
    # Counted, so that the end of an old one is told from that of a new one.
    pause: int = 0
    visit: int = 0
    begun_s: float = 0.0


class Exchange:
    """The control messages of one life of a member."""

    def __init__(self, member: Member) -> None:
        self.peers: dict[str, Peer] = {}
        # Exchanges begun, and answered.
        self.begun = 0
        self.answered = 0
        self._member = member
        self._lines: dict[str, _Line] = {}
        self._quiet: dict[_Line, None] = {}
        self._visiting: dict[_Line, None] = {}
        self._round = 0
        self._neighbourhood = Neighbourhood(member.id)
        self._neighbourhood_s = -60.0
        self.earshot = Earshot()
        self._started_s = member.now_s
        self._on_settled: Callable[[], None] | None = None
        self._on_round: Callable[[], None] | None = None

    def add(self, other_id: str) -> None:
        """Begin to visit somebody."""
        if other_id not in self._lines:
            line = self._lines[other_id] = _Line(other_id)
            self._plan(line)

    @property
    def neighbourhood(self) -> Neighbourhood:
        """Return who is near, as it was a moment ago: Swarm.neighbourhood."""
        now_s = self._member.now_s
        if now_s - self._neighbourhood_s >= NEIGHBOURS_INTERVAL_S:
            self._neighbourhood_s = now_s
            fetching = {BLOB: find_fetching(BLOB, self.peers.values())}
            self._neighbourhood.update(self.peers, fetching if self._member.is_reporting else {})
        return self._neighbourhood

    def note_change(self, *, is_round: bool = False) -> None:
        """Tell the neighbours soon, or everybody."""
        near = self.neighbourhood.near
        for line in [*self._visiting, *self._quiet]:
            if not is_round and line.other_id in self.peers and line.other_id not in near:
                continue
            if line in self._quiet:
                del self._quiet[line]
                self._plan(line)
            else:
                line.is_woken = True

    def begin_round(self, on_end: Callable[[], None]) -> None:
        """Exchange with everybody once; `on_end` is called after it, or a second."""
        left_s = self._started_s + SETTLE_S - self._member.now_s
        if left_s > 0 and not self._is_settled():
            # Just started: meet those that are there first.
            self._on_settled = lambda: self._begin_round(on_end)
            self._member.after(left_s, self._end_settling)
        else:
            self._begin_round(on_end)

    def _end_settling(self) -> None:
        on_settled, self._on_settled = self._on_settled, None
        if on_settled is not None:
            on_settled()

    def _begin_round(self, on_end: Callable[[], None]) -> None:
        self._round += 1
        number = self._round
        self._on_round = on_end
        self.note_change(is_round=True)

        def give_up() -> None:
            if self._round == number:
                self._end_round()

        self._member.after(START_ROUND_S_MAX, give_up)
        self._look_at_round()

    def _is_settled(self) -> bool:
        """Return whether everybody was visited once."""
        return all(line.visits.round >= 0 for line in self._lines.values())

    def _look_at_round(self) -> None:
        if self._on_settled is not None and self._is_settled():
            self._end_settling()
        if self._on_round is not None and all(
            line.visits.round >= self._round or line.other_id not in self.peers
            for line in self._lines.values()
        ):
            self._end_round()

    def _end_round(self) -> None:
        on_end, self._on_round = self._on_round, None
        self._neighbourhood_s = -60.0
        if on_end is not None:
            on_end()

    # --- visits ---

    def _plan(self, line: _Line) -> None:
        """Visit as soon as the pace allows."""
        if line.is_planned or line.is_visiting:
            return
        line.is_planned = True
        self._member.after(self._next_visit_s(line), lambda: self._try_visit(line))

    def _next_visit_s(self, line: _Line) -> float:
        return line.visits.find_wait_s(
            self.neighbourhood,
            has_smaller_id=self._member.id < line.other_id,
            current_round=self._round,
            now_s=self._member.now_s,
        )

    def _try_visit(self, line: _Line) -> None:
        left_s = self._next_visit_s(line)
        if left_s > 1e-9 and not line.visits.is_due(now_s=self._member.now_s):
            # They visited us meanwhile, and know what we know.
            self._member.after(left_s, lambda: self._try_visit(line))
            return
        line.is_planned = line.is_woken = False
        line.is_visiting = True
        self._visiting[line] = None
        self._visit(line)

    def _visit(self, line: _Line) -> None:
        member, number = self._member, self._round
        other = member.swarm.members[line.other_id]
        self.begun += 1
        entry = self._report() if member.is_reporting else None
        latency_s = PEER_LATENCY_S * member.random.uniform(1.0, 4.0)
        line.visit += 1
        visit, line.begun_s = line.visit, member.now_s

        def end(number: int | None, said: SwarmEntry | None = None) -> None:
            if line.visit == visit and line.is_visiting:
                self._end(line, number, said)
                if number is not None:
                    self.peers[line.other_id].bans_us = other.bans(member.id)

        # Whatever is lost, or asleep, is no answer in time.
        member.after(REQUEST_S_MAX, lambda: end(None))
        if member.swarm.loses_message(member):
            return

        def arrive() -> None:
            if not member.swarm.can_reach(member, other):
                return
            if not other.is_up:
                member.after(latency_s, lambda: end(None))
            else:
                other.when_awake(answer)

        def answer() -> None:
            answered = other.exchange.take_in(member, entry)
            is_heard = member.swarm.can_reach(member, other)
            if is_heard and not member.swarm.loses_message(other):
                member.after(latency_s, lambda: end(number, answered))

        member.after(latency_s, arrive)

    def _end(self, line: _Line, number: int | None, entry: SwarmEntry | None = None) -> None:
        if not line.is_visiting:
            return
        now_s = self._member.now_s
        line.is_visiting = False
        self._visiting.pop(line, None)
        line.visits.note_visit(number, now_s=now_s)
        if number is None:
            peer = self.peers.get(line.other_id)
            stood_still = now_s - line.begun_s > STOOD_STILL_S
            is_silent = peer is not None and now_s - peer.last_seen_s >= PEER_SILENCE_S
            if is_silent and not stood_still:
                del self.peers[line.other_id]
                self._member.wake()
        else:
            peer = self._meet(line.other_id)
            peer.last_seen_s, peer.answered_s = now_s, line.begun_s
            self._hear(line.other_id, entry)
        self._look_at_round()
        self._pause(line)

    def _pause(self, line: _Line) -> None:
        if line.is_woken:
            self._plan(line)
            return
        self._quiet[line] = None
        line.pause += 1
        pause = line.pause
        pause_s = find_pause_s(
            self.neighbourhood,
            line.other_id if line.other_id in self.peers else None,
            is_busy=self._member.is_reporting,
        )

        def end_pause() -> None:
            if line.pause == pause and line in self._quiet:
                del self._quiet[line]
                self._plan(line)

        self._member.after(pause_s, end_pause)

    # --- what others say ---

    def is_distrusted(self) -> bool:
        """Return whether most peers have banned us: Swarm.is_distrusted."""
        peers = list(self._member.iter_up())
        return sum(peer.bans_us for peer in peers) > max(1, len(peers) / 2)

    def take_in(self, sender: Member, entry: SwarmEntry | None) -> SwarmEntry | None:
        """Hear a visitor; return what we say of the same blob."""
        sender_id = sender.id
        self.answered += 1
        self.add(sender_id)
        self._meet(sender_id)
        self._hear(sender_id, entry)
        self.peers[sender_id].bans_us = sender.bans(self._member.id)
        line = self._lines.get(sender_id)
        is_told = entry is not None or not self._member.is_reporting
        if line is not None and line.visits.round >= 0 and is_told:
            line.visits.note_visitor(now_s=self._member.now_s)
        return None if entry is None else self._report()

    def _report(self) -> SwarmEntry | None:
        """Return what we say of the blob and of its owners: Swarm._our_side."""
        entry = self._member.report()
        if entry is None or self._member.vice is not Vice.NONE:
            return entry
        return add_crew(entry, self.neighbourhood, self.peers, now_s=self._member.now_s)

    def _meet(self, other_id: str) -> Peer:
        peer = self.peers.get(other_id)
        if peer is None:
            peer = self.peers[other_id] = Peer(other_id, other_id[-4:], "10.0.0.1", 1)
            peer.last_seen_s = self._member.now_s
        return peer

    def _hear(self, other_id: str, entry: SwarmEntry | None) -> None:
        if entry is not None and other_id in self.peers:
            now_s = self._member.now_s
            self.peers[other_id].hear(entry, now_s=now_s)
            self.earshot.note(BLOB, self.peers[other_id])
            hear_crew(entry, self.neighbourhood, self.peers, now_s=now_s)
            limits = self._member.swarm.setting.limits
            if is_worth_a_look(self.peers[other_id], len(self.peers), limits=limits):
                self._member.wake()
