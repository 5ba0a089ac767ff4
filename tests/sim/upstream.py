"""
Owns the hub as seen from the swarm: one line for all, and what it answers.

Knows nothing of who asks.
Invariants: a refused request costs no bytes; what it sent is counted, whoever threw it away.
Source: docs/reference/hub-dialect.md; RFC 6585 §4 (429), RFC 9110 §10.2.3 (Retry-After).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pcache.errors import P2PCacheError, UpstreamRateLimitedError, UpstreamUnreachableError
from tests.sim.network import Link, Network
from tests.sim.world import World

# Half of a round trip to a hub far away.
HUB_LATENCY_S = 0.015


@dataclass(slots=True)
class Upstream:
    """The hub."""

    world: World
    network: Network
    rate_bps: float
    line: Link = field(init=False)
    is_dead: bool = False
    # Accepts, and then says nothing more.
    is_silent: bool = False
    # Requests that it takes in a window of WINDOW_S; None for no limit.
    window_s: float = 10.0
    requests_per_window: int | None = None
    requests: int = 0
    refusals: int = 0
    _window_end_s: float = 0.0
    _window_count: int = 0

    def __post_init__(self) -> None:
        self.line = Link("upstream", self.rate_bps)

    def find_refusal(self) -> P2PCacheError | None:
        """Take in a request; return why it gets nothing."""
        self.requests += 1
        if self.is_dead:
            self.refusals += 1
            return UpstreamUnreachableError("The simulated hub is down.")
        if self.requests_per_window is None:
            return None
        if self.world.now_s >= self._window_end_s:
            self._window_end_s = self.world.now_s + self.window_s
            self._window_count = 0
        self._window_count += 1
        if self._window_count <= self.requests_per_window:
            return None
        self.refusals += 1
        left_s = float(int(self._window_end_s - self.world.now_s) + 1)
        return UpstreamRateLimitedError("The simulated hub has enough.", retry_after_s=left_s)

    @property
    def sent_bytes(self) -> float:
        """Return what went over its line in all."""
        now_s = self.world.now_s
        for flow in self.line.flows:
            flow.received_bytes(now_s)
        return self.line.carried_bytes

    def slow_down(self, share: float) -> None:
        """Give only a share of the usual rate."""
        self.network.set_rate(self.line, self.rate_bps * share)
