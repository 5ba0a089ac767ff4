"""
Owns what can be wrong with a simulated daemon.

Knows nothing of how it shows.
Invariants: none.
Source: issue 4, items 2 and 4.
"""

from __future__ import annotations

from enum import Enum, auto


class Vice(Enum):
    """What is wrong with a member, if anything."""

    NONE = auto()
    # Every second chunk that it gives is not what it promised a moment before.
    FORGES = auto()
    # Every second chunk that it gives is as promised, and not the blob's.
    POISONS = auto()
    # Says that it has everything, and gives nothing.
    BOASTS = auto()
    # Announces that it fetches everything, for ever.
    CLAIMS = auto()
    # Announces nothing, and says that its bytes move, for ever.
    LOAFS = auto()
    # Says that it will bring everything itself, announces nothing, and brings nothing.
    HOGS = auto()
