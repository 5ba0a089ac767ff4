"""
Owns the figures of a simulated run: what the hub gave, how long it took, what each member did.

Knows nothing of drawing.
Invariants: time is that of the last member that had to finish; the bound is printed beside it.
Source: design.md §6.7; issue 4, item 2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tests.sim.swarm import WARM_UP_S

if TYPE_CHECKING:
    from tests.sim.swarm import Swarm


@dataclass(frozen=True, slots=True)
class MemberFigures:
    """One line of the table."""

    number: int
    vice: str
    held_chunks: int
    finished_s: float | None
    received_mb: float
    upstream_mb: float
    uploaded_mb: float
    extra_mb: float
    died_mb: float
    exchanges: int
    looks: int


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one run."""

    peers: int
    chunks: int
    seed: int
    time_s: float
    bound_s: float
    upstream_mb: float
    model_mb: float
    upstream_requests: int
    upstream_refusals: int
    extra_share: float
    messages_per_peer: float
    messages_per_peer_and_s: float
    steps: int
    members: tuple[MemberFigures, ...]

    @property
    def amplification(self) -> float:
        """Return what the hub sent, in models."""
        return self.upstream_mb / self.model_mb

    @property
    def slowness(self) -> float:
        """Return the time, in bounds."""
        return self.time_s / self.bound_s

    def to_json(self) -> dict[str, object]:
        """Return everything, for a machine."""
        return {
            **asdict(self),
            "upstream_by_model": round(self.amplification, 4),
            "time_by_bound": round(self.slowness, 4),
        }

    def render(self) -> str:
        """Return everything, for a person."""
        lines = [
            f"{self.peers} peers, {self.chunks} chunks ({self.model_mb:.0f} MB), seed {self.seed}",
            f"upstream / model  {self.amplification:8.3f}   ({self.upstream_mb:.1f} MB in "
            f"{self.upstream_requests} requests, {self.upstream_refusals} refused)",
            f"time / bound      {self.slowness:8.3f}   "
            f"({self.time_s:.2f} s / {self.bound_s:.2f} s)",
            f"received twice    {self.extra_share:8.2%}",
            f"messages          {self.messages_per_peer:8.0f} per peer, "
            f"{self.messages_per_peer_and_s:.1f} per second",
            f"{'peer':>5} {'':7} {'chunks':>6} {'done s':>7} {'in MB':>8} {'hub MB':>8} "
            f"{'up MB':>8} {'twice':>6} {'lost':>6} {'msgs':>6} {'looks':>6}",
        ]
        for one in self.members:
            done = "-" if one.finished_s is None else f"{one.finished_s:.2f}"
            lines.append(
                f"{one.number:>5} {one.vice:7} {one.held_chunks:>6} {done:>7} "
                f"{one.received_mb:>8.1f} {one.upstream_mb:>8.1f} {one.uploaded_mb:>8.1f} "
                f"{one.extra_mb:>6.1f} {one.died_mb:>6.1f} {one.exchanges:>6} {one.looks:>6}"
            )
        return "\n".join(lines)


def make_report(swarm: Swarm, seed: int) -> Report:
    """Return the figures of a run that is over."""
    setting = swarm.setting
    members = tuple(
        MemberFigures(
            member.number,
            "" if member.vice.name == "NONE" else member.vice.name.lower(),
            len(member.stored),
            _since_start(member.tally.finished_s),
            member.tally.received_bytes / 1e6,
            member.tally.upstream_bytes / 1e6,
            member.up.carried_bytes / 1e6,
            member.tally.extra_bytes / 1e6,
            member.tally.died_bytes / 1e6,
            member.exchange.begun + member.exchange.answered,
            member.looks,
        )
        for member in swarm.members.values()
    )
    finished = [m.tally.finished_s for m in swarm.members.values() if swarm.must_finish(m)]
    time_s = max((s - WARM_UP_S for s in finished if s is not None), default=0.0)
    messages = sum(one.exchanges for one in members) / len(members)
    wanted = sum(member.tally.wanted_bytes for member in swarm.members.values())
    extra = sum(member.tally.extra_bytes for member in swarm.members.values())
    return Report(
        setting.peers,
        setting.chunks,
        seed,
        time_s,
        setting.bound_s,
        swarm.upstream.sent_bytes / 1e6,
        setting.layout.size_bytes / 1e6,
        swarm.upstream.requests,
        swarm.upstream.refusals,
        extra / max(1, wanted),
        messages,
        messages / swarm.world.now_s,
        swarm.world.steps,
        members,
    )


def _since_start(when_s: float | None) -> float | None:
    return None if when_s is None else when_s - WARM_UP_S
