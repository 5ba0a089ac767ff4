"""
Owns how long a member of the swarm keeps what it owes: leases, and the pace that keeps them.

Knows nothing of messages: it is told what members say, and when.
Invariants: a lease ends by want of progress, never by the clock alone; who owes nothing cannot
stall; a member that moves again counts again.
Source: design.md §6.2; Gray and Cheriton, "Leases" (1989); docs/explanation/scheduling.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from statistics import median

# A member that owes chunks and receives nothing for so long loses them: above a slow round trip
# and a 4 MiB chunk at 1 MB/s, below the 10 s after which HTTP clients give up.
LEASE_S = 5.0
# Up to so much longer, by chance, so that members whose views differ do not all step in at once.
LEASE_JITTER_S = 1.0
# Less than this is no progress: who creeps along holds its chunks no longer than who stands.
PROGRESS_BYTES_MIN = 64 * 1024
# An announced chunk is waited for until its claimant has brought this many times the bytes of all
# that it announced: the others came meanwhile, this one did not.
CLAIM_PATIENCE_FACTOR = 2
# A pace is judged once a member was watched for so long; a measure of it is as old at most.
PACE_WATCH_S = 3.0
# Who owed nothing after a shorter time than that gives a measure for others, if it was so long.
PACE_SHORT_S = 0.5
# A member below this share of the others' middle pace holds up everybody: it owes nothing more.
SLOW_SHARE = 0.125
# It is tried again after this long: lines recover.
SLOW_S = 30.0


@dataclass(slots=True)
class _Watch:
    """What is known of one member's progress with first copies."""

    # Of all blobs: who fetches another one first does not stall.
    moved_bytes: int = 0
    # Of this blob.
    received_bytes: int = 0
    progress_s: float = 0.0
    # What had moved then.
    progress_bytes: int = 0
    # Since when it has owed something without a break; None while it owes nothing.
    owes_since_s: float | None = None
    is_stalled: bool = False
    stalled_s: float = 0.0
    slow_until_s: float = 0.0
    # Where the measure of its pace began.
    mark_s: float = 0.0
    mark_bytes: int = 0
    pace_bps: float | None = None
    # The last one that was measured.
    known_bps: float | None = None

    def measure_bps(self, now_s: float) -> float:
        """Return its pace since the mark."""
        return (self.moved_bytes - self.mark_bytes) / (now_s - self.mark_s)


@dataclass(slots=True)
class _Claim:
    """One announced chunk."""

    # What its claimant had received when it first announced it.
    before_bytes: int
    since_s: float = 0.0
    # The most that it announced at one time since: all of that may come before this one.
    beside_bytes: int = 0
    # Whether it takes far longer than such chunks take us.
    is_late: bool = False


class Tenure:
    """The leases of one blob's first copies, as this member sees them."""

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}
        self._claims: dict[tuple[str, int], _Claim] = {}

    def note_progress(
        self, member_id: str, *, moved_bytes: int, received_bytes: int, now_s: float
    ) -> None:
        """Take in a member's bytes of first copies: of all blobs, and of this one."""
        watch = self._watches.get(member_id)
        if watch is None:
            watch = _Watch(moved_bytes, received_bytes, now_s)
            watch.mark_s, watch.mark_bytes = now_s, moved_bytes
            watch.progress_bytes = moved_bytes
            self._watches[member_id] = watch
        watch.received_bytes = received_bytes
        watch.moved_bytes = max(watch.moved_bytes, moved_bytes)
        if watch.moved_bytes - watch.progress_bytes >= PROGRESS_BYTES_MIN:
            watch.progress_bytes = watch.moved_bytes
            watch.progress_s = now_s
            watch.is_stalled = False

    def note_owing(self, owing: Set[str], *, now_s: float, jitter: float) -> None:
        """
        Take in who owes something now, and judge everybody.

        Args:
            owing: The members that own or announce a chunk that nobody has.
            now_s: Monotonic seconds.
            jitter: 0 to 1, by chance.
        """
        lease_s = LEASE_S + LEASE_JITTER_S * jitter
        for member_id, watch in self._watches.items():
            if watch.is_stalled and now_s - watch.stalled_s > SLOW_S:
                # Who owns nothing cannot move: it is tried again.
                watch.is_stalled, watch.progress_s = False, now_s
            if member_id not in owing:
                if watch.owes_since_s is not None and now_s - watch.mark_s >= PACE_SHORT_S:
                    watch.known_bps = watch.measure_bps(now_s)
                watch.owes_since_s = watch.pace_bps = None
                continue
            if watch.owes_since_s is None:
                watch.owes_since_s = watch.mark_s = now_s
                watch.mark_bytes = watch.moved_bytes
            if not watch.is_stalled and now_s - max(watch.owes_since_s, watch.progress_s) > lease_s:
                watch.is_stalled, watch.stalled_s = True, now_s
            if now_s - watch.mark_s >= PACE_WATCH_S:
                watch.pace_bps = watch.known_bps = watch.measure_bps(now_s)
                watch.mark_s, watch.mark_bytes = now_s, watch.moved_bytes
        self._judge_paces(now_s)

    def _judge_paces(self, now_s: float) -> None:
        # Of those that are done, too: who is the last to owe something is compared with them.
        paces = [w.known_bps for w in self._watches.values() if w.known_bps is not None]
        if len(paces) < 2:
            return
        middle = median(paces)
        for watch in self._watches.values():
            if watch.pace_bps is not None and watch.pace_bps < middle * SLOW_SHARE:
                watch.slow_until_s = now_s + SLOW_S

    def find_stalled(self, *, now_s: float) -> set[str]:
        """Return the members that owe nothing, since they make no or too little progress."""
        return {
            member_id
            for member_id, watch in self._watches.items()
            if watch.is_stalled or now_s < watch.slow_until_s
        }

    def find_pace_bps(self, member_id: str) -> float | None:
        """Return how fast a member brought first copies when that was last measured."""
        watch = self._watches.get(member_id)
        return None if watch is None else watch.known_bps

    def find_share(self, member_id: str) -> float | None:
        """Return a member's share of all paces together; None if nobody else's is known."""
        paces = {m: w.known_bps for m, w in self._watches.items() if w.known_bps is not None}
        if not paces.keys() - {member_id}:
            return None
        return paces.get(member_id, 0.0) / max(1.0, sum(paces.values()))

    def find_slow(self, *, now_s: float) -> set[str]:
        """Return those of the stalled that move."""
        return {
            member_id
            for member_id, watch in self._watches.items()
            if not watch.is_stalled and now_s < watch.slow_until_s
        }

    def note_claims(
        self,
        claims: Iterable[tuple[str, int]],
        length_of: Callable[[int], int],
        *,
        now_s: float = 0.0,
        chunk_s: float = 0.0,
    ) -> None:
        """
        Take in everything that members announce now.

        Args:
            claims: As (member, chunk).
            length_of: The bytes of a chunk.
            now_s: Monotonic seconds.
            chunk_s: What a chunk from the hub usually takes us, in seconds; 0 if nobody knows.
        """
        before, self._claims = self._claims, {}
        claimed_bytes = Counter[str]()
        # Once each: what lapsed is owed by its owner again, which may be who announced it.
        for member_id, index in dict.fromkeys(claims):
            claimed_bytes[member_id] += length_of(index)
            claim = before.get((member_id, index)) or _Claim(self._received_by(member_id), now_s)
            self._claims[member_id, index] = claim
        for (member_id, index), claim in self._claims.items():
            claim.beside_bytes = max(claim.beside_bytes, claimed_bytes[member_id])
            # As slow as a member may be: all that it announced, one after the other.
            chunks = claim.beside_bytes / max(1, length_of(index))
            patience_s = max(LEASE_S, chunks * chunk_s / SLOW_SHARE)
            claim.is_late = chunk_s > 0 and now_s - claim.since_s > patience_s

    def excuse(self, *, now_s: float) -> None:
        """Let everybody's leases begin anew: what was owed, nobody could bring."""
        for watch in self._watches.values():
            watch.owes_since_s, watch.progress_s = None, now_s
        for claim in self._claims.values():
            claim.since_s, claim.is_late = now_s, False

    def find_lapsed(self) -> dict[int, set[str]]:
        """Return the chunks that were announced, and did not come while others did; by whom."""
        lapsed: dict[int, set[str]] = {}
        for (member_id, index), claim in self._claims.items():
            since_bytes = self._received_by(member_id) - claim.before_bytes
            if claim.is_late or since_bytes > CLAIM_PATIENCE_FACTOR * claim.beside_bytes:
                lapsed.setdefault(index, set()).add(member_id)
        return lapsed

    def _received_by(self, member_id: str) -> int:
        watch = self._watches.get(member_id)
        return 0 if watch is None else watch.received_bytes

    def forget(self, member_ids: Set[str]) -> None:
        """Drop the members that are not in the swarm any more: all but the given ones."""
        for member_id in [m for m in self._watches if m not in member_ids]:
            del self._watches[member_id]
