"""
Owns who is responsible for the first copy of a chunk.

Knows nothing of liveness: the caller passes the members that count.
Invariants: every member computes the same order from the same set; one member leaving moves
only the chunks that it owned.
Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
"""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from p2pcache.core.digest import BlobDigest


def _score(member_id: str, about: str) -> bytes:
    return blake3(f"{about}\n{member_id}".encode()).digest(length=8)


def find_owner(blob: BlobDigest, chunk_index: int, member_ids: Iterable[str]) -> str | None:
    """Return the member with the highest score for this chunk, None when there is no member."""
    about = f"{blob}\n{chunk_index}"
    return max(member_ids, key=lambda m: (_score(m, about), m), default=None)


def rank_owners(blob: BlobDigest, chunk_index: int, member_ids: Iterable[str]) -> list[str]:
    """Return the members as they follow one another for this chunk, its owner first."""
    about = f"{blob}\n{chunk_index}"
    return sorted(member_ids, key=lambda m: (_score(m, about), m), reverse=True)


def find_place(blob: BlobDigest, member_id: str, count: int) -> int:
    """Return a place in a blob of `count` chunks that is a member's own, as good as by chance."""
    return int.from_bytes(_score(member_id, str(blob)), "little") % count if count else 0


def find_highest(key: BlobDigest | str, member_ids: Iterable[str], count: int) -> list[str]:
    """Return the `count` members with the highest scores for a blob, or a name, highest first."""
    about = str(key)
    return sorted(member_ids, key=lambda m: (_score(m, about), m), reverse=True)[:count]
