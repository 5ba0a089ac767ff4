"""
Owns the swarms that the issue's table names, and those that a campaign draws.

Knows nothing of how they are judged.
Invariants: a scenario is a setting, a fault plan and the bounds that it has to keep.
Source: issue 4, "It is done when"; the rates are those of its table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from p2pcache.core.ownership import Ownership
from tests.sim.faultplan import FAULTS, FaultPlan
from tests.sim.setting import BLOB, MEGABIT_BPS, Setting
from tests.sim.swarm import WARM_UP_S, Swarm
from tests.sim.vice import Vice


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of the issue's table."""

    title: str
    amplification_max: float
    time_max: float
    shape: Callable[[Setting], None]
    lay: Callable[[Swarm], None]


def _leave_as_is(_: object) -> None:
    """Change nothing."""


def _join_late(setting: Setting) -> None:
    late = range(setting.peers - max(1, setting.peers * 3 // 8), setting.peers)
    for number in late:
        share = 0.3 if number % 2 else 0.6
        setting.starts_s[number] = share * setting.bound_s


def _kill_owner(swarm: Swarm) -> None:
    """Kill whoever owns most of what is not here yet, at 40 %."""

    def kill() -> None:
        ownership = Ownership(BLOB)
        ownership.set_members(swarm.members)
        owned = Counter(ownership.owner_of(i) for i in range(swarm.setting.chunks))
        owner_id = owned.most_common(1)[0][0]
        assert owner_id is not None, "there are members"
        swarm.members[owner_id].crash()

    swarm.world.at(WARM_UP_S + 0.4 * swarm.setting.bound_s, kill)
    swarm.faults_end_s = WARM_UP_S + 0.4 * swarm.setting.bound_s


def _stream_at_one(setting: Setting) -> None:
    """A client reads at one machine, half a second before the others ask."""
    setting.trusts_peers = False
    setting.streamers = 1
    setting.starts_s = dict.fromkeys(range(1, setting.peers), 0.5)


def _have_one_seeder(setting: Setting) -> None:
    setting.seeders = 1
    setting.has_upstream = False
    setting.link_bps = 400 * MEGABIT_BPS


def _mix_bad(swarm: Swarm) -> None:
    """One is dead, one has 1 Mbit/s, one lies in every second chunk."""
    dead, slow, liar = (swarm.member(number) for number in (1, 2, 3))
    dead.wants = False
    swarm.world.at(WARM_UP_S - 0.5, dead.crash)
    swarm.network.set_rate(slow.up, MEGABIT_BPS)
    swarm.network.set_rate(slow.down, MEGABIT_BPS)
    liar.vice = Vice.FORGES
    # Its own line keeps it busy for an hour: what counts is when the others are done.
    swarm.excused.add(slow.id)


SCENARIOS = {
    "cold": Scenario("cold together", 1.02, 1.15, _leave_as_is, _leave_as_is),
    "join": Scenario("some join at 30 % and 60 %", 1.02, 1.2, _join_late, _leave_as_is),
    "kill": Scenario("owner killed at 40 %", 1.05, 1.3, _leave_as_is, _kill_owner),
    "seeder": Scenario("one seeder, hub stopped", 0.0, 1.25, _have_one_seeder, _leave_as_is),
    "stream": Scenario("one streams to a client", 1.02, 1.5, _stream_at_one, _leave_as_is),
    "bad": Scenario("dead, slow, liar", 1.05, 1.5, _leave_as_is, _mix_bad),
}


def make_scenario(name: str, setting: Setting, seed: int) -> Swarm:
    """Return the swarm of one line of the table, ready to run."""
    scenario = SCENARIOS[name]
    scenario.shape(setting)
    swarm = Swarm(setting, seed)
    scenario.lay(swarm)
    return swarm


def draw_setting(seed: int, *, peers: int | None = None, chunks: int | None = None) -> Setting:
    """Return a small swarm as a seed draws it; what is given is not drawn."""
    random = Random(seed ^ 0x5E771)
    setting = Setting(
        peers=random.randint(2, 8),
        chunks=random.choice([1, 5, 12, 24, 40]),
        upstream_bps=random.choice([50, 200, 1000]) * MEGABIT_BPS,
        link_bps=random.choice([200, 1000]) * MEGABIT_BPS,
        trusts_peers=random.random() < 0.5,
        readers=random.choice([0, 0, 1, 3]),
        seeders=random.choice([0, 0, 0, 1]),
        look_delay_s=random.choice([0.001, 0.005, 0.02]),
        streamers=random.choice([0, 0, 1]),
    )
    setting.peers = peers or setting.peers
    setting.chunks = chunks or setting.chunks
    return setting


def make_drawn(setting: Setting, seed: int, kinds: list[str]) -> tuple[Swarm, FaultPlan]:
    """Return a swarm with the faults that a seed draws from the given kinds."""
    swarm = Swarm(setting, seed)
    plan = FaultPlan(swarm, seed)
    if kinds:
        plan.lay_some(kinds)
    return swarm, plan


def parse_faults(text: str) -> list[str]:
    """
    Read `all`, `none` or a list of kinds.

    Raises:
        ValueError: A kind that does not exist.
    """
    if text in ("all", "none"):
        return list(FAULTS) if text == "all" else []
    kinds = text.split(",")
    for kind in kinds:
        if kind not in FAULTS:
            raise ValueError(f"{kind!r} is no fault; there are {', '.join(FAULTS)}.")
    return kinds
