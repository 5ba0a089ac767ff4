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


def _score(member_id: str, blob: BlobDigest, chunk_index: int) -> bytes:
    return blake3(f"{blob}\n{chunk_index}\n{member_id}".encode()).digest(length=8)


def find_owner(blob: BlobDigest, chunk_index: int, member_ids: Iterable[str]) -> str | None:
    """Return the member with the highest score for this chunk, None when there is no member."""
    return max(member_ids, key=lambda m: (_score(m, blob, chunk_index), m), default=None)
