"""
Owns which daemons hold the copies of a model that somebody wants several of.

Knows nothing of orders or networks.
Invariants: equal members give equal holders; one that leaves moves only its own copy; a copy is
given up only when enough others are there.
Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from blake3 import blake3

# A site has racks, not thousands of copies of one model that each must be watched.
REPLICAS_MAX = 64


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """Who is to get a copy, and who need not keep one."""

    order: tuple[str, ...] = ()
    release: tuple[str, ...] = ()


def rank_members(about: str, member_ids: Iterable[str]) -> list[str]:
    """Return members by how much they are meant to hold something, the first first."""

    def score(member_id: str) -> tuple[bytes, str]:
        return blake3(f"{about}\n{member_id}".encode()).digest(length=8), member_id

    return sorted(member_ids, key=score, reverse=True)


def plan_replicas(
    about: str, members: Set[str], holders: Mapping[str, bool], *, count: int
) -> ReplicaPlan:
    """
    Decide what to do so that `count` members hold a copy.

    Args:
        about: What is held.
        members: Who is up and takes orders.
        holders: Who was given a copy, or is getting one; whether it counts: it is up, or has not
            been away for long.
        count: How many are wanted.
    """
    counting = {holder for holder, counts in holders.items() if counts}
    free = rank_members(about, members - counting)
    order = free[: max(0, count - len(counting))]
    there = rank_members(about, counting & members)
    return ReplicaPlan(tuple(order), tuple(there[count:]))
