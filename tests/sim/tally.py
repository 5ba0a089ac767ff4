"""
Owns what one member counts: bytes that came, bytes that came in vain, chunks by source.

Knows nothing of limits.
Invariants: every byte that came is either part of a chunk that was new, kept for later, or in vain;
what is in vain is told apart by why: asked twice on purpose, or lost with somebody's death.
Source: design.md §6.7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2pcache.core.transitions import Outcome
from p2pcache.core.views import UPSTREAM

if TYPE_CHECKING:
    from tests.sim.transfers import Transfer


@dataclass(slots=True)
class Tally:
    """The figures of one member."""

    wanted_bytes: int = 0
    received_bytes: int = 0
    upstream_bytes: int = 0
    # By what ended the run.
    vain_bytes: Counter[Outcome] = field(default_factory=Counter)
    died_bytes: int = 0
    # Chunks that a waiting reader had asked for twice, and what that cost.
    rescued: set[int] = field(default_factory=set)
    rescue_bytes: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    chunks_from: Counter[str] = field(default_factory=Counter)
    finished_s: float | None = None
    failures: int = 0
    forgotten_chunks: int = 0
    # (moment, chunks held), for the picture.
    progress: list[tuple[float, int]] = field(default_factory=list)

    def note_chunk(self, source_id: str, held_chunks: int, now_s: float) -> None:
        """Count a chunk that was new."""
        self.progress.append((now_s, held_chunks))
        self.chunks_from[UPSTREAM if source_id == UPSTREAM else "peer"] += 1

    def note_run(self, transfer: Transfer, outcome: Outcome, received_bytes: int) -> None:
        """Count a run that ended."""
        self.outcomes[outcome] += 1
        self.received_bytes += received_bytes
        useful_bytes = transfer.new_bytes
        if transfer.request.source_id == UPSTREAM:
            self.upstream_bytes += received_bytes
            # The start of a chunk that did not come in full is kept.
            useful_bytes += received_bytes - transfer.stored_bytes
        if not self.rescued.isdisjoint(transfer.request.chunk_indexes):
            self.rescue_bytes += received_bytes - useful_bytes
        else:
            self.vain_bytes[outcome] += received_bytes - useful_bytes

    def note_death(self, transfers: Iterable[Transfer], now_s: float) -> None:
        """Count what was under way when the process died."""
        for transfer in transfers:
            received_bytes = transfer.received_bytes(now_s)
            self.received_bytes += received_bytes
            self.died_bytes += received_bytes - transfer.new_bytes

    @property
    def extra_bytes(self) -> int:
        """Return what came twice on purpose: by hedging, by the endgame, or for a reader."""
        return self.vain_bytes[Outcome.DELIVERED] + self.vain_bytes[Outcome.CANCELLED]
