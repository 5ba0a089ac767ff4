"""
Owns what goes wrong when: drawn from a seed, before anything runs.

Knows nothing of how the swarm copes.
Invariants: equal arguments give equal plans; every fault ends, but for deaths and liars;
one honest member with a line to the hub always remains.
Source: issue 4, item 2 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING

from tests.sim.setting import MEGABIT_BPS
from tests.sim.swarm import WARM_UP_S
from tests.sim.vice import Vice

if TYPE_CHECKING:
    from tests.sim.member import Member
    from tests.sim.swarm import Swarm

# A line that is as good as none, and yet not dead.
SLOW_BPS = MEGABIT_BPS
PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 20.0
FIRST_VICES = (Vice.FORGES, Vice.POISONS, Vice.BOASTS, Vice.CLAIMS, Vice.LOAFS)
# Of those that claim what they do not bring, so many say so with one word.
HOG_SHARE = 0.5


class FaultPlan:
    """The faults of one swarm. Each verb below draws one fault, and says what it drew."""

    def __init__(self, swarm: Swarm, seed: int) -> None:
        self.log: list[str] = []
        self._swarm = swarm
        self._random = Random(seed ^ 0xFA017)
        self._late_random = Random(seed ^ 0x1A7E)
        # Faults that may hit a member, and one that none may: somebody has to finish.
        numbers = list(range(swarm.setting.peers))
        self._random.shuffle(numbers)
        self._spared = numbers.pop()
        self._numbers = numbers
        self._begin_s = WARM_UP_S
        # Faults fall into the time that the run takes, and a little after.
        self._span_s = 1.3 * swarm.setting.bound_s

    def lay(self, kinds: Iterable[str]) -> None:
        """Draw faults of the given kinds."""
        for kind in kinds:
            verb: Callable[[], None] = getattr(self, f"_lay_{kind}")
            verb()

    def lay_some(self, kinds: Iterable[str]) -> None:
        """Draw a few of the given kinds, each once or twice."""
        known = list(kinds)
        count = self._random.randint(1, min(6, len(known)))
        self.lay(self._random.choices(known, k=count))

    # --- small parts ---

    def _moment(self) -> float:
        return self._begin_s + self._random.uniform(0.0, self._span_s)

    def _pause(self) -> float:
        return self._random.uniform(PAUSE_S_MIN, PAUSE_S_MAX)

    def _victim(self) -> Member | None:
        """Return a member that nothing else has happened to."""
        return self._swarm.member(self._numbers.pop()) if self._numbers else None

    def _at(self, when_s: float, what: str, work: Callable[[], None]) -> None:
        self.log.append(f"{when_s:.2f} s: {what}")
        self._swarm.faults_end_s = max(self._swarm.faults_end_s, when_s)
        self._swarm.world.at(when_s, work)

    # --- members ---

    def _lay_kill(self) -> None:
        if (member := self._victim()) is not None:
            begin_s = self._moment()
            self._at(begin_s, f"{member.number} is killed", member.crash)
            if self._random.random() < 0.7:
                end_s = begin_s + self._pause()
                self._at(end_s, f"{member.number} starts again", member.boot)

    def _lay_leave(self) -> None:
        if (member := self._victim()) is not None:
            self._at(self._moment(), f"{member.number} leaves", member.crash)

    def _lay_freeze(self) -> None:
        if (member := self._victim()) is not None:
            begin_s = self._moment()
            self._at(begin_s, f"{member.number} freezes", member.freeze)
            self._at(begin_s + self._pause(), f"{member.number} thaws", member.thaw)

    def _lay_slow(self) -> None:
        if (member := self._victim()) is not None:
            begin_s = self._random.choice([0.0, self._moment()])
            rate_bps = SLOW_BPS * self._random.choice([1, 4, 20])

            def slow_down() -> None:
                self._swarm.network.set_rate(member.up, rate_bps)
                self._swarm.network.set_rate(member.down, rate_bps)

            def recover() -> None:
                self._swarm.network.set_rate(member.up, self._swarm.setting.link_bps)
                self._swarm.network.set_rate(member.down, self._swarm.setting.link_bps)

            self._at(begin_s, f"{member.number} has {rate_bps * 8e-6:.0f} Mbit/s", slow_down)
            # It has to finish too, some day.
            end_s = self._begin_s + self._span_s + self._pause()
            self._at(end_s, f"{member.number} has its line again", recover)

    def _lay_disk(self) -> None:
        if (member := self._victim()) is not None:
            member.disk_chunks_max = self._random.randrange(self._swarm.setting.chunks)
            self.log.append(f"0 s: {member.number} has room for {member.disk_chunks_max} chunks")

            def make_room() -> None:
                member.disk_chunks_max = None

            self._at(self._moment() + self._pause(), f"{member.number} has room", make_room)

    def _lay_liar(self) -> None:
        if (member := self._victim()) is not None:
            member.vice = self._random.choice(FIRST_VICES)
            # Drawn apart: seeds that were kept before there were others draw what they drew.
            if member.vice is Vice.CLAIMS and self._late_random.random() < HOG_SHARE:
                member.vice = Vice.HOGS
            self.log.append(f"0 s: {member.number} {member.vice.name.lower()}")

    def _lay_late(self) -> None:
        if (member := self._victim()) is not None:
            start_s = self._random.uniform(0.1, self._span_s)
            self._swarm.setting.starts_s[member.number] = start_s
            self.log.append(f"{self._begin_s + start_s:.2f} s: {member.number} joins")

    def _lay_hubless(self) -> None:
        if (member := self._victim()) is not None:

            def set_cut(is_cut: bool) -> None:
                member.is_cut_from_hub = is_cut
                self._swarm.refresh_holds()

            begin_s = self._random.choice([0.0, self._moment()])
            self._at(begin_s, f"{member.number} loses the hub", lambda: set_cut(True))
            end_s = max(begin_s, self._begin_s) + self._pause()
            self._at(end_s, f"{member.number} has the hub again", lambda: set_cut(False))

    # --- the network ---

    def _lay_partition(self) -> None:
        numbers = range(self._swarm.setting.peers)
        island = {n for n in numbers if self._random.random() < 0.5}
        ids = {self._swarm.member(number).id for number in island}
        begin_s = self._moment()
        self._at(begin_s, f"{sorted(island)} are cut off", lambda: self._swarm.partition(ids))
        self._at(begin_s + self._pause(), "no island", lambda: self._swarm.partition(set()))

    def _lay_loss(self) -> None:
        share = self._random.choice([0.02, 0.1, 0.3])

        def set_loss(loss_share: float) -> None:
            self._swarm.loss_share = loss_share

        begin_s = self._random.choice([0.0, self._moment()])
        self._at(begin_s, f"{share:.0%} of messages are lost", lambda: set_loss(share))
        end_s = max(begin_s, self._begin_s) + self._pause()
        self._at(end_s, "messages arrive", lambda: set_loss(0.0))

    # --- the hub ---

    def _lay_limit(self) -> None:
        upstream = self._swarm.upstream
        count = self._random.choice([1, 4, 16])
        begin_s = self._random.choice([0.0, self._moment()])

        def set_limit(limit: int | None) -> None:
            upstream.requests_per_window = limit

        self._at(begin_s, f"the hub takes {count} requests in 10 s", lambda: set_limit(count))
        end_s = max(begin_s, self._begin_s) + 2 * self._pause()
        self._at(end_s, "the hub takes every request", lambda: set_limit(None))

    def _lay_crawl(self) -> None:
        share = self._random.choice([0.5, 0.1, 0.02])
        upstream = self._swarm.upstream
        begin_s = self._moment()
        self._at(begin_s, f"the hub gives {share:.0%}", lambda: upstream.slow_down(share))
        end_s = begin_s + self._pause()
        self._at(end_s, "the hub gives all", lambda: upstream.slow_down(1.0))

    def _lay_death(self) -> None:
        if not self._swarm.setting.has_upstream:
            return
        begin_s = self._moment()
        self._at(begin_s, "the hub dies", lambda: self._swarm.kill_hub(True))
        end_s = begin_s + self._pause()
        self._at(end_s, "the hub is back", lambda: self._swarm.kill_hub(False))

    def _lay_silence(self) -> None:
        begin_s = self._moment()
        self._at(begin_s, "the hub falls silent", lambda: self._set_silence(True))
        self._at(begin_s + self._pause(), "the hub speaks", lambda: self._set_silence(False))

    def _set_silence(self, is_silent: bool) -> None:
        self._swarm.upstream.is_silent = is_silent
        self._swarm.refresh_holds()


FAULTS = tuple(
    sorted(name.removeprefix("_lay_") for name in vars(FaultPlan) if name.startswith("_lay_"))
)
