"""
Owns the memory of who announced what, so that each change is reported once and memory is bounded.

Knows nothing of the network, of time or of which candidate is real: the engine finds out.
Invariants: at most candidates_max held; a candidate is lost when its last claimant is.
Source: threats T11 and T12 of the threat model.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from p2pcache.discovery.base import Candidate


@dataclass(frozen=True, slots=True)
class TableChange:
    """What became true, in the order in which to tell it."""

    found: tuple[Candidate, ...] = ()
    lost: tuple[Candidate, ...] = ()


class CandidateTable:
    """Candidates by the name that announced them. For one task only."""

    def __init__(self, candidates_max: int) -> None:
        """
        Make an empty table.

        Args:
            candidates_max: Candidates held, over all names. At least as many as one name may have.
        """
        assert candidates_max > 0
        self._candidates_max = candidates_max
        self._by_name: OrderedDict[str, frozenset[Candidate]] = OrderedDict()
        self._claims: Counter[Candidate] = Counter()
        self._claim_count = 0

    def __len__(self) -> int:
        return self._claim_count

    def replace(self, name: str, candidates: Iterable[Candidate]) -> TableChange:
        """
        Remember what name announces now, instead of what it announced before.

        When the table is full, the name that was heard of longest ago is forgotten without a
        word: that we ran out of room says nothing of whether it left, and whoever floods us must
        not be able to make us report that others are gone. It is reported again when it is next
        heard. The newest wins, since the other way a flood would keep every later peer out.

        Args:
            name: The announcing name; compared without regard to case, as DNS does.
            candidates: All that it announces now.

        Returns:
            What is new by this, and what nobody announces any more.
        """
        new = frozenset(candidates)
        assert len(new) <= self._candidates_max, "one name must fit the table"
        old = self._take(name)
        while self._claim_count + len(new) > self._candidates_max:
            _, forgotten = self._by_name.popitem(last=False)
            self._release(forgotten)
        found = tuple(_sorted(c for c in new if c not in self._claims and c not in old))
        if new:
            self._by_name[name.lower()] = new
            self._claims.update(new)
            self._claim_count += len(new)
        return TableChange(found, tuple(_sorted(c for c in old if c not in self._claims)))

    def remove(self, name: str) -> TableChange:
        """Forget a name that withdrew; returns what nobody else announces either."""
        return self.replace(name, ())

    def _take(self, name: str) -> frozenset[Candidate]:
        """Remove and return what name announced."""
        old = self._by_name.pop(name.lower(), frozenset())
        self._release(old)
        return old

    def _release(self, candidates: frozenset[Candidate]) -> None:
        """Take back one claim on each candidate."""
        for candidate in candidates:
            self._claims[candidate] -= 1
            if self._claims[candidate] == 0:
                del self._claims[candidate]
        self._claim_count -= len(candidates)


def _sorted(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Order candidates, so that equal inputs give equal reports."""
    return sorted(candidates, key=lambda candidate: (candidate.host, candidate.port))
