"""
Owns the tables of a fetch: what becomes of a chunk, and what follows from the end of a run.

Knows nothing of time or of who decides: fetchmachine.py looks up here.
Invariants: what a table does not name cannot happen; every outcome has exactly one consequence.
Source: design.md §6; docs/explanation/scheduling.md, which shows these tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class ChunkState(Enum):
    """Where one chunk of a fetch stands."""

    MISSING = auto()
    # Asked of one source.
    ASKED = auto()
    # Asked of two: a reader waits, or the first takes too long.
    DOUBLED = auto()
    HELD = auto()


class ChunkEvent(Enum):
    """What can happen to a chunk."""

    ASK = auto()
    # A run that was to bring it ended, whether it did or not.
    END = auto()
    STORE = auto()
    # The proof, or another hash of what is on the disk, put it in doubt.
    FORGET = auto()


CHUNK_TRANSITIONS: dict[tuple[ChunkState, ChunkEvent], ChunkState] = {
    (ChunkState.MISSING, ChunkEvent.ASK): ChunkState.ASKED,
    (ChunkState.MISSING, ChunkEvent.STORE): ChunkState.HELD,  # kept from before, or a late byte
    (ChunkState.MISSING, ChunkEvent.FORGET): ChunkState.MISSING,
    (ChunkState.ASKED, ChunkEvent.ASK): ChunkState.DOUBLED,
    (ChunkState.ASKED, ChunkEvent.END): ChunkState.MISSING,
    (ChunkState.ASKED, ChunkEvent.STORE): ChunkState.HELD,
    (ChunkState.ASKED, ChunkEvent.FORGET): ChunkState.ASKED,
    (ChunkState.DOUBLED, ChunkEvent.END): ChunkState.ASKED,
    (ChunkState.DOUBLED, ChunkEvent.STORE): ChunkState.HELD,
    (ChunkState.DOUBLED, ChunkEvent.FORGET): ChunkState.DOUBLED,
    (ChunkState.HELD, ChunkEvent.STORE): ChunkState.HELD,  # the slower of two sources
    (ChunkState.HELD, ChunkEvent.END): ChunkState.HELD,
    (ChunkState.HELD, ChunkEvent.FORGET): ChunkState.MISSING,
}


class Outcome(Enum):
    """How a run can end."""

    DELIVERED = auto()
    CANCELLED = auto()
    # A peer's:
    WRONG_BYTES = auto()
    REFUSED = auto()
    BUSY = auto()
    DAMAGED = auto()
    PROTOCOL = auto()
    UNREACHABLE = auto()
    CRAWLED = auto()
    # Upstream's:
    RATE_LIMITED = auto()
    UPSTREAM_FAILED = auto()


class Refusal(Enum):
    """Which chunks of a run are not asked of its source again."""

    NONE = auto()
    # The one that was wrong.
    CHUNK = auto()
    # Those that did not come.
    REST = auto()
    # Those that did not come, once it has refused several times in a row.
    REST_WHEN_REPEATED = auto()


# A peer that has not what it said: it may have told us since.
REFUSED_REST_S = 1.0
# One that is busy, or whose chunks are still on their way to it, is asked again this soon: a
# chunk takes about as long from one of a few that share a line.
BUSY_REST_S = 0.12
# Among few, one that goes on saying so is asked later and later: it gives turns to everybody, and
# has another reason. In a crowd it may be a queue, and who does not come back in time loses its
# place there (turns.py).
BUSY_SOON_MAX = 8
BUSY_REST_GROWTH = 1.25
BUSY_REST_S_MAX = 1.0
# So often it is believed, for 5 to 10 s, and not for ever: it may hold up what others have.
BUSY_IN_A_ROW_MAX = 22
BUSY_IN_A_CROWD_MAX = 80
# Times 1 less or more this share of it, by chance: those who were turned away together would come
# back together, for one place.
BUSY_REST_JITTER = 0.5
# One that broke off: a restarted daemon is back by then.
BROKEN_REST_S = 3.0
# One that crawled: its line will not be better in a minute, and others have the chunks.
CRAWLER_REST_S = 60.0


@dataclass(frozen=True, slots=True)
class Consequence:
    """
    What follows from the end of a run.

    Attributes:
        rest_s: The source is not asked for this blob for so long.
        is_shunned: Meanwhile it does not even count as having anything.
        refusal: Which chunks it is not asked for again.
        fault: What is held against it; None when it did nothing wrong.
        is_ban: Whether one such fault is proof enough to ban it.
    """

    rest_s: float = 0.0
    is_shunned: bool = False
    refusal: Refusal = Refusal.NONE
    fault: str | None = None
    is_ban: bool = False


CONSEQUENCES: dict[Outcome, Consequence] = {
    Outcome.DELIVERED: Consequence(),
    Outcome.CANCELLED: Consequence(),
    Outcome.WRONG_BYTES: Consequence(refusal=Refusal.CHUNK, fault="wrong bytes", is_ban=True),
    Outcome.REFUSED: Consequence(
        rest_s=REFUSED_REST_S, is_shunned=True, refusal=Refusal.REST_WHEN_REPEATED
    ),
    # It counts as having its chunks all the while: else a busy seeder sends everybody to the hub.
    Outcome.BUSY: Consequence(rest_s=BUSY_REST_S, refusal=Refusal.REST_WHEN_REPEATED),
    Outcome.DAMAGED: Consequence(refusal=Refusal.REST, fault="damaged copy"),
    Outcome.PROTOCOL: Consequence(rest_s=BROKEN_REST_S, is_shunned=True, fault="protocol"),
    Outcome.UNREACHABLE: Consequence(rest_s=BROKEN_REST_S, is_shunned=True),
    Outcome.CRAWLED: Consequence(rest_s=CRAWLER_REST_S, is_shunned=True),
    Outcome.RATE_LIMITED: Consequence(),
    Outcome.UPSTREAM_FAILED: Consequence(),
}


def find_busy_rest_s(in_a_row: int, *, is_crowded: bool) -> float:
    """
    Return for how many seconds, on average, a busy peer is left alone.

    Args:
        in_a_row: How often it has said so without giving anything in between.
        is_crowded: Whether more daemons are known than talk to each other.
    """
    late = 0 if is_crowded else max(0, in_a_row - BUSY_SOON_MAX)
    return min(BUSY_REST_S_MAX, BUSY_REST_S * BUSY_REST_GROWTH**late)
