"""
Owns the Discovery boundary: telling others where we listen, hearing where they do.

Knows nothing of chunks, trust or liveness: what it reports is a hint that the engine probes.
Invariants: callbacks run on the event loop; nothing announced names a model.
Source: RFC 6762 and 6763 for the mDNS form; design.md §7 and §9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Announcement:
    """What this daemon says of itself: no model names, no paths, no tokens."""

    peer_id: str
    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address where a peer may listen. `via` is the kind of discovery that said so."""

    host: str
    port: int
    via: str


class Discovery(Protocol):
    """One way to find peers. One start, one stop; both idempotent."""

    async def start(
        self,
        announcement: Announcement,
        on_found: Callable[[Candidate], None],
        on_lost: Callable[[Candidate], None],
    ) -> None:
        """
        Announce ourselves and begin to watch; returns once both are under way.

        The callbacks may be called many times for one candidate and must be cheap.

        Raises:
            ConfigError: This kind of discovery cannot work here.
        """
        ...

    async def stop(self) -> None:
        """Withdraw the announcement and release every socket. Safe to call twice."""
        ...
