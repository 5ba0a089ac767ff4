"""
Owns the answer to "is it here?": residency states and the arithmetic behind them.

Knows nothing of the index; it gets what is held and what is wanted.
Invariants: bytes_local + bytes_missing = bytes_total; resident means nothing is missing.
Source: design.md §3 and §8 (residency).
"""

from __future__ import annotations

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
    """One blob of a snapshot: how many of its bytes are held, whether it is proven."""

    size_bytes: int
    held_bytes: int
    is_proven: bool


@dataclass(frozen=True, slots=True)
class Residency:
    """The sum over a snapshot's distinct blobs."""

    state: State
    bytes_total: int
    bytes_local: int

    @property
    def bytes_missing(self) -> int:
        """Return the bytes that are still to be fetched."""
        return self.bytes_total - self.bytes_local


def measure_residency(files: Iterable[FileResidency]) -> Residency:
    """Sum up a snapshot; one without files is resident."""
    total = local = 0
    is_proven = True
    for entry in files:
        total += entry.size_bytes
        local += entry.size_bytes if entry.is_proven else entry.held_bytes
        is_proven = is_proven and entry.is_proven
    if is_proven:
        state = State.RESIDENT
    elif local == total:
        state = State.VERIFYING
    else:
        state = State.PARTIAL if local else State.ABSENT
    return Residency(state, total, local)
