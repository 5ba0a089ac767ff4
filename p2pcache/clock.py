"""
Owns the Clock boundary: monotonic seconds for decisions, wall seconds for showing.

Knows nothing of who asks. Only this module reads the system's clocks.
Invariants: monotonic_s never goes back; nothing decides by wall_s except what a person reads.
Source: docs/explanation/architecture.md.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Safe to call from any thread."""

    def monotonic_s(self) -> float:
        """Return seconds that never go back, from an arbitrary origin."""
        ...

    def wall_s(self) -> float:
        """Return seconds since the Unix epoch; may jump."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        """Return time.monotonic()."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Return time.time()."""
        return time.time()


class ManualClock:
    """A clock that moves only when told; both readings advance together."""

    def __init__(self, now_s: float = 1_000.0, wall_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        """Return the time that was set."""
        return self._now_s

    def wall_s(self) -> float:
        """Return the wall time that was set."""
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Move both readings forward."""
        assert seconds >= 0, "time does not go back"
        self._now_s += seconds
        self._wall_s += seconds
