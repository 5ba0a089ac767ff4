"""
Owns the tests of store.havelog.

Knows nothing of files.
Invariants: a record is read exactly as written or not at all, and nothing after a torn one.
Source: store/havelog.py; docs/reference/store-layout.md.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.store.havelog import (
    RECORD_SIZE_BYTES,
    Kind,
    Record,
    header_to_bytes,
    iter_records,
)

LAYOUT = Layout(10 * CHUNK_SIZE_BYTES)
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
