"""
Owns the tests of core.layout.

Knows nothing of digests.
Invariants: the chunks of a layout cover the blob exactly once, in order.
Source: core/layout.py.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable
from itertools import accumulate, pairwise

import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from p2pcache.core.layout import (
    BLOB_SIZE_BYTES_MAX,
    CHUNK_SIZE_BYTES,
    CHUNKS_PER_BLOB_MAX,
    CHUNKS_PER_STEP_MAX,
    FIXED_LAYOUT,
    Layout,
    LayoutId,
    is_layout_name,
)
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


# --- boundaries of their own ---

STEP = CHUNK_SIZE_BYTES
chunk_lengths = st.lists(
    st.one_of(st.sampled_from([1, 7, STEP // 2, STEP - 1, STEP]), st.integers(1, STEP)),
    min_size=1,
    max_size=CHUNKS_PER_STEP_MAX,
)


def starts_of(lengths: Iterable[int]) -> list[int]:
    """Return where chunks of these lengths begin, and where the last one ends."""
    return [0, *accumulate(lengths)]


def make_layout(lengths: list[int]) -> Layout:
    """Return a layout with chunks of these lengths."""
    *starts, size_bytes = starts_of(lengths)
    return Layout.of_starts(size_bytes, starts)


@given(chunk_lengths)
@example([STEP])
@example([STEP, STEP, 5])
@example([1, STEP])
def test_layout_of_starts_is_cut_where_it_was_told(lengths: list[int]) -> None:
    """Offsets, lengths, runs and indexes are those of the chunks."""
    layout = make_layout(lengths)
    *starts, size_bytes = starts_of(lengths)
    assert layout.size_bytes == size_bytes
    assert layout.chunk_count == len(lengths)
    indexes = range(len(lengths))
    assert [layout.offset_of(i) for i in indexes] == starts
    assert [layout.length_of(i) for i in indexes] == lengths
    assert [layout.index_at(start) for start in starts] == list(indexes)
    assert [layout.index_at(start + n - 1) for start, n in zip(starts, lengths, strict=True)] == (
        list(indexes)
    )
    assert layout.measure(indexes) == size_bytes
    last = len(lengths) - 1
    assert layout.span_of(0, last) == (0, size_bytes)
    assert layout.span_of(last, last) == (starts[-1], lengths[-1])
    assert layout.id == LayoutId(size_bytes, layout.name, len(lengths))


@given(chunk_lengths)
@example([5] * CHUNKS_PER_STEP_MAX)
def test_layout_is_read_back_from_spans_and_bytes(lengths: list[int]) -> None:
    """Both forms name every boundary, and runs of equal chunks once."""
    layout = make_layout(lengths)
    spans = layout.to_spans()
    if layout.name == FIXED_LAYOUT:
        assert spans == []
        assert layout == Layout(layout.size_bytes)
    else:
        assert [length for length, count in spans for _ in range(count)] == lengths
        assert all(a[0] != b[0] for a, b in pairwise(spans))
        assert Layout.from_spans(layout.size_bytes, spans) == layout
    assert Layout.from_bytes(layout.size_bytes, layout.to_bytes()) == layout


@given(chunk_lengths)
def test_layout_name_is_the_digest_of_its_starts(lengths: list[int]) -> None:
    """As docs/reference/layouts.md says it, so that another program computes the same."""
    layout = make_layout(lengths)
    *starts, _ = starts_of(lengths)
    if all(start % STEP == 0 for start in starts):
        assert layout.name == FIXED_LAYOUT
    else:
        raw = struct.pack(f"<{len(starts)}Q", *starts)
        assert layout.name == f"tensor-{blake3(raw).hexdigest()[:9]}"
    assert is_layout_name(layout.name)


@given(chunk_lengths, chunk_lengths)
def test_layouts_of_one_size_are_equal_when_their_boundaries_are(
    one: list[int], other: list[int]
) -> None:
    """And then their names are, too."""
    missing = sum(one) - sum(other)
    shorter, longer = (other, one) if missing > 0 else (one, other)
    rest = abs(missing)
    filled = [*shorter, *[STEP] * (rest // STEP), *([rest % STEP] if rest % STEP else [])]
    a, b = make_layout(filled), make_layout(longer)
    assert (a == b) is (filled == longer)
    assert (a.name == b.name) is (filled == longer)
    if a == b:
        assert hash(a) == hash(b)
    assert a != Layout(a.size_bytes + 1)
    assert a != "a layout"


def test_layouts_with_one_name_and_other_boundaries_are_not_equal() -> None:
    """Nine digits can be made to collide; what a peer says must not become what we mean."""
    one, other = make_layout([5, 7]), make_layout([7, 5])
    other.name = one.name
    assert one != other
    assert one.id == other.id


@pytest.mark.parametrize(
    ("size_bytes", "starts"),
    [
        (10, []),
        (0, [0]),
        (10, [1]),
        (10, [0, 0]),
        (10, [0, 5, 4]),
        (10, [0, 10]),
        (10, [0, 11]),
        (STEP + 1, [0]),
        (3 * STEP, [0, STEP]),
        (3 * STEP, [0, 1, STEP + 2]),
        (100, range(CHUNKS_PER_STEP_MAX + 1)),
    ],
)
def test_layout_of_impossible_starts_is_refused(size_bytes: int, starts: Iterable[int]) -> None:
    """Gaps, disorder, empty and long chunks, and too many of them."""
    with pytest.raises(InputError):
        Layout.of_starts(size_bytes, starts)


def test_layout_may_have_so_many_chunks_and_no_more() -> None:
    """64 for each 4 MiB begun."""
    size_bytes = STEP + 2 * CHUNKS_PER_STEP_MAX
    starts = [*range(2 * CHUNKS_PER_STEP_MAX - 1), 2 * CHUNKS_PER_STEP_MAX]
    assert Layout.of_starts(size_bytes, starts).chunk_count == 2 * CHUNKS_PER_STEP_MAX
    with pytest.raises(InputError):
        Layout.of_starts(size_bytes, range(2 * CHUNKS_PER_STEP_MAX + 1))


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [(5, 1)],
        [(5, 3)],
        [(10, 1), (1, 1)],
        [(0, 1), (10, 1)],
        [(10, 0)],
        [(-10, -1)],
        [(-5, 1), (15, 1)],
        [(10, 1), (5, 0)],
        [(STEP + 1, 1)],
        [(1, 1 << 70)],
        [(1 << 70, 1)],
    ],
)
def test_layout_of_bad_spans_is_refused(spans: list[tuple[int, int]]) -> None:
    """Spans that do not make up ten bytes."""
    with pytest.raises(InputError):
        Layout.from_spans(10, spans)


def test_layout_of_endless_spans_is_refused_before_it_takes_memory() -> None:
    """A short message that names 2^40 chunks costs what a million chunks cost."""
    spans = [(1, CHUNKS_PER_BLOB_MAX)] * 1000
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            Layout.from_spans(BLOB_SIZE_BYTES_MAX, spans)
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=40), st.integers(0, 100))
def test_layout_of_any_bytes_is_read_or_refused(raw: bytes, size_bytes: int) -> None:
    """What a disk returns is a layout or an input error."""
    try:
        layout = Layout.from_bytes(size_bytes, raw)
    except InputError:
        return
    assert layout.size_bytes == size_bytes
    assert layout.to_bytes() == raw or layout.name == FIXED_LAYOUT


# --- names from outside ---


def test_layout_id_of_the_fixed_layout_needs_no_count() -> None:
    """Peers of an earlier release name none; one that is wrong does not count."""
    for count in (None, 3, 7):
        assert LayoutId.parse(3 * STEP, FIXED_LAYOUT, count) == Layout(3 * STEP).id


@given(chunk_lengths)
def test_layout_id_is_read_back(lengths: list[int]) -> None:
    """Whatever layout there is."""
    wanted = make_layout(lengths).id
    assert LayoutId.parse(wanted.size_bytes, wanted.name, wanted.chunk_count) == wanted


@pytest.mark.parametrize(
    ("size_bytes", "name", "count"),
    [
        (10, "fixed-4M", 1),
        (10, "fixed-1m", 1),
        (10, "", 1),
        (10, "tensor-", 1),
        (10, "tensor-12345678", 1),
        (10, "tensor-1234567890", 1),
        (10, "tensor-12345678g", 1),
        (10, "tensor-12345678A", 1),
        (10, "tensor-12345678\u0661", 1),
        (10, "123456789", 1),
        (10, "tensor-123456789", None),
        (10, "tensor-123456789", 0),
        (10, "tensor-123456789", -1),
        (10, "tensor-123456789", CHUNKS_PER_STEP_MAX + 1),
        (0, "tensor-123456789", 1),
        (-1, "tensor-123456789", 1),
        (BLOB_SIZE_BYTES_MAX, "tensor-123456789", CHUNKS_PER_BLOB_MAX + 1),
        (BLOB_SIZE_BYTES_MAX + 1, FIXED_LAYOUT, None),
    ],
)
def test_layout_id_that_cannot_be_is_refused(size_bytes: int, name: str, count: int | None) -> None:
    """A bitfield is only as long as a layout may have chunks."""
    with pytest.raises(InputError):
        LayoutId.parse(size_bytes, name, count)
