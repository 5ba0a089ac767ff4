"""
Owns the tests of core.readers: who waits for what, and since when.

Knows nothing of runs.
Invariants: none.
Source: core/readers.py.
"""

from __future__ import annotations

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.readers import READER_PATIENCE_S, READER_WINDOW_CHUNKS, Readers


def test_next_chunks_of_readers_are_those_after_their_places() -> None:
    """The nearest of all readers first, none twice, none beyond the end."""
    readers = Readers()
    for reader_id, index in enumerate((10, 11, 98)):
        readers.note(reader_id, index, now_s=0.0)
    ahead = readers.find_next(100)
    assert set(ahead[:3]) == {10, 11, 98}
    assert len(ahead) == len(set(ahead))
    assert set(ahead) == {*range(10, 11 + READER_WINDOW_CHUNKS), 98, 99}


def test_wait_begins_anew_only_when_a_reader_moves_on() -> None:
    """Saying the same again is no news."""
    readers, have = Readers(), Bitfield(8)
    assert readers.note(1, 3, now_s=0.0)
    assert not readers.note(1, 3, now_s=1.0)
    late_s = READER_PATIENCE_S + 0.5
    assert readers.find_starving(have, now_s=late_s) == [3]
    assert readers.note(1, 4, now_s=late_s)
    assert readers.find_starving(have, now_s=late_s) == []


def test_reader_who_left_or_whose_chunk_is_here_waits_for_nothing() -> None:
    """Both end the wait."""
    readers, have = Readers(), Bitfield(8)
    readers.note(1, 3, now_s=0.0)
    readers.note(2, 4, now_s=0.0)
    have.add(3)
    readers.forget(2)
    readers.forget(2)
    assert readers.find_starving(have, now_s=100.0) == []
    assert len(readers) == 1
