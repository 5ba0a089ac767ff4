"""
Owns who owes which first copy of one blob, remembered until the members change.

Knows nothing of who is alive: the caller passes the members that count.
Invariants: equal members give equal owners everywhere; at most OWNERS_MAX of them own chunks.
Source: rendezvous.py; design.md §6.2.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.rendezvous import find_highest, rank_owners

# So many connections fill any hub's line; with more, each chunk would take longer and more would
# be lost with a member. Swarms of hundreds agree on the owners by knowing these few.
OWNERS_MAX = 12
# With more members than this, a pair of them exchanges less than twice a second.
CROWD_MEMBERS_MIN = 10


class Ownership:
    """The owners of one blob's chunks."""

    def __init__(self, blob: BlobDigest) -> None:
        self._blob = blob
        self._members: frozenset[str] = frozenset()
        self._crew: list[str] = []
        self._ranks: dict[int, list[str]] = {}
        self._not_owned: dict[str, Bitfield] = {}

    def set_members(self, member_ids: Iterable[str]) -> None:
        """Say which members count from now on."""
        members = frozenset(member_ids)
        if members != self._members:
            self._members = members
            self._crew = find_highest(self._blob, members, OWNERS_MAX)
            self._ranks.clear()
            self._not_owned.clear()

    @property
    def is_crowded(self) -> bool:
        """Return whether it takes a while until all members know each other."""
        return len(self._members) > CROWD_MEMBERS_MIN

    def is_owner(self, member_id: str) -> bool:
        """Return whether a member may own chunks."""
        return member_id in self._crew

    def owner_of(self, chunk_index: int) -> str | None:
        """Return the member that owes a chunk, None when there is no member."""
        return next(iter(self.ranks_of(chunk_index)), None)

    def next_owner_of(self, chunk_index: int, without: Container[str]) -> str | None:
        """Return who owes a chunk when some members failed with this one."""
        return next((m for m in self.ranks_of(chunk_index) if m not in without), None)

    def ranks_of(self, chunk_index: int) -> Sequence[str]:
        """Return the owners as they follow one another for a chunk; asked for at every look."""
        if chunk_index not in self._ranks:
            self._ranks[chunk_index] = rank_owners(self._blob, chunk_index, self._crew)
        return self._ranks[chunk_index]

    def drop_not_owned(self, member_id: str, chunks: Bitfield) -> Bitfield:
        """Return the chunks that a member owns, or of which nobody has looked whether it does."""
        known = self._not_owned.get(member_id)
        return chunks if known is None else chunks - known

    def note_not_owned(self, member_id: str, chunks: Bitfield) -> None:
        """Say which chunks others own: a blob may have 100,000, and is looked at all the time."""
        known = self._not_owned.get(member_id)
        self._not_owned[member_id] = chunks if known is None else known | chunks
