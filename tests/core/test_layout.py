"""
Owns the tests of core.layout.

Knows nothing of digests.
Invariants: the chunks of a layout cover the blob exactly once, in order.
Source: core/layout.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX, CHUNK_SIZE_BYTES, CHUNKS_PER_BLOB_MAX, Layout
from p2pcache.errors import InputError
from tests.sizes import INTERESTING_SIZES_BYTES


@pytest.mark.parametrize("size_bytes", INTERESTING_SIZES_BYTES)
def test_layout_interesting_size_is_covered_once(size_bytes: int) -> None:
    """Chunks follow each other without gap or overlap, none empty, none too long."""
    layout = Layout(size_bytes)
    end = 0
    for index in range(layout.chunk_count):
        assert layout.offset_of(index) == end
        assert 0 < layout.length_of(index) <= CHUNK_SIZE_BYTES
        assert layout.index_at(end) == index
        end += layout.length_of(index)
        assert layout.index_at(end - 1) == index
    assert end == size_bytes


@given(st.integers(1, BLOB_SIZE_BYTES_MAX), st.data())
def test_layout_any_run_spans_the_sum_of_its_chunks(size_bytes: int, data: st.DataObject) -> None:
    """A run starts at its first chunk and ends with its last one."""
    layout = Layout(size_bytes)
    first = data.draw(st.integers(0, layout.chunk_count - 1))
    last = data.draw(st.integers(first, min(first + 9, layout.chunk_count - 1)))
    lengths = [layout.length_of(index) for index in range(first, last + 1)]
    assert layout.span_of(first, last) == (layout.offset_of(first), sum(lengths))


@given(st.integers(1, BLOB_SIZE_BYTES_MAX), st.data())
def test_layout_any_offset_lies_in_its_chunk(size_bytes: int, data: st.DataObject) -> None:
    """index_at names the chunk that holds the byte."""
    layout = Layout(size_bytes)
    offset = data.draw(st.integers(0, size_bytes - 1))
    index = layout.index_at(offset)
    assert 0 <= offset - layout.offset_of(index) < layout.length_of(index)


@pytest.mark.parametrize("size_bytes", [-1, BLOB_SIZE_BYTES_MAX + 1, 1 << 62])
def test_layout_impossible_size_is_refused(size_bytes: int) -> None:
    """Sizes outside the limits are input errors, before any table is allocated."""
    with pytest.raises(InputError):
        Layout(size_bytes)


def test_layout_largest_blob_has_the_largest_table() -> None:
    """The size limit and the chunk limit are one limit."""
    assert Layout(BLOB_SIZE_BYTES_MAX).chunk_count == CHUNKS_PER_BLOB_MAX


def test_layout_index_outside_is_an_assertion() -> None:
    """A chunk or offset that is not there is our own mistake."""
    with pytest.raises(AssertionError):
        Layout(1).offset_of(1)
    with pytest.raises(AssertionError):
        Layout(0).index_at(0)
