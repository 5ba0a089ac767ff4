"""
Owns what must hold at every step of a simulated swarm.

Knows nothing of faults: what is promised, is promised whatever happens.
Invariants: a check looks only, and changes nothing; each can be made to fail (test_invariants.py).
Source: design.md §6; issue 4, item 2; the docstrings of planner.py and fetchmachine.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.fetchevents import Action, Ask, Look
from p2pcache.core.ownership import OWNERS_MAX
from p2pcache.core.pace import EXTRA_SHARE_MAX
from p2pcache.core.rendezvous import find_highest, find_owner
from p2pcache.core.views import UPSTREAM, PeerView, find_lone_seeder
from tests.sim.setting import BLOB

if TYPE_CHECKING:
    from tests.sim.member import Member
    from tests.sim.swarm import Swarm

# Sources of one chunk at a time.
SOURCES_MAX = 2


class Violation(AssertionError):  # noqa: N818 (it is one, not an error of the simulator's)
    """Something that must hold did not."""


class Invariants:
    """The checks of one swarm."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        # How many checks were made, of each kind: a check that is never made proves nothing.
        self.made = dict.fromkeys(("machine", "ask", "published", "ban", "end"), 0)

    def fail(self, what: str) -> NoReturn:
        """Say what does not hold, and when."""
        raise Violation(f"at {self._swarm.world.now_s:.3f} s: {what}")

    def check_machine(self, member: Member) -> None:
        """What the machine believes is what is."""
        self.made["machine"] += 1
        state = member.state
        if state is None:
            return
        machine, name = state.machine, f"member {member.number}"
        if set(machine.have) != set(member.stored):
            self.fail(f"{name} counts chunks as held that are not stored, or the other way round")
        runs = member.transfers.runs
        if set(machine.runs) != set(runs):
            self.fail(f"{name} counts runs {sorted(machine.runs)}, under way are {sorted(runs)}")
        asked: dict[int, list[str]] = {}
        for run in machine.runs.values():
            for index in run.request.chunk_indexes:
                asked.setdefault(index, []).append(run.request.source_id)
        for index, sources in asked.items():
            if len(sources) > SOURCES_MAX:
                self.fail(f"{name} asks {len(sources)} sources for chunk {index}")
            if len(set(sources)) < len(sources):
                self.fail(f"{name} asks one source twice for chunk {index}")
        if {i: set(s) for i, s in asked.items()} != machine.asked:
            self.fail(f"{name} counts what it asked of whom wrongly")
        if set(machine.inflight) != set(asked):
            self.fail(f"{name} counts what is in flight wrongly")
        if set(machine.intent - machine.inflight) - machine.begun:
            self.fail(f"{name} announces what it does not fetch")
        if machine.begun & set(machine.have):
            self.fail(f"{name} announces what it holds")

    def check_look(self, member: Member, look: Look, actions: Sequence[Action]) -> None:
        """Who asks for a first copy owns it, or has a reason that is not ownership."""
        self.check_machine(member)
        state = member.state
        assert state is not None, "only a fetch looks"
        machine, now_s = state.machine, self._swarm.world.now_s
        asks = [action.request for action in actions if isinstance(action, Ask)]
        first_copies = [r for r in asks if r.is_first_copy or r.source_id == UPSTREAM]
        if any(i in machine.have for r in asks for i in r.chunk_indexes):
            self.fail(f"member {member.number} asks for what it has")
        if not first_copies:
            return
        views = machine.duties.leave(machine.view(look.peers, now_s=now_s), machine.have)
        starving = set(machine.readers.find_starving(machine.have, now_s=now_s))
        lapsed = machine.duties.lapsed
        for request in first_copies:
            for index in request.chunk_indexes:
                self.made["ask"] += 1
                if index not in starving:
                    failed = lapsed.get(index, set())
                    self._check_nobodys(member, views, index, failed)
                    if not request.is_stolen:
                        self._check_owned(member, look, views, index, failed)

    def _check_nobodys(
        self, member: Member, views: Sequence[PeerView], index: int, failed: set[str]
    ) -> None:
        state = member.state
        assert state is not None, "only a fetch asks"
        lone = find_lone_seeder(views) if state.order.trusts_peers else None
        name, stalled = f"member {member.number}", state.machine.duties.stalled
        if any(index in p.have for p in views if p is not lone):
            self.fail(f"{name} brings chunk {index}, which a peer has")
        members = [p for p in views if p.is_fetching and p.peer_id not in stalled]
        if any(index in p.intent for p in members if p.peer_id not in failed):
            self.fail(f"{name} brings chunk {index}, which another one announced")

    def _check_owned(
        self,
        member: Member,
        look: Look,
        views: Sequence[PeerView],
        index: int,
        failed: set[str],
    ) -> None:
        state = member.state
        assert state is not None, "only a fetch asks"
        if index in state.machine.begun:
            return  # It has the start of it, and said so all the while.
        # Who may not pass on what a seeder gave need not be spared by it.
        lone = find_lone_seeder(views) if state.order.trusts_peers else None
        stalled = state.machine.duties.stalled
        members = [p for p in views if p.is_fetching and p.peer_id not in stalled]
        able = [p.peer_id for p in members if p.can_fetch_upstream or lone is not None]
        if member.id not in stalled or not able:
            able.append(member.id)
        if state.machine.fence.is_settling():
            able += look.crowd
        crew = [m for m in find_highest(BLOB, set(able), OWNERS_MAX) if m not in failed]
        # When all who count have failed with a chunk, it is anybody's.
        if crew and find_owner(BLOB, index, crew) != member.id:
            self.fail(f"member {member.number} brings chunk {index}, which it does not own")

    def check_ban(self, member: Member, banned_id: str) -> None:
        """Only who lied is banned."""
        self.made["ban"] += 1
        banned = self._swarm.members[banned_id]
        if banned.vice.name == "NONE":
            self.fail(f"member {member.number} bans member {banned.number}, which is honest")

    def check_published(self, member: Member) -> None:
        """What is published is the blob."""
        self.made["published"] += 1
        everything = set(range(self._swarm.setting.chunks))
        if set(member.stored) != everything or member.poisoned:
            self.fail(f"member {member.number} publishes what is not the blob")

    def check_end(self) -> None:
        """When all is over: everybody has all, and little came twice on purpose."""
        self.made["end"] += 1
        if not self._swarm.is_done():
            self.fail_unfinished()
        for member in self._swarm.members.values():
            tally = member.tally
            # The chunk that was under way when the allowance was used up came in full.
            slack_bytes = self._swarm.setting.layout.length_of(0)
            most_bytes = EXTRA_SHARE_MAX * tally.wanted_bytes + slack_bytes
            if tally.extra_bytes > most_bytes:
                self.fail(
                    f"member {member.number} received {tally.extra_bytes / 1e6:.1f} MB twice on "
                    f"purpose, {most_bytes / 1e6:.1f} MB are allowed"
                )
            if member.state is None and (
                member.transfers.runs or any(link.flows for link in (member.up,))
            ):
                self._check_no_leftovers(member)

    def _check_no_leftovers(self, member: Member) -> None:
        if member.transfers.runs and member.is_up:
            self.fail(f"member {member.number} has nothing to fetch, and runs under way")

    def fail_unfinished(self) -> NoReturn:
        """Say who did not finish."""
        chunks = self._swarm.setting.chunks
        late = [m for m in self._swarm.members.values() if self._swarm.must_finish(m)]
        shown = ", ".join(
            f"{m.number} ({self._count(m)}/{chunks})" for m in late if not m.is_published
        )
        self.fail(f"no progress: members {shown} are not done though all faults have ended")

    @staticmethod
    def _count(member: Member) -> int:
        return len(Bitfield.of(member.swarm.setting.chunks, member.stored))
