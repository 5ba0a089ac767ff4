"""
Owns one simulated daemon: what it has, what runs in it, what it says and gives.

Knows nothing of schedules of faults; it is told to crash, freeze or lie.
Invariants: its FetchMachine is driven by the same events as the daemon's (engine/fetch.py and
engine/dispatch.py); what is durable outlives a crash, and nothing else does.
Source: engine/fetch.py, engine/dispatch.py, engine/fetches.py (open_run), engine/reader.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.fetchevents import Accuse, Ask, Cancel, ChunkStored, Look, RunEnded
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.pace import Pace
from p2pcache.core.peers import BlameBook, Fault
from p2pcache.core.tenure import LEASE_S
from p2pcache.core.transitions import Outcome
from p2pcache.core.turns import UploadTurns
from p2pcache.core.upstream import UpstreamLocation
from p2pcache.core.views import UPSTREAM, RunRequest
from p2pcache.engine.budget import UpstreamBudget
from p2pcache.engine.fetch import PROOF_ATTEMPTS_MAX, REPLAN_INTERVAL_S
from p2pcache.engine.fetchstate import FetchOrder, FetchState
from p2pcache.engine.peer import Peer
from p2pcache.errors import UpstreamRateLimitedError
from tests.sim.exchange import Exchange
from tests.sim.network import Link
from tests.sim.setting import BLOB
from tests.sim.tally import Tally
from tests.sim.transfers import Answer, Transfer, Transfers
from tests.sim.vice import Vice

if TYPE_CHECKING:
    from tests.sim.swarm import Swarm

# Whose vice is what it says: it fetches nothing.
MERE_WORDS = (Vice.BOASTS, Vice.CLAIMS, Vice.LOAFS, Vice.HOGS)
# A client that was told of a failure asks again after this long.
ASK_AGAIN_S = 2.0


class Member:
    """One daemon."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        self.swarm = swarm
        self.number = number
        self.id = f"{number + 1:032x}"
        rate_bps = swarm.setting.link_bps
        self.up, self.down = Link(f"up {number}", rate_bps), Link(f"down {number}", rate_bps)
        self.random = Random(swarm.world.random.random())
        self.vice = Vice.NONE
        self.tally = Tally()
        # What the disk keeps: chunk → who gave it; bytes of chunks that upstream began.
        self.stored: dict[int, str] = {}
        self.poisoned: set[int] = set()
        self.prefixes: dict[int, int] = {}
        self.is_published = False
        self.wants = False
        # The disk takes no more chunks than this; None for no limit.
        self.disk_chunks_max: int | None = None
        self.is_cut_from_hub = False
        # The process:
        self.is_up = False
        self.is_frozen = False
        self.state: FetchState | None = None
        self.exchange = Exchange(self)
        self.transfers = Transfers(self)
        self.blame = BlameBook()
        self.budget = UpstreamBudget(swarm.world, self.random)
        self.pace = Pace()
        self.turns = UploadTurns()
        self._life = 0
        self._backlog: list[Callable[[], None]] = []
        self._is_filling = False
        self._will_look = False
        self.looks = 0
        self._proof_attempts = 0
        self._lied_bytes = 0

    # --- life ---

    @property
    def now_s(self) -> float:
        """Return the simulated time."""
        return self.swarm.world.now_s

    def after(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something later, in this life, when awake."""
        life = self._life

        def run() -> None:
            if self._life == life:
                self.when_awake(work)

        self.swarm.world.after(delay_s, run)

    def when_awake(self, work: Callable[[], None]) -> None:
        """Do something now, or after the freeze; never, if the process dies before."""
        if self.is_frozen:
            self._backlog.append(work)
        elif self.is_up:
            work()

    def boot(self) -> None:
        """Start the process, with what the disk kept."""
        self._life += 1
        self.is_up, self.is_frozen = True, False
        self.exchange = Exchange(self)
        self.transfers = Transfers(self)
        self.blame = BlameBook()
        self.budget = UpstreamBudget(self.swarm.world, self.random)
        self.pace = Pace()
        self.turns = UploadTurns()
        for other in self.swarm.members.values():
            if other.is_up and other is not self:
                self.exchange.add(other.id)
                other.exchange.add(self.id)
        if self.wants:
            self.start_fetch()

    def crash(self) -> None:
        """End the process: what it was sending and receiving is cut."""
        if not self.is_up:
            return
        self._life += 1
        self.tally.note_death(self.transfers.runs.values(), self.now_s)
        self.transfers.abandon()
        self.is_up = self.is_frozen = self._is_filling = self._will_look = False
        self.state = None
        self._backlog.clear()
        self.swarm.break_served_by(self)

    def freeze(self) -> None:
        """Stop the process in the middle of everything."""
        if self.is_up:
            self.is_frozen = True
            self.swarm.refresh_holds()

    def thaw(self) -> None:
        """Let it go on as if nothing had been."""
        if not self.is_frozen:
            return
        self.is_frozen = False
        self.swarm.refresh_holds()
        backlog, self._backlog = self._backlog, []
        for work in backlog:
            self.when_awake(work)

    def hold_everything(self) -> None:
        """Be a seeder."""
        self.stored = dict.fromkeys(range(self.swarm.setting.chunks), UPSTREAM)
        self.is_published = True

    # --- the fetch ---

    @property
    def is_reporting(self) -> bool:
        """Return whether a fetch of ours speaks to peers."""
        return self.state is not None or self.vice in MERE_WORDS

    def start_fetch(self) -> None:
        """Begin, or begin again, to fetch the blob."""
        self.wants = True
        if not self.is_up or self.is_published or self.state is not None:
            return
        if self.vice in MERE_WORDS:
            self._lie_again()
            return
        setting = self.swarm.setting
        location = UpstreamLocation("http://hub", "http://hub/blob", "the blob")
        order = FetchOrder(BLOB, setting.layout, location, True, setting.trusts_peers, True)
        self.state = FetchState.of(
            order, self.id, limits=setting.limits, pace=self.pace, random=self.random
        )
        for index, source_id in self.stored.items():
            self.state.machine.handle(ChunkStored(index), now_s=self.now_s)
            self.state.sources[index] = source_id
        left_bytes = setting.layout.size_bytes - self.state.held_bytes
        self.pace.extra.wanted += left_bytes
        self.tally.wanted_bytes += left_bytes
        self._proof_attempts = 0
        self.exchange.begin_round(self._begin_filling)

    def _begin_filling(self) -> None:
        if self.state is not None:
            self._is_filling = True
            # BlobFetch.may_stream: nobody's chunks could get into the body that begins.
            may_stream = not self.state.view_peers(self.iter_up(), now_s=self.now_s)
            if may_stream and self.number < self.swarm.setting.streamers:
                self.state.streaming_count = 1
            self._look()

    def _lie_again(self) -> None:
        self._lied_bytes += self.random.randrange(1 << 22)
        self.exchange.note_change()
        self.after(0.25, self._lie_again)

    def wake(self) -> None:
        """Look soon."""
        if self._is_filling and not self._will_look:
            self._will_look = True
            self.after(self.swarm.setting.look_delay_s, self._look)

    def _look(self) -> None:
        self._will_look = False
        state = self.state
        if not self._is_filling or state is None:
            return
        self.looks += 1
        number, now_s = self.looks, self.now_s
        self._move_reader(state)
        look = Look(
            state.view_peers(self.iter_heard(), now_s=now_s),
            self.budget.requests_inflight,
            self.budget.may_ask(now_s),
            {run_id: t.received_bytes(now_s) for run_id, t in self.transfers.runs.items()},
            is_distrusted=self.exchange.is_distrusted(),
            relays=state.order.trusts_peers,
            upstream_free=self.budget.count_free(now_s),
            crowd=hood.known if (hood := self.exchange.neighbourhood).is_crowded else frozenset(),
        )
        actions = state.machine.handle(look, now_s=now_s)
        starving = state.machine.readers.find_starving(state.have, now_s=now_s)
        for action in actions:
            match action:
                case Ask():
                    if action.request.is_second_source and action.request.first in starving:
                        self.tally.rescued.add(action.request.first)
                    self.transfers.begin(action.run_id, action.request)
                case Cancel():
                    self.transfers.cut(action.run_id)
        self.swarm.invariants.check_look(self, look, actions)
        if self._is_hopeless(state):
            self._give_up()
        elif state.have.is_full():
            self._prove(state)
        else:
            rests = state.machine.rests
            pause_s = min(REPLAN_INTERVAL_S, rests.find_next_end_s(now_s=now_s))
            self.after(pause_s, lambda: self.wake() if self.looks == number else None)

    def iter_up(self) -> Iterable[Peer]:
        """Iterate over the peers that are known and not banned."""
        banned = self.blame.find_banned(now_s=self.now_s)
        peers = self.exchange.peers.values()
        return (p for p in peers if p.peer_id not in banned) if banned else peers

    def iter_heard(self) -> Iterable[Peer]:
        """Iterate over those of them whose word is recent: Swarm.iter_heard."""
        exchange, now_s = self.exchange, self.now_s
        banned = self.blame.find_banned(now_s=now_s)
        hood = exchange.neighbourhood
        return exchange.earshot.find(BLOB, exchange.peers, banned, hood, now_s=now_s)

    def bans(self, peer_id: str) -> bool:
        """Return whether a peer is banned here now."""
        return self.blame.find_ban(peer_id, now_s=self.now_s) is not None

    def _move_reader(self, state: FetchState) -> None:
        setting = self.swarm.setting
        if self.number >= max(setting.readers, setting.streamers):
            return
        index = next((i for i in range(state.have.length) if i not in state.have), None)
        readers = state.machine.readers
        if index is None:
            readers.forget(1)
        else:
            readers.note(1, index, now_s=self.now_s)

    def _is_hopeless(self, state: FetchState) -> bool:
        """Mirror BlobFetch._check_hope."""
        machine = state.machine
        if self.transfers.runs or not machine.patience.is_given_up():
            return False
        peers = state.view_peers(self.iter_heard(), now_s=self.now_s)
        for view in machine.view(peers, now_s=self.now_s):
            is_moving = view.peer_id not in machine.duties.stalled
            if view.have & state.missing:
                return False
            if view.is_fetching and view.can_fetch_upstream and is_moving:
                return False
        return not machine.is_anyone_resting(now_s=self.now_s)

    def _give_up(self) -> None:
        """Tell the client, who asks again."""
        self.tally.failures += 1
        self._close_fetch()
        self.after(ASK_AGAIN_S, self.start_fetch)

    def _close_fetch(self) -> None:
        self._is_filling = False
        if not self.is_published:
            self.tally.note_death(self.transfers.runs.values(), self.now_s)
        self.transfers.stop(is_counted=self.is_published)
        self.state = None
        self.exchange.note_change()

    def _prove(self, state: FetchState) -> None:
        """Mirror BlobFetch._fill_and_publish and _drop_doubtful."""
        if not self.poisoned:
            self.is_published = True
            self.tally.finished_s = self.now_s
            self._close_fetch()
            self.swarm.invariants.check_published(self)
            return
        self._proof_attempts += 1
        doubtful = [i for i in state.have if state.sources.get(i) != UPSTREAM]
        state.excluded |= {state.sources[i] for i in doubtful}
        state.asks_peers = self._proof_attempts < PROOF_ATTEMPTS_MAX - 1
        for index in doubtful:
            state.forget(index)
            del self.stored[index]
            self.poisoned.discard(index)
        self.tally.forgotten_chunks += len(doubtful)
        if self._proof_attempts >= PROOF_ATTEMPTS_MAX:
            self._give_up()
        else:
            self.wake()

    # --- what transfers tell ---

    def take_in(self, run_id: int, index: int, source_id: str, is_right: bool) -> bool:
        """Store a chunk that came; return False if that failed, and everything ended."""
        state = self.state
        assert state is not None, "only a fetch receives"
        if self.disk_chunks_max is not None and len(self.stored) >= self.disk_chunks_max:
            self._give_up()
            return False
        if index not in state.have:
            self.stored[index] = source_id
            state.sources[index] = source_id
            self.tally.note_chunk(source_id, len(self.stored), self.now_s)
            if is_right:
                self.poisoned.discard(index)
            else:
                self.poisoned.add(index)
        self.prefixes.pop(index, None)
        state.machine.handle(ChunkStored(index, run_id), now_s=self.now_s)
        self.swarm.invariants.check_machine(self)
        self.exchange.note_change()
        self.wake()
        return True

    def note_end(self, ended: RunEnded, request: RunRequest) -> None:
        """Tell the machine how a run ended."""
        state = self.state
        assert state is not None, "runs end before the fetch does"
        if isinstance(ended.error, UpstreamRateLimitedError):
            self.budget.pause(ended.error.retry_after_s, now_s=self.now_s)
        had_intent = bool(state.machine.intent)
        for action in state.machine.handle(ended, now_s=self.now_s):
            assert isinstance(action, Accuse), "the end of a run accuses, or does nothing"
            fault = Fault(action.peer_id, action.peer_id, action.fault, "", self.now_s)
            if action.is_ban:
                self.blame.note_wrong_bytes(fault, now_s=self.now_s)
                self.swarm.invariants.check_ban(self, action.peer_id)
            else:
                self.blame.note_fault(fault, now_s=self.now_s)
        if request.source_id != UPSTREAM and ended.outcome is Outcome.DELIVERED:
            self.blame.note_good(request.source_id)
        self.swarm.invariants.check_machine(self)
        if had_intent:
            self.exchange.note_change()
        self.wake()

    def keep_prefix(self, transfer: Transfer, received_bytes: int) -> None:
        """Keep the start of the chunk that upstream was sending when it ended."""
        partial_bytes = transfer.resumed_bytes + received_bytes - transfer.stored_bytes
        left = [i for i in transfer.request.chunk_indexes if i not in self.stored]
        if left and partial_bytes > 0:
            length = self.swarm.setting.layout.length_of(left[0])
            kept = max(partial_bytes, self.prefixes.get(left[0], 0))
            self.prefixes[left[0]] = min(kept, length - 1)

    # --- what others see ---

    def report(self) -> SwarmEntry | None:
        """Return what peers hear of the blob."""
        layout = self.swarm.setting.layout
        full, none = Bitfield.full(layout.chunk_count), Bitfield(layout.chunk_count)
        match self.vice:
            case Vice.BOASTS:
                return SwarmEntry(BLOB, layout.id, full, none)
            case Vice.CLAIMS:
                return SwarmEntry(BLOB, layout.id, none, full, True, True, self._lied_bytes)
            case Vice.LOAFS:
                return SwarmEntry(BLOB, layout.id, none, none, True, True, self._lied_bytes)
            case Vice.HOGS:
                hog = SwarmEntry(BLOB, layout.id, none, none, True, True, self._lied_bytes)
                return replace(hog, is_hub_only=True)
        if self.is_published:
            return SwarmEntry(BLOB, layout.id, full, none)
        if self.state is None:
            return None
        # As Dispatcher.hopes_for_upstream; before open() there is no dispatcher.
        is_soon = self.budget.paused_until_s - self.now_s < LEASE_S
        hopes = self._is_filling and is_soon and not self.state.machine.patience.is_given_up()
        return self.state.report(can_fetch_upstream=hopes)

    def serve(self, asker_id: str, first: int, last: int) -> Answer:
        """Answer a request for chunks: Cache.open_run, then PeerApi._send."""
        wanted = range(first, last + 1)
        if self.vice is Vice.BOASTS:
            return Answer(Outcome.BUSY if self.number % 2 else Outcome.REFUSED)
        if not self.is_published:
            if self.state is None:
                return Answer(Outcome.REFUSED)
            have, intent = self.state.find_shareable(), self.state.machine.intent
            if not all(index in have for index in wanted):
                is_coming = all(index in have or index in intent for index in wanted)
                return Answer(Outcome.BUSY if is_coming else Outcome.REFUSED)
        if not self.turns.may_begin(
            asker_id,
            is_crowded=self.exchange.neighbourhood.is_crowded,
            held_chunks=None if self.state is None else len(self.state.have),
            now_s=self.now_s,
        ):
            return Answer(Outcome.BUSY)
        odd = [index for index in wanted if index % 2]
        if self.vice is Vice.FORGES and odd:
            return Answer(Outcome.DELIVERED, forged_index=odd[0])
        poison = set(odd) if self.vice is Vice.POISONS else set()
        return Answer(Outcome.DELIVERED, poison=frozenset(poison | (self.poisoned & set(wanted))))
