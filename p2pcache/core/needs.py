"""
Owns what all fetches of a daemon together still need of lone seeders, and whose turn it is there.

Knows nothing of chunks or requests: each fetch says what it needs, and asks what the others do.
Invariants: a fetch that is over needs nothing; nobody hears of its own needs; a blob that owes
chunks gets a place after IN_A_ROW_MAX of another one, or as many times that as blobs owe.
Source: design.md §6.2; views.py for what a lone seeder is; docs/decisions/0031.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from p2pcache.core.digest import BlobDigest

# So many first copies of one blob, then one of another that waits: others may need that one, and
# nobody else, or only somebody who does not know that we wait, would bring it.
IN_A_ROW_MAX = 16


@dataclass(frozen=True, slots=True)
class _Need:
    seeder_id: str
    size_bytes: int
    owes: bool


@dataclass(slots=True)
class _Line:
    """What was asked of one seeder: how often in a row for the same blob, and when for each."""

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


@dataclass(slots=True)
class LoneNeeds:
    """Which blobs' first copies are still to come over which lone seeder's line. One owner."""

    _needs: dict[BlobDigest, _Need] = field(default_factory=dict)
    _lines: dict[str, _Line] = field(default_factory=dict)

    def note(self, blob: BlobDigest, seeder_id: str, *, size_bytes: int, owes: bool) -> None:
        """
        Say that a seeder has chunks of a blob that nobody else has.

        Args:
            blob: What is fetched.
            seeder_id: Who alone has all of it.
            size_bytes: How large the blob is.
            owes: Whether some of them are ours to ask for, and are not asked for yet.
        """
        self._needs[blob] = _Need(seeder_id, size_bytes, owes)

    def note_asked(self, blob: BlobDigest, seeder_id: str) -> None:
        """Say that a first copy of a blob was asked for."""
        self._lines.setdefault(seeder_id, _Line()).note(blob)

    def stand_back(self, blob: BlobDigest) -> None:
        """Say that a blob can't be asked for now: the others need not wait for it."""
        if (need := self._needs.get(blob)) is not None:
            self.note(blob, need.seeder_id, size_bytes=need.size_bytes, owes=False)

    def forget(self, blob: BlobDigest) -> None:
        """Say that a blob needs no lone seeder, or no more. Safe to call twice."""
        self._needs.pop(blob, None)
        for seeder_id, line in list(self._lines.items()):
            line.forget(blob)
            if not line.asked:
                del self._lines[seeder_id]

    def is_needed_elsewhere(self, blob: BlobDigest, seeder_id: str) -> bool:
        """Return whether a seeder has first copies to give of another blob than this one."""
        return any(b != blob and n.seeder_id == seeder_id for b, n in self._needs.items())

    def owes_elsewhere(self, blob: BlobDigest, seeder_id: str) -> bool:
        """Return whether some of those are ours to ask for."""
        return any(b != blob for b in self._iter_owing(seeder_id))

    def find_first_owing(self, seeder_id: str) -> BlobDigest | None:
        """
        Return the blob whose turn it is on a seeder's line, of those in which we owe chunks.

        The smallest, of equal ones the first by name: all members choose alike, without a word, so
        that files come one after the other, and each is proven while the next one comes. Now and
        then it is the one that has waited for longest.
        """
        owing = sorted(self._iter_owing(seeder_id), key=self._find_place)
        line = self._lines.get(seeder_id)
        if line is not None and line.in_a_row >= IN_A_ROW_MAX:
            owing.sort(key=lambda b: line.asked.index(b) if b in line.asked else -1)
        return owing[0] if owing else None

    def is_turn_of(self, blob: BlobDigest, seeder_id: str, *, size_bytes: int) -> bool:
        """Return whether a blob's chunks may be asked for, whether or not it has said its needs."""
        first = self.find_first_owing(seeder_id)
        if first is None or first == blob:
            return True
        is_known = blob in self._iter_owing(seeder_id)
        return not is_known and (size_bytes, str(blob)) < self._find_place(first)

    def _iter_owing(self, seeder_id: str) -> Iterator[BlobDigest]:
        return (b for b, n in self._needs.items() if n.seeder_id == seeder_id and n.owes)

    def _find_place(self, blob: BlobDigest) -> tuple[int, str]:
        return self._needs[blob].size_bytes, str(blob)
