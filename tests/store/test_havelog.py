"""
Owns the tests of store.havelog.

Knows nothing of files.
Invariants: a record is read exactly as written or not at all, and nothing after a torn one.
Source: store/havelog.py; docs/reference/store-layout.md.
"""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.store.havelog import (
    RECORD_SIZE_BYTES,
    Kind,
    Record,
    find_layout,
    header_to_bytes,
    iter_records,
)

LAYOUT = Layout(10 * CHUNK_SIZE_BYTES)
# Boundaries of its own: chunks of 5, 5, 7 bytes and 4 MiB.
CUT = Layout.from_spans(17 + CHUNK_SIZE_BYTES, [(5, 2), (7, 1), (CHUNK_SIZE_BYTES, 1)])
HEADER_SIZE_BYTES = len(header_to_bytes(LAYOUT))
records_ = st.lists(
    st.builds(
        Record,
        st.sampled_from(Kind),
        st.integers(0, LAYOUT.chunk_count - 1),
        st.integers(0, CHUNK_SIZE_BYTES),
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=16, max_size=16),
    ),
    max_size=6,
)


def write_log(records: list[Record], layout: Layout = LAYOUT) -> bytes:
    """Write a log as the store does."""
    return header_to_bytes(layout) + b"".join(record.to_bytes() for record in records)


@given(records_)
def test_havelog_any_records_are_read_back(records: list[Record]) -> None:
    """Reading is the inverse of writing."""
    raw = write_log(records)
    assert len(raw) == HEADER_SIZE_BYTES + len(records) * RECORD_SIZE_BYTES
    assert list(iter_records(raw, LAYOUT)) == records


@given(records_, st.data())
def test_havelog_torn_tail_is_cut_at_the_last_whole_record(
    records: list[Record], data: st.DataObject
) -> None:
    """However many bytes of the end are missing, what was whole before is read, no more."""
    raw = write_log(records)
    kept = data.draw(st.integers(0, len(raw)))
    whole = max(0, (kept - HEADER_SIZE_BYTES) // RECORD_SIZE_BYTES)
    assert list(iter_records(raw[:kept], LAYOUT)) == records[:whole]


@given(records_.filter(bool), st.data())
def test_havelog_flipped_bit_ends_the_log_there(records: list[Record], data: st.DataObject) -> None:
    """A record with a wrong checksum and all that follow are not believed."""
    raw = bytearray(write_log(records))
    place = data.draw(st.integers(HEADER_SIZE_BYTES, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    whole = (place - HEADER_SIZE_BYTES) // RECORD_SIZE_BYTES
    assert list(iter_records(bytes(raw), LAYOUT)) == records[:whole]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"P2PHAVE",
        header_to_bytes(Layout(1)),
        b"P2PHAVE9" + header_to_bytes(LAYOUT)[8:],
        bytes(HEADER_SIZE_BYTES),
    ],
)
def test_havelog_foreign_header_means_an_empty_log(raw: bytes) -> None:
    """A log of another blob, layout or format says nothing of this one."""
    log = raw + Record(Kind.CHUNK, 0, 1).to_bytes()
    assert list(iter_records(log, LAYOUT)) == []


@pytest.mark.parametrize(
    "record",
    [Record(Kind.CHUNK, 10), Record(Kind.PREFIX, 1 << 31), Record(Kind.FORGET, 10)],
)
def test_havelog_chunk_outside_the_blob_ends_the_log(record: Record) -> None:
    """An index that the blob does not have cannot be ours, checksum or not."""
    good = Record(Kind.CHUNK, 9)
    assert list(iter_records(write_log([good, record, good]), LAYOUT)) == [good]


def test_havelog_unknown_kind_ends_the_log() -> None:
    """A kind of a later release is not guessed at."""
    good, strange = Record(Kind.CHUNK, 9), Record(9)  # type: ignore[arg-type]
    assert list(iter_records(write_log([good, strange, good]), LAYOUT)) == [good]


@given(st.binary(max_size=300))
def test_havelog_any_bytes_after_the_header_never_fail(raw: bytes) -> None:
    """Whatever a disk returns is read without an exception."""
    assert len(list(iter_records(header_to_bytes(LAYOUT) + raw, LAYOUT))) <= 4


# --- headers ---


@pytest.mark.parametrize("layout", [LAYOUT, CUT, Layout(0), Layout(1)])
def test_havelog_header_says_the_layout(layout: Layout) -> None:
    """What was written for a blob says how it is cut, records behind it or not."""
    raw = header_to_bytes(layout)
    assert find_layout(raw) == layout
    assert find_layout(raw + Record(Kind.COMMIT).to_bytes()) == layout


def test_havelog_headers_are_those_of_the_reference() -> None:
    """Byte by byte, as docs/reference/store-layout.md says."""
    fixed = b"P2PHAVE1" + struct.pack("<Q", LAYOUT.size_bytes) + b"fixed-4m" + bytes(8)
    assert header_to_bytes(LAYOUT) == fixed
    spans = struct.pack("<6I", 5, 2, 7, 1, CHUNK_SIZE_BYTES, 1)
    assert header_to_bytes(CUT) == (
        b"P2PHAVE2"
        + struct.pack("<Q16s", CUT.size_bytes, CUT.name.encode())
        + struct.pack("<II", len(spans), zlib.crc32(spans))
        + spans
    )


@pytest.mark.parametrize("layout", [LAYOUT, CUT])
def test_havelog_torn_header_says_nothing(layout: Layout) -> None:
    """Every byte of it counts."""
    raw = header_to_bytes(layout)
    for kept in range(len(raw)):
        assert find_layout(raw[:kept]) is None
        assert list(iter_records(raw[:kept], layout)) == []


@pytest.mark.parametrize("layout", [LAYOUT, CUT])
@given(data=st.data())
def test_havelog_header_with_a_flipped_bit_never_says_another_layout(
    layout: Layout, data: st.DataObject
) -> None:
    """A bit that flipped in a size, a name or a span is not believed."""
    raw = bytearray(header_to_bytes(layout))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    found = find_layout(bytes(raw))
    # A size has no checksum; one of the fixed layout is that of a blob of another size.
    assert found is None or (layout is LAYOUT and 8 <= place < 16)
    assert found != layout
    assert list(iter_records(bytes(raw) + Record(Kind.CHUNK).to_bytes(), layout)) == []


@pytest.mark.parametrize(
    "spans",
    [
        b"",
        struct.pack("<II", 5, 2),
        struct.pack("<II", 0, 2),
        struct.pack("<II", CHUNK_SIZE_BYTES, 10),
        struct.pack("<II", 1, 1 << 31),
        struct.pack("<I", 5),
    ],
)
def test_havelog_spans_that_make_no_layout_say_nothing(spans: bytes) -> None:
    """With a right checksum, and still not ours."""
    head = b"P2PHAVE2" + struct.pack("<Q16s", LAYOUT.size_bytes, b"tensor-123456789")
    raw = head + struct.pack("<II", len(spans), zlib.crc32(spans)) + spans
    assert find_layout(raw) is None


@given(st.binary(max_size=100))
def test_havelog_any_header_is_read_or_left(raw: bytes) -> None:
    """Whatever a disk returns."""
    for head in (raw, b"P2PHAVE1" + raw, b"P2PHAVE2" + raw):
        found = find_layout(head)
        assert found is None or head.startswith(header_to_bytes(found))


@given(records_)
def test_havelog_records_behind_spans_are_read_back(records: list[Record]) -> None:
    """A longer header moves the records, and bounds their indexes by its own chunks."""
    kept = [record for record in records if record.chunk_index < CUT.chunk_count]
    assert list(iter_records(write_log(kept, CUT), CUT)) == kept
    assert list(iter_records(write_log(kept, CUT), LAYOUT)) == []
    assert list(iter_records(write_log(kept, CUT), Layout(CUT.size_bytes))) == []
    outside = Record(Kind.CHUNK, CUT.chunk_count)
    assert list(iter_records(write_log([*kept, outside], CUT), CUT)) == kept
