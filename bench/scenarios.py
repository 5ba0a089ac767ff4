"""
Owns what is measured: the scenarios, their goals and the lower bound of their time.

Knows nothing of networks and processes.
Invariants: pure; a bound counts payload against the nominal rate of a link, so that headers
(4.5 % with frames of 1,500 bytes) are part of what is judged.
Source: issue "The swarm", table "It is done when"; design.md §6.7; Mundinger, Weber, Weiss 2008
for the bound of one file that is cut small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Part = Literal["healthy", "frozen", "slow", "liar", "killed", "seeder"]
# How a peer lies: with bytes that do not fit the digests that it names, or with ones that do.
Lie = Literal["open", "hidden"]
SLOW_MBIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Goal:
    """
    What a run must keep.

    Attributes:
        upstream_max: Upstream bytes ÷ bytes of the model.
        time_max: Time ÷ lower bound; None where time is not judged.
        clean_max: Time ÷ the time of the run in which nobody misbehaves.
        extra_max: Bytes received beyond those needed ÷ those needed.
    """

    upstream_max: float
    time_max: float | None = None
    clean_max: float | None = None
    extra_max: float | None = 0.02


@dataclass(frozen=True, slots=True)
class Scenario:
    """
    One thing to measure.

    Attributes:
        peers: Machines that want the model, whatever becomes of them.
        upstream_mbit_s: The hub's uplink; 0 if the hub is stopped.
        seeders: Machines beside them that have all of it before the clock starts.
        joins: Shares of the first ones' progress at which one more of the peers begins.
        kill_at: Share of progress at which the peer that fetched most from upstream is killed.
        parts: What the last peers play; all others are healthy.
        lie: How the liar among them lies.
        workers: Clients of huggingface_hub on each machine, in place of a pull.
        goal: What must hold.
    """

    name: str
    title: str
    goal: Goal
    peers: int = 8
    upstream_mbit_s: float = 200.0
    link_mbit_s: float = 1000.0
    seeders: int = 0
    joins: tuple[float, ...] = ()
    kill_at: float | None = None
    parts: tuple[Part, ...] = ()
    lie: Lie | None = None
    workers: int = 0

    @property
    def machine_names(self) -> list[str]:
        """Return the names of the machines that run a daemon, seeders last."""
        peers = [f"p{n + 1}" for n in range(self.peers)]
        return peers + [f"seed{n + 1}" for n in range(self.seeders)]

    def part_of(self, name: str) -> Part:
        """Return what a machine plays."""
        place = self.machine_names.index(name) - (self.peers - len(self.parts))
        if place >= len(self.parts):
            return "seeder"
        return self.parts[place] if place >= 0 else "healthy"

    @property
    def copies(self) -> int:
        """Return how many copies of the model are written, those of the workers included."""
        return len(self.machine_names) + self.peers * self.workers

    def first_names(self) -> list[str]:
        """Return the peers that begin at once."""
        return self.machine_names[: self.peers - len(self.joins)]

    def joiner_names(self) -> list[str]:
        """Return the peers that begin later, in the order of `joins`."""
        return self.machine_names[self.peers - len(self.joins) : self.peers]

    def with_peers(self, peers: int) -> Scenario:
        """Return it with another number of peers."""
        return replace(self, peers=peers)


def find_bound_s(scenario: Scenario, size_bytes: int, joined_s: tuple[float, ...] = ()) -> float:
    """
    Return the least time in which all healthy peers can have the model.

    max(F/u_s, F/d_min, N·F/(u_s+Σu_i)); a peer that joins cannot be ready before it had F at its
    own rate. Peers that do not deliver are not counted, neither with what they want nor with
    what they could give.

    Args:
        scenario: For the rates.
        size_bytes: F.
        joined_s: When each of the joiners began.
    """
    bits = size_bytes * 8 / 1e6
    count = scenario.peers - len(scenario.parts) - (scenario.kill_at is not None)
    link = scenario.link_mbit_s
    source = scenario.upstream_mbit_s or scenario.seeders * link
    bounds = [bits / source, bits / link, count * bits / (source + count * link)]
    bounds += [joined + bits / link for joined in joined_s]
    return max(bounds)


SCENARIOS = (
    Scenario(
        "cold",
        "8 peers cold together",
        Goal(upstream_max=1.02, time_max=1.15),
    ),
    Scenario(
        "join",
        "the same, 3 joining at 30 % and 60 %",
        Goal(upstream_max=1.02, time_max=1.2),
        joins=(0.3, 0.6, 0.6),
    ),
    Scenario(
        "kill",
        "the same, owner of most chunks killed at 40 %",
        Goal(upstream_max=1.05, time_max=1.3),
        kill_at=0.4,
    ),
    Scenario(
        "seeder",
        "1 seeder, 7 cold peers, hub stopped",
        Goal(upstream_max=0.0, time_max=1.25),
        peers=7,
        upstream_mbit_s=0.0,
        link_mbit_s=400.0,
        seeders=1,
    ),
    Scenario(
        "hostile",
        "8 cold: 1 frozen, 1 at 1 Mb/s, 1 lying (bytes that fit no digest)",
        Goal(upstream_max=1.05, clean_max=1.5, extra_max=None),
        parts=("frozen", "slow", "liar"),
        lie="open",
    ),
    Scenario(
        "hidden",
        "the same, lying with digests to match",
        Goal(upstream_max=1.05, clean_max=1.5, extra_max=None),
        parts=("frozen", "slow", "liar"),
        lie="hidden",
    ),
    Scenario(
        "workers",
        "20 workers on 4 machines ask the gateways",
        Goal(upstream_max=1.02),
        peers=4,
        workers=5,
    ),
)
