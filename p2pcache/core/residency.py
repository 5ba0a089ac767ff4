"""
Owns the answer to "is it here?": residency states and the arithmetic behind them.

Knows nothing of the index; it gets what is held and what is wanted.
Invariants: bytes_local + bytes_missing = bytes_total; resident means nothing is missing; corrupt
means that a file was here and turned out damaged, whatever else is missing.
Source: design.md §3 and §8 (residency).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How much of a snapshot is here."""

    ABSENT = "absent"
    PARTIAL = "partial"
    VERIFYING = "verifying"
    RESIDENT = "resident"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class FileResidency:
    """
    One blob of a snapshot: how many of its bytes are held, whether it is proven and since when,
    whether it was found damaged and is not mended.
    """

    size_bytes: int
    held_bytes: int
    is_proven: bool
    verified_wall_s: float = 0.0
    is_damaged: bool = False


@dataclass(frozen=True, slots=True)
class Residency:
    """
    The sum over a snapshot's distinct blobs. `verified_wall_s`: when the one that was hashed
    longest ago was hashed; None unless all of it is here, or it has no files.
    """

    state: State
    bytes_total: int
    bytes_local: int
    verified_wall_s: float | None = None

    @property
    def bytes_missing(self) -> int:
        """Return the bytes that are still to be fetched."""
        return self.bytes_total - self.bytes_local


def sum_whole(bytes_total: int, verified_wall_s: Iterable[float]) -> Residency:
    """
    Return what measure_residency() does of files that are all here and proven, in less time.

    Args:
        bytes_total: Of all of them.
        verified_wall_s: When each was hashed.
    """
    return Residency(State.RESIDENT, bytes_total, bytes_total, min(verified_wall_s, default=None))


def measure_residency(files: Iterable[FileResidency]) -> Residency:
    """Sum up a snapshot; one without files is resident."""
    total = local = 0
    is_proven, is_damaged, verified_wall_s = True, False, math.inf
    for entry in files:
        total += entry.size_bytes
        local += entry.size_bytes if entry.is_proven else entry.held_bytes
        is_proven = is_proven and entry.is_proven
        is_damaged = is_damaged or (entry.is_damaged and not entry.is_proven)
        verified_wall_s = min(verified_wall_s, entry.verified_wall_s)
    if is_proven:
        state = State.RESIDENT
    elif is_damaged:
        state = State.CORRUPT
    elif local == total:
        state = State.VERIFYING
    else:
        state = State.PARTIAL if local else State.ABSENT
    is_known = is_proven and verified_wall_s < math.inf
    return Residency(state, total, local, verified_wall_s if is_known else None)
