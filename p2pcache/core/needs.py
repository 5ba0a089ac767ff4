"""
Owns what all fetches of a daemon together still need of lone seeders.

Knows nothing of chunks or requests: each fetch says what it needs, and asks what the others do.
Invariants: a fetch that is over needs nothing; nobody hears of its own needs.
Source: design.md §6.2; views.py for what a lone seeder is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pcache.core.digest import BlobDigest


@dataclass(frozen=True, slots=True)
class _Need:
    seeder_id: str
    owes: bool


@dataclass(slots=True)
class LoneNeeds:
    """Which blobs' first copies are still to come over which lone seeder's line. One owner."""

    _needs: dict[BlobDigest, _Need] = field(default_factory=dict)

    def note(self, blob: BlobDigest, seeder_id: str, *, owes: bool) -> None:
        """
        Say that a seeder has chunks of a blob that nobody else has.

        Args:
            blob: What is fetched.
            seeder_id: Who alone has all of it.
            owes: Whether some of them are ours to ask for, and are not asked for yet.
        """
        self._needs[blob] = _Need(seeder_id, owes)

    def forget(self, blob: BlobDigest) -> None:
        """Say that a blob needs no lone seeder, or no more. Safe to call twice."""
        self._needs.pop(blob, None)

    def is_needed_elsewhere(self, blob: BlobDigest, seeder_id: str) -> bool:
        """Return whether a seeder has first copies to give of another blob than this one."""
        return any(b != blob and n.seeder_id == seeder_id for b, n in self._needs.items())

    def find_first_owing(self, seeder_id: str) -> BlobDigest | None:
        """
        Return the blob that comes first on a seeder's line, of those in which we owe chunks.

        All members choose alike, without a word: files come one after the other, and each is
        proven while the next one comes.
        """
        owing = [b for b, n in self._needs.items() if n.seeder_id == seeder_id and n.owes]
        return min(owing, key=str, default=None)

    def is_turn_of(self, blob: BlobDigest, seeder_id: str) -> bool:
        """Return whether a blob's chunks may be asked for: none that comes before it owes any."""
        first = self.find_first_owing(seeder_id)
        return first is None or str(blob) <= str(first)

    def owes_elsewhere(self, blob: BlobDigest, seeder_id: str) -> bool:
        """Return whether some of those are ours to ask for."""
        return any(
            b != blob and n.seeder_id == seeder_id and n.owes for b, n in self._needs.items()
        )
