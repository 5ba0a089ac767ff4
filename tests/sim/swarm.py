"""
Owns a whole simulated swarm: members, hub, network, who can reach whom; runs it to its end.

Knows nothing of which faults will come; the fault plan calls its verbs.
Invariants: one seed, one story; a run ends when everybody who should has everything, or when the
time is up, which is a violation.
Source: design.md §6; issue 4, item 2.
"""

from __future__ import annotations

from functools import partial
from random import Random

from p2pcache.core.views import UPSTREAM
from tests.sim.invariants import Invariants
from tests.sim.member import Member
from tests.sim.network import Network
from tests.sim.setting import Setting
from tests.sim.upstream import Upstream
from tests.sim.vice import Vice
from tests.sim.world import World

# After the last fault has ended, everybody has to be done within so many bounds and seconds: a
# crawler rests for a minute, and a hub that was given up is asked again after a quarter of one.
RESUME_BOUNDS_MAX = 12.0
RESUME_S_MAX = 150.0
# What a run may do in all; beyond it something goes in circles.
STEPS_PER_CHUNK_MAX = 20_000


class Swarm:
    """Everything that is simulated."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        self.world = World(seed)
        self.network = Network(self.world)
        self.upstream = Upstream(self.world, self.network, setting.upstream_bps)
        self.upstream.is_dead = not setting.has_upstream
        self.invariants = Invariants(self)
        self.loss_share = setting.loss_share
        # When the last fault has ended, as far as is planned.
        self.faults_end_s = 0.0
        # Members that need not finish.
        self.excused: set[str] = set()
        self._loss_random = Random(seed ^ 0x10551)
        # Members of one side of a partition.
        self._island: set[str] = set()
        self.members: dict[str, Member] = {}
        for number in range(setting.peers):
            member = Member(self, number)
            self.members[member.id] = member

    def member(self, number: int) -> Member:
        """Return a member by its number."""
        return self.members[f"{number + 1:032x}"]

    # --- who can reach whom ---

    def can_reach(self, one: Member, other: Member) -> bool:
        """Return whether packets pass between two machines."""
        return (one.id in self._island) == (other.id in self._island)

    def can_reach_hub(self, member: Member) -> bool:
        """Return whether a member's packets reach the hub, and are answered."""
        return not member.is_cut_from_hub and not self.upstream.is_silent

    def can_flow(self, member: Member, source_id: str) -> bool:
        """Return whether bytes move from a source to a member now."""
        if member.is_frozen:
            return False
        if source_id == UPSTREAM:
            return self.can_reach_hub(member)
        source = self.members[source_id]
        return not source.is_frozen and self.can_reach(member, source)

    def loses_message(self, sender: Member) -> bool:
        """Return whether a message is lost on its way."""
        return self.loss_share > 0 and self._loss_random.random() < self.loss_share

    def refresh_holds(self) -> None:
        """Let every flow stand still or move, as the world is now."""
        for member in self.members.values():
            member.transfers.refresh_holds()

    def partition(self, island: set[str]) -> None:
        """Cut some members off from the others; none heals."""
        self._island = island
        self.refresh_holds()

    def break_served_by(self, server: Member) -> None:
        """A process died: whoever received from it notices."""
        for member in self.members.values():
            for transfer in member.transfers.find_served_by(server.id):
                if transfer.flow is not None:
                    self.network.stop(transfer.flow)
                member.after(0.001, partial(member.transfers.fail, transfer))

    def kill_hub(self, is_dead: bool) -> None:
        """Let the hub's process die, or come back."""
        self.upstream.is_dead = is_dead
        if is_dead:
            for member in self.members.values():
                for transfer in member.transfers.find_served_by(UPSTREAM):
                    if transfer.flow is not None:
                        self.network.stop(transfer.flow)
                        member.after(0.001, partial(member.transfers.fail, transfer))

    # --- the run ---

    def start(self) -> None:
        """Boot everybody, and let them start to fetch as the setting says."""
        for member in self.members.values():
            if member.number < self.setting.seeders:
                member.hold_everything()
            start_s = self.setting.starts_s.get(member.number, 0.0)
            if start_s == 0.0:
                member.boot()
        # Daemons that are up know each other before somebody asks for a model.
        for member in self.members.values():
            start_s = self.setting.starts_s.get(member.number, 0.0)
            if member.is_published:
                continue
            member.wants = True
            if start_s == 0.0:
                spread_s = self.world.random.uniform(0.0, 0.05)
                self.world.at(WARM_UP_S + spread_s, member.start_fetch)
            else:
                self.world.at(WARM_UP_S + start_s, member.boot)
                self.faults_end_s = max(self.faults_end_s, WARM_UP_S + start_s)

    @property
    def deadline_s(self) -> float:
        """Return when everybody has to be done."""
        return self.faults_end_s + RESUME_BOUNDS_MAX * self.setting.bound_s + RESUME_S_MAX

    def is_done(self) -> bool:
        """Return whether everybody who is to finish has."""
        return all(m.is_published for m in self.members.values() if self.must_finish(m))

    def must_finish(self, member: Member) -> bool:
        """Return whether a member is to finish: it lives, is honest, and its disk has room."""
        has_room = member.disk_chunks_max is None
        is_able = member.is_up and member.vice is Vice.NONE and has_room
        return member.wants and is_able and member.id not in self.excused

    def run(self) -> None:
        """
        Let time pass until everybody is done.

        Raises:
            Violation: An invariant did not hold.
        """
        self.start()
        steps_max = STEPS_PER_CHUNK_MAX * self.setting.chunks * self.setting.peers
        is_over, deadline_s = False, 0.0
        while not is_over:
            if not self.world.step():
                break
            if self.world.now_s > deadline_s and self.world.now_s > (deadline_s := self.deadline_s):
                self.invariants.fail_unfinished()
            if self.world.steps > steps_max:
                self.invariants.fail("the simulation goes in circles")
            is_over = self.world.now_s > max(self.faults_end_s, WARM_UP_S + 0.1) and self.is_done()
        self.invariants.check_end()


# Time for the daemons to meet before anybody asks for a model.
WARM_UP_S = 3.0
