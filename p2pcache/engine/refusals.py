"""
Owns the memory of what the hub has just refused, and to whom.

Knows nothing of who asks the hub.
Invariants: a refusal is its caller's alone, and lasts for seconds; the memory is bounded.
Source: docs/reference/hub-dialect.md (what a hub's no is good for).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from p2pcache.clock import Clock
from p2pcache.errors import (
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    UpstreamAuthError,
)

T = TypeVar("T")

# Long enough that a thousand workers with one wrong name ask once, too short for somebody who has
# just got access to notice.
REFUSAL_TTL_S = 2.0
# Distinct questions within these seconds; the oldest goes.
REFUSALS_MAX = 4096
_REFUSED = (RepositoryNotFoundError, RevisionNotFoundError, UpstreamAuthError)


class Refusals:
    """Refusals by question; whose question it is, is part of the key. Event loop only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Not the errors themselves: these hold on to the frames that they passed through.
        self._refusals: OrderedDict[Hashable, tuple[float, type[P2PCacheError], str]] = (
            OrderedDict()
        )

    async def ask(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """
        Do some work that asks the hub, unless it has just been refused.

        Raises:
            NotFoundError, UpstreamAuthError: What the work raised, now or a moment ago.
        """
        refusal = self._refusals.get(key)
        if refusal is not None and self._clock.monotonic_s() < refusal[0]:
            raise refusal[1](refusal[2])
        try:
            return await work()
        except _REFUSED as error:
            self._refusals.pop(key, None)
            until_s = self._clock.monotonic_s() + REFUSAL_TTL_S
            self._refusals[key] = (until_s, type(error), str(error))
            if len(self._refusals) > REFUSALS_MAX:
                self._refusals.popitem(last=False)
            raise
