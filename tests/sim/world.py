"""
Owns simulated time: a heap of what happens when.

Knows nothing of networks or daemons.
Invariants: time never goes back; what is due at the same moment happens in the order of asking, so
that a seed always tells the same story.
Source: discrete event simulation; FoundationDB's simulator, for one seed that replays a whole run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

Work = Callable[[], None]


class World:
    """Time and chance. Implements clock.Clock."""

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.random = Random(seed)
        # How many things have happened.
        self.steps = 0
        self._heap: list[tuple[float, int, Work]] = []
        self._count = 0

    def monotonic_s(self) -> float:
        """Return the simulated time."""
        return self.now_s

    def wall_s(self) -> float:
        """Return the simulated time."""
        return self.now_s

    def after(self, delay_s: float, work: Work) -> None:
        """Do something later."""
        self.at(self.now_s + delay_s, work)

    def at(self, when_s: float, work: Work) -> None:
        """Do something at a moment that is not past."""
        self._count += 1
        heapq.heappush(self._heap, (max(when_s, self.now_s), self._count, work))

    def step(self) -> bool:
        """Let the next thing happen; return whether there was one."""
        if not self._heap:
            return False
        self.now_s, _, work = heapq.heappop(self._heap)
        self.steps += 1
        work()
        return True
