"""
Owns whom a daemon gives chunks at the same time, when many ask.

Knows nothing of sockets, blobs or clocks: told who asks, and when an upload began and ended.
Invariants: who fetches nothing never turns few askers away; a slow receiver keeps nobody waiting
for longer than TURN_S; who is turned away is told at once, and asks somebody else; nobody who comes
back for what only we have is passed over for ever.
Source: BEP 3 (choking: few uploads at a time); Mundinger, Weber and Weiss, "Optimal scheduling of
peer-to-peer file dissemination" (2008), for why a chunk should be whole somewhere soon.
"""

from __future__ import annotations

# With no more askers than this, all of them are served by a daemon that fetches nothing: a line
# shared by four is shared little.
ASKERS_FEW_MAX = 4
# Of a daemon that fetches, runs at once in each direction: few while it holds little, since each
# chunk should be whole somewhere soon, and be passed on; more later, when everybody has something
# for everybody, and a line would be idle between two requests.
RUNS_AT_FIRST = 3
RUNS_MAX = 6
CHUNKS_FOR_A_RUN_MORE = 4
# Of one that does not: nobody else has what it gives, and its line must stay full although those
# who ask receive from others at the same time.
TURNS_MAX = 8
# An upload that takes longer keeps nobody waiting any more: the receiver is slow, or our line is.
TURN_S = 2.0
# Who was turned away is expected back for so long: three times the longest rest of somebody who was
# told that we are busy (transitions.py), for a machine that has much to do.
RETURN_S = 0.6
# So many are remembered: more than the owners of chunks, who alone turn to a lone seeder
# (ownership.py), and where several are complete, others will serve the rest.
WAITING_MAX = 64


def count_runs_at_once(held_chunks: int) -> int:
    """Return how many runs a daemon of a crowd that fetches has under way in each direction."""
    return min(RUNS_MAX, RUNS_AT_FIRST + held_chunks // CHUNKS_FOR_A_RUN_MORE)


class UploadTurns:
    """The uploads under way. One owner."""

    def __init__(self) -> None:
        # By upload: who receives it, and since when.
        self._uploads: dict[int, tuple[str, float]] = {}
        # By asker who was turned away: when it first was, and last.
        self._waiting: dict[str, tuple[float, float]] = {}
        self._next_id = 1

    def may_begin(
        self, asker: str, *, is_crowded: bool, held_chunks: int | None, now_s: float
    ) -> bool:
        """
        Return whether an upload may begin now.

        Args:
            asker: Who asks, by any name that stays the same.
            is_crowded: Whether more daemons are known than talk to each other all the time.
            held_chunks: What we hold of that which we fetch; None if we fetch nothing.
            now_s: Monotonic seconds.
        """
        if not is_crowded:
            return True
        fresh = [who for who, began_s in self._uploads.values() if now_s - began_s < TURN_S]
        if held_chunks is not None:
            return len(fresh) < count_runs_at_once(held_chunks)
        # Who has just received asks again at once, and would always find the place that it left.
        self._waiting = {w: s for w, s in self._waiting.items() if now_s - s[1] < RETURN_S}
        since_s, _ = self._waiting.get(asker, (now_s, now_s))
        before = sum(first_s < since_s for first_s, _ in self._waiting.values())
        is_few = len({*fresh, *self._waiting, asker}) <= ASKERS_FEW_MAX
        if is_few or len(fresh) + before < TURNS_MAX:
            self._waiting.pop(asker, None)
            return True
        if asker in self._waiting or len(self._waiting) < WAITING_MAX:
            self._waiting[asker] = since_s, now_s
        return False

    def begin(self, asker: str, *, now_s: float) -> int:
        """Count an upload; return its number, for end()."""
        number, self._next_id = self._next_id, self._next_id + 1
        self._uploads[number] = (asker, now_s)
        return number

    def end(self, number: int) -> None:
        """Count an upload no more."""
        self._uploads.pop(number, None)
