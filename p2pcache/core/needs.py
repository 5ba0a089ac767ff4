"""
Owns what all fetches of a daemon together still need of the sources of first copies, the hub and
lone seeders, and whose turn it is there.

Knows nothing of chunks or requests: each fetch says what it needs, and asks what the others do.
Invariants: a fetch that is over needs nothing; nobody hears of its own needs; at the hub blobs take
turns, and wait for none that could not ask now; at a lone seeder a blob that owes chunks gets a
place after IN_A_ROW_MAX of another one, or as many times that as blobs owe.
Source: design.md §6.2; views.py for what a lone seeder is; docs/decisions/0031 and 0034.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from p2pcache.core.digest import BlobDigest
from p2pcache.core.views import UPSTREAM

# So many first copies of one blob, then one of another that waits: others may need that one, and
# nobody else, or only somebody who does not know that we wait, would bring it.
IN_A_ROW_MAX = 16
# At a lone seeder, whoever comes first gets the next place, however many its blob may have: else
# one with fewer would wait until another one that may have more has come.
REQUESTS_NO_MAX = 1 << 30
# A blob that was never asked for has waited longer than any other.
_NEVER = -1


@dataclass(frozen=True, slots=True)
class _Need:
    source_id: str
    size_bytes: int
    requests_max: int
    owes: bool


@dataclass(slots=True)
class _Line:
    """What was asked of one source: how often in a row for the same blob, and when for each."""

    in_a_row: int = 0
    asked: list[BlobDigest] = field(default_factory=list)

    def note(self, blob: BlobDigest) -> None:
        """Move a blob to the end of those that were asked for."""
        self.in_a_row = self.in_a_row + 1 if self.asked[-1:] == [blob] else 1
        self.forget(blob)
        self.asked.append(blob)

    def forget(self, blob: BlobDigest) -> None:
        """Drop a blob that was asked for."""
        self.asked = [b for b in self.asked if b != blob]

    def find_turn(self, blob: BlobDigest) -> int:
        """Return a blob's place among all, those that waited for longest first."""
        return self.asked.index(blob) if blob in self.asked else _NEVER


@dataclass(slots=True)
class FirstCopyNeeds:
    """Which blobs' first copies are still to come, and from where. One owner."""

    _needs: dict[BlobDigest, _Need] = field(default_factory=dict)
    _lines: dict[str, _Line] = field(default_factory=dict)

    def note(
        self,
        blob: BlobDigest,
        source_id: str,
        *,
        size_bytes: int,
        owes: bool,
        requests_max: int = REQUESTS_NO_MAX,
    ) -> None:
        """
        Say that a source has chunks of a blob that nobody else has.

        Args:
            blob: What is fetched.
            source_id: Who alone has all of it.
            size_bytes: How large the blob is.
            owes: Whether some of them are ours to ask for, and are not asked for yet.
            requests_max: It is asked for while fewer requests than this are under way there.
        """
        self._needs[blob] = _Need(source_id, size_bytes, requests_max, owes)

    def note_asked(self, blob: BlobDigest, source_id: str) -> None:
        """Say that a first copy of a blob was asked for."""
        self._lines.setdefault(source_id, _Line()).note(blob)

    def stand_back(self, blob: BlobDigest) -> None:
        """Say that a blob can't be asked for now: the others need not wait for it."""
        if (need := self._needs.get(blob)) is not None:
            self._needs[blob] = replace(need, owes=False)

    def forget(self, blob: BlobDigest) -> None:
        """Say that a blob needs no first copies, or no more. Safe to call twice."""
        self._needs.pop(blob, None)
        for source_id, line in list(self._lines.items()):
            line.forget(blob)
            if not line.asked:
                del self._lines[source_id]

    def count(self, source_id: str) -> int:
        """Return how many blobs are fetched that would take first copies from a source."""
        return sum(need.source_id == source_id for need in self._needs.values())

    def is_needed_elsewhere(self, blob: BlobDigest, source_id: str) -> bool:
        """Return whether a source has first copies to give of another blob than this one."""
        return any(b != blob and n.source_id == source_id for b, n in self._needs.items())

    def owes_elsewhere(
        self, blob: BlobDigest, source_id: str, *, requests_inflight: int = 0
    ) -> bool:
        """Return whether some of those are ours to ask for, and could be asked for now."""
        return any(b != blob for b, _ in self._iter_owing(source_id, requests_inflight))

    def find_first_owing(self, source_id: str, *, requests_inflight: int = 0) -> BlobDigest | None:
        """
        Return the blob whose turn it is at a source, of those in which we owe chunks.

        Args:
            source_id: The hub, or a lone seeder.
            requests_inflight: How many requests of ours are under way there.
        """
        owing = dict(self._iter_owing(source_id, requests_inflight))
        return self._find_first(source_id, owing) if owing else None

    def is_turn_of(
        self, blob: BlobDigest, source_id: str, *, size_bytes: int, requests_inflight: int = 0
    ) -> bool:
        """Return whether a blob's chunks may be asked for, whether or not it has said its needs."""
        owing = dict(self._iter_owing(source_id, requests_inflight))
        return self._find_first(source_id, {**owing, blob: size_bytes}) == blob

    def _iter_owing(
        self, source_id: str, requests_inflight: int
    ) -> Iterator[tuple[BlobDigest, int]]:
        return (
            (blob, need.size_bytes)
            for blob, need in self._needs.items()
            if need.owes and need.source_id == source_id and requests_inflight < need.requests_max
        )

    def _find_first(self, source_id: str, sizes: Mapping[BlobDigest, int]) -> BlobDigest:
        """
        Choose the blob that comes first at a source.

        At a lone seeder it is the smallest, of equal ones the first by name: all members choose
        alike, without a word, so that files come one after the other. At the hub, and now and then
        at a seeder, it is the one that has waited for longest.
        """
        line = self._lines.get(source_id, _Line())
        is_by_turns = source_id == UPSTREAM or line.in_a_row >= IN_A_ROW_MAX

        def find_place(blob: BlobDigest) -> tuple[int, int, str]:
            turn = line.find_turn(blob) if is_by_turns else _NEVER
            return turn, sizes[blob], str(blob)

        return min(sizes, key=find_place)
