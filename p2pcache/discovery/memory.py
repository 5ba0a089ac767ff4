"""
Owns discovery inside one process: a network that is an object, for tests and the simulator.

Knows nothing of sockets, time or names.
Invariants: each instance hears of each other once per arrival and departure, never of itself.
Source: docs/explanation/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from p2pcache.discovery.base import Announcement, Candidate


@dataclass(slots=True)
class _Member:
    """One started instance: what it says and whom to tell."""

    announcement: Announcement
    candidate: Candidate
    on_found: Callable[[Candidate], None]
    on_lost: Callable[[Candidate], None]


@dataclass(slots=True)
class MemoryNetwork:
    """What several MemoryDiscovery share: who is there now. For one event loop."""

    members: list[_Member] = field(default_factory=list)

    def join(self, member: _Member) -> None:
        """Add a member and introduce it and the others to each other."""
        others = self._others(member)
        self.members.append(member)
        for other in others:
            other.on_found(member.candidate)
            member.on_found(other.candidate)

    def leave(self, member: _Member) -> None:
        """Remove a member and tell the others."""
        self.members.remove(member)
        for other in self._others(member):
            other.on_lost(member.candidate)

    def _others(self, member: _Member) -> list[_Member]:
        """Return the members of another peer id, as a copy: a callback may start or stop one."""
        peer_id = member.announcement.peer_id
        return [other for other in self.members if other.announcement.peer_id != peer_id]


class MemoryDiscovery:
    """Discovery among the instances that were given the same MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, *, host: str = "127.0.0.1") -> None:
        """
        Make an instance that has not joined yet.

        Args:
            network: Shared with the instances that are to find this one.
            host: The address that the others are told.
        """
        self._network = network
        self._host = host
        self._member: _Member | None = None

    async def start(
        self,
        announcement: Announcement,
        on_found: Callable[[Candidate], None],
        on_lost: Callable[[Candidate], None],
    ) -> None:
        """Join the network; the members of now are reported before this returns."""
        if self._member is not None:
            return
        candidate = Candidate(self._host, announcement.port, "memory")
        self._member = _Member(announcement, candidate, on_found, on_lost)
        self._network.join(self._member)

    async def stop(self) -> None:
        """Leave the network; safe to call twice, or without a start."""
        member, self._member = self._member, None
        if member is not None:
            self._network.leave(member)
