"""
Owns the tests of core.chunktable.

Knows nothing of bytes.
Invariants: a table has one digest for each chunk, or None.
Source: core/chunktable.py.
"""

from __future__ import annotations

import pytest

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import CHUNK_DIGEST_SIZE_BYTES
from p2pcache.errors import InputError
from tests.samples import make_chunks_sample

SAMPLE = make_chunks_sample(3)


def test_chunktable_new_knows_no_digest() -> None:
    """A derived table has lengths only."""
    table = ChunkTable(SAMPLE.blob, SAMPLE.layout)
    assert table.standing is Standing.DERIVED
    assert list(table) == [None, None, None]
    assert table.find(1) is None
    assert not table.is_complete()


def test_chunktable_complete_is_read_back_as_proven() -> None:
    """from_bytes is the inverse of to_bytes."""
    table = ChunkTable(SAMPLE.blob, SAMPLE.layout)
    for index in range(3):
        table.set(index, SAMPLE.digest_of(index))
    read = ChunkTable.from_bytes(SAMPLE.blob, SAMPLE.layout, table.to_bytes())
    assert table.is_complete()
    assert list(read) == list(table)
    assert read.standing is Standing.PROVEN


def test_chunktable_cleared_chunk_is_unknown_again() -> None:
    """A digest that turned out to be wrong is forgotten."""
    table = ChunkTable(SAMPLE.blob, SAMPLE.layout)
    table.set(2, SAMPLE.digest_of(2))
    table.clear(2)
    assert table.find(2) is None


@pytest.mark.parametrize("size_bytes", [0, 1, 2 * CHUNK_DIGEST_SIZE_BYTES, 97])
def test_chunktable_wrong_length_is_refused(size_bytes: int) -> None:
    """A table that does not fit the layout is an input error."""
    with pytest.raises(InputError):
        ChunkTable.from_bytes(SAMPLE.blob, SAMPLE.layout, bytes(size_bytes))


def test_chunktable_incomplete_has_no_byte_form() -> None:
    """Writing an incomplete table is our own mistake."""
    with pytest.raises(AssertionError):
        ChunkTable(SAMPLE.blob, SAMPLE.layout).to_bytes()
