"""
Owns the guess which parts of a file that is to be fetched lie in files that are here.

Knows nothing of files: compares what heads say. A guess is worth nothing by itself: a few bytes
of each part are compared with the hub's before it is copied, and the proof of the whole decides.
Invariants: parts are compared by name, type, shape and length of their tensors; equal inputs give
equal guesses.
Source: docs/decisions/0010-deduplication.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pcache.core.digest import BlobDigest
from p2pcache.core.tensors import Segment, TensorMap

if TYPE_CHECKING:
    from random import Random

# Bytes compared with the hub's: weights that were trained on differ in nearly every byte.
PROBE_BYTES = 512
# Requests for one file. The largest parts come first: a thousand of them are most of any model.
PROBES_MAX = 1000
# Asked for before the rest: a file that only looks alike costs no more than these. One that shares
# a fifth of its parts is passed over once in thirty times.
FIRST_PROBES = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part lies in a blob that is here."""

    blob: BlobDigest
    start: int


@dataclass(frozen=True, slots=True)
class Likeness:
    """
    A part of the wanted file and where its twins may lie. The bytes from probe_start of the
    wanted file on are compared, PROBE_BYTES of them or to the part's end.
    """

    start: int
    length: int
    probe_start: int
    places: tuple[Place, ...]

    @property
    def probe_bytes(self) -> int:
        """Return how many bytes are compared."""
        return min(PROBE_BYTES, self.start + self.length - self.probe_start)


def find_likenesses(
    wanted: TensorMap, here: Mapping[BlobDigest, TensorMap], *, random: Random
) -> list[Likeness]:
    """
    Find the parts of a file whose tensors other files have too, by name.

    Args:
        wanted: The file that is to be fetched.
        here: Files that are here, the likeliest first.
        random: Says where in a part to look, so that no file can be made to pass.

    Returns:
        At most PROBES_MAX parts; FIRST_PROBES spread over the file, then the largest first.
    """
    places: dict[tuple[object, int], list[Place]] = {}
    for blob, tensors in here.items():
        for segment in tensors.segments():
            places.setdefault(_key(segment), []).append(Place(blob, segment.start))
    found = [
        Likeness(segment.start, segment.length, _choose(segment, random), tuple(twins))
        for segment in wanted.segments()
        if (twins := places.get(_key(segment)))
    ]
    found.sort(key=lambda likeness: (-likeness.length, likeness.start))
    return _spread_first(found[:PROBES_MAX])


def _key(segment: Segment) -> tuple[object, int]:
    return segment.label, segment.length


def _choose(segment: Segment, random: Random) -> int:
    return segment.start + random.randrange(max(1, segment.length - PROBE_BYTES + 1))


def _spread_first(found: Sequence[Likeness]) -> list[Likeness]:
    step = max(1, len(found) // FIRST_PROBES)
    first = found[::step][:FIRST_PROBES]
    chosen = {likeness.start for likeness in first}
    return [*first, *(likeness for likeness in found if likeness.start not in chosen)]
