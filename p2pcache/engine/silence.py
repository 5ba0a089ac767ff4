"""
Owns which hubs kept us waiting for nothing, and are left alone for a while.

Knows nothing of what they are asked.
Invariants: a hub that answers, whatever it says, is asked again at once; so is one that is off and
says so at once. Whoever is told nothing because of a silence is told the same words.
Source: design.md §6.4 (clients give up after 10 s without a byte).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from p2pcache.clock import Clock
from p2pcache.errors import UpstreamUnreachableError

# A hub that did not answer is not asked again for this long: a waiting client has only 10 s.
UNREACHABLE_PAUSE_S = 5.0
# One that is off says so at once, and may be asked each time: whoever asks waits for nothing.
SILENCE_S_MIN = 0.5


class Silences:
    """The hubs that are left alone, by name. Event loop only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Until when, kept until it is asked again.
        self._until_s: dict[str, float] = {}

    def was_silent(self, hub: str) -> bool:
        """Return whether a hub did not answer when it was last asked."""
        return hub in self._until_s

    @contextmanager
    def asking(self, hub: str) -> Iterator[None]:
        """
        Enclose a question to a hub, and learn from how it ends.

        Raises:
            UpstreamUnreachableError: The hub is left alone; the question is not asked.
        """
        if self._clock.monotonic_s() < self._until_s.get(hub, 0.0):
            raise UpstreamUnreachableError(
                "The hub does not answer; check the network, or ask for what is cached."
            )
        self._until_s.pop(hub, None)
        # Real time, whatever the clock: a question is waited for by the event loop.
        began_s = asyncio.get_running_loop().time()
        try:
            yield
        except UpstreamUnreachableError:
            if asyncio.get_running_loop().time() - began_s >= SILENCE_S_MIN:
                self._until_s[hub] = self._clock.monotonic_s() + UNREACHABLE_PAUSE_S
            raise
